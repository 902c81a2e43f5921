"""Packing: every token once, documents apart, and the model sees each as if it were alone."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import chumoku
from chumoku.errors import CheckpointError, ConfigError, InputError
from chumoku.layers.attention import Batch
from chumoku.training.data.batching import Batches, Batching
from chumoku.training.data.packing import (
    Packed,
    PackedExamples,
    Packer,
    first_fit,
    map_tokens,
    pieces_of,
)
from chumoku.training.objectives.causal_lm import Stream, Windows, row_of

LENGTHS = st.lists(st.integers(0, 40), min_size=1, max_size=60)


def documents_of(lengths: list[int]) -> list[list[int]]:
    """Tokens that say where they belong."""
    return [[1000 * number + place for place in range(n)] for number, n in enumerate(lengths)]


def parts_of(packed: Packed) -> list[list[int]]:
    """A row as its documents."""
    ids, numbers = packed.ids_T.tolist(), packed.sequences_T.tolist()
    assert len(ids) == len(numbers)
    assert numbers == sorted(numbers)
    assert sorted(set(numbers)) == list(range(len(set(numbers))))
    groups = itertools.groupby(zip(numbers, ids, strict=True), key=lambda pair: pair[0])
    return [[token for _, token in group] for _, group in groups]


# ---- whole documents ----


@settings(deadline=None, max_examples=100)
@given(lengths=st.lists(st.integers(1, 20), max_size=60), window=st.integers(1, 9))
def test_first_fit(lengths: list[int], window: int) -> None:
    rows = first_fit(lengths, 20, window)
    assert sorted(itertools.chain(*rows)) == list(range(len(lengths)))
    sums = [sum(lengths[place] for place in row) for row in rows]
    assert all(0 < total <= 20 for total in sums)
    if window >= len(lengths):
        assert rows == written_out(lengths, 20)
        assert len(rows) <= 1.7 * max(1, sum(lengths) / 20) + 1  # first fit's bound


def written_out(lengths: list[int], room: int) -> list[list[int]]:
    """First fit by its definition."""
    rows: list[list[int]] = []
    for place, length in enumerate(lengths):
        for row in rows:
            if sum(lengths[other] for other in row) + length <= room:
                row.append(place)
                break
        else:
            rows.append([place])
    return rows


def test_a_row_is_closed_when_too_many_are_open() -> None:
    assert first_fit([6, 6, 6, 4, 4, 4], 10, 2) == [[0], [1, 3], [2, 4], [5]]
    assert first_fit([6, 6, 6, 4, 4, 4], 10, 3) == [[0, 3], [1, 4], [2, 5]]


@settings(deadline=None, max_examples=50)
@given(lengths=LENGTHS, room=st.integers(1, 30), seed=st.integers(0, 9))
def test_packed_examples_hold_every_token_once(lengths: list[int], room: int, seed: int) -> None:
    documents = documents_of(lengths)
    if not any(lengths):
        with pytest.raises(InputError, match="nothing to pack"):
            PackedExamples(documents, room, seed)
        return
    examples = PackedExamples(documents, room, seed, window=8)
    found = []
    for index in range(len(examples)):
        packed = examples.example(index, 0)
        assert len(packed.ids_T) == examples.length(index) <= room
        found += parts_of(packed)
    whole = [d[i : i + room] for d in documents for i in range(0, len(d), room)]
    assert sorted(found) == sorted(whole)
    assert len(pieces_of(lengths, room)) == len(whole)


def test_packing_is_pure_and_differs_by_seed() -> None:
    documents = documents_of([7, 3, 9, 1, 5, 8, 2, 6] * 5)

    def rows(seed: int) -> list[list[int]]:
        examples = PackedExamples(documents, 12, seed)
        return [examples.example(i, 3).ids_T.tolist() for i in range(len(examples))]

    assert rows(1) == rows(1)
    assert rows(1) != rows(2)
    examples = PackedExamples(documents, 12, 1)
    assert sum(map(examples.length, range(len(examples)))) / (12 * len(examples)) > 0.85
    picked = next(Batches(examples, Batching(4), 0))
    found = [packed.ids_T.tolist() for packed in picked.examples]
    assert found == [rows(1)[i] for i in picked.indices]
    for wrong in ({"length": 0}, {"length": 4, "window": 0}):
        with pytest.raises(ConfigError):
            PackedExamples(documents, seed=0, **wrong)


def test_a_packed_document_is_computed_as_if_alone() -> None:
    """Through a model; with the numbers left out the test fails."""
    config = {"model_type": "gpt2", "n_positions": 16, "n_embd": 16, "n_layer": 2, "n_head": 2}
    model = chumoku.create({**config, "vocab_size": 50}, "causal-lm", seed=0).model.double().eval()
    documents = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8]]
    packed = PackedExamples(documents, 12, 0).example(0, 0)
    batch = Batch(sequences_BT=packed.sequences_T[None])
    with torch.inference_mode():
        together = model(packed.ids_T[None], batch=batch)[0]
        alone = torch.cat([model(torch.tensor([part]))[0] for part in parts_of(packed)])
        joined = model(packed.ids_T[None])[0]
    assert sorted(parts_of(packed)) == sorted(documents)
    assert float((together - alone).abs().max()) < 1e-12
    assert float((joined - alone).abs().max()) > 1e-3
    row = row_of(packed.ids_T, packed.sequences_T)
    assert int((row.targets_T >= 0).sum()) == 12 - 3


# ---- end to end ----


def packed_by(packer: Packer, documents: list[list[int]]) -> list[list[list[int]]]:
    rows = [packed for document in documents for packed in packer.add(document)]
    return [parts_of(packed) for packed in [*rows, *packer.flush()]]


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, length=st.integers(1, 30))
def test_the_packer_holds_every_token_once_and_in_order(lengths: list[int], length: int) -> None:
    documents = documents_of(lengths)
    rows = packed_by(Packer(list, length), documents)
    flat = [[token for part in row for token in part] for row in rows]
    assert [token for row in flat for token in row] == [t for d in documents for t in d]
    assert all(len(row) == length for row in flat[:-1])
    for part in itertools.chain(*rows):
        assert len({token // 1000 for token in part}) == 1


@settings(deadline=None, max_examples=60)
@given(lengths=LENGTHS, length=st.integers(2, 30))
def test_with_an_overlap_every_token_is_a_target_once(lengths: list[int], length: int) -> None:
    documents = documents_of(lengths)
    rows = packed_by(Packer(list, length, overlap=1), documents)
    targets = [token for row in rows for token in [t for part in row for t in part][1:]]
    assert targets == [t for d in documents for t in d][1:]


def test_the_remainder_goes_on() -> None:
    documents = documents_of([5, 9, 2, 0, 7, 7, 3])
    whole = packed_by(Packer(list, 6, overlap=1), documents)
    for cut in range(len(documents) + 1):
        first, second = Packer(list, 6, overlap=1), Packer(list, 6, overlap=1)
        rows = [parts_of(p) for d in documents[:cut] for p in first.add(d)]
        second.restore(json.loads(json.dumps(first.state())))
        assert rows + packed_by(second, documents[cut:]) == whole
        if 0 < cut < len(documents):  # without the remainder it is seen
            assert rows + packed_by(Packer(list, 6, overlap=1), documents[cut:]) != whole


def test_a_remainder_that_is_none() -> None:
    packer = Packer(list, 6)
    for wrong in ({}, {"ids": [1], "numbers": []}, {"ids": [1.5], "numbers": [0]}, {"ids": "1"}):
        with pytest.raises(CheckpointError, match="damaged"):
            packer.restore(wrong)
    with pytest.raises(CheckpointError, match="none of rows of 6"):
        packer.restore({"ids": [1] * 6, "numbers": [0] * 6})
    for length, overlap in ((0, 0), (3, 3), (3, -1)):
        with pytest.raises(ConfigError):
            Packer(list, length, overlap)


# ---- a file of tokens ----


@pytest.mark.parametrize("dtype", ["uint16", "int32"])
@pytest.mark.parametrize("order", ["each", "random", "fixed"])
def test_windows_of_a_file_of_tokens(dtype: str, order: str, tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 1001)
    tokens.astype("<u2" if dtype == "uint16" else "<i4").tofile(tmp_path / "train.bin")
    mapped = map_tokens(tmp_path / "train.bin", dtype)
    assert len(mapped) == 1001
    windows = Windows(Stream(mapped, None), 64, order, seed=1)
    own = Windows(Stream(torch.tensor(tokens), None), 64, order, seed=1)
    for epoch, index in itertools.product(range(2), range(len(own))):
        pair = (windows.example(index, epoch), own.example(index, epoch))
        for one, other in zip(*pair, strict=True):
            assert (one is None and other is None) or torch.equal(one, other)
            assert one is None or one.dtype == torch.int64


def test_a_file_of_tokens_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"123")
    with pytest.raises(InputError, match="3 bytes are no tokens of 2 bytes"):
        map_tokens(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(InputError, match="0 bytes"):
        map_tokens(tmp_path / "a", "int32")
    with pytest.raises(InputError, match="cannot be read"):
        map_tokens(tmp_path / "b")
    with pytest.raises(InputError, match="not one of"):
        map_tokens(tmp_path / "a", "object")


def test_mapped_tokens_are_not_changed_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(bytes(8))
    map_tokens(tmp_path / "a")[0] = 5
    assert (tmp_path / "a").read_bytes() == bytes(8)
