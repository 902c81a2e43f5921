"""Folders of weights: which file counts, shards that fit their index, and no way out (A3)."""

from __future__ import annotations

import json
import os
import sys
import unicodedata
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from chumoku.checkpoints import assign
from chumoku.checkpoints.folder import inside, read_folder_tensors
from chumoku.errors import CheckpointError

STATE = {
    "a.weight": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "b.weight": torch.arange(6).reshape(2, 3),
    "c.bias": torch.ones(5).half(),
}
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")

UNSAFE = [
    "../model.safetensors",
    "sub/../../model.safetensors",
    "/etc/passwd",
    "//server/share/f",
    "..",
    ".",
    "",
    "./f",
    "sub//f",
    "..\\f",
    "sub\\..\\..\\f",
    "C:f",
    "C:\\f",
    "c:/f",
    "\\\\server\\share\\f",
    "\\\\?\\C:\\f",
    "file:///etc/passwd",
    "f.safetensors:stream",
    "con",
    "NUL.safetensors",
    "sub/aux.txt",
    "f ",
    "f.",
    ".. /f",
    "f\0.safetensors",
    "f\n",
    "~\t/f",
    "f?",
    "*",
    "x" * 256,
    "é" * 200,
    "/".join(["d"] * 600),
]


def write_index(
    folder: Path, weight_map: object, index: str = "model.safetensors.index.json"
) -> Path:
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder / index


def write_shards(folder: Path) -> dict[str, str]:
    names = list(STATE)
    save_file({n: STATE[n] for n in names[:2]}, folder / SHARDS[0])
    save_file({n: STATE[n] for n in names[2:]}, folder / SHARDS[1])
    weight_map = {n: SHARDS[0] if n in names[:2] else SHARDS[1] for n in names}
    write_index(folder, weight_map)
    return weight_map


def assert_state(folder: Path) -> None:
    tensors = read_folder_tensors(folder)
    assert tensors.keys() == STATE.keys()
    for name, value in STATE.items():
        assert torch.equal(assign.dense(tensors[name]), value)


def test_each_form_of_a_folder(tmp_path: Path) -> None:
    for form in ("single", "shards", "torch", "torch-shards"):
        folder = tmp_path / form
        folder.mkdir()
        if form == "single":
            save_file(STATE, folder / "model.safetensors")
        elif form == "shards":
            write_shards(folder)
        elif form == "torch":
            torch.save(STATE, folder / "pytorch_model.bin")
        else:
            names = [f"pytorch_model-{n:05}-of-00003.bin" for n in (1, 2, 3)]
            for name, (key, value) in zip(names, STATE.items(), strict=True):
                torch.save({key: value}, folder / name)
            weight_map = dict(zip(STATE, names, strict=True))
            write_index(folder, weight_map, "pytorch_model.bin.index.json")
        assert_state(folder)


def test_safetensors_come_first(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("damaged, and never looked at")
    (tmp_path / "pytorch_model.bin").write_text("damaged, and never looked at")
    assert_state(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="JSON"):
        read_folder_tensors(tmp_path)


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no weights here ") as caught:
        read_folder_tensors(tmp_path)
    assert "model.safetensors" in caught.value.advice
    (tmp_path / "tf_model.h5").write_bytes(b"")
    with pytest.raises(CheckpointError, match="but those for TensorFlow"):
        read_folder_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="no weights"):
        read_folder_tensors(tmp_path / "none")


@pytest.mark.parametrize("name", UNSAFE)
def test_no_name_leads_out(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    save_file(STATE, tmp_path / "model.safetensors")
    write_index(folder, dict.fromkeys(STATE, name))
    opened: list[str] = []
    _AUDIT.append(opened)
    with pytest.raises(CheckpointError, match="not safe"):
        read_folder_tensors(folder)
    _AUDIT.remove(opened)
    outside = [p for p in opened if not os.path.realpath(p).startswith(str(folder.resolve()))]
    assert outside == []
    assert opened, "the audit hook saw the index being opened"


_AUDIT: list[list[str]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and _AUDIT and isinstance(arguments[0], str | os.PathLike):
        _AUDIT[-1].append(os.fspath(arguments[0]))


sys.addaudithook(_note)


def test_safe_names_are_allowed(tmp_path: Path) -> None:
    for name in ("m.safetensors", "sub/m.safetensors", "モデル.safetensors", "a b-1_2.st", "..m"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save_file(STATE, tmp_path / name)
        write_index(tmp_path, dict.fromkeys(STATE, name))
        assert_state(tmp_path)


def test_names_that_only_look_the_same(tmp_path: Path) -> None:
    """Composed and decomposed, upper and lower case: another name is another file, or none."""
    composed = unicodedata.normalize("NFC", "é.safetensors")
    save_file(STATE, tmp_path / composed)
    for twin in (unicodedata.normalize("NFD", composed), composed.upper()):
        if (tmp_path / twin).exists():
            continue  # this file system takes the two for one
        write_index(tmp_path, dict.fromkeys(STATE, twin))
        with pytest.raises(CheckpointError, match="does not exist"):
            read_folder_tensors(tmp_path)


def test_links_that_lead_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(STATE, tmp_path / "outside.safetensors")
    link = folder / "model.safetensors"
    link.symlink_to(tmp_path / "outside.safetensors")
    with pytest.raises(CheckpointError, match="leads out"):
        read_folder_tensors(folder)
    link.unlink()
    (folder / "sub").symlink_to(tmp_path, target_is_directory=True)
    write_index(folder, dict.fromkeys(STATE, "sub/outside.safetensors"))
    with pytest.raises(CheckpointError, match="leads out"):
        read_folder_tensors(folder)
    (folder / "loop").symlink_to(folder / "loop")
    write_index(folder, dict.fromkeys(STATE, "loop"))
    with pytest.raises(CheckpointError, match=r"cannot be reached|leads out"):
        read_folder_tensors(folder)
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model.safetensors.index.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match="leads out"):
        read_folder_tensors(folder)


def test_links_that_stay_inside(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(STATE, folder / "weights.safetensors")
    (folder / "model.safetensors").symlink_to("weights.safetensors")
    assert_state(folder)
    (tmp_path / "alias").symlink_to(folder, target_is_directory=True)
    assert_state(tmp_path / "alias")


def hub_snapshot(root: Path, repository: str, inner: str = "") -> tuple[Path, Path]:
    snapshot = root / repository / "snapshots" / "0123abc" / inner
    blobs = root / repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir(parents=True)
    return snapshot, blobs


@pytest.mark.parametrize("inner", ["", "2_Dense"])
def test_a_snapshot_of_the_hub_links_to_its_blobs(inner: str, tmp_path: Path) -> None:
    snapshot, blobs = hub_snapshot(tmp_path, "models--org--name", inner)
    save_file(STATE, blobs / "e3b0")
    link = snapshot / "model.safetensors"
    link.symlink_to(os.path.relpath(blobs / "e3b0", snapshot))
    assert_state(snapshot)
    (tmp_path / "cache").symlink_to(tmp_path / "models--org--name", target_is_directory=True)
    assert_state(tmp_path / "cache" / "snapshots" / "0123abc" / inner)


@pytest.mark.parametrize("repository", ["datasets--org--name", "name"])
def test_other_folders_have_no_blobs(repository: str, tmp_path: Path) -> None:
    snapshot, blobs = hub_snapshot(tmp_path, repository)
    save_file(STATE, blobs / "e3b0")
    (snapshot / "model.safetensors").symlink_to("../../blobs/e3b0")
    with pytest.raises(CheckpointError, match="leads out"):
        read_folder_tensors(snapshot)


def test_a_snapshot_has_only_its_own_blobs(tmp_path: Path) -> None:
    snapshot, _ = hub_snapshot(tmp_path, "models--org--name")
    _, others = hub_snapshot(tmp_path, "models--org--secret")
    save_file(STATE, others / "e3b0")
    (snapshot / "model.safetensors").symlink_to("../../../models--org--secret/blobs/e3b0")
    with pytest.raises(CheckpointError, match="leads out"):
        read_folder_tensors(snapshot)


def test_index_and_shards_that_disagree(tmp_path: Path) -> None:
    weight_map = write_shards(tmp_path)
    assert_state(tmp_path)
    write_index(tmp_path, weight_map | {"extra": SHARDS[1]})
    with pytest.raises(CheckpointError, match="'extra' is not in its shard") as caught:
        read_folder_tensors(tmp_path)
    assert caught.value.where.endswith(SHARDS[1])
    write_index(tmp_path, weight_map | {"c.bias": SHARDS[0]})
    with pytest.raises(CheckpointError, match=r"'c\.bias' is not in its shard"):
        read_folder_tensors(tmp_path)
    write_index(tmp_path, {n: s for n, s in weight_map.items() if n != "a.weight"})
    assert_state(tmp_path)  # a shard may hold more than the index lists
    save_file({"x": torch.ones(1)}, tmp_path / SHARDS[0])
    save_file({"x": torch.zeros(1)}, tmp_path / SHARDS[1])
    write_index(tmp_path, {"x": SHARDS[1]})
    assert assign.dense(read_folder_tensors(tmp_path)["x"]).item() == 0
    (tmp_path / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=SHARDS[1]):
        read_folder_tensors(tmp_path)


def test_a_tensor_in_two_shards_that_the_index_does_not_list(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1), "x": torch.ones(1)}, tmp_path / SHARDS[0])
    save_file({"b": torch.ones(1), "x": torch.zeros(1)}, tmp_path / SHARDS[1])
    write_index(tmp_path, {"a": SHARDS[0], "b": SHARDS[1]})
    with pytest.raises(CheckpointError, match="'x' is in two shards"):
        read_folder_tensors(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "JSON"),
        ("[]", "not a JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": []}', "no weight_map"),
        ('{"weight_map": {"a": 1}}', "'a' has no file name"),
        ('{"weight_map": {"a": null}}', "'a' has no file name"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "'a' comes twice"),
        ('{"weight_map": {"a": NaN}}', "NaN"),
        ('{"x":' + "[" * 100_000, "JSON"),
        ('{"x": ' + "9" * 10_000 + "}", "JSON"),
        ('{"weight_map": {"a": "\\ud800"}}', "cannot be reached"),
    ],
)
def test_a_damaged_index(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError, match=words):
        read_folder_tensors(tmp_path)


def test_the_control_a_plain_join_leads_out(tmp_path: Path) -> None:
    """What `inside` refuses is what a plain join of paths would open."""
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(STATE, tmp_path / "model.safetensors")
    assert (folder / "../model.safetensors").is_file()
    with pytest.raises(CheckpointError):
        inside(folder, "../model.safetensors")
