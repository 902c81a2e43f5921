"""The GGUF format, versions 2 and 3, little-endian: typed metadata, tensor list, aligned tensors.

Source: ggml/docs/gguf.md. Shapes are stored innermost size first; here they are row-major. Every
count and length is held against what the file still has before anything is made of it, so that no
header, whatever it claims, costs more than a small multiple of its own bytes.
"""

from __future__ import annotations

import math
import os
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

import numpy as np

from chumoku.checkpoints.gguf_values import (
    CODES,
    KINDS,
    MAGIC,
    MAX_DEPTH,
    MAX_DIMS,
    MAX_ELEMENTS,
    MAX_HEADER,
    MAX_KEY_BYTES,
    MAX_KEYS,
    MAX_NAME_BYTES,
    TYPES,
    UNSUPPORTED,
    GGUFValue,
    alignment_of,
)
from chumoku.checkpoints.gguf_writer import write_gguf
from chumoku.checkpoints.lazy import STORAGE, LazyTensor
from chumoku.checkpoints.ranges import MAX_TENSORS, StableFile, fits_in_memory, stable_file
from chumoku.errors import CheckpointError

__all__ = ["GGUFFile", "GGUFValue", "read_gguf", "write_gguf"]

_STORAGES: Final = {number: storage for storage, number in TYPES.items()}


@dataclass(frozen=True)
class GGUFFile:
    """metadata: plain values, arrays as lists. values: the same with their kinds, for writing.

    A file in parts is read as one; the first part's metadata counts, without its split.* keys.
    """

    version: int
    metadata: dict[str, object]
    tensors: dict[str, LazyTensor]
    alignment: int
    values: dict[str, GGUFValue]


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a file, or all parts of one (-00001-of-0000N.gguf); tensors are read when asked for.

    Raises CheckpointError, naming the byte, where the file is damaged, big-endian, of version 1, or
    holds a tensor type that chumoku does not have; also where a part is missing.
    """
    first = _read_one(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    return _join(Path(path), count)


# ---- reading ----


class _Cursor:
    """A position in a header that is read in growing pieces; refuses what the file cannot hold."""

    def __init__(self, file: StableFile) -> None:
        self.file, self.buffer, self.position, self.elements = file, b"", 0, 0

    def fail(self, what: str, position: int | None = None) -> NoReturn:
        byte = self.position if position is None else position
        raise CheckpointError(what, where=f"{self.file.path}, byte {byte}")

    @property
    def left(self) -> int:
        return self.file.size - self.position

    def need(self, nbytes: int, what: str) -> int:
        """Make sure that so many bytes are in the buffer, and return where they begin."""
        end = self.position + nbytes
        if end > len(self.buffer):
            if end > self.file.size:
                self.fail(f"{what} needs {nbytes} bytes, {self.left} are left")
            if end > MAX_HEADER:
                self.fail(f"the header is longer than {MAX_HEADER} bytes")
            size = min(max(end, 2 * len(self.buffer), 1 << 20), self.file.size)
            self.buffer += self.file.read(len(self.buffer), size - len(self.buffer))
        return self.position

    def number(self, kind: str, what: str) -> int | float:
        code = "<" + CODES[kind]
        start = self.need(struct.calcsize(code), what)
        (value,) = struct.unpack_from(code, self.buffer, start)
        self.position += struct.calcsize(code)
        return value  # type: ignore[no-any-return]

    def count(self, kind: str, what: str) -> int:
        return int(self.number(kind, what))

    def text(self, what: str, most: int = MAX_HEADER) -> str:
        start = self.position
        length = self.count("u64", what)
        if length > most:
            self.fail(f"{what} of {length} bytes; at most {most} are allowed", start)
        begin = self.need(length, what)
        self.position += length
        try:
            return str(self.buffer[begin : self.position], "utf-8")
        except UnicodeDecodeError as error:
            self.fail(f"{what} is not UTF-8", begin + error.start)

    def name(self, what: str, most: int) -> str:
        start = self.position
        value = self.text(what, most)
        if not value or "\0" in value:
            self.fail(f"{what} is empty or contains NUL", start)
        return value

    def texts(self, count: int, what: str) -> list[str]:
        """The inner loop of a vocabulary: 50,000 strings in some hundredths of a second."""
        values: list[str] = []
        for _ in range(count):
            position = self.position
            if position + 8 > len(self.buffer):
                self.need(8, what)
            length = int.from_bytes(self.buffer[position : position + 8], "little")
            self.position = begin = position + 8
            if begin + length > len(self.buffer):
                self.need(length, what)
            self.position += length
            try:
                values.append(str(self.buffer[begin : self.position], "utf-8"))
            except UnicodeDecodeError as error:
                self.fail(f"{what} is not UTF-8", begin + error.start)
        return values


def _read_one(path: str | os.PathLike[str]) -> GGUFFile:
    cursor = _Cursor(stable_file(path))
    version = _version(cursor)
    tensor_count = _bounded(cursor, "tensors", 24, MAX_TENSORS)
    key_count = _bounded(cursor, "metadata keys", 13, MAX_KEYS)
    values: dict[str, GGUFValue] = {}
    for _ in range(key_count):
        start = cursor.position
        key = cursor.name("a metadata key", MAX_KEY_BYTES)
        if key in values:
            cursor.fail(f"metadata key {key[:80]!r} comes twice", start)
        kind = _kind(cursor, key)
        values[key] = _value(cursor, key, kind, 0)
    alignment = alignment_of(values)
    if alignment is None:
        cursor.fail("general.alignment must be u32, a power of two, and at least 8")
    tensors = _tensors(cursor, tensor_count, alignment)
    plain = {key: value.plain for key, value in values.items()}
    return GGUFFile(version, plain, tensors, alignment, values)


def _version(cursor: _Cursor) -> int:
    if cursor.file.size < 24:
        cursor.fail("too short for a GGUF file")
    start = cursor.need(24, "the header")
    if cursor.buffer[start : start + 4] != MAGIC:
        cursor.fail(f"no GGUF file: it begins with {cursor.buffer[:4]!r}")
    cursor.position = 4
    version = cursor.count("u32", "the version")
    if version in (2, 3):
        return version
    if version in (2 << 24, 3 << 24):
        cursor.fail("a big-endian GGUF file is not supported", 4)
    cursor.fail(f"GGUF version {version} is not supported; 2 and 3 are", 4)


def _bounded(cursor: _Cursor, what: str, least: int, most: int) -> int:
    """A count of things that take at least `least` bytes each."""
    start = cursor.position
    count = cursor.count("u64", f"the number of {what}")
    if count > most or count * least > cursor.left:
        cursor.fail(f"{count} {what} do not fit into {cursor.left} bytes (at most {most})", start)
    return count


def _kind(cursor: _Cursor, key: str) -> str:
    start = cursor.position
    number = cursor.count("u32", "a kind")
    if number >= len(KINDS):
        cursor.fail(f"metadata key {key[:80]!r} has the unknown kind {number}", start)
    return KINDS[number]


def _value(cursor: _Cursor, key: str, kind: str, depth: int) -> GGUFValue:
    what = f"the value of {key[:80]!r}"
    if kind == "str":
        return GGUFValue(kind, cursor.text(what))
    if kind == "array":
        return _array(cursor, key, depth + 1)
    start = cursor.position
    value = cursor.number(kind, what)
    if kind == "bool" and value not in (0, 1):
        cursor.fail(f"{what} is {value}, neither true nor false", start)
    return GGUFValue(kind, bool(value) if kind == "bool" else value)


def _array(cursor: _Cursor, key: str, depth: int) -> GGUFValue:
    what = f"the array {key[:80]!r}"
    start = cursor.position
    if depth > MAX_DEPTH:
        cursor.fail(f"{what} nests deeper than {MAX_DEPTH}", start)
    element = _kind(cursor, key)
    least = {"str": 8, "array": 12}.get(element) or struct.calcsize(CODES[element])
    count = _bounded(cursor, f"elements of {what}", least, MAX_ELEMENTS)
    cursor.elements += count
    if cursor.elements > MAX_ELEMENTS:
        cursor.fail(f"more than {MAX_ELEMENTS} array elements in all", start)
    if element == "str":
        return GGUFValue("array", cursor.texts(count, f"a string of {what}"), element)
    if element == "array":
        items = [_array(cursor, key, depth + 1) for _ in range(count)]
        return GGUFValue("array", items, element)
    begin = cursor.need(count * least, what)
    cursor.position += count * least
    raw = np.frombuffer(cursor.buffer, "<" + CODES[element], count, begin)
    if element == "bool":
        if count and raw.max() > 1:
            cursor.fail(f"{what} has a value that is neither true nor false", begin)
        raw = raw.astype(np.bool_)
    return GGUFValue("array", raw.tolist(), element)


@dataclass(frozen=True)
class _Info:
    """A tensor's line in the list. byte: where the line begins, for messages."""

    name: str
    shape: tuple[int, ...]
    storage: str
    offset: int
    nbytes: int
    byte: int


def _tensors(cursor: _Cursor, count: int, alignment: int) -> dict[str, LazyTensor]:
    infos: dict[str, _Info] = {}
    for _ in range(count):
        info = _info(cursor, alignment)
        if info.name in infos:
            cursor.fail(f"tensor {info.name!r} comes twice", info.byte)
        infos[info.name] = info
    start = cursor.position + -cursor.position % alignment
    _check_ranges(cursor, list(infos.values()), start)
    return {
        i.name: cursor.file.tensor(i.name, i.shape, i.storage, start + i.offset, i.nbytes)
        for i in infos.values()
    }


def _info(cursor: _Cursor, alignment: int) -> _Info:
    byte = cursor.position
    name = cursor.name("a tensor name", MAX_NAME_BYTES)
    dims = cursor.count("u32", "the number of dimensions")
    if dims > MAX_DIMS:
        cursor.fail(f"tensor {name!r} has {dims} dimensions; at most {MAX_DIMS}", byte)
    shape = tuple(cursor.count("u64", "a dimension") for _ in range(dims))[::-1]
    number = cursor.count("u32", "a tensor type")
    storage = _STORAGES.get(number)
    if storage is None:
        known = UNSUPPORTED.get(number)
        raise CheckpointError(
            f"tensor {name!r} is stored as {known or f'the unknown type {number}'}"
            + (", which is not supported" if known else ""),
            where=f"{cursor.file.path}, byte {byte}",
            advice=f"supported: {', '.join(TYPES)}",
        )
    offset = cursor.count("u64", "an offset")
    per_block, block_bytes = STORAGE[storage]
    if not fits_in_memory(shape) or (shape[-1] if shape else 1) % per_block:
        cursor.fail(f"tensor {name!r} of type {storage} cannot have the shape {shape}", byte)
    if offset % alignment:
        cursor.fail(f"tensor {name!r} is not aligned: offset {offset}, not {alignment} n", byte)
    nbytes = math.prod(shape) // per_block * block_bytes
    return _Info(name, shape, storage, offset, nbytes, byte)


def _check_ranges(cursor: _Cursor, infos: Sequence[_Info], start: int) -> None:
    """Every tensor lies inside the file, and no two share a byte."""
    end_before, before = 0, ""
    for info in sorted(infos, key=lambda i: (i.offset, i.nbytes)):
        end = info.offset + info.nbytes
        if start + end > cursor.file.size:
            cursor.fail(
                f"tensor {info.name!r} would end at byte {start + end} "
                f"of a file of {cursor.file.size}",
                info.byte,
            )
        if info.nbytes and info.offset < end_before:
            cursor.fail(f"tensors {before!r} and {info.name!r} overlap", info.byte)
        if info.nbytes:
            end_before, before = end, info.name


_PART: Final = re.compile(r"^(.*)-(\d{5})-of-(\d{5})\.gguf$", re.DOTALL)


def _join(path: Path, count: int) -> GGUFFile:
    """All parts of a split file as one."""
    match = _PART.match(path.name)
    if match is None or int(match[3]) != count:
        raise CheckpointError(
            f"the file is one of {count} parts, but its name does not say which",
            where=path,
            advice=f"parts are named like model-00001-of-{count:05}.gguf",
        )
    tensors: dict[str, LazyTensor] = {}
    first: GGUFFile | None = None
    for number in range(1, count + 1):
        place = path.with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
        part = _read_one(place)
        first = first or part
        if (part.metadata.get("split.no"), part.metadata.get("split.count")) != (number - 1, count):
            raise CheckpointError(f"is not part {number} of {count}", where=place)
        twice = sorted(tensors.keys() & part.tensors.keys())
        if twice:
            raise CheckpointError(f"tensor {twice[0]!r} is in two parts", where=place)
        tensors |= part.tensors
    if first is None:
        raise CheckpointError("a file of no parts", where=path)
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise CheckpointError(f"the parts hold {len(tensors)} tensors, not {total}", where=path)
    values = {key: value for key, value in first.values.items() if not key.startswith("split.")}
    plain = {key: value.plain for key, value in values.items()}
    return GGUFFile(first.version, plain, tensors, first.alignment, values)
