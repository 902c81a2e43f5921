"""A label for a text or a pair: one of several, any number of several, or a number.

One label: -log softmax(z)[y]. Any number: for each class -y log s(z) - (1 - y) log(1 - s(z)) with
the sigmoid s, a mean over the classes. A number: (z - y)^2. (1810.04805, section 4.1; the three
problem types of a published config.json.)

Shape letters: B batch (rows), T position, C classes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.ops import wide
from chumoku.loading import Loaded
from chumoku.training.data.tables import where_of
from chumoku.training.objectives import encoded
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.text_rows import (
    Encoder,
    Row,
    Rows,
    Text,
    answer,
    checked_rows,
    in_batches,
    name_of,
    number_of,
    padded_texts,
    sorted_names,
    string_of,
    value_of,
)
from chumoku.training.task import Examples, Kind, Loss, Task

PROBLEMS: Final = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
"""Our name -> the published problem_type."""

# ---- the losses ----


def softmax_loss(
    logits_BC: Tensor, targets_B: Tensor, weights_C: Tensor | None = None, smoothing: float = 0.0
) -> Loss:
    """sum over B of w[y] * -log softmax(z)[y]; units: the sum of w[y].

    Total over units is then what PyTorch gives as the weighted mean. smoothing: eps; 1 - eps of the
    target is on y, and eps / C on each class (1512.00567, section 7).
    """
    logits_BC = logits_BC.to(wide(logits_BC.dtype))
    if weights_C is not None:
        weights_C = weights_C.to(logits_BC)
    total = F.cross_entropy(
        logits_BC, targets_B, weight=weights_C, label_smoothing=smoothing, reduction="sum"
    )
    units = (
        targets_B.new_tensor(len(targets_B)) if weights_C is None else weights_C[targets_B].sum()
    )
    return Loss(total, units)


def sigmoid_loss(logits_BC: Tensor, targets_BC: Tensor, weights_C: Tensor | None = None) -> Loss:
    """sum over B of the mean over C of the binary cross-entropies. weights_C: of the positives."""
    logits_BC = logits_BC.to(wide(logits_BC.dtype))
    if weights_C is not None:
        weights_C = weights_C.to(logits_BC)
    each_BC = F.binary_cross_entropy_with_logits(
        logits_BC, targets_BC.to(logits_BC), pos_weight=weights_C, reduction="none"
    )
    return Loss(each_BC.mean(dim=1).sum(), torch.tensor(len(targets_BC), device=logits_BC.device))


def squared_loss(logits_B1: Tensor, targets_B: Tensor) -> Loss:
    """sum over B of (z - y)^2."""
    values_B = logits_B1.to(wide(logits_B1.dtype)).squeeze(-1)
    errors_B = values_B - targets_B.to(values_B)
    return Loss(errors_B.square().sum(), torch.tensor(len(targets_B), device=values_B.device))


def classes_loss(
    problem: str,
    logits_BC: Tensor,
    targets: Tensor,
    weights_C: Tensor | None = None,
    smoothing: float = 0.0,
) -> Loss:
    """The loss of one of PROBLEMS."""
    if problem == "single":
        return softmax_loss(logits_BC, targets, weights_C, smoothing)
    if problem == "multi":
        return sigmoid_loss(logits_BC, targets, weights_C)
    return squared_loss(logits_BC, targets)


# ---- batch and loss ----


class Example(NamedTuple):
    """target: a class, a row of zeros and ones, or a number."""

    text: Text
    target: Any


class ClassBatch(NamedTuple):
    """targets: [B] classes, [B, C] zeros and ones, or [B] numbers."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    targets: Tensor


def collate(examples: Sequence[Example], *, pad: int, problem: str = "single") -> ClassBatch:
    """Padded on the right to the longest example."""
    dtype = torch.long if problem == "single" else torch.float32
    targets = torch.tensor([e.target for e in examples], dtype=dtype)
    return ClassBatch(*padded_texts([e.text for e in examples], pad), targets)


def loss(
    model: nn.Module,
    batch: ClassBatch,
    *,
    problem: str = "single",
    weights_C: Tensor | None = None,
    smoothing: float = 0.0,
) -> Loss:
    """Summed over rows; see classes_loss()."""
    return classes_loss(problem, answer(model, batch), batch.targets, weights_C, smoothing)


# ---- labels ----


def split(label: Any, separator: str | None) -> list[str]:
    """A row's labels of a "multi" problem: a list, or a text with a separator between them."""
    if isinstance(label, str):
        label = label.split(separator) if separator else [label]
    names = [name_of(one) for one in label]
    return [name for name in names if name]


ODD_SCORES: Final = 0.05
"""Up to this share of labels may be no numbers, and the others still are scores."""


def problem_of(
    rows: Sequence[Row],
    labels: Sequence[str] = (),
    problem: str = "auto",
    stored: str | None = None,
) -> str:
    """One of PROBLEMS: as asked, as the model's problem_type says, else as the rows look.

    Lists of labels are "multi"; numbers of which some have a fraction, also where they are stored
    as texts, or a head of one class, "regression". A few labels among them that are no numbers do
    not make classes of all the others: see check_row(). Raises ConfigError for an unknown one.
    """
    if problem != "auto":
        if problem not in PROBLEMS:
            known = ", ".join(("auto", *PROBLEMS))
            raise ConfigError(f"{problem!r} is not one of {known}", where="problem")
        return problem
    for name, published in PROBLEMS.items():
        if stored == published:
            return name
    values = [value for row in rows if (value := row.get("label")) not in (None, "")]
    if any(isinstance(value, list | tuple | set) for value in values):
        return "multi"
    numbers = [as_number(value) for value in values]
    fractions = any(number is not None and not number.is_integer() for number in numbers)
    scores = fractions and numbers.count(None) <= ODD_SCORES * len(numbers)
    return "regression" if scores or len(labels) == 1 else "single"


def as_number(label: Any) -> float | None:
    """A label as a finite number; None: it is none."""
    try:
        number = float(label)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


def class_of(row: Row, number: int) -> Any:
    """A row's one label. Raises InputError where it is absent or empty."""
    label = value_of(row, "label", number)
    if not name_of(label):
        raise InputError(f"the label of {where_of(row, number)} is empty", where="label")
    return label


def check_row(
    row: Row, number: int, *, problem: str = "auto", separator: str | None = None
) -> None:
    """Raises InputError for a row that cannot be learnt from. No label at all is one of "multi"."""
    string_of(row, "text", number)
    if row.get("pair") is not None:
        string_of(row, "pair", number)
    if problem == "regression":
        score_of(row, number)
    elif problem == "multi" or separator:
        value_of(row, "label", number)
    else:
        class_of(row, number)


def score_of(row: Row, number: int) -> float:
    """The label of a regression. Raises InputError."""
    label = value_of(row, "label", number)
    score = as_number(label)
    if score is None:
        raise InputError(
            f"the label {label!r} of {where_of(row, number)} is not a number", where="label"
        )
    return score


def labels_of(
    rows: Sequence[Row], *, problem: str = "auto", separator: str | None = None
) -> tuple[str, ...]:
    """The names for a new head: those in the rows, sorted; "score" for a regression.

    Raises InputError where all rows have the same single label.
    """
    problem = problem_of(checked_rows(rows), (), problem)
    if problem == "regression":
        return ("score",)
    if problem == "multi":
        values = [value_of(row, "label", number) for number, row in enumerate(rows)]
        return sorted_names(name for value in values for name in split(value, separator))
    names = sorted_names([name_of(class_of(row, number)) for number, row in enumerate(rows)])
    if len(names) == 1:
        raise InputError(
            f"all {len(rows)} rows have the one label {names[0]!r}: there is nothing to tell apart",
            where="label",
            advice="add rows of other classes, or see that [data] columns names the right column",
        )
    return names


def described(loaded: Loaded, problem: str) -> Loaded:
    """The model with its problem_type in the config, so that the verbs read its logits rightly."""
    config = replace(loaded.config, problem_type=PROBLEMS[problem])
    return replace(loaded, config=config, source=replace(loaded.source, unchanged=False))


def target_of(
    row: Row, number: int, labels: Sequence[str], problem: str, separator: str | None
) -> Any:
    """What the loss compares with. Raises InputError for a label that the head does not have."""
    where = where_of(row, number)
    if problem == "single":
        return number_of(class_of(row, number), labels, where)
    if problem == "multi":
        label = value_of(row, "label", number)
        own = {number_of(name, labels, where) for name in split(label, separator)}
        return [float(c in own) for c in range(len(labels))]
    return score_of(row, number)


def weights_of(
    weights: str | Sequence[float] | Mapping[str, float] | None,
    targets: Sequence[Any],
    labels: Sequence[str],
    problem: str,
) -> Tensor | None:
    """weights_C: as given, by class or by name; "balanced" weighs rare classes more.

    balanced: rows / (classes * rows of the class), as scikit-learn has it; of a "multi" problem
    negatives / positives. Raises ConfigError, and InputError where a class has no row to weigh it.
    """
    if weights is None:
        return None
    if problem == "regression":
        raise ConfigError("a regression has no classes to weigh", where="class_weights")
    if isinstance(weights, Mapping):
        unknown = sorted(set(weights) - set(labels))
        if unknown:
            raise ConfigError(
                f"{unknown[0]!r} is none of {', '.join(labels)}", where="class_weights"
            )
        weights = [weights.get(name, 1.0) for name in labels]
    elif isinstance(weights, str):
        if weights != "balanced":
            raise ConfigError(f"{weights!r} is not balanced, or a list", where="class_weights")
        return torch.tensor(_balanced(targets, labels, problem))
    if len(weights) != len(labels) or min(weights) < 0.0:
        raise ConfigError(
            f"{list(weights)} is not one weight, at least 0, for each of {', '.join(labels)}",
            where="class_weights",
        )
    return torch.tensor([float(w) for w in weights])


def _balanced(targets: Sequence[Any], labels: Sequence[str], problem: str) -> list[float]:
    if problem == "single":
        found = Counter(targets)
        counts = [float(found[c]) for c in range(len(labels))]
    else:
        counts = [sum(column) for column in zip(*targets, strict=True)]
    if min(counts) == 0:
        raise InputError(
            f"no row has the label {labels[counts.index(0)]!r}, so it has no balanced weight",
            where="class_weights",
        )
    if problem == "single":
        return [len(targets) / (len(labels) * count) for count in counts]
    return [(len(targets) - count) / count for count in counts]


# ---- the task ----

METRICS: Final = {"single": "accuracy", "multi": "macro_f1", "regression": "spearman"}
"""The metric that chooses the best checkpoint."""
LOWER: Final = ("loss", "mse")


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    problem: str = "auto",
    separator: str | None = None,
    max_length: int | None = None,
    keep: str = "head",
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    smoothing: float = 0.0,
    metric: str | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn labels. Rows: text, label and, where two texts are compared, pair.

    label: a name of the head's, for "multi" a list of names (or a text with `separator` between
    them), for "regression" a number. problem: see problem_of(). max_length: most tokens (default:
    what the model takes, at most 512); of a longer text `keep` stays: "head", "tail" or
    "head+tail", and `examples.notes` says how many were cut. class_weights: see weights_of().
    smoothing: of a single label. metric: chooses the best checkpoint; default accuracy, macro_f1 or
    spearman. seed: not used, nothing is drawn. Raises InputError, ConfigError.
    """
    check_head(loaded, ("classification",))
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(f"must be at least 0 and below 1, it is {smoothing}", where="smoothing")
    tokenizer, labels = encoded.checked_tokenizer(loaded), loaded.config.labels
    problem = problem_of(checked_rows(rows), labels, problem, loaded.config.problem_type)
    if problem == "regression" and len(labels) != 1:
        raise InputError(
            f"a regression needs a head of one class, this one has {len(labels)}",
            advice='load it with new_head=True, labels=("score",)',
        )
    limit = encoded.checked_length(loaded, max_length, 3)

    def examples(some: Sequence[Row], what: str) -> Rows:
        encode = Encoder(tokenizer, limit, keep)
        found = []
        for number, row in enumerate(encoded.reported(checked_rows(some), progress, what)):
            pair = None if row.get("pair") is None else string_of(row, "pair", number)
            target = target_of(row, number, labels, problem, separator)
            found.append(Example(encode(string_of(row, "text", number), pair), target))
        return Rows(found, [len(e.text.ids_T) for e in found], encode.notes())

    learned = examples(rows, "tokenising")
    weights_C = weights_of(class_weights, [e.target for e in learned.examples], labels, problem)
    gather = partial(collate, pad=tokenizer.pad_id or 0, problem=problem)
    evaluate = None
    if evaluation is not None:
        held_out = examples(evaluation, "tokenising the evaluation")
        evaluate = evaluator(held_out, gather, labels, problem, evaluation_batch_size)
    metric = (METRICS[problem] if metric is None else metric) if evaluation is not None else "loss"
    return Task(
        examples=learned,
        collate=gather,
        loss=partial(loss, problem=problem, weights_C=weights_C, smoothing=smoothing),
        evaluate=evaluate,
        metric=metric,
        lower=metric in LOWER,
    )


KIND: Final = Kind(
    "classification",
    task,
    check_row,
    labels_of=labels_of,
    problem_of=problem_of,
    described=described,
)


class Answers(NamedTuple):
    """Of all rows of an evaluation, in their order, float32, on the CPU."""

    logits_BC: Tensor
    targets: Tensor


def answers(
    model: nn.Module, examples: Examples, gather: Callable[[Sequence[Any]], Any], batch_size: int
) -> Answers:
    """Logits and targets of all examples."""
    logits: list[Tensor] = [torch.empty(0)] * len(examples)
    targets: list[Tensor] = [torch.empty(0)] * len(examples)
    for indices, batch in in_batches(examples, gather, batch_size, model):
        rows = zip(answer(model, batch).float().cpu(), batch.targets.cpu(), strict=True)
        for index, (row, target) in zip(indices, rows, strict=True):
            logits[index], targets[index] = row, target
    return Answers(torch.stack(logits), torch.stack(targets))


def evaluator(
    examples: Examples,
    gather: Callable[[Sequence[Any]], Any],
    labels: Sequence[str],
    problem: str,
    batch_size: int,
) -> Callable[[nn.Module], dict[str, float]]:
    """The loss without weights and smoothing, and the field's metrics."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        return judged(answers(model, examples, gather, batch_size), labels, problem)

    return evaluate


def judged(found: Answers, labels: Sequence[str], problem: str) -> dict[str, float]:
    """Metrics of logits beside their targets; a label of "multi" is given from 0.5 on."""
    from chumoku.training import metrics  # needs the training extra

    logits_BC, targets = found
    mean = classes_loss(problem, logits_BC, targets)
    values = {"loss": float(mean.total / mean.units)}
    if problem == "single":
        chosen, gold = logits_BC.argmax(-1).tolist(), targets.tolist()
        own = metrics.classification(chosen, gold, logits_BC.softmax(-1), labels)
    elif problem == "multi":
        given_BC = (logits_BC >= 0).int()
        own = metrics.multilabel(given_BC.tolist(), targets.int().tolist(), labels)
    else:
        own = metrics.regression(logits_BC[:, 0].tolist(), targets.tolist())
    return values | own
