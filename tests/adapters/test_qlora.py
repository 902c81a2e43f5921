"""QLoRA: adapters over blocks that stay as they are."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from adapters.tiny import IDS, bits, made, run, stir
from parity.harness import difference
from torch import nn

from chumoku.adapters.apply import add_adapter, fuse, merge, remove, set_active, unmerge
from chumoku.adapters.layers import LoRAEmbedding, LoRALinear, LoRASettings
from chumoku.adapters.peft_files import load_adapter, save_adapter
from chumoku.adapters.registry import counts, is_merged
from chumoku.errors import InputError
from chumoku.kernels.blocks import dequantize
from chumoku.quantization.convert import dequantize_model, is_quantized, quantize_model
from chumoku.quantization.layers import QuantizedEmbedding, QuantizedLinear

STORAGES = pytest.mark.parametrize("storage", ["Q4_1", "Q8_0"])
SETTINGS = LoRASettings(rank=3, alpha=5.0, targets=("all-linear",))
DORA = LoRASettings(rank=3, alpha=5.0, targets=("all-linear",), dora=True)


def quantised(storage: str, kind: str = "llama", head: str = "causal-lm") -> nn.Module:
    """All but the head in blocks."""
    return quantize_model(made(kind, head), storage, lambda n, m: not n.startswith("head"))


@STORAGES
@pytest.mark.parametrize("settings", [SETTINGS, DORA], ids=["lora", "dora"])
def test_equals_the_dequantised_base(storage: str, settings: LoRASettings) -> None:
    model = quantised(storage)
    base = run(model)
    floats = dequantize_model(copy.deepcopy(model))
    add_adapter(model, settings)
    assert difference(run(model), base) <= (1e-6 if settings.dora else 0)
    assert model.blocks[0].attention.query.weight.dtype == torch.uint8
    add_adapter(floats, settings)
    for each in (model, floats):
        stir(each)
    assert difference(run(model), run(floats)) <= 1e-5
    assert difference(run(model), base) > 1e-3
    weights = torch.randn(run(model).shape, generator=torch.Generator().manual_seed(3))
    for each in (model, floats):
        (run(each) * weights).mean().backward()
    ours, theirs = dict(model.named_parameters()), dict(floats.named_parameters())
    learned = [n for n, p in ours.items() if p.requires_grad]
    assert len(learned) == 2 * 7 * (3 if settings.dora else 2)
    for name in learned:
        gap = difference(ours[name].grad, theirs[name].grad)
        assert gap <= 1e-4 * float(theirs[name].grad.abs().max().clamp(min=1)), name
        assert theirs[name].grad.abs().max() > 0


@STORAGES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_gradients_by_hand(storage: str, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(0)
    model = nn.ModuleDict({"query": nn.Linear(64, 6)})
    quantize_model(model, storage)
    settings = LoRASettings(rank=2, alpha=3.0, targets=("query",))
    add_adapter(model, settings)
    stir(model)
    layer = model["query"]
    assert isinstance(layer, LoRALinear)
    assert {p.dtype for p in (layer.lora_A["default"], layer.lora_B["default"])} == {torch.float32}
    if dtype == torch.float64:
        layer.double()
    elif dtype == torch.bfloat16:
        layer.bias.data = layer.bias.data.to(dtype)
    x = torch.randn(5, 64, generator=random).to(dtype).requires_grad_()
    grad = torch.randn(5, 6, generator=random).to(dtype)
    y = layer(x)
    assert y.dtype == dtype
    (y * grad).sum().backward()
    A, B = layer.lora_A["default"], layer.lora_B["default"]
    W, x64, g64 = dequantize(layer.weight, storage).double(), x.detach().double(), grad.double()
    whole = W + 1.5 * B.double() @ A.double()
    expected = {
        "y": (y, x64 @ whole.T + layer.bias.double()),
        "A": (A.grad, 1.5 * B.double().T @ g64.T @ x64),
        "B": (B.grad, 1.5 * g64.T @ (x64 @ A.double().T)),
        "x": (x.grad, g64 @ whole),
    }
    limit = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 2e-2}[dtype]
    for name, (got, wanted) in expected.items():
        assert difference(got, wanted) <= limit, name
    # Negative controls: the scale left out, the base left out of the way back.
    assert difference(B.grad, expected["B"][1] / 1.5) > 0.1
    assert difference(x.grad, g64 @ (whole - W)) > 0.1


def test_a_whole_model_in_bfloat16() -> None:
    model = quantised("Q4_1").to(torch.bfloat16)
    add_adapter(model, SETTINGS)
    stir(model)
    out = run(model)
    assert out.dtype == torch.bfloat16
    assert model.blocks[0].attention.query.lora_A["default"].dtype == torch.float32
    floats = quantised("Q4_1")
    add_adapter(floats, SETTINGS)
    stir(floats)
    assert difference(out, run(floats)) <= 0.1
    out.float().square().mean().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in trained)


@STORAGES
def test_blocks_stay_and_adapters_learn(storage: str) -> None:
    model = quantised(storage, "bert", "classification")
    before = bits(model)
    add_adapter(model, LoRASettings(rank=2))
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(8):
        loss = torch.nn.functional.cross_entropy(model(IDS), torch.tensor([0, 2]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    after = model.state_dict()
    assert {n for n in before if not torch.equal(before[n], after[n])} == {
        "head.output.weight",
        "head.output.bias",
    }
    assert any(".lora_B." in name for name in wanted)
    remove(model, "default")
    assert type(model.blocks[0].attention.query) is QuantizedLinear
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())


@pytest.mark.parametrize("settings", [SETTINGS, DORA], ids=["lora", "dora"])
def test_merging_needs_floats(settings: LoRASettings) -> None:
    model = quantised("Q8_0")
    add_adapter(model, settings)
    stir(model)
    expected = run(model)
    with pytest.raises(InputError, match="does not fit the base's Q8_0 blocks"):
        merge(model)
    assert not is_merged(model)
    unmerge(model)
    assert torch.equal(run(model), expected)
    fuse(model)
    assert type(model.blocks[0].attention.query) is nn.Linear
    assert is_quantized(model)  # the embeddings, which have no adapter
    assert difference(run(model), expected) <= 1e-5


@pytest.mark.parametrize("dora", [False, True])
def test_tables_in_blocks(dora: bool) -> None:
    model = quantised("Q8_0", "bert", "encoder")
    floats = dequantize_model(copy.deepcopy(model))
    base = run(model)
    settings = LoRASettings(rank=2, targets=("embeddings.token",), dora=dora)
    for each in (model, floats):
        add_adapter(each, settings)
    assert isinstance(model.embeddings.token, LoRAEmbedding)
    assert difference(run(model), base) <= (1e-6 if dora else 0)
    for each in (model, floats):
        stir(each)
    assert difference(run(model), run(floats)) <= 1e-5
    fuse(model)
    assert difference(run(model), run(floats)) <= 1e-5
    remove(floats, "default")
    again = quantised("Q8_0", "bert", "encoder")
    add_adapter(again, settings)
    remove(again, "default")
    assert type(again.embeddings.token) is QuantizedEmbedding
    assert torch.equal(run(again), base)


def test_counts_are_of_values_not_of_bytes() -> None:
    plain, blocks = made("llama", "causal-lm"), quantised("Q4_1")
    for each in (plain, blocks):
        add_adapter(each, SETTINGS)
    assert counts(plain) == counts(blocks)


def test_a_head_in_blocks_cannot_be_trained() -> None:
    model = quantize_model(made("bert", "classification"), "Q8_0")
    with pytest.raises(InputError, match="stored in blocks"):
        add_adapter(model, SETTINGS)
    masked = quantize_model(made("bert", "masked-lm"), "Q8_0", lambda n, m: "transform" not in n)
    add_adapter(masked, SETTINGS)  # its output matrix is the embeddings'
    assert masked.head.bias.requires_grad


def test_files_over_blocks(tmp_path: Path) -> None:
    """Trained over blocks, used over them again and over the floats that they stand for."""
    model = quantised("Q4_1", "bert", "classification")
    floats = dequantize_model(copy.deepcopy(model))
    add_adapter(model, SETTINGS)
    stir(model)
    with torch.no_grad():
        model.head.output.bias.add_(1.0)
    expected = run(model)
    save_adapter(model, model.config, "classification", "bert", tmp_path)
    for other in (quantised("Q4_1", "bert", "classification"), floats):
        base = run(other)
        load_adapter(other, other.config, "classification", "bert", tmp_path, "mine")
        assert difference(run(other), expected) <= 1e-5
        set_active(other, None)
        assert torch.equal(run(other), base)
