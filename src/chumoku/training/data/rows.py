"""Rows from files and the hub: what was read, in which encoding, and what was rejected and why.

table = read_rows("train.csv", columns={"text": "本文", "label": "ラベル"})
"""

from __future__ import annotations

import codecs
import gzip
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from PIL import Image

from chumoku.errors import DependencyError, InputError, SourceError
from chumoku.training.data.detokenising import DETOKENISERS
from chumoku.training.data.formats import ENDINGS, READERS, Record

BOMS: Final = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GUESSES: Final = ("utf-8", "cp932")
MAX_EXPANSION: Final = 200
"""A .gz may grow by so much, and to MAX_BYTES at most."""
MAX_BYTES: Final = 8 << 30
PARALLEL: Final = "parallel"
IMAGES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
SHOWN: Final = 5


@dataclass(frozen=True)
class Reject:
    """A row that could not be used. line: from 1; of a JSON list, the number of the item."""

    file: str
    line: int
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass(frozen=True)
class Table:
    """rows: mappings by column. encoding: of the text files, "" where there are none.

    Every row that was found is in `rows` or in `rejects`.
    """

    rows: Sequence[Mapping[str, Any]]
    rejects: tuple[Reject, ...] = ()
    encoding: str = ""
    source: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)


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
    """Read files, folders of images by class, or `hf:org/name:split`.

    `sklearn:digits:train` and `:test` are scikit-learn's, `pictures.tar:train` a folder of a tar.
    format: a key of READERS (formats.py has a function for each), parquet, images, or parallel (two
    files of lines, source and target); by the file's ending where absent. columns: our name -> the
    file's. encoding: found out where absent. limit: the first so many rows. detokenise: languages
    of the two sides of parallel text that comes in tokens. Raises InputError where more than
    max_rejects of the rows are bad, where a column is missing, or where a file is none; SourceError
    where the hub cannot be reached.
    """
    names = [os.fspath(source)] if isinstance(source, str | os.PathLike) else list(source)
    if not names:
        raise InputError("no file is named")
    if format == PARALLEL:
        table = _parallel(names, encoding, detokenise)
    else:
        tables = [_read_one(name, format, encoding, columns or {}) for name in names]
        table = tables[0] if len(tables) == 1 else _joined(tables)
    _check_rejects(table, max_rejects)
    rows = table.rows if limit is None else _first(table.rows, limit)
    if not len(rows):
        raise InputError("there are no rows", where=", ".join(names))
    return Table(rows, table.rejects, table.encoding, ", ".join(names), dict(columns or {}))


def _read_one(
    name: str, format: str | None, encoding: str | None, columns: Mapping[str, str]
) -> Table:
    if name.startswith("hf:"):
        return Table(_under_our_names(_from_hub(name), columns, name))
    if name.startswith("sklearn:digits"):
        return Table(_digits(name))
    path = Path(name)
    if path.is_dir() or format == "images":
        archive, _, folder = name.rpartition(":")
        return Table(_images_in_tar(Path(archive), folder) if archive else _images(path))
    if not path.is_file():
        raise InputError("there is no such file", where=name)
    ending = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    format = format or ENDINGS.get(ending.lower()) or ""
    if format == "parquet":
        return Table(_under_our_names(_parquet(name), columns, name))
    if format not in READERS:
        raise InputError(
            f"{format!r} is no format" if format else "the format of this file is not known",
            where=name,
            advice=f"name one of {', '.join([*READERS, PARALLEL, 'parquet', 'images'])}",
        )
    text, encoding = _decoded(path, encoding)
    rows: list[Record] = []
    rejects: list[Reject] = []
    seen: set[str] = set()
    try:
        for line, found in READERS[format](text):
            if isinstance(found, str):
                rejects.append(Reject(name, line, found))
                continue
            seen |= found.keys()
            missing = [theirs for theirs in columns.values() if theirs not in found]
            if missing:
                rejects.append(Reject(name, line, f"no column {missing[0]!r}"))
            else:
                rows.append(_renamed(found, columns))
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"the file is no {format}: {error}", where=name) from error
    _check_columns(columns, seen, name)
    return Table(rows, tuple(rejects), encoding)


def _renamed(row: Mapping[str, Any], columns: Mapping[str, str]) -> Record:
    """The row under our names; other columns keep theirs, but for one that stands in the way."""
    others = {k: v for k, v in row.items() if k not in columns.values() and k not in columns}
    return others | {ours: row[theirs] for ours, theirs in columns.items()}


def _check_columns(columns: Mapping[str, str], seen: set[str], where: str) -> None:
    for name in columns.values():
        if seen and name not in seen:
            raise InputError(
                f"there is no column {name!r}",
                where=where,
                advice=f"there are {', '.join(sorted(map(str, seen)))}",
            )


def _under_our_names(data: Any, columns: Mapping[str, str], where: str) -> Any:
    """The same of a data set of the datasets library."""
    _check_columns(columns, set(data.column_names), where)
    moved = {theirs: ours for ours, theirs in columns.items() if ours != theirs}
    data = data.remove_columns([c for c in moved.values() if c in data.column_names])
    return data.rename_columns(moved)


def _decoded(path: Path, encoding: str | None) -> tuple[str, str]:
    """A file's text, and the name of its encoding. Raises InputError where none fits."""
    raw = _bytes(path)
    if encoding is None:
        encoding = next((name for mark, name in BOMS if raw.startswith(mark)), None)
    for name in GUESSES if encoding is None else (encoding,):
        try:
            text = raw.decode(name)
            if encoding is not None or name == "utf-8" or _is_japanese(text):
                return text, name
        except (UnicodeDecodeError, LookupError) as error:
            fault = error
    where = str(path)
    if isinstance(fault, UnicodeDecodeError):
        line = raw.count(b"\n", 0, fault.start) + 1
        where = f"{path}, line {line}, byte {fault.start}"
    raise InputError(
        f"the text is not in {encoding or ' nor '.join(GUESSES)}",
        where=where,
        advice='name its encoding: --data.encoding=utf-16 ("encoding" of Python\'s codecs)',
    )


def _is_japanese(text: str) -> bool:
    """Whether kana are among the characters beyond ASCII: Western bytes decode as cp932 too."""
    beyond = [c for c in text if c > "\x7f"]
    return sum("\u3041" <= c <= "\u30ff" for c in beyond) * 10 >= len(beyond)


def _bytes(path: Path) -> bytes:
    if path.suffix != ".gz":
        return path.read_bytes()
    limit = min(MAX_BYTES, max(1 << 20, path.stat().st_size * MAX_EXPANSION))
    try:
        with gzip.open(path) as stream:
            raw = stream.read(limit + 1)
    except (OSError, EOFError) as error:
        raise InputError(f"the .gz file is damaged: {error}", where=path) from error
    if len(raw) > limit:
        raise InputError(f"the .gz file grows to more than {limit} bytes", where=path)
    return raw


def _parallel(names: list[str], encoding: str | None, detokenise: Sequence[str]) -> Table:
    """Two files of the same number of lines. -> {"source", "target"}; a pair with a gap is bad."""
    if len(detokenise) not in (0, 2) or not set(detokenise) <= set(DETOKENISERS):
        raise InputError(
            f"{list(detokenise)} are not two of {', '.join(DETOKENISERS)}",
            where="[data] detokenise",
        )
    if len(names) != 2:
        raise InputError("parallel text is two files: the sources and the targets")
    texts = [_decoded(Path(name), encoding) for name in names if _exists(name)]
    sources, targets = (text.splitlines() for text, _ in texts)
    if len(sources) != len(targets):
        raise InputError(
            f"{len(sources)} lines in {names[0]}, {len(targets)} in {names[1]}",
            advice="parallel files have the same number of lines",
        )
    rows: list[Record] = []
    rejects = []
    for line, (source, target) in enumerate(zip(sources, targets, strict=True), 1):
        if source.strip() and target.strip():
            pair = [source.strip(), target.strip()]
            if detokenise:
                pair = [DETOKENISERS[k](t) for k, t in zip(detokenise, pair, strict=True)]
            rows.append({"source": pair[0], "target": pair[1]})
        else:
            rejects.append(Reject(names[0], line, "one side is empty"))
    return Table(rows, tuple(rejects), texts[0][1])


def _exists(name: str) -> bool:
    if not Path(name).is_file():
        raise InputError("there is no such file", where=name)
    return True


def _images(folder: Path) -> list[Record]:
    """Pictures by class folder, also in a tar. -> {"image": path or image, "label": the folder}"""
    if folder.is_file():
        return _images_in_tar(folder, "")
    files = sorted(p for p in folder.glob("*/*") if p.suffix.lower() in IMAGES)
    if not files:
        raise InputError(
            "no pictures in folders of classes", where=folder, advice="FOLDER/CLASS/picture.png"
        )
    return [{"image": str(path), "label": path.parent.name} for path in files]


def _images_in_tar(path: Path, folder: str) -> list[Record]:
    """Read in memory, nothing is unpacked; members that are no regular files are passed by."""
    rows = []
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                place = PurePosixPath(member.name)
                stream = archive.extractfile(member) if member.isreg() else None
                if not place.is_relative_to(folder):
                    continue
                if stream is None or place.suffix.lower() not in IMAGES:
                    continue
                image = Image.open(io.BytesIO(stream.read()))
                image.load()
                rows.append({"image": image, "label": place.parent.name, "file": str(place)})
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"cannot be read as a tar of pictures: {error}", where=path) from error
    return rows


def _digits(name: str) -> list[Record]:
    """scikit-learn's 1,797 digits, 8 x 8; every fifth is for the test (`sklearn:digits:test`)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "the digits come with scikit-learn", advice='pip install "chumoku[train]"'
        ) from error
    digits = load_digits()
    test = name.endswith(":test")
    return [
        {"image": Image.fromarray((pixels * 15.9375).round().astype("uint8")), "label": str(label)}
        for number, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True))
        if (number % 5 == 0) == test
    ]


def _datasets() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(
            "reading Parquet and the hub's data sets needs the datasets library",
            advice='pip install "chumoku[train]"',
        ) from error
    return datasets


def _parquet(name: str) -> Any:
    """Memory-mapped by the datasets library."""
    datasets = _datasets()
    try:
        return datasets.Dataset.from_parquet(name)
    except Exception as error:  # pyarrow's and datasets' errors have no common base
        raise InputError(f"cannot be read as Parquet: {error}", where=name) from error


def _from_hub(name: str) -> Any:
    """`hf:org/name:split`, `hf:org/name/config:split`."""
    datasets = _datasets()
    path, _, split = name.removeprefix("hf:").partition(":")
    org, _, rest = path.partition("/")
    title, _, config = rest.partition("/")
    try:
        return datasets.load_dataset(f"{org}/{title}", config or None, split=split or "train")
    except Exception as error:  # as above
        raise SourceError(
            f"the data set cannot be had: {str(error).splitlines()[0][:300]}",
            where=name,
            advice="check its name and the network, or point --data to a local copy",
        ) from error


def _joined(tables: list[Table]) -> Table:
    rows = [row for table in tables for row in table.rows]
    rejects = tuple(reject for table in tables for reject in table.rejects)
    return Table(rows, rejects, "/".join(sorted({t.encoding for t in tables if t.encoding})))


def _first(rows: Any, limit: int) -> Any:
    return rows.select(range(min(limit, len(rows)))) if hasattr(rows, "select") else rows[:limit]


def _check_rejects(table: Table, share: float) -> None:
    bad, all_rows = len(table.rejects), len(table.rejects) + len(table.rows)
    if bad > share * all_rows:
        raise InputError(
            f"{bad} of {all_rows} rows are bad: {'; '.join(map(str, table.rejects[:SHOWN]))}",
            advice=f"mend them, or allow them: --data.max_rejects={bad / all_rows:.3g}",
        )
