"""Attention: fused, written out, torch's own layer, and the formula taken literally."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from parity.harness import difference
from torch import Tensor, nn

from chumoku.layers.attention import (
    EMPTY,
    Attention,
    Batch,
    Shape,
    Visible,
    attend,
    attend_written,
    positions,
    visible,
)
from chumoku.layers.cache import ContiguousCache


def literal(
    q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float, bias: Tensor | None
) -> Tensor:
    """One number at a time: sum over s of exp(score) v / sum over s of exp(score)."""
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)
    group = q.shape[1] // k.shape[1]
    for b, n, t in itertools.product(*(range(size) for size in q.shape[:3])):
        total = 0.0
        for s in range(k.shape[2]):
            if not allowed[b, t, s]:
                continue
            score = scale * float(q[b, n, t] @ k[b, n // group, s])
            score += 0.0 if bias is None else float(bias[0, n, t, s])
            weight = math.exp(score)
            total += weight
            out[b, n, t] += weight * v[b, n // group, s]
        out[b, n, t] /= total or 1.0
    return out


def tensors(dtype: torch.dtype, T: int, S: int, group: int, biased: bool) -> Any:
    generator = torch.Generator().manual_seed(T * 100 + S * 10 + group)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    q, k, v = draw(2, 2 * group, T, 5), draw(2, 2, S, 5), draw(2, 2, S, 4 if group == 1 else 5)
    return q, k, v, draw(1, 2 * group, T, S) if biased else None


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["all", "causal", "mask", "one key"])
@pytest.mark.parametrize(("T", "S", "group"), [(4, 4, 1), (4, 4, 3), (1, 4, 2), (3, 6, 1)])
def test_fused_written_and_literal_agree(
    T: int, S: int, group: int, kind: str, biased: bool
) -> None:
    if kind == "causal" and T != S:
        pytest.skip("causal means as many keys as queries")
    for dtype, limit in ((torch.float32, 1e-6), (torch.float64, 1e-14)):
        q, k, v, bias = tensors(dtype, T, S, group, biased)
        mask = torch.rand(2, 1, T, S, generator=torch.Generator().manual_seed(3)) < 0.5
        mask[..., 0] = True
        only = torch.zeros(2, 1, 1, S, dtype=torch.bool)
        only[..., 1] = True
        seen = {
            "all": Visible(None, False),
            "causal": Visible(None, True),
            "mask": Visible(mask, False),
            "one key": Visible(only, False),
        }[kind]
        allowed = torch.ones(2, T, S, dtype=torch.bool)
        if seen.causal:
            allowed = allowed.tril()
        if seen.allowed_B1TS is not None:
            allowed = allowed & seen.allowed_B1TS[:, 0]
        expected = literal(q, k, v, allowed, 0.7, bias)
        for function in (attend, attend_written):
            got = function(q, k, v, seen, scale=0.7, bias_BNTS=bias)
            assert difference(got, expected) < limit, function.__name__
        wrong = attend(q, k, v, seen, scale=0.8, bias_BNTS=bias)
        assert difference(wrong, expected) > 1e-4 or kind == "one key"


@pytest.mark.parametrize("T", [1, 3])
def test_a_query_that_sees_nothing_gives_zeros_not_nan(T: int) -> None:
    q, k, v, _ = tensors(torch.float32, T, 4, 1, False)
    nothing = Visible(torch.zeros(2, 1, T, 4, dtype=torch.bool), False)
    for function in (attend, attend_written):
        assert torch.equal(function(q, k, v, nothing, scale=1.0), torch.zeros(2, 2, T, 4))


@pytest.mark.parametrize("cross", [False, True])
def test_equals_torch_multihead_attention(cross: bool) -> None:
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(12, 3, kdim=7 if cross else 12, vdim=7 if cross else 12)
    theirs.in_proj_bias.data.normal_()
    theirs.out_proj.bias.data.normal_()
    ours = Attention(Shape(12, 3, 4, context_width=7 if cross else None)).eval()
    separate = (theirs.q_proj_weight, theirs.k_proj_weight, theirs.v_proj_weight)
    weights = separate if cross else theirs.in_proj_weight.chunk(3)
    layers = (ours.query, ours.key, ours.value)
    for layer, weight, bias in zip(layers, weights, theirs.in_proj_bias.chunk(3), strict=True):
        layer.weight.data, layer.bias.data = weight.data, bias.data
    ours.output.load_state_dict(theirs.out_proj.state_dict())
    x, z = torch.randn(2, 5, 12), torch.randn(2, 6, 7 if cross else 12)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]], dtype=torch.bool)
    expected, weights_BTS = theirs(
        x.transpose(0, 1), z.transpose(0, 1), z.transpose(0, 1), key_padding_mask=~mask
    )
    q, (k, v) = ours.project_query(x), ours.project_context(z)
    got = ours(q, k, v, Visible(mask[:, None, None], False))
    assert difference(got, expected.transpose(0, 1)) < 1e-6
    caught: list[Tensor] = []
    hook = ours.weights.register_forward_hook(lambda m, i, out: caught.append(out))
    ours(q, k, v, Visible(mask[:, None, None], False))
    hook.remove()
    assert difference(caught[0].mean(1), weights_BTS) < 1e-6


def brute_visible(
    past: int,
    T: int,
    mask: Tensor | None,
    sequences: Tensor | None,
    causal: bool,
    window: int | None,
) -> Tensor:
    S = past + T
    allowed = torch.zeros(2, T, S, dtype=torch.bool)
    for b, t, s in itertools.product(range(2), range(T), range(S)):
        place = past + t
        ok = s <= place if causal else True
        ok = ok and (window is None or place - s < window)
        ok = ok and (mask is None or bool(mask[b, s]))
        ok = ok and (sequences is None or bool(sequences[b, t] == sequences[b, s]))
        allowed[b, t, s] = ok
    return allowed


@pytest.mark.parametrize("window", [None, 1, 3, 50])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("past", "T"), [(0, 1), (0, 6), (4, 1), (4, 3)])
def test_visible_is_its_definition(
    past: int, T: int, masked: bool, packed: bool, window: int | None
) -> None:
    if packed and past:
        pytest.skip("packed sequences have no cache")
    ids = torch.zeros(2, T, dtype=torch.long)
    mask = torch.rand(2, past + T, generator=torch.Generator().manual_seed(1)) < 0.6
    sequences = torch.tensor([[0, 0, 1, 1, 1, 2], [0, 1, 1, 1, 2, 2]])[:, :T] if packed else None
    cache = ContiguousCache()
    cache.advance(past)
    batch = Batch(cache=cache, sequences_BT=sequences)
    seen = visible(ids, mask if masked else None, batch, causal=True, window=window)
    allowed = torch.ones(2, T, past + T, dtype=torch.bool)
    if seen.causal:
        assert seen.allowed_B1TS is None
        allowed = allowed.tril()
    if seen.allowed_B1TS is not None:
        allowed = seen.allowed_B1TS[:, 0].expand(2, T, past + T)
    expected = brute_visible(past, T, mask if masked else None, sequences, True, window)
    assert torch.equal(allowed, expected)


def test_nothing_to_hide_makes_no_mask() -> None:
    ids = torch.zeros(2, 5, dtype=torch.long)
    assert visible(ids, None, EMPTY, causal=True) == Visible(None, True)
    assert visible(ids, None, EMPTY, causal=False) == Visible(None, False)
    assert visible(ids, None, EMPTY, causal=True, window=5) == Visible(None, True)
    assert visible(ids[:, :1], None, EMPTY, causal=True) == Visible(None, False)


def test_positions_count_tokens_not_padding() -> None:
    ids = torch.zeros(3, 5, dtype=torch.long)
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    expected = torch.tensor([[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [0, 1, 2, 3, 4]])
    assert torch.equal(positions(ids, mask, EMPTY), expected)
    assert torch.equal(positions(ids, None, EMPTY), torch.arange(5).expand(3, 5))
    cache = ContiguousCache()
    cache.advance(3)
    later = positions(ids[:, 3:], mask, Batch(cache=cache))
    assert torch.equal(later, expected[:, 3:])
    assert positions(ids[:, 3:], None, Batch(cache=cache)).tolist() == [[3, 4]] * 3
    packed = Batch(sequences_BT=torch.tensor([[7, 7, 2, 2, 2]]))
    assert positions(ids[:1], None, packed).tolist() == [[0, 1, 0, 1, 2]]
    given = torch.tensor([[4, 3, 2, 1, 0]])
    assert positions(ids[:1], mask[:1], Batch(positions_BT=given)) is given


def test_dropout_acts_on_weights_in_training_only() -> None:
    torch.manual_seed(0)
    layer = Attention(Shape(8, 2, 4), dropout=0.5)
    x, seen = torch.randn(1, 6, 8), Visible(None, True)
    layer.eval()
    assert torch.equal(layer(*layer.project(x), seen), layer(*layer.project(x), seen))
    layer.train()
    assert difference(layer(*layer.project(x), seen), layer(*layer.project(x), seen)) > 1e-3


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("kind", ["all", "causal", "mask"])
def test_a_gradient_in_bfloat16(kind: str, biased: bool) -> None:
    """Rounded once at the end: within half a unit of bfloat16's last place of what is exact."""
    given = [x for x in tensors(torch.float32, 6, 6, 1, biased) if x is not None]
    narrow = [x.bfloat16().requires_grad_() for x in given]
    exact = [x.detach().double().requires_grad_() for x in narrow]
    allowed = torch.ones(6, 6, dtype=torch.bool).tril()[None, None] if kind == "mask" else None
    seen = Visible(causal=kind == "causal", allowed_B1TS=allowed)

    def gradients(x: list[Tensor], scale: float) -> list[Tensor]:
        bias = x[3] if biased else None
        y = attend(*x[:3], seen, scale=scale, bias_BNTS=bias)
        assert y.dtype is x[0].dtype
        way = torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view(y.shape)
        return list(torch.autograd.grad((y.double() * way.bfloat16().double()).sum(), x))

    for ours, right, wrong in zip(
        gradients(narrow, 0.4), gradients(exact, 0.4), gradients(exact, 0.5), strict=True
    ):
        assert ours.dtype is torch.bfloat16
        limit = 2**-8 * right.abs() + 1e-5
        assert ((ours.double() - right).abs() <= limit).all()
        assert not ((ours.double() - wrong).abs() <= limit).all()
