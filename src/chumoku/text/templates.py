"""Chat templates: Jinja's grammar, parsed by jinja2, carried out here step by step.

jinja2's sandbox stops a template from reaching into Python, but not from filling the memory or
from running for ever ({{ 'a' * 300000000 }}, nested loops). Here nothing of Python is in reach,
every node costs a step, every string is measured before it is made, and text that came from
messages stays marked (marked.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from chumoku.errors import TokenizerError
from chumoku.text import marked
from chumoku.text import template_builtins as builtins
from chumoku.text.template_values import (
    MAX_STRING,
    Budget,
    Method,
    Namespace,
    TemplateError,
    Undefined,
    equal,
    to_text,
)

MAX_TEMPLATE = 2**17
STEPS, MEMORY = 250_000, 48 * 2**20
MAX_CALLS = 40


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} marks what an assistant says; it prints its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Break(Exception):  # noqa: N818
    pass


class _Continue(Exception):  # noqa: N818
    pass


@dataclass
class Scope:
    """Names in reach: those of this block, then of those around it."""

    names: dict[str, Any]
    parent: Scope | None = None

    def find(self, name: str) -> Any:
        scope: Scope | None = self
        while scope is not None:
            if name in scope.names:
                return scope.names[name]
            scope = scope.parent
        return builtins.FUNCTIONS.get(name, Undefined(name))


@dataclass(frozen=True)
class Macro:
    name: str
    node: nodes.Macro | nodes.CallBlock
    scope: Scope


@dataclass
class Loop:
    """The variable `loop`."""

    items: list[Any]
    index0: int = 0
    depth0: int = 0
    last_value: list[Any] = field(default_factory=list)

    def get(self, name: str) -> Any:
        count, place = len(self.items), self.index0
        table: dict[str, Any] = {
            "index0": place,
            "index": place + 1,
            "revindex": count - place,
            "revindex0": count - place - 1,
            "first": place == 0,
            "last": place == count - 1,
            "length": count,
            "depth": self.depth0 + 1,
            "depth0": self.depth0,
        }
        if name == "previtem" and place > 0:
            return self.items[place - 1]
        if name == "nextitem" and place + 1 < count:
            return self.items[place + 1]
        if name in ("cycle", "changed"):
            return Method(self, name)
        return table.get(name, Undefined(name))


@lru_cache(maxsize=16)
def parse(template: str) -> nodes.Template:
    """The syntax tree of a chat template. Raises TokenizerError with the line."""
    if len(template) > MAX_TEMPLATE:
        raise TokenizerError(f"The chat template has {len(template)} characters")
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    try:
        return environment.parse(template)
    except jinja2.TemplateSyntaxError as error:
        raise TokenizerError(
            f"The chat template is not valid: {error.message}", where=f"line {error.lineno}"
        ) from None
    except (RecursionError, ValueError, OverflowError) as error:
        raise TokenizerError(f"The chat template is not valid: {error}"[:200]) from None


def render(template: str, variables: Mapping[str, Any], *, size: int = 0) -> str:
    """The text that a template makes of these variables, with a user's parts marked.

    size: characters that go in, which long conversations may use in proportion.
    Raises TokenizerError where the template is wrong or exceeds its budget, InputError where it
    refuses the conversation.
    """
    tree = parse(template)
    budget = Budget(STEPS + size, MEMORY + 32 * size, max(MAX_STRING, 2 * size))
    renderer = Renderer(budget)
    out: list[str] = []
    try:
        renderer.run(tree.body, Scope(dict(variables)), out)
        return marked.concat(out)
    except TemplateError as fault:
        problem: object = fault
    except (_Break, _Continue):
        problem = "break or continue outside a loop"
    except RecursionError:
        problem = "it is nested too deeply"
    except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        problem = f"{type(error).__name__}: {error}"
    raise TokenizerError(
        f"The chat template fails: {problem}"[:300], where=f"chat template, line {renderer.line}"
    )


class Renderer:
    """Carries out a syntax tree within a budget."""

    def __init__(self, budget: Budget) -> None:
        self.budget, self.line, self.calls, self.printed = budget, 1, 0, 0
        self.statements: dict[type, Callable[[Any, Scope, list[str]], None]] = {
            nodes.Output: self._output,
            nodes.If: self._if,
            nodes.For: self._for,
            nodes.Assign: self._assign,
            nodes.AssignBlock: self._assign_block,
            nodes.Macro: self._macro,
            nodes.CallBlock: self._call_block,
            nodes.FilterBlock: self._filter_block,
            nodes.With: self._with,
            nodes.Scope: lambda node, scope, out: self.run(node.body, Scope({}, scope), out),
            nodes.Break: self._break,
            nodes.Continue: self._continue,
        }
        self.expressions: dict[type, Callable[[Any, Scope], Any]] = {
            nodes.Const: lambda node, scope: node.value,
            nodes.TemplateData: lambda node, scope: node.data,
            nodes.Name: lambda node, scope: scope.find(node.name),
            nodes.List: lambda node, scope: self._values(node.items, scope),
            nodes.Tuple: lambda node, scope: tuple(self._values(node.items, scope)),
            nodes.Dict: self._dict,
            nodes.Getattr: lambda node, scope: self.attribute(
                self.value(node.node, scope), node.attr
            ),
            nodes.Getitem: self._item,
            nodes.Call: self._call,
            nodes.Filter: lambda n, scope: self._filter(n, self.value(n.node, scope), scope),
            nodes.Test: self._test,
            nodes.CondExpr: self._choice,
            nodes.And: lambda n, scope: self.value(n.left, scope) and self.value(n.right, scope),
            nodes.Or: lambda n, scope: self.value(n.left, scope) or self.value(n.right, scope),
            nodes.Not: lambda node, scope: not self.value(node.node, scope),
            nodes.Neg: lambda node, scope: -self._number(node.node, scope),
            nodes.Pos: lambda node, scope: +self._number(node.node, scope),
            nodes.Compare: self._compare,
            nodes.Concat: self._concat,
            **dict.fromkeys((nodes.Add, nodes.Sub, nodes.Mul, nodes.Div), self._arithmetic),
            **dict.fromkeys((nodes.FloorDiv, nodes.Mod, nodes.Pow), self._arithmetic),
        }

    # --- statements

    def run(self, body: Sequence[nodes.Node], scope: Scope, out: list[str]) -> None:
        for node in body:
            self.budget.spend(1)
            self.line = node.lineno
            statement = self.statements.get(type(node))
            if statement is None:
                raise TemplateError(f"{type(node).__name__} is not part of chat templates")
            statement(node, scope, out)

    def value(self, node: nodes.Node, scope: Scope) -> Any:
        self.budget.spend(1)
        self.line = node.lineno or self.line
        expression = self.expressions.get(type(node))
        if expression is None:
            raise TemplateError(f"{type(node).__name__} is not part of chat templates")
        return expression(node, scope)

    def _text(self, body: Sequence[nodes.Node], scope: Scope) -> str:
        """What a body prints, as a value. It does not count as output of the whole."""
        before, out = self.printed, list[str]()
        self.run(body, scope, out)
        self.printed = before
        self.budget.room(sum(map(len, out)))
        return self.budget.made(marked.concat(out))

    def _output(self, node: nodes.Output, scope: Scope, out: list[str]) -> None:
        for part in node.nodes:
            text = to_text(self.value(part, scope), self.budget)
            self.printed += len(text)
            self.budget.room(self.printed) if self.printed > self.budget.longest else None
            out.append(text)

    def _if(self, node: nodes.If, scope: Scope, out: list[str]) -> None:
        for branch in (node, *node.elif_):
            if self.value(branch.test, scope):
                return self.run(branch.body, scope, out)
        self.run(node.else_, scope, out)

    def _for(self, node: nodes.For, scope: Scope, out: list[str]) -> None:
        if node.recursive:
            raise TemplateError("recursive loops are not supported")
        items = builtins.items_of(self.value(node.iter, scope), self.budget)
        if node.test is not None:
            items = [
                item for item in items if self.value(node.test, self._bound(node, item, scope))
            ]
        around = scope.find("loop")
        loop = Loop(items, depth0=around.depth0 + 1 if isinstance(around, Loop) else 0)
        for place, item in enumerate(items):
            self.budget.spend(1)
            loop.index0 = place
            inner = self._bound(node, item, scope)
            inner.names["loop"] = loop
            try:
                self.run(node.body, inner, out)
            except _Break:
                break
            except _Continue:
                continue
        if not items:
            self.run(node.else_, scope, out)

    def _bound(self, node: nodes.For, item: Any, scope: Scope) -> Scope:
        inner = Scope({}, scope)
        self._store(node.target, item, inner)
        return inner

    def _store(self, target: nodes.Node, value: Any, scope: Scope) -> None:
        if isinstance(target, nodes.Name):
            scope.names[target.name] = value
        elif isinstance(target, nodes.NSRef):
            space = scope.find(target.name)
            if not isinstance(space, Namespace) or target.attr.startswith("_"):
                raise TemplateError(f"{target.name}.{target.attr} cannot be set")
            space.values[target.attr] = value
        elif isinstance(target, nodes.Tuple):
            values = builtins.items_of(value, self.budget)
            if len(values) != len(target.items):
                raise TemplateError(f"{len(values)} values for {len(target.items)} names")
            for part, item in zip(target.items, values, strict=True):
                self._store(part, item, scope)
        else:
            raise TemplateError(f"{type(target).__name__} cannot be set")

    def _assign(self, node: nodes.Assign, scope: Scope, out: list[str]) -> None:
        self._store(node.target, self.value(node.node, scope), scope)

    def _assign_block(self, node: nodes.AssignBlock, scope: Scope, out: list[str]) -> None:
        value: Any = self._text(node.body, Scope({}, scope))
        if node.filter is not None:
            value = self._filter_chain(node.filter, value, scope)
        self._store(node.target, value, scope)

    def _macro(self, node: nodes.Macro, scope: Scope, out: list[str]) -> None:
        scope.names[node.name] = Macro(node.name, node, scope)

    def _call_block(self, node: nodes.CallBlock, scope: Scope, out: list[str]) -> None:
        caller = Macro("caller", node, scope)
        out.append(to_text(self._called(node.call, scope, {"caller": caller}), self.budget))
        self.printed += len(out[-1])

    def _filter_block(self, node: nodes.FilterBlock, scope: Scope, out: list[str]) -> None:
        text = self._text(node.body, Scope({}, scope))
        out.append(to_text(self._filter_chain(node.filter, text, scope), self.budget))
        self.printed += len(out[-1])

    def _with(self, node: nodes.With, scope: Scope, out: list[str]) -> None:
        inner = Scope({}, scope)
        for target, value in zip(node.targets, node.values, strict=True):
            self._store(target, self.value(value, scope), inner)
        self.run(node.body, inner, out)

    def _break(self, node: nodes.Node, scope: Scope, out: list[str]) -> None:
        raise _Break

    def _continue(self, node: nodes.Node, scope: Scope, out: list[str]) -> None:
        raise _Continue

    # --- expressions

    def _values(self, parts: Sequence[nodes.Node], scope: Scope) -> list[Any]:
        self.budget.listed(len(parts))
        return [self.value(part, scope) for part in parts]

    def _dict(self, node: nodes.Dict, scope: Scope) -> dict[Any, Any]:
        self.budget.listed(len(node.items))
        return {
            builtins.scalar(self.value(pair.key, scope)): self.value(pair.value, scope)
            for pair in node.items
        }

    def attribute(self, owner: Any, name: str) -> Any:
        """owner.name: a method, else a key. No attribute of any Python object."""
        builtins.defined(owner)
        if isinstance(owner, Loop):
            return owner.get(name)
        if isinstance(owner, Namespace):
            return owner.values.get(name, Undefined(name))
        bound = builtins.method(owner, name)
        if bound is not None:
            return bound
        return owner.get(name, Undefined(name)) if isinstance(owner, dict) else Undefined(name)

    def _item(self, node: nodes.Getitem, scope: Scope) -> Any:
        owner = builtins.defined(self.value(node.node, scope))
        if isinstance(node.arg, nodes.Slice):
            return self._slice(owner, node.arg, scope)
        key = self.value(node.arg, scope)
        if isinstance(owner, dict):
            found = owner.get(builtins.scalar(key), None)
            if found is not None or key in owner:
                return found
        elif isinstance(owner, list | tuple | range | str) and isinstance(key, int):
            if not -len(owner) <= key < len(owner):
                return Undefined(f"entry {key}")
            place = key % len(owner)
            return marked.cut(owner, place, place + 1) if isinstance(owner, str) else owner[key]
        return self.attribute(owner, key) if isinstance(key, str) else Undefined("entry")

    def _slice(self, owner: Any, node: nodes.Slice, scope: Scope) -> Any:
        parts = (node.start, node.stop, node.step)
        bounds = [None if part is None else self.value(part, scope) for part in parts]
        if not isinstance(owner, str | list | tuple | range):
            raise TemplateError(f"{type(owner).__name__} cannot be sliced")
        where = slice(*(None if b is None else builtins.whole(b, -(2**62), 2**62) for b in bounds))
        start, stop, step = where.indices(len(owner))
        if isinstance(owner, str):
            if step == 1:
                return self.budget.made(marked.cut(owner, start, max(start, stop)))
            return self.budget.made(marked.mark_if(str.__getitem__(owner, where), owner))
        self.budget.listed(len(range(start, stop, step)))
        return list(owner[where]) if isinstance(owner, list | range) else owner[where]

    def _number(self, node: nodes.Node, scope: Scope) -> Any:
        value = self.value(node, scope)
        if not isinstance(value, int | float):
            raise TemplateError(f"a number is needed, not {type(value).__name__}")
        return value

    def _arithmetic(self, node: nodes.BinExpr, scope: Scope) -> Any:
        left = builtins.defined(self.value(node.left, scope))
        right = builtins.defined(self.value(node.right, scope))
        kind = type(node)
        if isinstance(left, int | float) and isinstance(right, int | float):
            return builtins.number(_calculate(kind, left, right))
        if kind is nodes.Add and isinstance(left, str) and isinstance(right, str):
            self.budget.room(len(left) + len(right))
            return self.budget.made(marked.concat([left, right]))
        if kind is nodes.Add and type(left) is type(right) and isinstance(left, list | tuple):
            self.budget.listed(len(left) + len(right))
            return left + right
        if kind is nodes.Mul and isinstance(left, int):
            left, right = right, left
        if kind is nodes.Mul and isinstance(right, int) and isinstance(left, str | list | tuple):
            return self._repeat(left, max(0, right))
        if kind is nodes.Mod and isinstance(left, str):
            return builtins.percent(self.budget, left, right)
        names = f"{type(left).__name__} and {type(right).__name__}"
        raise TemplateError(f"{kind.__name__} does not go with {names}")

    def _repeat(self, value: Any, count: int) -> Any:
        if isinstance(value, str):
            self.budget.room(len(value) * count)
            return self.budget.made(marked.mark_if(str.__str__(value) * count, value))
        self.budget.listed(len(value) * count)
        return value * count

    def _concat(self, node: nodes.Concat, scope: Scope) -> str:
        parts = [to_text(self.value(part, scope), self.budget) for part in node.nodes]
        self.budget.room(sum(map(len, parts)))
        return self.budget.made(marked.concat(parts))

    def _compare(self, node: nodes.Compare, scope: Scope) -> bool:
        left = self.value(node.expr, scope)
        for operand in node.ops:
            right = self.value(operand.expr, scope)
            if not self._holds(operand.op, left, right):
                return False
            left = right
        return True

    def _holds(self, operator: str, left: Any, right: Any) -> bool:
        if operator in ("eq", "ne"):
            return equal(left, right, self.budget) == (operator == "eq")
        if operator in ("in", "notin"):
            return builtins.contains(right, left, self.budget) == (operator == "in")
        order = builtins.ordered(left, right)
        return {"lt": order < 0, "lteq": order <= 0, "gt": order > 0, "gteq": order >= 0}[operator]

    def _choice(self, node: nodes.CondExpr, scope: Scope) -> Any:
        if self.value(node.test, scope):
            return self.value(node.expr1, scope)
        return Undefined("else") if node.expr2 is None else self.value(node.expr2, scope)

    # --- filters, tests, calls

    def _arguments(self, node: Any, scope: Scope) -> tuple[list[Any], dict[str, Any]]:
        values = [self.value(part, scope) for part in node.args]
        named = {part.key: self.value(part.value, scope) for part in node.kwargs}
        if node.dyn_args is not None:
            values += builtins.items_of(self.value(node.dyn_args, scope), self.budget)
        if node.dyn_kwargs is not None:
            table = self.value(node.dyn_kwargs, scope)
            if not isinstance(table, dict):
                raise TemplateError("** needs a mapping")
            named |= {str(key): value for key, value in table.items()}
        return values, named

    def _filter(self, node: nodes.Filter, value: Any, scope: Scope) -> Any:
        arguments, named = self._arguments(node, scope)
        if node.name in ("map", "select", "reject", "selectattr", "rejectattr"):
            return self._over_items(node.name, value, arguments, named)
        return self._apply(node.name, value, arguments, named)

    def _apply(self, name: str, value: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
        function = builtins.FILTERS.get(name)
        if function is None:
            raise TemplateError(f"there is no filter {name!r:.40}")
        return function(self.budget, value, *arguments, **named)

    def _filter_chain(self, node: nodes.Filter, value: Any, scope: Scope) -> Any:
        if isinstance(node.node, nodes.Filter):
            value = self._filter_chain(node.node, value, scope)
        return self._filter(node, value, scope)

    def _over_items(
        self, name: str, value: Any, arguments: list[Any], named: dict[str, Any]
    ) -> list[Any]:
        items = builtins.items_of(value, self.budget)
        if name == "map":
            if "attribute" in named:
                key, other = named["attribute"], named.get("default")
                found = [builtins.lookup(item, key) for item in items]
                return [
                    other if isinstance(f, Undefined) and "default" in named else f for f in found
                ]
            inner, *rest = arguments
            return [self._apply(inner, item, rest, named) for item in items]
        key = arguments.pop(0) if name.endswith("attr") else None
        test = arguments.pop(0) if arguments else None
        wanted = name.startswith("select")
        kept = []
        for item in items:
            subject = item if key is None else builtins.lookup(item, key)
            holds = bool(subject) if test is None else self._ask(test, subject, arguments)
            if holds == wanted:
                kept.append(item)
        return kept

    def _ask(self, name: str, value: Any, arguments: Sequence[Any]) -> bool:
        test = builtins.TESTS.get(name)
        if test is None:
            raise TemplateError(f"there is no test {name!r:.40}")
        self.budget.spend(1)
        return bool(test(self.budget, value, *arguments))

    def _test(self, node: nodes.Test, scope: Scope) -> bool:
        arguments, _ = self._arguments(node, scope)
        return self._ask(node.name, self.value(node.node, scope), arguments)

    def _call(self, node: nodes.Call, scope: Scope) -> Any:
        return self._called(node, scope, {})

    def _called(self, node: nodes.Call, scope: Scope, extra: Mapping[str, Any]) -> Any:
        function = self.value(node.node, scope)
        values, named = self._arguments(node, scope)
        if isinstance(function, Macro):
            return self._expand(function, values, named | dict(extra))
        if isinstance(function, Method):
            if isinstance(function.owner, Loop):
                return self._loop_method(function, values)
            return builtins.call_method(function, self.budget, values, named)
        if callable(function) and function in builtins.FUNCTIONS.values():
            return function(self.budget, *values, **named)
        builtins.defined(function)
        raise TemplateError(f"{type(function).__name__} cannot be called")

    def _loop_method(self, method: Method, values: list[Any]) -> Any:
        loop: Loop = method.owner
        if method.name == "cycle":
            return values[loop.index0 % len(values)]
        same = bool(loop.last_value) and equal(loop.last_value, values, self.budget)
        loop.last_value = values
        return not same

    def _expand(self, macro: Macro, values: list[Any], named: dict[str, Any]) -> str:
        """Call a macro: its parameters, then its body's text."""
        self.calls += 1
        if self.calls > MAX_CALLS:
            raise TemplateError("macros call each other too deeply")
        node, inner = macro.node, Scope({}, macro.scope)
        names = [argument.name for argument in node.args]
        defaults = dict(zip(names[len(names) - len(node.defaults) :], node.defaults, strict=True))
        for place, name in enumerate(names):
            if place < len(values):
                inner.names[name] = values[place]
            elif name in named:
                inner.names[name] = named.pop(name)
            elif name in defaults:
                inner.names[name] = self.value(defaults[name], inner)
            else:
                inner.names[name] = Undefined(name)
        inner.names |= {"varargs": tuple(values[len(names) :]), "kwargs": named}
        inner.names |= {"caller": named["caller"]} if "caller" in named else {}
        text = self._text(node.body, inner)
        self.calls -= 1
        return text


def _calculate(kind: type, left: Any, right: Any) -> Any:
    if kind is nodes.Pow:
        if abs(right) > 64 or abs(left) > 2**32:
            raise TemplateError("a power grows too large")
        return left**right
    table: dict[type, Callable[[], Any]] = {
        nodes.Add: lambda: left + right,
        nodes.Sub: lambda: left - right,
        nodes.Mul: lambda: left * right,
        nodes.Div: lambda: left / right,
        nodes.FloorDiv: lambda: left // right,
        nodes.Mod: lambda: left % right,
    }
    return table[kind]()
