"""What a run shows and writes while it goes on: the terminal, `log.jsonl`, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from torch import nn

from chumoku.checkpoints.ranges import atomic_file

LINE_EVERY: Final = 10.0
"""Seconds between two lines where stderr is no terminal."""
SMOOTHING: Final = 0.9


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
        for report in self.reports:
            report.close()


class JsonLog:
    """One JSON object a line: kind step, evaluation, sample or note; floats are exact."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._step = 0

    def resumed(self, step: int) -> None:
        """Drop what was told of later steps, and a last line that a kill has torn."""
        kept = [entry for entry in read_log(self.path) if entry["at"] <= step]
        with atomic_file(self.path) as stream:
            for entry in kept:
                stream.write(_line(entry))
        self._step = step

    def step(self, step: Step) -> None:
        self._step = step.step
        values = {k: v for k, v in asdict(step).items() if k not in ("step", "steps")}
        self._write("step", values)

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self._write("evaluation", {"metrics": dict(metrics)})

    def sample(self, step: int, text: str) -> None:
        self._write("sample", {"text": text})

    def note(self, text: str) -> None:
        self._write("note", {"text": text})

    def close(self) -> None: ...

    def _write(self, kind: str, values: Mapping[str, Any]) -> None:
        with self.path.open("ab") as stream:
            stream.write(_line({"kind": kind, "at": self._step, **values}))


def _line(entry: Mapping[str, Any]) -> bytes:
    return (json.dumps(entry, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; a line that is not whole is passed by."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_bytes().split(b"\n"):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("at"), int):
                entries.append(entry)
    return entries


class Terminal:
    """A line that renews itself on a terminal, else one now and then; both on stderr."""

    def __init__(self, flops_per_token: float = 0.0, peak: float | None = None) -> None:
        self.flops_per_token, self.peak = flops_per_token, peak
        self.live = sys.stderr.isatty()
        self._loss: float | None = None
        self._rate: float | None = None
        self._shown = 0.0

    def resumed(self, step: int) -> None:
        if step:
            self.note(f"going on after step {step}")

    def step(self, step: Step) -> None:
        self._loss = _smooth(self._loss, step.loss)
        self._rate = _smooth(self._rate, step.tokens / max(step.seconds, 1e-9))
        now = time.monotonic()
        if now - self._shown < (0.2 if self.live else LINE_EVERY) and step.step < step.steps:
            return
        self._shown = now
        left = (step.steps - step.step) * step.seconds
        mfu = ""
        if self.peak and self._rate is not None:
            mfu = f"  MFU {self._rate * self.flops_per_token / self.peak:.1%}"
        self._print(
            f"step {step.step}/{step.steps}  loss {self._loss:.4f}  lr {step.learning_rate:.2e}  "
            f"{self._rate:,.0f} tok/s{mfu}  {_clock(left)} left",
            stays=not self.live or step.step == step.steps,
        )

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        values = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._print(f"step {step}: {values}")

    def sample(self, step: int, text: str) -> None:
        self._print(f"step {step}: {text}")

    def note(self, text: str) -> None:
        self._print(text)

    def close(self) -> None: ...

    def _print(self, text: str, stays: bool = True) -> None:
        text = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
        clear = "\r\x1b[K" if self.live else ""
        print(f"{clear}{text}", end="\n" if stays else "", file=sys.stderr, flush=True)


def _smooth(old: float | None, new: float) -> float:
    return new if old is None else SMOOTHING * old + (1 - SMOOTHING) * new


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def run_reports(
    folder: Path, model: nn.Module, more: Iterable[Report] = (), *, quiet: bool = False
) -> Report:
    """What a run tells by default: its log and the terminal; quiet: nothing."""
    if quiet:
        return Reports(())
    return Reports((JsonLog(folder / "log.jsonl"), Terminal(), *more))
