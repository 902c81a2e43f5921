"""Where the rows of a recipe's [data] section are found, as tables or as a stream."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from chumoku.errors import ConfigError, InputError
from chumoku.training.data.order import permuted
from chumoku.training.data.rows import Table, own_format, read_rows
from chumoku.training.data.streaming import RowStream, row_stream
from chumoku.training.recipe import DataSection, Recipe

ENDS: Final = (".tar", ".tar.gz", ".zip")
"""Archives of which a folder may be named: `pictures.tar:train`."""
HOLDOUT_SEED: Final = 0
"""Not the run's: runs with other seeds are judged on the same rows."""


def read_data(section: DataSection, places: Sequence[Path]) -> dict[str, Table]:
    """The tables of a [data] section: train, and evaluation and test where they are named."""
    if not section.train:
        raise ConfigError("the recipe names no data to train on", where="[data] train")
    found = {}
    for name in ("evaluation", "test") if section.stream else ("train", "evaluation", "test"):
        if getattr(section, name):
            place = _place(section, name, places)
            found[name] = read_rows(
                place.sources,
                format=place.format,
                columns=place.columns,
                encoding=section.encoding,
                max_rejects=section.max_rejects,
                limit=section.limit if name == "train" else None,
                detokenise=section.detokenise,
            )
    return found


class Place(NamedTuple):
    """Where the rows of a part of [data] are, and what they look like there."""

    sources: list[str]
    format: str | None
    columns: Mapping[str, str]


def _place(section: DataSection, name: str, places: Sequence[Path]) -> Place:
    """The files of train, evaluation or test, or their fallback on the hub."""
    sources = getattr(section, name)
    sources = [sources] if isinstance(sources, str) else list(sources)
    located = [_located(source, places) for source in sources]
    if None not in located:
        return Place([str(one) for one in located], section.format, section.columns)
    fallback = section.fallback.get(name)
    if fallback is None:
        raise InputError(
            f"there is no {sources[located.index(None)]!r} in "
            + ", ".join(str(place.resolve()) for place in (*places, Path())),
            where=f"[data] {name}",
            advice="name it as it is seen from there; chumoku train takes its folder as --data",
        )
    return Place([str(fallback)], None, section.fallback.get("columns", {}))


def stream_rows(recipe: Recipe, column: str, places: Sequence[Path]) -> RowStream:
    """The rows of train, of which `column` is passed on, as a stream.

    Raises ConfigError for what needs all rows beforehand.
    """
    section, settings = recipe.data, recipe.training
    wrong = {
        "training steps": settings.steps is None and "a stream has no end that is known: set steps",
        "data holdout": bool(section.holdout) and "name the rows to judge by: [data] evaluation",
        "data limit": section.limit is not None and "[training] steps says how long",
        "data encoding": section.encoding not in (None, "utf-8") and "a stream is read as UTF-8",
    }
    for name, advice in wrong.items():
        if advice:
            raise ConfigError(
                "does not go with [data] stream",
                where="[{}] {}".format(*name.split()),
                advice=advice,
            )
    place = _place(section, "train", places)
    columns = {column: column} | dict(place.columns)
    examples = (settings.steps or 0) * settings.accumulate * settings.batching.batch_size
    return row_stream(place.sources, place.format, columns, section.max_rejects, examples)


def _located(source: str, places: Sequence[Path]) -> str | None:
    """A source as it can be opened; None where no such file is found."""
    if source.startswith(("hf:", "sklearn:")):
        return source
    format, file = own_format(source)
    for place in (*places, Path()):
        path = str(place / file)
        name = next((path.partition(f"{end}:")[0] + end for end in ENDS if f"{end}:" in path), path)
        if Path(name).exists() or glob.glob(path):
            return path if format is None else f"{format}:{path}"
    return None


def column_of(rows: Any, column: str | None) -> Any:
    return rows if column is None else [row[column] for row in rows]


def hold_out(rows: dict[str, Any], share: float, how: str) -> None:
    """A share of train becomes the evaluation: rows by chance, always the same ones, or every n-th.

    Both keep their order. Of one long text it is the end.
    """
    if not share or "evaluation" in rows:
        return
    train = rows["train"]
    if len(train) == 1 and isinstance(train[0], str):
        cut = round(len(train[0]) * (1 - share))
        rows["train"], rows["evaluation"] = [train[0][:cut]], [train[0][cut:]]
        return
    every = round(1 / share)
    if every < 2 or len(train) < every:
        raise ConfigError(
            f"no share {share} of {len(train)} rows",
            where="[data] holdout",
            advice="name rows to judge by, [data] evaluation (finetune: --eval FILE), or hold out "
            "0, none, or a larger share",
        )
    if how == "regular":
        held = set(range(every - 1, len(train), every))
    else:
        places = np.arange(round(len(train) * share), dtype=np.uint64)
        held = set(permuted(places, len(train), HOLDOUT_SEED, 0).tolist())
    rows["evaluation"] = [row for n, row in enumerate(train) if n in held]
    rows["train"] = [row for n, row in enumerate(train) if n not in held]


def texts_of(rows: Any) -> Iterable[str]:
    """Every text of the rows, for a tokenizer to learn from."""
    for row in rows:
        if isinstance(row, str):
            yield row
        elif isinstance(row, Mapping):
            yield from texts_of([v for v in row.values() if isinstance(v, str | list)])
        elif isinstance(row, list):
            yield from texts_of(row)
