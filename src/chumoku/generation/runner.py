"""One way to ask any generating model for the next logits: rows of ids in, last logits out.

The two kinds of model differ in this file only. A Runner owns the cache: it advances it, and keeps
padding and positions of ragged rows.

Shape letters: B rows, T new positions, S all positions, D model width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import Parameter

from chumoku.errors import InputError
from chumoku.layers.attention import Batch
from chumoku.layers.cache import Cache
from chumoku.layers.memory import Memory
from chumoku.layers.ops import wide


class Generating(Protocol):
    """What both kinds have. `config` has vocab_size, and max_positions where there is a limit."""

    config: Any
    training: bool

    def parameters(self) -> Iterator[Parameter]: ...
    def unembed(self, x_BTD: Tensor) -> Tensor: ...


@runtime_checkable
class DecoderOnly(Generating, Protocol):
    def hidden(self, ids_BT: Tensor, mask_BS: Tensor | None, *, batch: Batch) -> Tensor: ...


@runtime_checkable
class EncoderDecoder(Generating, Protocol):
    def encode(self, source_BS: Tensor, source_mask_BS: Tensor | None) -> Memory: ...

    def decode_hidden(
        self, target_BT: Tensor, memory: Memory, target_mask_BS: Tensor | None, *, batch: Batch
    ) -> Tensor: ...


Model = DecoderOnly | EncoderDecoder
MakeCache = Callable[[], Cache]
Stop = Callable[[], bool]


def is_encoder_decoder(model: Model) -> bool:
    return isinstance(model, EncoderDecoder)


def device_of(model: Generating) -> torch.device:
    return next(model.parameters()).device


def padded(
    rows: Sequence[Sequence[int]], value: int, device: torch.device, *, left: bool
) -> tuple[Tensor, Tensor | None]:
    """Ragged rows -> ids_BT filled up with `value`, and mask_BT (None: no row needed padding)."""
    T = max(map(len, rows))
    filled = [
        [value] * (T - len(row)) + list(row) if left else list(row) + [value] * (T - len(row))
        for row in rows
    ]
    ids_BT = torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), T)
    lengths = [len(row) for row in rows]
    if min(lengths) == T:
        return ids_BT, None
    place_T = torch.arange(T, device=device)
    length_B1 = torch.tensor(lengths, device=device)[:, None]
    return ids_BT, place_T >= T - length_B1 if left else place_T < length_B1


@torch.inference_mode()
def encode(model: Model, sources: Sequence[Sequence[int]]) -> Memory:
    """Read the sources of an encoder-decoder, once. Raises InputError for another kind of model."""
    if not isinstance(model, EncoderDecoder):
        raise InputError("this model has no encoder")
    source_BS, mask_BS = padded(sources, 0, device_of(model), left=False)
    return model.encode(source_BS, mask_BS)


def _lengthened(mask_BS: Tensor, length: int) -> Tensor:
    """The mask with room for `length` positions; it grows in strides, so that few steps copy."""
    if mask_BS.shape[1] >= length:
        return mask_BS
    return torch.cat((mask_BS, mask_BS.new_ones(mask_BS.shape[0], max(64, mask_BS.shape[1]))), 1)


class Runner:
    """The rows of one batch in flight. Each call returns logits_BV of the rows' last positions."""

    def __init__(self, model: Model, cache: Cache, memory: Memory | None = None) -> None:
        self.model, self.cache, self.memory = model, cache, memory
        self._decoder = model if isinstance(model, DecoderOnly) else None
        self._translator = model if isinstance(model, EncoderDecoder) else None
        self._mask_BS: Tensor | None = None  # of the given tokens; later ones are all real
        self._positions_B1: Tensor | None = None

    @torch.inference_mode()
    def prefill(
        self, rows: Sequence[Sequence[int]], chunk: int | None = None, stop: Stop | None = None
    ) -> Tensor | None:
        """Read the rows, at most `chunk` tokens at a time; None where `stop` said so between."""
        ids_BT, mask_BS = padded(rows, 0, device_of(self.model), left=True)
        positions_BT = None
        if mask_BS is not None:
            positions_BT = (mask_BS.long().cumsum(1) - 1).clamp(min=0)
            self._positions_B1 = positions_BT[:, -1:]
        self._mask_BS = mask_BS
        T = ids_BT.shape[1]
        chunk = T if chunk is None else chunk
        for start in range(0, T, chunk):
            if stop is not None and stop():
                return None
            end = min(start + chunk, T)
            x_BTD = self._hidden(
                ids_BT[:, start:end],
                None if mask_BS is None else mask_BS[:, :end],
                None if positions_BT is None else positions_BT[:, start:end],
            )
        return self._logits(x_BTD)

    @torch.inference_mode()
    def step(self, ids_B: Tensor) -> Tensor:
        """One more token in every row."""
        mask_BS, positions_B1 = None, None
        if self._mask_BS is not None and self._positions_B1 is not None:
            mask_BS = self._mask_BS = _lengthened(self._mask_BS, self.cache.length + 1)
            mask_BS = mask_BS[:, : self.cache.length + 1]
            self._positions_B1 = positions_B1 = self._positions_B1 + 1
        return self._logits(self._hidden(ids_B[:, None], mask_BS, positions_B1))

    @torch.inference_mode()
    def select(self, rows_B: Tensor, *, same_sources: bool = False) -> None:
        """Row i becomes what row rows_B[i] was; the number of rows may change.

        same_sources: rows move only between places that read the same source (beams of one prompt),
        so that the memory can stay as it is.
        """
        self.cache.select(rows_B)
        if self.memory is not None and not same_sources:
            self.memory = self.memory.select(rows_B)
        if self._mask_BS is not None and self._positions_B1 is not None:
            self._mask_BS = self._mask_BS[rows_B]
            self._positions_B1 = self._positions_B1[rows_B]
            if bool(self._mask_BS.all()):
                self._mask_BS = self._positions_B1 = None

    def _hidden(self, ids_BT: Tensor, mask: Tensor | None, positions_BT: Tensor | None) -> Tensor:
        batch = Batch(positions_BT=positions_BT, cache=self.cache)
        if self._translator is not None and self.memory is not None:
            x_BTD = self._translator.decode_hidden(ids_BT, self.memory, mask, batch=batch)
        elif self._decoder is not None:
            x_BTD = self._decoder.hidden(ids_BT, mask, batch=batch)
        else:
            raise InputError("this model cannot generate, or it needs a source to read")
        self.cache.advance(ids_BT.shape[1])
        return x_BTD

    def _logits(self, x_BTD: Tensor) -> Tensor:
        """Only the last position is unembedded; processors need at least float32."""
        logits_BV = self.model.unembed(x_BTD[:, -1:])[:, -1]
        return logits_BV.to(wide(logits_BV.dtype))
