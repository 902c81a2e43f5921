"""Several steps in one pass over memory, with gradients, on a CPU: GELU, SwiGLU, RMSNorm.

Definitions: torch.nn.functional.gelu, silu(gate) * up, and layers.ops.rms_norm. The values are the
same whether a gradient is wanted or not; a gradient can be taken once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from chumoku.kernels.native import native_gelu, native_rms_norm, native_silu_product, serves


def in_one_pass(*tensors: Tensor) -> bool:
    """True for float32 or bfloat16 tensors of one dtype, where the native kernels serve."""
    dtype = tensors[0].dtype
    floats = dtype in (torch.float32, torch.bfloat16)
    return floats and all(x.dtype is dtype and serves(x) for x in tensors)


def _learns(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def gelu(x: Tensor, approximate: str) -> Tensor:
    """F.gelu of float32 values, to 1e-6; for a gradient its slope is kept in place of x."""
    if _learns(x):
        return _Gelu.apply(x, approximate)  # type: ignore[no-any-return, no-untyped-call]
    return native_gelu(x, approximate, slope=False)[0]


def silu_product(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up."""
    if _learns(gate, up):
        return _SiluProduct.apply(gate, up)  # type: ignore[no-any-return, no-untyped-call]
    return native_silu_product(gate, up)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis."""
    if _learns(x, weight):
        return _RmsNorm.apply(x, weight, eps)  # type: ignore[no-any-return, no-untyped-call]
    return native_rms_norm(x, weight, eps)


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


class _SiluProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return native_silu_product(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        to_gate: Tensor = torch.ops.aten.silu_backward(gradient * up, gate)
        return to_gate, gradient * functional.silu(gate)


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return native_rms_norm(x, weight, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        """With r = 1 / sqrt(mean(x^2) + eps), n = r x and g = gradient * weight:
        r (g - n mean(g n)) for x, the sum of gradient * n for the weight; in float32."""
        x, weight = ctx.saved_tensors
        dtype, x, gradient = x.dtype, x.float(), gradient.float()
        scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + ctx.eps)
        normed, inner = x * scale, gradient * weight
        to_x = scale * (inner - normed * (inner * normed).mean(dim=-1, keepdim=True))
        to_weight = (gradient * normed).flatten(0, -2).sum(dim=0)
        return to_x.to(dtype), to_weight.to(dtype), None
