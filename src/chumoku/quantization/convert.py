"""Tree walks that swap a model's layers for quantised ones and back. No model file mentions them.

A weight that several layers share (tied embeddings) is handled once: the layers share its blocks
afterwards, or, where one of them cannot hold blocks, all of them stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.kernels.blocks import STORAGE, WRITABLE, quantize, row_bytes
from chumoku.kernels.linear import dequantize_fast
from chumoku.quantization.layers import QuantizedEmbedding, QuantizedLinear, blocks_parameter

Quantized = QuantizedLinear | QuantizedEmbedding
M = TypeVar("M", bound=nn.Module)
Predicate = Callable[[str, nn.Module], bool]
Owners = list[tuple[str, nn.Module]]
Swap = Callable[[nn.Module, nn.Parameter], nn.Module]


def everything(name: str, module: nn.Module) -> bool:
    """The predicate that takes every layer."""
    return True


def quantized_layers(model: nn.Module) -> dict[str, str]:
    """Name and storage of every layer that holds blocks."""
    walk = model.named_modules(remove_duplicate=False)
    return {n: m.storage for n, m in walk if isinstance(m, Quantized)}


def is_quantized(model: nn.Module) -> bool:
    """True where some layer holds blocks."""
    return bool(quantized_layers(model))


def quantize_model(model: M, storage: str, predicate: Predicate = everything) -> M:
    """Store the weights of nn.Linear and nn.Embedding as `storage`, in place.

    predicate(name, module) says which layers. Left as floats: layers whose rows are no whole
    number of blocks, and weights that a layer which stays shares; `quantized_layers` tells what
    was done. Returns `model`. On the meta device only shapes are made. InputError: `storage`
    cannot be written, or a weight that cannot be stored.
    """
    if storage not in WRITABLE:
        raise InputError(f"cannot write {storage!r}", advice=f"choose from {', '.join(WRITABLE)}")
    for weight, owners in _shared_weights(model):
        wanted = all(_holds_floats(m) and predicate(name, m) for name, m in owners)
        if wanted and weight.shape[-1] % STORAGE[storage][0] == 0:
            blocks = blocks_parameter(_stored(weight.detach(), storage))
            _swap_all(model, owners, blocks, _to_blocks(storage, weight.dtype))
    return model


def replace_with_blocks(model: M, blocks: Mapping[str, tuple[str, Tensor]]) -> M:
    """Put stored rows into the named layers, in place: name -> (storage, uint8 [O, row_bytes]).

    Names are those of modules ("blocks.3.attention.query"). The tensors are kept, not copied. A
    layer tied to a named one gets the same rows. Biases stay. Returns `model`. InputError: a name
    that is no linear or embedding layer, rows that do not fit it, tied layers with different rows.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    for name, (storage, raw) in blocks.items():
        if name not in modules:
            raise InputError("no layer of this name in the model", where=name)
        _check_rows(name, modules[name], storage, raw)
    left = set(blocks)
    for weight, owners in _shared_weights(model):
        named = [name for name, _ in owners if name in blocks]
        if not named:
            continue
        storage, raw = blocks[named[0]]
        for name in named[1:]:
            if blocks[name][0] != storage or not _same(blocks[name][1], raw):
                raise InputError(f"tied to {named[0]}, but its rows differ", where=name)
        for name, module in owners:
            _check_rows(name, module, storage, raw)
        dtype = weight.dtype if weight.is_floating_point() else torch.float32
        _swap_all(model, owners, blocks_parameter(raw), _to_blocks(storage, dtype))
        left -= set(named)
    if left:
        raise InputError("layers that hold no weight of their own", where=", ".join(sorted(left)))
    return model


def dequantize_model(model: M, dtype: torch.dtype = torch.float32) -> M:
    """Turn quantised layers back into nn.Linear and nn.Embedding of `dtype`, in place; ties stay.

    Returns `model`.
    """
    for raw, owners in _shared_weights(model):
        storage = next((m.storage for _, m in owners if isinstance(m, Quantized)), None)
        if storage is not None:
            weight = nn.Parameter(dequantize_fast(raw.detach(), storage, dtype))
            _swap_all(model, owners, weight, _to_floats)
    return model


def _shared_weights(model: nn.Module) -> Iterator[tuple[nn.Parameter, Owners]]:
    """Each Parameter that is the `weight` of some layer, with all modules that own it."""
    found: dict[int, tuple[nn.Parameter, Owners]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for parameter in module._parameters.values():
            if parameter is not None:
                found.setdefault(id(parameter), (parameter, []))[1].append((name, module))
    for weight, owners in found.values():
        if any(m._parameters.get("weight") is weight for _, m in owners):
            yield weight, owners


def _holds_floats(module: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):
        return module.max_norm is None  # a table that is renormalised on use is not constant
    return type(module) is nn.Linear


def _stored(weight: Tensor, storage: str) -> Tensor:
    if weight.is_meta:
        rows, values = weight.shape
        return torch.empty(rows, row_bytes(storage, values), dtype=torch.uint8, device="meta")
    return quantize(weight, storage)


def _check_rows(name: str, module: nn.Module, storage: str, raw: Tensor) -> None:
    if isinstance(module, nn.Linear | QuantizedLinear):
        shape = (module.out_features, module.in_features)
    elif isinstance(module, nn.Embedding | QuantizedEmbedding):
        shape = (module.num_embeddings, module.embedding_dim)
    else:
        raise InputError("only linear and embedding layers hold blocks", where=name)
    if tuple(raw.shape) != (shape[0], row_bytes(storage, shape[1])):
        raise InputError(f"{storage} rows {[*raw.shape]} do not fit {[*shape]}", where=name)


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (a.shape == b.shape and bool(torch.equal(a, b)))


def _to_blocks(storage: str, dtype: torch.dtype) -> Swap:
    def swap(module: nn.Module, blocks: nn.Parameter) -> nn.Module:
        if isinstance(module, nn.Embedding | QuantizedEmbedding):
            return QuantizedEmbedding(blocks, storage, dtype)
        return QuantizedLinear(blocks, storage, module._parameters["bias"])

    return swap


def _to_floats(module: nn.Module, weight: nn.Parameter) -> nn.Module:
    rows, values = weight.shape
    if isinstance(module, QuantizedEmbedding):
        table = nn.Embedding(rows, values, device="meta")
        table.weight = weight
        return table
    linear = nn.Linear(values, rows, bias=False, device="meta")
    linear.weight = weight
    bias = module._parameters["bias"]
    if bias is not None:
        bias.data = bias.data.to(weight.dtype)
        linear.bias = bias
    return linear


def _swap_all(model: nn.Module, owners: Owners, weight: nn.Parameter, swap: Swap) -> None:
    """Swap each owner; one module under two names stays one module."""
    made: dict[int, nn.Module] = {}
    for name, module in owners:
        if id(module) not in made:
            made[id(module)] = swap(module, weight).train(module.training)
        parent, _, leaf = name.rpartition(".")
        if not leaf:
            raise InputError("a bare layer cannot be swapped in place; wrap it in a module")
        setattr(model.get_submodule(parent), leaf, made[id(module)])
