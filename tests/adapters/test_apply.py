"""Adapters in every architecture and head: same at the start, trained alone, merged."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from adapters.tiny import CASES, IDS, SOME, bits, everyday, made, run, stir
from parity.harness import difference
from torch import nn

from chumoku.adapters.apply import add_adapter, fuse, merge, remove, set_active, trainable, unmerge
from chumoku.adapters.layers import LoRALinear, LoRASettings
from chumoku.adapters.registry import adapted_layers, counts, is_merged, trainable_fraction
from chumoku.errors import ConfigError, InputError
from chumoku.layers.recorder import record, replay

KINDS = [
    LoRASettings(rank=3, alpha=7.0),
    LoRASettings(rank=3, scaling="rslora"),
    LoRASettings(rank=2, targets=("all-linear",), dora=True, seed=3),
]
NAMES = ["lora", "rslora", "dora"]
BOTH = LoRASettings(rank=4, targets=("attention.query", "attention.value", "feedforward.*"))


# ---- the start, and what is trained ----


@pytest.mark.parametrize(("kind", "head"), CASES)
@torch.no_grad()  # with gradients, attention takes another kernel where its bias is not frozen
def test_nothing_changes_at_the_start(kind: str, head: str) -> None:
    for settings, name in zip(KINDS, NAMES, strict=True):
        model = made(kind, head)
        expected = run(model)
        layers = add_adapter(model, settings)
        assert layers
        assert all(isinstance(model.get_submodule(n), LoRALinear) for n in layers)
        if name == "dora":
            assert difference(run(model), expected) <= 1e-6
        else:
            assert torch.equal(run(model), expected)
        stir(model)  # negative control: the adapters are heard
        assert difference(run(model), expected) > 1e-3


@pytest.mark.parametrize(("kind", "head"), everyday(CASES, lambda case: case in SOME))
def test_only_adapter_and_head_learn(kind: str, head: str) -> None:
    model = made(kind, head)
    before = bits(model)
    settings = LoRASettings(rank=2, dropout=0.1)
    add_adapter(model, settings)
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    for name, parameter in model.named_parameters():
        own = ".lora_" in name or (name.startswith("head.") and "output.weight" not in name)
        if "head." in name and "output.weight" in name:
            own = name == "head.output.weight" and head not in ("masked-lm", "pre-training")
        assert parameter.requires_grad == own or name.startswith("adapters."), name
    assert not any(name.startswith("adapters.") for name in wanted)
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    model.train()
    random = torch.Generator().manual_seed(3)
    for _ in range(3):
        out = run(model)
        loss = (out * torch.randn(out.shape, generator=random)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    after = model.state_dict()
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed <= wanted
    assert {n for n in wanted if n in before and "relative" not in n} == changed
    moved = [n for n in wanted if ".lora_B." in n and after[n].abs().max() > 0]
    assert len(moved) == sum(".lora_B." in n for n in wanted)
    # With the adapter gone, even the head is what it was.
    remove(model, "default")
    assert all(torch.equal(before[n], value) for n, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


def test_a_frozen_base_stays_frozen_afterwards() -> None:
    model = made("bert", "classification")
    model.embeddings.requires_grad_(False)
    add_adapter(model, BOTH)
    remove(model, "default")
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != name.startswith("embeddings."), name
    assert type(model.blocks[0].attention.query) is nn.Linear


@pytest.mark.parametrize("which", ["none", "all", "lora"])
def test_biases_as_asked(which: str) -> None:
    model = made("bert", "classification")
    add_adapter(model, LoRASettings(train_bias=which))
    names = set(trainable(model))
    biases = {n for n in names if n.endswith(".bias") and not n.startswith("head.")}
    lora = {f"blocks.{n}.attention.{p}.bias" for n in (0, 1) for p in ("query", "value")}
    everything = {n for n in made("bert", "classification").state_dict() if n.endswith(".bias")}
    expected = {"none": set(), "lora": lora, "all": everything - {"head.output.bias"}}
    assert biases == expected[which]


def test_whole_modules_as_asked() -> None:
    model = made("bert", "classification")
    add_adapter(model, LoRASettings(targets=("all-linear",), also_train=("pooler", "embeddings")))
    names = trainable(model)
    assert {n for n in names if n.startswith("pooler.")} == {
        "pooler.output.weight",
        "pooler.output.bias",
    }
    assert "embeddings.position.weight" in names
    assert "embeddings.norm.bias" in names
    # Tied to the head of a masked language model, a table is not trained with it, nor the head's.
    masked = made("bert", "masked-lm")
    add_adapter(masked, LoRASettings(also_train=("embeddings",)))
    assert not masked.embeddings.token.weight.requires_grad
    assert masked.embeddings.position.weight.requires_grad
    assert masked.head.bias.requires_grad


def test_counts() -> None:
    """2 r d for a square matrix; the whole is the model's own number and the adapter's."""
    model = made("llama", "causal-lm", hidden_size=32, num_key_value_heads=2)
    own = sum(p.numel() for p in model.parameters())
    add_adapter(model, LoRASettings(rank=3))
    added = 2 * 2 * (2 * 3 * 32)  # blocks, query and value, A and B
    assert counts(model) == (added, own + added)
    assert trainable_fraction(model) == added / (own + added)
    dora = made("bert", "encoder")
    own = sum(p.numel() for p in dora.parameters())
    add_adapter(dora, LoRASettings(rank=3, dora=True, targets=("feedforward.up",)))
    assert counts(dora) == (2 * (3 * (32 + 64) + 64), own + 2 * (3 * (32 + 64) + 64))
    # GPT-3 with rank 1 on query and value: 4.7M (2106.09685, table 4).
    with torch.device("meta"):
        big = nn.ModuleList(nn.ModuleDict({"query": nn.Linear(12288, 12288)}) for _ in range(2))
    add_adapter(big, LoRASettings(rank=1, targets=("query",)))
    assert counts(big).trained * 96 == 4_718_592


def test_what_a_target_means() -> None:
    model = made("t5", "conditional-generation")
    self_only = add_adapter(model, LoRASettings())
    assert len(self_only) == 8
    assert not any("cross" in name for name in self_only)
    every = add_adapter(model, LoRASettings(targets=("*attention.query",)), "b")
    assert len(every) == 6
    first = add_adapter(model, LoRASettings(targets=("decoder.blocks.0.*",)), "c")
    assert {name.rpartition(".")[2] for name in first} >= {"query", "output", "up", "down"}
    assert all(name.startswith("decoder.blocks.0.") for name in first)
    linear = add_adapter(model, LoRASettings(targets=("all-linear",)), "d")
    assert len(linear) == 2 * (4 + 2) + 2 * (8 + 2)
    assert not any("embed" in name for name in linear)


# ---- merging ----


@pytest.mark.parametrize("settings", KINDS, ids=NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5", "vit"])
def test_merged_equals_unmerged(kind: str, dtype: torch.dtype, settings: LoRASettings) -> None:
    heads = {"bert": "classification", "gpt2": "causal-lm", "t5": "conditional-generation"}
    model = made(kind, heads.get(kind, "image-classification")).to(dtype)
    before = bits(model)
    base = run(model)
    add_adapter(model, settings)
    stir(model)
    expected = run(model)
    limit = 1e-5 if dtype == torch.float32 else 1e-12
    merge(model)
    assert is_merged(model)
    assert difference(run(model), expected) <= limit
    assert difference(run(model), base) > 1e-3
    unmerge(model)
    after = model.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(run(model), expected)
    fuse(model)
    assert model.state_dict().keys() == before.keys()
    assert difference(run(model), expected) <= limit


def test_merging_is_refused_where_it_would_lie() -> None:
    model = made("gpt2", "causal-lm")
    add_adapter(model, LoRASettings(targets=("unembedding",)))
    stir(model)
    with pytest.raises(InputError, match="shares its weight with embeddings"):
        merge(model)
    with pytest.raises(InputError, match="shares its weight with embeddings"):
        fuse(model)
    untied = made("gpt2", "causal-lm", tie_word_embeddings=False)
    add_adapter(untied, LoRASettings(targets=("unembedding",)))
    stir(untied)
    expected = run(untied)
    merge(untied)
    assert difference(run(untied), expected) <= 1e-5
    for call in (
        lambda: set_active(untied, None),
        lambda: add_adapter(untied, BOTH, "b"),
        lambda: remove(untied, "default"),
        lambda: trainable(untied),
        lambda: merge(untied),
    ):
        with pytest.raises(InputError, match="merged"):
            call()


def test_a_tied_table_adapts_on_its_own_side() -> None:
    """The adapter of a tied embedding is not heard in the output matrix, as in PEFT."""
    model = made("gpt2", "causal-lm")
    add_adapter(model, LoRASettings(targets=("embeddings.token",)))
    stir(model)
    got = run(model)
    table = model.embeddings.token
    part = table.parts["default"]
    change = part.scale * (table.lora_B["default"] @ table.lora_A["default"]).T
    other = made("gpt2", "causal-lm", tie_word_embeddings=False)
    other.load_state_dict(made("gpt2", "causal-lm").state_dict())
    with torch.no_grad():
        other.embeddings.token.weight += change
        assert difference(got, run(other)) <= 1e-5
        other.unembedding.weight += change  # negative control
        assert difference(got, run(other)) > 1e-3
    with pytest.raises(InputError, match="shares its table"):
        add_adapter(made("t5", "encoder-decoder"), LoRASettings(targets=("embeddings.token",)))


@pytest.mark.parametrize("dora", [False, True])
def test_tables(dora: bool) -> None:
    model = made("bert", "encoder").double()
    base = run(model)
    settings = LoRASettings(rank=2, targets=("embeddings.token",), dora=dora)
    add_adapter(model, settings)
    assert difference(run(model), base) <= (1e-12 if dora else 0)
    stir(model)
    expected = run(model)
    table = model.embeddings.token
    weight = table.weight + 8 * (table.lora_B["default"] @ table.lora_A["default"]).T
    if dora:
        weight = weight / weight.norm(dim=0) * table.lora_magnitude["default"]
    plain = made("bert", "encoder").double()
    plain.embeddings.token.weight.data = weight.detach()
    assert difference(expected, run(plain)) <= 1e-12
    merge(model)
    assert difference(run(model), expected) <= 1e-12
    unmerge(model)
    assert torch.equal(run(model), expected)


# ---- several adapters ----


def test_switching() -> None:
    model = made("bert", "classification")
    before = bits(model)
    base = run(model)
    add_adapter(model, KINDS[0], "a")
    with torch.no_grad():
        stir(model, 1)
        model.head.output.weight.add_(0.5)
    of_a = run(model)
    add_adapter(model, KINDS[2], "b")
    assert torch.equal(model.head.output.weight, before["head.output.weight"])
    with torch.no_grad():
        stir(model, 2, lambda name: name.endswith(".b"))
        model.head.output.weight.sub_(0.5)
    of_b = run(model)
    for name, expected in (("a", of_a), (None, base), ("b", of_b), ("a", of_a), ("b", of_b)):
        set_active(model, name)
        assert torch.equal(run(model), expected), name
    assert difference(of_a, of_b) > 1e-2
    with pytest.raises(InputError, match="of their own"):
        set_active(model, {"a": 0.5, "b": 0.5})
    set_active(model, "a")
    names = trainable(model)
    assert not any(name.endswith(".b") for name in names)
    assert "head.output.weight" in names
    remove(model, "a")
    assert torch.equal(run(model), base)
    set_active(model, "b")
    assert torch.equal(run(model), of_b)
    remove(model, "b")
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())


def test_a_weighted_sum() -> None:
    model = made("gpt2", "causal-lm").double()
    add_adapter(model, LoRASettings(rank=2), "a")
    add_adapter(model, LoRASettings(rank=3, scaling="rslora", targets=("all-linear",)), "b")
    stir(model)
    plain = made("gpt2", "causal-lm").double()
    shares = {"a": 0.25, "b": -0.5}
    set_active(model, shares)
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            for adapter, scale in (("a", 16 / 2), ("b", 16 / 3**0.5)):
                if adapter in layer.parts:
                    change = layer.lora_B[adapter] @ layer.lora_A[adapter]
                    plain.get_submodule(name).weight += shares[adapter] * scale * change
    expected = run(plain)
    assert difference(run(model), expected) <= 1e-12
    merge(model)
    assert difference(run(model), expected) <= 1e-12
    unmerge(model)
    set_active(model, {"a": -0.5, "b": 0.25})  # negative control
    assert difference(run(model), expected) > 1e-3


def test_state_survives_copying_and_loading() -> None:
    model = made("bert", "classification")
    add_adapter(model, KINDS[0], "a")
    stir(model, 1)
    add_adapter(model, KINDS[2], "b")
    stir(model, 2, lambda name: name.endswith(".b"))
    other = made("bert", "classification", seed=4)
    add_adapter(other, KINDS[0], "a")
    add_adapter(other, KINDS[2], "b")
    other.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    for name in ("a", "b", None):
        for each in (model, other, twin):
            set_active(each, name)
        assert torch.equal(run(model), run(other))
        assert torch.equal(run(model), run(twin))


# ---- the formulas ----


def test_gradients_and_dropout() -> None:
    """A's and B's gradients by hand; dropout falls on the adapter's input alone."""
    random = torch.Generator().manual_seed(0)
    layer = LoRALinear.from_base(nn.Linear(8, 6).double())
    model = nn.ModuleDict({"query": layer})
    add_adapter(model, LoRASettings(rank=2, alpha=3.0, targets=("query",), dropout=0.5))
    stir(model)
    x = torch.randn(5, 8, generator=random).double()
    out_grad = torch.randn(5, 6, generator=random).double()
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    layer.eval()
    (layer(x) * out_grad).sum().backward()
    assert torch.allclose(A.grad, 1.5 * B.T @ out_grad.T @ x, atol=1e-12)
    assert torch.allclose(B.grad, 1.5 * out_grad.T @ (x @ A.T), atol=1e-12)
    assert layer.weight.grad is None
    layer.train()
    torch.manual_seed(5)
    got = layer(x)
    torch.manual_seed(5)
    expected = F.linear(x, layer.weight, layer.bias) + 1.5 * (F.dropout(x, 0.5) @ A.T) @ B.T
    assert torch.allclose(got, expected, atol=1e-12)
    assert not torch.allclose(got, layer.eval()(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_adapters_have_the_base_type(dtype: torch.dtype) -> None:
    model = made("llama", "causal-lm").to(dtype)
    expected = run(model)
    add_adapter(model, KINDS[2])
    layer = model.blocks[0].attention.query
    assert {p.dtype for p in layer.parameters()} == {dtype}
    assert difference(run(model), expected) <= (1e-6 if dtype == torch.float32 else 1e-2)
    add_adapter(model, KINDS[0], "b")
    assert torch.equal(run(model), expected)
    stir(model)
    assert run(model).dtype == dtype
    unmerged = run(model)
    merge(model)
    assert difference(run(model), unmerged) <= (1e-5 if dtype == torch.float32 else 0.05)


def test_seeds() -> None:
    def first(seed: int) -> Any:
        model = made("gpt2", "causal-lm")
        add_adapter(model, LoRASettings(seed=seed))
        return model.blocks[0].attention.query.lora_A["default"].detach()

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    assert first(1).abs().max() <= 32**-0.5


# ---- other readers of the tree ----


@pytest.mark.parametrize("settings", KINDS, ids=NAMES)
@torch.no_grad()
def test_recorded_and_compiled(settings: LoRASettings) -> None:
    """The forward stays one that a recorder closes over, and that a compiler sees through."""
    model = made("gpt2", "causal-lm")
    add_adapter(model, settings)
    stir(model)
    expected = model(IDS)
    graph = record(model, IDS)
    replayed = replay(graph)
    assert all(torch.equal(replayed[name], node.value) for name, node in graph.nodes.items())
    assert not any("lora" in name and node.kind == "constant" for name, node in graph.nodes.items())
    at = "blocks.0.attention.query.lora_A.default"
    changed = replay(graph, {at: 2 * graph.nodes[at].value})[graph.outputs[0]]
    assert difference(changed, graph.nodes[graph.outputs[0]].value) > 1e-3
    compiled = torch.compile(model, fullgraph=True, backend="eager")(IDS)
    torch.testing.assert_close(compiled, expected, rtol=1e-5, atol=1e-5)  # by the definitions


# ---- refusals ----


@pytest.mark.parametrize(
    ("values", "where"),
    [
        ({"rank": 0}, "rank"),
        ({"rank": 2.0}, "rank"),
        ({"alpha": float("nan")}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"scaling": "pissa"}, "scaling"),
        ({"train_bias": "some"}, "train_bias"),
        ({"targets": "attention.query"}, "targets"),
        ({"targets": ()}, "targets"),
    ],
)
def test_settings_are_checked(values: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        LoRASettings(**values)
    assert caught.value.where == where


def test_bad_input_leaves_the_model_alone() -> None:
    model = made("bert", "classification")
    before = bits(model)
    for settings, message in (
        (LoRASettings(targets=("attention.q",)), "no layer has such a name"),
        (LoRASettings(targets=("attention_norm",)), "LayerNorm cannot be adapted"),
        (LoRASettings(also_train=("poler",)), "no module has this name"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            add_adapter(model, settings)
    for name in ("a.b", "", "keys", "ü"):
        with pytest.raises(InputError, match="cannot be an adapter's name"):
            add_adapter(model, BOTH, name)
    with pytest.raises(InputError, match="has no adapters"):
        set_active(model, None)
    assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in model.parameters())
    add_adapter(model, BOTH)
    with pytest.raises(InputError, match="there already"):
        add_adapter(model, BOTH)
    with pytest.raises(InputError, match="no adapter has this name"):
        set_active(model, "other")
    set_active(model, None)
    with pytest.raises(InputError, match="no adapter is active"):
        trainable(model)
