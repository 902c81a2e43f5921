"""Methods, filters, tests and functions that a chat template may use: a closed list.

Each is Jinja's (jinja.palletsprojects.com, "List of Builtin Filters"), written over the plain
values of template_values.py, with its result's size known before it is made.
"""

from __future__ import annotations

import datetime
import html
import re
from collections.abc import Callable, Iterable
from typing import Any

from chumoku.errors import InputError
from chumoku.text import marked
from chumoku.text.template_values import (
    MAX_INTEGER,
    MAX_LIST,
    Budget,
    Method,
    Namespace,
    Style,
    TemplateError,
    Undefined,
    equal,
    to_json,
    to_text,
)

Function = Callable[..., Any]
"""Called with the budget first."""


def defined(value: Any) -> Any:
    if isinstance(value, Undefined):
        raise TemplateError(f"{value.name!r:.60} is undefined")
    return value


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise TemplateError(f"a text is needed, not {_kind(value)}")
    return value


def items_of(value: Any, budget: Budget) -> list[Any]:
    """What a loop over a value goes through, as a new list."""
    if isinstance(value, Undefined):
        return []
    if isinstance(value, str):
        budget.listed(len(value))
        budget.memory -= 60 * len(value)
        return [marked.cut(value, n, n + 1) for n in range(len(value))]
    if not isinstance(value, list | tuple | dict | range):
        raise TemplateError(f"{_kind(value)} is no list")
    budget.listed(len(value))
    return list(value)


def whole(value: Any, low: int = -MAX_LIST, high: int = MAX_LIST) -> int:
    if not isinstance(value, int) or not low <= value <= high:
        raise TemplateError(f"a whole number from {low} to {high} is needed, not {_kind(value)}")
    return value


def number(value: Any) -> Any:
    """A result of arithmetic, which may not grow without bounds."""
    if isinstance(value, int) and abs(value) >= MAX_INTEGER:
        raise TemplateError("a number grows too large")
    return value


def _kind(value: Any) -> str:
    return f"undefined {value.name!r:.60}" if isinstance(value, Undefined) else type(value).__name__


# --- methods of strings


def _mapped(change: Callable[[str], str]) -> Function:
    def run(budget: Budget, text: str) -> str:
        budget.room(3 * len(text))
        return budget.made(marked.mark_if(change(str.__str__(text)), text))

    return run


def _asked(question: Callable[..., Any]) -> Function:
    def run(budget: Budget, text: str, *arguments: Any) -> Any:
        budget.spend(1 + len(text) // 256)
        return question(str.__str__(text), *map(_bare, arguments))

    return run


def _bare(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return tuple(text_of(item) for item in value)
    return value if isinstance(value, int) or value is None else text_of(value)


def _stripped(*, left: bool, right: bool) -> Function:
    def run(budget: Budget, text: str, characters: str | None = None) -> str:
        if characters is not None:
            text_of(characters)
        return budget.made(marked.strip(text, characters, left=left, right=right))

    return run


def _split(*, right: bool) -> Function:
    def run(budget: Budget, text: str, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        bare = str.__str__(text)
        words = sum(1 for _ in _WORD.finditer(bare)) if sep is None else 0
        parts = words if sep is None else bare.count(text_of(sep)) + 1
        parts = min(parts, whole(maxsplit) + 1) if maxsplit >= 0 else parts
        _several(budget, parts, len(text))
        return marked.split(text, sep, maxsplit, right=right)

    return run


_WORD = re.compile(r"\S+")


def _several(budget: Budget, parts: int, size: int) -> None:
    """Account for a text of this size cut into so many parts."""
    budget.memory -= 240 * parts + 4 * size
    budget.spend(1 + parts + size // 256)
    if budget.memory < 0:
        raise TemplateError("it uses too much memory")


def _lines(text: str) -> int:
    return 1 + sum(text.count(char) for char in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029")


def _splitlines(budget: Budget, text: str, keepends: bool = False) -> list[str]:
    _several(budget, _lines(text), len(text))
    return marked.splitlines(text, bool(keepends))


def _replace(budget: Budget, text: str, old: str, new: str, count: int = -1) -> str:
    found = str.__str__(text).count(text_of(old))
    found = min(found, whole(count)) if count >= 0 else found
    budget.room(len(text) + found * len(text_of(new)))
    _several(budget, found, len(text))
    return budget.made(marked.replace(text, old, new, count))


def join(budget: Budget, between: str, values: Any) -> str:
    parts = [text_of(item) for item in items_of(values, budget)]
    budget.room(sum(map(len, parts)) + len(between) * len(parts))
    return budget.made(marked.join(between, parts))


def _padded(side: str) -> Function:
    def run(budget: Budget, text: str, width: int = 80, fill: str = " ") -> str:
        budget.room(max(len(text), whole(width, 0, 2**40)))
        gap = max(0, width - len(text))
        left = {"left": 0, "right": gap, "center": gap // 2}[side]
        return budget.made(marked.concat([text_of(fill) * left, text, fill * (gap - left)]))

    return run


def _partition(budget: Budget, text: str, separator: str) -> tuple[str, ...]:
    place = str.__str__(text).find(text_of(separator))
    if place < 0 or not separator:
        return text, "", ""
    end = place + len(separator)
    return marked.cut(text, 0, place), separator, marked.cut(text, end, len(text))


def _remove(budget: Budget, text: str, part: str, *, front: bool) -> str:
    bare = str.__str__(text)
    if front and bare.startswith(text_of(part)):
        return budget.made(marked.cut(text, len(part), len(text)))
    if not front and part and bare.endswith(text_of(part)):
        return budget.made(marked.cut(text, 0, len(text) - len(part)))
    return text


_FIELD = re.compile(r"\{\{|\}\}|\{(\w*)\}")


def _format(budget: Budget, text: str, *values: Any, **named: Any) -> str:
    """str.format with {} {0} {name} alone: no attributes, no widths."""
    parts: list[str] = []
    place = count = 0
    for match in _FIELD.finditer(str.__str__(text)):
        parts.append(marked.cut(text, place, match.start()))
        place = match.end()
        key = match.group(1)
        if key is None:
            parts.append(match.group()[0])
        elif key.isdigit() or not key:
            count, index = (count + 1, count) if not key else (count, whole(int(key[:6])))
            parts.append(to_text(values[index], budget))
        else:
            parts.append(to_text(named[key], budget))
    rest = marked.cut(text, place, len(text))
    if "{" in rest or "}" in rest:
        raise TemplateError("format knows {} {0} and {name} alone")
    return budget.made(marked.concat([*parts, rest]))


STRING_METHODS: dict[str, Function] = {
    "upper": _mapped(str.upper),
    "lower": _mapped(str.lower),
    "title": _mapped(str.title),
    "capitalize": _mapped(str.capitalize),
    "swapcase": _mapped(str.swapcase),
    "casefold": _mapped(str.casefold),
    "strip": _stripped(left=True, right=True),
    "lstrip": _stripped(left=True, right=False),
    "rstrip": _stripped(left=False, right=True),
    "split": _split(right=False),
    "rsplit": _split(right=True),
    "splitlines": _splitlines,
    "replace": _replace,
    "join": join,
    "partition": _partition,
    "format": _format,
    "center": _padded("center"),
    "ljust": _padded("left"),
    "rjust": _padded("right"),
    "removeprefix": lambda budget, text, part: _remove(budget, text, part, front=True),
    "removesuffix": lambda budget, text, part: _remove(budget, text, part, front=False),
    **{
        name: _asked(getattr(str, name))
        for name in (
            *("startswith", "endswith", "find", "rfind", "index", "count", "isdigit", "isalpha"),
            *("isalnum", "isspace", "isupper", "islower", "isnumeric", "isdecimal", "istitle"),
        )
    },
}


# --- methods of dicts and lists


def _get(budget: Budget, table: dict[Any, Any], key: Any, default: Any = None) -> Any:
    return table.get(scalar(key), default)


def scalar(key: Any) -> Any:
    """A value that may be a key."""
    if key is None or isinstance(key, str | int | float):
        return key
    raise TemplateError(f"{_kind(key)} cannot be a key")


def _index(budget: Budget, values: list[Any], what: Any) -> int:
    for place, item in enumerate(values):
        if equal(item, what, budget):
            return place
    raise TemplateError("the value is not in the list")


DICT_METHODS: dict[str, Function] = {
    "get": _get,
    "keys": lambda budget, table: items_of(table, budget),
    "values": lambda budget, table: items_of(list(table.values()), budget),
    "items": lambda budget, table: items_of([(k, v) for k, v in table.items()], budget),
    "copy": lambda budget, table: dict(zip(items_of(table, budget), table.values(), strict=True)),
}
LIST_METHODS: dict[str, Function] = {
    "index": _index,
    "count": lambda budget, values, what: sum(equal(item, what, budget) for item in values),
    "copy": lambda budget, values: items_of(values, budget),
}
# Jinja's immutable sandbox refuses these, too.
CHANGING = {
    *("append", "extend", "insert", "pop", "remove", "clear", "update", "setdefault", "popitem"),
    *("sort", "reverse"),
}


def method(owner: Any, name: str) -> Method | None:
    """The method of that name, if the closed list has it."""
    kinds = ((str, STRING_METHODS), (dict, DICT_METHODS), ((list, tuple), LIST_METHODS))
    for kind, table in kinds:
        if isinstance(owner, kind) and (name in table or name in CHANGING):
            return Method(owner, name)
    return None


def call_method(bound: Method, budget: Budget, values: list[Any], named: dict[str, Any]) -> Any:
    if bound.name in CHANGING and not isinstance(bound.owner, str):
        raise TemplateError(f"{bound.name} would change a value, which templates may not")
    table = LIST_METHODS
    if isinstance(bound.owner, str | dict):
        table = STRING_METHODS if isinstance(bound.owner, str) else DICT_METHODS
    return table[bound.name](budget, bound.owner, *values, **named)


# --- filters


def lookup(item: Any, name: Any) -> Any:
    """item[name] for map(attribute="a.b") and its like."""
    names = str(name) if isinstance(name, int) else text_of(name)
    for part in names.split("."):
        key: Any = int(part[:6]) if part.isdigit() and isinstance(item, list | tuple) else part
        if isinstance(item, dict):
            item = item.get(key, Undefined(part))
        elif isinstance(item, list | tuple) and isinstance(key, int) and key < len(item):
            item = item[key]
        elif isinstance(item, Namespace):
            item = item.values.get(key, Undefined(part))
        else:
            return Undefined(part)
    return item


def _length(budget: Budget, value: Any) -> int:
    if isinstance(value, Undefined):
        return 0
    if not isinstance(value, str | list | tuple | dict | range):
        raise TemplateError(f"{_kind(value)} has no length")
    return len(value)


def _default(budget: Budget, value: Any, other: Any = "", boolean: bool = False) -> Any:
    return other if isinstance(value, Undefined) or (boolean and not value) else value


def _tojson(
    budget: Budget,
    value: Any,
    ensure_ascii: bool = False,
    indent: Any = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    pad = (
        None if indent is None else " " * whole(indent, 0, 32) if isinstance(indent, int) else None
    )
    if isinstance(indent, str):
        pad = indent[:32]
    item, key = separators if separators is not None else (", ", ": ")
    style = Style(True, text_of(item)[:32], text_of(key)[:32], pad, ensure_ascii, sort_keys)
    return to_json(value, budget, style)


def _indent(
    budget: Budget, text: Any, width: Any = 4, first: bool = False, blank: bool = False
) -> str:
    pad = width[:1000] if isinstance(width, str) else " " * whole(width, 0, 1000)
    count = _lines(text_of(text))
    budget.room(len(text) + count * (len(pad) + 1))
    _several(budget, 3 * count, 3 * len(text) + count * len(pad))
    lines = marked.splitlines(marked.concat([text, "\n"]))
    done = [
        marked.concat([pad, line]) if (number or first) and (line or blank) else line
        for number, line in enumerate(lines)
    ]
    return budget.made(marked.join("\n", done))


def _join(budget: Budget, values: Any, d: str = "", attribute: Any = None) -> str:
    items = items_of(values, budget)
    if attribute is not None:
        items = [lookup(item, attribute) for item in items]
    return join(budget, text_of(d), [to_text(item, budget) for item in items])


def _sorted(
    budget: Budget,
    values: Any,
    reverse: bool = False,
    case_sensitive: bool = False,
    attribute: Any = None,
) -> list[Any]:
    items = items_of(values, budget)
    budget.spend(4 * len(items))

    def key(item: Any) -> Any:
        value = item if attribute is None else lookup(item, attribute)
        if isinstance(value, str):
            return value if case_sensitive else budget.made(value.lower())
        if not isinstance(value, int | float):
            raise TemplateError(f"{_kind(value)} cannot be sorted")
        return value

    return sorted(items, key=key, reverse=bool(reverse))


def _dictsort(
    budget: Budget, table: Any, case_sensitive: bool = False, by: str = "key", reverse: bool = False
) -> list[Any]:
    if not isinstance(table, dict):
        raise TemplateError(f"{_kind(table)} is no mapping")
    place = "0" if by == "key" else "1"
    return _sorted(budget, list(table.items()), reverse, case_sensitive, place)


def _unique(budget: Budget, values: Any) -> list[Any]:
    found: list[Any] = []
    for item in items_of(values, budget):
        if not any(equal(item, other, budget) for other in found):
            found.append(item)
    return found


def _edge(position: int) -> Function:
    def run(budget: Budget, values: Any) -> Any:
        items = items_of(values, budget)
        return items[position] if items else Undefined("first" if position == 0 else "last")

    return run


def _reverse(budget: Budget, value: Any) -> Any:
    if isinstance(value, str):
        return budget.made(marked.mark_if(str.__str__(value)[::-1], value))
    return items_of(value, budget)[::-1]


def _number(kind: type[int] | type[float]) -> Function:
    def run(budget: Budget, value: Any, default: Any = 0) -> Any:
        if isinstance(value, str) and len(value) > 400:
            return default
        try:
            return number(kind(value))
        except (TypeError, ValueError, OverflowError):
            try:
                return number(kind(float(value)))
            except (TypeError, ValueError, OverflowError):
                return default

    return run


def _round(budget: Budget, value: Any, precision: int = 0, method: str = "common") -> float:
    if not isinstance(value, int | float) or method != "common":
        raise TemplateError("round takes a number")
    return round(float(value), whole(precision, -20, 20))


def _percent(budget: Budget, text: str, values: Any) -> str:
    """text % values with %s, %d and %% alone."""
    arguments = list(values) if isinstance(values, tuple) else [values]
    parts: list[str] = []
    place = 0
    bare = str.__str__(text)
    while (found := bare.find("%", place)) >= 0:
        parts.append(marked.cut(text, place, found))
        kind, place = bare[found + 1 : found + 2], found + 2
        if kind == "%":
            parts.append("%")
        elif kind in ("s", "d") and arguments:
            value = arguments.pop(0)
            parts.append(to_text(int(value) if kind == "d" else value, budget))
        else:
            raise TemplateError("% knows %s, %d and %% alone")
    return budget.made(marked.concat([*parts, marked.cut(text, place, len(text))]))


percent = _percent


def _items(budget: Budget, value: Any) -> list[Any]:
    if isinstance(value, Undefined):
        return []
    if not isinstance(value, dict):
        raise TemplateError(f"{_kind(value)} is no mapping")
    return items_of(list(value.items()), budget)


def _total(budget: Budget, values: Any, attribute: Any = None, start: Any = 0) -> Any:
    for item in items_of(values, budget):
        value = item if attribute is None else lookup(item, attribute)
        if not isinstance(value, int | float):
            raise TemplateError("sum takes numbers")
        start = number(start + value)
    return start


def _extreme(best: Callable[[list[Any]], Any]) -> Function:
    def run(budget: Budget, values: Any) -> Any:
        items = _sorted(budget, values)
        return best(items) if items else Undefined("extreme")

    return run


def _escape(budget: Budget, value: Any) -> str:
    text = to_text(value, budget)
    budget.room(6 * len(text))
    return budget.made(marked.mark_if(html.escape(str.__str__(text)), text))


def _string(budget: Budget, value: Any) -> str:
    return to_text(value, budget)


def _as_text(name: str) -> Function:
    def run(budget: Budget, value: Any, *arguments: Any, **named: Any) -> Any:
        return STRING_METHODS[name](budget, to_text(value, budget), *arguments, **named)

    return run


FILTERS: dict[str, Function] = {
    "length": _length,
    "count": _length,
    "default": _default,
    "d": _default,
    "tojson": _tojson,
    "indent": _indent,
    "join": _join,
    "sort": _sorted,
    "dictsort": _dictsort,
    "unique": _unique,
    "first": _edge(0),
    "last": _edge(-1),
    "reverse": _reverse,
    "list": lambda budget, value: items_of(value, budget),
    "items": _items,
    "int": _number(int),
    "float": _number(float),
    "round": _round,
    "abs": lambda budget, value: abs(value),
    "sum": _total,
    "min": _extreme(lambda items: items[0]),
    "max": _extreme(lambda items: items[-1]),
    "string": _string,
    "safe": _string,
    "escape": _escape,
    "e": _escape,
    "format": lambda budget, text, *values: _percent(budget, text_of(text), tuple(values)),
    "trim": _as_text("strip"),
    "upper": _as_text("upper"),
    "lower": _as_text("lower"),
    "title": _as_text("title"),
    "capitalize": _as_text("capitalize"),
    "center": _as_text("center"),
    "replace": _as_text("replace"),
    "wordcount": lambda budget, text: len(items_of(text_of(text).split(), budget)),
}


# --- tests

_SCALARS = (int, float)


def _remainder(value: Any, other: Any) -> Any:
    if not isinstance(value, _SCALARS) or not isinstance(other, _SCALARS):
        raise TemplateError("only numbers have a remainder")
    return value % other


TESTS: dict[str, Function] = {
    "defined": lambda budget, value: not isinstance(value, Undefined),
    "undefined": lambda budget, value: isinstance(value, Undefined),
    "none": lambda budget, value: value is None,
    "string": lambda budget, value: isinstance(value, str),
    "mapping": lambda budget, value: isinstance(value, dict),
    "iterable": lambda b, value: isinstance(value, str | list | tuple | dict | range | Undefined),
    "sequence": lambda b, value: isinstance(value, str | list | tuple | dict | range | Undefined),
    "number": lambda budget, value: isinstance(value, _SCALARS),
    "integer": lambda b, value: isinstance(value, int) and not isinstance(value, bool),
    "float": lambda budget, value: isinstance(value, float),
    "boolean": lambda budget, value: isinstance(value, bool),
    "true": lambda budget, value: value is True,
    "false": lambda budget, value: value is False,
    "odd": lambda budget, value: _remainder(value, 2) == 1,
    "even": lambda budget, value: _remainder(value, 2) == 0,
    "divisibleby": lambda budget, value, other: _remainder(value, other) == 0,
    "lower": lambda budget, value: text_of(value).islower(),
    "upper": lambda budget, value: text_of(value).isupper(),
    "callable": lambda budget, value: isinstance(value, Method) or callable(value),
    "sameas": lambda budget, value, other: value is other,
    "in": lambda budget, value, values: contains(values, value, budget),
    **dict.fromkeys(("eq", "equalto", "=="), lambda budget, a, b: equal(a, b, budget)),
    **dict.fromkeys(("ne", "!="), lambda budget, a, b: not equal(a, b, budget)),
    **dict.fromkeys(("lt", "lessthan", "<"), lambda budget, a, b: ordered(a, b) < 0),
    **dict.fromkeys(("gt", "greaterthan", ">"), lambda budget, a, b: ordered(a, b) > 0),
    **dict.fromkeys(("le", "<="), lambda budget, a, b: ordered(a, b) <= 0),
    **dict.fromkeys(("ge", ">="), lambda budget, a, b: ordered(a, b) >= 0),
}


def contains(values: Any, what: Any, budget: Budget) -> bool:
    """what in values."""
    if isinstance(values, str):
        budget.spend(1 + len(values) // 64)
        return text_of(what) in str.__str__(values)
    if isinstance(values, dict):
        return scalar(what) in values
    if isinstance(values, range):
        return isinstance(what, int) and what in values
    if isinstance(values, Undefined):
        return False
    if not isinstance(values, list | tuple):
        raise TemplateError(f"{_kind(values)} is no list")
    return any(equal(item, what, budget) for item in values)


def ordered(a: Any, b: Any) -> int:
    """-1, 0 or 1; only numbers and texts have an order."""
    numbers = isinstance(a, _SCALARS) and isinstance(b, _SCALARS)
    if not numbers and not (isinstance(a, str) and isinstance(b, str)):
        raise TemplateError(f"{_kind(a)} and {_kind(b)} have no order")
    return int(a > b) - int(a < b)


# --- functions


def _range(budget: Budget, *bounds: Any) -> range:
    result = range(*(whole(bound, -MAX_INTEGER, MAX_INTEGER) for bound in bounds))
    if len(result) > MAX_LIST:
        raise TemplateError(f"range has more than {MAX_LIST} numbers")
    return result


def _namespace(budget: Budget, *tables: Any, **values: Any) -> Namespace:
    names = _dict(budget, *tables, **values)
    if any(isinstance(name, str) and name.startswith("_") for name in names):
        raise TemplateError("a namespace has no names that start with _")
    return Namespace(names)


def _dict(budget: Budget, *tables: Any, **values: Any) -> dict[Any, Any]:
    table: dict[Any, Any] = {}
    for source in tables:
        entries: Iterable[Any] = (
            source.items() if isinstance(source, dict) else items_of(source, budget)
        )
        table |= {scalar(key): value for key, value in entries}
    budget.listed(len(table) + len(values))
    return table | values


def _raise(budget: Budget, message: Any = "") -> None:
    raise InputError(
        f"The model's chat template refuses this conversation: {to_text(message, budget)}"[:500]
    )


_DATE = re.compile(r"(?:%-?[A-Za-z%]|[^%])*")


def _strftime_now(budget: Budget, form: Any) -> str:
    if len(text_of(form)) > 200 or not _DATE.fullmatch(form):
        raise TemplateError(f"the date format {form!r:.40} is not understood")
    return datetime.datetime.now().strftime(form)


FUNCTIONS: dict[str, Function] = {
    "range": _range,
    "namespace": _namespace,
    "dict": _dict,
    "raise_exception": _raise,
    "strftime_now": _strftime_now,
}
