"""Write a LLaMA or GPT-2 as one GGUF file, in F32, F16, Q8_0, Q4_0, Q4_1, or as it is stored.

GGUF version 3 (ggml/docs/gguf.md). Vectors stay F32; with a 4-bit type the embedding and the
unembedding are Q8_0, as their error reaches every token.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.adapters.apply import fused
from chumoku.checkpoints import assign
from chumoku.checkpoints.gguf import GGUFValue, write_gguf
from chumoku.checkpoints.lazy import STORAGE, LazyTensor
from chumoku.errors import InputError
from chumoku.kernels.blocks import quantize
from chumoku.kernels.linear import dequantize_fast
from chumoku.loading import Loaded
from chumoku.models import GGUF, MODEL_TYPES, GGUFLayout, architecture, gguf_layout
from chumoku.models.names import Rule
from chumoku.quantization.convert import quantized_layers
from chumoku.text.gguf_write import gguf_metadata, writable

FILE_TYPES: Final = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7}
"""Storage -> general.file_type."""

AS_STORED: Final = "stored"

FLOATS: Final = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

KEPT: Final = ("general.", "tokenizer.")
REPLACED: Final = ("general.architecture", "general.quantization_version", "general.alignment")
"""Of a file that came from GGUF: name, licence, languages and tokenizer stay, but for these."""

ENDS: Final = ("eos", "eot", "eom")
"""GGUF's names for ids that end an answer: of a text, of a turn of a chat, of a message."""


def save_gguf(loaded: Loaded, path: str | os.PathLike[str], storage: str = "F16") -> Path:
    """Write a model with a causal-LM head. storage: a key of FILE_TYPES, or "stored".

    "stored" keeps the blocks of a quantised model, and floats as the GGUF file or the memory holds
    them. Raises InputError for another architecture, head or storage, ConfigError for what GGUF
    cannot say of the model, TokenizerError where it has no kind for the tokenizer.
    """
    if storage not in (*FILE_TYPES, AS_STORED):
        known = ", ".join((*FILE_TYPES, AS_STORED))
        raise InputError(f"GGUF type {storage!r} is not written here", advice=f"one of {known}")
    kind = MODEL_TYPES[loaded.source.model_type]
    if kind not in GGUF or loaded.head != "causal-lm":
        raise InputError(
            f"GGUF is written for language models, of {' and '.join(GGUF)}, not for "
            f"{loaded.source.model_type} with head {loaded.head!r}"
        )
    loaded = replace(loaded, model=fused(loaded.model))
    target, layout = Path(path), gguf_layout(kind)
    metadata = _metadata(loaded, kind, layout, storage)
    more = layout.gguf_tensors(loaded.config)
    tensors = _tensors(loaded, storage) + [assign.lazy(name, more[name]) for name in more]
    write_gguf(target, metadata, tensors)
    return target


def _metadata(loaded: Loaded, kind: str, layout: GGUFLayout, storage: str) -> dict[str, object]:
    values: dict[str, object] = {
        "general.architecture": kind,
        "general.type": "model",
        "general.name": Path(loaded.source.origin).name or kind,
        "general.quantization_version": 2,
    }
    values |= layout.gguf_metadata(loaded.config)
    published = loaded.source.published
    if published is not None and published.gguf is not None:
        kept = published.gguf.values
        values |= {k: v for k, v in kept.items() if k.startswith(KEPT) and k not in REPLACED}
    if storage in FILE_TYPES:
        values["general.file_type"] = FILE_TYPES[storage]
    if not any(key.startswith("tokenizer.") for key in values) and loaded.tokenizer is not None:
        tokenizer = loaded.tokenizer
        if published is not None:
            tokenizer = writable(tokenizer, published.folder, published.raw_config)
        table = gguf_metadata(tokenizer, loaded.config.vocab_size)
        values |= {key: _typed(key, value) for key, value in table.items()}
    return _special_ids(loaded.generation) | values | _ends(loaded.generation, values)


def _special_ids(generation: Mapping[str, Any]) -> dict[str, object]:
    """Ids of the published settings; those of the tokenizer, where there is one, come first."""
    found = {"bos": generation.get("bos_token_id"), "padding": generation.get("pad_token_id")}
    return {f"tokenizer.ggml.{n}_token_id": i for n, i in found.items() if isinstance(i, int)}


def _ends(generation: Mapping[str, Any], values: Mapping[str, object]) -> dict[str, object]:
    """Every id that ends an answer, under the names that GGUF has for them."""
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ENDS]
    held = {key: _plain(values[key]) for key in keys if key in values}
    given = generation.get("eos_token_id")
    wanted = [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
    new = [index for index in dict.fromkeys(wanted) if index not in held.values()]
    free = [key for key in keys if key not in held]
    if len(new) > len(free):
        raise InputError(f"GGUF holds {len(ENDS)} ids that end an answer, not {wanted}")
    return dict(zip(free, new, strict=False))


def _plain(value: object) -> object:
    return value.value if isinstance(value, GGUFValue) else value


def _typed(key: str, value: object) -> object:
    """Token types are signed in the format."""
    return GGUFValue("array", value, "i32") if key.endswith("token_type") else value


def _tensors(loaded: Loaded, storage: str) -> list[LazyTensor]:
    table = architecture(loaded.source.model_type).names(loaded.config, loaded.head, "gguf")
    state = loaded.model.state_dict(keep_vars=True)
    blocks = quantized_layers(loaded.model)
    published = loaded.source.published
    file = {} if published is None or published.gguf is None else published.gguf.tensors
    found: dict[str, LazyTensor] = {}
    for names in assign.shared_names(loaded.model).values():
        entry = table.publish(names[0])
        if entry is None:
            raise InputError(f"GGUF has no name for {names[0]!r}")
        rule, name, _ = entry
        if name in found:
            continue
        match = table.find(name)
        parts = names[:1] if match is None or len(rule.ours) == 1 else list(match.ours)
        wanted = storage
        if storage == AS_STORED:
            wanted = _present(name, file, state[parts[0]].dtype)
        found[name] = _tensor(name, rule, parts, state, blocks, wanted)
    return list(found.values())


def _present(name: str, file: Mapping[str, LazyTensor], dtype: torch.dtype) -> str:
    """The storage of a tensor as it is: in the GGUF file it came from, else in memory."""
    if dtype == torch.uint8:
        return AS_STORED
    if name in file and file[name].storage in FLOATS:
        return file[name].storage
    held = assign.STORAGE_OF[dtype]
    return held if held in FLOATS else "F32"


def _tensor(
    name: str,
    rule: Rule,
    parts: list[str],
    state: Mapping[str, Tensor],
    blocks: Mapping[str, str],
    storage: str,
) -> LazyTensor:
    stored = [blocks.get(part.removesuffix(".weight")) for part in parts]
    values = [state[part].detach().cpu() for part in parts]
    wanted = _storage_for(name, storage)
    if stored[0] is not None and len(set(stored)) == 1 and wanted in (AS_STORED, stored[0]):
        return _block_tensor(name, rule, values, stored[0])
    floats = [
        value if kind is None else dequantize_fast(value, kind)
        for value, kind in zip(values, stored, strict=True)
    ]
    value = assign.published_value(rule, [v.float() for v in floats])
    if wanted == AS_STORED:
        wanted = "F16"
    if value.dim() < 2 or name.startswith("position_embd"):
        wanted = "F32"
    elif value.shape[-1] % STORAGE[wanted][0]:
        wanted = "F16"  # rows are no whole number of blocks
    if wanted in FLOATS:
        return assign.lazy(name, _narrowed(name, value, FLOATS[wanted]))
    return _raw(name, tuple(value.shape), wanted, quantize(value, wanted))


def _narrowed(name: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    """value in a float type. Raises InputError where a finite number would become infinite."""
    found = value.to(dtype)
    if bool((found.isinf() & ~value.isinf()).any()):
        raise InputError(f"{name} has values that F16 cannot hold", advice="write F32")
    return found


def _storage_for(name: str, storage: str) -> str:
    outer = name in ("token_embd.weight", "output.weight")
    return "Q8_0" if outer and storage.startswith("Q4") else storage


def _block_tensor(name: str, rule: Rule, values: list[Tensor], storage: str) -> LazyTensor:
    """Whole rows are permuted and stacked; their blocks stay as they are."""
    rows = [assign.halves_to_pairs(v, rule.pairs) if rule.pairs else v for v in values]
    raw = torch.cat(rows) if len(rows) > 1 else rows[0]
    per_block, block_bytes = STORAGE[storage]
    return _raw(name, (raw.shape[0], raw.shape[1] // block_bytes * per_block), storage, raw)


def _raw(name: str, shape: tuple[int, ...], storage: str, raw: Tensor) -> LazyTensor:
    def read() -> bytearray:
        return bytearray(raw.contiguous().reshape(-1).numpy())

    return LazyTensor(name, shape, storage, read)
