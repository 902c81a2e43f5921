"""The processes that train together. Alone is one; distributed.py has those under torchrun."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from chumoku.training.snapshots import Snapshot, write_snapshot


class World(Protocol):
    """What the loop asks of the processes that it is one of.

    Each process has its share of every batch. Once `exchange` has been called, gradients are the
    sum over processes divided by `divided_by`; the loop multiplies that back.
    """

    rank: int
    size: int
    divided_by: int

    def prepare(self, objective: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, torch.dtype]:
        """The objective (a module whose forward gives the loss) made to work together.

        All take the first process's weights. The second value is the type of the weights that the
        optimiser steps: wider than `dtype` where the world itself rounds them for computing.
        """
        ...

    def backward(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around a batch's forward and backward; last: of a step."""
        ...

    def exchange(self, parameters: Sequence[Tensor]) -> None:
        """After a step's batches: what `backward` has not exchanged of the gradients is now."""
        ...

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        """Euclidean norm over all gradients."""
        ...

    def whole(self, model: nn.Module) -> nn.Module:
        """A prepared objective's model as one process alone holds it, to evaluate and to save.

        The model itself, or a copy with the weights of all processes (which all must ask for it).
        """
        ...

    def placed(
        self, like: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        """Whole tensors as this process holds those of the same names in `like`."""
        ...

    def save(self, folder: Path, snapshot: Snapshot, *, keep: int | None) -> None:
        """`write_snapshot` once for all; where it fails in one process it fails in all."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over processes; the same bits in each."""
        ...

    def gather(self, values: Tensor) -> list[Tensor]:
        """Each process's values, of one shape, in the order of ranks."""
        ...

    def wait(self) -> None:
        """Go on when all have come here."""
        ...

    def together(self) -> AbstractContextManager[None]:
        """Inside, the loss of another process is a TrainingError."""
        ...


class Alone:
    """One process."""

    rank = 0
    size = 1
    divided_by = 1

    def prepare(self, objective: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, torch.dtype]:
        return objective, dtype

    def backward(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def exchange(self, parameters: Sequence[Tensor]) -> None:
        return None

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)

    def whole(self, model: nn.Module) -> nn.Module:
        return model

    def placed(
        self, like: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        return values

    def save(self, folder: Path, snapshot: Snapshot, *, keep: int | None) -> None:
        write_snapshot(folder, snapshot, keep=keep)

    def sum(self, values: Tensor) -> Tensor:
        return values

    def gather(self, values: Tensor) -> list[Tensor]:
        return [values]

    def wait(self) -> None:
        return None

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()
