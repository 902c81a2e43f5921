"""Functions of single values and of rows by the native kernels, beside float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.errors import InputError
from chumoku.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not built")

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture(params=[0, 1, 2])
def level(request: pytest.FixtureRequest) -> int:
    if request.param not in native.levels():
        pytest.skip(f"this processor or build lacks level {request.param}")
    return int(request.param)


def gelu_and_slope(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    wide = x.double().requires_grad_()
    y = F.gelu(wide, approximate=approximate)
    (slope,) = torch.autograd.grad(y.sum(), wide)
    return y.detach(), slope


@pytest.mark.parametrize(("approximate", "other"), [("tanh", "none"), ("none", "tanh")])
def test_gelu_and_its_slope(approximate: str, other: str, level: int) -> None:
    x = torch.cat([torch.linspace(-16, 16, 40_001), torch.tensor([0.0, -0.0, 1e-30, -90.0, 3e4])])
    found = native.native_gelu(x, approximate, level=level, threads=1)
    for ours, theirs in zip(found, gelu_and_slope(x, approximate), strict=True):
        assert ((ours - theirs).abs() / theirs.abs().clamp_min(1.0)).max() < 1e-6
    wrong = gelu_and_slope(x, other)
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(found, wrong, strict=True))
    shared = native.native_gelu(x, approximate, level=level, threads=2)
    assert all(torch.equal(a, b) for a, b in zip(found, shared, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_silu_product(dtype: torch.dtype, level: int) -> None:
    ends = torch.tensor([0.0, -0.0, 1e-30, -90.0, -700.0, 3e4])
    gate = torch.cat([torch.linspace(-40, 40, 40_001), ends]).to(dtype)
    up = torch.randn(gate.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ours = native.native_silu_product(gate, up, level=level, threads=1)
    assert ours.dtype is dtype
    if dtype is torch.float32:
        right = F.silu(gate.double()) * up
        assert ((ours - right).abs() / right.abs().clamp_min(1.0)).max() < 1e-6
    else:  # rounded where the two steps of the definition are
        right = F.silu(gate) * up
        assert (ours != right).double().mean() < 1e-3
        torch.testing.assert_close(ours, right, rtol=1e-2, atol=1e-6)
    assert (ours - torch.sigmoid(gate) * up).abs().max() > 1e-2
    assert torch.equal(native.native_silu_product(gate, up, level=level, threads=3), ours)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1, 576), (3, 71, 45), (2, 5, 7), (64, 33)])
def test_rms_norm(dtype: torch.dtype, shape: tuple[int, ...], level: int) -> None:
    rng = torch.Generator().manual_seed(sum(shape))
    x = (100 * torch.randn(shape, generator=rng)).to(dtype)
    weight, eps = torch.randn(shape[-1], generator=rng).to(dtype), 30.0
    ours = native.native_rms_norm(x, weight, eps, level=level, threads=1)

    def definition(eps: float) -> Tensor:
        wide = x.double()
        y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
        return (y if dtype is torch.float32 else y.to(dtype).double()) * weight

    error = 1e-6 if dtype is torch.float32 else 2**-8
    torch.testing.assert_close(ours, definition(eps).to(dtype), rtol=error, atol=error)
    assert (ours - definition(3000.0)).abs().max() > 10 * error
    assert torch.equal(native.native_rms_norm(x, weight, eps, level=level, threads=3), ours)


def test_what_is_no_number() -> None:
    nan, inf = float("nan"), float("inf")
    for approximate in ("none", "tanh"):
        y, slope = native.native_gelu(torch.tensor([nan, 1.0]), approximate)
        assert y.isnan().tolist() == slope.isnan().tolist() == [True, False]
    for dtype in DTYPES:
        x, ones = torch.tensor([nan, inf, 1.0], dtype=dtype), torch.ones(3, dtype=dtype)
        found = native.native_silu_product(x, ones)
        assert found.isnan().tolist() == [True, False, False]
        assert found[1] == inf
        assert native.native_rms_norm(x[:, None], ones[:1], 1e-6).isnan().flatten().tolist() == (
            F.rms_norm(x[:, None].float(), (1,), eps=1e-6).isnan().flatten().tolist()
        )


def test_wrong_values() -> None:
    x = torch.zeros(3)
    with pytest.raises(InputError, match="float32"):
        native.native_gelu(x.double(), "tanh")
    with pytest.raises(InputError, match="'none' or 'tanh', not 'sigmoid'"):
        native.native_gelu(x, "sigmoid")
    with pytest.raises(InputError, match="level 9"):
        native.native_gelu(x, "tanh", level=9)
    for other in (x.double(), x.half(), x.bfloat16()):
        with pytest.raises(InputError, match="float32 or bfloat16"):
            native.native_silu_product(x, other)
        with pytest.raises(InputError, match="float32 or bfloat16"):
            native.native_rms_norm(other, x, 1e-6)
    with pytest.raises(InputError, match="one shape"):
        native.native_silu_product(x, torch.zeros(4))
    with pytest.raises(InputError, match="does not fit"):
        native.native_rms_norm(x, torch.zeros(4), 1e-6)
    empty = torch.zeros(0, 4)
    assert native.native_rms_norm(empty, torch.zeros(4), 1e-6).shape == (0, 4)
    for one in (*native.native_gelu(empty, "none"), native.native_silu_product(empty, empty)):
        assert one.shape == (0, 4)
