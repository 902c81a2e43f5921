"""Tables between published tensor names and ours: short, invertible, one in each model's file.

A rule pairs a published pattern with ours; `{n}` is a number, `{p}` is weight or bias.
Several names on our side mean one published tensor whose rows are stacked.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

PLACEHOLDERS: Final = {"n": r"\d+", "p": "weight|bias"}


@dataclass(frozen=True)
class Rule:
    """published <-> ours.

    transposed: the published matrix is [in, out] (GPT-2's Conv1D).
    pairs: rows of each head are stored as neighbouring pairs (Meta, GGUF) for this many heads and
    are permuted to halves. shape: the published shape where it differs, with -1 for one free size.
    """

    published: str
    ours: tuple[str, ...]
    transposed: bool = False
    pairs: int = 0
    shape: tuple[int, ...] | None = None


def rule(
    published: str,
    *ours: str,
    transposed: bool = False,
    pairs: int = 0,
    shape: tuple[int, ...] | None = None,
) -> Rule:
    """A Rule, with our names written one after the other."""
    return Rule(published, ours, transposed, pairs, shape)


def head_rules(by_head: Mapping[str, tuple[Rule, ...]], head: str) -> tuple[Rule, ...]:
    """The rules of one head. Tensors of the other heads are known too: a file may hold several.

    Those get names below "unused", which no model has.
    """
    own = by_head.get(head, ())
    taken = {r.published for r in own}
    others = {r.published: r for rules in by_head.values() for r in rules}
    unused = (
        replace(r, ours=(f"unused.{r.published}",), transposed=False)
        for name, r in others.items()
        if name not in taken
    )
    return (*own, *unused)


@dataclass(frozen=True)
class Match:
    """The rule that fits a published name, and our names with their numbers filled in."""

    rule: Rule
    ours: tuple[str, ...]


@dataclass(frozen=True)
class NameTable:
    """All rules of one published layout.

    prefix: what head checkpoints put before the base model's names ("bert."); rules are written
    without it and a file may have it or not. heads: rules for names that never carry the prefix.
    ignored: regular expressions of published tensors that hold nothing learned (old buffers).
    aliases: old spellings, regular expression -> replacement, applied on reading.
    """

    rules: tuple[Rule, ...]
    heads: tuple[Rule, ...] = ()
    prefix: str = ""
    ignored: tuple[str, ...] = ()
    aliases: tuple[tuple[str, str], ...] = ()

    def find(self, published: str) -> Match | None:
        """The rule for a published name and our names for it; None where no rule fits."""
        name = published
        for pattern, replacement in self.aliases:
            name = re.sub(pattern, replacement, name)
        bare = name.removeprefix(self.prefix)
        return _first(self.heads, name) or _first(self.rules, bare)

    def is_ignored(self, published: str) -> bool:
        return any(re.fullmatch(pattern, published) for pattern in self.ignored)

    def publish(self, ours: str, *, prefixed: bool = True) -> tuple[Rule, str, int] | None:
        """For one of our names: its rule, the published name, and which stacked part it is."""
        for rules, prefix in ((self.heads, ""), (self.rules, self.prefix if prefixed else "")):
            for candidate in rules:
                for part, pattern in enumerate(candidate.ours):
                    found = _compiled(pattern).fullmatch(ours)
                    if found:
                        name = _fill(candidate.published, found.groupdict())
                        return candidate, prefix + name, part
        return None


def _first(rules: Sequence[Rule], name: str) -> Match | None:
    for candidate in rules:
        found = _compiled(candidate.published).fullmatch(name)
        if found:
            values = found.groupdict()
            return Match(candidate, tuple(_fill(o, values) for o in candidate.ours))
    return None


@functools.cache
def _compiled(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern)
    for letter, expression in PLACEHOLDERS.items():
        mark = re.escape("{" + letter + "}")
        escaped = escaped.replace(mark, f"(?P<{letter}>{expression})", 1)
        escaped = escaped.replace(mark, f"(?P={letter})")
    return re.compile(escaped)


def _fill(pattern: str, values: dict[str, str]) -> str:
    for letter, value in values.items():
        pattern = pattern.replace("{" + letter + "}", value)
    return pattern
