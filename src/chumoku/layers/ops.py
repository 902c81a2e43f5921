"""The primitives: the few operations that every forward pass is written with.

A primitive that is more than one PyTorch call is marked with `@primitive`, so that a recorder
(a TorchFunctionMode, see recorder.py) sees it as one step. The others are PyTorch's own functions:
F.linear, F.embedding, F.layer_norm, F.dropout, +, *. Reductions that lose digits (mean of squares,
softmax, rotation tables) run in max(float32, the input's dtype).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function

from chumoku.kernels import activations, native
from chumoku.kernels.dropout import training_dropout

P = ParamSpec("P")
R = TypeVar("R")

Activation = Callable[[Tensor], Tensor]

STORAGES: Final = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""The native kernels' names of these dtypes."""

VOCABULARY: Final = 8192
"""Rows from which on the native kernel is the faster one in float32 too."""


def primitive(function: Callable[P, R]) -> Callable[P, R]:
    """Let an active TorchFunctionMode see `function` as one operation instead of its parts."""

    @functools.wraps(function)
    def dispatch(*args: P.args, **kwargs: P.kwargs) -> R:
        if has_torch_function(args):
            tensors = tuple(a for a in args if isinstance(a, Tensor))
            return handle_torch_function(dispatch, tensors, *args, **kwargs)
        return function(*args, **kwargs)

    return dispatch


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype for reductions: at least float32."""
    return torch.promote_types(dtype, torch.float32)


@primitive
def softmax(scores: Tensor) -> Tensor:
    """exp(s - max s) / sum exp(s - max s) over the last axis; a row that is all -inf becomes zeros.

    The second rule keeps a query that may see nothing from turning into NaN.
    """
    weights = torch.softmax(scores, dim=-1, dtype=wide(scores.dtype)).to(scores.dtype)
    return weights.masked_fill(scores.amax(dim=-1, keepdim=True) == -torch.inf, 0.0)


@primitive
def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis (1910.07467, eq. 4), in x's dtype."""
    if activations.in_one_pass(x, weight):
        return activations.rms_norm(x, weight, eps)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide(x.dtype))
    y = x * torch.rsqrt(norm * norm / x.shape[-1] + eps)
    return (weight * y.to(x.dtype)).to(x.dtype)


@primitive
def rotate(x_BNTH: Tensor, cos_BTH: Tensor, sin_BTH: Tensor) -> Tensor:
    """Rotate each pair (h, h + H/2) by its position's angle (Su et al., 2104.09864, eq. 34).

    Pairs lie half a head apart; files that pair neighbours have their rows permuted on loading.
    """
    x1, x2 = x_BNTH.chunk(2, dim=-1)
    y_BNTH = x_BNTH * cos_BTH.unsqueeze(1)
    y1, y2 = y_BNTH.chunk(2, dim=-1)
    sin1, sin2 = sin_BTH.unsqueeze(1).chunk(2, dim=-1)
    if torch.is_grad_enabled():
        return torch.cat((y1.addcmul(x2, sin1, value=-1), y2.addcmul(x1, sin2)), dim=-1)
    y1.addcmul_(x2, sin1, value=-1)  # the same without a copy
    y2.addcmul_(x1, sin2)
    return y_BNTH


@primitive
def attention_scores(q_BNTH: Tensor, k_BKSH: Tensor, scale: float) -> Tensor:
    """scores_BNTS = scale * q . k; each key head serves N / K query heads (Ainslie, 2305.13245)."""
    B, N, T, H = q_BNTH.shape
    K, S = k_BKSH.shape[1:3]
    grouped = (q_BNTH * scale).reshape(B, K, N // K * T, H)
    return torch.matmul(grouped, k_BKSH.transpose(-1, -2)).view(B, N, T, S)


@primitive
def hide(scores_BNTS: Tensor, allowed_B1TS: Tensor) -> Tensor:
    """-inf where attention is not allowed."""
    return scores_BNTS.masked_fill(~allowed_B1TS, -torch.inf)


@primitive
def weighted_sum(weights_BNTS: Tensor, v_BKSH: Tensor) -> Tensor:
    """heads_BNTH = sum over s of weights * v (Vaswani et al., 1706.03762, eq. 1)."""
    B, N, T, S = weights_BNTS.shape
    K, H = v_BKSH.shape[1], v_BKSH.shape[3]
    grouped = weights_BNTS.reshape(B, K, N // K * T, S)
    return torch.matmul(grouped, v_BKSH).view(B, N, T, H)


@primitive
def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """[B, T, heads * H] -> [B, heads, T, H], a view."""
    return x_BTD.view(*x_BTD.shape[:-1], heads, x_BTD.shape[-1] // heads).transpose(1, 2)


@primitive
def merge_heads(x_BNTH: Tensor) -> Tensor:
    """[B, N, T, H] -> [B, T, N * H]."""
    return x_BNTH.transpose(1, 2).flatten(-2)


@primitive
def patches(pixels_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Cut images into tiles, row by row: -> [B, tiles, C * size[0] * size[1]]."""
    tiles = pixels_BCHW.unfold(2, size[0], size[0]).unfold(3, size[1], size[1])
    return tiles.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def linear(x_BTD: Tensor, layer: nn.Module) -> Tensor:
    """layer(x_BTD). One token on the CPU goes through the native kernel where that reads the
    weights faster than F.linear does: two bytes a weight, or the rows of a vocabulary; unless a
    graph, a gradient or a hook is wanted."""
    if type(layer) is not nn.Linear or not _one_token(x_BTD, layer):
        return layer(x_BTD)  # type: ignore[no-any-return]
    bias = None if layer.bias is None else layer.bias.float()
    raw, storage = layer.weight.view(torch.uint8), STORAGES[x_BTD.dtype]
    return native.native_block_linear(x_BTD.float(), raw, storage, bias).to(x_BTD.dtype)


def _one_token(x_BTD: Tensor, layer: nn.Linear) -> bool:
    return (
        x_BTD.numel() == layer.in_features
        and x_BTD.dtype is layer.weight.dtype
        and x_BTD.dtype in STORAGES
        and (x_BTD.dtype is not torch.float32 or layer.out_features >= VOCABULARY)
        and not torch.is_grad_enabled()
        and not (layer._forward_hooks or layer._forward_pre_hooks)
        and not has_torch_function((x_BTD, layer.weight))
        and x_BTD.is_cpu
        and native.serves(layer.weight)
    )


def dropout(x: Tensor, rate: float) -> Tensor:
    """F.dropout(x, rate) in training, with the same numbers; a recorder sees that function."""
    return F.dropout(x, rate) if has_torch_function((x,)) else training_dropout(x, rate)


def project(x_BTD: Tensor, *layers: nn.Module) -> tuple[Tensor, ...]:
    """Apply several projections to one input: the place where they may be packed into one."""
    return tuple(linear(x_BTD, layer) for layer in layers)


def gated(gate: Tensor, up: Tensor, activation: Activation, *, watched: bool = False) -> Tensor:
    """activation(gate) * up (Shazeer, 2002.05202, eq. 5 and 6); watched: step by step."""
    steps = watched or activation is not F.silu or has_torch_function((gate, up))
    if not steps and activations.in_one_pass(gate, up):
        return activations.silu_product(gate, up)
    return activation(gate) * up


@primitive
def gelu(x: Tensor) -> Tensor:
    """x * Phi(x) (Hendrycks & Gimpel, 1606.08415, eq. 2)."""
    return _gelu(x, "none")


@primitive
def gelu_new(x: Tensor) -> Tensor:
    """The tanh approximation of x * Phi(x) (Hendrycks & Gimpel, 1606.08415, section 2)."""
    return _gelu(x, "tanh")


def _gelu(x: Tensor, approximate: str) -> Tensor:
    if x.dtype is torch.float32 and native.serves(x):
        return activations.gelu(x, approximate)
    return F.gelu(x, approximate=approximate)


@primitive
def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


@primitive
def gelu_clipped(x: Tensor) -> Tensor:
    """GELU held within [-10, 10], as the published name `gelu_10` has it."""
    return F.gelu(x).clamp(-10, 10)


@primitive
def squared_relu(x: Tensor) -> Tensor:
    """max(0, x)^2 (So et al., 2109.08668)."""
    return F.relu(x).square()


@primitive
def laplace(x: Tensor) -> Tensor:
    """(1 + erf((x - sqrt(1/2)) / (sqrt(1/(4 pi)) sqrt(2)))) / 2 (Ma et al., 2209.10655, eq. 16)."""
    return 0.5 * (1.0 + torch.erf((x - 0.707107) / (0.282095 * 2.0**0.5)))


def identity(x: Tensor) -> Tensor:
    """The activation called "linear"."""
    return x


ACTIVATIONS: Final[dict[str, Activation]] = {
    "gelu": gelu,
    "gelu_python": gelu,
    "gelu_new": gelu_new,
    "gelu_fast": gelu_new,
    "gelu_accurate": gelu_new,
    "gelu_pytorch_tanh": gelu_new,
    "gelu_python_tanh": gelu_new,
    "gelu_10": gelu_clipped,
    "quick_gelu": quick_gelu,
    "laplace": laplace,
    "leaky_relu": F.leaky_relu,
    "linear": identity,
    "mish": F.mish,
    "relu": F.relu,
    "relu2": squared_relu,
    "relu6": F.relu6,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "swish": F.silu,
    "tanh": torch.tanh,
}


def scaled(x: Tensor, factor: float) -> Tensor:
    """factor * x, without the multiplication where the factor is 1."""
    return x if factor == 1.0 else x * factor
