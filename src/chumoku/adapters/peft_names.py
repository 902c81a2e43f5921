"""Published module names for an adapter's files, by each architecture's own name table.

PEFT names modules as the library that it runs on has them in memory. Where these differ from the
names in weight files, the table's aliases say so: an alias that renames a module, not a leaf, is
read backwards here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from chumoku.adapters.registry import REGISTRY
from chumoku.errors import CheckpointError
from chumoku.models import architecture
from chumoku.models.names import NameTable, Rule


@dataclass(frozen=True)
class PublishedTensor:
    """A published tensor: its name in weight files, the rule, and our names of its parts."""

    name: str
    rule: Rule
    ours: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """The published names of one model. tensors: all of them, heads with every spelling."""

    table: NameTable
    tensors: tuple[PublishedTensor, ...]
    renames: tuple[tuple[str, str], ...]

    def of(self, ours: str) -> PublishedTensor:
        """The first published tensor that holds one of ours. Raises CheckpointError."""
        for tensor in self.tensors:
            if ours in tensor.ours:
                return tensor
        raise CheckpointError("has no published name", where=ours)

    def module(self, tensor: str) -> str:
        """The module that owns a published tensor, as PEFT sees it today."""
        name = tensor
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        if self._ours(name) != self._ours(tensor):
            name = tensor
        return name.rpartition(".")[0]

    def modules(self) -> set[str]:
        """All modules that own a published tensor."""
        return {self.module(tensor.name) for tensor in self.tensors}

    def find(self, module: str) -> tuple[Rule, tuple[str, ...]] | None:
        """Our layers that a published module stands for, and the rule of its weight."""
        match = self.table.find(f"{module}.weight")
        if match is None or not all(name.endswith(".weight") for name in match.ours):
            return None
        return match.rule, tuple(name.removesuffix(".weight") for name in match.ours)

    def _ours(self, name: str) -> tuple[str, ...]:
        match = self.table.find(name)
        return () if match is None else match.ours


def published_names(model: nn.Module, config: Any, head: str, model_type: str) -> Published:
    """The published names of a model in the hub's layout. Raises ConfigError for the unknown."""
    table = architecture(model_type).names(config, head, "hub")
    prefix = table.prefix if head != "encoder" else ""
    names = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers())
    found: dict[str, PublishedTensor] = {}
    rules = [(rule, "") for rule in table.heads] + [(rule, prefix) for rule in table.rules]
    for rule, start in rules:
        alone = NameTable((rule,), prefix=start)
        for ours in names:
            if ours.startswith(f"{REGISTRY}.") or (hit := alone.publish(ours)) is None:
                continue
            match = alone.find(hit[1])
            if match is not None:
                found.setdefault(hit[1], PublishedTensor(hit[1], rule, match.ours))
    renames = [backwards(*alias) for alias in table.aliases]
    return Published(table, tuple(found.values()), tuple(r for r in renames if r is not None))


def backwards(pattern: str, replacement: str) -> tuple[str, str] | None:
    r"""An alias read from right to left; None where it renames a leaf or drops a part.

    (r"(^|\.)up\.(\d+)\.", r"\1down.\2.") -> (r"(^|\.)down\.(\d+)\.", r"\1up.\2.")
    """
    groups = re.findall(r"\([^()]*\)", pattern)
    pieces = re.split(r"\([^()]*\)", pattern)
    if not replacement or not all(re.fullmatch(r"(\\\.|\w)*", piece) for piece in pieces):
        return None
    numbered = iter(range(1, len(groups) + 1))
    new = "".join(
        piece.replace("\\.", ".") + (f"\\{next(numbered)}" if place < len(groups) else "")
        for place, piece in enumerate(pieces)
    )
    old = "".join(
        groups[int(piece) - 1] if place % 2 else re.escape(piece)
        for place, piece in enumerate(re.split(r"\\(\d)", replacement))
    )
    return old, new


def ends(wanted: Collection[str], every: Iterable[str]) -> list[str]:
    """The shortest ends of names ("q_proj") that fit the wanted modules and no other."""
    wanted, every = set(wanted), set(every) | set(wanted)
    by_end: dict[str, set[str]] = {}
    for name in every:
        parts = name.split(".")
        for start in range(len(parts)):
            by_end.setdefault(".".join(parts[start:]), set()).add(name)
    found = set()
    for name in wanted:
        parts = name.split(".")
        tails = (".".join(parts[start:]) for start in reversed(range(len(parts))))
        found.add(next((tail for tail in tails if by_end[tail] <= wanted), name))
    return sorted(found)


def whole_modules(
    published: Published, head: Collection[str], others: Collection[str]
) -> tuple[list[str], list[PublishedTensor]]:
    """Modules that hold these parameters of ours, and all published tensors under them.

    head: of the head, which PEFT takes by the first part of the name ("classifier"). Raises
    CheckpointError where PEFT, which goes by the ends of names, would take another module too.
    """
    modules = {published.of(name).name.split(".")[0] for name in head}
    modules |= {published.module(published.of(name).name) for name in others}
    top = {m for m in modules if not any(m.startswith(f"{other}.") for other in modules)}
    under = [
        tensor
        for tensor in published.tensors
        if any(f"{published.module(tensor.name)}.".startswith(f"{m}.") for m in top)
    ]
    for module in _with_parents(published.modules()):
        if module not in top and any(module.endswith(m) for m in top):
            raise CheckpointError(
                "PEFT's files cannot name this module by itself",
                where=", ".join(m for m in top if module.endswith(m)),
                advice=f"it would take {module} for it too; train other modules as a whole",
            )
    return sorted(top), under


def _with_parents(modules: Iterable[str]) -> set[str]:
    found = set()
    for module in modules:
        parts = module.split(".")
        found |= {".".join(parts[:end]) for end in range(1, len(parts) + 1)}
    return found
