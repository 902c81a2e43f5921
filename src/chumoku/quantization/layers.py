"""Layers whose weights stay in their stored blocks.

They take the place of nn.Linear and nn.Embedding: the same leaf names, the same forward. The leaf
`weight` holds uint8 rows [O, row_bytes] and is never trained; `bias` is as it was. Letters: D
values a row, O outputs, V rows of an embedding.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.kernels.blocks import READABLE, row_values
from chumoku.kernels.linear import block_embedding, block_linear


def blocks_parameter(raw: Tensor) -> nn.Parameter:
    """Stored rows uint8 [O, row_bytes] as a Parameter that is not trained."""
    if raw.dtype != torch.uint8 or raw.ndim != 2:
        raise InputError(f"blocks must be uint8 [rows, row_bytes], not {raw.dtype} {[*raw.shape]}")
    return raw if isinstance(raw, nn.Parameter) else nn.Parameter(raw, requires_grad=False)


def _row_values(storage: str, raw: Tensor) -> int:
    if storage not in READABLE:
        raise InputError(f"{storage} holds no weights", advice=f"use one of {', '.join(READABLE)}")
    return row_values(storage, raw.shape[-1])


class QuantizedLinear(nn.Module):
    """y [..., O] = x [..., D] values(weight)^T + bias.

    weight: stored rows, uint8 [O, row_bytes]; a Parameter is kept as it is, so that tied layers
    share it. storage: a key of kernels.blocks.STORAGE. bias: [O] or None.
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, storage: str, bias: Tensor | None = None) -> None:
        super().__init__()
        self.storage = storage
        self.weight = blocks_parameter(weight)
        self.in_features = _row_values(storage, weight)
        self.out_features = weight.shape[0]
        if bias is not None and bias.shape != (self.out_features,):
            raise InputError(f"bias must be [{self.out_features}], not {[*bias.shape]}")
        kept = bias if bias is None or isinstance(bias, nn.Parameter) else nn.Parameter(bias)
        self.register_parameter("bias", kept)

    def forward(self, x: Tensor) -> Tensor:
        return block_linear(x, self.weight, self.storage, self.bias)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, bias={self.bias is not None}, storage={self.storage}"


class QuantizedEmbedding(nn.Module):
    """Rows [..., D] of the table that ids [...] name, dequantised when they are asked for.

    weight: stored rows, uint8 [V, row_bytes]; a Parameter is kept as it is. The values come out in
    the dtype of the buffer `like`, which follows `.to(dtype)` as a float weight would.
    """

    like: Tensor

    def __init__(self, weight: Tensor, storage: str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.storage = storage
        self.weight = blocks_parameter(weight)
        self.embedding_dim = _row_values(storage, weight)
        self.num_embeddings = weight.shape[0]
        like = torch.empty(0, dtype=dtype, device=weight.device)
        self.register_buffer("like", like, persistent=False)

    def forward(self, ids: Tensor) -> Tensor:
        return block_embedding(ids, self.weight, self.storage, self.like.dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, storage={self.storage}"
