"""The model of a recipe: loaded, created or a student; then changed and adapted as it says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from chumoku.adapters.registry import trainable_fraction
from chumoku.errors import ConfigError
from chumoku.loading import Loaded, create, load
from chumoku.models.config_keys import write_labels
from chumoku.quantization.convert import is_quantized, quantize_model
from chumoku.text import Tokenizer, load_tokenizer
from chumoku.training import stabilising
from chumoku.training.objectives.students import student_from
from chumoku.training.recipe import Recipe


def build_model(
    recipe: Recipe,
    needed: str,
    labels: tuple[str, ...],
    files: Path | None,
    device: torch.device,
) -> Loaded:
    """The model of [model]: of a source, of a config, or a teacher's student.

    needed: the head that the objective needs, where the recipe names none. labels: for a new head.
    files: the folder of a tokenizer that takes the place of the source's.
    """
    section = recipe.model
    head = section.head or needed
    if [bool(section.source), bool(section.config), bool(section.student_of)].count(True) != 1:
        raise ConfigError("name either a source or a config (or student_of)", where="[model]")
    if section.student_of is not None:
        teacher = load(section.student_of, head=head or None, device=str(device))
        student_type, layers = section.student_type, section.layers or None
        loaded = student_from(teacher, layers, model_type=student_type)
        loaded.model.to(device)
    elif section.source is not None:
        loaded = load(
            section.source,
            head=head or None,
            dtype=section.dtype,
            device=str(device),
            new_head=not section.keep_head,
            labels=labels or None,
            ignore_config=section.ignore_config,
        )
    else:
        config = dict(section.config)
        tokenizer = None if files is None else load_tokenizer(files, config)
        if tokenizer is not None:
            config = _of_tokenizer(tokenizer) | config
        if labels:
            config |= write_labels(labels)
        loaded = create(config, head, recipe.training.seed)
        loaded.model.to(device)
        if tokenizer is not None:
            loaded = replace(loaded, tokenizer=tokenizer)
    if files is not None and loaded.tokenizer is None:
        loaded = replace(loaded, tokenizer=load_tokenizer(files, {}))
    return loaded


def _of_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Keys of a config.json that a tokenizer decides."""
    ids = {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    return {"vocab_size": tokenizer.vocab_size} | {k: v for k, v in ids.items() if v is not None}


def change_model(recipe: Recipe, loaded: Loaded) -> float:
    """What [model] and [adapter] change in it. Returns the share of the weights that is trained."""
    section, model = recipe.model, loaded.model
    if section.dropout is not None:
        _set_dropout(model, section.dropout)
    if section.reinitialise:
        stabilising.reinitialise_top(loaded, section.reinitialise, recipe.training.seed)
    if section.mixout:
        stabilising.mixout(model, section.mixout)
    if section.freeze:
        stabilising.freeze(model, section.freeze)
    if section.freeze_blocks:
        stabilising.freeze_bottom(model, section.freeze_blocks)
    if section.quantise is not None and not is_quantized(model):
        _quantise(model, section.quantise, recipe.adapter.also_train)
    if recipe.adapter.kind != "none":
        _add_adapter(recipe, model)
    return trainable_fraction(model)


def _quantise(model: nn.Module, storage: str, trained: Collection[str]) -> None:
    """Every linear layer but those of modules that are trained too (QLoRA, 2305.14314)."""

    def wanted(name: str, module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and name.partition(".")[0] not in trained

    quantize_model(model.float(), storage, wanted)


def _set_dropout(model: nn.Module, rate: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
        elif isinstance(getattr(module, "dropout", None), float):  # Attention draws by itself
            setattr(module, "dropout", rate)  # noqa: B010 - a plain float, not a submodule


def _add_adapter(recipe: Recipe, model: nn.Module) -> None:
    from chumoku.adapters.apply import add_adapter, check_fusible
    from chumoku.adapters.layers import LoRASettings

    section = recipe.adapter
    there = dict(model.named_children())
    settings = LoRASettings(
        rank=section.rank,
        alpha=section.alpha,
        dropout=section.dropout,
        targets=section.targets,
        scaling="rslora" if section.kind == "rslora" else "lora",
        dora=section.kind == "dora",
        train_bias=section.train_bias,
        also_train=tuple(name for name in section.also_train if there.get(name) is not None),
        seed=recipe.training.seed,
    )
    add_adapter(model, settings)
    check_fusible(model)  # at the end the result is saved with the adapter in its weights
