"""GPT-2 in a GGUF file: what its metadata means, both ways. Its tensors' names are in gpt2.py."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor

from chumoku.errors import ConfigError
from chumoku.models.gpt2 import Config


def config_from_gguf(
    metadata: Mapping[str, Any], tensors: Collection[str], read: Callable[[str], Tensor]
) -> dict[str, Any]:
    """GGUF metadata of architecture gpt2 -> config.json (GGUF specification, "GPT-2" keys).

    tensors: the names in the file; read: the values of one. Raises ConfigError.
    """

    def get(key: str) -> Any:
        return metadata.get(f"gpt2.{key}")

    raw: dict[str, Any] = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": get("vocab_size") or len(metadata.get("tokenizer.ggml.tokens", ())) or None,
        "n_positions": get("context_length"),
        "n_embd": get("embedding_length"),
        "n_layer": get("block_count"),
        "n_head": get("attention.head_count"),
        "layer_norm_epsilon": get("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": "output.weight" not in tensors,
    }
    missing = [key for key, value in raw.items() if value is None]
    if missing:
        raise ConfigError(f"GGUF metadata lacks what gives {', '.join(missing)}", where="gpt2.*")
    if get("feed_forward_length") is not None:
        raw["n_inner"] = get("feed_forward_length")
    return raw


def gguf_metadata(config: Config) -> dict[str, Any]:
    """The gpt2.* keys that a GGUF file of this config needs."""
    if config.activation not in ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh"):
        raise ConfigError(
            f"GGUF's gpt2 architecture has GELU's tanh form only, not {config.activation!r}"
        )
    if config.scale_by_layer or not config.scale_attention:
        raise ConfigError("GGUF's gpt2 architecture divides scores by sqrt(head width), no more")
    values: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_positions,
        "embedding_length": config.width,
        "block_count": config.num_blocks,
        "feed_forward_length": config.feedforward_width,
        "attention.head_count": config.num_heads,
        "attention.layer_norm_epsilon": config.norm_eps,
    }
    return {f"gpt2.{key}": value for key, value in values.items()}


def gguf_tensors(config: Config) -> dict[str, Tensor]:
    """Tensors that no layer of ours holds: none."""
    return {}
