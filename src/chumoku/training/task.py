"""What the loop is given: examples, how they become a batch, the loss, and how to judge a model.

The loop knows nothing else of what is learned. A loss is a *sum* over units (tokens, rows, spans)
beside the number of units, so that accumulated and distributed batches weigh every unit alike:
gradients of sums add up, and are divided once by the number of units of the whole step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

IGNORED = -100
"""The label of a position that has no target (PyTorch's ignore_index)."""


class Loss(NamedTuple):
    """total: the sum of the loss over all units, with a gradient. units: how many they are.

    parts: further sums over the same units that are only shown (masked and next-sentence loss, …).
    """

    total: Tensor
    units: Tensor
    parts: Mapping[str, Tensor] = {}


class Examples(Protocol):
    """Random access to what is learned from.

    An example depends on its index and the epoch alone, never on what was asked before: that is
    what makes resuming exact. What is drawn for it (masks, pairs, spans) comes from
    `generator(seed, epoch, index)`.
    """

    def __len__(self) -> int: ...

    def length(self, index: int) -> int:
        """Tokens of an example, at least about; batches of like lengths are made from it."""
        ...

    def example(self, index: int, epoch: int) -> Any:
        """One example: what `Task.collate` takes a list of."""
        ...


@dataclass(frozen=True)
class Task:
    """One thing to learn.

    collate: a list of examples -> a batch, a NamedTuple of tensors (and plain values).
    loss: (model, batch) -> Loss; the model is in the mode that the loop has put it into.
    evaluate: model -> metrics by name; the loop has called eval() and inference_mode.
    metric: the one that chooses the best checkpoint; higher is better unless `lower`.
    sample: model -> a text to show while training.
    tokens: tokens in a batch, for tokens/s.
    """

    examples: Examples
    collate: Callable[[Sequence[Any]], Any]
    loss: Callable[[nn.Module, Any], Loss]
    evaluate: Callable[[nn.Module], dict[str, float]] | None = None
    metric: str = "loss"
    lower: bool = True
    sample: Callable[[nn.Module], str] | None = None
    tokens: Callable[[Any], int] = field(default=lambda batch: int(batch[0].numel()))


@dataclass(frozen=True)
class Kind:
    """An objective as [task] kind of a recipe names it: KIND in each file of objectives/.

    head: what the model needs; "": what it has. task: (model, rows, options) -> Task. check_row:
    raises InputError for a row that cannot be used. labels_of: rows -> the names for a new head.
    problem_of: rows -> what kind of labels they have, an option of the others. described: the model
    with what its own files should say of the objective. files_of: rows -> JSON that goes with the
    model, by file name. Each is given those options of [task] that it takes. column: only this
    column of the rows is passed on. streams: a RowStream may stand for the rows.
    """

    head: str
    task: Callable[..., Task]
    check_row: Callable[..., object]
    labels_of: Callable[..., Sequence[str]] | None = None
    problem_of: Callable[..., str] | None = None
    described: Callable[..., Any] | None = None
    files_of: Callable[..., Mapping[str, Any]] | None = None
    column: str | None = None
    streams: bool = False


def generator(seed: int, epoch: int, index: int) -> torch.Generator:
    """The random numbers of one example: the same for the same three numbers, on every machine.

    The three are mixed by SplitMix64's finaliser (Steele et al., OOPSLA 2014), so that neighbours
    have nothing in common.
    """
    mixed = 0
    for part in (seed, epoch, index):
        mixed = _mix((mixed + 0x9E3779B97F4A7C15 + part) & _MASK)
    return torch.Generator().manual_seed(mixed)


_MASK = (1 << 64) - 1


def _mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


def padded(rows: Sequence[Sequence[int]], pad: int) -> Tensor:
    """Lists of ids as one tensor [B, T], filled up on the right with `pad`."""
    longest = max(map(len, rows))
    return torch.tensor([[*row, *[pad] * (longest - len(row))] for row in rows])


def to_device(batch: Any, device: torch.device) -> Any:
    """A NamedTuple with its tensors on a device; what is no tensor stays."""
    moved = (x.to(device, non_blocking=True) if isinstance(x, Tensor) else x for x in batch)
    return type(batch)(*moved)
