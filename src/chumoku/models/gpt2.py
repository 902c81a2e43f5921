"""GPT-2 (Radford et al., 2019, "Language Models are Unsupervised Multitask Learners").

A decoder with pre-normalisation and learned positions, whose unembedding is the token embedding.
Published files store each matrix transposed (Conv1D), with query, key and value side by side.

Shape letters: B batch, T query position, S key position, D model width, N heads, H head width,
F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.layers.attention import EMPTY, Attention, Batch, Shape, Visible, positions, visible
from chumoku.layers.cache import Cache
from chumoku.layers.dropout import Dropout
from chumoku.layers.feedforward import FeedForward
from chumoku.layers.ops import linear
from chumoku.layers.taps import ResidualTaps, Tap
from chumoku.models import config_keys, heads
from chumoku.models.names import NameTable, head_rules, rule


@dataclass(frozen=True)
class Config:
    """Defaults are those of the smallest model, 124M.

    dropout: of each sublayer's output; embedding_dropout: of the sum of embeddings.
    scale_attention: divide scores by sqrt(H); scale_by_layer: and by the block's number, from 1.
    upcast_attention: published files may ask for float32 scores in half precision. It is kept for
    saving; here scores have the model's dtype and softmax is always computed in float32 or wider.
    """

    vocab_size: int = 50257
    max_positions: int = 1024
    width: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    feedforward_width: int = 3072
    activation: str = "gelu_new"
    norm_eps: float = 1e-5
    dropout: float = 0.1
    embedding_dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float = 0.1
    scale_attention: bool = True
    scale_by_layer: bool = False
    upcast_attention: bool = False
    tied: bool = True
    init_std: float = 0.02
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None


class Embeddings(nn.Module):
    """Token vector + position vector."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.dropout = Dropout(config.embedding_dropout)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        return self.dropout(self.token(ids_BT) + self.position(positions_BT))  # type: ignore[no-any-return]


def _scale(config: Config, head_width: int, layer: int) -> float:
    scale = head_width**-0.5 if config.scale_attention else 1.0
    return scale / (layer + 1) if config.scale_by_layer else scale


class Block(nn.Module):
    """Pre-normalisation: a sublayer reads the normalised stream and adds to the stream itself."""

    def __init__(self, config: Config, layer: int) -> None:
        super().__init__()
        self.layer = layer
        head_width = config_keys.divides(config.num_heads, config.width, "width over heads")
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(
            Shape(config.width, config.num_heads, head_width),
            scale=_scale(config, head_width, layer),
            dropout=config.attention_dropout,
        )
        self.feedforward_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feedforward = FeedForward(config.width, config.feedforward_width, config.activation)
        self.dropout = Dropout(config.dropout)
        self.residual = ResidualTaps()

    def forward(self, x_BTD: Tensor, seen: Visible, cache: Cache | None) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        q_BNTH, k_BNTH, v_BNTH = self.attention.project(self.attention_norm(x_BTD))
        a_BTD = self.attention(q_BNTH, k_BNTH, v_BNTH, seen, cache=cache, layer=self.layer)
        x_BTD = self.residual.attention(x_BTD + self.dropout(a_BTD))
        f_BTD = self.feedforward(self.feedforward_norm(x_BTD))
        return self.residual.feedforward(x_BTD + self.dropout(f_BTD))  # type: ignore[no-any-return]


class Model(nn.Module):
    """head: a name of HEADS; "encoder" is the bare stack and returns the last hidden states."""

    def __init__(self, config: Config, head: str = "causal-lm") -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config, n) for n in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
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

    def hidden(
        self, ids_BT: Tensor, mask_BS: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor:
        """The stack, up to and with the final norm: [B, T, D]."""
        x_BTD = self.embeddings(ids_BT, positions(ids_BT, mask_BS, batch))
        seen = visible(ids_BT, mask_BS, batch, causal=True)
        for block in self.blocks:
            x_BTD = block(x_BTD, seen, batch.cache)
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
    """Matrices and embeddings N(0, init_std), biases 0, norms 1.

    The two projections of a block that add to the residual stream are drawn with a standard
    deviation smaller by sqrt(number of additions) = sqrt(2 L) (section 2.3).
    """
    config = model.config
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    for name, weight in model.blocks.named_parameters():
        if name.endswith((".attention.output.weight", ".feedforward.down.weight")):
            nn.init.normal_(weight, std=config.init_std / math.sqrt(2 * config.num_blocks))


# ---- published files ----

HEADS: Final = {
    "causal-lm": "LMHeadModel",
    "encoder": "Model",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
}
"""Our head -> the published class name after "GPT2"."""

PUBLISHED: Final = {"gpt2": "GPT2"}

OPTIONAL: Final = ()
"""No file leaves a module out."""

KEYS: Final = config_keys.Keys(
    reads={
        "vocab_size": "vocab_size",
        "n_positions": "max_positions",
        "n_embd": "width",
        "n_layer": "num_blocks",
        "n_head": "num_heads",
        "n_inner": "feedforward_width",
        "activation_function": "activation",
        "layer_norm_epsilon": "norm_eps",
        "resid_pdrop": "dropout",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
        "classifier_dropout": "classifier_dropout",
        "scale_attn_weights": "scale_attention",
        "scale_attn_by_inverse_layer_idx": "scale_by_layer",
        "reorder_and_upcast_attn": "upcast_attention",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "problem_type": "problem_type",
        # The published class also takes these spellings.
        "max_position_embeddings": "max_positions",
        "hidden_size": "width",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
        "hidden_dropout": "classifier_dropout",
    },
    fixed={"is_decoder": (False, True), "add_cross_attention": (False,), "model_type": ("gpt2",)},
    harmless=frozenset(
        {"n_ctx", "predict_special_tokens", "summary_type", "summary_use_proj"}
        | {"summary_activation", "summary_proj_to_labels", "summary_first_dropout"}
    ),
)
"""summary_* belong to the double-heads class alone, which is not supported."""


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError."""
    values = config_keys.read(raw, KEYS, ignore)
    config = config_keys.build(Config, {**values, "labels": config_keys.labels(raw)})
    if "feedforward_width" not in values:
        config = dataclasses.replace(config, feedforward_width=4 * config.width)
    config_keys.divides(config.num_heads, config.width, "width over heads")
    config_keys.known_activation(config.activation)
    return config


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json."""
    raw = {"model_type": "gpt2", **config_keys.write(config, KEYS)}
    labels = config_keys.write_labels(config.labels)
    return {"architectures": [PUBLISHED["gpt2"] + HEADS[head]], **raw, **labels}


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub" or "gguf" <-> ours."""
    if layout == "gguf":
        return NameTable(GGUF, aliases=((r"^pos_embd\.", "position_embd."),))
    ignored = (r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias",)
    return NameTable(HUB, head_rules(HUB_HEADS, head), "transformer.", ignored)


_A = "blocks.{n}.attention"
_F = "blocks.{n}.feedforward"
_QKV = (f"{_A}.query.{{p}}", f"{_A}.key.{{p}}", f"{_A}.value.{{p}}")

HUB: Final = (
    rule("wte.weight", "embeddings.token.weight"),
    rule("wpe.weight", "embeddings.position.weight"),
    rule("h.{n}.ln_1.{p}", f"{_A}_norm.{{p}}"),
    rule("h.{n}.attn.c_attn.{p}", *_QKV, transposed=True),
    rule("h.{n}.attn.c_proj.{p}", f"{_A}.output.{{p}}", transposed=True),
    rule("h.{n}.ln_2.{p}", f"{_F}_norm.{{p}}"),
    rule("h.{n}.mlp.c_fc.{p}", f"{_F}.up.{{p}}", transposed=True),
    rule("h.{n}.mlp.c_proj.{p}", f"{_F}.down.{{p}}", transposed=True),
    rule("ln_f.{p}", "final_norm.{p}"),
)

HUB_HEADS: Final = {
    "causal-lm": (rule("lm_head.weight", "unembedding.weight"),),
    "classification": (rule("score.weight", "head.output.weight"),),
    "token-classification": (rule("classifier.{p}", "head.output.{p}"),),
    "question-answering": (rule("qa_outputs.{p}", "head.output.{p}"),),
}

GGUF: Final = (
    rule("token_embd.weight", "embeddings.token.weight"),
    rule("position_embd.weight", "embeddings.position.weight"),
    rule("blk.{n}.attn_norm.{p}", f"{_A}_norm.{{p}}"),
    rule("blk.{n}.attn_qkv.{p}", *_QKV),
    rule("blk.{n}.attn_output.{p}", f"{_A}.output.{{p}}"),
    rule("blk.{n}.ffn_norm.{p}", f"{_F}_norm.{{p}}"),
    rule("blk.{n}.ffn_up.{p}", f"{_F}.up.{{p}}"),
    rule("blk.{n}.ffn_down.{p}", f"{_F}.down.{{p}}"),
    rule("output_norm.{p}", "final_norm.{p}"),
    rule("output.weight", "unembedding.weight"),
)
