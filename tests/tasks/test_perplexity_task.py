"""perplexity beside direct computations with transformers' models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

TEXT = "the cat sat in the mat. another thin man, "


@torch.no_grad()
def windowed(model: Any, ids: list[int], window: int, stride: int) -> list[float]:
    """Each token judged once, in the first window that holds it, by the published model."""
    found: dict[int, float] = {}
    for start in range(0, len(ids), stride):
        piece = ids[start : start + window]
        if len(piece) < 2:
            break
        logits = model(torch.tensor([piece])).logits[0].double().log_softmax(-1)
        for n in range(1, len(piece)):
            found.setdefault(start + n, float(logits[n - 1, piece[n]]))
        if start + window >= len(ids):
            break
    return [found[n] for n in range(1, len(ids))]


@pytest.mark.parametrize(("name", "window", "stride"), [
    ("GPT2LMHeadModel", None, None),
    ("GPT2LMHeadModel", 16, 5),
    ("GPT2LMHeadModel", 64, 63),
    ("GPT2LMHeadModel", 2, 1),
    ("LlamaForCausalLM", 20, None),
])  # fmt: skip
def test_causal(tiny: Any, name: str, window: int | None, stride: int | None) -> None:
    folder = tiny(name, "gpt2")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for text in (TEXT, TEXT * 5):
        ids = tokenizer(text, verbose=False)["input_ids"]
        width = window or 64
        values = windowed(model, ids, width, stride or width // 2)
        found = chumoku.perplexity(text, folder, window=window, stride=stride)
        assert found["tokens"] == len(ids) - 1
        assert found["kind"] == "causal"
        assert found["nll"] == pytest.approx(-sum(values) / len(values), abs=1e-5)
        assert found["perplexity"] == pytest.approx(math.exp(found["nll"]), rel=1e-12)
    inside = " ".join(["cat"] * 3)
    ids = tokenizer(inside)["input_ids"]
    with torch.no_grad():
        loss = model(torch.tensor([ids]), labels=torch.tensor([ids])).loss
    assert chumoku.perplexity(inside, folder)["nll"] == pytest.approx(float(loss), abs=1e-5)


def test_windows_matter(tiny: Any) -> None:
    """Negative control: less context gives another number."""
    folder = tiny("GPT2LMHeadModel", "gpt2")
    wide = chumoku.perplexity(TEXT * 5, folder)["nll"]
    narrow = chumoku.perplexity(TEXT * 5, folder, window=4, stride=2)["nll"]
    assert abs(wide - narrow) > 1e-3


@pytest.mark.parametrize("batch_size", [1, 5])
def test_masked(tiny: Any, batch_size: int) -> None:
    folder = tiny("BertForMaskedLM")
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(TEXT, return_tensors="pt")["input_ids"]
    values = []
    for place in range(1, ids.shape[1] - 1):
        masked = ids.clone()
        masked[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            log_p = model(masked).logits[0, place].double().log_softmax(-1)
        values.append(float(log_p[ids[0, place]]))
    found = chumoku.perplexity(TEXT, folder, batch_size=batch_size)
    assert (found["kind"], found["tokens"]) == ("masked", len(values))
    assert found["nll"] == pytest.approx(-sum(values) / len(values), abs=1e-5)


def test_bad_input(tiny: Any) -> None:
    folder = tiny("GPT2LMHeadModel", "gpt2")
    for message, call in {
        "one token": lambda: chumoku.perplexity("c", folder),
        "window 4 and stride 4": lambda: chumoku.perplexity(TEXT, folder, window=4, stride=4),
        "window 1 and": lambda: chumoku.perplexity(TEXT, folder, window=1, stride=1),
        "the model takes 64": lambda: chumoku.perplexity(TEXT, folder, window=65),
        "no probabilities": lambda: chumoku.perplexity(TEXT, load(tiny("BertModel"))),
        "empty": lambda: chumoku.perplexity(" ", folder),
        "the text has": lambda: chumoku.perplexity("cat " * 70, tiny("BertForMaskedLM")),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
