"""The benchmark runs, on tiny models: every row is there, and the two sides say the same.

Nothing is asserted about time.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tasks import models
from test_gguf_export import hub, write_bpe

import chumoku
from chumoku.gguf_export import save_gguf

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import compare  # noqa: E402
import measuring  # noqa: E402


def sentence_folder(folder: Path) -> str:
    models.save(folder, "BertModel", "english")
    kinds = ("Transformer", "Pooling")
    models.write_json(
        folder / "modules.json",
        [
            {"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{kind}"}
            for n, (kind, p) in enumerate(zip(kinds, ("", "1_Pooling"), strict=True))
        ],
    )
    settings = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    models.write_json(folder / "1_Pooling" / "config.json", settings)
    return str(folder)


def masked_folder(folder: Path) -> str:
    models.save(folder, "BertForMaskedLM", "english")
    (folder / "vocab.txt").write_text("\n".join(models.ENGLISH), "utf-8")
    return str(folder)


def text_file(folder: Path) -> str:
    hub(folder, "llama", max_position_embeddings=256)
    write_bpe(folder, "gpt-2")
    return str(save_gguf(chumoku.load(folder), folder / "m.gguf", "Q8_0"))


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> compare.Plan:
    def place(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    return compare.Plan(
        text_model=text_file(place("text")),
        encoder=sentence_folder(place("encoder")),
        masked=masked_folder(place("masked")),
        masked_text="paris is the [MASK] of france",
        threads=1,
        **{"pairs": 2, "loads": 1, "prompt_tokens": 70, "new_tokens": 6, "sentences": 10},
    )


def test_every_row(plan: compare.Plan) -> None:
    out = io.StringIO()
    machine, rows = compare.run(plan, Console(file=out, width=200))
    said = out.getvalue()
    found = {(line.name, line.ours_name, line.theirs_name) for line in rows}
    for ours, theirs in (("auto", "float32"), ("float32", "float32"), ("bfloat16", "bfloat16")):
        for name in ("prompt of 70 tokens", "decode 6 tokens"):
            assert (name, f"chumoku {ours}", f"transformers {theirs}") in found, said
    for name in ("load SmolLM2 GGUF", "encode 10 sentences, sorted", "fill-mask, one text"):
        assert any(line.name == name for line in rows), said
    for line in rows:
        assert f"{line.ratio:.2f}" in said
        assert line.ratio > 0
        assert line.spread[0] <= line.ratio <= line.spread[1]
        if line.name.startswith(("prompt", "decode")) and "float32" in line.ours_name:
            assert line.agreement == "same ids", said
        if line.name.startswith("fill"):
            assert line.agreement.startswith("same token"), said
        if line.name.startswith("encode") and "float32" in line.ours_name:
            assert float(line.agreement.rpartition(" ")[2]) < 1e-5, said
    assert machine["threads"] == 1
    assert "load_after" in machine


def test_a_missing_peer_is_said_and_left_out(
    plan: compare.Plan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The other rows are still measured."""
    (tmp_path / "transformers.py").write_text("raise ImportError('none here')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(chumoku.__file__).parent.parent}")
    out = io.StringIO()
    small = compare.dataclasses.replace(plan, only=("prompt", "fill"))
    _, rows = compare.run(small, Console(file=out, width=200))
    assert not [line for line in rows if line.theirs_name.startswith("transformers")]
    assert out.getvalue().count("transformers is not installed (none here)") == 1


def test_a_row_from_seconds() -> None:
    made = measuring.row("x", ("a", "b"), "tok/s", [(1.0, 2.0), (2.0, 6.0), (4.0, 2.0)], 12)
    assert (made.ours, made.theirs, made.ratio, made.spread) == (6.0, 6.0, 2.0, (0.5, 3.0))
    times = measuring.row("x", ("a", "b"), "ms", [(0.001, 0.002)], None)
    assert (times.ours, times.theirs, times.ratio) == (1.0, 2.0, 2.0)


def test_pairs_alternate() -> None:
    order: list[str] = []

    def side(name: str) -> Any:
        return lambda: float(len(order)) if order.append(name) is None else 0.0

    assert measuring.pairs(side("a"), side("b"), 2) == [(3.0, 4.0), (5.0, 6.0)]
    assert order == ["a", "b"] * 3


def test_a_load_does_not_bring_in_the_compiler(plan: compare.Plan) -> None:
    """torch._dynamo takes over a second to import: an initialiser on the meta device did that."""
    script = f"""
import json, sys
import chumoku.loading, chumoku.tasks.embedding
before = "torch._dynamo" in sys.modules
chumoku.loading.load({plan.encoder!r})
chumoku.loading.load({plan.text_model!r})
after = "torch._dynamo" in sys.modules
import torch
with torch.device("meta"):
    torch.nn.Embedding(2, 2)
print(json.dumps([before, after, "torch._dynamo" in sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    before, after, control = json.loads(done.stdout)
    assert not before
    assert not after
    assert control  # if PyTorch no longer does it, loading.skeleton may become simpler
