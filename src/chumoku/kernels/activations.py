"""GELU for training on a CPU: the slope comes with the value, and backward is one product.

Definition: torch.nn.functional.gelu, whose backward computes the exponential and erf again.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from chumoku.kernels.native import available, native_gelu


def gelu_is_native(x: Tensor) -> bool:
    """True where a gradient is wanted of float32 values on the CPU, outside torch.compile."""
    return (
        x.requires_grad
        and x.dtype is torch.float32
        and x.is_cpu
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and available()
    )


def training_gelu(x: Tensor, *, tanh: bool = False) -> Tensor:
    """GELU(x), differentiable once; it keeps the slope in place of x."""
    y: Tensor = _Gelu.apply(x, tanh)  # type: ignore[no-untyped-call]
    return y


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, tanh: bool) -> Tensor:
        y, slope = native_gelu(x, tanh=tanh)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return gradient * slope, None
