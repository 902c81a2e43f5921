"""Beam search, plain and in diverse groups, with the results of the published implementation.

Of each prompt, K beams are kept; a step extends every beam by every token and keeps the best. A
candidate that ends is scored log p / length ** length_penalty and goes into a pool of the K best.
Diverse groups (1610.02424, section 4) are smaller beam searches side by side: a group pays for each
token that an earlier group has chosen in the same step.

Shape letters: P prompts, G groups, K beams of a group, V vocabulary, C candidates, B = P * G * K
rows of the model.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import Final

import torch
from torch import Tensor

from chumoku.generation.decoder import past_of
from chumoku.generation.jobs import Ids, Job
from chumoku.generation.processors import apply, processors
from chumoku.generation.results import Reason
from chumoku.generation.runner import MakeCache, Model, Runner, Stop, encode
from chumoku.generation.settings import Settings

NEVER: Final = -1e9
"""Score of a beam that must not win: the copies at the start, and beams that have ended."""


Candidate = tuple[float, int, int]
"""(log p of the beam with its new token, beam that it extends, token)"""


@dataclass(frozen=True)
class Hypothesis:
    score: float
    ids: Ids
    reason: Reason


@dataclass
class Pool:
    """The best finished hypotheses of one group of one prompt, best first."""

    size: int
    best: list[Hypothesis] = field(default_factory=list)
    closed: bool = False

    def add(self, new: Hypothesis) -> None:
        if not self.closed:
            self.best = sorted([*self.best, new], key=lambda h: -h.score)[: self.size]

    def close_if_done(self, settings: Settings, likeliest: float, length: int, limit: int) -> None:
        """Close where no running beam can still win, by the rule that early_stopping names.

        likeliest: log p of the best running beam, `length` tokens long.
        """
        if len(self.best) < self.size:
            return
        if settings.early_stopping is True:
            self.closed = True
            return
        power = settings.length_penalty
        if settings.early_stopping == "never" and power > 0.0:
            length = limit  # the longest answer would have the highest score
        self.closed |= self.best[-1].score >= likeliest / length**power


@dataclass(frozen=True)
class Found:
    """The best hypotheses of each prompt, best first, and the time they took."""

    hypotheses: list[list[Hypothesis]]
    prompt_seconds: float
    seconds: float


def search(
    model: Model,
    job: Job,
    settings: Settings,
    cache_factory: MakeCache,
    should_stop: Stop | None = None,
) -> Found:
    """The num_return_sequences best answers to each prompt.

    Where should_stop says so, the running beams become the answer ("cancelled").
    """
    began = time.perf_counter()
    memory = None if job.sources is None else encode(model, job.sources)
    runner = Runner(model, cache_factory(), memory)
    first_PV = runner.prefill(job.starts, settings.prefill_chunk, should_stop)
    prompt_seconds = time.perf_counter() - began
    count = settings.num_return_sequences
    if first_PV is None:
        empty = [Hypothesis(0.0, (), "cancelled")] * count
        return Found([list(empty) for _ in job.starts], prompt_seconds, prompt_seconds)
    beams = _Beams(runner, job, settings, first_PV)
    while beams.extend():
        if should_stop is not None and should_stop():
            beams.finish("cancelled")
            break
        beams.advance()
    return Found(beams.results(count), prompt_seconds, time.perf_counter() - began)


class _Beams:
    """All beams in flight. Row (p * G + g) * K + k is beam k of group g of the p-th live prompt."""

    def __init__(self, runner: Runner, job: Job, settings: Settings, first_PV: Tensor) -> None:
        self._runner, self._settings, self._job = runner, settings, job
        self._G = settings.num_beam_groups
        self._K = settings.num_beams // self._G
        self._eos = frozenset(settings.eos_token_id)
        # The published search goes on with padding in a finished group, and later groups pay for it
        # as for any other token.
        pad = settings.pad_token_id
        self._filler = (*settings.eos_token_id, 0)[0] if pad is None else pad
        self._pools = [[Pool(self._K) for _ in range(self._G)] for _ in job.starts]
        self._live = list(range(len(job.starts)))
        self._chain = processors(settings, first_PV)
        self._length = 0
        device = first_PV.device
        rows_B = torch.arange(len(job.starts), device=device).repeat_interleave(settings.num_beams)
        with torch.inference_mode():
            self._runner.select(rows_B)
            self._past = past_of(job, device).select(rows_B)
            self._logits_BV = first_PV[rows_B]
            self._scores_PGK = first_PV.new_full((len(job.starts), self._G, self._K), NEVER)
            self._scores_PGK[:, :, 0] = 0.0

    @torch.inference_mode()
    def extend(self) -> bool:
        """Choose the next token of every beam; False where no prompt is left to work on."""
        P, G, K, V = len(self._live), self._G, self._K, self._logits_BV.shape[-1]
        log_p_BV = self._logits_BV.log_softmax(-1)
        count = min(K * max(2, 1 + len(self._eos)), K * V)  # K remain even where many end
        self._length += 1
        kept: list[list[list[Candidate]]] = [[] for _ in self._live]  # by prompt and group
        for g in range(G):
            log_p_PKV = self._processed(g, log_p_BV, kept).view(P, K, V)
            total_PC = (log_p_PKV + self._scores_PGK[:, g, :, None]).flatten(1)
            best_PC, index_PC = total_PC.topk(count)
            rows = zip(best_PC.tolist(), index_PC.tolist(), strict=True)
            for p, (scores, indices) in enumerate(rows):
                candidates = [(x, *divmod(i, V)) for x, i in zip(scores, indices, strict=True)]
                kept[p].append(self._sorted_out(p, g, candidates))
        self._reorder(kept)
        return bool(self._live)

    def _processed(self, g: int, log_p_BV: Tensor, kept: list[list[list[Candidate]]]) -> Tensor:
        """Log-probabilities of group g after all processors; kept: what earlier groups chose."""
        if self._G == 1:
            return apply(self._chain, self._past, log_p_BV)
        P, V = len(self._live), log_p_BV.shape[1]
        rows_PGK = torch.arange(len(log_p_BV), device=log_p_BV.device).view(P, self._G, self._K)
        rows_B = rows_PGK[:, g].flatten()
        past = self._past.select(rows_B)
        if g > 0:
            chosen = [[token for group in groups for _, _, token in group] for groups in kept]
            chosen_PC = torch.tensor(chosen, device=log_p_BV.device)
            taken_PV = log_p_BV.new_zeros(P, V)
            taken_PV.scatter_add_(1, chosen_PC, torch.ones_like(chosen_PC, dtype=log_p_BV.dtype))
            past = replace(past, taken_BV=taken_PV.repeat_interleave(self._K, 0))
        return apply(self._chain, past, log_p_BV[rows_B])

    def _sorted_out(self, p: int, g: int, candidates: list[Candidate]) -> list[Candidate]:
        """Candidates that end go to the pool; the K best others go on. Best first."""
        settings, K, prompt = self._settings, self._K, self._live[p]
        pool, limit = self._pools[prompt][g], self._job.budgets[prompt]
        if pool.closed:
            return [(0.0, 0, self._filler)] * K
        running: list[Candidate] = []
        ended: list[Candidate] = []
        for rank, (score, beam, token) in enumerate(candidates):
            if token not in self._eos and self._length < limit:
                running.append((score, beam, token))
                continue
            ended.append((score + NEVER, beam, token))
            if rank < K:
                row = (p * self._G + g) * K + beam
                ids = (*self._past.ids_BT[row, self._past.given :].tolist(), token)
                reason: Reason = "stop" if token in self._eos else "length"
                pool.add(Hypothesis(score / self._length**settings.length_penalty, ids, reason))
        kept = (running + ended)[:K]
        # In groups the published search takes the best candidate for what is attainable, without
        # groups the best one that goes on.
        likeliest = candidates[0][0] if self._G > 1 else kept[0][0]
        pool.close_if_done(settings, likeliest, self._length, limit)
        pool.closed |= self._length >= limit
        return kept

    def _reorder(self, kept: list[list[list[Candidate]]]) -> None:
        """Rows follow their parents; prompts whose pools are all closed leave."""
        pools = [self._pools[prompt] for prompt in self._live]
        live = [p for p, groups in enumerate(pools) if not all(pool.closed for pool in groups)]
        self._live = [self._live[p] for p in live]
        if not live:
            return
        G, K = self._G, self._K
        device = self._logits_BV.device
        rows = [
            (p * G + g) * K + beam
            for p in live
            for g, group in enumerate(kept[p])
            for _, beam, _ in group
        ]
        flat = [candidate for p in live for group in kept[p] for candidate in group]
        rows_B = torch.tensor(rows, device=device)
        self._ids_B = torch.tensor([token for _, _, token in flat], device=device)
        scores_B = torch.tensor([score for score, _, _ in flat], dtype=self._scores_PGK.dtype)
        self._scores_PGK = scores_B.to(device).view(len(live), G, K)
        if rows != list(range(len(kept) * G * K)):  # every beam in its place: nothing to move
            self._runner.select(rows_B, same_sources=len(live) == len(kept))
            self._past = self._past.select(rows_B)
        self._past = self._past.append(self._ids_B)

    def advance(self) -> None:
        self._logits_BV = self._runner.step(self._ids_B)

    def finish(self, reason: Reason) -> None:
        """The running beams become hypotheses."""
        ids = self._past.ids_BT[:, self._past.given :].tolist()
        scores = self._scores_PGK.flatten().tolist()
        each = self._G * self._K
        for row, score in enumerate(scores):
            if score <= NEVER / 2:
                continue
            pool = self._pools[self._live[row // each]][row % each // self._K]
            length = self._length**self._settings.length_penalty
            pool.add(Hypothesis(score / length, tuple(ids[row]), reason))

    def results(self, count: int) -> list[list[Hypothesis]]:
        """The best of all groups together, for each prompt."""
        return [
            sorted((h for pool in pools for h in pool.best), key=lambda h: -h.score)[:count]
            for pools in self._pools
        ]
