"""Each loss beside its literal formula, labels and weights, long texts, and learning."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training.objectives import tiny

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import bert, distilbert, gpt2
from chumoku.training.objectives import classification, text_rows
from chumoku.training.objectives.classification import labels_of, task

BERT = bert.Config(
    max_positions=64,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    dropout=0.0,
    attention_dropout=0.0,
    labels=("bad", "good", "odd"),
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
    labels=BERT.labels,
)
GPT2 = gpt2.Config(max_positions=64, width=24, num_blocks=2, num_heads=4, labels=BERT.labels)
ROWS: list[dict[str, Any]] = [
    {"text": "the cat sat.", "label": "bad"},
    {"text": "mary works at the big bridge and lives in new york.", "label": "odd"},
    {"text": "john is a good king", "pair": "but not a good example", "label": "good"},
]


def loaded_of(config: Any = BERT, *, kind: str = "english", **changes: Any) -> Loaded:
    loaded = tiny.created(replace(config, **changes), "classification", kind)
    tiny.randomised(loaded.model)
    return loaded


def losses(loaded: Loaded, rows: Any, **options: Any) -> tuple[float, float]:
    """(total, units) of all rows in one batch."""
    made = task(loaded, rows, **options)
    batch = made.collate([made.examples.example(i, 0) for i in range(len(rows))])
    loss = made.loss(loaded.model.eval(), batch)
    return float(loss.total.detach()), float(loss.units)


# ---- formulas ----


def log_softmax(row: list[float]) -> list[float]:
    total = math.fsum(math.exp(z) for z in row)
    return [z - math.log(total) for z in row]


def by_hand(logits: Any, gold: list[int], weights: list[float], eps: float) -> tuple[float, float]:
    total = 0.0
    for row, y in zip(logits.tolist(), gold, strict=True):
        log_p = log_softmax(row)
        total -= (1 - eps) * weights[y] * log_p[y]
        total -= eps / len(row) * math.fsum(w * p for w, p in zip(weights, log_p, strict=True))
    return total, math.fsum(weights[y] for y in gold)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_softmax_loss_is_its_formula(dtype: torch.dtype, eps: float) -> None:
    logits = torch.randn(7, 4, dtype=dtype, generator=torch.Generator().manual_seed(1))
    gold = [0, 3, 1, 1, 2, 0, 3]
    weights = [0.5, 2.0, 1.0, 3.0]
    loss = classification.softmax_loss(logits, torch.tensor(gold), torch.tensor(weights), eps)
    total, units = by_hand(logits, gold, weights, eps)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(loss.total) == pytest.approx(total, rel=tolerance)
    assert float(loss.units) == pytest.approx(units)
    shifted = classification.softmax_loss(
        logits, torch.tensor(gold).roll(1), torch.tensor(weights), eps
    )
    assert float(shifted.total) != pytest.approx(total, rel=1e-3)
    published = F.cross_entropy(
        logits, torch.tensor(gold), torch.tensor(weights, dtype=dtype), label_smoothing=eps
    )
    assert float(loss.total / loss.units) == pytest.approx(float(published), rel=tolerance)


def test_sigmoid_loss_is_its_formula() -> None:
    logits = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    gold = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 0]])
    weights = [1.0, 4.0, 0.5]
    total = 0.0
    for row, ys in zip(logits.tolist(), gold.tolist(), strict=True):
        for z, y, w in zip(row, ys, weights, strict=True):
            s = 1 / (1 + math.exp(-z))
            total -= (w * y * math.log(s) + (1 - y) * math.log(1 - s)) / 3
    loss = classification.sigmoid_loss(logits, gold.float(), torch.tensor(weights))
    assert (float(loss.total), int(loss.units)) == (pytest.approx(total, rel=1e-12), 5)


def test_squared_loss_is_its_formula_and_needs_float32_of_halves() -> None:
    values = torch.tensor([[1.5], [-2.0], [300.0]])
    loss = classification.squared_loss(values, torch.tensor([1.0, 2.0, 0.0]))
    assert float(loss.total) == 0.25 + 16.0 + 90000.0
    halves = classification.squared_loss(values.half(), torch.tensor([1.0, 2.0, 0.0]))
    assert float(halves.total) == float(loss.total)  # float16 would be infinite


# ---- rows to loss ----


@pytest.mark.parametrize("config", [BERT, DISTIL, GPT2], ids=["bert", "distilbert", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_is_the_sum_of_its_rows(config: Any, dtype: torch.dtype) -> None:
    loaded = loaded_of(config, kind="gpt2" if config is GPT2 else "english")
    loaded.model.to(dtype)
    together, units = losses(loaded, ROWS)
    alone = [losses(loaded, [row])[0] for row in ROWS]
    assert units == 3
    assert together == pytest.approx(sum(alone), rel=1e-5 if dtype == torch.float32 else 1e-10)


def test_the_rows_reach_the_model_as_the_verb_encodes_them() -> None:
    loaded = loaded_of()
    made = task(loaded, ROWS)
    batch = made.collate([made.examples.example(i, 0) for i in range(3)])
    encoding = loaded.tokenizer.encode(ROWS[2]["text"], ROWS[2]["pair"])
    T = len(encoding)
    assert batch.ids_BT[2, :T].tolist() == encoding.ids
    assert batch.segments_BT[2, :T].tolist() == encoding.segments
    assert batch.mask_BT.sum(1).tolist() == [made.examples.length(i) for i in range(3)]
    assert batch.targets.tolist() == [0, 2, 1]
    assert losses(loaded, ROWS) == pytest.approx(
        (float(made.loss(loaded.model, batch).total.detach()), 3)
    )


def test_the_published_class_gives_the_same_loss() -> None:
    import transformers

    loaded = loaded_of()
    made = task(loaded, ROWS)
    batch = made.collate([made.examples.example(i, 0) for i in range(3)])
    config = transformers.BertConfig(
        vocab_size=loaded.config.vocab_size,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=36,
        max_position_embeddings=64,
        num_labels=3,
    )
    theirs = transformers.BertForSequenceClassification(config).eval()
    table = bert.names(loaded.config, "classification", "hub")
    ours = loaded.model.state_dict()
    state = {n: ours[table.find(n).ours[0]] for n in theirs.state_dict() if table.find(n)}
    theirs.load_state_dict(state, strict=False)
    found = theirs(batch.ids_BT, batch.mask_BT.long(), batch.segments_BT, labels=batch.targets)
    loss = made.loss(loaded.model, batch)
    mean = (loss.total / loss.units).detach()
    assert float(mean) == pytest.approx(float(found.loss.detach()), rel=1e-5)


# ---- labels ----


def test_labels_are_sorted_by_value_or_by_letter() -> None:
    rows = [{"label": label} for label in ("10", 9, 2.0, "2")]
    assert labels_of(rows, problem="single") == ("2", "9", "10")
    assert labels_of([{"label": "b"}, {"label": "a"}, {"label": "b"}]) == ("a", "b")
    assert labels_of([{"label": ["x", "b"]}, {"label": []}, {"label": ["a"]}]) == ("a", "b", "x")
    assert labels_of([{"label": "x|b"}, {"label": ""}], problem="multi", separator="|") == (
        "b",
        "x",
    )
    assert labels_of([{"label": 2.5}]) == ("score",)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (["0.5", "1.5", "2"], "regression"),
        ([0.5, 2.0, None], "regression"),
        ([1.0, 2, 3], "single"),
        (["1.0", "2.0"], "single"),
        (["1.5", "2.x"], "single"),
        ([*(n / 2 for n in range(40)), "N/A"], "regression"),  # a row to reject, not 41 classes
        (["nan", "0.5"], "single"),
    ],
)
def test_numbers_with_a_fraction_are_scores_however_stored(values: Any, problem: str) -> None:
    assert classification.problem_of([{"label": value} for value in values]) == problem


def test_labels_that_nothing_can_be_learnt_from() -> None:
    with pytest.raises(InputError, match="all 2 rows have the one label 'a'"):
        labels_of([{"label": "a"}, {"label": "a"}])
    with pytest.raises(InputError, match="the label of row 1 is empty"):
        labels_of([{"label": "a"}, {"label": " "}, {"label": "b"}])
    with pytest.raises(InputError, match="'nan' of row 0 is not a number"):
        classification.target_of({"label": "nan"}, 0, ("score",), "regression", None)


def test_a_label_outside_the_head_is_named_with_its_row() -> None:
    rows = [*ROWS, {"text": "the cat", "label": "terrible"}]
    with pytest.raises(InputError, match=r"'terrible' of row 3 is none of .*: bad, good, odd"):
        task(loaded_of(), rows)
    with pytest.raises(InputError, match="label True"):
        task(loaded_of(), [{"text": "a", "label": True}])
    assert text_rows.number_of(2, ("bad", "good", "odd"), "row 0") == 2
    assert text_rows.number_of(2, ("2", "1", "0"), "row 0") == 0  # the name wins
    with pytest.raises(InputError, match="label 3 of row 0 is none of the model's: 1, 2, 4, 5"):
        text_rows.number_of(3, ("1", "2", "4", "5"), "row 0")
    with pytest.raises(InputError, match="label 3"):
        text_rows.number_of(3, ("bad", "good", "odd"), "row 0")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, "row 0 has no 'label'"),
        ({"label": "bad"}, "row 0 has no 'text'"),
        ({"text": " ", "label": "bad"}, "'text' of row 0 is empty"),
        ({"text": 3, "label": "bad"}, "not a text but int"),
        ({"text": "a", "pair": 1, "label": "bad"}, "'pair' of row 0"),
    ],
)
def test_bad_rows(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        task(loaded_of(), [row])


def test_bad_options() -> None:
    with pytest.raises(InputError, match="no rows"):
        task(loaded_of(), [])
    with pytest.raises(ConfigError, match="smoothing"):
        task(loaded_of(), ROWS, smoothing=1.0)
    with pytest.raises(ConfigError, match="keep"):
        task(loaded_of(), ROWS, keep="middle")
    with pytest.raises(ConfigError, match="problem"):
        task(loaded_of(), ROWS, problem="double")
    with pytest.raises(InputError, match="length is 65, the model takes 64"):
        task(loaded_of(), ROWS, max_length=65)
    with pytest.raises(InputError, match="head of one class"):
        task(loaded_of(), [{"text": "a", "label": 2.5}])
    with pytest.raises(InputError, match="'fast' of row 0 is not a number"):
        task(loaded_of(labels=("score",)), [{"text": "a", "label": "fast"}])
    loaded = tiny.created(BERT, "encoder", "english")
    with pytest.raises(InputError, match="classification"):
        task(loaded, ROWS)


def test_weights() -> None:
    gold = [0, 0, 0, 1, 2, 2]
    weigh = classification.weights_of
    balanced = weigh("balanced", gold, BERT.labels, "single")
    assert balanced.tolist() == pytest.approx([6 / 9, 6 / 3, 6 / 6])
    rows = [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]
    assert weigh("balanced", rows, ("a", "b"), "multi").tolist() == pytest.approx([1 / 3, 3.0])
    assert weigh({"odd": 3}, gold, BERT.labels, "single").tolist() == [1.0, 1.0, 3.0]
    with pytest.raises(InputError, match="no row has the label 'odd'"):
        weigh("balanced", [0, 1], BERT.labels, "single")
    for wrong in ([1.0], [1.0, 1.0, -1.0], {"none": 1.0}, "equal"):
        with pytest.raises(ConfigError, match="class_weights"):
            weigh(wrong, gold, BERT.labels, "single")
    with pytest.raises(ConfigError, match="regression"):
        weigh([1.0], [0.5], ("score",), "regression")
    total, units = losses(loaded_of(), ROWS, class_weights=[2.0, 3.0, 5.0])
    plain = [losses(loaded_of(), [row])[0] for row in ROWS]
    assert units == 10.0
    assert total == pytest.approx(2 * plain[0] + 5 * plain[1] + 3 * plain[2], rel=1e-5)


def test_the_problem_goes_into_the_config() -> None:
    loaded = classification.described(loaded_of(), "multi")
    assert loaded.config.problem_type == "multi_label_classification"
    assert bert.write_config(loaded.config, "classification")["problem_type"] == (
        "multi_label_classification"
    )
    assert classification.problem_of([{"label": "a"}], BERT.labels, "auto", "regression") == (
        "regression"
    )


# ---- long texts ----


@pytest.mark.parametrize("keep", text_rows.KEEP)
def test_what_stays_of_a_long_text(keep: str) -> None:
    tokenizer = tiny.tokenizer("english")
    words = list("abcdefghijklmnopqrstuvwxyz")
    encoding = tokenizer.encode(" ".join(words))
    short = text_rows.shorten(encoding, 10, keep)
    assert len(short) == 10
    assert (short.tokens[0], short.tokens[-1]) == ("[CLS]", "[SEP]")
    kept = {"head": words[:8], "tail": words[-8:], "head+tail": words[:2] + words[-6:]}[keep]
    assert short.tokens[1:-1] == kept
    pair = text_rows.shorten(tokenizer.encode(" ".join(words), "1 2 3"), 12, keep)
    assert len(pair) == 12
    assert [t for t, s in zip(pair.tokens, pair.sequences, strict=True) if s == 1] == list("123")
    assert text_rows.shorten(encoding, 28, keep) == encoding


def test_head_is_what_the_verbs_keep() -> None:
    from chumoku.tasks import common

    tokenizer = tiny.tokenizer("english")
    encoding = tokenizer.encode("the cat sat in paris " * 4, "a dog and a king " * 6)
    for limit in range(4, len(encoding)):
        assert text_rows.shorten(encoding, limit) == common.shorten(encoding, limit)


def test_cuts_are_counted_and_said() -> None:
    rows = [*ROWS, {"text": "the cat " * 50, "label": "bad"}]
    made = task(loaded_of(), rows, max_length=20, keep="head+tail")
    assert made.examples.notes == ("1 of 4 texts cut to 20 tokens, keeping the head and the tail",)
    assert task(loaded_of(), ROWS).examples.notes == ()


# ---- learning and judging ----


def test_it_learns_a_planted_word() -> None:
    rng = torch.Generator().manual_seed(3)
    words = ["the", "cat", "in", "paris", "john", "works"]
    rows = []
    for number in range(24):
        text = [words[int(torch.randint(6, (), generator=rng))] for _ in range(5)]
        text[number % 5] = ("bad", "good", "music")[number % 3]
        rows.append({"text": " ".join(text), "label": BERT.labels[number % 3]})
    loaded = tiny.created(replace(BERT, init_std=0.2), "classification", "english")
    made = task(loaded, rows, evaluation=rows)
    before = tiny.metrics(made, loaded.model)
    found = tiny.train(made, loaded.model, 40)
    after = tiny.metrics(made, loaded.model)
    assert (made.metric, made.lower) == ("accuracy", False)
    assert found[0] == pytest.approx(before["loss"], rel=1e-3)
    assert after["loss"] < 0.1 < before["loss"]
    assert after["accuracy"] == 1.0
    from chumoku.tasks.classification import classify

    assert classify("the good paris", loaded)[0]["label"] == "good"


def test_multi_and_regression_learn() -> None:
    rows = [
        {"text": "the good cat", "label": "cat|good"},
        {"text": "a cat", "label": "cat"},
        {"text": "a good dog", "label": "good"},
        {"text": "the dog", "label": ""},
    ]
    config = replace(BERT, labels=("cat", "good"), problem_type="multi_label_classification")
    config = replace(config, init_std=0.2)
    loaded = tiny.created(config, "classification", "english")
    made = task(loaded, rows, evaluation=rows, separator="|")
    tiny.train(made, loaded.model, 40)
    seen = tiny.metrics(made, loaded.model)
    assert seen["macro_f1"] == 1.0
    assert made.metric == "macro_f1"

    scores = [{"text": "the cat", "pair": w, "label": n} for n, w in enumerate(["a", "b", "c"])]
    loaded = tiny.created(
        replace(BERT, labels=("score",), init_std=0.2), "classification", "english"
    )
    made = task(loaded, scores, evaluation=scores)
    tiny.train(made, loaded.model, 80)
    seen = tiny.metrics(made, loaded.model)
    assert seen["loss"] < 0.05
    assert seen["spearman"] == pytest.approx(1.0)


def test_an_evaluation_is_in_the_order_of_its_rows() -> None:
    loaded = loaded_of()
    made = task(loaded, ROWS)
    found = classification.answers(loaded.model, made.examples, made.collate, 2)
    for number in range(3):
        batch = made.collate([made.examples.example(number, 0)])
        row = text_rows.answer(loaded.model, batch)[0]
        torch.testing.assert_close(found.logits_BC[number], row.detach(), rtol=1e-4, atol=1e-5)
    assert found.targets.tolist() == [0, 2, 1]
