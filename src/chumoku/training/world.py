"""The processes that train together. Alone is one; distributed.py has those under torchrun."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import torch
from torch import Tensor, nn


class World(Protocol):
    """What the loop asks of the processes that it is one of.

    Each process has its share of every batch. Gradients come back from the backward pass as the sum
    over processes divided by `divided_by`; the loop multiplies that back.
    """

    rank: int
    size: int
    divided_by: int

    def prepare(self, objective: nn.Module) -> nn.Module:
        """The objective (a module whose forward gives the loss) made to work together."""
        ...

    def backward(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Around a batch's forward and backward; gradients are exchanged in the last of a step."""
        ...

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over processes; the same bits in each."""
        ...

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        """Euclidean norm over all gradients."""
        ...

    def gather(self, values: Tensor) -> list[Tensor]:
        """Each process's values, of one shape, in the order of ranks."""
        ...

    def wait(self) -> None:
        """Go on when all have come here."""
        ...


class Alone:
    """One process."""

    rank = 0
    size = 1
    divided_by = 1

    def prepare(self, objective: nn.Module) -> nn.Module:
        return objective

    def backward(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def sum(self, values: Tensor) -> Tensor:
        return values

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)

    def gather(self, values: Tensor) -> list[Tensor]:
        return [values]

    def wait(self) -> None:
        return None
