"""Span corruption: published lengths, statistics, and the way back to the text."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from training.objectives import tiny

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import t5
from chumoku.training.objectives import span_corruption as spans
from chumoku.training.task import IGNORED, generator

CONFIG = t5.Config(
    width=24,
    head_width=6,
    num_heads=4,
    feedforward_width=36,
    num_blocks=1,
    num_decoder_blocks=1,
    dropout=0.0,
)
SENTINELS = list(range(999, 899, -1))


def loaded_of(sentinels: int = 20) -> Loaded:
    tokens = tiny.with_sentinels(tiny.tokenizer("t5"), sentinels)
    config = replace(CONFIG, vocab_size=tokens.vocab_size)
    return replace(tiny.created(config, "conditional-generation", None), tokenizer=tokens)


# ---- lengths ----


def test_published_lengths() -> None:
    assert spans.raw_length(512) == 568
    assert spans.lengths(568) == (512, 114)
    assert spans.raw_length(128) == 141
    assert spans.lengths(141) == (128, 29)
    assert spans.lengths(568, closing=True) == (512, 115)
    assert spans.lengths(569)[0] > 512


def test_counts_keep_something_everywhere() -> None:
    for length, density, mean in itertools.product(
        range(2, 60), (0.01, 0.15, 0.5, 0.95), (1.0, 3.0, 10.0)
    ):
        noise, pieces = spans.counts(length, density, mean)
        assert 1 <= pieces <= noise < length
        assert pieces <= length - noise


def runs(mask: list[bool]) -> list[tuple[bool, int]]:
    return [(key, len(list(group))) for key, group in itertools.groupby(mask)]


def test_statistics() -> None:
    """15 +- 0.5% of the tokens, spans of 3 +- 0.1, a kept span first and a dropped one last."""
    dropped = total = 0
    sizes: list[int] = []
    for index in range(300):
        length = 400 + index
        mask = spans.span_mask(length, generator(1, 0, index)).tolist()
        alternating = runs(mask)
        assert not mask[0]
        assert mask[-1]
        sizes += [size for gone, size in alternating if gone]
        dropped += sum(mask)
        total += length
        assert len(mask) == length
    assert abs(dropped / total - 0.15) < 0.005
    assert abs(sum(sizes) / len(sizes) - 3.0) < 0.1
    assert len(set(sizes)) > 8


def test_every_division_is_as_likely() -> None:
    """7 tokens, 4 of them dropped in 2 spans: 3 x 2 ways."""
    seen = Counter(
        tuple(spans.span_mask(7, torch.Generator().manual_seed(s), 4 / 7, 2.0).tolist())
        for s in range(1800)
    )
    assert len(seen) == 6
    assert max(abs(n - 300) for n in seen.values()) < 80


# ---- there and back ----


def test_the_example_of_the_docstring() -> None:
    ids = [10, 11, 12, 13, 14, 15, 16, 17]
    dropped = [False, True, True, False, False, False, True, True]
    assert spans.corrupt(ids, dropped, SENTINELS) == (
        [10, 999, 13, 14, 15, 998],
        [999, 11, 12, 998, 16, 17],
    )
    closed = spans.corrupt(ids, dropped, SENTINELS, closing=True)
    assert closed[1] == [999, 11, 12, 998, 16, 17, 997]


@pytest.mark.parametrize("closing", [False, True])
def test_interleaving_restores_the_text(closing: bool) -> None:
    for index in range(200):
        length = 2 + index
        rng = generator(5, 1, index)
        ids = torch.randint(800, (length,), generator=rng).tolist()
        mask = spans.span_mask(length, rng).tolist()
        kept, target = spans.corrupt(ids, mask, SENTINELS, closing=closing)
        assert (len(kept) + 1, len(target) + 1) == spans.lengths(length, closing=closing)
        used = [i for i in kept if i in SENTINELS]
        assert used == SENTINELS[: len(used)]
        assert [i for i in target if i in SENTINELS] == SENTINELS[: len(used) + closing]
        assert spans.restore(kept, target, SENTINELS) == ids
        if length > 20:
            swapped = [{999: 998, 998: 999}.get(i, i) for i in target]
            assert spans.restore(kept, swapped, SENTINELS) != ids


def test_sentinels() -> None:
    loaded = loaded_of(2)
    tokenizer: Any = loaded.tokenizer
    first = tokenizer.vocab_size - 2
    assert spans.sentinels_of(tokenizer) == [first, first + 1]
    with pytest.raises(InputError, match="sentinels are needed"):
        spans.corrupt([1, 2, 3, 4], [False, True, False, True], [99])
    with pytest.raises(InputError, match="sentinels are needed"):
        spans.task(loaded, tiny.ENGLISH, length=64)
    plain = tiny.created(CONFIG, "conditional-generation", "t5")
    with pytest.raises(InputError, match="no sentinels"):
        spans.task(plain, tiny.ENGLISH)


# ---- the task ----


@pytest.mark.parametrize("join", [False, True])
@pytest.mark.parametrize("closing", [False, True])
def test_examples_give_the_texts_back(join: bool, closing: bool) -> None:
    loaded = loaded_of()
    tokenizer: Any = loaded.tokenizer
    texts = [text.replace("!", ".").replace(":", "") for text in tiny.ENGLISH]
    task = spans.task(loaded, texts, length=20, join=join, closing=closing)
    sentinels = spans.sentinels_of(tokenizer)
    plain = [i for text in texts for i in tokenizer.encode_plain(text)]
    for epoch in range(3):
        read: list[int] = []
        for index in range(len(task.examples)):
            source, target = (x.tolist() for x in task.examples.example(index, epoch))
            assert source[-1] == target[-1] == 1
            assert max(len(source), len(target)) == task.examples.length(index) <= 20
            read += spans.restore(source[:-1], target[:-1], sentinels)
        assert read == plain
    again = spans.task(loaded, texts, length=20, join=join, closing=closing).examples
    for index in range(len(again)):
        one, other = again.example(index, 2), task.examples.example(index, 2)
        assert torch.equal(one.source_S, other.source_S)


def test_batches_and_training() -> None:
    loaded = loaded_of()
    task = spans.task(loaded, tiny.ENGLISH, evaluation=tiny.ENGLISH, length=60)
    draws = [
        tuple(
            spans.task(loaded, tiny.ENGLISH, length=60, seed=s)
            .examples.example(0, e)
            .target_T.tolist()
        )
        for s in (0, 7)
        for e in range(2)
    ]
    assert len(set(draws)) == 4
    examples = [task.examples.example(i, 0) for i in range(len(task.examples))]
    batch = task.collate(examples)
    rows, T = batch.inputs_BT.shape
    targets = torch.full((rows * T,), IGNORED)
    targets[batch.places_M if batch.places_M is not None else slice(None)] = batch.targets_M
    for row, example in enumerate(examples):
        target = example.target_T.tolist()
        assert targets.view(rows, T)[row, : len(target)].tolist() == target
        assert batch.inputs_BT[row, : len(target)].tolist() == [CONFIG.start_id, *target[:-1]]
    assert task.tokens(batch) == batch.ids_BS.numel() + batch.inputs_BT.numel()
    before = tiny.metrics(task, loaded.model)["loss"]
    tiny.train(task, loaded.model, 30)
    after = tiny.metrics(task, loaded.model)
    assert after["loss"] < before - 1.0
    assert after == tiny.metrics(task, loaded.model)


def test_impossible_settings_are_refused() -> None:
    loaded = loaded_of()
    with pytest.raises(ConfigError, match="density"):
        spans.task(loaded, tiny.ENGLISH, density=1.0)
    with pytest.raises(ConfigError, match="mean_span"):
        spans.task(loaded, tiny.ENGLISH, mean_span=0.5)
    with pytest.raises(InputError, match="two tokens"):
        spans.CorruptedTexts(spans.cut([[5]], 10, join=False), spans.Corruption([9], 1), 0)
