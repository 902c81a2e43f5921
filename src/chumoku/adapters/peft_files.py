"""PEFT's files (adapter_config.json, adapter_model.safetensors), read and written.

A key is `base_model.model.` + the published module + `.lora_A.weight` [R, D], `.lora_B.weight`
[O, R], `.lora_magnitude_vector` [O]; for a table `.lora_embedding_A`, `.lora_embedding_B`. Modules
that are trained as a whole (the head always) are stored under their own names.

Where the published model has several of our projections in one matrix (GPT-2's c_attn), one A and
one B of all rows serve them. Read, A goes to each and the rows of B are divided. Written, equal As
are one again; else the As are stacked and B is block by block, with rows of zeros for a projection
that is not adapted: the rank is the sum, the scale the same, the product exact.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.adapters.apply import attach, trainable
from chumoku.adapters.layers import (
    LoRAEmbedding,
    LoRALinear,
    LoRASettings,
    adapted,
    is_adaptable,
)
from chumoku.adapters.peft_config import PeftConfig, read_peft_config, write_peft_config
from chumoku.adapters.peft_names import Published, ends, published_names, whole_modules
from chumoku.adapters.peft_reading import PREFIX, WEIGHTS, Numbers, read_adapter
from chumoku.adapters.registry import (
    HEAD,
    adapted_layers,
    adapters_of,
    own_parameters,
    owned_values,
    targeted,
)
from chumoku.checkpoints import assign
from chumoku.checkpoints.folder import inside, read_json
from chumoku.checkpoints.ranges import atomic_file
from chumoku.checkpoints.safetensors import write_safetensors
from chumoku.errors import CheckpointError, InputError
from chumoku.models.names import Rule

CONFIG: Final = "adapter_config.json"

TASKS: Final = {
    "classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "causal-lm": "CAUSAL_LM",
    "conditional-generation": "SEQ_2_SEQ_LM",
    "encoder": "FEATURE_EXTRACTION",
}
"""Our head -> PEFT's task_type; other heads have none."""


# ---- writing ----


def save_adapter(
    model: nn.Module,
    config: Any,
    head: str,
    model_type: str,
    folder: str | os.PathLike[str],
    name: str = "default",
    base: str = "",
) -> Path:
    """Write one adapter, and the head and whatever else it trains, for peft and for load_adapter.

    config, head, model_type: of the base model. base: its name on the hub, or its folder. Each
    file appears whole or not at all. Raises InputError for an unknown adapter, CheckpointError
    where the folder cannot be written or PEFT's files cannot hold what was trained.
    """
    registry = adapters_of(model)
    if registry is None or name not in registry.settings:
        raise InputError("no adapter has this name", where=name)
    settings = registry.settings[name]
    published = published_names(model, config, head, model_type)
    modules = _modules(model, name, published)
    tensors: dict[str, Tensor] = {}
    for module, (rule, numbers, table) in modules.items():
        tensors |= _adapter_tensors(module, rule, numbers, table)
    owned, whole = _owned_tensors(model, name, settings, published, set(modules))
    found = [rule for rule, _, _ in modules.values()]
    raw = write_peft_config(
        settings,
        {module: numbers.part.rank for module, (_, numbers, _) in modules.items()},
        {module: numbers.part.alpha for module, (_, numbers, _) in modules.items()},
        ends(modules, published.modules()),
        whole,
        base=base,
        task=TASKS.get(head),
        transposed=any(rule.transposed for rule in found),
    )
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write: {error.strerror}", where=target) from error
    lazy = [assign.lazy(PREFIX + key, value) for key, value in (tensors | owned).items()]
    write_safetensors(target / WEIGHTS, lazy, {"format": "pt"})
    with atomic_file(target / CONFIG) as stream:
        stream.write(f"{json.dumps(raw, indent=2, ensure_ascii=False)}\n".encode())
    return target


def _modules(
    model: nn.Module, name: str, published: Published
) -> dict[str, tuple[Rule, Numbers, bool]]:
    """Published module -> its rule, the adapter's numbers there, and whether it is a table."""
    layers = {at: layer for at, layer in adapted_layers(model).items() if name in layer.parts}
    found: dict[str, tuple[Rule, Numbers, bool]] = {}
    for at, layer in layers.items():
        tensor = published.of(f"{at}.weight")
        module = published.module(tensor.name)
        if module in found:
            continue
        table = isinstance(layer, LoRAEmbedding)
        if len(tensor.ours) == 1:
            found[module] = tensor.rule, _numbers(layer, name), table
            continue
        each = [ours.removesuffix(".weight") for ours in tensor.ours]
        found[module] = tensor.rule, _stacked(model, each, name), table
    return found


def _numbers(layer: LoRALinear | LoRAEmbedding, name: str) -> Numbers:
    magnitude = layer.lora_magnitude[name].detach() if name in layer.lora_magnitude else None
    A_RD, B_OR = layer.lora_A[name].detach(), layer.lora_B[name].detach()
    return Numbers(layer.parts[name], A_RD, B_OR, magnitude)


def _stacked(model: nn.Module, layers: Iterable[str], name: str) -> Numbers:
    """One A and one B for projections that are one matrix in the published model."""
    rows = [adapted(model.get_submodule(layer)) for layer in layers]
    given = [_numbers(row, name) for row in rows if name in row.parts]
    first = given[0]
    same = [g.part == first.part and torch.equal(g.A_RD, first.A_RD) for g in given]
    magnitude = None
    if first.part.dora:
        magnitude = torch.cat([_lengths(row, name) for row in rows])
    if len(given) == len(rows) and all(same):
        return Numbers(first.part, first.A_RD, torch.cat([g.B_OR for g in given]), magnitude)
    rank = sum(g.part.rank for g in given)
    scale = first.part.scale
    alpha = scale * (math.sqrt(rank) if first.part.scaling == "rslora" else rank)
    B_OR = first.B_OR.new_zeros(sum(row.matrix_shape[0] for row in rows), rank)
    top = left = 0
    for row in rows:
        height = row.matrix_shape[0]
        if name in row.parts:
            part = row.parts[name]
            block = row.lora_B[name].detach() * (part.scale / scale)
            B_OR[top : top + height, left : left + part.rank] = block
            left += part.rank
        top += height
    A_RD = torch.cat([g.A_RD for g in given])
    return Numbers(replace(first.part, rank=rank, alpha=alpha), A_RD, B_OR, magnitude)


def _lengths(row: LoRALinear | LoRAEmbedding, name: str) -> Tensor:
    """The trained lengths of a layer; those of its own rows where it has no adapter."""
    if name in row.lora_magnitude:
        trained: Tensor = row.lora_magnitude[name].detach()
        return trained
    own: Tensor = torch.linalg.vector_norm(row.matrix(row.float_type), dim=1)
    return own


def _adapter_tensors(module: str, rule: Rule, n: Numbers, table: bool) -> dict[str, Tensor]:
    if table:
        keys = ("lora_embedding_A", "lora_embedding_B")
    else:
        keys = ("lora_A.weight", "lora_B.weight")
    A_RD, B_OR, magnitude_O = n.A_RD, n.B_OR, n.magnitude_O
    if rule.shape is not None:  # a convolution: A is its kernel, B one of a single pixel
        around = [1] * (len(rule.shape) - 2)
        A_RD = A_RD.reshape(-1, *rule.shape[1:])
        B_OR = B_OR.reshape(*B_OR.shape, *around)
        magnitude_O = None if magnitude_O is None else magnitude_O.reshape(1, -1, *around)
    tensors = {f"{module}.{keys[0]}": A_RD, f"{module}.{keys[1]}": B_OR}
    if magnitude_O is not None:
        tensors[f"{module}.lora_magnitude_vector"] = magnitude_O
    return tensors


def _owned_tensors(
    model: nn.Module, name: str, settings: LoRASettings, published: Published, layers: set[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors of heads, biases and whole modules, and PEFT's list of modules_to_save."""
    owned = owned_values(model, name)
    state = model.state_dict(keep_vars=True)
    head = [ours for ours in owned if ours.startswith(f"{HEAD}.")]
    within = tuple(f"{module}." for module in settings.also_train)
    others = [ours for ours in owned if ours.startswith(within) and ours not in head]
    whole, under = whole_modules(published, head, others)
    biases = [ours for ours in owned if ours not in head and ours not in others]
    tensors: dict[str, Tensor] = {}
    for tensor in {t.name: t for t in (*under, *map(published.of, biases))}.values():
        values = [owned[o] if o in owned else state[o] for o in tensor.ours]
        module, leaf = published.module(tensor.name), tensor.name.rpartition(".")[2]
        if any(not value.is_floating_point() for value in values):
            raise CheckpointError(
                "is stored in blocks, which PEFT's files do not hold", where=module
            )
        module += ".base_layer" if module in layers else ""
        value = assign.published_value(tensor.rule, [value.detach() for value in values])
        tensors[f"{module}.{leaf}"] = value
    return tensors, whole


# ---- reading ----


def load_adapter(
    model: nn.Module,
    config: Any,
    head: str,
    model_type: str,
    folder: str | os.PathLike[str],
    name: str = "default",
    *,
    required: Collection[str] = (),
) -> LoRASettings:
    """Put an adapter from PEFT's files into the model and make it the active one.

    config, head, model_type: of the model. required: parameters that the base has no values for, so
    that the file must hold them. What the file trains is marked as `trainable` marks it;
    a head of which the file holds nothing stays the model's, and is saved with the adapter.
    A pickle (adapter_model.bin) is read in a limited child process. Returns the settings that say
    the same. Raises ConfigError or CheckpointError where the file is not understood or belongs to
    another model, InputError where the name is taken; the model is then as it was.
    """
    path = Path(folder)
    peft = read_peft_config(read_json(inside(path, CONFIG)), path / CONFIG)
    published = published_names(model, config, head, model_type)
    layers, owned = read_adapter(model, published, peft, path)
    lacking = [name for name in required if name not in owned]
    if lacking:
        raise CheckpointError(
            f"neither the base nor the adapter has values for {', '.join(lacking[:4])}",
            where=path,
            advice=f"the base was loaded with head {head!r}; the adapter may be for another one",
        )
    settings = _settings(model, peft, layers, owned)

    def fill(layer: LoRALinear | LoRAEmbedding, at: str) -> None:
        n, dtype, device = layers[at], layer.float_type, layer.weight.device
        magnitude = None if n.magnitude_O is None else n.magnitude_O.to(device, dtype)
        layer.put(name, n.part, n.A_RD.to(device, dtype), n.B_OR.to(device, dtype), magnitude)

    kept = [] if any(at.startswith(f"{HEAD}.") for at in layers) else _head(model)
    attach(model, settings, name, layers, dict.fromkeys((*owned, *kept)), fill)
    with torch.no_grad():
        for ours, value in owned.items():
            model.get_parameter(ours).copy_(value)
    trainable(model)
    return settings


def _head(model: nn.Module) -> list[str]:
    """The head's own parameters; those stored in blocks stay the base's."""
    return [n for n, p in own_parameters(model, HEAD).items() if p.is_floating_point()]


def _settings(
    model: nn.Module,
    peft: PeftConfig,
    layers: Mapping[str, Numbers],
    owned: Iterable[str],
) -> LoRASettings:
    """What the files say, in our names."""
    owned = list(owned)
    modules = dict(model.named_modules())
    short = ends(layers, [n for n, module in modules.items() if n and is_adaptable(module)])
    exact = all(
        targeted(n, module, short) == (n in layers)
        for n, module in modules.items()
        if n and is_adaptable(module)
    )
    biases = {
        "none": set[str](),
        "all": {n for n in owned if n.endswith(".bias")},
        "lora": {f"{at}.bias" for at in layers},
    }[peft.bias]
    whole = [n for n in owned if not n.startswith(f"{HEAD}.")]
    paths = [n.rpartition(".")[0] for n in whole if n not in biases]
    return LoRASettings(
        rank=peft.rank,
        alpha=peft.alpha,
        dropout=peft.dropout,
        targets=tuple(short) if exact else tuple(layers),
        scaling="rslora" if peft.rslora else "lora",
        dora=peft.dora,
        train_bias=peft.bias,
        also_train=tuple(dict.fromkeys(paths)),
        ranks=tuple((at, n.part.rank) for at, n in layers.items() if n.part.rank != peft.rank),
        alphas=tuple((at, n.part.alpha) for at, n in layers.items() if n.part.alpha != peft.alpha),
    )
