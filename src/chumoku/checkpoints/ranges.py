"""Byte ranges of files that must not change, and files that appear whole or not at all.

A tensor is read through a file handle into owned memory, never through a mapping: a file that is
truncated later gives an error, where a mapping would end the process.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from chumoku.checkpoints.files import FULL_DISK
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.errors import CheckpointError, ResourceError

MAX_TENSORS = 1 << 18
"""Tensors in one file: ten times the largest published shard. It bounds what a header can cost."""


@dataclass(frozen=True)
class StableFile:
    """A regular file as it was when it was opened: where, how long, and which state of it."""

    path: Path
    size: int
    stamp: tuple[int, ...]

    def read(self, offset: int, nbytes: int) -> memoryview:
        """These bytes, owned. Raises CheckpointError where the file is no longer the same."""
        with _open(self.path) as stream:
            if _stamp(os.fstat(stream.fileno())) != self.stamp:
                raise CheckpointError(
                    "the file has changed since it was opened",
                    where=self.path,
                    advice="load the model again",
                )
            stream.seek(offset)
            return read_exactly(stream, nbytes, f"{self.path}, byte {offset}")

    def tensor(
        self, name: str, shape: tuple[int, ...], storage: str, offset: int, nbytes: int
    ) -> LazyTensor:
        """The tensor that lies at these bytes."""
        return LazyTensor(name, shape, storage, lambda: self.read(offset, nbytes))


def stable_file(path: str | os.PathLike[str]) -> StableFile:
    """Describe a file. Raises CheckpointError where it is missing, unreadable or not regular."""
    place = Path(os.path.abspath(path))
    with _open(place) as stream:
        state = os.fstat(stream.fileno())
    return StableFile(place, state.st_size, _stamp(state))


def read_exactly(stream: BinaryIO, nbytes: int, where: str) -> memoryview:
    """The next bytes of a stream. Raises CheckpointError where they end early."""
    try:
        left = os.fstat(stream.fileno()).st_size - stream.tell()
        if nbytes > left:
            raise _truncated(nbytes, left, where)
        # NumPy's memory, because a bytearray's is filled with zeros first: a tenth of a load.
        raw, filled = np.empty(nbytes, np.uint8).data, 0
        while filled < nbytes:
            count = stream.readinto(raw[filled:])  # type: ignore[attr-defined]
            if not count:
                raise _truncated(nbytes, filled, where)
            filled += count
    except OSError as error:
        raise CheckpointError(f"cannot be read: {error.strerror}", where=where) from error
    return raw


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file `path` when the body ends without an error.

    Until then a reader sees the former file, or none. Raises ResourceError where the disk is full,
    CheckpointError where the folder cannot be written.
    """
    target = Path(os.path.abspath(path))
    temporary = target.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno in FULL_DISK:
            raise ResourceError(
                "the disk is full; nothing half-written was kept",
                where=target,
                advice="free some space, or write to another disk",
            ) from error
        raise CheckpointError(f"cannot be written: {error.strerror}", where=target) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """A JSON file that appears whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """A file in UTF-8 that appears whole or not at all; raises as `atomic_file`."""
    with atomic_file(path) as stream:
        stream.write(text.encode())


def write_tensor(stream: BinaryIO, tensor: LazyTensor) -> None:
    """Append a tensor's bytes. Raises CheckpointError where they are not as many as it declares."""
    raw = tensor.read()
    if len(raw) != tensor.nbytes:
        raise CheckpointError(
            f"tensor {tensor.name!r} gave {len(raw)} bytes; "
            f"its shape {tensor.shape} as {tensor.storage} needs {tensor.nbytes}"
        )
    stream.write(raw)


def fits_in_memory(shape: tuple[int, ...]) -> bool:
    """Whether sizes can be multiplied in 64 bits, in any order, for elements of up to 8 bytes."""
    product = 8
    for size in shape:
        product *= max(size, 1)
        if product >= 1 << 63:
            return False
    return True


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would wait for ever
            raise CheckpointError("is no regular file", where=path)
        return path.open("rb", buffering=0)
    except FileNotFoundError:
        raise CheckpointError("the file does not exist", where=path) from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"cannot be opened: {reason}", where=path) from error


def _stamp(state: os.stat_result) -> tuple[int, ...]:
    return (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)


def _truncated(needed: int, left: int, where: str) -> CheckpointError:
    return CheckpointError(
        f"the file ends early: {needed} bytes needed, {max(left, 0)} left",
        where=where,
        advice="the file is damaged; fetch it again",
    )


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder survive a power loss."""
    if os.name != "posix":  # other systems cannot open a folder
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems refuse
            os.fsync(handle)
    finally:
        os.close(handle)
