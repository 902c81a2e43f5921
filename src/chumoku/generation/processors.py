"""Settings -> the chain of functions that logits pass through, in transformers' order.

Order: logit bias, diversity of beam groups, repetition, presence and frequency, n-grams, bad words,
minimum lengths, forced first and last token, suppression; then, for sampling only, temperature,
top-k, top-p, min-p, typical-p; last the normalisation.

Shape letters: B rows, T tokens so far, V vocabulary, S source tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.generation import sampling
from chumoku.generation.settings import Settings


@dataclass(frozen=True)
class Past:
    """What the rows hold so far. Ids are negative where a row has no token (left padding).

    given: columns of ids_BT that were given, not generated. lengths_B: given tokens of each row.
    limits_B: tokens that each row may generate. source_BS: what n-grams may not be copied from.
    taken_BV: how often earlier beam groups chose each token in this very step; None: there is none.
    """

    ids_BT: Tensor
    given: int
    lengths_B: Tensor
    limits_B: Tensor
    source_BS: Tensor
    taken_BV: Tensor | None = None

    @property
    def generated(self) -> int:
        return self.ids_BT.shape[1] - self.given

    def select(self, rows_B: Tensor) -> Past:
        """Row i becomes what row rows_B[i] was."""
        return replace(
            self,
            ids_BT=self.ids_BT[rows_B],
            lengths_B=self.lengths_B[rows_B],
            limits_B=self.limits_B[rows_B],
            source_BS=self.source_BS[rows_B],
        )

    def append(self, ids_B: Tensor) -> Past:
        return replace(self, ids_BT=torch.cat((self.ids_BT, ids_B[:, None]), 1))


Processor = Callable[[Past, Tensor], Tensor]


def processors(settings: Settings, like_BV: Tensor) -> tuple[Processor, ...]:
    """The chain for these settings; empty for plain greedy search. like_BV: logits.

    Raises InputError for a token id outside the vocabulary.
    """
    chain = _biases_and_penalties(settings, like_BV)
    chain += _minimum_lengths(settings, like_BV)
    chain += _forced_and_suppressed(settings, like_BV)
    if settings.sampling:
        chain += _filters(settings)
    if settings.renormalize_logits:
        chain.append(lambda past, x: x.log_softmax(-1))
    return tuple(chain)


def apply(chain: tuple[Processor, ...], past: Past, logits_BV: Tensor) -> Tensor:
    for step in chain:
        logits_BV = step(past, logits_BV)
    return logits_BV


def _biases_and_penalties(s: Settings, like_BV: Tensor) -> list[Processor]:
    chain: list[Processor] = []
    if s.logit_bias:
        bias = sampling.bias_table(dict(s.logit_bias), like_BV)
        chain.append(lambda past, x: sampling.add_bias(past.ids_BT, x, bias))
    if s.num_beam_groups > 1:  # 1610.02424, eq. 5
        chain.append(
            lambda past, x: x if past.taken_BV is None else x - s.diversity_penalty * past.taken_BV
        )
    if s.repetition_penalty != 1.0:
        chain.append(
            lambda past, x: sampling.repetition_penalty(past.ids_BT, x, s.repetition_penalty)
        )
    if s.presence_penalty or s.frequency_penalty:
        chain.append(
            lambda past, x: sampling.presence_frequency(
                past.ids_BT[:, past.given :], x, s.presence_penalty, s.frequency_penalty
            )
        )
    if s.no_repeat_ngram_size:
        chain.append(
            lambda past, x: sampling.no_repeat_ngram(past.ids_BT, x, s.no_repeat_ngram_size)
        )
    if s.encoder_no_repeat_ngram_size:
        size = s.encoder_no_repeat_ngram_size
        chain.append(lambda past, x: sampling.no_repeat_ngram(past.ids_BT, x, size, past.source_BS))
    words = [ids for ids in s.bad_words_ids if ids not in {(i,) for i in s.eos_token_id}]
    if words:
        forbidden = sampling.bias_table(dict.fromkeys(words, -torch.inf), like_BV)
        chain.append(lambda past, x: sampling.add_bias(past.ids_BT, x, forbidden))
    return chain


def _ids(ids: tuple[int, ...], like_BV: Tensor) -> Tensor:
    """Those of the ids that the vocabulary has."""
    known = [i for i in ids if i < like_BV.shape[-1]]
    return torch.tensor(known, dtype=torch.long, device=like_BV.device)


def _forced_ids(ids: tuple[int, ...], like_BV: Tensor) -> Tensor:
    V = like_BV.shape[-1]
    if max(ids) >= V:
        raise InputError(f"forced token {max(ids)} is outside the vocabulary of {V}")
    return _ids(ids, like_BV)


def _minimum_lengths(s: Settings, like_BV: Tensor) -> list[Processor]:
    chain: list[Processor] = []
    eos_N = _ids(s.eos_token_id, like_BV)
    if s.min_length and s.eos_token_id:

        def long_enough(past: Past, x: Tensor) -> Tensor:
            if past.generated >= s.min_length:
                return x
            return sampling.suppress(x, eos_N, past.lengths_B + past.generated < s.min_length)

        chain.append(long_enough)
    if s.min_new_tokens and s.eos_token_id:
        least = s.min_new_tokens
        chain.append(lambda past, x: sampling.suppress(x, eos_N) if past.generated < least else x)
    return chain


def _forced_and_suppressed(s: Settings, like_BV: Tensor) -> list[Processor]:
    chain: list[Processor] = []
    if s.forced_bos_token_id is not None:
        first_N = _forced_ids((s.forced_bos_token_id,), like_BV)
        chain.append(
            lambda past, x: (
                sampling.force(x, first_N, past.lengths_B + past.generated == 1)
                if past.generated <= 1
                else x
            )
        )
    if s.forced_eos_token_id:
        last_N = _forced_ids(s.forced_eos_token_id, like_BV)
        chain.append(lambda past, x: sampling.force(x, last_N, past.limits_B == past.generated + 1))
    if s.suppress_tokens:
        never_N = _ids(s.suppress_tokens, like_BV)
        chain.append(lambda past, x: sampling.suppress(x, never_N))
    if s.begin_suppress_tokens:
        not_first_N = _forced_ids(s.begin_suppress_tokens, like_BV)
        forced = s.forced_bos_token_id is not None

        def begin(past: Past, x: Tensor) -> Tensor:
            if past.generated > 1:
                return x
            # A forced first token moves the beginning one on, where the row was a start token only.
            start_B = (past.lengths_B <= 1).long() if forced else torch.zeros_like(past.lengths_B)
            return sampling.suppress(x, not_first_N, start_B == past.generated)

        chain.append(begin)
    return chain


def _filters(s: Settings) -> list[Processor]:
    chain: list[Processor] = []
    if s.temperature != 1.0:
        chain.append(lambda past, x: sampling.temperature(x, s.temperature))
    if s.top_k:
        chain.append(lambda past, x: sampling.top_k(x, s.top_k))
    if s.top_p < 1.0:
        chain.append(lambda past, x: sampling.top_p(x, s.top_p))
    if s.min_p:
        chain.append(lambda past, x: sampling.min_p(x, s.min_p))
    if s.typical_p < 1.0:
        chain.append(lambda past, x: sampling.typical_p(x, s.typical_p))
    return chain
