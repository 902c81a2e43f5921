"""The Transformer of 2017 (Vaswani et al., 1706.03762), and Marian, its published checkpoints.

An encoder-decoder with post-normalisation: every sublayer is LayerNorm(x + Dropout(f(x))). Tokens
of both languages and the output matrix share one tensor. Marian (OPUS-MT) orders its sinusoids
otherwise, has biases in attention and one on the logits.

Shape letters: B batch, T target position, S source position, D model width, N heads, H head width,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import (
    EMPTY,
    Attention,
    Batch,
    Shape,
    Visible,
    positions,
    refuse_packing,
    visible,
)
from chumoku.layers.cache import Cache
from chumoku.layers.dropout import Dropout
from chumoku.layers.feedforward import FeedForward
from chumoku.layers.memory import Memory
from chumoku.layers.ops import linear, scaled
from chumoku.layers.positions import sinusoids
from chumoku.layers.taps import CrossResidualTaps, ResidualTaps, Tap
from chumoku.models import config_keys
from chumoku.models.heads import unknown_head
from chumoku.models.names import NameTable, head_rules, rule

POSITIONS: Final = ("interleaved", "concatenated", "learned")


@dataclass(frozen=True)
class Config:
    """Defaults are the paper's base model with its 37,000 shared word pieces (section 5.1).

    target_vocab_size: where the languages do not share embeddings. positions: sinusoids with sine
    and cosine in turn (the paper) or all sines first (Marian), or a learned table (table 3, E).
    max_positions: the longest text, None where sinusoids set no limit.
    key_width, value_width: d_k and d_v of a head; None: width / heads, and d_k. attention_bias: on
    all four projections. init_std: of every matrix; None: Xavier (see initialise). pad_id: its
    embedding starts as zeros and gets no gradient as an input; None: it is like any other.
    """

    vocab_size: int = 37000
    target_vocab_size: int | None = None
    width: int = 512
    num_encoder_blocks: int = 6
    num_decoder_blocks: int = 6
    encoder_heads: int = 8
    decoder_heads: int = 8
    key_width: int | None = None
    value_width: int | None = None
    encoder_feedforward_width: int = 2048
    decoder_feedforward_width: int = 2048
    activation: str = "relu"
    positions: str = "interleaved"
    max_positions: int | None = None
    scaled_embeddings: bool = True
    attention_bias: bool = False
    logits_bias: bool = False
    shared: bool = True
    tied: bool = True
    norm_eps: float = 1e-5
    dropout: float = 0.1
    attention_dropout: float = 0.0
    activation_dropout: float = 0.0
    encoder_layerdrop: float = 0.0
    decoder_layerdrop: float = 0.0
    init_std: float | None = None
    pad_id: int | None = None
    start_id: int = 0
    eos_ids: tuple[int, ...] = (0,)

    @property
    def model_type(self) -> str:
        """What the config is published as: "marian" where Marian's keys can say all of it."""
        return "transformer" if _beyond_marian(self) else "marian"


class Embeddings(nn.Module):
    """Dropout(sqrt(D) * token + position) (sections 3.4, 3.5 and 5.4)."""

    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.token = nn.Embedding(vocab_size, config.width, padding_idx=config.pad_id)
        self.position: nn.Embedding | None = None
        if config.positions == "learned" and config.max_positions is not None:
            self.position = nn.Embedding(config.max_positions, config.width)
        self.interleaved = config.positions == "interleaved"
        self.scale = config.width**0.5 if config.scaled_embeddings else 1.0
        self.dropout = Dropout(config.dropout)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        x_BTD = scaled(self.token(ids_BT), self.scale)
        if self.position is not None:
            p_BTD = self.position(positions_BT)
        else:
            width, dtype = x_BTD.shape[-1], x_BTD.dtype
            p_BTD = sinusoids(positions_BT, width, interleaved=self.interleaved, dtype=dtype)
        return self.dropout(x_BTD + p_BTD)  # type: ignore[no-any-return]


def _attention(config: Config, heads: int) -> Attention:
    key_width = config.key_width
    if key_width is None:
        key_width = config_keys.divides(heads, config.width, "width over heads")
    shape = Shape(config.width, heads, key_width, value_width=config.value_width)
    return Attention(shape, bias=config.attention_bias, dropout=config.attention_dropout)


def _feedforward(config: Config, hidden: int) -> FeedForward:
    return FeedForward(config.width, hidden, config.activation, dropout=config.activation_dropout)


class EncoderBlock(nn.Module):
    """Self-attention, then the position-wise layer (section 3.1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.attention = _attention(config, config.encoder_heads)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feedforward = _feedforward(config, config.encoder_feedforward_width)
        self.feedforward_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.residual = ResidualTaps()

    def forward(self, x_BSD: Tensor, seen: Visible) -> Tensor:
        x_BSD = self.residual.input(x_BSD)
        a_BSD = self.dropout(self.attention(*self.attention.project(x_BSD), seen))
        x_BSD = self.residual.attention(self.attention_norm(x_BSD + a_BSD))
        f_BSD = self.dropout(self.feedforward(x_BSD))
        return self.residual.feedforward(self.feedforward_norm(x_BSD + f_BSD))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """Causal self-attention, attention to the source, then the position-wise layer."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention = _attention(config, config.decoder_heads)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.cross_attention = _attention(config, config.decoder_heads)
        self.cross_attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feedforward = _feedforward(config, config.decoder_feedforward_width)
        self.feedforward_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.residual = CrossResidualTaps()

    def forward(
        self,
        x_BTD: Tensor,
        seen: Visible,
        memory: Memory,
        cache: Cache | None,
    ) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        q_BNTH, k_BNTH, v_BNTH = self.attention.project(x_BTD)
        a_BTD = self.attention(q_BNTH, k_BNTH, v_BNTH, seen, cache=cache, layer=self.layer)
        x_BTD = self.residual.attention(self.attention_norm(x_BTD + self.dropout(a_BTD)))
        q_BNTH = self.cross_attention.project_query(x_BTD)
        k_BNSH, v_BNSH = memory.keys[self.layer], memory.values[self.layer]
        c_BTD = self.dropout(self.cross_attention(q_BNTH, k_BNSH, v_BNSH, memory.visible))
        x_BTD = self.residual.cross_attention(self.cross_attention_norm(x_BTD + c_BTD))
        f_BTD = self.dropout(self.feedforward(x_BTD))
        return self.residual.feedforward(self.feedforward_norm(x_BTD + f_BTD))  # type: ignore[no-any-return]


def _left_out(rate: float, training: bool) -> bool:
    """LayerDrop (Fan et al., 1909.11556): whether this block is skipped in this training step."""
    return training and rate > 0.0 and bool(torch.rand([]) < rate)


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, config.vocab_size)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_encoder_blocks))
        self.layerdrop = config.encoder_layerdrop

    def forward(self, ids_BS: Tensor, mask_BS: Tensor | None) -> Tensor:
        """Last hidden states, [B, S, D]."""
        seen = visible(ids_BS, mask_BS, EMPTY, causal=False)
        x_BSD = self.embeddings(ids_BS, positions(ids_BS, mask_BS, EMPTY))
        for block in self.blocks:
            if not _left_out(self.layerdrop, self.training):
                x_BSD = block(x_BSD, seen)
        return x_BSD  # type: ignore[no-any-return]


class Decoder(nn.Module):
    def __init__(self, config: Config, vocab_size: int) -> None:
        super().__init__()
        self.embeddings = Embeddings(config, vocab_size)
        self.blocks = nn.ModuleList(
            DecoderBlock(config, n) for n in range(config.num_decoder_blocks)
        )
        self.layerdrop = config.decoder_layerdrop

    def forward(
        self, ids_BT: Tensor, memory: Memory, mask_BS: Tensor | None, batch: Batch
    ) -> Tensor:
        """Last hidden states, [B, T, D]."""
        seen = visible(ids_BT, mask_BS, batch, causal=True)
        x_BTD = self.embeddings(ids_BT, positions(ids_BT, mask_BS, batch))
        for block in self.blocks:
            if not _left_out(self.layerdrop, self.training):
                x_BTD = block(x_BTD, seen, memory, batch.cache)
        return x_BTD  # type: ignore[no-any-return]


class LogitsBias(nn.Module):
    """Marian adds a stored number to each token's logit; it is a buffer, not trained further."""

    bias: Tensor

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(vocab_size))

    def forward(self, logits_BTV: Tensor) -> Tensor:
        return logits_BTV + self.bias


HEADS: Final = {"conditional-generation": "MTModel", "encoder-decoder": "Model"}
"""Our head -> the published class name after "Marian"."""

PUBLISHED: Final = {"marian": "Marian", "transformer": "Transformer"}

OPTIONAL: Final = ("head",)
"""The bias on the logits is missing in some files; it is then zero."""


class Model(nn.Module):
    """head: a name of HEADS; "encoder-decoder" is bare and returns the decoder's hidden states."""

    def __init__(self, config: Config, head: str = "conditional-generation") -> None:
        super().__init__()
        if head not in HEADS:
            raise unknown_head(head, tuple(HEADS))
        self.config = config
        target_size = config.target_vocab_size
        if config.shared or target_size is None:
            target_size = config.vocab_size
        self.encoder = Encoder(config)
        self.decoder = Decoder(config, target_size)
        if config.shared:
            self.decoder.embeddings.token.weight = self.encoder.embeddings.token.weight
        self.unembedding: nn.Linear | None = None
        self.head: LogitsBias | None = None
        if head == "conditional-generation":
            self.unembedding = nn.Linear(config.width, target_size, bias=False)
            if config.tied:
                self.unembedding.weight = self.decoder.embeddings.token.weight
            self.head = LogitsBias(target_size) if config.logits_bias else None
        self.head_name = head
        self.logits = Tap()

    def encode(self, source_BS: Tensor, source_mask: Tensor | None = None) -> Memory:
        """The encoder's states, and the keys and values that each decoder block makes of them."""
        hidden_BSD = self.encoder(source_BS, source_mask)
        layers = [cast(DecoderBlock, block).cross_attention for block in self.decoder.blocks]
        return Memory.of(hidden_BSD, source_mask, layers)

    def decode_hidden(
        self,
        target_BT: Tensor,
        memory: Memory,
        target_mask: Tensor | None = None,
        *,
        batch: Batch = EMPTY,
    ) -> Tensor:
        """The decoder's last hidden states, [B, T, D]. target_mask: of cached positions too."""
        refuse_packing(batch)
        return self.decoder(target_BT, memory, target_mask, batch)  # type: ignore[no-any-return]

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """Hidden states -> logits_BTV."""
        if self.unembedding is None:
            raise InputError(f"a model with head {self.head_name!r} has no vocabulary logits")
        logits_BTV = linear(x_BTD, self.unembedding)
        return self.logits(logits_BTV if self.head is None else self.head(logits_BTV))  # type: ignore[no-any-return]

    def decode(
        self,
        target_BT: Tensor,
        memory: Memory,
        target_mask: Tensor | None = None,
        *,
        batch: Batch = EMPTY,
    ) -> Tensor:
        """logits_BTV of the target so far."""
        return self.unembed(self.decode_hidden(target_BT, memory, target_mask, batch=batch))

    def forward(
        self,
        source_BS: Tensor,
        target_BT: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        *,
        batch: Batch = EMPTY,
    ) -> Tensor:
        """logits_BTV; bare: the decoder's hidden states [B, T, D]."""
        memory = self.encode(source_BS, source_mask)
        x_BTD = self.decode_hidden(target_BT, memory, target_mask, batch=batch)
        return x_BTD if self.unembedding is None else self.unembed(x_BTD)


def initialise(model: Model) -> None:
    """Xavier uniform for projections, N(0, 1/D) for embeddings and output; or N(0, init_std).

    The first is what tensor2tensor, the code of the paper, draws (the paper does not say); the
    second is Marian's published class. Biases are 0, norms 1, the pad's embedding 0.
    """
    std, width = model.config.init_std, model.config.width
    for module in model.modules():
        if isinstance(module, nn.Linear):
            if std is not None:
                nn.init.normal_(module.weight, std=std)
            elif module is model.unembedding:
                nn.init.normal_(module.weight, std=width**-0.5)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    for module in model.modules():  # last, because the output matrix may be one of them
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=width**-0.5 if std is None else std)
            if module.padding_idx is not None:
                with torch.no_grad():
                    module.weight[module.padding_idx] = 0.0


# ---- published files ----

KEYS: Final = config_keys.Keys(
    reads={
        "vocab_size": "vocab_size",
        "decoder_vocab_size": "target_vocab_size",
        "d_model": "width",
        "encoder_layers": "num_encoder_blocks",
        "decoder_layers": "num_decoder_blocks",
        "encoder_attention_heads": "encoder_heads",
        "decoder_attention_heads": "decoder_heads",
        "encoder_ffn_dim": "encoder_feedforward_width",
        "decoder_ffn_dim": "decoder_feedforward_width",
        "activation_function": "activation",
        "max_position_embeddings": "max_positions",
        "scale_embedding": "scaled_embeddings",
        "share_encoder_decoder_embeddings": "shared",
        "tie_word_embeddings": "tied",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "activation_dropout": "activation_dropout",
        "encoder_layerdrop": "encoder_layerdrop",
        "decoder_layerdrop": "decoder_layerdrop",
        "init_std": "init_std",
        "pad_token_id": "pad_id",
        "decoder_start_token_id": "start_id",
        # The published class takes these names for the same values.
        "hidden_size": "width",
        "num_hidden_layers": "num_encoder_blocks",
        "num_attention_heads": "encoder_heads",
    },
    fixed={
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_encoder_decoder": (False,),
        "add_bias_logits": (False,),
        "add_final_layer_norm": (False,),
        "normalize_before": (False,),
        "normalize_embedding": (False,),
        "static_position_embeddings": (True,),
    },
    special=frozenset({"eos_token_id"}),
    harmless=frozenset(
        {"_num_labels", "classif_dropout", "classifier_dropout", "extra_pos_embeddings"}
        | {"force_bos_token_to_be_generated"}
    ),
)

OWN: Final = config_keys.Keys(
    reads={
        **KEYS.reads,
        "position_embedding": "positions",
        "d_k": "key_width",
        "d_v": "value_width",
        "attention_bias": "attention_bias",
        "logits_bias": "logits_bias",
        "layer_norm_eps": "norm_eps",
    },
    special=KEYS.special,
    harmless=KEYS.harmless,
)
"""model_type "transformer": Marian's keys, and those for what Marian leaves no choice in.

position_embedding: interleaved, concatenated or learned. d_k, d_v: widths of a head; null: as
width / heads. attention_bias, logits_bias: true or false. layer_norm_eps. A null init_std is
Xavier, a null pad_token_id an ordinary row. Absent keys are the paper's base model.
"""

MARIAN_DEFAULTS: Final = {
    "vocab_size": 58101,
    "width": 1024,
    "num_encoder_blocks": 12,
    "num_decoder_blocks": 12,
    "encoder_heads": 16,
    "decoder_heads": 16,
    "encoder_feedforward_width": 4096,
    "decoder_feedforward_width": 4096,
    "activation": "gelu",
    "max_positions": 1024,
    "scaled_embeddings": False,
    "init_std": 0.02,
    "start_id": 58100,
}
"""Of the published class."""

MARIAN_FIXED: Final = {
    "positions": "concatenated",
    "attention_bias": True,
    "logits_bias": True,
    "norm_eps": 1e-5,
}
"""What Marian leaves no choice in."""


def _beyond_marian(config: Config) -> bool:
    widths = [w for w in (config.key_width, config.value_width) if w is not None]
    heads = (config.encoder_heads, config.decoder_heads)
    return (
        any(getattr(config, name) != value for name, value in MARIAN_FIXED.items())
        or any(w * n != config.width for w in widths for n in heads)
        or config.init_std is None
        or config.max_positions is None
    )


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError.

    Marian starts with its padding: where decoder_start_token_id is absent and its default lies
    outside the vocabulary, it is pad_token_id.
    """
    if raw.get("model_type") == "marian":
        own = config_keys.read(raw, KEYS, ignore)
        values: dict[str, Any] = {**MARIAN_DEFAULTS, **own, **MARIAN_FIXED}
        if "pad_token_id" not in raw:
            values["pad_id"] = 58100
        if "decoder_start_token_id" not in raw and values["vocab_size"] <= values["start_id"]:
            values["start_id"] = values["pad_id"]
    else:
        values = config_keys.read(raw, OWN, ignore)
    values["eos_ids"] = config_keys.token_ids(raw, "eos_token_id", Config.eos_ids)
    config = config_keys.build(Config, values)
    if config.shared and config.target_vocab_size == config.vocab_size:  # as files repeat it
        config = dataclasses.replace(config, target_vocab_size=None)
    _check(config)
    return config


def _check(config: Config) -> None:
    config_keys.known_activation(config.activation)
    if config.positions not in POSITIONS:
        raise ConfigError(
            f"position_embedding is {config.positions!r}", advice=f"one of {', '.join(POSITIONS)}"
        )
    if config.positions == "learned" and config.max_positions is None:
        raise ConfigError("learned positions need their number", where="max_position_embeddings")
    for heads in (config.encoder_heads, config.decoder_heads):
        if config.key_width is None or heads == 0:
            config_keys.divides(heads, config.width, "d_model over heads")
    if 0 in (config.num_encoder_blocks, config.num_decoder_blocks):
        raise ConfigError("each stack needs at least one block")
    if config.shared and config.target_vocab_size is not None:
        raise ConfigError(
            f"one table of {config.vocab_size} embeddings cannot serve a target vocabulary of "
            f"{config.target_vocab_size}",
            where="decoder_vocab_size",
        )
    target = config.target_vocab_size if config.target_vocab_size else config.vocab_size
    if config.pad_id is not None and config.pad_id >= min(config.vocab_size, target):
        raise ConfigError(
            f"pad_token_id {config.pad_id} lies outside a vocabulary of {config.vocab_size}",
            where="pad_token_id",
        )
    if config.start_id >= target:
        raise ConfigError(
            f"decoder_start_token_id {config.start_id} lies outside a vocabulary of {target}",
            where="decoder_start_token_id",
            advice="Marian models start with pad_token_id",
        )


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json: of a Marian model where that says all, else of a "transformer"."""
    kind = config.model_type
    raw = config_keys.write(config, KEYS if kind == "marian" else OWN)
    if config.target_vocab_size is None:
        raw["decoder_vocab_size"] = config.vocab_size
    return {
        "architectures": [PUBLISHED[kind] + HEADS[head]],
        "model_type": kind,
        **raw,
        "eos_token_id": config_keys.one_or_list(config.eos_ids),
        "is_encoder_decoder": True,
    }


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub" <-> ours; "transformer" uses Marian's."""
    rules = (*SHARED, *HUB) if config.shared else HUB
    ignored: tuple[str, ...] = ()
    if config.positions == "learned":
        rules = (*rules, *LEARNED)
    else:
        ignored = (r"(model\.)?(encoder|decoder)\.embed_positions\.weight",)
    bare = head == "encoder-decoder"
    return NameTable(
        rules,
        head_rules(HUB_HEADS, head),
        "" if bare else "model.",
        ignored,
        aliases=((r"^model\.", ""),) if bare else (),
    )


_E, _OE = "encoder.layers.{n}", "encoder.blocks.{n}"
_D, _OD = "decoder.layers.{n}", "decoder.blocks.{n}"

SHARED: Final = (rule("shared.weight", "encoder.embeddings.token.weight"),)

LEARNED: Final = (
    rule("encoder.embed_positions.weight", "encoder.embeddings.position.weight"),
    rule("decoder.embed_positions.weight", "decoder.embeddings.position.weight"),
)

HUB: Final = (
    rule("encoder.embed_tokens.weight", "encoder.embeddings.token.weight"),
    rule("decoder.embed_tokens.weight", "decoder.embeddings.token.weight"),
    rule(f"{_E}.self_attn.q_proj.{{p}}", f"{_OE}.attention.query.{{p}}"),
    rule(f"{_E}.self_attn.k_proj.{{p}}", f"{_OE}.attention.key.{{p}}"),
    rule(f"{_E}.self_attn.v_proj.{{p}}", f"{_OE}.attention.value.{{p}}"),
    rule(f"{_E}.self_attn.out_proj.{{p}}", f"{_OE}.attention.output.{{p}}"),
    rule(f"{_E}.self_attn_layer_norm.{{p}}", f"{_OE}.attention_norm.{{p}}"),
    rule(f"{_E}.fc1.{{p}}", f"{_OE}.feedforward.up.{{p}}"),
    rule(f"{_E}.fc2.{{p}}", f"{_OE}.feedforward.down.{{p}}"),
    rule(f"{_E}.final_layer_norm.{{p}}", f"{_OE}.feedforward_norm.{{p}}"),
    rule(f"{_D}.self_attn.q_proj.{{p}}", f"{_OD}.attention.query.{{p}}"),
    rule(f"{_D}.self_attn.k_proj.{{p}}", f"{_OD}.attention.key.{{p}}"),
    rule(f"{_D}.self_attn.v_proj.{{p}}", f"{_OD}.attention.value.{{p}}"),
    rule(f"{_D}.self_attn.out_proj.{{p}}", f"{_OD}.attention.output.{{p}}"),
    rule(f"{_D}.self_attn_layer_norm.{{p}}", f"{_OD}.attention_norm.{{p}}"),
    rule(f"{_D}.encoder_attn.q_proj.{{p}}", f"{_OD}.cross_attention.query.{{p}}"),
    rule(f"{_D}.encoder_attn.k_proj.{{p}}", f"{_OD}.cross_attention.key.{{p}}"),
    rule(f"{_D}.encoder_attn.v_proj.{{p}}", f"{_OD}.cross_attention.value.{{p}}"),
    rule(f"{_D}.encoder_attn.out_proj.{{p}}", f"{_OD}.cross_attention.output.{{p}}"),
    rule(f"{_D}.encoder_attn_layer_norm.{{p}}", f"{_OD}.cross_attention_norm.{{p}}"),
    rule(f"{_D}.fc1.{{p}}", f"{_OD}.feedforward.up.{{p}}"),
    rule(f"{_D}.fc2.{{p}}", f"{_OD}.feedforward.down.{{p}}"),
    rule(f"{_D}.final_layer_norm.{{p}}", f"{_OD}.feedforward_norm.{{p}}"),
)

HUB_HEADS: Final = {
    "conditional-generation": (
        rule("lm_head.weight", "unembedding.weight"),
        rule("final_logits_bias", "head.bias", shape=(1, -1)),
    ),
}
