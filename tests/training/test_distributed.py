"""Two processes are one: DDP and FSDP2, sharded snapshots, faults, and how processes meet."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed import HashStore
from training import processes, runs
from training.launching import environment, free_port, pair
from training.processes import SAVED, SAVED_NARROW, SCENARIOS, Scenario, run, texts

from chumoku.errors import CheckpointError, ConfigError, TrainingError
from chumoku.training import randomness, snapshots
from chumoku.training.data.streaming import batches_of
from chumoku.training.distributed import _meet, leave, world_of
from chumoku.training.loop import Objective, Run
from chumoku.training.sharded import units
from chumoku.training.shards import Assembled, Piece, merged, write_pieces
from chumoku.training.snapshots import latest_snapshot, read_snapshot
from chumoku.training.world import Alone


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


# ---- all comparisons in one pair of processes ----


@dataclass(frozen=True)
class Pair:
    """What the two processes of `processes.compare` have left."""

    folder: Path

    def told(self, name: str, rank: int = 0) -> Any:
        return json.loads((self.folder / str(rank) / f"{name}.json").read_text())

    def weights(self, name: str, rank: int = 0) -> dict[str, Tensor]:
        snapshot, _ = latest_snapshot(self.folder / str(rank) / name)
        assert snapshot is not None
        return dict(snapshot.tensors["model"])


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pair")
    for strategy in ("ddp", "fsdp"):
        for name, settings in (("saved", SAVED), ("saved narrow", SAVED_NARROW)):
            place = folder / "begun alone" / f"{strategy} {name}"
            run(Scenario(settings, split=name == "saved narrow"), place, Alone(), stop=4)
    first, second = pair("compare", folder)
    _, errors = first.communicate(timeout=600)  # the second has stopped itself
    second.kill()
    second.communicate(timeout=60)
    assert first.returncode == 0, errors
    return Pair(folder)


def difference(told: Any, weights: dict[str, Tensor], reference: Any, model: Any) -> float:
    """The largest of losses', norms', metrics' and weights'; infinite where they do not match."""
    worst = 0.0
    for name in ("losses", "norms", "metrics"):
        if len(told[name]) != len(reference[name]):
            return float("inf")
        for a, b in zip(told[name], reference[name], strict=True):
            worst = max(worst, abs(a - b) / max(1.0, abs(b)))
    for name, parameter in model.named_parameters():
        worst = max(worst, float((weights[name] - parameter).detach().abs().max()))
    return worst


@pytest.mark.parametrize("name", SCENARIOS)
def test_two_processes_are_one(two: Pair, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    reference, model = run(scenario, tmp_path, Alone())
    for rank in range(2):
        told, weights = two.told(name, rank), two.weights(name, rank)
        assert difference(told, weights, reference, model) < scenario.tolerance
        assert weights.keys() == dict(model.named_parameters()).keys()
    before = scenario.model()
    moved = [
        n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n).to(p))
    ]
    assert len(moved) > 20
    assert not any(n.startswith("never") for n in moved)


@pytest.mark.parametrize("name", processes.WRONG)
def test_wrong_weighting_is_seen(two: Pair, tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS["ddp"]
    reference, model = run(scenario, tmp_path, Alone())
    assert difference(two.told(name), two.weights(name), reference, model) > 1e-3


def test_narrow_training_is_not_wide_training(two: Pair, tmp_path: Path) -> None:
    """A run in bfloat16 that silently was one in float32 would pass the comparison with itself."""
    for strategy in ("ddp", "fsdp"):
        name = f"{strategy} narrow"
        reference, model = run(SCENARIOS["ddp accumulated"], tmp_path / strategy, Alone())
        weights = {n: w.float() for n, w in two.weights(name).items()}
        assert 1e-4 < difference(two.told(name), weights, reference, model) < 0.1
        assert {w.dtype for w in two.weights(name).values()} == {torch.bfloat16}


# ---- snapshots and the number of processes ----


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", ["saved", "saved narrow"])
def test_another_number_of_processes_goes_on(
    two: Pair, tmp_path: Path, strategy: str, name: str
) -> None:
    """2 -> 1 and 1 -> 2, weights, optimiser and average, after step 3 of 6."""
    settings = SAVED if name == "saved" else SAVED_NARROW
    scenario = Scenario(settings, split=name == "saved narrow")
    expected, model = run(scenario, tmp_path / "whole", Alone())
    tolerance = scenario.tolerance

    folder = tmp_path / "run"
    shutil.copytree(two.folder / "begun together" / f"{strategy} {name}", folder)
    told, mine = run(scenario, folder, Alone())
    assert told["begun"] == [3]
    whole = {**expected, "losses": expected["losses"][3:], "norms": expected["norms"][3:]}
    whole["metrics"] = expected["metrics"][-len(told["metrics"]) :]
    assert difference(told, dict(mine.named_parameters()), whole, model) < tolerance

    name = f"{strategy} {name}"
    told = two.told(name)
    assert told["begun"] == [3]
    assert difference(told, two.weights(name), whole, model) < tolerance


def test_a_sharded_snapshot_is_pieces_and_a_manifest(two: Pair) -> None:
    folder = snapshots.snapshots(two.folder / "begun together" / "fsdp saved" / "snapshots")[-1]
    names = {path.name for path in folder.iterdir()}
    pieces = {f"{f}-0000{r}-of-00002.safetensors" for f in ("model", "optimiser") for r in (0, 1)}
    assert pieces <= names
    assert "model.safetensors" not in names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["sha256"]) == names - {"manifest.json"}
    entry = manifest["shards"]["model"]["blocks.0.feedforward.up.weight"]
    files = [f"model-0000{r}-of-00002.safetensors" for r in (0, 1)]
    assert entry == {
        "shape": [64, 16],
        "dim": 0,
        "pieces": [[files[0], 0, 32], [files[1], 32, 64]],
    }
    # Each holds half of what is large, and the two together no more than the whole.
    sizes = [
        sum((folder / f).stat().st_size for f in sorted(pieces) if f"-0000{r}-" in f)
        for r in (0, 1)
    ]
    assert 0.4 < sizes[0] / sum(sizes) < 0.6
    whole = snapshots.snapshots(two.folder / "begun together" / "ddp saved" / "snapshots")[-1]
    theirs, ours = read_snapshot(whole).tensors, read_snapshot(folder).tensors
    for file in ("model", "optimiser", "average"):
        assert set(ours[file]) == set(theirs[file])
        for name, value in theirs[file].items():
            torch.testing.assert_close(ours[file][name], value, atol=1e-6, rtol=1e-4)


def _three_pieces(folder: Path, cut: tuple[int, ...] = (0, 3, 6, 7)) -> Tensor:
    """[7, 2] in the pieces of three processes, and a number that all have."""
    value = torch.arange(14.0).view(7, 2)
    layouts = []
    for rank, (begin, end) in enumerate(pairwise(cut)):
        pieces = {
            "a": Piece(value[begin:end], (7, 2), 0, begin, end),
            "n": Piece(torch.tensor(rank), ()),
        }
        layouts.append(write_pieces(folder, {"model": pieces}, rank, 3))
    (folder / "layout").write_text(json.dumps(merged(layouts)["model"]))
    return value


def test_pieces_make_up_the_tensor(tmp_path: Path) -> None:
    value = _three_pieces(tmp_path)
    found = Assembled(tmp_path, json.loads((tmp_path / "layout").read_text()))
    assert torch.equal(found["a"], value)
    assert found["n"] == 0
    assert list(found) == ["a", "n"]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a["pieces"].pop(),
        lambda a: a["pieces"].pop(1),
        lambda a: a["pieces"].pop(0),
        lambda a: a["pieces"].append(a["pieces"][0]),
        lambda a: a["pieces"].clear(),
        lambda a: a.update(shape=[8, 2]),
        lambda a: a.update(shape=[7, 3]),
        lambda a: a.update(shape=[7, -2]),
        lambda a: a.update(dim=1),
        lambda a: a.update(dim=2),
        lambda a: a.update(dim=None),
        lambda a: a.pop("dim"),
        lambda a: a["pieces"][0].__setitem__(2, 2),
        lambda a: a["pieces"][0].__setitem__(1, "0"),
        lambda a: a["pieces"][0].__setitem__(0, "../model"),
        lambda a: a["pieces"][0].__setitem__(0, 3),
        lambda a: a["pieces"][1].__setitem__(0, a["pieces"][0][0]),
    ],
)
def test_a_manifest_that_lies_is_refused(tmp_path: Path, change: Any) -> None:
    _three_pieces(tmp_path)
    layout = json.loads((tmp_path / "layout").read_text())
    change(layout["a"])
    with pytest.raises(CheckpointError):
        Assembled(tmp_path, layout)


def test_a_damaged_piece_is_passed_by(two: Pair, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(two.folder / "runs" / "fsdp", folder)  # saved at its end
    (newest,) = snapshots.snapshots(folder / "snapshots")
    victim = newest / "optimiser-00001-of-00002.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-3] ^= 1
    victim.write_bytes(raw)
    found, damaged = latest_snapshot(folder / "snapshots")
    assert found is None
    assert victim.name in str(damaged[0])


def test_what_cannot_be_sharded_is_refused() -> None:
    model = Scenario().model()
    objective = Objective(model, texts())
    assert units(objective) == [*model.blocks, objective]  # type: ignore[arg-type]
    model.blocks[1].feedforward.up.weight = model.blocks[0].feedforward.up.weight  # type: ignore[union-attr, index]
    with pytest.raises(ConfigError, match=r'share(?s:.*)"ddp"'):
        units(objective)
    model = Scenario().model()
    raw = torch.nn.Parameter(torch.zeros(3, dtype=torch.uint8), requires_grad=False)
    model.blocks[1].feedforward.up.weight = raw  # type: ignore[union-attr, index]
    with pytest.raises(
        ConfigError, match=r'quantised(?s:.*)blocks\.1\.feedforward\.up\.weight(?s:.*)"ddp"'
    ):
        units(Objective(model, texts()))


def test_machines_that_share_no_folder_are_told_so(tmp_path: Path) -> None:
    """Each sees its own snapshots, or the first does not see the pieces of the others."""

    class Apart(Alone):
        def gather(self, values: Tensor) -> list[Tensor]:
            return [values, values + 4]

    run = Run(Scenario().model(), texts(), SAVED, tmp_path, runs.Kept(), world=Apart())
    with pytest.raises(TrainingError, match=r"of steps \[0, 4\](?s:.*)share the folder"):
        run.train()
    _three_pieces(tmp_path)
    layout = {"model": json.loads((tmp_path / "layout").read_text())}
    (tmp_path / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"00001-of-00003(?s:.*)share the folder"):
        snapshots.commit(tmp_path, snapshots.Snapshot(3, {}, {}), layout)


# ---- what goes wrong in one process ----


def test_no_number_in_one_process_stops_all_in_the_same_step(two: Pair) -> None:
    batches = batches_of(texts().examples, processes.SETTINGS.batching, processes.SETTINGS.seed)
    batch = [next(batches) for _ in range(3)][-1]
    for rank in range(2):
        told = two.told("not a number", rank)
        assert [kind for kind, _ in told] == ["TrainingError"] * 2
        for _, text in told:
            assert "step 3: loss nan" in text
            assert "weights were not changed" in text
            assert f"epoch {batch.epoch}, examples {batch.indices}" in text  # of both processes


def test_a_full_disk_of_one_process_is_an_error_in_all(two: Pair) -> None:
    for rank in range(2):
        told = two.told("full disk", rank)
        victims, errors, left = (0, 0, 1), told[0::2], told[1::2]
        for victim, (kind, text), snapshot in zip(victims, errors, left, strict=True):
            assert snapshot == ["step-00000003"]
            if victim == rank:
                assert (kind, "disk is full" in text) == ("ResourceError", True)
            else:
                assert (kind, "another process" in text) == ("TrainingError", True)


def test_a_silent_process_is_noticed(two: Pair) -> None:
    kind, text = two.told("hung")
    assert kind == "TrainingError"
    assert "does not answer" in text
    assert "CHUMOKU_PEER_TIMEOUT" in text


# ---- joining ----


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of one process of two, whose peer never comes."""
    for name in ("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    told = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    told |= {"MASTER_PORT": str(free_port()), "CHUMOKU_PEER_TIMEOUT": "1"}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


CPU = torch.device("cpu")


def test_without_torchrun_it_is_one_process(launched: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        launched.delenv(name)
    for strategy in ("ddp", "fsdp"):
        world, device = world_of(CPU, strategy)
        assert isinstance(world, Alone)
        assert device == CPU
    with pytest.raises(ConfigError, match="zero"):
        world_of(CPU, "zero")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, None) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR")),
        ("MASTER_PORT", None),
        ("MASTER_PORT", "http"),
        ("RANK", "-1"),
        ("RANK", "2"),
        ("WORLD_SIZE", ""),
        ("WORLD_SIZE", "0"),
        ("CHUMOKU_PEER_TIMEOUT", "soon"),
        ("CHUMOKU_PEER_TIMEOUT", "0"),
        ("CHUMOKU_PEER_TIMEOUT", "nan"),
    ],
)
def test_an_environment_that_is_not_torchruns_is_refused(
    launched: pytest.MonkeyPatch, name: str, value: str | None
) -> None:
    if value is None:
        launched.delenv(name)
    else:
        launched.setenv(name, value)
    with pytest.raises(ConfigError) as caught:
        world_of(CPU)
    assert name in str(caught.value)
    assert not torch.distributed.is_initialized()


def test_a_gpu_that_is_not_there_is_refused(launched: pytest.MonkeyPatch) -> None:
    launched.setattr(torch.cuda, "device_count", lambda: 1)
    launched.setenv("LOCAL_RANK", "1")
    with pytest.raises(ConfigError, match=r"process 1 .* no GPU: there are 1(?s:.*)nproc-per-node"):
        world_of(torch.device("cuda"))


@pytest.mark.parametrize("rank", ["0", "1"])
def test_peers_that_never_come_are_an_error(launched: pytest.MonkeyPatch, rank: str) -> None:
    """The first waits for the second, or the second looks for the first."""
    launched.setenv("RANK", rank)
    with pytest.raises(ConfigError, match="do not find each other") as caught:
        world_of(CPU)
    for knob in (os.environ["MASTER_PORT"], "GLOO_SOCKET_IFNAME", "CHUMOKU_PEER_TIMEOUT"):
        assert knob in str(caught.value)
    leave()


def test_processes_that_are_started_again_do_not_meet_the_dead() -> None:
    """The store of torchrun lives on, with all that dead processes have left in it."""
    store, patience = HashStore(), timedelta(seconds=20)
    tokens = []
    for _ in range(3):
        with ThreadPoolExecutor(3) as pool:
            # The last comes first, and finds the answers that its predecessors got.
            met = [pool.submit(_meet, store, rank, 3, patience) for rank in (2, 1, 0)]
            found = {future.result(timeout=30) for future in met}
        assert len(found) == 1
        tokens += found
        store.set("asked/1", "of one that died before it was answered")
    assert len(set(tokens)) == 3
    with pytest.raises(TimeoutError, match="process 1 of 2"):
        _meet(store, 0, 2, timedelta(seconds=0.1))


# ---- random numbers ----


def draws() -> list[float]:
    found = [float(torch.rand(1)), random.random(), random.gauss(0, 1)]
    return [*found, float(np.random.rand()), float(np.random.randn())]


def test_each_process_goes_on_with_its_own_random_numbers() -> None:
    """Those of process 1 of 2 come back to it; where there are 3, nobody has those of another."""
    both: list[dict[str, Tensor]] = []
    expected = []
    for rank in range(2):
        randomness.seed_all(5 + rank)
        draws()  # leaves a normal number over in both generators that keep one
        both.append(randomness.random_state())
        expected.append(draws())
    states = {f"{rank}/{name}": value for rank in range(2) for name, value in both[rank].items()}
    for rank in range(2):
        randomness.seed_all(99)
        randomness.set_own_state(states, rank, 2, seed=5, step=7)
        assert draws() == expected[rank]
    fresh = []
    for size in (1, 3):
        for rank in range(size):
            randomness.set_own_state(states, rank, size, seed=5, step=7)
            fresh.append(draws())
    assert fresh[0] == fresh[1]  # rank and step decide, not what was before
    assert len({tuple(numbers) for numbers in (*fresh, *expected)}) == 5


def test_the_random_states_of_all_are_gathered() -> None:
    class Two(Alone):
        def gather(self, values: Tensor) -> list[Tensor]:
            return [values, values + 1]

    states = randomness.state_of_all(Two().gather)
    own = randomness.random_state()
    assert states.keys() == {f"{rank}/{name}" for rank in range(2) for name in own}
    assert all(torch.equal(states[f"0/{name}"], value) for name, value in own.items())


# ---- the command line ----


@pytest.mark.slow
def test_several_seeds_in_two_processes(tmp_path: Path) -> None:
    """The second run of the same processes begins and ends too, and one process tells of it."""
    rows = [
        "text,label",
        *(f"the {'good' if n % 2 else 'bad'} film {n},{n % 2}" for n in range(40)),
    ]
    (tmp_path / "train.csv").write_text("\n".join(rows))
    words = ["finetune", "classify", "--model", "tiny:bert-ja", "--train", "train.csv"]
    words += ["--output", "out", "--seeds", "3", "--training.steps=3", "--device", "cpu"]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    done = subprocess.run(
        [*launcher, "--standalone", "--module", "chumoku", *words],
        cwd=tmp_path,
        env=environment(CHUMOKU_PEER_TIMEOUT="60"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("now try:") == done.stdout.count("of 3 seeds: mean") == 1
    assert len(json.loads((tmp_path / "out" / "seeds.json").read_text())["values"]) == 3
