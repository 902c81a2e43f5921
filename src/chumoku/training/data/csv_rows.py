"""CSV and TSV (RFC 4180). A row that is broken is given up alone: the next line begins a new one.

(Python's csv module gives up all that an unclosed quote has swallowed; that would lose rows.)
"""

from __future__ import annotations

from typing import Final

from chumoku.training.data.decoding import newline_of
from chumoku.training.data.formats import MAX_LINE, Found

DELIMITERS: Final = (",", "\t", ";")
MOST_LINES: Final = 1000
"""Lines of a row; a quote that is open for longer was not meant to be."""


def read_csv(text: str, delimiter: str | None = None, header: bool = True) -> Found:
    """Any line ends inside quotes. Without a header the columns are "0", "1", ….

    delimiter: by the first line where absent. Blank lines are skipped. Rejected: a row of another
    width than the first, an unclosed quote, text behind a closing quote, a CR in the open. Raises
    ValueError for a header that is broken or names a column twice.
    """
    lines = text.split(newline_of(text))
    names: list[str] | None = None
    place = 0
    while place < len(lines):
        number = place + 1
        if lines[place] in ("", "\r"):
            place += 1
            continue
        if delimiter is None:
            delimiter = next((d for d in DELIMITERS if d in lines[place]), ",")
        row, place = _row(lines, place, delimiter, newline_of(text))
        if names is None and header:
            names = _header(row)
        elif isinstance(row, str):
            yield number, row
        else:
            names = names or [str(i) for i in range(len(row))]
            if len(row) == len(names):
                yield number, dict(zip(names, row, strict=True))
            else:
                yield number, f"{len(row)} columns where there are {len(names)}"


def _header(row: list[str] | str) -> list[str]:
    if isinstance(row, str):
        raise ValueError(f"its header has {row}")
    doubled = sorted({name for name in row if row.count(name) > 1})
    if doubled:
        raise ValueError(f"its header names {doubled[0]!r} twice")
    return row


def _row(lines: list[str], start: int, delimiter: str, newline: str) -> tuple[list[str] | str, int]:
    """The row that begins in a line, or why there is none; and the line to go on with."""
    text, end = lines[start], start + 1
    if len(text) > MAX_LINE:
        return f"{len(text)} characters in a line; the limit is {MAX_LINE}", end
    if '"' not in text:
        return _closed(text.removesuffix("\r").split(delimiter)), end
    cells: list[str] = []
    bare: list[str] = []
    place = 0
    while True:
        if text.startswith('"', place):
            close = _closing(text, place + 1)
            while close < 0 and end < len(lines) and end - start < MOST_LINES:
                text += newline + lines[end]
                end += 1
                close = _closing(text, place + 1)
            if close < 0:
                return "a quote that is not closed", start + 1
            cells.append(text[place + 1 : close].replace('""', '"'))
            place = close + 1
        else:
            stop = text.find(delimiter, place)
            cell = text[place:].removesuffix("\r") if stop < 0 else text[place:stop]
            place = len(text) if stop < 0 else stop
            cells.append(cell)
            bare.append(cell)
        if text[place : place + 2] in ("", "\r"):
            fault = _closed(bare)
            return (fault if isinstance(fault, str) else cells), end
        if text[place] != delimiter:
            return "text behind a closing quote", start + 1
        place += 1


def _closing(text: str, place: int) -> int:
    """Where a quoted cell ends, from inside it; -1: not in this text. Two quotes are one."""
    while True:
        place = text.find('"', place)
        if place < 0 or not text.startswith('""', place):
            return place
        place += 2


def _closed(cells: list[str]) -> list[str] | str:
    """Cells without quotes, which hold no line end."""
    return "a CR in the open" if any("\r" in cell for cell in cells) else cells
