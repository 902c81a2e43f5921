"""Floating-point operations of training, and how many a device can do: what MFU is made of.

MFU (Chowdhery et al., 2204.02311, appendix B) is what the model needs over what the device could do
in the same time. Work that is done twice (recomputed activations) is not counted twice.

A matrix [O, D] costs 2 O D operations a token in the forward pass and the same again for each of
the two gradients, of its input and of itself: with N weights in matrices, 6 N a token. The scores
and the weighted sum of attention cost 12 T D a layer and token. Matrices are found by our names,
so tied weights count where they multiply, and tables that are only looked up do not.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, cast

import torch
from torch import nn

from chumoku.errors import InputError

LOOKED_UP: Final = re.compile(r"(^|\.)(embeddings\.(token|position|segment)|relative_bias)(\.|$)")
ONCE_A_ROW: Final = re.compile(r"^(pooler|head\.next_sentence)(\.|$)")


@dataclass(frozen=True)
class Shape:
    """One row of a batch, in positions.

    length: of the text, or of the target where there are two stacks. memory: of the source, else 0.
    chosen: share of the positions for which heads and unembedding are computed: 0.15 for masked
    language modelling, 1 / length where a row has one label.
    """

    length: int
    memory: int = 0
    chosen: float = 1.0

    def __post_init__(self) -> None:
        if self.length < 1 or self.memory < 0 or not 0 <= self.chosen <= 1:
            raise InputError(f"no row of a batch: {self}")


def row_flops(model: nn.Module, shape: Shape, *, training: bool = True) -> float:
    """Operations for one row: forward, and backward too if `training`.

    What is frozen needs no gradient of itself, and below the first trained parameter nothing needs
    a gradient at all. Biases, norms, activations and softmax are left out, as in PaLM's count.
    """
    total = 0.0
    below = False  # something before this product is trained, so its input needs a gradient
    for name, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        trained = training and any(p.requires_grad for p in own.values())
        if not LOOKED_UP.search(name):
            for p in own.values():
                forward = 2.0 * _numbers(module, p) * _positions(name, shape)
                total += forward * (1 + below + (training and p.requires_grad))
            if name.endswith("attention.query"):
                width = own["weight"].shape[0]
                total += _attention(name, width, shape) * (3 if below or trained else 1)
        below = below or trained
    return total


def flops_per_token(model: nn.Module, shape: Shape) -> float:
    """Training operations a token; a row of two stacks has length + memory tokens."""
    return row_flops(model, shape) / (shape.length + shape.memory)


def _numbers(module: nn.Module, parameter: nn.Parameter) -> int:
    """How many numbers of a matrix take part in products; none of a vector."""
    if parameter.ndim != 2:
        return 0
    if parameter.is_floating_point():
        return parameter.numel()
    return parameter.shape[0] * int(cast(int, module.in_features))  # stored blocks are bytes


def _positions(name: str, shape: Shape) -> float:
    """How many positions of a row pass through a module."""
    if name.startswith("encoder.") or re.search(r"cross_attention\.(key|value)\b", name):
        return shape.memory
    if ONCE_A_ROW.search(name):
        return 1
    if re.match(r"(head|unembedding)(\.|$)", name):
        return shape.length * shape.chosen
    return shape.length


def _attention(name: str, width: int, shape: Shape) -> float:
    """Two products of 2 T S operations for each of the width = N H numbers of all heads."""
    length = shape.memory if name.startswith("encoder.") else shape.length
    keys = shape.memory if "cross_attention" in name else length
    return 4.0 * length * keys * width


# ---- what a device can do ----


_TERA: Final = 1e12
# By NVIDIA's data sheets, without sparsity: (part of the device's name, bfloat16 and float16 on
# tensor cores with float32 sums, TF32, float32). The first that fits decides.
_DATA_SHEETS: Final = (
    ("H100 PCIe", 756.0, 378.0, 51.2),
    ("H100 NVL", 835.5, 417.5, 60.0),
    ("H200 NVL", 835.5, 417.5, 60.0),
    ("H100", 989.4, 494.7, 66.9),
    ("H200", 989.4, 494.7, 66.9),
    ("A100", 312.0, 156.0, 19.5),
    ("A30", 165.0, 82.0, 10.3),
    ("A40", 149.7, 74.8, 37.4),
    ("A10", 125.0, 62.5, 31.2),
    ("L40S", 362.0, 183.0, 91.6),
    ("L40", 181.0, 90.5, 90.5),
    ("L4", 121.0, 60.0, 30.3),
    ("RTX 4090", 165.2, 82.6, 82.6),
    ("RTX 3090", 71.0, 35.6, 35.6),
)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """The most operations a second. None where nobody has told us: a CPU, an unknown GPU, a slice.

    It is not measured here: on a machine that others use too, what is measured is too low, and an
    MFU made of it would flatter.
    """
    if device.type != "cuda":
        return None
    tf32 = torch.get_float32_matmul_precision() != "highest"
    return peak_by_name(torch.cuda.get_device_name(device), dtype, tf32=tf32)


def peak_by_name(name: str, dtype: torch.dtype, *, tf32: bool = False) -> float | None:
    """A GPU's peak by its data sheet. tf32: float32 matrices are multiplied as TF32."""
    if "MIG" in name:
        return None
    words = re.compile(r"[\w]+")
    for part, half, tensor, single in _DATA_SHEETS:
        if set(words.findall(part)) <= set(words.findall(name)):
            by_dtype = {
                torch.bfloat16: half,
                torch.float16: half,
                torch.float32: tensor if tf32 else single,
            }
            return by_dtype[dtype] * _TERA if dtype in by_dtype else None
    return None
