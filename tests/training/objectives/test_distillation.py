"""Soft targets, the masked mixture and copied layers, each beside an independent account."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from training.objectives import tiny

import chumoku
from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import Batch
from chumoku.loading import Loaded, load
from chumoku.models import bert, gpt2, t5
from chumoku.saving import save
from chumoku.training.objectives import classification, distillation, masked_lm
from chumoku.training.objectives.distillation import Mixture, soft_classes_loss, soft_loss, task
from chumoku.training.objectives.students import spread, student_from

BERT = bert.Config(
    max_positions=64,
    width=24,
    num_blocks=4,
    num_heads=4,
    feedforward_width=36,
    labels=("bad", "good", "odd"),
)
ROWS = [
    {"text": "the cat sat.", "label": "bad"},
    {"text": "mary works at the big bridge and lives in new york.", "label": "odd"},
    {"text": "john is a good king", "pair": "but not a good example", "label": "good"},
]


def teacher_of(head: str = "masked-lm", kind: str = "english", **changes: Any) -> Loaded:
    loaded = tiny.created(replace(BERT, **changes), head, kind)
    tiny.randomised(loaded.model)
    return loaded


def student_of(teacher: Loaded, **options: Any) -> Loaded:
    """A student whose weights are its own, so that no part of the loss is 0."""
    student = student_from(teacher, **options)
    tiny.randomised(student.model, seed=5)
    return student


def batch_of(made: Any) -> Any:
    return made.collate([made.examples.example(i, 0) for i in range(len(made.examples))])


# ---- soft targets ----


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [p / math.fsum(powers) for p in powers]


def by_hand(student: Any, teacher: Any, temperature: float) -> float:
    total = 0.0
    for s, t in zip(student.tolist(), teacher.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        total += math.fsum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True))
    return temperature**2 * total


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
def test_the_soft_loss_is_its_formula(dtype: torch.dtype, temperature: float) -> None:
    rng = torch.Generator().manual_seed(1)
    s, t = (2 * torch.randn(6, 5, dtype=dtype, generator=rng) for _ in range(2))
    expected = by_hand(s, t, temperature)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    assert float(soft_loss(s, t, temperature)) == pytest.approx(expected, rel=tolerance)
    assert float(soft_loss(s, s, temperature)) == pytest.approx(0.0, abs=1e-5)
    assert float(soft_loss(t, s, temperature)) != pytest.approx(expected, rel=1e-3)  # not symmetric
    if temperature != 1.0:
        assert expected / temperature**2 != pytest.approx(expected, rel=0.5)
    halves = soft_loss(s.half(), t.half(), temperature)
    assert halves.dtype == torch.float32


def test_the_gradient_keeps_its_scale() -> None:
    """1503.02531, equation 4: for a large T the gradient is (s - t) / C, whatever T is."""
    rng = torch.Generator().manual_seed(2)
    s, t = (torch.randn(8, 10, dtype=torch.float64, generator=rng) for _ in range(2))
    s, t = s - s.mean(1, keepdim=True), t - t.mean(1, keepdim=True)
    norms = {}
    for temperature in (10.0, 20.0, 40.0, 1000.0):
        leaf = s.clone().requires_grad_()
        soft_loss(leaf, t, temperature).backward()
        assert leaf.grad is not None
        norms[temperature] = float(leaf.grad.norm())
    torch.testing.assert_close(leaf.grad, (s - t) / 10, rtol=2e-3, atol=2e-4)
    assert max(norms.values()) / min(norms.values()) < 1.15
    # The wrong variant, without the factor, loses all of its gradient.
    assert norms[40.0] / 40.0**2 < 0.01 * norms[10.0]


def test_the_soft_loss_of_other_problems() -> None:
    rng = torch.Generator().manual_seed(3)
    s, t = (torch.randn(4, 3, dtype=torch.float64, generator=rng) for _ in range(2))
    expected = 0.0
    for a, b in zip(s.flatten().tolist(), t.flatten().tolist(), strict=True):
        p, q = softmax([0.0, b], 2.0)[1], softmax([0.0, a], 2.0)[1]
        expected += 4 * (p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))) / 3
    assert float(soft_classes_loss("multi", s, t, 2.0)) == pytest.approx(expected, rel=1e-12)
    squares = math.fsum(
        (a - b) ** 2 for a, b in zip(s[:, 0].tolist(), t[:, 0].tolist(), strict=True)
    )
    found = soft_classes_loss("regression", s[:, :1], t[:, :1], 2.0)
    assert float(found) == pytest.approx(squares, rel=1e-12)


# ---- masked language models ----


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("head", ["masked-lm", "pre-training"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_masked_mixture_is_its_formula(everywhere: bool, head: str, dtype: torch.dtype) -> None:
    teacher = teacher_of(head)
    student = student_of(teacher, head="masked-lm", model_type="distilbert")
    for loaded in (teacher, student):
        loaded.model.to(dtype).eval()
    made = task(student, tiny.ENGLISH, teacher=teacher, all_positions=everywhere, rate=0.3)
    batch = batch_of(made)
    loss = made.loss(student.model, batch)
    around = (batch.ids_BT, batch.mask_BT)
    s = student.model(*around)
    answer = teacher.model(*around)
    t = answer if head == "masked-lm" else answer.logits_BTV
    places = [(p // s.shape[1], p % s.shape[1]) for p in batch.places_M.tolist()]
    real = batch.mask_BT.nonzero().tolist()
    soft_at = real if everywhere else places
    soft = by_hand(
        torch.stack([s[b, i] for b, i in soft_at]), torch.stack([t[b, i] for b, i in soft_at]), 2.0
    )
    hard = sum(
        -math.log(softmax(s[b, i].tolist(), 1.0)[y])
        for (b, i), y in zip(places, batch.targets_M.tolist(), strict=True)
    )
    h, g = (m.hidden(*around) for m in (student.model, teacher.model))
    cosine = 0.0
    for b, i in real:
        x, y = h[b, i].tolist(), g[b, i].tolist()
        dot = math.fsum(p * q for p, q in zip(x, y, strict=True))
        cosine += 1 - dot / math.hypot(*x) / math.hypot(*y)
    mean = 5 * soft / len(soft_at) + 2 * hard / len(places) + cosine / len(real)
    tolerance = 2e-5 if dtype == torch.float32 else 1e-10
    assert int(loss.units) == len(places)
    assert float((loss.total / loss.units).detach()) == pytest.approx(mean, rel=tolerance)
    assert {n: float(p.detach()) / len(places) for n, p in loss.parts.items()} == {
        "soft": pytest.approx(soft / len(soft_at), rel=tolerance),
        "hard": pytest.approx(hard / len(places), rel=tolerance),
        "cosine": pytest.approx(cosine / len(real), rel=tolerance),
    }
    wrong = 5 * soft / len(soft_at) / 4 + 2 * hard / len(places) + cosine / len(real)
    assert abs(wrong - mean) > 1e-3 * mean  # without T^2


def test_the_teacher_is_not_trained_and_does_not_drop_out() -> None:
    teacher = teacher_of()
    teacher.model.train()
    student = student_of(teacher)
    made = task(student, tiny.ENGLISH, teacher=teacher)
    assert not teacher.model.training
    student.model.train()
    assert not teacher.model.training
    batch = batch_of(made)
    before = {n: p.detach().clone() for n, p in teacher.model.named_parameters()}
    made.loss(student.model, batch).total.backward()
    assert all(p.grad is None for p in teacher.model.parameters())
    assert all(torch.equal(p, before[n]) for n, p in teacher.model.named_parameters())
    missing = [n for n, p in student.model.named_parameters() if p.grad is None]
    assert missing == []


def test_a_batch_without_a_masked_token() -> None:
    teacher = teacher_of()
    student = student_of(teacher)
    made = task(student, tiny.ENGLISH, teacher=teacher)
    none = torch.empty(0, dtype=torch.long)
    batch = batch_of(made)._replace(places_M=none, targets_M=none)
    loss = made.loss(student.model, batch)
    assert (float(loss.total.detach()), int(loss.units)) == (0.0, 0)


# ---- classifiers ----


def test_the_class_mixture_is_its_formula() -> None:
    teacher = teacher_of("classification", labels=("odd", "bad", "good"))
    student = tiny.created(replace(BERT, num_blocks=2), "classification", "english")
    tiny.randomised(student.model, seed=5)
    made = task(student, ROWS, teacher=teacher, temperature=3.0, soft=0.7, hard=0.3)
    batch = batch_of(made)
    loss = made.loss(student.model.eval(), batch)
    around = (batch.ids_BT, batch.mask_BT)
    segments = Batch(segments_BT=batch.segments_BT)
    s = student.model(*around, batch=segments)
    t = teacher.model(*around, batch=segments)[:, [1, 2, 0]]
    soft = by_hand(s, t, 3.0)
    hard = sum(
        -math.log(softmax(row, 1.0)[y]) for row, y in zip(s.tolist(), [0, 2, 1], strict=True)
    )
    assert float(loss.total.detach()) == pytest.approx(0.7 * soft + 0.3 * hard, rel=1e-4)
    unordered = by_hand(s, teacher.model(*around, batch=segments), 3.0)
    assert unordered != pytest.approx(soft, rel=1e-3)
    alone = [
        float(one.loss(student.model, batch_of(one)).total.detach())
        for one in (
            task(student, [row], teacher=teacher, temperature=3.0, soft=0.7, hard=0.3)
            for row in ROWS
        )
    ]
    assert float(loss.total.detach()) == pytest.approx(sum(alone), rel=1e-5)


def test_who_belongs_together() -> None:
    teacher = teacher_of()
    with pytest.raises(InputError, match="one model"):
        task(teacher, tiny.ENGLISH, teacher=teacher)
    with pytest.raises(InputError, match="same tokens"):
        task(teacher_of(kind="japanese"), ["東京"], teacher=teacher)
    narrow = tiny.created(replace(BERT, width=12), "masked-lm", "english")
    with pytest.raises(InputError, match="width is 12, the teacher's 24"):
        task(narrow, tiny.ENGLISH, teacher=teacher)
    made = task(narrow, tiny.ENGLISH, teacher=teacher, cosine=0.0)
    assert set(made.loss(narrow.model, batch_of(made)).parts) == {"soft", "hard"}
    other = teacher_of("classification", labels=("yes", "no"))
    with pytest.raises(InputError, match="labels are bad, good, odd; the teacher's yes, no"):
        task(teacher_of("classification"), ROWS, teacher=other)
    with pytest.raises(InputError, match="classification"):
        task(teacher_of("classification"), ROWS, teacher=teacher)
    with pytest.raises(InputError, match="masked-lm"):
        task(tiny.created(BERT, "encoder", "english"), ROWS, teacher=teacher)
    for wrong in ({"soft": -1.0, "hard": 1.0}, {"soft": 0.0, "hard": 0.0}):
        with pytest.raises(ConfigError, match="soft"):
            Mixture(**wrong)
    with pytest.raises(ConfigError, match="temperature"):
        Mixture(1.0, 1.0, temperature=0.0)


# ---- copied layers ----


def test_spread() -> None:
    assert spread(12, 6) == (0, 2, 4, 7, 9, 11)
    assert (spread(4, 2), spread(6, 3), spread(5, 5), spread(3, 1)) == (
        (0, 3),
        (0, 2, 5),
        (0, 1, 2, 3, 4),
        (0,),
    )
    with pytest.raises(ConfigError):
        spread(3, 4)


def test_layers_are_copied_to_the_bit() -> None:
    teacher = teacher_of("pre-training", num_blocks=12)
    student = student_from(teacher, model_type="distilbert", head="masked-lm")
    assert (student.source.model_type, student.head) == ("distilbert", "masked-lm")
    ours, theirs = student.model.state_dict(), teacher.model.state_dict()
    assert student.config.num_blocks == 6
    seen = 0
    for n, source in enumerate((0, 2, 4, 7, 9, 11)):
        for name, value in ours.items():
            if name.startswith(f"blocks.{n}."):
                other = theirs[name.replace(f"blocks.{n}.", f"blocks.{source}.", 1)]
                assert torch.equal(value, other), name
                seen += 1
    assert seen == 6 * 16
    for name in ("token.weight", "position.weight", "norm.weight", "norm.bias"):
        assert torch.equal(ours[f"embeddings.{name}"], theirs[f"embeddings.{name}"])
    for name in ("transform.weight", "transform.bias", "norm.weight", "norm.bias", "bias"):
        assert torch.equal(ours[f"head.{name}"], theirs[f"head.masked.{name}"])
    assert student.model.head.output.weight is student.model.embeddings.token.weight
    assert student.source.notes == ("blocks 0, 2, 4, 7, 9, 11 of created",)
    ours["blocks.0.attention.query.weight"].add_(1.0)  # a copy, not a view of the teacher
    assert not torch.equal(
        ours["blocks.0.attention.query.weight"], theirs["blocks.0.attention.query.weight"]
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_all_blocks_and_folded_segments_it_is_the_teacher(dtype: torch.dtype) -> None:
    teacher = teacher_of()
    teacher.model.to(dtype)
    batch = batch_of(masked_lm.task(teacher, tiny.ENGLISH))
    everything = range(4)
    folded, plain = (
        student_from(teacher, everything, model_type="distilbert", fold_segments=fold)
        for fold in (True, False)
    )
    want = teacher.model(batch.ids_BT, batch.mask_BT)
    real = batch.mask_BT
    for student, close in ((folded, True), (plain, False)):
        assert next(student.model.parameters()).dtype == dtype
        difference = (student.model(batch.ids_BT, batch.mask_BT) - want)[real].abs().max()
        assert (float(difference.detach()) < (1e-4 if dtype == torch.float32 else 1e-11)) == close
    same = student_from(teacher, everything)
    assert torch.equal(same.model(batch.ids_BT, batch.mask_BT), want)


def test_other_students() -> None:
    tuned = teacher_of("classification")
    student = student_from(tuned, [1, 3], model_type="distilbert")
    assert torch.equal(student.model.head.output.weight, tuned.model.head.output.weight)
    assert "drawn anew: head.transform.weight, head.transform.bias" in student.source.notes
    again = student_from(tuned, [1, 3], model_type="distilbert")
    assert torch.equal(again.model.head.transform.weight, student.model.head.transform.weight)
    assert student.config.labels == BERT.labels
    decoder = tiny.created(gpt2.Config(width=24, num_blocks=4, num_heads=4), "causal-lm", "gpt2")
    tiny.randomised(decoder.model)
    half = student_from(decoder)
    assert torch.equal(
        half.model.blocks[1].attention.query.weight, decoder.model.blocks[3].attention.query.weight
    )
    assert torch.equal(half.model.final_norm.bias, decoder.model.final_norm.bias)
    with pytest.raises(InputError, match="one stack"):
        student_from(tiny.created(t5.Config(width=24, num_heads=4), "conditional-generation", "t5"))
    with pytest.raises(ConfigError, match="from 0"):
        student_from(tuned, [4])
    with pytest.raises(ConfigError, match="no head 'pre-training'"):
        student_from(teacher_of("pre-training"), model_type="distilbert")
    roberta = teacher_of(model_type="roberta", pad_id=1, num_segments=1)
    with pytest.raises(ConfigError, match="positions"):
        student_from(roberta, model_type="distilbert")
    with pytest.raises(ConfigError, match="same parts"):
        student_from(teacher_of("encoder"), model_type="llama")


def test_a_student_is_saved_and_loads_in_transformers(tmp_path: Path) -> None:
    import transformers
    from tasks import models

    models.save(tmp_path / "teacher", "BertForMaskedLM", "english")
    teacher = load(tmp_path / "teacher")
    student = student_from(teacher, model_type="distilbert")
    save(student, tmp_path / "student")
    again = load(tmp_path / "student")
    assert again.source.model_type == "distilbert"
    assert again.tokenizer is not None
    ids = torch.tensor([again.tokenizer.encode("the cat sat in [MASK].").ids])
    want = student.model(ids)
    assert torch.equal(again.model(ids), want)
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "student").eval()
    assert type(theirs).__name__ == "DistilBertForMaskedLM"
    torch.testing.assert_close(theirs(ids).logits, want, rtol=1e-4, atol=1e-4)
    same = student_from(teacher)
    save(same, tmp_path / "same")
    assert torch.equal(load(tmp_path / "same").model(ids), same.model(ids))


# ---- learning ----


def test_a_student_comes_near_its_teacher() -> None:
    teacher = tiny.created(
        replace(BERT, dropout=0.0, attention_dropout=0.0, init_std=0.2), "classification", "english"
    )
    rows = ROWS + [{"text": f"{word} the cat", "label": "good"} for word in ("a", "john", "is")]
    tiny.train(classification.task(teacher, rows), teacher.model, 40)
    student = student_from(teacher)
    made = task(student, rows, teacher=teacher, evaluation=rows, soft=1.0, hard=0.0)
    before = float(made.loss(student.model, batch_of(made)).total.detach())
    losses = tiny.train(made, student.model, 30)
    assert losses[-1] < 0.1 * before / len(rows)
    assert tiny.metrics(made, student.model)["accuracy"] == 1.0


def test_a_masked_student_learns_from_its_teacher() -> None:
    teacher = teacher_of(dropout=0.0, attention_dropout=0.0)
    student = student_of(teacher, model_type="distilbert")
    made = task(student, tiny.ENGLISH, teacher=teacher, rate=0.5, evaluation=tiny.ENGLISH, hard=0.0)
    assert tiny.metrics(made, student.model)["loss"] > 0
    losses = tiny.train(made, student.model, 25, rate=0.02)
    assert losses[-1] < 0.7 * losses[0]


def test_a_teacher_is_named_by_its_source(tmp_path: Path) -> None:
    from tasks import models

    models.save(tmp_path, "BertForMaskedLM", "english")
    teacher = load(tmp_path)
    student = student_from(teacher)
    by_name = task(student, tiny.ENGLISH, teacher=str(tmp_path))
    by_model = task(student, tiny.ENGLISH, teacher=teacher)
    losses = [made.loss(student.model, batch_of(made)).total for made in (by_name, by_model)]
    assert torch.equal(*losses)
    assert chumoku.load is load
    assert distillation.MASKED == {"soft": 5.0, "hard": 2.0, "cosine": 1.0}
