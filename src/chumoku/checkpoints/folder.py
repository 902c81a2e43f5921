"""The weights of a published folder: one file or shards with an index, safetensors or PyTorch's.

A name that comes from an index is data from outside: it must be safe on every system, and the file
it leads to must lie in the folder. The one exception is the hub's cache, whose snapshots are links
to the blobs of the same repository.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from chumoku.checkpoints.files import unsafe_reason
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.ranges import stable_file
from chumoku.checkpoints.safetensors import read_safetensors
from chumoku.checkpoints.torch_bin import read_torch_files
from chumoku.errors import CheckpointError

SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
TORCH_SINGLE: Final = "pytorch_model.bin"
TORCH_INDEX: Final = "pytorch_model.bin.index.json"
MAX_INDEX: Final = 32_000_000

_OTHERS: Final = {
    "tf_model.h5": "TensorFlow",
    "flax_model.msgpack": "Flax",
    "model.ckpt.index": "TensorFlow 1",
    "model.onnx": "ONNX",
}


def read_folder_tensors(folder: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """All tensors of a folder: safetensors before PyTorch's, one file before shards.

    Raises CheckpointError, naming file and key, where there are no weights, an index leads out of
    the folder, a shard is missing or damaged, or index and shards disagree.
    """
    root = Path(os.path.abspath(folder))
    for name in (SINGLE, INDEX, TORCH_SINGLE, TORCH_INDEX):
        if not os.path.lexists(root / name):
            continue
        if name == SINGLE:
            return read_safetensors(inside(root, name)).tensors
        if name == TORCH_SINGLE:
            return read_torch_files([inside(root, name)])[0]
        return _read_shards(root, name)
    other = next((kind for name, kind in _OTHERS.items() if (root / name).is_file()), "")
    raise CheckpointError(
        f"no weights here{f' but those for {other}' if other else ''}",
        where=root,
        advice=f"expected {SINGLE} or {TORCH_SINGLE}, or an index of shards",
    )


def inside(folder: Path, name: str) -> Path:
    """The file of this name in a folder. Raises CheckpointError where it would lie elsewhere.

    The name must be safe by the rules of POSIX and of Windows. A link may lead to another file of
    the folder, or out of a snapshot of the hub's cache to a blob of the same repository.
    """
    reason = unsafe_reason(name)
    if reason:
        raise CheckpointError(f"the file name {name[:80]!r} is not safe: {reason}", where=folder)
    path = folder / name
    try:
        real = path.resolve(strict=True)
        root = folder.resolve(strict=True)
    except FileNotFoundError:
        raise CheckpointError(f"the file {name!r} does not exist", where=folder) from None
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links; no Unicode
        raise CheckpointError(f"the file {name!r} cannot be reached", where=folder) from error
    if not any(real.is_relative_to(place) for place in (root, _blobs(root)) if place is not None):
        raise CheckpointError(
            f"{name!r} is a link that leads out of the folder",
            where=folder,
            advice="put the file itself there, or name the folder where it lies",
        )
    return path


def refuse_links(folder: Path) -> None:
    """Raise CheckpointError where an entry of the folder is a link that leads out of it."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.is_symlink() and os.path.exists(e.path)]
    for name in names:
        inside(folder, name)


def _blobs(root: Path) -> Path | None:
    """…/models--ORG--NAME/blobs for a folder in …/models--ORG--NAME/snapshots/COMMIT."""
    for commit in (root, *root.parents):
        snapshots, repository = commit.parent, commit.parent.parent
        if snapshots.name == "snapshots" and repository.name.startswith("models--"):
            blobs = repository / "blobs"
            return blobs if blobs.is_dir() and not blobs.is_symlink() else None
    return None


def _read_shards(root: Path, index: str) -> dict[str, LazyTensor]:
    weight_map = _weight_map(inside(root, index))
    names = list(dict.fromkeys(weight_map.values()))
    paths = [inside(root, name) for name in names]
    if index == INDEX:
        shards = [read_safetensors(path).tensors for path in paths]
    else:
        shards = read_torch_files(paths) if paths else []
    tensors: dict[str, LazyTensor] = {}
    for name, shard in zip(names, shards, strict=True):
        for key, tensor in shard.items():
            if weight_map.get(key, name) != name:
                continue
            if key in tensors:
                raise CheckpointError(f"tensor {key!r} is in two shards", where=root / name)
            tensors[key] = tensor
    for key, name in weight_map.items():
        if key not in tensors:
            raise CheckpointError(f"tensor {key!r} is not in its shard", where=root / name)
    return tensors


def _weight_map(path: Path) -> Mapping[str, str]:
    """Tensor name -> file name. Raises CheckpointError where the index says anything else."""
    content = read_json(path).get("weight_map")
    if not isinstance(content, dict):
        raise CheckpointError("the index has no weight_map", where=path)
    for key, name in content.items():
        if not isinstance(name, str):
            raise CheckpointError(f"weight_map: {key!r} has no file name", where=path)
    return content


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in which no key comes twice. Raises CheckpointError."""
    value = read_json_value(path)
    if not isinstance(value, dict):
        raise CheckpointError("is not a JSON object", where=path)
    return value


def read_json_value(path: Path) -> object:
    """As read_json, but the file may hold anything, a list for example."""
    file = stable_file(path)
    if file.size > MAX_INDEX:
        raise CheckpointError(f"is longer than {MAX_INDEX} bytes", where=path)
    try:
        text = str(file.read(0, file.size), "utf-8")
        value: object = json.loads(text, object_pairs_hook=_no_twins, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot be read as JSON: {error}", where=path) from error
    return value


def _no_twins(pairs: list[tuple[str, object]]) -> dict[str, object]:
    content: dict[str, object] = {}
    for key, value in pairs:
        if key in content:
            raise ValueError(f"the key {key[:80]!r} comes twice")
        content[key] = value
    return content


def _no_constant(text: str) -> object:
    raise ValueError(f"{text} is not JSON")
