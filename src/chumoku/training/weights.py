"""A model's weights by name: those that are trained, all that is stored, and their way back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from chumoku.checkpoints.assign import shared_names
from chumoku.errors import CheckpointError, ConfigError


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters with a gradient by their first name, tied ones once. ConfigError for none."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise ConfigError("no parameter is left to train", advice="freeze fewer of them")
    return found


def stored(model: nn.Module, *, trained_only: bool = False) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, live, tied ones once."""
    state = model.state_dict(keep_vars=True)
    return {
        name: state[name]
        for name in shared_names(model)
        if not trained_only
        or not isinstance(state[name], nn.Parameter)
        or state[name].requires_grad
    }


def restore(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `stored` gave, in place. Raises CheckpointError for what does not fit."""
    state = model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, value in tensors.items():
            if name not in state or state[name].shape != value.shape:
                raise CheckpointError(
                    "the snapshot holds a tensor that does not fit the model", where=name
                )
            state[name].copy_(value)


def digest(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of tensors, in their order."""
    found = hashlib.sha256()
    for tensor in tensors:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        found.update(raw.numpy().data)
    return found.hexdigest()
