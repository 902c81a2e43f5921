"""Parquet files and the hub's data sets, through the datasets library, which maps them."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chumoku.errors import DependencyError, InputError, SourceError
from chumoku.training.data.decoding import bound_of
from chumoku.training.data.tables import MappedRows, Reject, Table, check_columns


def datasets_library() -> Any:
    """The module. Raises DependencyError."""
    try:
        import datasets
    except ImportError as error:
        raise DependencyError(
            "reading Parquet and the hub's data sets needs the datasets library",
            advice='pip install "chumoku[train]"',
        ) from error
    return datasets


def read_parquet(name: str, columns: Mapping[str, str]) -> Table:
    """A Parquet file; its rows stay on the disk, in the cache of the datasets library.

    Raises InputError for a file that is damaged, or says that it grows out of all proportion.
    """
    datasets = datasets_library()
    parquet: Any = importlib.import_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(name) as file:
            groups = range(file.metadata.num_row_groups)
            size = sum(file.metadata.row_group(i).total_byte_size for i in groups)
    except Exception as error:  # pyarrow's and datasets' errors have no common base
        raise InputError(f"cannot be read as Parquet: {error}", where=name) from error
    if size > bound_of(Path(name)):
        raise InputError(f"the file grows to {size} bytes", where=name)
    try:
        data = datasets.Dataset.from_parquet(name)
    except Exception as error:  # as above
        reason = error.__cause__ or error
        raise InputError(f"cannot be read as Parquet: {reason}", where=name) from error
    return _table(data, columns, name)


def read_hub(name: str, columns: Mapping[str, str]) -> Table:
    """`hf:org/name/config@revision:split`; all but the name may be absent; the split then is train.

    A split may be a part of one, `train[:500]`. A column may lie in another: `translation.en`.
    HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN mean what they mean everywhere. Raises
    SourceError.
    """
    return _table(_loaded(name, streaming=False), columns, name)


def open_hub(name: str, columns: Mapping[str, str]) -> Any:
    """The same as an IterableDataset with its own names: rows are fetched when asked for."""
    data = _loaded(name, streaming=True)
    if data.column_names is not None:
        check_columns({o: t.partition(".")[0] for o, t in columns.items()}, data.column_names, name)
    return data


def _loaded(name: str, *, streaming: bool) -> Any:
    path, _, split = name.removeprefix("hf:").partition(":")
    path, _, revision = path.partition("@")
    parts = path.split("/", 2)
    config = parts[2] if len(parts) == 3 else None
    load, split = datasets_library().load_dataset, split or "train"
    try:
        return load(
            "/".join(parts[:2]),
            config,
            split=split,
            revision=revision or None,
            streaming=streaming,
        )
    except DependencyError:
        raise
    except Exception as error:  # as above
        raise SourceError(
            f"the data set cannot be had: {' '.join(repr(error).split())[:300]}",
            where=name,
            advice="check its name and the network, or point --data to a local copy",
        ) from error


def _table(data: Any, columns: Mapping[str, str], where: str) -> Table:
    """Under our names, without the rows that have no value in a column that was asked for.

    Pictures stay the bytes of their files: one that is damaged is for the objective to find.
    """
    if any("." in theirs for theirs in columns.values()):
        data = data.flatten()  # a column of records becomes columns "name.field"
    check_columns(columns, data.column_names, where)
    bad: dict[int, str] = {}
    for theirs in columns.values():
        column = data.with_format("arrow")[:][theirs] if _has_gap(data, theirs) else ()
        for number, value in enumerate(column):
            if not value.is_valid:
                bad.setdefault(number, f"no value in column {theirs!r}")
    numbers = np.delete(np.arange(len(data)), list(bad))
    kind = datasets_library().Image
    for name in [name for name, feature in data.features.items() if isinstance(feature, kind)]:
        data = data.cast_column(name, kind(decode=False))
    found = {name: _classes(feature) for name, feature in data.features.items()}
    classes = {name: names for name, names in found.items() if names is not None}
    rejects = tuple(Reject(where, number + 1, bad[number]) for number in sorted(bad))
    return Table(MappedRows(data, [0], [where], numbers, classes, columns), rejects)


def _classes(feature: Any) -> Sequence[str] | None:
    """The class names of a column, or of the items of its lists."""
    names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names


def joined(all_rows: Sequence[MappedRows]) -> MappedRows:
    """The rows of several sources, one behind the other; they stay on the disk.

    Raises InputError where their columns, or the classes in them, are not the same.
    """
    try:
        data = datasets_library().concatenate_datasets([rows.data for rows in all_rows])
    except ValueError as error:
        names = " and ".join(name for rows in all_rows for name in rows.names)
        raise InputError(f"their columns do not fit together: {error}", where=names) from error
    before = np.cumsum([0, *(len(rows.data) for rows in all_rows[:-1])]).tolist()
    shifted = list(zip(all_rows, before, strict=True))
    return MappedRows(
        data,
        [start + shift for rows, shift in shifted for start in rows.starts],
        [name for rows in all_rows for name in rows.names],
        np.concatenate([rows.numbers + shift for rows, shift in shifted]),
        all_rows[0].classes,
        all_rows[0].columns,
    )


def _has_gap(data: Any, name: str) -> bool:
    return bool(data.data.column(name).null_count)
