"""Meta's own folders of LLaMA: params.json and consolidated.NN.pth, one for each GPU of its time.

Shards hold slices of each matrix. A column-parallel layer was cut along its outputs (axis 0), a
row-parallel one along its inputs (axis 1). The embedding was cut along its width (axis 1) in LLaMA
1 and 2, along the vocabulary (axis 0) since LLaMA 3; params.json's `dim` tells which.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from chumoku.checkpoints.folder import inside, read_json
from chumoku.checkpoints.lazy import LazyTensor, Raw
from chumoku.checkpoints.torch_bin import read_torch_files
from chumoku.errors import CheckpointError, ConfigError

EMBEDDING: Final = "tok_embeddings.weight"
COLUMN_PARALLEL: Final = ("wq", "wk", "wv", "w1", "w3", "output")
ROW_PARALLEL: Final = ("wo", "w2")
IGNORED: Final = "rope.freqs"

_SHARD: Final = re.compile(r"^consolidated\.(\d\d)\.pth$")


def read_meta_folder(
    folder: str | os.PathLike[str],
) -> tuple[dict[str, object], dict[str, LazyTensor]]:
    """params.json, and the whole tensors under Meta's names, without the rotary table.

    Raises CheckpointError where a shard is missing or the shards do not fit together, ConfigError
    where params.json has no usable `dim`.
    """
    root = Path(os.path.abspath(folder))
    params = read_json(inside(root, "params.json"))
    width = params.get("dim")
    if not isinstance(width, int) or isinstance(width, bool) or width < 1:
        raise ConfigError("params.json: dim must be a positive whole number", where=root)
    names = sorted(path.name for path in root.iterdir() if _SHARD.match(path.name))
    expected = [f"consolidated.{number:02}.pth" for number in range(len(names))]
    if not names or names != expected:
        missing = next((name for name in expected if name not in names), "consolidated.00.pth")
        raise CheckpointError(f"the shard {missing} is missing", where=root)
    shards = read_torch_files([inside(root, name) for name in names])
    for name, shard in zip(names, shards, strict=True):
        different = sorted(shard.keys() ^ shards[0].keys())
        if different:
            raise CheckpointError(f"not every shard has {different[0]!r}", where=root / name)
    tensors = {
        key: _merge(key, [shard[key] for shard in shards], width, root)
        for key in shards[0]
        if key != IGNORED
    }
    _check_heads(params, width, tensors, root)
    return params, tensors


@dataclass(frozen=True)
class _Slices:
    """The slices of one tensor. axis: where they join; None where all are the same."""

    parts: tuple[LazyTensor, ...]
    axis: int | None
    where: Path

    def read(self) -> Raw:
        raws = [part.read() for part in self.parts]
        if self.axis is None:
            if any(raw != raws[0] for raw in raws):
                name = self.parts[0].name
                raise CheckpointError(f"the shards differ in {name!r}", where=self.where)
            return raws[0]
        rows = 1 if self.axis == 0 else self.parts[0].shape[0]
        slices = [np.frombuffer(raw, np.uint8).reshape(rows, -1) for raw in raws]
        return bytearray(np.concatenate(slices, axis=1).tobytes())


def _merge(key: str, parts: Sequence[LazyTensor], width: int, where: Path) -> LazyTensor:
    first = parts[0]
    if any((part.shape, part.storage) != (first.shape, first.storage) for part in parts):
        raise CheckpointError(f"the slices of {key!r} differ in shape or type", where=where)
    axis = _axis(key, first.shape, len(parts), width, where)
    shape = tuple(n * len(parts) if i == axis else n for i, n in enumerate(first.shape))
    read = first.read if len(parts) == 1 else _Slices(tuple(parts), axis, where).read
    return LazyTensor(key, shape, first.storage, read)


def _axis(key: str, shape: tuple[int, ...], count: int, width: int, where: Path) -> int | None:
    """Along which axis the slices of a tensor join; None where each shard has all of it."""
    if len(shape) == 1:
        return None
    layer = key.removesuffix(".weight").rpartition(".")[2]
    if len(shape) == 2 and key == EMBEDDING and width in (shape[1], shape[1] * count):
        return 0 if shape[1] == width else 1
    if len(shape) == 2 and layer in COLUMN_PARALLEL:
        return 0
    if len(shape) == 2 and layer in ROW_PARALLEL:
        return 1
    raise CheckpointError(
        f"tensor {key!r} of shape {shape} is not one of a LLaMA's, cut into {count}", where=where
    )


def _check_heads(
    params: dict[str, object], width: int, tensors: dict[str, LazyTensor], where: Path
) -> None:
    """More shards than key heads repeat these, which joining would not see."""
    heads = params.get("n_heads")
    groups = params.get("n_kv_heads") or heads
    if not isinstance(heads, int) or not isinstance(groups, int) or heads < 1:
        raise ConfigError("params.json: n_heads and n_kv_heads must be numbers", where=where)
    rows = width // heads * groups
    for key, tensor in tensors.items():
        if key.endswith((".wk.weight", ".wv.weight")) and tensor.shape[0] != rows:
            raise CheckpointError(
                f"tensor {key!r} has {tensor.shape[0]} rows, not the {rows} of {groups} heads",
                where=where,
                advice="folders with more shards than key heads are not supported",
            )
