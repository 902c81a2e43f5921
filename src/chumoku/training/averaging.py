"""Averages of weights: an exponential one while training, and the plain mean of checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from chumoku.errors import CheckpointError, ConfigError
from chumoku.training.snapshots import read_snapshot
from chumoku.training.weights import trained

UPDATES: Final = "/updates"
"""Name of the counter among an average's tensors; no parameter's name begins like this."""


def warm_decay(decay: float, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after n updates, so that a young average follows quickly.

    Source: the `num_updates` rule of TensorFlow's ExponentialMovingAverage.
    """
    return min(decay, (1 + updates) / (10 + updates))


class EMA:
    """average <- d average + (1 - d) weight, with d = warm_decay(decay, updates so far).

    weights: by name, those that the optimiser steps; of narrow ones the float32 copies, since a
    rounded weight does not show a small step. The averages are float32 (float64 stays) and begin
    with the weights as they are. Decay near 1 is what is usual: 0.999, 0.9999.
    """

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        if not 0 < decay < 1:
            raise ConfigError(f"the average's decay must lie between 0 and 1, it is {decay}")
        self.decay = decay
        self.updates = 0
        self.averages = {
            name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for name, p in weights.items()
        }

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor]) -> None:
        """Take in the weights after one step."""
        averages = list(self.averages.values())
        new = [weights[n].detach().to(average.dtype) for n, average in self.averages.items()]
        torch._foreach_lerp_(averages, new, 1 - warm_decay(self.decay, self.updates))
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, model: nn.Module) -> None:
        """Make the averages the model's weights, rounded to their type."""
        for p, average in zip(trained(model).values(), self.averages.values(), strict=True):
            p.copy_(average)

    @contextlib.contextmanager
    def swapped(self, model: nn.Module) -> Iterator[None]:
        """The model with averaged weights; its own come back, bit for bit, whatever happens."""
        own = [p.detach().clone() for p in trained(model).values()]
        self.copy_to(model)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, value in zip(trained(model).values(), own, strict=True):
                    p.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by parameter name, live, and the number of updates."""
        return {**self.averages, UPDATES: torch.tensor(self.updates)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave. Raises CheckpointError, before any change, if unfit."""
        _same_tensors(self.tensors(), tensors)
        for name, average in self.averages.items():
            average.copy_(tensors[name])
        self.updates = int(tensors[UPDATES])


def average_states(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The arithmetic mean of weights, as the 2017 Transformer was evaluated (1706.03762, 6.1).

    Summed in float64, one state after another, and rounded to the type of the first. Whole numbers
    must agree. Raises CheckpointError where states differ in names, shapes, types or whole numbers,
    and where there is none.
    """
    first: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    count = 0
    for state in states:
        if count == 0:
            first = dict(state)
            sums = {n: t.double() for n, t in first.items() if t.is_floating_point()}
        else:
            _same_tensors(first, state)
            for name, tensor in state.items():
                if name in sums:
                    sums[name] = sums[name] + tensor.double()
                elif not torch.equal(tensor, first[name]):
                    raise CheckpointError("whole numbers that differ have no average", where=name)
        count += 1
    if count == 0:
        raise CheckpointError("there are no checkpoints to average")
    return {
        name: (sums[name] / count).to(tensor.dtype) if name in sums else tensor
        for name, tensor in first.items()
    }


def average_snapshots(folders: Iterable[Path]) -> dict[str, Tensor]:
    """`average_states` of the weights in snapshots of a run, read one at a time and checked."""
    return average_states(_weights(Path(folder)) for folder in folders)


def _weights(folder: Path) -> Mapping[str, Tensor]:
    tensors = read_snapshot(folder).tensors
    if "model" not in tensors:
        raise CheckpointError("the snapshot holds no weights", where=folder)
    return tensors["model"]


def _same_tensors(want: Mapping[str, Tensor], have: Mapping[str, Tensor]) -> None:
    for name in sorted({*want, *have}):
        if name not in have or name not in want:
            side = "missing" if name in want else "one too many"
            raise CheckpointError(f"a tensor is {side}", where=name)
        a, b = want[name], have[name]
        if a.shape != b.shape or a.dtype != b.dtype:
            raise CheckpointError(
                f"{b.dtype} {[*b.shape]} does not fit {a.dtype} {[*a.shape]}", where=name
            )
