"""What the Transformer replaced: an LSTM that reads, an LSTM that writes, attention between them.

The recurrence is torch.nn.LSTM (Hochreiter & Schmidhuber, 1997). The writer starts from the
reader's last state (Sutskever et al., 1409.3215) and, with attention, looks at all the reader's
states by Luong's "general" score (1508.04025, section 3.1):

    a_TS = softmax_S(h_T W_a r_S)      c_T = sum_S a_TS r_S      out_T = tanh(W_c [c_T; h_T])

without Luong's input feeding, so that all target positions of a training batch are one call. The
class has the methods of chumoku's encoder-decoders that `objectives/seq2seq.py` calls: `encode`,
`decode_hidden`, `unembed`. Source words have a table of their own; target words and the output
matrix share one.

Shape letters: B batch, S source position, T target position, D width of embeddings, H hidden
width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


@dataclass(frozen=True)
class Config:
    """hidden: H, even. bidirectional: the reader is two LSTMs of H / 2, one for each direction."""

    source_vocab: int
    target_vocab: int
    width: int
    hidden: int
    attention: bool = True
    bidirectional: bool = True
    dropout: float = 0.1


class Memory(NamedTuple):
    """states_BSH: the reader's. mask_BS: True where there is a word; None: everywhere.

    last: (h, c) of the end, each [1, B, H].
    """

    states_BSH: Tensor
    mask_BS: Tensor | None
    last: tuple[Tensor, Tensor]


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        width, hidden = config.width, config.hidden
        self.config = config
        self.source = nn.Embedding(config.source_vocab, width)
        self.target = nn.Embedding(config.target_vocab, width)
        each = hidden // 2 if config.bidirectional else hidden
        self.reader = nn.LSTM(width, each, batch_first=True, bidirectional=config.bidirectional)
        self.writer = nn.LSTM(width, hidden, batch_first=True)
        self.score = nn.Linear(hidden, hidden, bias=False) if config.attention else None
        self.combine = nn.Linear(hidden * (2 if config.attention else 1), width, bias=False)
        self.unembedding = nn.Linear(width, config.target_vocab, bias=False)
        self.unembedding.weight = self.target.weight
        self.dropout = nn.Dropout(config.dropout)
        for table in (self.source, self.target):
            nn.init.normal_(table.weight, std=width**-0.5)
        for lstm in (self.reader, self.writer):
            remember(lstm)

    def encode(self, ids_BS: Tensor, mask_BS: Tensor | None = None) -> Memory:
        """Read the source once, word after word."""
        x_BSD = self._embedded(self.source, ids_BS)
        if mask_BS is None:
            states_BSH, (h, c) = self.reader(x_BSD)
        else:  # so that padding is not read
            packed = pack_padded_sequence(
                x_BSD, mask_BS.sum(1).cpu(), batch_first=True, enforce_sorted=False
            )
            out, (h, c) = self.reader(packed)
            states_BSH, _ = pad_packed_sequence(out, batch_first=True, total_length=ids_BS.shape[1])
        return Memory(states_BSH, mask_BS, (_joined(h), _joined(c)))

    def decode_hidden(self, ids_BT: Tensor, memory: Memory) -> Tensor:
        """[B, T, D], for the output matrix."""
        h_BTH, _ = self.writer(self._embedded(self.target, ids_BT), memory.last)
        if self.score is not None:
            h_BTH = torch.cat([self.attend(h_BTH, memory), h_BTH], dim=-1)
        return self.dropout(torch.tanh(self.combine(h_BTH)))  # type: ignore[no-any-return]

    def attend(self, h_BTH: Tensor, memory: Memory) -> Tensor:
        """c_BTH: for each target position, the reader's states weighted by their scores."""
        assert self.score is not None
        scores_BTS = self.score(h_BTH) @ memory.states_BSH.transpose(1, 2)
        if memory.mask_BS is not None:
            scores_BTS = scores_BTS.masked_fill(~memory.mask_BS[:, None], float("-inf"))
        return scores_BTS.softmax(-1) @ memory.states_BSH

    def unembed(self, x_BTD: Tensor) -> Tensor:
        """Logits, [..., V]."""
        return self.unembedding(x_BTD)  # type: ignore[no-any-return]

    def _embedded(self, table: nn.Embedding, ids: Tensor) -> Tensor:
        return self.dropout(table(ids) * self.config.width**0.5)  # type: ignore[no-any-return]


def remember(lstm: nn.LSTM) -> None:
    """Forget gates start open, by a bias of 1 (Jozefowicz et al., 2015); gates are i, f, g, o."""
    for name, bias in lstm.named_parameters():
        if name.startswith("bias"):
            quarter = len(bias) // 4
            with torch.no_grad():
                bias.zero_()
                if name.startswith("bias_ih"):
                    bias[quarter : 2 * quarter] = 1.0


def _joined(state: Tensor) -> Tensor:
    """[directions, B, H / directions] -> [1, B, H]."""
    return torch.cat(list(state), dim=-1)[None]


def parameters(model: nn.Module) -> int:
    """How many numbers are learned; a shared tensor counts once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def as_large_as(wanted: int, config: Config) -> Config:
    """The config with the even hidden width whose model is nearest to `wanted` parameters."""

    def size(hidden: int) -> int:
        with torch.device("meta"):
            return parameters(Model(replace(config, hidden=hidden)))

    low, high = 1, 2
    while size(2 * high) < wanted:
        high *= 2
    while low < high:  # the smallest half width that is large enough
        middle = (low + high) // 2
        low, high = (middle + 1, high) if size(2 * middle) < wanted else (low, middle)
    widths = [2 * h for h in (low - 1, low) if h > 0]
    return replace(config, hidden=min(widths, key=lambda h: abs(size(h) - wanted)))
