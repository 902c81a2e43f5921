"""Rows from files and the hub: what was read, in which encoding, and what was rejected and why.

table = read_rows("train.csv", columns={"text": "本文", "label": "ラベル"})
"""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from chumoku.errors import InputError
from chumoku.training.data import formats, hub, pictures
from chumoku.training.data.csv_rows import read_csv
from chumoku.training.data.decoding import SURROGATE, damage, decoded, lines_of
from chumoku.training.data.detokenising import DETOKENISERS
from chumoku.training.data.formats import Found
from chumoku.training.data.json_rows import read_contexts, read_json, read_jsonl
from chumoku.training.data.tables import (
    FileRow,
    MappedRows,
    Reject,
    Table,
    check_columns,
    check_rejects,
    renamed,
)

__all__ = ["FORMATS", "Reject", "Table", "read_rows"]

READERS: Final[Mapping[str, Callable[[str], Found]]] = {
    "text": formats.read_text,
    "whole": formats.read_whole,
    "documents": formats.read_documents,
    "sentences": formats.read_sentences,
    "paragraphs": formats.read_paragraphs,
    "wikitext": formats.read_wikitext,
    "aozora": formats.read_aozora,
    "aozora-chapters": formats.read_aozora_chapters,
    "contexts": read_contexts,
    "label-text": formats.read_label_text,
    "conll": formats.read_conll,
    "csv": read_csv,
    "csv-no-header": partial(read_csv, header=False),
    "tsv": partial(read_csv, delimiter="\t"),
    "tsv-no-header": partial(read_csv, delimiter="\t", header=False),
    "jsonl": read_jsonl,
    "json": read_json,
}
"""Format -> reader of a file's text."""

PARALLEL: Final = "parallel"
FORMATS: Final = (*READERS, PARALLEL, "parquet", "images", "idx")

ENDINGS: Final = {
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".conll": "conll",
}
"""File ending -> format, where none is named."""


def read_rows(
    source: str | os.PathLike[str] | Sequence[str],
    *,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    encoding: str | None = None,
    max_rejects: float = 0.01,
    limit: int | None = None,
    detokenise: Sequence[str] = (),
) -> Table:
    """Read files, patterns of files (`part-*.csv`), folders of pictures, or `hf:org/name:split`.

    `sklearn:digits:train` and `:test` are scikit-learn's, `pictures.tar:train` a folder of a tar.
    format: a key of READERS (see its function), parquet, images, parallel (files of lines in pairs,
    sources and targets) or idx (files in pairs); by the file's ending where absent. A file may name
    its own before it: `aozora:cat.txt`, as files of several formats have to. columns: our
    name -> the file's. encoding: found out where absent. limit: the first so many rows.
    detokenise: languages of the two sides of parallel text that comes in tokens. Raises InputError
    where more than max_rejects of the rows are bad, where a column is missing, or where a file is
    none; SourceError where the hub's data cannot be had.
    """
    given = [source] if isinstance(source, str | os.PathLike) else source
    names = [name for pattern in given for name in files_of(os.fspath(pattern))]
    if not names:
        raise InputError("no file is named")
    if format is not None and format not in FORMATS:
        raise _unknown(f"{format!r} is no format", names[0])
    if format == PARALLEL:
        table = _parallel(names, encoding, detokenise)
    elif format == "idx":
        table = pictures.read_idx(names)
    else:
        table = _joined([_read_one(name, format, encoding, columns or {}) for name in names])
    check_rejects(table.rejects, len(table.rows), max_rejects)
    rows = table.rows[:limit]
    if not len(rows):
        raise InputError("there are no rows", where=", ".join(names))
    found = len(table.rows) + len(table.rejects)
    source = ", ".join(names)
    return Table(rows, table.rejects, table.encodings, source, dict(columns or {}), found)


def files_of(name: str) -> list[str]:
    """A pattern's files in order of their names; anything else stands for itself."""
    format, path = own_format(name)
    if name.startswith(("hf:", "sklearn:")) or Path(path).exists() or not glob.has_magic(path):
        return [name]
    found = sorted(glob.glob(path, recursive=True))
    if not found:
        raise InputError("no file fits this pattern", where=name)
    return found if format is None else [f"{format}:{one}" for one in found]


def own_format(name: str) -> tuple[str | None, str]:
    """`aozora:cat.txt` -> the format and the file; (None, name) where it names none."""
    format, colon, rest = name.partition(":")
    return (format, rest) if colon and format in READERS else (None, name)


def format_of(name: str) -> str:
    """By the ending of a file's name. Raises InputError."""
    path = Path(name)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if ending.lower() not in ENDINGS:
        raise _unknown("the format of this file is not known", name)
    return ENDINGS[ending.lower()]


def _unknown(what: str, where: str) -> InputError:
    return InputError(what, where=where, advice=f"name one of {', '.join(FORMATS)}")


def _read_one(
    name: str, format: str | None, encoding: str | None, columns: Mapping[str, str]
) -> Table:
    if name.startswith("hf:"):
        return hub.read_hub(name, columns)
    if name.startswith("sklearn:digits"):
        return pictures.read_digits(name)
    if format == "images" or (format is None and pictures.is_pictures(name)):
        return pictures.read_pictures(name)
    own, name = own_format(name)
    path, format = Path(name), own or format
    if not path.is_file():
        raise InputError("there is no such file", where=name)
    format = format or format_of(name)
    if format == "parquet":
        return hub.read_parquet(name, columns)
    return _from_text(path, format, encoding, columns)


def _from_text(path: Path, format: str, encoding: str | None, columns: Mapping[str, str]) -> Table:
    text, encoding = decoded(path, encoding)
    # Where neither is in the file, no value can hold damage, and none is searched for it.
    suspect = "\0" in text or "\\u" in text or SURROGATE.search(text) is not None
    name = str(path)
    rows: list[FileRow] = []
    rejects: list[Reject] = []
    seen: dict[str, None] = {}
    try:
        for line, found in READERS[format](text):
            if isinstance(found, str):
                rejects.append(Reject(name, line, found))
                continue
            seen |= dict.fromkeys(found)
            absent = next((c for c in columns.values() if found.get(c) is None), None)
            fault = f"no value in column {absent!r}" if absent else None
            if fault is None and suspect:
                fault = _damage_in(found, encoding)
            if fault is None:
                rows.append(FileRow(renamed(found, columns), name, line))
            else:
                rejects.append(Reject(name, line, fault))
    except ValueError as error:
        raise InputError(f"cannot be read as {format}: {error}", where=name) from error
    check_columns(columns, list(seen), name)
    return Table(rows, tuple(rejects), {name: encoding})


def _damage_in(value: Any, encoding: str) -> str | None:
    """Of a text, or of any text inside a list or an object, names included."""
    if isinstance(value, str):
        return damage(value, encoding)
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list):
        return next((fault for item in value if (fault := _damage_in(item, encoding))), None)
    return None


def _parallel(names: list[str], encoding: str | None, detokenise: Sequence[str]) -> Table:
    """Pairs of files with as many lines. -> {"source", "target"}; a pair with a gap is rejected.

    A row's place is that of its source.
    """
    if len(detokenise) not in (0, 2) or not set(detokenise) <= set(DETOKENISERS):
        raise InputError(
            f"{list(detokenise)} are not two of {', '.join(DETOKENISERS)}",
            where="[data] detokenise",
        )
    if len(names) % 2:
        raise InputError("parallel text is pairs of files: the sources, then the targets")
    cleaners = [DETOKENISERS[name] for name in detokenise] or [str.strip, str.strip]
    rows: list[FileRow] = []
    rejects: list[Reject] = []
    encodings: dict[str, str] = {}
    for pair in zip(names[::2], names[1::2], strict=True):
        texts = [decoded(Path(name), encoding) for name in pair]
        encodings |= {n: text.encoding for n, text in zip(pair, texts, strict=True)}
        sides = [[line for _, line in lines_of(text.text)] for text in texts]
        if len(sides[0]) != len(sides[1]):
            raise InputError(
                f"{len(sides[0])} lines in {pair[0]}, {len(sides[1])} in {pair[1]}",
                advice="parallel files have the same number of lines",
            )
        for number, both in enumerate(zip(*sides, strict=True), 1):
            faults = [_fault_of_side(t, d.encoding) for t, d in zip(both, texts, strict=True)]
            if any(faults):
                side = 0 if faults[0] else 1
                rejects.append(Reject(pair[side], number, faults[side] or ""))
                continue
            source, target = (clean(t.strip()) for clean, t in zip(cleaners, both, strict=True))
            rows.append(FileRow({"source": source, "target": target}, pair[0], number))
    return Table(rows, tuple(rejects), encodings)


def _fault_of_side(line: str, encoding: str) -> str | None:
    if not line.strip():
        return "one side is empty"
    return formats.too_long(line) or damage(line, encoding)


def _joined(tables: list[Table]) -> Table:
    if len(tables) == 1:
        return tables[0]
    rejects = tuple(reject for table in tables for reject in table.rejects)
    encodings = {name: own for table in tables for name, own in table.encodings.items()}
    mapped = [table.rows for table in tables if isinstance(table.rows, MappedRows)]
    if len(mapped) == len(tables):
        return Table(hub.joined(mapped), rejects, encodings)
    return Table([row for table in tables for row in table.rows], rejects, encodings)
