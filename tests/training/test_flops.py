"""Counted operations equal those that PyTorch counts while the model runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from chumoku.errors import InputError
from chumoku.layers.taps import trace
from chumoku.loading import create
from chumoku.training.flops import Shape, flops_per_token, peak_by_name, peak_flops, row_flops

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 40,
    "n_positions": 24,
    "n_embd": 16,
    "n_layer": 3,
    "n_head": 2,
}
LLAMA = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "intermediate_size": 24,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "num_labels": 3,
}
T5 = {
    "model_type": "t5",
    "vocab_size": 40,
    "d_model": 16,
    "d_kv": 10,
    "num_heads": 2,
    "num_layers": 2,
    "d_ff": 24,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}


def counted(model: nn.Module, inputs: Any, *, training: bool) -> int:
    """What PyTorch counts, of matrix products alone.

    It does not know a CPU's fused attention, so the weights are watched, which writes it out.
    """
    counter = FlopCounterMode(display=False)
    with counter, trace(model.eval(), "*attention.weights"), torch.set_grad_enabled(training):
        out = model(*inputs)
        if training:
            tensors = [out] if isinstance(out, torch.Tensor) else list(out)
            sum(t.sum() for t in tensors if t.requires_grad).backward()
    return int(counter.get_total_flops())


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(1, 40, (rows, length), generator=torch.Generator().manual_seed(1))


CASES = {
    "gpt2": (GPT2, "causal-lm", (ids(3, 11),), Shape(11)),
    "llama": (LLAMA, "causal-lm", (ids(3, 11),), Shape(11)),
    "bert": (BERT, "masked-lm", (ids(3, 11),), Shape(11)),
    "pre-training": (BERT, "pre-training", (ids(3, 11),), Shape(11)),
    "classification": (BERT, "classification", (ids(3, 11),), Shape(11, chosen=1 / 11)),
    "t5": (T5, "conditional-generation", (ids(3, 7), None, ids(3, 11)), Shape(11, memory=7)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("training", [False, True])
def test_equals_what_pytorch_counts(name: str, training: bool) -> None:
    config, head, inputs, shape = CASES[name]
    model = create(config, head, 0).model
    if name == "t5":
        inputs = (inputs[0], inputs[2])
    expected = counted(model, inputs, training=training)
    assert 3 * row_flops(model, shape, training=training) == pytest.approx(expected, rel=1e-12)
    if name != "classification":
        wrong = Shape(shape.length + 1, shape.memory, shape.chosen)
        assert 3 * row_flops(model, wrong, training=training) != pytest.approx(expected, rel=1e-3)


def test_an_image_has_one_position_more_than_patches() -> None:
    model = create(VIT, "image-classification", 0).model
    pixels = torch.zeros(3, 3, 16, 16)
    expected = counted(model, (pixels,), training=False)
    mine = 3 * row_flops(model, Shape(17, chosen=1 / 17), training=False)
    assert mine - 3 * 2 * 16 * 48 == expected  # the class position is no patch


def test_palm_formula() -> None:
    """6 N + 12 L D T of 2204.02311, appendix B; N as nanoGPT counts it, less what is no matrix."""
    model = create(GPT2, "causal-lm", 0).model
    D, L, V, T = 16, 3, 40, 24
    N = L * (4 * D * D + 8 * D * D) + V * D
    assert flops_per_token(model, Shape(T)) == 6 * N + 12 * L * D * T
    both = Shape(11, memory=7)
    t5 = create(T5, "conditional-generation", 0).model
    assert flops_per_token(t5, both) == row_flops(t5, both) / 18


@pytest.mark.parametrize("frozen", ["embeddings", "bottom", "top", "all but the last norm"])
def test_frozen_weights_cost_less(frozen: str) -> None:
    model = create(GPT2, "causal-lm", 0).model
    full = row_flops(model, Shape(11))
    for name, parameter in model.named_parameters():
        keep = {
            "embeddings": not name.startswith("embeddings"),
            "bottom": not name.startswith(("embeddings", "blocks.0", "blocks.1.attention")),
            "top": not name.startswith("blocks.2"),
            "all but the last norm": name.startswith("final_norm"),
        }[frozen]
        parameter.requires_grad_(keep)
    expected = counted(model, (ids(3, 11),), training=True)
    assert 3 * row_flops(model, Shape(11)) == pytest.approx(expected, rel=1e-12)
    assert row_flops(model, Shape(11)) < full


def test_low_rank_leaves_and_stored_blocks_count() -> None:
    """A frozen matrix costs 4 operations a number, its trained low-rank neighbours 6."""
    model = nn.Module()
    model.blocks = nn.ModuleList([nn.Module()])
    model.blocks[0].up = layer = nn.Linear(32, 8, bias=False)
    layer.weight.requires_grad_(False)
    layer.down = nn.Parameter(torch.zeros(2, 32))
    assert row_flops(model, Shape(5)) == 5 * (2 * 8 * 32 + 4 * 2 * 32)  # the input is no parameter
    layer.weight = nn.Parameter(torch.zeros(8, 18, dtype=torch.uint8), requires_grad=False)
    assert row_flops(model, Shape(5)) == 5 * (2 * 8 * 32 + 4 * 2 * 32)


def test_peaks_by_name() -> None:
    def tera(name: str, dtype: torch.dtype, tf32: bool = False) -> float | None:
        peak = peak_by_name(name, dtype, tf32=tf32)
        return None if peak is None else round(peak / 1e12, 1)

    half, single = torch.bfloat16, torch.float32
    assert tera("NVIDIA H100 80GB HBM3", half) == 989.4
    assert tera("NVIDIA H100 PCIe", half) == 756.0
    assert tera("NVIDIA A100-SXM4-80GB", half) == 312.0
    assert tera("NVIDIA A100-SXM4-80GB", single) == 19.5
    assert tera("NVIDIA A100-SXM4-80GB", single, tf32=True) == 156.0
    assert tera("NVIDIA L40S", half) == 362.0
    assert tera("NVIDIA L4", half) == 121.0
    assert tera("NVIDIA H100 80GB HBM3 MIG 1g.10gb", half) is None
    assert tera("NVIDIA A1000", half) is None
    assert tera("NVIDIA A100-SXM4-80GB", torch.float64) is None


def test_nobody_tells_the_peak_of_a_cpu() -> None:
    assert peak_flops(torch.device("cpu"), torch.float32) is None


def test_shapes_that_are_none() -> None:
    for wrong in ((0, 0, 1.0), (3, -1, 1.0), (3, 0, 1.5)):
        with pytest.raises(InputError):
            Shape(*wrong)
