"""What a chat template computes with: plain JSON values, and a budget that bounds them.

Nothing here hands a Python attribute to a template, so there is nothing to escape through.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chumoku.text import marked

MAX_STRING = 2**20
MAX_LIST = 100_000
MAX_INTEGER = 2**63
MAX_DEPTH = 100


class TemplateError(Exception):
    """A template did something that it must not; becomes a TokenizerError with its line."""


@dataclass
class Budget:
    """Steps and bytes that one rendering may use. longest: size of the longest string."""

    steps: int
    memory: int
    longest: int = MAX_STRING

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise TemplateError("it takes too many steps")

    def room(self, characters: int) -> None:
        """Ask before a string of this length is made."""
        if characters > self.longest:
            raise TemplateError(f"it makes a text of {characters} characters")
        self.spend(1 + characters // 256)

    def made(self, text: str) -> str:
        """Account for a string that was made."""
        spans = len(marked.spans_of(text))
        self.room(len(text))
        self.spend(spans // 8)
        self.memory -= sys.getsizeof(text) + 80 * spans
        if self.memory < 0:
            raise TemplateError("it uses too much memory")
        return text

    def listed(self, length: int) -> None:
        """Account for a list of this length."""
        if length > MAX_LIST:
            raise TemplateError(f"it makes a list of {length} entries")
        self.memory -= 64 + 8 * length
        self.spend(1 + length // 8)
        if self.memory < 0:
            raise TemplateError("it uses too much memory")


@dataclass(frozen=True)
class Undefined:
    """A name or key that is not there: empty as text, false, and an error in any operation."""

    name: str

    def __bool__(self) -> bool:
        return False


@dataclass
class Namespace:
    """{% set ns = namespace(a=1) %}: the one thing that a loop may change outside itself."""

    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """A method of a value, not yet called."""

    owner: Any
    name: str


def imported(value: object, *, key: str = "", depth: int = 0) -> Any:
    """A caller's value as plain JSON values in which every string is marked as a user's.

    Roles of the usual names stay unmarked: templates build control tokens out of them.
    """
    if depth > MAX_DEPTH:
        raise TemplateError("a message is nested too deeply")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return str(value) if key == "role" and value in ROLE_NAMES else marked.mark(value)
    if isinstance(value, Mapping):
        table = {}
        for name, item in value.items():
            if not isinstance(name, str | int | float | bool | None):
                raise TemplateError(f"a key is a {type(name).__name__}")
            label = name if isinstance(name, str) else ""
            table[imported(name)] = imported(item, key=label, depth=depth + 1)
        return table
    if isinstance(value, list | tuple):
        return [imported(item, depth=depth + 1) for item in value]
    return marked.mark(f"<{type(value).__name__}>")


ROLE_NAMES = {
    *("system", "user", "assistant", "tool", "function", "developer", "ipython", "model"),
    *("observation", "tool_response", "environment", "human", "gpt", "documents", "context"),
}


def equal(a: Any, b: Any, budget: Budget) -> bool:
    """a == b, counted: two deep structures that share parts could take for ever."""
    budget.spend(1)
    if isinstance(a, Undefined) or isinstance(b, Undefined):
        return isinstance(a, Undefined) and isinstance(b, Undefined)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return (
            isinstance(a, list) == isinstance(b, list)
            and len(a) == len(b)
            and all(equal(x, y, budget) for x, y in zip(a, b, strict=True))
        )
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], budget) for key in a)
    if isinstance(a, str) and isinstance(b, str):
        budget.spend(len(a) // 256 if len(a) == len(b) else 0)
    if isinstance(a, list | tuple | dict) or isinstance(b, list | tuple | dict):
        return False
    return bool(a == b)


def to_text(value: Any, budget: Budget) -> str:
    """What {{ value }} prints."""
    if isinstance(value, str):
        return value
    if isinstance(value, Undefined):
        return ""
    if value is None or isinstance(value, bool | int | float):
        return str(value)
    parts: list[str] = []
    _write(value, parts, budget, _REPR)
    return budget.made(marked.concat(parts))


@dataclass(frozen=True)
class Style:
    """How a nested value is written: as Python's repr, or as JSON."""

    json: bool
    item: str = ", "
    key: str = ": "
    indent: str | None = None
    ascii: bool = False
    sort: bool = False


_REPR = Style(json=False)


def to_json(value: Any, budget: Budget, style: Style) -> str:
    """json.dumps, counted as it goes."""
    parts: list[str] = []
    _write(value, parts, budget, style)
    return budget.made(marked.concat(parts))


def _write(value: Any, out: list[str], budget: Budget, style: Style, depth: int = 0) -> None:
    budget.spend(2)
    if depth > MAX_DEPTH:
        raise TemplateError("a value is nested too deeply")
    if isinstance(value, dict):
        keys = sorted(value, key=str) if style.sort else list(value)
        entries = [(key, value[key]) for key in keys]
        _write_all("{}", entries, out, budget, style, depth)
    elif isinstance(value, list | tuple):
        brackets = "()" if isinstance(value, tuple) and not style.json else "[]"
        _write_all(brackets, [(None, item) for item in value], out, budget, style, depth)
        if brackets == "()" and len(value) == 1:
            out[-1] = ",)"
    else:
        out.append(budget.made(_scalar(value, style)))


def _write_all(
    brackets: str,
    entries: list[tuple[Any, Any]],
    out: list[str],
    budget: Budget,
    style: Style,
    depth: int,
) -> None:
    inner = outer = ""
    if style.indent is not None and entries:
        inner = "\n" + style.indent * (depth + 1)
        outer = "\n" + style.indent * depth
    budget.room(len(inner))
    out.append(brackets[0])
    for number, (key, item) in enumerate(entries):
        between = style.item.rstrip(" ") if inner and style.item == ", " else style.item
        out.append((between if number else "") + inner)
        if brackets == "{}":
            name = key if isinstance(key, str) or not style.json else _scalar(key, style)
            out += [budget.made(_scalar(name, style)), style.key]
        _write(item, out, budget, style, depth + 1)
        if len(out) > 4 * MAX_LIST:
            raise TemplateError("it writes too large a value")
    out.append(outer + brackets[1])


def _scalar(value: Any, style: Style) -> str:
    import json

    if isinstance(value, str):
        bare = str.__str__(value)
        text = json.dumps(bare, ensure_ascii=style.ascii) if style.json else repr(bare)
        return marked.mark_if(text, value)
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value) if style.json else repr(value)
    if isinstance(value, Undefined) and not style.json:
        return "Undefined"
    raise TemplateError(f"a {type(value).__name__} cannot be written")
