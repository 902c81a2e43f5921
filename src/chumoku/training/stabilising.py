"""What steadies fine-tuning: layer-wise rates, freezing, re-drawn top blocks, mixout, noise.

All of it works by our one vocabulary of names (embeddings, blocks.N, final_norm, pooler, head, …),
so that no architecture is named here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

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
    """decay^distance for each parameter (Zhang et al., 2006.05987, section 5; 1801.06146)."""
    return {name: decay**distance for name, distance in below_top(model).items()}
