"""A tensor that is known by name, shape and storage, and whose bytes are read only when asked for.

Readers (safetensors, gguf, torch_bin) yield these; loading.py turns them into parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

# storage -> (values per block, bytes per block); the names are GGUF's, which cover safetensors' too.
STORAGE: Final[dict[str, tuple[int, int]]] = {
    "F64": (1, 8),
    "F32": (1, 4),
    "F16": (1, 2),
    "BF16": (1, 2),
    "I64": (1, 8),
    "I32": (1, 4),
    "I16": (1, 2),
    "I8": (1, 1),
    "U8": (1, 1),
    "BOOL": (1, 1),
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q5_0": (32, 22),
    "Q5_1": (32, 24),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
}


@dataclass(frozen=True)
class LazyTensor:
    """name: as published. shape: row-major, outermost first (NumPy's order).

    storage: a key of STORAGE. read(): a fresh, owned copy of the raw little-endian bytes; rows
    (the last axis) are stored one after the other, each a whole number of blocks.
    """

    name: str
    shape: tuple[int, ...]
    storage: str
    read: Callable[[], bytearray]

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
