"""kill -9 at any moment, and the curve is the same to the last bit; SIGTERM saves and exits 143."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
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


def steps_told(folder: Path) -> int:
    losses = folder / "losses"
    return losses.read_bytes().count(b"\n") if losses.exists() else 0


def kill_once(folder: Path, dice: random.Random, aim: str) -> str:
    """Start or go on, and kill while it starts, some steps later, or in the middle of a save.

    Returns which of them it was: a save may be over before it is hit. "ended": it was too late.
    """
    before = steps_told(folder)
    process = start(folder)
    begun, steps = time.monotonic(), dice.randrange(1, 60)
    while process.poll() is None:
        if aim == "saving" and half_written(folder):
            break
        if aim == "running" and steps_told(folder) >= before + steps:
            break
        if aim == "starting" and time.monotonic() > begun + steps / 30:
            break
        time.sleep(0.0005)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    if process.returncode != -signal.SIGKILL:
        return "ended"
    if half_written(folder):
        return "saving"
    return "running" if steps_told(folder) > before else "starting"


@pytest.mark.parametrize("kills", [4, pytest.param(40, marks=pytest.mark.slow)])
def test_killed_runs_end_with_the_same_curve_and_weights(
    expected: Path, tmp_path: Path, kills: int
) -> None:
    """A quarter of the kills falls into a save, a tenth into a start, the others between."""
    dice = random.Random(11)
    quota = Counter(saving=kills // 4, starting=-(-kills // 10))
    quota["running"] = kills - quota.total()
    done: Counter[str] = Counter()
    for number in range(kills):
        folder = tmp_path / f"{number}"
        while (missing := quota - done) and done[str(folder)] < 4:
            aim = dice.choice(sorted(missing.elements()))
            done.update([kill_once(folder, dice, aim), str(folder)])
        finish(folder)
        assert curve(folder) == curve(expected)
        assert disagreements(folder) == 0
        assert (folder / "weights").read_text() == (expected / "weights").read_text()
        assert not half_written(folder)
        if not quota - done:
            break
    print({what: done[what] for what in (*quota, "ended")})
    assert not quota - done


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
