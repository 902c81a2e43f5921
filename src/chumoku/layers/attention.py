"""Attention(Q, K, V) = softmax(scale Q K^T + bias) V, in many heads (1706.03762, section 3.2).

Formal Algorithms (2207.09238): attend() is Algorithm 4, Attention is Algorithm 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.layers import ops
from chumoku.layers.cache import Cache
from chumoku.layers.taps import Tap


@dataclass(frozen=True)
class Batch:
    """What a forward pass knows of its input besides the ids; anything absent is derived.

    positions_BT: position of each token; from the mask where absent.
    segments_BT:  token type (BERT's sentence A or B); 0 where absent.
    sequences_BT: number of the packed sequence that a token belongs to; attention stays inside it.
    cache:        keys and values of earlier positions; the T tokens follow them.
    """

    positions_BT: Tensor | None = None
    segments_BT: Tensor | None = None
    sequences_BT: Tensor | None = None
    cache: Cache | None = None

    @property
    def past(self) -> int:
        """Positions before the first of the T tokens."""
        return 0 if self.cache is None else self.cache.length


EMPTY = Batch()


def refuse_packing(batch: Batch) -> None:
    """Raise InputError for packed sequences: a decoder's could not tell their sources apart."""
    if batch.sequences_BT is not None:
        raise InputError(
            "packed sequences are not supported by encoder-decoders",
            advice="put each sequence in a row of its own",
        )


class Visible(NamedTuple):
    """Which keys a query may see; causal and allowed None: the keys up to its own place."""

    allowed_B1TS: Tensor | None
    causal: bool


def visible(
    ids_BT: Tensor,
    mask_BS: Tensor | None,
    batch: Batch,
    *,
    causal: bool,
    window: int | None = None,
) -> Visible:
    """Combine padding, causality, sliding window and packing.

    mask_BS: True where there is a token; S counts cached positions too. window: a query sees itself
    and window - 1 tokens before it (Mistral, 2310.06825, section 2). Raises InputError for a mask
    of another shape or type, and for packed sequences after cached positions.
    """
    T, device = ids_BT.shape[1], ids_BT.device
    past = batch.past
    S = past + T
    _check_visible(mask_BS, S, batch)
    restricted = window is not None and window < S
    allowed: Tensor | None = None
    if causal and (restricted or (T > 1 and (past > 0 or mask_BS is not None))):
        query = torch.arange(past, S, device=device)[:, None]
        key = torch.arange(S, device=device)[None, :]
        allowed = key <= query
        if restricted and window is not None:
            allowed = allowed & (query - key < window)
        allowed = allowed[None, None]
    if mask_BS is not None:
        tokens = mask_BS[:, None, None, :]
        allowed = tokens if allowed is None else allowed & tokens
    if batch.sequences_BT is not None:
        numbers = batch.sequences_BT
        same = (numbers[:, :, None] == numbers[:, None, :])[:, None]
        if causal and allowed is None:
            same = same.tril()
        allowed = same if allowed is None else allowed & same
    return Visible(allowed, causal=causal and T > 1 and allowed is None)


def _check_visible(mask_BS: Tensor | None, S: int, batch: Batch) -> None:
    if mask_BS is not None and (mask_BS.dtype != torch.bool or mask_BS.shape[1:] != (S,)):
        raise InputError(
            f"the mask is {mask_BS.dtype} {list(mask_BS.shape)}, not torch.bool [B, {S}]",
            advice="True where there is a token, cached positions included",
        )
    if batch.past and batch.sequences_BT is not None:
        raise InputError("packed sequences have no cache: it holds one sequence a row")


def positions(ids_BT: Tensor, mask_BS: Tensor | None, batch: Batch) -> Tensor:
    """positions_BT: as given, else the number of tokens before each one in its own row.

    Padding, left or right, does not count; a pad's own position is that of the token before it.
    """
    if batch.positions_BT is not None:
        return batch.positions_BT
    T = ids_BT.shape[1]
    if batch.sequences_BT is not None:
        return _positions_in_sequences(batch.sequences_BT)
    if mask_BS is not None:
        return (mask_BS.long().cumsum(1) - 1).clamp(min=0)[:, -T:]
    place_T = torch.arange(batch.past, batch.past + T, device=ids_BT.device)
    return place_T.expand(ids_BT.shape[0], T)


def _positions_in_sequences(sequences_BT: Tensor) -> Tensor:
    """0, 1, 2, … starting again at every change of number."""
    place = torch.arange(sequences_BT.shape[1], device=sequences_BT.device)
    starts = F.pad(sequences_BT[:, 1:] != sequences_BT[:, :-1], (1, 0), value=True)
    return place - torch.cummax(place * starts, dim=1).values


def attend(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    seen: Visible,
    *,
    scale: float,
    bias_BNTS: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """heads_BNTH by PyTorch's fused kernel. Definition: attend_written(), equal up to rounding.

    A gradient in bfloat16 on the CPU goes through float32: the kernel's own way back takes 3 to 8
    times longer (PyTorch 2.13).
    """
    if q_BNTH.dtype is torch.bfloat16 and q_BNTH.is_cpu and q_BNTH.requires_grad:
        heads_BNTH = attend(
            q_BNTH.float(),
            k_BKSH.float(),
            v_BKSH.float(),
            seen,
            scale=scale,
            bias_BNTS=None if bias_BNTS is None else bias_BNTS.float(),
            dropout=dropout,
        )
        return heads_BNTH.to(q_BNTH.dtype)
    mask = seen.allowed_B1TS
    if bias_BNTS is not None:
        mask = _as_bias(bias_BNTS, seen)
    shape, K = q_BNTH.shape, k_BKSH.shape[1]
    if shape[2] == 1 and shape[1] != K:
        # One query: the N / K heads that share a key head take the place of T, which is faster.
        q_BNTH = q_BNTH.reshape(shape[0], K, shape[1] // K, shape[3])
        if mask is not None and mask.shape[1] != 1:
            mask = mask.reshape(mask.shape[0], K, shape[1] // K, mask.shape[3])
    heads_BNTH = F.scaled_dot_product_attention(
        q_BNTH,
        k_BKSH,
        v_BKSH,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=seen.causal and bias_BNTS is None,
        scale=scale,
        enable_gqa=q_BNTH.shape[1] != K,
    )
    return heads_BNTH.reshape(*shape[:3], v_BKSH.shape[-1])


def _as_bias(bias_BNTS: Tensor, seen: Visible) -> Tensor:
    allowed = seen.allowed_B1TS
    if seen.causal:
        allowed = torch.ones(bias_BNTS.shape[-2:], dtype=torch.bool, device=bias_BNTS.device).tril()
    return bias_BNTS if allowed is None else bias_BNTS.masked_fill(~allowed, -torch.inf)


def attend_written(
    q_BNTH: Tensor,
    k_BKSH: Tensor,
    v_BKSH: Tensor,
    seen: Visible,
    *,
    scale: float,
    bias_BNTS: Tensor | None = None,
    dropout: float = 0.0,
    scores_tap: Tap | None = None,
    weights_tap: Tap | None = None,
) -> Tensor:
    """heads_BNTH, step by step: scores, bias, mask, softmax, dropout, weighted sum."""
    scores_BNTS = ops.attention_scores(q_BNTH, k_BKSH, scale)
    if bias_BNTS is not None:
        scores_BNTS = scores_BNTS + bias_BNTS
    if seen.causal:
        T, S = scores_BNTS.shape[-2:]
        triangle = torch.ones(T, S, dtype=torch.bool, device=scores_BNTS.device).tril()
        scores_BNTS = ops.hide(scores_BNTS, triangle)
    elif seen.allowed_B1TS is not None:
        scores_BNTS = ops.hide(scores_BNTS, seen.allowed_B1TS)
    if scores_tap is not None:
        scores_BNTS = scores_tap(scores_BNTS)
    weights_BNTS = ops.softmax(scores_BNTS)
    if weights_tap is not None:
        weights_BNTS = weights_tap(weights_BNTS)
    if dropout > 0.0:
        weights_BNTS = ops.dropout(weights_BNTS, dropout)
    return ops.weighted_sum(weights_BNTS, v_BKSH)


@dataclass(frozen=True)
class Shape:
    """Sizes of one attention layer. width: of its input and of its result.

    head_width: of a query and of a key (the paper's d_k). kv_heads: None means heads.
    context_width: of what cross-attention reads (None: width). value_width: d_v (None: head_width).
    """

    width: int
    heads: int
    head_width: int
    kv_heads: int | None = None
    context_width: int | None = None
    value_width: int | None = None

    @property
    def kv(self) -> int:
        return self.heads if self.kv_heads is None else self.kv_heads


class Attention(nn.Module):
    """Four projections around attend(). A block calls project(), may rotate, then calls this.

    bias: of query, key and value; output_bias: of output. scale: None means 1 / sqrt(head width).
    """

    def __init__(
        self,
        shape: Shape,
        *,
        bias: bool = True,
        output_bias: bool | None = None,
        scale: float | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        value_width = shape.head_width if shape.value_width is None else shape.value_width
        context = shape.width if shape.context_width is None else shape.context_width
        output_bias = bias if output_bias is None else output_bias
        self.query = nn.Linear(shape.width, shape.heads * shape.head_width, bias=bias)
        self.key = nn.Linear(context, shape.kv * shape.head_width, bias=bias)
        self.value = nn.Linear(context, shape.kv * value_width, bias=bias)
        self.output = nn.Linear(shape.heads * value_width, shape.width, bias=output_bias)
        self.num_heads, self.num_kv_heads = shape.heads, shape.kv
        self.scale = shape.head_width**-0.5 if scale is None else scale
        self.dropout = dropout
        self.scores, self.weights, self.heads = Tap(), Tap(), Tap()

    def project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q_BNTH, k_BKTH, v_BKTH of self-attention."""
        q_BTD, k_BTD, v_BTD = ops.project(x_BTD, self.query, self.key, self.value)
        return (
            ops.split_heads(q_BTD, self.num_heads),
            ops.split_heads(k_BTD, self.num_kv_heads),
            ops.split_heads(v_BTD, self.num_kv_heads),
        )

    def project_query(self, x_BTD: Tensor) -> Tensor:
        """q_BNTH of cross-attention."""
        return ops.split_heads(ops.linear(x_BTD, self.query), self.num_heads)

    def project_context(self, context_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """k_BKSH, v_BKSH of cross-attention, computed once for each source."""
        k_BSD, v_BSD = ops.project(context_BSD, self.key, self.value)
        heads = self.num_kv_heads
        return ops.split_heads(k_BSD, heads), ops.split_heads(v_BSD, heads)

    def forward(
        self,
        q_BNTH: Tensor,
        k_BKSH: Tensor,
        v_BKSH: Tensor,
        seen: Visible,
        *,
        bias_BNTS: Tensor | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """out_BTD. With a cache, k and v are those of the T new positions only."""

        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return self._attend(q, k, v, seen, bias_BNTS)

        if cache is None:
            heads_BNTH = run(q_BNTH, k_BKSH, v_BKSH)
        else:
            heads_BNTH = cache.attend(layer, q_BNTH, k_BKSH, v_BKSH, run)
        return ops.linear(ops.merge_heads(self.heads(heads_BNTH)), self.output)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, seen: Visible, bias_BNTS: Tensor | None
    ) -> Tensor:
        dropout = self.dropout if self.training else 0.0
        watched = (
            self.scores.watched or self.weights.watched or torch.overrides.has_torch_function((q,))
        )
        if not watched and dropout == 0.0:
            return attend(q, k, v, seen, scale=self.scale, bias_BNTS=bias_BNTS)
        # Dropout takes this path too: it then draws one number for each weight, as published.
        return attend_written(
            q,
            k,
            v,
            seen,
            scale=self.scale,
            bias_BNTS=bias_BNTS,
            dropout=dropout,
            scores_tap=self.scores,
            weights_tap=self.weights,
        )
