"""Labels carried from characters to tokens and back, windows, the loss, and learning."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from training.objectives import tiny

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import bert, distilbert
from chumoku.tasks.tokens import ner
from chumoku.training.objectives import token_classification, token_labels
from chumoku.training.objectives.token_classification import labels_of, task
from chumoku.training.objectives.token_labels import align, labelled, owners, tags_of
from chumoku.training.task import IGNORED

LABELS = ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
BERT = bert.Config(
    max_positions=64,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    dropout=0.0,
    attention_dropout=0.0,
    labels=LABELS,
)
DISTIL = distilbert.Config(
    max_positions=64,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    dropout=0.0,
    attention_dropout=0.0,
    labels=LABELS,
)


def entity(start: int, end: int, kind: str) -> dict[str, Any]:
    return {"start": start, "end": end, "type": kind}


WORDS: list[dict[str, Any]] = [
    {
        "words": ["mary", "lives", "in", "new", "york", "."],
        "tags": ["B-PER", "O", "O", "B-LOC", "I-LOC", "O"],
    },
    {"words": ["the", "cat", "sat"], "tags": ["O", "O", "O"]},
    {"words": ["johning", "works"], "tags": ["B-PER", "O"]},
]
JAPANESE: list[dict[str, Any]] = [
    {
        "text": "太郎さんは東京都に住んでいる。",
        "entities": [entity(0, 2, "PER"), entity(5, 8, "LOC")],
    },
    {"text": "花子さんは京都に行く", "entities": [entity(0, 2, "PER"), entity(5, 7, "LOC")]},
    {"text": "ラーメンを食べる", "entities": []},
]


def loaded_of(config: Any = BERT, kind: str = "english", **changes: Any) -> Loaded:
    loaded = tiny.created(replace(config, **changes), "token-classification", kind)
    tiny.randomised(loaded.model)
    return loaded


def batch_of(made: Any) -> Any:
    return made.collate([made.examples.example(i, 0) for i in range(len(made.examples))])


# ---- the loss ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [None, [1.0, 3.0, 0.5]])
def test_the_loss_is_its_formula(dtype: torch.dtype, weights: list[float] | None) -> None:
    logits = torch.randn(2, 4, 3, dtype=dtype, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[IGNORED, 2, 0, IGNORED], [IGNORED, 1, IGNORED, 2]])
    total = units = 0.0
    for b, t, y in [(0, 1, 2), (0, 2, 0), (1, 1, 1), (1, 3, 2)]:
        row = logits[b, t].tolist()
        w = 1.0 if weights is None else weights[y]
        total -= w * (row[y] - math.log(math.fsum(map(math.exp, row))))
        units += w
    given = None if weights is None else torch.tensor(weights)
    loss = token_classification.token_loss(logits, targets, given)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(loss.total) == pytest.approx(total, rel=tolerance)
    assert float(loss.units) == units
    shifted = token_classification.token_loss(logits, targets.roll(1, 1), given)
    assert float(shifted.total) != pytest.approx(total, rel=1e-2)


@pytest.mark.parametrize("config", [BERT, DISTIL], ids=["bert", "distilbert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_sum_of_its_rows(config: Any, dtype: torch.dtype) -> None:
    loaded = loaded_of(config)
    loaded.model.to(dtype).eval()

    def total(rows: Any) -> tuple[float, int]:
        made = task(loaded, rows)
        loss = made.loss(loaded.model, batch_of(made))
        return float(loss.total.detach()), int(loss.units)

    together, units = total(WORDS)
    alone = [total([row]) for row in WORDS]
    assert units == sum(n for _, n in alone) == 12
    tolerance = 1e-5 if dtype == torch.float32 else 1e-10
    assert together == pytest.approx(sum(x for x, _ in alone), rel=tolerance)


# ---- alignment ----


def told(kind: str, row: dict[str, Any], subwords: str = "all") -> list[tuple[str, str | int]]:
    """(token, label) of a row; special tokens must have none."""
    encoding = tiny.tokenizer(kind).encode(labelled(row, 0).text)
    aligned = align(encoding, labelled(row, 0), subwords)
    pairs = list(zip(encoding.tokens, aligned.targets_T, strict=True))
    for (_, label), special in zip(pairs, encoding.special, strict=True):
        assert not special or label == IGNORED
    return [pair for pair, special in zip(pairs, encoding.special, strict=True) if not special]


def test_words_in_english() -> None:
    assert told("english", WORDS[0]) == [
        *[("mary", "B-PER"), ("lives", "O"), ("in", "O")],
        *[("new", "B-LOC"), ("york", "I-LOC"), (".", "O")],
    ]
    assert told("english", WORDS[2])[:2] == [("john", "B-PER"), ("##ing", "I-PER")]
    assert told("english", WORDS[2], "first")[:2] == [("john", "B-PER"), ("##ing", IGNORED)]


def test_entities_in_japanese() -> None:
    assert told("japanese", JAPANESE[0]) == [
        *[("太郎", "B-PER"), ("さん", "O"), ("は", "O")],
        *[("東京", "B-LOC"), ("都", "I-LOC"), ("に", "O")],
        *[("住ん", "O"), ("で", "O"), ("いる", "O"), ("。", "O")],
    ]
    shifted = {"text": "🎌 " + JAPANESE[0]["text"], "entities": [entity(7, 10, "LOC")]}
    assert [pair for pair in told("japanese", shifted) if pair[1] not in ("O", IGNORED)] == [
        ("東京", "B-LOC"),
        ("都", "I-LOC"),
    ]


def test_words_in_japanese_are_joined_without_a_space() -> None:
    words = ["太郎さん", "は", "東京", "都", "へ"]
    row = {"words": words, "tags": ["B-PER", "O", "B-LOC", "I-LOC", "O"]}
    assert labelled(row, 0).text == "太郎さんは東京都へ"
    assert told("japanese", row)[:4] == [
        *[("太郎", "B-PER"), ("さん", "I-PER"), ("は", "O"), ("東京", "B-LOC")]
    ]
    assert told("japanese", row, "first")[1] == ("さん", IGNORED)
    assert labelled({"words": "a b", "tags": "X Y"}, 0).text == "a b"
    assert labelled(row, 0, joiner="/").text == "太郎さん/は/東京/都/へ"


def test_a_token_over_a_border_is_counted() -> None:
    row = {"text": "太郎さんは東京都に", "entities": [entity(6, 8, "LOC")]}
    encoding = tiny.tokenizer("japanese").encode(row["text"])
    aligned = align(encoding, labelled(row, 0))
    assert aligned.uneven == 1
    made = task(loaded_of(kind="japanese"), [row, JAPANESE[0]])
    assert made.examples.notes == ("1 of 3 labels do not begin and end where tokens do",)
    assert task(loaded_of(kind="japanese"), JAPANESE).examples.notes == ()


@pytest.mark.parametrize("kind", ["english", "japanese", "roberta", "t5"])
def test_entities_survive_the_way_to_tokens_and_back(kind: str) -> None:
    """Random entities on token borders: what a faultless model says is what was marked."""
    rng = random.Random(kind)
    tokenizer = tiny.tokenizer(kind)
    words = ["mary", "new", "york", "london", "the", "cat", "testing", "of"]
    if kind == "japanese":
        words = ["太郎", "さん", "は", "東京", "都", "に", "京都", "へ", "ラーメン"]
    for _ in range(60):
        chosen = [rng.choice(words) for _ in range(rng.randint(1, 8))]
        joiner = "" if kind == "japanese" else " "
        text = joiner.join(chosen)
        encoding = tokenizer.encode(text)
        begins = sorted(
            {s for (s, _), x in zip(encoding.offsets, encoding.special, strict=True) if not x}
        )
        ends = {e for (_, e), x in zip(encoding.offsets, encoding.special, strict=True) if not x}
        entities, place = [], 0
        for start in begins:
            later = [
                e for e in sorted(ends) if e > start and text[start:e].strip() == text[start:e]
            ]
            if start < place or rng.random() < 0.5 or not later or text[start].isspace():
                continue
            place = rng.choice(later[:3])
            entities.append(entity(start, place, rng.choice(["PER", "LOC"])))
        row = labelled({"text": text, "entities": entities}, 0)
        aligned = align(encoding, row)
        faultless = [t if isinstance(t, str) else "O" for t in aligned.targets_T]
        made, true = tags_of(row, encoding, aligned, faultless)
        starts_inside = any(e["start"] not in begins for e in entities)
        assert not starts_inside
        assert aligned.uneven == 0, (text, entities, encoding.offsets)
        assert made == true, (text, entities, encoding.tokens)
        if entities:
            wrong = [*faultless[1:], "O"]
            assert tags_of(row, encoding, aligned, wrong)[0] != true


def test_words_survive_the_way_to_tokens_and_back() -> None:
    for kind, rows in (("english", WORDS), ("roberta", WORDS)):
        for subwords in ("all", "first"):
            for row in rows:
                text = labelled(row, 0)
                encoding = tiny.tokenizer(kind).encode(text.text)
                aligned = align(encoding, text, subwords)
                said = [t if isinstance(t, str) else "B-LOC" for t in aligned.targets_T]
                assert tags_of(text, encoding, aligned, said) == (row["tags"], row["tags"])


# ---- windows ----


def test_a_long_text_is_read_whole() -> None:
    row = {"words": ["mary", "in", "london"] * 30, "tags": ["B-PER", "O", "B-LOC"] * 30}
    made = task(loaded_of(), [row, WORDS[0]], max_length=20, stride=6)
    examples = made.examples
    assert examples.notes == ("2 texts are read in 8 windows",)
    assert max(examples.length(i) for i in range(len(examples))) == 20
    labels = {}
    for index in range(len(examples)):
        example = examples.example(index, 0)
        assert len(example.targets_T) == len(example.text.ids_T) == len(example.tokens)
        for token, target in zip(example.tokens, example.targets_T.tolist(), strict=True):
            if example.row == 0 and target != IGNORED:
                assert token not in labels  # once only
                labels[token] = LABELS[target]
    assert [labels[t] for t in sorted(labels)] == row["tags"]
    assert owners([[0, 1, 2, 3, 6], [0, 3, 4, 5, 6]], 7) == [0, 0, 0, 0, 1, 1, 0]


def test_an_evaluation_reads_windows_as_the_verb_does() -> None:
    loaded = loaded_of()
    row = {"words": ["mary", "in", "london"] * 25, "tags": ["B-PER", "O", "B-LOC"] * 25}
    made = task(loaded, [row], evaluation=[row], stride=20)
    found = tiny.metrics(made, loaded.model)
    text = labelled(row, 0).text
    said = [e["entity"] for e in ner(text, loaded, aggregation="none", ignore=(), stride=20)]
    right = sum(a == b for a, b in zip(said, row["tags"], strict=True))
    assert found["accuracy"] == pytest.approx(right / 75)


def test_entities_as_stockmark_publishes_them() -> None:
    row = {"text": "太郎は東京都へ", "entities": [{"name": "太郎", "span": [0, 2], "type": "PER"}]}
    assert labelled(row, 0) == labelled(row | {"entities": [entity(0, 2, "PER")]}, 0)


# ---- bad input ----


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"words": ["a", "b"], "tags": ["O"]}, "row 0 has 2 words and 1 tags"),
        ({"words": [], "tags": []}, "row 0 has no words"),
        ({"words": ["a"], "tags": ["B-ORG"]}, "'B-ORG' of row 0 is none of the model's: O, B-LOC"),
        ({"text": "abc"}, "row 0 has no 'entities'"),
        ({"text": "abc", "entities": [{"start": 0}]}, "not {start, end, type}"),
        ({"text": "abc", "entities": [{"span": [0], "type": "PER"}]}, "not {start, end, type}"),
        ({"text": "abc", "entities": [entity(2, 4, "PER")]}, "not in its 3 characters"),
        ({"text": "abc", "entities": [entity(2, 2, "PER")]}, "2 to 2 of row 0"),
        (
            {"text": "abc", "entities": [entity(1, 3, "PER"), entity(0, 2, "LOC")]},
            "two entities of row 0 overlap: 'ab' and 'bc'",
        ),
    ],
)
def test_bad_rows(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(loaded_of(), [row])


def test_bad_options() -> None:
    for name, value in {"subwords": "last", "stride": -1, "class_weights": {"ORG": 1.0}}.items():
        with pytest.raises(ConfigError, match=name):
            task(loaded_of(), WORDS, **{name: value})
    with pytest.raises(InputError, match="token-classification"):
        task(tiny.created(BERT, "classification", "english"), WORDS)


def test_labels() -> None:
    assert labels_of([*WORDS, *JAPANESE]) == LABELS
    assert labels_of([{"words": "a b", "tags": "NOUN ADJ"}]) == ("ADJ", "NOUN")
    weights = token_classification._weights({"O": 0.1}, LABELS)
    assert weights is not None
    assert weights.tolist() == pytest.approx([0.1, 1, 1, 1, 1])


# ---- learning ----


@pytest.mark.parametrize("kind", ["english", "japanese"])
def test_it_learns_and_the_verb_finds_the_names(kind: str) -> None:
    rows = WORDS[:2] if kind == "english" else JAPANESE
    loaded = tiny.created(replace(BERT, init_std=0.2), "token-classification", kind)
    made = task(loaded, rows, evaluation=rows)
    assert (made.metric, made.lower) == ("f1", False)
    before = tiny.metrics(made, loaded.model)
    found = tiny.train(made, loaded.model, 40)
    after = tiny.metrics(made, loaded.model)
    assert found[0] == pytest.approx(before["loss"], rel=1e-4)
    assert before["f1"] < 0.5
    assert after["loss"] < 0.1
    assert (after["f1"], after["accuracy"]) == (1.0, 1.0)
    text = labelled(rows[0], 0).text
    names = [(e["entity_group"], text[e["start"] : e["end"]]) for e in ner(text, loaded)]
    assert names == [("PER", text[:4].strip() if kind == "english" else "太郎")] + (
        [("LOC", "new york")] if kind == "english" else [("LOC", "東京都")]
    )


def test_parts_of_speech_are_judged_by_accuracy() -> None:
    rows = [{"words": "the cat sat", "tags": "DET NOUN VERB"}]
    loaded = loaded_of(labels=("DET", "NOUN", "VERB"))
    made = task(loaded, rows, evaluation=rows)
    assert made.metric == "accuracy"
    assert set(tiny.metrics(made, loaded.model)) == {"loss", "accuracy"}


def test_a_head_with_b_alone_says_it_of_every_piece() -> None:
    loaded = loaded_of(labels=("O", "B-PER"))
    made = task(loaded, [{"words": ["johning", "."], "tags": ["B-PER", "O"]}])
    assert made.examples.example(0, 0).targets_T.tolist() == [IGNORED, 1, 1, 0, IGNORED]


def test_the_module_knows_its_own_tags() -> None:
    assert token_labels.ENTITY_TAG.fullmatch("B-人名")
    assert not token_labels.ENTITY_TAG.fullmatch("NOUN")
