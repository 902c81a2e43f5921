"""Tensors that lie in pieces in several processes, as files: safetensors, and what lies where.

Process r of n writes `model-0000r-of-0000n.safetensors`. The layout, which the manifest of a
snapshot records, puts the pieces together again, for any number of processes:

    {"model": {"blocks.0.feedforward.up.weight":
        {"shape": [64, 16], "dim": 0, "pieces": [[FILE, 0, 32], [FILE, 32, 64]]}}}

dim null: the tensor is whole in one file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from chumoku.checkpoints.assign import dense, lazy
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.safetensors import read_safetensors, write_safetensors
from chumoku.errors import CheckpointError

Layout = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""File without ending -> tensor -> shape, dim, pieces."""


class Piece(NamedTuple):
    """This process's part of a tensor: rows `begin` to `end` along `dim`; dim None: all of it."""

    value: Tensor
    shape: tuple[int, ...]
    dim: int | None = None
    begin: int = 0
    end: int = 0


def write_pieces(
    folder: Path, pieces: Mapping[str, Mapping[str, Piece]], rank: int, size: int
) -> Layout:
    """Write one process's files; the layout of these alone. Empty pieces leave nothing."""
    layout: dict[str, dict[str, dict[str, Any]]] = {}
    for file, named in pieces.items():
        mine = {name: piece for name, piece in named.items() if _is_written(piece, rank)}
        place = f"{file}-{rank:05}-of-{size:05}.safetensors"
        layout[file] = {
            name: {
                "shape": list(piece.shape),
                "dim": piece.dim,
                "pieces": [[place, piece.begin, piece.end]],
            }
            for name, piece in mine.items()
        }
        if mine:
            values = [lazy(name, piece.value) for name, piece in mine.items()]
            write_safetensors(folder / place, values)
    return layout


def merged(layouts: Sequence[Layout]) -> Layout:
    """The layouts of all processes, in the order of ranks, as one."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for layout in layouts:
        for file, named in layout.items():
            held = found.setdefault(file, {})
            for name, entry in named.items():
                if name in held:
                    held[name]["pieces"] += entry["pieces"]
                else:
                    held[name] = {**entry, "pieces": list(entry["pieces"])}
    return found


def files_of(layout: Layout) -> set[str]:
    """The names of all files that a layout names."""
    entries = (entry for named in layout.values() for entry in named.values())
    return {place for entry in entries for place, _, _ in entry["pieces"]}


class Assembled(Mapping[str, Tensor]):
    """Whole tensors of one file, each put together when it is asked for.

    Raises CheckpointError where the layout is none, or pieces are missing or do not fit.
    """

    def __init__(self, folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
        self.folder, self.entries = folder, entries
        files = {place for entry in entries.values() for place, _, _ in _pieces(entry, folder)}
        self.files = {place: read_safetensors(folder / place).tensors for place in sorted(files)}
        for name in entries:
            self._parts(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, name: str) -> Tensor:
        dim, parts = self._parts(name)
        if dim is None:
            return dense(parts[0])
        return torch.cat([dense(part) for part in parts], dim=dim)

    def _parts(self, name: str) -> tuple[int | None, list[LazyTensor]]:
        """The pieces of a tensor in their order, after a look at their shapes."""
        entry, parts, position = self.entries[name], [], 0
        shape, dim = tuple(entry["shape"]), entry["dim"]
        for place, begin, end in sorted(_pieces(entry, self.folder), key=lambda piece: piece[1]):
            part = self.files[place].get(name)
            expected = shape if dim is None else (*shape[:dim], end - begin, *shape[dim + 1 :])
            if part is None or part.shape != expected or (dim is not None and begin != position):
                raise CheckpointError(
                    "a piece of a tensor is missing, or another than the manifest says",
                    where=f"{self.folder / place}: {name}",
                )
            parts.append(part)
            position = end
        if len({part.storage for part in parts}) > 1 or (
            len(parts) != 1 if dim is None else position != shape[dim]
        ):
            raise CheckpointError("the pieces do not make up the tensor", where=name)
        return dim, parts


def assembled(folder: Path, layout: Any) -> dict[str, Mapping[str, Tensor]]:
    """What the layout in a manifest describes: file -> tensors by name, read when asked for."""
    if not isinstance(layout, dict) or not all(isinstance(v, dict) for v in layout.values()):
        raise CheckpointError("the manifest's shards are no table", where=folder)
    return {file: Assembled(folder, entries) for file, entries in layout.items()}


def _is_written(piece: Piece, rank: int) -> bool:
    """What all hold is written by the first; an empty piece by nobody but the first."""
    return rank == 0 if piece.dim is None or piece.begin == piece.end else True


def _pieces(entry: Any, folder: Path) -> list[tuple[str, int, int]]:
    """A tensor's pieces, after a look at the entry as a whole."""
    try:
        shape, dim, pieces = entry["shape"], entry["dim"], entry["pieces"]
        sizes = all(type(n) is int and n >= 0 for n in shape)
        known = dim is None or (type(dim) is int and 0 <= dim < len(shape))
        found = [(place, begin, end) for place, begin, end in pieces]
        names = {place for place, _, _ in found if Path(place).name == place}
        fit = len(names) == len(found) and all(
            type(begin) is int and type(end) is int and 0 <= begin <= end for _, begin, end in found
        )
    except (KeyError, TypeError, ValueError):
        sizes = False
    if not (sizes and known and found and fit):
        raise CheckpointError("the manifest's shards are no table of pieces", where=folder)
    return found
