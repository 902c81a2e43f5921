"""next-sentence and multiple-choice, beside transformers' models and brute force."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

FIRST, SECOND = "The cat sat on the mat.", "it was very big, in london"
CHOICES = ["a cat", "the very big tower bridge in london", "johnston", "dogs and cats!"]


@torch.no_grad()
def probabilities(model: Any, *texts: str, folder: Any) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    answer = model(**tokenizer(*texts, return_tensors="pt"))
    logits = (
        answer.seq_relationship_logits if "seq_relationship_logits" in answer else answer.logits
    )
    return logits[0].softmax(-1).tolist()


@pytest.mark.parametrize("name", ["BertForNextSentencePrediction", "BertForPreTraining"])
def test_next_sentence(tiny: Any, name: str) -> None:
    folder = tiny(name)
    model = getattr(transformers, name).from_pretrained(folder)
    found, labels = {}, set()
    for pair in ((FIRST, SECOND), (SECOND, FIRST), ("paris", "the capital of france is big")):
        answer = chumoku.next_sentence(*pair, folder)
        expected = probabilities(model, *pair, folder=folder)
        assert answer["is_next"] == pytest.approx(expected[0], abs=1e-5)
        assert answer["not_next"] == pytest.approx(expected[1], abs=1e-5)
        assert answer["label"] == ("is_next" if expected[0] >= expected[1] else "not_next")
        found[pair] = answer["is_next"]
        labels.add(answer["label"])
    assert abs(found[FIRST, SECOND] - found[SECOND, FIRST]) > 1e-3, "order and segments count"
    with pytest.raises(InputError, match="64"):
        chumoku.next_sentence("cat " * 50, "dog " * 50, folder)
    assert chumoku.next_sentence("cat " * 50, "dog " * 50, folder, truncate=True)["label"]
    with pytest.raises(InputError, match="empty"):
        chumoku.next_sentence("cat", " ", folder)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("BertForMultipleChoice", "english"),
        ("DistilBertForMultipleChoice", "english"),
        ("RobertaForMultipleChoice", "roberta"),
    ],
)
def test_the_head_equals_the_published_one(tiny: Any, name: str, tokenizer: str) -> None:
    folder = tiny(name, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    model = getattr(transformers, name).from_pretrained(folder)
    inputs = theirs([FIRST] * 4, CHOICES, padding=True, return_tensors="pt")
    if name.startswith("Distil"):
        inputs.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model(**{k: v[None] for k, v in inputs.items()}).logits[0]
    expected = logits.softmax(-1).tolist()
    for model_like in (load(folder), folder):
        method = "auto" if model_like is not folder else "head"
        found = chumoku.multiple_choice(FIRST, CHOICES, model_like, method=method)
        assert [c["index"] for c in found] == sorted(range(4), key=lambda i: -expected[i])
        for choice in found:
            assert choice["choice"] == CHOICES[choice["index"]]
            assert choice["score"] == pytest.approx(expected[choice["index"]], abs=1e-5)
    assert max(expected) - min(expected) > 1e-2


@torch.no_grad()
def cloze(folder: Any, prompt: str, choices: list[str], mean: bool) -> list[float]:
    """Sum or mean of log P over each choice's pieces, each masked alone, one text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    scores = []
    for choice in choices:
        before, _, after = prompt.partition("[MASK]")
        text = before + choice + after
        inputs = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
        places = [
            i
            for i, (start, end) in enumerate(inputs.pop("offset_mapping")[0].tolist())
            if start < len(before) + len(choice) and end > len(before)
        ]
        values = []
        for place in places:
            masked = {k: v.clone() for k, v in inputs.items()}
            token = int(masked["input_ids"][0, place])
            masked["input_ids"][0, place] = tokenizer.mask_token_id
            values.append(float(model(**masked).logits[0, place].log_softmax(-1)[token]))
        scores.append(sum(values) / (len(values) if mean else 1))
    return scores


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_masked_method_equals_brute_force(tiny: Any, normalize: bool, batch_size: int) -> None:
    folder = tiny("BertForMaskedLM")
    prompt = "the capital, [MASK], is big."
    expected = torch.tensor(cloze(folder, prompt, CHOICES, normalize)).softmax(-1).tolist()
    found = chumoku.multiple_choice(
        prompt, CHOICES, folder, normalize=normalize, batch_size=batch_size
    )
    assert [c["index"] for c in found] == sorted(range(4), key=lambda i: -expected[i])
    for choice in found:
        assert choice["score"] == pytest.approx(expected[choice["index"]], abs=1e-5)
    other = torch.tensor(cloze(folder, prompt, CHOICES, not normalize)).softmax(-1).tolist()
    assert max(abs(a - b) for a, b in zip(expected, other, strict=True)) > 1e-3


def test_without_a_mask_the_choice_comes_behind(tiny: Any) -> None:
    folder = tiny("BertForMaskedLM")
    loaded = load(folder)
    expected = torch.tensor(cloze(folder, "john is [MASK]", CHOICES, True)).softmax(-1).tolist()
    for prompt in ("john is", "john is "):
        for choice in chumoku.multiple_choice(prompt, CHOICES, loaded):
            assert choice["score"] == pytest.approx(expected[choice["index"]], abs=1e-5)


def test_japanese_needs_no_space(tiny: Any) -> None:
    pytest.importorskip("fugashi")
    folder = tiny("BertForMaskedLM", "japanese")
    choices = ["寿司", "東京都", "ラーメン"]
    behind = chumoku.multiple_choice("今日の昼ご飯は", choices, load(folder))
    masked = chumoku.multiple_choice("今日の昼ご飯は[MASK]", choices, load(folder))
    assert [(c["index"], c["score"]) for c in behind] == [(c["index"], c["score"]) for c in masked]
    sentence = "私の今日の昼ご飯は[MASK]です。"
    found = chumoku.multiple_choice(sentence, choices, load(folder))
    assert sum(c["score"] for c in found) == pytest.approx(1.0)


def test_bad_input(tiny: Any) -> None:
    folder = tiny("BertForMaskedLM")
    for message, call in {
        "two choices": lambda: chumoku.multiple_choice("cat", ["dog"], folder),
        "unknown method": lambda: chumoku.multiple_choice("cat", CHOICES, folder, method="best"),
        "more than one": lambda: chumoku.multiple_choice("[MASK] [MASK]", CHOICES, folder),
        "text 1 is empty": lambda: chumoku.multiple_choice("[MASK]", ["a", ""], folder),
        "needs a model with head": lambda: chumoku.multiple_choice(
            "cat", CHOICES, load(tiny("BertForNextSentencePrediction"))
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
