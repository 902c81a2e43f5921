"""The fast ways of ops beside their definitions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.kernels import activations, native
from chumoku.layers import ops
from chumoku.layers.recorder import record

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not built")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the native kernels in the order of their calls."""
    seen: list[str] = []
    for place, name in ((native, "native_block_linear"), (activations, "native_gelu_tanh")):
        kernel = getattr(place, name)

        def called(*args: Any, name: str = name, kernel: Any = kernel, **named: Any) -> Any:
            seen.append(name)
            return kernel(*args, **named)

        monkeypatch.setattr(place, name, called)
    return seen


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("width", "size"), [(7, 33), (64, 501)])
def test_one_token_is_unembedded_as_by_the_layer(
    width: int, size: int, bias: bool, calls: list[str]
) -> None:
    torch.manual_seed(0)
    layer, x_BTD = nn.Linear(width, size, bias=bias), torch.randn(1, 1, width)
    with torch.no_grad():
        torch.testing.assert_close(ops.unembed(x_BTD, layer), layer(x_BTD), rtol=1e-5, atol=1e-6)
        assert calls == ["native_block_linear"]
        assert not torch.allclose(ops.unembed(2 * x_BTD, layer), layer(x_BTD))


def test_what_is_left_to_the_layer(calls: list[str]) -> None:
    layer, x_BTD = nn.Linear(6, 9), torch.randn(1, 1, 6)
    hooked = nn.Linear(6, 9)
    hooked.register_forward_hook(lambda module, given, y: y + 1)

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    with torch.no_grad():
        graph = record(Unembedding(layer), x_BTD)
        assert [node.op for node in graph.nodes.values() if node.op == "linear"] == ["linear"]
        calls.clear()
        for one in (hooked, Doubled(6, 9)):
            assert torch.equal(ops.unembed(x_BTD, one), one(x_BTD))
        for x in (torch.randn(1, 2, 6), x_BTD.bfloat16(), x_BTD.double()):
            assert torch.equal(ops.unembed(x, layer.to(x.dtype)), layer(x))
    layer.float()
    ops.unembed(x_BTD, layer).sum().backward()
    assert layer.weight.grad is not None
    assert calls == []


class Unembedding(nn.Module):
    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor) -> Tensor:
        return ops.unembed(x_BTD, self.layer)


def test_a_gradient_of_gelu_comes_from_the_native_slope(calls: list[str]) -> None:
    torch.manual_seed(0)
    x = (3 * torch.randn(5, 3, 7)).transpose(0, 1).requires_grad_()
    way = torch.randn(3, 5, 7)
    y = ops.gelu_new(x)
    (slope,) = torch.autograd.grad(y, x, way)
    assert calls == ["native_gelu_tanh"]
    wide = x.detach().double().requires_grad_()
    expected = F.gelu(wide, approximate="tanh")
    (rise,) = torch.autograd.grad(expected, wide, way.double())
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(slope.double(), rise, rtol=1e-5, atol=1e-5)
    assert (y.double() - F.gelu(wide)).abs().max() > 1e-4


def test_gelu_without_such_a_gradient_is_that_of_pytorch(calls: list[str]) -> None:
    x = torch.randn(31)
    assert torch.equal(ops.gelu_new(x), F.gelu(x, approximate="tanh"))
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
