"""RMSNorm: PyTorch's function, the written-out form for half precision, and the formula."""

from __future__ import annotations

import pytest
import torch
from parity.harness import difference

from chumoku.layers.ops import rms_norm


@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)],
)
def test_every_dtype_is_the_formula(dtype: torch.dtype, limit: float) -> None:
    draw = torch.Generator().manual_seed(5)
    x = (torch.randn(2, 3, 40, generator=draw) * 3).to(dtype)
    weight = (1 + torch.randn(40, generator=draw) / 10).to(dtype)
    y = rms_norm(x, weight, 0.5)
    wide, scale = x.double(), weight.double()
    mean = (wide * wide).sum(-1, keepdim=True) / 40
    assert y.dtype == dtype
    assert difference(y, scale * wide / (mean + 0.5).sqrt()) < limit
    assert difference(y, scale * wide / mean.sqrt()) > limit  # without eps
    assert difference(y, wide / (mean + 0.5).sqrt()) > limit  # without the weight


def test_a_weight_of_another_dtype() -> None:
    """Half-precision weights on a float32 stream: the written-out form, no error, no loss."""
    draw = torch.Generator().manual_seed(6)
    x, weight = torch.randn(4, 24, generator=draw), torch.randn(24, generator=draw).bfloat16()
    assert difference(rms_norm(x, weight, 1e-5), rms_norm(x, weight.float(), 1e-5)) < 1e-6
    assert rms_norm(x, weight, 1e-5).dtype == torch.float32
