"""From a recipe to a trained model in a folder.

    outcome = train(read_recipe("recipes/digits.toml"), Path("out"))

The folder becomes a model in the hub's layout; `folder/run` holds the resolved recipe, the log, the
curve, the snapshots and the result. The same call goes on where it was broken off.
"""

from __future__ import annotations

import dataclasses
import glob
import importlib
import inspect
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from chumoku.adapters.registry import trainable_fraction
from chumoku.checkpoints.ranges import write_json
from chumoku.checkpoints.sources import resolve
from chumoku.devices import FLOATS, pick_device
from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded, create, load
from chumoku.models.config_keys import write_labels
from chumoku.saving import published_config, save
from chumoku.text import Tokenizer, load_tokenizer
from chumoku.text.load import TOKENIZER_FILES
from chumoku.training import randomness, stabilising
from chumoku.training.curves import draw_curve
from chumoku.training.data.rows import Table, own_format, read_rows
from chumoku.training.data.streaming import RowStream, row_stream
from chumoku.training.distributed import leave, world_of
from chumoku.training.flops import Shape
from chumoku.training.loop import Result, Run
from chumoku.training.objectives.students import student_from
from chumoku.training.progress import Report, run_reports
from chumoku.training.recipe import DataSection, Recipe, build, to_toml
from chumoku.training.task import Task

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Kind:
    """An objective. module: its file in objectives/. head: what the model needs. labels: the rows
    have labels, whose names become the head's. described: the objective adds to the config what the
    labels mean. pools: it says how texts become vectors. streams: it takes a
    RowStream too. column: only this column of the rows is passed on.
    """

    module: str
    head: str
    labels: bool = False
    described: bool = False
    pools: bool = False
    streams: bool = False
    column: str | None = None


ENDS: Final = (".tar", ".tar.gz", ".zip")
"""Archives of which a folder may be named: `pictures.tar:train`."""

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
    "symbols": Kind("symbols", "masked-lm"),
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
class Outcome:
    """folder: the model. result: of the run. test: metrics on the test rows, if there are any.

    metric: the name of the one that chooses; lower: whether less is better.
    """

    folder: Path
    result: Result
    test: Mapping[str, float]
    notes: tuple[str, ...]
    metric: str
    lower: bool


@dataclass(frozen=True)
class Prepared:
    """All that a run needs, made from a recipe. test: a task whose evaluation is the test rows."""

    loaded: Loaded
    task: Task
    test: Task | None
    tokenizer_files: Path | None
    notes: tuple[str, ...]
    trained: float


def train(
    recipe: Recipe,
    folder: Path,
    *,
    places: Sequence[Path] = (),
    device: str = "auto",
    strategy: str = "ddp",
    reports: Iterable[Report] = (),
) -> Outcome:
    """Run a recipe, or go on with it. places: where relative data files are looked for.

    strategy: ddp or fsdp, under torchrun.
    Raises every typed error of its parts; what was saved before stays.
    """
    run_folder = folder / "run"
    run_folder.mkdir(parents=True, exist_ok=True)
    world, place = world_of(pick_device(device), strategy)
    if world.rank > 0:
        world.wait()  # the first process may have a tokenizer to train
    prepared = prepare(recipe, run_folder, places, place)
    if world.rank == 0:
        world.wait()
    model = prepared.loaded.model
    report = run_reports(
        run_folder,
        model,
        reports,
        quiet=world.rank > 0,
        shape=_shape(recipe, prepared.task),
        dtype=FLOATS[recipe.training.dtype],
    )
    try:
        for note in prepared.notes:
            report.note(note)
        if world.rank == 0:
            (run_folder / "recipe.toml").write_text(to_toml(recipe), encoding="utf-8")
        identity = _identity(recipe)
        run = Run(
            model,
            prepared.task,
            recipe.training,
            run_folder,
            report,
            identity=identity,
            world=world,
        )
        result = run.train()
        model = world.whole(model)
        prepared = replace(prepared, loaded=replace(prepared.loaded, model=model))
        test = _tested(prepared, model)
        if world.rank == 0:
            _write(recipe, prepared, folder, result, test)
        world.wait()
    finally:
        report.close()
        leave()
    task = prepared.task
    return Outcome(folder, result, test, prepared.notes, task.metric, task.lower)


def _shape(recipe: Recipe, task: Task) -> Shape | None:
    """Of a row, for MFU: of the objectives whose rows are all of one length."""
    chosen = {"causal-lm": 1.0, "masked-lm": 0.15, "pre-training": 0.15}.get(recipe.task["kind"])
    length = task.examples.length(0)
    return Shape(length, chosen=chosen) if chosen and length else None


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What a run that is taken up again must have in common with the former one."""
    whole: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe)))
    return {name: whole[name] for name in ("model", "tokenizer", "data", "task", "adapter")}


def _tested(prepared: Prepared, model: nn.Module) -> dict[str, float]:
    if prepared.test is None or prepared.test.evaluate is None:
        return {}
    model.eval()
    with torch.no_grad():
        return prepared.test.evaluate(model)


# ---- preparing ----


def prepare(
    recipe: Recipe, run_folder: Path, places: Sequence[Path], device: torch.device
) -> Prepared:
    """Rows, tokenizer, model and task of a recipe."""
    options = dict(recipe.task)
    kind = _kind(options.pop("kind", None))
    module = importlib.import_module(f"chumoku.training.objectives.{kind.module}")
    tables = read_data(recipe.data, places)
    notes = [str(reject) for table in tables.values() for reject in table.rejects[:20]]
    rows = {name: _column(table.rows, kind.column) for name, table in tables.items()}
    if recipe.data.stream:
        rows["train"] = _stream(recipe, kind, places)
    else:
        _hold_out(rows, recipe.data.holdout)
    files = _tokenizer_files(recipe, run_folder, rows["train"])
    labels = (
        tuple(module.labels_of(rows["train"], **_named(module.labels_of, options)))
        if kind.labels
        else ()
    )
    randomness.seed_all(recipe.training.seed)
    loaded = _model(recipe, kind, labels, files, device)
    if kind.described:
        problem = module.problem_of(rows["train"], labels, options.get("problem", "auto"))
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
    return Prepared(loaded, task, test, files, (*notes, *found), trained)


def _kind(name: Any) -> Kind:
    if name not in KINDS:
        raise ConfigError(
            f"{name!r} is no objective" if name else "the recipe names no objective",
            where="[task] kind",
            advice=f"one of {', '.join(KINDS)}",
        )
    return KINDS[name]


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
            f"there is no {sources[located.index(None)]!r}",
            where=f"[data] {name}",
            advice="point --data to the folder that holds it",
        )
    return Place([str(fallback)], None, section.fallback.get("columns", {}))


def _stream(recipe: Recipe, kind: Kind, places: Sequence[Path]) -> RowStream:
    """The rows of train as a stream. Raises ConfigError for what needs all rows beforehand."""
    section, settings = recipe.data, recipe.training
    wrong = {
        "task kind": not kind.streams and "only " + ", ".join(k for k in KINDS if KINDS[k].streams),
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
    columns = {str(kind.column): str(kind.column)} | dict(place.columns)
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


def _column(rows: Any, column: str | None) -> Any:
    if column is None:
        return rows
    if column not in rows[0]:
        raise InputError(
            f"the rows have no column {column!r}",
            advice=f"they have {', '.join(map(str, rows[0]))}; say which is meant: [data] columns",
        )
    return [row[column] for row in rows]


def _hold_out(rows: dict[str, Any], share: float) -> None:
    """Every n-th row of train becomes the evaluation, where the recipe wants a share of it.

    Of one long text it is the end.
    """
    if not share or "evaluation" in rows:
        return
    every = round(1 / share)
    train = rows["train"]
    if len(train) == 1 and isinstance(train[0], str):
        cut = round(len(train[0]) * (1 - share))
        rows["train"], rows["evaluation"] = [train[0][:cut]], [train[0][cut:]]
        return
    if every < 2 or len(train) < every:
        raise ConfigError(f"no share {share} of {len(train)} rows", where="[data] holdout")
    rows["evaluation"] = [row for n, row in enumerate(train) if n % every == every - 1]
    rows["train"] = [row for n, row in enumerate(train) if n % every != every - 1]


def _tokenizer_files(recipe: Recipe, run_folder: Path, rows: Any) -> Path | None:
    """The folder whose tokenizer files go with the model; None: those of the model's source."""
    if recipe.tokenizer:
        from chumoku.text.training import TokenizerSettings, train_tokenizer

        folder = run_folder / "tokenizer"
        if not folder.is_dir():
            settings = build(TokenizerSettings, recipe.tokenizer, "[tokenizer]")
            seen = rows.first(STREAMED) if isinstance(rows, RowStream) else rows
            train_tokenizer(list(_texts(seen)), settings).save(folder)
        return folder
    if recipe.model.tokenizer is None:
        return None
    return resolve(recipe.model.tokenizer).path


def _texts(rows: Any) -> Iterable[str]:
    """Every text of the rows, for a tokenizer to learn from."""
    for row in rows:
        if isinstance(row, str):
            yield row
        elif isinstance(row, Mapping):
            yield from _texts([v for v in row.values() if isinstance(v, str | list)])
        elif isinstance(row, list):
            yield from _texts(row)


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
    if recipe.adapter.kind != "none":
        _add_adapter(recipe, model)
    return loaded, trainable_fraction(model)


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


# ---- writing ----


def _write(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    result: Result,
    test: Mapping[str, float],
) -> None:
    """The model, its tokenizer, the adapter, the result and the curve."""
    loaded = prepared.loaded
    stabilising.remove_mixout(loaded.model)
    if recipe.adapter.kind != "none":
        _write_adapter(recipe, loaded, folder)
    own = prepared.tokenizer_files
    save(loaded if own is None else replace(loaded, tokenizer=None), folder)
    if own is not None:
        for name in TOKENIZER_FILES | {"special_tokens_map.json", "added_tokens.json"}:
            if (own / name).is_file():
                shutil.copyfile(own / name, folder / name)
    write_json(
        folder / "run" / "result.json",
        {
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "tokens": result.tokens,
            "best_step": result.best_step,
            "skipped": result.skipped,
            "ended_by": result.reason,
            "trained_share": prepared.trained,
            "evaluation": dict(result.metrics),
            "test": dict(test),
        },
    )
    draw_curve(folder / "run" / "log.jsonl", folder / "run" / "curve.svg")


def _write_adapter(recipe: Recipe, loaded: Loaded, folder: Path) -> None:
    """PEFT's files in `folder/adapter`; the model itself is then saved merged."""
    from chumoku.adapters.apply import fuse
    from chumoku.adapters.peft_files import save_adapter
    from chumoku.adapters.peft_folder import write_classes

    save_adapter(
        loaded.model,
        loaded.config,
        loaded.head,
        loaded.source.model_type,
        folder / "adapter",
        "default",
        str(recipe.model.source),
    )
    write_classes(published_config(loaded), folder / "adapter")
    fuse(loaded.model)


__all__ = ["KINDS", "Outcome", "prepare", "read_data", "train"]
