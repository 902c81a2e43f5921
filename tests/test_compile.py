"""torch.compile takes every architecture whole while nobody watches, and changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layers.test_recorder import TINY, inputs, make
from parity.harness import difference
from torch import Tensor

from chumoku.layers.attention import Batch
from chumoku.layers.cache import ContiguousCache
from chumoku.layers.taps import tap_names, trace
from chumoku.models import architecture

PUBLISHED = {"transformer", "bert", "distilbert", "gpt2", "t5", "llama", "vit"}


def first_head(model_type: str) -> str:
    return next(iter(architecture(model_type).HEADS))


def outputs(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else [t for t in result if t is not None]


@pytest.fixture(autouse=True)
def fresh() -> None:
    torch.compiler.reset()


def test_all_seven_are_here() -> None:
    assert set(TINY) >= PUBLISHED


@torch.no_grad()
@pytest.mark.parametrize("model_type", list(TINY))
def test_one_graph_equals_the_eager_run(model_type: str) -> None:
    head = first_head(model_type)
    model = make(model_type, head)
    positional, named = inputs(model_type, head)
    expected = outputs(model(*positional, **named))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for a, b in zip(outputs(compiled(*positional, **named)), expected, strict=True):
        assert difference(a, b) < 1e-6
    # Watching afterwards: on the model, and through the compiled one's own modules.
    name = next(n for n in tap_names(model) if n.endswith("attention.weights"))
    with trace(model, name) as seen:
        watched = outputs(model(*positional, **named))
    assert abs(float(seen[name].sum(-1).max()) - 1) < 1e-5
    with trace(model, name, edit={name: torch.zeros_like}):
        edited = outputs(model(*positional, **named))
    assert max(difference(a, b) for a, b in zip(edited, expected, strict=True)) > 1e-4
    again = outputs(compiled(*positional, **named))
    for a, b, c in zip(watched, expected, again, strict=True):
        assert difference(a, b) < 1e-5
        assert difference(c, b) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_another_length_and_a_changed_weight(model_type: str) -> None:
    """A graph is of the model, not of its numbers."""
    model = make(model_type, "causal-lm")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for length in (3, 5, 9):
        ids = torch.arange(length)[None] + 2
        assert difference(compiled(ids), model(ids)) < 1e-6
    before = compiled(ids)
    model.blocks[0].feedforward.up.weight.mul_(2)
    assert difference(compiled(ids), model(ids)) < 1e-6
    assert difference(compiled(ids), before) > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["gpt2", "llama"])
def test_with_a_cache(model_type: str) -> None:
    model = make(model_type, "causal-lm")
    compiled = torch.compile(model, backend="eager")
    ids = torch.arange(7)[None] + 2
    cache, parts = ContiguousCache(capacity=8), []
    for step in ids.split([4, 1, 1, 1], dim=1):
        parts.append(compiled(step, batch=Batch(cache=cache)))
        cache.advance(step.shape[1])
    assert difference(torch.cat(parts, 1), model(ids)) < 1e-5


def test_training_through_the_compiled_model() -> None:
    model = make("llama", "causal-lm")
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    ids = torch.arange(6)[None] + 2
    gradients = []
    for run in (model, compiled):
        model.zero_grad(set_to_none=True)
        run(ids).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(difference(a, b) < 1e-6 for a, b in zip(*gradients, strict=True))
    assert max(float(g.abs().max()) for g in gradients[0]) > 1e-4
