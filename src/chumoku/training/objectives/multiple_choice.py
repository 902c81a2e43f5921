"""Which of several endings fits (1810.04805, section 4.4: SWAG's form).

Each choice is read with the question as a pair and gets one score; the loss is -log of the right
one's share in the softmax over a row's choices. Rows may have different numbers of choices.

Shape letters: B batch (rows), C choices, T position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import InputError
from chumoku.layers.attention import Batch
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
    checked_rows,
    in_batches,
    name_of,
    padded_texts,
    string_of,
    value_of,
)
from chumoku.training.task import Examples, Loss, Task

# ---- the loss ----


def choice_loss(logits_BC: Tensor, targets_B: Tensor) -> Loss:
    """-sum over B of log softmax(z)[y]; -inf for choices that a row does not have."""
    logits_BC = logits_BC.to(wide(logits_BC.dtype))
    total = F.cross_entropy(logits_BC, targets_B, reduction="sum")
    return Loss(total, targets_B.new_tensor(len(targets_B)))


# ---- batch and loss ----


class Example(NamedTuple):
    """The question with each of its choices, and which of them is right."""

    texts: tuple[Text, ...]
    target: int


class ChoiceBatch(NamedTuple):
    """mask_BCT: None where nothing is padded. present_BC: None where all rows have C choices."""

    ids_BCT: Tensor
    mask_BCT: Tensor | None
    segments_BCT: Tensor | None
    present_BC: Tensor | None
    targets_B: Tensor


def collate(examples: Sequence[Example], *, pad: int) -> ChoiceBatch:
    """Padded on the right to the longest choice; a missing choice repeats the row's first."""
    C = max(len(e.texts) for e in examples)
    texts = [e.texts[c] if c < len(e.texts) else e.texts[0] for e in examples for c in range(C)]
    padded = padded_texts(texts, pad)
    ids, mask, segments = (None if x is None else x.view(-1, C, x.shape[1]) for x in padded)
    assert ids is not None
    present_BC = torch.arange(C) < torch.tensor([len(e.texts) for e in examples])[:, None]
    return ChoiceBatch(
        ids,
        mask,
        segments,
        None if bool(present_BC.all()) else present_BC,
        torch.tensor([e.target for e in examples]),
    )


def scores(model: nn.Module, batch: ChoiceBatch) -> Tensor:
    """logits_BC, -inf for choices that a row does not have, in float32 or wider."""
    around = Batch(segments_BT=batch.segments_BCT)
    logits_BC: Tensor = model(batch.ids_BCT, batch.mask_BCT, batch=around)
    logits_BC = logits_BC.to(wide(logits_BC.dtype))
    if batch.present_BC is None:
        return logits_BC
    return logits_BC.masked_fill(~batch.present_BC, -torch.inf)


def loss(model: nn.Module, batch: ChoiceBatch) -> Loss:
    """Summed over rows."""
    return choice_loss(scores(model, batch), batch.targets_B)


# ---- rows ----


def choices_of(row: Row, number: int) -> list[str]:
    """A list in "choices", or texts in "choice0", "choice1", … as JCommonsenseQA has them.

    A choice that is None or empty is none (in a table, short rows have such). Raises InputError.
    """
    given = row.get("choices")
    if given is None:
        names = (f"choice{n}" for n in count())
        given = []
        while (name := next(names)) in row:
            given.append(row[name])
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(f"the choices of {where_of(row, number)} are no list", where="choices")
    while given and given[-1] in (None, ""):
        given = given[:-1]
    if len(given) < 2:
        raise InputError(
            f"{where_of(row, number)} has {len(given)} choices",
            where="choices",
            advice='two at least: a list "choices", or columns "choice0", "choice1", …',
        )
    for choice in given:
        if not isinstance(choice, str) or not choice.strip():
            raise InputError(
                f"a choice of {where_of(row, number)} is no text, or empty: {choice!r:.60}",
                where="choices",
            )
    return list(given)


def target_of(row: Row, number: int, choices: Sequence[str]) -> int:
    """The right choice's place, from 0, or its text. Raises InputError."""
    label = value_of(row, "label", number)
    name = name_of(label)
    if name.isdecimal() and int(name) < len(choices):
        return int(name)
    if label in choices:
        return choices.index(label)
    raise InputError(
        f"the label {label!r:.60} of {where_of(row, number)} is none of its {len(choices)} choices",
        where="label",
        advice=f"give the choice itself, or its place: 0 to {len(choices) - 1}",
    )


def check_row(row: Row, number: int) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    string_of(row, "text", number)
    target_of(row, number, choices_of(row, number))


# ---- the task ----


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    max_length: int | None = None,
    keep: str = "head",
    metric: str = "accuracy",
    evaluation_batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to choose. Rows: text, choices (or choice0, choice1, …), label: the right one or its
    place from 0.

    max_length: most tokens of the text with a choice (default: what the model takes, at most 512);
    of a longer one `keep` stays ("head", "tail", "head+tail"), and `examples.notes` says how many
    were cut. Evaluation: loss and accuracy. seed: not used, nothing is drawn. Raises InputError,
    ConfigError.
    """
    check_head(loaded, ("multiple-choice",))
    tokenizer = encoded.checked_tokenizer(loaded)
    limit = encoded.checked_length(loaded, max_length, 5)

    def examples(some: Sequence[Row], what: str) -> Rows:
        encode = Encoder(tokenizer, limit, keep)
        found = []
        for number, row in enumerate(encoded.reported(checked_rows(some), progress, what)):
            choices, text = choices_of(row, number), string_of(row, "text", number)
            texts = tuple(encode(text, choice) for choice in choices)
            found.append(Example(texts, target_of(row, number, choices)))
        return Rows(found, [max(len(t.ids_T) for t in e.texts) for e in found], encode.notes())

    gather = partial(collate, pad=tokenizer.pad_id or 0)
    evaluate = None
    if evaluation is not None:
        held_out = examples(evaluation, "tokenising the evaluation")
        evaluate = evaluator(held_out, gather, evaluation_batch_size)
    metric = metric if evaluation is not None else "loss"
    return Task(
        examples=examples(rows, "tokenising"),
        collate=gather,
        loss=loss,
        evaluate=evaluate,
        metric=metric,
        lower=metric == "loss",
    )


def evaluator(
    examples: Examples, gather: Callable[[Sequence[Any]], ChoiceBatch], batch_size: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Loss of a row, and the share of rows whose likeliest choice is the right one."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        total = right = 0.0
        for _, batch in in_batches(examples, gather, batch_size, model):
            logits_BC = scores(model, batch)
            total += float(choice_loss(logits_BC, batch.targets_B).total)
            right += float((logits_BC.argmax(-1) == batch.targets_B).sum())
        return {"loss": total / len(examples), "accuracy": right / len(examples)}

    return evaluate
