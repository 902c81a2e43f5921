"""The loss beside one forward pass for each document, windows, and what evaluation says."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from training.objectives import tiny

import chumoku
from chumoku.errors import ConfigError, InputError
from chumoku.models import gpt2, llama
from chumoku.text.training import TokenizerSettings, train_tokenizer
from chumoku.training.objectives import causal_lm, encoded
from chumoku.training.objectives.causal_lm import CausalBatch, Row, Stream, Windows
from chumoku.training.task import IGNORED

GPT2 = gpt2.Config(
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    max_positions=64,
    dropout=0.0,
    attention_dropout=0.0,
    embedding_dropout=0.0,
)
LLAMA = llama.Config(
    width=24,
    num_blocks=2,
    num_heads=4,
    num_kv_heads=2,
    head_width=6,
    feedforward_width=36,
    max_positions=64,
)
DOCUMENTS = [[5, 6, 7, 8, 9], [10], [11, 12, 13], [14, 15, 16, 17]]


def packed(length: int = 20) -> tuple[Stream, Row]:
    stream = causal_lm.stream_of(DOCUMENTS, separate=True)
    return stream, Windows(stream, length, "fixed", 0).example(0, 0)


def total_of(model: Any, batch: CausalBatch) -> float:
    return float(causal_lm.loss(model, batch).total.detach())


# ---- rows ----


def test_no_target_across_documents() -> None:
    _, row = packed()
    assert row.ids_T.tolist() == [5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]
    no = IGNORED
    assert row.targets_T.tolist() == [6, 7, 8, 9, no, no, 12, 13, no, 15, 16, 17]
    assert row.sequences_T is not None
    assert row.sequences_T.tolist() == [0] * 5 + [1] + [2] * 3 + [3] * 3
    joined = Windows(causal_lm.stream_of(DOCUMENTS, separate=False), 20, "fixed", 0).example(0, 0)
    assert joined.targets_T.tolist() == [*range(6, 18)]
    assert joined.sequences_T is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("config", [GPT2, LLAMA])
def test_packed_loss_is_the_sum_over_documents(config: Any, dtype: torch.dtype) -> None:
    """Algorithm 13, one document at a time, and its gradient."""
    model: Any = chumoku.create(config, "causal-lm").model.to(dtype)
    tiny.randomised(model)
    _, row = packed()
    batch = causal_lm.collate([row, row._replace(ids_T=row.ids_T + 20)])
    ours = causal_lm.loss(model, batch)
    expected = torch.zeros((), dtype=dtype)
    units = 0
    for offset in (0, 20):
        for document in DOCUMENTS:
            ids = torch.tensor(document)
            if len(ids) > 1:
                logits_TV = model(ids[None, :] + offset)[0, :-1]
                log_p = logits_TV - logits_TV.exp().sum(-1, keepdim=True).log()
                expected = expected - log_p[range(len(ids) - 1), ids[1:]].sum()
                units += len(ids) - 1
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    value = float(expected.detach())
    assert int(ours.units) == units
    assert abs(float(ours.total.detach()) - value) < tolerance * value
    parameters = list(model.parameters())
    mine = torch.autograd.grad(ours.total, parameters)
    theirs = torch.autograd.grad(expected, parameters)
    for a, b in zip(mine, theirs, strict=True):
        assert float((a - b).abs().max()) <= 100 * tolerance * max(1.0, float(b.abs().max()))
    leaking = batch._replace(sequences_BT=None)  # attention to the former document
    shifted = batch._replace(targets_M=batch.targets_M.roll(1))
    for wrong in (leaking, shifted):
        assert abs(total_of(model, wrong) - value) > 1e-2


@pytest.fixture
def model() -> Any:
    model = chumoku.create(GPT2, "causal-lm").model.double()
    tiny.randomised(model)
    return model


def test_rows_of_several_lengths(model: Any) -> None:
    """What a row is padded with, and beside whom it stands, changes nothing."""
    _, long = packed()
    short = causal_lm.row_of(torch.tensor([30, 31, 32]))
    alone = sum(total_of(model, causal_lm.collate([row])) for row in (long, short))
    assert abs(total_of(model, causal_lm.collate([long, short])) - alone) < 1e-9 * alone
    plain = causal_lm.row_of(torch.arange(9, 20))
    batch = causal_lm.collate([plain, short])
    assert batch.sequences_BT is None
    alone = sum(total_of(model, causal_lm.collate([row])) for row in (plain, short))
    assert abs(total_of(model, batch) - alone) < 1e-9 * alone
    other = batch._replace(ids_BT=batch.ids_BT.clone())
    other.ids_BT[1, 2:] = 77
    assert total_of(model, other) == total_of(model, batch)


def test_bfloat16_is_summed_in_float32(model: Any) -> None:
    assert causal_lm.loss(model.bfloat16(), causal_lm.collate([packed()[1]])).total.dtype == (
        torch.float32
    )


def test_the_loss_compiles_in_one_piece(model: Any) -> None:
    """No graph break: where a run is compiled, the loss is fused too."""
    batch = causal_lm.collate([causal_lm.row_of(torch.arange(9, 30))])
    assert batch.places_M is None

    def total(ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return causal_lm.loss(model, CausalBatch(ids, None, None, targets)).total

    compiled = torch.compile(total, backend="eager", fullgraph=True)
    ours = compiled(batch.ids_BT, batch.targets_M)
    assert abs(float(ours.detach()) - total_of(model, batch)) < 1e-9


# ---- windows ----


def test_fixed_windows_hold_each_target_once() -> None:
    stream = causal_lm.stream_of([list(range(50))], separate=True)
    windows = Windows(stream, 8, "fixed", 0)
    rows = [windows.example(i, 0) for i in range(len(windows))]
    assert [t for row in rows for t in row.targets_T.tolist()] == list(range(1, 50))
    assert [windows.length(i) for i in range(len(windows))] == [len(r.ids_T) for r in rows]


@pytest.mark.parametrize("separate", [False, True])
def test_each_epoch_goes_once_through_the_stream(separate: bool) -> None:
    texts = [list(range(1, 31)), list(range(31, 100))]
    stream = causal_lm.stream_of(texts, separate)
    windows = Windows(stream, 8, "each", 3)
    starts = set()
    for epoch in range(6):
        rows = [windows.example(i, epoch) for i in range(len(windows))]
        inputs = [i for row in rows for i in row.ids_T.tolist()]
        assert {len(row.ids_T) for row in rows} == {8}
        assert len(inputs) == len(set(inputs)) > 99 - 8
        pairs = [
            (a, b)
            for row in rows
            for a, b in zip(row.ids_T.tolist(), row.targets_T.tolist(), strict=True)
        ]
        broken = {99} | ({30} if separate else set())  # the end joined to the beginning
        assert all(b == (IGNORED if a in broken else a + 1) for a, b in pairs)
        starts.add(inputs[0])
    assert len(starts) > 3


def test_random_windows_begin_anywhere() -> None:
    stream = causal_lm.stream_of([list(range(20))], separate=True)
    windows = Windows(stream, 8, "random", 3)
    firsts = Counter(int(windows.example(0, epoch).ids_T[0]) for epoch in range(1200))
    assert set(firsts) == set(range(12))
    assert max(abs(n - 100) for n in firsts.values()) < 50


def test_an_example_depends_on_seed_epoch_and_index_alone() -> None:
    stream = causal_lm.stream_of([list(range(300))], separate=True)
    for order in ("each", "random"):
        first, second = Windows(stream, 8, order, 3), Windows(stream, 8, order, 3)
        second.example(1, 5)
        assert torch.equal(first.example(4, 2).ids_T, second.example(4, 2).ids_T)
        assert not torch.equal(first.example(4, 2).ids_T, first.example(4, 3).ids_T)
        other = Windows(stream, 8, order, 4)
        assert not torch.equal(first.example(4, 2).ids_T, other.example(4, 2).ids_T)


def test_short_streams() -> None:
    windows = Windows(causal_lm.stream_of([[5, 6, 7]], separate=True), 64, "each", 0)
    assert len(windows) == 1
    assert len(windows.example(0, 0).ids_T) == 2
    with pytest.raises(InputError, match="two tokens"):
        causal_lm.stream_of([[5]], separate=True)
    with pytest.raises(ConfigError, match="order"):
        Windows(causal_lm.stream_of([[5, 6]], separate=True), 64, "sorted", 0)


# ---- the task ----


def test_evaluation_equals_the_perplexity_verb() -> None:
    loaded = tiny.created(GPT2, "causal-lm", "gpt2")
    tiny.randomised(loaded.model)
    text = "the cat sat on 東京 tower, or so it says."
    task = causal_lm.task(loaded, [text], evaluation=[text], end=False)
    ours = tiny.metrics(task, loaded.model)
    theirs = chumoku.perplexity(text, loaded)
    assert theirs["tokens"] < 64
    assert abs(ours["loss"] - theirs["nll"]) < 1e-4
    assert abs(ours["perplexity"] - theirs["perplexity"]) < 1e-3 * theirs["perplexity"]
    nats = theirs["nll"] * theirs["tokens"]
    octets, characters = len(text.encode()) - 2, len(text) - 2  # "th" is not predicted
    assert abs(ours["bits_per_byte"] - nats / math.log(2) / octets) < 1e-4
    assert abs(ours["bits_per_character"] - nats / math.log(2) / characters) < 1e-4


def test_evaluation_over_documents_and_windows() -> None:
    loaded = tiny.created(GPT2, "causal-lm", "gpt2")
    model: Any = loaded.model
    tiny.randomised(model)
    task = causal_lm.task(
        loaded, tiny.ENGLISH, evaluation=tiny.ENGLISH, length=60, evaluation_batch_size=2
    )
    tokenizer: Any = loaded.tokenizer
    total, targets = 0.0, 0
    ids = [[*tokenizer.encode(t).ids, tokenizer.eos_id] for t in tiny.ENGLISH]
    flat = [i for document in ids for i in document]
    starts = {sum(map(len, ids[:n])) for n in range(len(ids))}
    for start in range(0, len(flat) - 1, 60):
        window = flat[start : start + 61]
        edges = sorted({0, *(s - start for s in starts if 0 < s - start < len(window))})
        for a, b in zip(edges, [*edges[1:], len(window)], strict=True):
            log_p = model(torch.tensor([window[a:b]])).detach()[0].log_softmax(-1)
            for n in range(a + 1, b):
                total -= float(log_p[n - 1 - a, window[n]])
                targets += 1
    found = tiny.metrics(task, model)
    assert abs(found["loss"] - total / targets) < 1e-4
    unpaid = sum(len(tokenizer.decode(document[:1])) for document in ids)
    octets = sum(len(t.encode()) for t in tiny.ENGLISH) - unpaid
    paid = total / targets * (sum(map(len, ids)) - len(ids))  # a window's first token too
    assert abs(found["bits_per_byte"] - paid / math.log(2) / octets) < 1e-3
    fewer = causal_lm.task(
        loaded, tiny.ENGLISH, evaluation=tiny.ENGLISH, length=16, evaluation_limit=3
    )
    assert fewer.evaluate is not None
    assert tiny.metrics(fewer, model)["loss"] > 0


def test_unknown_tokens_have_no_bits() -> None:
    loaded = tiny.created(GPT2, "causal-lm", "english")
    for text, known in (("the cat sat", True), ("the cat 東京", False)):
        task = causal_lm.task(loaded, [text], evaluation=[text])
        assert ("bits_per_byte" in tiny.metrics(task, loaded.model)) == known


@pytest.mark.parametrize("order", ["each", "random"])
def test_training_lowers_the_loss(order: str) -> None:
    loaded = tiny.created(GPT2, "causal-lm", "gpt2")
    task = causal_lm.task(
        loaded,
        tiny.ENGLISH,
        evaluation=tiny.ENGLISH,
        length=32,
        order=order,
        sample_prompt="the ",
        sample_tokens=8,
    )
    before = tiny.metrics(task, loaded.model)
    assert abs(before["loss"] - math.log(loaded.config.vocab_size)) < 0.5
    tiny.train(task, loaded.model, 30)
    assert tiny.metrics(task, loaded.model)["loss"] < before["loss"] - 2.0
    assert task.sample is not None
    text = task.sample(loaded.model)
    assert text.startswith("the ")
    assert text == task.sample(loaded.model)


def test_wrong_models_are_refused() -> None:
    with pytest.raises(InputError, match="causal-lm"):
        causal_lm.task(tiny.created(GPT2, "encoder", "gpt2"), tiny.ENGLISH)


def test_a_frame_needs_no_letter_a() -> None:
    kana = train_tokenizer(
        ["ねこいぬ"], TokenizerSettings(kind="characters", vocab_size=9)
    ).tokenizer
    assert encoded.frame_of(kana) == encoded.frame_of(kana, pair=True) == ((), (), ())
