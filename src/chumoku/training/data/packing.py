"""Documents in rows of one length, each token with the number of its document.

Attention stays inside a document (`Batch.sequences_BT` in layers/attention.py), so a row of several
is computed as each would be alone, and hardly anything is padded. `PackedExamples` keeps documents
whole; `Packer` puts them end to end and cuts, with what is left over as its state.

Shape letters: T position in a row, N tokens of a file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from chumoku.errors import CheckpointError, ConfigError, InputError
from chumoku.training.data.order import permuted


class Packed(NamedTuple):
    """ids_T, and the number of each token's document in its row, counted from 0."""

    ids_T: Tensor
    sequences_T: Tensor


# ---- whole documents ----


class Piece(NamedTuple):
    """Tokens start..end of a document."""

    document: int
    start: int
    end: int

    @property
    def length(self) -> int:
        return self.end - self.start


def pieces_of(lengths: Iterable[int], room: int) -> list[Piece]:
    """Documents as pieces of at most `room` tokens; an empty one makes none."""
    return [
        Piece(number, start, min(start + room, length))
        for number, length in enumerate(lengths)
        for start in range(0, length, room)
    ]


def first_fit(lengths: Sequence[int], room: int, window: int) -> list[list[int]]:
    """Rows of places in `lengths`: each goes into the first open row that has room for it.

    At most `window` rows are open; then the oldest is closed. Pure in its arguments.
    """
    rows: list[list[int]] = []
    left: dict[int, int] = {}  # row -> what is free; in the order in which they were opened
    for place, length in enumerate(lengths):
        row = next((number for number, free in left.items() if free >= length), None)
        if row is None:
            row = len(rows)
            rows.append([])
            left[row] = room
            if len(left) > window:
                del left[next(iter(left))]
        rows[row].append(place)
        left[row] -= length
        if not left[row]:
            del left[row]
    return rows


class PackedExamples:
    """Examples of `length` tokens at most, made of whole documents; longer ones are cut.

    Which documents share a row depends on the seed alone; the order of the rows is the epoch's.
    Every token is in exactly one row.
    """

    def __init__(
        self, documents: Sequence[Sequence[int]], length: int, seed: int, window: int = 64
    ) -> None:
        if length < 1 or window < 1:
            raise ConfigError(f"length {length} and window {window} must be at least 1")
        self.documents = documents
        pieces = pieces_of(map(len, documents), length)
        if not pieces:
            raise InputError("there is nothing to pack: no document has a token")
        order = permuted(np.arange(len(pieces), dtype=np.uint64), len(pieces), seed, 0)
        shuffled = [pieces[int(i)] for i in order]
        rows = first_fit([piece.length for piece in shuffled], length, window)
        self.rows = [[shuffled[place] for place in row] for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, index: int) -> int:
        return sum(piece.length for piece in self.rows[index])

    def example(self, index: int, epoch: int) -> Packed:
        row = self.rows[index]
        ids = [list(self.documents[p.document][p.start : p.end]) for p in row]
        numbers = torch.arange(len(row)).repeat_interleave(torch.tensor([p.length for p in row]))
        return Packed(torch.tensor([i for part in ids for i in part]), numbers)


# ---- end to end ----


class Packer:
    """Documents end to end, cut into rows of `length`; the remainder waits for more.

    ids_of: a row of the stream -> its tokens. overlap: the last tokens of a row that begin the next
    one too; 1 where a token is the target of the one before it.
    """

    def __init__(
        self, ids_of: Callable[[Any], Sequence[int]], length: int, overlap: int = 0
    ) -> None:
        if not 0 <= overlap < length:
            raise ConfigError(f"length {length} must be above overlap {overlap}")
        self.ids_of, self.size, self.overlap = ids_of, length, overlap
        self._ids: list[int] = []
        self._numbers: list[int] = []

    def add(self, row: Any) -> list[Packed]:
        """The rows that are full with this document."""
        ids = self.ids_of(row)
        self._ids += ids
        self._numbers += [self._numbers[-1] + 1 if self._numbers else 0] * len(ids)
        found = []
        start = 0
        while len(self._ids) - start >= self.size:
            end = start + self.size
            found.append(_packed(self._ids[start:end], self._numbers[start:end]))
            start = end - self.overlap
        self._ids, self._numbers = self._ids[start:], self._numbers[start:]
        return found

    def flush(self) -> list[Packed]:
        """The remainder at the end of an epoch, where it holds more than was seen before."""
        ids, numbers = self._ids, self._numbers
        self._ids, self._numbers = [], []
        return [_packed(ids, numbers)] if len(ids) > self.overlap else []

    def state(self) -> dict[str, Any]:
        """JSON: the remainder, tokens and numbers of documents."""
        return {"ids": list(self._ids), "numbers": list(self._numbers)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for what is no remainder of such rows."""
        ids, numbers = integers_in(state, "ids"), integers_in(state, "numbers")
        if len(ids) != len(numbers):
            raise CheckpointError("the packer's remainder is damaged")
        if len(ids) >= self.size:
            raise CheckpointError(
                f"a remainder of {len(ids)} tokens is none of rows of {self.size}",
                advice="go on with the length of the run, or start a new one",
            )
        self._ids, self._numbers = ids.copy(), numbers.copy()


def _packed(ids: list[int], numbers: list[int]) -> Packed:
    return Packed(torch.tensor(ids), torch.tensor(numbers) - numbers[0])


def integers_in(state: Mapping[str, Any], name: str) -> list[int]:
    """The whole numbers of a stage's state. Raises CheckpointError where they are none."""
    values = state.get(name)
    if not isinstance(values, list) or not all(type(value) is int for value in values):
        raise CheckpointError("what a snapshot holds of the stream is damaged", where=name)
    return values


# ---- one long array of tokens on the disk ----

TOKEN_TYPES: Final = ("uint16", "int32")


def map_tokens(path: str | os.PathLike[str], dtype: str = "uint16") -> Tensor:
    """ids_N of a file of bare little-endian integers (nanoGPT's train.bin), mapped, not read.

    `causal_lm.Stream(map_tokens("train.bin"), None)` makes windows of it. Raises InputError.
    """
    if dtype not in TOKEN_TYPES:
        raise InputError(f"{dtype!r} is not one of {', '.join(TOKEN_TYPES)}", where=path)
    kind = np.dtype(dtype).newbyteorder("<")
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise InputError(f"the file cannot be read: {error}", where=path) from error
    if not size or size % kind.itemsize:
        raise InputError(f"{size} bytes are no tokens of {kind.itemsize} bytes", where=path)
    # "c": changes stay in memory; PyTorch warns of arrays that it must not write to.
    return torch.from_numpy(np.memmap(path, kind, "c"))
