"""What every parity test needs: fair weights, a second converter of names, and the comparisons.

The conversion here is written from the meaning of a NameTable alone, not from loading.py, so that
each is an oracle for the other. A comparison takes two functions, one that runs the published
model and one that runs ours; each returns a tensor or a tuple of tensors, cut to the positions
where there is a token. `check_all` is the whole list for one pair.

    pair = make_pair(BertForMaskedLM(config), bert, "masked-lm", seed=3)
    check_all(pair, lambda m: m(ids).logits, lambda m: m(ids), swaps=[("…query.weight", "…")])
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chumoku.layers.attention import Batch
from chumoku.layers.cache import BlockCache, Cache, ContiguousCache
from chumoku.layers.taps import trace

Outputs = Tensor | tuple[Tensor, ...]
Run = Callable[[Any], Outputs]
NORM = STD_BIAS = 0.1**0.5  # DESIGN's N(mean, variance)


def difference(ours: Tensor, theirs: Tensor) -> float:
    """max |a - b| / max(1, max |b|); infinite where shapes differ or a number is not one."""
    if ours.shape != theirs.shape:
        return float("inf")
    gap = (ours.detach().double() - theirs.detach().double()).abs().max()
    scale = theirs.detach().double().abs().max().clamp(min=1)
    return float("inf") if gap.isnan() else float(gap / scale)


def sampler(*seed: object) -> random.Random:
    """A generator of odd sizes that is the same on every machine."""
    return random.Random("/".join(map(str, seed)))


@torch.no_grad()
def randomise(model: nn.Module, seed: int, buffers: Iterable[str] = ()) -> None:
    """Matrices N(0, 1/fan_in), norms 1 + N(0, 0.1), biases N(0, 0.1), tables of vectors N(0, 1).

    buffers: names of buffers that hold something learned (Marian's final_logits_bias).
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, std: float, mean: float = 0.0) -> None:
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        tensor.copy_(values * std + mean)

    seen: set[int] = set()
    for module in model.modules():
        kind = type(module).__name__
        for name, tensor in module.named_parameters(recurse=False):
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            if "Norm" in kind and name == "weight":
                draw(tensor, NORM, 1.0)
            elif name.endswith("bias"):
                draw(tensor, STD_BIAS)
            elif isinstance(module, nn.Linear):
                draw(tensor, tensor.shape[1] ** -0.5)
            elif kind == "Conv1D":
                draw(tensor, tensor.shape[0] ** -0.5)
            elif isinstance(module, nn.Conv2d):
                draw(tensor, tensor[0].numel() ** -0.5)
            else:  # embeddings, class tokens, learned positions
                draw(tensor, 1.0)
    named = dict(model.named_buffers())
    for name in buffers:
        draw(named[name], STD_BIAS)


# ---- names ----


def to_ours(published: Mapping[str, Tensor], table: Any, ours: nn.Module) -> dict[str, Tensor]:
    """Published tensors under our names and in our layout; fails on anything missing or extra."""
    shapes = {name: tensor.shape for name, tensor in ours.state_dict().items()}
    found: dict[str, Tensor] = {}
    for name, tensor in published.items():
        match = table.find(name)
        if match is None:
            assert table.is_ignored(name), f"no rule for {name}"
            continue
        for target, part in zip(match.ours, _split(tensor, match, shapes), strict=True):
            assert target in shapes, f"{name} -> {target}, which this model does not have"
            assert target not in found or torch.equal(found[target], part), f"two sources: {target}"
            found[target] = part
    missing = set(shapes) - set(found)
    assert not missing, f"no published tensor for {sorted(missing)}"
    return found


def _split(tensor: Tensor, match: Any, shapes: Mapping[str, torch.Size]) -> list[Tensor]:
    if match.rule.transposed and tensor.ndim == 2:
        tensor = tensor.T
    if match.rule.shape is not None:
        tensor = tensor.reshape(shapes[match.ours[0]])
    if match.rule.pairs:
        tensor = torch.stack([_halves(head) for head in tensor.chunk(match.rule.pairs)]).flatten(
            0, 1
        )
    if len(match.ours) == 1:
        return [tensor]
    return list(tensor.split([shapes[name][0] for name in match.ours]))


def _halves(rows: Tensor) -> Tensor:
    return torch.cat((rows[0::2], rows[1::2]))


def _pairs(rows: Tensor) -> Tensor:
    first, second = rows.chunk(2)
    return torch.stack((first, second), dim=1).flatten(0, 1)


def to_theirs(ours: Mapping[str, Tensor], table: Any, theirs: nn.Module) -> dict[str, Tensor]:
    """The inverse, for the keys of the published model; buffers that hold nothing are left out."""
    published: dict[str, Tensor] = {}
    for name, like in theirs.state_dict().items():
        match = table.find(name)
        if match is None:
            continue
        parts = [ours[target] for target in match.ours]
        if match.rule.pairs:
            heads = [p.chunk(match.rule.pairs) for p in parts]
            parts = [torch.cat([_pairs(head) for head in h]) for h in heads]
        tensor = torch.cat(parts) if len(parts) > 1 else parts[0]
        if match.rule.shape is not None:
            tensor = tensor.reshape(like.shape)
        published[name] = tensor.T if match.rule.transposed and tensor.ndim == 2 else tensor
    return published


@dataclass(frozen=True)
class Pair:
    """The same weights twice: the published implementation, and ours."""

    theirs: Any
    ours: Any
    table: Any
    head: str


def make_pair(
    theirs: nn.Module,
    module: Any,
    head: str,
    *,
    seed: int,
    layout: str = "hub",
    buffers: Iterable[str] = (),
) -> Pair:
    """Randomise `theirs`, read its config as a config.json, load its tensors, check both ways."""
    randomise(theirs, seed, buffers)
    config = module.read_config(theirs.config.to_dict())  # type: ignore[operator, union-attr]
    ours = module.Model(config, head)
    pair = Pair(theirs.eval(), ours.eval(), module.names(config, head, layout), head)
    ours.load_state_dict(to_ours(theirs.state_dict(), pair.table, ours))
    check_round_trip(pair)
    again = module.read_config(module.write_config(config, head))
    assert again == config, "the config does not survive writing and reading"
    return pair


def check_round_trip(pair: Pair) -> None:
    """Every published tensor comes back bit for bit, and each of our names is published once."""
    theirs = pair.theirs.state_dict()
    for name, tensor in to_theirs(pair.ours.state_dict(), pair.table, pair.theirs).items():
        assert torch.equal(tensor, theirs[name]), f"{name} changed on its way there and back"
    for name in pair.ours.state_dict():
        rule = pair.table.publish(name)
        assert rule is not None, f"{name} has no published name"
        bare = pair.table.publish(name, prefixed=False)[1]
        assert rule[1] in theirs or bare in theirs, f"{name} is published as unknown {rule[1]}"
        assert name == pair.table.find(rule[1]).ours[rule[2]], f"{rule[1]} does not lead to {name}"


# ---- comparisons ----


class Lifted(TorchFunctionMode):
    """Runs the reference in float64 throughout: its casts of float64 down to float32 do nothing.

    Integers may still become float32 (T5's buckets depend on that rounding); products of matrices
    are taken in float64, which also makes the angles of rotary positions exact.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        double = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64
        if double and name in ("to", "type", "float", "softmax"):
            if name == "float":
                return args[0]
            args = tuple(torch.float64 if a is torch.float32 else a for a in args)
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
        if name in ("matmul", "__matmul__"):
            args = tuple(a.double() if a.is_floating_point() else a for a in args)
        return func(*args, **kwargs)


def _tuple(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def compare(ours: Outputs, theirs: Outputs, limit: float, what: str = "") -> None:
    for n, (a, b) in enumerate(zip(_tuple(ours), _tuple(theirs), strict=True)):
        gap = difference(a, b)
        assert gap <= limit, f"{what} output {n} differs by {gap:.3g}, allowed {limit:g}"


@torch.no_grad()
def check_float32(pair: Pair, theirs: Run, ours: Run, limit: float = 1e-5) -> None:
    compare(ours(pair.ours), theirs(pair.theirs), limit, "float32")


@torch.no_grad()
def check_float64(pair: Pair, theirs: Run, ours: Run, limit: float = 1e-10) -> None:
    reference = copy.deepcopy(pair.theirs).double()
    with Lifted():
        expected = theirs(reference)
    compare(ours(copy.deepcopy(pair.ours).double()), expected, limit, "float64")


def check_gradients(pair: Pair, theirs: Run, ours: Run, limit: float = 1e-4) -> None:
    """Every parameter's gradient of the same random linear function of the outputs."""
    for model, run in ((pair.theirs, theirs), (pair.ours, ours)):
        model.zero_grad(set_to_none=True)
        generator = torch.Generator().manual_seed(5)
        outputs = _tuple(run(model))
        sum((o * torch.randn(o.shape, generator=generator)).mean() for o in outputs).backward()  # type: ignore[union-attr]
    expected = to_ours(_gradients(pair.theirs), pair.table, pair.ours)
    for name, gradient in _gradients(pair.ours).items():
        gap = difference(gradient, expected[name])
        assert gap <= limit, f"gradient of {name} differs by {gap:.3g}, allowed {limit:g}"
    for model in (pair.theirs, pair.ours):
        model.zero_grad(set_to_none=True)


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Zeros for what has no gradient: unused parameters, and learned buffers."""
    found = dict(model.named_parameters(remove_duplicate=False))
    state = model.state_dict(keep_vars=True)
    grads = {name: found[name].grad if name in found else None for name in state}
    return {n: torch.zeros_like(state[n]) if g is None else g for n, g in grads.items()}


@torch.no_grad()
def check_training(pair: Pair, theirs: Run, ours: Run, limit: float = 1e-5) -> None:
    """With one seed, dropout falls on the same values; and it does fall."""
    results: list[Outputs] = []
    for model, run in ((pair.ours, ours), (pair.theirs, theirs)):
        with eager(model), training(model):
            torch.manual_seed(11)
            results.append(run(model))
    compare(results[0], results[1], limit, "training mode")
    still = ours(pair.ours)
    assert difference(_tuple(results[0])[0], _tuple(still)[0]) > 1e-3, "dropout did nothing"


@contextlib.contextmanager
def training(model: nn.Module) -> Iterator[None]:
    model.train()
    try:
        yield
    finally:
        model.eval()


@contextlib.contextmanager
def eager(model: Any) -> Iterator[None]:
    """The published model's written-out attention; our own model has no such switch."""
    config = model.config
    if not hasattr(config, "_attn_implementation"):
        yield
        return
    before = config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


@torch.no_grad()
def check_attention(
    pair: Pair,
    theirs: Callable[[Any], Sequence[Tensor]],
    ours: Run,
    pattern: str = "blocks.*.attention.weights",
    limit: float = 1e-5,
    rows_BT: Tensor | None = None,
) -> None:
    """Traced weights equal the published ones (`theirs` asks for output_attentions=True).

    rows_BT: the query positions that count (None: all).
    """
    with trace(pair.ours, pattern) as seen:
        ours(pair.ours)
    with eager(pair.theirs):
        expected = theirs(pair.theirs)
    assert len(seen) == len(expected) > 0
    for (name, weights), reference in zip(seen.items(), expected, strict=True):
        a, b = weights, reference
        if rows_BT is not None:
            a, b = a.transpose(1, 2)[rows_BT], b.transpose(1, 2)[rows_BT]
        assert difference(a, b) <= limit, f"{name} differs by {difference(a, b):.3g}"


@torch.no_grad()
def check_wrong_mapping(
    pair: Pair, theirs: Run, ours: Run, swaps: Iterable[tuple[str, str]], at_least: float = 1e-3
) -> None:
    """Negative control: with two of our tensors exchanged, the comparison must fail."""
    expected = _tuple(theirs(pair.theirs))
    for first, second in swaps:
        wrong = copy.deepcopy(pair.ours)
        state = {name: tensor.clone() for name, tensor in wrong.state_dict().items()}
        assert state[first].shape == state[second].shape
        state[first], state[second] = state[second], state[first]
        wrong.load_state_dict(state)
        got = _tuple(ours(wrong))
        gap = max(difference(a, b) for a, b in zip(got, expected, strict=True))
        assert gap > at_least, f"{first} and {second} exchanged went unnoticed ({gap:.3g})"


def check_all(
    pair: Pair, theirs: Run, ours: Run, swaps: Iterable[tuple[str, str]], *, dropout: bool = True
) -> None:
    """Everything that holds for every architecture and head."""
    check_float32(pair, theirs, ours)
    check_float64(pair, theirs, ours)
    check_gradients(pair, theirs, ours)
    if dropout:
        check_training(pair, theirs, ours)
    check_wrong_mapping(pair, theirs, ours, swaps)


# ---- what must change nothing ----


@torch.no_grad()
def check_caches(ours: Any, ids_BT: Tensor, mask_BT: Tensor | None = None) -> None:
    """Decoder-only: both caches, token by token and in chunks, equal the uncached forward."""
    T = ids_BT.shape[1]
    real = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT
    expected = ours(ids_BT, mask_BT)[real]
    cuts = ([*range(T + 1)], [0, T // 2, T // 2 + 1, T], [0, T])
    for make in (lambda: ContiguousCache(capacity=3), lambda: BlockCache(block=3)):
        for points in cuts:
            cache: Cache = make()
            parts = []
            for start, end in itertools.pairwise(points):
                mask = None if mask_BT is None else mask_BT[:, :end]
                parts.append(ours(ids_BT[:, start:end], mask, batch=Batch(cache=cache)))
                cache.advance(end - start)
            compare(torch.cat(parts, 1)[real], expected, 1e-5, f"{type(cache).__name__} {points}")


@torch.no_grad()
def check_padding(
    ours: Any, ids_BT: Tensor, *, pad: int = 0, sides: Sequence[str] = ("left", "right")
) -> None:
    """A row alone equals the same row in a batch with other rows, padded on either side."""
    T = ids_BT.shape[1]
    lengths = [T, max(T - 4, 1), max(T // 2, 1)]
    rows = [ids_BT[n % len(ids_BT), :length] for n, length in enumerate(lengths)]
    for side in sides:
        ids = torch.full((len(rows), T + 2), pad, dtype=ids_BT.dtype)
        mask = torch.zeros_like(ids, dtype=torch.bool)
        for n, row in enumerate(rows):
            place = slice(T + 2 - len(row), None) if side == "left" else slice(0, len(row))
            ids[n, place], mask[n, place] = row, True
        together = ours(ids, mask)
        for n, row in enumerate(rows):
            alone = ours(row[None])
            compare(together[n][mask[n]], alone[0], 1e-5, f"row {n} padded on the {side}")


@torch.no_grad()
def greedy(ours: Any, ids_BT: Tensor, count: int) -> Tensor:
    """The `count` most probable next tokens one after the other, with a cache: [B, count]."""
    cache = ContiguousCache(capacity=4)
    step, out = ids_BT, []
    for _ in range(count):
        logits = ours(step, batch=Batch(cache=cache))
        cache.advance(step.shape[1])
        step = logits[:, -1].argmax(-1, keepdim=True)
        out.append(step)
    return torch.cat(out, 1)
