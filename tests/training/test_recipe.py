"""Recipes: read strictly, overridden by key, written out so that they read back the same."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chumoku.errors import ConfigError
from chumoku.training.finetune import VERBS, Wish, recipe_of
from chumoku.training.recipe import Recipe, build, find_recipe, override, read_recipe, to_toml
from chumoku.training.settings import Settings

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("**/*.toml"))


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_recipes_are_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_recipe("sst2").is_file()
    assert find_recipe("tiny/neko").is_file()
    with pytest.raises(ConfigError, match=r"(?s)no recipe 'sst3'.*digits.*tiny/neko"):
        find_recipe("sst3")
    own = tmp_path / "recipes" / "sst2.toml"
    own.parent.mkdir()
    own.touch()
    assert find_recipe("sst2").resolve() == own


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[model]\nreinitialise = 1\n[adapter]\nkind = 'lora'", "reinitialise"),
        ("[model]\nfreeze_blocks = 1\n[adapter]\nkind = 'dora'", "freeze_blocks"),
        ("[model]\nfreeze = ['embeddings.*']\n[adapter]\nkind = 'lora'", "freeze"),
        ("[model]\nmixout = 0.5\n[adapter]\nkind = 'rslora'", "mixout"),
        ("[model]\nquantise = 'Q8_0'", "(?s)quantise.*add an adapter"),
    ],
)
def test_what_does_not_go_together(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_recipe(written(tmp_path, text))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_ours_reads_and_reads_back(path: Path, tmp_path: Path) -> None:
    recipe = read_recipe(path)
    assert recipe.about.title
    assert recipe.task["kind"]
    again = read_recipe(written(tmp_path, to_toml(recipe)))
    assert again == recipe
    assert override(recipe, ["training.seed=77"]) == replace(
        recipe, training=replace(recipe.training, seed=77)
    )


def changed(value: Any) -> Any:
    """A value that differs, of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value / 2 if isinstance(value, float) else value + 1
    return value


def test_no_setting_is_lost_on_the_way_to_toml_and_back(tmp_path: Path) -> None:
    recipe = Recipe()
    for field in fields(Settings):
        value = getattr(recipe.training, field.name)
        if is_dataclass(value) or value is None or isinstance(value, str):
            continue
        try:
            settings = replace(recipe.training, **{field.name: changed(value)})
        except ConfigError:
            continue
        other = replace(recipe, training=settings)
        assert read_recipe(written(tmp_path, to_toml(other))) == other != recipe
    odd = {"columns": {"text": "本文", "a b": 'q"\\'}, "train": ("a", "b"), "limit": 3}
    other = replace(recipe, data=replace(recipe.data, **odd))  # type: ignore[arg-type]
    assert read_recipe(written(tmp_path, to_toml(other))) == other
    none = replace(recipe, training=replace(recipe.training, clip=None))
    assert read_recipe(written(tmp_path, to_toml(none))).training.clip is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nstepps = 3", "'stepps' is no setting.*did you mean steps"),
        ("[training]\nsteps = 'many'", "'many' is not a value"),
        ("[training]\nsteps = true", "True is not a value"),
        ("[training]\nsteps = 1.5", "1.5 is not a value"),
        ("[training]\nclip = -1.0", "clip"),
        ("[training.batching]\nbatch_size = 0", "batch_size"),
        ("[nothing]\na = 1", "'nothing' is no setting"),
        ("[training\n", "cannot be read"),
        ("[model]\nsource = 3", "3 is not a value"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        read_recipe(written(tmp_path, text))


def test_a_recipe_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="no such recipe"):
        read_recipe("nowhere.toml")


@pytest.mark.parametrize("text", ["steps=3", "training.steps", "=3", "training.=3"])
def test_an_override_that_is_none(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        read_recipe(written(tmp_path, "[about]\ntitle = 'x'"), [text])


def test_overrides_take_toml_values_and_bare_words(tmp_path: Path) -> None:
    words = ["--training.steps=7", "data.train=a.csv", "training.optimiser.betas=[0.8, 0.9]"]
    recipe = read_recipe(written(tmp_path, "[about]\ntitle = 'x'"), words)
    assert recipe.training.steps == 7
    assert recipe.data.train == "a.csv"
    assert recipe.training.optimiser.betas == (0.8, 0.9)


def test_whole_numbers_stand_for_floats_but_not_the_reverse() -> None:
    assert build(Settings, {"epochs": 3}, "x").epochs == 3.0
    with pytest.raises(ConfigError):
        build(Settings, {"seed": 3.0}, "x")


@pytest.mark.parametrize("name", VERBS)
def test_a_wish_becomes_a_recipe(name: str, tmp_path: Path) -> None:
    verb = VERBS[name]
    columns = {next(iter(verb.columns)): "本文"}
    choices = ("甲", "乙") if verb.choices else ()
    wish = Wish("m", ("t.csv",), columns=columns, choices=choices, adapter="lora", epochs=2, seed=3)
    recipe = recipe_of(name, wish)
    assert recipe.model.source == "m"
    assert recipe.adapter.kind == "lora"
    assert recipe.training.optimiser.learning_rate == 2e-4
    assert set(recipe.data.columns.values()) == {*columns.values(), *verb.needed}
    assert read_recipe(written(tmp_path, to_toml(recipe))) == recipe
