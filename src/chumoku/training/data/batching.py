"""Which examples make which batch, as a pure function of seed, epoch and number.

An epoch is cut into windows of a few batches in the order of order.py. Inside a window examples are
sorted by length and cut into batches of like length, and the batches are shuffled again: little is
padded, and where a run stands is two numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import CheckpointError, ConfigError, InputError
from chumoku.training.data.order import permuted
from chumoku.training.task import Examples

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Batching:
    """batch_size: examples of one batch, of all processes together. tokens: instead, at most so
    many tokens of a batch, padding included (an example alone may have more). window: so many
    batches' worth of examples are sorted by length together; 0: none. shuffle: a new order in each
    epoch; without it and with a window, examples are still sorted inside the window. drop_last:
    leave out an epoch's last batch where it is not full (no meaning with tokens).
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
    example of a batch, from `rank` on, which may be none. Raises InputError where there are no
    examples.
    """

    def __init__(
        self, examples: Examples, batching: Batching, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        n = len(examples)
        if not n:
            raise InputError("there is nothing to train on: no example is left")
        self.examples, self.batching, self.seed = examples, batching, seed
        self.rank, self.world = rank, world
        self._lengths: Integers | None = None
        if batching.window or batching.tokens is not None:
            self._lengths = np.fromiter((examples.length(i) for i in range(n)), np.int64, n)
        self._epoch = self._number = 0
        self._plan_of = (0, plan(n, self._lengths, batching, seed, 0))
        self._first = len(self._plan_of[1])

    @property
    def batches_per_epoch(self) -> int:
        """Of the first epoch; with `tokens` another epoch may have a few more or less."""
        return self._first

    def __iter__(self) -> Iterator[Picked]:
        return self

    def __next__(self) -> Picked:
        if self._number >= len(self._plan(self._epoch)):
            self._epoch, self._number = self._epoch + 1, 0
        epoch = self._epoch
        indices = self._plan(epoch)[self._number][self.rank :: self.world].tolist()
        self._number += 1
        return Picked([self.examples.example(i, epoch) for i in indices], epoch, indices)

    def state(self) -> dict[str, int]:
        """JSON: the epoch, how many of its batches are used, and of how many examples."""
        return {"epoch": self._epoch, "batch": self._number, "examples": len(self.examples)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises CheckpointError for what is none, or other data."""
        epoch, number, n = (count_in(state, name) for name in ("epoch", "batch", "examples"))
        if n != len(self.examples):
            raise CheckpointError(
                f"the run was on {n} examples, now there are {len(self.examples)}",
                advice="go on with the data of the run, or start a new one",
            )
        self._epoch, self._number = epoch, number

    def _plan(self, epoch: int) -> list[Integers]:
        """All batches of an epoch; the latest plan is kept."""
        if self._plan_of[0] != epoch:
            found = plan(len(self.examples), self._lengths, self.batching, self.seed, epoch)
            self._plan_of = (epoch, found)
        return self._plan_of[1]


def count_in(state: Mapping[str, Any], name: str) -> int:
    """A number of a state. Raises CheckpointError where it is none."""
    value = state.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise CheckpointError(f"{dict(state)!r} is no place in the data", where=name)
    return value


def plan(
    n: int, lengths: Integers | None, batching: Batching, seed: int, epoch: int
) -> list[Integers]:
    """The batches of an epoch, as indices of examples: each of n examples exactly once.

    lengths: tokens of each example; needed for a window or for tokens. With drop_last, the last
    examples in the order of the epoch, too few for a batch, are left out.
    """
    order = np.arange(n, dtype=np.uint64)
    if batching.shuffle:
        order = permuted(order, n, seed, epoch)
    size = batching.batch_size
    if batching.tokens is not None and lengths is not None:
        size = max(1, int(batching.tokens // max(1.0, float(lengths.mean()))))
    elif batching.drop_last and n > size:
        order = order[: n - n % size]
    indices = order.astype(np.int64)
    width = size * max(1, batching.window)
    batches: list[Integers] = []
    for start in range(0, len(indices), width):
        part = indices[start : start + width]
        if lengths is not None and batching.window:
            part = part[np.argsort(-lengths[part], kind="stable")]
        batches += _cut(part, lengths, batching)
    if batching.shuffle and batching.window:
        # The short batch is the last still: its place is where an epoch's remainder is looked for.
        full = len(batches) - (batching.tokens is None and len(batches[-1]) < size)
        again = permuted(np.arange(full, dtype=np.uint64), full, seed ^ 0x5DEECE66D, epoch)
        batches = [batches[int(i)] for i in again] + batches[full:]
    return batches


def _cut(indices: Integers, lengths: Integers | None, batching: Batching) -> list[Integers]:
    """One window's examples as batches, by number or by padded tokens."""
    if batching.tokens is None or lengths is None:
        size = batching.batch_size
        return [indices[i : i + size] for i in range(0, len(indices), size)]
    starts = [0]
    longest = 0
    for place, length in enumerate(lengths[indices].tolist()):
        longest = max(longest, length)
        if longest * (place + 1 - starts[-1]) > batching.tokens and place > starts[-1]:
            starts.append(place)
            longest = length
    return [indices[i:j] for i, j in pairwise([*starts, len(indices)])]
