"""DistilBERT against the published implementation, every head."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity import harness
from torch import Tensor

from chumoku.errors import ConfigError
from chumoku.layers.ops import ACTIVATIONS
from chumoku.models import distilbert

GOLDEN = Path(__file__).parents[1] / "golden" / "config_keys.json"
EVERY_ACTIVATION = sorted(set(ACTIVATIONS) & set(transformers.activations.ACT2FN))
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]


def published(head: str, seed: int, **more: Any) -> Any:
    draw = harness.sampler("distilbert", head, seed)
    heads = draw.choice([1, 2, 3, 5])
    values = {
        "vocab_size": draw.randint(30, 90),
        "dim": heads * draw.choice([4, 7, 10]),
        "n_layers": draw.randint(1, 3),
        "n_heads": heads,
        "hidden_dim": draw.randint(9, 60),
        "activation": EVERY_ACTIVATION[(seed * 5 + len(head)) % len(EVERY_ACTIVATION)],
        "max_position_embeddings": draw.randint(24, 40),
        "sinusoidal_pos_embds": draw.random() < 0.5,
        "dropout": draw.choice([0.1, 0.3]),
        "attention_dropout": draw.choice([0.1, 0.2]),
        "qa_dropout": draw.choice([0.1, 0.25]),
        "seq_classif_dropout": draw.choice([0.2, 0.35]),
        "tie_word_embeddings": draw.random() < 0.5,
        "num_labels": 2 if head == "question-answering" else draw.randint(2, 5),
        "pad_token_id": draw.randint(0, 3),
    }
    config = transformers.DistilBertConfig(**(values | more))
    return getattr(transformers, "DistilBert" + distilbert.HEADS[head])(config)


@dataclasses.dataclass(frozen=True)
class Case:
    ids: Tensor
    mask: Tensor
    head: str

    def inputs(self) -> dict[str, Tensor]:
        return {"input_ids": self.ids, "attention_mask": self.mask.long()}

    def theirs(self, model: Any) -> Any:
        out = model(**self.inputs())
        if self.head == "encoder":
            return out.last_hidden_state[self.mask]
        if self.head == "question-answering":
            return out.start_logits[self.mask], out.end_logits[self.mask]
        return self.cut(out.logits)

    def cut(self, logits: Tensor) -> Tensor:
        return logits[self.mask] if self.head in ("masked-lm", "token-classification") else logits

    def ours(self, model: Any) -> Any:
        out = model(self.ids, self.mask)
        if self.head == "encoder":
            return out[self.mask]
        if self.head == "question-answering":
            return out.start_BT[self.mask], out.end_BT[self.mask]
        return self.cut(out)


def case(model: Any, head: str, seed: int) -> Case:
    """Right-padded rows: the reference counts positions from the left edge."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 3, 9) if head == "multiple-choice" else (3, 11)
    ids = torch.randint(4, model.config.vocab_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, ..., 7:] = False
    ids[~mask] = model.config.pad_token_id
    return Case(ids, mask, head)


def swaps(ours: Any) -> list[tuple[str, str]]:
    names = dict(ours.named_parameters())
    pairs = [
        ("blocks.0.attention.query.weight", "blocks.0.attention.key.weight"),
        ("blocks.0.attention.value.bias", "blocks.0.attention.output.bias"),
        ("blocks.0.attention_norm.weight", "blocks.0.feedforward_norm.weight"),
        ("embeddings.norm.bias", "blocks.0.feedforward.down.bias"),
    ]
    if "head.norm.bias" in names:
        pairs.append(("head.transform.bias", "head.norm.bias"))
    return pairs


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize("head", distilbert.HEADS)
def test_equals_published(head: str, seed: int) -> None:
    theirs = published(head, seed)
    pair = harness.make_pair(theirs, distilbert, head, seed=seed)
    run = case(theirs, head, seed)
    harness.check_all(pair, run.theirs, run.ours, swaps(pair.ours))


@pytest.mark.parametrize("name", EVERY_ACTIVATION)
def test_every_activation_equals_published(name: str) -> None:
    theirs = published("masked-lm", 1, activation=name)
    pair = harness.make_pair(theirs, distilbert, "masked-lm", seed=1)
    run = case(theirs, "masked-lm", 1)
    harness.check_float32(pair, run.theirs, run.ours)
    other = "tanh" if name != "tanh" else "relu"
    config = dataclasses.replace(pair.ours.config, activation=other)
    wrong = distilbert.Model(config, "masked-lm").eval()
    wrong.load_state_dict(pair.ours.state_dict())
    assert harness.difference(run.ours(wrong), run.theirs(pair.theirs)) > 1e-3


# Each dropout has a rate of its own; training-mode equality with all of them tells them apart.
@pytest.mark.parametrize("key", ["dropout", "attention_dropout"])
@pytest.mark.parametrize("head", ["encoder", "token-classification"])
def test_each_dropout_counts(head: str, key: str) -> None:
    theirs = published(head, 3)
    pair = harness.make_pair(theirs, distilbert, head, seed=3)
    run = case(theirs, head, 3)
    harness.check_training(pair, run.theirs, run.ours)
    config = dataclasses.replace(pair.ours.config, **{key: 0.45})
    wrong = distilbert.Model(config, head)
    wrong.load_state_dict(pair.ours.state_dict())
    with pytest.raises(AssertionError, match="training mode"):
        harness.check_training(dataclasses.replace(pair, ours=wrong), run.theirs, run.ours)


def test_attention_weights_equal_published() -> None:
    theirs = published("masked-lm", 77)
    pair = harness.make_pair(theirs, distilbert, "masked-lm", seed=1)
    run = case(theirs, "masked-lm", 1)
    harness.check_attention(
        pair,
        lambda m: m(**run.inputs(), output_attentions=True).attentions,
        run.ours,
        rows_BT=run.mask,
    )


def test_padding_and_batching_change_nothing() -> None:
    theirs = published("encoder", 5)
    pair = harness.make_pair(theirs, distilbert, "encoder", seed=2)
    run = case(theirs, "encoder", 2)
    harness.check_padding(pair.ours, run.ids[:2], pad=theirs.config.pad_token_id)


def test_sinusoids_of_a_new_model_are_the_published_ones() -> None:
    theirs = published("encoder", 0, sinusoidal_pos_embds=True, dim=20, n_heads=2)
    config = distilbert.read_config(theirs.config.to_dict())
    model = distilbert.Model(config, "encoder")
    torch.manual_seed(0)
    distilbert.initialise(model)
    table = model.embeddings.position.weight
    expected = theirs.embeddings.position_embeddings.weight
    assert harness.difference(table, expected) < 1e-6
    assert abs(float(model.embeddings.token.weight.detach().std()) - 0.02) < 2e-3
    distilbert.initialise(plain := distilbert.Model(dataclasses.replace(config, sinusoidal=False)))
    assert harness.difference(plain.embeddings.position.weight, expected) > 0.5


def test_every_published_config_key_is_known() -> None:
    old = json.loads(GOLDEN.read_text(encoding="utf-8"))["defaults"]["distilbert"]
    for raw in (old, transformers.DistilBertConfig().to_dict()):
        assert distilbert.read_config(raw) == distilbert.Config()
        assert distilbert.read_config(raw | {"tie_weights_": True}) == distilbert.Config()
        with pytest.raises(ConfigError, match="type_vocab_size"):
            distilbert.read_config(raw | {"type_vocab_size": 2})
        with pytest.raises(ConfigError, match="multiple"):
            distilbert.read_config(raw | {"n_heads": 7})


@pytest.mark.parametrize(
    ("vocabulary", "head", "count"),
    [
        (30522, "encoder", 66_362_880),
        (30522, "masked-lm", 66_985_530),
        (32768, "encoder", 68_087_808),
    ],
)
def test_number_of_parameters(vocabulary: int, head: str, count: int) -> None:
    with torch.device("meta"):
        model = distilbert.Model(distilbert.read_config({"vocab_size": vocabulary}), head)
    assert sum(p.numel() for p in model.parameters()) == count


def test_an_unknown_head_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple-choice"):
        distilbert.Model(distilbert.Config(width=4, num_heads=2, num_blocks=1), "next-sentence")
