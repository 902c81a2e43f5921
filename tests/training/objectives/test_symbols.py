"""Boards and other symbols: ids, masking, and a model that learns them without a tokenizer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from training.objectives import tiny

import chumoku
from chumoku.errors import ConfigError, InputError
from chumoku.training.objectives import symbols

# Shogi: 81 squares and 14 counts of pieces in hand, 29 kinds of symbol (0 is empty).
START = [
    *(18, 0, 17, 0, 0, 0, 1, 0, 2, 19, 21, 17, 0, 0, 0, 1, 6, 3, 20, 0, 17, 0, 0, 0, 1, 0, 4),
    *(23, 0, 17, 0, 0, 0, 1, 0, 7, 24, 0, 17, 0, 0, 0, 1, 0, 8, 23, 0, 17, 0, 0, 0, 1, 0, 7),
    *(20, 0, 17, 0, 0, 0, 1, 0, 4, 19, 22, 17, 0, 0, 0, 1, 5, 3, 18, 0, 17, 0, 0, 0, 1, 0, 2),
    *([0] * 14),
]
PIECES = list(range(29))
SMALL = {"width": 24, "num_blocks": 1, "num_heads": 2, "feedforward_width": 32}


def boards(count: int) -> list[list[int]]:
    """The first position with a few symbols exchanged."""
    rng = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        board = list(START)
        for _ in range(6):
            a, b = torch.randint(81, (2,), generator=rng).tolist()
            board[a], board[b] = board[b], board[a]
        found.append(board)
    return found


def test_vocabularies() -> None:
    assert symbols.collect([[3, 1], [2]]) == (1, 2, 3)
    assert symbols.collect(["b a", {"symbols": "a c"}]) == ("a", "b", "c")
    assert symbols.collect(["ACGT", ["T", 7]]) == (7, "A", "C", "G", "T")
    config = symbols.bert_config("ACGT", 30, width=8)
    assert (config.vocab_size, config.max_positions, config.pad_id) == (6, 30, 5)
    assert (config.num_segments, config.width) == (1, 8)


def test_a_board_of_95_places() -> None:
    """Every place may be masked; random symbols are pieces; ids are the vocabulary's places."""
    loaded = chumoku.create(symbols.bert_config(PIECES, 95, **SMALL), "masked-lm")
    task = symbols.task(loaded, boards(50), vocabulary=PIECES, seed=4)
    assert len(START) == 95
    chosen = [0] * 95
    total = masked = 0
    for epoch in range(40):
        for index in range(50):
            example = task.examples.example(index, epoch)
            now_M = example.ids_T[example.places_M]
            total += len(now_M)
            masked += int((now_M == 29).sum())
            assert int(example.ids_T.max()) <= 29
            for place in example.places_M.tolist():
                chosen[place] += 1
    assert abs(total / (40 * 50 * 95) - 0.15) < 0.005
    assert abs(masked / total - 0.8) < 0.01
    assert min(chosen) > 220  # 300 each, on average
    assert max(chosen) < 380


def test_a_model_learns_boards() -> None:
    loaded = chumoku.create(symbols.bert_config(PIECES, 95, **SMALL), "masked-lm")
    task = symbols.task(loaded, boards(16), vocabulary=PIECES, evaluation=boards(20)[16:])
    before = tiny.metrics(task, loaded.model)
    tiny.train(task, loaded.model, 80, rate=0.02)
    after = tiny.metrics(task, loaded.model)
    assert abs(before["loss"] - math.log(31)) < 0.4
    assert after["loss"] < after["unigram_entropy"] - 0.2


def test_sequences_of_several_lengths() -> None:
    rows = ["ACGT", "AACCGGTT", "AG"]
    vocabulary = symbols.collect(rows)
    loaded = chumoku.create(symbols.bert_config(vocabulary, 8, **SMALL), "masked-lm")
    task = symbols.task(loaded, rows, rate=0.5)
    batch: Any = task.collate([task.examples.example(i, 0) for i in range(3)])
    assert batch.ids_BT.shape == (3, 8)
    assert batch.ids_BT[2, 2:].tolist() == [5] * 6
    assert batch.mask_BT.sum(1).tolist() == [4, 8, 2]


def test_bad_sequences_are_named() -> None:
    loaded = chumoku.create(symbols.bert_config("ACGT", 8, **SMALL), "masked-lm")
    for rows, message in (
        (["ACGT", "ACGU"], "row 1 has 'U'"),
        (["ACGTACGTA"], "row 0 has 9 symbols"),
        (["A", {"symbols": None}], "row 1 is no sequence"),
        ([], "no sequences"),
    ):
        with pytest.raises(InputError, match=message):
            symbols.task(loaded, rows, vocabulary="ACGT")
    with pytest.raises(InputError, match="need a vocabulary of 7"):
        symbols.task(loaded, ["ACGTU"])
    with pytest.raises(ConfigError, match="twice"):
        symbols.task(loaded, ["A"], vocabulary="AA")
