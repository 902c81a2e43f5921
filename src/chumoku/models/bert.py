"""BERT (Devlin et al., 1810.04805), and RoBERTa's differences (Liu et al., 1907.11692).

An encoder with post-normalisation and learned positions, trained to fill masked tokens and to tell
whether one sentence follows another. RoBERTa drops the second task, starts its positions after the
pad id, and has heads of its own.

Shape letters: B batch, T position, D model width, F feed-forward width, V vocabulary, C classes.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError
from chumoku.layers.attention import EMPTY, Attention, Batch, Shape, Visible, positions, visible
from chumoku.layers.dropout import Dropout
from chumoku.layers.feedforward import FeedForward
from chumoku.layers.ops import ACTIVATIONS
from chumoku.layers.taps import ResidualTaps, Tap
from chumoku.models import config_keys
from chumoku.models.heads import PreTraining, SpanHead, Spans, TokenHead, unknown_head
from chumoku.models.names import NameTable, Rule, head_rules, rule


@dataclass(frozen=True)
class Config:
    """Defaults are BERT-base uncased's. model_type: "bert" or "roberta"."""

    vocab_size: int = 30522
    max_positions: int = 512
    num_segments: int = 2
    width: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    feedforward_width: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    classifier_dropout: float | None = None
    pad_id: int = 0
    tied: bool = True
    init_std: float = 0.02
    model_type: str = "bert"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None

    @property
    def first_position(self) -> int:
        """RoBERTa counts positions from the id after the padding."""
        return self.pad_id + 1 if self.model_type == "roberta" else 0


class Embeddings(nn.Module):
    """Sum of token, segment and position vectors, normalised (section 3, figure 2)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.token = nn.Embedding(config.vocab_size, config.width)
        self.position = nn.Embedding(config.max_positions, config.width)
        self.segment = nn.Embedding(config.num_segments, config.width)
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)

    def forward(self, ids_BT: Tensor, segments_BT: Tensor, positions_BT: Tensor) -> Tensor:
        x_BTD = self.token(ids_BT) + self.segment(segments_BT) + self.position(positions_BT)
        return self.dropout(self.norm(x_BTD))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Post-normalisation: each sublayer's output is added to its input, then normalised."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        head_width = config_keys.divides(config.num_heads, config.width, "width over heads")
        shape = Shape(config.width, config.num_heads, head_width)
        self.attention = Attention(shape, dropout=config.attention_dropout)
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feedforward = FeedForward(config.width, config.feedforward_width, config.activation)
        self.feedforward_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.dropout = Dropout(config.dropout)
        self.residual = ResidualTaps()

    def forward(self, x_BTD: Tensor, seen: Visible) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        a_BTD = self.dropout(self.attention(*self.attention.project(x_BTD), seen))
        x_BTD = self.residual.attention(self.attention_norm(x_BTD + a_BTD))
        f_BTD = self.dropout(self.feedforward(x_BTD))
        return self.residual.feedforward(self.feedforward_norm(x_BTD + f_BTD))  # type: ignore[no-any-return]


class Pooler(nn.Module):
    """tanh(W h + b) of the first token's hidden state: [B, D]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, width)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return torch.tanh(self.output(x_BTD[:, 0]))


class MaskedLMHead(nn.Module):
    """norm(f(W h)) E^T + b, where E is the token embedding: [B, T, V]."""

    def __init__(self, config: Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(config.width, config.width)
        # RoBERTa's head always has GELU, whatever the blocks use.
        name = "gelu" if config.model_type == "roberta" else config.activation
        self.activation = ACTIVATIONS[name]
        self.norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.output = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.tied:
            self.output.weight = embedding.weight
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, x_BTD: Tensor, pooled_BD: Tensor | None) -> Tensor:
        hidden_BTD = self.norm(self.activation(self.transform(x_BTD)))
        return self.output(hidden_BTD) + self.bias  # type: ignore[no-any-return]


class PreTrainingHead(nn.Module):
    """Both of the paper's tasks at once (section 3.1)."""

    def __init__(self, config: Config, embedding: nn.Embedding) -> None:
        super().__init__()
        self.masked = MaskedLMHead(config, embedding)
        self.next_sentence = nn.Linear(config.width, 2)

    def forward(self, x_BTD: Tensor, pooled_BD: Tensor | None) -> PreTraining:
        return PreTraining(self.masked(x_BTD, pooled_BD), self.next_sentence(pooled_BD))


class PooledHead(nn.Module):
    """Dropout and one linear layer on the pooled first token: [B, C]."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor, pooled_BD: Tensor | None) -> Tensor:
        return self.output(self.dropout(pooled_BD))  # type: ignore[no-any-return]


class RobertaClassificationHead(nn.Module):
    """RoBERTa has no pooler: dropout, W, tanh, dropout, W on the first token: [B, C]."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor, pooled_BD: Tensor | None) -> Tensor:
        hidden_BD = torch.tanh(self.transform(self.dropout(x_BTD[:, 0])))
        return self.output(self.dropout(hidden_BD))  # type: ignore[no-any-return]


HEADS: Final = {
    "encoder": "Model",
    "masked-lm": "ForMaskedLM",
    "pre-training": "ForPreTraining",
    "next-sentence": "ForNextSentencePrediction",
    "classification": "ForSequenceClassification",
    "token-classification": "ForTokenClassification",
    "question-answering": "ForQuestionAnswering",
    "multiple-choice": "ForMultipleChoice",
}
"""Our head -> the published class name after "Bert" or "Roberta"."""

PUBLISHED: Final = {"bert": "Bert", "roberta": "Roberta"}

OPTIONAL: Final = ("pooler",)
"""Modules of a bare encoder that some files leave out."""


def _head(head: str, config: Config, embedding: nn.Embedding) -> nn.Module | None:
    classes, dropout = len(config.labels), config.classifier_dropout
    dropout = config.dropout if dropout is None else dropout
    roberta = config.model_type == "roberta"
    if head == "encoder":
        return None
    if head == "masked-lm":
        return MaskedLMHead(config, embedding)
    if head == "pre-training" and not roberta:
        return PreTrainingHead(config, embedding)
    if head == "next-sentence" and not roberta:
        return PooledHead(config.width, 2, 0.0)
    if head == "classification":
        kind = RobertaClassificationHead if roberta else PooledHead
        return kind(config.width, classes, dropout)
    if head == "token-classification":
        return TokenHead(config.width, classes, dropout)
    if head == "question-answering":
        return SpanHead(config.width)
    if head == "multiple-choice":
        return PooledHead(config.width, 1, config.dropout if roberta else dropout)
    raise unknown_head(head, tuple(HEADS))


class Model(nn.Module):
    """head: a name of HEADS; "encoder" is the bare stack and returns the last hidden states."""

    def __init__(self, config: Config, head: str = "encoder") -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        pooled = {"encoder", "pre-training", "next-sentence", "multiple-choice"}
        if config.model_type == "bert":
            pooled = pooled | {"classification"}
        self.pooler = Pooler(config.width) if head in pooled else None
        self.head_name = head
        self.head = _head(head, config, self.embeddings.token)
        self.logits = Tap()

    def hidden(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor:
        """Last hidden states, [B, T, D]."""
        segments_BT = batch.segments_BT
        if segments_BT is None:
            segments_BT = torch.zeros_like(ids_BT)
        places_BT = positions(ids_BT, mask_BT, batch) + self.config.first_position
        x_BTD = self.embeddings(ids_BT, segments_BT, places_BT)
        seen = visible(ids_BT, mask_BT, batch, causal=False)
        for block in self.blocks:
            x_BTD = block(x_BTD, seen)
        return x_BTD  # type: ignore[no-any-return]

    def forward(
        self, ids_BT: Tensor, mask_BT: Tensor | None = None, *, batch: Batch = EMPTY
    ) -> Tensor | PreTraining | Spans:
        """What the head gives; bare: hidden states [B, T, D]. Multiple choice: ids [B, C, T]."""
        if self.head_name == "multiple-choice":
            B, C = ids_BT.shape[:2]
            return self._answer(*_flattened(ids_BT, mask_BT, batch)).view(B, C)  # type: ignore[union-attr]
        return self._answer(ids_BT, mask_BT, batch)

    def _answer(
        self, ids_BT: Tensor, mask_BT: Tensor | None, batch: Batch
    ) -> Tensor | PreTraining | Spans:
        x_BTD = self.hidden(ids_BT, mask_BT, batch=batch)
        if self.head is None:
            return x_BTD
        pooled_BD = None if self.pooler is None else self.pooler(x_BTD)
        answer = self.head(x_BTD, pooled_BD)
        return self.logits(answer) if isinstance(answer, Tensor) else answer  # type: ignore[no-any-return]


def _flattened(
    ids_BCT: Tensor, mask_BCT: Tensor | None, batch: Batch
) -> tuple[Tensor, Tensor | None, Batch]:
    """Each choice becomes a row of its own."""
    segments = batch.segments_BT
    return (
        ids_BCT.flatten(0, 1),
        None if mask_BCT is None else mask_BCT.flatten(0, 1),
        Batch(segments_BT=None if segments is None else segments.flatten(0, 1)),
    )


def initialise(model: Model) -> None:
    """Matrices and embeddings N(0, init_std), biases 0, norms 1 (published code).

    The paper's TensorFlow code truncates at two deviations; the published PyTorch weights' class
    does not, and that is what is drawn here.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=model.config.init_std)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


# ---- published files ----

KEYS: Final = config_keys.Keys(
    reads={
        "vocab_size": "vocab_size",
        "max_position_embeddings": "max_positions",
        "type_vocab_size": "num_segments",
        "hidden_size": "width",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
        "intermediate_size": "feedforward_width",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "classifier_dropout": "classifier_dropout",
        "pad_token_id": "pad_id",
        "tie_word_embeddings": "tied",
        "initializer_range": "init_std",
        "model_type": "model_type",
        "problem_type": "problem_type",
    },
    fixed={
        "position_embedding_type": ("absolute",),
        "is_decoder": (False,),
        "add_cross_attention": (False,),
    },
    harmless=frozenset(
        {"pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers"}
        | {"pooler_size_per_head", "pooler_type", "layer_norm_type"}
    ),
)


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError."""
    values = config_keys.read(raw, KEYS, ignore)
    if raw.get("model_type") == "roberta":  # the published class's other defaults
        values = {"vocab_size": 50265, "pad_id": 1} | values
    config = config_keys.build(Config, {**values, "labels": config_keys.labels(raw)})
    config_keys.divides(config.num_heads, config.width, "width over heads")
    config_keys.known_activation(config.activation)
    if config.model_type not in PUBLISHED:
        raise ConfigError(f"model_type {config.model_type!r} is not BERT or RoBERTa")
    return config


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json."""
    raw = config_keys.write(config, KEYS)
    architecture = PUBLISHED[config.model_type] + HEADS[head]
    return {"architectures": [architecture], **raw, **config_keys.write_labels(config.labels)}


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub" <-> ours."""
    ignored = (r".*embeddings\.position_ids",)
    aliases = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
    by_head = ROBERTA_HEADS if config.model_type == "roberta" else BERT_HEADS
    heads = head_rules(by_head, head)
    return NameTable(HUB, heads, f"{config.model_type}.", ignored, aliases)


_A = "blocks.{n}.attention"
_F = "blocks.{n}.feedforward"

HUB: Final = (
    rule("embeddings.word_embeddings.weight", "embeddings.token.weight"),
    rule("embeddings.position_embeddings.weight", "embeddings.position.weight"),
    rule("embeddings.token_type_embeddings.weight", "embeddings.segment.weight"),
    rule("embeddings.LayerNorm.{p}", "embeddings.norm.{p}"),
    rule("encoder.layer.{n}.attention.self.query.{p}", f"{_A}.query.{{p}}"),
    rule("encoder.layer.{n}.attention.self.key.{p}", f"{_A}.key.{{p}}"),
    rule("encoder.layer.{n}.attention.self.value.{p}", f"{_A}.value.{{p}}"),
    rule("encoder.layer.{n}.attention.output.dense.{p}", f"{_A}.output.{{p}}"),
    rule("encoder.layer.{n}.attention.output.LayerNorm.{p}", f"{_A}_norm.{{p}}"),
    rule("encoder.layer.{n}.intermediate.dense.{p}", f"{_F}.up.{{p}}"),
    rule("encoder.layer.{n}.output.dense.{p}", f"{_F}.down.{{p}}"),
    rule("encoder.layer.{n}.output.LayerNorm.{p}", f"{_F}_norm.{{p}}"),
    rule("pooler.dense.{p}", "pooler.output.{p}"),
)


def _masked(head: str) -> tuple[Rule, ...]:
    return (
        rule("cls.predictions.transform.dense.{p}", f"{head}.transform.{{p}}"),
        rule("cls.predictions.transform.LayerNorm.{p}", f"{head}.norm.{{p}}"),
        rule("cls.predictions.decoder.weight", f"{head}.output.weight"),
        rule("cls.predictions.bias", f"{head}.bias"),
        rule("cls.predictions.decoder.bias", f"{head}.bias"),
    )


_CLASSIFIER: Final = (rule("classifier.{p}", "head.output.{p}"),)
_SPAN: Final = (rule("qa_outputs.{p}", "head.output.{p}"),)

BERT_HEADS: Final = {
    "masked-lm": _masked("head"),
    "pre-training": (
        *_masked("head.masked"),
        rule("cls.seq_relationship.{p}", "head.next_sentence.{p}"),
    ),
    "next-sentence": (rule("cls.seq_relationship.{p}", "head.output.{p}"),),
    "classification": _CLASSIFIER,
    "token-classification": _CLASSIFIER,
    "multiple-choice": _CLASSIFIER,
    "question-answering": _SPAN,
}

ROBERTA_HEADS: Final = {
    "masked-lm": (
        rule("lm_head.dense.{p}", "head.transform.{p}"),
        rule("lm_head.layer_norm.{p}", "head.norm.{p}"),
        rule("lm_head.decoder.weight", "head.output.weight"),
        rule("lm_head.bias", "head.bias"),
        rule("lm_head.decoder.bias", "head.bias"),
    ),
    "classification": (
        rule("classifier.dense.{p}", "head.transform.{p}"),
        rule("classifier.out_proj.{p}", "head.output.{p}"),
    ),
    "token-classification": _CLASSIFIER,
    "multiple-choice": _CLASSIFIER,
    "question-answering": _SPAN,
}
