"""From a recipe to all that a run needs: rows, tokenizer, model and task."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from chumoku.checkpoints.ranges import write_text
from chumoku.checkpoints.sources import resolve
from chumoku.errors import ConfigError
from chumoku.loading import Loaded
from chumoku.training import randomness
from chumoku.training.building import build_model, change_model
from chumoku.training.data.streaming import RowStream
from chumoku.training.data.tables import Table, digest_of, usable
from chumoku.training.recipe import Recipe, build
from chumoku.training.recipe_data import column_of, hold_out, read_data, stream_rows, texts_of
from chumoku.training.task import Kind, Task

REJECTS: Final = "rejects.jsonl"
SHOWN: Final = 5
"""So many rejected rows of a part are told; all of them are in REJECTS."""
STREAMED: Final = 100_000
"""So many rows of a stream are what a tokenizer learns from."""

KINDS: Final = {
    "masked-lm": "masked_lm",
    "pre-training": "next_sentence",
    "causal-lm": "causal_lm",
    "span-corruption": "span_corruption",
    "seq2seq": "seq2seq",
    "chat": "chat",
    "symbols": "symbols",
    "classification": "classification",
    "token-classification": "token_classification",
    "question-answering": "question_answering",
    "multiple-choice": "multiple_choice",
    "image-classification": "image_classification",
    "sentence-embedding": "sentence_embedding",
    "distillation": "distillation",
}
"""[task] kind -> the file in objectives/, loaded when it is asked for."""


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, made from a recipe. test: a task whose evaluation is the test rows.

    files: JSON that goes with the model, by file name. rejected: how many rows could not be used.
    rows: SHA-256 of those of train and evaluation; of a stream there is none.
    """

    loaded: Loaded
    task: Task
    test: Task | None
    tokenizer_files: Path | None
    notes: tuple[str, ...]
    trained: float
    rejected: int
    rows: Mapping[str, str]
    files: Mapping[str, Any]


def prepare(
    recipe: Recipe,
    run_folder: Path,
    places: Sequence[Path],
    device: torch.device,
    *,
    first: bool = True,
) -> Prepared:
    """Rows, tokenizer, model and task of a recipe. first: of the processes, which lists rejects."""
    kind = kind_of(recipe)
    tables = tables_of(recipe, places)
    notes = _notes_of(tables, run_folder / REJECTS)
    if first:
        write_rejects(tables, run_folder / REJECTS)
    rejected = sum(len(table.rejects) for table in tables.values())
    rows = {name: column_of(table.rows, kind.column) for name, table in tables.items()}
    known = rows.get("train", ())  # with those held out: a rare label may be on one of them alone
    if recipe.data.stream:
        rows["train"] = stream_rows(recipe, _streamed_column(kind), places)
    else:
        hold_out(rows, recipe.data.holdout, recipe.data.holdout_rows)
    digests: dict[str, str] = {
        name: digest_of(rows[name])
        for name in ("train", "evaluation")
        if name in rows and not isinstance(rows[name], RowStream)
    }
    # An alphabet is that of the whole text, as nanoGPT takes it: a letter may be held out.
    whole = recipe.tokenizer.get("kind") == "characters" and not recipe.data.stream
    files = _tokenizer_files(recipe, run_folder, known if whole else rows["train"], digests)
    options = _options(recipe, kind, known)
    labels = () if kind.labels_of is None else tuple(_call(kind.labels_of, options, known))
    seed = recipe.training.seed
    randomness.seed_all(seed)
    loaded = build_model(recipe, kind.head, labels, files, device)
    if kind.described is not None:
        loaded = _call(kind.described, options, loaded)
    trained = change_model(recipe, loaded)
    task = _task(kind, recipe, loaded, rows["train"], rows.get("evaluation"))
    test = None
    if "test" in rows:  # only its evaluation is used
        test = _task(kind, recipe, loaded, rows["test"], rows["test"])
    notes += [*loaded.source.notes, *getattr(task.examples, "notes", ())]
    own = {} if kind.files_of is None else _call(kind.files_of, options, rows["train"])
    return Prepared(loaded, task, test, files, tuple(notes), trained, rejected, digests, own)


def tables_of(recipe: Recipe, places: Sequence[Path]) -> dict[str, Table]:
    """The rows of each part of the data; those that the objective cannot use are rejects."""
    kind, tables = kind_of(recipe), read_data(recipe.data, places)
    options = _options(recipe, kind, tables["train"].rows if "train" in tables else ())
    check = partial(kind.check_row, **_named(kind.check_row, options))
    share = recipe.data.max_rejects
    return {name: usable(table, check, share) for name, table in tables.items()}


def _options(recipe: Recipe, kind: Kind, rows: Any) -> dict[str, Any]:
    """What the functions of a kind may be given: [task], the head, and what the rows tell."""
    options: dict[str, Any] = {**recipe.task, "head": recipe.model.head}
    if kind.problem_of is not None:
        asked = options.get("problem", "auto")
        options["problem"] = kind.problem_of(rows, problem=asked)
    return options


def _notes_of(tables: Mapping[str, Table], listed: Path) -> list[str]:
    """What the user should know of the files: rejected rows, and encodings that were found out."""
    notes = []
    for name, table in tables.items():
        for file, encoding in table.encodings.items():
            if encoding != "utf-8":
                notes.append(f"{file}: {encoding}")
        if table.rejects:
            what = f"{len(table.rejects)} of {table.found} rows rejected"
            notes.append(f"{name}: {what}, all of them are listed in {listed}; the first:")
            notes += [str(reject) for reject in table.rejects[:SHOWN]]
    return notes


def write_rejects(tables: Mapping[str, Table], path: Path) -> None:
    """A line of JSON for each rejected row; without any no file."""
    lines = [
        json.dumps({"part": name, **dataclasses.asdict(reject)}, ensure_ascii=False)
        for name, table in tables.items()
        for reject in table.rejects
    ]
    path.unlink(missing_ok=True)
    if lines:
        write_text(path, "\n".join(lines) + "\n")


def kind_of(recipe: Recipe) -> Kind:
    """The objective of a recipe. Raises ConfigError."""
    name = recipe.task.get("kind")
    if name not in KINDS:
        raise ConfigError(
            f"{name!r} is no objective" if name else "the recipe names no objective",
            where="[task] kind",
            advice=f"one of {', '.join(KINDS)}",
        )
    return _kind(name)


def _kind(name: str) -> Kind:
    kind: Kind = importlib.import_module(f"chumoku.training.objectives.{KINDS[name]}").KIND
    return kind


def _streamed_column(kind: Kind) -> str:
    if not kind.streams or kind.column is None:
        raise ConfigError(
            "does not go with [data] stream",
            where="[task] kind",
            advice="only " + ", ".join(name for name in KINDS if _kind(name).streams),
        )
    return kind.column


def _tokenizer_files(
    recipe: Recipe, run_folder: Path, rows: Any, digests: Mapping[str, str]
) -> Path | None:
    """The folder whose tokenizer files go with the model; None: those of the model's source.

    One that is to be trained is kept for as long as settings and rows stay what they were.
    """
    if recipe.tokenizer:
        from chumoku.text.training import TokenizerSettings, train_tokenizer

        folder = run_folder / "tokenizer"
        settings = build(TokenizerSettings, recipe.tokenizer, "[tokenizer]")
        made_by = json.dumps({"settings": recipe.tokenizer, "rows": digests}, sort_keys=True)
        note = folder / "settings.json"
        if not (note.is_file() and note.read_text(encoding="utf-8") == made_by):
            seen = rows.first(STREAMED) if isinstance(rows, RowStream) else rows
            trained = train_tokenizer(list(texts_of(seen)), settings)
            shutil.rmtree(folder, ignore_errors=True)
            trained.save(folder)
            note.write_text(made_by, encoding="utf-8")  # last: without it the folder is not whole
        return folder
    if recipe.model.tokenizer is None:
        return None
    return resolve(recipe.model.tokenizer).path


def _task(kind: Kind, recipe: Recipe, loaded: Loaded, rows: Any, judged: Any) -> Task:
    """The objective's task; its options are those of [task]. ConfigError for one it has not."""
    options = {name: value for name, value in recipe.task.items() if name != "kind"}
    given = ("loaded", "rows", "texts", "documents", "evaluation", "seed", "progress")
    known = sorted(set(inspect.signature(kind.task).parameters) - set(given))
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{name!r} is no option of this objective",
                where="[task]",
                advice=f"it has {', '.join(known)}",
            )
    return kind.task(loaded, rows, evaluation=judged, seed=recipe.training.seed, **options)


def _call(function: Callable[..., Any], options: Mapping[str, Any], subject: Any) -> Any:
    return function(subject, **_named(function, options))


def _named(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that a function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}
