"""Adapters as walks over a model's tree: put in, switch, merge, take out. No model mentions them.

What an adapter trains besides its own numbers (the head, biases, whole modules) it owns: each
adapter has copies of these parameters, and the copies of the active one stand in the model. The
others, and the base's own, wait in `model.adapters`, so that all of them follow the model to
another device and into its state dict.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TypeVar

import torch
from torch import nn

from chumoku.adapters.layers import (
    AdaptedLayer,
    LoRAEmbedding,
    LoRALinear,
    LoRASettings,
    adapted,
    is_adaptable,
    is_linear,
)
from chumoku.adapters.registry import (
    HEAD,
    REGISTRY,
    Adapters,
    adapted_layers,
    adapters_of,
    adapters_required,
    check_table,
    is_merged,
    own_parameters,
    part_of,
    sharers,
    slot,
    targeted,
)
from chumoku.errors import InputError

Layers = Mapping[str, LoRALinear | LoRAEmbedding]
M = TypeVar("M", bound=nn.Module)

# ---- putting in ----


def add_adapter(model: nn.Module, settings: LoRASettings, name: str = "default") -> list[str]:
    """Put a new adapter into the model, make it the active one, and mark what it trains.

    The outputs stay what they are. Everything but the adapter, the head, and what the settings name
    is frozen (`trainable`). Returns the adapted layers. Raises InputError: targets that fit no
    layer or one of another kind, a name that is taken, a model that is merged.
    """
    whole = _also_trained(model, settings.also_train)
    layers = _targets(model, settings.targets, whole)
    owned = [*whole, *_biases(model, settings.train_bias, layers, whole)]
    random = torch.Generator(device="cpu").manual_seed(settings.seed)

    def fill(layer: LoRALinear | LoRAEmbedding, at: str) -> None:
        layer.add(name, part_of(settings, at), random)

    attach(model, settings, name, layers, owned, fill)
    trainable(model)
    return layers


def attach(
    model: nn.Module,
    settings: LoRASettings,
    name: str,
    layers: Iterable[str],
    owned: Iterable[str],
    fill: Callable[[LoRALinear | LoRAEmbedding, str], None],
) -> None:
    """Put an adapter on these layers by `fill(layer, its name)`, and make it the active one.

    owned: names of parameters of which it gets copies. Raises InputError, and then leaves the model
    as it was.
    """
    _check_name(model, name)
    registry = adapters_of(model)
    before = dict(registry.active) if registry is not None else {}
    if registry is None:
        registry = Adapters(n for n, p in model.named_parameters() if p.requires_grad)
        model.add_module(REGISTRY, registry)
    set_active(model, None)
    registry.settings[name], registry.owned[name] = settings, tuple(owned)
    try:
        for at in layers:
            layer = adapted(model.get_submodule(at))
            _swap(model, {at: layer})
            fill(layer, at)
        for parameter in registry.owned[name]:
            copy = model.get_parameter(parameter).detach().clone()
            registry.waiting[slot(name, parameter)] = nn.Parameter(copy, requires_grad=False)
    except Exception:
        _forget(model, registry, name)
        set_active(model, before) if before else _leave(model, registry)
        raise
    set_active(model, name)


def _check_name(model: nn.Module, name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name in dir(nn.ParameterDict()):
        raise InputError(
            f"{name!r} cannot be an adapter's name", advice="letters, digits, - and _ make one"
        )
    registry = adapters_of(model)
    if registry is None and REGISTRY in model._modules:
        raise InputError(f"the model has a part called {REGISTRY!r} already")
    if registry is not None and name in registry.settings:
        raise InputError("an adapter of this name is there already", where=name)
    _refuse_merged(model)


def _refuse_merged(model: nn.Module) -> None:
    if is_merged(model):
        raise InputError("the adapters are merged", advice="unmerge(model) first")


def _targets(model: nn.Module, targets: Collection[str], whole: Collection[str]) -> list[str]:
    """Names of the layers to adapt; those that are trained as a whole are left out."""
    found, shared = [], sharers(model)
    literal = [target for target in targets if not set(target) & set("*?[")]
    for name, module in model.named_modules():
        if not name or not targeted(name, module, targets) or f"{name}.weight" in whole:
            continue
        if not is_adaptable(module):
            if targeted(name, module, literal):
                raise InputError(f"a {type(module).__name__} cannot be adapted", where=name)
            continue  # a pattern also fits norms, taps and the modules around layers
        check_table(name, module, shared)
        found.append(name)
    if not found:
        names = [name for name, module in model.named_modules() if is_linear(module)]
        raise InputError(
            "no layer has such a name",
            where=", ".join(targets),
            advice=f"there are {', '.join(names[:4])}, …",
        )
    return found


def _also_trained(model: nn.Module, modules: Iterable[str]) -> list[str]:
    """Parameters of the head and the named modules. Raises InputError as `add_adapter`."""
    there = dict(model.named_modules())
    found: list[str] = []
    for wanted in dict.fromkeys((HEAD, *modules)):
        if wanted not in there and wanted != HEAD:
            names = [name for name, _ in model.named_children() if name != REGISTRY]
            raise InputError(
                "no module has this name", where=wanted, advice=f"there are {', '.join(names)}"
            )
        for name, parameter in own_parameters(model, wanted).items():
            if not parameter.is_floating_point():
                raise InputError(
                    "is stored in blocks, which cannot be trained",
                    where=name,
                    advice="quantise the model without its head, or keep it in floats",
                )
            found.append(name)
    return list(dict.fromkeys(found))


def _biases(
    model: nn.Module, which: str, layers: Iterable[str], whole: Collection[str]
) -> list[str]:
    if which == "none":
        return []
    if which == "lora":
        names = [f"{layer}.bias" for layer in layers]
        names = [
            n for n in names if model.get_submodule(n[:-5])._parameters.get("bias") is not None
        ]
    else:
        names = [n for n, _ in model.named_parameters() if n.endswith(".bias")]
    return [name for name in names if name not in whole and not name.startswith(f"{REGISTRY}.")]


def _swap(model: nn.Module, new: Mapping[str, nn.Module]) -> None:
    """Put modules in the place of others, under all names that these have."""
    old = {id(model.get_submodule(name)): module for name, module in new.items()}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and id(module) in old:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, old[id(module)])


# ---- which one is active, and what is trained ----


def set_active(model: nn.Module, which: str | Mapping[str, float] | None) -> None:
    """Make one adapter the active one, a weighted sum of several (name -> share), or none.

    The head and the other parameters that an adapter owns are switched with it. What is trained
    does not change: call `trainable` before training another one. Raises InputError for unknown
    names, while merged, and where two adapters of a sum own the same parameters.
    """
    registry = adapters_required(model)
    shares = {} if which is None else {which: 1.0} if isinstance(which, str) else dict(which)
    for name in shares:
        if name not in registry.settings:
            known = ", ".join(registry.settings) or "none"
            raise InputError("no adapter has this name", where=name, advice=f"there is {known}")
    _refuse_merged(model)
    owned = [parameter for name in shares for parameter in registry.owned[name]]
    twice = {parameter for parameter in owned if owned.count(parameter) > 1}
    if twice:
        raise InputError(
            f"two adapters of a sum have a {min(twice)} of their own",
            where=", ".join(shares),
            advice="only adapters without heads can be added up",
        )
    for name in registry.active:
        for parameter in registry.owned[name]:
            _exchange(model, registry, parameter, coming="", going=name)
    for name in shares:
        for parameter in registry.owned[name]:
            _exchange(model, registry, parameter, coming=name, going="")
    registry.active = shares
    for layer in adapted_layers(model).values():
        layer.active = {name: share for name, share in shares.items() if name in layer.parts}


def _exchange(model: nn.Module, registry: Adapters, name: str, coming: str, going: str) -> None:
    """Put one adapter's copy of a parameter into the model, and let the one there wait."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    registry.waiting[slot(going, name)] = owner._parameters[leaf]
    owner._parameters[leaf] = registry.waiting.pop(slot(coming, name))


def trainable(model: nn.Module) -> list[str]:
    """Mark what the active adapters train, and nothing else. Returns the names of it.

    These are the adapters' own numbers and what they own: the head always, biases and whole
    modules as the settings say. Raises InputError where no adapter is active or they are merged.
    """
    registry = adapters_required(model)
    _refuse_merged(model)
    if not registry.active:
        raise InputError("no adapter is active", advice="set_active(model, name) first")
    wanted = {id(p) for layer in adapted_layers(model).values() for p in _numbers(layer)}
    for name in registry.active:
        wanted |= {id(model.get_parameter(parameter)) for parameter in registry.owned[name]}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in wanted)
    return [name for name, parameter in model.named_parameters() if id(parameter) in wanted]


def _numbers(layer: AdaptedLayer) -> list[nn.Parameter]:
    """A, B and lengths of the active adapters of a layer."""
    kinds = (layer.lora_A, layer.lora_B, layer.lora_magnitude)
    return [kind[name] for kind in kinds for name in layer.active if name in kind]


# ---- merging, taking out ----


def merge(model: nn.Module) -> None:
    """Put the active adapters into the base's weights, which `unmerge` gives back bit for bit.

    The weights are kept meanwhile, so memory grows by those of the adapted layers. To save the
    whole model, or to use it without adapters, call `fuse` instead. Raises InputError where a base
    is quantised, or shares its weight with another layer.
    """
    adapters_required(model)
    _refuse_merged(model)
    layers = _changing(model)
    for name, layer in layers.items():
        if layer.storage is not None:
            raise InputError(
                f"a merged weight does not fit the base's {layer.storage} blocks",
                where=name,
                advice="fuse(model) makes float layers; or dequantise before adapting",
            )
    for layer in layers.values():
        layer.merge()


def unmerge(model: nn.Module) -> None:
    """Take the adapters out of the weights again; every bit is as it was before `merge`."""
    adapters_required(model)
    for layer in adapted_layers(model).values():
        layer.unmerge()


def fuse(model: nn.Module) -> None:
    """Make the model one without adapters that computes what it computes now, for good.

    The active adapters go into the weights, their heads stay, all others are dropped. Layers with
    stored blocks become float layers where an adapter is active in them. Raises InputError where a
    layer that would change shares its weight with another.
    """
    registry = adapters_required(model)
    changing = _changing(model)
    new = {
        name: layer.fuse() if name in changing else layer.restored()
        for name, layer in adapted_layers(model).items()
    }
    _swap(model, new)
    _leave(model, registry)


def fused(model: M) -> M:
    """The model itself, or, where it has adapters, a copy that `fuse` has made plain."""
    if adapters_of(model) is None:
        return model
    model = copy.deepcopy(model)
    fuse(model)
    return model


def remove(model: nn.Module, name: str) -> None:
    """Take one adapter out; with the last one the model is as it was, layers and bits.

    Raises InputError for an unknown name, and while merged.
    """
    registry = adapters_required(model)
    if name not in registry.settings:
        raise InputError("no adapter has this name", where=name)
    _refuse_merged(model)
    left = {other: share for other, share in registry.active.items() if other != name}
    set_active(model, left)
    _forget(model, registry, name)
    if not registry.settings:
        _leave(model, registry)


def check_fusible(model: nn.Module) -> None:
    """Raise InputError where `fuse` would, before the work of training is done."""
    _changing(model)


def _changing(model: nn.Module) -> Layers:
    """The layers in which an adapter is active. Raises InputError where one shares its weight."""
    found = {n: layer for n, layer in adapted_layers(model).items() if layer.active}
    shared = sharers(model)
    for name, layer in found.items():
        others = [n for n, module in shared[id(layer.weight)] if module is not layer]
        if others:
            raise InputError(
                f"shares its weight with {others[0]}, which a merged adapter would change too",
                where=name,
                advice="leave the adapter unmerged, or untie the two in the base's config",
            )
    return found


def _forget(model: nn.Module, registry: Adapters, name: str) -> None:
    """Drop what belongs to an adapter that is not active; layers without one are put back."""
    for parameter in registry.owned.pop(name, ()):
        key = slot(name, parameter)
        if key in registry.waiting:
            del registry.waiting[key]
    registry.settings.pop(name, None)
    for at, layer in adapted_layers(model).items():
        if name in layer.parts:
            layer.drop(name)
        if not layer.parts:
            _swap(model, {at: layer.restored()})


def _leave(model: nn.Module, registry: Adapters) -> None:
    """Take the list of adapters out of the model, and let train again what was trained before."""
    del model._modules[REGISTRY]
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            parameter.requires_grad_(name in registry.unfrozen)
