"""Which examples make which batch, as a pure function of seed, epoch and number.

An epoch is cut into windows of a few batches in the order of order.py. Inside a window examples are
sorted by length and cut into batches of like length, and the batches are shuffled again: little is
padded, and where a run stands is two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from chumoku.errors import CheckpointError, ConfigError, InputError
from chumoku.training.data.order import Indices, permuted
from chumoku.training.task import Examples


@dataclass(frozen=True)
class Batching:
    """batch_size: examples of one batch, of all processes together. tokens: instead, at most so
    many tokens of a batch, padding included (an example alone may have more). window: so many
    batches' worth of examples are sorted by length together; 0: none. shuffle: a new order in each
    epoch. drop_last: leave out an epoch's last batch where it is not full.
    """

    batch_size: int = 32
    tokens: int | None = None
    window: int = 50
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "tokens": 1, "window": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise ConfigError(
                    f"must be at least {lowest}, it is {value}", where=f"[training.batching] {name}"
                )


class Picked(NamedTuple):
    """This process's share of a batch. indices: of its examples; both may be empty."""

    examples: list[Any]
    epoch: int
    indices: list[int]


class Batches:
    """An endless stream of batches. `state` and `restore` say and set where it stands.

    The batches are the same for any number of processes; process `rank` takes each `world`-th
    example of a batch, from `rank` on. Raises InputError where there are no examples.
    """

    def __init__(
        self, examples: Examples, batching: Batching, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        if not len(examples):
            raise InputError("there is nothing to train on: no example is left")
        self.examples, self.batching, self.seed = examples, batching, seed
        self.rank, self.world = rank, world
        self._epoch = self._number = 0
        self._plan_of: tuple[int, list[list[int]]] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """Of the first epoch; with `tokens` another epoch may have a few more or less."""
        return len(self._plan(0))

    def __iter__(self) -> Iterator[Picked]:
        return self

    def __next__(self) -> Picked:
        if self._number >= len(self._plan(self._epoch)):
            self._epoch, self._number = self._epoch + 1, 0
        epoch = self._epoch
        indices = self._plan(epoch)[self._number][self.rank :: self.world]
        self._number += 1
        return Picked([self.examples.example(i, epoch) for i in indices], epoch, indices)

    def state(self) -> dict[str, int]:
        """JSON: the epoch, and how many of its batches are used."""
        return {"epoch": self._epoch, "batch": self._number}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises CheckpointError for what is none."""
        epoch, number = state.get("epoch"), state.get("batch")
        if not isinstance(epoch, int) or not isinstance(number, int) or min(epoch, number) < 0:
            raise CheckpointError(f"{dict(state)!r} is no place in the data")
        self._epoch, self._number = epoch, number

    def _plan(self, epoch: int) -> list[list[int]]:
        """All batches of an epoch; the latest plan is kept."""
        if self._plan_of is None or self._plan_of[0] != epoch:
            self._plan_of = (epoch, plan(self.examples, self.batching, self.seed, epoch))
        return self._plan_of[1]


def plan(examples: Examples, batching: Batching, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, as lists of examples' indices: each example exactly once.

    (With drop_last, but for those of a last batch that is not full.)
    """
    n = len(examples)
    order: Indices = np.arange(n, dtype=np.uint64)
    if batching.shuffle:
        order = permuted(order, n, seed, epoch)
    lengths = None
    if batching.window or batching.tokens:
        lengths = np.array([examples.length(int(i)) for i in order])
    size = batching.batch_size
    if batching.tokens is not None and lengths is not None:
        size = max(1, int(batching.tokens // max(1.0, float(lengths.mean()))))
    width = size * max(1, batching.window)
    batches: list[list[int]] = []
    for start in range(0, n, width):
        part = order[start : start + width]
        own = np.zeros(len(part), dtype=np.int64) if lengths is None else lengths[start:][:width]
        places = np.argsort(-own, kind="stable") if batching.window else np.arange(len(part))
        batches += _cut(part[places], own[places], batching)
    if batching.shuffle and batching.window:
        # The short batch is the last still: its place is where an epoch's remainder is looked for.
        full = len(batches) - (batching.tokens is None and len(batches[-1]) < size)
        again = permuted(np.arange(full, dtype=np.uint64), full, seed ^ 0x5DEECE66D, epoch)
        batches = [batches[int(i)] for i in again] + batches[full:]
    if batching.drop_last and batching.tokens is None and len(batches) > 1:
        batches = [batch for batch in batches if len(batch) == size]
    return batches


def _cut(indices: Indices, lengths: np.ndarray[Any, Any], batching: Batching) -> list[list[int]]:
    """One window's examples as batches, by number or by padded tokens."""
    if batching.tokens is None:
        size = batching.batch_size
        return [indices[i : i + size].astype(int).tolist() for i in range(0, len(indices), size)]
    batches: list[list[int]] = []
    longest = 0
    for index, length in zip(indices.astype(int).tolist(), lengths.tolist(), strict=True):
        longest = max(longest, length)
        if not batches or longest * (len(batches[-1]) + 1) > batching.tokens:
            batches.append([])
            longest = length
        batches[-1].append(index)
    return batches
