"""What the tests of several processes run in each of them, as a library and as a program.

    python tests/training/processes.py compare FOLDER           every scenario, one after the other
    python tests/training/processes.py run FOLDER [key=value …]  one run, or its continuation

Results of process 1 go to FOLDER/1/…; a scenario is the same for one process and for several.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.distributed_c10d import _set_pg_timeout
from training import runs
from training.objectives.tiny import randomised
from training.runs import Kept

from chumoku.adapters.apply import add_adapter
from chumoku.adapters.layers import LoRASettings
from chumoku.errors import ChumokuError
from chumoku.loading import create
from chumoku.models import transformer
from chumoku.training import snapshots
from chumoku.training.data.batching import Batching, Picked
from chumoku.training.distributed import leave, world_of
from chumoku.training.loop import Run
from chumoku.training.objectives import causal_lm, seq2seq
from chumoku.training.objectives.causal_lm import Row, row_of
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.progress import Step
from chumoku.training.replicas import Replicas
from chumoku.training.schedules import ScheduleSettings
from chumoku.training.settings import Settings
from chumoku.training.signals import StoppedError
from chumoku.training.task import Loss, Task, generator
from chumoku.training.weights import digest
from chumoku.training.world import World

GPT2 = runs.CONFIG | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
T5 = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_heads": 2,
    "dropout_rate": 0.0,
    "decoder_start_token_id": 0,
}
PAPER = transformer.Config(
    vocab_size=40,
    width=16,
    num_encoder_blocks=2,
    num_decoder_blocks=2,
    encoder_heads=2,
    decoder_heads=2,
    encoder_feedforward_width=24,
    decoder_feedforward_width=24,
    dropout=0.0,
)
# With this eps an update depends on the gradient's size, and rounding in a gradient that is 0 (that
# of a key's bias) is not blown up to a full step.
ADAM = OptimiserSettings(learning_rate=3e-3, eps=1e-3)
SETTINGS = Settings(
    steps=6,
    evaluate_every=0,
    save_every=0,
    keep_best=False,
    seed=5,
    clip=1.0,
    batching=Batching(batch_size=4, window=0),
    optimiser=ADAM,
    schedule=ScheduleSettings(kind="linear", warmup_steps=2),
)


# ---- what is learned ----


@dataclass(frozen=True)
class Texts:
    """Texts of 4 to 19 random tokens; few of the same length, so that shares differ in units."""

    count: int

    def __len__(self) -> int:
        return self.count

    def length(self, index: int) -> int:
        return len(self.ids(index))

    def ids(self, index: int) -> torch.Tensor:
        rng = generator(9, 0, index)
        return torch.randint(2, 40, (4 + index * 7 % 16,), generator=rng)

    def example(self, index: int, epoch: int) -> Row:
        return row_of(self.ids(index))


class Turned(Texts):
    """Source and target of the same texts: the target is the source turned round."""

    def example(self, index: int, epoch: int) -> Any:
        ids = self.ids(index)
        return seq2seq.Example(ids, ids.flip(0))


def texts(count: int = 20) -> Task:
    evaluate = causal_lm.evaluator(Texts(5), 2)
    return Task(Texts(count), causal_lm.collate, causal_lm.loss, evaluate)


def turned() -> Task:
    def collate(rows: Any) -> Any:
        return seq2seq.collate(rows, pad=0, start=0)

    return Task(Turned(20), collate, seq2seq.loss)


def sometimes(model: nn.Module, batch: Any) -> Loss:
    """A loss that uses `model.extra` for the rows that begin with an even token alone."""
    found = causal_lm.loss(model, batch)
    even = batch.ids_BT[batch.ids_BT[:, 0] % 2 == 0, 0]
    if not len(even):
        return found
    return found._replace(total=found.total + model.extra(even.float()[:, None] / 40).sum())


# ---- scenarios ----


@dataclass(frozen=True)
class Scenario:
    """strategy: where there are processes. extra: modules that are used rarely, or never.

    split: the reference computes each process's share as a batch of its own, because the type's
    rounding of a batch's gradient is seen.
    """

    settings: Settings = SETTINGS
    strategy: str = "ddp"
    config: Any = field(default_factory=lambda: GPT2)
    examples: int = 20
    extra: bool = False
    frozen: bool = False
    lora: bool = False
    split: bool = False
    tolerance: float = 1e-5

    @property
    def head(self) -> str:
        return "causal-lm" if self.config is GPT2 else "conditional-generation"

    def model(self) -> nn.Module:
        made = create(self.config, self.head, 1).model
        if self.extra:
            made.extra, made.never = nn.Linear(1, 1), nn.Linear(3, 3)
        randomised(made, scale=0.2)
        if self.lora:
            add_adapter(made, LoRASettings(rank=3, dora=True, train_bias="all"))
            randomised(made, scale=0.2)
        if self.frozen:
            made.embeddings.position.weight.requires_grad_(False)
            made.blocks[0].attention.query.requires_grad_(False)
        return made

    def task(self) -> Task:
        if self.head != "causal-lm":
            return turned()
        made = texts(self.examples)
        return replace(made, loss=sometimes) if self.extra else made


EVALUATED = replace(SETTINGS, evaluate_every=2, keep_best=True, ema=0.9)
ACCUMULATED = replace(SETTINGS, accumulate=2)
SCENARIOS = {
    "ddp": Scenario(),
    "ddp float64": Scenario(replace(SETTINGS, dtype="float64"), tolerance=1e-11),
    "ddp accumulated": Scenario(ACCUMULATED),
    "ddp narrow": Scenario(replace(ACCUMULATED, dtype="bfloat16"), split=True),
    "ddp unused": Scenario(ACCUMULATED, extra=True, frozen=True),
    "ddp few rows": Scenario(replace(EVALUATED, batching=Batching(4, window=0)), examples=9),
    "ddp lora": Scenario(ACCUMULATED, lora=True),
    "fsdp": Scenario(EVALUATED, "fsdp"),
    "fsdp lora": Scenario(ACCUMULATED, "fsdp", lora=True),
    "fsdp float64": Scenario(replace(ACCUMULATED, dtype="float64"), "fsdp", tolerance=1e-11),
    "fsdp narrow": Scenario(replace(ACCUMULATED, dtype="bfloat16"), "fsdp", split=True),
    "fsdp few rows": Scenario(
        replace(ACCUMULATED, recompute=True), "fsdp", examples=9, frozen=True
    ),
    "fsdp adafactor": Scenario(
        replace(SETTINGS, optimiser=OptimiserSettings("adafactor", 1e-2, eps=1e-4)), "fsdp"
    ),
    "fsdp t5": Scenario(SETTINGS, "fsdp", T5),
    "fsdp transformer": Scenario(SETTINGS, "fsdp", PAPER),
}
WRONG = ("mean of means", "missing division")
SAVED = replace(EVALUATED, save_every=3)
"""Of runs that are stopped after step 4 and taken up by another number of processes."""
SAVED_NARROW = replace(SAVED, dtype="bfloat16", ema=None)


@dataclass
class Curve(Kept):
    """Also remembers the norms; `stop`: raise after this step."""

    norms: list[float] = field(default_factory=list)
    stop: int = 0

    def step(self, step: Step) -> None:
        super().step(step)
        self.norms.append(step.gradient_norm)
        if step.step == self.stop:
            raise StopIteration


class Split:
    """Each batch as the batches of `parts` processes, one after the other."""

    def __init__(self, batches: Any, parts: int) -> None:
        self.batches, self.parts = batches, parts
        self.left: list[Picked] = []
        self.state, self.restore = batches.state, batches.restore

    def __next__(self) -> Picked:
        if not self.left:
            p = next(self.batches)
            self.left = [
                Picked(p.examples[r :: self.parts], p.epoch, p.indices[r :: self.parts])
                for r in range(self.parts)
            ]
        return self.left.pop(0)


def run(
    scenario: Scenario, folder: Path, world: World, *, stop: int = 0, task: Task | None = None
) -> tuple[dict[str, Any], nn.Module]:
    """Losses, norms and metrics, and the model at the end."""
    model, report = scenario.model(), Curve(stop=stop)
    settings = scenario.settings
    made = Run(model, task or scenario.task(), settings, folder, report, world=world)
    if scenario.split and world.size == 1:
        made.settings = replace(settings, accumulate=2 * settings.accumulate)
        made.batches = Split(made.batches, 2)  # type: ignore[assignment]
    with contextlib.suppress(StopIteration):
        made.train()
    found = {
        "losses": [float.fromhex(loss) for loss in report.losses.values()],
        "norms": report.norms,
        "metrics": [value for m in report.metrics.values() for value in m.values()],
        "tokens": made.progress.tokens,
        "begun": report.begun,
    }
    return found, world.whole(model)


def compare(folder: Path) -> None:
    """All scenarios; what each gave to FOLDER/RANK/NAME.json, weights to NAME.safetensors."""
    world, device = world_of(torch.device("cpu"))
    own = folder / str(world.rank)
    own.mkdir(parents=True)
    worlds: dict[str, World] = {"ddp": world, "fsdp": world_of(device, "fsdp")[0]}

    def note(name: str, found: Any, model: nn.Module | None = None) -> None:
        (own / f"{name}.json").write_text(json.dumps(found))
        if model is not None:
            write_weights(own / name, model)

    for name, scenario in SCENARIOS.items():
        fresh = world_of(device, scenario.strategy)[0]
        note(name, *run(scenario, folder / "runs" / name, fresh))
    for name in WRONG:
        note(name, *wrong(name, folder, device))
    # Runs begun here and ended alone, and the other way round (the test has begun those).
    for name, settings in (("saved", SAVED), ("saved narrow", SAVED_NARROW)):
        for strategy in worlds:
            fresh = world_of(device, strategy)[0]
            scenario = Scenario(settings, strategy)
            run(scenario, folder / "begun together" / f"{strategy} {name}", fresh, stop=4)
            fresh = world_of(device, strategy)[0]
            found = run(scenario, folder / "begun alone" / f"{strategy} {name}", fresh)
            note(f"{strategy} {name}", *found)
    note("not a number", poisoned(folder, device, world.rank))
    note("full disk", full_disk(folder, device, world.rank))
    # Last: afterwards the processes cannot talk to each other any more.
    hurry(4)
    if world.rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    try:
        run(SCENARIOS["ddp"], folder / "hung", world_of(device)[0])
    except ChumokuError as error:
        note("hung", [type(error).__name__, str(error)])


def hurry(seconds: float) -> None:
    """From here on wait so long for others; to find each other, processes may need more."""
    _set_pg_timeout(timedelta(seconds=seconds))


def wrong(name: str, folder: Path, device: torch.device) -> tuple[dict[str, Any], nn.Module]:
    """Two mistakes which a comparison with one process must see."""
    world = world_of(device)[0]
    scenario = SCENARIOS["ddp"]
    task = scenario.task()
    if name == "mean of means":

        def loss(model: nn.Module, batch: Any) -> Loss:
            found = causal_lm.loss(model, batch)
            return Loss(found.total / found.units, torch.ones_like(found.units))

        task = replace(task, loss=loss)
    else:
        assert isinstance(world, Replicas)
        world.divided_by = 1
    return run(scenario, folder / "runs" / name, world, task=task)


def poisoned(folder: Path, device: torch.device, rank: int) -> list[Any]:
    """The second process meets a loss that is no number in step 3."""
    calls = 0

    def loss(model: nn.Module, batch: Any) -> Loss:
        nonlocal calls
        calls += 1
        found = causal_lm.loss(model, batch)
        bad = rank == 1 and calls == 3
        return found._replace(total=found.total * float("nan")) if bad else found

    found: list[Any] = []
    for strategy in ("ddp", "fsdp"):
        calls, scenario = 0, Scenario(strategy=strategy)
        world = world_of(device, strategy)[0]
        task = replace(scenario.task(), loss=loss)
        try:
            run(scenario, folder / "poisoned" / strategy, world, task=task)
        except ChumokuError as error:
            found.append([type(error).__name__, str(error)])
    return found


def full_disk(folder: Path, device: torch.device, rank: int) -> list[Any]:
    """One process's disk is full when step 6 is saved. (Under DDP the second saves nothing.)"""
    found: list[Any] = []
    for strategy, victim in (("ddp", 0), ("fsdp", 0), ("fsdp", 1)):
        place = folder / "full" / f"{strategy}{victim}"
        scenario = Scenario(replace(SAVED, keep_best=False), strategy)
        run(scenario, place, world_of(device, strategy)[0], stop=4)
        patched = [m for n, m in sys.modules.items() if n.startswith("chumoku.training.s")]
        patched = [module for module in patched if hasattr(module, "write_safetensors")]
        before = snapshots.write_safetensors
        for module in patched if rank == victim else []:
            module.write_safetensors = no_room  # type: ignore[attr-defined]
        try:
            run(scenario, place, world_of(device, strategy)[0])
        except ChumokuError as error:
            found.append([type(error).__name__, str(error)])
        for module in patched:
            module.write_safetensors = before  # type: ignore[attr-defined]
        world_of(device)[0].wait()
        found.append(sorted(path.name for path in (place / "snapshots").iterdir()))
    return found


def no_room(*words: Any, **named: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def write_weights(place: Path, model: nn.Module) -> None:
    weights = {name: p.detach() for name, p in model.named_parameters()}
    if place.exists():
        raise FileExistsError(place)
    snapshots.write_snapshot(place, snapshots.Snapshot(1, {"model": weights}, {}), keep=1)


# ---- one run with everything, which may be killed ----

CHANCY = replace(runs.SETTINGS, steps=30, keep_best=True)
"""Dropout, packed documents, accumulation, an average; saved every 4 steps."""
CALM = replace(CHANCY, ema=None, optimiser=ADAM)


class Recorded:
    """Batches whose examples are written down, a line a batch."""

    def __init__(self, batches: Any, file: Path) -> None:
        self.batches, self.file = batches, file
        self.state, self.restore = batches.state, batches.restore

    def __iter__(self) -> Iterator[Picked]:
        return self

    def __next__(self) -> Picked:
        picked = next(self.batches)
        with self.file.open("a") as stream:
            stream.write(json.dumps([picked.epoch, picked.indices]) + "\n")
        return picked


@dataclass
class Trapped(Kept):
    """Sends its own process a signal: SIGNAL@RANK:STEP, or SIGNAL@RANK:STEP+SECONDS after it.

    traps: one for each time that torchrun starts the processes. once: a file, which remembers that
    one has been sprung (torchrun's count of starts is of one machine). pace: seconds a step.
    """

    traps: list[str] = field(default_factory=list)
    rank: int = 0
    sprung: bool = False
    once: Path | None = None
    pace: float = 0.0

    def step(self, step: Step) -> None:
        if self.rank == 0:
            super().step(step)
        time.sleep(self.pace)
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if self.sprung or attempt >= len(self.traps) or (self.once and self.once.exists()):
            return
        name, _, place = self.traps[attempt].partition("@")
        rank, _, place = place.partition(":")
        at, _, later = place.partition("+")
        if int(rank) == self.rank and step.step >= int(at):
            self.sprung = True
            if self.once:
                self.once.touch()
            number = getattr(signal, name)
            if later:
                threading.Timer(float(later), os.kill, (os.getpid(), number)).start()
            else:
                os.kill(os.getpid(), number)


def one_run(
    folder: Path,
    *,
    strategy: str = "ddp",
    kind: str = "chancy",
    trap: str = "",
    once: str = "",
    pace: str = "0",
    patience: str = "",
    world: World | None = None,
) -> int:
    """trap: those of Trapped, with commas. Leaves FOLDER/losses, FOLDER/batches-RANK, weights."""
    if world is None:
        world, _ = world_of(torch.device("cpu"), strategy)
    if patience:
        hurry(float(patience))
    folder.mkdir(parents=True, exist_ok=True)
    report = Trapped(
        file=folder / "losses",
        traps=trap.split(",") if trap else [],
        rank=world.rank,
        once=folder / "sprung" if once else None,
        pace=float(pace),
    )
    if kind == "chancy":
        model, task, settings = runs.model().model, runs.task(), CHANCY
    else:
        model, task, settings = Scenario().model(), texts(), CALM
    try:
        run = Run(model, task, settings, folder, report, world=world)
        file = folder / f"batches-{world.rank}"
        run.batches = Recorded(run.batches, file)  # type: ignore[assignment]
        run.train()
    except StoppedError as error:
        print(error, file=sys.stderr)
        return error.code
    except ChumokuError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    whole = world.whole(model)
    if world.rank == 0:
        (folder / "weights").write_text(digest(whole.parameters()))
    return 0


def main(words: list[str]) -> int:
    torch.set_num_threads(1)
    what, folder, *more = words
    code = 0
    if what == "compare":
        compare(Path(folder))
    else:
        code = one_run(Path(folder), **dict(word.split("=", 1) for word in more))  # type: ignore[arg-type]
    leave()
    return code


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(exit_code)
