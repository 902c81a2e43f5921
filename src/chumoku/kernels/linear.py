"""The product of activations with weights that stay in their stored blocks.

`block_linear_reference` is the definition; `block_linear` gives the same values from the native
kernel where that serves (float32 on the CPU), and a gradient to x and bias everywhere.
Letters: D values a row, O outputs, V rows of an embedding.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function, has_torch_function

from chumoku.kernels import native
from chumoku.kernels.blocks import dequantize

MANY: Final = 32
"""Rows of x from which on a product by tiles beats the kernel that decodes into its sums."""

PIECE: Final = 1 << 20
"""Values dequantised at a time, so that they are still in the cache when they are used."""


def block_linear_reference(
    x: Tensor, raw: Tensor, storage: str, bias: Tensor | None = None
) -> Tensor:
    """x [..., D] times the values of stored rows [O, row_bytes], plus bias [O]: [..., O]."""
    return functional.linear(x, dequantize(raw, storage, x.dtype), bias)


def block_linear(x: Tensor, raw: Tensor, storage: str, bias: Tensor | None = None) -> Tensor:
    """As block_linear_reference: x [..., D], raw uint8 [O, row_bytes], bias [O] -> [..., O].

    One call for whoever records a forward: a TorchFunctionMode sees `block_linear`. On the CPU in
    float32 a row's result does not depend on how many rows are computed together, as long as they
    are fewer than MANY, or, where the native product serves, as long as they are not.
    InputError: shapes, dtypes or devices that do not fit.
    """
    arguments = (x, raw) if bias is None else (x, raw, bias)
    if has_torch_function(arguments):
        return handle_torch_function(block_linear, arguments, x, raw, storage, bias)
    if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
        return _BlockLinear.apply(x, raw, storage, bias)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(x, raw, storage, bias)


def block_embedding(
    ids: Tensor, raw: Tensor, storage: str, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Values of the stored rows [V, row_bytes] that ids [...] name: dtype [..., D].

    Only the rows asked for are dequantised. A TorchFunctionMode sees one call.
    """
    if has_torch_function((ids, raw)):
        return handle_torch_function(block_embedding, (ids, raw), ids, raw, storage, dtype)
    return dequantize_fast(functional.embedding(ids, raw), storage, dtype)


def dequantize_fast(raw: Tensor, storage: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """As blocks.dequantize, bit for bit, by the native kernel where it serves."""
    if _native_serves(raw, storage):
        return native.native_dequantize(raw, storage).to(dtype)
    return dequantize(raw, storage, dtype)


def _native_serves(raw: Tensor, storage: str) -> bool:
    return storage in native.STORAGES and native.serves(raw)


def _forward(x: Tensor, raw: Tensor, storage: str, bias: Tensor | None) -> Tensor:
    if not x.is_cpu or not _native_serves(raw, storage):
        return functional.linear(x, dequantize_fast(raw, storage, x.dtype), bias)
    if x.dtype is torch.float32 and x.numel() < MANY * x.shape[-1]:
        return native.native_block_linear(x, raw, storage, bias)
    if x.dtype is torch.float32 and x.shape[-1] and native.tiles_are_fast():
        return native.native_block_product(x, raw, storage, bias)
    return _by_pieces(x, raw, storage, bias)


def _by_pieces(x: Tensor, raw: Tensor, storage: str, bias: Tensor | None) -> Tensor:
    """As block_linear_reference, but never more than PIECE values are dequantised at a time."""
    rows = max(PIECE // x.shape[-1], 1) if x.shape[-1] else raw.shape[0]
    if raw.shape[0] <= rows:
        return functional.linear(x, dequantize_fast(raw, storage, x.dtype), bias)
    y = x.new_empty(*x.shape[:-1], raw.shape[0])
    for start in range(0, raw.shape[0], rows):
        part = slice(start, start + rows)
        weight = dequantize_fast(raw[part], storage, x.dtype)
        y[..., part] = functional.linear(x, weight, None if bias is None else bias[part])
    return y


class _BlockLinear(torch.autograd.Function):
    """Keeps the blocks for the way back, not the dequantised matrix."""

    @staticmethod
    def forward(x: Tensor, raw: Tensor, storage: str, bias: Tensor | None) -> Tensor:
        return _forward(x, raw, storage, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, raw, storage, _ = inputs
        ctx.save_for_backward(raw)
        ctx.storage = storage

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        (grad,) = gradients
        (raw,) = ctx.saved_tensors
        grad_x = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = grad @ dequantize_fast(raw, ctx.storage, grad.dtype)
        if ctx.needs_input_grad[3]:
            grad_bias = grad.reshape(-1, grad.shape[-1]).sum(dim=0)
        return grad_x, None, None, grad_bias
