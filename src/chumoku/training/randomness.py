"""The random state of a process as tensors and JSON: PyTorch's, Python's and NumPy's."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from chumoku.errors import CheckpointError

CPU: Final = "torch.cpu"
CUDA: Final = "torch.cuda"


def seed_all(seed: int) -> None:
    """Set every generator of this process."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % (1 << 32))


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, JSON) which `set_random_state` takes back."""
    tensors = {CPU: torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors[CUDA] = torch.cuda.get_rng_state()
    version, numbers, gauss = random.getstate()
    kind, keys, place, has_gauss, cached = np.random.get_state()
    tensors["numpy"] = torch.from_numpy(np.asarray(keys).astype(np.int64))
    other = {
        "python": [version, list(numbers), gauss],
        "numpy": [kind, int(place), int(has_gauss), float(cached)],
    }
    return tensors, other


def set_random_state(tensors: Mapping[str, Tensor], other: Mapping[str, Any]) -> None:
    """Put every generator where it was. Raises CheckpointError where a state is missing."""
    try:
        torch.set_rng_state(tensors[CPU])
        if CUDA in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[CUDA])
        version, numbers, gauss = other["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, place, has_gauss, cached = other["numpy"]
        keys = tensors["numpy"].numpy().astype(np.uint32)
        np.random.set_state((kind, keys, place, has_gauss, cached))
    except (KeyError, ValueError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"the random state cannot be restored: {error}") from error
