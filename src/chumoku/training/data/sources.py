"""Where the rows of a stream come from: any iterator, the datasets library, files of lines."""

from __future__ import annotations

import copy
import gzip
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any, Final, Protocol

from chumoku.errors import CheckpointError, InputError
from chumoku.training.data.batching import count_in
from chumoku.training.data.decoding import damage
from chumoku.training.data.formats import MAX_LINE, Record, too_long
from chumoku.training.data.json_rows import object_of
from chumoku.training.data.tables import Reject, check_rejects, renamed

Note = Callable[[str], None]


class Source(Protocol):
    """The rows of one epoch after another. `state` is JSON. note: told of rows that are no good."""

    note: Note | None

    def start(self, epoch: int) -> None:
        """Go to the first row of an epoch."""
        ...

    def __next__(self) -> Any:
        """A row; StopIteration at the end of the epoch."""
        ...

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on behind the last row that had been given when `state` was taken."""
        ...


class Reopened:
    """Any rows that can be opened at a number: open(epoch, row) -> an iterator from there on."""

    note: Note | None = None

    def __init__(self, open: Callable[[int, int], Iterator[Any]]) -> None:
        self.open = open
        self.start(0)

    def start(self, epoch: int) -> None:
        self._epoch, self._row = epoch, 0
        self._rows = self.open(epoch, 0)

    def __next__(self) -> Any:
        row = next(self._rows)
        self._row += 1
        return row

    def state(self) -> dict[str, Any]:
        return {"epoch": self._epoch, "row": self._row}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._epoch, self._row = count_in(state, "epoch"), count_in(state, "row")
        self._rows = self.open(self._epoch, self._row)


JUDGED_FROM: Final = 1000
"""Rows after which the share of bad ones is held against its limit."""
NOTED: Final = 20
"""So many bad rows of an epoch are told of one by one."""


class Tally:
    """How many rows an epoch had so far, and which of them are bad.

    InputError is raised where more than max_rejects of them are, after a thousand rows and when
    judge() is called at the end.
    """

    def __init__(self, max_rejects: float) -> None:
        self.max_rejects = max_rejects
        self.rejects: list[Reject] = []
        self.start()

    def start(self) -> None:
        self.rejects.clear()
        self.rows = self.bad = 0

    def reject(self, bad: Reject, note: Note | None) -> None:
        self.rows += 1
        self.bad += 1
        self.rejects.append(bad)
        if note is not None and self.bad <= NOTED:
            note(str(bad))
        if self.rows >= JUDGED_FROM:
            self.judge()

    def judge(self) -> None:
        if self.bad > self.max_rejects * self.rows:
            check_rejects(self.rejects, self.rows - self.bad, self.max_rejects)
            # Where the run has gone on in mid-epoch, `rejects` has only those since then.
            where = self.rejects[-1].file if self.rejects else None
            raise InputError(f"{self.bad} of {self.rows} rows are bad", where=where)

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows, "bad": self.bad}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rows, self.bad = count_in(state, "rows"), count_in(state, "bad")


class HubRows:
    """An IterableDataset of the datasets library (`streaming=True`), by its own state_dict.

    Do not shuffle it: its shuffling keeps a buffer that no state holds. Windows are shuffled here.
    columns: our name -> theirs, for columns in which each row must have a text; a row without is
    rejected, see Tally. A column may lie in another: `page.body`. name: that of the data set.
    """

    note: Note | None = None

    def __init__(
        self,
        data: Any,
        columns: Mapping[str, str] | None = None,
        name: str = "",
        max_rejects: float = 0.01,
    ) -> None:
        self.data, self.columns, self.name = data, columns or {}, name
        self.tally = Tally(max_rejects)
        self._rows: Iterator[Any]
        self._loaded: dict[str, Any] | None
        self._start: dict[str, Any] = data.state_dict()
        self.start(0)

    def start(self, epoch: int) -> None:
        self.tally.start()
        self.restore({"data": self._start, **self.tally.state()})

    def __next__(self) -> Any:
        for row in self._rows:
            self._loaded = None
            found = {theirs: _field(row, theirs) for theirs in self.columns.values()}
            wrong = next((name for name in found if not isinstance(found[name], str)), None)
            if wrong is None:
                self.tally.rows += 1
                return renamed({**row, **found}, self.columns)
            columns = ", ".join(map(str, row))
            reason = f"no text in {wrong!r} but {found[wrong]!r:.60}; it has {columns}"
            self.tally.reject(Reject(self.name, self.tally.rows + 1, reason), self.note)
        self.tally.judge()
        raise StopIteration

    def state(self) -> dict[str, Any]:
        # Until a row is read, the library still says where it stood before it was put back.
        return {"data": self._loaded or self.data.state_dict(), **self.tally.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.tally.restore(state)
        try:
            self._loaded = copy.deepcopy(state["data"])
            self.data.load_state_dict(copy.deepcopy(state["data"]))  # which it may change
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{dict(state)!r} is no place in the data") from error
        self._rows = iter(self.data)


def _field(record: Mapping[str, Any], name: str) -> Any:
    """record["page"]["body"] for "page.body"; None where there is none."""
    outer, dot, inner = name.partition(".")
    if name in record or not dot:
        return record.get(name)
    nested = record.get(outer)
    return _field(nested, inner) if isinstance(nested, Mapping) else None


LINE_READERS: Final[Mapping[str, Callable[[str], Record | str]]] = {
    "text": lambda line: {"text": line},
    "jsonl": object_of,
}


class LineRows:
    """Lines of files of any size, in UTF-8, also .gz: format "text" or "jsonl".

    columns: our name -> the file's, for columns in which each row must have a text.
    What cannot be used is rejected, see Tally. A state is the place in bytes, so resuming does not
    read what came before it (but unpacks it again, in a .gz).
    """

    note: Note | None = None

    def __init__(
        self,
        names: Sequence[str],
        format: str,
        max_rejects: float = 0.01,
        columns: Mapping[str, str] | None = None,
    ) -> None:
        self._stream: IO[bytes] | gzip.GzipFile | None = None
        if format not in LINE_READERS:
            known = ", ".join(LINE_READERS)
            raise InputError(f"{format!r} cannot be read as a stream", advice=f"one of {known}")
        if not names:
            raise InputError("no file is named")
        self.names, self.format, self.tally = list(names), format, Tally(max_rejects)
        self.columns = columns or {}
        self._bytes = sum(map(_size, self.names))
        self.start(0)

    def start(self, epoch: int) -> None:
        self._close()
        self.tally.start()
        self._file = self._line = self._offset = 0

    def __next__(self) -> Record:
        while True:
            line = self._next_line()
            if not line.strip():
                continue
            text = line.decode("utf-8", "surrogateescape")
            fault = too_long(text) or damage(text, "utf-8")
            found = fault or self._read(text)
            if not isinstance(found, str):
                self.tally.rows += 1
                return found
            self.tally.reject(Reject(self.names[self._file], self._line, found), self.note)

    def _read(self, text: str) -> Record | str:
        """The row of a line under our names, or what is wrong with it."""
        found = LINE_READERS[self.format](text)
        if isinstance(found, str):
            return found
        wrong = next((c for c in self.columns.values() if not isinstance(found.get(c), str)), None)
        return renamed(found, self.columns) if wrong is None else f"no text in column {wrong!r}"

    def _next_line(self) -> bytes:
        """The next line of all files, without its end. Of one that is too long, its beginning."""
        while self._file < len(self.names):
            if self._stream is None:
                self._stream = self._opened(self.names[self._file])
            try:
                line = self._stream.readline(MAX_LINE * 4 + 1)
                rest = line
                while rest and not rest.endswith(b"\n"):
                    rest = self._stream.readline(MAX_LINE)
            except (OSError, EOFError) as error:
                place = f"{self.names[self._file]}:{self._line + 1}"
                raise InputError(f"the file cannot be read on: {error}", where=place) from error
            if line:
                self._line += 1
                self._offset = self._stream.tell()
                first = self._line == 1 and line.startswith(b"\xef\xbb\xbf")
                return (line[3:] if first else line).removesuffix(b"\n").removesuffix(b"\r")
            self._close()
            self._file, self._line, self._offset = self._file + 1, 0, 0
        self.tally.judge()
        raise StopIteration

    def _opened(self, name: str) -> IO[bytes] | gzip.GzipFile:
        try:
            stream: IO[bytes] | gzip.GzipFile
            stream = gzip.GzipFile(name) if name.endswith(".gz") else open(name, "rb")  # noqa: SIM115
            stream.seek(self._offset)
        except (OSError, EOFError) as error:
            raise InputError(f"the file cannot be read: {error}", where=name) from error
        return stream

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._stream = None

    def __del__(self) -> None:
        self._close()

    def state(self) -> dict[str, Any]:
        names = ("file", "line", "offset", "bytes")
        return {name: getattr(self, f"_{name}") for name in names} | self.tally.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        names = ("file", "line", "offset")
        values = [count_in(state, name) for name in names]
        if values[0] > len(self.names):
            raise CheckpointError(f"there is no file number {values[0]} in the data")
        if count_in(state, "bytes") != self._bytes:
            raise CheckpointError(
                f"the run was on {state['bytes']} bytes of text, now there are {self._bytes}",
                where=self.names[0],
                advice="go on with the data of the run, or start a new one",
            )
        self.tally.restore(state)
        self._close()
        self._file, self._line, self._offset = values


def _size(name: str) -> int:
    try:
        return os.stat(name).st_size
    except OSError as error:
        raise InputError(f"the file cannot be read: {error}", where=name) from error
