"""Put a trained toy model into the package: weights as float16, and a card of how it was made.

    python recipes/ship_tiny.py RUN_FOLDER NAME RECIPE
    python recipes/ship_tiny.py judge NAME RECIPE DATA

The card's figures are read from the run's result.json; at most 2 MB are written. `judge` measures
what ships, as it is stored, on the test rows of its recipe (or else on the held-out ones).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from chumoku.checkpoints.source_names import TINY
from chumoku.loading import load
from chumoku.saving import save
from chumoku.text.load import TOKENIZER_FILES
from chumoku.training.preparing import prepare
from chumoku.training.recipe import ModelSection, read_recipe

LIMIT = 2_000_000


def card(name: str, recipe_file: Path, run: Path, parameters: int) -> str:
    recipe = read_recipe(recipe_file)
    result = json.loads((run / "run" / "result.json").read_text())
    rows = [
        f"| {kind} {metric} | {value:.4f} |"
        for kind in ("evaluation", "test")
        for metric, value in result[kind].items()
    ]
    return "\n".join(
        [
            f"# tiny:{name}, a toy",
            "",
            f"{recipe.about.title}. A toy to learn and test with, not for use.",
            "",
            f"- recipe: `{recipe_file}`, seed {recipe.training.seed}, {result['steps']} steps, "
            f"{result['seconds']:.0f} s on one CPU core",
            f"- data: {recipe.about.licence}",
            f"- {parameters:,} parameters, stored as float16",
            "",
            "| measured, float32, before rounding | |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def slim(target_model: Path) -> None:
    """Drop a target's character map, 240 kB that only encoding would use; targets are decoded."""
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(target_model.read_bytes())
    model.normalizer_spec.precompiled_charsmap = b""
    model.normalizer_spec.name = "identity"
    target_model.write_bytes(model.SerializeToString())


def main(run: Path, name: str, recipe: Path) -> int:
    loaded = load(run, dtype="float32")
    target = TINY / name
    shutil.rmtree(target, ignore_errors=True)
    save(loaded, target, dtype="float16")
    for file in TOKENIZER_FILES:
        if (run / file).is_file():
            shutil.copyfile(run / file, target / file)
    if (target / "target.spm").is_file():
        slim(target / "target.spm")
    parameters = sum(p.numel() for p in loaded.model.parameters())
    (target / "README.md").write_text(card(name, recipe, run, parameters), encoding="utf-8")
    size = sum(path.stat().st_size for path in target.iterdir())
    print(f"{target.name}: {size:,} bytes, {parameters:,} parameters")
    return 0 if size <= LIMIT else 1


def judge(name: str, recipe_file: Path, data: Path) -> int:
    recipe = read_recipe(recipe_file)
    model = ModelSection(source=f"tiny:{name}", keep_head=True)
    recipe = replace(recipe, model=model, tokenizer={})
    with tempfile.TemporaryDirectory() as folder:
        prepared = prepare(recipe, Path(folder), [data], torch.device("cpu"))
    task = prepared.test or prepared.task
    assert task.evaluate is not None
    prepared.loaded.model.eval()
    with torch.no_grad():
        for metric, value in task.evaluate(prepared.loaded.model).items():
            print(f"{metric} {value:.4f}")
    return 0


if __name__ == "__main__":
    if sys.argv[1] == "judge":
        sys.exit(judge(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])))
