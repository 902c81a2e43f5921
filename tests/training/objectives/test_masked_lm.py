"""Masking statistics, whole words, and the loss beside its formula written out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from training.objectives import tiny

from chumoku.errors import ConfigError, InputError
from chumoku.models import bert, distilbert
from chumoku.training.objectives import encoded, masked_lm
from chumoku.training.objectives.masked_lm import Masked, MaskedBatch, Masking
from chumoku.training.task import generator

SMALL = {"width": 24, "num_blocks": 2, "num_heads": 4, "feedforward_width": 36, "max_positions": 64}
BERT = bert.Config(**SMALL, dropout=0.0, attention_dropout=0.0)
DISTILBERT = distilbert.Config(**SMALL, dropout=0.0, attention_dropout=0.0)
CASES = [(BERT, "masked-lm"), (BERT, "pre-training"), (DISTILBERT, "masked-lm")]
ROBERTA = replace(BERT, model_type="roberta", pad_id=1)


def masking(**changes: Any) -> Masking:
    return Masking(mask_id=4, replacements=torch.arange(5, 500), **changes)


# ---- choosing and corrupting ----


@pytest.mark.parametrize("whole_words", [False, True])
def test_statistics_over_many_tokens(whole_words: bool) -> None:
    """15 +- 0.5% are chosen, 80/10/10 +- 1% of them, and never a special token."""
    settings = masking(whole_words=whole_words)
    rng = torch.Generator().manual_seed(1)
    counts = {"eligible": 0, "chosen": 0, "masked": 0, "other": 0, "same": 0}
    for index in range(1300):
        length = 6 + index % 190
        ids_T = torch.randint(1000, 2000, (length,), generator=rng)
        words_T = torch.arange(length) // (1 + index % 3)
        words_T[[0, length // 2, -1]] = -1
        example = masked_lm.mask_example(ids_T, words_T, settings, generator(7, 0, index))
        changed = example.ids_T != ids_T
        assert not (words_T[example.places_M] < 0).any()
        assert not changed[words_T < 0].any()
        assert torch.equal(example.targets_M, ids_T[example.places_M])
        now_M = example.ids_T[example.places_M]
        same = int((now_M == example.targets_M).sum())
        masked = int((now_M == 4).sum())
        counts["eligible"] += int((words_T >= 0).sum())
        counts["chosen"] += len(example.places_M)
        counts["masked"] += masked
        counts["same"] += same
        counts["other"] += len(now_M) - masked - same
        assert int(changed.sum()) == len(now_M) - same  # nothing outside the chosen places
    assert counts["eligible"] >= 1e5
    assert abs(counts["chosen"] / counts["eligible"] - 0.15) < 0.005
    for name, share in (("masked", 0.8), ("other", 0.1), ("same", 0.1)):
        assert abs(counts[name] / counts["chosen"] - share) < 0.01


def test_short_texts_are_not_masked_more() -> None:
    """A fixed max(1, round(n * 0.15)) would mask a third of a text of three tokens."""
    words_T = torch.arange(3)
    chosen = sum(
        len(masked_lm.choose(words_T, 0.15, torch.Generator().manual_seed(i))) for i in range(5000)
    )
    assert abs(chosen / 15000 - 0.15) < 0.01


def test_most_predictions() -> None:
    words_T = torch.arange(100)
    for seed in range(20):
        rng = torch.Generator().manual_seed(seed)
        assert len(masked_lm.choose(words_T, 0.5, rng, 20)) == 20
    words_T = torch.arange(100) // 3
    sizes = {
        len(masked_lm.choose(words_T, 0.9, torch.Generator().manual_seed(s), 20)) for s in range(30)
    }
    assert max(sizes) <= 20
    assert min(sizes) >= 17


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("english", "tesing wording towering cities"),
        ("japanese", "寿司を食べる。ラーメンを食べる。"),
    ],
)
def test_whole_words(kind: str, text: str) -> None:
    """All pieces of a word or none; without the option some words are split (negative control)."""
    tokenizer = tiny.tokenizer(kind)
    pieces = encoded.pieces_of(tokenizer, text)
    words = pieces.words_T.tolist()
    assert len(set(words)) < len(words), "no word has two pieces"

    def split(whole_words: bool) -> int:
        cut = 0
        for seed in range(200):
            example = masked_lm.mask_example(
                pieces.ids_T.long(),
                pieces.words_T,
                masking(rate=0.4, whole_words=whole_words),
                torch.Generator().manual_seed(seed),
            )
            chosen = set(example.places_M.tolist())
            for word in set(words):
                places = {i for i, w in enumerate(words) if w == word}
                cut += bool(places & chosen) and not places <= chosen
        return cut

    assert split(True) == 0
    assert split(False) > 20


def test_an_example_depends_on_seed_epoch_and_index_alone() -> None:
    loaded = tiny.created(BERT, "masked-lm", "english")

    def ids(seed: int, epoch: int, index: int, other: int | None = None) -> list[int]:
        examples = masked_lm.task(loaded, tiny.ENGLISH, seed=seed).examples
        if other is not None:
            examples.example(other, 3)
        found: list[int] = examples.example(index, epoch).ids_T.tolist()
        return found

    assert ids(1, 2, 3) == ids(1, 2, 3, other=0)
    assert len({tuple(ids(seed, epoch, 1)) for seed in range(3) for epoch in range(3)}) > 4


@pytest.mark.parametrize(
    "changes",
    [{"rate": 0.0}, {"rate": 1.5}, {"masked": 0.9, "random": 0.2}, {"max_predictions": 0}],
)
def test_impossible_settings_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        masking(**changes)


# ---- cutting texts ----


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("kind", ["english", "roberta"])
def test_nothing_is_lost_by_cutting(join: bool, kind: str) -> None:
    config = BERT if kind == "english" else ROBERTA
    loaded = tiny.created(config, "masked-lm", kind)
    tokenizer: Any = loaded.tokenizer
    task = masked_lm.task(loaded, tiny.ENGLISH, length=9, join=join, rate=1e-9)
    plain = [tokenizer.encode(text, special=False).ids for text in tiny.ENGLISH]
    first, last = tokenizer.cls_id, tokenizer.sep_id
    read: list[int] = []
    for index in range(len(task.examples)):
        ids = task.examples.example(index, 0).ids_T.tolist()
        assert len(ids) == task.examples.length(index) <= 9
        assert ids[0] == first
        assert ids[-1] == last
        read += [i for i in ids[1:-1] if i != last]
    assert read == [i for ids in plain for i in ids]


def test_words_do_not_run_together_where_texts_are_joined() -> None:
    pieces = [
        encoded.Pieces(torch.tensor([7, 8]), torch.tensor([0, 0])),
        encoded.Pieces(torch.tensor([9]), torch.tensor([0])),
    ]
    frame = encoded.Frame((2,), (3,), (3,))
    (whole,) = masked_lm.cut(pieces, 10, frame, join=True)
    assert whole.ids_T.tolist() == [7, 8, 3, 9]
    assert whole.words_T.tolist() == [0, 0, -1, 1]


# ---- the loss ----


def batch_of(loaded: Any, rows: int = 3) -> MaskedBatch:
    task = masked_lm.task(loaded, tiny.ENGLISH, rate=0.3, seed=5)
    batch: MaskedBatch = task.collate([task.examples.example(i, 0) for i in range(rows)])
    return batch


def written_out(model: Any, batch: MaskedBatch) -> Tensor:
    """-sum log P from the logits of every position, as the paper says it."""
    answer = model(batch.ids_BT, batch.mask_BT)
    logits_BTV = answer if isinstance(answer, Tensor) else answer.logits_BTV
    flat = logits_BTV.reshape(-1, logits_BTV.shape[-1])
    total = flat.new_zeros(())
    for place, target in zip(batch.places_M.tolist(), batch.targets_M.tolist(), strict=True):
        row = flat[place]
        total = total - (row[target] - row.exp().sum().log())
    return total


def total_of(model: Any, batch: MaskedBatch) -> float:
    return float(masked_lm.loss(model, batch).total.detach())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("config", "head"), CASES)
def test_loss_is_the_formula(config: Any, head: str, dtype: torch.dtype) -> None:
    loaded = tiny.created(config, head, "english")
    model = loaded.model.to(dtype)
    tiny.randomised(model)
    batch = batch_of(loaded)
    ours, expected = masked_lm.loss(model, batch), written_out(model, batch)
    value = float(expected.detach())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert int(ours.units) == len(batch.targets_M) > 3
    assert abs(float(ours.total.detach()) - value) < tolerance * value
    wrong = batch._replace(places_M=batch.places_M + 1)  # a target read at its neighbour
    assert abs(float(masked_lm.loss(model, wrong).total.detach()) - value) > 1e-2
    parameters = [p for p in model.parameters() if p.requires_grad]
    mine = torch.autograd.grad(ours.total, parameters, allow_unused=True)
    theirs = torch.autograd.grad(expected, parameters, allow_unused=True)
    for a, b in zip(mine, theirs, strict=True):
        if b is None or a is None:
            assert a is None
            assert b is None
        else:
            assert float((a - b).abs().max()) <= 100 * tolerance * max(1.0, float(b.abs().max()))


def test_bfloat16_is_summed_in_float32() -> None:
    loaded = tiny.created(BERT, "masked-lm", "english")
    model = loaded.model.to(torch.bfloat16)
    assert masked_lm.loss(model, batch_of(loaded)).total.dtype == torch.float32


def test_padding_changes_nothing_and_the_target_is_not_seen() -> None:
    loaded = tiny.created(BERT, "masked-lm", "english")
    model = loaded.model.double()
    tiny.randomised(model)
    batch = batch_of(loaded)
    total = total_of(model, batch)
    assert batch.mask_BT is not None
    B, T = batch.ids_BT.shape
    longer = MaskedBatch(
        torch.cat([batch.ids_BT, torch.full((B, 5), 9)], 1),
        torch.cat([batch.mask_BT, torch.zeros(B, 5, dtype=torch.bool)], 1),
        None,
        batch.places_M // T * (T + 5) + batch.places_M % T,
        batch.targets_M,
    )
    assert abs(total_of(model, longer) - total) < 1e-9 * total
    leaking = batch._replace(  # the text as it was: the control that the test above can fail
        ids_BT=batch.ids_BT.flatten().scatter(0, batch.places_M, batch.targets_M).view(B, T)
    )
    assert abs(total_of(model, leaking) - total) > 1e-3 * total
    rows = [
        Masked(row, torch.tensor([1]), row[1:2]) for row in (torch.arange(5, 9), torch.arange(6, 8))
    ]
    gathered = masked_lm.collate(rows, pad=0)
    assert gathered.ids_BT.tolist() == [[5, 6, 7, 8], [6, 7, 0, 0]]
    assert gathered.places_M.tolist() == [1, 5]
    assert gathered.targets_M.tolist() == [6, 7]


# ---- the task ----


@pytest.mark.parametrize(("config", "head"), CASES)
def test_training_lowers_the_loss(config: Any, head: str) -> None:
    loaded = tiny.created(config, head, "english")
    task = masked_lm.task(loaded, tiny.ENGLISH * 4, evaluation=tiny.ENGLISH, rate=0.2)
    before = tiny.metrics(task, loaded.model)
    assert abs(before["loss"] - math.log(loaded.config.vocab_size)) < 0.5
    tiny.train(task, loaded.model, 25)
    after = tiny.metrics(task, loaded.model)
    assert after == tiny.metrics(task, loaded.model)
    assert after["loss"] < before["loss"] - 0.8
    assert abs(after["perplexity"] - math.exp(after["loss"])) < 1e-9 * after["perplexity"]


def test_evaluation_is_the_mean_over_one_masking() -> None:
    loaded = tiny.created(BERT, "masked-lm", "english")
    tiny.randomised(loaded.model)
    results = [
        tiny.metrics(
            masked_lm.task(
                loaded, tiny.ENGLISH, evaluation=tiny.ENGLISH, seed=s, evaluation_batch_size=size
            ),
            loaded.model,
        )
        for s, size in ((0, 32), (9, 1))
    ]
    for name, value in results[0].items():
        assert abs(results[1][name] - value) < 1e-4 * max(1.0, value)
    held_out = masked_lm.task(loaded, tiny.ENGLISH, seed=0).examples
    examples = [held_out.example(i, 0) for i in range(len(held_out))]
    batch = masked_lm.collate(examples, pad=0)
    expected = float(written_out(loaded.model, batch).detach()) / len(batch.targets_M)
    assert abs(results[0]["loss"] - expected) < 1e-4 * expected
    shares = [
        batch.targets_M.tolist().count(t) / len(batch.targets_M)
        for t in set(batch.targets_M.tolist())
    ]
    assert abs(results[0]["unigram_entropy"] + sum(p * math.log(p) for p in shares)) < 1e-9


def test_wrong_models_are_refused() -> None:
    with pytest.raises(InputError, match="masked-lm"):
        masked_lm.task(tiny.created(BERT, "encoder", "english"), tiny.ENGLISH)
    loaded = tiny.created(BERT, "masked-lm", "english")
    with pytest.raises(InputError, match="takes 64"):
        masked_lm.task(loaded, tiny.ENGLISH, length=65)
    with pytest.raises(InputError, match="no training text"):
        masked_lm.task(loaded, [])
    small = replace(loaded, config=replace(loaded.config, vocab_size=20))
    with pytest.raises(InputError, match="only 20"):
        masked_lm.task(small, tiny.ENGLISH)
