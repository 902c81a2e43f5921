"""Quantised layers and the walks that put them into a model."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.kernels.blocks import dequantize, quantize, row_bytes
from chumoku.quantization.convert import (
    dequantize_model,
    is_quantized,
    quantize_model,
    quantized_layers,
    replace_with_blocks,
)
from chumoku.quantization.layers import QuantizedEmbedding, QuantizedLinear

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
STORAGES = pytest.mark.parametrize("storage", ["Q8_0", "Q4_0", "Q5_1", "BF16"])


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.narrow = nn.Linear(width, 48, bias=False)
        self.odd = nn.Linear(48, width)  # rows of 48: no whole number of blocks of 32

    def forward(self, x: Tensor) -> Tensor:
        return x + self.odd(torch.tanh(self.narrow(self.query(x))))


class Tied(nn.Module):
    """A small model whose table also serves as its output projection."""

    def __init__(self, width: int = 64, vocabulary: int = 40) -> None:
        super().__init__()
        self.embeddings = nn.ModuleDict({"token": nn.Embedding(vocabulary, width)})
        self.blocks = nn.ModuleList([Block(width), Block(width)])
        self.final_norm = nn.LayerNorm(width)
        self.unembedding = nn.Linear(width, vocabulary, bias=False)
        self.unembedding.weight = self.embeddings["token"].weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embeddings["token"](ids)
        for block in self.blocks:
            x = block(x)
        return self.unembedding(self.final_norm(x))  # type: ignore[no-any-return]


def tied_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> Tied:
    """Every parameter random, biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    model = Tied().to(dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            centre = 1.0 if name == "final_norm.weight" else 0.0
            parameter.copy_(centre + noise * (0.1 if parameter.ndim == 1 else 0.125))
    return model


def rounded(model: Tied, storage: str) -> Tied:
    """The same model with float weights rounded to what `storage` can hold: the reference."""
    reference = copy.deepcopy(model)
    for module in reference.modules():
        if isinstance(module, nn.Linear | nn.Embedding) and module.weight.shape[1] % 32 == 0:
            weight = module.weight.data
            if module is not reference.unembedding:
                module.weight.data = dequantize(quantize(weight, storage), storage, weight.dtype)
    if storage == "BF16":  # any row length fits a plain float
        for block in reference.blocks:
            block.odd.weight.data = block.odd.weight.data.bfloat16().to(block.odd.weight.dtype)
    return reference


def difference(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / max(1.0, b.abs().max().item()))


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 39]])


@DTYPES
@STORAGES
def test_quantised_model_equals_rounded_weights(storage: str, dtype: torch.dtype) -> None:
    model = tied_model(dtype)
    reference = rounded(model, storage)
    original = model(IDS)
    assert quantize_model(model, storage) is model
    expected = reference(IDS)
    assert model(IDS).dtype == dtype
    assert difference(model(IDS), expected) < (1e-5 if dtype == torch.float32 else 1e-12)
    # Negative control: rounding is visible, and another model is far off.
    assert difference(original, expected) > 1e-4
    assert difference(tied_model(dtype, seed=1)(IDS), expected) > 0.1


def test_which_layers_were_swapped() -> None:
    model = quantize_model(tied_model(), "Q8_0")
    swapped = {"embeddings.token", "unembedding"}
    swapped |= {f"blocks.{n}.{leaf}" for n in (0, 1) for leaf in ("query", "narrow")}
    assert quantized_layers(model) == dict.fromkeys(swapped, "Q8_0")
    assert type(model.blocks[0].odd) is nn.Linear
    only = quantize_model(tied_model(), "Q4_1", lambda name, module: name.endswith("query"))
    assert list(quantized_layers(only)) == ["blocks.0.query", "blocks.1.query"]
    assert not is_quantized(tied_model())
    assert is_quantized(only)


def test_a_tie_is_kept_or_left_alone() -> None:
    model = quantize_model(tied_model(), "Q8_0")
    table = model.embeddings["token"]
    assert isinstance(table, QuantizedEmbedding)
    assert isinstance(model.unembedding, QuantizedLinear)
    assert model.unembedding.weight is table.weight
    assert sum(p.data_ptr() == table.weight.data_ptr() for p in model.parameters()) == 1
    # One partner is refused: both stay as they are, still tied.
    half = quantize_model(tied_model(), "Q8_0", lambda name, module: name != "unembedding")
    assert type(half.embeddings["token"]) is nn.Embedding
    assert half.unembedding.weight is half.embeddings["token"].weight


@STORAGES
def test_there_and_back(storage: str) -> None:
    model = tied_model()
    expected = rounded(model, storage)
    back = dequantize_model(quantize_model(model, storage), torch.float32)
    assert not is_quantized(back)
    assert type(back.unembedding) is nn.Linear
    assert back.unembedding.weight is back.embeddings["token"].weight
    assert back.state_dict().keys() == expected.state_dict().keys()
    for name, value in expected.state_dict().items():
        assert torch.equal(back.state_dict()[name], value), name
    assert torch.equal(back(IDS), expected(IDS))
    assert all(
        p.dtype == torch.float64
        for p in dequantize_model(
            quantize_model(tied_model(torch.float64), storage), torch.float64
        ).parameters()
    )


@pytest.mark.parametrize("storage", ["Q6_K", "Q4_K", "Q8_0"])
def test_blocks_from_a_file_into_a_model_on_meta(storage: str) -> None:
    """Storages that we cannot write can be kept; tied layers follow the one that is named."""
    generator = torch.Generator().manual_seed(3)
    with torch.device("meta"):
        model = Tied(width=256)
    width = row_bytes(storage, 256)
    raws = {
        name: torch.randint(0, 60, (rows, width), dtype=torch.uint8, generator=generator)
        for name, rows in (("blocks.1.query", 256), ("blocks.0.narrow", 48), ("unembedding", 40))
    }
    assert replace_with_blocks(model, {n: (storage, raw) for n, raw in raws.items()}) is model
    x = torch.randn(3, 256, generator=generator)
    narrow, table = model.blocks[0].narrow, model.embeddings["token"]
    assert difference(narrow(x), F.linear(x, dequantize(raws["blocks.0.narrow"], storage))) < 1e-5
    assert narrow.weight.data_ptr() == raws["blocks.0.narrow"].data_ptr()
    assert torch.equal(table(IDS), dequantize(raws["unembedding"], storage)[IDS])
    assert table.weight is model.unembedding.weight
    assert model.blocks[1].query.bias.is_meta  # biases are for the loader to fill
    assert model.blocks[0].query.weight.is_meta


def test_whole_rows_may_be_permuted_or_split() -> None:
    raw = quantize(torch.randn(12, 64, generator=torch.Generator().manual_seed(4)), "Q4_0")
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(5))
    whole = QuantizedLinear(raw, "Q4_0")(x)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(6))
    assert torch.equal(QuantizedLinear(raw[order], "Q4_0")(x), whole[:, order])
    parts = [QuantizedLinear(part, "Q4_0")(x) for part in raw.split([5, 7])]
    assert torch.equal(torch.cat(parts, dim=1), whole)
    assert not torch.equal(QuantizedLinear(raw.flip(0), "Q4_0")(x), whole)


def test_meta_gives_the_shapes_of_the_real_thing() -> None:
    with torch.device("meta"):
        model = quantize_model(Tied(), "Q5_0")
    real = quantize_model(tied_model(), "Q5_0")
    empty, full = model.state_dict(), real.state_dict()
    assert {n: (v.shape, v.dtype) for n, v in empty.items()} == {
        n: (v.shape, v.dtype) for n, v in full.items()
    }
    model.load_state_dict(full, assign=True)
    assert torch.equal(model(IDS), real(IDS))


@DTYPES
def test_gradient_flows_through_to_the_input(dtype: torch.dtype) -> None:
    model, reference = tied_model(dtype), rounded(tied_model(dtype), "Q8_0")
    layer, plain = quantize_model(model, "Q8_0").blocks[0].query, reference.blocks[0].query
    x = torch.randn(3, 64, dtype=dtype, generator=torch.Generator().manual_seed(7))
    x = x.requires_grad_()
    ours = torch.autograd.grad(layer(x).square().sum(), (x, layer.bias))
    theirs = torch.autograd.grad(plain(x).square().sum(), (x, plain.bias))
    assert all(difference(a, b) < 1e-5 for a, b in zip(ours, theirs, strict=True))
    assert not layer.weight.requires_grad
    other = torch.autograd.grad(reference.blocks[1].query(x).square().sum(), x)[0]
    assert difference(ours[0], other) > 1e-2


def test_casting_a_model_leaves_the_blocks() -> None:
    model = quantize_model(tied_model(), "Q8_0")
    before = model.blocks[0].query.weight.clone()
    expected = model(IDS)
    model = model.to(torch.float64)
    assert torch.equal(model.blocks[0].query.weight, before)
    assert model(IDS).dtype == torch.float64
    assert difference(model(IDS), expected.double()) < 1e-5
    assert model.to(torch.bfloat16)(IDS).dtype == torch.bfloat16
    assert "storage=Q8_0" in repr(model)


def test_a_module_under_two_names_stays_one() -> None:
    shared = nn.Linear(32, 32)
    model = nn.Sequential(shared, nn.Tanh(), shared).eval()
    quantize_model(model, "Q8_0")
    assert isinstance(model[0], QuantizedLinear)
    assert model[0] is model[2]
    assert not model[0].training


def test_what_does_not_fit_is_an_error() -> None:
    raw = quantize(torch.ones(40, 64), "Q8_0")
    with pytest.raises(InputError, match=r"no layer of this name.*\[blocks.9.query\]"):
        replace_with_blocks(tied_model(), {"blocks.9.query": ("Q8_0", raw)})
    with pytest.raises(InputError, match="do not fit"):
        replace_with_blocks(tied_model(), {"blocks.0.query": ("Q8_0", raw)})
    with pytest.raises(InputError, match="only linear and embedding"):
        replace_with_blocks(tied_model(), {"final_norm": ("Q8_0", raw)})
    two = {"embeddings.token": ("Q8_0", raw), "unembedding": ("Q8_0", raw + 1)}
    with pytest.raises(InputError, match="tied to"):
        replace_with_blocks(tied_model(), two)
    replace_with_blocks(tied_model(), two | {"unembedding": ("Q8_0", raw.clone())})
    with pytest.raises(InputError, match="cannot write 'Q4_K'"):
        quantize_model(tied_model(), "Q4_K")
    with pytest.raises(InputError, match="bare layer"):
        quantize_model(nn.Linear(32, 4), "Q8_0")
    with pytest.raises(InputError, match="bias must be"):
        QuantizedLinear(raw, "Q8_0", torch.ones(3))
    with pytest.raises(InputError, match="holds no weights"):
        QuantizedLinear(raw, "I32")
    with pytest.raises(InputError, match="blocks must be uint8"):
        QuantizedEmbedding(torch.ones(4, 34), "Q8_0")
