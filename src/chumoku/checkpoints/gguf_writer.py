"""Writing GGUF version 3: metadata in its kinds, the tensor list, then aligned tensors.

Source: ggml/docs/gguf.md. Every size and offset is known before the first byte is written.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import BinaryIO

from chumoku.checkpoints.gguf_values import (
    CODES,
    KINDS,
    MAGIC,
    MAX_DIMS,
    MAX_KEY_BYTES,
    MAX_NAME_BYTES,
    TYPES,
    GGUFValue,
    alignment_of,
)
from chumoku.checkpoints.lazy import STORAGE, LazyTensor
from chumoku.checkpoints.ranges import atomic_file, write_tensor
from chumoku.errors import InputError


def write_gguf(
    path: str | os.PathLike[str],
    metadata: Mapping[str, object],
    tensors: Sequence[LazyTensor],
) -> None:
    """Write a version 3 file, tensor by tensor, that appears whole or not at all.

    metadata: GGUFValue, or plain values: bool, int (u32; beyond it i32, u64 or i64), float (f32),
    str, and lists of one of these. Keys and tensors keep their order, so `values` and tensors of a
    file in the usual form are written byte by byte the same. Raises InputError where something has
    no place in the format, ResourceError where the disk is full.
    """
    values = {key: _typed(key, value) for key, value in metadata.items()}
    alignment = alignment_of(values)
    if alignment is None:
        raise InputError("general.alignment must be u32, a power of two, and at least 8")
    header = _header_bytes(values, tensors, alignment)
    with atomic_file(path) as stream:
        stream.write(header)
        _pad(stream, len(header), alignment)
        for tensor in tensors:
            write_tensor(stream, tensor)
            _pad(stream, tensor.nbytes, alignment)


def _typed(key: str, value: object) -> GGUFValue:
    """A plain value with the kind that fits it."""
    if isinstance(value, GGUFValue):
        return value
    if isinstance(value, list | tuple):
        kinds = {_plain_kind(key, item, value) for item in value}
        if len(kinds) > 1:
            raise InputError(f"metadata {key!r}: a list must hold values of one kind")
        return GGUFValue("array", list(value), kinds.pop() if kinds else "str")
    return GGUFValue(_plain_kind(key, value, (value,)), value)


def _plain_kind(key: str, value: object, among: Sequence[object]) -> str:
    """The kind of one value; whole numbers get the first kind that holds all of `among`."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "str"
    if isinstance(value, float):
        return "f32"
    if isinstance(value, int):
        numbers = [item for item in among if isinstance(item, int)]
        for kind, low, high in (("u32", 0, 32), ("i32", -31, 31), ("u64", 0, 64), ("i64", -63, 63)):
            if min(numbers) >= -(1 << -low if low else 0) and max(numbers) < 1 << high:
                return kind
    raise InputError(f"metadata {key!r}: {value!r:.60} has no kind in GGUF")


def _header_bytes(
    values: Mapping[str, GGUFValue], tensors: Sequence[LazyTensor], alignment: int
) -> bytes:
    parts = [MAGIC, struct.pack("<IQQ", 3, len(tensors), len(values))]
    for key, value in values.items():
        parts.append(_name_bytes(key, MAX_KEY_BYTES))
        parts.append(struct.pack("<I", _kind_number(key, value.kind)))
        parts.append(_value_bytes(key, value))
    offset = 0
    seen: set[str] = set()
    for tensor in tensors:
        if tensor.name in seen:
            raise InputError(f"tensor {tensor.name!r} comes twice")
        seen.add(tensor.name)
        parts.append(_info_bytes(tensor, offset))
        offset += tensor.nbytes + -tensor.nbytes % alignment
    return b"".join(parts)


def _info_bytes(tensor: LazyTensor, offset: int) -> bytes:
    shape, number = tensor.shape, TYPES.get(tensor.storage)
    if number is None:
        raise InputError(
            f"tensor {tensor.name!r}: GGUF cannot hold {tensor.storage}",
            advice=f"it holds {', '.join(TYPES)}",
        )
    per_block = STORAGE[tensor.storage][0]
    if len(shape) > MAX_DIMS or (shape[-1] if shape else 1) % per_block:
        raise InputError(f"tensor {tensor.name!r}: {tensor.storage} cannot have the shape {shape}")
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *reversed(shape))
    return _name_bytes(tensor.name, MAX_NAME_BYTES) + sizes + struct.pack("<IQ", number, offset)


def _name_bytes(name: str, most: int) -> bytes:
    raw = _text_bytes(name, name)
    if not name or "\0" in name or len(raw) - 8 > most:
        raise InputError(f"the name {name[:80]!r} is empty, contains NUL or exceeds {most} bytes")
    return raw


def _text_bytes(key: str, text: object) -> bytes:
    if not isinstance(text, str):
        raise InputError(f"metadata {key!r}: {text!r:.60} is no string")
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"metadata {key[:80]!r} is not valid Unicode") from None
    return struct.pack("<Q", len(raw)) + raw


def _kind_number(key: str, kind: str) -> int:
    if kind not in KINDS:
        raise InputError(f"metadata {key!r}: unknown kind {kind!r}", advice=", ".join(KINDS))
    return KINDS.index(kind)


def _value_bytes(key: str, value: GGUFValue) -> bytes:
    if value.kind == "str":
        return _text_bytes(key, value.value)
    items = value.value if value.kind == "array" else [value.value]
    element = value.element if value.kind == "array" else value.kind
    number = _kind_number(key, element)
    if not isinstance(items, list | tuple):
        raise InputError(f"metadata {key!r}: an array must be a list")
    head = struct.pack("<IQ", number, len(items)) if value.kind == "array" else b""
    if element == "str":
        return head + b"".join(_text_bytes(key, item) for item in items)
    if element == "array":
        if not all(isinstance(item, GGUFValue) and item.kind == "array" for item in items):
            raise InputError(f"metadata {key!r}: a nested array must hold GGUFValue arrays")
        return head + b"".join(_value_bytes(key, item) for item in items)
    if element == "bool" and not all(isinstance(item, bool) for item in items):
        raise InputError(f"metadata {key!r}: a boolean must be True or False")
    try:
        return head + struct.pack(f"<{len(items)}{CODES[element]}", *items)
    except (struct.error, OverflowError) as error:
        raise InputError(f"metadata {key!r}: a value does not fit {element}: {error}") from error


def _pad(stream: BinaryIO, written: int, alignment: int) -> None:
    stream.write(bytes(-written % alignment))
