"""The loss beside PyTorch's own and beside its formula, teacher forcing, rows, and decoding."""

from __future__ import annotations

import sys
import types
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from training.objectives import tiny

import chumoku
from chumoku import training
from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import t5, transformer
from chumoku.training.objectives import seq2seq
from chumoku.training.objectives.seq2seq import Example, Seq2SeqBatch

T5 = t5.Config(
    width=24,
    head_width=6,
    num_heads=4,
    feedforward_width=36,
    num_blocks=2,
    num_decoder_blocks=2,
    dropout=0.0,
)
PAPER = transformer.Config(
    width=24,
    num_encoder_blocks=2,
    num_decoder_blocks=2,
    encoder_heads=4,
    decoder_heads=4,
    encoder_feedforward_width=36,
    decoder_feedforward_width=36,
    dropout=0.0,
    pad_id=0,
    start_id=0,
    eos_ids=(1,),
)
CONFIGS = [T5, PAPER]
ROWS = [
    {"source": "the cat sat", "target": "a dog"},
    {"source": "john lives in london", "target": "mary works at the big bridge"},
    {"source": "where is it", "target": "paris"},
]


def loaded_of(config: Any) -> Loaded:
    loaded = tiny.created(config, "conditional-generation", "t5")
    tiny.randomised(loaded.model)
    return loaded


def batch_of(loaded: Loaded) -> Seq2SeqBatch:
    task = seq2seq.task(loaded, ROWS)
    batch: Seq2SeqBatch = task.collate([task.examples.example(i, 0) for i in range(3)])
    return batch


def total_of(model: Any, batch: Seq2SeqBatch, smoothing: float = 0.0) -> float:
    return float(seq2seq.loss(model, batch, smoothing=smoothing).total.detach())


# ---- label smoothing ----


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_smoothing_is_that_of_pytorch_and_of_the_formula(
    smoothing: float, dtype: torch.dtype
) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(7, 11, generator=rng, dtype=dtype)).requires_grad_()
    targets = torch.randint(11, (7,), generator=rng)
    total, nll = seq2seq.smoothed_cross_entropy(logits, targets, smoothing)
    theirs = F.cross_entropy(logits, targets, label_smoothing=smoothing, reduction="sum")
    q = torch.full((7, 11), smoothing / 11, dtype=dtype)
    q[range(7), targets] += 1.0 - smoothing
    log_p = logits - logits.exp().sum(-1, keepdim=True).log()
    written = -(q * log_p).sum()
    tolerance = 1e-11 if dtype == torch.float64 else 2e-5
    value = float(written.detach())
    for other in (theirs, total):
        assert abs(float(other.detach()) - value) < tolerance * value
    plain = F.cross_entropy(logits, targets, reduction="sum")
    assert abs(float((nll - plain).detach())) < tolerance * value
    (mine,) = torch.autograd.grad(total, logits)
    (expected,) = torch.autograd.grad(written, logits)
    assert float((mine - expected).abs().max()) < tolerance
    if smoothing:  # the other form: eps over the V - 2 that are neither true nor padding
        q = torch.full((7, 11), smoothing / 9, dtype=dtype)
        q[:, 0] = 0.0
        q[range(7), targets] = 1.0 - smoothing
        assert abs(float((-(q * log_p).sum()).detach()) - value) > 1e-3


# ---- teacher forcing ----


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_is_the_formula(config: Any, dtype: torch.dtype) -> None:
    """Token by token from whole forward passes, one row at a time, nothing padded."""
    loaded = loaded_of(config)
    model: Any = loaded.model.to(dtype)
    batch = batch_of(loaded)
    expected = torch.zeros((), dtype=dtype)
    units = 0
    tokenizer: Any = loaded.tokenizer
    for row in ROWS:
        source = torch.tensor([tokenizer.encode(row["source"]).ids])
        target = [*tokenizer.encode(row["target"], special=False).ids, 1]
        for t, gold in enumerate(target):
            read = torch.tensor([[0, *target[:t]]])
            log_p = model(source, read)[0, -1].log_softmax(-1)
            expected = expected - (0.9 * log_p[gold] + 0.1 * log_p.mean())
            units += 1
    ours = seq2seq.loss(model, batch, smoothing=0.1)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    value = float(expected.detach())
    assert int(ours.units) == units
    assert abs(float(ours.total.detach()) - value) < tolerance * value
    assert abs(float(ours.parts["nll"].detach()) - total_of(model, batch)) < tolerance * value
    unshifted = batch._replace(inputs_BT=batch.inputs_BT.roll(-1, 1))  # the answer is read
    padded = torch.zeros_like(batch.inputs_BT).flatten()
    assert batch.places_M is not None
    padded[batch.places_M] = batch.targets_M
    to_pad = batch._replace(places_M=None, targets_M=padded)  # padding as a target
    unmasked = batch._replace(mask_BS=None)
    for wrong in (unshifted, to_pad, unmasked):
        assert abs(total_of(model, wrong, 0.1) - value) > 1e-3 * value


@pytest.mark.parametrize("config", CONFIGS)
def test_padding_changes_nothing(config: Any) -> None:
    loaded = loaded_of(config)
    model = loaded.model.double()
    batch = batch_of(loaded)
    total = total_of(model, batch)
    T = batch.inputs_BT.shape[1]
    assert batch.places_M is not None
    assert batch.mask_BS is not None
    wider = Seq2SeqBatch(
        F.pad(batch.ids_BS, (0, 4), value=9),
        F.pad(batch.mask_BS, (0, 4)),
        F.pad(batch.inputs_BT, (0, 3), value=9),
        batch.places_M // T * (T + 3) + batch.places_M % T,
        batch.targets_M,
    )
    assert abs(total_of(model, wider) - total) < 1e-9 * total
    one = seq2seq.collate([Example(torch.arange(3, 6), torch.tensor([7, 8, 1]))], pad=0, start=5)
    assert one.mask_BS is None
    assert one.places_M is None
    assert one.inputs_BT.tolist() == [[5, 7, 8]]
    assert one.targets_M.tolist() == [7, 8, 1]


def test_bfloat16_is_summed_in_float32() -> None:
    loaded = loaded_of(T5)
    found = seq2seq.loss(loaded.model.bfloat16(), batch_of(loaded), smoothing=0.1)
    assert found.total.dtype == torch.float32


# ---- rows ----


def test_prefixes_lengths_and_notes() -> None:
    loaded = loaded_of(T5)
    tokenizer: Any = loaded.tokenizer
    rows: list[dict[str, Any]] = [*ROWS, {"source": "x", "target": "y", "prefix": "where is "}]
    task = seq2seq.task(loaded, rows, prefix="translate ", source_length=5, target_length=4)
    examples: Any = task.examples
    whole = tokenizer.encode("translate the cat sat").ids
    assert examples.example(0, 0).source_S.tolist() == [*whole[:4], whole[-1]]
    assert examples.example(3, 0).source_S.tolist()[:2] == tokenizer.encode("where is").ids[:2]
    target = tokenizer.encode_plain("mary works at the big bridge")
    assert examples.example(1, 0).target_T.tolist() == [*target[:3], 1]
    assert any("1 of 4 targets cut to 4 tokens" in note for note in examples.notes)
    assert len(examples.notes) == 2
    assert examples.length(1) == 5
    for bad, message in (
        ([{"source": "a"}], "row 0 has no text 'target'"),
        ([{"source": " ", "target": "a"}], "row 0 is empty"),
        ([], "no rows"),
    ):
        with pytest.raises(InputError, match=message):
            seq2seq.task(loaded, bad)
    with pytest.raises(ConfigError, match="smoothing"):
        seq2seq.task(loaded, ROWS, smoothing=1.0)
    with pytest.raises(ConfigError, match="score"):
        seq2seq.task(loaded, ROWS, score="meteor")


# ---- training and decoding ----


@pytest.mark.parametrize("config", CONFIGS)
def test_training_until_the_rows_are_known(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Overfitted, and decoded with beams; the loss stops at the floor that smoothing sets."""
    asked: list[Any] = []

    def bleu(hypotheses: list[str], references: list[str], tokenize: str) -> float:
        asked.append((hypotheses, references, tokenize))
        return (
            100.0
            * sum(h == r for h, r in zip(hypotheses, references, strict=True))
            / len(references)
        )

    fake = types.ModuleType("chumoku.training.metrics")
    fake.bleu = bleu  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "chumoku.training.metrics", fake)
    monkeypatch.setattr(training, "metrics", fake, raising=False)
    loaded = tiny.created(config, "conditional-generation", "t5")
    task = seq2seq.task(
        loaded, ROWS, evaluation=ROWS, score="bleu", tokenize="none", max_new_tokens=12
    )
    assert (task.metric, task.lower) == ("bleu", False)
    before = tiny.metrics(task, loaded.model)
    losses = tiny.train(task, loaded.model, 90, rate=0.01)
    after = tiny.metrics(task, loaded.model)
    V = loaded.config.vocab_size
    q = torch.full((V,), 0.1 / V, dtype=torch.float64)
    q[0] += 0.9
    assert float(-(q * q.log()).sum()) < losses[-1] < losses[0] - 2.0
    assert after["loss"] < 0.3 < before["loss"]
    assert after["bleu"] == 100.0
    assert asked[-1] == ([r["target"] for r in ROWS], [r["target"] for r in ROWS], "none")
    known = replace(loaded, generation={"decoder_start_token_id": 0, "eos_token_id": 1})
    made = chumoku.text2text([r["source"] for r in ROWS], known, num_beams=4, max_new_tokens=12)
    assert [m["generated_text"] for m in made] == asked[-1][0]
    assert task.sample is not None
    assert task.sample(loaded.model) == "the cat sat -> a dog"


def test_scores_cut_words_as_the_targets_are_written() -> None:
    """Japanese has no spaces: with 13a a sentence is one word, and BLEU is 0 for the best too."""
    loaded = chumoku.load("tiny:translator")
    rows = [{"source": "My brother lives in Tokyo.", "target": "私の兄は東京に住んでいる。"}]
    found = {}
    for tokenize in ("auto", "13a"):
        learned = seq2seq.task(loaded, rows, evaluation=rows, score="bleu", tokenize=tokenize)
        assert learned.evaluate is not None
        with torch.no_grad():
            found[tokenize] = learned.evaluate(loaded.model)["bleu"]
    assert found["auto"] == pytest.approx(100.0)
    assert found["13a"] < 1.0


def test_a_score_that_is_told_need_not_choose() -> None:
    """metric: by the loss, though BLEU is measured too."""
    loaded = loaded_of(T5)
    by_score = seq2seq.task(loaded, ROWS, evaluation=ROWS, score="bleu")
    by_loss = seq2seq.task(loaded, ROWS, evaluation=ROWS, score="bleu", metric="loss")
    assert (by_score.metric, by_score.lower) == ("bleu", False)
    assert (by_loss.metric, by_loss.lower) == ("loss", True)
    assert {"bleu", "loss"} <= set(tiny.metrics(by_loss, loaded.model))
