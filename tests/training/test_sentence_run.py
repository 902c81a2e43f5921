"""What `finetune embed` leaves: sentence-transformers and the verb read it as it was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

import chumoku
from chumoku.training.recipe import Recipe, build
from chumoku.training.runner import train

TEXTS = ["the cat sat on the mat", "where is the cat", "a dog ran home over the hill"]


def trained(folder: Path, **task: Any) -> Path:
    """A small BERT from nothing, two steps on pairs."""
    rows = [{"text": a, "pair": b} for a, b in zip(TEXTS, TEXTS[::-1], strict=True)] * 4
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = {
        "model": {
            "config": {
                "model_type": "bert",
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "max_position_embeddings": 32,
                "initializer_range": 0.3,
            }
        },
        "tokenizer": {"kind": "wordpiece", "vocab_size": 100, "min_frequency": 1},
        "data": {"train": str(folder / "pairs.jsonl")},
        "task": {"kind": "sentence-embedding", **task},
        "training": {"steps": 2, "batching": {"batch_size": 4}},
    }
    return train(build(Recipe, table, "recipe"), folder / "out", device="cpu").folder


def close(ours: Any, theirs: Any) -> bool:
    return float(np.abs(ours - theirs).max()) <= 1e-5 * max(1.0, float(np.abs(theirs).max()))


@pytest.mark.parametrize("pooling", [None, "cls", "weighted_mean"])
def test_the_pooling_is_saved(tmp_path: Path, pooling: str | None) -> None:
    out = trained(tmp_path, **({} if pooling is None else {"pooling": pooling}))
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    assert close(chumoku.embed(TEXTS, out), theirs)
    assert close(chumoku.embed(TEXTS, out, pooling=pooling or "mean"), theirs)
    assert not close(chumoku.embed(TEXTS, out, pooling="max"), theirs)


def test_length_and_prompts_are_saved(tmp_path: Path) -> None:
    out = trained(tmp_path, prompt="where ", pair_prompt="the ", max_length=6)
    again = SentenceTransformer(str(out), device="cpu")
    assert again.max_seq_length == 6
    assert close(chumoku.embed(TEXTS, out), again.encode(TEXTS))  # no default prompt
    for name, text in (("query", "where "), ("document", "the ")):
        theirs = again.encode(TEXTS, prompt_name=name)
        assert close(chumoku.embed(TEXTS, out, prompt=name), theirs)
        assert close(chumoku.embed([text + t for t in TEXTS], out), theirs)


def test_one_prompt_for_all_is_the_default(tmp_path: Path) -> None:
    out = trained(tmp_path, prompt="where ")
    theirs = SentenceTransformer(str(out), device="cpu").encode(TEXTS)
    assert close(chumoku.embed(TEXTS, out), theirs)
    assert close(chumoku.embed(["where " + t for t in TEXTS], out, prompt=""), theirs)
