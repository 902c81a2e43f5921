"""The loss beside its formula, answers through windows and back, and learning."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from training.objectives import tiny

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import bert, distilbert
from chumoku.tasks.questions import qa
from chumoku.training.objectives import question_answering
from chumoku.training.objectives.question_answering import (
    Decoder,
    Reader,
    place_of,
    question_of,
    span_loss,
    task,
)

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
    span_dropout=0.0,
)


def row(question: str, context: str, *answers: str) -> dict[str, Any]:
    starts = [context.index(text) for text in answers]
    return {
        "question": question,
        "context": context,
        "answers": {"text": list(answers), "answer_start": starts},
    }


ROWS = [
    row("where is it?", "mary works at the big bridge and lives in new york.", "new york"),
    row("who is it?", "john is a good king.", "john", "a good king"),
    row("when?", "the cat sat."),
]
JAPANESE = [
    row("どこ?", "太郎さんは東京都に住んでいる。", "東京都"),
    row("私は?", "花子さんは京都に行く。", "花子さん"),
]


def loaded_of(config: Any = BERT, kind: str = "english", **changes: Any) -> Loaded:
    loaded = tiny.created(replace(config, **changes), "question-answering", kind)
    tiny.randomised(loaded.model)
    return loaded


def batch_of(made: Any) -> Any:
    return made.collate([made.examples.example(i, 0) for i in range(len(made.examples))])


# ---- the loss ----


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_loss_is_its_formula(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(1)
    start, end = (torch.randn(3, 5, dtype=dtype, generator=rng) for _ in range(2))
    lengths, places = [5, 3, 4], [(1, 3), (0, 0), (2, 2)]
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    total = 0.0
    for b, length in enumerate(lengths):
        for logits, place in zip((start, end), places[b], strict=True):
            z = logits[b, :length].tolist()
            total -= (z[place] - math.log(math.fsum(map(math.exp, z)))) / 2
    loss = span_loss(start, end, mask, torch.tensor(places))
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(loss.total) == pytest.approx(total, rel=tolerance)
    assert int(loss.units) == 3
    assert float(span_loss(start, end, None, torch.tensor(places)).total) > total + 1e-3
    swapped = span_loss(end, start, mask, torch.tensor(places))
    assert float(swapped.total) != pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("config", [BERT, DISTIL], ids=["bert", "distilbert"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_sum_of_its_rows(config: Any, dtype: torch.dtype) -> None:
    loaded = loaded_of(config)
    loaded.model.to(dtype).eval()

    def total(rows: Any) -> float:
        made = task(loaded, rows)
        return float(made.loss(loaded.model, batch_of(made)).total.detach())

    alone = sum(total([one]) for one in ROWS)
    assert total(ROWS) == pytest.approx(alone, rel=1e-5 if dtype == torch.float32 else 1e-10)


# ---- windows ----


def said(tokenizer: Any, asked: Any, limit: int, stride: int | None, shift: int = 0) -> str:
    """What the verb's decoding reads off scores that point to the windows' places."""
    windows = Reader(tokenizer, limit, stride).windows(asked)
    examples, spans = [], []
    for window in windows:
        first, last = place_of(window, asked)
        examples.append(question_answering.Example(None, (first, last), 0))  # type: ignore[arg-type]
        start, end = torch.full((2, len(window)), -9.0).unbind(0)
        start, end = start.clone(), end.clone()
        place = min(last + shift, len(window) - 2) if last else 0
        start[min(first + shift, place) if last else 0] = end[place] = 9.0
        spans.append((start, end))
    held_out = question_answering.Windows.__new__(question_answering.Windows)
    held_out.examples, held_out.asked, held_out.encodings = examples, [asked], windows
    return Decoder(tokenizer.cls_id, 30).answers(held_out, spans)[0]


@pytest.mark.parametrize("kind", ["english", "japanese"])
def test_gold_answers_survive_the_windows(kind: str) -> None:
    """Random stretches of random contexts: text -> window -> tokens -> text."""
    rng = random.Random(kind)
    tokenizer = tiny.tokenizer(kind)
    japanese = kind == "japanese"
    words = ["mary", "new", "york", "london", "the", "cat", "testing", "of", "a", ",", "!"]
    if japanese:
        words = [
            "太郎",
            "さん",
            "は",
            "東京",
            "に",
            "京都",
            "へ",
            "ラーメン",
            "を",
            "。",
            "住ん",
            "で",
        ]
    joiner = "" if japanese else " "
    many = caught = 0
    for _ in range(60):
        context = joiner.join(rng.choice(words) for _ in range(rng.randint(4, 60)))
        # An answer is a stretch of whole words as the tokenizer has them.
        encoding = tokenizer.encode(context, special=False)
        first = rng.randrange(len(encoding))
        last = min(first + rng.randrange(4), len(encoding) - 1)
        while first and encoding.words[first] == encoding.words[first - 1]:
            first -= 1
        while last + 1 < len(encoding) and encoding.words[last + 1] == encoding.words[last]:
            last += 1
        start, end = encoding.offsets[first][0], encoding.offsets[last][1]
        given = {"text": [context[start:end]], "answer_start": [start]}
        asked = question_of({"question": "where", "context": context, "answers": given}, 0)
        windows = Reader(tokenizer, 24, 10).windows(asked)
        many += len(windows) > 1
        assert max(map(len, windows)) <= 24
        places = [place_of(window, asked) for window in windows]
        assert any(last for _, last in places)
        assert said(tokenizer, asked, 24, 10) == context[start:end]
        for window, (first, last) in zip(windows, places, strict=True):
            if last:
                assert window.offsets[first][0] == start
                assert window.offsets[last][1] == end
        caught += said(tokenizer, asked, 24, 10, shift=2) != context[start:end]
    assert many > 20
    assert caught > 45  # two tokens further the same words may stand again


def test_handmade_places() -> None:
    reader = Reader(tiny.tokenizer("japanese"), 64, None)
    asked = question_of(JAPANESE[0], 0)
    (window,) = reader.windows(asked)
    first, last = place_of(window, asked)
    assert window.tokens[first : last + 1] == ["東京", "都"]
    inside = question_of(row("どこ?", "太郎さんは東京都に", "京"), 0)  # within a token
    (window,) = reader.windows(inside)
    first, last = place_of(window, inside)
    assert window.tokens[first : last + 1] == ["東京"]


def test_a_window_without_the_whole_answer_points_to_its_first_token() -> None:
    tokenizer = tiny.tokenizer("english")
    context = "the cat sat in the big city of london and mary works in new york"
    asked = question_of(row("where", context, "new york"), 0)
    windows = Reader(tokenizer, 12, 4).windows(asked)
    assert len(windows) == 3
    places = [place_of(window, asked) for window in windows]
    assert places[0] == (0, 0)
    assert places[-1][1] > 0
    half = question_of(row("where", context, "city of london and"), 0)
    for window in windows:
        place = place_of(window, half)
        whole = {"city", "of", "london", "and"} <= set(window.tokens)
        assert (place != (0, 0)) == whole
    made = task(loaded_of(), [row("where", context, "new york")], max_length=12, stride=4)
    assert made.examples.notes == (
        "1 questions are read in 3 windows",
        "2 of these do not hold the answer",
    )


# ---- rows ----


def test_both_forms_of_answers() -> None:
    listed = dict(ROWS[0], answers=[{"text": "new york", "answer_start": 42}])
    assert question_of(listed, 0) == question_of(ROWS[0], 0)
    assert question_of(ROWS[2], 0).answers == ()
    assert question_of(dict(ROWS[2], answers=[]), 0).answers == ()


PLAIN = {"question": "誰?", "context": "京子さんは東京都から京都に行く。"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"answer": " 東京都 "}, (("東京都", 5, False),)),
        ({"answer": "京都"}, (("京都", 6, True),)),  # inside 東京都 first
        ({"answer": "京都", "answer_start": ""}, (("京都", 6, True),)),
        ({"answer": "京都", "answer_start": "10"}, (("京都", 10, False),)),
        ({"answer": "京都", "answer_start": "10.0"}, (("京都", 10, False),)),
        ({"answer": "京子", "answer_start": 0}, (("京子", 0, False),)),
        ({"answer": ""}, ()),
        ({"answer": "", "answer_start": "-1"}, ()),
        ({"answer": {"text": ["京都"], "answer_start": [10]}}, (("京都", 10, False),)),
        ({"answer": "京子", "answers": {"text": [], "answer_start": []}}, (("京子", 0, False),)),
    ],
)
def test_an_answer_as_a_text(given: Any, expected: Any) -> None:
    assert question_of(PLAIN | given, 0).answers == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"answer": "大阪"}, "the answer '大阪' of row 0 is not in its context"),
        ({"answer": "京都", "answer_start": "9"}, "'京都' of row 0 is not at 9; 'ら京' is"),
        ({"answer": "京都", "answer_start": "9.5"}, "answer_start of row 0 is no whole number"),
        ({"answer": "京都", "answer_start": "inf"}, "no whole number"),
        ({"answer": "京都", "answer_start": 10**400}, "no whole number"),
        ({"answer": "京都", "answer_start": [10]}, "no whole number"),
        ({"answer": ["京都"]}, "the answers of row 0 are"),
        ({}, r"(?s)row 0 has no 'answer'.*there are question, context; --data\.columns\.answer="),
    ],
)
def test_a_text_that_is_no_answer(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        question_of(PLAIN | given, 0)


def test_what_was_guessed_is_said() -> None:
    made = task(
        loaded_of(kind="japanese"), [PLAIN | {"answer": text} for text in ("京都", "", "京子")]
    )
    assert made.examples.notes == (
        "1 of 3 questions have no answer in their context",
        "1 answers stand more than once: the first place is learnt",
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"answers": {"text": ["york"], "answer_start": [0]}},
            "is not at 0; 'mary' is",
        ),
        ({"answers": {"text": ["york"], "answer_start": [-5]}}, "not at -5"),
        ({"answers": {"text": [""], "answer_start": [3]}}, "'' of row 0"),
        ({"answers": {"text": ["york"]}}, "the answers of row 0 are"),
        ({"answers": {"text": ["a", "b"], "answer_start": [1]}}, "the answers of row 0 are"),
        ({"answers": "york"}, "the answers of row 0 are 'york'"),
        ({"answers": None}, "row 0 has no 'answers'"),
        ({"context": ""}, "'context' of row 0 is empty"),
    ],
)
def test_bad_rows(changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(loaded_of(), [ROWS[0] | changes])


def test_bad_options() -> None:
    for name, value in {"language": "fr", "max_answer_length": 0, "stride": -1}.items():
        with pytest.raises(ConfigError, match=name):
            task(loaded_of(), ROWS, **{name: value})
    with pytest.raises(InputError, match="stride"):
        task(loaded_of(), [row("where", "the cat sat " * 9)], max_length=12, stride=12)
    with pytest.raises(InputError, match="question-answering"):
        task(tiny.created(BERT, "classification", "english"), ROWS)


# ---- judging and learning ----


def test_an_evaluation_answers_as_the_verb_does() -> None:
    loaded = loaded_of()
    long = row("where is it", "the cat sat. " * 9 + "mary works in london. " * 3, "london")
    rows = [ROWS[0], ROWS[1], long]
    made = task(loaded, rows, evaluation=rows, max_length=24, evaluation_batch_size=2)
    seen: list[list[str]] = []
    answers = Decoder.answers

    def spy(self: Any, held_out: Any, spans: Any) -> list[str]:
        seen.append(answers(self, held_out, spans))
        return seen[-1]

    Decoder.answers = spy  # type: ignore[method-assign]
    try:
        found = tiny.metrics(made, loaded.model)
    finally:
        Decoder.answers = answers  # type: ignore[method-assign]
    verb = [
        qa(one["question"], one["context"], loaded, max_length=24, max_answer_length=30)[0]
        for one in rows
    ]
    assert seen == [[one["answer"] for one in verb]]
    loss = made.loss(loaded.model, batch_of(made))
    assert found["loss"] == pytest.approx(float((loss.total / loss.units).detach()), rel=1e-4)


@pytest.mark.parametrize("kind", ["english", "japanese"])
def test_it_learns_where_answers_are(kind: str) -> None:
    rows = ROWS if kind == "english" else JAPANESE
    loaded = tiny.created(replace(BERT, init_std=0.2), "question-answering", kind)
    made = task(loaded, rows, evaluation=rows)
    assert (made.metric, made.lower) == ("f1", False)
    before = tiny.metrics(made, loaded.model)
    tiny.train(made, loaded.model, 40)
    after = tiny.metrics(made, loaded.model)
    assert before["f1"] < 80
    assert after["loss"] < 0.2
    assert (after["exact"], after["f1"]) == (100.0, 100.0)
    gold = rows[0]["answers"]["text"][0]
    assert qa(rows[0]["question"], rows[0]["context"], loaded)[0]["answer"] == gold
    if kind == "english":
        best = qa(rows[2]["question"], rows[2]["context"], loaded, impossible=True)[0]
        assert best["answer"] == ""


def test_the_language_of_the_metric() -> None:
    """Half of a Japanese answer's characters count; of an English answer only whole words."""
    asked = [question_of(one, 0) for one in JAPANESE]
    assert [one.answers[0].text for one in asked] == ["東京都", "花子さん"]
    for language, f1 in (("ja", 0.8), ("en", 0.0), ("auto", 0.8)):
        loaded = loaded_of(kind="japanese")
        made = task(loaded, JAPANESE, evaluation=JAPANESE[:1], language=language)
        original = Decoder.answers
        Decoder.answers = lambda *_: ["東京"]  # type: ignore[method-assign, assignment]
        try:
            found = tiny.metrics(made, loaded.model)
        finally:
            Decoder.answers = original  # type: ignore[method-assign]
        assert (found["exact"], found["f1"]) == (0.0, pytest.approx(100 * f1))
