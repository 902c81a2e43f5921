"""Claim 1: how long an epoch takes, against the length of its sequences.

    OMP_NUM_THREADS=2 python examples/why_attention/timing.py

An epoch is a fixed number of source tokens, and as many target tokens, cut into sequences of length
L. What is timed is one update of chumoku's loop (forward, backward, AdamW), the median of a few.
"""

from __future__ import annotations

import statistics
import tempfile
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
    """updates: timed, after one that is not."""

    cases: tuple[Case, ...] = (Case("narrow", 128, 2048), Case("wide", 512, 1))
    lengths: tuple[int, ...] = (32, 128, 512, 1024, 2048)
    threads: tuple[int, ...] = (1, 2)
    epoch_tokens: int = 65_536
    updates: int = 3
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


def update_seconds(model: nn.Module, rows: int, length: int, settings: Settings) -> float:
    """Median time of one update."""
    examples = Random(rows, length, settings.vocab)
    run_settings = RunSettings(steps=10, save_every=0, batching=Batching(rows, window=0))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(model, task(examples), run_settings, Path(folder), learn.Curve())
        run.update()
        return statistics.median(run.update().seconds for _ in range(settings.updates))


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
                    for name, model in models.items():
                        seconds = update_seconds(model, rows, length, settings)
                        row[name] = rounded(seconds * settings.epoch_tokens / (rows * length))
                    print(row, flush=True)
                    found.append(row)
    finally:
        torch.set_num_threads(before)
    return learn.result(settings, {"parameters": sizes, "epochs": found})


if __name__ == "__main__":
    learn.write("timing", measure(Settings()))
