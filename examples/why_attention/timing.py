"""Claim 1: how long an epoch takes, against the length of its sequences.

    OMP_NUM_THREADS=1 python examples/why_attention/timing.py

An epoch is a fixed number of source tokens, and as many target tokens, cut into sequences of length
L. What is timed is one update of chumoku's loop (forward, backward, AdamW); the two models take
turns, so that what slows the machine down slows both.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import learn
import lstm
import torch
from learn import FIRST, Shape, recurrent, rounded, task, transformer
from torch import nn

from chumoku.training.data.batching import Batching
from chumoku.training.loop import Run
from chumoku.training.objectives.seq2seq import Example
from chumoku.training.settings import Settings as RunSettings


@dataclass(frozen=True)
class Case:
    """width: of the model. tokens: a batch is as many sequences as make so many source tokens (at
    least one sequence).
    """

    name: str
    width: int
    tokens: int

    def rows(self, length: int) -> int:
        return max(1, self.tokens // length)


@dataclass(frozen=True)
class Settings:
    """updates: timed, after one that is not; `…_spread` in the results is how far apart the ends of
    their middle half lie, over the median.
    """

    cases: tuple[Case, ...] = (Case("narrow", 128, 2048), Case("wide", 512, 1))
    lengths: tuple[int, ...] = (32, 128, 512, 1024, 2048)
    threads: tuple[int, ...] = (1,)
    epoch_tokens: int = 65_536
    updates: int = 11
    vocab: int = 64


@dataclass(frozen=True)
class Random:
    """Sequences of one length; what they say does not matter to a clock."""

    rows: int
    size: int
    vocab: int

    def __len__(self) -> int:
        return self.rows

    def length(self, index: int) -> int:
        return self.size

    def example(self, index: int, epoch: int) -> Example:
        rng = torch.Generator().manual_seed(index)
        source, target = torch.randint(FIRST, self.vocab, (2, self.size), generator=rng)
        return Example(source, target)


def update_seconds(
    models: Mapping[str, nn.Module], rows: int, length: int, settings: Settings
) -> dict[str, list[float]]:
    """Each model's updates, sorted; one before them is not counted."""
    steps = settings.updates + 1
    run_settings = RunSettings(steps=steps, save_every=0, batching=Batching(rows, window=0))
    found: dict[str, list[float]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as folder:
        runs = {
            name: Run(
                model,
                task(Random(rows, length, settings.vocab)),
                run_settings,
                Path(folder, name),
                learn.Curve(),
            )
            for name, model in models.items()
        }
        for _ in range(steps):
            for name, run in runs.items():
                found[name].append(run.update().seconds)
    return {name: sorted(seconds[1:]) for name, seconds in found.items()}


def measure(settings: Settings) -> dict[str, Any]:
    before = torch.get_num_threads()
    found, sizes = [], {}
    try:
        for case in settings.cases:
            shape = Shape(settings.vocab, settings.vocab, case.width, 2 * case.width)
            models = {"lstm": recurrent(shape, 0), "transformer": transformer(shape, 0)}
            sizes[case.name] = {name: lstm.parameters(model) for name, model in models.items()}
            for threads in settings.threads:
                torch.set_num_threads(threads)
                for length in settings.lengths:
                    rows = case.rows(length)
                    row = {"case": case.name, "threads": threads, "length": length, "rows": rows}
                    for name, seconds in update_seconds(models, rows, length, settings).items():
                        median = statistics.median(seconds)
                        row[name] = rounded(median * settings.epoch_tokens / (rows * length))
                        middle = seconds[len(seconds) // 4], seconds[-1 - len(seconds) // 4]
                        row[f"{name}_spread"] = rounded((middle[1] - middle[0]) / median)
                    print(row, flush=True)
                    found.append(row)
    finally:
        torch.set_num_threads(before)
    return learn.result(settings, {"parameters": sizes, "epochs": found})


if __name__ == "__main__":
    learn.write("timing", measure(Settings()))
