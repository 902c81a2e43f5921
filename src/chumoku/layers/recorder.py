"""One recorder for every model: a forward pass as a graph of named values.

`record` runs a model once and writes down each operation that it meets: the primitives of ops.py
and PyTorch's own functions. Tracing, derivations and the native plan read this graph; nobody
describes a model's wiring a second time.

A value's name says where it is computed. Parameters and inputs carry their own names; a tap gives
its place ("blocks.3.attention.weights"); the output of a module without children carries that
module's path ("blocks.3.attention.query"); anything else is the path of the module whose method
computes it and the operation ("blocks.3.attention.split_heads"). Where a name is taken, ".2", ".3"
follow. Two recordings of one model give the same names.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chumoku.errors import InputError
from chumoku.layers.ops import ACTIVATIONS
from chumoku.layers.taps import Tap

PACKAGE: Final = Path(__file__).parents[1]
PRIMITIVES: Final = str(PACKAGE / "layers" / "ops.py")
SITES: Final = (str(PACKAGE / "layers"), str(PACKAGE / "models"))
COMMUTING: Final = {"radd": "add", "rmul": "mul", "iadd": "add", "imul": "mul"}


@dataclass(frozen=True)
class Ref:
    """Stands for a tensor among the arguments of a step: the value of the node of this name."""

    name: str


@dataclass(frozen=True)
class Node:
    """One value.

    kind: "input", "parameter", "constant" (a tensor that nobody computed) or "step".
    op: what computes it; function(*args, **kwargs) does, with every Ref replaced by its value.
    part: which of several results it is; None where there is one. source: file:line of the call in
    layers/ or models/. value: as computed, detached.
    """

    name: str
    kind: str
    value: Tensor
    op: str = ""
    function: Callable[..., Any] | None = None
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    part: int | None = None
    source: str = ""

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.value.shape)

    @property
    def parents(self) -> tuple[str, ...]:
        """Names of the values that it is computed from, in order of appearance."""
        found = [leaf.name for leaf in _leaves([self.args, self.kwargs]) if isinstance(leaf, Ref)]
        return tuple(dict.fromkeys(found))

    @property
    def constants(self) -> tuple[Any, ...]:
        """Arguments that are not tensors: numbers, sizes, slices."""
        return tuple(x for x in _leaves([self.args, self.kwargs]) if not isinstance(x, Ref))


@dataclass(frozen=True)
class Graph:
    """nodes in order of computation, parents first; outputs: names of the results, in order."""

    nodes: Mapping[str, Node]
    outputs: tuple[str, ...]
    result: Any


@torch.no_grad()
def record(model: nn.Module, *args: Any, **kwargs: Any) -> Graph:
    """Run model(*args, **kwargs) once, attention written out, and return what was computed.

    Raises InputError where a value is changed in place (a cache): those steps have no graph.
    """
    recorder = _Recorder(model)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    for name, tensor in _named_tensors(bound.arguments):
        recorder.leaf(name, "input", tensor)
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, Tap):
                hook = module.register_forward_hook(recorder.tap_hook(name))
                stack.callback(hook.remove)
        stack.enter_context(recorder)
        result = model(*args, **kwargs)
    return recorder.graph(result)


def replay(graph: Graph, values: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Compute every step of a graph again, from its leaves alone; `values` replaces some of them.

    The definition of a graph's completeness: without replacements all values come out the same.
    """
    done: dict[str, Tensor] = dict(values or {})
    for name, node in graph.nodes.items():
        if name in done:
            continue
        if node.function is None:
            done[name] = node.value
            continue
        args, kwargs = _mapped((node.args, dict(node.kwargs)), lambda x: _looked_up(x, done))
        out = node.function(*args, **kwargs)
        done[name] = out if node.part is None else out[node.part]
    return done


def _looked_up(leaf: Any, done: Mapping[str, Tensor]) -> Any:
    return done[leaf.name] if isinstance(leaf, Ref) else leaf


class _Recorder(TorchFunctionMode):
    """Sees every call of a torch function or primitive, but not what a primitive calls inside.

    While it runs, a Ref holds the number of a node in place of its name, which taps may change.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._nodes: list[Node] = []
        self._tapped: set[int] = set()
        self._number: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no id is used twice
        self._paths: dict[int, list[str]] = {}
        for name, module in model.named_modules(remove_duplicate=False):
            self._paths.setdefault(id(module), []).append(name)
        owned = (*model.named_parameters(), *model.named_buffers())
        self._owned = {id(tensor): name for name, tensor in owned}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        op = _op_name(func)
        if op == "dropout" and not kwargs.get("training", args[2] if len(args) > 2 else True):
            return args[0]
        _refuse_in_place(func, kwargs)
        out = func(*args, **kwargs)
        several = isinstance(out, tuple | list)
        results = list(out) if several else [out]
        if not any(isinstance(result, Tensor) for result in results):
            return out  # a shape, a size, a device: not a value
        frame = sys._getframe(1)
        name, source = self._place(frame, func, op), _call_site(frame)
        held_args, held_kwargs = _mapped((args, kwargs), self._held)
        first = Node(name, "step", results[0], op, func, held_args, held_kwargs, source=source)
        for part, result in enumerate(results):
            if isinstance(result, Tensor) and id(result) not in self._number:
                node = dataclasses.replace(first, value=result)
                if several:
                    node = dataclasses.replace(node, name=f"{name}.{part}", part=part)
                self._add(result, node)
        return out

    def leaf(self, name: str, kind: str, tensor: Tensor) -> None:
        if id(tensor) not in self._number:
            self._add(tensor, Node(name, kind, tensor))

    def tap_hook(self, name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        """The value gets the tap's name; one that has such a name already is passed on anew."""

        def hook(_module: nn.Module, _inputs: Any, value: Tensor) -> Tensor:
            number = self._number[id(value)]
            node = self._nodes[number]
            if node.kind == "step" and number not in self._tapped:
                self._tapped.add(number)
                self._nodes[number] = dataclasses.replace(node, name=name)
                return value
            with torch._C.DisableTorchFunction():
                same = value.view_as(value)
            self._tapped.add(len(self._nodes))
            held, source = (Ref(str(number)),), _call_site(sys._getframe(1))
            self._add(same, Node(name, "step", same, "tap", _same, held, source=source))
            return same

        return hook

    def graph(self, result: Any) -> Graph:
        """Leaves and taps have the first right to a name, then the steps in their order."""
        names: dict[int, str] = {}
        taken: set[str] = set()
        fixed = [n for n, node in enumerate(self._nodes) if node.kind != "step"]
        for number in dict.fromkeys((*fixed, *sorted(self._tapped), *range(len(self._nodes)))):
            base = self._nodes[number].name
            name, count = base, 1
            while name in taken:
                count += 1
                name = f"{base}.{count}"
            names[number] = name
            taken.add(name)

        def named(leaf: Any) -> Any:
            return Ref(names[int(leaf.name)]) if isinstance(leaf, Ref) else leaf

        nodes: dict[str, Node] = {}
        for number, node in enumerate(self._nodes):
            args, kwargs = _mapped((node.args, node.kwargs), named)
            nodes[names[number]] = dataclasses.replace(
                node, name=names[number], value=node.value.detach(), args=args, kwargs=kwargs
            )
        found = (self._number[id(tensor)] for _, tensor in _named_tensors({"": result}))
        return Graph(nodes, tuple(names[number] for number in found), result)

    def _add(self, tensor: Tensor, node: Node) -> None:
        self._number[id(tensor)] = len(self._nodes)
        self._nodes.append(node)
        self._alive.append(tensor)

    def _held(self, leaf: Any) -> Any:
        """A Ref in place of a tensor; one that was never seen is a parameter or a constant."""
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in self._number:
            name = self._owned.get(id(leaf))
            self.leaf(name or "constant", "parameter" if name else "constant", leaf)
        return Ref(str(self._number[id(leaf)]))

    def _place(self, frame: FrameType, func: Any, op: str) -> str:
        """Path of the module whose method runs, and the operation."""
        word = "activation" if any(func is f for f in ACTIVATIONS.values()) else op
        modules = [m for f in _frames(frame) if (m := self._module(f)) is not None]
        path = ""
        for module in reversed(modules):  # outermost first: a shared module is named by its caller
            choices = self._paths[id(module)]
            path = next((p for p in choices if p.startswith(path)), choices[0])
        if path and not any(True for _ in modules[0].children()):
            return path
        inner = next((f.f_code.co_name for f in _frames(frame) if _is_site(f)), "")
        function = "" if path or inner == "forward" else inner
        return ".".join(part for part in (path, function, word) if part)

    def _module(self, frame: FrameType) -> nn.Module | None:
        owner = frame.f_locals.get("self") if frame.f_code.co_varnames[:1] == ("self",) else None
        return owner if isinstance(owner, nn.Module) and id(owner) in self._paths else None


def _same(value: Tensor) -> Tensor:
    return value


def _op_name(func: Any) -> str:
    name = getattr(func, "__name__", str(func)).strip("_")
    return COMMUTING.get(name, name)


def _refuse_in_place(func: Any, kwargs: Mapping[str, Any]) -> None:
    name = getattr(func, "__name__", "")
    inside = name.endswith("_") and not name.endswith("__")
    if inside or name == "__setitem__" or kwargs.get("out") is not None:
        raise InputError(
            f"{name} changes a value in place, which a graph cannot show",
            advice="record without a cache",
        )


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def _is_site(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    return file.startswith(SITES) and file not in (__file__, PRIMITIVES)


def _call_site(frame: FrameType) -> str:
    """file:line, relative to the package, of the nearest call in layers/ or models/."""
    for f in _frames(frame):
        if _is_site(f):
            return f"{Path(f.f_code.co_filename).relative_to(PACKAGE).as_posix()}:{f.f_lineno}"
    return ""


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists, dicts and slices with function applied to every leaf."""
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(item, function) for item in tree)
    if isinstance(tree, dict):
        return {key: _mapped(item, function) for key, item in tree.items()}
    return function(tree)


def _leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, tuple | list):
        for item in tree:
            yield from _leaves(item)
    elif isinstance(tree, Mapping):
        for item in tree.values():
            yield from _leaves(item)
    else:
        yield tree


def _named_tensors(values: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """Tensors inside arguments: fields of a Batch by their own name, others below their owner."""
    for name, value in values.items():
        if isinstance(value, Tensor):
            yield name, value
        elif dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from _named_tensors(
                {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
            )
        elif isinstance(value, tuple | list):
            keys = getattr(value, "_fields", range(len(value)))
            yield from _named_tensors(
                {f"{name}.{k}".strip("."): v for k, v in zip(keys, value, strict=True)}
            )
        elif isinstance(value, Mapping):
            yield from _named_tensors({f"{name}.{k}": v for k, v in value.items()})
