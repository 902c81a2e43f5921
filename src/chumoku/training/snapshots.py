"""Snapshots of a run: written whole or not at all, checked before use, the last good ones kept.

A snapshot is a folder `step-00000300` with safetensors files, `state.json` and, written last,
`manifest.json`: the SHA-256 of each of the others. It is built under another name, every file is
synced, and the folder is renamed into place; a power loss at any moment leaves the former ones.
Nothing in it is a pickle. Where several processes hold parts of the tensors, each writes files of
its own, and the manifest says which piece lies where (shards.py).
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.checkpoints.assign import dense, lazy
from chumoku.checkpoints.files import FULL_DISK, sha256_of
from chumoku.checkpoints.ranges import sync_folder, write_json
from chumoku.checkpoints.safetensors import read_safetensors, write_safetensors
from chumoku.errors import CheckpointError, ChumokuError, ResourceError
from chumoku.training.shards import Layout, assembled, files_of

MANIFEST: Final = "manifest.json"
STATE: Final = "state.json"
_NAME: Final = re.compile(r"step-(\d{8,})")
_TEMPORARY: Final = ".unfinished-"


@dataclass(frozen=True)
class Snapshot:
    """step: updates done. tensors: file name without ending -> tensors by name. state: JSON."""

    step: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    state: Mapping[str, Any]


def name_of(step: int) -> str:
    return f"step-{step:08}"


def write_snapshot(folder: Path, snapshot: Snapshot, *, keep: int | None) -> Path:
    """Write `folder/step-…`, then drop all but the last `keep` (None: drop none).

    Raises ResourceError where the disk is full, CheckpointError where nothing can be written or a
    value is not finite; whatever lay there before is then untouched.
    """
    for file, tensors in snapshot.tensors.items():
        refuse_non_finite(file, tensors)
    with unfinished(folder, uuid.uuid4().hex) as temporary:
        for file, tensors in snapshot.tensors.items():
            values = [lazy(key, value) for key, value in tensors.items()]
            write_safetensors(temporary / f"{file}.safetensors", values)
        target = commit(temporary, snapshot)
    prune(folder, keep)
    return target


@contextlib.contextmanager
def unfinished(folder: Path, token: str, *, remove: bool = True) -> Iterator[Path]:
    """A folder to build a snapshot in. `remove`: what is left of it at the end.

    Processes that write together give the same token, and the first of them removes. Raises
    ResourceError where the disk is full, CheckpointError where nothing can be written.
    """
    temporary = folder / f"{_TEMPORARY}{token}"
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        yield temporary
    except (OSError, ResourceError) as error:
        if isinstance(error, ResourceError) or error.errno in FULL_DISK:
            raise ResourceError(
                "the disk is full; the snapshots written before are untouched",
                where=folder,
                advice="free some space, lower --training.keep, or write to another disk",
            ) from error
        raise CheckpointError(f"cannot be written: {error.strerror}", where=folder) from error
    finally:
        if remove:
            shutil.rmtree(temporary, ignore_errors=True)


def commit(temporary: Path, snapshot: Snapshot, shards: Layout | None = None) -> Path:
    """Add state and manifest to the tensors in an unfinished folder, and rename it into place."""
    target = temporary.parent / name_of(snapshot.step)
    write_json(temporary / STATE, {"step": snapshot.step, **snapshot.state})
    digests = {path.name: sha256_of(path) for path in sorted(temporary.iterdir())}
    manifest: dict[str, Any] = {"sha256": digests}
    if shards is not None:
        absent = sorted(files_of(shards) - digests.keys())
        if absent:
            raise CheckpointError(
                "what another process wrote cannot be seen here",
                where=temporary.parent / absent[0],
                advice="all machines must share the folder of the run",
            )
        manifest["shards"] = shards
    write_json(temporary / MANIFEST, manifest)
    sync_folder(temporary)
    _put_in_place(temporary, target)
    sync_folder(target.parent)
    return target


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot after checking every file against the manifest.

    Raises CheckpointError that names the file which is missing, changed or damaged.
    """
    manifest = _json(path / MANIFEST)
    digests = manifest.get("sha256")
    if not isinstance(digests, dict) or STATE not in digests:
        raise CheckpointError("lists no files", where=path / MANIFEST)
    for file, digest in digests.items():
        place = path / file
        if Path(file).name != file or not place.is_file():
            raise CheckpointError("a file of the snapshot is missing", where=place)
        if sha256_of(place) != digest:
            raise CheckpointError("the file is not as it was written", where=place)
    state = _json(path / STATE)
    if not isinstance(state.get("step"), int):
        raise CheckpointError("has no step", where=path / STATE)
    if "shards" in manifest:
        return Snapshot(state.pop("step"), assembled(path, manifest["shards"]), state)
    tensors = {
        file.removesuffix(".safetensors"): {
            name: dense(tensor) for name, tensor in read_safetensors(path / file).tensors.items()
        }
        for file in digests
        if file.endswith(".safetensors")
    }
    return Snapshot(state.pop("step"), tensors, state)


def latest_snapshot(folder: Path) -> tuple[Snapshot | None, list[CheckpointError]]:
    """The newest good snapshot of a folder, and what is wrong with each newer one."""
    damaged: list[CheckpointError] = []
    for path in reversed(snapshots(folder)):
        try:
            return read_snapshot(path), damaged
        except CheckpointError as error:
            damaged.append(error)
        except ChumokuError as error:
            damaged.append(CheckpointError(error.what, where=error.where or path))
    return None, damaged


def newest_state(folder: Path) -> Mapping[str, Any] | None:
    """What the newest snapshot that can be read says of its run; its tensors are not looked at."""
    for path in reversed(snapshots(folder)):
        with contextlib.suppress(CheckpointError):
            return _json(path / STATE)
    return None


def snapshots(folder: Path) -> list[Path]:
    """The snapshots of a folder, oldest first. What a killed process left half-made is not one."""
    if not folder.is_dir():
        return []
    found = [
        (int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def sweep(folder: Path) -> None:
    """Remove what killed processes left half-made.

    A whole snapshot that only lacks its name gets it: while a step is replaced there is no other.
    """
    for path in folder.glob(f"{_TEMPORARY}*"):
        try:
            target = folder / name_of(read_snapshot(path).step)
        except ChumokuError:
            shutil.rmtree(path, ignore_errors=True)
            continue
        if target.exists():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.rename(target)


def _put_in_place(temporary: Path, target: Path) -> None:
    """Rename; what lies there, a damaged snapshot or one of the same step, is replaced.

    After a kill between the two renames `sweep` finds both whole, and gives one of them its name.
    """
    if not target.exists():
        temporary.rename(target)
        return
    old = target.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    target.rename(old)
    temporary.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def prune(folder: Path, keep: int | None) -> None:
    """Drop all snapshots of a folder but the last `keep`; None: none."""
    for path in snapshots(folder)[: -keep if keep else 0]:
        remove(path)


def set_aside(folder: Path, after: int) -> None:
    """Rename the snapshots of steps beyond `after`: damaged ones, passed by when a run goes on.

    Under their names they would be counted as the last ones, and push out those written from now
    on.
    """
    for path in snapshots(folder):
        if int(path.name.removeprefix("step-")) > after:
            target = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(target, ignore_errors=True)
            path.rename(target)


def remove(path: Path) -> None:
    """Drop a snapshot; no moment at which half of one lies under its name."""
    doomed = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
    with contextlib.suppress(OSError):  # an old snapshot too many is no reason to stop
        path.rename(doomed)
        (doomed / MANIFEST).unlink(
            missing_ok=True
        )  # else sweep would take it for one that was lost
        shutil.rmtree(doomed, ignore_errors=True)


def refuse_non_finite(file: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError that names a tensor with a value that is not finite."""
    for name, value in tensors.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise CheckpointError(
                "a value is not a finite number; no snapshot is written of it",
                where=f"{file}: {name}",
                advice="with a lower --training.optimiser.learning_rate it is another run, in "
                "another folder; the last snapshot is as it was",
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError("the file does not exist", where=path) from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read: {error}", where=path) from error
    if not isinstance(value, dict):
        raise CheckpointError("is not a JSON object", where=path)
    return value
