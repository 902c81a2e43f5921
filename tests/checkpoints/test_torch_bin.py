"""PyTorch files: read by a limited child process; nothing in them is ever run (A5)."""

from __future__ import annotations

import ast
import gc
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from checkpoints import hostile

from chumoku.checkpoints import assign, torch_bin, torch_worker
from chumoku.checkpoints.torch_bin import read_torch_bin, read_torch_files
from chumoku.errors import CheckpointError, ResourceError


def states() -> list[dict[str, object]]:
    torch.manual_seed(3)
    base = torch.randn(6, 4)
    all_dtypes: dict[str, object] = {
        str(d): (torch.randn(3, 2) * 3).to(d) for d in assign.DTYPES.values()
    }
    views = {
        "base": base,
        "tied": base,
        "turned": base.t(),
        "part": base[2:4, 1:],
        "one": base[0, 0],
    }
    wrapped = {"model": OrderedDict(w=torch.nn.Parameter(base), e=torch.zeros(0, 3)), "epoch": 3}
    return [all_dtypes, dict(views), {"state_dict": dict(views), "lr": 0.1}, dict(wrapped)]


def test_both_formats_give_the_same_tensors(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    caplog.set_level(logging.INFO, "chumoku")
    paths, expected = [], []
    for modern in (True, False):
        for number, state in enumerate(states()):
            paths.append(tmp_path / f"{number}{modern}.bin")
            torch.save(state, paths[-1], _use_new_zipfile_serialization=modern)
            expected.append(state.get("model", state.get("state_dict", state)))
    files = read_torch_files(paths)
    assert [r.getMessage().count("limited child process") for r in caplog.records] == [1]
    for tensors, state in zip(files, expected, strict=True):
        assert isinstance(state, dict)
        assert tensors.keys() == state.keys()
        for name, value in state.items():
            found = assign.dense(tensors[name])
            assert found.dtype == value.dtype
            assert torch.equal(found.reshape(tensors[name].shape), value)
    folders = list(tmp_path.glob("chumoku-torch-*"))
    assert len(folders) == 1
    assert os.name != "posix" or folders[0].stat().st_mode & 0o777 == 0o700
    last = files[1]["part"]
    del files, tensors
    gc.collect()
    assert folders[0].is_dir(), "one tensor is still in use"
    assert len(last.read()) == last.nbytes
    del last
    gc.collect()
    assert not folders[0].exists()


def test_a_hostile_file_is_an_error_of_its_own(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    raw = hostile.hostile_pickle("os", "system", (f"touch {canary}",), "global")
    (tmp_path / "good.bin").write_bytes(hostile.state_files()[0])
    (tmp_path / "bad.bin").write_bytes(hostile.in_zip(raw))
    with pytest.raises(CheckpointError, match=r"Python code \(.*system\)") as caught:
        read_torch_files([tmp_path / "good.bin", tmp_path / "bad.bin"])
    assert caught.value.where.endswith("bad.bin")
    assert "weights_only" not in str(caught.value), "no advice to switch the protection off"
    assert not canary.exists()
    (tmp_path / "raw").write_bytes(raw)
    code = f"import pickle; pickle.load(open({str(tmp_path / 'raw')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert canary.exists(), "the control: a plain unpickler runs it"


def test_no_gadget_runs(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    found = hostile.run_child("hostile", 0, folder)
    assert found["problems"] == []
    assert found["refused"] == len(hostile.GADGETS) * len(hostile.STYLES) >= 200
    asked = sum("asks for Python code" in reason for reason in found["reasons"])
    assert asked > 60, "too few files came as far as their gadget"


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_damaged_file_harms(count: int, tmp_path: Path) -> None:
    found = hostile.run_child("damaged", count, tmp_path)
    assert found["problems"] == []
    assert min(found["accepted"], found["refused"]) > count // 20


def test_the_worker_can_act_nowhere_else(tmp_path: Path) -> None:
    """The second wall, on its own: a hook that holds even where weights_only would not."""
    source = str(Path(torch_worker.__file__).parents[2])
    code = f"""
import os, socket, subprocess, sys
from pathlib import Path
from chumoku.checkpoints import torch_worker
inside, outside = {str(tmp_path / "in")!r}, {str(tmp_path / "out")!r}
os.mkdir(inside)
torch_worker.refuse_effects(inside)
Path(inside, "f").write_text("x")
Path(inside, "f").read_text()
acts = [
    lambda: os.system("touch " + outside), lambda: subprocess.run(["touch", outside]),
    lambda: open(outside, "w"), lambda: open(outside, "ab"), lambda: os.mkdir(outside),
    lambda: os.open(outside, os.O_CREAT | os.O_WRONLY), lambda: socket.socket(),
    lambda: os.symlink("/etc", inside + "/link"), lambda: os.rename(inside + "/f", outside),
    lambda: open(inside + "/../out", "w"), lambda: os.fork(), lambda: os.remove({__file__!r}),
]
refused = 0
for act in acts:
    try:
        act()
    except torch_worker.RefusedError:
        refused += 1
print(refused == len(acts))
"""
    child = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": source, "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        check=True,
    )
    assert child.stdout.strip() == "True", child.stdout + child.stderr
    assert not (tmp_path / "out").exists()


def save_bytes(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([torch.zeros(1)], "holds a list"),
        ({"a": torch.zeros(1), "n": 3}, "'n' is a int, not a tensor"),
        ({1: torch.zeros(1)}, "the entry 1"),
        ({"s": torch.eye(3).to_sparse()}, "sparse"),
        ({"m": torch.empty(3, device="meta")}, "without values"),
        ({"c": torch.zeros(2, dtype=torch.complex64)}, "complex64"),
        ({"x": torch.zeros(1).expand(2**40)}, "would grow"),
        ({"m": torch.nn.Linear(1, 1)}, "asks for Python code"),
    ],
)
def test_what_is_not_tensors_by_name(value: object, words: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(save_bytes(value))
    with pytest.raises(torch_worker.RefusedError, match=words):
        torch_worker.convert(str(tmp_path / "f"), str(tmp_path / "out"))


@pytest.mark.parametrize("raw", [b"", b"PK\3\4", b"not a model", b"\x80\x02K\x05.", bytes(1000)])
def test_what_is_no_torch_file(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(raw)
    with pytest.raises(torch_worker.RefusedError):
        torch_worker.convert(str(tmp_path / "f"), str(tmp_path / "out"))


@pytest.mark.slow
def test_a_compressed_bomb_meets_the_limit(tmp_path: Path) -> None:
    small = zipfile.ZipFile(io.BytesIO(save_bytes({"w": torch.zeros(1)})))
    with zipfile.ZipFile(tmp_path / "bomb.bin", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for name in small.namelist():
            if name.endswith("data.pkl"):
                with out.open(name, "w", force_zip64=True) as stream:
                    for _ in range(3000):
                        stream.write(bytes(1 << 20))
            else:
                out.writestr(name, small.read(name))
    with pytest.raises(CheckpointError):
        read_torch_bin(tmp_path / "bomb.bin")


def test_a_child_that_dies_or_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(hostile.state_files()[0])
    monkeypatch.setattr(torch_bin, "WORKER", tmp_path / "worker.py")
    (tmp_path / "worker.py").write_text("import os; os.abort()")
    with pytest.raises(CheckpointError, match="ended with code -") as caught:
        read_torch_bin(path)
    assert caught.value.where.endswith("m.bin")
    (tmp_path / "worker.py").write_text("import time; time.sleep(60)")
    monkeypatch.setattr(torch_bin, "START_SECONDS", 0.2)
    with pytest.raises(CheckpointError, match="not read within"):
        read_torch_bin(path)


def test_too_little_temporary_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "m.bin").write_bytes(hostile.state_files()[0])
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(ResourceError, match="100 are free") as caught:
        read_torch_bin(tmp_path / "m.bin")
    assert "TMPDIR" in caught.value.advice
    gc.collect()
    assert os.listdir(tmp_path) == ["m.bin"]


FORBIDDEN = ("pickle", "marshal", "shelve", "joblib", "dill", "cloudpickle")


def dangers(source: str) -> list[str]:
    """Calls that could run what a file says."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found += [name for name in names if name.split(".")[0] in FORBIDDEN]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        options = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called == "torch.load" and options.get("weights_only") != "True":
            found.append(called)
        if called in ("eval", "exec", "yaml.load", "torch.hub.load", "torch.save"):
            found.append(called)
        if options.get("allow_pickle", "False") != "False":
            found.append(f"{called}(allow_pickle)")
    return found


def test_the_package_never_unpickles() -> None:
    root = Path(torch_worker.__file__).parents[1]
    for path in root.rglob("*.py"):
        assert dangers(path.read_text(encoding="utf-8")) == [], path
    for bad in (
        *("import pickle", "from pickle import loads", "torch.load(f)", "eval(x)"),
        *("torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "yaml.load(f)"),
    ):
        assert dangers(bad), f"the control: {bad}"
