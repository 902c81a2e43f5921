"""A small run that has everything which could break exact resuming, as a library and as a program.

    python tests/training/runs.py FOLDER [key=value …]

A GPT-2 of two blocks with dropout learns packed documents with accumulation, a cosine schedule, an
average of the weights and evaluations. FOLDER/losses gets each step's loss as a hex float.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from chumoku.loading import Loaded, create
from chumoku.training.data.batching import Batching
from chumoku.training.loop import Run
from chumoku.training.objectives import causal_lm
from chumoku.training.objectives.causal_lm import Windows, stream_of
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.progress import Step
from chumoku.training.schedules import ScheduleSettings
from chumoku.training.settings import Settings
from chumoku.training.signals import StoppedError
from chumoku.training.task import Task, generator

CONFIG: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_positions": 24,
    "n_embd": 16,
    "n_layer": 2,
    "n_head": 2,
}

SETTINGS = Settings(
    steps=30,
    accumulate=2,
    ema=0.9,
    evaluate_every=7,
    save_every=4,
    seed=5,
    batching=Batching(batch_size=4, window=3),
    optimiser=OptimiserSettings(learning_rate=3e-3),
    schedule=ScheduleSettings(kind="cosine", warmup_steps=5),
)


def model(seed: int = 1) -> Loaded:
    return create(CONFIG, "causal-lm", seed)


def task(documents: int = 60) -> Task:
    """Documents of 3 to 20 random tokens, packed into windows of 16 that differ in each epoch."""
    texts = []
    for number in range(documents):
        rng = generator(9, 0, number)
        length = int(torch.randint(3, 21, (), generator=rng))
        texts.append(torch.randint(40, (length,), generator=rng).tolist())
    held_out = Windows(stream_of(texts[:10], True), 16, "fixed", 0)
    return Task(
        examples=Windows(stream_of(texts, True), 16, "each", 3),
        collate=causal_lm.collate,
        loss=causal_lm.loss,
        evaluate=causal_lm.evaluator(held_out, 8),
    )


@dataclass
class Kept:
    """A report that remembers. losses: of each step, as hex."""

    losses: dict[int, str] = field(default_factory=dict)
    metrics: dict[int, Mapping[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    file: Path | None = None

    def resumed(self, step: int) -> None:
        self.begun.append(step)
        for later in [s for s in self.losses if s > step]:
            del self.losses[later]

    def step(self, step: Step) -> None:
        self.losses[step.step] = step.loss.hex()
        if self.file is not None:
            with self.file.open("a") as stream:
                stream.write(f"{step.step} {step.loss.hex()}\n")

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.metrics[step] = metrics

    def sample(self, step: int, text: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)

    def close(self) -> None: ...


def weights(loaded: Loaded) -> str:
    """SHA-256 of all weights."""
    from chumoku.training.weights import digest

    return digest(loaded.model.parameters())


def main(folder: Path, changes: Mapping[str, str]) -> int:
    """Run, or go on; the digest of the final weights goes to FOLDER/weights."""
    from chumoku.training.recipe import parse_value

    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    settings = replace(SETTINGS, **{k: parse_value(v) for k, v in changes.items()})
    loaded = model()
    report = Kept(file=folder / "losses")
    try:
        run = Run(loaded.model, task(), settings, folder, report)
        print("ready", flush=True)
        run.train()
    except StoppedError as error:
        print(error, file=sys.stderr)
        return error.code
    (folder / "weights").write_text(weights(loaded))
    return 0


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), dict(word.split("=") for word in sys.argv[2:]))
    sys.stdout.flush()
    os._exit(code)
