"""The safetensors format: a length, a header in JSON, and the tensors' bytes without holes.

Source: the format section of huggingface/safetensors' README. The header's grammar is small, so it
is read directly: every byte is accounted for, nothing nests, and no number can be too large to
handle. Stricter than the package where the format is: a header begins with `{`, no key comes twice,
an entry has its three fields and no other.
"""

from __future__ import annotations

import json
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NoReturn

from chumoku.checkpoints.lazy import STORAGE, LazyTensor
from chumoku.checkpoints.ranges import (
    MAX_TENSORS,
    StableFile,
    atomic_file,
    fits_in_memory,
    stable_file,
    write_tensor,
)
from chumoku.errors import CheckpointError, InputError

MAX_HEADER: Final = 100_000_000
MAX_DIMS: Final = 64
METADATA: Final = "__metadata__"

WRITTEN_ORDER: Final = ("I64", "F64", "F32", "I32", "BF16", "F16", "I16", "I8", "U8", "BOOL")
"""The dtypes that chumoku holds, in the order of the package's files."""

UNSUPPORTED: Final = frozenset(
    (
        *("U16", "U32", "U64", "C64", "F4", "F6_E2M3", "F6_E3M2"),
        *("F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"),
    )
)


@dataclass(frozen=True)
class SafetensorsFile:
    """tensors: by name, in the order of their bytes. header: as it was, to be written again."""

    tensors: dict[str, LazyTensor]
    metadata: dict[str, str]
    header: bytes


@dataclass(frozen=True)
class Entry:
    """What a header says of one tensor; begin and end count from the first byte of data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_safetensors(path: str | os.PathLike[str]) -> SafetensorsFile:
    """Open a file; no tensor's bytes are read until asked for.

    Raises CheckpointError, naming the byte, where the file departs from the format or holds a dtype
    that chumoku does not have.
    """
    file = stable_file(path)
    if file.size < 8:
        raise CheckpointError("too short for a safetensors file", where=file.path)
    (length,) = struct.unpack("<Q", file.read(0, 8))
    if length > MAX_HEADER or length > file.size - 8:
        raise CheckpointError(
            f"the header claims {length} bytes; the file has {file.size - 8}, "
            f"the format allows {MAX_HEADER}",
            where=f"{file.path}, byte 0",
        )
    header = bytes(file.read(8, length))
    entries, metadata = parse_header(header, file.path)
    _check_ranges(entries, file.size - 8 - length, file.path)
    tensors = {entry.name: _tensor(file, entry, 8 + length) for entry in entries}
    return SafetensorsFile(tensors, metadata, header)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[LazyTensor],
    metadata: Mapping[str, str] | None = None,
    *,
    header: bytes | None = None,
) -> None:
    """Write a file, tensor by tensor, that appears whole or not at all.

    Without `header` the bytes are those of the package's own writer (which leaves the order of
    several metadata keys to chance; here they keep theirs). With the header of a file that was
    read, order and header are as they were, so an unchanged checkpoint is written byte by byte the
    same. Raises InputError where the tensors cannot be stored or do not fit `header`, ResourceError
    where the disk is full.
    """
    by_name: dict[str, LazyTensor] = {}
    for tensor in tensors:
        if tensor.name in by_name or tensor.name == METADATA:
            raise InputError(f"tensor name {tensor.name!r} cannot be used twice or is reserved")
        if tensor.storage not in WRITTEN_ORDER:
            raise InputError(
                f"tensor {tensor.name!r}: safetensors cannot hold {tensor.storage}",
                advice=f"it holds {', '.join(WRITTEN_ORDER)}; write GGUF, or dequantise first",
            )
        by_name[tensor.name] = tensor
    if header is None:
        ordered = sorted(by_name.values(), key=lambda t: (WRITTEN_ORDER.index(t.storage), t.name))
        header = _header(ordered, metadata)
    else:
        ordered = _order_of(header, by_name, path)
    with atomic_file(path) as stream:
        stream.write(struct.pack("<Q", len(header)))
        stream.write(header)
        for tensor in ordered:
            write_tensor(stream, tensor)


# ---- header ----

# Possessive, so that a hostile header cannot make an expression try again.
_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_STRING: Final = re.compile(rb'"(?:[^"\\\x00-\x1f]++|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*+"')
_INTEGER: Final = re.compile(rb"(?:0|[1-9][0-9]{0,19}+)(?![0-9.eE])")


class _Scanner:
    """A position in the header; each method takes one piece of JSON and moves on."""

    def __init__(self, header: bytes, where: object) -> None:
        self.header, self.where, self.position = header, where, 0

    def fail(self, what: str) -> NoReturn:
        raise CheckpointError(
            f"damaged header: {what}", where=f"{self.where}, byte {8 + self.position}"
        )

    def skip(self) -> bytes:
        """Move past white space; the byte that follows, empty at the end."""
        match = _SPACE.match(self.header, self.position)
        self.position = match.end() if match else self.position
        return self.header[self.position : self.position + 1]

    def sign(self, signs: bytes) -> bytes:
        found = self.skip()
        if not found or found not in signs:
            self.fail(f"expected one of {signs.decode()}")
        self.position += 1
        return found

    def string(self) -> str:
        self.skip()
        match = _STRING.match(self.header, self.position)
        if match is None:
            self.fail("expected a string")
        try:
            raw = match[0]
            value = str(json.loads(raw)) if b"\\" in raw else raw[1:-1].decode("utf-8")
            value.encode("utf-8")
        except UnicodeError:
            self.fail("a string is not valid Unicode")
        self.position = match.end()
        return value

    def integers(self, most: int) -> tuple[int, ...]:
        self.sign(b"[")
        values: list[int] = []
        if self.skip() == b"]":
            self.position += 1
            return ()
        while True:
            self.skip()
            match = _INTEGER.match(self.header, self.position)
            if match is None or int(match[0]) >= 1 << 64:
                self.fail("expected a whole number below 2^64")
            if len(values) == most:
                self.fail(f"more than {most} numbers")
            values.append(int(match[0]))
            self.position = match.end()
            if self.sign(b",]") == b"]":
                return tuple(values)

    def keys(self, what: str) -> Iterator[str]:
        """The keys of an object, one by one; the caller takes each value before the next key."""
        self.sign(b"{")
        seen: set[str] = set()
        if self.skip() == b"}":
            self.position += 1
            return
        while True:
            key = self.string()
            if key in seen:
                self.fail(f"{what} {key[:80]!r} comes twice")
            if len(seen) > MAX_TENSORS:
                self.fail(f"more than {MAX_TENSORS} keys")
            seen.add(key)
            self.sign(b":")
            yield key
            if self.sign(b",}") == b"}":
                return


def parse_header(header: bytes, where: object) -> tuple[list[Entry], dict[str, str]]:
    """Entries in the order of their bytes, and the metadata. Raises CheckpointError."""
    scanner = _Scanner(header, where)
    if not header.startswith(b"{"):
        scanner.fail("it does not begin with {")
    entries: list[Entry] = []
    metadata: dict[str, str] = {}
    for name in scanner.keys("key"):
        if name == METADATA:
            metadata = {key: scanner.string() for key in scanner.keys("metadata key")}
        else:
            entries.append(_entry(scanner, name))
    if scanner.skip():
        scanner.fail("something follows the closing brace")
    return sorted(entries, key=lambda entry: (entry.begin, entry.end)), metadata


def _entry(scanner: _Scanner, name: str) -> Entry:
    dtype: str | None = None
    shape: tuple[int, ...] | None = None
    offsets: tuple[int, ...] | None = None
    for field in scanner.keys("field"):
        if field == "dtype":
            dtype = scanner.string()
        elif field == "shape":
            shape = scanner.integers(MAX_DIMS)
        elif field == "data_offsets":
            offsets = scanner.integers(2)
        else:
            scanner.fail(f"tensor {name[:80]!r} has an unknown field {field[:80]!r}")
    if dtype is None or shape is None or offsets is None or len(offsets) != 2:
        scanner.fail(f"tensor {name[:80]!r} needs dtype, shape and two data_offsets")
    if dtype not in WRITTEN_ORDER:
        known = "is not supported" if dtype in UNSUPPORTED else "is unknown"
        scanner.fail(f"tensor {name[:80]!r} has dtype {dtype[:80]!r}, which {known}")
    return Entry(name, dtype, shape, offsets[0], offsets[1])


def _check_ranges(entries: list[Entry], size: int, where: object) -> None:
    """Each tensor begins where the one before ends; the last ends with the file."""
    position = 0
    for entry in entries:
        needed = STORAGE[entry.dtype][1]
        for length in entry.shape:
            needed *= length
        if not fits_in_memory(entry.shape):
            raise CheckpointError(
                f"tensor {entry.name[:80]!r} has a shape whose sizes go beyond 64 bits", where=where
            )
        if needed != entry.end - entry.begin:
            raise CheckpointError(
                f"tensor {entry.name[:80]!r} of shape {entry.shape} and dtype {entry.dtype} "
                f"does not fill its bytes {entry.begin} to {entry.end}",
                where=where,
            )
        if entry.begin != position:
            fault = "overlaps another" if entry.begin < position else "leaves a hole before it"
            raise CheckpointError(
                f"tensor {entry.name[:80]!r} {fault}: it begins at byte {entry.begin} of the data, "
                f"not {position}",
                where=where,
            )
        position = entry.end
    if position != size:
        raise CheckpointError(
            f"the tensors take {position} bytes, the file has {size}",
            where=where,
            advice="the file is damaged or was not fetched to its end; fetch it again",
        )


def _tensor(file: StableFile, entry: Entry, start: int) -> LazyTensor:
    begin, nbytes = start + entry.begin, entry.end - entry.begin
    return file.tensor(entry.name, entry.shape, entry.dtype, begin, nbytes)


def _header(ordered: Iterable[LazyTensor], metadata: Mapping[str, str] | None) -> bytes:
    content: dict[str, object] = {} if metadata is None else {METADATA: dict(metadata)}
    if any(not isinstance(text, str) for pair in (metadata or {}).items() for text in pair):
        raise InputError("safetensors metadata must be text, keys and values")
    position = 0
    for tensor in ordered:
        end = position + tensor.nbytes
        content[tensor.name] = {
            "dtype": tensor.storage,
            "shape": list(tensor.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    try:
        raw = text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("a tensor name or metadata text is not valid Unicode") from None
    raw += b" " * (-len(raw) % 8)
    if len(raw) > MAX_HEADER:
        raise InputError(f"the header would take {len(raw)} bytes; the format allows {MAX_HEADER}")
    return raw


def _order_of(header: bytes, tensors: Mapping[str, LazyTensor], where: object) -> list[LazyTensor]:
    entries, _ = parse_header(header, where)
    _check_ranges(entries, sum(tensor.nbytes for tensor in tensors.values()), where)
    if len(entries) != len(tensors):
        raise InputError(f"the kept header lists {len(entries)} tensors, not {len(tensors)}")
    for entry in entries:
        tensor = tensors.get(entry.name)
        if tensor is None or (tensor.storage, tensor.shape) != (entry.dtype, entry.shape):
            raise InputError(f"tensor {entry.name[:80]!r} does not fit the kept header")
    return [tensors[entry.name] for entry in entries]
