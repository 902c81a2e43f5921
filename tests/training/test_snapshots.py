"""Snapshots: exact, whole or absent, damage named and stepped over."""

from __future__ import annotations

import errno
import json
import random
import shutil
from pathlib import Path

import pytest
import torch

from chumoku.checkpoints import ranges
from chumoku.errors import CheckpointError, ResourceError
from chumoku.training.snapshots import (
    MANIFEST,
    Snapshot,
    latest_snapshot,
    read_snapshot,
    snapshots,
    sweep,
    write_snapshot,
)


def made(step: int) -> Snapshot:
    generator = torch.Generator().manual_seed(step)
    tensors = {
        "model": {
            "a.weight": torch.randn(7, 5, generator=generator),
            "b": torch.randn(3, generator=generator).bfloat16(),
        },
        "random": {"cpu": torch.randint(0, 256, (40,), generator=generator).to(torch.uint8)},
    }
    return Snapshot(step, tensors, {"data": {"epoch": 1, "batch": step}, "loss": 0.1 + step})


def same(a: Snapshot, b: Snapshot) -> bool:
    return (
        a.step == b.step
        and a.state == b.state
        and {f: {*t} for f, t in a.tensors.items()} == {f: {*t} for f, t in b.tensors.items()}
        and all(
            torch.equal(value, b.tensors[file][name]) and value.dtype == b.tensors[file][name].dtype
            for file, tensors in a.tensors.items()
            for name, value in tensors.items()
        )
    )


def test_what_is_written_is_read_and_the_last_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        write_snapshot(tmp_path, made(step), keep=2)
    assert [path.name for path in snapshots(tmp_path)] == ["step-00000010", "step-00000015"]
    newest, damaged = latest_snapshot(tmp_path)
    assert newest is not None
    assert same(newest, made(15))
    assert not same(newest, made(10))
    assert not damaged


@pytest.mark.parametrize("tries", [120, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_damage_is_named_and_stepped_over(tmp_path: Path, tries: int) -> None:
    write_snapshot(tmp_path, made(1), keep=9)
    write_snapshot(tmp_path, made(2), keep=9)
    good = tmp_path / "step-00000002"
    copy = tmp_path / "copy"
    shutil.copytree(good, copy)
    dice = random.Random(3)
    for number in range(tries):
        victim = good / dice.choice(sorted(p.name for p in good.iterdir()))
        raw = bytearray(victim.read_bytes())
        kind = ("flip", "cut", "zero", "missing", "other")[number % 5]
        if kind == "flip":
            raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
        elif kind == "cut":
            del raw[dice.randrange(len(raw)) :]
        elif kind == "zero":
            start = dice.randrange(len(raw))
            raw[start : start + 64] = bytes(len(raw[start : start + 64]))
        if kind == "missing":
            victim.unlink()
        elif kind == "other":
            shutil.copyfile(tmp_path / "step-00000001" / victim.name, victim)
        else:
            if bytes(raw) == victim.read_bytes():
                continue
            victim.write_bytes(raw)
        found, damaged = latest_snapshot(tmp_path)
        if found is not None and found.step == 2:
            # A flipped bit in the manifest's white space changes no word of it.
            assert victim.name == MANIFEST
            assert json.loads(victim.read_bytes()) == json.loads((copy / MANIFEST).read_bytes())
        else:
            assert found is not None
            assert same(found, made(1)), (kind, victim.name)
            assert len(damaged) == 1
            assert "step-00000002" in str(damaged[0])
        shutil.rmtree(good)
        shutil.copytree(copy, good)
    assert same(read_snapshot(good), made(2))


def test_a_full_disk_leaves_the_former_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(tmp_path, made(1), keep=1)
    before = {p.name: p.read_bytes() for p in (tmp_path / "step-00000001").iterdir()}
    original = ranges.os.fsync
    calls = 0
    for failing in range(1, 9):
        calls = 0

        def full(handle: int, failing: int = failing) -> None:
            nonlocal calls
            calls += 1
            if calls == failing:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(handle)

        monkeypatch.setattr(ranges.os, "fsync", full)
        failed = None
        try:
            write_snapshot(tmp_path, made(2), keep=1)
        except (ResourceError, CheckpointError) as error:
            failed = error
        monkeypatch.setattr(ranges.os, "fsync", original)
        if failed is None:  # the folder's own sync is optional: everything was written
            shutil.rmtree(tmp_path / "step-00000002")
            write_snapshot(tmp_path, made(1), keep=1)
            continue
        assert "space" in str(failed)
        assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
        now = {p.name: p.read_bytes() for p in (tmp_path / "step-00000001").iterdir()}
        assert now == before


def test_a_value_that_is_no_number_is_never_written(tmp_path: Path) -> None:
    write_snapshot(tmp_path, made(1), keep=1)
    bad = made(2)
    bad.tensors["model"]["a.weight"][3, 2] = float("nan")  # type: ignore[index]
    with pytest.raises(CheckpointError, match=r"model: a\.weight"):
        write_snapshot(tmp_path, bad, keep=1)
    found, _ = latest_snapshot(tmp_path)
    assert found is not None
    assert found.step == 1


def test_half_made_ones_are_not_seen_and_are_swept(tmp_path: Path) -> None:
    write_snapshot(tmp_path, made(1), keep=1)
    half = tmp_path / ".unfinished-0"
    shutil.copytree(tmp_path / "step-00000001", half)
    (half / MANIFEST).unlink()
    assert [p.name for p in snapshots(tmp_path)] == ["step-00000001"]
    sweep(tmp_path)
    assert not half.exists()


def test_a_kill_between_two_renames_loses_nothing(tmp_path: Path) -> None:
    """Where the only snapshot was being replaced, the whole ones lie under other names."""
    write_snapshot(tmp_path, made(1), keep=1)
    (tmp_path / "step-00000001").rename(tmp_path / ".unfinished-old")
    shutil.copytree(tmp_path / ".unfinished-old", tmp_path / ".unfinished-new")
    sweep(tmp_path)
    found, damaged = latest_snapshot(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (1, [])
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]
