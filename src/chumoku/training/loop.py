"""The one loop: batches in, better weights out, nothing lost on the way.

    run = Run(model, task, settings, folder, report)
    result = run.train()

Read `Run.update` for one step and `Run.train` for the order of things. Everything that decides a
later step is in `Run.snapshot`: weights, optimiser, average, random states, place in the data,
and `Progress`. A run that is killed at any moment and started again therefore computes the same
losses to the last bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chumoku.devices import FLOATS
from chumoku.errors import CheckpointError, ConfigError, ResourceError, TrainingError
from chumoku.kernels.memory import keep_all_freed_memory
from chumoku.training import randomness, snapshots, weights
from chumoku.training.averaging import EMA, average_snapshots
from chumoku.training.data.batching import Picked
from chumoku.training.data.streaming import batches_of
from chumoku.training.optimisers import (
    MasterWeights,
    load_state_tensors,
    make_optimiser,
    state_tensors,
)
from chumoku.training.progress import Report, Step
from chumoku.training.schedules import factor, warmup_steps
from chumoku.training.settings import Settings, check_same_settings
from chumoku.training.signals import BrokenOffError, Signals, StoppedError
from chumoku.training.snapshots import Snapshot
from chumoku.training.task import Loss, Task, to_device
from chumoku.training.world import Alone, World

SKIPS: Final = 10
"""So many steps in a row without a finite gradient end a run that skips them."""


@dataclass
class Progress:
    """How far a run has come; saved with every snapshot.

    evaluated, sampled: the last step at which that was done. best: the best value of the task's
    metric, at best_step. waited: evaluations since. skipped: steps without an update; in_a_row: the
    last ones. metrics: of the last evaluation.
    """

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    evaluated: int = 0
    sampled: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    skipped: int = 0
    in_a_row: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """metrics: of the weights that the model ends with. reason: steps, or patience."""

    steps: int
    metrics: Mapping[str, float]
    best_step: int
    seconds: float
    tokens: int
    skipped: int
    reason: str


class Objective(nn.Module):
    """The loss as a module's forward, which is what PyTorch's parallel wrappers ask for."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, batch: Any) -> Loss:
        return self.task.loss(self.model, batch)


class Run:
    """A run in a folder: `folder/snapshots`, `folder/best`.

    model: on its device, trained in place; parameters that need no gradient stay as they are.
    identity: JSON that must be the same when the run is taken up again (the recipe). Raises
    ConfigError, CheckpointError, TrainingError, ResourceError.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        settings: Settings,
        folder: Path,
        report: Report,
        *,
        identity: Mapping[str, Any] | None = None,
        world: World | None = None,
    ) -> None:
        self.model, self.task, self.settings = model, task, settings
        self.folder, self.report = folder, report
        self.world: World = Alone() if world is None else world
        self.identity = {"training": asdict(settings), **(identity or {})}
        keep_all_freed_memory()
        randomness.seed_all(settings.seed + self.world.rank)
        self.batches = batches_of(
            task.examples,
            settings.batching,
            settings.seed,
            self.world.rank,
            self.world.size,
            note=report.note,
        )
        self.epoch_steps = self.batches.batches_per_epoch / settings.accumulate  # may be no whole
        epochs_steps = math.ceil(settings.epochs * self.epoch_steps - 1e-6)
        self.steps = settings.steps or max(1, epochs_steps)
        self.frozen = weights.digest(p for p in model.parameters() if not p.requires_grad)
        self.objective, kept = self.world.prepare(Objective(model, task), FLOATS[settings.dtype])
        self.device = next(model.parameters()).device
        self.master = MasterWeights(model, kept)
        self.optimiser = make_optimiser(model, settings.optimiser, self.master)
        self.ema = None if settings.ema is None else EMA(self.master.named, settings.ema)
        if settings.recompute:
            _each_block(model, lambda b: setattr(b, "forward", _recomputing(b)))
        if settings.compile:
            _each_block(model, lambda b: b.compile())
        self.progress = Progress()
        self._saved_best = 0
        self.signals = Signals()
        self.stopping = False
        if task.evaluate is None and settings.patience is not None:
            report.note("patience means nothing here: there are no evaluation rows")
        if task.sample is None and settings.sample_every:
            report.note("sample_every means nothing here: this objective writes no text")
        warmup = warmup_steps(settings.schedule, self.steps)
        if warmup >= self.steps > 1:
            report.note(f"the learning rate rises to the end: {warmup} steps of {self.steps}")
        self._part_names: list[str] = []

    # ---- one step ----

    def update(self) -> Step:
        """One update of the weights. Returns what a report shows of it."""
        began = time.perf_counter()
        self.model.train()
        sums, picked, tokens = self._gradients()
        own = [float(self.signals.number is not None), float(tokens)]
        told = torch.cat([torch.tensor(own, dtype=torch.float64), sums.cpu()])
        stopping, tokens, *values = self.world.sum(told).tolist()
        self.stopping = stopping > 0  # all processes leave after the same step
        loss, parts, units = _means(values, self._part_names)
        gradients = [p.grad for p in self.master.trained if p.grad is not None]
        scale = self.world.divided_by / units if units else 0.0
        norm = float(self.world.norm(gradients)) * scale if gradients else 0.0
        rate = self.settings.optimiser.learning_rate * factor(
            self.settings.schedule, self.progress.step, self.steps
        )
        if units and not (math.isfinite(loss) and math.isfinite(norm) and math.isfinite(rate)):
            self._not_finite(picked, loss, norm)
        elif units:
            limit = self.settings.clip
            clip = 1.0 if limit is None else min(1.0, limit / (norm + 1e-6))
            torch._foreach_mul_(gradients, scale * clip)
            for group in self.optimiser.param_groups:
                group["lr"] = rate * group["scale"]
            self.optimiser.step()
            self.master.refresh()
            if self.ema is not None:
                self.ema.update(self.master.named)
            self.progress.in_a_row = 0
        self.optimiser.zero_grad(set_to_none=True)
        self.progress.step += 1
        self.progress.tokens += int(tokens)
        seconds = time.perf_counter() - began
        self.progress.seconds += seconds
        return Step(
            step=self.progress.step,
            steps=self.steps,
            loss=loss,
            parts=parts,
            learning_rate=rate,
            gradient_norm=norm,
            tokens=int(tokens),
            seconds=seconds,
            epoch=self.progress.step / self.epoch_steps,
        )

    def _gradients(self) -> tuple[Tensor, list[Picked], int]:
        """Gradients of the summed loss over a step's batches. Sums: total, units, parts."""
        picked: list[Picked] = []
        sums: Tensor | None = None
        tokens = 0
        for number in range(self.settings.accumulate):
            picked.append(next(self.batches))
            examples = picked[-1].examples
            # With fewer rows than processes, one without a row takes part with weight 0.
            batch = self.task.collate(examples or [self.task.examples.example(0, 0)])
            tokens += self.task.tokens(batch) if examples else 0
            last = number == self.settings.accumulate - 1
            with self.world.backward(self.objective, last):
                loss: Loss = self.objective(to_device(batch, self.device))
                if not examples:
                    loss = Loss(*(_nothing(part) for part in loss))
                loss.total.backward()  # type: ignore[no-untyped-call]
            self.master.gather()
            values = [loss.total.detach(), loss.units, *loss.parts.values()]
            self._part_names = list(loss.parts)
            added = torch.stack([v.detach().double() for v in values])
            sums = added if sums is None else sums + added
        self.world.exchange(self.master.trained)
        assert sums is not None  # accumulate is at least 1
        return sums, picked, tokens

    def _not_finite(self, picked: list[Picked], loss: float, norm: float) -> None:
        """Stop or note it; the weights have not been touched."""
        where = "; ".join(f"epoch {p.epoch}, examples {self._of_all(p.indices)}" for p in picked)
        what = f"step {self.progress.step + 1}: loss {loss}, gradient norm {norm}"
        self.progress.skipped += 1
        self.progress.in_a_row += 1
        if self.settings.on_nonfinite == "stop" or self.progress.in_a_row >= SKIPS:
            raise TrainingError(
                f"{what}: not a finite number; the weights were not changed",
                where=where,
                advice="look at these examples; the same command with "
                "--training.on_nonfinite=skip goes on from the last snapshot and leaves such steps "
                "out; with a lower --training.optimiser.learning_rate it is another run, in "
                "another folder",
            )
        self.report.note(f"{what}: skipped [{where}]")

    def _of_all(self, indices: list[int]) -> list[int]:
        """The examples of a batch, of which each process takes every so many-th, in its order."""
        counts = [int(n) for n in self.world.gather(torch.tensor([len(indices)]))]
        own = torch.full((max(counts),), -1)
        own[: len(indices)] = torch.tensor(indices, dtype=torch.long)
        whole = torch.stack(self.world.gather(own), dim=1).flatten()
        return [index for index in whole.tolist() if index >= 0]

    # ---- the run ----

    def train(self) -> Result:
        """Go on from the last good snapshot, or begin; to the end, the patience's, or a signal."""
        with self.signals.caught(), self.world.together():
            self.resume()
            with memory_errors():
                reason = self._steps()
                self._keep_best_weights()
        done = self.progress
        return Result(
            done.step,
            done.metrics,
            done.best_step,
            done.seconds,
            done.tokens,
            done.skipped,
            reason,
        )

    def _steps(self) -> str:
        while True:
            if self._between_steps():
                return "patience"
            if self.progress.step >= self.steps:
                return "steps"
            self.report.step(self.update())

    def _between_steps(self) -> bool:
        """Save, sample and evaluate where due, and obey signals. True: patience is at its end.

        What is trained is saved before it is judged, which may take long, fail or be killed; a run
        that goes on from there judges it again.
        """
        settings, done = self.settings, self.progress
        end = done.step >= self.steps
        saved = asdict(done) if self._due(settings.save_every) or end or self.stopping else None
        if saved:
            self.save()
        try:
            if self._due(settings.sample_every) and done.sampled != done.step:
                self._sample()
            if self._due(settings.evaluate_every) or end:
                self._evaluate()
        except BrokenOffError:
            self.stopping = True
        if (end or self.stopping) and asdict(done) != saved:
            self.save()
        if self.stopping:
            raise StoppedError(self.signals.number, done.step, self.folder)
        patience = settings.patience
        return patience is not None and done.waited >= patience

    def _due(self, every: int | None) -> bool:
        every = max(1, math.ceil(self.epoch_steps)) if every is None else every
        return every > 0 and self.progress.step > 0 and self.progress.step % every == 0

    def _sample(self) -> None:
        if self.task.sample is not None:
            with self._averaged() as model:
                if self.world.rank == 0:
                    with self._breakable():
                        text = self.task.sample(model)
                    self.report.sample(self.progress.step, text)
        self.progress.sampled = self.progress.step

    def _evaluate(self) -> None:
        """Judge the (averaged) weights; keep them where they are the best so far."""
        done, task = self.progress, self.task
        if task.evaluate is None or done.evaluated == done.step or done.step == 0:
            return
        with self._averaged() as model:
            with self._breakable():
                metrics = task.evaluate(model)
            metrics = self._agreed(metrics)
            value = _chosen(metrics, task.metric)
            better = not math.isnan(value) and (
                done.best is None or (value < done.best if task.lower else value > done.best)
            )
            if better and self.settings.keep_best:
                tensors = {"model": weights.stored(self.model)}
                snapshot = Snapshot(done.step, tensors, {"metrics": metrics})
                self.world.save(self.folder / "best", snapshot, keep=None)
                self._forget_best_but(self._saved_best, done.step)
        done.evaluated, done.metrics = done.step, metrics
        if better:
            done.best, done.best_step, done.waited = value, done.step, 0
        else:
            done.waited += 1
        self.report.evaluation(done.step, metrics)

    def _breakable(self) -> contextlib.AbstractContextManager[None]:
        """Around what a signal may break off: it reads weights and changes nothing."""
        return self.signals.interrupting(self.world.size == 1)

    def _agreed(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """The first process's numbers: on another machine the last bit may differ."""
        own = torch.tensor([*metrics.values()], dtype=torch.float64)
        first = self.world.gather(own)[0].tolist()
        return dict(zip(metrics, first, strict=True))

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[nn.Module]:
        """The whole model in evaluation mode, with the averaged weights where there are any.

        No gradient, no random number used.
        """
        random = randomness.random_state()
        self.model.eval()
        try:
            swapped = contextlib.nullcontext() if self.ema is None else self.ema.swapped(self.model)
            with swapped, torch.no_grad():
                yield self.world.whole(self.model)
        finally:
            randomness.set_random_state(random)

    def _keep_best_weights(self) -> None:
        """End with a mean of snapshots, the best evaluation's weights, the average, or the last."""
        if self.settings.average is not None:
            self._end_with_mean(self.settings.average)
        elif self.settings.keep_best and self.progress.best is not None:
            self.world.wait()
            try:
                name = snapshots.name_of(self.progress.best_step)
                best = snapshots.read_snapshot(self.folder / "best" / name)
            except CheckpointError as error:
                raise CheckpointError(
                    f"the best weights cannot be taken up: {error.what}",
                    where=error.where,
                    advice="the model that may lie in the output folder was left as it is; train "
                    "again in another folder",
                ) from error
            self._restore(best.tensors["model"])
            self.progress.metrics = dict(best.state["metrics"])
        elif self.ema is not None:
            self.ema.copy_to(self.model)

    def _end_with_mean(self, count: int) -> None:
        self.world.wait()
        last = snapshots.snapshots(self.folder / "snapshots")[-count:]
        self._restore(average_snapshots(last))
        self.report.note(f"mean of the weights in {', '.join(path.name for path in last)}")
        if self.task.evaluate is not None:
            with self._averaged() as model:
                self.progress.metrics = self._agreed(self.task.evaluate(model))
            self.report.evaluation(self.progress.step, self.progress.metrics)

    # ---- saving and resuming ----

    def snapshot(self) -> Snapshot:
        """All that later steps depend on. Of narrow weights the float32 copies are kept."""
        optimiser = state_tensors(self.optimiser, self.model, self.master)
        copies = {n: optimiser.pop(_copy_of(n)) for n in self.master.named if self.master.narrow}
        tensors = {
            "model": {**weights.stored(self.model, trained_only=True), **copies},
            "optimiser": optimiser,
            "random": randomness.state_of_all(self.world.gather),
        }
        if self.ema is not None:
            tensors["average"] = self.ema.tensors()
        state = {
            "progress": asdict(self.progress),
            "data": self.batches.state(),
            "frozen": self.frozen,
            "identity": self.identity,
        }
        return Snapshot(self.progress.step, tensors, state)

    def save(self) -> None:
        """With the help of all processes. Best weights that no snapshot speaks of go."""
        keep = self.settings.keep
        self.world.save(self.folder / "snapshots", self.snapshot(), keep=keep)
        self._saved_best = self.progress.best_step
        self._forget_best_but(self._saved_best)

    def _forget_best_but(self, *steps: int) -> None:
        """Those of former bests, and of steps that were lost with a process and come again."""
        if self.world.rank == 0:
            kept = {snapshots.name_of(step) for step in steps}
            for path in snapshots.snapshots(self.folder / "best"):
                if path.name not in kept:
                    snapshots.remove(path)
        self.world.wait()

    def resume(self) -> None:
        """Take up the last good snapshot, if there is one; damaged ones are named and passed by."""
        place = self.folder / "snapshots"
        if self.world.rank == 0:
            snapshots.sweep(place)
            snapshots.sweep(self.folder / "best")
        self.world.wait()
        snapshot, damaged = snapshots.latest_snapshot(place)
        for error in damaged:
            self.report.note(f"passed by: {error}")
        at = 0 if snapshot is None else snapshot.step
        self._check_same_step(at)
        if snapshot is not None:
            self._check_same_run(snapshot.state)
            self._take_up(snapshot)
        if self.world.rank == 0:
            snapshots.set_aside(place, at)
        self._saved_best = self.progress.best_step
        self._forget_best_but(self._saved_best)
        self.report.resumed(self.progress.step)

    def _take_up(self, snapshot: Snapshot) -> None:
        own, optimiser = snapshot.tensors["model"], snapshot.tensors["optimiser"]
        self._restore(own)
        if self.master.narrow:
            copies = {_copy_of(n): own[n] for n in self.master.named if n in own}
            optimiser = {**optimiser, **copies}
        state = state_tensors(self.optimiser, self.model, self.master)
        optimiser = self.world.placed(state, optimiser)
        load_state_tensors(self.optimiser, self.model, optimiser, self.master)
        if self.ema is not None:
            self.ema.load(self.world.placed(self.ema.tensors(), snapshot.tensors["average"]))
        self.batches.restore(snapshot.state["data"])
        self.progress = Progress(**snapshot.state["progress"])
        randomness.set_own_state(
            snapshot.tensors["random"],
            self.world.rank,
            self.world.size,
            seed=self.settings.seed,
            step=snapshot.step,
        )

    def _restore(self, tensors: Mapping[str, Tensor]) -> None:
        weights.restore(self.model, self.world.placed(weights.stored(self.model), tensors))

    def _check_same_step(self, step: int) -> None:
        steps = [int(own) for own in self.world.gather(torch.tensor([step]))]
        if len(set(steps)) > 1:
            raise TrainingError(
                f"the processes see different snapshots: of steps {steps}",
                where=self.folder,
                advice="all machines must share the folder of the run",
            )

    def _check_same_run(self, state: Mapping[str, Any]) -> None:
        if state.get("frozen") != self.frozen:
            raise TrainingError(
                "the weights that are not trained are not those of the run that is taken up",
                where=self.folder,
                advice="use the same base model, or another output folder",
            )
        check_same_settings(state.get("identity", {}), self.identity, self.folder)


def _chosen(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        raise ConfigError(
            f"the evaluation has no {name!r}",
            where="[task] metric",
            advice=f"one of {', '.join(metrics)}",
        )
    return metrics[name]


def _nothing(part: Any) -> Any:
    """A loss that weighs nothing and still has a gradient."""
    if isinstance(part, Mapping):
        return {name: value * 0 for name, value in part.items()}
    return part * 0


def _means(sums: list[float], names: list[str]) -> tuple[float, dict[str, float], float]:
    """(loss a unit, parts a unit, units)."""
    total, units, *parts = sums
    divisor = units or 1.0
    return total / divisor, {n: p / divisor for n, p in zip(names, parts, strict=True)}, units


def _copy_of(name: str) -> str:
    """What state_tensors calls the float32 copy of a narrow weight."""
    return f"{name}/master"


def _each_block(model: nn.Module, change: Any) -> None:
    """Blocks are the unit of recomputing and compiling."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
            for block in module:
                change(block)


def _recomputing(block: nn.Module) -> Any:
    forward = block.forward
    return lambda *inputs: checkpoint(partial(forward), *inputs, use_reentrant=False)


@contextlib.contextmanager
def memory_errors() -> Iterator[None]:
    """Too little memory inside, however PyTorch says so, is a ResourceError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        known = isinstance(error, torch.OutOfMemoryError | MemoryError)
        if known or "allocate memory" in str(error):
            raise _out_of_memory(error) from error
        raise


def _out_of_memory(error: BaseException) -> ResourceError:
    return ResourceError(
        f"out of memory: {str(error).splitlines()[0][:200]}",
        advice="--training.recompute=true goes on from the last snapshot with less memory; a lower "
        "--training.batching.batch_size, shorter texts, a smaller model or "
        "--training.dtype=bfloat16 are another run, elsewhere",
    )
