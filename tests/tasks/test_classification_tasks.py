"""classify and zero-shot beside transformers' pipelines on the same folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tasks.compare import same

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

TEXTS = ["this movie is very good!", "not the cat, not the dog", "paris", "john smith works ."]
PAIRS = ["it is bad.", "the mat was big in london", "a", "he lives in new york city"]
THREE = {"id2label": {0: "bad", 1: "fair", 2: "good"}, "label2id": {"bad": 0, "fair": 1, "good": 2}}
NAME = "BertForSequenceClassification"


def published(task: str, folder: Any) -> Any:
    return transformers.pipeline(task, model=str(folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "tokenizer", "config"),
    [
        (NAME, "english", THREE),
        (NAME, "english", {**THREE, "problem_type": "multi_label_classification"}),
        (NAME, "english", {"num_labels": 1, "problem_type": "regression"}),
        (NAME, "english", {"num_labels": 1}),
        ("DistilBertForSequenceClassification", "english", THREE),
        ("RobertaForSequenceClassification", "roberta", THREE),
    ],
)
def test_classify(tiny: Any, name: str, tokenizer: str, config: dict[str, Any]) -> None:
    folder = tiny(name, tokenizer, **config)
    ours, theirs = (
        chumoku.pipeline("text-classification", folder),
        published("text-classification", folder),
    )
    for text in TEXTS:
        same(ours(text), theirs(text))
        same(ours(text, top_k=1), theirs(text, top_k=1))
        same(ours(text, top_k=None), theirs(text, top_k=None))
    same(ours(TEXTS), theirs(TEXTS))
    same(ours(TEXTS, top_k=2), theirs(TEXTS, top_k=2))
    for function in ("softmax", "sigmoid", "none"):
        same(
            ours(TEXTS[0], function_to_apply=function), theirs(TEXTS[0], function_to_apply=function)
        )
        single = chumoku.classify(TEXTS[0], folder, top_k=None, function=function)
        same(single, theirs(TEXTS[0], function_to_apply=function, top_k=None))


def test_pairs(tiny: Any) -> None:
    folder = tiny(NAME, **THREE)
    ours, theirs = (
        chumoku.pipeline("sentiment-analysis", folder),
        published("text-classification", folder),
    )
    pairs = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, PAIRS, strict=True)]
    same(ours(pairs[0]), [theirs(pairs[0])])
    same(ours(pairs), theirs(pairs))
    expected = theirs(pairs, top_k=None)
    same(chumoku.classify(TEXTS, folder, pair=PAIRS, top_k=None), expected)
    same(chumoku.classify(TEXTS[1], folder, pair=PAIRS[1], top_k=None), expected[1])
    swapped = chumoku.classify(PAIRS, folder, pair=TEXTS, top_k=None)
    with pytest.raises(AssertionError):
        same(swapped, expected)


@pytest.mark.parametrize("counts", [(100, 0), (100, 20), (20, 100), (80, 80), (31, 90)])
def test_long_texts_are_cut_as_published(tiny: Any, counts: tuple[int, int]) -> None:
    folder = tiny(NAME, **THREE)
    words = ["cat", "dog", "big", "paris", "the", "john", "2"]
    first, second = (" ".join(words[i % 7] for i in range(count)) for count in counts)
    pipe = published("text-classification", folder)
    if second:
        expected = pipe({"text": first, "text_pair": second}, top_k=None, truncation=True)
        found = chumoku.classify(first, folder, pair=second, top_k=None, truncate=True)
    else:
        expected = pipe(first, top_k=None, truncation=True)
        found = chumoku.pipeline("classify", folder)(first, top_k=None, truncation=True)
    same(found, expected)
    with pytest.raises(InputError, match="the model takes 64"):
        chumoku.classify(first, folder, pair=second or None)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_a_batch_gives_what_each_text_gives(tiny: Any, batch_size: int) -> None:
    folder = tiny(NAME, **THREE)
    single = [chumoku.classify(text, folder, top_k=None) for text in TEXTS]
    same(chumoku.classify(TEXTS, folder, top_k=None, batch_size=batch_size), single)


@pytest.mark.parametrize(
    "names", [("entailment", "neutral", "contradiction"), ("C", "N", "ENTAIL")]
)
@pytest.mark.parametrize("multi_label", [False, True])
def test_zero_shot(tiny: Any, names: tuple[str, ...], multi_label: bool) -> None:
    labels = {"id2label": dict(enumerate(names)), "label2id": {n: i for i, n in enumerate(names)}}
    folder = tiny(NAME, **labels)
    ours, theirs = (
        chumoku.pipeline("zero-shot-classification", folder),
        published("zero-shot-classification", folder),
    )
    asked = ["politics", "sport", "music and science"]
    for settings in ({}, {"hypothesis_template": "this was {} !"}):
        expected = theirs(TEXTS, asked, multi_label=multi_label, **settings)
        same(ours(TEXTS, asked, multi_label=multi_label, **settings), expected)
        text = ours(TEXTS[0], candidate_labels="politics, sport", multi_label=multi_label)
        same(text, theirs(TEXTS[0], candidate_labels="politics, sport", multi_label=multi_label))
    same(ours(TEXTS[0], ["sport"]), theirs(TEXTS[0], ["sport"]))
    swapped = {"id2label": dict(enumerate(names[::-1]))}
    swapped["label2id"] = {n: i for i, n in enumerate(names[::-1])}
    wrong = tiny(NAME, **swapped)
    with pytest.raises(AssertionError):
        same(chumoku.zero_shot(TEXTS, asked, wrong, multi_label=multi_label), expected)
    long = "cat " * 90
    same(chumoku.zero_shot(long, asked, folder), theirs(long, asked))


def test_bad_input(tiny: Any) -> None:
    folder = tiny(NAME, **THREE)
    for message, call in {
        "unknown function": lambda: chumoku.classify("cat", folder, function="max"),
        "2 texts, but 1": lambda: chumoku.classify(["a", "b"], folder, pair=["c"]),
        "top_k": lambda: chumoku.classify("cat", folder, top_k=0),
        "no entailment class": lambda: chumoku.zero_shot("cat", ["sport"], folder),
        "at least one label": lambda: chumoku.zero_shot("cat", [], folder),
        "no {}": lambda: chumoku.zero_shot("cat", ["sport"], folder, template="this"),
        "not understood": lambda: chumoku.zero_shot("cat", ["sport"], folder, template="{a} {}"),
        "text 1 is empty": lambda: chumoku.classify(["a", " "], folder),
        "not a text but int": lambda: chumoku.classify(["a", 3], folder),  # type: ignore[list-item]
        "no text": lambda: chumoku.classify([], folder),
        "batch_size": lambda: chumoku.classify("a", folder, batch_size=0),
    }.items():
        with pytest.raises(InputError, match=message):
            call()


def test_a_wrong_weight_is_seen(tiny: Any) -> None:
    folder = tiny(NAME, **THREE)
    loaded = load(folder)
    with torch.no_grad():
        loaded.model.head.output.bias[0] += 0.01  # type: ignore[union-attr, index]
    with pytest.raises(AssertionError):
        same(
            chumoku.classify(TEXTS, loaded, top_k=None),
            published("text-classification", folder)(TEXTS, top_k=None),
        )
