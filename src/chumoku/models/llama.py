"""LLaMA 1, 2, 3, and checkpoints of the same shape: SmolLM2, TinyLlama, Mistral (sliding window).

Touvron et al., 2302.13971 and 2307.09288; Grattafiori et al., 2407.21783; Jiang et al., 2310.06825.
A decoder with pre-normalisation (RMSNorm), rotary positions, grouped key/value heads and SwiGLU.

Shape letters: B batch, T query position, S key position, D model width, N heads, K key/value heads,
H head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import EMPTY, Attention, Batch, Shape, Visible, positions, visible
from chumoku.layers.cache import Cache
from chumoku.layers.feedforward import GatedFeedForward
from chumoku.layers.norms import RMSNorm
from chumoku.layers.ops import linear, rotate
from chumoku.layers.positions import RotaryScaling, rotary_frequencies, rotary_tables
from chumoku.layers.taps import ResidualTaps, Tap
from chumoku.models import config_keys, heads
from chumoku.models.names import NameTable, head_rules, rule


@dataclass(frozen=True)
class Config:
    """Defaults are LLaMA-1 7B's."""

    vocab_size: int = 32000
    max_positions: int = 2048
    width: int = 4096
    num_blocks: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_width: int = 128
    feedforward_width: int = 11008
    activation: str = "silu"
    norm_eps: float = 1e-6
    theta: float = 10000.0
    scaling: RotaryScaling | None = None
    window: int | None = None
    attention_bias: bool = False
    feedforward_bias: bool = False
    attention_dropout: float = 0.0
    tied: bool = False
    init_std: float = 0.02
    model_type: str = "llama"
    classifier_dropout: float = 0.1
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None


class Embeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.token(ids_BT)  # type: ignore[no-any-return]


class Block(nn.Module):
    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        shape = Shape(config.width, config.num_heads, config.head_width, config.num_kv_heads)
        bias = config.attention_bias
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(shape, bias=bias, dropout=config.attention_dropout)
        self.feedforward_norm = RMSNorm(config.width, config.norm_eps)
        self.feedforward = GatedFeedForward(
            config.width, config.feedforward_width, config.activation, bias=config.feedforward_bias
        )
        self.residual = ResidualTaps()

    def forward(
        self, x_BTD: Tensor, rotation: tuple[Tensor, Tensor], seen: Visible, cache: Cache | None
    ) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        q_BNTH, k_BKTH, v_BKTH = self.attention.project(self.attention_norm(x_BTD))
        q_BNTH, k_BKTH = rotate(q_BNTH, *rotation), rotate(k_BKTH, *rotation)
        a_BTD = self.attention(q_BNTH, k_BKTH, v_BKTH, seen, cache=cache, layer=self.layer)
        x_BTD = self.residual.attention(x_BTD + a_BTD)
        f_BTD = self.feedforward(self.feedforward_norm(x_BTD))
        return self.residual.feedforward(x_BTD + f_BTD)  # type: ignore[no-any-return]


class Model(nn.Module):
    """head: a name of HEADS; "encoder" is the bare stack and returns the last hidden states."""

    def __init__(self, config: Config, head: str = "causal-lm") -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.num_blocks))
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.unembedding: nn.Linear | None = None
        if head == "causal-lm":
            self.unembedding = nn.Linear(config.width, config.vocab_size, bias=False)
            if config.tied:
                self.unembedding.weight = self.embeddings.token.weight
        self.head = heads.decoder_head(
            head, config.width, len(config.labels), config.classifier_dropout
        )
        self.head_name = head
        self.logits = Tap()

    def rotation(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin for these positions, [B, T, H] each."""
        config, length = self.config, 0
        if config.scaling is not None and config.scaling.kind in ("dynamic", "longrope"):
            length = int(positions_BT.max()) + 1
        frequency, factor = rotary_frequencies(
            config.head_width, config.theta, config.scaling, length, positions_BT.device
        )
        return rotary_tables(positions_BT, frequency, factor, dtype)

    def hidden(
        self, ids_BT: Tensor, mask_BS: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor:
        """The stack, up to and with the final norm: [B, T, D]."""
        x_BTD = self.embeddings(ids_BT)
        rotation = self.rotation(positions(ids_BT, mask_BS, batch), x_BTD.dtype)
        seen = visible(ids_BT, mask_BS, batch, causal=True, window=self.config.window)
        for block in self.blocks:
            x_BTD = block(x_BTD, rotation, seen, batch.cache)
        return self.final_norm(x_BTD)  # type: ignore[no-any-return]

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """Hidden states -> logits_BTV."""
        if self.unembedding is None:
            raise InputError(f"a model with head {self.head_name!r} has no vocabulary logits")
        return self.logits(linear(x_BTD, self.unembedding))  # type: ignore[no-any-return]

    def forward(
        self, ids_BT: Tensor, mask_BS: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor | heads.Spans:
        """logits_BTV; with another head what that head gives; bare: hidden states [B, T, D]."""
        x_BTD = self.hidden(ids_BT, mask_BS, batch=batch)
        if self.unembedding is not None:
            return self.unembed(x_BTD)
        if self.head is None:
            return x_BTD
        answer = self.head(x_BTD, mask_BS)
        return self.logits(answer) if isinstance(answer, Tensor) else answer  # type: ignore[no-any-return]


def initialise(model: Model) -> None:
    """Matrices and embeddings N(0, init_std), biases 0, norms 1 (published code)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=model.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


# ---- published files ----

HEADS: Final = {
    "causal-lm": "ForCausalLM",
    "encoder": "Model",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
"""Our head -> the published class name after "Llama" or "Mistral"."""

PUBLISHED: Final = {"llama": "Llama", "mistral": "Mistral"}

OPTIONAL: Final = ()
"""No file leaves a module out."""

KEYS: Final = config_keys.Keys(
    reads={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_positions",
        "hidden_size": "width",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
        "num_key_value_heads": "num_kv_heads",
        "head_dim": "head_width",
        "intermediate_size": "feedforward_width",
        "hidden_act": "activation",
        "rms_norm_eps": "norm_eps",
        "sliding_window": "window",
        "attention_bias": "attention_bias",
        "mlp_bias": "feedforward_bias",
        "attention_dropout": "attention_dropout",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "model_type": "model_type",
        "problem_type": "problem_type",
        "classifier_dropout": "classifier_dropout",
    },
    fixed={"is_decoder": (False, True), "add_cross_attention": (False,), "pretraining_tp": (1,)},
    special=frozenset({"rope_theta", "rope_scaling", "rope_parameters"}),
    harmless=frozenset({"is_llama_config", "rope_interleaved", "transformers.js_config"}),
)


MISTRAL: Final = {
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
"""What the published Mistral config means where a key is absent, and LLaMA's does not."""


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError."""
    if raw.get("model_type") == "mistral":
        raw = {**MISTRAL, **raw}
    values = config_keys.read(raw, KEYS, ignore)
    config = config_keys.build(Config, {**values, "labels": config_keys.labels(raw)})
    if config.model_type not in PUBLISHED:
        raise ConfigError(f"model_type {config.model_type!r} is not LLaMA or Mistral")
    changes: dict[str, Any] = {}
    if raw.get("num_key_value_heads") is None:
        changes["num_kv_heads"] = config.num_heads
    if raw.get("head_dim") is None:
        changes["head_width"] = config_keys.divides(
            config.num_heads, config.width, "hidden_size over heads"
        )
    theta, scaling = _rotary(raw, config.max_positions)
    config = dataclasses.replace(config, theta=theta, scaling=scaling, **changes)
    config_keys.divides(config.num_kv_heads, config.num_heads, "heads over key/value heads")
    config_keys.divides(2, config.head_width, "a head's width, turned in pairs, over 2")
    config_keys.known_activation(config.activation)
    return config


def _rotary(raw: Mapping[str, Any], max_positions: int) -> tuple[float, RotaryScaling | None]:
    """theta and the scaling, from rope_theta + rope_scaling (4.x) or rope_parameters (5.x)."""
    stated = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(stated, Mapping):
        raise ConfigError(f"rope scaling must be an object, not {stated!r:.60}")
    given = dict(stated)
    theta = given.pop("rope_theta", None) or raw.get("rope_theta") or 10000.0
    theta = _number("rope_theta", theta)
    kind = given.pop("rope_type", given.pop("type", "default"))
    given.pop("type", None)
    if kind == "default":
        return float(theta), None
    known = ("dynamic", "linear", "llama3", "longrope", "yarn")
    if kind not in known:
        raise ConfigError(
            f"rope scaling {kind!r} is not known", advice=f"supported: {', '.join(known)}"
        )
    values: dict[str, Any] = {}
    for key, value in given.items():
        if key not in SCALING:
            raise ConfigError(f"unknown rope scaling key {key!r}", where="rope_scaling")
        if value is not None:
            values[SCALING[key]] = _scaling_value(key, value)
    original = values.pop("original", None) or raw.get("original_max_position_embeddings")
    if kind == "longrope" and "factor" not in values and original:
        values["factor"] = max_positions / original
    if kind == "dynamic":
        original = max_positions
    return float(theta), RotaryScaling(kind, original=original or max_positions, **values)


def _scaling_value(key: str, value: Any) -> Any:
    """A number; a list of them for longrope's factors; true or false for `truncate`."""
    if key in ("short_factor", "long_factor") and isinstance(value, list | tuple):
        return tuple(_number(key, item) for item in value)
    if key == "truncate" and isinstance(value, bool):
        return value
    number = _number(key, value)
    return int(number) if key == "original_max_position_embeddings" else number


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e18:
        raise ConfigError(f"{key} must be a number of at least 0, not {value!r:.60}", where=key)
    return value


SCALING: Final = {
    "factor": "factor",
    "original_max_position_embeddings": "original",
    "low_freq_factor": "low",
    "high_freq_factor": "high",
    "beta_fast": "beta_fast",
    "beta_slow": "beta_slow",
    "attention_factor": "attention_factor",
    "mscale": "mscale",
    "mscale_all_dim": "mscale_all_dim",
    "truncate": "truncate",
    "short_factor": "short",
    "long_factor": "long",
}
"""Published key of a rope scaling -> field of RotaryScaling."""

REQUIRED: Final = {
    "llama3": (
        *("factor", "original_max_position_embeddings"),
        *("low_freq_factor", "high_freq_factor"),
    ),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}
"""Keys of a rope scaling that the published class wants to see even at their usual values."""


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json."""
    raw = config_keys.write(config, KEYS)
    raw["rope_theta"] = config.theta
    if config.scaling is not None:
        default = RotaryScaling(config.scaling.kind)
        raw["rope_scaling"] = {"rope_type": config.scaling.kind} | {
            key: list(value) if isinstance(value, tuple) else value
            for key, name in SCALING.items()
            if (value := getattr(config.scaling, name)) != getattr(default, name)
            or key in REQUIRED.get(config.scaling.kind, ("factor",))
        }
    published = PUBLISHED[config.model_type] + HEADS[head]
    return {"architectures": [published], **raw, **config_keys.write_labels(config.labels)}


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub", "meta" or "gguf" <-> ours."""
    if layout == "hub":
        llama_qa = config.model_type == "llama" and head == "question-answering"
        prefix = "transformer." if llama_qa else "model."
        own = head_rules(HUB_HEADS, head)
        return NameTable(HUB, own, prefix, ignored=(r".*rotary_emb\.inv_freq",))
    query, key = config.num_heads, config.num_kv_heads
    table = META if layout == "meta" else GGUF
    rules = tuple(
        dataclasses.replace(r, pairs=query if ".query." in r.ours[0] else key)
        if ".query." in r.ours[0] or ".key." in r.ours[0]
        else r
        for r in table
    )
    return NameTable(rules, ignored=(r"rope\.freqs", r"rope_freqs\.weight"))


_A = "blocks.{n}.attention"
_F = "blocks.{n}.feedforward"

HUB: Final = (
    rule("embed_tokens.weight", "embeddings.token.weight"),
    rule("layers.{n}.input_layernorm.weight", f"{_A}_norm.weight"),
    rule("layers.{n}.self_attn.q_proj.{p}", f"{_A}.query.{{p}}"),
    rule("layers.{n}.self_attn.k_proj.{p}", f"{_A}.key.{{p}}"),
    rule("layers.{n}.self_attn.v_proj.{p}", f"{_A}.value.{{p}}"),
    rule("layers.{n}.self_attn.o_proj.{p}", f"{_A}.output.{{p}}"),
    rule("layers.{n}.post_attention_layernorm.weight", f"{_F}_norm.weight"),
    rule("layers.{n}.mlp.gate_proj.{p}", f"{_F}.gate.{{p}}"),
    rule("layers.{n}.mlp.up_proj.{p}", f"{_F}.up.{{p}}"),
    rule("layers.{n}.mlp.down_proj.{p}", f"{_F}.down.{{p}}"),
    rule("norm.weight", "final_norm.weight"),
)

HUB_HEADS: Final = {
    "causal-lm": (rule("lm_head.weight", "unembedding.weight"),),
    "classification": (rule("score.{p}", "head.output.{p}"),),
    "token-classification": (rule("score.{p}", "head.output.{p}"),),
    "question-answering": (rule("qa_outputs.{p}", "head.output.{p}"),),
}

META: Final = (
    rule("tok_embeddings.weight", "embeddings.token.weight"),
    rule("layers.{n}.attention_norm.weight", f"{_A}_norm.weight"),
    rule("layers.{n}.attention.wq.weight", f"{_A}.query.weight"),
    rule("layers.{n}.attention.wk.weight", f"{_A}.key.weight"),
    rule("layers.{n}.attention.wv.weight", f"{_A}.value.weight"),
    rule("layers.{n}.attention.wo.weight", f"{_A}.output.weight"),
    rule("layers.{n}.ffn_norm.weight", f"{_F}_norm.weight"),
    rule("layers.{n}.feed_forward.w1.weight", f"{_F}.gate.weight"),
    rule("layers.{n}.feed_forward.w3.weight", f"{_F}.up.weight"),
    rule("layers.{n}.feed_forward.w2.weight", f"{_F}.down.weight"),
    rule("norm.weight", "final_norm.weight"),
    rule("output.weight", "unembedding.weight"),
)

GGUF: Final = (
    rule("token_embd.weight", "embeddings.token.weight"),
    rule("blk.{n}.attn_norm.weight", f"{_A}_norm.weight"),
    rule("blk.{n}.attn_q.{p}", f"{_A}.query.{{p}}"),
    rule("blk.{n}.attn_k.{p}", f"{_A}.key.{{p}}"),
    rule("blk.{n}.attn_v.{p}", f"{_A}.value.{{p}}"),
    rule("blk.{n}.attn_output.{p}", f"{_A}.output.{{p}}"),
    rule("blk.{n}.ffn_norm.weight", f"{_F}_norm.weight"),
    rule("blk.{n}.ffn_gate.{p}", f"{_F}.gate.{{p}}"),
    rule("blk.{n}.ffn_up.{p}", f"{_F}.up.{{p}}"),
    rule("blk.{n}.ffn_down.{p}", f"{_F}.down.{{p}}"),
    rule("output_norm.weight", "final_norm.weight"),
    rule("output.weight", "unembedding.weight"),
)
