"""DistilBERT (Sanh et al., 1910.01108): BERT at half depth, without segments and without pooler.

It is trained to give what its teacher gives. Its classifiers read the first token through a layer
of their own.

Shape letters: B batch, T position, D model width, F feed-forward width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.layers.attention import EMPTY, Attention, Batch, Shape, Visible, positions, visible
from chumoku.layers.dropout import Dropout
from chumoku.layers.feedforward import FeedForward
from chumoku.layers.ops import ACTIVATIONS
from chumoku.layers.positions import sinusoids
from chumoku.layers.taps import ResidualTaps, Tap
from chumoku.models import config_keys
from chumoku.models.heads import SpanHead, Spans, TokenHead, unknown_head
from chumoku.models.names import NameTable, head_rules, rule

NORM_EPS: Final = 1e-12
"""Of every norm; the published config has no key for it."""


@dataclass(frozen=True)
class Config:
    """Defaults are distilbert-base-uncased's.

    sinusoidal: a new model starts from the sinusoids of 1706.03762; a stored table is not changed.
    """

    vocab_size: int = 30522
    max_positions: int = 512
    width: int = 768
    num_blocks: int = 6
    num_heads: int = 12
    feedforward_width: int = 3072
    activation: str = "gelu"
    dropout: float = 0.1
    attention_dropout: float = 0.1
    span_dropout: float = 0.1
    classifier_dropout: float = 0.2
    sinusoidal: bool = False
    pad_id: int = 0
    tied: bool = True
    init_std: float = 0.02
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None


class Embeddings(nn.Module):
    """Sum of token and position vectors, normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids_BT: Tensor, positions_BT: Tensor) -> Tensor:
        x_BTD = self.token(ids_BT) + self.position(positions_BT)
        return self.dropout(self.norm(x_BTD))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Post-normalisation. The attention's output has no dropout, unlike BERT's."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        head_width = config_keys.divides(config.num_heads, config.width, "width over heads")
        shape = Shape(config.width, config.num_heads, head_width)
        self.attention = Attention(shape, dropout=config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.feedforward = FeedForward(config.width, config.feedforward_width, config.activation)
        self.feedforward_norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.dropout = Dropout(config.dropout)
        self.residual = ResidualTaps()

    def forward(self, x_BTD: Tensor, seen: Visible) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        a_BTD = self.attention(*self.attention.project(x_BTD), seen)
        x_BTD = self.residual.attention(self.attention_norm(a_BTD + x_BTD))
        f_BTD = self.dropout(self.feedforward(x_BTD))
        return self.residual.feedforward(self.feedforward_norm(f_BTD + x_BTD))  # type: ignore[no-any-return]


class MaskedLMHead(nn.Module):
    """norm(f(W h)) E^T + b, where E is the token embedding: [B, T, V]."""

    def __init__(self, config: Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.output.weight = embedding.weight
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        hidden_BTD = self.norm(self.activation(self.transform(x_BTD)))
        return self.output(hidden_BTD) + self.bias  # type: ignore[no-any-return]


class FirstTokenHead(nn.Module):
    """W dropout(relu(W' h)) of the first token: [B, C]."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        hidden_BD = F.relu(self.transform(x_BTD[:, 0]))
        return self.output(self.dropout(hidden_BD))  # type: ignore[no-any-return]


HEADS: Final = {
    "encoder": "Model",
    "masked-lm": "ForMaskedLM",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}
"""Our head -> the published class name after "DistilBert"."""

PUBLISHED: Final = {"distilbert": "DistilBert"}

OPTIONAL: Final = ()
"""No file leaves a module out."""


def _head(head: str, config: Config, embedding: nn.Embedding) -> nn.Module | None:
    classes = len(config.labels)
    if head == "encoder":
        return None
    if head == "masked-lm":
        return MaskedLMHead(config, embedding)
    if head == "classification":
        return FirstTokenHead(config.width, classes, config.classifier_dropout)
    if head == "token-classification":
        return TokenHead(config.width, classes, config.dropout)
    if head == "question-answering":
        return SpanHead(config.width, config.span_dropout)
    if head == "multiple-choice":
        return FirstTokenHead(config.width, 1, config.classifier_dropout)
    raise unknown_head(head, tuple(HEADS))


class Model(nn.Module):
    """head: a name of HEADS; "encoder" is the bare stack and returns the last hidden states."""

    def __init__(self, config: Config, head: str = "encoder") -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.head_name = head
        self.head = _head(head, config, self.embeddings.token)
        self.logits = Tap()

    def hidden(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor:
        """Last hidden states, [B, T, D]. There are no segments; batch.segments_BT is not read."""
        x_BTD = self.embeddings(ids_BT, positions(ids_BT, mask_BT, batch))
        seen = visible(ids_BT, mask_BT, batch, causal=False)
        for block in self.blocks:
            x_BTD = block(x_BTD, seen)
        return x_BTD  # type: ignore[no-any-return]

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor | Spans:
        """What the head gives; bare: hidden states [B, T, D]. Multiple choice: ids [B, C, T]."""
        if self.head_name == "multiple-choice":
            B, C = ids_BT.shape[:2]
            mask_BT = None if mask_BT is None else mask_BT.flatten(0, 1)
            return self._answer(ids_BT.flatten(0, 1), mask_BT, EMPTY).view(B, C)  # type: ignore[union-attr]
        return self._answer(ids_BT, mask_BT, batch)

    def _answer(self, ids_BT: Tensor, mask_BT: Tensor | None, batch: Batch) -> Tensor | Spans:
        x_BTD = self.hidden(ids_BT, mask_BT, batch=batch)
        if self.head is None:
            return x_BTD
        answer = self.head(x_BTD, mask_BT)
        return self.logits(answer) if isinstance(answer, Tensor) else answer  # type: ignore[no-any-return]


def initialise(model: Model) -> None:
    """Matrices and embeddings N(0, init_std), biases 0, norms 1 (published code)."""
    config = model.config
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
    if config.sinusoidal:
        table = model.embeddings.position.weight
        places = torch.arange(config.max_positions, device=table.device)
        with torch.no_grad():
            table.copy_(sinusoids(places, config.width, interleaved=True, dtype=table.dtype))


# ---- published files ----

KEYS: Final = config_keys.Keys(
    reads={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_positions",
        "dim": "width",
        "n_layers": "num_blocks",
        "n_heads": "num_heads",
        "hidden_dim": "feedforward_width",
        "activation": "activation",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "qa_dropout": "span_dropout",
        "seq_classif_dropout": "classifier_dropout",
        "sinusoidal_pos_embds": "sinusoidal",
        "pad_token_id": "pad_id",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "problem_type": "problem_type",
        # The published class also takes these spellings.
        "hidden_size": "width",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
    },
    fixed={
        "is_decoder": (False,),
        "add_cross_attention": (False,),
        "model_type": ("distilbert",),
    },
    harmless=frozenset({"tie_weights_"}),
)


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError."""
    values = config_keys.read(raw, KEYS, ignore)
    config = config_keys.build(Config, {**values, "labels": config_keys.labels(raw)})
    config_keys.divides(config.num_heads, config.width, "width over heads")
    config_keys.known_activation(config.activation)
    return config


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json."""
    raw = {"model_type": "distilbert", **config_keys.write(config, KEYS)}
    labels = config_keys.write_labels(config.labels)
    return {"architectures": [PUBLISHED["distilbert"] + HEADS[head]], **raw, **labels}


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub" <-> ours."""
    ignored = (r".*embeddings\.position_ids",)
    return NameTable(HUB, head_rules(HUB_HEADS, head), "distilbert.", ignored)


_A = "blocks.{n}.attention"
_F = "blocks.{n}.feedforward"

HUB: Final = (
    rule("embeddings.word_embeddings.weight", "embeddings.token.weight"),
    rule("embeddings.position_embeddings.weight", "embeddings.position.weight"),
    rule("embeddings.LayerNorm.{p}", "embeddings.norm.{p}"),
    rule("transformer.layer.{n}.attention.q_lin.{p}", f"{_A}.query.{{p}}"),
    rule("transformer.layer.{n}.attention.k_lin.{p}", f"{_A}.key.{{p}}"),
    rule("transformer.layer.{n}.attention.v_lin.{p}", f"{_A}.value.{{p}}"),
    rule("transformer.layer.{n}.attention.out_lin.{p}", f"{_A}.output.{{p}}"),
    rule("transformer.layer.{n}.sa_layer_norm.{p}", f"{_A}_norm.{{p}}"),
    rule("transformer.layer.{n}.ffn.lin1.{p}", f"{_F}.up.{{p}}"),
    rule("transformer.layer.{n}.ffn.lin2.{p}", f"{_F}.down.{{p}}"),
    rule("transformer.layer.{n}.output_layer_norm.{p}", f"{_F}_norm.{{p}}"),
)

_FIRST_TOKEN: Final = (
    rule("pre_classifier.{p}", "head.transform.{p}"),
    rule("classifier.{p}", "head.output.{p}"),
)

HUB_HEADS: Final = {
    "masked-lm": (
        rule("vocab_transform.{p}", "head.transform.{p}"),
        rule("vocab_layer_norm.{p}", "head.norm.{p}"),
        rule("vocab_projector.weight", "head.output.weight"),
        rule("vocab_projector.bias", "head.bias"),
    ),
    "classification": _FIRST_TOKEN,
    "multiple-choice": _FIRST_TOKEN,
    "token-classification": (rule("classifier.{p}", "head.output.{p}"),),
    "question-answering": (rule("qa_outputs.{p}", "head.output.{p}"),),
}
