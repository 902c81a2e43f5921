"""qa: answers point at the text, Japanese included; bad input. Values: test_pipelines_457.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

QUESTION, CONTEXT = (
    "太郎さんはどこに住んでいる?",
    "太郎さんは　東京都に住んでいる。ｶﾞﾊﾟの寿司を食べる、京都へ行く。",
)


@pytest.mark.parametrize("align", [True, False])
def test_japanese(tiny: Any, align: bool) -> None:
    """The spans of transformers' model, by brute force; offsets through NFKC and MeCab."""
    pytest.importorskip("fugashi")
    folder = tiny("BertForQuestionAnswering", "japanese")
    loaded = load(folder)
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = theirs(QUESTION, CONTEXT, return_tensors="pt", return_token_type_ids=True)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(folder)
    with torch.no_grad():
        spans = model(**inputs)
    ids, kinds = inputs["input_ids"][0], inputs["token_type_ids"][0]
    inside = (kinds == 1) & (ids != theirs.sep_token_id)
    allowed = inside.clone()
    allowed[0] = True
    start, end = (
        x[0].masked_fill(~allowed, -10000).softmax(-1) * inside
        for x in (spans.start_logits, spans.end_logits)
    )
    best = max(
        (float(start[i] * end[j]), i, j)
        for i in range(len(ids))
        for j in range(i, min(i + 15, len(ids)))
    )
    found = chumoku.qa(QUESTION, CONTEXT, loaded, align_to_words=align, top_k=9)
    for answer in found:
        assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
        assert answer["answer"].strip()
    if align:
        return
    encoding = loaded.tokenizer.encode(QUESTION, CONTEXT)  # type: ignore[union-attr]
    assert encoding.ids == ids.tolist()
    first, last = encoding.offsets[best[1]][0], encoding.offsets[best[2]][1]
    same_text = [a for a in found if a["answer"] == CONTEXT[first:last]]
    assert same_text[0]["score"] >= best[0] - 1e-6
    pieces = [
        theirs.convert_ids_to_tokens(int(i)).removeprefix("##") for i in ids[best[1] : best[2] + 1]
    ]
    for piece in pieces:
        assert piece == "[UNK]" or piece in CONTEXT[first:last]


def test_words_in_japanese_grow_to_whole_words(tiny: Any) -> None:
    """東京 + ##都 is one word of this vocabulary's: an aligned answer never ends within it."""
    pytest.importorskip("fugashi")
    folder = tiny("BertForQuestionAnswering", "japanese")
    loaded = load(folder)
    encoding = loaded.tokenizer.encode(QUESTION, CONTEXT)  # type: ignore[union-attr]
    ends: dict[int, set[int]] = {}
    for offset, word, sequence in zip(
        encoding.offsets, encoding.words, encoding.sequences, strict=True
    ):
        if sequence == 1 and word is not None:
            ends.setdefault(word, set()).update(offset)
    starts_of_words = {min(places) for places in ends.values()}
    ends_of_words = {max(places) for places in ends.values()}
    for answer in chumoku.qa(QUESTION, CONTEXT, loaded, top_k=20):
        assert answer["start"] in starts_of_words
        assert answer["end"] in ends_of_words


def test_batch_size_changes_nothing(tiny: Any) -> None:
    folder = tiny("BertForQuestionAnswering")
    context = "john smith lives in paris , the big city . " * 20
    one = chumoku.qa("who?", context, folder, top_k=5, batch_size=1)
    many = chumoku.qa("who?", context, folder, top_k=5, batch_size=8)
    assert [(a["start"], a["end"]) for a in one] == [(a["start"], a["end"]) for a in many]
    for a, b in zip(one, many, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_bad_input(tiny: Any) -> None:
    folder = tiny("BertForQuestionAnswering")
    for message, call in {
        "question is empty": lambda: chumoku.qa(" ", "cat", folder),
        "context is empty": lambda: chumoku.qa("cat", "", folder),
        "top_k": lambda: chumoku.qa("cat", "dog", folder, top_k=0),
        "max_answer_length": lambda: chumoku.qa("cat", "dog", folder, max_answer_length=0),
        "stride": lambda: chumoku.qa("cat " * 70, "dog " * 70, folder),
        "not more than the stride": lambda: chumoku.qa("cat", "dog " * 70, folder, stride=63),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
