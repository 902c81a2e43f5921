"""Rows from a stream that is too long to hold: shuffled in windows, packed, resumed exactly.

A source gives the rows of an epoch one by one and can be put back to where it stood. A stage makes
examples of rows. Examples are gathered into windows, and the order inside a window is a pure
function of seed, epoch and the window's number. Where a run stands is where its window began
(source and stage, the packer's remainder too) and how many of its examples are used: the window is
read again on resuming, so no buffer of rows has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice, takewhile
from typing import Any, Final, Protocol

import numpy as np
import torch

from chumoku.errors import CheckpointError, InputError
from chumoku.training.data.batching import Batches, Batching, Picked, count_in
from chumoku.training.data.hub import open_hub
from chumoku.training.data.order import permuted
from chumoku.training.data.rows import files_of, format_of
from chumoku.training.data.sources import HubRows, LineRows, Source
from chumoku.training.task import Examples, generator

_END: Final = object()


class Stage(Protocol):
    """Rows -> examples. What it holds back is its state (JSON)."""

    def add(self, row: Any) -> Sequence[Any]: ...

    def flush(self) -> Sequence[Any]: ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class Each:
    """A stage that makes examples of each row alone: none, one or several."""

    def __init__(self, function: Callable[[Any], Sequence[Any]]) -> None:
        self.function = function

    def add(self, row: Any) -> Sequence[Any]:
        return self.function(row)

    def flush(self) -> Sequence[Any]:
        return []

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        pass


class Changed:
    """The examples of another stage as examples of an objective, which may draw (a mask, spans).

    function: (example, generator) -> examples. The random numbers depend on the seed and on how
    many examples there were before, in all epochs; that number is part of the state.
    """

    def __init__(
        self,
        stage: Stage,
        function: Callable[[Any, torch.Generator], Sequence[Any]],
        seed: int = 0,
    ) -> None:
        self.stage, self.function, self.seed = stage, function, seed
        self._count = 0

    def add(self, row: Any) -> Sequence[Any]:
        return self._changed(self.stage.add(row))

    def flush(self) -> Sequence[Any]:
        return self._changed(self.stage.flush())

    def _changed(self, examples: Sequence[Any]) -> list[Any]:
        found: list[Any] = []
        for example in examples:
            found += self.function(example, generator(self.seed, 0, self._count))
            self._count += 1
        return found

    def state(self) -> dict[str, Any]:
        return {"inner": self.stage.state(), "count": self._count}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for what is no state of such a stage."""
        inner = state.get("inner")
        if not isinstance(inner, Mapping):
            raise CheckpointError("the place in the stream is damaged")
        self.stage.restore(inner)
        self._count = count_in(state, "count")


@dataclass(frozen=True)
class RowStream:
    """Stands where a task is given its rows: they are read while it trains, each time anew.

    examples: about how many examples an epoch has; nobody knows it before.
    """

    open: Callable[[], Source]
    examples: int

    def first(self, count: int) -> list[Any]:
        """The first rows, read for themselves."""
        source = self.open()
        return list(islice(iter(partial(next, source, _END), _END), count))


def row_stream(
    sources: Sequence[str],
    format: str | None,
    columns: Mapping[str, str],
    max_rejects: float,
    examples: int,
) -> RowStream:
    """Files of lines ("text", "jsonl", by their endings where no format is named; patterns and .gz
    too), or one name on the hub.

    columns: our name -> theirs, of columns that have a text in each row. Raises InputError.
    """
    names = [name for source in sources for name in files_of(source)]
    hub_names = [name for name in names if name.startswith("hf:")]
    if hub_names:
        if len(names) > 1:
            raise InputError("a stream is of files, or of one name on the hub", where=hub_names[0])
        (name,) = names
        return RowStream(
            lambda: HubRows(open_hub(name, columns), columns, name, max_rejects), examples
        )
    formats = {format} if format else {format_of(name) for name in names}
    if len(formats) > 1:
        raise InputError(
            f"files of {' and of '.join(sorted(formats))} in one stream", where=names[0]
        )
    (kind,) = formats
    return RowStream(lambda: LineRows(names, kind, max_rejects, columns), examples)


@dataclass(frozen=True)
class Streamed:
    """Stands where a Task has its Examples. rows: about how many examples an epoch has. tokens:
    of an example, 0 where they differ."""

    source: Callable[[], Source]
    stage: Callable[[], Stage]
    rows: int
    tokens: int = 0

    def __len__(self) -> int:
        return self.rows

    def length(self, index: int) -> int:
        return self.tokens

    def example(self, index: int, epoch: int) -> Any:
        """The first one, whatever the index: for a process that has no share of a batch."""
        batches = StreamBatches(self.source(), self.stage(), Batching(1, window=0), 0, self.rows)
        return next(batches).examples[0]


class StreamBatches:
    """As `Batches`, from a stream. All processes read all of it, and take their share.

    batching: `window` batches are shuffled together, where `shuffle` is set; there are no lengths,
    so `tokens` has no meaning. rows: examples of an epoch, for `batches_per_epoch`.
    """

    def __init__(
        self,
        source: Source,
        stage: Stage,
        batching: Batching,
        seed: int,
        rows: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batching.tokens is not None:
            raise InputError(
                "a stream has no batches by tokens: their lengths are not known beforehand",
                advice="set batch_size instead",
            )
        self.source, self.stage, self.batching, self.seed = source, stage, batching, seed
        self.rows, self.rank, self.world = rows, rank, world
        self._width = batching.batch_size * max(1, batching.window)
        self._examples: list[Any] | None
        self._order: list[int]
        self._start(0)

    @property
    def batches_per_epoch(self) -> int:
        """As many as were promised; the stream itself decides."""
        return max(1, -(-self.rows // self.batching.batch_size))

    def __iter__(self) -> Iterator[Picked]:
        return self

    def __next__(self) -> Picked:
        size = self.batching.batch_size
        while True:
            examples = self._filled()
            places = self._order[self._used * size : (self._used + 1) * size]
            first = not self._window and not self._used
            if len(places) == size or (places and (first or not self.batching.drop_last)):
                break
            if not examples and first:
                raise InputError("there is nothing to train on: the stream is empty")
            if len(examples) < self._width:
                self._start(self._epoch + 1)
            else:
                self._begin(self._window + 1)
        self._used += 1
        own = places[self.rank :: self.world]
        before = self._window * self._width
        indices = [before + place for place in own]
        return Picked([examples[place] for place in own], self._epoch, indices)

    def _start(self, epoch: int) -> None:
        """Go to the beginning of an epoch; the stage holds nothing there."""
        self.source.start(epoch)
        self._epoch = epoch
        self._at = self._snapshot()
        self._taken = 0
        self._pending: list[Any] = []
        self._done = False
        self._begin(0)

    def _begin(self, window: int) -> None:
        """A window begins here; its examples are read when the first is asked for."""
        self._window, self._used = window, 0
        self._place = self._at | {"taken": self._taken}
        self._examples = None
        self._order = []

    def _filled(self) -> list[Any]:
        """The examples of the window, read once; their order is `_order`."""
        if self._examples is None:
            following = (self._next_example() for _ in range(self._width))
            self._examples = list(takewhile(lambda example: example is not _END, following))
            self._order = self._order_of(len(self._examples))
        return self._examples

    def _order_of(self, n: int) -> list[int]:
        if not self.batching.shuffle or not self.batching.window:
            return list(range(n))
        seed = self.seed + (self._window + 1) * 0x9E3779B97F4A7C15
        order: list[int] = permuted(np.arange(n, dtype=np.uint64), n, seed, self._epoch).tolist()
        return order

    def _next_example(self) -> Any:
        """The next example of the epoch, or _END. A row may make none, one or several."""
        while not self._pending:
            if self._done:
                return _END
            self._at, self._taken = self._snapshot(), 0
            row = next(self.source, _END)
            self._done = row is _END
            self._pending = list(self.stage.flush() if self._done else self.stage.add(row))
        self._taken += 1
        return self._pending.pop(0)

    def _snapshot(self) -> dict[str, Any]:
        return {"source": self.source.state(), "stage": self.stage.state()}

    def state(self) -> dict[str, Any]:
        """JSON: where the window began, which one it is, and how many of its batches are used."""
        numbers = {"epoch": self._epoch, "window": self._window, "used": self._used}
        return self._place | numbers

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken. Raises CheckpointError for what is none."""
        epoch, window, used, taken = (
            count_in(state, name) for name in ("epoch", "window", "used", "taken")
        )
        source, stage = state.get("source"), state.get("stage")
        if not isinstance(source, Mapping) or not isinstance(stage, Mapping):
            raise CheckpointError(f"{dict(state)!r} is no place in a stream")
        self._start(epoch)
        self.source.restore(source)
        self.stage.restore(stage)
        self._at = {"source": source, "stage": stage}
        for _ in range(taken):
            if self._next_example() is _END:
                raise CheckpointError("the stream is shorter than it was when the run was saved")
        self._begin(window)
        self._used = used


def batches_of(
    examples: Examples,
    batching: Batching,
    seed: int,
    rank: int = 0,
    world: int = 1,
    note: Callable[[str], None] | None = None,
) -> Batches | StreamBatches:
    """The batches of a Task's examples, be they in memory or streamed.

    note: is told of rows of a stream that cannot be used.
    """
    if not isinstance(examples, Streamed):
        return Batches(examples, batching, seed, rank, world)
    source, stage = examples.source(), examples.stage()
    source.note = note
    return StreamBatches(source, stage, batching, seed, examples.rows, rank, world)
