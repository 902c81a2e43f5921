"""The streaming decoder: greedy search and sampling, for both kinds of model, a batch at a time.

Rows that end leave the batch; nothing that a row gives depends on the others. All tensors of a step
are made under inference mode, and the mode never reaches the caller between two steps.

Shape letters: B rows in flight, T tokens so far, V vocabulary.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.generation import sampling
from chumoku.generation.jobs import Job, plan
from chumoku.generation.processors import Past, Processor, apply, processors
from chumoku.generation.results import Alternatives, Reason, Step, Token
from chumoku.generation.runner import MakeCache, Model, Runner, Stop, encode, padded
from chumoku.generation.settings import Settings
from chumoku.layers.cache import ContiguousCache

Ends = Callable[[int, int], bool]
"""(row, token id) -> True where the row ends with this token, for a reason of the caller's."""


def stream(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    cache_factory: MakeCache = ContiguousCache,
    should_stop: Stop | None = None,
    ends: Ends | None = None,
    seeds: Sequence[int] | None = None,
) -> Iterator[Step]:
    """The tokens of all rows, one Step a time step.

    prompts: ids; an encoder-decoder reads them as sources, and `prefixes` are then where its
    answers start (default: decoder_start_token_id). should_stop is asked before each pass through
    the model; True ends all rows with what they have ("cancelled"). seeds: one a row, instead of
    those that settings.seed gives. Raises InputError at once, before the first step.
    """
    if settings.num_beams > 1:
        raise InputError("beam search knows its answer only at the end", advice="use generate()")
    job = plan(model, prompts, settings, prefixes)
    rows = len(prompts) * settings.num_return_sequences
    seeds = row_seeds(settings, rows) if seeds is None else seeds
    return run(model, job, settings, cache_factory, should_stop, ends, seeds)


def row_seeds(settings: Settings, rows: int) -> list[int]:
    """A seed for each row: from settings.seed and the number of the sequence, else a fresh one."""
    if settings.seed is None:
        return [secrets.randbits(63) for _ in range(rows)]
    each = settings.num_return_sequences
    return [sampling.spread(settings.seed, row % each) for row in range(rows)]


def run(
    model: Model,
    job: Job,
    settings: Settings,
    cache_factory: MakeCache,
    should_stop: Stop | None,
    ends: Ends | None,
    seeds: Sequence[int],
) -> Iterator[Step]:
    """As stream(), for a job that is planned already."""
    began = time.perf_counter()
    memory = None if job.sources is None else encode(model, job.sources)
    runner = Runner(model, cache_factory(), memory)
    first_PV = runner.prefill(job.starts, settings.prefill_chunk, should_stop)
    prompt_seconds = time.perf_counter() - began

    def cancelled(rows: Sequence[int]) -> Step:
        reasons: dict[int, Reason] = dict.fromkeys(rows, "cancelled")
        return Step((), reasons, prompt_seconds, time.perf_counter() - began)

    if first_PV is None:
        yield cancelled(range(len(seeds)))
        return
    rows = _Rows(runner, job, settings, first_PV, seeds, cache_factory)
    while True:
        tokens = rows.choose()
        finished = rows.endings(tokens, ends)
        yield Step(tokens, finished, prompt_seconds, time.perf_counter() - began)
        rows.drop(finished)
        if not rows.live:
            return
        if should_stop is not None and should_stop():
            yield cancelled(rows.live)
            return
        rows.advance()


class _Rows:
    """The rows in flight: their logits, what they have said, and what each still needs."""

    def __init__(
        self,
        runner: Runner,
        job: Job,
        settings: Settings,
        first_PV: Tensor,
        seeds: Sequence[int],
        cache_factory: MakeCache,
    ) -> None:
        self._runner, self._settings, self._cache_factory = runner, settings, cache_factory
        self._chain: tuple[Processor, ...] = processors(settings, first_PV)
        self._context = job.context if settings.overflow == "shift" else None
        each = settings.num_return_sequences
        self.live = list(range(len(seeds)))
        self._limits = [job.budgets[row // each] for row in self.live]
        self._windows = [list(job.starts[row // each]) for row in self.live]
        self._generators = [sampling.generator(s) for s in seeds] if settings.sampling else []
        self._eos = frozenset(settings.eos_token_id)
        self._made = 0
        with torch.inference_mode():
            self._past = past_of(job, first_PV.device)
            self._logits_BV = first_PV
            if each > 1:
                repeat_B = torch.arange(len(job.starts), device=first_PV.device)
                self._keep(repeat_B.repeat_interleave(each))

    @torch.inference_mode()
    def choose(self) -> tuple[Token, ...]:
        """The next token of each row."""
        logits_BV = apply(self._chain, self._past, self._logits_BV)
        if self._generators:
            self._ids_B = sampling.sample(logits_BV, self._generators)
        else:
            self._ids_B = logits_BV.argmax(-1)
        if self._chain:
            self._past = self._past.append(self._ids_B)
        self._made += 1
        ids = self._ids_B.tolist()
        if self._settings.logprobs is None:
            return tuple(Token(row, index) for row, index in zip(self.live, ids, strict=True))
        logprobs = sampling.surprise(self._logits_BV, self._ids_B).tolist()
        top = _alternatives(self._logits_BV, self._settings.logprobs)
        return tuple(map(Token, self.live, ids, logprobs, top))

    def endings(self, tokens: Sequence[Token], ends: Ends | None) -> dict[int, Reason]:
        """Which rows end with these tokens, and why."""
        finished: dict[int, Reason] = {}
        for token, limit in zip(tokens, self._limits, strict=True):
            if token.id in self._eos or (ends is not None and ends(token.row, token.id)):
                finished[token.row] = "stop"
            elif self._made >= limit:
                finished[token.row] = "length"
        if self._context is not None:
            for window, token in zip(self._windows, tokens, strict=True):
                window.append(token.id)
        return finished

    @torch.inference_mode()
    def drop(self, finished: Mapping[int, Reason]) -> None:
        """Rows that have ended leave the batch."""
        if not finished:
            return
        keep = [i for i, row in enumerate(self.live) if row not in finished]
        self.live = [self.live[i] for i in keep]
        self._limits = [self._limits[i] for i in keep]
        self._windows = [self._windows[i] for i in keep]
        if self._generators:
            self._generators = [self._generators[i] for i in keep]
        if keep:
            keep_B = torch.tensor(keep, device=self._ids_B.device)
            self._ids_B = self._ids_B[keep_B]
            self._keep(keep_B)

    def _keep(self, rows_B: Tensor) -> None:
        self._runner.select(rows_B)
        self._past = self._past.select(rows_B)
        self._logits_BV = self._logits_BV[rows_B]

    def advance(self) -> None:
        """Feed the chosen tokens; where a row is past its context, forget the older half first."""
        context = self._context
        if context is None or max(map(len, self._windows)) <= context:
            self._logits_BV = self._runner.step(self._ids_B)
            return
        half = (context + 1) // 2
        self._windows = [w[-half:] if len(w) > context else w for w in self._windows]
        self._runner = Runner(self._runner.model, self._cache_factory(), self._runner.memory)
        logits_BV = self._runner.prefill(self._windows, self._settings.prefill_chunk)
        if logits_BV is not None:  # without a stop function it always is
            self._logits_BV = logits_BV


def past_of(job: Job, device: torch.device) -> Past:
    """The given tokens of all prompts, as the processors see them."""
    ids_BT, _ = padded(job.starts, -1, device, left=True)
    source_BS = ids_BT
    if job.sources is not None:
        source_BS, _ = padded(job.sources, -1, device, left=False)
    lengths_B = torch.tensor([len(ids) for ids in job.starts], device=device)
    limits_B = torch.tensor(job.budgets, device=device)
    return Past(ids_BT, ids_BT.shape[1], lengths_B, limits_B, source_BS)


def _alternatives(logits_BV: Tensor, count: int) -> list[Alternatives]:
    """The `count` likeliest tokens of each row under the model's own distribution."""
    if count == 0:
        return [()] * logits_BV.shape[0]
    best = logits_BV.log_softmax(-1).topk(min(count, logits_BV.shape[-1]))
    return [
        tuple(zip(ids, values, strict=True))
        for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    ]
