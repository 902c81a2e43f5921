"""What reading gives: rows, and of each row that could not be used the place and the reason."""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, overload

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InputError


@dataclass(frozen=True)
class Reject:
    """A row that could not be used. line: from 1; without lines, the number of the row; 0: the row
    is the whole file."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{place_of(self.file, self.line)}: {self.reason}"


@dataclass(frozen=True)
class Table:
    """rows: mappings by column. encodings: of each text file.

    Every row that was found is either in `rows` or in `rejects`, unless a limit has cut `rows`.
    source: what was read. columns: our name -> the file's, as they were asked for. found: how many
    rows there were, good and bad, before a limit.
    """

    rows: Sequence[FileRow]
    rejects: tuple[Reject, ...] = ()
    encodings: Mapping[str, str] = field(default_factory=dict)
    source: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    found: int = 0

    @property
    def encoding(self) -> str:
        """Of all text files; "" where there are none."""
        return "/".join(sorted(set(self.encodings.values())))


class FileRow(dict[str, Any]):
    """A row that knows its place, as a Reject does, so that a fault found later can say so."""

    __slots__ = ("file", "line")

    def __init__(self, record: Mapping[str, Any], file: str, line: int) -> None:
        super().__init__(record)
        self.file, self.line = file, line


def place_of(file: str, line: int) -> str:
    return f"{file}:{line}" if line else file


def where_of(row: Any, number: int) -> str:
    """For messages: "train.csv:101", or "row 9" where the file is not known."""
    return place_of(row.file, row.line) if isinstance(row, FileRow) else f"row {number}"


FETCHED: Final = 100
"""Rows that are fetched from the disk together while all are gone through."""


@dataclass(frozen=True, eq=False)
class MappedRows(Sequence[FileRow]):
    """Rows that stay on the disk, as those of Parquet and of the hub do.

    data: a Dataset of the datasets library, of one source or of several joined. starts, names:
    where in it each source begins, and what it is called. numbers: which of its rows these are.
    classes: what the numbers of a column mean, where it has names (ClassLabel); -1 is no label.
    columns: our name -> theirs.
    """

    data: Any
    starts: Sequence[int]
    names: Sequence[str]
    numbers: NDArray[np.int64]
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> FileRow: ...
    @overload
    def __getitem__(self, index: slice) -> MappedRows: ...
    def __getitem__(self, index: int | slice) -> FileRow | MappedRows:
        if isinstance(index, slice):
            return replace(self, numbers=self.numbers[index])
        number = int(self.numbers[index])
        return self._placed(self.data[number], number)

    def __iter__(self) -> Iterator[FileRow]:
        for start in range(0, len(self), FETCHED):
            numbers = self.numbers[start : start + FETCHED]
            columns = self.data[numbers]
            for values, number in zip(zip(*columns.values(), strict=True), numbers, strict=True):
                yield self._placed(dict(zip(columns, values, strict=True)), int(number))

    def _placed(self, record: Mapping[str, Any], number: int) -> FileRow:
        source = bisect_right(self.starts, number) - 1
        named = {c: _class_name(record[c], names) for c, names in self.classes.items()}
        return FileRow(
            renamed({**record, **named}, self.columns),
            self.names[source],
            number - self.starts[source] + 1,
        )

    def select(self, places: Sequence[int]) -> MappedRows:
        return replace(self, numbers=self.numbers[np.asarray(places, dtype=np.int64)])


def _class_name(value: Any, names: Sequence[str]) -> Any:
    if isinstance(value, list):
        return [_class_name(one, names) for one in value]
    return None if value is None or value < 0 else names[value]


def digest_of(rows: Iterable[Any]) -> str:
    """SHA-256 of rows in their order; of a picture that is named by its path, the path."""
    found = hashlib.sha256()
    for row in rows:
        _feed(found, row)
    return found.hexdigest()


def _feed(digest: Any, value: Any) -> None:
    """Kind and size go before the content, so that no two values are written alike."""
    if isinstance(value, Mapping):
        value = [part for pair in sorted(value.items()) for part in pair]
    if isinstance(value, list | tuple):
        digest.update(b"list %d " % len(value))
        for part in value:
            _feed(digest, part)
        return
    raw = value.tobytes() if hasattr(value, "tobytes") else value  # pixels
    raw = raw if isinstance(raw, bytes) else repr(raw).encode()
    digest.update(b"%s %d " % (type(value).__name__.encode(), len(raw)))
    digest.update(raw)


def renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """A record under our names; other columns keep theirs, but for one that stands in the way."""
    others = {k: v for k, v in record.items() if k not in columns.values() and k not in columns}
    return others | {ours: record[theirs] for ours, theirs in columns.items()}


def naming(ours: str, there: Iterable[Any]) -> str:
    """Advice where our column is not found: the columns that there are, and how to name one."""
    return (
        f"there are {', '.join(map(str, there))}; --data.columns.{ours}=NAME says which is meant "
        f"(in a recipe [data] columns.{ours}, in rows of your own the key {ours!r})"
    )


def check_columns(columns: Mapping[str, str], there: Sequence[str], where: str) -> None:
    """Raise InputError for a column that is in no row, naming those that there are."""
    for ours, name in columns.items():
        if there and name not in there:
            raise InputError(
                f"there is no column {name!r}",
                where=where,
                advice=naming(ours, sorted(map(str, there))),
            )


def check_rejects(
    bad: Sequence[Reject], good: int, share: float, shown: int = 5, advice: str = ""
) -> None:
    """Raise InputError where more than a share of all rows was rejected.

    advice: how to mend what all of them have in common.
    """
    total = len(bad) + good
    if len(bad) <= share * total:
        return
    more = f"; and {len(bad) - shown} more" if len(bad) > shown else ""
    raise InputError(
        f"{len(bad)} of {total} rows are bad: {'; '.join(map(str, bad[:shown]))}{more}",
        advice=advice
        or f"mend them, or allow them: --data.max_rejects={len(bad) / total + 5e-4:.3f}",
    )


def usable(table: Table, check: Callable[[Mapping[str, Any], int], object], share: float) -> Table:
    """The table without the rows for which `check` raises InputError; they become rejects.

    Rows that stay on the disk do so. Raises InputError where more than a share of all rows is then
    rejected.
    """
    good: list[int] = []
    bad: list[Reject] = []
    advice = ""
    for number, row in enumerate(table.rows):
        try:
            check(row, number)
            good.append(number)
        except InputError as error:
            reason = error.what.replace(where_of(row, number), "the row")
            advice = advice or error.advice
            bad.append(Reject(row.file, row.line, reason))
    rejects = sorted([*table.rejects, *bad], key=lambda reject: (reject.file, reject.line))
    # Where no row is good, it is the columns that are wrong, and more rejects would not help.
    mending = "" if good else advice
    check_rejects(rejects, table.found - len(rejects), share, advice=mending)
    if not good:
        raise InputError("there are no rows that can be used", where=table.source, advice=advice)
    rows = table.rows
    kept = rows.select(good) if isinstance(rows, MappedRows) else [rows[n] for n in good]
    return replace(table, rows=kept, rejects=tuple(rejects))
