"""The random state of a process as tensors: PyTorch's, Python's and NumPy's."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
import torch
from torch import Tensor

from chumoku.errors import CheckpointError
from chumoku.training.task import generator

CPU: Final = "torch.cpu"
CUDA: Final = "torch.cuda"
_KIND: Final = "MT19937"


def seed_all(seed: int) -> None:
    """Set every generator of this process."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))


def random_state() -> dict[str, Tensor]:
    """Tensors which `set_random_state` takes back."""
    tensors = {CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[CUDA] = torch.cuda.get_rng_state()
    version, numbers, gauss = random.getstate()
    tensors["python"] = torch.tensor([version, *numbers], dtype=torch.int64)
    tensors["python.gauss"] = _optional(gauss is not None, gauss or 0.0)
    _, keys, place, has_gauss, cached = np.random.get_state()
    tensors["numpy"] = torch.tensor([int(place), *np.asarray(keys).tolist()], dtype=torch.int64)
    tensors["numpy.gauss"] = _optional(bool(has_gauss), float(cached))
    return tensors


def set_random_state(tensors: Mapping[str, Tensor]) -> None:
    """Put every generator where it was. Raises CheckpointError where a state is missing."""
    try:
        torch.set_rng_state(tensors[CPU])
        if CUDA in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[CUDA])
        version, *numbers = tensors["python"].tolist()
        has_gauss, gauss = tensors["python.gauss"].tolist()
        random.setstate((version, tuple(numbers), gauss if has_gauss else None))
        place, *keys = tensors["numpy"].tolist()
        has_gauss, cached = tensors["numpy.gauss"].tolist()
        state = (_KIND, np.array(keys, dtype=np.uint32), place, int(has_gauss), cached)
        np.random.set_state(state)
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the random state cannot be restored: {error}") from error


def state_of_all(gather: Callable[[Tensor], list[Tensor]]) -> dict[str, Tensor]:
    """The random states of all processes: "0/torch.cpu", "1/torch.cpu", …."""
    return {
        f"{rank}/{name}": value
        for name, own in random_state().items()
        for rank, value in enumerate(gather(own))
    }


def set_own_state(
    tensors: Mapping[str, Tensor], rank: int, size: int, *, seed: int, step: int
) -> None:
    """Put back this process's part of `state_of_all`.

    Where there were more processes or fewer, no state is this one's: all begin anew, from the seed,
    the step and their rank, or two would go on with the same numbers.
    """
    if len({name.partition("/")[0] for name in tensors}) != size:
        seed_all(generator(seed, step, rank).initial_seed())
        return
    prefix = f"{rank}/"
    own = {n.removeprefix(prefix): value for n, value in tensors.items() if n.startswith(prefix)}
    set_random_state(own)


def _optional(present: bool, value: float) -> Tensor:
    return torch.tensor([float(present), value], dtype=torch.float64)
