"""The recorder, over every architecture of the registry."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from parity.harness import difference, randomise
from torch import nn

import chumoku
from chumoku.errors import InputError
from chumoku.layers.attention import Batch
from chumoku.layers.cache import ContiguousCache
from chumoku.layers.recorder import Graph, Node, Ref, record, replay
from chumoku.layers.taps import tap_names, trace
from chumoku.models import MODEL_TYPES, architecture, bert

SOURCE = Path(chumoku.__file__).parent

ENCODER = {
    "vocab_size": 31,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 14,
    "max_position_embeddings": 24,
}
TWO_STACKS = {
    "vocab_size": 31,
    "d_model": 12,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 14,
    "decoder_ffn_dim": 14,
    "max_position_embeddings": 24,
    "pad_token_id": 30,
    "decoder_start_token_id": 30,
}
SPAN_CORRUPTION = {
    "vocab_size": 31,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 14,
    "num_layers": 2,
    "num_heads": 2,
}
IMAGE = {k: v for k, v in ENCODER.items() if k not in ("vocab_size", "max_position_embeddings")}
IMAGE |= {"image_size": 8, "patch_size": 4, "num_channels": 2}

TINY: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER,
    "distilbert": {
        "vocab_size": 31,
        "dim": 12,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 14,
        "max_position_embeddings": 24,
    },
    "gpt2": {"vocab_size": 31, "n_embd": 12, "n_layer": 2, "n_head": 2, "n_positions": 24},
    "llama": ENCODER | {"num_key_value_heads": 1},
    "mistral": ENCODER | {"num_key_value_heads": 1, "sliding_window": 3},
    "t5": SPAN_CORRUPTION,
    "mt5": SPAN_CORRUPTION | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "marian": TWO_STACKS,
    "transformer": TWO_STACKS,
    "vit": IMAGE,
    "deit": IMAGE,
}
NOT_PUBLISHED = [
    ("roberta", "pre-training"),
    ("roberta", "next-sentence"),
    ("vit", "distilled-classification"),
]
CASES = [
    (model_type, head)
    for model_type in MODEL_TYPES
    for head in architecture(model_type).HEADS
    if (model_type, head) not in NOT_PUBLISHED
]


def make(model_type: str, head: str) -> nn.Module:
    module = architecture(model_type)
    model = module.Model(module.read_config({"model_type": model_type} | TINY[model_type]), head)
    randomise(model, 1)
    return model.eval()


def inputs(model_type: str, head: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(2)
    if model_type in ("vit", "deit"):
        return (torch.randn(2, 2, 8, 8, generator=generator),), {}
    shape = (2, 2, 7) if head == "multiple-choice" else (2, 7)
    ids = torch.randint(2, 29, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[1, ..., 5:] = False
    encoder_only = head in ("encoder", "token-classification")
    if model_type in ("t5", "mt5", "marian", "transformer") and not encoder_only:
        ids[..., -1] = 1  # T5 classifies at the end of the text
        return (ids, ids[:, :4].clone()), {"source_mask": mask}
    return (ids, mask), {}


def recorded(model_type: str, head: str) -> tuple[nn.Module, Graph]:
    model = make(model_type, head)
    args, kwargs = inputs(model_type, head)
    return model, record(model, *args, **kwargs)


def outputs(result: Any) -> tuple[torch.Tensor, ...]:
    return tuple(result) if isinstance(result, tuple) else (result,)


def faults(graph: Graph) -> list[str]:
    """Names whose value does not come out bit for bit when it is computed from the leaves."""
    values = replay(graph)
    return [
        name
        for name, node in graph.nodes.items()
        if values[name].shape != node.value.shape or not torch.equal(values[name], node.value)
    ]


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_the_graph_is_the_whole_forward(model_type: str, head: str) -> None:
    model, graph = recorded(model_type, head)
    args, kwargs = inputs(model_type, head)
    with torch.no_grad():
        expected = outputs(model(*args, **kwargs))
    assert len(graph.outputs) == len(expected)
    for name, value in zip(graph.outputs, expected, strict=True):
        assert difference(graph.nodes[name].value, value) < 1e-5
    assert faults(graph) == []

    earlier: set[str] = set()
    for name, node in graph.nodes.items():
        assert node.name == name
        assert set(node.parents) <= earlier, f"{name} has a parent that comes later or is no node"
        earlier.add(name)
        if node.kind == "step":
            assert node.function is not None
        else:
            assert node.parents == ()
    assert not [n for n in graph.nodes.values() if n.kind == "constant"], "a tensor from nowhere"
    again = recorded(model_type, head)[1]
    assert list(again.nodes) == list(graph.nodes)
    assert again.outputs == graph.outputs


@pytest.mark.parametrize(("model_type", "head"), CASES)
def test_all_that_the_answer_depends_on_is_in_the_graph(model_type: str, head: str) -> None:
    """A parameter that moves the output is a node, and the way from the output leads to it."""
    model, graph = recorded(model_type, head)
    args, kwargs = inputs(model_type, head)
    model.zero_grad()
    sum(value.sum() for value in outputs(model(*args, **kwargs))).backward()  # type: ignore[union-attr]
    reached, todo = set(), list(graph.outputs)
    while todo:
        name = todo.pop()
        if name not in reached:
            reached.add(name)
            todo += graph.nodes[name].parents
    used = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {n for n in reached if graph.nodes[n].kind == "parameter"} >= used > set()
    parameters = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, node in graph.nodes.items():
        if node.kind == "parameter":
            assert node.value.data_ptr() == parameters[name].data_ptr()
    first = [n for n in graph.nodes.values() if n.kind == "input"]
    assert first[0].name in reached
    assert torch.equal(first[0].value, args[0])


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_taps_and_linear_layers_have_their_places(model_type: str) -> None:
    head = next(h for h in architecture(model_type).HEADS if h != "multiple-choice")
    model, graph = recorded(model_type, head)
    args, kwargs = inputs(model_type, head)
    with trace(model, "*") as seen, torch.no_grad():
        model(*args, **kwargs)
    for name, value in seen.items():
        assert torch.equal(graph.nodes[name].value, value), name
    assert len(seen) > 10
    assert set(seen) <= set(tap_names(model))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and ".attention." in name:
            node = graph.nodes[name]
            assert node.op == "linear"
            assert f"{name}.weight" in node.parents


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_source_line_holds_the_call(model_type: str) -> None:
    head = next(iter(architecture(model_type).HEADS))
    graph = recorded(model_type, head)[1]
    for node in graph.nodes.values():
        if node.kind == "step":
            assert re.fullmatch(r"(layers|models)/\w+\.py:\d+", node.source), node
    scores = next(n for n in graph.nodes.values() if n.op == "attention_scores")
    file, line = scores.source.split(":")
    assert "attention_scores(" in (SOURCE / file).read_text("utf-8").splitlines()[int(line) - 1]


def altered(node: Node) -> Node | None:
    """The node with its last number changed, if it has one."""
    args = list(node.args)
    for n in reversed(range(len(args))):
        if type(args[n]) in (int, float):
            args[n] = args[n] + 1
            return dataclasses.replace(node, args=tuple(args))
    return None


def test_a_lost_constant_or_a_wrong_parent_is_noticed() -> None:
    """Negative control: the replay can fail."""
    graph = recorded("bert", "masked-lm")[1]
    name = "blocks.1.attention.attention_scores"
    wrong = altered(graph.nodes[name])
    assert wrong is not None
    broken = dataclasses.replace(graph, nodes=dict(graph.nodes) | {name: wrong})
    assert name in faults(broken)
    assert "logits" in faults(broken)

    value, key = "blocks.0.attention.value", "blocks.0.attention.key"
    node = graph.nodes[value]
    other = dataclasses.replace(node, args=(node.args[0], Ref(f"{key}.weight"), *node.args[2:]))
    assert value in faults(dataclasses.replace(graph, nodes=dict(graph.nodes) | {value: other}))


def test_replay_with_another_value_is_the_model_with_that_value() -> None:
    model, graph = recorded("gpt2", "causal-lm")
    args, _ = inputs("gpt2", "causal-lm")
    name = "blocks.0.attention.weights"
    uniform = torch.full_like(graph.nodes[name].value, 0.1)
    with trace(model, edit={name: lambda _: uniform}), torch.no_grad():
        expected = model(*args)
    replayed = replay(graph, {name: uniform})[graph.outputs[0]]
    assert difference(replayed, expected) < 1e-6
    assert difference(replayed, graph.nodes[graph.outputs[0]].value) > 1e-3


def test_a_tied_matrix_is_one_node_with_its_first_name() -> None:
    graph = recorded("bert", "masked-lm")[1]
    assert graph.nodes["head.output"].parents[1] == "embeddings.token.weight"
    assert "head.output.weight" not in graph.nodes


def test_inputs_in_a_batch_carry_the_names_of_its_fields() -> None:
    model = make("bert", "encoder")
    (ids, mask), _ = inputs("bert", "encoder")
    segments = torch.zeros_like(ids)
    graph = record(model, ids, mask, batch=Batch(segments_BT=segments, positions_BT=ids % 5))
    found = {n.name for n in graph.nodes.values() if n.kind == "input"}
    assert found == {"ids_BT", "mask_BT", "segments_BT", "positions_BT"}
    assert graph.nodes["embeddings.segment"].parents[0] == "segments_BT"


def test_a_cache_is_refused() -> None:
    ids = torch.randint(2, 29, (1, 5))
    with pytest.raises(InputError, match="in place"):
        record(make("llama", "causal-lm"), ids, batch=Batch(cache=ContiguousCache()))


def test_recording_leaves_nothing_behind() -> None:
    model, _ = recorded("bert", "masked-lm")
    assert not any(module._forward_hooks for module in model.modules())


class Shared(nn.Module):
    """One layer that stands at two places of the model, and is called twice at one of them."""

    class Stack(nn.Module):
        def __init__(self, layer: nn.Module) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.layer(x))

    def __init__(self) -> None:
        super().__init__()
        layer = nn.Linear(3, 3)
        self.left, self.right = Shared.Stack(layer), Shared.Stack(layer)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.right(self.left(x))


def test_a_shared_module_is_named_by_its_place() -> None:
    graph = record(Shared(), torch.randn(2, 3))
    steps = [n.name for n in graph.nodes.values() if n.kind == "step"]
    assert steps == ["left.layer", "left.layer.2", "right.layer", "right.layer.2"]
    assert faults(graph) == []


def test_names_stay_apart_when_dropout_is_off() -> None:
    graph = record(bert.Model(bert.Config(**SMALL), "masked-lm").eval(), torch.tensor([[1, 2, 3]]))
    assert not [n for n in graph.nodes if "dropout" in n]


SMALL = {
    "vocab_size": 9,
    "max_positions": 8,
    "width": 4,
    "num_blocks": 1,
    "num_heads": 2,
    "feedforward_width": 6,
}
