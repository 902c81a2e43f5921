"""Published layouts written by hand from a model of transformers: Meta's folder, GGUF by `gguf`.

The names and the order of rows are written out here a second time, apart from chumoku's tables, so
that a fault in those cannot hide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType
from parity.harness import randomise
from torch import Tensor

Arrays = dict[str, np.ndarray]

IDS = torch.tensor([[3, 7, 1, 25, 12, 4, 30, 9, 9, 2, 17], [30, 2, 8, 8, 21, 5, 14, 6, 1, 0, 11]])

META = {
    "model.embed_tokens": "tok_embeddings",
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "model.layers": "layers",
    "model.norm": "norm",
    "lm_head": "output",
}
GGUF_LLAMA = {
    "model.embed_tokens": "token_embd",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.down_proj": "ffn_down",
    "mlp.up_proj": "ffn_up",
    "model.layers": "blk",
    "model.norm": "output_norm",
    "lm_head": "output",
}
GGUF_GPT2 = {
    "transformer.wte": "token_embd",
    "transformer.wpe": "position_embd",
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "transformer.h": "blk",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def llama(seed: int = 0, **changes: Any) -> Any:
    """A LlamaForCausalLM with grouped heads and random weights; every parameter is drawn."""
    settings: dict[str, Any] = {
        **{"vocab_size": 40, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "intermediate_size": 96, "max_position_embeddings": 64},
        **{"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": False},
        **changes,
    }
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))
    randomise(model, seed)
    return model.eval()


def gpt2(seed: int = 0, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        **{"vocab_size": 40, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64},
        **{"bos_token_id": 0, "eos_token_id": 0, **changes},
    }
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    """Of a model of transformers, or of ours."""
    out = model(ids)
    return out if isinstance(out, Tensor) else out.logits


def pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows i and i + H/2 of each head become neighbours, as Meta and GGUF store them."""
    width = len(rows) // heads
    order = [
        h * width + i + half
        for h in range(heads)
        for i in range(width // 2)
        for half in (0, width // 2)
    ]
    return rows[order]


def halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """The inverse of pairs."""
    back = np.empty(len(rows), dtype=np.int64)
    back[pairs(np.arange(len(rows)), heads)] = np.arange(len(rows))
    return rows[back]


def published(model: Any, names: Mapping[str, str], *, permute: bool = True) -> Arrays:
    """The model's tensors under other names; query and key rows as neighbouring pairs."""
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    found: Arrays = {}
    for name, tensor in state.items():
        array = tensor.numpy()
        if name.endswith(CONV1D):
            array = np.ascontiguousarray(array.T)
        heads = heads_of(model, name)
        if heads and permute:
            array = pairs(array, heads)
        for theirs, other in names.items():
            name = re.sub(rf"(^|\.){re.escape(theirs)}(?=\.)", rf"\g<1>{other}", name)
        found[name] = array
    return found


def heads_of(model: Any, name: str) -> int:
    """Over how many heads the rows of a tensor are rotated; 0 where they are not."""
    if "q_proj" in name or "attn_q." in name:
        return int(model.config.num_attention_heads)
    if "k_proj" in name or "attn_k." in name:
        return int(model.config.num_key_value_heads)
    return 0


# ---- Meta ----

CUT_ROWS = ("wq", "wk", "wv", "w1", "w3", "output")
CUT_COLUMNS = ("wo", "w2")


def write_meta(
    folder: Path, model: Any, shards: int = 1, *, embedding_axis: int = 1, **params: Any
) -> None:
    """params.json and consolidated.NN.pth. The SwiGLU width must be a multiple of 32."""
    config = model.config
    folder.mkdir(parents=True, exist_ok=True)
    told = {
        **{"dim": config.hidden_size, "n_layers": config.num_hidden_layers},
        **{"n_heads": config.num_attention_heads, "n_kv_heads": config.num_key_value_heads},
        **{"norm_eps": config.rms_norm_eps, "vocab_size": -1, **params},
    }
    (folder / "params.json").write_text(json.dumps(told), "utf-8")
    tensors = {n: torch.from_numpy(a.copy()) for n, a in published(model, META).items()}
    for shard in range(shards):
        part = {"rope.freqs": torch.zeros(config.head_dim // 2)}
        for name, tensor in tensors.items():
            layer = name.split(".")[-2]
            axis = {**dict.fromkeys(CUT_ROWS, 0), **dict.fromkeys(CUT_COLUMNS, 1)}.get(layer)
            axis = embedding_axis if layer == "tok_embeddings" else axis
            part[name] = tensor if axis is None else tensor.chunk(shards, axis)[shard].clone()
        torch.save(part, folder / f"consolidated.{shard:02}.pth")


# ---- GGUF ----

Stored = dict[str, tuple[np.ndarray, str]]
"""Tensor name -> (floats, or uint8 rows of blocks; storage)."""

SCALES = {
    **{"Q2_K": ((80, 0.01), (82, 0.01)), "Q3_K": ((108, 0.002),), "Q6_K": ((208, 0.0002),)},
    **{"Q4_K": ((0, 0.0005), (2, 0.001)), "Q5_K": ((0, 0.0002), (2, 0.001))},
}
"""Where the formats that `gguf` cannot write keep their scales, and values that suit a model."""


def store(array: np.ndarray, storage: str, seed: int = 0) -> np.ndarray:
    """Rows of blocks: quantised by `gguf` where it can, else random bytes with tame scales."""
    kind = GGMLQuantizationType[storage]
    if storage not in SCALES:
        return gguf.quants.quantize(array, kind)
    rng = np.random.default_rng(seed)
    per_block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (array.size // per_block, size), dtype=np.uint8)
    for at, scale in SCALES[storage]:
        values = (scale * rng.uniform(0.5, 1.5, len(raw))).astype(np.float16)
        raw[:, at : at + 2] = values.view(np.uint8).reshape(-1, 2)
    return raw.reshape(*array.shape[:-1], -1)


def as_stored(tensors: Arrays, storage: str) -> Stored:
    """Matrices in a storage, vectors and learned positions in F32, as llama.cpp writes them."""
    found: Stored = {}
    for seed, (name, array) in enumerate(tensors.items()):
        if array.ndim < 2 or storage == "F32" or name.startswith("position_embd"):
            found[name] = (array, "F32")
        elif storage == "F16":
            found[name] = (array.astype(np.float16), "F16")
        else:
            found[name] = (store(array, storage, seed), storage)
    return found


def plain(stored: Stored) -> Arrays:
    """The values that stored tensors stand for, float32, by `gguf`."""
    return {
        name: gguf.quants.dequantize(array, GGMLQuantizationType[storage]).astype(np.float32)
        for name, (array, storage) in stored.items()
    }


def write_gguf(
    path: Path, model: Any, stored: Stored, *, split: int = 0, metadata: Mapping[str, Any] = {}
) -> None:
    """A file of architecture llama or gpt2 by the `gguf` package."""
    config = model.config
    kind = config.model_type
    writer = gguf.GGUFWriter(path, kind, split_max_tensors=split)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    if kind == "llama":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_dimension_count(config.head_dim)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    else:
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for key, value in metadata.items():
        add_value(writer, key, value)
    for name, (array, storage) in stored.items():
        writer.add_tensor(name, array, raw_dtype=GGMLQuantizationType[storage])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_value(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def from_plain(model: Any, values: Arrays, names: Mapping[str, str]) -> None:
    """Give a model of transformers the values of a GGUF file, permuted and transposed back."""
    back = dict(published_names(model, names))
    state = model.state_dict()
    for name, array in values.items():
        theirs = back[name]
        heads = heads_of(model, theirs)
        array = halves(array, heads) if heads else array
        array = array.T if theirs.endswith(CONV1D) else array
        state[theirs].copy_(torch.from_numpy(np.ascontiguousarray(array)))


def published_names(model: Any, names: Mapping[str, str]) -> Sequence[tuple[str, str]]:
    """(other name, the name in transformers) of every tensor."""
    theirs = [
        n
        for n in model.state_dict()
        if not (model.config.tie_word_embeddings and n == "lm_head.weight")
    ]
    return list(zip(published(model, names), theirs, strict=True))
