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
import sys
from chumoku.kernels import memory
size, count = int(sys.argv[1]) << 20, int(sys.argv[2])
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [libc.malloc(size) for _ in range(count)]
    for block in held:
        ctypes.memset(block, 1, size)
    for block in held:
        libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = [faults() for _ in range(4)]
getattr(memory, sys.argv[3])()
print(min(before), max([faults() for _ in range(4)][1:]))
"""


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's limits")


def faults(megabytes: int, count: int, function: str) -> tuple[int, int]:
    """Pages asked for by so many blocks, in a process of its own: before the call, and after."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", COUNT_FAULTS, str(megabytes), str(count), function]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    return before, after


@pytest.mark.parametrize(
    ("megabytes", "count", "function"),
    [
        (8, 7, "keep_freed_memory"),
        (48, 1, "keep_all_freed_memory"),  # the gradient of BERT's embedding, 384 wide
        (200, 2, "keep_all_freed_memory"),
    ],
)
def test_memory_is_not_asked_for_again(megabytes: int, count: int, function: str) -> None:
    """A page has 4 KiB: these are touched each time before, and the first time only afterwards."""
    before, after = faults(megabytes, count, function)
    assert before > megabytes * count * 200
    assert after < 1000


def test_the_smaller_limit_does_not_keep_large_blocks() -> None:
    """Why there are two functions."""
    _, after = faults(48, 1, "keep_freed_memory")
    assert after > 48 * 200
