"""Freed memory stays in the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

COUNT_FAULTS = """
import ctypes
import resource
from chumoku.kernels.memory import keep_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [libc.malloc(8 << 20) for _ in range(7)]
    for block in held:
        ctypes.memset(block, 1, 8 << 20)
    for block in held:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults() for _ in range(4)]
keep_freed_memory()
print(min(before), max([faults() for _ in range(4)][1:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's limits")
def test_activations_are_not_asked_for_again() -> None:
    """Seven blocks of 8 MiB are 14,336 pages, each time; afterwards the first time only."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COUNT_FAULTS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 10_000
    assert after < 1000
