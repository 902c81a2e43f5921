"""LoRA (Hu et al., 2106.09685), rsLoRA (Kalajdzievski, 2312.03732), DoRA (Liu et al., 2402.09353).

A layer with adapters takes the place of a linear or embedding layer, of floats or of stored blocks.
The leaves `weight` and `bias` are those of the layer that it replaces; the adapters' own leaves are
`lora_A.NAME`, `lora_B.NAME` and, for DoRA, `lora_magnitude.NAME`. Several adapters may lie on one
layer; each that is active adds its change, times its share, to what the layer itself gives.

The adapters' numbers have the base's float type; over stored blocks they are float32. The change is
computed in that type and cast to the type of the layer's output.

Letters: D inputs (for a table: its rows), O outputs (for a table: the width), R rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Final, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.kernels.linear import block_embedding, block_linear, dequantize_fast
from chumoku.layers.ops import dropout, scaled, wide
from chumoku.quantization.layers import QuantizedEmbedding, QuantizedLinear

ALL_LINEAR: Final = "all-linear"
SCALINGS: Final = ("lora", "rslora")
BIASES: Final = ("none", "all", "lora")


@dataclass(frozen=True)
class LoRASettings:
    """What is adapted, and how.

    rank, alpha: the change is scale * B A with A [R, D] and B [O, R]; scale is alpha / rank, or
    alpha / sqrt(rank) for scaling "rslora". dropout: of the adapter's input, in training (none on
    the ids of a table). targets: ends of our layer names ("attention.query", which is not
    "cross_attention.query"), patterns of whole names ("*attention.query", "blocks.3.*"), or
    "all-linear": every linear layer but those of the head, the embeddings and the unembedding.
    dora: a trained length for each output. train_bias: none, all, or those of adapted layers.
    also_train: modules trained as a whole and saved ("pooler", "embeddings"); the head always is.
    ranks, alphas: exceptions, (target, value), of which the first that fits counts.
    seed: of the first A.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention.query", "attention.value")
    scaling: str = "lora"
    dora: bool = False
    train_bias: str = "none"
    also_train: tuple[str, ...] = ()
    seed: int = 0
    ranks: tuple[tuple[str, int], ...] = ()
    alphas: tuple[tuple[str, float], ...] = ()

    def __post_init__(self) -> None:
        for rank in (self.rank, *(rank for _, rank in self.ranks)):
            if type(rank) is not int or rank < 1:
                raise ConfigError(f"a rank is a whole number from 1, not {rank!r}", where="rank")
        for alpha in (self.alpha, *(alpha for _, alpha in self.alphas)):
            if not math.isfinite(alpha):
                raise ConfigError(f"{alpha!r} is not a number", where="alpha")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"must lie in [0, 1), it is {self.dropout}", where="dropout")
        for key, value, known in (
            ("scaling", self.scaling, SCALINGS),
            ("train_bias", self.train_bias, BIASES),
        ):
            if value not in known:
                raise ConfigError(f"{value!r} is not one of {', '.join(known)}", where=key)
        if isinstance(self.targets, str) or not self.targets:
            raise ConfigError("must be a list of at least one layer", where="targets")


@dataclass(frozen=True)
class Part:
    """One adapter as one layer has it."""

    rank: int
    alpha: float
    scaling: str = "lora"
    dropout: float = 0.0
    dora: bool = False

    @property
    def scale(self) -> float:
        """alpha / R (2106.09685, section 4.1), or alpha / sqrt(R) (2312.03732, eq. 4)."""
        return self.alpha / (math.sqrt(self.rank) if self.scaling == "rslora" else self.rank)


class AdaptedLayer(nn.Module, ABC):
    """What LoRALinear and LoRAEmbedding have in common: the adapters, and merging.

    parts: the adapters by name. active: adapter -> share of its change; read in each forward.
    base: while merged, the weight as it was.
    """

    base: Tensor | None

    def __init__(self, weight: Tensor, storage: str | None) -> None:
        super().__init__()
        self.storage = storage
        self.weight = weight
        self.lora_A = nn.ParameterDict()
        self.lora_B = nn.ParameterDict()
        self.lora_magnitude = nn.ParameterDict()
        self.parts: dict[str, Part] = {}
        self.active: dict[str, float] = {}
        self.register_buffer("base", None, persistent=False)

    @property
    @abstractmethod
    def matrix_shape(self) -> tuple[int, int]:
        """[O, D]."""

    @abstractmethod
    def matrix(self, dtype: torch.dtype) -> Tensor:
        """The base's values as [O, D], without a gradient; also while merged."""

    @abstractmethod
    def first_values(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A [R, D] and B [O, R] of a new adapter, float32 on the CPU; B A is zero."""

    @abstractmethod
    def restored(self) -> nn.Module:
        """The layer that this one replaced, with the same Parameters."""

    @abstractmethod
    def fuse(self) -> nn.Module:
        """A plain float layer with the active adapters in its weight; blocks are dequantised."""

    @property
    def float_type(self) -> torch.dtype:
        """The type of the adapters' numbers."""
        return torch.float32 if self.storage is not None else self.weight.dtype

    def add(self, name: str, part: Part, generator: torch.Generator) -> None:
        """A new adapter; the layer gives what it gave before. It is not active yet.

        On the meta device only shapes are made.
        """
        device, dtype = self.weight.device, self.float_type
        A_RD, B_OR = self.first_values(part, generator)
        self.put(name, part, A_RD.to(device, dtype), B_OR.to(device, dtype))

    def put(
        self,
        name: str,
        part: Part,
        A_RD: Tensor,
        B_OR: Tensor,
        magnitude_O: Tensor | None = None,
    ) -> None:
        """An adapter with these values. A magnitude that DoRA lacks is the present length.

        Raises InputError where a shape does not fit, or the name is taken.
        """
        (outputs, inputs), rank = self.matrix_shape, part.rank
        wanted = {"A": (rank, inputs), "B": (outputs, rank), "magnitude": (outputs,)}
        given = {"A": A_RD, "B": B_OR, "magnitude": magnitude_O}
        for key, value in given.items():
            if value is not None and tuple(value.shape) != wanted[key]:
                raise InputError(f"{key} is {[*value.shape]}, not {[*wanted[key]]}", where=name)
        if name in self.parts:
            raise InputError("an adapter of this name is there already", where=name)
        self.parts[name] = part
        self.lora_A[name], self.lora_B[name] = nn.Parameter(A_RD), nn.Parameter(B_OR)
        if part.dora:
            value = self.lengths(name) if magnitude_O is None else magnitude_O
            self.lora_magnitude[name] = nn.Parameter(value.to(A_RD))

    def drop(self, name: str) -> None:
        """Take an adapter away. Raises InputError while merged."""
        if self.base is not None:
            raise InputError("the adapters are merged; unmerge first", where=name)
        del self.parts[name], self.lora_A[name], self.lora_B[name]
        if name in self.lora_magnitude:
            del self.lora_magnitude[name]
        self.active = {other: share for other, share in self.active.items() if other != name}

    @torch.no_grad()
    def lengths(self, name: str) -> Tensor:
        """||W + scale B A|| of each output, [O]; a constant to the gradient (2402.09353, 4.3)."""
        change_OD = self.parts[name].scale * (self.lora_B[name] @ self.lora_A[name])
        whole_OD = self.matrix(change_OD.dtype) + change_OD
        lengths_O: Tensor = torch.linalg.vector_norm(whole_OD, dim=1)
        return lengths_O

    @torch.no_grad()
    def merged_matrix(self) -> Tensor:
        """W + sum over the active adapters of share * their change, [O, D], at least float32."""
        dtype = wide(self.float_type)
        base_OD = self.matrix(dtype)
        merged_OD = base_OD.clone()
        for name, share in self.active.items():
            A_RD, B_OR = self.lora_A[name].to(dtype), self.lora_B[name].to(dtype)
            change_OD = self.parts[name].scale * (B_OR @ A_RD)
            if self.parts[name].dora:
                ratio_O = (self.lora_magnitude[name] / self.lengths(name)).to(dtype)
                change_OD = ratio_O[:, None] * (base_OD + change_OD) - base_OD
            merged_OD += share * change_OD
        return merged_OD

    def unmerge(self) -> None:
        """Give the weight its own bits back, which were kept."""
        if self.base is not None:
            self.weight.data = self.base
            self.base = None

    def _keep_and_replace(self, weight: Tensor) -> None:
        if self.base is not None:
            raise InputError("the adapters are merged already")
        if self.storage is not None:
            raise InputError(
                f"a merged weight does not fit the base's {self.storage} blocks",
                advice="fuse() makes float layers; or dequantise the model before adapting it",
            )
        self.base = self.weight.data
        self.weight.data = weight.to(self.weight.dtype)

    def extra_repr(self) -> str:
        outputs, inputs = self.matrix_shape
        ranks = ", ".join(f"{name}: rank {part.rank}" for name, part in self.parts.items())
        return f"in_features={inputs}, out_features={outputs}, storage={self.storage}, {ranks}"


class LoRALinear(AdaptedLayer):
    """y [..., O] = x W^T + b + share * scale * (x A^T) B^T, over nn.Linear or QuantizedLinear.

    With DoRA the rows of W + scale B A are scaled to the trained lengths (2402.09353, eq. 5).
    """

    bias: Tensor | None

    def __init__(self, weight: Tensor, storage: str | None, sizes: tuple[int, int]) -> None:
        super().__init__(weight, storage)
        self.out_features, self.in_features = sizes
        self.register_parameter("bias", None)

    @classmethod
    def from_base(cls, linear: nn.Linear | QuantizedLinear) -> Self:
        """The layer with room for adapters; it shares the base's Parameters."""
        sizes = linear.out_features, linear.in_features
        if isinstance(linear, QuantizedLinear):
            layer = cls(linear.weight, linear.storage, sizes)
        else:
            layer = cls(linear.weight, None, sizes)
        layer.register_parameter("bias", linear._parameters["bias"])
        return layer.train(linear.training)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.out_features, self.in_features

    @torch.no_grad()
    def matrix(self, dtype: torch.dtype) -> Tensor:
        if self.storage is not None:
            return dequantize_fast(self.weight, self.storage, dtype)
        return (self.weight if self.base is None else self.base).to(dtype)

    def first_values(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # Uniform in +-1/sqrt(D), as the published code draws A (He's rule with a = sqrt 5).
        bound = self.in_features**-0.5
        A_RD = torch.empty(part.rank, self.in_features, device="cpu")
        A_RD.uniform_(-bound, bound, generator=generator)
        return A_RD, torch.zeros(self.out_features, part.rank, device="cpu")

    def forward(self, x: Tensor) -> Tensor:
        if self.storage is None:
            y = own = F.linear(x, self.weight, self.bias)
        else:
            y = own = block_linear(x, self.weight, self.storage, self.bias)
        if self.base is not None:
            return y
        for name, share in self.active.items():
            change: Tensor = scaled(self._change(name, x, own), share)
            y = y + change.to(y.dtype)
        return y

    def _change(self, name: str, x: Tensor, own: Tensor) -> Tensor:
        part = self.parts[name]
        A_RD, B_OR = self.lora_A[name], self.lora_B[name]
        drops = self.training and part.dropout > 0
        x = x.to(A_RD.dtype)
        x = dropout(x, part.dropout) if drops else x
        low = part.scale * F.linear(F.linear(x, A_RD), B_OR)
        if not part.dora:
            return low
        ratio_O: Tensor = self.lora_magnitude[name] / self.lengths(name)
        if drops:  # the whole product is of the thinned input, as in the published code
            own = F.linear(x, self.matrix(x.dtype))
        elif self.bias is not None:
            own = own - self.bias
        return (ratio_O - 1) * own.to(low.dtype) + ratio_O * low

    def merge(self) -> None:
        """Put the active adapters into the weight; its bits are kept for unmerge()."""
        self._keep_and_replace(self.merged_matrix())

    def restored(self) -> nn.Module:
        self.unmerge()
        bias = self._parameters["bias"]
        if self.storage is not None:
            return QuantizedLinear(self.weight, self.storage, bias).train(self.training)
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = self.weight
        linear.register_parameter("bias", bias)
        return linear.train(self.training)

    def fuse(self) -> nn.Module:
        merged = self.merged_matrix().to(self.float_type)
        bias = self._parameters["bias"]
        linear = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        linear.weight = nn.Parameter(merged)
        linear.register_parameter("bias", bias)
        return linear.train(self.training)


class LoRAEmbedding(AdaptedLayer):
    """Rows of W + share * scale * (B A)^T that ids [...] name: [..., O].

    Over nn.Embedding or QuantizedEmbedding. Seen as a matrix the table is [O, D]: outputs by ids,
    so that A is [R, D] and B [O, R] as in a linear layer, and DoRA has a length for each output.
    """

    like: Tensor

    def __init__(
        self,
        weight: Tensor,
        storage: str | None,
        sizes: tuple[int, int],
        dtype: torch.dtype,
        padding: int | None,
    ) -> None:
        super().__init__(weight, storage)
        self.num_embeddings, self.embedding_dim = sizes
        self.padding_idx = padding
        like = torch.empty(0, dtype=dtype, device=weight.device)
        self.register_buffer("like", like, persistent=False)

    @classmethod
    def from_base(cls, table: nn.Embedding | QuantizedEmbedding) -> Self:
        """The layer with room for adapters; it shares the base's Parameter.

        Raises InputError for a table that is renormalised on use or has sparse gradients.
        """
        sizes = table.num_embeddings, table.embedding_dim
        if isinstance(table, QuantizedEmbedding):
            layer = cls(table.weight, table.storage, sizes, table.like.dtype, None)
        else:
            if table.max_norm is not None or table.sparse or table.scale_grad_by_freq:
                raise InputError("a table that changes when it is used cannot be adapted")
            layer = cls(table.weight, None, sizes, table.weight.dtype, table.padding_idx)
        return layer.train(table.training)

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.embedding_dim, self.num_embeddings

    @torch.no_grad()
    def matrix(self, dtype: torch.dtype) -> Tensor:
        if self.storage is not None:
            return dequantize_fast(self.weight, self.storage, dtype).t()
        return (self.weight if self.base is None else self.base).to(dtype).t()

    def first_values(self, part: Part, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # Here A is zero and B is N(0, 1), as the published code has it.
        B_OR = torch.randn(self.embedding_dim, part.rank, generator=generator, device="cpu")
        return torch.zeros(part.rank, self.num_embeddings, device="cpu"), B_OR

    def forward(self, ids: Tensor) -> Tensor:
        if self.storage is None:
            y = own = F.embedding(ids, self.weight, self.padding_idx)
        else:
            y = own = block_embedding(ids, self.weight, self.storage, self.like.dtype)
        if self.base is not None:
            return y
        for name, share in self.active.items():
            change: Tensor = scaled(self._change(name, ids, own), share)
            y = y + change.to(y.dtype)
        return y

    def _change(self, name: str, ids: Tensor, own: Tensor) -> Tensor:
        rows = F.embedding(ids, self.lora_A[name].t(), self.padding_idx)
        low = self.parts[name].scale * F.linear(rows, self.lora_B[name])
        if not self.parts[name].dora:
            return low
        ratio_O: Tensor = self.lora_magnitude[name] / self.lengths(name)
        return (ratio_O - 1) * own.to(low.dtype) + ratio_O * low

    def merge(self) -> None:
        """Put the active adapters into the table; its bits are kept for unmerge()."""
        self._keep_and_replace(self.merged_matrix().t().contiguous())

    def restored(self) -> nn.Module:
        self.unmerge()
        if self.storage is not None:
            table = QuantizedEmbedding(self.weight, self.storage, self.like.dtype)
            return table.train(self.training)
        return self._table(self.weight)

    def fuse(self) -> nn.Module:
        merged = self.merged_matrix().t().to(self.like.dtype)
        return self._table(nn.Parameter(merged.contiguous()))

    def _table(self, weight: Tensor) -> nn.Module:
        table = nn.Embedding(
            self.num_embeddings, self.embedding_dim, padding_idx=self.padding_idx, device="meta"
        )
        table.weight = weight
        return table.train(self.training)


Base = nn.Linear | nn.Embedding | QuantizedLinear | QuantizedEmbedding
"""The layers that can be adapted."""


def is_linear(module: nn.Module) -> bool:
    """A linear layer that can be, or is, adapted."""
    return type(module) in (nn.Linear, QuantizedLinear, LoRALinear)


def is_adaptable(module: nn.Module) -> bool:
    """A linear layer or a table of embeddings that can be, or is, adapted."""
    return is_linear(module) or type(module) in (nn.Embedding, QuantizedEmbedding, LoRAEmbedding)


def adapted(module: nn.Module) -> LoRALinear | LoRAEmbedding:
    """The layer itself where it has adapters, else one in its place. Raises InputError."""
    if isinstance(module, LoRALinear | LoRAEmbedding):
        return module
    if isinstance(module, nn.Linear | QuantizedLinear):
        return LoRALinear.from_base(module)
    if isinstance(module, nn.Embedding | QuantizedEmbedding):
        return LoRAEmbedding.from_base(module)
    raise InputError("only linear and embedding layers can be adapted")
