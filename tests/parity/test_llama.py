"""LLaMA and Mistral against the published implementation: heads, grouped keys, every rope scaling.

The context (12 or 16 positions) is shorter than the input (23), so that the kinds of scaling which
depend on length are in force, and the window is shorter still.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from parity import harness
from torch import Tensor

from chumoku.errors import ConfigError
from chumoku.layers.attention import Batch
from chumoku.models import llama

KINDS = ["default", "linear", "dynamic", "llama3", "yarn", "longrope"]
CLASS = {"llama": "Llama", "mistral": "Mistral"}
CASES = [(kind, head) for kind in CLASS for head in llama.HEADS]
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]
LENGTH = 23


def rope(kind: str, draw: Any, head_width: int, context: int) -> dict[str, Any]:
    values: dict[str, Any] = {"rope_type": kind, "rope_theta": draw.choice([100.0, 10000.0, 5e5])}
    if kind in ("linear", "dynamic", "yarn", "llama3"):
        values["factor"] = draw.choice([2.0, 3.5, 8.0])
    if kind == "llama3":
        values |= {"low_freq_factor": 1.0, "high_freq_factor": draw.choice([2.0, 4.0])}
        values["original_max_position_embeddings"] = draw.choice([6, 60])
    if kind == "yarn":
        values["original_max_position_embeddings"] = draw.choice([6, 60, 200])
        values |= draw.choice(
            [
                {},
                {"attention_factor": 0.8},
                {"beta_fast": 16.0, "beta_slow": 2.0},
                {"mscale": 0.7, "mscale_all_dim": 1.2},
                {"truncate": False},
            ]
        )
    if kind == "longrope":
        for key in ("short_factor", "long_factor"):
            values[key] = [1.0 + draw.random() * 4 for _ in range(head_width // 2)]
        values["original_max_position_embeddings"] = draw.choice([6, 40])
        values |= draw.choice([{}, {"factor": 4.0}, {"attention_factor": 1.3}])
    return values


def published(model_type: str, head: str, seed: int, kind: str | None = None, **more: Any) -> Any:
    draw = harness.sampler(model_type, head, seed, kind)
    kv = draw.choice([1, 2, 3])
    heads = kv * draw.choice([1, 2, 3])
    head_width = draw.choice([4, 6, 10])
    context = draw.choice([12, 16])
    values = {
        "vocab_size": draw.randint(30, 90),
        "hidden_size": heads * draw.choice([3, 5, 7]),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": head_width,
        "intermediate_size": draw.randint(9, 60),
        "hidden_act": draw.choice(["silu", "gelu", "gelu_pytorch_tanh", "relu"]),
        "max_position_embeddings": context,
        "rms_norm_eps": draw.choice([1e-6, 1e-5, 1e-2]),
        "attention_dropout": draw.choice([0.1, 0.3]),
        "tie_word_embeddings": draw.random() < 0.5,
        "num_labels": 2 if head == "question-answering" else draw.randint(2, 5),
        "pad_token_id": 3,
        "rope_parameters": rope(kind or KINDS[seed % len(KINDS)], draw, head_width, context),
    }
    if model_type == "llama":
        values |= {"attention_bias": draw.random() < 0.5, "mlp_bias": draw.random() < 0.5}
    else:
        values |= {"sliding_window": draw.choice([None, 5, 9])}
    config = getattr(transformers, f"{CLASS[model_type]}Config")(**(values | more))
    return getattr(transformers, CLASS[model_type] + llama.HEADS[head])(config)


@dataclasses.dataclass(frozen=True)
class Case:
    ids: Tensor
    mask: Tensor
    head: str

    def inputs(self) -> dict[str, Tensor]:
        places = (self.mask.long().cumsum(1) - 1).clamp(min=0)
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask.long(),
            "position_ids": places,
        }

    def theirs(self, model: Any) -> Any:
        out = model(**self.inputs(), use_cache=False)
        if self.head == "encoder":
            return out.last_hidden_state[self.mask]
        if self.head == "question-answering":
            return out.start_logits[self.mask], out.end_logits[self.mask]
        return out.logits if self.head == "classification" else out.logits[self.mask]

    def ours(self, model: Any) -> Any:
        out = model(self.ids, self.mask)
        if self.head == "question-answering":
            return out.start_BT[self.mask], out.end_BT[self.mask]
        return out if self.head == "classification" else out[self.mask]


def case(model: Any, head: str, seed: int) -> Case:
    """A full row, one padded on the left, one on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(4, model.config.vocab_size, (3, LENGTH), generator=generator)
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, :4] = False
    mask[2, 19:] = False
    ids[~mask] = 3
    return Case(ids, mask, head)


def swaps(ours: Any) -> list[tuple[str, str]]:
    names = dict(ours.named_parameters())
    pairs = [
        ("blocks.0.attention_norm.weight", "blocks.0.feedforward_norm.weight"),
        ("blocks.0.feedforward.gate.weight", "blocks.0.feedforward.up.weight"),
        ("blocks.0.attention.key.weight", "blocks.0.attention.value.weight"),
    ]
    if "blocks.0.feedforward.up.bias" in names:
        pairs.append(("blocks.0.feedforward.gate.bias", "blocks.0.feedforward.up.bias"))
    if "blocks.0.attention.value.bias" in names:
        pairs.append(("blocks.0.attention.key.bias", "blocks.0.attention.value.bias"))
    return pairs


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_equals_published(model_type: str, head: str, seed: int) -> None:
    theirs = published(model_type, head, seed)
    pair = harness.make_pair(theirs, llama, head, seed=seed)
    run = case(theirs, head, seed)
    harness.check_all(pair, run.theirs, run.ours, swaps(pair.ours))


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize("kind", KINDS)
def test_rope_scaling_equals_published(kind: str, seed: int) -> None:
    theirs = published("llama", "causal-lm", seed, kind)
    pair = harness.make_pair(theirs, llama, "causal-lm", seed=seed)
    run = case(theirs, "causal-lm", seed)
    harness.check_float32(pair, run.theirs, run.ours)
    harness.check_float64(pair, run.theirs, run.ours)
    plain = dataclasses.replace(pair.ours.config, scaling=None)
    unscaled = llama.Model(plain, "causal-lm").eval()
    unscaled.load_state_dict(pair.ours.state_dict())
    gap = harness.difference(run.ours(unscaled), run.theirs(pair.theirs))
    assert (gap < 1e-5) == (kind == "default"), f"{kind} changes the logits by {gap:.3g}"


@pytest.mark.parametrize("model_type", CLASS)
def test_attention_weights_equal_published(model_type: str) -> None:
    more = {} if model_type == "llama" else {"sliding_window": 7}
    theirs = published(model_type, "causal-lm", 3, "llama3", **more)
    pair = harness.make_pair(theirs, llama, "causal-lm", seed=1)
    run = case(theirs, "causal-lm", 1)
    harness.check_attention(
        pair,
        lambda m: m(**run.inputs(), output_attentions=True).attentions,
        run.ours,
        rows_BT=run.mask,
    )


def test_the_window_is_as_wide_as_published() -> None:
    theirs = published("mistral", "causal-lm", 1, "default", sliding_window=6)
    pair = harness.make_pair(theirs, llama, "causal-lm", seed=1)
    run = case(theirs, "causal-lm", 1)
    harness.check_float32(pair, run.theirs, run.ours)
    for wrong in (5, 7, None):
        other = llama.Model(dataclasses.replace(pair.ours.config, window=wrong), "causal-lm").eval()
        other.load_state_dict(pair.ours.state_dict())
        assert harness.difference(run.ours(other), run.theirs(pair.theirs)) > 1e-4


# Scalings whose angles depend on the length in use give, as published, other angles while a cache
# grows past the trained context; they are compared below it.
@pytest.mark.parametrize("kind", ["default", "linear", "llama3", "yarn", "longrope", "dynamic"])
@pytest.mark.parametrize("model_type", CLASS)
def test_caches_and_padding_change_nothing(model_type: str, kind: str) -> None:
    more = {"max_position_embeddings": 40} if kind == "dynamic" else {}
    theirs = published(model_type, "causal-lm", 9, kind, **more)
    if kind == "longrope":
        theirs.config.rope_parameters["original_max_position_embeddings"] = 40
    pair = harness.make_pair(theirs, llama, "causal-lm", seed=4)
    run = case(theirs, "causal-lm", 4)
    harness.check_caches(pair.ours, run.ids, run.mask)
    harness.check_padding(pair.ours, run.ids[:1], pad=3)


@pytest.mark.parametrize("model_type", CLASS)
@pytest.mark.parametrize("seed", range(2))
def test_greedy_tokens_equal_published(model_type: str, seed: int) -> None:
    theirs = published(model_type, "causal-lm", seed, "default")
    pair = harness.make_pair(theirs, llama, "causal-lm", seed=seed)
    ids = case(theirs, "causal-lm", seed).ids[:1]
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=20,
        eos_token_id=None,
        pad_token_id=3,
    )
    assert torch.equal(harness.greedy(pair.ours, ids, 20), expected[:, LENGTH:])


def test_packed_sequences_do_not_see_each_other() -> None:
    theirs = published("mistral", "causal-lm", 2, "default")
    pair = harness.make_pair(theirs, llama, "causal-lm", seed=2)
    ids = case(theirs, "causal-lm", 2).ids[0]
    cuts = (8, 3, 12)
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(cuts)])[None]
    together = pair.ours(ids[None], batch=Batch(sequences_BT=numbers))[0]
    alone = torch.cat([pair.ours(part[None])[0] for part in ids.split(cuts)])
    assert harness.difference(together, alone) < 1e-5
    assert harness.difference(pair.ours(ids[None])[0], alone) > 1e-3


def test_unknown_scaling_is_refused() -> None:
    raw = {"model_type": "llama", "rope_scaling": {"rope_type": "su", "factor": 2.0}}
    with pytest.raises(ConfigError, match="su"):
        llama.read_config(raw)
    raw["rope_scaling"] = {"rope_type": "linear", "factor": 2.0, "twist": 3}
    with pytest.raises(ConfigError, match="twist"):
        llama.read_config(raw)
