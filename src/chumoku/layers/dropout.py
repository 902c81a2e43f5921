"""Dropout as a layer (Srivastava et al., 2014): torch.nn.Dropout, faster where that is slow."""

from __future__ import annotations

from torch import Tensor, nn

from chumoku.layers import ops


class Dropout(nn.Dropout):
    """In training each value becomes 0 with probability p, else is divided by 1 - p."""

    def forward(self, input: Tensor) -> Tensor:
        return ops.dropout(input, self.p) if self.training else input
