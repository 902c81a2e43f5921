"""Claim 2: recalling a symbol k steps back.

    OMP_NUM_THREADS=1 python examples/why_attention/copying.py

A model reads k random symbols and writes them again: each is written exactly k steps after it was
read (the LSTM reads in one direction here, so that this is its distance too). Chance is one in the
number of symbols. What is counted are single symbols, with the right ones before them given.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import learn
import lstm
import torch
from learn import FIRST, Shape, recurrent, rounded, task, transformer
from torch import nn

from chumoku.training.data.batching import Batching
from chumoku.training.objectives.seq2seq import Example, judge_targets
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.schedules import ScheduleSettings
from chumoku.training.settings import Settings as RunSettings
from chumoku.training.task import generator


@dataclass(frozen=True)
class Settings:
    """longest: of the distances learned from, 1 to longest alike. judged: distances judged at, on
    `held_out` sequences each. rate: of learning, the same for all.
    """

    longest: int = 24
    judged: tuple[int, ...] = (1, 2, 4, 8, 12, 16, 20, 24, 26, 28, 32)
    held_out: int = 200
    symbols: int = 32
    steps: int = 1500
    batch: int = 32
    rate: float = 4e-3
    width: int = 64
    feedforward: int = 128
    seeds: int = 2


@dataclass(frozen=True)
class Copies:
    """Sequences to copy; new ones in every epoch. size: of all of them; None: 1 to `longest`."""

    rows: int
    longest: int
    symbols: int
    seed: int
    size: int | None = None

    def __len__(self) -> int:
        return self.rows

    def length(self, index: int) -> int:
        return index % self.longest + 1 if self.size is None else self.size

    def example(self, index: int, epoch: int) -> Example:
        rng = generator(self.seed, epoch, index)
        text = torch.randint(self.symbols, (self.length(index),), generator=rng) + FIRST
        return Example(text, text)


def models(settings: Settings, seed: int) -> dict[str, nn.Module]:
    vocab = settings.symbols + FIRST
    shape = Shape(vocab, vocab, settings.width, settings.feedforward, dropout=0.0)
    return {
        "lstm": recurrent(shape, seed, attention=False, bidirectional=False),
        "lstm_attention": recurrent(shape, seed, bidirectional=False),
        "transformer": transformer(shape, seed),
    }


def accuracies(model: nn.Module, settings: Settings) -> list[float]:
    """At each distance judged."""
    found = []
    for distance in settings.judged:
        rows = settings.held_out
        copies = Copies(rows, settings.longest, settings.symbols, seed=-1, size=distance)
        with torch.inference_mode():
            judged = judge_targets(model, copies, learn.collate, rows)
        found.append(rounded(judged.accuracy))
    return found


def measure(settings: Settings) -> dict[str, Any]:
    runs: dict[str, list[list[float]]] = {}
    seconds: dict[str, list[float]] = {}
    sizes = {}
    for seed in range(settings.seeds):
        for name, model in models(settings, seed).items():
            rows = settings.longest * settings.batch
            learned = task(Copies(rows, settings.longest, settings.symbols, seed))
            run_settings = RunSettings(
                steps=settings.steps,
                save_every=0,
                seed=seed,
                batching=Batching(settings.batch, window=settings.longest),
                optimiser=OptimiserSettings(learning_rate=settings.rate, weight_decay=0.0),
                schedule=ScheduleSettings("linear", warmup_steps=settings.steps // 10),
            )
            curve = learn.train(model, learned, run_settings)
            runs.setdefault(name, []).append(accuracies(model, settings))
            seconds.setdefault(name, []).append(curve.seconds)
            sizes[name] = lstm.parameters(model)
            print(name, seed, round(curve.seconds, 1), runs[name][-1], flush=True)
    return learn.result(
        settings,
        {
            "parameters": sizes,
            "seconds": {name: round(statistics.mean(some), 1) for name, some in seconds.items()},
            "accuracy": runs,
        },
    )


if __name__ == "__main__":
    learn.write("copying", measure(Settings()))
