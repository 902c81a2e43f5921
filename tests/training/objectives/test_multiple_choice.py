"""The loss beside its formula, rows with more and fewer choices, and learning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from training.objectives import tiny

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.models import bert, distilbert
from chumoku.tasks.choice import multiple_choice as verb
from chumoku.training.objectives.multiple_choice import choice_loss, question_of, scores, task

BERT = bert.Config(
    max_positions=64,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    dropout=0.0,
    attention_dropout=0.0,
)
DISTIL = distilbert.Config(
    max_positions=64,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    dropout=0.0,
    attention_dropout=0.0,
    classifier_dropout=0.0,
)
ROWS: list[dict[str, Any]] = [
    {"text": "the capital of france is", "choices": ["london", "paris", "new york"], "label": 1},
    {"text": "mary lives", "choice0": "in a big tower", "choice1": "a cat", "label": "a cat"},
    {"text": "john", "choices": ["works.", "good", "bad", "in the sea of music"], "label": "3"},
]
JAPANESE = [
    {"text": "首都はどこ?", "choice0": "東京都", "choice1": "寿司", "choice2": "太郎", "label": 0},
    {"text": "昼ご飯は", "choice0": "タワー", "choice1": "ラーメン", "choice2": "私", "label": 1},
]


def loaded_of(config: Any = BERT, kind: str = "english") -> Loaded:
    loaded = tiny.created(config, "multiple-choice", kind)
    tiny.randomised(loaded.model)
    return loaded


def batch_of(made: Any) -> Any:
    return made.collate([made.examples.example(i, 0) for i in range(len(made.examples))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_its_formula(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    counts, gold = [4, 2, 3], [3, 0, 2]
    total = 0.0
    for row, n, y in zip(logits.tolist(), counts, gold, strict=True):
        total -= row[y] - math.log(math.fsum(map(math.exp, row[:n])))
    present = torch.arange(4) < torch.tensor(counts)[:, None]
    seen = logits.masked_fill(~present, -torch.inf)
    loss = choice_loss(seen, torch.tensor(gold))
    assert float(loss.total) == pytest.approx(total, rel=1e-5 if dtype == torch.float32 else 1e-12)
    assert int(loss.units) == 3
    assert float(choice_loss(logits, torch.tensor(gold)).total) > total + 1e-3
    shifted = choice_loss(seen, torch.tensor([2, 1, 1]))
    assert float(shifted.total) != pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("config", [BERT, DISTIL], ids=["bert", "distilbert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_sum_of_its_rows(config: Any, dtype: torch.dtype) -> None:
    loaded = loaded_of(config)
    loaded.model.to(dtype).eval()

    def total(rows: Any) -> float:
        made = task(loaded, rows)
        return float(made.loss(loaded.model, batch_of(made)).total.detach())

    alone = sum(total([row]) for row in ROWS)
    assert total(ROWS) == pytest.approx(alone, rel=1e-5 if dtype == torch.float32 else 1e-10)


def test_scores_are_the_verbs() -> None:
    loaded = loaded_of()
    made = task(loaded, ROWS)
    batch = batch_of(made)
    assert batch.ids_BCT.shape[:2] == (3, 4)
    assert batch.targets_B.tolist() == [1, 1, 3]
    assert batch.present_BC.sum(1).tolist() == [3, 2, 4]
    shares = scores(loaded.model, batch).softmax(-1)
    for number, row in enumerate(ROWS):
        choices = row.get("choices") or [row["choice0"], row["choice1"]]
        for one in verb(row["text"], choices, loaded):
            assert float(shares[number, one["index"]].detach()) == pytest.approx(
                one["score"], rel=1e-4
            )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a", "label": 0}, "row 0 has 0 choices"),
        ({"text": "a", "choices": ["b"], "label": 0}, "row 0 has 1 choices"),
        ({"text": "a", "choices": ["b", None], "label": 0}, "row 0 has 1 choices"),
        ({"text": "a", "choices": "bc", "label": 0}, "no list"),
        (
            {"text": "a", "choices": ["b", 3], "label": 0},
            "a choice of row 0 is no text, or empty: 3",
        ),
        ({"text": "a", "choices": ["b", "c"], "label": 2}, "2 of row 0 is none of its 2 choices"),
        ({"text": "a", "choices": ["b", "c"], "label": -1}, "none of its 2 choices"),
        ({"text": "a", "choices": ["b", "c"]}, "row 0 has no 'label'"),
    ],
)
def test_bad_rows(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(loaded_of(), [row])


LETTERED = {"question": "?", "A": "猫", "B": "犬", "C": "鳥"}
FROM_ONE = {"question": "?", "choice1": "猫", "choice2": "犬", "choice3": "鳥"}
NAMED = {"question": "?", "選択肢１": "猫", "選択肢２": "犬", "選択肢３": "鳥", "choices": "x"}
NAMES = ("選択肢１", "選択肢２", "選択肢３")
LISTED = {"question": "?", "choices": ["猫", "犬", "鳥"]}


@pytest.mark.parametrize(
    ("row", "options", "labels"),
    [
        (LETTERED, {}, {"A": 0, "C": 2, "鳥": 2, "0": 0, 1: 1}),
        (LETTERED, {"count_from": 1}, {"A": 0, "1": 0, "3": 2}),
        (FROM_ONE, {}, {1: 0, "3": 2, "choice2": 1, "犬": 1, "B": 1}),
        (FROM_ONE, {"count_from": 0}, {0: 0, "2": 2, "choice2": 1}),
        (NAMED, {"choice_columns": NAMES}, {"1": 0, "３": 2, "選択肢２": 1, " 犬 ": 1}),
        (NAMED, {"choice_columns": NAMES[1:]}, {"2": 0, "3": 1, "鳥": 1, "A": 0}),
        (LISTED, {}, {0: 0, "2": 2, "鳥": 2, "C": 2}),
        (LISTED | {"choices": ["B", "A"]}, {}, {"A": 1, "1": 1}),  # a text goes before a letter
        (LISTED | {"text": "!"}, {"choice_columns": ["question", "text"]}, {"!": 1}),
        (LETTERED | {"C": ""}, {}, {"B": 1}),  # a short row
    ],
)
def test_every_form_of_choices_and_labels(row: Any, options: Any, labels: Any) -> None:
    for label, target in labels.items():
        found = question_of(row | {"label": label}, 0, **options)
        assert (found.text, found.target) == (row.get("text", "?"), target)
        assert len(found.choices) > target


@pytest.mark.parametrize(
    ("row", "options", "message"),
    [
        (LETTERED | {"label": "D"}, {}, "none of its 3 choices"),
        (LETTERED | {"label": "3"}, {}, "(?s)none of its 3 choices.*0 to 2;.*--task.count_from=0"),
        (LETTERED | {"C": "", "label": "C"}, {}, "none of its 2 choices"),
        (LETTERED | {"label": ""}, {}, "none of its 3 choices"),
        (FROM_ONE | {"label": 0}, {}, "(?s)none of its 3 choices.*1 to 3"),
        (FROM_ONE | {"label": 3}, {"count_from": 0}, "none of its 3 choices"),
        (NAMED | {"label": 1}, {}, "the choices of row 0 are no list"),
        (
            NAMED | {"label": 1},
            {"choice_columns": ["選択肢１", "選択肢4"]},
            "(?s)row 0 has no '選択肢4'.*there are question, 選択肢１.*--choice-column",
        ),
        (NAMED | {"label": 1}, {"choice_columns": NAMES[:1]}, "row 0 has 1 choices"),
        ({"label": 0, "A": "猫", "B": "犬"}, {}, "row 0 has no 'text'"),
    ],
)
def test_bad_choices_and_labels(row: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        question_of(row, 0, **options)


def test_long_texts_are_counted() -> None:
    rows = [dict(ROWS[0], text="the cat " * 40), ROWS[1]]
    made = task(loaded_of(), rows, max_length=20)
    assert made.examples.notes == ("3 of 5 texts cut to 20 tokens, keeping the head",)
    assert made.examples.length(0) == 20
    with pytest.raises(InputError, match="multiple-choice"):
        task(tiny.created(BERT, "classification", "english"), ROWS)


@pytest.mark.parametrize("kind", ["english", "japanese"])
def test_it_learns(kind: str) -> None:
    rows = ROWS if kind == "english" else JAPANESE
    loaded = tiny.created(replace(BERT, init_std=0.2), "multiple-choice", kind)
    made = task(loaded, rows, evaluation=rows, evaluation_batch_size=2)
    assert (made.metric, made.lower) == ("accuracy", False)
    before = tiny.metrics(made, loaded.model)
    found = tiny.train(made, loaded.model, 40)
    after = tiny.metrics(made, loaded.model)
    assert found[0] == pytest.approx(before["loss"], rel=1e-4)
    assert (after["accuracy"], after["loss"] < 0.1) == (1.0, True)
