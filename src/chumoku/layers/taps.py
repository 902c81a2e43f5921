"""Named places in a forward pass that can be watched and edited from outside.

A tap is an identity module; its path in the model (`blocks.3.attention.weights`) is the value's
name. With nobody watching it costs one Python call and torch.compile removes it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from torch import Tensor, nn

from chumoku.errors import InputError


class Tap(nn.Module):
    """Passes a value on. `watched` is True while somebody listens."""

    def forward(self, value: Tensor) -> Tensor:
        return value

    @property
    def watched(self) -> bool:
        return bool(self._forward_hooks)


class ResidualTaps(nn.Module):
    """The residual stream of a block: what enters it, and what it is after each addition."""

    def __init__(self) -> None:
        super().__init__()
        self.input = Tap()
        self.attention = Tap()
        self.feedforward = Tap()


class CrossResidualTaps(nn.Module):
    """The residual stream of a decoder block that also reads an encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.input = Tap()
        self.attention = Tap()
        self.cross_attention = Tap()
        self.feedforward = Tap()


def tap_names(model: nn.Module) -> list[str]:
    """All names that `trace` accepts for this model, in order of definition."""
    return [name for name, module in model.named_modules() if isinstance(module, Tap)]


Edit = Callable[[Tensor], Tensor]


@contextmanager
def trace(
    model: nn.Module, *patterns: str, edit: Mapping[str, Edit] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Collect, and where asked replace, the values at the taps whose names match.

    patterns: shell-style ("blocks.*.attention.weights"); edit: name or pattern -> function of the
    value, whose result takes its place (it is then also what is collected).
    Yields a dict name -> value that fills as the model runs; a later call overwrites, so while
    decoding it holds the last step. Raises InputError for a pattern that matches no tap.
    """
    edits = dict(edit or {})
    taps = {name: m for name, m in model.named_modules() if isinstance(m, Tap)}
    for pattern in (*patterns, *edits):
        if not fnmatch.filter(taps, pattern):
            example = ", ".join(list(taps)[:8])
            raise InputError(f"no value is called {pattern!r}", advice=f"names are like {example}")
    seen: dict[str, Tensor] = {}

    def listen(
        name: str, keep: bool, change: list[Edit], _m: nn.Module, _i: object, out: Tensor
    ) -> Tensor:
        for function in change:
            out = function(out)
        if keep:
            seen[name] = out
        return out

    with ExitStack() as stack:
        for name, module in taps.items():
            keep = any(fnmatch.fnmatchcase(name, p) for p in patterns)
            change = [f for p, f in edits.items() if fnmatch.fnmatchcase(name, p)]
            if keep or change:
                hook = module.register_forward_hook(partial(listen, name, keep, change))
                stack.callback(hook.remove)
        yield seen
