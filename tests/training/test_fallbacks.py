"""Recipes whose data are not at hand take them from the hub: the columns there are what they read.

The hub is a stand-in, with the columns that the pages of its data sets describe.
"""

from __future__ import annotations

import importlib
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from chumoku.training.preparing import kind_of, tables_of  # noqa: E402
from chumoku.training.recipe import read_recipe  # noqa: E402

RECIPES = [
    path
    for path in sorted((Path(__file__).parents[2] / "recipes").glob("**/*.toml"))
    if read_recipe(path).data.fallback
]


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (32, 32)).save(stream, "PNG")
    return stream.getvalue()


def classes(*names: str) -> Any:
    return datasets.ClassLabel(names=list(names))


HUB: dict[tuple[str, str | None, str | None], tuple[dict[str, Any], dict[str, Any]]] = {
    ("uoft-cs/cifar10", None, None): (
        {"img": {"bytes": picture(), "path": None}, "label": 1},
        {"img": datasets.Image(), "label": classes("airplane", "automobile")},
    ),
    ("stanfordnlp/sst2", None, None): (
        {"idx": 0, "sentence": "a lovely film ", "label": 1},
        {"label": classes("negative", "positive")},
    ),
    ("sbintuitions/JCommonsenseQA", None, None): (
        {"q_id": 0, "question": "問い", "label": 2} | {f"choice{n}": f"答え{n}" for n in range(5)},
        {},
    ),
    ("sbintuitions/JSQuAD", None, None): (
        {
            "id": "a1",
            "title": "梅雨",
            "context": "梅雨 [SEP] 梅雨は雨の多い期間である。夏の前に来る。",
            "question": "雨の多い期間は?",
            "answers": {"answer_start": [9], "text": ["梅雨"]},
            "is_impossible": False,
        },
        {},
    ),
    ("mteb/JSTS", None, None): ({"sentence1": "川", "sentence2": "山", "score": 1.5}, {}),
    ("unimelb-nlp/wikiann", "en", None): (
        {"tokens": ["Kyoto", "is", "old"], "ner_tags": [1, 0, 0], "langs": ["en"] * 3},
        {"ner_tags": datasets.List(classes("O", "B-LOC", "I-LOC"))},
    ),
    ("stockmark/ner-wikipedia-dataset", None, None): (
        {
            "curid": "1",
            "text": "京都は古い。",
            "entities": [{"name": "京都", "span": [0, 2], "type": "地名"}],
        },
        {},
    ),
    ("karpathy/tiny_shakespeare", None, "refs/convert/parquet"): ({"text": "First Citizen:"}, {}),
    ("mteb/stsbenchmark-sts", None, None): (
        {"sentence1": "a dog", "sentence2": "a cat", "score": 2.5, "split": "train"},
        {},
    ),
    ("Salesforce/wikitext", "wikitext-2-raw-v1", None): ({"text": " It rains . It pours . \n"}, {}),
    ("Hoshikuzu/Tanaka-corpus", None, None): ({"translation": {"en": "a dog", "ja": "犬"}}, {}),
    ("bentrevett/multi30k", None, None): ({"en": "a dog", "de": "ein Hund"}, {}),
    ("CogComp/trec", None, "refs/convert/parquet"): (
        {"text": "Who is he ?", "coarse_label": 1, "fine_label": 0},
        {"coarse_label": classes("ABBR", "HUM"), "fine_label": classes("HUM:ind")},
    ),
}
"""(name, config, revision) -> a row, and the columns' types where it does not tell them."""
PARTS = {"train", "validation", "test"}
LABELS = {
    "cifar10": {"label": "automobile"},
    "ner-en": {"words": ["Kyoto", "is", "old"], "tags": ["B-LOC", "O", "O"]},
    "sst2": {"label": "positive"},
    "stsb": {"score": 2.5},
    "jsts": {"label": 1.5},
    "trec": {"label": "HUM"},
}


def test_questions_come_from_the_hub_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The script beside the recipe `chat-lora`, which makes conversations of them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "recipes"))
    script = importlib.import_module("question_chat")
    for part in script.PARTS:
        (question, answer), *others = script.conversations(tmp_path, part)
        assert question["content"] == "What does this question ask for? Who is he ?"
        assert answer["content"] == "a person"
        assert len(others) == 3


def load(
    path: str, config: str | None, *, split: str, revision: str | None, streaming: bool
) -> Any:
    assert split.partition("[")[0] in PARTS
    assert not streaming
    row, types = HUB[path, config, revision]
    data = datasets.Dataset.from_list([row] * 4)
    for name, kind in types.items():
        data = data.cast_column(name, kind)
    return data


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_hub_has_what_a_recipe_needs(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # nothing is here
    monkeypatch.setattr(datasets, "load_dataset", load)
    recipe = read_recipe(path)
    tables = tables_of(recipe, ())
    assert list(tables) == [p for p in ("train", "evaluation", "test") if getattr(recipe.data, p)]
    assert not any(table.rejects for table in tables.values())
    row = tables["train"].rows[0]
    assert kind_of(recipe).column in {None, *row}
    assert {name: row[name] for name in LABELS.get(path.stem, {})} == LABELS.get(path.stem, {})
