"""Normalisation of the residual stream. LayerNorm is torch.nn.LayerNorm (Ba et al., 1607.06450)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chumoku.layers import ops


class RMSNorm(nn.Module):
    """x / rms(x) * weight, without mean and bias (Zhang & Sennrich, 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x_BTD: Tensor) -> Tensor:
        return ops.rms_norm(x_BTD, self.weight, self.eps)
