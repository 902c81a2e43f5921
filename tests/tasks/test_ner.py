"""ner beside transformers' TokenClassificationPipeline on the same folder; windows; Japanese."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tasks import models
from tasks.compare import same

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load
from chumoku.tasks import common
from chumoku.tasks.tokens import token_scores
from chumoku.tasks.windows import windows

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
NAMES = {
    "id2label": dict(enumerate(LABELS)),
    "label2id": {name: i for i, name in enumerate(LABELS)},
}
NAME = "BertForTokenClassification"
TEXTS = [
    "John Smith works at Google in New York.",
    "johnston's towering bridges, (Paris); london-berlin!",
    "Zürich and 猫 are not known; ☃ neither",
    "a",
    "  Mary   likes  the   Queen's  cats  ",
    "born in 1999 in berlin?! not 2 dogs: 3 mats",
]
AGGREGATIONS = ["none", "simple", "first", "average", "max"]


@pytest.fixture(scope="module", params=[0, 1, 2])
def folder(tiny: Any, request: Any) -> Any:
    return tiny(NAME, seed=request.param, **NAMES)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_every_field_is_that_of_the_published_pipeline(folder: Any, aggregation: str) -> None:
    theirs = transformers.pipeline("token-classification", model=str(folder), device="cpu")
    ours = chumoku.pipeline("token-classification", folder)
    expected = theirs(TEXTS, aggregation_strategy=aggregation)
    assert sum(map(len, expected)) > 6, "the model must find something"
    same(ours(TEXTS, aggregation_strategy=aggregation), expected)
    same(chumoku.ner(TEXTS, folder, aggregation=aggregation, batch_size=2), expected)
    same(chumoku.ner(TEXTS[1], folder, aggregation=aggregation), expected[1])
    kept = theirs(TEXTS, aggregation_strategy=aggregation, ignore_labels=["PER", "B-LOC"])
    same(ours(TEXTS, aggregation_strategy=aggregation, ignore_labels=["PER", "B-LOC"]), kept)


def test_the_aggregations_differ(folder: Any) -> None:
    """Negative control: each strategy gives something else, so that mixing them up is seen."""
    found = [chumoku.ner(TEXTS, folder, aggregation=a, ignore=()) for a in AGGREGATIONS]
    for n, one in enumerate(found):
        for other in found[n + 1 :]:
            with pytest.raises(AssertionError):
                same(one, other)


def test_defaults_of_the_pipeline(tiny: Any) -> None:
    folder = tiny(NAME, **NAMES)
    set_before = chumoku.pipeline("ner", folder, aggregation_strategy="max")
    same(set_before(TEXTS), chumoku.ner(TEXTS, folder, aggregation="max"))
    same(chumoku.pipeline("ner", folder)(TEXTS), chumoku.ner(TEXTS, folder, aggregation="none"))


@pytest.mark.parametrize("stride", [0, 7, 20])
def test_windows_lie_where_the_tokenizers_library_puts_them(tiny: Any, stride: int) -> None:
    folder = tiny(NAME, **NAMES)
    tokenizer = load(folder).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for count in (61, 62, 63, 90, 150, 200):
        text = " ".join(["cat", "dogs", "paris", "big"][i % 4] for i in range(count))
        expected = theirs(
            text, max_length=64, truncation=True, stride=stride, return_overflowing_tokens=True
        )["input_ids"]
        encoding = tokenizer.encode(text)  # type: ignore[union-attr]
        found = [[encoding.ids[i] for i in w] for w in windows(encoding, 64, stride)]
        assert found == expected


@pytest.mark.parametrize("aggregation", ["none", "simple", "average"])
def test_a_long_text_is_read_in_windows(tiny: Any, aggregation: str) -> None:
    """Every token once, with the scores of the window where it has most context."""
    folder = tiny(NAME, **NAMES)
    loaded = load(folder)
    text = " ".join(f"{w} {i}" for i, w in enumerate(["john", "smith", "in", "paris,"] * 20))
    encoding = loaded.tokenizer.encode(text)  # type: ignore[union-attr]
    scores_TC = token_scores(loaded, [encoding], 20, 4)[0]
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    checked = 0
    for token in range(len(encoding)):
        best: tuple[int, list[float]] = (-1, [])
        for place in windows(encoding, 64, 20):
            if token in place:
                context = min(place.index(token), len(place) - 1 - place.index(token))
                if context > best[0]:
                    ids = torch.tensor([[encoding.ids[i] for i in place]])
                    with torch.no_grad():
                        logits = model(ids).logits[0, place.index(token)]
                    best = (context, logits.softmax(-1).tolist())
                    checked += 1
        same(scores_TC[token].tolist(), best[1])
    assert checked > len(encoding)
    found = chumoku.ner(text, loaded, aggregation=aggregation, ignore=(), stride=20)
    assert [e["start"] for e in found] == sorted({e["start"] for e in found})  # type: ignore[call-overload]
    if aggregation == "none":
        assert [e["index"] for e in found] == list(range(1, len(encoding) - 1))  # type: ignore[call-overload]
    short = chumoku.ner(text[:150], loaded, aggregation=aggregation)
    theirs = transformers.pipeline("token-classification", model=str(folder), device="cpu")
    same(short, theirs(text[:150], aggregation_strategy=aggregation))


def test_a_text_that_fits_is_not_cut(tiny: Any) -> None:
    folder = tiny(NAME, **NAMES)
    text = "cat " * 62
    theirs = transformers.pipeline("token-classification", model=str(folder), device="cpu")
    same(chumoku.ner(text, folder, aggregation="none"), theirs(text))


def test_japanese_offsets_point_at_the_text(tiny: Any) -> None:
    """The published tokenizer has no offsets; scores and words are compared, ours checked."""
    pytest.importorskip("fugashi")
    folder = tiny(NAME, "japanese", **NAMES)
    text = "太郎さんは　東京都に住んでいる。ｶﾞﾊﾟの寿司を食べる"
    loaded = load(folder)
    ours = chumoku.ner(text, loaded, aggregation="none", ignore=())
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ids = theirs(text, return_tensors="pt")["input_ids"]
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder)
    with torch.no_grad():
        scores = model(ids).logits[0].softmax(-1)[1:-1]
    assert len(ours) == len(scores)
    words = theirs.convert_ids_to_tokens(ids[0])[1:-1]
    for entity, row, word in zip(ours, scores, words, strict=True):
        assert entity["entity"] == LABELS[int(row.argmax())]  # type: ignore[index]
        assert entity["score"] == pytest.approx(float(row.max()), abs=1e-5)  # type: ignore[index]
        piece = text[entity["start"] : entity["end"]]  # type: ignore[index]
        assert piece, "every token lies somewhere"
        if word != "[UNK]":
            assert piece == word.removeprefix("##")
    unknown = [
        text[e["start"] : e["end"]] for e, w in zip(ours, words, strict=True) if w == "[UNK]"
    ]  # type: ignore[index]
    assert {"ｶﾞ", "ﾊﾟ"} <= set(unknown), "offsets reach through NFKC"
    for aggregation in AGGREGATIONS[1:]:
        for entity in chumoku.ner(text, loaded, aggregation=aggregation, ignore=()):
            assert text[entity["start"] : entity["end"]].strip()  # type: ignore[index]
    assert models.JAPANESE.index("東京") in loaded.tokenizer.encode(text).ids  # type: ignore[union-attr]


def test_bad_input(tiny: Any) -> None:
    folder = tiny(NAME, **NAMES)
    with pytest.raises(InputError, match="unknown aggregation"):
        chumoku.ner("cat", folder, aggregation="median")
    with pytest.raises(InputError, match="stride"):
        chumoku.ner("cat " * 100, folder, stride=62)
    with pytest.raises(InputError, match="token-classification"):
        common.ready(load(tiny("BertForMaskedLM")), "ner")
