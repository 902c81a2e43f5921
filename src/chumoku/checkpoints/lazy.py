"""A tensor that is known by name, shape and storage, and whose bytes are read only when asked for.

Readers (safetensors, gguf, torch_bin) yield these; loading.py turns them into parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from chumoku.kernels.blocks import STORAGE

__all__ = ["STORAGE", "LazyTensor", "Raw"]

Raw = bytearray | memoryview
"""Owned, writable bytes."""


@dataclass(frozen=True)
class LazyTensor:
    """name: as published. shape: row-major, outermost first (NumPy's order).

    storage: a key of STORAGE. read(): a fresh, owned copy of the raw little-endian bytes; rows
    (the last axis) are stored one after the other, each a whole number of blocks.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    read: Callable[[], Raw]

    @property
    def nbytes(self) -> int:
        per_block, block_bytes = STORAGE[self.storage]
        count = 1
        for size in self.shape:
            count *= size
        return count // per_block * block_bytes

    @property
    def quantized(self) -> bool:
        """True where the storage packs several values into a block."""
        return STORAGE[self.storage][0] > 1
