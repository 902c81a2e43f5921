"""Keys and values of the positions already seen, so that a step computes only what is new.

`Cache` is the seam that decoding, beams, batching and speculation stand on. Two implementations
pass the same tests: one contiguous stretch a row, and blocks taken from a pool. A layer writes and
attends; nothing moves forward until the owner calls `advance`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from chumoku.errors import InputError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(q_BNTH, k_BKSH, v_BKSH) -> heads_BNTH"""


class Cache(Protocol):
    @property
    def length(self) -> int:
        """Positions stored in every row (advanced; padding of ragged rows counts)."""
        ...

    def attend(
        self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, attend: Attend
    ) -> Tensor:
        """Store k and v of the T new positions for `layer`, and attend to all stored ones."""
        ...

    def gather(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values, [B, K, length, H]: the definition of the contents."""
        ...

    def advance(self, count: int) -> None:
        """All layers have written `count` new positions: they now belong to the past."""
        ...

    def truncate(self, length: int) -> None:
        """Forget everything from position `length` on."""
        ...

    def select(self, rows_B: Tensor) -> None:
        """Row i becomes what row rows_B[i] was; the number of rows may change (beams)."""
        ...

    def fork(self) -> Cache:
        """An independent copy: writing to one leaves the other as it is."""
        ...


class ContiguousCache:
    """One growing tensor a layer, [B, K, capacity, H]; capacity doubles up to `limit`."""

    def __init__(self, limit: int | None = None, capacity: int = 256) -> None:
        self._limit = limit
        self._capacity = capacity if limit is None else min(capacity, limit)
        self._length = 0
        self._keys: dict[int, Tensor] = {}
        self._values: dict[int, Tensor] = {}

    @property
    def length(self) -> int:
        return self._length

    def attend(
        self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, attend: Attend
    ) -> Tensor:
        end = self._length + k_BKTH.shape[2]
        self._write(self._keys, layer, k_BKTH, end)
        self._write(self._values, layer, v_BKTH, end)
        return attend(q_BNTH, *self.gather(layer, end))

    def gather(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        return self._keys[layer][:, :, :length], self._values[layer][:, :, :length]

    def _write(self, store: dict[int, Tensor], layer: int, new: Tensor, end: int) -> None:
        held = store.get(layer)
        if held is None or held.shape[2] < end:
            store[layer] = held = self._grown(held, new, end)
        held[:, :, self._length : end] = new

    def _grown(self, held: Tensor | None, new: Tensor, end: int) -> Tensor:
        if self._limit is not None and end > self._limit:
            raise InputError(
                f"the cache holds at most {self._limit} positions, {end} are needed",
                advice="shorten the prompt or choose overflow='truncate' or 'shift'",
            )
        capacity = max(self._capacity, end if held is None else max(end, 2 * held.shape[2]))
        if self._limit is not None:
            capacity = min(capacity, self._limit)
        B, K, _, H = new.shape
        grown = new.new_empty(B, K, capacity, H)
        if held is not None:
            grown[:, :, : self._length] = held[:, :, : self._length]
        return grown

    def advance(self, count: int) -> None:
        self._length += count

    def truncate(self, length: int) -> None:
        _check_truncate(length, self._length)
        self._length = length

    def select(self, rows_B: Tensor) -> None:
        # Only what is filled moves, and of as many rows only those that change: with the room
        # that is still empty, beams spent nine tenths of their time here.
        moved_C = (rows_B != torch.arange(len(rows_B), device=rows_B.device)).nonzero().flatten()
        for store in (self._keys, self._values):
            for layer, held in store.items():
                filled = held[:, :, : self._length]
                if len(rows_B) == len(held):
                    filled.index_copy_(0, moved_C, filled.index_select(0, rows_B[moved_C]))
                else:
                    store[layer] = held.new_empty(len(rows_B), *held.shape[1:])
                    store[layer][:, :, : self._length] = filled.index_select(0, rows_B)

    def fork(self) -> ContiguousCache:
        copy = ContiguousCache(self._limit, self._capacity)
        copy._length = self._length
        copy._keys = {layer: held.clone() for layer, held in self._keys.items()}
        copy._values = {layer: held.clone() for layer, held in self._values.items()}
        return copy


class BlockCache:
    """Fixed-size blocks taken from a pool; each row has a table of block numbers.

    Rows that share a past share its blocks; a block with several owners is copied before it is
    written (the idea of Kwon et al., 2309.06180, section 4). Here it is the plain form on which
    paged batching and prefix reuse will stand: attention gathers the blocks first.
    """

    def __init__(self, block: int = 16) -> None:
        self._block = block
        self._length = 0
        self._tables: list[list[int]] = []
        self._owners: dict[int, int] = {}
        self._next = 0
        self._keys: dict[int, dict[int, Tensor]] = {}
        self._values: dict[int, dict[int, Tensor]] = {}

    @property
    def length(self) -> int:
        return self._length

    def attend(
        self, layer: int, q_BNTH: Tensor, k_BKTH: Tensor, v_BKTH: Tensor, attend: Attend
    ) -> Tensor:
        end = self._length + k_BKTH.shape[2]
        self._reserve(k_BKTH.shape[0], end)
        for row, table in enumerate(self._tables):
            for start in range(self._length - self._length % self._block, end, self._block):
                number = table[start // self._block]
                lo, hi = max(start, self._length), min(start + self._block, end)
                for pool, new in ((self._keys, k_BKTH), (self._values, v_BKTH)):
                    held = pool.setdefault(layer, {})
                    if number not in held:
                        K, H = new.shape[1], new.shape[3]
                        held[number] = new.new_zeros(K, self._block, H)
                    piece = new[row, :, lo - self._length : hi - self._length]
                    held[number][:, lo - start : hi - start] = piece
        return attend(q_BNTH, *self.gather(layer, end))

    def gather(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        count = -(-length // self._block)

        def rows(pool: dict[int, Tensor]) -> Tensor:
            joined = [torch.cat([pool[n] for n in table[:count]], 1) for table in self._tables]
            return torch.stack(joined)[:, :, :length]

        return rows(self._keys[layer]), rows(self._values[layer])

    def _reserve(self, rows: int, end: int) -> None:
        """Give every row its own, writable blocks for the positions from the length up to `end`."""
        if not self._tables:
            self._tables = [[] for _ in range(rows)]
        first = self._length // self._block
        for table in self._tables:
            for index in range(first, len(table)):
                if self._owners[table[index]] > 1:
                    table[index] = self._copied(table[index])
            while len(table) * self._block < end:
                table.append(self._taken())

    def _taken(self) -> int:
        self._next += 1
        self._owners[self._next] = 1
        return self._next

    def _copied(self, number: int) -> int:
        fresh = self._taken()
        self._owners[number] -= 1
        for pool in (self._keys, self._values):
            for held in pool.values():
                if number in held:
                    held[fresh] = held[number].clone()
        return fresh

    def _released(self, numbers: list[int]) -> None:
        for number in numbers:
            self._owners[number] -= 1
            if self._owners[number] == 0:
                del self._owners[number]
                for pool in (self._keys, self._values):
                    for held in pool.values():
                        held.pop(number, None)

    def advance(self, count: int) -> None:
        self._length += count

    def truncate(self, length: int) -> None:
        _check_truncate(length, self._length)
        keep = -(-length // self._block)
        for table in self._tables:
            self._released(table[keep:])
            del table[keep:]
        self._length = length

    def select(self, rows_B: Tensor) -> None:
        chosen = [list(self._tables[int(row)]) for row in rows_B]
        for table in chosen:
            for number in table:
                self._owners[number] += 1
        for table in self._tables:
            self._released(table)
        self._tables = chosen

    def fork(self) -> BlockCache:
        copy = BlockCache(self._block)
        copy._length, copy._next = self._length, self._next
        copy._tables = [list(table) for table in self._tables]
        copy._owners = dict(self._owners)
        copy._keys = _cloned(self._keys)
        copy._values = _cloned(self._values)
        return copy


def _cloned(pool: dict[int, dict[int, Tensor]]) -> dict[int, dict[int, Tensor]]:
    return {layer: {n: t.clone() for n, t in held.items()} for layer, held in pool.items()}


def _check_truncate(length: int, current: int) -> None:
    if not 0 <= length <= current:
        raise InputError(f"cannot truncate a cache of {current} positions to {length}")
