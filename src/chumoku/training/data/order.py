"""The order of an epoch as a pure function: no list is shuffled, so there is no state to lose.

A Feistel network over a power of four above n is a bijection whatever its round function (Luby &
Rackoff, SIAM J. Comput. 17(2), 1988); values that fall outside are sent through again until they
fall inside ("cycle walking", Black & Rogaway, CT-RSA 2002, section 3).
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from chumoku.errors import InputError

ROUNDS: Final = 8
LEAST_HALF: Final = 3
"""Bits of half a value, at least: on a range of 16 values, permutations are visibly not uniform."""

Indices = NDArray[np.uint64]


def permuted(positions: Indices, n: int, seed: int, epoch: int) -> Indices:
    """The examples at these positions of an epoch: positions in range(n) -> indices in range(n).

    The same for the same arguments on every machine, and independent of what else is asked. Raises
    InputError for a position that is not in range(n).
    """
    if len(positions) and int(positions.max()) >= n:
        raise InputError(f"there is no position {positions.max()} in an epoch of {n} examples")
    # More than n values, so that odd permutations are possible too: on the whole of its range a
    # Feistel network gives even ones alone.
    half = np.uint64(max(LEAST_HALF, (n.bit_length() + 1) // 2))
    keys = _keys(seed, epoch)
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _network(values[outside], half, keys)
        outside = values >= np.uint64(n)
    return values


def _network(values: Indices, half: np.uint64, keys: list[np.uint64]) -> Indices:
    """One pass: [2 half bits] -> [2 half bits], a bijection."""
    low = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << half) | right


def _keys(seed: int, epoch: int) -> list[np.uint64]:
    state = _mix(np.array([seed % (1 << 64)], dtype=np.uint64))
    state = _mix(state + np.uint64(epoch))
    keys = []
    for _ in range(ROUNDS):
        state = _mix(state + np.uint64(0x9E3779B97F4A7C15))
        keys.append(state[0])
    return keys


def _mix(z: Indices) -> Indices:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014); products wrap at 64 bits."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
