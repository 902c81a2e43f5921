"""GPT-2 against the published implementation: heads, scalings of the scores, caches, GGUF names."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import transformers
from parity import harness
from torch import Tensor

from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import Batch
from chumoku.layers.ops import ACTIVATIONS
from chumoku.models import gpt2, gpt2_gguf

GOLDEN = Path(__file__).parents[1] / "golden" / "config_keys.json"
EVERY_ACTIVATION = sorted(set(ACTIVATIONS) & set(transformers.activations.ACT2FN))
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]
LENGTH, PAD = 15, 3


def published(head: str, seed: int, **more: Any) -> Any:
    draw = harness.sampler("gpt2", head, seed)
    heads = draw.choice([1, 2, 3, 5])
    values = {
        "vocab_size": draw.randint(30, 90),
        "n_positions": draw.randint(40, 50),
        "n_embd": heads * draw.choice([4, 7, 10]),
        "n_layer": draw.randint(1, 3),
        "n_head": heads,
        "n_inner": draw.choice([None, 13, 50]),
        "activation_function": EVERY_ACTIVATION[(seed * 5 + len(head)) % len(EVERY_ACTIVATION)],
        "resid_pdrop": draw.choice([0.1, 0.3]),
        "embd_pdrop": draw.choice([0.1, 0.2]),
        "attn_pdrop": draw.choice([0.1, 0.2]),
        "layer_norm_epsilon": draw.choice([1e-5, 1e-3]),
        "scale_attn_weights": draw.random() < 0.7,
        "scale_attn_by_inverse_layer_idx": draw.random() < 0.5,
        "reorder_and_upcast_attn": draw.random() < 0.5,
        "tie_word_embeddings": draw.random() < 0.5,
        "num_labels": draw.randint(2, 5),
        "pad_token_id": PAD,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if draw.random() < 0.5:
        values["classifier_dropout"] = 0.4
    config = transformers.GPT2Config(**(values | more))
    return getattr(transformers, "GPT2" + gpt2.HEADS[head])(config)


@dataclasses.dataclass(frozen=True)
class Case:
    ids: Tensor
    mask: Tensor
    head: str

    def inputs(self) -> dict[str, Tensor]:
        places = (self.mask.long().cumsum(1) - 1).clamp(min=0)
        return {"input_ids": self.ids, "attention_mask": self.mask.long(), "position_ids": places}

    def theirs(self, model: Any) -> Any:
        out = model(**self.inputs())
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
    mask[2, 11:] = False
    ids[~mask] = PAD
    return Case(ids, mask, head)


SWAPS = [
    ("blocks.0.attention_norm.weight", "blocks.0.feedforward_norm.weight"),
    ("blocks.0.attention.query.weight", "blocks.0.attention.key.weight"),
    ("blocks.0.attention.value.bias", "blocks.0.attention.output.bias"),
    ("blocks.0.feedforward.down.bias", "final_norm.bias"),
]


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize("head", gpt2.HEADS)
def test_equals_published(head: str, seed: int) -> None:
    theirs = published(head, seed)
    pair = harness.make_pair(theirs, gpt2, head, seed=seed)
    run = case(theirs, head, seed)
    harness.check_all(pair, run.theirs, run.ours, SWAPS)


@pytest.mark.parametrize("name", EVERY_ACTIVATION)
def test_every_activation_equals_published(name: str) -> None:
    theirs = published("causal-lm", 1, activation_function=name)
    pair = harness.make_pair(theirs, gpt2, "causal-lm", seed=1)
    run = case(theirs, "causal-lm", 1)
    harness.check_float32(pair, run.theirs, run.ours)
    other = "tanh" if name != "tanh" else "relu"
    wrong = gpt2.Model(dataclasses.replace(pair.ours.config, activation=other), "causal-lm").eval()
    wrong.load_state_dict(pair.ours.state_dict())
    assert harness.difference(run.ours(wrong), run.theirs(pair.theirs)) > 1e-3


@pytest.mark.parametrize("key", ["scale_attention", "scale_by_layer"])
def test_each_scaling_of_the_scores_counts(key: str) -> None:
    published_key = {n: k for k, n in gpt2.KEYS.reads.items()}[key]
    for value in (True, False):
        theirs = published("causal-lm", 2, **{published_key: value, "n_layer": 3})
        pair = harness.make_pair(theirs, gpt2, "causal-lm", seed=2)
        run = case(theirs, "causal-lm", 2)
        harness.check_float32(pair, run.theirs, run.ours)
        config = dataclasses.replace(pair.ours.config, **{key: not value})
        wrong = gpt2.Model(config, "causal-lm").eval()
        wrong.load_state_dict(pair.ours.state_dict())
        assert harness.difference(run.ours(wrong), run.theirs(pair.theirs)) > 1e-3


def test_attention_weights_equal_published() -> None:
    theirs = published("causal-lm", 3)
    pair = harness.make_pair(theirs, gpt2, "causal-lm", seed=1)
    run = case(theirs, "causal-lm", 1)
    harness.check_attention(
        pair,
        lambda m: m(**run.inputs(), output_attentions=True).attentions,
        run.ours,
        rows_BT=run.mask,
    )


@pytest.mark.parametrize("seed", range(2))
def test_caches_and_padding_change_nothing(seed: int) -> None:
    theirs = published("causal-lm", seed)
    pair = harness.make_pair(theirs, gpt2, "causal-lm", seed=seed)
    run = case(theirs, "causal-lm", seed)
    harness.check_caches(pair.ours, run.ids, run.mask)
    harness.check_padding(pair.ours, run.ids[:1], pad=PAD)


@pytest.mark.parametrize("seed", range(2))
def test_greedy_tokens_equal_published(seed: int) -> None:
    # Tied random matrices repeat themselves at once.
    theirs = published("causal-lm", seed, tie_word_embeddings=False)
    pair = harness.make_pair(theirs, gpt2, "causal-lm", seed=seed)
    ids = case(theirs, "causal-lm", seed).ids[:1]
    mask = torch.ones_like(ids)
    settings = {"do_sample": False, "max_new_tokens": 20, "eos_token_id": None, "pad_token_id": PAD}
    expected = theirs.generate(ids, attention_mask=mask, **settings)[:, LENGTH:]
    assert torch.equal(harness.greedy(pair.ours, ids, 20), expected)
    assert len(expected.unique()) > 2


def test_packed_sequences_do_not_see_each_other() -> None:
    theirs = published("causal-lm", 2)
    pair = harness.make_pair(theirs, gpt2, "causal-lm", seed=2)
    ids = case(theirs, "causal-lm", 2).ids[0]
    cuts = (5, 2, 8)
    numbers = torch.cat([torch.full((n,), i) for i, n in enumerate(cuts)])[None]
    together = pair.ours(ids[None], batch=Batch(sequences_BT=numbers))[0]
    alone = torch.cat([pair.ours(part[None])[0] for part in ids.split(cuts)])
    assert harness.difference(together, alone) < 1e-5
    assert harness.difference(pair.ours(ids[None])[0], alone) > 1e-3


def test_query_key_and_value_are_stacked_in_that_order_after_transposition() -> None:
    table = gpt2.names(gpt2.Config(), "causal-lm", "hub")
    found = table.find("transformer.h.7.attn.c_attn.weight")
    assert found is not None
    assert found.rule.transposed
    assert found.ours == tuple(f"blocks.7.attention.{n}.weight" for n in ("query", "key", "value"))
    assert table.is_ignored("h.7.attn.bias")
    assert table.is_ignored("h.7.attn.masked_bias")
    assert not table.is_ignored("h.7.attn.c_attn.bias")


def test_gguf_names_are_those_of_the_gguf_package() -> None:
    config = gpt2.Config(vocab_size=9, max_positions=5, width=6, num_blocks=2, num_heads=2)
    table = gpt2.names(config, "causal-lm", "gguf")
    model = gpt2.Model(dataclasses.replace(config, tied=False), "causal-lm")
    hub = gpt2.names(config, "causal-lm", "hub")
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, config.num_blocks)
    for name in model.state_dict():
        rule, published_name, part = table.publish(name)  # type: ignore[misc]
        match = table.find(published_name)
        assert match is not None
        assert match.ours[part] == name
        assert not rule.transposed
        theirs = hub.publish(name)[1]  # type: ignore[index]
        # The converter of llama.cpp maps GPT-2's own names to these.
        assert published_name == known.get_name(theirs, try_suffixes=(".weight", ".bias"))


def test_config_survives_gguf_metadata() -> None:
    def nothing(name: str) -> torch.Tensor:
        raise AssertionError(f"GPT-2's metadata needs no tensor, and asked for {name}")

    config = gpt2.Config(vocab_size=77, max_positions=33, width=24, num_heads=3, num_blocks=2)
    for change in ({"feedforward_width": 31, "norm_eps": 1e-3}, {"feedforward_width": 96}):
        wanted = dataclasses.replace(config, **change)
        metadata = gpt2_gguf.gguf_metadata(wanted)
        assert gpt2.read_config(gpt2_gguf.config_from_gguf(metadata, [], nothing)) == wanted
        untied = gpt2.read_config(gpt2_gguf.config_from_gguf(metadata, ["output.weight"], nothing))
        assert untied == dataclasses.replace(wanted, tied=False)
    without = {k: v for k, v in gpt2_gguf.gguf_metadata(config).items() if "head_count" not in k}
    with pytest.raises(ConfigError, match="n_head"):
        gpt2_gguf.config_from_gguf(without, [], nothing)
    for change in ({"activation": "relu"}, {"scale_by_layer": True}, {"scale_attention": False}):
        with pytest.raises(ConfigError, match="GGUF"):
            gpt2_gguf.gguf_metadata(dataclasses.replace(config, **change))


def test_every_published_config_key_is_known() -> None:
    old = json.loads(GOLDEN.read_text(encoding="utf-8"))["defaults"]["gpt2"]
    for raw in (old, transformers.GPT2Config().to_dict()):
        assert gpt2.read_config(raw) == gpt2.Config()
        assert gpt2.read_config(raw | {"n_ctx": 1024, "n_inner": 5}).feedforward_width == 5
        with pytest.raises(ConfigError, match="rotary_dim"):
            gpt2.read_config(raw | {"rotary_dim": 64})
        for key, value in (("add_cross_attention", True), ("activation_function", "gleu")):
            with pytest.raises(ConfigError):
                gpt2.read_config(raw | {key: value})


@pytest.mark.parametrize(
    ("blocks", "width", "heads", "count"),
    [
        (12, 768, 12, 124_439_808),
        (24, 1024, 16, 354_823_168),
        (36, 1280, 20, 774_030_080),
        (48, 1600, 25, 1_557_611_200),
    ],
)
def test_number_of_parameters(blocks: int, width: int, heads: int, count: int) -> None:
    raw = {"n_layer": blocks, "n_embd": width, "n_head": heads}
    with torch.device("meta"):
        model = gpt2.Model(gpt2.read_config(raw), "causal-lm")
    assert sum(p.numel() for p in model.parameters()) == count


def test_initialisation_is_the_published_one() -> None:
    config = gpt2.Config(vocab_size=300, max_positions=80, width=96, num_blocks=8, num_heads=4)
    torch.manual_seed(0)
    model = gpt2.Model(dataclasses.replace(config, feedforward_width=384), "token-classification")
    gpt2.initialise(model)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            assert torch.all(tensor == ("norm.weight" in name))
            continue
        small = name.endswith(("attention.output.weight", "feedforward.down.weight"))
        wanted = 0.02 / 4 if small else 0.02
        tolerance = 4 * wanted / (2 * tensor.numel()) ** 0.5
        assert abs(float(tensor.detach().std()) - wanted) < tolerance, name
    reference = transformers.GPT2Config(**{"n_layer": 8, "n_embd": 96, "n_head": 4})
    projection = transformers.GPT2Model(reference).h[3].mlp.c_proj.weight
    assert abs(float(projection.detach().std()) - 0.02 / 4) < 2e-4


def test_a_head_without_vocabulary_has_no_logits() -> None:
    model = gpt2.Model(gpt2.Config(vocab_size=9, width=6, num_heads=2, num_blocks=1), "encoder")
    with pytest.raises(InputError, match="encoder"):
        model.unembed(torch.zeros(1, 1, 6))
    with pytest.raises(ConfigError, match="causal-lm"):
        gpt2.Model(copy.copy(model.config), "masked-lm")
