"""Watching and editing a forward pass from outside."""

from __future__ import annotations

import pytest
import torch
from parity.harness import difference, randomise
from torch import Tensor

from chumoku.errors import InputError
from chumoku.layers.taps import tap_names, trace
from chumoku.models import llama

CONFIG = llama.Config(
    vocab_size=23,
    width=12,
    num_blocks=3,
    num_heads=4,
    num_kv_heads=2,
    head_width=6,
    feedforward_width=14,
)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


@pytest.fixture
def model() -> llama.Model:
    made = llama.Model(CONFIG, "causal-lm").eval()
    randomise(made, 4)
    return made


def test_patterns_choose_values_and_values_are_what_the_names_say(model: llama.Model) -> None:
    with trace(model, "blocks.*.attention.weights", "logits") as seen, torch.no_grad():
        logits = model(IDS)
    assert list(seen) == [f"blocks.{n}.attention.weights" for n in range(3)] + ["logits"]
    assert torch.equal(seen["logits"], logits)
    for n in range(3):
        weights = seen[f"blocks.{n}.attention.weights"]
        assert difference(weights.sum(-1), torch.ones(2, 4, 6)) < 1e-6
        assert float(weights.triu(1).abs().max()) == 0.0
    with trace(model, "*") as everything, torch.no_grad():
        model(IDS)
    assert list(everything) == sorted(tap_names(model), key=list(everything).index)
    assert set(everything) == set(tap_names(model))
    scores, weights = (everything[f"blocks.1.attention.{x}"] for x in ("scores", "weights"))
    assert difference(scores.softmax(-1), weights) < 1e-6
    assert torch.equal(
        everything["blocks.0.residual.feedforward"], everything["blocks.1.residual.input"]
    )


def test_watching_changes_nothing(model: llama.Model) -> None:
    with torch.no_grad():
        alone = model(IDS)
        with trace(model, "*"):
            watched = model(IDS)
        after = model(IDS)
    assert difference(watched, alone) < 1e-5
    assert torch.equal(after, alone)
    assert not any(m._forward_hooks for m in model.modules())


def test_an_edit_takes_the_place_of_the_value(model: llama.Model) -> None:
    name = "blocks.1.residual.attention"
    with torch.no_grad():
        with trace(model, "blocks.*.residual.*") as before:
            plain = model(IDS)
        doubled: dict[str, Tensor]
        with trace(model, "blocks.*.residual.*", edit={name: lambda x: 2 * x}) as doubled:
            edited = model(IDS)
    assert torch.equal(doubled[name], 2 * before[name])
    assert torch.equal(doubled["blocks.1.residual.input"], before["blocks.1.residual.input"])
    assert difference(doubled["blocks.2.residual.input"], before["blocks.2.residual.input"]) > 0.1
    assert difference(edited, plain) > 1e-3


def test_removing_a_head_equals_zeroing_its_columns_of_the_output(model: llama.Model) -> None:
    def without_head_2(heads_BNTH: Tensor) -> Tensor:
        heads_BNTH = heads_BNTH.clone()
        heads_BNTH[:, 2] = 0
        return heads_BNTH

    with torch.no_grad():
        with trace(model, edit={"blocks.0.attention.heads": without_head_2}):
            edited = model(IDS)
        plain = model(IDS)
        model.blocks[0].attention.output.weight[:, 12:18] = 0
        expected = model(IDS)
    assert difference(edited, expected) < 1e-5
    assert difference(edited, plain) > 1e-3


def test_edits_apply_one_after_the_other_and_by_pattern(model: llama.Model) -> None:
    edits = {"blocks.*.attention.heads": lambda x: x + 1, "blocks.0.*.heads": lambda x: x * 3}
    with torch.no_grad():
        with trace(model, "blocks.0.attention.heads") as plain:
            model(IDS)
        with trace(model, "blocks.*.attention.heads", edit=edits) as seen:
            model(IDS)
    first = "blocks.0.attention.heads"
    assert difference(seen[first], (plain[first] + 1) * 3) < 1e-6


def test_an_unknown_name_is_an_error_with_examples(model: llama.Model) -> None:
    with pytest.raises(InputError, match=r"blocks\.9") as caught, trace(model, "blocks.9.*"):
        pass
    assert "blocks.0." in caught.value.advice
    with pytest.raises(InputError), trace(model, edit={"nothing": lambda x: x}):
        pass


def test_an_error_inside_leaves_nobody_watching(model: llama.Model) -> None:
    with pytest.raises(KeyError), trace(model, "*") as seen:
        seen["logits"]
    assert not any(m._forward_hooks for m in model.modules())


def test_gradients_flow_through_what_is_watched(model: llama.Model) -> None:
    with trace(model, "blocks.0.attention.weights") as seen:
        logits = model(IDS)
    (gradient,) = torch.autograd.grad(logits.sum(), seen["blocks.0.attention.weights"])
    assert float(gradient.abs().max()) > 1e-4


def test_unwatched_taps_do_not_break_the_compiled_graph(model: llama.Model) -> None:
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        assert difference(compiled(IDS), model(IDS)) < 1e-6
