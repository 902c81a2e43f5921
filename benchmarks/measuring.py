"""Measuring in pairs: two workers in turn, medians, ratios; and what the machine was doing."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

PEERS = Path(__file__).parent / "peers.py"


class PeerError(Exception):
    """A peer is not installed, or could not do what was asked."""


class Worker:
    """A process that runs one library (see peers.py)."""

    def __init__(self, peer: str, threads: int) -> None:
        self.peer, self.threads = peer, threads
        environment = os.environ | {
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "true" if threads > 1 else "false",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_VERBOSITY": "error",
        }
        self._process = subprocess.Popen(
            [sys.executable, str(PEERS), peer],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command. Raises PeerError."""
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise PeerError(f"{self.peer} has no pipes")
        try:
            stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        reply = json.loads(line) if line else {"error": "the process has ended"}
        if "missing" in reply:
            raise PeerError(f"{self.peer} is not installed ({reply['missing']})")
        if "error" in reply:
            raise PeerError(f"{self.peer}: {reply['error']}")
        return dict(reply)

    def load(self, path: str, dtype: str, kind: str) -> dict[str, Any]:
        return self.ask("load", path=path, dtype=dtype, kind=kind, threads=self.threads)

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class Row:
    """One line of the table. ours, theirs: medians in `unit`; ratio above 1: ours is better.

    spread: the least and the greatest ratio of a pair. agreement: how the results compare.
    """

    name: str
    ours_name: str
    theirs_name: str
    unit: str
    ours: float
    theirs: float
    ratio: float
    spread: tuple[float, float]
    agreement: str = ""


def pairs(
    first: Callable[[], float], second: Callable[[], float], count: int, warm: bool = True
) -> list[tuple[float, float]]:
    """`count` pairs of measurements A B A B …, after one of each that does not count."""
    if warm:
        first(), second()
    return [(first(), second()) for _ in range(count)]


def row(
    name: str,
    names: tuple[str, str],
    unit: str,
    measured: list[tuple[float, float]],
    work: float | None,
    agreement: str = "",
) -> Row:
    """A row from pairs of seconds. work: what was done in that time, for a rate; None: a time."""
    ours, theirs = (statistics.median(values) for values in zip(*measured, strict=True))
    ratios = [b / a for a, b in measured]
    if work is None:
        scale = 1e3 if unit == "ms" else 1.0
        values = ours * scale, theirs * scale
    else:
        values = work / ours, work / theirs
    ratio = statistics.median(ratios)
    spread = min(ratios), max(ratios)
    return Row(name, *names, unit, *values, ratio, spread, agreement)


def load_average() -> float:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
