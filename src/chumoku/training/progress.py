"""What a run shows and writes while it goes on: the terminal, `log.jsonl`, TensorBoard.

The loop tells a `Report`. None of them draws a random number or changes a model.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text
from torch import nn

from chumoku.checkpoints.files import FULL_DISK
from chumoku.checkpoints.ranges import atomic_file
from chumoku.errors import DependencyError, ResourceError
from chumoku.training.flops import Shape, flops_per_token, peak_flops

LINE_EVERY: Final = 10.0
"""Seconds between two lines where stderr is no terminal."""
REFRESH_EVERY: Final = 0.2
"""Seconds between two drawings of the bar."""
SMOOTHING: Final = 0.9
"""The share of the former value in a shown one."""


@dataclass(frozen=True)
class Step:
    """One update. loss, parts: a unit; tokens, seconds: of this step; epoch: how many are over."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    epoch: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Report(Protocol):
    """What the loop tells of itself."""

    def resumed(self, step: int) -> None:
        """The run goes on after this step; 0: it begins. What was told of later steps is void."""
        ...

    def step(self, step: Step) -> None: ...
    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...


class Reports:
    """Tells several."""

    def __init__(self, reports: Iterable[Report]) -> None:
        self.reports = list(reports)

    def resumed(self, step: int) -> None:
        for report in self.reports:
            report.resumed(step)

    def step(self, step: Step) -> None:
        for report in self.reports:
            report.step(step)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        for report in self.reports:
            report.evaluation(step, metrics)

    def sample(self, step: int, text: str) -> None:
        for report in self.reports:
            report.sample(step, text)

    def note(self, text: str) -> None:
        for report in self.reports:
            report.note(text)

    def close(self) -> None:
        with contextlib.ExitStack() as stack:  # all are closed, even where one fails
            for report in self.reports:
                stack.callback(report.close)


# ---- the log ----


class JsonLog:
    """One JSON object a line, in the order of the run.

    kind: step, evaluation, sample or note; at: the last step that was over. A step has loss,
    learning_rate, gradient_norm, tokens, seconds, epoch and parts; an evaluation has metrics; a
    sample and a note have text. Finite floats read back to the same bits; others, which JSON does
    not know, are the strings "nan", "inf" and "-inf", which Python's float() reads.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._at = 0

    def resumed(self, step: int) -> None:
        truncate_after(self.path, step)
        self._at = step

    def step(self, step: Step) -> None:
        self._at = step.step
        values = {k: v for k, v in asdict(step).items() if k not in ("step", "steps")}
        self._write("step", self._at, values)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("evaluation", step, {"metrics": dict(metrics)})

    def sample(self, step: int, text: str) -> None:
        self._write("sample", step, {"text": text})

    def note(self, text: str) -> None:
        self._write("note", self._at, {"text": text})

    def close(self) -> None: ...

    def _write(self, kind: str, at: int, values: Mapping[str, Any]) -> None:
        """Append a line in one write, so that a kill can tear only the last one."""
        line = _line({"kind": kind, "at": at, **values})
        try:
            with self.path.open("ab+", buffering=0) as stream:
                end = stream.seek(0, os.SEEK_END)
                if end:
                    stream.seek(end - 1)
                    if stream.read(1) != b"\n":
                        line = b"\n" + line  # behind a torn line
                stream.write(line)
        except OSError as error:
            full = error.errno in FULL_DISK
            raise ResourceError(
                "the disk is full" if full else f"the log cannot be written: {error.strerror}",
                where=self.path,
                advice="free some space; the same command goes on from the last good snapshot",
            ) from error


def truncate_after(path: Path, step: int) -> None:
    """Drop what a log tells of later steps, and a torn last line; the file changes as a whole."""
    entries = read_log(path)
    with atomic_file(path) as stream:
        stream.writelines(_line(entry) for entry in entries if entry["at"] <= step)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a line that is not whole is passed by, and no file is an empty log."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("at"), int):
                entries.append(entry)
    return entries


def _line(entry: Mapping[str, Any]) -> bytes:
    text = json.dumps(_finite(entry), ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "backslashreplace")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    return value


# ---- the terminal ----


@dataclass(frozen=True)
class Speed:
    """What MFU is made of: the operations of a token, and the device's most a second (None: nobody
    has told us)."""

    flops_per_token: float
    peak: float | None

    def shown(self, tokens_per_second: float) -> str:
        """MFU in percent; without a peak, the operations a second themselves."""
        flops = tokens_per_second * self.flops_per_token
        return (
            f"{flops / 1e9:,.1f} GFLOP/s" if self.peak is None else f"MFU {flops / self.peak:.1%}"
        )


class Terminal:
    """A bar that renews itself on a terminal, else a line now and then.

    console: where to; stderr. speed: for MFU. every: a line for so many steps where there is no
    terminal; None: one for each LINE_EVERY seconds. clock: seconds that only grow.
    """

    def __init__(
        self,
        console: Console | None = None,
        speed: Speed | None = None,
        *,
        every: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = Console(file=sys.stderr) if console is None else console
        self.speed, self.every, self.clock = speed, every, clock
        self._loss: float | None = None
        self._seconds: float | None = None
        self._rate: float | None = None
        self._shown = -math.inf
        self._bar: Progress | None = None

    def resumed(self, step: int) -> None:
        if step:
            self.note(f"going on after step {step}")

    def step(self, step: Step) -> None:
        if math.isfinite(step.loss):
            self._loss = _smooth(self._loss, step.loss)
        self._seconds = _smooth(self._seconds, step.seconds)
        self._rate = _smooth(self._rate, step.tokens / max(step.seconds, 1e-9))
        if not self._due(step):
            return
        self._shown = self.clock()
        if not self.console.is_terminal:
            self._print(f"step {step.step}/{step.steps}  {self._told(step)}")
            return
        if self._bar is None:
            self._bar = _bar(self.console, step.steps)
        task = self._bar.task_ids[0]
        self._bar.update(task, completed=step.step, told=self._told(step))
        self._bar.refresh()

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"step {step}: {values}")

    def sample(self, step: int, text: str) -> None:
        self._print(f"step {step}: {text}")

    def note(self, text: str) -> None:
        self._print(text)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _due(self, step: Step) -> bool:
        if step.step >= step.steps:
            return True
        if self.console.is_terminal:
            return self.clock() - self._shown >= REFRESH_EVERY
        if self.every is not None:
            return step.step % self.every == 0
        return self.clock() - self._shown >= LINE_EVERY

    def _told(self, step: Step) -> str:
        loss = "" if self._loss is None else f"loss {self._loss:.4f}  "
        rate = self._rate or 0.0
        mfu = "" if self.speed is None else f"{self.speed.shown(rate)}  "
        left = clock_time((step.steps - step.step) * (self._seconds or 0.0))
        return f"{loss}lr {step.learning_rate:.2e}  {rate:,.0f} tok/s  {mfu}{left} left"

    def _print(self, text: str) -> None:
        # A Text has no markup and no :emoji: codes in it.
        self.console.print(Text(printable(text)), soft_wrap=True)


def _bar(console: Console, steps: int) -> Progress:
    """Without a thread of its own: it is drawn when the loop tells of a step."""
    columns = (
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[told]}", markup=False),
    )
    bar = Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False)
    bar.add_task("", total=steps, told="")
    bar.start()
    return bar


def printable(text: str) -> str:
    r"""A text that cannot steer a terminal: control and format characters are escaped (\x1b).

    Line ends stay, and so do spaces of all kinds; lone surrogates and unassigned codes do not.
    """
    return "".join(
        c if c.isprintable() or c == "\n" or unicodedata.category(c) == "Zs" else ascii(c)[1:-1]
        for c in text
    )


def clock_time(seconds: float) -> str:
    """1:05 for 65 seconds, 2:00:00 for two hours."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else SMOOTHING * old + (1 - SMOOTHING) * new


# ---- TensorBoard ----


class TensorBoard:
    """Event files for TensorBoard: train/…, evaluation/…, and texts.

    Raises DependencyError without the training extra.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._at = 0
        self._purge: int | None = None
        _check_tensorboard()

    @cached_property
    def _writer(self) -> Any:
        """Made when something is told: of several processes only the first tells anything."""
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter(str(self.folder), purge_step=self._purge)
        return writer

    def resumed(self, step: int) -> None:
        """What is there of later steps, from a run that was broken off, is hidden."""
        self._at = step
        self.close()
        self._purge = step + 1 if any(self.folder.glob("events.*")) else None

    def step(self, step: Step) -> None:
        self._at = step.step
        values = {
            "loss": step.loss,
            "learning_rate": step.learning_rate,
            "gradient_norm": step.gradient_norm,
            "tokens_per_second": step.tokens / max(step.seconds, 1e-9),
            **{f"parts/{name}": value for name, value in step.parts.items()},
        }
        for name, value in values.items():
            self._writer.add_scalar(f"train/{name}", value, step.step)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(f"evaluation/{name}", value, step)

    def sample(self, step: int, text: str) -> None:
        self._writer.add_text("sample", text, step)

    def note(self, text: str) -> None:
        self._writer.add_text("note", text, self._at)

    def close(self) -> None:
        if "_writer" in self.__dict__:
            self._writer.close()
            del self._writer


def _check_tensorboard() -> None:
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise DependencyError(
            "tensorboard is not installed", advice='Run: pip install "chumoku[train]"'
        ) from error


# ---- what a run tells by default ----


def run_reports(
    folder: Path,
    model: nn.Module,
    more: Iterable[Report] = (),
    *,
    quiet: bool = False,
    shape: Shape | None = None,
    dtype: torch.dtype | None = None,
    processes: int = 1,
) -> Report:
    """The log in a folder and the terminal; quiet: nothing.

    shape: of one row of a batch; with it MFU, or the operations a second, are shown. dtype: of the
    products, else the model's. processes: whose tokens are told together.
    """
    if quiet:
        return Reports(())
    terminal = Terminal(speed=None if shape is None else speed_of(model, shape, dtype, processes))
    return Reports((JsonLog(folder / "log.jsonl"), terminal, *more))


def speed_of(
    model: nn.Module, shape: Shape, dtype: torch.dtype | None = None, processes: int = 1
) -> Speed:
    """What is needed for MFU, for a model on its device, of which each process has one."""
    first = next(model.parameters())
    peak = peak_flops(first.device, dtype or first.dtype)
    return Speed(flops_per_token(model, shape), None if peak is None else peak * processes)
