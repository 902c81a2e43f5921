"""docs/numerical-divergence.md: its script runs, prints what the page shows, finds the faults."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from chumoku.layers.recorder import record
from chumoku.layers.taps import trace

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "numerical-divergence.md").read_text(encoding="utf-8")


def load_example() -> Any:
    path = ROOT / "examples" / "find_divergence.py"
    spec = importlib.util.spec_from_file_location("find_divergence", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


script = load_example()
PLACES = {
    "none": None,
    "GELU by tanh": "blocks.0.feedforward.hidden",
    "another epsilon": "blocks.0.residual.input",
    "key and value bias exchanged in block 2": "blocks.2.attention.scores",
    "output matrix not tied": "logits",
}


@pytest.mark.parametrize("fault", PLACES)
def test_the_first_wrong_value_is_where_the_fault_is(fault: str) -> None:
    for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        found = script.gaps(*script.models(fault, dtype), script.plain)
        earliest = script.first(found, limit)
        assert (None if earliest is None else earliest.name) == PLACES[fault]
    assert set(PLACES) == set(script.FAULTS)


def test_rounding_falls_with_the_precision_and_a_fault_does_not() -> None:
    single, double = (script.models("none", d)[0] for d in (torch.float32, torch.float64))
    rounding = max(gap.difference for gap in script.gaps(single, double, script.plain))
    assert 0 < rounding < 1e-5
    sizes = [
        script.gaps(*script.models("GELU by tanh", dtype), script.plain)[-1].difference
        for dtype in (torch.float32, torch.float64)
    ]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_the_page_shows_what_the_script_prints(capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers in scientific notation may vary with the machine; places and words may not."""
    script.main()
    printed = capsys.readouterr().out
    block = re.search(r"\$ python examples/find_divergence.py\n(.*?)```", PAGE, re.DOTALL)
    assert block is not None

    def words(text: str) -> list[str]:
        text = re.sub(r"from float64, at \S+", "from float64", text)
        return re.sub(r"\d\.?\d*e[-+]\d+", "#", text).split()

    assert words(block[1]) == words(printed)


def test_the_input_of_a_block_can_be_replaced_by_the_other_model_s() -> None:
    """Section 3: behind the faulty block the model is innocent."""
    suspect, trusted = script.models("key and value bias exchanged in block 2", torch.float64)
    with trace(trusted, "blocks.*.residual.input") as theirs:
        right = script.plain(trusted)
    for block, innocent in ((2, False), (3, True)):
        name = f"blocks.{block}.residual.input"
        with trace(suspect, edit={name: lambda _, name=name: theirs[name]}):  # type: ignore[misc]
            logits = script.plain(suspect)
        assert (script._gap(logits, right) < 1e-12) == innocent


def test_the_recorder_shows_constants_and_lines() -> None:
    suspect, trusted = script.models("another epsilon", torch.float32)
    ours, theirs = (record(m, script.IDS, script.MASK).nodes for m in (suspect, trusted))
    different = [name for name in theirs if ours[name].constants != theirs[name].constants]
    assert different
    assert all(theirs[name].op == "layer_norm" for name in different)
    assert 1e-3 in ours[different[0]].constants
    assert theirs[different[0]].source.startswith("models/bert.py:")
