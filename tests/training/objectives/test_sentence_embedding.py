"""Losses beside their formulas, vectors beside the verb's, prompts, and learning."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from training.objectives import tiny

from chumoku.checkpoints.sentence import Sentence
from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import bert
from chumoku.tasks.embedding import POOLINGS, embed, similarity
from chumoku.training.objectives import contrastive, sentence_embedding
from chumoku.training.objectives.sentence_embedding import task

BERT = bert.Config(
    max_positions=64,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    dropout=0.0,
    attention_dropout=0.0,
)
PAIRS = [
    {"text": "the cat sat.", "pair": "a cat in the city"},
    {"text": "mary works at the big bridge and lives in new york.", "pair": "mary"},
    {"text": "john is king", "pair": "john"},
]
TRIPLETS = [
    {"anchor": row["text"], "positive": row["pair"], "negative": word}
    for row, word in zip(PAIRS, ["music", "the sea is good", "bad"], strict=True)
]
SCORED = [row | {"score": score} for row, score in zip(PAIRS, [5, "2.5", 0.0], strict=True)]


def loaded_of(kind: str = "english", **changes: Any) -> Loaded:
    loaded = tiny.created(replace(BERT, **changes), "encoder", kind)
    tiny.randomised(loaded.model)
    return loaded


def batch_of(made: Any) -> Any:
    return made.collate([made.examples.example(i, 0) for i in range(len(made.examples))])


def total(loaded: Loaded, rows: Any, **options: Any) -> float:
    made = task(loaded, rows, **options)
    return float(made.loss(loaded.model, batch_of(made)).total.detach())


# ---- formulas ----


def vectors(count: int, dtype: torch.dtype, seed: int = 1) -> torch.Tensor:
    return torch.randn(count, 5, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def cosine(a: Any, b: Any) -> float:
    a, b = list(map(float, a)), list(map(float, b))
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def tolerance(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-12


@DTYPES
@pytest.mark.parametrize("symmetric", [False, True])
def test_in_batch(dtype: torch.dtype, symmetric: bool) -> None:
    u, v = vectors(4, dtype), vectors(6, dtype, 2)
    there = back = 0.0
    for i in range(4):
        own = 20 * cosine(u[i], v[i])
        there += math.log(math.fsum(math.exp(20 * cosine(u[i], v[j])) for j in range(6))) - own
        back += math.log(math.fsum(math.exp(20 * cosine(u[j], v[i])) for j in range(4))) - own
    loss = contrastive.in_batch_loss(u, v, symmetric=symmetric)
    expected = (there + back) / 2 if symmetric else there
    assert float(loss.total) == pytest.approx(expected, rel=tolerance(dtype))
    assert int(loss.units) == 4
    shifted = contrastive.in_batch_loss(u, torch.cat([v[:4].roll(1, 0), v[4:]]))
    assert float(shifted.total) != pytest.approx(expected, rel=1e-2)


def test_a_double_is_no_negative() -> None:
    u, v = vectors(3, torch.float64), vectors(3, torch.float64, 2)
    v[2] = v[0]
    other = torch.tensor([[1, 1, 0], [1, 1, 1], [0, 1, 1]]).bool()
    expected = 0.0
    for i, negatives in enumerate([[0, 1], [0, 1, 2], [1, 2]]):
        row = [20 * cosine(u[i], v[j]) for j in negatives]
        expected += math.log(math.fsum(map(math.exp, row))) - 20 * cosine(u[i], v[i])
    loss = contrastive.in_batch_loss(u, v, other_BC=other)
    assert float(loss.total) == pytest.approx(expected, rel=1e-12)
    rows = [PAIRS[0], PAIRS[1], dict(PAIRS[2], pair=PAIRS[0]["pair"]), dict(PAIRS[1], pair="x")]
    batch = batch_of(task(loaded_of(), rows))
    assert batch.same_BC.nonzero().tolist() == [[0, 2], [1, 3], [2, 0], [3, 1]]
    triplets = [TRIPLETS[0], dict(TRIPLETS[1], negative=TRIPLETS[0]["positive"])]
    batch = batch_of(task(loaded_of(), triplets, objective="in-batch"))
    assert batch.same_BC.nonzero().tolist() == [[0, 3]]


@DTYPES
def test_triplet(dtype: torch.dtype) -> None:
    a, p, n = (vectors(4, dtype, seed) for seed in (1, 2, 3))
    expected = 0.0
    for i in range(4):
        near = math.dist(a[i].tolist(), p[i].tolist())
        far = math.dist(a[i].tolist(), n[i].tolist())
        expected += max(0.0, near - far + 0.5)
    loss = contrastive.triplet_loss(a, p, n, margin=0.5)
    assert float(loss.total) == pytest.approx(expected, rel=tolerance(dtype))
    assert float(contrastive.triplet_loss(a, n, p, margin=0.5).total) != pytest.approx(expected)
    published = F.triplet_margin_loss(a, p, n, margin=0.5, reduction="sum", eps=0.0)
    assert float(loss.total) == pytest.approx(float(published), rel=tolerance(dtype))


@DTYPES
def test_cosine_and_cosent(dtype: torch.dtype) -> None:
    u, v, scores = vectors(5, dtype), vectors(5, dtype, 2), torch.tensor([0.0, 1.0, 0.5, 0.5, 0.2])
    cosines = [cosine(a, b) for a, b in zip(u, v, strict=True)]
    expected = math.fsum((c - y) ** 2 for c, y in zip(cosines, scores.tolist(), strict=True))
    loss = contrastive.cosine_loss(u, v, scores)
    assert float(loss.total) == pytest.approx(expected, rel=tolerance(dtype))
    inside = 1.0
    for i, j in itertools.product(range(5), repeat=2):
        if scores[i] < scores[j]:
            inside += math.exp(20 * (cosines[i] - cosines[j]))
    loss = contrastive.cosent_loss(u, v, scores)
    assert float(loss.total) == pytest.approx(5 * math.log(inside), rel=tolerance(dtype))
    assert float(contrastive.cosent_loss(u, v, -scores).total) != pytest.approx(float(loss.total))
    equal = contrastive.cosent_loss(u, v, torch.ones(5))
    assert float(equal.total) == 0.0


# ---- vectors ----


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_the_verbs(pooling: str) -> None:
    loaded = loaded_of()
    made = task(loaded, PAIRS, pooling=pooling)
    columns = sentence_embedding.columns_of(
        loaded.model,
        made.examples,  # type: ignore[arg-type]
        made.collate,
        sentence_embedding.Pooling((pooling,)),
        2,
    )
    for name, column in zip(("text", "pair"), columns, strict=True):
        verb = embed([row[name] for row in PAIRS], loaded, pooling=pooling, normalize=True)
        np.testing.assert_allclose(column.detach().numpy(), verb, atol=1e-5)


def test_padding_takes_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses of scored pairs and triplets add up over rows; a mean over padding does not."""
    loaded = loaded_of()
    for rows, options in ((SCORED, {"highest_score": 5.0}), (TRIPLETS, {"margin": 9.0})):
        alone = [total(loaded, [row], **options) for row in rows]
        assert total(loaded, rows, **options) == pytest.approx(sum(alone), rel=1e-5)
    wrong = sentence_embedding.pool
    monkeypatch.setattr(
        sentence_embedding, "pool", lambda x, mask, name: wrong(x, torch.ones_like(mask), name)
    )
    assert total(loaded, TRIPLETS, margin=9.0) != pytest.approx(sum(alone), rel=1e-3)


def test_the_checkpoints_settings_are_used() -> None:
    settings = Sentence(
        pooling=("cls", "max"),
        normalize=True,
        prompts={"query": "where is: "},
        default_prompt="query",
        max_length=9,
        lower_case=True,
        include_prompt=False,
    )
    loaded = replace(loaded_of(), sentence=settings)
    made = task(loaded, PAIRS, pair_prompt="it is ")
    assert made.examples.length(1) == 9
    assert made.examples.notes == ("1 of 6 texts cut to 9 tokens",)
    pooling = sentence_embedding.Pooling(("cls", "max"), True)
    columns = sentence_embedding.columns_of(
        loaded.model,
        made.examples,  # type: ignore[arg-type]
        made.collate,
        pooling,
        4,
    )
    texts = [row["text"] for row in PAIRS]
    np.testing.assert_allclose(columns[0].detach().numpy(), embed(texts, loaded), atol=1e-5)
    pairs = embed([row["pair"] for row in PAIRS], loaded, prompt="it is ")
    np.testing.assert_allclose(columns[1].detach().numpy(), pairs, atol=1e-5)
    other = embed([row["pair"] for row in PAIRS], loaded, prompt="")
    assert abs(columns[1].detach().numpy() - other).max() > 1e-2
    assert sentence_embedding.sentence_of(loaded).pooling == ("cls", "max")
    assert sentence_embedding.sentence_of(loaded, "mean").pooling == ("mean",)


def test_the_task_is_its_formula() -> None:
    """The whole way, from rows to a number, by the verb's vectors."""
    loaded = loaded_of()
    u, v = (embed([row[name] for row in PAIRS], loaded) for name in ("text", "pair"))
    expected = 0.0
    for i in range(3):
        row = [20 * cosine(u[i], v[j]) for j in range(3)]
        expected += math.log(math.fsum(map(math.exp, row))) - row[i]
    assert total(loaded, PAIRS) == pytest.approx(expected, rel=1e-4)
    gold = (1.0, 0.5, 0.0)
    expected = sum((cosine(a, b) - y) ** 2 for a, b, y in zip(u, v, gold, strict=True))
    assert total(loaded, SCORED, highest_score=5.0) == pytest.approx(expected, rel=1e-4)


# ---- bad input ----


def test_bad_rows_and_options() -> None:
    loaded = loaded_of()
    with pytest.raises(InputError, match="row 1 is of the form scored, row 0 of pairs"):
        task(loaded, [PAIRS[0], SCORED[1]])
    with pytest.raises(InputError, match="row 0 has no 'negative'"):
        task(loaded, [{"anchor": "a", "positive": "b"}])
    with pytest.raises(InputError, match="'high' of row 0 is not a number"):
        task(loaded, [PAIRS[0] | {"score": "high"}])
    with pytest.raises(InputError, match="'cosine' is of scored, not of pairs"):
        task(loaded, PAIRS, objective="cosine")
    with pytest.raises(InputError, match="'triplet' is of triplets, not of pairs"):
        task(loaded, PAIRS, objective="triplet")
    for name, value in {"objective": "best", "scale": 0.0, "pooling": "sum"}.items():
        with pytest.raises(ConfigError, match=name):
            task(loaded, PAIRS, **{name: value})
    with pytest.raises(InputError, match="encoder"):
        task(tiny.created(BERT, "classification", "english"), PAIRS)


# ---- learning ----


@pytest.mark.parametrize("objective", ["in-batch", "triplet", "cosine", "cosent"])
def test_it_learns(objective: str) -> None:
    rows: Any = {"in-batch": PAIRS, "triplet": TRIPLETS}.get(objective, SCORED)
    loaded = tiny.created(replace(BERT, init_std=0.2), "encoder", "english")
    made = task(loaded, rows, evaluation=rows, objective=objective, highest_score=5.0, margin=1.0)
    metric = {"in-batch": "mrr", "triplet": "accuracy"}.get(objective, "spearman")
    assert (made.metric, made.lower) == (metric, False)
    found = tiny.train(made, loaded.model, 25)
    assert found[-1] < 0.5 * found[0]
    assert tiny.metrics(made, loaded.model)[metric] == pytest.approx(1.0)


def test_japanese_pairs_come_together() -> None:
    rows = [
        {"text": "太郎さんは東京に住んでいる。", "pair": "東京 太郎"},
        {"text": "ラーメンを食べる", "pair": "昼ご飯"},
        {"text": "首都はどこ?", "pair": "京都"},
    ]
    loaded = tiny.created(replace(BERT, init_std=0.2), "encoder", "japanese")
    made = task(loaded, rows, evaluation=rows, symmetric=True)
    tiny.train(made, loaded.model, 25)
    assert tiny.metrics(made, loaded.model) == {"mrr": 1.0, "accuracy": 1.0}
    table = similarity([r["text"] for r in rows], [r["pair"] for r in rows], loaded)
    assert table.argmax(1).tolist() == [0, 1, 2]


def test_metrics_by_form() -> None:
    loaded = loaded_of()
    made = task(loaded, PAIRS, evaluation=SCORED, highest_score=5.0)
    found = tiny.metrics(made, loaded.model)
    cosines = np.diag(similarity([r["text"] for r in PAIRS], [r["pair"] for r in PAIRS], loaded))
    assert found["pearson"] == pytest.approx(np.corrcoef(cosines, [1.0, 0.5, 0.0])[0, 1], abs=1e-4)
    assert made.metric == "spearman"


def test_scores_beyond_a_cosine_name_the_option() -> None:
    with pytest.raises(ConfigError, match=r"(?s)score 5 of row 0.*--task\.highest_score"):
        task(loaded_of(), SCORED)
