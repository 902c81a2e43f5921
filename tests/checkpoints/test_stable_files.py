"""Files that change after they were opened; files that appear whole or not at all (A10)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from checkpoints.mutants import gguf_seeds, lazy_bytes, safetensors_seeds

from chumoku.checkpoints.gguf import read_gguf, write_gguf
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.ranges import StableFile, atomic_file, stable_file
from chumoku.checkpoints.safetensors import read_safetensors, write_safetensors
from chumoku.errors import CheckpointError, ResourceError

KINDS = ("safetensors", "gguf")


def open_seed(kind: str, folder: Path) -> tuple[Path, dict[str, LazyTensor]]:
    seeds = safetensors_seeds(folder) if kind == "safetensors" else gguf_seeds(folder)
    path = folder / f"model.{kind}"
    path.write_bytes(max(seeds, key=len))
    read = read_safetensors if kind == "safetensors" else read_gguf
    return path, read(path).tensors


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_after_opening_is_an_error(kind: str, tmp_path: Path) -> None:
    path, tensors = open_seed(kind, tmp_path)
    for size in range(path.stat().st_size - 1, 0, -7):
        os.truncate(path, size)
        for tensor in tensors.values():
            with pytest.raises(CheckpointError, match="has changed"):
                tensor.read()


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_put_in_its_place_is_an_error(kind: str, tmp_path: Path) -> None:
    path, tensors = open_seed(kind, tmp_path)
    tensor = next(iter(tensors.values()))
    before = tensor.read()
    (tmp_path / "other").write_bytes(path.read_bytes())
    os.utime(tmp_path / "other", ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    (tmp_path / "other").replace(path)
    with pytest.raises(CheckpointError, match="has changed"):
        tensor.read()
    path.unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        tensor.read()
    assert before, "what was read before stays"


def test_a_truncation_between_look_and_read(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(bytes(100))
    file = stable_file(path)
    path.write_bytes(bytes(10))
    now = stable_file(path)
    with pytest.raises(CheckpointError, match="ends early"):
        StableFile(path, 100, now.stamp).read(0, 100)
    assert file.stamp != now.stamp


def test_what_is_read_is_owned(tmp_path: Path) -> None:
    path, tensors = open_seed("safetensors", tmp_path)
    tensor = tensors["b"]
    first = tensor.read()
    first[0] ^= 255
    assert tensor.read() != first
    assert path.read_bytes().find(bytes(tensor.read())) > 0


def test_writing_over_the_file_that_is_read(tmp_path: Path) -> None:
    path, tensors = open_seed("safetensors", tmp_path)
    values = {name: tensor.read() for name, tensor in tensors.items()}
    write_safetensors(path, tensors.values())
    assert {n: t.read() for n, t in read_safetensors(path).tensors.items()} == values


@pytest.mark.parametrize("kind", KINDS)
def test_a_writer_that_fails_leaves_the_old_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def broken() -> bytearray:
        raise RuntimeError("the disk was pulled out")

    tensors = [lazy_bytes("a", (1,), "I8", b"x"), LazyTensor("b", (1,), "I8", broken)]
    with pytest.raises(RuntimeError, match="pulled out"):
        write_safetensors(path, tensors) if kind == "safetensors" else write_gguf(path, {}, tensors)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]


@pytest.mark.parametrize(
    ("number", "expected"), [(errno.ENOSPC, ResourceError), (errno.EIO, CheckpointError)]
)
def test_faults_of_the_disk(number: int, expected: type[Exception], tmp_path: Path) -> None:
    def read() -> bytearray:
        raise OSError(number, "fault")

    tensors = [lazy_bytes("a", (1,), "I16", b"xx"), LazyTensor("b", (1,), "I8", read)]
    with pytest.raises(expected):
        write_safetensors(tmp_path / "f", tensors)
    assert os.listdir(tmp_path) == []


def test_written_files_obey_the_umask(tmp_path: Path) -> None:
    (tmp_path / "plain").write_bytes(b"")
    with atomic_file(tmp_path / "f") as stream:
        stream.write(b"x")
    assert (tmp_path / "f").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_what_is_no_regular_file(tmp_path: Path) -> None:
    for read in (read_safetensors, read_gguf):
        with pytest.raises(CheckpointError, match="no regular file"):
            read(tmp_path)
        with pytest.raises(CheckpointError, match="does not exist"):
            read(tmp_path / "none")
        with pytest.raises(CheckpointError, match="cannot be opened"):
            read("a\0b")
        with pytest.raises(CheckpointError, match="cannot be opened"):
            read(tmp_path / ("x" * 300))
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(CheckpointError, match="no regular file"):
            read_gguf(tmp_path / "pipe")
    with (
        pytest.raises(CheckpointError, match="cannot be written"),
        atomic_file(tmp_path / "no" / "f"),
    ):
        pass
