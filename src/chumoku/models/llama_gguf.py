"""LLaMA in a GGUF file: what its metadata means, both ways. Its tensors' names are in llama.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.errors import ConfigError
from chumoku.layers.positions import RotaryScaling, rotary_frequencies
from chumoku.models.llama import Config

ROPE: Final = "rope_freqs.weight"


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Collection[str], read: Callable[[str], Tensor]
) -> dict[str, Any]:
    """GGUF metadata of architecture llama -> config.json (GGUF specification, "LLaMA" keys).

    tensors: the names in the file; read: the values of one. Raises ConfigError.
    """

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"llama.{key}", default)

    width, heads_ = get("embedding_length"), get("attention.head_count")
    raw: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": width,
        "num_hidden_layers": get("block_count"),
        "num_attention_heads": heads_,
        "num_key_value_heads": get("attention.head_count_kv", heads_),
        "intermediate_size": get("feed_forward_length"),
        "max_position_embeddings": get("context_length"),
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
        "rope_theta": get("rope.freq_base", 10000.0),
        "vocab_size": get("vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ())),
        "head_dim": get("attention.key_length", get("rope.dimension_count")),
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    missing = [key for key, value in raw.items() if value is None and key != "head_dim"]
    if missing:
        raise ConfigError(f"GGUF metadata lacks what gives {', '.join(missing)}", where="llama.*")
    scaling = _scaling(metadata, raw, read if ROPE in tensors else None)
    return raw if scaling is None else raw | {"rope_scaling": scaling}


def _scaling(
    metadata: Mapping[str, Any], raw: Mapping[str, Any], read: Callable[[str], Tensor] | None
) -> dict[str, Any] | None:
    """rope_scaling of config.json; None where the rotation is the plain one."""

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"llama.rope.{key}", default)

    head_width = raw["head_dim"]
    if get("dimension_count", head_width) != head_width:
        raise ConfigError(
            "a rotation of a part of each head is not supported", where="llama.rope.*"
        )
    kind, original = get("scaling.type", "none"), get("scaling.original_context_length")
    if kind not in ("none", "linear", "yarn"):
        raise ConfigError(f"rope scaling {kind!r} is not known", where="llama.rope.scaling.type")
    if read is not None:
        return _stretched(raw, original or 8192, read(ROPE).tolist())
    if kind == "none":
        return None
    factor = get("scaling.factor", 1.0)
    return {"rope_type": kind, "factor": factor, "original_max_position_embeddings": original}


def _stretched(raw: Mapping[str, Any], original: int, factors: list[float]) -> dict[str, Any]:
    """rope_scaling of config.json for the factors in rope_freqs.weight.

    LLaMA 3.1's formula where it gives these factors; else the factors themselves.
    """
    formula = RotaryScaling("llama3", max(factors, default=1.0), original)
    width = raw.get("head_dim") or raw["hidden_size"] // raw["num_attention_heads"]
    if len(factors) != width // 2:
        raise ConfigError(f"{len(factors)} rope factors for heads of width {width}")
    if torch.allclose(_factors(width, raw["rope_theta"], formula), torch.tensor(factors)):
        return {"rope_type": "llama3", "factor": formula.factor} | {
            "low_freq_factor": formula.low,
            "high_freq_factor": formula.high,
            "original_max_position_embeddings": original,
        }
    return {"rope_type": "longrope", "short_factor": factors, "long_factor": factors} | {
        "attention_factor": 1.0,
        "original_max_position_embeddings": raw["max_position_embeddings"],
    }


def _factors(width: int, theta: float, scaling: RotaryScaling) -> Tensor:
    cpu = torch.device("cpu")
    plain, _ = rotary_frequencies(width, theta, None, 0, cpu)
    return plain / rotary_frequencies(width, theta, scaling, 0, cpu)[0]


def gguf_metadata(config: Config) -> dict[str, Any]:
    """The llama.* keys that a GGUF file of this config needs."""
    if config.attention_bias or config.feedforward_bias:
        raise ConfigError("GGUF's llama architecture is written without biases here")
    window = config.window or config.max_positions
    if window < config.max_positions or config.activation != "silu":
        raise ConfigError("GGUF's llama architecture has no sliding window and only SiLU")
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.width,
        "block_count": config.num_blocks,
        "feed_forward_length": config.feedforward_width,
        "rope.dimension_count": config.head_width,
        "attention.key_length": config.head_width,
        "attention.value_length": config.head_width,
        "attention.head_count": config.num_heads,
        "attention.head_count_kv": config.num_kv_heads,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.freq_base": config.theta,
    }
    scaling = config.scaling
    if scaling is not None and scaling.kind == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    elif scaling is not None:
        values["rope.scaling.original_context_length"] = scaling.original
    return {f"llama.{key}": value for key, value in values.items()}


def gguf_tensors(config: Config) -> dict[str, Tensor]:
    """Tensors that no layer of ours holds: rope_freqs.weight where the rotation is stretched.

    It is [H / 2], what each frequency is divided by. Raises ConfigError for a scaling that is no
    fixed factor for each frequency.
    """
    scaling = config.scaling
    if scaling is None or scaling.kind == "linear":
        return {}
    if scaling.kind == "llama3":
        return {ROPE: _factors(config.head_width, config.theta, scaling)}
    if scaling.kind != "longrope" or scaling.short != scaling.long or scaling.attention_factor != 1:
        raise ConfigError(f"rope scaling {scaling.kind!r} is not written to GGUF")
    return {ROPE: torch.tensor(scaling.short)}
