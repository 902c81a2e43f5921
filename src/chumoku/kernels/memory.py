"""Freed memory stays in the process, so that activations do not come from the system each time."""

from __future__ import annotations

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
