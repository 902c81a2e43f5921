"""A run over a packed stream, stopped and started again: the same losses to the last bit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training.runs import SETTINGS, Kept, model, task, weights

from chumoku.training import loop
from chumoku.training.data.batching import Batching
from chumoku.training.data.packing import Packed, Packer
from chumoku.training.data.sources import LineRows
from chumoku.training.data.streaming import Streamed, batches_of
from chumoku.training.objectives import causal_lm
from chumoku.training.progress import Step
from chumoku.training.task import Task, generator

STEPS = 14
RUN = replace(SETTINGS, steps=STEPS, save_every=3, batching=Batching(batch_size=3, window=4))


class Killed(Exception):  # noqa: N818
    pass


class Stopping(Kept):
    """Stops behind a step."""

    stop = 0

    def step(self, step: Step) -> None:
        super().step(step)
        if step.step == self.stop:
            raise Killed


class Forgetful(Packer):
    """The negative control: its remainder is lost when the run is saved."""

    def state(self) -> dict[str, Any]:
        return {"ids": [], "numbers": []}


def ids_of(row: Mapping[str, Any]) -> list[int]:
    return [int(word) for word in row["text"].split()]


def collate(rows: list[Packed]) -> Any:
    return causal_lm.collate([causal_lm.row_of(*row) for row in rows])


def streamed(folder: Path, packer: type[Packer] = Packer) -> Task:
    path = folder / "stream.txt"
    if not path.exists():
        rng = generator(2, 0, 0)
        sizes = torch.randint(3, 21, (50,), generator=rng).tolist()
        texts = [torch.randint(40, (size,), generator=rng).tolist() for size in sizes]
        path.write_text("".join(" ".join(map(str, text)) + "\n" for text in texts))
    examples = Streamed(
        lambda: LineRows([str(path)], "text"), lambda: packer(ids_of, 17, overlap=1), rows=35
    )
    return replace(task(10), examples=examples, collate=collate)


def run(folder: Path, report: Kept, own: Task) -> str:
    loaded = model()
    loop.Run(loaded.model, own, RUN, folder, report).train()
    return weights(loaded)


@pytest.mark.parametrize("packer", [Packer, Forgetful])
def test_a_run_over_a_stream_goes_on_exactly(
    packer: type[Packer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "Batches", batches_of, raising=False)
    whole = Kept()
    digest = run(tmp_path / "whole", whole, streamed(tmp_path))
    outcomes = []
    for stop in (1, 7, 13):
        report = Stopping()
        report.stop = stop
        with pytest.raises(Killed):
            run(tmp_path / str(stop), report, streamed(tmp_path, packer))
        report.stop = 0
        again = run(tmp_path / str(stop), report, streamed(tmp_path, packer))
        outcomes.append(again == digest and report.losses == whole.losses)
    assert len(whole.losses) == STEPS
    assert all(outcomes) == (packer is Packer)
