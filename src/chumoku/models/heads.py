"""Task heads that several papers share to the letter. A head turns hidden states into answers.

Shape letters: B batch, T position, C classes, D model width.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError
from chumoku.layers.dropout import Dropout


class Spans(NamedTuple):
    """Extractive question answering: a score for each token to start, and to end, the answer."""

    start_BT: Tensor
    end_BT: Tensor


class PreTraining(NamedTuple):
    """BERT's two pre-training tasks: logits_BTV of the masked tokens, and [B, 2] next sentence."""

    logits_BTV: Tensor
    next_sentence_B2: Tensor


class TokenHead(nn.Module):
    """Dropout, then one linear layer on every token: [B, T, C]."""

    def __init__(self, width: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        return self.output(self.dropout(x_BTD))  # type: ignore[no-any-return]


class SpanHead(nn.Module):
    """One linear layer to two scores a token (1810.04805, section 4.2)."""

    def __init__(self, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.dropout = Dropout(dropout)
        self.output = nn.Linear(width, 2)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Spans:
        start_BT, end_BT = self.output(self.dropout(x_BTD)).unbind(-1)
        return Spans(start_BT, end_BT)


class LastTokenHead(nn.Module):
    """A decoder classifies by its last real token: [B, C]; no bias, as published."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, classes, bias=False)

    def forward(self, x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        rows = torch.arange(x_BTD.shape[0], device=x_BTD.device)
        return self.output(x_BTD[rows, last_token(x_BTD, mask_BT)])  # type: ignore[no-any-return]


def last_token(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Index of the last real token of each row, [B]."""
    B, T = x_BTD.shape[:2]
    if mask_BT is None:
        return torch.full((B,), T - 1, device=x_BTD.device)
    number = torch.arange(1, T + 1, device=x_BTD.device)  # from 1: no two maxima
    return (number * mask_BT[:, -T:]).argmax(dim=1)


DECODER_HEADS: Final = (
    "causal-lm",
    "encoder",
    "classification",
    "token-classification",
    "question-answering",
)


def decoder_head(head: str, width: int, classes: int, dropout: float) -> nn.Module | None:
    """The head module of a decoder-only model; None for the unembedding and for the bare stack."""
    if head in ("causal-lm", "encoder"):
        return None
    if head == "classification":
        return LastTokenHead(width, classes)
    if head == "token-classification":
        return TokenHead(width, classes, dropout)
    if head == "question-answering":
        return SpanHead(width)
    raise unknown_head(head, DECODER_HEADS)


def unknown_head(head: str, known: tuple[str, ...]) -> ConfigError:
    return ConfigError(
        f"this architecture has no head {head!r}", advice=f"it has {', '.join(known)}"
    )
