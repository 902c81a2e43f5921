"""Every recipe whose data and model are here takes its first steps, with little of its data."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from chumoku.errors import SourceError
from chumoku.training.recipe import Recipe, read_recipe
from chumoku.training.runner import train

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
RECIPES = sorted((ROOT / "recipes").glob("**/*.toml"))
EVERYDAY = {"digits", "shakespeare", "sst2-lora", "translator"}
ROWS = 3000
WRITTEN = {"chat-lora": ("question_chat.py", "question-chat")}
"""Recipes whose rows a script beside them writes, and into which folder."""


def short(recipe: Recipe) -> Recipe:
    """Two steps on the first rows; nothing is judged."""
    batching = replace(recipe.training.batching, batch_size=4)
    settings = replace(recipe.training, steps=2, evaluate_every=0, batching=batching)
    task = {k: v for k, v in recipe.task.items() if k != "score"}
    limit = None if recipe.data.format == "images" else ROWS  # pictures come class by class
    data = replace(recipe.data, evaluation=(), test=(), holdout=0.0, limit=limit)
    return replace(recipe, training=settings, task=task, data=data)


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not here")
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=[] if p.stem in EVERYDAY else [pytest.mark.slow])
        for p in RECIPES
    ],
)
def test_the_recipe_takes_its_first_steps(path: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    recipe = short(read_recipe(path))
    source = recipe.model.source
    source = source or recipe.model.student_of
    if source is not None and "/" in source:
        pytest.skip(f"{source} cannot be had here")
    if path.stem in WRITTEN:
        script, folder = WRITTEN[path.stem]
        command = [sys.executable, ROOT / "recipes" / script, "write", "--data", DATA]
        subprocess.run([*command, "--output", tmp_path / folder], check=True)
    try:
        outcome = train(recipe, tmp_path / "out", places=[DATA, tmp_path], device="cpu")
    except SourceError as error:
        pytest.skip(str(error))
    assert outcome.result.steps == 2
    assert (tmp_path / "out" / "model.safetensors").is_file()
