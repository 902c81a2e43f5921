"""The toy models that come with the package: small, readable by all, as good as their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import chumoku
from chumoku.checkpoints.source_names import TINY, parse_source, tiny_models
from chumoku.errors import SourceError

LIMIT = 2_000_000


def test_there_are_some() -> None:
    assert tiny_models()


@pytest.mark.parametrize("name", tiny_models())
def test_each_is_small_and_has_a_card(name: str) -> None:
    folder = TINY / name
    assert sum(path.stat().st_size for path in folder.iterdir()) <= LIMIT
    card = (folder / "README.md").read_text("utf-8")
    for word in ("toy", "recipe", "seed", "data", "parameters", "measured"):
        assert word in card
    recipe = re.search(r"recipe: `([^`]+)`", card)
    assert recipe is not None
    assert (Path(__file__).parents[2] / recipe[1]).is_file()


@pytest.mark.parametrize("name", tiny_models())
def test_each_loads_without_a_network(name: str) -> None:
    loaded = chumoku.load(f"tiny:{name}", offline=True)
    stored = chumoku.load(f"tiny:{name}", offline=True, dtype="stored")
    assert {p.dtype for p in stored.model.parameters()} == {torch.float16}
    assert (loaded.tokenizer is not None) or (loaded.images is not None)


def test_digits_are_read_as_the_card_says() -> None:
    pytest.importorskip("sklearn")
    from chumoku.training.data.rows import read_rows

    rows = read_rows("sklearn:digits:test").rows
    loaded = chumoku.load("tiny:digits", offline=True)
    found = chumoku.classify_image([row["image"] for row in rows], loaded)
    right = sum(one[0]["label"] == row["label"] for one, row in zip(found, rows, strict=True))
    card = (TINY / "digits" / "README.md").read_text("utf-8")
    told = re.search(r"test accuracy \| ([\d.]+)", card)
    assert told is not None
    assert right / len(rows) == pytest.approx(float(told[1]), abs=0.006)  # two pictures


def test_an_unknown_one_names_those_there_are() -> None:
    with pytest.raises(SourceError, match="tiny:digits"):
        parse_source("tiny:nothing")
    with pytest.raises(SourceError):
        parse_source("tiny:../tiny/digits")


def test_t5_knows_the_prefix_of_each_task() -> None:
    text = "東海ラジオ放送は、愛知県名古屋市に本社を置くラジオ放送局である。"
    (plain,) = chumoku.text2text("summarize: " + text, "tiny:t5")
    (summary,) = chumoku.summarize(text, "tiny:t5")
    assert summary["summary_text"] == plain["generated_text"]
    assert summary != chumoku.summarize(text, "tiny:t5", prefix="")[0]
