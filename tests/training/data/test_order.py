"""The order of an epoch: a bijection for every n, uniform to a chi-square, and always the same."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import numpy as np
import pytest

from chumoku.errors import InputError
from chumoku.training.data import order
from chumoku.training.data.order import permuted


def epoch(n: int, seed: int = 0, number: int = 0) -> list[int]:
    return permuted(np.arange(n, dtype=np.uint64), n, seed, number).tolist()


def too_large(counts: list[int], freedom: int) -> bool:
    """Whether a chi-square of equal expectations lies five deviations above its mean."""
    expected = sum(counts) / len(counts)
    statistic = sum((count - expected) ** 2 / expected for count in counts)
    return statistic > freedom + 5 * math.sqrt(2 * freedom)


@pytest.mark.parametrize("n", [*range(1, 70), 255, 256, 257, 1000, 4095, 4096, 4097, 65_537])
def test_every_example_comes_exactly_once(n: int) -> None:
    assert sorted(epoch(n, seed=n, number=n % 5)) == list(range(n))


def test_an_empty_epoch_and_a_place_outside() -> None:
    assert epoch(0) == []
    with pytest.raises(InputError, match="no position 7"):
        permuted(np.array([7], dtype=np.uint64), 7, 0, 0)


def test_a_place_alone_is_what_it_is_among_all() -> None:
    n = 1000
    alone = [int(permuted(np.array([i], dtype=np.uint64), n, 5, 2)[0]) for i in range(0, n, 37)]
    assert alone == epoch(n, 5, 2)[::37]
    huge = permuted(np.array([0, 10**15 - 1], dtype=np.uint64), 10**15, 0, 0)
    assert huge.max() < 10**15
    assert huge[0] != huge[1]


def test_golden_values() -> None:
    """On any machine, with any version: a change here makes runs that are under way unresumable."""
    assert epoch(10, 0, 0) == [4, 5, 0, 3, 7, 6, 9, 2, 8, 1]
    assert epoch(10, 0, 1) == [5, 4, 6, 8, 2, 9, 1, 3, 7, 0]
    assert epoch(100_000, 2**63 + 7, 12)[:6] == [83719, 29622, 28907, 45073, 93516, 28218]
    assert permuted(np.array([3], dtype=np.uint64), 10**12, -1, 0).tolist() == [206338064750]


def test_seeds_and_epochs_have_nothing_in_common() -> None:
    n = 2000
    orders = [np.array(epoch(n, seed, number)) for seed in range(4) for number in range(4)]
    for one, other in itertools.combinations(orders, 2):
        assert (one == other).sum() < 12  # one is expected, a hundred thousandth lies above
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.12


def permutations_uneven(n: int, seeds: int) -> bool:
    counts = Counter(tuple(epoch(n, seed)) for seed in range(seeds))
    every = [counts[p] for p in itertools.permutations(range(n))]
    return too_large(every, len(every) - 1)


def test_permutations_of_few_are_equally_often(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not permutations_uneven(4, 400)
    monkeypatch.setattr(order, "ROUNDS", 1)
    assert permutations_uneven(4, 400)


@pytest.mark.slow
@pytest.mark.parametrize(("n", "seeds"), [(3, 3000), (4, 10_000), (5, 10_000)])
def test_permutations_of_few_are_equally_often_by_many_seeds(n: int, seeds: int) -> None:
    assert not permutations_uneven(n, seeds)


def places_uneven(n: int, seeds: int) -> bool:
    """Counts of which example stands at which place."""
    counts = np.zeros((n, n), dtype=int)
    for seed in range(seeds):
        counts[np.arange(n), epoch(n, seed, seed % 3)] += 1
    return too_large(counts.ravel().tolist(), (n - 1) ** 2)


def test_every_place_sees_every_example(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not places_uneven(60, 600)
    monkeypatch.setattr(order, "ROUNDS", 1)
    assert places_uneven(60, 600)


def test_neighbours_are_torn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rising and falling steps: (n - 1) / 2 of each, variance (n + 1) / 12."""
    n = 50_000

    def rising(seed: int) -> float:
        return abs(int((np.diff(epoch(n, seed)) > 0).sum()) - (n - 1) / 2) / math.sqrt((n + 1) / 12)

    assert max(rising(seed) for seed in range(8)) < 5
    monkeypatch.setattr(order, "ROUNDS", 1)
    assert max(rising(seed) for seed in range(8)) > 5
