"""Cross-entropy over a vocabulary, computed where there is a target and nowhere else.

The output matrix is the largest of a small model, and most positions of many objectives have no
target: hidden states are therefore picked first and multiplied then.

Shape letters: B batch, T position, D model width, M positions with a target, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from chumoku.layers.ops import wide
from chumoku.training.task import IGNORED, Examples, to_device

EVALUATION_SEED: Final = 0
"""Draws of an evaluation are the same in every run, whatever its seed: results compare."""


class Picked(NamedTuple):
    """Logits where there is a target, and the targets."""

    logits_MV: Tensor
    targets_M: Tensor


def stacked(rows: Sequence[Tensor], value: int) -> Tensor:
    """Rows [T] of several lengths as one tensor [B, T], filled up on the right with `value`."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def places_of(targets_BT: Tensor) -> tuple[Tensor | None, Tensor]:
    """(places_M in the flattened [B * T], or None where every position has a target; targets_M)."""
    targets = targets_BT.flatten()
    places_M = (targets != IGNORED).nonzero()[:, 0]
    if len(places_M) == len(targets):
        return None, targets
    return places_M, targets[places_M]


def picked(hidden_BTD: Tensor, places_M: Tensor | None) -> Tensor:
    """hidden_MD at the places; None is every place."""
    hidden = hidden_BTD.flatten(0, 1)
    return hidden if places_M is None else hidden.index_select(0, places_M)


def cross_entropy(logits_MV: Tensor, targets_M: Tensor) -> Tensor:
    """-sum over M of log softmax(logits)[target], in float32 or wider."""
    logits_MV = logits_MV.to(wide(logits_MV.dtype))
    return F.cross_entropy(logits_MV, targets_M, reduction="sum")


# ---- judging ----


class Judged(NamedTuple):
    """nll: mean negative log-probability of a target, in nats. accuracy: the likeliest was right.

    units: how many targets there were.
    """

    nll: float
    accuracy: float
    units: int

    @property
    def perplexity(self) -> float:
        return perplexity_of(self.nll)


def perplexity_of(nll: float) -> float:
    """exp(nll), infinite beyond the range of a float."""
    return math.exp(nll) if nll < 700.0 else math.inf


class Tally:
    """Adds batches up, in float64."""

    def __init__(self) -> None:
        self.nll, self.right, self.units = 0.0, 0, 0

    def add(self, some: Picked) -> None:
        if some.targets_M.numel():
            self.nll += float(cross_entropy(*some).double())
            self.right += int((some.logits_MV.argmax(dim=-1) == some.targets_M).sum())
            self.units += some.targets_M.numel()

    def judged(self) -> Judged:
        units = max(self.units, 1)
        return Judged(self.nll / units, self.right / units, self.units)


def judge(batches: Iterator[Picked]) -> Judged:
    """Over all targets of all batches."""
    tally = Tally()
    for some in batches:
        tally.add(some)
    return tally.judged()


def evaluation_batches(
    examples: Examples,
    collate: Callable[[Sequence[Any]], Any],
    batch_size: int,
    model: nn.Module,
) -> Iterator[Any]:
    """All examples as of epoch 0, longest first, on the model's device."""
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: -examples.length(i))
    for start in range(0, len(order), batch_size):
        some = [examples.example(i, 0) for i in order[start : start + batch_size]]
        yield to_device(collate(some), device)


def entropy(targets: Sequence[int]) -> float:
    """Of the targets' own frequencies, in nats.

    No predictor that ignores its context can have a smaller loss on these very targets, so a loss
    well below it shows that context is used.
    """
    total = len(targets)
    counts = torch.tensor(list(Counter(targets).values()), dtype=torch.float64)
    shares = counts / max(total, 1)
    return float(-(shares * shares.log()).sum())


def unigram_loss(targets: Sequence[int], learnt: Iterable[Tensor], size: int) -> float:
    """Mean -log P of the targets, in nats, with P the frequencies of the tokens learnt from.

    Each of the `size` tokens is counted once more than it was seen. It is what a model reaches that
    has learnt how often tokens occur, and nothing else.
    """
    counts = torch.ones(size, dtype=torch.float64)
    for ids in learnt:
        counts += torch.bincount(ids.long(), minlength=size)
    log_p = (counts / counts.sum()).log()
    return -float(log_p[torch.tensor(targets, dtype=torch.long)].mean())
