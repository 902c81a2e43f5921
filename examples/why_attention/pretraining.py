"""Claim 5: what pre-training is worth, by the number of labels.

    OMP_NUM_THREADS=1 python examples/why_attention/pretraining.py [../shared/data/sst]

all-MiniLM-L6-v2 (BERT's architecture, 6 blocks, width 384) learns whether a sentence of a film
review is positive, once from its published weights and once from random ones, with the same
tokenizer, examples, order, number of updates and, each, a learning rate of its own. Judged is the
accuracy on a part of SST-2's test sentences. A seed draws the examples, their order, the new head
and, from scratch, all weights.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import learn
import lstm
import torch
from learn import DATA, rounded

import chumoku
from chumoku.loading import Loaded
from chumoku.training.data.batching import Batching
from chumoku.training.data.order import permuted
from chumoku.training.data.rows import read_rows
from chumoku.training.objectives import classification
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.schedules import ScheduleSettings
from chumoku.training.settings import Settings as RunSettings

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Size:
    """labels: 0 is all. seeds: how many runs of each kind."""

    labels: int
    updates: int
    seeds: int


@dataclass(frozen=True)
class Settings:
    """tested: test sentences, the same for all runs. length: most tokens of a sentence."""

    sizes: tuple[Size, ...] = (
        Size(100, 30, 5),
        Size(300, 35, 5),
        Size(1_000, 63, 5),
        Size(0, 433, 5),
    )
    tested: int = 400
    batch: int = 16
    length: int = 48
    pretrained_rate: float = 2e-4
    scratch_rate: float = 1e-4
    source: str = "all-minilm-l6-v2"


def read(folder: Path, name: str) -> Rows:
    return [dict(r) for r in read_rows(folder / f"stsa.binary.{name}", format="label-text").rows]


def drawn(rows: Rows, count: int, seed: int) -> Rows:
    """`count` of the rows; 0 is all."""
    import numpy as np

    order = permuted(np.arange(len(rows), dtype=np.uint64), len(rows), seed, 0)
    return [rows[int(i)] for i in order[: count or len(rows)]]


def model(kind: str, settings: Settings, labels: tuple[str, ...], seed: int) -> Loaded:
    """The published weights under a new head, or all weights anew."""
    torch.manual_seed(seed)
    loaded = chumoku.load(settings.source, head="classification", new_head=True, labels=labels)
    if kind == "pretrained":
        return loaded
    created = chumoku.create(loaded.config, "classification", seed)
    return replace(created, tokenizer=loaded.tokenizer)


def accuracy(
    kind: str, settings: Settings, size: Size, seed: int, data: Mapping[str, Rows]
) -> tuple[float, float, int]:
    """(accuracy on the test, processor seconds of training, parameters)."""
    loaded = model(kind, settings, classification.labels_of(data["train"]), seed)
    learned = classification.task(
        loaded,
        drawn(data["train"], size.labels, seed),
        evaluation=data["test"],
        max_length=settings.length,
    )
    rate = settings.pretrained_rate if kind == "pretrained" else settings.scratch_rate
    run_settings = RunSettings(
        steps=size.updates,
        seed=seed,
        save_every=0,
        evaluate_every=0,
        keep_best=False,
        batching=Batching(settings.batch),
        optimiser=OptimiserSettings(learning_rate=rate),
        schedule=ScheduleSettings("linear", warmup_fraction=0.1),
    )
    curve = learn.train(loaded.model, learned, run_settings)
    return curve.points[-1]["accuracy"], curve.seconds, lstm.parameters(loaded.model)


def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    train, test = read(folder, "train"), drawn(read(folder, "test"), settings.tested, 0)
    data = {"train": train, "test": test}
    found = []
    for size in settings.sizes:
        row: dict[str, Any] = {"labels": size.labels or len(train), "updates": size.updates}
        for kind in ("pretrained", "scratch"):
            runs = [accuracy(kind, settings, size, seed, data) for seed in range(size.seeds)]
            row[kind] = [rounded(run[0]) for run in runs]
            row[f"{kind}_seconds"] = round(sum(run[1] for run in runs) / len(runs), 1)
            row["parameters"] = runs[0][2]
        print(row, flush=True)
        found.append(row)
    most = max(sum(row["label"] == name for row in test) for name in ("0", "1"))
    return learn.result(settings, {"majority": rounded(most / len(test)), "sizes": found})


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if sys.argv[1:] else DATA / "sst"
    learn.write("pretraining", measure(folder, Settings()))
