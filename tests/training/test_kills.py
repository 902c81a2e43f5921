"""kill -9 at any moment, and the curve is the same to the last bit; SIGTERM saves and exits 143."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "runs.py"
STEPS = 300
CHANGES = (f"steps={STEPS}", "save_every=20", "evaluate_every=50")


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    words = [sys.executable, str(PROGRAM), str(folder), *CHANGES, *more]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    return subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def finish(folder: Path, *more: str) -> None:
    process = start(folder, *more)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors


def curve(folder: Path) -> dict[int, str]:
    """The loss of each step, as last written; a torn last line is a kill's."""
    found = {}
    for line in (folder / "losses").read_text().splitlines():
        words = line.split()
        if len(words) == 2:
            found[int(words[0])] = words[1]
    return found


def disagreements(folder: Path) -> int:
    """Lines that tell another loss of a step than a line before did."""
    told: dict[int, str] = {}
    lines = [line.split() for line in (folder / "losses").read_text().splitlines()]
    whole = [words for words in lines if len(words) == 2 and words[1].count("p") == 1]
    return sum(told.setdefault(int(step), loss) != loss for step, loss in whole)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(folder)
    assert len(curve(folder)) == STEPS
    return folder


def half_written(folder: Path) -> bool:
    return any((folder / "snapshots").glob(".unfinished-*"))


def kill_once(folder: Path, dice: random.Random, *, saving: bool) -> str:
    """Start or go on, and kill at a random moment, or in the middle of a save."""
    process = start(folder)
    assert process.stdout is not None
    if dice.random() < 0.8:  # else also while it starts
        process.stdout.readline()
    deadline = time.monotonic() + (20.0 if saving else dice.uniform(0.0, 1.5))
    what = "running"
    while time.monotonic() < deadline and process.poll() is None:
        if saving and half_written(folder):
            what = "saving"
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    return what


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_curve_and_weights(
    expected: Path, tmp_path: Path, kills: int
) -> None:
    dice = random.Random(11)
    while kills > 0:
        folder = tmp_path / f"{kills}"
        for number in range(min(4, kills)):
            kill_once(folder, dice, saving=number % 4 == 1)
            kills -= 1
        finish(folder)
        assert curve(folder) == curve(expected)
        assert disagreements(folder) == 0
        assert (folder / "weights").read_text() == (expected / "weights").read_text()
        assert not half_written(folder)


def test_sigterm_saves_and_exits_with_143(expected: Path, tmp_path: Path) -> None:
    process = start(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    while not (tmp_path / "losses").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    step = max(curve(tmp_path))
    assert f"after step {step}" in errors
    assert (tmp_path / "snapshots" / f"step-{step:08}").is_dir()
    finish(tmp_path)
    assert curve(tmp_path) == curve(expected)
    assert (tmp_path / "weights").read_text() == (expected / "weights").read_text()


def test_the_comparison_sees_another_seed(expected: Path, tmp_path: Path) -> None:
    finish(tmp_path, "seed=6")
    assert curve(tmp_path) != curve(expected)
    assert (tmp_path / "weights").read_text() != (expected / "weights").read_text()
