"""From a recipe to a trained model in a folder.

    outcome = train(read_recipe("recipes/digits.toml"), Path("out"))

The folder becomes a model in the hub's layout; `folder/run` holds the resolved recipe, the log, the
curve, the snapshots and the result. The same call goes on where it was broken off.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from torch import nn

from chumoku.checkpoints.files import FULL_DISK
from chumoku.checkpoints.ranges import write_json, write_text
from chumoku.devices import FLOATS, pick_device
from chumoku.errors import InputError, ResourceError
from chumoku.loading import Loaded
from chumoku.saving import published_config, save
from chumoku.text.load import TOKENIZER_FILES
from chumoku.training import stabilising
from chumoku.training.card import card
from chumoku.training.curves import draw_curve
from chumoku.training.distributed import leave, world_of
from chumoku.training.flops import Shape
from chumoku.training.loop import Result, Run, memory_errors
from chumoku.training.preparing import Prepared, prepare
from chumoku.training.progress import Report, run_reports
from chumoku.training.recipe import Recipe, to_toml
from chumoku.training.settings import check_same_settings
from chumoku.training.snapshots import newest_state, snapshots
from chumoku.training.task import Task
from chumoku.training.world import World


@dataclass(frozen=True)
class Outcome:
    """folder: the model. result: of the run. test: metrics on the test rows, if there are any.

    metric: the name of the one that chooses; lower: whether less is better. first: this is the
    first of the processes, the one that tells. trained: share of the weights.
    """

    folder: Path
    result: Result
    test: Mapping[str, float]
    notes: tuple[str, ...]
    metric: str
    lower: bool
    first: bool = True
    trained: float = 1.0


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
    with _file_errors(folder), memory_errors():
        run_folder.mkdir(parents=True, exist_ok=True)
        world, place = world_of(pick_device(device), strategy)
        with _alone_in(run_folder) if world.rank == 0 else contextlib.nullcontext():
            return _train(recipe, folder, places, world, place, reports)


@contextlib.contextmanager
def _file_errors(folder: Path) -> Iterator[None]:
    """What cannot be read or written inside is named, and a full disk is a ResourceError."""
    try:
        yield
    except OSError as error:
        full = error.errno in FULL_DISK
        if error.filename is None and not full:
            raise
        kind = ResourceError if full else InputError
        what = "the disk is full" if full else f"{error.strerror}"
        advice = "see that the output folder (--output) can be written"
        raise kind(what, where=error.filename or folder, advice=advice) from error


@contextlib.contextmanager
def _alone_in(run_folder: Path) -> Iterator[None]:
    """Two runs in one folder would take each other's snapshots for their own."""
    try:
        with FileLock(run_folder / "lock", timeout=0):
            yield
    except Timeout:
        raise InputError(
            "another run is writing here",
            where=run_folder,
            advice="wait for it, stop it, or name another output folder",
        ) from None


def _train(
    recipe: Recipe,
    folder: Path,
    places: Sequence[Path],
    world: World,
    place: torch.device,
    reports: Iterable[Report],
) -> Outcome:
    run_folder = folder / "run"
    former = newest_state(run_folder / "snapshots")
    if former is not None:  # before anything is written; the rows are compared later
        own = {"training": _as_json(recipe.training), **_identity(recipe)}
        there = {**former.get("identity", {})}
        check_same_settings({n: there.get(n) for n in own}, own, run_folder)
    if world.rank > 0:
        world.wait()  # the first process may have a tokenizer to train
    prepared = prepare(recipe, run_folder, places, place, first=world.rank == 0)
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
        processes=world.size,
    )
    try:
        for note in prepared.notes:
            report.note(note)
        new = not snapshots(run_folder / "snapshots")
        if world.rank == 0 and new:  # else it may be refused, and the former recipe stays
            _write_recipe(recipe, run_folder)
        identity = {**_identity(recipe), "rows": dict(prepared.rows)}
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
        del run  # DDP's wrapper must not outlive the group of processes, or a second run may hang
        gc.collect()
    finally:
        report.close()
        leave()
    task = prepared.task
    return Outcome(
        folder,
        result,
        test,
        prepared.notes,
        task.metric,
        task.lower,
        world.rank == 0,
        prepared.trained,
    )


def _shape(recipe: Recipe, task: Task) -> Shape | None:
    """Of a row, for MFU: of the objectives whose rows are all of one length."""
    chosen = {"causal-lm": 1.0, "masked-lm": 0.15, "pre-training": 0.15}.get(recipe.task["kind"])
    length = task.examples.length(0)
    return Shape(length, chosen=chosen) if chosen and length else None


def _identity(recipe: Recipe) -> dict[str, Any]:
    """What a run that is taken up again must have in common with the former one."""
    whole = _as_json(recipe)
    return {name: whole[name] for name in ("model", "tokenizer", "data", "task", "adapter")}


def _as_json(settings: Any) -> dict[str, Any]:
    """A dataclass as it reads back from a snapshot's state."""
    table: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(settings)))
    return table


def _tested(prepared: Prepared, model: nn.Module) -> dict[str, float]:
    if prepared.test is None or prepared.test.evaluate is None:
        return {}
    model.eval()
    with torch.no_grad():
        return prepared.test.evaluate(model)


def _write(
    recipe: Recipe,
    prepared: Prepared,
    folder: Path,
    result: Result,
    test: Mapping[str, float],
) -> None:
    """The model, its tokenizer, card and adapter, the recipe, the result and the curve."""
    _write_recipe(recipe, folder / "run")
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
    for name, content in prepared.files.items():
        write_json(folder / name, content)
    text = card(recipe, result.steps, result.metrics, test)
    write_text(folder / "README.md", text)
    write_json(
        folder / "run" / "result.json",
        {
            "steps": result.steps,
            "seconds": round(result.seconds, 1),
            "tokens": result.tokens,
            "best_step": result.best_step,
            "skipped": result.skipped,
            "rejected_rows": prepared.rejected,
            "ended_by": result.reason,
            "trained_share": prepared.trained,
            "evaluation": dict(result.metrics),
            "test": dict(test),
        },
    )
    draw_curve(folder / "run" / "log.jsonl", folder / "run" / "curve.svg")


def _write_recipe(recipe: Recipe, run_folder: Path) -> None:
    write_text(run_folder / "recipe.toml", to_toml(recipe))


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
