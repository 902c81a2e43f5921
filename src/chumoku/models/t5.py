"""T5 (Raffel et al., 1910.10683): v1.0, v1.1 and FLAN, mT5 (2010.11934), ByT5 (2105.13626).

An encoder-decoder with pre-normalisation (RMSNorm), no biases and no 1 / sqrt(d_k). Position enters
as one learned number for each bucket of distance and each head; all blocks of a stack share the
table of its first. v1.1 gates its feed-forward layer and separates the output matrix.

Shape letters: B batch, T query position, S key position, D model width, N heads, H head width,
F feed-forward width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import (
    EMPTY,
    Attention,
    Batch,
    Shape,
    Visible,
    refuse_packing,
    visible,
)
from chumoku.layers.cache import Cache
from chumoku.layers.dropout import Dropout
from chumoku.layers.feedforward import FeedForward, GatedFeedForward
from chumoku.layers.memory import Memory
from chumoku.layers.norms import RMSNorm
from chumoku.layers.ops import linear, scaled
from chumoku.layers.positions import relative_buckets
from chumoku.layers.taps import CrossResidualTaps, ResidualTaps, Tap
from chumoku.models import config_keys
from chumoku.models.heads import SpanHead, Spans, TokenHead, last_token, unknown_head
from chumoku.models.names import NameTable, head_rules, rule


@dataclass(frozen=True)
class Config:
    """Defaults are T5-small's (v1.0). model_type: "t5" or "mt5".

    num_blocks: of the encoder. scaled_logits: hidden states are multiplied by width^-0.5 before the
    output matrix (v1.0, where that matrix is the embedding). start_id: the decoder's first token.
    """

    vocab_size: int = 32128
    width: int = 512
    head_width: int = 64
    feedforward_width: int = 2048
    num_blocks: int = 6
    num_decoder_blocks: int = 6
    num_heads: int = 8
    relative_buckets: int = 32
    relative_distance: int = 128
    activation: str = "relu"
    gated: bool = False
    norm_eps: float = 1e-6
    dropout: float = 0.1
    classifier_dropout: float = 0.0
    tied: bool = True
    scaled_logits: bool = True
    init_factor: float = 1.0
    pad_id: int = 0
    start_id: int = 0
    eos_ids: tuple[int, ...] = (1,)
    model_type: str = "t5"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None


class Embeddings(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)

    def forward(self, ids_BT: Tensor) -> Tensor:
        return self.token(ids_BT)  # type: ignore[no-any-return]


class RelativeBias(nn.Module):
    """A number for each bucket of distance and each head, added to the scores (section 2.1)."""

    def __init__(self, config: Config, causal: bool) -> None:
        super().__init__()
        self.buckets, self.distance = config.relative_buckets, config.relative_distance
        self.causal = causal
        self.weight = nn.Parameter(torch.zeros(config.relative_buckets, config.num_heads))

    def forward(self, T: int, S: int) -> Tensor:
        """bias_BNTS, with B = 1; the T queries are the last T of the S positions."""
        buckets_TS = relative_buckets(
            T,
            S,
            buckets=self.buckets,
            distance=self.distance,
            causal=self.causal,
            device=self.weight.device,
        )
        return F.embedding(buckets_TS, self.weight).permute(2, 0, 1).unsqueeze(0)


def _attention(config: Config) -> Attention:
    shape = Shape(config.width, config.num_heads, config.head_width)
    return Attention(shape, bias=False, scale=1.0, dropout=config.dropout)


def _feedforward(config: Config) -> FeedForward | GatedFeedForward:
    kind = GatedFeedForward if config.gated else FeedForward
    return kind(
        config.width,
        config.feedforward_width,
        config.activation,
        bias=False,
        dropout=config.dropout,
    )


class EncoderBlock(nn.Module):
    """first: its attention holds the table of position that the whole stack uses."""

    def __init__(self, config: Config, first: bool) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = _attention(config)
        if first:
            self.attention.relative_bias = RelativeBias(config, causal=False)
        self.feedforward_norm = RMSNorm(config.width, config.norm_eps)
        self.feedforward = _feedforward(config)
        self.dropout = Dropout(config.dropout)
        self.residual = ResidualTaps()

    def forward(self, x_BTD: Tensor, bias_BNTS: Tensor, seen: Visible) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        q_BNTH, k_BNTH, v_BNTH = self.attention.project(self.attention_norm(x_BTD))
        a_BTD = self.attention(q_BNTH, k_BNTH, v_BNTH, seen, bias_BNTS=bias_BNTS)
        x_BTD = self.residual.attention(x_BTD + self.dropout(a_BTD))
        f_BTD = self.feedforward(self.feedforward_norm(x_BTD))
        return self.residual.feedforward(x_BTD + self.dropout(f_BTD))  # type: ignore[no-any-return]


class DecoderBlock(nn.Module):
    """As EncoderBlock, causal, and with attention to the source between its two halves."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = _attention(config)
        if layer == 0:
            self.attention.relative_bias = RelativeBias(config, causal=True)
        self.cross_attention_norm = RMSNorm(config.width, config.norm_eps)
        self.cross_attention = _attention(config)
        self.feedforward_norm = RMSNorm(config.width, config.norm_eps)
        self.feedforward = _feedforward(config)
        self.dropout = Dropout(config.dropout)
        self.residual = CrossResidualTaps()

    def forward(
        self,
        x_BTD: Tensor,
        bias_BNTS: Tensor,
        seen: Visible,
        memory: Memory,
        cache: Cache | None,
    ) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        q_BNTH, k_BNTH, v_BNTH = self.attention.project(self.attention_norm(x_BTD))
        a_BTD = self.attention(
            q_BNTH, k_BNTH, v_BNTH, seen, bias_BNTS=bias_BNTS, cache=cache, layer=self.layer
        )
        x_BTD = self.residual.attention(x_BTD + self.dropout(a_BTD))
        q_BNTH = self.cross_attention.project_query(self.cross_attention_norm(x_BTD))
        k_BNSH, v_BNSH = memory.keys[self.layer], memory.values[self.layer]
        c_BTD = self.cross_attention(q_BNTH, k_BNSH, v_BNSH, memory.visible)
        x_BTD = self.residual.cross_attention(x_BTD + self.dropout(c_BTD))
        f_BTD = self.feedforward(self.feedforward_norm(x_BTD))
        return self.residual.feedforward(x_BTD + self.dropout(f_BTD))  # type: ignore[no-any-return]


class Encoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(EncoderBlock(config, n == 0) for n in range(config.num_blocks))
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor | None) -> Tensor:
        """Last hidden states, [B, T, D]."""
        T = ids_BT.shape[1]
        bias_BNTT = self.get_submodule("blocks.0.attention.relative_bias")(T, T)
        seen = visible(ids_BT, mask_BT, EMPTY, causal=False)
        x_BTD = self.dropout(self.embeddings(ids_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD, bias_BNTT, seen)
        return self.dropout(self.final_norm(x_BTD))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(
            DecoderBlock(config, n) for n in range(config.num_decoder_blocks)
        )
        self.final_norm = RMSNorm(config.width, config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(
        self, ids_BT: Tensor, memory: Memory, mask_BS: Tensor | None, batch: Batch
    ) -> Tensor:
        """Last hidden states, [B, T, D]."""
        T = ids_BT.shape[1]
        bias_BNTS = self.get_submodule("blocks.0.attention.relative_bias")(T, batch.past + T)
        seen = visible(ids_BT, mask_BS, batch, causal=True)
        x_BTD = self.dropout(self.embeddings(ids_BT))
        for block in self.blocks:
            x_BTD = block(x_BTD, bias_BNTS, seen, memory, batch.cache)
        return self.dropout(self.final_norm(x_BTD))  # type: ignore[no-any-return]


class ClassificationHead(nn.Module):
    """Dropout, W, tanh, dropout, W on the state at the last end token of each row: [B, C]."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor, ends_BT: Tensor) -> Tensor:
        if not bool(ends_BT.any(dim=1).all()):
            raise InputError(
                "a row has no end token, at which T5 classifies",
                advice="encode the source with special tokens",
            )
        rows_B = torch.arange(x_BTD.shape[0], device=x_BTD.device)
        end_BD = x_BTD[rows_B, last_token(x_BTD, ends_BT)]
        hidden_BD = torch.tanh(self.transform(self.dropout(end_BD)))
        return self.output(self.dropout(hidden_BD))  # type: ignore[no-any-return]


HEADS: Final = {
    "conditional-generation": "ForConditionalGeneration",
    "encoder": "EncoderModel",
    "encoder-decoder": "Model",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
"""Our head -> the published class name after "T5" or "MT5"."""

PUBLISHED: Final = {"t5": "T5", "mt5": "MT5"}

OPTIONAL: Final = ()
"""No file leaves a module out."""


class EncoderModel(nn.Module):
    """The encoder alone: bare (last hidden states), or with a class for each token."""

    def __init__(self, config: Config, head: str) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.head: TokenHead | None = None
        if head == "token-classification":
            self.head = TokenHead(config.width, len(config.labels), config.classifier_dropout)
        self.head_name = head
        self.logits = Tap()

    def hidden(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor:
        """Last hidden states, [B, T, D]."""
        refuse_packing(batch)
        return self.encoder(ids_BT, mask_BT)  # type: ignore[no-any-return]

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor:
        """Hidden states [B, T, D], or logits [B, T, C]."""
        x_BTD = self.hidden(ids_BT, mask_BT, batch=batch)
        return x_BTD if self.head is None else self.logits(self.head(x_BTD, mask_BT))


class EncoderDecoder(nn.Module):
    """Both stacks; they share one table of token embeddings."""

    def __init__(self, config: Config, head: str) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.decoder.embeddings.token.weight = self.encoder.embeddings.token.weight
        self.unembedding: nn.Linear | None = None
        if head == "conditional-generation":
            self.unembedding = nn.Linear(config.width, config.vocab_size, bias=False)
            if config.tied:
                self.unembedding.weight = self.encoder.embeddings.token.weight
        self.head = _head(head, config)
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
        """The decoder's last hidden states, [B, T, D]. target_mask: [B, S] with a cache."""
        refuse_packing(batch)
        return self.decoder(target_BT, memory, target_mask, batch)  # type: ignore[no-any-return]

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """Hidden states -> logits_BTV."""
        if self.unembedding is None:
            raise InputError(f"a model with head {self.head_name!r} has no vocabulary logits")
        factor = self.config.width**-0.5 if self.config.scaled_logits else 1.0
        return self.logits(linear(scaled(x_BTD, factor), self.unembedding))  # type: ignore[no-any-return]

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
        target_BT: Tensor | None = None,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        *,
        batch: Batch = EMPTY,
    ) -> Tensor | Spans:
        """logits_BTV; with another head what that head gives; bare: hidden states [B, T, D].

        Classification and question answering read the source twice: without a target, the decoder's
        input is the source shifted by one.
        """
        if target_BT is None:
            if self.head is None:
                raise InputError("an encoder-decoder needs a target beside its source")
            target_BT = shift_right(source_BS, self.config.start_id)
        memory = self.encode(source_BS, source_mask)
        x_BTD = self.decode_hidden(target_BT, memory, target_mask, batch=batch)
        if self.unembedding is not None:
            return self.unembed(x_BTD)
        if self.head is None:
            return x_BTD
        ends_BS = torch.isin(source_BS, torch.tensor(self.config.eos_ids, device=source_BS.device))
        answer = self.head(x_BTD, ends_BS)
        return self.logits(answer) if isinstance(answer, Tensor) else answer  # type: ignore[no-any-return]


def _head(head: str, config: Config) -> nn.Module | None:
    if head in ("conditional-generation", "encoder-decoder"):
        return None
    if head == "classification":
        return ClassificationHead(config.width, len(config.labels), config.classifier_dropout)
    if head == "question-answering":
        return SpanHead(config.width)
    raise unknown_head(head, tuple(HEADS))


def shift_right(ids_BT: Tensor, start_id: int) -> Tensor:
    """The decoder's input while training: the start token, then all but the last (section 2.1)."""
    return F.pad(ids_BT[:, :-1], (1, 0), value=start_id)


def Model(config: Config, head: str = "conditional-generation") -> EncoderDecoder | EncoderModel:
    """head: a name of HEADS; "encoder" and "token-classification" have no decoder."""
    if head in ("encoder", "token-classification"):
        return EncoderModel(config, head)
    return EncoderDecoder(config, head)


def initialise(model: EncoderDecoder | EncoderModel) -> None:
    """Normal with a deviation for each kind of matrix, times init_factor (published code).

    The query's holds the 1 / sqrt(d_k) that the scores lack; embeddings have deviation 1.
    """
    config = model.config
    width, inner = config.width**-0.5, (config.num_heads * config.head_width) ** -0.5

    def draw(module: nn.Module, deviation: float) -> None:
        nn.init.normal_(module.weight, std=config.init_factor * deviation)  # type: ignore[arg-type]

    for module in model.modules():
        if isinstance(module, RMSNorm):
            nn.init.constant_(module.weight, config.init_factor)
        elif isinstance(module, RelativeBias):
            draw(module, width)
        elif isinstance(module, Attention):
            draw(module.query, width * config.head_width**-0.5)
            draw(module.key, width)
            draw(module.value, width)
            draw(module.output, inner)
        elif isinstance(module, FeedForward | GatedFeedForward):
            draw(module.up, width)
            draw(module.down, config.feedforward_width**-0.5)
            if isinstance(module, GatedFeedForward):
                draw(module.gate, width)
        elif isinstance(module, nn.Embedding):
            draw(module, 1.0)
    if isinstance(model, EncoderDecoder) and model.unembedding is not None and not config.tied:
        draw(model.unembedding, 1.0)
    if model.head is not None:
        for module in model.head.modules():
            if isinstance(module, nn.Linear):
                draw(module, 1.0 if model.head_name == "token-classification" else width)
                nn.init.zeros_(module.bias)


# ---- published files ----


KEYS: Final = config_keys.Keys(
    reads={
        "vocab_size": "vocab_size",
        "d_model": "width",
        "d_kv": "head_width",
        "d_ff": "feedforward_width",
        "num_layers": "num_blocks",
        "num_decoder_layers": "num_decoder_blocks",
        "num_heads": "num_heads",
        "relative_attention_num_buckets": "relative_buckets",
        "relative_attention_max_distance": "relative_distance",
        "layer_norm_epsilon": "norm_eps",
        "dropout_rate": "dropout",
        "classifier_dropout": "classifier_dropout",
        "initializer_factor": "init_factor",
        "pad_token_id": "pad_id",
        "decoder_start_token_id": "start_id",
        "model_type": "model_type",
        "problem_type": "problem_type",
        # The published class takes these names for the same values.
        "hidden_size": "width",
        "head_dim": "head_width",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
    },
    fixed={
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "tie_encoder_decoder": (False,),
    },
    special=frozenset(
        {"feed_forward_proj", "dense_act_fn", "is_gated_act", "eos_token_id"}
        | {"tie_word_embeddings", "scale_decoder_outputs"}
    ),
    harmless=frozenset({"n_positions"}),
)

MT5_DEFAULTS: Final = {
    "vocab_size": 250112,
    "feedforward_width": 1024,
    "num_blocks": 8,
    "num_heads": 6,
}
"""Where the published class of mT5 differs from T5's."""


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError."""
    values = config_keys.read(raw, KEYS, ignore)
    if values.get("model_type") == "mt5":
        values = MT5_DEFAULTS | values
    values.setdefault("num_decoder_blocks", values.get("num_blocks", Config.num_blocks))
    values.setdefault("start_id", values.get("pad_id", Config.pad_id))
    values["activation"], values["gated"] = _feedforward_kind(raw)
    values["tied"], values["scaled_logits"] = _output(raw)
    values["eos_ids"] = config_keys.token_ids(raw, "eos_token_id", Config.eos_ids)
    config = config_keys.build(Config, {**values, "labels": config_keys.labels(raw)})
    config_keys.known_activation(config.activation)
    if config.model_type not in PUBLISHED:
        raise ConfigError(f"model_type {config.model_type!r} is not T5 or mT5")
    if 0 in (config.num_blocks, config.num_decoder_blocks, config.num_heads, config.head_width):
        raise ConfigError("T5 needs at least one block a stack, one head, and a head width")
    if config.relative_buckets < 4 or config.relative_distance <= config.relative_buckets // 2:
        raise ConfigError(
            f"{config.relative_buckets} buckets up to distance {config.relative_distance} "
            "cannot be spaced",
            where="relative_attention_num_buckets",
        )
    return config


def _feedforward_kind(raw: Mapping[str, Any]) -> tuple[str, bool]:
    """Activation and whether it gates, from "relu", "gated-gelu", … and the keys derived of it."""
    kind = raw.get("feed_forward_proj")
    if kind is None:
        kind = "gated-gelu" if raw.get("model_type") == "mt5" else "relu"
    parts = str(kind).split("-")
    if len(parts) > 2 or (len(parts) == 2 and parts[0] != "gated"):
        raise ConfigError(
            f"feed_forward_proj is {kind!r}; it must be an activation or gated-<activation>",
            where="feed_forward_proj",
        )
    # By "gated-gelu" the published code means the tanh approximation, by "gelu" the exact function.
    activation = "gelu_new" if kind == "gated-gelu" else parts[-1]
    gated = len(parts) == 2
    derived = {"dense_act_fn": activation, "is_gated_act": gated}
    for key, value in derived.items():
        if raw.get(key, value) != value:
            raise ConfigError(
                f"{key} is {raw[key]!r}, but feed_forward_proj is {kind!r}", where=key
            )
    return activation, gated


def _output(raw: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether the output matrix is the embedding, and whether its input is scaled.

    One key once said both; transformers 5 writes tie_word_embeddings as true everywhere, keeps what
    it meant in scale_decoder_outputs for T5, and never scales for mT5.
    """
    multilingual = raw.get("model_type") == "mt5"
    tied = raw.get("tie_word_embeddings")
    tied = not multilingual if tied is None else tied
    scaled_ = raw.get("scale_decoder_outputs")
    if scaled_ is None:
        recent = str(raw.get("transformers_version", "4")).split(".")[0] not in ("2", "3", "4")
        scaled_ = tied and not (multilingual and recent)
    return tied, scaled_


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json."""
    kind = config.activation
    if config.gated:
        # "gated-gelu" names another function; this is the exact one's other name.
        kind = {"gelu_new": "gelu", "gelu": "gelu_python"}.get(kind, kind)
    return {
        "architectures": [PUBLISHED[config.model_type] + HEADS[head]],
        **config_keys.write(config, KEYS),
        "feed_forward_proj": f"gated-{kind}" if config.gated else kind,
        "tie_word_embeddings": config.tied,
        "scale_decoder_outputs": config.scaled_logits,
        "eos_token_id": config_keys.one_or_list(config.eos_ids),
        "is_encoder_decoder": head not in ("encoder", "token-classification"),
        **config_keys.write_labels(config.labels),
    }


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub" <-> ours."""
    ignored = (r".*\.EncDecAttention\.relative_attention_bias\.weight",)  # never read
    prefix = "transformer." if head in ("classification", "token-classification") else ""
    aliases = () if prefix else ((r"^transformer\.", ""),)
    rules = (*HUB, *(GATED if config.gated else PLAIN))
    return NameTable(rules, head_rules(HUB_HEADS, head), prefix, ignored, aliases)


_E, _OE = "encoder.block.{n}.layer", "encoder.blocks.{n}"
_D, _OD = "decoder.block.{n}.layer", "decoder.blocks.{n}"
_BIAS = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"

HUB: Final = (
    rule("shared.weight", "encoder.embeddings.token.weight"),
    rule("encoder.embed_tokens.weight", "encoder.embeddings.token.weight"),
    rule("decoder.embed_tokens.weight", "decoder.embeddings.token.weight"),
    rule(f"encoder.{_BIAS}", "encoder.blocks.0.attention.relative_bias.weight"),
    rule(f"{_E}.0.SelfAttention.q.weight", f"{_OE}.attention.query.weight"),
    rule(f"{_E}.0.SelfAttention.k.weight", f"{_OE}.attention.key.weight"),
    rule(f"{_E}.0.SelfAttention.v.weight", f"{_OE}.attention.value.weight"),
    rule(f"{_E}.0.SelfAttention.o.weight", f"{_OE}.attention.output.weight"),
    rule(f"{_E}.0.layer_norm.weight", f"{_OE}.attention_norm.weight"),
    rule(f"{_E}.1.DenseReluDense.wo.weight", f"{_OE}.feedforward.down.weight"),
    rule(f"{_E}.1.layer_norm.weight", f"{_OE}.feedforward_norm.weight"),
    rule("encoder.final_layer_norm.weight", "encoder.final_norm.weight"),
    rule(f"decoder.{_BIAS}", "decoder.blocks.0.attention.relative_bias.weight"),
    rule(f"{_D}.0.SelfAttention.q.weight", f"{_OD}.attention.query.weight"),
    rule(f"{_D}.0.SelfAttention.k.weight", f"{_OD}.attention.key.weight"),
    rule(f"{_D}.0.SelfAttention.v.weight", f"{_OD}.attention.value.weight"),
    rule(f"{_D}.0.SelfAttention.o.weight", f"{_OD}.attention.output.weight"),
    rule(f"{_D}.0.layer_norm.weight", f"{_OD}.attention_norm.weight"),
    rule(f"{_D}.1.EncDecAttention.q.weight", f"{_OD}.cross_attention.query.weight"),
    rule(f"{_D}.1.EncDecAttention.k.weight", f"{_OD}.cross_attention.key.weight"),
    rule(f"{_D}.1.EncDecAttention.v.weight", f"{_OD}.cross_attention.value.weight"),
    rule(f"{_D}.1.EncDecAttention.o.weight", f"{_OD}.cross_attention.output.weight"),
    rule(f"{_D}.1.layer_norm.weight", f"{_OD}.cross_attention_norm.weight"),
    rule(f"{_D}.2.DenseReluDense.wo.weight", f"{_OD}.feedforward.down.weight"),
    rule(f"{_D}.2.layer_norm.weight", f"{_OD}.feedforward_norm.weight"),
    rule("decoder.final_layer_norm.weight", "decoder.final_norm.weight"),
)

PLAIN: Final = (
    rule(f"{_E}.1.DenseReluDense.wi.weight", f"{_OE}.feedforward.up.weight"),
    rule(f"{_D}.2.DenseReluDense.wi.weight", f"{_OD}.feedforward.up.weight"),
)

GATED: Final = (
    rule(f"{_E}.1.DenseReluDense.wi_0.weight", f"{_OE}.feedforward.gate.weight"),
    rule(f"{_E}.1.DenseReluDense.wi_1.weight", f"{_OE}.feedforward.up.weight"),
    rule(f"{_D}.2.DenseReluDense.wi_0.weight", f"{_OD}.feedforward.gate.weight"),
    rule(f"{_D}.2.DenseReluDense.wi_1.weight", f"{_OD}.feedforward.up.weight"),
)

HUB_HEADS: Final = {
    "conditional-generation": (rule("lm_head.weight", "unembedding.weight"),),
    "classification": (
        rule("classification_head.dense.{p}", "head.transform.{p}"),
        rule("classification_head.out_proj.{p}", "head.output.{p}"),
    ),
    "token-classification": (rule("classifier.{p}", "head.output.{p}"),),
    "question-answering": (rule("qa_outputs.{p}", "head.output.{p}"),),
}
