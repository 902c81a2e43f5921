"""Freed memory stays in the process, so that activations do not come from the system each time."""

from __future__ import annotations

import ctypes
from functools import cache

import torch


@cache
def keep_freed_memory() -> None:
    """Let glibc keep up to 62 MiB of what was freed, instead of 256 KiB to a few MiB.

    Otherwise the activations of a long prompt go back to the system and come again layer by layer:
    100,000 page faults, a fifth of the time. glibc's limits follow the largest block below 32 MiB
    that was freed (mallopt(3), M_MMAP_THRESHOLD). This one is never touched, so it costs nothing;
    on other systems it does nothing.
    """
    torch.empty(31 << 20, dtype=torch.uint8, device="cpu")


M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's malloc.h."""


@cache
def keep_all_freed_memory() -> None:
    """Let glibc keep freed memory of any size, for work that asks for the same again and again.

    A training step's largest tensors (the gradient of an embedding, logits) are above the 32 MiB
    below which `keep_freed_memory` works: each step they came new from the system, page by page, 4
    to 9 per cent of MiniLM's step. Now they are taken from the heap (mallopt(3): no mmap, no
    trimming below 1 GiB), for the rest of the process. Without glibc it does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # musl, macOS, Windows
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 1 << 30)
