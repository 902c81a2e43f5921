"""The 2017 model beyond what Marian can say: the paper's own numbers, and torch.nn's layers."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from parity import encoder_decoder, harness
from torch import Tensor, nn

from chumoku.errors import ConfigError
from chumoku.layers.positions import sinusoids
from chumoku.models import transformer
from chumoku.models.transformer import Config, Model

BASE = Config()
BIG = Config(
    width=1024,
    encoder_heads=16,
    decoder_heads=16,
    encoder_feedforward_width=4096,
    decoder_feedforward_width=4096,
    dropout=0.3,
)


def variant(
    *, blocks: int = 6, width: int = 512, hidden: int = 2048, heads: int = 8, **more: Any
) -> Config:
    return Config(
        width=width,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        encoder_heads=heads,
        decoder_heads=heads,
        encoder_feedforward_width=hidden,
        decoder_feedforward_width=hidden,
        **more,
    )


def table3() -> dict[str, tuple[Config, float | None]]:
    """Every row of table 3 that is a model, and its millions of parameters as reported.

    Label smoothing (D, rows 3 and 4) belongs to training. d_v is d_k but in (B), where only d_k
    changes; in (C), rows 4 and 5, the paper names d_k = d_v.
    """
    return {
        "base": (BASE, 65),
        "A 1": (variant(heads=1, key_width=512, value_width=512), None),
        "A 4": (variant(heads=4, key_width=128, value_width=128), None),
        "A 16": (variant(heads=16, key_width=32, value_width=32), None),
        "A 32": (variant(heads=32, key_width=16, value_width=16), None),
        "B 16": (variant(key_width=16, value_width=64), 58),
        "B 32": (variant(key_width=32, value_width=64), 60),
        "C 2 blocks": (variant(blocks=2), 36),
        "C 4 blocks": (variant(blocks=4), 50),
        "C 8 blocks": (variant(blocks=8), 80),
        "C d 256": (variant(width=256, key_width=32, value_width=32), 28),
        "C d 1024": (variant(width=1024, key_width=128, value_width=128), 168),
        "C ff 1024": (variant(hidden=1024), 53),
        "C ff 4096": (variant(hidden=4096), 90),
        "D dropout 0": (variant(dropout=0.0), None),
        "D dropout 0.2": (variant(dropout=0.2), None),
        "E learned": (variant(positions="learned", max_positions=1024), None),
        "big": (BIG, 213),
    }


def count(config: Config) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Model(config).parameters())


@pytest.mark.parametrize("row", list(table3()))
def test_every_row_of_table_3_can_be_built(row: str) -> None:
    """The paper's counts are rounded and hold something that it does not say (base: +2 million)."""
    config, millions = table3()[row]
    counted = count(config)
    if millions is not None:
        assert abs(counted / 1e6 / millions - 1) < 0.07
    written = transformer.write_config(config, "conditional-generation")
    assert written["model_type"] == "transformer"
    assert transformer.read_config(written) == config


def test_exact_parameter_counts() -> None:
    """SYSTEMS.md section 20; then what each option adds to the base model."""
    rows = {name: count(config) for name, (config, _) in table3().items()}
    assert rows["base"] == 63_045_632
    assert rows["big"] == 214_171_648
    assert {rows[f"A {heads}"] for heads in (1, 4, 16, 32)} == {rows["base"]}
    assert rows["base"] - rows["B 16"] == 18 * 2 * 512 * 8 * (64 - 16)
    assert rows["base"] - rows["B 32"] == 18 * 2 * 512 * 8 * (64 - 32)
    assert rows["E learned"] - rows["base"] == 2 * 1024 * 512
    assert count(variant(attention_bias=True)) - rows["base"] == 18 * 4 * 512
    assert count(variant(tied=False)) - rows["base"] == 37000 * 512
    apart = variant(shared=False, target_vocab_size=5000)
    assert count(apart) - rows["base"] == 5000 * 512


def test_golden_sinusoids() -> None:
    """SYSTEMS.md section 24, D = 512; and the other order holds the same numbers."""
    golden = {
        **{(0, 0): 0.0, (0, 1): 1.0, (1, 0): 0.841471, (1, 1): 0.540302, (1, 2): 0.821856},
        **{(1, 3): 0.569695, (10, 0): -0.544021, (10, 100): 0.996472, (10, 101): -0.083922},
        **{(49, 510): 0.005079, (49, 511): 0.999987},
    }
    places = torch.arange(50)[None]
    table = sinusoids(places, 512, interleaved=True, dtype=torch.float64)[0]
    for (place, channel), value in golden.items():
        assert abs(float(table[place, channel]) - value) < 1e-6
    halves = sinusoids(places, 512, interleaved=False, dtype=torch.float64)[0]
    assert torch.equal(halves, torch.cat((table[:, 0::2], table[:, 1::2]), dim=1))


# ---- equality with torch.nn ----


def into_torch(layer: nn.Module, block: Any, cross: bool) -> None:
    """Copy the weights of one of our blocks into torch.nn's layer."""
    parts = [(block.attention, layer.self_attn)]
    norms = [block.attention_norm, block.feedforward_norm]
    if cross:
        parts.append((block.cross_attention, layer.multihead_attn))
        norms.insert(1, block.cross_attention_norm)
    pairs: list[tuple[Any, Any]] = []
    for ours, theirs in parts:
        projections = (ours.query, ours.key, ours.value)
        pairs.append((theirs.in_proj_weight, torch.cat([p.weight for p in projections])))
        pairs.append((theirs.out_proj.weight, ours.output.weight))
        if ours.query.bias is not None:
            pairs.append((theirs.in_proj_bias, torch.cat([p.bias for p in projections])))
            pairs.append((theirs.out_proj.bias, ours.output.bias))
        else:
            pairs += [(theirs.in_proj_bias, torch.zeros(1)), (theirs.out_proj.bias, torch.zeros(1))]
    for number, norm in enumerate(norms, 1):
        theirs = layer.get_submodule(f"norm{number}")
        pairs += [(theirs.weight, norm.weight), (theirs.bias, norm.bias)]
    for theirs, ours in ((layer.linear1, "up"), (layer.linear2, "down")):
        source = block.feedforward.get_submodule(ours)
        pairs += [(theirs.weight, source.weight), (theirs.bias, source.bias)]
    with torch.no_grad():
        for target, value in pairs:
            target.copy_(value.expand_as(target))


def through_torch(model: Model, run: encoder_decoder.Case) -> Tensor:
    """Logits at the target's tokens, from torch.nn's own layers around our embeddings."""
    config, dtype = model.config, model.encoder.embeddings.token.weight.dtype
    sizes = (config.width, config.encoder_heads, config.encoder_feedforward_width)
    options: dict[str, Any] = {"batch_first": True, "norm_first": False, "dtype": dtype}

    def enter(embeddings: Any, ids: Tensor) -> Tensor:
        table = embeddings.token.weight
        places = torch.arange(ids.shape[1])[None]
        if embeddings.position is None:
            extra = sinusoids(places, config.width, interleaved=True, dtype=dtype)
        else:
            extra = embeddings.position.weight[places]
        return table[ids] * config.width**0.5 + extra  # type: ignore[no-any-return]

    hidden = enter(model.encoder.embeddings, run.source)
    for block in model.encoder.blocks:
        layer: nn.Module = nn.TransformerEncoderLayer(*sizes, 0.0, "relu", **options)
        into_torch(layer, block, cross=False)
        hidden = layer(hidden, src_key_padding_mask=~run.source_mask)
    T = run.target.shape[1]
    future = torch.ones(T, T).triu(1).bool()
    x = enter(model.decoder.embeddings, run.target)
    for block in model.decoder.blocks:
        layer = nn.TransformerDecoderLayer(*sizes, 0.0, "relu", **options)
        into_torch(layer, block, cross=True)
        x = layer(
            x,
            hidden,
            tgt_mask=future,
            tgt_key_padding_mask=~run.target_mask,
            memory_key_padding_mask=~run.source_mask,
        )
    return (x @ model.encoder.embeddings.token.weight.T)[run.target_mask]


SMALL = Config(
    vocab_size=40,
    width=24,
    num_encoder_blocks=2,
    num_decoder_blocks=2,
    encoder_heads=3,
    decoder_heads=3,
    encoder_feedforward_width=31,
    decoder_feedforward_width=31,
    max_positions=20,
)


def small(seed: int, **changes: Any) -> tuple[Any, encoder_decoder.Case]:
    model = Model(dataclasses.replace(SMALL, **changes)).eval()
    harness.randomise(model, seed, ["head.bias"] if model.head is not None else [])
    run = encoder_decoder.case(40, 40, pad=0, start=2, end=1, seed=seed)
    return model, run


@pytest.mark.parametrize(
    "changes", [{}, {"attention_bias": True}, {"positions": "learned", "attention_bias": True}]
)
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@torch.no_grad()
def test_equals_torch_layers(changes: dict[str, Any], dtype: torch.dtype, limit: float) -> None:
    model, run = small(4, **changes)
    model = model.to(dtype)
    harness.compare(run.ours(model), through_torch(model, run), limit)
    block = model.decoder.blocks[0]
    block.attention_norm, block.cross_attention_norm = (
        block.cross_attention_norm,
        block.attention_norm,
    )
    right = through_torch(model, run)
    block.attention_norm, block.cross_attention_norm = (
        block.cross_attention_norm,
        block.attention_norm,
    )
    assert harness.difference(run.ours(model), right) > 1e-3


# ---- widths of keys and values ----


@torch.no_grad()
def test_free_widths_of_keys_and_values() -> None:
    """d_k and d_v apart from D / N: the written-out product of section 3.2, head by head."""
    model, run = small(5, key_width=5, value_width=7)
    attention: Any = model.encoder.blocks[0].attention
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(1))
    heads = []
    for n in range(3):
        q = x @ attention.query.weight[5 * n : 5 * n + 5].T
        k = x @ attention.key.weight[5 * n : 5 * n + 5].T
        v = x @ attention.value.weight[7 * n : 7 * n + 7].T
        heads.append(torch.softmax(q @ k.mT / 5**0.5, -1) @ v)
    expected = torch.cat(heads, -1) @ attention.output.weight.T
    everything = transformer.Visible(None, causal=False)
    harness.compare(attention(*attention.project(x), everything), expected, 1e-5)
    encoder_decoder.check_caches(model, run)
    encoder_decoder.check_padding(model, run, 0)
    encoder_decoder.check_nothing_to_see(model, run)


@pytest.mark.parametrize("positions", transformer.POSITIONS)
def test_caches_padding_causality(positions: str) -> None:
    model, run = small(6, positions=positions, logits_bias=True)
    encoder_decoder.check_caches(model, run)
    encoder_decoder.check_padding(model, run, 0)
    encoder_decoder.check_causal(model, run, 40)
    encoder_decoder.check_nothing_to_see(model, run)


# ---- files ----


def configs() -> Iterator[Config]:
    draw = random.Random(3)
    for _ in range(30):
        yield dataclasses.replace(
            SMALL,
            positions=draw.choice(transformer.POSITIONS),
            max_positions=20,
            key_width=draw.choice([None, 5, 8]),
            value_width=draw.choice([None, 7, 8]),
            attention_bias=draw.random() < 0.5,
            logits_bias=draw.random() < 0.5,
            shared=draw.random() < 0.5,
            target_vocab_size=None,
            tied=draw.random() < 0.5,
            init_std=draw.choice([None, 0.05]),
            pad_id=draw.choice([None, 3]),
            norm_eps=draw.choice([1e-5, 1e-6]),
            scaled_embeddings=draw.random() < 0.5,
            eos_ids=draw.choice([(0,), (1, 5)]),
        )


def test_files_of_every_option_come_back() -> None:
    """Config and tensors through the published form and back, bit for bit."""
    for config in configs():
        raw = transformer.write_config(config, "conditional-generation")
        again = transformer.read_config(raw)
        if not config.shared:  # the size is then written out
            config = dataclasses.replace(config, target_vocab_size=config.vocab_size)
        assert again == config
        model, _ = small(7, **{f.name: getattr(config, f.name) for f in dataclasses.fields(config)})
        table = transformer.names(config, "conditional-generation", "hub")
        published: dict[str, Tensor] = {}
        for name, value in model.state_dict().items():
            found = table.publish(name)
            assert found is not None, name
            shape = (1, -1) if found[0].shape else value.shape
            published[found[1]] = value.reshape(shape)
        fresh = Model(again)
        fresh.load_state_dict(harness.to_ours(published, table, fresh))
        for name, value in model.state_dict().items():
            assert torch.equal(value, fresh.state_dict()[name]), name


def test_what_marian_can_say_is_written_as_marian() -> None:
    marian = dataclasses.replace(
        SMALL,
        positions="concatenated",
        attention_bias=True,
        logits_bias=True,
        init_std=0.02,
    )
    raw = transformer.write_config(marian, "conditional-generation")
    assert raw["model_type"] == "marian"
    assert raw["architectures"] == ["MarianMTModel"]
    assert not set(raw) & set(transformer.OWN.reads) - set(transformer.KEYS.reads)
    natural = dataclasses.replace(marian, key_width=8, value_width=8)
    assert natural.model_type == "marian"
    for change in (
        {"positions": "interleaved"},
        {"attention_bias": False},
        {"logits_bias": False},
        {"key_width": 5},
        {"value_width": 5},
        {"encoder_heads": 6, "key_width": 4},
        {"norm_eps": 1e-6},
        {"init_std": None},
        {"max_positions": None},
    ):
        assert dataclasses.replace(marian, **change).model_type == "transformer"  # type: ignore[arg-type]


def test_positions_that_are_unknown_or_uncounted() -> None:
    with pytest.raises(ConfigError, match="their number"):
        transformer.read_config({"model_type": "transformer", "position_embedding": "learned"})
    with pytest.raises(ConfigError, match="rotary"):
        transformer.read_config({"model_type": "transformer", "position_embedding": "rotary"})


def test_initialisation_is_that_of_tensor2tensor() -> None:
    """Xavier uniform for [out, in] matrices, N(0, 1 / D) for embeddings, zeros and ones else."""
    model = Model(variant(blocks=1, width=64, hidden=96, vocab_size=700, pad_id=3, tied=False))
    harness.randomise(model, 1)
    torch.manual_seed(4)
    transformer.initialise(model)
    for name, value in model.named_parameters():
        if "norm.weight" in name:
            assert bool((value == 1).all()), name
        elif name.endswith("bias"):
            assert not value.any(), name
        elif "token" in name or name == "unembedding.weight":
            assert abs(float(value.detach().std()) * 8 - 1) < 0.02, name
        else:
            bound = (6 / sum(value.shape)) ** 0.5
            assert 0.98 * bound < float(value.detach().abs().max()) <= bound, name
    assert not model.encoder.embeddings.token.weight[3].any()  # type: ignore[index]
