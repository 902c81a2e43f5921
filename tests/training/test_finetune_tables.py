"""Plain tables with columns of any name: `chumoku finetune qa`, `chat`, `multiple-choice`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from text import chat_templates as templates
from tokenizers import Tokenizer as Engine
from training.objectives import tiny

import chumoku
from chumoku.cli import main
from chumoku.models import gpt2
from chumoku.text.fast import FastTokenizer
from chumoku.training.finetune import Wish, recipe_of
from chumoku.training.recipe import Recipe, build, read_recipe
from chumoku.training.runner import train

Capture = pytest.CaptureFixture[str]

QA = [f"{n}番はどこ?,太郎さんは東京都に住み、花子さんは奈良に住む。,東京都" for n in range(20)]
TALK = [f"猫は{n}匹?,はい、{n}匹です。,短く答える。" for n in range(20)]
CHOICES = [f"{n}番の首都は?,東京,寿司{n},太郎,{n % 3 + 1}" for n in range(20)]


def written(path: Path, header: str, rows: list[str], encoding: str = "cp932") -> Path:
    mark = "\t" if path.suffix == ".tsv" else ","
    text = "\n".join([header, *rows, ""]).replace(",", mark)
    path.write_text(text, encoding)
    return path


@pytest.fixture(autouse=True)
def one_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 with random weights and a chat template."""
    engine = Engine.from_str(tiny.tokenizer("gpt2").engine.to_str())
    engine.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    roles = {"bos": "<|endoftext|>", "eos": "<|im_end|>"}
    tokens = FastTokenizer(engine, roles, chat_template=templates.CHATML)
    config = gpt2.Config(width=16, num_blocks=1, num_heads=2, max_positions=256)
    config = replace(config, feedforward_width=16, vocab_size=tokens.vocab_size)
    folder = tmp_path_factory.mktemp("talker")
    chumoku.save(replace(tiny.created(config, "causal-lm", None), tokenizer=tokens), folder)
    return folder


def finetune(verb: str, rows: Path, *words: str, model: str | Path = "tiny:bert-ja") -> int:
    few = ["--training.steps=2", "--batch-size", "4", "--device", "cpu"]
    fixed = ["--model", str(model), "--train", str(rows), "--output", "out"]
    return main(["finetune", verb, *fixed, *words, *few])


def recipe_run() -> Recipe:
    return read_recipe("out/run/recipe.toml")


# ---- qa ----

NAMED_QA = ["--question-column", "質問", "--answer-column", "回答"]


@pytest.mark.parametrize("name", ["train.csv", "train.tsv"])
@pytest.mark.parametrize("flag", ["--context-column", "--text-column"])
def test_qa_on_a_table(name: str, flag: str, capsys: Capture) -> None:
    rows = written(Path(name), "質問,文脈,回答", QA)
    assert finetune("qa", rows, *NAMED_QA, flag, "文脈") == 0
    shown = capsys.readouterr()
    assert f"{name}: cp932" in shown.out + shown.err
    ours = {"question": "質問", "answer": "回答", "context": "文脈"}
    assert recipe_run().data.columns == ours
    assert Path("out/model.safetensors").is_file()


def test_a_recipe_says_the_same_as_the_flags(capsys: Capture) -> None:
    rows = written(Path("train.csv"), "質問,文脈,回答", QA)
    assert finetune("qa", rows, *NAMED_QA, "--context-column", "文脈") == 0
    lines = Path("out/run/log.jsonl").read_text().splitlines()
    losses = [json.loads(line).get("loss") for line in lines]
    table: dict[str, Any] = {
        "model": {"source": "tiny:bert-ja"},
        "data": {
            "train": ["train.csv"],
            "columns": {"question": "質問", "context": "文脈", "answer": "回答"},
            "holdout": 0.1,
        },
        "task": {"kind": "question-answering"},
        "training": {
            "steps": 2,
            "batching": {"batch_size": 4},
            "optimiser": {"learning_rate": 5e-5},
            "schedule": {"kind": "linear", "warmup_fraction": 0.1},
        },
    }
    train(build(Recipe, table, "test"), Path("again"), device="cpu")
    lines = Path("again/run/log.jsonl").read_text().splitlines()
    assert [json.loads(line).get("loss") for line in lines] == losses
    assert sum(loss is not None for loss in losses) >= 2


def test_an_answer_that_is_not_there_is_a_reject(capsys: Capture) -> None:
    faulty = [*QA[:4], "誰?,太郎さんは東京都に住む。,大阪", *QA[4:]]
    rows = written(Path("train.csv"), "質問,文脈,回答", faulty)
    words = [*NAMED_QA, "--context-column", "文脈"]
    assert finetune("qa", rows, *words) == 2
    said = capsys.readouterr().err
    assert "1 of 21 rows are bad: train.csv:6: the answer '大阪' of the row is not in its" in said
    assert "--data.max_rejects=0.0" in said
    assert finetune("qa", rows, *words, "--data.max_rejects=0.1") == 0
    (listed,) = [json.loads(one) for one in Path("out/run/rejects.jsonl").read_text().splitlines()]
    assert (listed["file"], listed["line"]) == ("train.csv", 6)


def test_squad_needs_no_flags() -> None:
    asked = [
        {"id": str(n), "question": "どこ?", "answers": [{"text": "東京都", "answer_start": 5}]}
        for n in range(20)
    ]
    article = {"paragraphs": [{"context": "太郎さんは東京都に住む。", "qas": asked}]}
    Path("train.json").write_text(json.dumps({"data": [article]}), "utf-8")
    assert finetune("qa", Path("train.json")) == 0


# ---- chat ----


@pytest.mark.parametrize("system", [[], ["--system-column", "指示"]])
def test_chat_on_a_table(talker: Path, system: list[str]) -> None:
    rows = written(Path("train.csv"), "質問,回答,指示", TALK)
    assert finetune("chat", rows, *NAMED_QA, *system, model=talker) == 0
    ours = {"user": "質問", "assistant": "回答"} | ({"system": "指示"} if system else {})
    assert recipe_run().data.columns == ours


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "b"}]},
        {"conversations": [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]},
        {"instruction": "a?", "input": "", "output": "b"},
        {"instruction": "a?", "context": "c", "response": "b"},
        {"prompt": "a?", "completion": "b"},
    ],
)
def test_chat_on_published_forms(talker: Path, row: Any) -> None:
    Path("train.jsonl").write_text((json.dumps(row) + "\n") * 20, "utf-8")
    assert finetune("chat", Path("train.jsonl"), model=talker) == 0
    assert not recipe_run().data.columns


def test_an_empty_answer_is_a_reject(talker: Path, capsys: Capture) -> None:
    rows = written(Path("train.csv"), "質問,回答,指示", [*TALK, "猫は?,,短く。"])
    assert finetune("chat", rows, *NAMED_QA, model=talker) == 2
    assert "train.csv:22: 'assistant' of the row is empty" in capsys.readouterr().err


# ---- multiple choice ----

NAMED_CHOICES = [word for n in (1, 2, 3) for word in ("--choice-column", f"選択肢{n}")]


def test_multiple_choice_on_a_table() -> None:
    rows = written(Path("train.csv"), "問題,選択肢1,選択肢2,選択肢3,正解", CHOICES)
    words = ["--text-column", "問題", "--label-column", "正解", *NAMED_CHOICES]
    assert finetune("multiple-choice", rows, *words) == 0
    recipe = recipe_run()
    assert recipe.data.columns == {"text": "問題", "label": "正解"}
    assert recipe.task["choice_columns"] == ["選択肢1", "選択肢2", "選択肢3"]


def test_labels_that_count_otherwise_say_so(capsys: Capture) -> None:
    counted = [f"{n}?,東京,寿司,{n % 2}" for n in range(20)]
    rows = written(Path("train.csv"), "question,choice1,choice2,label", counted)
    assert finetune("multiple-choice", rows) == 2
    assert "train.csv:2: the label '0' of the row is none of its 2" in capsys.readouterr().err
    assert finetune("multiple-choice", rows, "--task.count_from=0") == 0


@pytest.mark.parametrize(
    "header", ["question,choice0,choice1,choice2,label", "question,A,B,C,label"]
)
def test_usual_names_need_no_flags(header: str) -> None:
    lettered = [row[:-1] + "ABC"[n % 3] for n, row in enumerate(CHOICES)]
    rows = written(Path("train.csv"), header, lettered)
    assert finetune("multiple-choice", rows) == 0


# ---- what is said of a wrong name ----


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        (
            "qa",
            ["--question-column", "質門"],
            ["no column '質門'", "there are 回答, 文脈, 質問", "--question-column NAME"],
        ),
        (
            "qa",
            ["--question-column", "質問", "--context-column", "文脈"],
            ["train.csv:2: the row has no 'answer'", "回答", "--answer-column NAME"],
        ),
        (
            "qa",
            ["--text-column", "文脈", "--context-column", "文脈"],
            ["--text-column and --context-column mean the same column"],
        ),
        ("chat", [], ["train.csv:2: the row has no messages", "質問", "--question-column"]),
        ("chat", ["--question-column", "質問"], ["no answer", "--answer-column"]),
        ("chat", ["--text-column", "質問"], ["has no --text-column", "--question-column"]),
        ("chat", ["--choice-column", "質問"], ["chat has no --choice-column", "--answer-column"]),
        (
            "multiple-choice",
            ["--text-column", "質問", "--label-column", "回答"],
            ["train.csv:2: the row has 0 choices", "--choice-column"],
        ),
        (
            "multiple-choice",
            ["--text-column", "質問", "--label-column", "回答", "--choice-column", "文眽"],
            ["train.csv:2: the row has no '文眽'", "文脈", "--choice-column"],
        ),
        ("multiple-choice", ["--pair-column", "質問"], ["--choice-column"]),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_ones(
    verb: str, words: list[str], said: list[str], talker: Path, capsys: Capture
) -> None:
    rows = written(Path("train.csv"), "質問,文脈,回答", QA)
    assert finetune(verb, rows, *words, model=talker if verb == "chat" else "tiny:bert-ja") == 2
    shown = capsys.readouterr().err
    for one in said:
        assert one in shown
    assert "max_rejects" not in shown  # where every row lacks a column, it would not help


def test_the_advice_can_be_typed() -> None:
    rows = written(Path("train.csv"), "質問,文脈,回答", QA)
    ours = {"question": "質問", "context": "文脈", "answer": "回答"}
    assert finetune("qa", rows, *(f"--data.columns.{k}={v}" for k, v in ours.items())) == 0
    assert recipe_run().data.columns == ours


def test_a_dry_run_prints_the_recipe(capsys: Capture) -> None:
    words = ["--label-column", "正解", *NAMED_CHOICES, "--dry-run"]
    assert finetune("multiple-choice", Path("t.csv"), "--question-column", "問題", *words) == 0
    shown = capsys.readouterr().out
    assert 'choice_columns = ["選択肢1", "選択肢2", "選択肢3"]' in shown
    assert '[data.columns]\nlabel = "正解"\ntext = "問題"' in shown
    assert not Path("out").exists()


def test_columns_and_choices_of_a_wish() -> None:
    columns = {"context_column": "文", "question_column": "問"}
    recipe = recipe_of("qa", Wish("m", ("t.csv",), columns=columns))
    assert recipe.data.columns == {"context": "文", "question": "問"}
    assert "choice_columns" not in recipe_of("multiple-choice", Wish("m", ("t.csv",))).task
