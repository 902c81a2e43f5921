"""The tanh GELU and its slope by the native kernel, beside float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.errors import InputError
from chumoku.kernels import native

pytestmark = pytest.mark.skipif(not native.available(), reason="the native library is not built")


def reference(x: Tensor, approximate: str) -> tuple[Tensor, Tensor]:
    wide = x.double().requires_grad_()
    y = F.gelu(wide, approximate=approximate)
    (slope,) = torch.autograd.grad(y.sum(), wide)
    return y.detach(), slope


@pytest.mark.parametrize("level", [0, 1, 2])
def test_value_and_slope(level: int) -> None:
    if level not in native.levels():
        pytest.skip(f"this processor or build lacks level {level}")
    x = torch.cat([torch.linspace(-16, 16, 40_001), torch.tensor([0.0, -0.0, 1e-30, -90.0, 3e4])])
    found = native.native_gelu_tanh(x, level=level, threads=1)
    for ours, theirs in zip(found, reference(x, "tanh"), strict=True):
        assert ((ours - theirs).abs() / theirs.abs().clamp_min(1.0)).max() < 1e-6
    exact = reference(x, "none")
    assert all((a - b).abs().max() > 1e-4 for a, b in zip(found, exact, strict=True))
    shared = native.native_gelu_tanh(x, level=level, threads=2)
    assert all(torch.equal(a, b) for a, b in zip(found, shared, strict=True))


def test_what_is_no_number() -> None:
    y, slope = native.native_gelu_tanh(torch.tensor([float("nan"), 1.0]))
    assert y.isnan().tolist() == slope.isnan().tolist() == [True, False]


def test_wrong_values() -> None:
    with pytest.raises(InputError, match="float32"):
        native.native_gelu_tanh(torch.zeros(3, dtype=torch.float64))
    with pytest.raises(InputError, match="level 9"):
        native.native_gelu_tanh(torch.zeros(3), level=9)
    empty, slope = native.native_gelu_tanh(torch.zeros(0, 4))
    assert empty.shape == slope.shape == (0, 4)
