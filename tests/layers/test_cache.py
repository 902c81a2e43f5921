"""Both caches against a list of tensors, through random sequences of every operation."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.layers.cache import BlockCache, Cache, ContiguousCache

K, H, LAYERS = 2, 3, 2
MAKERS: list[Callable[[], Cache]] = [
    lambda: ContiguousCache(capacity=1),
    lambda: ContiguousCache(limit=400, capacity=7),
    lambda: BlockCache(block=1),
    lambda: BlockCache(block=4),
]


class Plain:
    """The definition: everything written so far, concatenated."""

    def __init__(self, rows: int) -> None:
        self.keys = [torch.zeros(rows, K, 0, H) for _ in range(LAYERS)]
        self.values = [torch.zeros(rows, K, 0, H) for _ in range(LAYERS)]

    def map(self, function: Callable[[Tensor], Tensor]) -> Plain:
        made = Plain(0)
        made.keys = [function(t) for t in self.keys]
        made.values = [function(t) for t in self.values]
        return made

    @property
    def length(self) -> int:
        return self.keys[0].shape[2]

    @property
    def rows(self) -> int:
        return self.keys[0].shape[0]


def write(cache: Cache, plain: Plain, count: int) -> None:
    """All layers write `count` positions and see exactly what the definition holds."""
    for layer in range(LAYERS):
        q, k, v = (torch.randn(plain.rows, K, count, H) for _ in range(3))
        plain.keys[layer] = torch.cat((plain.keys[layer], k), 2)
        plain.values[layer] = torch.cat((plain.values[layer], v), 2)

        def attend(q_: Tensor, k_: Tensor, v_: Tensor, layer: int = layer) -> Tensor:
            assert torch.equal(k_, plain.keys[layer])
            assert torch.equal(v_, plain.values[layer])
            return q_ + 1

        assert torch.equal(cache.attend(layer, q, k, v, attend), q + 1)
    cache.advance(count)


def same(cache: Cache, plain: Plain) -> bool:
    if cache.length != plain.length:
        return False
    if plain.length == 0:
        return True
    pairs = [cache.gather(layer, plain.length) for layer in range(LAYERS)]
    return all(
        torch.equal(k, plain.keys[n]) and torch.equal(v, plain.values[n])
        for n, (k, v) in enumerate(pairs)
    )


def play(make: Callable[[], Cache], seed: int, steps: int = 25) -> None:
    """Random writes, truncations, selections and forks; forks live on and must not interfere."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    pairs = [(make(), Plain(draw.randint(1, 3)))]
    for _ in range(steps):
        at = draw.randrange(len(pairs))
        cache, plain = pairs[at]
        action = draw.choice(["write", "write", "one", "truncate", "select", "fork"])
        if action in ("write", "one"):
            write(cache, plain, 1 if action == "one" else draw.randint(1, 9))
        elif action == "truncate":
            length = draw.randint(0, plain.length)
            cache.truncate(length)
            pairs[at] = (cache, plain.map(lambda t, n=length: t[:, :, :n]))  # type: ignore[misc]
        elif action == "select" and plain.length:
            rows = torch.tensor([draw.randrange(plain.rows) for _ in range(draw.randint(1, 4))])
            cache.select(rows)
            pairs[at] = (cache, plain.map(lambda t, r=rows: t[r]))  # type: ignore[misc]
        elif action == "fork" and len(pairs) < 3:
            pairs.append((cache.fork(), plain.map(Tensor.clone)))
        assert all(same(c, p) for c, p in pairs)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_operations(make: Callable[[], Cache], seed: int) -> None:
    play(make, seed)


@pytest.mark.slow
@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("seed", range(12, 300))
def test_many_sequences_of_operations(make: Callable[[], Cache], seed: int) -> None:
    play(make, seed, steps=60)


def test_without_copy_on_write_rows_would_spoil_each_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Negative control of the test above."""
    monkeypatch.setattr(BlockCache, "_copied", lambda self, number: number)
    failed = 0
    for seed in range(12):
        try:
            play(MAKERS[3], seed)
        except (AssertionError, KeyError):
            failed += 1
    assert failed > 0


def test_blocks_that_nobody_owns_are_given_back() -> None:
    cache, plain = BlockCache(block=2), Plain(3)
    write(cache, plain, 9)
    cache.select(torch.tensor([1]))
    assert len(cache._owners) == len(cache._keys[0]) == 5
    cache.truncate(3)
    assert len(cache._owners) == len(cache._keys[0]) == len(cache._values[1]) == 2
    cache.truncate(0)
    assert not cache._owners
    assert not cache._keys[0]


@pytest.mark.parametrize("make", MAKERS)
def test_truncation_beyond_the_contents_is_refused(make: Callable[[], Cache]) -> None:
    cache = make()
    write(cache, Plain(1), 4)
    for length in (5, -1):
        with pytest.raises(InputError, match="truncate"):
            cache.truncate(length)
    assert cache.length == 4


def test_the_limit_is_an_error_with_advice_and_leaves_the_contents() -> None:
    cache, plain = ContiguousCache(limit=6, capacity=2), Plain(2)
    write(cache, plain, 6)
    with pytest.raises(InputError, match="at most 6") as caught:
        write(cache, plain.map(Tensor.clone), 1)
    assert "overflow" in caught.value.advice
    assert same(cache, plain)


def test_nothing_moves_until_the_owner_advances() -> None:
    """A layer that is run twice writes the same place twice."""
    for make in MAKERS:
        cache, new = make(), torch.randn(1, K, 2, H)
        for value in (new, new + 1):
            held = cache.attend(0, value, value, value, lambda q, k, v: k.clone())
            assert torch.equal(held, value)
        assert cache.length == 0
