"""Distillation: a student learns to give what its teacher gives (1503.02531; 1910.01108).

With a temperature T both distributions are softened: L_soft is T^2 times the divergence KL(p || q)
of p = softmax(teacher / T) and q = softmax(student / T). The gradient of the KL falls like 1 / T^2,
hence the factor (1503.02531, section 2). Masked language models: L = 5 L_soft + 2 L_mlm + 1 L_cos
with L_cos = 1 - cos(h_student, h_teacher), each a mean over its positions (1910.01108, section 3,
with the published tool's weights). Classifiers: L = a L_soft + b L_hard, with the labels.

Shape letters: B batch (rows), T position, D model width, M positions, C classes, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.ops import wide
from chumoku.loading import Loaded, load
from chumoku.training.objectives import classification, masked_lm
from chumoku.training.objectives.classification import ClassBatch, classes_loss
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import MaskedBatch, check_head
from chumoku.training.objectives.text_rows import Row, answer, check_text
from chumoku.training.objectives.vocabulary import cross_entropy, picked
from chumoku.training.task import Kind, Loss, Task

# ---- the losses ----


def soft_loss(student_MC: Tensor, teacher_MC: Tensor, temperature: float) -> Tensor:
    """T^2 * sum over M of KL(softmax(teacher / T) || softmax(student / T)), float32 or wider."""
    dtype = wide(student_MC.dtype)
    log_p_MC = torch.log_softmax(teacher_MC.to(dtype) / temperature, dim=-1)
    log_q_MC = torch.log_softmax(student_MC.to(dtype) / temperature, dim=-1)
    total = F.kl_div(log_q_MC, log_p_MC, log_target=True, reduction="sum")
    return total * temperature**2


def soft_classes_loss(
    problem: str, student_BC: Tensor, teacher_BC: Tensor, temperature: float
) -> Tensor:
    """Summed over rows. "multi": each class is a distribution over yes and no, and the mean over
    classes is taken; "regression": the squared distance, without a temperature."""
    if problem == "single":
        return soft_loss(student_BC, teacher_BC, temperature)
    if problem == "multi":
        student, teacher = (
            torch.stack([torch.zeros_like(z), z], dim=-1).flatten(0, 1)
            for z in (student_BC, teacher_BC)
        )
        return soft_loss(student, teacher, temperature) / student_BC.shape[1]
    return (student_BC.to(wide(student_BC.dtype)) - teacher_BC).square().sum()


def cosine_distances(student_MD: Tensor, teacher_MD: Tensor) -> Tensor:
    """sum over M of 1 - cos(student, teacher)."""
    dtype = wide(student_MD.dtype)
    return (1.0 - F.cosine_similarity(student_MD.to(dtype), teacher_MD.to(dtype), dim=-1)).sum()


@dataclass(frozen=True)
class Mixture:
    """Weights of the parts. temperature: T. all_positions: L_soft of a masked language model at
    every real position, as the published tool has it by default, not at the masked ones alone."""

    soft: float
    hard: float
    cosine: float = 0.0
    temperature: float = 2.0
    all_positions: bool = False

    def __post_init__(self) -> None:
        if min(self.soft, self.hard, self.cosine) < 0.0 or self.soft + self.hard <= 0.0:
            raise ConfigError(
                f"soft {self.soft}, hard {self.hard}, cosine {self.cosine}: none may be negative, "
                "and soft or hard must be above 0",
                where="soft, hard, cosine",
            )
        if not self.temperature > 0.0:
            raise ConfigError(f"must be above 0, it is {self.temperature}", where="temperature")


def masked_loss(
    model: nn.Module, batch: MaskedBatch, *, teacher: nn.Module, mixture: Mixture
) -> Loss:
    """units: masked tokens, M. Means over other positions are weighed by M: over a batch, total /
    units is the sum of the means, as published."""
    hidden_BTD = masked_lm.hidden(model, batch)
    logits_MV, targets_M = masked_lm.predictions(model, hidden_BTD, batch)
    real_P = _real(batch)
    M = targets_M.numel()
    share = M / real_P.numel()
    asked, said = batch, logits_MV
    if mixture.all_positions:
        asked = batch._replace(places_M=real_P)
        said = masked_lm.predictions(model, hidden_BTD, asked).logits_MV
    with torch.no_grad():
        taught_BTD = masked_lm.hidden(teacher, batch)
        taught = masked_lm.predictions(teacher, taught_BTD, asked).logits_MV
    soft = soft_loss(said, taught, mixture.temperature)
    soft = share * soft if mixture.all_positions else soft
    hard = cross_entropy(logits_MV, targets_M)
    total = mixture.soft * soft + mixture.hard * hard
    parts = {"soft": soft, "hard": hard}
    if mixture.cosine:
        cosine = cosine_distances(picked(hidden_BTD, real_P), picked(taught_BTD, real_P))
        parts["cosine"] = share * cosine
        total = total + mixture.cosine * parts["cosine"]
    return Loss(total, targets_M.new_tensor(M), parts)


def _real(batch: MaskedBatch) -> Tensor:
    """places_P, in the flattened [B * T], that are no padding."""
    if batch.mask_BT is None:
        return torch.arange(batch.ids_BT.numel(), device=batch.ids_BT.device)
    return batch.mask_BT.flatten().nonzero()[:, 0]


def classification_loss(
    model: nn.Module,
    batch: ClassBatch,
    *,
    teacher: nn.Module,
    mixture: Mixture,
    problem: str = "single",
    order: Sequence[int] | None = None,
) -> Loss:
    """units: rows. order: the teacher's class of each of the student's; None: the same."""
    logits_BC = answer(model, batch)
    with torch.no_grad():
        taught_BC = answer(teacher, batch)
    if order is not None:
        taught_BC = taught_BC[:, list(order)]
    soft = soft_classes_loss(problem, logits_BC, taught_BC, mixture.temperature)
    hard = classes_loss(problem, logits_BC, batch.targets)
    total = mixture.soft * soft + mixture.hard * hard.total
    return Loss(total, hard.units, {"soft": soft, "hard": hard.total})


# ---- the task ----


def check_row(
    row: Row,
    number: int,
    *,
    head: str | None = None,
    problem: str = "auto",
    separator: str | None = None,
) -> None:
    """Raises InputError for a row that cannot be learnt from, as the student's head needs it."""
    if head == "classification":
        classification.check_row(row, number, problem=problem, separator=separator)
    else:
        check_text(row, number)


MASKED: Final = {"soft": 5.0, "hard": 2.0, "cosine": 1.0}
CLASSES: Final = {"soft": 0.5, "hard": 0.5, "cosine": 0.0}
"""Weights: those of DistilBERT's pre-training, and of its example for a task."""


def task(
    loaded: Loaded,
    rows: Sequence[Any],
    *,
    teacher: Loaded | str,
    evaluation: Sequence[Any] | None = None,
    temperature: float = 2.0,
    soft: float | None = None,
    hard: float | None = None,
    cosine: float | None = None,
    all_positions: bool = False,
    max_length: int | None = None,
    join: bool = False,
    whole_words: bool = False,
    rate: float = 0.15,
    problem: str = "auto",
    separator: str | None = None,
    keep: str = "head",
    metric: str | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn from a teacher, a model or its source; by the student's head, which is "masked-lm" or
    "classification".

    Rows: texts, or rows with a "text" (masked-lm); text, pair, label (classification). soft, hard,
    cosine: weights of the parts (default: 5, 2, 1, and 0.5, 0.5, 0). temperature, all_positions:
    see Mixture. max_length: tokens of an example. join, whole_words, rate: see masked_lm.task();
    problem, separator, keep, metric: see classification.task(). The teacher is moved to the
    student's device; it is never trained and never drops out. A student with the teacher's layers:
    students.student_from(). Evaluation: the student's alone, as in those. Raises InputError where
    the two do not belong together; ConfigError.
    """
    check_head(loaded, ("masked-lm", "classification"))
    masked = loaded.head == "masked-lm"
    given = {"soft": soft, "hard": hard, "cosine": cosine}
    weights = dict(MASKED if masked else CLASSES)
    weights |= {name: value for name, value in given.items() if value is not None}
    mixture = Mixture(**weights, temperature=temperature, all_positions=all_positions)
    guide = _teacher(loaded, teacher)
    if masked:
        made = masked_lm.task(
            loaded,
            rows,
            evaluation=evaluation,
            length=max_length,
            join=join,
            rate=rate,
            whole_words=whole_words,
            evaluation_batch_size=evaluation_batch_size,
            seed=seed,
            progress=progress,
        )
        return distilled_masked(made, loaded, guide, mixture)
    made = classification.task(
        loaded,
        rows,
        evaluation=evaluation,
        problem=problem,
        separator=separator,
        max_length=max_length,
        keep=keep,
        metric=metric,
        evaluation_batch_size=evaluation_batch_size,
        seed=seed,
        progress=progress,
    )
    stored = loaded.config.problem_type
    problem = classification.problem_of(rows, loaded.config.labels, problem, stored)
    return distilled_classes(made, loaded, guide, mixture, problem)


KIND: Final = Kind("", task, check_row)


def _teacher(loaded: Loaded, teacher: Loaded | str) -> Loaded:
    """On the student's device, in evaluation mode, with the student's tokens."""
    if isinstance(teacher, str):
        teacher = load(teacher, device=str(loaded.device))
    if teacher.model is loaded.model:
        raise InputError("teacher and student are one model", where="teacher")
    teacher.model.to(loaded.device).eval()
    ours, theirs = loaded.tokenizer, teacher.tokenizer
    if ours is not None and theirs is not None and ours is not theirs:
        size = ours.vocab_size
        if size != theirs.vocab_size or any(
            ours.id_to_token(i) != theirs.id_to_token(i) for i in range(size)
        ):
            raise InputError(
                "teacher and student do not have the same tokens",
                where=teacher.source.origin,
                advice="make the student with the teacher's tokenizer",
            )
    return teacher


def distilled_masked(task: Task, loaded: Loaded, teacher: Loaded, mixture: Mixture) -> Task:
    """A masked_lm task with the teacher's losses beside its own."""
    check_head(teacher, masked_lm.HEADS)
    sizes: Mapping[str, tuple[int, int]] = {
        name: (getattr(loaded.config, name), getattr(teacher.config, name))
        for name in ("vocab_size", "width")
    }
    for name, (own, theirs) in sizes.items():
        if own != theirs and (name == "vocab_size" or mixture.cosine):
            advice = "cosine = 0 leaves the hidden states out" if name == "width" else ""
            raise InputError(
                f"the student's {name} is {own}, the teacher's {theirs}",
                where=teacher.source.origin,
                advice=advice,
            )
    return replace(task, loss=partial(masked_loss, teacher=teacher.model, mixture=mixture))


def distilled_classes(
    task: Task, loaded: Loaded, teacher: Loaded, mixture: Mixture, problem: str
) -> Task:
    """A classification task with the teacher's loss beside its own."""
    check_head(teacher, ("classification",))
    if mixture.cosine:
        raise ConfigError("a classifier has no part named cosine", where="cosine")
    ours, theirs = loaded.config.labels, teacher.config.labels
    if sorted(ours) != sorted(theirs):
        raise InputError(
            f"the student's labels are {', '.join(ours)}; the teacher's {', '.join(theirs)}",
            where=teacher.source.origin,
        )
    order = None if ours == theirs else [theirs.index(name) for name in ours]
    return replace(
        task,
        loss=partial(
            classification_loss,
            teacher=teacher.model,
            mixture=mixture,
            problem=problem,
            order=order,
        ),
    )
