"""What the tensors of a PEFT file are in a model of ours: adapters on layers, and whole parameters.

Every tensor must have a place. Shapes are checked before the model is touched.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

from chumoku.adapters.layers import Part, adapted, is_adaptable
from chumoku.adapters.peft_config import PeftConfig
from chumoku.adapters.peft_names import Published
from chumoku.adapters.registry import HEAD, check_table, sharers
from chumoku.checkpoints import assign
from chumoku.checkpoints.folder import inside
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.safetensors import read_safetensors
from chumoku.checkpoints.torch_bin import read_torch_bin
from chumoku.errors import CheckpointError

WEIGHTS: Final = "adapter_model.safetensors"
PICKLE: Final = "adapter_model.bin"
PREFIX: Final = "base_model.model."


@dataclass(frozen=True)
class Numbers:
    """One adapter on one layer, or on the published module of several."""

    part: Part
    A_RD: Tensor
    B_OR: Tensor
    magnitude_O: Tensor | None = None


@dataclass
class _Found:
    """What a file holds. adapters: module -> kind (A, B, magnitude) -> tensor; plain: the rest.

    own: tensors of layers under an adapter, which are the base's.
    """

    adapters: dict[str, dict[str, LazyTensor]] = field(default_factory=dict)
    plain: dict[str, LazyTensor] = field(default_factory=dict)
    own: dict[str, LazyTensor] = field(default_factory=dict)


_KEY: Final = re.compile(
    r"(?P<module>.+)\.(?:lora_(?:embedding_)?(?P<kind>[AB])|lora_(?P<m>magnitude)_vector)(\.weight)?"
)


def read_adapter(
    model: nn.Module, published: Published, peft: PeftConfig, folder: Path
) -> tuple[dict[str, Numbers], dict[str, Tensor]]:
    """Adapters by our layers, and values by our parameters, of a folder's weights file.

    Raises CheckpointError where the file is not understood or does not fit the model.
    """
    found = _sorted(_read_tensors(folder), folder)
    layers: dict[str, Numbers] = {}
    for module, kinds in found.adapters.items():
        layers |= _read_module(model, published, peft, module, kinds, folder)
    if not layers:
        raise CheckpointError("the file has no adapter", where=folder)
    _check_own(model, published, found.own, folder)
    return layers, _read_owned(model, published, found, layers, folder)


def _read_tensors(folder: Path) -> dict[str, LazyTensor]:
    if (folder / WEIGHTS).is_file():
        return read_safetensors(inside(folder, WEIGHTS)).tensors
    if (folder / PICKLE).is_file():
        return read_torch_bin(inside(folder, PICKLE))
    raise CheckpointError(f"there is neither {WEIGHTS} nor {PICKLE}", where=folder)


def _sorted(tensors: Mapping[str, LazyTensor], where: Path) -> _Found:
    found = _Found()
    for key, tensor in tensors.items():
        if not key.startswith(PREFIX):
            raise CheckpointError(f"key {key[:80]!r} does not begin with {PREFIX}", where=where)
        name = key.removeprefix(PREFIX)
        match = _KEY.fullmatch(name)
        if match is not None:
            kind = match["kind"] or match["m"]
            found.adapters.setdefault(match["module"], {})[kind] = tensor
        elif "lora_" in name:
            raise CheckpointError(f"key {key[:120]!r} is not supported", where=where)
        elif ".original_module." not in name:  # the base's, as some versions repeat it
            plain = re.sub(r"\.modules_to_save(?=\.)", "", name)
            own = plain.replace(".base_layer.", ".")
            kept = own if own != plain and own.endswith(".weight") else ""
            (found.own if kept else found.plain)[own] = replace(tensor, name=own)
    return found


def _read_module(
    model: nn.Module,
    published: Published,
    peft: PeftConfig,
    module: str,
    kinds: Mapping[str, LazyTensor],
    where: Path,
) -> dict[str, Numbers]:
    """Our layers of one published module, with their numbers. Raises CheckpointError."""
    hit = published.find(module)
    there = dict(model.named_modules())
    if hit is None or any(at not in there for at in hit[1]):
        raise CheckpointError(
            f"the model has no module {module[:120]!r}",
            where=where,
            advice="this adapter belongs to another architecture, or to another head",
        )
    wanted = {"A", "B", "magnitude"} if peft.dora else {"A", "B"}
    if set(kinds) != wanted:
        raise CheckpointError(
            f"module {module[:120]!r} has {', '.join(sorted(kinds))}; the config says "
            f"{', '.join(sorted(wanted))}",
            where=where,
        )
    ours = hit[1]
    rank = peft.rank_of(module)
    A = assign.dense(kinds["A"])
    if A.ndim < 2 or A.shape[0] != rank:
        raise CheckpointError(
            f"lora_A of {module[:120]!r} is {[*A.shape]}; the config says rank {rank}", where=where
        )
    part = Part(
        rank, peft.alpha_of(module), "rslora" if peft.rslora else "lora", peft.dropout, peft.dora
    )
    layers = [there[at] for at in ours]
    if not all(map(is_adaptable, layers)):
        raise CheckpointError(f"module {module[:120]!r} cannot be adapted", where=where)
    shared = sharers(model)
    for at, layer in zip(ours, layers, strict=True):
        check_table(at, layer, shared)
    sizes = [adapted(layer).matrix_shape for layer in layers]
    return _divided(ours, sizes, part, A.flatten(1), kinds, where)


def _divided(
    ours: tuple[str, ...],
    sizes: list[tuple[int, int]],
    part: Part,
    A_RD: Tensor,
    kinds: Mapping[str, LazyTensor],
    where: Path,
) -> dict[str, Numbers]:
    """Each of our layers with the whole A, and its own rows of B and lengths."""
    heights, inputs = [height for height, _ in sizes], sizes[0][1]
    B = assign.dense(kinds["B"])
    magnitude = assign.dense(kinds["magnitude"]).flatten() if "magnitude" in kinds else None
    fits = B.numel() == sum(heights) * part.rank and B.shape[0] == sum(heights)
    fits = fits and A_RD.shape[1] == inputs
    if not fits or (magnitude is not None and magnitude.numel() != sum(heights)):
        raise CheckpointError(
            f"the adapter of {', '.join(ours)} is {[*A_RD.shape]} and {[*B.shape]}; the layer has "
            f"{inputs} inputs and {sum(heights)} outputs",
            where=where,
            advice="the adapter belongs to a model of another size",
        )
    B_rows = torch.split(B.reshape(-1, part.rank), heights)
    lengths: list[Tensor | None] = [None] * len(ours)
    if magnitude is not None:
        lengths = list(torch.split(magnitude, heights))
    return {
        at: Numbers(part, A_RD, B_OR.contiguous(), length)
        for at, B_OR, length in zip(ours, B_rows, lengths, strict=True)
    }


def _check_own(
    model: nn.Module, published: Published, own: Mapping[str, LazyTensor], where: Path
) -> None:
    """Weights of the base that the file repeats must be those of this base."""
    for ours, piece in assign.match(own, published.table).pieces.items():
        weight = model.get_parameter(ours)
        if weight.is_floating_point() and not _equal(piece, weight):
            raise CheckpointError(
                f"the file repeats {piece.tensor.name}, with other values than this model's",
                where=where,
                advice="the adapter was trained on another base, or on a larger vocabulary",
            )


def _equal(piece: assign.Piece, weight: Tensor) -> bool:
    try:
        value = assign.piece_value(piece, weight.shape)
    except CheckpointError:
        return False
    return bool(torch.equal(value.to(weight), weight))


def _read_owned(
    model: nn.Module,
    published: Published,
    found: _Found,
    layers: Mapping[str, Numbers],
    where: Path,
) -> dict[str, Tensor]:
    """Our parameter -> its value, for all that the file holds beside the adapters."""
    matched = assign.match(found.plain, published.table)
    pieces = matched.pieces.items()
    unknown = [*matched.unknown]
    unknown += [piece.tensor.name for ours, piece in pieces if ours.startswith("unused.")]
    if unknown:
        raise CheckpointError(
            f"the model has no place for {', '.join(unknown[:4])}",
            where=where,
            advice="load the base with the head that the adapter was trained with: head=…",
        )
    shared = sharers(model)
    names = dict(model.named_parameters(remove_duplicate=False))
    values: dict[str, Tensor] = {}
    for ours, piece in pieces:
        if ours not in names:
            raise CheckpointError(f"the model has no place for {piece.tensor.name}", where=where)
        parameter = names[ours]
        tied = len(shared[id(parameter)]) > 1
        if not parameter.is_floating_point() or ours.removesuffix(".weight") in layers:
            raise CheckpointError(f"{piece.tensor.name} cannot replace stored blocks", where=where)
        if tied and not _equal(piece, parameter):
            raise CheckpointError(
                f"{piece.tensor.name} is tied in this model, and differs in the file",
                where=where,
                advice="load the base with tie_word_embeddings false",
            )
        if not tied:
            values[ours] = _value(ours, piece, parameter.shape)
    return values


def _value(ours: str, piece: assign.Piece, shape: torch.Size) -> Tensor:
    try:
        return assign.piece_value(piece, shape)
    except CheckpointError as error:
        if ours.startswith(f"{HEAD}."):
            error.advice = (
                "the head has other classes: name them with labels=[…], or in a config.json "
                "(id2label) beside the adapter"
            )
        raise
