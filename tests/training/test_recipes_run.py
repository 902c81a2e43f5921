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
EVERYDAY = {"digits", "ner-ja", "shakespeare", "sst2-lora", "translator"}
ROWS = 3000
TINY = "tiny:bert-ja"
"""Takes the place of a hub's Japanese BERT, with fewer rows and shorter windows; and of the model
that a teacher is made of."""
FEW = 300
TINY_LIMITS = {"max_length": 128, "stride": 32}
STARTS = {"t5": "tiny:t5"}
"""Recipes that go on from another's result: what ships takes its place."""
WRITTEN = {
    "chat-lora": ("question_chat.py", "question-chat"),
    "t5": ("two_tasks.py", "two-tasks"),
}
"""Recipes whose rows a script beside them writes, and into which folder."""


def short(recipe: Recipe) -> Recipe:
    """Two steps on the first rows; nothing is judged."""
    batching = replace(recipe.training.batching, batch_size=4)
    settings = replace(recipe.training, steps=2, evaluate_every=0, batching=batching)
    task = {k: v for k, v in recipe.task.items() if k != "score"}
    limit = None if recipe.data.format == "images" else ROWS  # pictures come class by class
    data = replace(recipe.data, evaluation=(), test=(), holdout=0.0, limit=limit)
    if "/" not in (recipe.model.source or ""):
        return replace(recipe, training=settings, task=task, data=data)
    model, data = replace(recipe.model, source=TINY), replace(data, limit=FEW)
    task |= {name: min(task[name], most) for name, most in TINY_LIMITS.items() if name in task}
    return replace(recipe, model=model, training=settings, task=task, data=data)


def with_teacher(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe; a teacher that is another recipe's result is made first, in two steps."""
    place, _, name = (recipe.model.student_of or "").rpartition("/")
    if not place:
        return recipe
    own = short(read_recipe(ROOT / "recipes" / f"{name}.toml"))
    own = replace(own, model=replace(own.model, source=TINY))
    train(own, folder, places=[DATA], device="cpu")
    model = replace(recipe.model, student_of=str(folder))
    return replace(recipe, model=model, task={**recipe.task, "teacher": str(folder)})


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
    recipe = read_recipe(path)
    if path.stem in STARTS:
        recipe = replace(recipe, model=replace(recipe.model, source=STARTS[path.stem]))
    recipe = with_teacher(short(recipe), tmp_path / "teacher")
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
