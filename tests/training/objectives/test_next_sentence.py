"""Pairs from documents, the joint loss, and what evaluation says of the pairs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from training.objectives import tiny

from chumoku.errors import ConfigError, InputError
from chumoku.models import bert
from chumoku.training.metrics import wilson_lower
from chumoku.training.objectives import masked_lm, next_sentence
from chumoku.training.objectives.encoded import Pieces
from chumoku.training.objectives.next_sentence import IS_NEXT, NOT_NEXT, Chunk
from chumoku.training.objectives.vocabulary import unigram_loss
from chumoku.training.task import IGNORED, generator

CONFIG = bert.Config(
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    max_positions=64,
    dropout=0.0,
    attention_dropout=0.0,
)
TEXTS = [
    ["the cat sat in london.", "it is a big city.", "the river is not small.", "it is good."],
    ["mary works at google.", "she lives in new york.", "john works in paris."],
    ["where is the king?", "the king is at the tower.", "it is the tower bridge."],
]


def document(number: int, lengths: list[int]) -> list[Pieces]:
    """Sentences whose tokens tell their document and place: 1000 * document + place."""
    found, place = [], 0
    for length in lengths:
        ids = torch.arange(place, place + length, dtype=torch.int32) + 1000 * (number + 1)
        found.append(Pieces(ids, torch.arange(length, dtype=torch.int32) // 2))
        place += length
    return found


DOCUMENTS = [document(n, [3, 4, 2, 5, 3][: 2 + n % 4]) for n in range(8)]


def test_half_of_the_pairs_follow_and_the_others_come_from_elsewhere() -> None:
    labels, starts = [], set()
    for seed in range(2000):
        rng = generator(3, 0, seed)
        pair = next_sentence.pair_of(DOCUMENTS, Chunk(3, 0, 5), 12, rng)
        a, b = pair.first.ids_T.tolist(), pair.second.ids_T.tolist()
        labels.append(pair.label)
        assert all(i // 1000 == 4 for i in a)
        if pair.label == IS_NEXT:
            assert b[0] == a[-1] + 1
        else:
            owners = {i // 1000 for i in b}
            assert len(owners) == 1
            assert 4 not in owners
            starts.add(b[0])
            assert b == list(range(b[0], b[0] + len(b)))
    assert abs(sum(labels) / len(labels) - 0.5) < 0.04
    assert {i // 1000 for i in starts} == {1, 2, 3, 5, 6, 7, 8}
    assert len(starts) == sum(len(d) for n, d in enumerate(DOCUMENTS) if n != 3)


def test_chunks_hold_every_sentence_once_and_two_at_least() -> None:
    lengths = [[3, 4, 20, 1, 2, 2, 9], [5], [1, 1], [30, 1, 1], [7, 7, 7]]
    chunks = next_sentence.chunks_of(lengths, 8)
    seen = [(c.document, i) for c in chunks for i in range(c.start, c.end)]
    assert sorted(seen) == [(n, i) for n in (0, 2, 3, 4) for i in range(len(lengths[n]))]
    assert len(seen) == len(set(seen))
    assert min(c.end - c.start for c in chunks) >= 2


def test_the_longer_part_loses() -> None:
    for a in range(1, 12):
        for b in range(1, 12):
            for room in range(2, 14):
                x, y = a, b
                while x + y > room:
                    x, y = (x - 1, y) if x > y else (x, y - 1)
                assert next_sentence.kept_lengths(a, b, room) == (x, y)
    first, second = (
        Pieces(torch.arange(9), torch.arange(9)),
        Pieces(torch.arange(4), torch.arange(4)),
    )
    fronts = set()
    for seed in range(60):
        rng = torch.Generator().manual_seed(seed)
        cut, same = next_sentence.truncate_pair(first, second, 10, rng)
        ids = cut.ids_T.tolist()
        assert len(ids) == 6
        assert ids == list(range(ids[0], ids[0] + 6))
        assert same.ids_T.tolist() == [0, 1, 2, 3]
        fronts.add(ids[0])
    assert fronts == {0, 1, 2, 3}


@pytest.mark.parametrize("short", [0.0, 1.0])
def test_examples_are_framed_pairs(short: float) -> None:
    loaded = tiny.created(CONFIG, "pre-training", "english")
    tokenizer: Any = loaded.tokenizer
    task = next_sentence.task(loaded, TEXTS, length=24, short=short, rate=1e-9)
    lengths = set()
    for epoch in range(20):
        for index in range(len(task.examples)):
            masked, label = task.examples.example(index, epoch)
            ids, segments = masked.ids_T.tolist(), masked.segments_T.tolist()
            lengths.add(len(ids))
            assert len(ids) == len(segments) <= 24
            assert ids[0] == tokenizer.cls_id
            places = [i for i, t in enumerate(ids) if t == tokenizer.sep_id]
            assert len(places) == 2
            assert places[1] == len(ids) - 1
            assert segments == [0] * (places[0] + 1) + [1] * (len(ids) - places[0] - 1)
            assert label in (IS_NEXT, NOT_NEXT)
    assert (min(lengths) < 8) == (short == 1.0)
    again = next_sentence.task(loaded, TEXTS, length=24, short=short, rate=1e-9).examples
    for index in range(len(again)):
        one, other = again.example(index, 4), task.examples.example(index, 4)
        assert one.label == other.label
        assert torch.equal(one.masked.ids_T, other.masked.ids_T)


def test_sentences() -> None:
    assert next_sentence.sentences_of("吾輩は猫である。「名前は？」まだ無い！終わり") == [
        "吾輩は猫である。",
        "「名前は？」まだ無い！",
        "終わり",
    ]
    assert next_sentence.sentences_of("It is 3.5 m. Is it? Yes.") == [
        "It is 3.5 m.",
        "Is it?",
        "Yes.",
    ]
    assert next_sentence.sentences_of("one. two\nthree") == ["one. two", "three"]
    rows = [{"sentences": ["a", " ", "b"]}, {"text": "a\nb"}, "a\nb", ["a", "b"]]
    assert next_sentence.checked_documents(rows) == [["a", "b"]] * 4
    with pytest.raises(InputError, match="document 1"):
        next_sentence.checked_documents([["a"], 7])


# ---- the loss ----


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_joint_loss_is_the_sum_of_two_means(dtype: torch.dtype) -> None:
    loaded = tiny.created(CONFIG, "pre-training", "english")
    model: Any = loaded.model.to(dtype)
    tiny.randomised(model)
    task = next_sentence.task(loaded, TEXTS, length=20, rate=0.3)
    examples = [task.examples.example(i, e) for e in range(2) for i in range(len(task.examples))]
    batch = task.collate(examples)
    assert set(batch.next_B.tolist()) == {0, 1}
    found = task.loss(model, batch)
    answer = model(
        batch.ids_BT, batch.mask_BT, batch=masked_lm.Batch(segments_BT=batch.segments_BT)
    )
    log_p = answer.logits_BTV.log_softmax(-1).flatten(0, 1)
    M, B = len(batch.targets_M), len(batch.next_B)
    masked = -sum(
        log_p[p, t] for p, t in zip(batch.places_M.tolist(), batch.targets_M.tolist(), strict=True)
    )
    pairs = answer.next_sentence_B2.log_softmax(-1)
    following = -sum(pairs[n, label] for n, label in enumerate(batch.next_B.tolist()))
    expected = float((masked / M + following / B).detach())
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    assert abs(float((found.total / found.units).detach()) - expected) < tolerance * expected
    assert abs(float((found.parts["masked"] / M - masked / M).detach())) < tolerance * expected
    parts = sum(float(part.detach()) for part in found.parts.values())
    assert abs(parts - float(found.total.detach())) < 1e-4 * parts
    flipped = batch._replace(next_B=1 - batch.next_B)
    assert abs(float((task.loss(model, flipped).total / M).detach()) - expected) > 1e-3
    unsegmented = batch._replace(segments_BT=None)
    assert abs(float((task.loss(model, unsegmented).total / M).detach()) - expected) > 1e-3


def test_what_stands_alone_is_masked_without_a_pair() -> None:
    loaded = tiny.created(CONFIG, "pre-training", "english")
    tokenizer: Any = loaded.tokenizer
    single = [
        ["the cat."],
        ["the king is at the tower."],
        ["a city."],
        ["mary works."],
        ["london."],
    ]
    texts = [*TEXTS, *single]
    task = next_sentence.task(loaded, texts, evaluation=texts, length=24, short=0.0, alone=0.5)
    pairs = next_sentence.task(loaded, TEXTS, length=24, short=0.0)
    assert len(task.examples) == len(pairs.examples) + 2  # half of five, rounded down
    seen = set()
    for epoch in range(2):
        for index in range(len(task.examples)):
            masked, label = task.examples.example(index, epoch)
            alone = index >= len(pairs.examples)
            assert (label == IGNORED) == alone
            assert int((masked.ids_T == tokenizer.sep_id).sum()) == (1 if alone else 2)
            if alone:
                assert len(masked.ids_T) <= task.examples.length(index)
                assert not masked.segments_T.any()
                seen.add(
                    tuple(masked.ids_T.index_copy(0, masked.places_M, masked.targets_M).tolist())
                )
    assert len(seen) == 4  # others in the second epoch
    batch = task.collate([task.examples.example(i, 0) for i in range(len(task.examples))][-2:])
    made = task.loss(loaded.model, batch)
    assert float(made.parts["next_sentence"].detach()) == 0.0
    assert math.isfinite(float(made.total.detach()))
    assert task.evaluate is not None
    assert tiny.metrics(task, loaded.model)["next_sentence_pairs"] == len(pairs.examples)
    with pytest.raises(ConfigError, match="alone"):
        next_sentence.task(loaded, TEXTS, alone=1.5)


def test_the_loss_of_frequencies() -> None:
    learnt = [torch.tensor([0, 0, 1], dtype=torch.int32), torch.tensor([0], dtype=torch.int32)]
    expected = -(math.log(4 / 7) + math.log(1 / 7)) / 2
    assert abs(unigram_loss([0, 2], learnt, 3) - expected) < 1e-12


def test_training_learns_both() -> None:
    """Documents that speak of different things: what follows can be told after a few steps."""
    words = [["cat", "dog", "mat"], ["king", "queen", "tower"], ["music", "science", "sport"]]
    documents = [
        [f"the {group[i % 3]} is {group[(i + j) % 3]}." for i in range(6)]
        for group in words
        for j in range(2)
    ]
    loaded = tiny.created(CONFIG, "pre-training", "english")
    task = next_sentence.task(loaded, documents, evaluation=documents, length=32, short=0.0)
    before = tiny.metrics(task, loaded.model)
    tiny.train(task, loaded.model, 60, rate=0.005)
    after = tiny.metrics(task, loaded.model)
    assert after["loss"] < before["loss"] - 1.5
    assert after["masked_loss"] < before["masked_loss"] - 1.0
    assert after["unigram_loss"] >= after["unigram_entropy"] > 0.0
    assert after["next_sentence_pairs"] == len(task.examples)
    assert after["next_sentence_lower_95"] == wilson_lower(
        round(after["next_sentence_accuracy"] * len(task.examples)), len(task.examples)
    )
    assert after == tiny.metrics(task, loaded.model)


def test_what_cannot_be_learned_from_is_refused() -> None:
    loaded = tiny.created(CONFIG, "pre-training", "english")
    with pytest.raises(InputError, match="two documents"):
        next_sentence.task(loaded, TEXTS[:1])
    with pytest.raises(InputError, match="two sentences"):
        next_sentence.task(loaded, [["the cat."], ["the dog."]])
    with pytest.raises(InputError, match="pre-training"):
        next_sentence.task(tiny.created(CONFIG, "masked-lm", "english"), TEXTS)


@pytest.mark.parametrize("share", [0.05, 0.4, 0.7, 1.0])
def test_the_share_that_stands_alone_is_the_one_asked_for(share: float) -> None:
    """And every one of them has its turn."""
    loaded = tiny.created(CONFIG, "pre-training", "english")
    single = [["the " * (n % 7 + 1) + "cat."] for n in range(23)]
    texts = [*TEXTS, *single]
    task = next_sentence.task(loaded, texts, length=24, alone=share)
    examples: Any = task.examples
    own = range(len(examples.chunks), len(examples))
    assert len(own) == round(23 * share)
    turns = -(-23 // len(own))
    seen = {
        id(examples._neighbours(n - own[0])[e % len(examples._neighbours(n - own[0]))])
        for e in range(turns)
        for n in own
    }
    assert len(seen) == 23
    for epoch in range(turns):
        for index in own:
            assert len(examples.example(index, epoch).masked.ids_T) <= examples.length(index)
