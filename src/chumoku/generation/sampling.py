"""From logits to a token: every penalty, filter and draw as a pure function.

Each takes logits (or log-probabilities) and returns new ones; none changes its input. `ids_BT` are
the tokens before the one to be chosen; a negative id means that there is none (left padding).

Shape letters: B rows, T tokens so far, V vocabulary, N sequences in a table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.errors import InputError

# ---- filters, for sampling ----


def temperature(logits_BV: Tensor, value: float) -> Tensor:
    """Divide by the temperature: below 1 sharpens, above 1 flattens."""
    return logits_BV / value


def top_k(logits_BV: Tensor, k: int) -> Tensor:
    """Keep the k likeliest tokens, and what ties with the last of them (1805.04833, section 5)."""
    last_B1 = logits_BV.topk(min(k, logits_BV.shape[-1])).values[:, -1:]
    return logits_BV.masked_fill(logits_BV < last_B1, -torch.inf)


def top_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens whose probability together reaches p (1904.09751, section 3.1)."""
    values, order = logits_BV.sort()  # ascending: what is dropped is a run from the left
    dropped = values.softmax(-1).cumsum(-1) <= 1 - p
    dropped[:, -1] = False
    return logits_BV.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


def min_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep tokens at least p times as likely as the likeliest (2407.01082, section 3)."""
    probability = logits_BV.softmax(-1)
    return logits_BV.masked_fill(probability < p * probability.amax(-1, keepdim=True), -torch.inf)


def typical_p(logits_BV: Tensor, p: float) -> Tensor:
    """Keep tokens whose surprise is nearest the entropy, up to mass p (2202.00666, section 4)."""
    log_p = logits_BV.log_softmax(-1)
    entropy = -(log_p * log_p.exp()).nansum(-1, keepdim=True)
    distance, order = (-log_p - entropy).abs().sort()
    mass = logits_BV.gather(-1, order).softmax(-1).cumsum(-1)
    last = (mass < p).sum(1, keepdim=True).clamp(max=logits_BV.shape[-1] - 1)
    dropped = distance > distance.gather(1, last)
    dropped[:, 0] = False
    return logits_BV.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)


# ---- penalties ----


def repetition_penalty(ids_BT: Tensor, logits_BV: Tensor, penalty: float) -> Tensor:
    """Of tokens seen before: positive logits / penalty, negative x penalty (1909.05858, 4.1)."""
    index_BT = _columns(ids_BT, logits_BV.shape[-1])
    padded = F.pad(logits_BV, (0, 1))
    seen = padded.gather(1, index_BT)
    seen = torch.where(seen < 0, seen * penalty, seen / penalty)
    return padded.scatter(1, index_BT, seen)[:, :-1]


def presence_frequency(
    ids_BT: Tensor, logits_BV: Tensor, presence: float, frequency: float
) -> Tensor:
    """logit - frequency * count - presence * (count > 0); ids_BT: generated tokens only.

    Source: OpenAI's API reference, "frequency and presence penalties".
    """
    index_BT = _columns(ids_BT, logits_BV.shape[-1])
    count = logits_BV.new_zeros(logits_BV.shape[0], logits_BV.shape[1] + 1)
    count.scatter_add_(1, index_BT, torch.ones_like(index_BT, dtype=count.dtype))
    count = count[:, :-1]
    return logits_BV - frequency * count - presence * (count > 0).to(count.dtype)


def no_repeat_ngram(
    ids_BT: Tensor, logits_BV: Tensor, size: int, source_BS: Tensor | None = None
) -> Tensor:
    """Forbid tokens that would complete an n-gram already in the row (1705.04304, section 2.5).

    source_BS: the n-grams that may not come again are those of this text instead.
    """
    text_BS = ids_BT if source_BS is None else source_BS
    if ids_BT.shape[1] < size - 1 or text_BS.shape[1] < size:
        return logits_BV
    suffix = ids_BT[:, ids_BT.shape[1] - size + 1 :]
    windows = text_BS.unfold(1, size, 1)
    match = (windows[..., :-1] == suffix[:, None]).all(-1)
    V = logits_BV.shape[-1]
    banned = torch.zeros(logits_BV.shape[0], V + 1, dtype=torch.bool, device=logits_BV.device)
    banned.scatter_(1, _columns(windows[..., -1].masked_fill(~match, -1), V), True)
    return logits_BV.masked_fill(banned[:, :-1], -torch.inf)


def _columns(ids_BT: Tensor, V: int) -> Tensor:
    """Ids as columns of a table with one spare column, V, for what is no token of it."""
    return ids_BT.masked_fill(ids_BT < 0, V).clamp(max=V)


# ---- biases ----


class BiasTable(NamedTuple):
    """single_V: added always. longer: (prefix_NT, last_N, bias_N), one entry a prefix length."""

    single_V: Tensor
    longer: tuple[tuple[Tensor, Tensor, Tensor], ...]


def bias_table(biases: Mapping[tuple[int, ...], float], like_BV: Tensor) -> BiasTable:
    """Token sequences and what is added to the logit of their last token -> a table of tensors.

    like_BV: logits, for vocabulary, dtype and device. Raises InputError for an id outside it.
    """
    V = like_BV.shape[-1]
    for ids in biases:
        if max(ids) >= V:
            raise InputError(f"token {max(ids)} is outside the vocabulary of {V}", where="bias")
    single_V = like_BV.new_zeros(V)
    groups: dict[int, list[tuple[tuple[int, ...], float]]] = {}
    for ids, bias in biases.items():
        if len(ids) == 1:
            single_V[ids[0]] = bias
        else:
            groups.setdefault(len(ids), []).append((ids, bias))
    device = like_BV.device
    longer = tuple(
        (
            torch.tensor([ids[:-1] for ids, _ in group], device=device),
            torch.tensor([ids[-1] for ids, _ in group], device=device),
            torch.tensor([bias for _, bias in group], device=device, dtype=like_BV.dtype),
        )
        for group in groups.values()
    )
    return BiasTable(single_V, longer)


def add_bias(ids_BT: Tensor, logits_BV: Tensor, table: BiasTable) -> Tensor:
    """Add each bias where the row ends with the tokens that come before its last one."""
    total = table.single_V.expand_as(logits_BV)
    for prefix_NT, last_N, bias_N in table.longer:
        length = prefix_NT.shape[1]
        if length <= ids_BT.shape[1]:
            match = (ids_BT[:, None, -length:] == prefix_NT).all(-1)
            total = total.index_add(1, last_N, torch.where(match, bias_N, 0.0))
    return logits_BV + total


def suppress(logits_BV: Tensor, ids_N: Tensor, rows_B: Tensor | None = None) -> Tensor:
    """Forbid these tokens; rows_B: only where True."""
    banned_V = torch.zeros(logits_BV.shape[-1], dtype=torch.bool, device=logits_BV.device)
    banned_V[ids_N] = True
    banned = banned_V[None] if rows_B is None else banned_V & rows_B[:, None]
    return logits_BV.masked_fill(banned, -torch.inf)


def force(logits_BV: Tensor, ids_N: Tensor, rows_B: Tensor) -> Tensor:
    """Where rows_B is True, only these tokens are possible, with logit 0."""
    only = torch.full_like(logits_BV[:1], -torch.inf)
    only[:, ids_N] = 0.0
    return torch.where(rows_B[:, None], only, logits_BV)


# ---- the choice ----


def generator(seed: int, sequence: int = 0) -> torch.Generator:
    """The random numbers of one sequence: of its seed and its number, never of its batch mates.

    Sequence 0 uses the seed as it is, so that its text can be made again by itself. The generator
    lives on the CPU: one seed draws the same numbers on every device.
    """
    return torch.Generator().manual_seed(spread(seed, sequence))


def spread(seed: int, sequence: int) -> int:
    """A seed for the n-th sequence (the odd constant of splitmix64 keeps them apart)."""
    return (seed + sequence * 0x9E3779B97F4A7C15) % 2**63


def sample(logits_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """ids_B: row i draws from softmax(logits) by generators[i], one number a draw.

    The distribution function is inverted in float64, so that a vocabulary of any size is exact; a
    token of probability 0 is never drawn. Raises InputError where no token is possible, or the
    logits are not numbers.
    """
    device = logits_BV.device
    if device.type == "mps":  # which has no float64
        logits_BV = logits_BV.cpu()
    draws = [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
    level_B1 = torch.stack(draws).to(logits_BV.device)[:, None] * BELOW_ONE
    mass_BV = logits_BV.double().softmax(-1).cumsum(-1)
    if not bool(mass_BV[:, -1].isfinite().all()):
        raise InputError(
            "there is no token left to choose, or the model's logits are not numbers",
            advice="loosen what forbids tokens (bad words, suppression, n-grams)",
        )
    ids_B1 = torch.searchsorted(mass_BV, level_B1 * mass_BV[:, -1:], right=True)
    return ids_B1[:, 0].to(device)


BELOW_ONE: Final = 1 - 2.0**-52
"""Keeps the largest draw times the total below the total after rounding."""


def surprise(logits_BV: Tensor, ids_B: Tensor) -> Tensor:
    """log p of the chosen tokens, [B]; natural logarithm."""
    chosen = logits_BV.gather(1, ids_B[:, None])[:, 0]
    return chosen - logits_BV.logsumexp(-1)
