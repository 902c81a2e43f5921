"""Damaged files: a typed error, or tensors inside the file; cheaply (RELIABILITY A1, A2)."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints.mutants import run_child

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the limits need Linux"
)
KINDS = ("safetensors", "gguf")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "count", [pytest.param(1000, id="1k"), pytest.param(10000, id="10k", marks=pytest.mark.slow)]
)
def test_no_mutant_harms(kind: str, count: int, tmp_path: Path) -> None:
    found = run_child(kind, count, tmp_path)
    assert found["problems"] == []
    assert found["accepted"] + found["refused"] == count
    assert found["accepted"] > count // 100, "mutations that nothing accepts test only the magic"


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_no_extreme_number_harms(kind: str, tmp_path: Path) -> None:
    found = run_child(kind, 0, tmp_path)
    assert found["problems"] == []
    assert found["accepted"] + found["refused"] > 200


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weaken", ["ranges", "allocation"])
def test_the_harness_sees_a_careless_reader(kind: str, weaken: str, tmp_path: Path) -> None:
    assert run_child(kind, 1000, tmp_path, weaken)["problem"] > 10
