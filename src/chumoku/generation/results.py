"""What generation gives back: a Step while it runs, a Generated when a sequence has ended."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from chumoku.generation.settings import Settings

Reason = Literal["stop", "length", "cancelled"]
"""An end token or stop string; the limit; or the caller."""

Alternatives = tuple[tuple[int, float], ...]
"""(token id, log-probability), likeliest first."""


@dataclass(frozen=True)
class Token:
    """One new token of one row. Rows are numbered prompt * num_return_sequences + sequence."""

    row: int
    id: int
    logprob: float | None = None
    top: Alternatives = ()


@dataclass(frozen=True)
class Step:
    """One time step of all rows that are still running.

    finished: rows that end here, and why. prompt_seconds: until the first logits; seconds: from
    the beginning until now.
    """

    tokens: tuple[Token, ...]
    finished: Mapping[int, Reason]
    prompt_seconds: float
    seconds: float


@dataclass(frozen=True)
class Timings:
    """prompt_seconds is that of the whole batch; generated_seconds until this sequence ended."""

    prompt_tokens: int
    prompt_seconds: float
    generated_tokens: int
    generated_seconds: float


@dataclass(frozen=True)
class Generated:
    """One finished sequence.

    ids: new tokens only, the end token included. text: where a tokenizer was given; without end
    token and stop string. score: of beam search, log-probability / length ** length_penalty.
    logprobs and top_logprobs: one entry a token where asked for. seed: makes this very sequence
    again as the only one of its call. dropped: tokens of the prompt left out by the overflow
    policy. settings: those that were in effect.
    """

    prompt: int
    sequence: int
    ids: tuple[int, ...]
    finish_reason: Reason
    timings: Timings
    settings: Settings
    text: str | None = None
    score: float | None = None
    logprobs: tuple[float, ...] | None = None
    top_logprobs: tuple[Alternatives, ...] | None = None
    seed: int | None = None
    dropped: int = 0
