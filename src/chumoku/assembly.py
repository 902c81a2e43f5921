"""From the tensors of a file to a model: which head, and which parameter from which tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chumoku.checkpoints import assign
from chumoku.checkpoints.published import Published
from chumoku.devices import float_type, keeps_blocks
from chumoku.errors import CheckpointError, ConfigError
from chumoku.models import Architecture, architecture
from chumoku.models.names import NameTable
from chumoku.quantization.convert import replace_with_blocks

Pieces = Mapping[str, assign.Piece]

SAME_NAME: Final = {"classification", "token-classification", "multiple-choice"}
"""Heads published under one tensor name: a file made for one of them does not serve another."""


@dataclass(frozen=True)
class Blueprint:
    """What is to be built, and the file that fills it. config: the architecture's own Config."""

    arch: Architecture
    config: Any
    head: str
    published: Published

    @property
    def table(self) -> NameTable:
        return self.arch.names(self.config, self.head, self.published.layout)

    def pieces(self) -> dict[str, assign.Piece]:
        """Our names -> where in the file they come from."""
        return assign.match(self.published.tensors, self.table).pieces

    def missing(self, model: nn.Module, pieces: Pieces) -> list[str]:
        """Parameters, by their first name, that the file holds under none of their names."""
        groups = assign.shared_names(model).values()
        return [names[0] for names in groups if not any(name in pieces for name in names)]

    def optional(self, name: str) -> bool:
        """Of a module that a file may leave out; a pooler only where no head stands on it."""
        module = name.split(".")[0]
        return module in self.arch.OPTIONAL and (module != "pooler" or self.head == "encoder")


def blueprint(
    published: Published, head: str | None = None, ignore_config: Sequence[str] = ()
) -> Blueprint:
    """Config and head of a file: as asked; else as `architectures` says; else by its tensors.

    Raises ConfigError, naming the file, for a config that is not understood, and for a head that
    the architecture does not have; CheckpointError where the tensors make up no head.
    """
    raw = published.raw_config
    arch = architecture(raw["model_type"])
    try:
        config = arch.read_config(raw, ignore_config)
    except ConfigError as error:
        error.where = f"{published.path}: {error.where}".removesuffix(": ")
        raise
    if head is not None and head not in arch.HEADS:
        raise ConfigError(
            f"{raw['model_type']} has no head {head!r}", advice=f"it has {', '.join(arch.HEADS)}"
        )
    head = declared_head(arch, raw) if head is None else head
    if head is None:
        return _by_tensors([Blueprint(arch, config, each, published) for each in arch.HEADS])
    return Blueprint(arch, config, head, published)


def declared_head(arch: Architecture, raw: Mapping[str, Any]) -> str | None:
    """The head that `architectures` names, or None where no name is that of a published class."""
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures must be a list of names, not {names!r:.80}")
    for name in names:
        for head, suffix in arch.HEADS.items():
            if name in [prefix + suffix for prefix in arch.PUBLISHED.values()]:
                return head
    return None


def _by_tensors(plans: Sequence[Blueprint]) -> Blueprint:
    """Of the heads whose tensors are all there, the one that uses most of them."""
    best, used = None, -1
    for plan in plans:
        try:
            model = skeleton(plan)
        except ConfigError:
            continue
        pieces = plan.pieces()
        found = sum(name in pieces for name in model.state_dict())
        if found > used and all(map(plan.optional, plan.missing(model, pieces))):
            best, used = plan, found
    if best is None:
        raise CheckpointError(
            "the tensors make up no known head",
            where=plans[0].published.path,
            advice=f"say which with head=…: {', '.join(plan.head for plan in plans)}",
        )
    return best


class _NoDraws(TorchFunctionMode):
    """Initialisers of nn.Linear and nn.Embedding leave their tensor as it is.

    On the meta device they would draw nothing, but import torch's compiler first (1.3 s).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(plan: Blueprint) -> nn.Module:
    """The model on the meta device: shapes and names, no memory.

    Raises ConfigError where the config's numbers make no model.
    """
    try:
        with torch.device("meta"), _NoDraws():
            return plan.arch.Model(plan.config, plan.head)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the config describes no model: {reason:.200}") from error


def untied_as_stored(plan: Blueprint) -> Blueprint:
    """With `tied` off in the config where the file holds two different matrices for one.

    transformers 5 writes tie_word_embeddings as true for T5 and mT5 whatever their file holds.
    Raises CheckpointError where tensors differ that this architecture always shares.
    """
    twice = assign.stored_twice(skeleton(plan), plan.pieces())
    if not twice:
        return plan
    if getattr(plan.config, "tied", False):  # a Vision Transformer has nothing to tie
        return untied_as_stored(replace(plan, config=replace(plan.config, tied=False)))
    raise CheckpointError(
        f"tensors that are one in this model differ in the file: {', '.join(twice)}",
        where=plan.published.path,
        advice="the config does not describe these weights",
    )


def assemble(
    plan: Blueprint,
    dtype: str,
    device: torch.device,
    *,
    new_head: bool = False,
    other_classes: bool = False,
) -> tuple[nn.Module, list[str]]:
    """Build the model without memory, then give every parameter its published value.

    Also returns the parameters that the file does not have. new_head: those of a head are then made
    anew. other_classes: the file's head is for others, and passed by even where it fits. Raises
    CheckpointError where file and model do not fit.
    """
    model = skeleton(plan)
    pieces = _usable_pieces(plan, model, other_classes)
    missing = plan.missing(model, pieces)
    for name in {name.split(".")[0] for name in missing if plan.optional(name)}:
        setattr(model, name, None)
    missing = [name for name in missing if not plan.optional(name)]
    fresh = _fresh(plan, missing, new_head)
    kind = float_type(plan.published.tensors, dtype, device)
    state = model.state_dict(keep_vars=True)
    blocks: dict[str, tuple[str, Tensor]] = {}
    for first, names in assign.shared_names(model).items():
        value = fresh.get(first)
        if value is None:
            piece = next(pieces[name] for name in names if name in pieces)
            raw = _blocks(model, first, piece) if keeps_blocks(dtype) else None
            if raw is not None:
                entry = (piece.tensor.storage, raw.to(device))
                blocks |= {name.removesuffix(".weight"): entry for name in names}
                continue
            value = assign.piece_value(piece, state[first].shape)
        _put(model, names, value.to(device, kind if value.is_floating_point() else None))
    return replace_with_blocks(model, blocks) if blocks else model, missing


def _usable_pieces(plan: Blueprint, model: nn.Module, other_classes: bool) -> Pieces:
    """The pieces of the model. Raises CheckpointError for tensors that it cannot place.

    Tensors of other heads, and of a pooler, may be there. Not so a tensor of a part that the model
    has, but without this: a block too many, a bias where the config has none.
    """
    matched = assign.match(plan.published.tensors, plan.table)
    if matched.unknown:
        raise CheckpointError(
            f"{len(matched.unknown)} tensors are not known: {', '.join(matched.unknown[:5])}",
            where=plan.published.path,
            advice="is model_type in config.json right?",
        )
    names, pieces = set(model.state_dict()), matched.pieces
    parts = {name.split(".")[0] for name in names} - {"head", "pooler"}
    surplus = [name for name in pieces if name not in names and name.split(".")[0] in parts]
    if surplus:
        published = ", ".join(pieces[name].tensor.name for name in surplus[:5])
        raise CheckpointError(
            f"{len(surplus)} tensors more than the config describes: {published}",
            where=plan.published.path,
            advice="the config and the weights are of different models",
        )
    declared = declared_head(plan.arch, plan.published.raw_config)
    same_name = declared != plan.head and {declared, plan.head} <= SAME_NAME
    if same_name or other_classes:
        return {name: piece for name, piece in pieces.items() if not name.startswith("head.")}
    return pieces


def _fresh(plan: Blueprint, missing: Sequence[str], new_head: bool) -> dict[str, Tensor]:
    """New values for a head that the file does not have, where that was asked for."""
    if not missing:
        return {}
    beyond = [n for n in missing if n.split(".")[0] not in ("head", "pooler", "unembedding")]
    if beyond or not new_head:
        names = beyond or missing
        raise CheckpointError(
            f"{len(names)} tensors are missing: {', '.join(names[:5])}",
            where=plan.published.path,
            advice="" if beyond else f"pass new_head=True to start a new {plan.head} head",
        )
    model = plan.arch.Model(plan.config, plan.head)
    plan.arch.initialise(model)
    state = model.state_dict()
    held = (assign.DTYPES.get(t.storage, torch.float32) for t in plan.published.tensors.values())
    dtype = next((kind for kind in held if kind.is_floating_point), torch.float32)
    return {name: state[name].to(dtype) for name in missing}


def _blocks(model: nn.Module, name: str, piece: assign.Piece) -> Tensor | None:
    """The stored rows of a parameter; None where it is not quantised, or its layer holds none."""
    module = model.get_submodule(name.rpartition(".")[0])
    holds = isinstance(module, nn.Linear | nn.Embedding) and name.endswith(".weight")
    if not holds or not piece.tensor.quantized:
        return None
    return assign.piece_blocks(piece, model.get_parameter(name).shape)


def _put(model: nn.Module, names: Sequence[str], value: Tensor) -> None:
    """Set a parameter or buffer under all of its names, as one tensor."""
    parameter = nn.Parameter(value, requires_grad=value.is_floating_point())
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            setattr(owner, leaf, parameter)
