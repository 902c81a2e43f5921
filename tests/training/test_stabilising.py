"""Freezing, new top layers, mixout, noise: over models of one and of two stacks."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from chumoku.errors import InputError
from chumoku.loading import create
from chumoku.models import bert, gpt2, llama, t5, transformer, vit
from chumoku.training.stabilising import (
    MixedLinear,
    below_top,
    freeze,
    freeze_bottom,
    layer_scales,
    mixed,
    mixout,
    reinitialise_top,
    remove_mixout,
)

BERT = bert.Config(
    vocab_size=30, max_positions=8, width=8, num_blocks=3, num_heads=2, feedforward_width=12
)
T5 = t5.Config(
    vocab_size=30, width=8, num_heads=2, head_width=4, feedforward_width=12, num_blocks=3
)
T5 = dataclasses.replace(T5, num_decoder_blocks=2)
TRANSFORMER = transformer.Config(
    vocab_size=30,
    width=8,
    num_encoder_blocks=2,
    num_decoder_blocks=2,
    encoder_heads=2,
    decoder_heads=2,
    encoder_feedforward_width=8,
    decoder_feedforward_width=8,
)


def made(config, head, seed=0):
    """A model whose every parameter is random."""
    loaded = create(config, head, seed)
    random = torch.Generator().manual_seed(seed + 50)
    with torch.no_grad():
        for p in loaded.model.parameters():
            p.copy_(torch.randn(p.shape, generator=random) * 0.3)
    return loaded


# ---- distances ----


def test_distances_of_one_stack():
    distances = below_top(made(BERT, "classification").model)
    expected = {"head.": 0, "pooler.": 0, "blocks.2.": 1, "blocks.1.": 2, "blocks.0.": 3}
    expected["embeddings."] = 4
    for name, distance in distances.items():
        assert distance == next(d for start, d in expected.items() if name.startswith(start)), name


def test_distances_of_two_stacks():
    distances = below_top(made(T5, "conditional-generation").model)
    assert distances["encoder.blocks.2.attention.query.weight"] == 1
    assert distances["encoder.blocks.0.attention.relative_bias.weight"] == 3
    assert distances["decoder.blocks.1.cross_attention.key.weight"] == 1
    assert distances["decoder.blocks.0.feedforward_norm.weight"] == 2
    assert distances["encoder.embeddings.token.weight"] == 4
    assert distances["decoder.embeddings.token.weight"] == 3
    assert distances["encoder.final_norm.weight"] == distances["decoder.final_norm.weight"] == 0


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (
            gpt2.Config(vocab_size=30, width=8, num_blocks=2, num_heads=2, max_positions=8),
            "causal-lm",
        ),
        (
            llama.Config(
                vocab_size=30,
                width=8,
                num_blocks=2,
                num_heads=2,
                num_kv_heads=2,
                head_width=4,
                feedforward_width=8,
            ),
            "causal-lm",
        ),
        (
            vit.Config(
                image=(8, 8), patch=(4, 4), width=8, num_blocks=2, num_heads=2, feedforward_width=8
            ),
            "image-classification",
        ),
        (TRANSFORMER, "conditional-generation"),
    ],
)
def test_every_architecture_is_covered(config, head):
    """Nothing that is an embedding or a block is taken for the top."""
    distances = below_top(create(config, head).model)
    for name, distance in distances.items():
        inner = "embeddings" in name or "blocks" in name
        assert (distance > 0) == inner, name
    lowest = {d for name, d in distances.items() if "embeddings" in name}
    assert lowest == {max(distances.values())}


def test_scales_are_powers():
    model = made(BERT, "classification").model
    scales = layer_scales(model, 0.95)
    assert scales["embeddings.norm.bias"] == 0.95**4
    assert scales["head.output.weight"] == 1.0
    assert set(layer_scales(model, 1.0).values()) == {1.0}


# ---- freezing ----


def test_freeze_by_pattern():
    model = made(BERT, "masked-lm").model
    names = freeze(model, ["*.attention.*.bias", "embeddings.token.*"])
    still = {n for n, p in model.named_parameters(remove_duplicate=False) if not p.requires_grad}
    assert set(names) <= still
    assert still - set(names) == {"head.output.weight"}  # tied to the frozen table
    assert len(names) == 3 * 4 + 1
    with pytest.raises(InputError, match=r"block\.0"):
        freeze(model, ["block.0.*"])


def test_freeze_bottom():
    model = made(BERT, "classification").model
    freeze_bottom(model, 2)
    for name, p in model.named_parameters():
        bottom = name.startswith(("embeddings.", "blocks.0.", "blocks.1."))
        assert p.requires_grad is not bottom, name
    two = made(T5, "conditional-generation").model
    freeze_bottom(two, 1)
    for name, p in two.named_parameters():
        assert p.requires_grad is not ("embeddings" in name or ".blocks.0." in name), name
    with pytest.raises(InputError, match="4 blocks"):
        freeze_bottom(model, 4)


# ---- new top layers ----


@pytest.mark.parametrize(
    ("config", "head", "top"),
    [
        (BERT, "classification", ("blocks.1.", "blocks.2.", "pooler.")),
        (
            T5,
            "conditional-generation",
            ("encoder.blocks.1.", "encoder.blocks.2.", "decoder.blocks."),
        ),
    ],
)
def test_only_the_top_is_drawn_anew(config, head, top):
    loaded = made(config, head)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    random_before = torch.get_rng_state()
    names = reinitialise_top(loaded, 2, seed=7)
    assert torch.equal(torch.get_rng_state(), random_before)
    fresh = dict(create(config, head, 7).model.named_parameters())
    assert set(names) == {name for name in before if name.startswith(top)}
    for name, p in loaded.model.named_parameters():
        assert torch.equal(p, fresh[name] if name in names else before[name]), name
        if name in names:
            assert not torch.equal(p, before[name]), name
    other = made(config, head)
    reinitialise_top(other, 2, seed=8)
    assert any(
        not torch.equal(a, b)
        for a, b in zip(loaded.model.parameters(), other.model.parameters(), strict=True)
    )


def test_what_is_drawn_is_the_papers():
    config = dataclasses.replace(BERT, width=64, feedforward_width=128)
    loaded = made(config, "classification")
    reinitialise_top(loaded, 1, seed=1)
    block = loaded.model.blocks[2]
    assert block.feedforward.up.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(block.attention_norm.weight, torch.ones(64))
    assert torch.equal(block.feedforward.up.bias, torch.zeros(128))


def test_too_many_layers_or_another_kind_of_layer():
    loaded = made(BERT, "classification")
    with pytest.raises(InputError, match="4 blocks"):
        reinitialise_top(loaded, 4, seed=0)
    before = {name: p.detach().clone() for name, p in loaded.model.named_parameters()}
    loaded.model.blocks[2].attention.query = nn.Linear(8, 9)
    with pytest.raises(InputError, match=r"blocks\.2\.attention\.query"):
        reinitialise_top(loaded, 1, seed=0)
    name = "blocks.2.feedforward.up.weight"
    assert torch.equal(loaded.model.get_parameter(name), before[name])


# ---- mixout ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mixed_is_the_published_formula(dtype):
    random = torch.Generator().manual_seed(0)
    weight, start = (torch.randn(40, 30, generator=random).to(dtype) for _ in range(2))
    share = 0.7
    torch.manual_seed(5)
    mine = mixed(weight, start, share)
    torch.manual_seed(5)
    kept = F.dropout(torch.ones_like(weight), share) > 0  # the same draw
    published = (torch.where(kept, weight, start) - share * start) / (1 - share)
    torch.testing.assert_close(mine, published, rtol=1e-5, atol=1e-5)
    assert torch.equal(mine[~kept], start[~kept])
    assert 0.25 < kept.double().mean() < 0.35  # kept with 1 - share


def test_the_expectation_is_the_current_weight():
    weight, start = torch.tensor([2.0, -1.0]).double(), torch.tensor([0.5, 3.0]).double()
    torch.manual_seed(0)
    draws = 20_000
    mean = mixed(weight.expand(draws, 2), start.expand(draws, 2), 0.6).mean(0)
    deviation = (weight - start).abs() * (0.6 / 0.4) ** 0.5 / draws**0.5
    assert ((mean - weight).abs() < 5 * deviation).all()
    unscaled = 0.6 * start + 0.4 * weight  # the expectation without rescaling is far from it
    assert ((unscaled - weight).abs() > 50 * deviation).all()


def ids():
    return torch.randint(0, 30, (2, 6), generator=torch.Generator().manual_seed(3))


def test_mixout_swaps_layers_and_keeps_names():
    still = dataclasses.replace(BERT, dropout=0.0, attention_dropout=0.0)
    model = made(still, "classification").model
    keys = list(model.state_dict())
    parameters = dict(model.named_parameters())
    expected = model.eval()(ids())
    names = mixout(model, 0.5)
    assert len(names) == 3 * 6 + 1  # six in each block and the pooler, not the head
    assert type(model.head.output) is nn.Linear
    assert list(model.state_dict()) == keys
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert torch.equal(model.eval()(ids()), expected)
    torch.manual_seed(0)
    # weights that have not moved are mixed with themselves
    torch.testing.assert_close(model.train()(ids()), model.eval()(ids()))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.5)
    moved = model.eval()(ids())
    assert not torch.allclose(model.train()(ids()), moved, atol=1e-3)
    assert remove_mixout(model) == names
    assert not any(isinstance(module, MixedLinear) for module in model.modules())
    assert all(parameters[n] is p for n, p in model.named_parameters())
    assert torch.equal(model.eval()(ids()), moved)
    assert torch.equal(model.train()(ids()), moved)


def test_gradients_reach_only_what_was_kept():
    layer = MixedLinear(nn.Linear(8, 8), 0.5)
    with torch.no_grad():
        layer.weight.add_(1.0)
    torch.manual_seed(1)
    layer(torch.ones(1, 8)).sum().backward()
    values = layer.weight.grad.unique().tolist()
    assert values == [0.0, 2.0]  # 1 / (1 - share) where kept
    assert torch.equal(layer.bias.grad, torch.ones(8))


def test_mixout_refuses_a_share_of_one():
    with pytest.raises(InputError, match="share"):
        mixout(made(BERT, "classification").model, 1.0)
