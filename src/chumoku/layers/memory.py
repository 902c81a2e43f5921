"""What a decoder reads of an encoder: its states, and the keys and values made from them once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from chumoku.layers.attention import Attention, Visible


class Memory(NamedTuple):
    """hidden_BSD: the encoder's output; mask_BS: True where there is a source token (None: all).

    keys, values: for each decoder block, [B, K, S, H].
    """

    hidden_BSD: Tensor
    mask_BS: Tensor | None
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @classmethod
    def of(cls, hidden_BSD: Tensor, mask_BS: Tensor | None, layers: Iterable[Attention]) -> Memory:
        """layers: the cross-attention of each decoder block, in order."""
        keys, values = zip(*(layer.project_context(hidden_BSD) for layer in layers), strict=True)
        return cls(hidden_BSD, mask_BS, keys, values)

    @property
    def visible(self) -> Visible:
        """Every query sees every source token."""
        mask_BS = self.mask_BS
        return Visible(None if mask_BS is None else mask_BS[:, None, None, :], causal=False)

    def select(self, rows_B: Tensor) -> Memory:
        """Row i becomes what row rows_B[i] was (beams)."""
        return Memory(
            self.hidden_BSD.index_select(0, rows_B),
            None if self.mask_BS is None else self.mask_BS.index_select(0, rows_B),
            tuple(k.index_select(0, rows_B) for k in self.keys),
            tuple(v.index_select(0, rows_B) for v in self.values),
        )
