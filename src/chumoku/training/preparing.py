"""From a recipe to all that a run needs: rows, tokenizer, model and task."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import json
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import nn

from chumoku.adapters.registry import trainable_fraction
from chumoku.checkpoints.ranges import atomic_file
from chumoku.checkpoints.sources import resolve
from chumoku.errors import ConfigError
from chumoku.loading import Loaded, create, load
from chumoku.models.config_keys import write_labels
from chumoku.quantization.convert import is_quantized, quantize_model
from chumoku.text import Tokenizer, load_tokenizer
from chumoku.training import randomness, stabilising
from chumoku.training.data.streaming import RowStream
from chumoku.training.data.tables import Table, digest_of, usable
from chumoku.training.objectives.students import student_from
from chumoku.training.recipe import Recipe, build
from chumoku.training.recipe_data import column_of, hold_out, read_data, stream_rows, texts_of
from chumoku.training.task import Task


@dataclass(frozen=True)
class Kind:
    """An objective. module: its file in objectives/, whose check_row() says whether a row can be
    used. head: what the model needs. labels: the rows have labels, whose names become the head's.
    described: the objective adds to the config what the labels mean. pools: it says how texts
    become vectors. streams: it takes a RowStream too. column: only this column of the rows is
    passed on. files: it has JSON files of its own that go with the model.
    """

    module: str
    head: str
    labels: bool = False
    described: bool = False
    pools: bool = False
    streams: bool = False
    column: str | None = None
    files: bool = False


REJECTS: Final = "rejects.jsonl"
SHOWN: Final = 5
"""So many rejected rows of a part are told; all of them are in REJECTS."""
STREAMED: Final = 100_000
"""So many rows of a stream are what a tokenizer learns from."""

KINDS: Final = {
    "masked-lm": Kind("masked_lm", "masked-lm", streams=True, column="text"),
    "pre-training": Kind("next_sentence", "pre-training", column="sentences"),
    "causal-lm": Kind("causal_lm", "causal-lm", streams=True, column="text"),
    "span-corruption": Kind(
        "span_corruption", "conditional-generation", streams=True, column="text"
    ),
    "seq2seq": Kind("seq2seq", "conditional-generation"),
    "chat": Kind("chat", "causal-lm"),
    "symbols": Kind("symbols", "masked-lm", files=True),
    "classification": Kind("classification", "classification", labels=True, described=True),
    "token-classification": Kind("token_classification", "token-classification", labels=True),
    "question-answering": Kind("question_answering", "question-answering"),
    "multiple-choice": Kind("multiple_choice", "multiple-choice"),
    "image-classification": Kind(
        "image_classification", "image-classification", labels=True, described=True
    ),
    "sentence-embedding": Kind("sentence_embedding", "encoder", pools=True),
    "distillation": Kind("distillation", ""),
}
"""[task] kind -> objective."""


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
    options = dict(recipe.task)
    kind = _kind(options.pop("kind", None))
    module = _module(kind)
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
    labels = (
        tuple(module.labels_of(known, **_named(module.labels_of, options))) if kind.labels else ()
    )
    randomness.seed_all(recipe.training.seed)
    loaded = _model(recipe, kind, labels, files, device)
    if kind.described:
        problem = module.problem_of(known, labels, options.get("problem", "auto"))
        loaded = module.described(loaded, problem)
    if kind.pools:
        sentence = module.sentence_of(loaded, **_named(module.sentence_of, options))
        loaded = replace(loaded, sentence=sentence)
    loaded, trained = _changed(recipe, loaded)
    seed = recipe.training.seed
    task = _task(module, loaded, rows["train"], rows.get("evaluation"), options, seed)
    test = None
    if "test" in rows:  # only its evaluation is used
        test = _task(module, loaded, rows["test"], rows["test"], options, seed)
    found = getattr(task.examples, "notes", ())
    notes += [*loaded.source.notes, *found]
    own = module.files_of(rows["train"], **_named(module.files_of, options)) if kind.files else {}
    return Prepared(loaded, task, test, files, tuple(notes), trained, rejected, digests, own)


def tables_of(recipe: Recipe, places: Sequence[Path]) -> dict[str, Table]:
    """The rows of each part of the data; those that the objective cannot use are rejects."""
    check_row = _module(_kind(recipe.task.get("kind"))).check_row
    check = partial(check_row, **_named(check_row, {**recipe.task, "head": recipe.model.head}))
    share = recipe.data.max_rejects
    return {name: usable(t, check, share) for name, t in read_data(recipe.data, places).items()}


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
        with atomic_file(path) as stream:
            stream.write(("\n".join(lines) + "\n").encode())


def _kind(name: Any) -> Kind:
    if name not in KINDS:
        raise ConfigError(
            f"{name!r} is no objective" if name else "the recipe names no objective",
            where="[task] kind",
            advice=f"one of {', '.join(KINDS)}",
        )
    return KINDS[name]


def _module(kind: Kind) -> Any:
    return importlib.import_module(f"chumoku.training.objectives.{kind.module}")


def _streamed_column(kind: Kind) -> str:
    if not kind.streams or kind.column is None:
        raise ConfigError(
            "does not go with [data] stream",
            where="[task] kind",
            advice="only " + ", ".join(k for k in KINDS if KINDS[k].streams),
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


def _model(
    recipe: Recipe,
    kind: Kind,
    labels: tuple[str, ...],
    files: Path | None,
    device: torch.device,
) -> Loaded:
    section = recipe.model
    head = section.head or kind.head
    if [bool(section.source), bool(section.config), bool(section.student_of)].count(True) != 1:
        raise ConfigError("name either a source or a config (or student_of)", where="[model]")
    if section.student_of is not None:
        teacher = load(section.student_of, head=head or None, device=str(device))
        student_type, layers = section.student_type, section.layers or None
        loaded = student_from(teacher, layers, model_type=student_type)
        loaded.model.to(device)
    elif section.source is not None:
        loaded = load(
            section.source,
            head=head or None,
            dtype=section.dtype,
            device=str(device),
            new_head=not section.keep_head,
            labels=labels or None,
            ignore_config=section.ignore_config,
        )
    else:
        config = dict(section.config)
        tokenizer = None if files is None else load_tokenizer(files, config)
        if tokenizer is not None:
            config = _of_tokenizer(tokenizer) | config
        if labels:
            config |= write_labels(labels)
        loaded = create(config, head, recipe.training.seed)
        loaded.model.to(device)
        if tokenizer is not None:
            loaded = replace(loaded, tokenizer=tokenizer)
    if files is not None and loaded.tokenizer is None:
        loaded = replace(loaded, tokenizer=load_tokenizer(files, {}))
    return loaded


def _of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Keys of a config.json that a tokenizer decides."""
    ids = {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    return {"vocab_size": tokenizer.vocab_size} | {k: v for k, v in ids.items() if v is not None}


def _changed(recipe: Recipe, loaded: Loaded) -> tuple[Loaded, float]:
    """The model with what [model] and [adapter] change in it, and the share that is trained."""
    section, model = recipe.model, loaded.model
    if section.dropout is not None:
        _set_dropout(model, section.dropout)
    if section.reinitialise:
        stabilising.reinitialise_top(loaded, section.reinitialise, recipe.training.seed)
    if section.mixout:
        stabilising.mixout(model, section.mixout)
    if section.freeze:
        stabilising.freeze(model, section.freeze)
    if section.freeze_blocks:
        stabilising.freeze_bottom(model, section.freeze_blocks)
    if section.quantise is not None and not is_quantized(model):
        _quantise(model, section.quantise, recipe.adapter.also_train)
    if recipe.adapter.kind != "none":
        _add_adapter(recipe, model)
    return loaded, trainable_fraction(model)


def _quantise(model: nn.Module, storage: str, trained: Collection[str]) -> None:
    """Every linear layer but those of modules that are trained too (QLoRA, 2305.14314)."""

    def wanted(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and name.partition(".")[0] not in trained

    quantize_model(model.float(), storage, wanted)


def _set_dropout(model: nn.Module, rate: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):  # Attention draws by itself
            setattr(module, "dropout", rate)  # noqa: B010 - a plain float, not a submodule


def _add_adapter(recipe: Recipe, model: nn.Module) -> None:
    from chumoku.adapters.apply import add_adapter
    from chumoku.adapters.layers import LoRASettings

    section = recipe.adapter
    there = dict(model.named_children())
    settings = LoRASettings(
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        targets=section.targets,
        scaling="rslora" if section.kind == "rslora" else "lora",
        dora=section.kind == "dora",
        train_bias=section.train_bias,
        also_train=tuple(name for name in section.also_train if there.get(name) is not None),
        seed=recipe.training.seed,
    )
    add_adapter(model, settings)


def _task(
    module: ModuleType,
    loaded: Loaded,
    rows: Any,
    judged: Any,
    options: Mapping[str, Any],
    seed: int,
) -> Task:
    """The objective's task; its options are those of [task]. ConfigError for one it has not."""
    given = ("loaded", "rows", "texts", "documents", "evaluation", "seed", "progress")
    known = sorted(set(inspect.signature(module.task).parameters) - set(given))
    for name in options:
        if name not in known:
            raise ConfigError(
                f"{name!r} is no option of this objective",
                where="[task]",
                advice=f"it has {', '.join(known)}",
            )
    made: Task = module.task(loaded, rows, evaluation=judged, seed=seed, **options)
    return made


def _named(function: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those options that a function takes."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in known}
