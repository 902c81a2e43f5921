"""CSV (RFC 4180) and TSV. A row that is broken is given up alone: the next line begins a new one.

In TSV a line is a row. GLUE's files are written without quoting, a spreadsheet's with it: quotes
are taken off a cell that begins with one and whose closing one stands before a tab or the line end.
Any other quote is a character. Where that gives another width than the first row's, a split at
every tab is tried. A quoted cell may hold tabs, and line ends where the lines are not of the first
row's width for themselves, and together are.

(Python's csv module gives up all that an unclosed quote has swallowed; that would lose rows.)
"""

from __future__ import annotations

import re
from typing import Final

from chumoku.training.data.decoding import newline_of
from chumoku.training.data.formats import MAX_LINE, Found

DELIMITERS: Final = (",", "\t", ";")
MOST_LINES: Final = 1000
"""Lines of a row; a quote that is open for longer was not meant to be."""

SEPARATOR: Final = re.compile(r"sep=(.)\r?")
OPEN: Final = re.compile(r'(?:^|\t)"(?:[^"]|"")*$')
"""A line of TSV whose last cell begins with a quote that is not closed in it."""
QUOTED: Final = re.compile(r'"([^"]*(?:""[^"]*)*)"(?=\t|$)')
"""A cell of TSV in quotes."""


def read_csv(text: str, delimiter: str | None = None, header: bool = True) -> Found:
    """Any line ends inside quotes. Without a header the columns are "0", "1", ….

    delimiter: by the first line where absent; a tab that is given makes it TSV (see above). Blank
    lines are skipped, and Excel's first line `sep=;` says what it says. Spaces around a name are
    not of it; a column without one is "column 3". Rejected: a row of another width than the first,
    an unclosed quote, text behind a closing quote, a CR in the open. Raises ValueError for a header
    that is broken or names a column twice.
    """
    lines = text.split(newline_of(text))
    names: list[str] | None = None
    place = 0
    tsv = delimiter == "\t"
    if delimiter is None and (said := SEPARATOR.fullmatch(lines[0])) is not None:
        delimiter, place = said[1], 1
    while place < len(lines):
        number = place + 1
        if lines[place] in ("", "\r"):
            place += 1
            continue
        if delimiter is None:
            delimiter = next((d for d in DELIMITERS if d in lines[place]), ",")
        if tsv:
            row, place = _tsv_row(lines, place, len(names or ()), newline_of(text))
        else:
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
    names = [name.strip() or f"column {number}" for number, name in enumerate(row, 1)]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"its header names {doubled[0]!r} twice")
    return names


def _row(lines: list[str], start: int, delimiter: str, newline: str) -> tuple[list[str] | str, int]:
    """The row that begins in a line, or why there is none; and the line to go on with."""
    text, end = lines[start], start + 1
    if len(text) > MAX_LINE:
        return _too_long(text), end
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


def _tsv_row(lines: list[str], start: int, width: int, newline: str) -> tuple[list[str] | str, int]:
    """The row of TSV that begins in a line, and the line to go on with. width: of the first row;
    0: this is it."""
    cells = _tsv_line(lines[start], width)
    if width and OPEN.search(lines[start].removesuffix("\r")):
        return _tsv_joined(lines, start, width, newline) or (cells, start + 1)
    return cells, start + 1


def _tsv_joined(
    lines: list[str], start: int, width: int, newline: str
) -> tuple[list[str], int] | None:
    """A row with a line end in quotes: of the right width as a whole, and not line by line."""
    text = lines[start].removesuffix("\r")
    alone = len(_tsv_cells(text)[0]) == width
    for end in range(start + 1, min(start + MOST_LINES, len(lines))):
        line = lines[end].removesuffix("\r")
        alone = alone and len(_tsv_cells(line)[0]) == width
        text += newline + line
        if '"' in line and not OPEN.search(text):
            cells, bare = _tsv_cells(text)
            whole = len(cells) == width and not any(newline in cell for cell in bare)
            return (cells, end + 1) if whole and not alone else None
    return None


def _tsv_line(line: str, width: int) -> list[str] | str:
    """The cells of a line of TSV that stands for itself."""
    if len(line) > MAX_LINE:
        return _too_long(line)
    line = line.removesuffix("\r")
    cells, bare = _tsv_cells(line)
    plain = line.split("\t")
    if width in (len(cells), 0) or len(plain) != width:
        fault = _closed(bare)
        return fault if isinstance(fault, str) else cells
    return _closed(plain)


def _tsv_cells(line: str) -> tuple[list[str], list[str]]:
    """All cells, and those that were not in quotes."""
    cells: list[str] = []
    bare: list[str] = []
    place = 0
    while True:
        quoted = QUOTED.match(line, place)
        if quoted is not None:
            cells.append(quoted[1].replace('""', '"'))
            end = quoted.end()
        else:
            end = line.find("\t", place)
            end = len(line) if end < 0 else end
            cells.append(line[place:end])
            bare.append(line[place:end])
        if end == len(line):
            return cells, bare
        place = end + 1


def _too_long(line: str) -> str:
    return f"{len(line)} characters in a line; the limit is {MAX_LINE}"


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
