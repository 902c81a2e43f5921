"""Meta's own folders of LLaMA: what params.json means. Their tensors' names are in llama.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def config_from_meta(params: Mapping[str, Any], vocab_size: int) -> dict[str, Any]:
    """params.json -> config.json.

    The feed-forward layer's width is not in the file: it is 8/3 of the model's, times a factor,
    rounded up (published code of 2302.13971).
    """
    width, heads_ = int(params["dim"]), int(params["n_heads"])
    hidden = int(2 * 4 * width / 3)
    if params.get("ffn_dim_multiplier") is not None:
        hidden = int(params["ffn_dim_multiplier"] * hidden)
    multiple = int(params.get("multiple_of", 256))
    raw: dict[str, Any] = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": vocab_size,
        "hidden_size": width,
        "num_hidden_layers": int(params["n_layers"]),
        "num_attention_heads": heads_,
        "num_key_value_heads": int(params.get("n_kv_heads") or heads_),
        "intermediate_size": multiple * -(-hidden // multiple),
        "rms_norm_eps": float(params["norm_eps"]),
        "rope_theta": float(params.get("rope_theta", 10000.0)),
        "tie_word_embeddings": False,
    }
    if params.get("use_scaled_rope"):
        raw["rope_scaling"] = {
            "rope_type": "llama3",
            "factor": float(params.get("rope_scaling_factor", 8.0)),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    return raw
