"""Golden numbers of published formulas that no other file holds.

Sinusoids, rotary frequencies and relative buckets are in layers/test_positions.py, block bytes in
kernels/test_blocks.py, parameter counts in models/test_parameter_counts.py and test_paper_2017.py.
"""

from __future__ import annotations

import math

import pytest
import torch
from layers.test_recorder import TINY
from parity.harness import difference
from transformers.activations import ACT2FN

from chumoku.kernels.blocks import STORAGE, row_bytes
from chumoku.layers.ops import ACTIVATIONS
from chumoku.models import architecture

# x: (tanh form, exact form)
GELU = {
    -3.0: (-0.0036374, -0.0040497),
    -1.0: (-0.158808, -0.1586553),
    0.5: (0.345714, 0.3457312),
    1.0: (0.841192, 0.8413447),
    3.0: (2.9963626, 2.9959503),
}
TANH_FORM = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")


def value(name: str, x: float) -> float:
    return float(ACTIVATIONS[name](torch.tensor(x, dtype=torch.float64)))


@pytest.mark.parametrize("x", list(GELU))
def test_both_forms_of_gelu(x: float) -> None:
    tanh_form, exact = GELU[x]
    for name in TANH_FORM:
        assert abs(value(name, x) - tanh_form) < 5e-7
    for name in ("gelu", "gelu_python"):
        assert abs(value(name, x) - exact) < 5e-8
    assert abs(tanh_form - exact) > 1e-5, "the two forms are told apart"
    phi = 0.5 * (1 + math.erf(x / math.sqrt(2)))
    assert value("gelu", x) == pytest.approx(x * phi, abs=1e-12)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    assert value("gelu_new", x) == pytest.approx(0.5 * x * (1 + math.tanh(inner)), abs=1e-12)


def test_which_model_means_which_form() -> None:
    """BERT, DistilBERT and ViT: exact; GPT-2 and T5's gated-gelu: tanh; T5 1.0: ReLU."""
    expected = {"bert": "gelu", "roberta": "gelu", "distilbert": "gelu", "vit": "gelu"}
    expected |= {"deit": "gelu", "gpt2": "gelu_new", "llama": "silu", "mistral": "silu"}
    expected |= {"t5": "relu", "mt5": "gelu_new"}
    for model_type, name in expected.items():
        config = architecture(model_type).read_config({"model_type": model_type} | TINY[model_type])
        x = torch.tensor([-3.0, -1.0, 0.5, 1.0, 3.0], dtype=torch.float64)
        got = ACTIVATIONS[config.activation](x)
        assert difference(got, ACTIVATIONS[name](x)) == 0, model_type


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations_are_the_published_ones(name: str) -> None:
    if name not in ACT2FN:
        pytest.fail(f"{name} is no published name")
    x = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert difference(ACTIVATIONS[name](x), ACT2FN[name](x)) < 1e-6
    others = [n for n in ACTIVATIONS if difference(ACTIVATIONS[n](x), ACTIVATIONS[name](x)) > 1e-6]
    assert len(others) >= len(ACTIVATIONS) - len(TANH_FORM)


BITS_A_WEIGHT = {
    **{"F32": 32, "F16": 16, "BF16": 16, "Q8_0": 8.5, "Q5_1": 6, "Q5_0": 5.5, "Q4_1": 5},
    **{"Q4_0": 4.5, "Q2_K": 2.625, "Q3_K": 3.4375, "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625},
}


def test_bits_a_weight() -> None:
    for storage, bits in BITS_A_WEIGHT.items():
        assert 8 * row_bytes(storage, 256) == bits * 256, storage
    assert {n for n in STORAGE if n.startswith("Q")} == {
        n for n in BITS_A_WEIGHT if n.startswith("Q")
    }


def test_size_of_llama_7b_in_the_first_four_bit_form() -> None:
    """llama.cpp of March 2023 printed 4017.27 MB: 20 bytes for 32 weights, vectors in float32."""
    raw = {"model_type": "llama", "vocab_size": 32000}  # the defaults are the 7B model's
    module = architecture("llama")
    with torch.device("meta"):
        model = module.Model(module.read_config(raw), "causal-lm")
    count = sum(p.numel() for p in model.parameters())
    vectors = sum(p.numel() for p in model.parameters() if p.dim() == 1)
    assert (count, vectors) == (6_738_415_616, 65 * 4096)
    size = (count - vectors) * 20 / 32 + vectors * 4
    assert round(size / 2**20, 2) == 4017.27
