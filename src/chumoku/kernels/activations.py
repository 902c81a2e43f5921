"""GELU for training on a CPU: the slope comes with the value, backward is one product.

Definition: torch.nn.functional.gelu, whose backward computes erf or tanh again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chumoku.kernels.native import native_gelu, serves


def trains_natively(x: Tensor) -> bool:
    """True where a gradient is wanted of float32 values on the CPU, outside torch.compile."""
    wanted = x.requires_grad and torch.is_grad_enabled()
    return wanted and x.dtype is torch.float32 and serves(x)


def training_gelu(x: Tensor, approximate: str) -> Tensor:
    """GELU(x), differentiable once; keeps the slope in place of x."""
    y: Tensor = _Gelu.apply(x, approximate)  # type: ignore[no-untyped-call]
    return y


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, approximate: str) -> Tensor:
        y, slope = native_gelu(x, approximate)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        slope: Tensor
        (slope,) = ctx.saved_tensors
        return gradient * slope, None
