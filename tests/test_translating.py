"""benchmarks/translating.py, both sides on a handful of pairs. Nothing is asserted about time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from chumoku.errors import ConfigError

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import translating

RECIPE = """
[model.config]
model_type = "transformer"
d_model = 16
encoder_layers = 1
decoder_layers = 1
encoder_attention_heads = 2
decoder_attention_heads = 2
encoder_ffn_dim = 32
decoder_ffn_dim = 32
max_position_embeddings = 32
logits_bias = false
[tokenizer]
kind = "unigram"
family = "marian"
vocab_size = 40
[data]
train = ["train.en", "train.ja"]
test = ["test.en", "test.ja"]
format = "parallel"
[task]
kind = "seq2seq"
source_length = 32
target_length = 32
score = "bleu"
tokenize = "none"
num_beams = 2
[training]
epochs = 2
ema = 0.9
[training.batching]
tokens = 60
[training.optimiser]
learning_rate = 1e-3
[training.schedule]
kind = "inverse-sqrt"
warmup_steps = 4
"""
SENTENCES = ["a b c .", "b c a .", "c a b d .", "a d .", "d c b a .", "b d ."]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "small.toml").write_text(RECIPE, encoding="utf-8")
    for name in ("train", "test"):
        for language, text in (("en", SENTENCES), ("ja", [s.upper() for s in SENTENCES])):
            (tmp_path / f"{name}.{language}").write_text("\n".join(text * 4) + "\n", "utf-8")
    return tmp_path


def words(folder: Path, *more: str) -> list[str]:
    return [
        *(str(folder / "small.toml"), "--data", str(folder), "--output", str(folder / "out")),
        *("--seeds", "0", "--seconds", "600", *more),
    ]


def prepared(folder: Path) -> translating.Prepared:
    recipe = translating.read_recipe(folder / "small.toml")
    return translating.prepare(recipe, folder / "run", [folder], torch.device("cpu"))


@pytest.mark.parametrize("side", translating.SIDES)
def test_a_side_learns_the_recipes_epochs_of_the_same_tokens(folder: Path, side: str) -> None:
    assert translating.main(words(folder, "--side", side)) == 0
    found = json.loads((folder / "out" / "small" / f"{side}-seed0.json").read_text())
    ids = sum(len(s) + len(t) for s, t in prepared(folder).task.examples.examples)
    assert found["tokens"] == 2 * ids, "two epochs"
    assert found["steps"] > 2
    assert found["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:none")
    translating.main(words(folder, "--side", side, "--training.epochs=1"))
    again = json.loads((folder / "out" / "small" / f"{side}-seed0.json").read_text())
    assert again == found, "what is measured is not measured again"


@pytest.mark.parametrize("side", translating.SIDES)
def test_a_side_stops_when_its_time_is_over(folder: Path, side: str) -> None:
    translating.main(words(folder, "--side", side, "--seconds", "0"))
    found = json.loads((folder / "out" / "small" / f"{side}-seed0.json").read_text())
    assert found["steps"] == 1


def test_the_two_models_are_of_one_size(folder: Path) -> None:
    both = prepared(folder)
    sizes = [
        sum(p.numel() for p in model.parameters() if p.requires_grad)
        for model in (both.loaded.model, translating.marian(both))
    ]
    assert sizes[1] - sizes[0] == 3 * 4 * 16, "the biases of three attention layers"


def test_a_schedule_that_plans_its_end_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="number of steps"):
        translating.main(words(folder, "--training.schedule.kind=linear"))
