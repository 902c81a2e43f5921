"""What steadies fine-tuning: layer-wise rates, freezing, re-drawn top blocks, mixout.

All of it works by our one vocabulary of names (embeddings, blocks.N, final_norm, pooler, head, …),
so that no architecture is named here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.loading import Loaded, create

NEW: Final = ("head.*", "unembedding")
"""Layers that mixout leaves alone: they have no pre-trained weights, or shared ones."""

# ---- how far from the top ----


def below_top(model: nn.Module) -> dict[str, int]:
    """How many layers lie between a parameter and the top: parameter name -> distance.

    0: head, pooler, unembedding, final norm. Block N of a stack of L blocks: L - N. Embeddings:
    L + 1. Two stacks count each by itself, so that both top blocks have 1.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    heights: dict[str, int] = {}
    for name in names:
        if (block := _block(name)) is not None:
            stack, number = block
            heights[stack] = max(heights.get(stack, 0), number + 1)
    return {name: _distance(name, heights) for name in names}


def _distance(name: str, heights: Mapping[str, int]) -> int:
    if (block := _block(name)) is not None:
        stack, number = block
        return heights[stack] - number
    stack, found, _ = f".{name}".partition(".embeddings.")
    if not found:
        return 0
    # embeddings that two stacks share lie outside of both
    return heights.get(stack.removeprefix("."), max(heights.values(), default=0)) + 1


def _block(name: str) -> tuple[str, int] | None:
    """(path of the stack, number) of the block that a name lies in."""
    match = re.match(r"(?:(.*?)\.)?blocks\.(\d+)\.", name)
    return None if match is None else (match[1] or "", int(match[2]))


def layer_scales(model: nn.Module, decay: float) -> dict[str, float]:
    """decay^distance for each parameter (Howard & Ruder, 1801.06146; 2006.05987, section 7)."""
    return {name: decay**distance for name, distance in below_top(model).items()}


# ---- freezing ----


def freeze(model: nn.Module, patterns: Iterable[str]) -> list[str]:
    """Stop the gradients of parameters whose names match ("embeddings.*"; * matches dots too).

    A parameter that is tied is frozen if one of its names matches. Returns the frozen names.
    Raises InputError for a pattern that matches nothing.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    frozen = []
    for pattern in patterns:
        found = [name for name in named if fnmatchcase(name, pattern)]
        if not found:
            raise InputError(
                "no parameter has such a name",
                where=pattern,
                advice=f"there is {next(iter(named))}",
            )
        frozen += found
    for name in frozen:
        named[name].requires_grad_(False)
    return sorted(set(frozen))


def freeze_bottom(model: nn.Module, blocks: int) -> list[str]:
    """Freeze the embeddings and the first `blocks` blocks, of each stack. Returns the names.

    An output matrix that is tied to the embeddings is frozen with them.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    _check_height(names, blocks)
    bottom = []
    for name in names:
        block = _block(name)
        if "embeddings" in name.split(".") or (block is not None and block[1] < blocks):
            bottom.append(name)
    return freeze(model, bottom)


# ---- new top layers ----


def reinitialise_top(loaded: Loaded, layers: int, seed: int) -> list[str]:
    """Draw the top `layers` blocks (of each stack) and the pooler anew, in place.

    By the architecture's own initialisation, from a new model of this seed; everything else stays
    bit for bit (Zhang et al., 2006.05987, section 5). Do it before adapters are put in. Returns the
    names. Raises InputError where the model has not so many blocks, or layers of another kind.
    """
    model = loaded.model
    fresh = dict(create(loaded.config, loaded.head, seed).model.named_parameters())
    names = [name for name, _ in model.named_parameters()]
    _check_height(names, layers)
    distances = below_top(model)
    chosen = [
        name
        for name in names
        if "pooler" in name.split(".") or (_block(name) is not None and distances[name] <= layers)
    ]
    with torch.no_grad():
        for name in chosen:
            parameter = model.get_parameter(name)
            if name not in fresh or fresh[name].shape != parameter.shape:
                raise InputError(
                    "is not as the architecture has it; draw it anew first", where=name
                )
        for name in chosen:
            model.get_parameter(name).copy_(fresh[name])
    return chosen


def _check_height(names: Iterable[str], blocks: int) -> None:
    found = [block[1] + 1 for name in names if (block := _block(name)) is not None]
    if not 0 <= blocks <= max(found, default=0):
        raise InputError(f"{blocks} blocks were asked for; a stack has {max(found, default=0)}")


# ---- mixout ----


def mixed(weight: Tensor, pretrained: Tensor, share: float) -> Tensor:
    """Each weight is the pre-trained one with probability `share`; the expectation is `weight`.

    Lee et al. (1909.11299): (M pretrained + (1 - M) weight - share pretrained) / (1 - share), M a
    Bernoulli draw. That is dropout of the difference: pretrained + dropout(weight - pretrained).
    """
    return pretrained + F.dropout(weight - pretrained, share)


class MixedLinear(nn.Module):
    """nn.Linear whose weight is mixed in training; the leaf names stay `weight` and `bias`.

    The weight at the start is a buffer that is not saved: it is the base model's.
    """

    pretrained: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear, share: float) -> None:
        super().__init__()
        self.share = share
        self.weight = linear.weight
        self.register_parameter("bias", linear.bias)
        self.register_buffer("pretrained", linear.weight.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = mixed(self.weight, self.pretrained, self.share) if self.training else self.weight
        return F.linear(x, weight, self.bias)

    def extra_repr(self) -> str:
        rows, columns = self.weight.shape
        return f"in_features={columns}, out_features={rows}, share={self.share}"


def mixout(model: nn.Module, share: float, skip: Iterable[str] = NEW) -> list[str]:
    """Put MixedLinear in the place of every nn.Linear, in place. Returns the layers' names.

    share: probability of the pre-trained weight, in [0, 1); the paper takes 0.7 to 0.9. skip:
    patterns of module names. Biases are not mixed, as in the published code. Raises InputError.
    """
    if not 0 <= share < 1:
        raise InputError(f"mixout's share must lie in [0, 1), it is {share}")
    patterns = tuple(skip)

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if type(module) is not nn.Linear or any(fnmatchcase(name, p) for p in patterns):
            return None
        return MixedLinear(module, share).train(module.training)

    return _swap(model, swap)


def remove_mixout(model: nn.Module) -> list[str]:
    """Put nn.Linear back, with the same Parameters, in place. Returns the layers' names."""

    def swap(name: str, module: nn.Module) -> nn.Module | None:
        if not isinstance(module, MixedLinear):
            return None
        rows, columns = module.weight.shape
        linear = nn.Linear(columns, rows, bias=False, device="meta")
        linear.weight = module.weight
        linear.register_parameter("bias", module._parameters["bias"])
        return linear.train(module.training)

    return _swap(model, swap)


def _swap(model: nn.Module, swap: Callable[[str, nn.Module], nn.Module | None]) -> list[str]:
    """Replace modules by what `swap` makes; one module under two names stays one."""
    made: dict[int, nn.Module] = {}
    names = []
    for name, module in list(model.named_modules(remove_duplicate=False)):
        new = made.get(id(module)) or swap(name, module)
        if new is not None and name:
            made[id(module)] = new
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
            names.append(name)
    return names
