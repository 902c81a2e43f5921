"""From a model back to published files: the hub's layout, unchanged where nothing was changed.

GGUF is written by gguf_export.py. Every file appears whole or not at all.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.adapters.apply import fused
from chumoku.checkpoints import assign
from chumoku.checkpoints.folder import inside
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.ranges import write_json
from chumoku.checkpoints.safetensors import write_safetensors
from chumoku.checkpoints.sentence_write import write_sentence
from chumoku.devices import FLOATS
from chumoku.errors import CheckpointError, InputError
from chumoku.loading import Loaded
from chumoku.models import architecture
from chumoku.models.names import NameTable
from chumoku.quantization.convert import dequantize_model, is_quantized
from chumoku.text.load import PIECE_FILES
from chumoku.text.write import write_tokenizer

SHARD_BYTES: Final = 5_000_000_000

SIDE_FILES: Final = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", *PIECE_FILES),
    *("source.spm", "target.spm", "target_vocab.json", "chat_template.jinja"),
    *("generation_config.json", "preprocessor_config.json", "modules.json"),
    *("config_sentence_transformers.json", "sentence_bert_config.json", "README.md"),
)
"""Files that go with the weights and are copied as they are."""

STEP_FILES: Final = ("config.json", "model.safetensors", "pytorch_model.bin", "README.md")
"""Files of a step of sentence-transformers (pooling, Dense)."""


def save(loaded: Loaded, folder: str | os.PathLike[str], *, dtype: str = "as-is") -> Path:
    """Write the hub's layout: config.json, safetensors (shards above 5 GB), tokenizer files.

    A checkpoint loaded with dtype="stored" and not changed gives the same keys, tensor bytes and
    config. dtype: "as-is", or a float type to convert to. Quantised weights become floats; active
    adapters go into the weights.
    Raises InputError for an unknown dtype, CheckpointError where nothing can be written.
    """
    if dtype not in ("as-is", *FLOATS):
        raise InputError(f"dtype {dtype!r} is not known", advice=f"as-is, {', '.join(FLOATS)}")
    target = Path(folder)
    model = fused(loaded.model)
    if is_quantized(model):
        model = dequantize_model(copy.deepcopy(model), torch.float32)
    tensors = published_tensors(loaded, model)
    if dtype != "as-is":
        tensors = [_cast(t, FLOATS[dtype]) for t in tensors]
    # A sentence-transformers folder may keep the Transformer in a folder of its own.
    place = target if loaded.sentence is None else target / loaded.sentence.transformer
    try:
        place.mkdir(parents=True, exist_ok=True)
        _write_weights(place, tensors)
        raw = _with_dtype(published_config(loaded), dtype, _new_type(loaded, tensors))
        write_json(place / "config.json", raw)
        _copy_side_files(loaded, target, place)
    except OSError as error:
        raise CheckpointError(f"cannot write: {error.strerror}", where=target) from error
    return target


def _with_dtype(raw: dict[str, Any], dtype: str, changed: str | None) -> dict[str, Any]:
    """The config with the type that was asked for, or came about, under the key it had."""
    keys = [key for key in ("dtype", "torch_dtype") if key in raw]
    if dtype == "as-is":
        return raw if changed is None else raw | dict.fromkeys(keys, changed)
    return raw | dict.fromkeys(keys or ["torch_dtype"], dtype)


def _new_type(loaded: Loaded, tensors: Iterable[LazyTensor]) -> str | None:
    """The tensors' one float type, where that of the file was another; else None."""
    published = loaded.source.published
    if published is None or published.layout != "hub":
        return None
    now, before = (
        {str(kind) for t in some if (kind := assign.DTYPES[t.storage]).is_floating_point}
        for some in (tensors, published.tensors.values())
    )
    return now.pop().removeprefix("torch.") if len(now) == 1 and now != before else None


def published_config(loaded: Loaded) -> dict[str, Any]:
    """The config.json that belongs to the model: every key as it was read, then what changed."""
    source = loaded.source
    written = architecture(source.model_type).write_config(loaded.config, source.head)
    if source.published is None or source.published.layout != "hub":
        return written
    return source.published.raw_config | ({} if source.unchanged else written)


def published_tensors(loaded: Loaded, model: nn.Module) -> list[LazyTensor]:
    """The hub's tensors of a model: the file's own list where it came from one, else canonical."""
    source = loaded.source
    arch = architecture(source.model_type)
    table = arch.names(loaded.config, source.head, "hub")
    state = model.state_dict(keep_vars=True)
    published = source.published
    if published is None or published.layout != "hub" or not source.unchanged:
        return _canonical(state, table, assign.shared_names(model), source.head != "encoder")
    return [_as_in_file(t, table, state) for t in published.tensors.values()]


def _as_in_file(tensor: LazyTensor, table: NameTable, state: Mapping[str, Tensor]) -> LazyTensor:
    """One tensor of the file with the model's present values; what the model dropped as it was."""
    found = table.find(tensor.name)
    if found is None or table.is_ignored(tensor.name) or any(n not in state for n in found.ours):
        return tensor
    value = assign.published_value(found.rule, [state[n].detach() for n in found.ours])
    return assign.lazy(tensor.name, value.reshape(tensor.shape))


def _canonical(
    state: Mapping[str, Tensor], table: NameTable, groups: Mapping[str, list[str]], prefixed: bool
) -> list[LazyTensor]:
    tensors: dict[str, LazyTensor] = {}
    for names in groups.values():
        found = next((f for n in names if (f := table.publish(n, prefixed=prefixed))), None)
        if found is None:
            raise CheckpointError(f"no published name for {names[0]!r}")
        rule, name, _ = found
        if name in tensors:
            continue
        match = table.find(name)
        parts = names[:1] if match is None or len(rule.ours) == 1 else list(match.ours)
        value = assign.published_value(rule, [state[n].detach() for n in parts])
        tensors[name] = assign.lazy(name, value)
    return list(tensors.values())


def _cast(tensor: LazyTensor, dtype: torch.dtype) -> LazyTensor:
    stored = assign.DTYPES[tensor.storage]
    if not stored.is_floating_point or stored == dtype:
        return tensor
    return assign.lazy(tensor.name, assign.dense(tensor).to(dtype))


def _write_weights(folder: Path, tensors: list[LazyTensor]) -> None:
    """model.safetensors, or shards with an index where they are more than SHARD_BYTES together."""
    shards: list[list[LazyTensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(folder / "model.safetensors", shards[0], {"format": "pt"})
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_safetensors(folder / name, shard, {"format": "pt"})
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(t.nbytes for t in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def _copy_side_files(loaded: Loaded, target: Path, place: Path) -> None:
    published = loaded.source.published
    if published is None or published.layout != "hub":
        if loaded.tokenizer is not None:
            write_tokenizer(loaded.tokenizer, target)
        if loaded.generation:
            write_json(target / "generation_config.json", dict(loaded.generation))
        if loaded.images is not None:
            write_json(target / "preprocessor_config.json", loaded.images.to_config())
    elif not published.root.samefile(target):
        for source, goal in {published.root: target, published.folder: place}.items():
            _copy(source, goal, SIDE_FILES)
        for path in () if published.sentence is None else published.sentence.steps:
            _copy(published.root / path, target / path, STEP_FILES)
    former = None if published is None else published.sentence
    if loaded.sentence is not None and loaded.sentence != former:
        write_sentence(loaded.sentence, target, loaded.config.width)


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Those of the named files that there are."""
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (source / name).is_file():
            shutil.copyfile(inside(source, name), target / name)
