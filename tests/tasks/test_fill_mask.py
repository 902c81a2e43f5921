"""fill-mask beside transformers' pipeline on the same folder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from tasks.compare import same

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

ONE = "Paris is the [MASK] of France."
TWO = "the [MASK] sat, zebra [MASK] mat!"


@pytest.fixture(scope="module")
def bert(tiny: Any) -> Any:
    return tiny("BertForMaskedLM")


@pytest.fixture(scope="module")
def theirs(bert: Any) -> Any:
    return transformers.pipeline("fill-mask", model=str(bert), device="cpu")


@pytest.mark.parametrize("text", [ONE, TWO, "a zebra [MASK] dog", "[MASK]"])
@pytest.mark.parametrize("top_k", [1, 5, 40])
def test_equals_the_published_pipeline(bert: Any, theirs: Any, text: str, top_k: int) -> None:
    same(chumoku.pipeline("fill-mask", bert)(text, top_k=top_k), theirs(text, top_k=top_k))


def test_roberta(tiny: Any) -> None:
    folder = tiny("RobertaForMaskedLM", "roberta")
    theirs = transformers.pipeline("fill-mask", model=str(folder), device="cpu")
    for text in ("the cat<mask> on the mat", "<mask> in <mask>."):
        same(chumoku.fill_mask(text, folder, top_k=9), theirs(text, top_k=9))


def test_targets(bert: Any, theirs: Any) -> None:
    targets = ["capital", "city", "dog", "city"]
    for text in (ONE, TWO):
        same(chumoku.fill_mask(text, bert, targets=targets), theirs(text, targets=targets))
    same(chumoku.fill_mask(ONE, bert, targets="city"), theirs(ONE, targets="city"))
    best = chumoku.fill_mask(ONE, bert, targets=targets, top_k=2)
    same(best, theirs(ONE, targets=targets, top_k=2))
    with pytest.raises(InputError, match="not one token"):
        chumoku.fill_mask(ONE, bert, targets=["cats and dogs"])
    with pytest.raises(InputError, match="not one token"):
        chumoku.fill_mask(ONE, bert, targets=["猫"])


def test_a_list_and_any_batch_size_give_what_one_text_gives(bert: Any, theirs: Any) -> None:
    texts = [ONE, "the [MASK]", TWO, "john smith works at [MASK] in new york city ."]
    single = [chumoku.fill_mask(text, bert) for text in texts]
    for batch_size in (1, 2, 16):
        same(chumoku.fill_mask(texts, bert, batch_size=batch_size), single)
    same(chumoku.pipeline("fill-mask", bert)(texts), theirs(texts))
    same(chumoku.fill_mask([ONE], bert), [single[0]])
    same(list(chumoku.pipeline("fill-mask", bert)(t for t in texts)), single)


def test_a_wrong_weight_is_seen(bert: Any, theirs: Any) -> None:
    """Negative control for same()."""
    loaded = load(bert)
    with torch.no_grad():
        loaded.model.head.bias[:20] += 0.5  # type: ignore[union-attr, index]
    with pytest.raises(AssertionError):
        same(chumoku.fill_mask(ONE, loaded), theirs(ONE))


def test_bad_input(bert: Any, tiny: Any) -> None:
    with pytest.raises(InputError, match=r"no \[MASK\]"):
        chumoku.fill_mask("Paris is big.", bert)
    with pytest.raises(InputError, match="empty"):
        chumoku.fill_mask("  ", bert)
    with pytest.raises(InputError, match="top_k"):
        chumoku.fill_mask(ONE, bert, top_k=0)
    with pytest.raises(InputError, match="64"):
        chumoku.fill_mask("[MASK]" + " cat" * 80, bert)
    cut = chumoku.fill_mask("[MASK]" + " cat" * 80, bert, truncate=True)
    same(cut, chumoku.fill_mask("[MASK]" + " cat" * 61, bert))
    with pytest.raises(InputError, match="no mask token"):
        chumoku.fill_mask(ONE, load(tiny("BertForMaskedLM", "gpt2")))
    with pytest.raises(InputError, match="needs a model with head 'masked-lm'"):
        chumoku.fill_mask(ONE, load(tiny("BertForSequenceClassification")))
