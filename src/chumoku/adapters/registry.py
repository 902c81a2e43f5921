"""What adapters a model has: the record at its root, and questions about its tree."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final, NamedTuple

from torch import Tensor, nn

from chumoku.adapters.layers import (
    ALL_LINEAR,
    LoRAEmbedding,
    LoRALinear,
    LoRASettings,
    Part,
    is_linear,
)
from chumoku.errors import InputError

REGISTRY: Final = "adapters"
HEAD: Final = "head"

NOT_LINEAR: Final = ("head", "unembedding", "embeddings")
"""Parts of a model whose linear layers "all-linear" leaves out."""


class Adapters(nn.Module):
    """The adapters of a model, as its child `adapters`.

    settings: by name. active: adapter -> share. owned: adapter -> names of the model's parameters
    that it has copies of. waiting: copies that do not stand in the model now, by `slot`.
    unfrozen: parameters that were trained before the first adapter came.
    """

    def __init__(self, unfrozen: Iterable[str]) -> None:
        super().__init__()
        self.settings: dict[str, LoRASettings] = {}
        self.active: dict[str, float] = {}
        self.owned: dict[str, tuple[str, ...]] = {}
        self.waiting = nn.ParameterDict()
        self.unfrozen = frozenset(unfrozen)

    def extra_repr(self) -> str:
        return f"{', '.join(self.settings)}; active: {self.active or 'none'}"


def slot(adapter: str, parameter: str) -> str:
    """The key of a waiting copy; adapter "" is the base."""
    return f"{adapter}/{parameter.replace('.', '/')}"


# ---- what there is ----


def adapters_of(model: nn.Module) -> Adapters | None:
    """The adapters of a model, or None."""
    found = model._modules.get(REGISTRY)
    return found if isinstance(found, Adapters) else None


def adapters_required(model: nn.Module) -> Adapters:
    found = adapters_of(model)
    if found is None:
        raise InputError("the model has no adapters", advice="add_adapter() puts one in")
    return found


def adapted_layers(model: nn.Module) -> dict[str, LoRALinear | LoRAEmbedding]:
    """The layers that have adapters, by their first name."""
    walk = model.named_modules()
    return {name: m for name, m in walk if isinstance(m, LoRALinear | LoRAEmbedding)}


def is_merged(model: nn.Module) -> bool:
    """True while some layer has its adapters in its weight."""
    return any(layer.base is not None for layer in adapted_layers(model).values())


def sharers(model: nn.Module) -> dict[int, list[tuple[str, nn.Module]]]:
    """id of a Parameter -> the distinct modules that own it, with their names."""
    found: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), []).append((name, module))
    return found


def targeted(name: str, module: nn.Module, targets: Collection[str]) -> bool:
    """Whether settings with these targets adapt a layer. Targets: see LoRASettings."""
    for target in targets:
        if target == ALL_LINEAR:
            if is_linear(module) and not set(NOT_LINEAR) & set(name.split(".")):
                return True
        elif f".{name}".endswith(f".{target}") or fnmatchcase(name, target):
            return True
    return False


def part_of(settings: LoRASettings, name: str) -> Part:
    """What settings mean for one layer."""

    def exception(pairs: Iterable[tuple[str, float]], default: float) -> float:
        fitting = (v for t, v in pairs if f".{name}".endswith(f".{t}") or fnmatchcase(name, t))
        return next(fitting, default)

    rank = int(exception(settings.ranks, settings.rank))
    alpha = exception(settings.alphas, settings.alpha)
    return Part(rank, alpha, settings.scaling, settings.dropout, settings.dora)


def own_parameters(model: nn.Module, module: str) -> dict[str, nn.Parameter]:
    """The parameters of a module that no module outside of it shares; none where it is not there.

    A head's output matrix that is tied to the embeddings is not the head's own.
    """
    shared = sharers(model)
    there = dict(model.named_modules()).get(module)
    found = {} if there is None else dict(there.named_parameters(prefix=module))
    within = f"{module}."
    return {
        name: parameter
        for name, parameter in found.items()
        if all(f"{owner}.".startswith(within) for owner, _ in shared[id(parameter)])
    }


def check_table(
    name: str, module: nn.Module, shared: Mapping[int, list[tuple[str, nn.Module]]]
) -> None:
    """Refuse a table of embeddings that serves two stacks: the adapter would be in one of them."""
    weight = module._parameters.get("weight")
    if is_linear(module) or weight is None:
        return
    twins = [n for n, m in shared[id(weight)] if m is not module and not is_linear(m)]
    if twins:
        raise InputError(
            f"shares its table with {twins[0]}; an adapter would change one of them",
            where=name,
            advice="train the tables as a whole instead: also_train",
        )


def owned_values(model: nn.Module, name: str) -> dict[str, Tensor]:
    """An adapter's copies of the parameters that it owns, by their names in the model."""
    registry = adapters_required(model)
    here = name in registry.active
    return {
        parameter: model.get_parameter(parameter)
        if here
        else registry.waiting[slot(name, parameter)]
        for parameter in registry.owned[name]
    }


class Counts(NamedTuple):
    """Numbers that are trained, and all numbers of the model with its adapters."""

    trained: int
    total: int


def counts(model: nn.Module) -> Counts:
    """Numbers trained and in all. A stored block counts the values it holds; copies wait unseen."""
    trained = total = 0
    seen: set[int] = set()
    for name, module in model.named_modules():
        if name.split(".")[0] == REGISTRY:
            continue
        for leaf, parameter in module._parameters.items():
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            stored = leaf == "weight" and not parameter.is_floating_point()
            size = _values(module) if stored else parameter.numel()
            total += size
            trained += size if parameter.requires_grad else 0
    return Counts(trained, total)


def _values(module: nn.Module) -> int:
    names = ("out_features", "in_features")
    if not is_linear(module):
        names = ("num_embeddings", "embedding_dim")
    return int(getattr(module, names[0])) * int(getattr(module, names[1]))


def trainable_fraction(model: nn.Module) -> float:
    """The share of a model's numbers that is trained."""
    trained, total = counts(model)
    return trained / total
