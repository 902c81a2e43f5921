"""Batches: every example once an epoch, the same for any number of processes, resumed exactly."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chumoku.errors import CheckpointError, ConfigError, InputError
from chumoku.training.data.batching import Batches, Batching, Picked


@dataclass
class Numbers:
    """An example is (index, epoch)."""

    lengths: list[int]
    asked: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, index: int) -> int:
        return self.lengths[index]

    def example(self, index: int, epoch: int) -> tuple[int, int]:
        self.asked.append(index)
        return index, epoch


def numbers(n: int, seed: int = 0) -> Numbers:
    return Numbers(np.random.default_rng(seed).integers(1, 60, n).tolist())


def first(batches: Batches, count: int) -> list[Picked]:
    return list(itertools.islice(batches, count))


def one_epoch(batches: Batches) -> list[Picked]:
    return list(itertools.takewhile(lambda picked: picked.epoch == 0, batches))


KINDS = st.builds(
    Batching,
    batch_size=st.integers(1, 9),
    tokens=st.none() | st.integers(1, 200),
    window=st.integers(0, 4),
    shuffle=st.booleans(),
)


@settings(deadline=None, max_examples=40)
@given(batching=KINDS, n=st.integers(1, 70), seed=st.integers(0, 2**64))
def test_every_example_once_an_epoch(batching: Batching, n: int, seed: int) -> None:
    batches = Batches(numbers(n), batching, seed)
    epochs = {number: [] for number in range(4)}
    while True:
        picked = next(batches)
        if picked.epoch == 4:
            break
        assert picked.examples == [(index, picked.epoch) for index in picked.indices]
        epochs[picked.epoch].append(picked.indices)
    for found in epochs.values():
        assert sorted(itertools.chain(*found)) == list(range(n))
        assert all(found)
    assert len(epochs[0]) == batches.batches_per_epoch


@settings(deadline=None, max_examples=12)
@given(batching=KINDS, n=st.integers(1, 60), seed=st.integers(0, 99))
def test_the_batches_do_not_depend_on_the_number_of_processes(
    batching: Batching, n: int, seed: int
) -> None:
    whole = first(Batches(numbers(n), batching, seed), 12)
    for world in (2, 3, 5):
        shares = [
            first(Batches(numbers(n), batching, seed, rank, world), 12) for rank in range(world)
        ]
        for number, picked in enumerate(whole):
            parts = [share[number] for share in shares]
            assert {part.epoch for part in parts} == {picked.epoch}
            for rank, part in enumerate(parts):
                assert part.indices == picked.indices[rank::world]
                assert len(part.examples) == len(part.indices)


def test_with_fewer_examples_than_processes_a_share_is_empty() -> None:
    picked = next(Batches(numbers(1), Batching(), 0, rank=1, world=2))
    assert picked == Picked([], 0, [])


@pytest.mark.parametrize(
    "batching",
    [
        Batching(batch_size=4, window=0),
        Batching(batch_size=4, window=3),
        Batching(tokens=150, window=2),
        Batching(batch_size=5, shuffle=False, drop_last=True),
    ],
)
def test_a_run_goes_on_at_every_batch(batching: Batching) -> None:
    whole = Batches(numbers(37), batching, 3)
    states, picked = [], []
    for _ in range(40):
        states.append(json.loads(json.dumps(whole.state())))
        picked.append(next(whole))
    assert picked[-1].epoch >= 1
    for place, state in enumerate(states):
        again = Batches(numbers(37), batching, 3)
        again.restore(state)
        assert first(again, 40 - place) == picked[place:]
        assert again.state() == whole.state()
    # The control: a place that is one batch off, or an epoch that is lost, is seen.
    for lost in ({"batch": 3}, {"epoch": 0}):
        again.restore(states[25] | lost)
        assert first(again, 5) != picked[25:30]


def test_a_restored_run_reads_nothing_twice() -> None:
    whole = Batches(numbers(20), Batching(batch_size=4), 0)
    first(whole, 3)
    examples = numbers(20)
    again = Batches(examples, Batching(batch_size=4), 0)
    again.restore(whole.state())
    assert next(again).indices == examples.asked


def test_a_state_of_other_data_or_of_nothing_is_refused() -> None:
    batches = Batches(numbers(20), Batching(), 0)
    state = batches.state()
    with pytest.raises(CheckpointError, match="was on 21 examples, now there are 20"):
        batches.restore(state | {"examples": 21})
    wrong: list[dict[str, Any]] = [{}, state | {"epoch": -1}, state | {"batch": "3"}]
    for bad in [*wrong, state | {"batch": True}, state | {"epoch": 1.0}]:
        with pytest.raises(CheckpointError, match="no place in the data"):
            batches.restore(bad)
    assert batches.state() == state


def padding(batching: Batching, examples: Numbers) -> float:
    """Share of padding in an epoch."""
    batches = one_epoch(Batches(examples, batching, 0))
    rows = [[examples.lengths[i] for i in picked.indices] for picked in batches]
    return 1 - sum(map(sum, rows)) / sum(len(row) * max(row) for row in rows)


def test_windows_of_like_lengths_save_padding() -> None:
    examples = numbers(3000)
    plain = padding(Batching(batch_size=16, window=0), examples)
    assert plain > 0.4
    assert padding(Batching(batch_size=16, window=50), examples) < 0.06


def test_like_lengths_do_not_come_in_order() -> None:
    """Sorted inside windows, but the batches are shuffled: long ones are not the first."""
    examples = numbers(3000)
    batches = one_epoch(Batches(examples, Batching(batch_size=16), 0))
    means = [float(np.mean([examples.lengths[i] for i in p.indices])) for p in batches[:-1]]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.25
    assert len(batches[-1].indices) == 3000 % 16


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=80),
    tokens=st.integers(1, 200),
    window=st.integers(0, 3),
)
def test_no_batch_has_more_padded_tokens_than_allowed(
    lengths: list[int], tokens: int, window: int
) -> None:
    examples = Numbers(lengths)
    for picked in one_epoch(Batches(examples, Batching(tokens=tokens, window=window), 1)):
        padded = max(lengths[i] for i in picked.indices) * len(picked.indices)
        assert padded <= tokens or len(picked.indices) == 1


def test_a_batch_by_tokens_is_as_full_as_can_be() -> None:
    examples = Numbers([10] * 100)
    found = one_epoch(Batches(examples, Batching(tokens=45), 0))
    assert [len(picked.indices) for picked in found] == [4] * 25


def test_drop_last_leaves_out_other_examples_each_time() -> None:
    """Not the shortest again and again, which one window over everything would do."""
    examples = Numbers(list(range(1, 36)))
    batches = Batches(examples, Batching(batch_size=8, drop_last=True), 0)
    left: set[int] = set()
    for _ in range(20):
        found = first(batches, 4)
        assert [len(picked.indices) for picked in found] == [8] * 4
        assert len({picked.epoch for picked in found}) == 1
        used = {index for picked in found for index in picked.indices}
        assert len(used) == 32
        left |= set(range(35)) - used
    assert len(left) > 20
    small = Batches(numbers(3), Batching(batch_size=8, drop_last=True), 0)
    assert len(next(small).indices) == 3


def test_without_shuffling_the_order_is_the_files() -> None:
    found = first(Batches(numbers(10), Batching(4, window=0, shuffle=False), 9), 6)
    assert [i for picked in found for i in picked.indices] == [*range(10), *range(10)]


def test_seed_and_epoch_change_the_order() -> None:
    def order(seed: int) -> list[list[int]]:
        return [p.indices for p in first(Batches(numbers(40), Batching(8), seed), 10)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1)[:5] != order(1)[5:]


def test_settings_out_of_range_and_no_examples() -> None:
    for wrong in ({"batch_size": 0}, {"tokens": 0}, {"window": -1}):
        with pytest.raises(ConfigError, match="must be at least"):
            Batching(**wrong)
    with pytest.raises(InputError, match="nothing to train on"):
        Batches(numbers(0), Batching(), 0)
