"""Whole answers: generate() for a batch of prompts, stream_text() for text as it comes."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from chumoku.errors import InputError
from chumoku.generation import beams
from chumoku.generation.decoder import Ends, row_seeds, run
from chumoku.generation.jobs import Job, plan
from chumoku.generation.results import Generated, Reason, Step, Timings, Token
from chumoku.generation.runner import MakeCache, Model, Stop
from chumoku.generation.settings import Settings
from chumoku.generation.stops import TextBuffer
from chumoku.layers.cache import ContiguousCache
from chumoku.text.encoding import Tokenizer


def generate(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    *,
    tokenizer: Tokenizer | None = None,
    prefixes: Sequence[Sequence[int]] | None = None,
    cache_factory: MakeCache = ContiguousCache,
    should_stop: Stop | None = None,
) -> list[Generated]:
    """num_return_sequences answers to each prompt, those of the first prompt first.

    prompts: ids; an encoder-decoder reads them as sources, and `prefixes` are then where its
    answers start (default: decoder_start_token_id). tokenizer: for the texts; stop strings need it.
    should_stop is asked before each pass through the model; True ends all rows with what they have.
    Raises InputError.
    """
    job = plan(model, prompts, settings, prefixes)
    if settings.num_beams > 1:
        found = beams.search(model, job, settings, cache_factory, should_stop)
        return _from_beams(found, job, settings, tokenizer)
    collector = _Collector(job, settings, tokenizer)
    ends, seeds = collector.ends, collector.seeds
    for step in run(model, job, settings, cache_factory, should_stop, ends, seeds):
        collector.add(step)
    return [collector.result(row) for row in range(len(collector.seeds))]


@dataclass(frozen=True)
class Piece:
    """Text that became certain. result: with the last piece of a sequence, all about it."""

    text: str
    sequence: int = 0
    result: Generated | None = None


def stream_text(
    model: Model,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    settings: Settings,
    *,
    prefix: Sequence[int] | None = None,
    cache_factory: MakeCache = ContiguousCache,
    should_stop: Stop | None = None,
) -> Iterator[Piece]:
    """The answer to one prompt as text, piece by piece; the pieces of a sequence join to its text.

    A piece never ends inside a character, and never holds a part of a stop string. With beams the
    text comes in one piece at the end. Raises InputError.
    """
    prefixes = None if prefix is None else [prefix]
    if settings.num_beams > 1:
        for made in generate(
            model,
            [prompt],
            settings,
            tokenizer=tokenizer,
            prefixes=prefixes,
            cache_factory=cache_factory,
            should_stop=should_stop,
        ):
            yield Piece(made.text or "", made.sequence, made)
        return
    job = plan(model, [prompt], settings, prefixes)
    collector = _Collector(job, settings, tokenizer)
    ends, seeds = collector.ends, collector.seeds
    for step in run(model, job, settings, cache_factory, should_stop, ends, seeds):
        collector.add(step)
        for row in sorted({token.row for token in step.tokens} | step.finished.keys()):
            text = collector.texts[row].take()
            result = collector.result(row) if row in step.finished else None
            if text or result is not None:
                yield Piece(text, row, result)


class _Collector:
    """Steps -> Generated."""

    def __init__(self, job: Job, settings: Settings, tokenizer: Tokenizer | None) -> None:
        if settings.stop and tokenizer is None:
            raise InputError("stop strings need a tokenizer")
        self._job, self._settings = job, settings
        self._each = settings.num_return_sequences
        rows = len(job.starts) * self._each
        self.seeds = row_seeds(settings, rows)
        self._tokens: list[list[Token]] = [[] for _ in range(rows)]
        self._ended: dict[int, tuple[Reason, Step]] = {}
        self.texts = (
            []
            if tokenizer is None
            else [TextBuffer(tokenizer.stream(), settings.stop) for _ in range(rows)]
        )
        self.ends: Ends | None = None if tokenizer is None else self._push

    def _push(self, row: int, index: int) -> bool:
        return self.texts[row].push(index)

    def add(self, step: Step) -> None:
        for token in step.tokens:
            self._tokens[token.row].append(token)
        for row, reason in step.finished.items():
            if self.texts:
                self.texts[row].close()
            self._ended[row] = (reason, step)

    def result(self, row: int) -> Generated:
        tokens, (reason, step) = self._tokens[row], self._ended[row]
        prompt, sequence = divmod(row, self._each)
        if self.texts and self.texts[row].stopped:
            reason = "stop"
        asked = self._settings.logprobs is not None
        return Generated(
            prompt=prompt,
            sequence=sequence,
            ids=tuple(token.id for token in tokens),
            finish_reason=reason,
            timings=Timings(
                self._job.prompt_tokens[prompt],
                step.prompt_seconds,
                len(tokens),
                step.seconds - step.prompt_seconds,
            ),
            settings=_effective(self._settings, self._job.budgets[prompt]),
            text=self.texts[row].text if self.texts else None,
            logprobs=tuple(t.logprob or 0.0 for t in tokens) if asked else None,
            top_logprobs=tuple(t.top for t in tokens) if self._settings.logprobs else None,
            seed=self.seeds[row] if self._settings.sampling else None,
            dropped=self._job.dropped[prompt],
        )


def _effective(settings: Settings, budget: int) -> Settings:
    """The settings with the limit that was in force for this prompt."""
    return dataclasses.replace(settings, max_new_tokens=budget)


def _from_beams(
    found: beams.Found, job: Job, settings: Settings, tokenizer: Tokenizer | None
) -> list[Generated]:
    results = []
    for prompt, hypotheses in enumerate(found.hypotheses):
        for sequence, best in enumerate(hypotheses):
            results.append(
                Generated(
                    prompt=prompt,
                    sequence=sequence,
                    ids=best.ids,
                    finish_reason=best.reason,
                    timings=Timings(
                        job.prompt_tokens[prompt],
                        found.prompt_seconds,
                        len(best.ids),
                        found.seconds - found.prompt_seconds,
                    ),
                    settings=_effective(settings, job.budgets[prompt]),
                    text=_text(best.ids, settings, tokenizer),
                    score=best.score,
                    dropped=job.dropped[prompt],
                )
            )
    return results


def _text(ids: Sequence[int], settings: Settings, tokenizer: Tokenizer | None) -> str | None:
    if tokenizer is None:
        return None
    kept = [i for i in ids if i not in settings.eos_token_id]
    return tokenizer.decode(kept, skip_special=True)
