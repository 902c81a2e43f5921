"""Storage formats of weights: what the bytes of a block mean, written in PyTorch.

These are the slow definitions; kernels/native.cpp must agree with `dequantize` bit for bit.
Formats: GGUF v3 (ggml's block layouts), little-endian. A row (the last axis of a weight) is a
whole number of blocks; a block holds 32 or 256 values that share scales.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from chumoku.errors import InputError

STORAGE: Final[dict[str, tuple[int, int]]] = {
    "F64": (1, 8),
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "I64": (1, 8),
    "I32": (1, 4),
    "I16": (1, 2),
    "I8": (1, 1),
    "U8": (1, 1),
    "BOOL": (1, 1),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}
"""Storage -> (values and bytes per block); names are GGUF's, which cover safetensors' too."""


def row_bytes(storage: str, values: int) -> int:
    """Bytes of one row of `values` values. InputError: no whole number of blocks."""
    per_block, block_bytes = _sizes(storage)
    if values % per_block:
        raise InputError(
            f"a row of {values} values cannot be stored as {storage}",
            advice=f"{storage} packs {per_block} values into a block; choose F16, BF16 or F32",
        )
    return values // per_block * block_bytes


def row_values(storage: str, nbytes: int) -> int:
    """Values in one row of `nbytes` bytes. InputError: no whole number of blocks."""
    per_block, block_bytes = _sizes(storage)
    if nbytes % block_bytes:
        raise InputError(
            f"a row of {nbytes} bytes is no whole number of {storage} blocks ({block_bytes} bytes)"
        )
    return nbytes // block_bytes * per_block


def dequantize(raw: Tensor, storage: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of stored rows: uint8 [..., row_bytes] -> dtype [..., row], on the device of `raw`.

    Blocks are computed in float32, as their definition is, and cast to `dtype` afterwards; float64
    stays exact. InputError: not uint8, a broken row, or a storage that holds no floats.
    """
    per_block, block_bytes = _sizes(storage)
    values = row_values(storage, _bytes_only(raw).shape[-1])
    if storage in _PLAIN:
        return _reinterpret(raw, _PLAIN[storage]).to(dtype)
    if storage not in _DECODERS:
        raise InputError(f"storage {storage} does not hold floating-point values")
    blocks = _fold(raw, values // per_block, block_bytes)
    return _DECODERS[storage](blocks).flatten(-2).to(dtype)


def quantize(values: Tensor, storage: str) -> Tensor:
    """Stored rows of float values [..., row] -> uint8 [..., row_bytes], on the device of `values`.

    F64, F32, F16, BF16 round to nearest even. Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0 follow ggml's
    reference quantisers. InputError: a storage that cannot be written, a row that is no whole
    number of blocks, and, for blocks, values that are not finite or too large for a float16 scale.
    """
    per_block, _ = _sizes(storage)
    width = values.shape[-1]
    nbytes = row_bytes(storage, width)
    if storage == "BF16":
        return _bfloat16_bytes(values)
    if storage in _PLAIN:
        return _bytes(values.to(_PLAIN[storage]))
    if storage not in _ENCODERS:
        writable = ", ".join([*_PLAIN, *_ENCODERS])
        raise InputError(f"cannot write {storage}", advice=f"writable storages: {writable}")
    # On a CPU in pieces that stay in its cache; on a GPU at once.
    rows = max(_PIECE // max(width, 1), 1) if values.is_cpu else max(values.numel(), 1)
    pieces = [
        _encoded(_fold(part, width // per_block, per_block), storage)
        for part in torch.split(values.reshape(values.shape[:-1].numel(), width), rows)
    ]
    return torch.cat(pieces).view(*values.shape[:-1], nbytes)


_PIECE: Final = 1 << 15
"""Values quantised at a time on a CPU. More would also wake PyTorch's threads for every step."""


def _encoded(blocks: Tensor, storage: str) -> Tensor:
    """Float blocks [R, n, values per block] -> stored rows uint8 [R, row_bytes]."""
    if not bool(torch.isfinite(blocks).all()):
        raise InputError(f"infinite or NaN values cannot be stored as {storage}")
    return _ENCODERS[storage](blocks.to(torch.float32)).flatten(-2)


def _sizes(storage: str) -> tuple[int, int]:
    if storage not in STORAGE:
        raise InputError(f"unknown storage {storage!r}", advice=f"known: {', '.join(STORAGE)}")
    return STORAGE[storage]


def _bytes_only(raw: Tensor) -> Tensor:
    if raw.dtype != torch.uint8 or raw.ndim == 0:
        raise InputError(f"stored rows must be uint8 [..., row_bytes], not {raw.dtype}")
    return raw


def _reinterpret(raw: Tensor, dtype: torch.dtype) -> Tensor:
    """The same bytes read as `dtype`, whatever the alignment of `raw` within its storage."""
    raw = raw.contiguous()
    # A compiler cannot trace the question where a tensor starts.
    if torch.compiler.is_compiling() or raw.storage_offset() % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype)


def _bytes(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8)


def _cut(blocks: Tensor, *sizes: int) -> tuple[Tensor, ...]:
    """Pieces of the last axis, of these sizes."""
    return torch.split(blocks, list(sizes), dim=-1)


def _fold(values: Tensor, rows: int, columns: int) -> Tensor:
    """[..., rows * columns] -> [..., rows, columns]"""
    return values.reshape(*values.shape[:-1], rows, columns)


def _half(raw: Tensor) -> Tensor:
    """uint8 [..., 2] -> float32 [..., 1]"""
    return _reinterpret(raw, torch.float16).to(torch.float32)


def _fields(raw: Tensor, bits: int, count: int | None = None) -> Tensor:
    """Bit fields of bytes, lowest first: uint8 [..., n] -> uint8 [..., count, n]."""
    shifts = torch.arange(0, 8, bits, dtype=torch.uint8, device=raw.device)[:count]
    return (raw.unsqueeze(-2) >> shifts.unsqueeze(-1)) & ((1 << bits) - 1)


def _bits(raw: Tensor) -> Tensor:
    """Single bits in order, byte by byte: uint8 [..., n] -> uint8 [..., 8 n]."""
    shifts = torch.arange(8, dtype=torch.uint8, device=raw.device)
    return ((raw.unsqueeze(-1) >> shifts) & 1).flatten(-2)


# Decoders take blocks uint8 [..., n, block_bytes] and give float32 [..., n, values per block].


def _decode_q4_0(blocks: Tensor) -> Tensor:
    d, q = _cut(blocks, 2, 16)
    return _half(d) * (_fields(q, 4).flatten(-2).to(torch.float32) - 8)


def _decode_q4_1(blocks: Tensor) -> Tensor:
    d, m, q = _cut(blocks, 2, 2, 16)
    return _half(d) * _fields(q, 4).flatten(-2).to(torch.float32) + _half(m)


def _decode_q5_0(blocks: Tensor) -> Tensor:
    d, fifth, low = _cut(blocks, 2, 4, 16)
    q = _fields(low, 4).flatten(-2) | (_bits(fifth) << 4)
    return _half(d) * (q.to(torch.float32) - 16)


def _decode_q5_1(blocks: Tensor) -> Tensor:
    d, m, fifth, low = _cut(blocks, 2, 2, 4, 16)
    q = _fields(low, 4).flatten(-2) | (_bits(fifth) << 4)
    return _half(d) * q.to(torch.float32) + _half(m)


def _decode_q8_0(blocks: Tensor) -> Tensor:
    d, q = _cut(blocks, 2, 32)
    return _half(d) * q.contiguous().view(torch.int8).to(torch.float32)


def _decode_q2_k(blocks: Tensor) -> Tensor:
    packed, q, d, dmin = _cut(blocks, 16, 64, 2, 2)
    nibbles = _fields(packed, 4).to(torch.float32)
    scale, minimum = _half(d) * nibbles[..., 0, :], _half(dmin) * nibbles[..., 1, :]
    # 2 groups of 32 bytes; each byte holds 4 values that are 32 places apart.
    values = _fold(_fields(_fold(q, 2, 32), 2).flatten(-3), 16, 16)
    return (scale.unsqueeze(-1) * values.to(torch.float32) - minimum.unsqueeze(-1)).flatten(-2)


def _decode_q3_k(blocks: Tensor) -> Tensor:
    mask, q, packed, d = _cut(blocks, 32, 64, 12, 2)
    low = _fields(packed[..., :8], 4).flatten(-2)
    high = _fields(packed[..., 8:], 2).flatten(-2)
    scale = _half(d) * ((low | (high << 4)).to(torch.float32) - 32)
    values = _fields(_fold(q, 2, 32), 2).flatten(-3).to(torch.float32)
    # A clear bit in the mask means minus four.
    values = values - (4 - 4 * _fields(mask, 1).flatten(-2).to(torch.float32))
    return (scale.unsqueeze(-1) * _fold(values, 16, 16)).flatten(-2)


def _sub_scales(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 6-bit scales and minima of Q4_K, Q5_K: uint8 [..., 12] -> 2 x float32 [..., 8]"""
    first, second, mixed = _cut(packed, 4, 4, 4)
    scale = torch.cat([first & 63, (mixed & 15) | ((first >> 6) << 4)], dim=-1)
    minimum = torch.cat([second & 63, (mixed >> 4) | ((second >> 6) << 4)], dim=-1)
    return scale.to(torch.float32), minimum.to(torch.float32)


def _decode_q4_k(blocks: Tensor) -> Tensor:
    d, dmin, packed, low = _cut(blocks, 2, 2, 12, 128)
    q = _fields(_fold(low, 4, 32), 4).flatten(-3, -2)
    return _with_minima(d, dmin, packed, q)


def _decode_q5_k(blocks: Tensor) -> Tensor:
    d, dmin, packed, fifth, low = _cut(blocks, 2, 2, 12, 32, 128)
    q = _fields(_fold(low, 4, 32), 4).flatten(-3, -2) | (_fields(fifth, 1) << 4)
    return _with_minima(d, dmin, packed, q)


def _with_minima(d: Tensor, dmin: Tensor, packed: Tensor, q: Tensor) -> Tensor:
    """q: uint8 [..., 8, 32], eight sub-blocks"""
    scale, minimum = _sub_scales(packed)
    scale, minimum = _half(d) * scale, _half(dmin) * minimum
    return (scale.unsqueeze(-1) * q.to(torch.float32) - minimum.unsqueeze(-1)).flatten(-2)


def _decode_q6_k(blocks: Tensor) -> Tensor:
    low, high, scale, d = _cut(blocks, 128, 64, 16, 2)
    # Each half of 128 values: 64 bytes of nibbles, 32 bytes of upper bit pairs.
    low = _fields(_fold(low, 2, 64), 4).flatten(-3)
    high = _fields(_fold(high, 2, 32), 2).flatten(-3)
    q = _fold((low | (high << 4)).to(torch.float32) - 32, 16, 16)
    scale = _half(d) * scale.contiguous().view(torch.int8).to(torch.float32)
    return (scale.unsqueeze(-1) * q).flatten(-2)


# Encoders take float32 [..., n, 32] and give uint8 [..., n, block_bytes].


def _encode_q4_0(blocks: Tensor) -> Tensor:
    d, q = _symmetric(blocks, 8)
    return torch.cat([_scale_bytes(d), _pack_nibbles(q)], dim=-1)


def _encode_q5_0(blocks: Tensor) -> Tensor:
    d, q = _symmetric(blocks, 16)
    return torch.cat([_scale_bytes(d), _pack_bits(q >> 4), _pack_nibbles(q & 15)], dim=-1)


def _encode_q4_1(blocks: Tensor) -> Tensor:
    d, m, q = _affine(blocks, 15)
    return torch.cat([_scale_bytes(d), _scale_bytes(m), _pack_nibbles(q)], dim=-1)


def _encode_q5_1(blocks: Tensor) -> Tensor:
    d, m, q = _affine(blocks, 31)
    parts = [_scale_bytes(d), _scale_bytes(m), _pack_bits(q >> 4), _pack_nibbles(q & 15)]
    return torch.cat(parts, dim=-1)


def _encode_q8_0(blocks: Tensor) -> Tensor:
    largest = blocks.abs().amax(dim=-1, keepdim=True)
    d = largest / torch.full_like(largest, 127)
    scaled = blocks * _reciprocal(d)
    # Half away from zero, not to even: the format's reference rounds with C's roundf.
    size = scaled.abs()
    whole = size.floor()
    q = scaled.sign() * (whole + (2 * (size - whole)).floor())
    return torch.cat([_scale_bytes(d), q.to(torch.int8).view(torch.uint8)], dim=-1)


def _symmetric(blocks: Tensor, half_range: int) -> tuple[Tensor, Tensor]:
    """Scale that makes the value of largest magnitude -half_range; codes 0..2 half_range - 1."""
    size = blocks.abs()
    places = torch.arange(blocks.shape[-1], device=blocks.device).expand(blocks.shape)
    # The first of equal magnitudes decides the sign; argmax does not promise which it takes.
    is_largest = size == size.amax(dim=-1, keepdim=True)
    first = places.masked_fill(~is_largest, blocks.shape[-1]).amin(dim=-1, keepdim=True)
    extreme = blocks.gather(-1, first)
    d = extreme / torch.full_like(extreme, -half_range)
    q = (blocks * _reciprocal(d) + (half_range + 0.5)).trunc().clamp(0, 2 * half_range - 1)
    return d, q.to(torch.uint8)


def _affine(blocks: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
    """Scale and minimum such that the block spans the codes 0..steps."""
    m = blocks.amin(dim=-1, keepdim=True)
    span = blocks.amax(dim=-1, keepdim=True) - m
    d = span / torch.full_like(span, steps)
    q = ((blocks - m) * _reciprocal(d) + 0.5).trunc().clamp(0, steps)
    return d, m, q.to(torch.uint8)


def _reciprocal(d: Tensor) -> Tensor:
    """1/d, and 0 where that overflows: such a scale is 0 in float16 anyway."""
    inverse = 1 / d
    return torch.where(inverse.isfinite(), inverse, torch.zeros_like(inverse))


def _scale_bytes(scale: Tensor) -> Tensor:
    half = scale.to(torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise InputError("values too large for a float16 block scale", advice="store them as F32")
    return _bytes(half)


def _pack_nibbles(q: Tensor) -> Tensor:
    """uint8 [..., 32] below 16 -> uint8 [..., 16]: byte j holds values j and j + 16."""
    low, high = _cut(q, 16, 16)
    return low | (high << 4)


def _pack_bits(bits: Tensor) -> Tensor:
    """uint8 [..., 32] of 0 and 1 -> uint8 [..., 4], lowest bit first."""
    places = torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (_fold(bits, 4, 8) << places).sum(dim=-1, dtype=torch.uint8)


def _bfloat16_bytes(values: Tensor) -> Tensor:
    """Rounds to nearest even; a NaN keeps its sign and payload, made quiet, as ggml does."""
    bits = values.to(torch.float32).contiguous().view(torch.int32)
    rounded = (bits.to(torch.int64) + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits.to(torch.int64) >> 16) | 64
    return _bytes(torch.where(values.isnan(), quiet, rounded).to(torch.int16))


_PLAIN: Final[dict[str, torch.dtype]] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_DECODERS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "Q4_0": _decode_q4_0,
    "Q4_1": _decode_q4_1,
    "Q5_0": _decode_q5_0,
    "Q5_1": _decode_q5_1,
    "Q8_0": _decode_q8_0,
    "Q2_K": _decode_q2_k,
    "Q3_K": _decode_q3_k,
    "Q4_K": _decode_q4_k,
    "Q5_K": _decode_q5_k,
    "Q6_K": _decode_q6_k,
}
_ENCODERS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "Q4_0": _encode_q4_0,
    "Q4_1": _encode_q4_1,
    "Q5_0": _encode_q5_0,
    "Q5_1": _encode_q5_1,
    "Q8_0": _encode_q8_0,
}

READABLE: Final = (*_PLAIN, *_DECODERS)
"""Storages that `dequantize` takes."""

WRITABLE: Final = (*_PLAIN, *_ENCODERS)
"""Storages that `quantize` takes."""
