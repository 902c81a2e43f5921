"""The fast ways of ops beside their definitions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.kernels import activations, native
from chumoku.layers import ops
from chumoku.layers.feedforward import GatedFeedForward
from chumoku.layers.norms import RMSNorm
from chumoku.layers.recorder import record
from chumoku.layers.taps import trace

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not built")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the native kernels in the order of their calls."""
    seen: list[str] = []
    kernels = ("native_rms_norm", "native_silu_product", "native_gelu")
    places = ((native, "native_block_linear"), *((activations, name) for name in kernels))
    for place, name in places:
        kernel = getattr(place, name)

        def called(*args: Any, name: str = name, kernel: Any = kernel, **named: Any) -> Any:
            seen.append(name)
            return kernel(*args, **named)

        monkeypatch.setattr(place, name, called)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("dtype", "width", "size", "error"),
    [
        (torch.float32, 7, ops.VOCABULARY, 1e-6),
        (torch.bfloat16, 33, 50, 1e-2),
        (torch.bfloat16, 64, 501, 1e-2),
        (torch.float16, 96, 17, 1e-3),
    ],
)
def test_one_token_goes_as_through_the_layer(
    dtype: torch.dtype, width: int, size: int, error: float, bias: bool, calls: list[str]
) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(width, size, bias=bias).to(dtype)
    x_BTD = torch.randn(1, 1, width, dtype=dtype)
    with torch.no_grad():
        y_BTD = ops.linear(x_BTD, layer)
        assert calls == ["native_block_linear"]
        assert y_BTD.dtype is dtype
        torch.testing.assert_close(y_BTD, layer(x_BTD), rtol=error, atol=error)
        wrong = ops.linear(x_BTD.roll(1, -1), layer)
        assert not torch.allclose(wrong, layer(x_BTD), rtol=error, atol=error)


def test_what_is_left_to_the_layer(calls: list[str]) -> None:
    layer, x_BTD = nn.Linear(6, 9), torch.randn(1, 1, 6)
    hooked, half = nn.Linear(6, 9), nn.Linear(6, 9).bfloat16()
    hooked.register_forward_hook(lambda module, given, y: y + 1)

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with torch.no_grad():
        graph = record(Once(layer), x_BTD)
        assert [node.op for node in graph.nodes.values() if node.op == "linear"] == ["linear"]
        calls.clear()
        for one in (hooked, Doubled(6, 9)):
            assert torch.equal(ops.linear(x_BTD, one), one(x_BTD))
        for x in (torch.randn(1, 2, 6), x_BTD, x_BTD.double()):
            assert torch.equal(ops.linear(x, layer.to(x.dtype)), layer(x))
        record(Once(half), x_BTD.bfloat16())
    ops.linear(x_BTD.bfloat16(), half).sum().backward()
    assert half.weight.grad is not None
    assert calls == []


class Once(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor) -> Tensor:
        return ops.linear(x_BTD, self.layer)


def test_a_gradient_of_gelu_comes_from_the_native_slope(calls: list[str]) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(5, 3, 7)).transpose(0, 1).requires_grad_()
    way = torch.randn(3, 5, 7)
    y = ops.gelu_new(x)
    (slope,) = torch.autograd.grad(y, x, way)
    assert calls == ["native_gelu"]
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    (rise,) = torch.autograd.grad(expected, wide, way.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope.double(), rise, rtol=1e-5, atol=1e-5)
    assert (y.double() - F.gelu(wide)).abs().max() > 1e-4


def test_gelu_of_other_floats_is_that_of_pytorch(calls: list[str]) -> None:
    for dtype in (torch.float64, torch.bfloat16):
        x = torch.randn(31, dtype=dtype).requires_grad_()
        assert torch.equal(ops.gelu_new(x), F.gelu(x, approximate="tanh"))
    assert calls == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rotation_is_its_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x_BNTH = torch.randn(2, 5, 3, 8, dtype=dtype).transpose(1, 2)
    angle_BTH = torch.randn(2, 5, 4).repeat(1, 1, 2)
    cos_BTH, sin_BTH = angle_BTH.cos().to(dtype), angle_BTH.sin().to(dtype)
    given = x_BNTH.clone()
    x1, x2 = x_BNTH.chunk(2, dim=-1)
    expected = x_BNTH * cos_BTH[:, None] + torch.cat((-x2, x1), -1) * sin_BTH[:, None]
    with torch.no_grad():
        found = ops.rotate(x_BNTH, cos_BTH, sin_BTH)
    assert torch.equal(ops.rotate(x_BNTH, cos_BTH, sin_BTH), found)
    places = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2}
    assert (found - expected).abs().max() < places[dtype]
    assert (found - ops.rotate(x_BNTH, cos_BTH, -sin_BTH)).abs().max() > 0.1
    assert torch.equal(x_BNTH, given)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_rms_norm_is_its_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, weight = (300 * torch.randn(4, 33)).to(dtype), torch.randn(33).to(dtype)
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    found = ops.rms_norm(x, weight, 1e-6)
    assert found.dtype is dtype
    places = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 3e-2, torch.float16: 4e-3}
    assert (found.double() - exact * weight.double()).abs().max() < places[dtype]
    assert (found.double() - exact).abs().max() > 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_steps_in_one_pass(dtype: torch.dtype, calls: list[str]) -> None:
    """RMSNorm and SwiGLU are one native step each, with a gradient and without; where somebody
    watches, SwiGLU has its steps."""
    torch.manual_seed(0)
    both = nn.Sequential(RMSNorm(40, 1e-5), GatedFeedForward(40, 24, "silu"))
    nn.init.normal_(both[0].weight)
    x_BTD, way = torch.randn(2, 9, 40), torch.randn(2, 9, 40)

    def answers(dtype: torch.dtype) -> list[Tensor]:
        model, x = copy.deepcopy(both).to(dtype), x_BTD.to(dtype, copy=True).requires_grad_()
        y = model(x)
        return [y, *torch.autograd.grad(y, [x, *model.parameters()], way.to(dtype))]

    found = answers(dtype)
    assert calls == ["native_rms_norm", "native_silu_product"]
    exact, error = answers(torch.float64), 2e-6 if dtype is torch.float32 else 5e-2
    for ours, theirs in zip(found, exact, strict=True):
        assert (ours - theirs).abs().max() < error * theirs.abs().max()
    assert (found[1] - way).abs().max() > error * way.abs().max()
    model, x = copy.deepcopy(both).to(dtype), x_BTD.to(dtype)
    with torch.no_grad():
        assert torch.equal(model(x), found[0])
    calls.clear()
    graph = record(model, x)
    assert {"rms_norm", "silu", "mul"} <= {node.op for node in graph.nodes.values()}
    with trace(model, "*") as seen, torch.no_grad():
        model(x)
    assert torch.equal(seen["1.hidden"], graph.nodes["1.hidden"].value)
    GatedFeedForward(8, 8, "gelu")(torch.randn(1, 2, 8))
    assert "native_silu_product" not in calls


@pytest.mark.parametrize("activation", [ops.gelu, ops.gelu_new])
def test_gelu_with_a_gradient_and_without(activation: Any, calls: list[str]) -> None:
    x = 3 * torch.randn(4, 50)
    assert torch.equal(activation(x.clone().requires_grad_()), activation(x))
    assert calls == ["native_gelu"] * 2
    definition = F.gelu(x.double(), approximate="none" if activation is ops.gelu else "tanh")
    assert (activation(x) - definition).abs().max() < 1e-6
    assert torch.equal(activation(x.double()), definition)
