"""The type that a model computes in, where a file mixes types."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from chumoku.assembly import assemble, blueprint
from chumoku.checkpoints import assign
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.published import Published
from chumoku.devices import float_type, needed_bytes
from chumoku.models import llama

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def tensor(storage: str, *shape: int) -> LazyTensor:
    return LazyTensor("t", shape, storage, bytearray)


MIXED = {"matrix": tensor("F16", 4, 32), "norm": tensor("F32", 32), "count": tensor("I64", 1)}
BLOCKS = {"matrix": tensor("Q4_0", 4, 32), "head": tensor("F16", 64, 32), "norm": tensor("F32", 32)}


@pytest.mark.parametrize(
    ("tensors", "dtype", "device", "expected"),
    [
        (MIXED, "auto", CPU, torch.float32),
        (MIXED, "auto", GPU, torch.float16),
        (MIXED, "stored", GPU, None),
        (MIXED, "bfloat16", CPU, torch.bfloat16),
        (BLOCKS, "auto", GPU, torch.float32),
        (BLOCKS, "stored", CPU, None),
        ({}, "auto", GPU, torch.float32),
    ],
)
def test_one_float_type(
    tensors: dict[str, LazyTensor], dtype: str, device: torch.device, expected: torch.dtype | None
) -> None:
    assert float_type(tensors, dtype, device) is expected


def test_bytes() -> None:
    assert needed_bytes(MIXED, "stored", CPU) == 4 * 32 * 2 + 32 * 4 + 8
    assert needed_bytes(BLOCKS, "auto", GPU) == 4 * 18 + 64 * 32 * 4 + 32 * 4
    assert needed_bytes(BLOCKS, "float16", CPU) == (4 + 64 + 1) * 32 * 2


def test_f16_matrices_beside_f32_norms_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """GGUF keeps norms in F32: on a GPU "auto" must not leave the two types side by side."""
    config = llama.Config(
        vocab_size=40, width=16, num_blocks=1, num_heads=2, num_kv_heads=2, head_width=8
    )
    model = llama.Model(config)
    llama.initialise(model)
    table = llama.names(config, "causal-lm", "hub")
    tensors = {}
    for ours, value in model.state_dict().items():
        entry = table.publish(ours)
        assert entry is not None
        stored = value.half() if value.dim() == 2 else value
        tensors[entry[1]] = assign.lazy(entry[1], stored)
    raw = llama.write_config(config, "causal-lm")
    plan = blueprint(Published("hub", Path("nowhere"), raw, tensors))
    monkeypatch.setattr("chumoku.assembly.float_type", lambda t, d, _: float_type(t, d, GPU))
    made, missing = assemble(plan, "auto", CPU)
    assert not missing
    assert {p.dtype for p in made.parameters()} == {torch.float16}
    ids_BT = torch.arange(12).view(2, 6)
    difference = made.eval()(ids_BT).float() - model.eval()(ids_BT)
    assert difference.abs().max() < 5e-3
    mixed, _ = assemble(plan, "stored", CPU)
    assert {p.dtype for p in mixed.parameters()} == {torch.float16, torch.float32}
