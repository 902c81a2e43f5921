"""Between published tensors and ours: match names by a model's table, and reorder rows.

Quantised tensors stay in their blocks: they may be renamed, and whole rows split or permuted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from chumoku.checkpoints.lazy import LazyTensor
from chumoku.errors import CheckpointError
from chumoku.kernels.blocks import dequantize
from chumoku.models.names import NameTable, Rule

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
STORAGE_OF = {dtype: storage for storage, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Piece:
    """One of our tensors: part `part` of `rule.ours`, stacked in the published tensor `tensor`."""

    tensor: LazyTensor
    rule: Rule
    part: int


@dataclass(frozen=True)
class Matched:
    """pieces: our name -> where it comes from; unknown: no rule fits; ignored: nothing learned."""

    pieces: dict[str, Piece]
    unknown: tuple[str, ...]
    ignored: tuple[str, ...]


def match(tensors: Mapping[str, LazyTensor], table: NameTable) -> Matched:
    """Sort the published tensors of a file by a name table.

    Where a file holds one of ours under two names, the rule later in the table wins: it is the one
    that the published class computes with (BERT's decoder.bias).
    """
    rank = {rule: place for place, rule in enumerate((*table.rules, *table.heads))}
    pieces: dict[str, Piece] = {}
    unknown: list[str] = []
    ignored: list[str] = []
    for name, tensor in tensors.items():
        found = table.find(name)
        if table.is_ignored(name):
            ignored.append(name)
        elif found is None:
            unknown.append(name)
        else:
            for part, ours in enumerate(found.ours):
                held = pieces.get(ours)
                if held is None or rank[found.rule] > rank[held.rule]:
                    pieces[ours] = Piece(tensor, found.rule, part)
    return Matched(pieces, tuple(unknown), tuple(ignored))


def shared_names(model: nn.Module) -> dict[str, list[str]]:
    """First name -> all names of each parameter and saved buffer; tied ones come together."""
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return {names[0]: names for names in groups.values()}


def stored_twice(model: nn.Module, pieces: Mapping[str, Piece]) -> list[str]:
    """Published names of the first tied group whose tensors are not all the same bytes."""
    for names in shared_names(model).values():
        tensors = {pieces[n].tensor.name: pieces[n].tensor for n in names if n in pieces}
        if len(tensors) > 1:
            first, *others = tensors.values()
            raw = first.read()
            if any(t.storage != first.storage or t.read() != raw for t in others):
                return list(tensors)
    return []


def dense(tensor: LazyTensor) -> Tensor:
    """The published tensor in its stored dtype; float32 where it was quantised."""
    raw = torch.frombuffer(tensor.read(), dtype=torch.uint8) if tensor.nbytes else torch.empty(0)
    if not tensor.quantized:
        return raw.view(DTYPES[tensor.storage]).view(tensor.shape)
    rows = raw.view(*tensor.shape[:-1], -1)
    return dequantize(rows, tensor.storage)


def piece_value(piece: Piece, shape: torch.Size) -> Tensor:
    """Our tensor of this shape. Raises CheckpointError where the published shape does not fit."""
    value = dense(piece.tensor)
    if piece.rule.transposed:
        value = value.t() if value.dim() == 2 else value
    value = _part(value, piece)
    if piece.rule.pairs:
        value = pairs_to_halves(value, piece.rule.pairs)
    if piece.rule.shape is not None and value.numel() == shape.numel():
        value = value.reshape(shape)
    if value.shape != shape:
        raise CheckpointError(
            f"tensor {piece.tensor.name!r} has shape {tuple(piece.tensor.shape)}, "
            f"which does not give {tuple(shape)}",
            where=piece.tensor.name,
            advice="the config and the weights are of different models, or of different sizes",
        )
    return value.contiguous()


def piece_blocks(piece: Piece, shape: torch.Size) -> Tensor | None:
    """Our tensor's raw rows, uint8 [rows, row bytes]; None where blocks cannot be kept."""
    tensor = piece.tensor
    rows = torch.Size(tensor.shape[:-1]).numel()
    if piece.rule.transposed or len(shape) != 2 or tensor.shape[-1] != shape[-1]:
        return None
    value = _part(torch.frombuffer(tensor.read(), dtype=torch.uint8).view(rows, -1), piece)
    if value.shape[0] != shape[0]:
        return None
    return pairs_to_halves(value, piece.rule.pairs) if piece.rule.pairs else value.contiguous()


def _part(value: Tensor, piece: Piece) -> Tensor:
    parts = len(piece.rule.ours)
    if parts == 1:
        return value
    if value.shape[0] % parts:
        raise CheckpointError(
            f"tensor {piece.tensor.name!r} has {value.shape[0]} rows, not a multiple of {parts}"
        )
    return value.chunk(parts)[piece.part]


def pairs_to_halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from (0, 1), (2, 3), … pairs to first and second halves."""
    return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def halves_to_pairs(rows: Tensor, heads: int) -> Tensor:
    """The inverse of pairs_to_halves."""
    return rows.view(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def published_value(rule: Rule, values: Iterable[Tensor]) -> Tensor:
    """The published tensor of a rule from our parts, in order."""
    parts = [halves_to_pairs(v, rule.pairs) if rule.pairs else v for v in values]
    value = torch.cat(parts) if len(parts) > 1 else parts[0]
    if rule.shape is not None:
        value = value.reshape(rule.shape)
    if rule.transposed and value.dim() == 2:
        value = value.t()
    return value.contiguous()


def lazy(name: str, value: Tensor) -> LazyTensor:
    """A LazyTensor of a tensor in memory."""

    def read() -> bytearray:
        raw = value.detach().contiguous().reshape(-1).cpu()
        return bytearray(raw.view(torch.uint8).numpy())

    return LazyTensor(name, tuple(value.shape), STORAGE_OF[value.dtype], read)
