"""Processes that die, hang or are told to stop, and what the ones after them make of it."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from training.launching import ended, environment, free_port, merged_batches, pair, taken, torchrun
from training.processes import CHANCY, one_run
from training.test_kills import curve, disagreements

from chumoku.training.world import Alone

STEPS = CHANCY.steps or 0


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(strategy, number of processes) -> the folder of a run that nothing disturbed."""
    made: dict[tuple[str, int], Path] = {}

    def find(strategy: str = "ddp", size: int = 2) -> Path:
        if (strategy, size) not in made:
            folder = tmp_path_factory.mktemp("whole")
            told = ended(pair("run", folder, f"strategy={strategy}", size=size))
            assert [code for code, _ in told] == [0] * size, told
            assert len(curve(folder)) == STEPS
            made[strategy, size] = folder
        return made[strategy, size]

    return find


def same(folder: Path, expected: Path) -> None:
    """Every loss as a hex float, however often it was computed, and the last weights."""
    assert curve(folder) == curve(expected)
    assert disagreements(folder) == 0
    assert (folder / "weights").read_text() == (expected / "weights").read_text()
    assert not list((folder / "snapshots").glob(".unfinished-*"))


def launch(words: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, capture_output=True, text=True, timeout=900, env=environment())


# ---- death ----


def test_a_killed_process_is_started_again_and_the_curve_is_the_same(
    whole: Any, tmp_path: Path
) -> None:
    ran = launch(torchrun("run", tmp_path, "trap=SIGKILL@1:10"))
    assert ran.returncode == 0, ran.stderr
    assert "failed (exitcode" in ran.stderr  # -9, or that of the one that was left alone
    same(tmp_path, whole())
    steps = [int(line.split()[0]) for line in (tmp_path / "losses").read_text().splitlines()]
    assert (steps.count(8), steps.count(9)) == (1, 2)  # it went on from step 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "size", "kills"),
    [("ddp", 2, 18), ("fsdp", 2, 12), ("ddp", 3, 5), ("fsdp", 3, 5)],
)
def test_forty_killed_processes(
    whole: Any, tmp_path: Path, strategy: str, size: int, kills: int
) -> None:
    """At a random moment within a random step, or within the save after it."""
    expected = whole(strategy, size)
    dice = random.Random(f"{strategy}{size}{tmp_path.name}")
    traps = [
        f"SIGKILL@{dice.randrange(size)}:{dice.randrange(1, STEPS)}+{dice.uniform(0, 0.1):.4f}"
        for _ in range(kills)
    ]
    words = ("run", tmp_path, f"strategy={strategy}", f"trap={','.join(traps)}")
    ran = launch(torchrun(*words, restarts=kills, size=size))
    assert ran.returncode == 0, ran.stderr[-5000:]
    same(tmp_path, expected)


# ---- silence ----


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(20))
def test_a_silent_process_is_noticed_in_time(tmp_path: Path, turn: int) -> None:
    strategy, rank = ("ddp", "fsdp")[turn % 2], turn // 2 % 2
    trap = f"trap=SIGSTOP@{rank}:{2 + turn}"
    started = pair("run", tmp_path, f"strategy={strategy}", trap, "patience=3")
    silent, other = started[rank], started[1 - rank]
    _, errors = other.communicate(timeout=120)
    silent.kill()
    silent.communicate(timeout=60)
    assert other.returncode == 2
    assert "TrainingError: another process of the run does not answer" in errors


@pytest.mark.slow
def test_a_silent_process_is_replaced_under_torchrun(whole: Any, tmp_path: Path) -> None:
    """torchrun waits 30 seconds for the silent one before it kills it."""
    ran = launch(torchrun("run", tmp_path, "trap=SIGSTOP@1:10", "patience=5"))
    assert ran.returncode == 0, ran.stderr
    assert "does not answer" in ran.stderr
    same(tmp_path, whole())


# ---- signals, and other numbers of processes ----


def test_sigterm_saves_and_other_numbers_of_processes_go_on(tmp_path: Path) -> None:
    """2 -> 1 -> 2: one process gets SIGTERM and both end with 143; the examples stay in order."""
    stops_and_goes_on(tmp_path, [10, 20], ["ddp", "", "fsdp"])


@pytest.mark.slow
def test_ten_changes_of_the_number_of_processes(tmp_path: Path) -> None:
    dice = random.Random(4)
    stops = sorted(dice.sample(range(1, STEPS - 1, 2), 10))
    strategies = ["fsdp", "", "ddp", "", "fsdp", "", "fsdp", "", "ddp", "", "ddp"]
    stops_and_goes_on(tmp_path, stops, strategies)


def stops_and_goes_on(place: Path, stops: list[int], strategies: list[str]) -> None:
    """Segments of a run, each by two processes, or by one where the strategy is empty."""
    folder, alone = place / "run", place / "alone"
    assert one_run(alone, world=Alone(), kind="calm") == 0
    batches = []
    for number, strategy in enumerate(strategies):
        last = number == len(stops)
        trap = "" if last else f"SIGTERM@{1 if strategy else 0}:{stops[number]}"
        if strategy:
            told = ended(pair("run", folder, "kind=calm", f"strategy={strategy}", f"trap={trap}"))
            assert [code for code, _ in told] == [0, 0] if last else [143, 143], told
            assert last or all("everything is saved" in text for _, text in told)
        else:
            assert one_run(folder, world=Alone(), kind="calm", trap=trap) == (0 if last else 143)
        batches += taken(folder, 2 if strategy else 1)
    assert batches == merged_batches(alone, 1)
    theirs, ours = curve(alone), curve(folder)
    assert ours.keys() == theirs.keys()
    for step, loss in theirs.items():
        assert float.fromhex(ours[step]) == pytest.approx(float.fromhex(loss), rel=1e-5)


@pytest.mark.slow
def test_sigterm_to_torchrun_saves(whole: Any, tmp_path: Path) -> None:
    words = torchrun("run", tmp_path, "kind=chancy", "pace=0.2")
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment())
    while not (tmp_path / "losses").exists() or len(curve(tmp_path)) < 5:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    step = max(curve(tmp_path))
    assert f"stopped by SIGTERM after step {step}; everything is saved" in errors
    assert (tmp_path / "snapshots" / f"step-{step:08}").is_dir()
    assert launch(torchrun("run", tmp_path)).returncode == 0
    same(tmp_path, whole())


# ---- two machines ----


@pytest.fixture
def machines() -> Iterator[list[list[str]]]:
    """Two network namespaces with a cable between them: the words before a command in each."""
    ip = shutil.which("ip")
    if ip is None:
        pytest.skip("there is no ip program")
    names = [f"chumoku-{side}-{free_port()}" for side in "ab"]
    with ExitStack() as undo:
        try:
            for name in names:
                subprocess.run([ip, "netns", "add", name], check=True, capture_output=True)
                undo.callback(subprocess.run, [ip, "netns", "delete", name], check=False)
            cable = f"link add cable0 netns {names[0]} type veth peer name cable0 netns {names[1]}"
            subprocess.run([ip, *cable.split()], check=True, capture_output=True)
            for number, name in enumerate(names, 1):
                for words in (
                    f"address add 10.77.0.{number}/24 dev cable0",
                    "link set cable0 up",
                    "link set lo up",
                ):
                    subprocess.run(
                        [ip, "-n", name, *words.split()], check=True, capture_output=True
                    )
        except subprocess.CalledProcessError as error:
            pytest.skip(f"network namespaces are not permitted: {error.stderr!r}")
        yield [[ip, "netns", "exec", name] for name in names]


def on_both(machines: list[list[str]], *words: object) -> list[tuple[int, str]]:
    """torchrun on each machine, found by the first's address."""
    meeting = f"--rdzv-backend=c10d --rdzv-endpoint=10.77.0.1:{free_port()} --rdzv-id=chumoku"
    started = []
    for number, machine in enumerate(machines, 1):
        launcher = [*machine, *torchrun(*words, standalone=False, size=1)]
        place = launcher.index("torch.distributed.run") + 1
        # That 10.77.0.1 is the first machine's own address cannot be told from its host name.
        own = (f"--local-addr=10.77.0.{number}", f"--rdzv-conf=is_host={int(number == 1)}")
        launcher[place:place] = ["--nnodes=2", *own, *meeting.split()]
        started.append(
            subprocess.Popen(
                launcher,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(GLOO_SOCKET_IFNAME="cable0", CHUMOKU_PEER_TIMEOUT="60"),
            )
        )
    return ended(started)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_machines_are_two_processes(
    machines: list[list[str]], whole: Any, tmp_path: Path, strategy: str
) -> None:
    told = on_both(machines, "run", tmp_path, f"strategy={strategy}")
    assert [code for code, _ in told] == [0, 0], told
    same(tmp_path, whole(strategy))


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_death_on_one_machine_restarts_both(
    machines: list[list[str]], whole: Any, tmp_path: Path, rank: int
) -> None:
    """The two torchruns count restarts apart; only the one whose process died counts this."""
    told = on_both(machines, "run", tmp_path, f"trap=SIGKILL@{rank}:10", "once=yes")
    assert [code for code, _ in told] == [0, 0], told
    same(tmp_path, whole())
