"""Which of several endings fits (1810.04805, section 4.4: SWAG's form).

Each choice is read with the question as a pair and gets one score; the loss is -log of the right
one's share in the softmax over a row's choices. Rows may have different numbers of choices.

Shape letters: B batch (rows), C choices, T position.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count, takewhile
from typing import Any, Final, NamedTuple

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
from chumoku.training.task import Examples, Kind, Loss, Task

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


LETTERS: Final = string.ascii_uppercase


def columns_of(row: Row, number: int, named: Sequence[str] = ()) -> list[str]:
    """The columns of the choices: those named; else none where the row has a list "choices"; else
    choice0 (or choice1) and those that follow it, or A, B, ….

    Raises InputError for a column that is named and absent.
    """
    for name in named:
        if name not in row:
            raise InputError(
                f"{where_of(row, number)} has no {name!r}",
                where="choice_columns",
                advice=f"there are {', '.join(map(str, row))}; [task] choice_columns, or "
                "--choice-column of finetune, names those of the choices",
            )
    if named or row.get("choices") is not None:
        return list(named)
    counted = [(f"choice{n}" for n in count(first)) for first in (0, 1)]
    found = ([*takewhile(row.__contains__, names)] for names in (*counted, LETTERS))
    return next(filter(None, found), [])


def choices_of(row: Row, number: int, columns: Sequence[str] = ()) -> list[str]:
    """The texts in the columns, or, without any, the list in "choices".

    A last choice that is None or empty is none (short rows of a table have such). Raises
    InputError.
    """
    given = [row[name] for name in columns] if columns else row.get("choices") or []
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputError(f"the choices of {where_of(row, number)} are no list", where="choices")
    while given and given[-1] in (None, ""):
        given = given[:-1]
    if len(given) < 2:
        raise InputError(
            f"{where_of(row, number)} has {len(given)} choices",
            where="choices",
            advice='two at least: a list "choices", or columns "choice0", "choice1", … or others '
            "that [task] choice_columns names (--choice-column of finetune, one for each)",
        )
    for choice in given:
        if not isinstance(choice, str) or not choice.strip():
            raise InputError(
                f"a choice of {where_of(row, number)} is no text, or empty: {choice!r:.60}",
                where="choices",
            )
    return list(given)


def numbers_of(columns: Sequence[str], size: int, count_from: int | None = None) -> list[int]:
    """The choices' numbers: those at the ends of their columns' names, else from 0 on.

    count_from: the first one, where labels count otherwise.
    """
    ends = [re.search(r"\d+$", name) for name in columns[:size]] if count_from is None else []
    own = [int(end[0]) for end in ends if end is not None]
    if own and len(own) == len(ends):
        return own
    return list(range(count_from or 0, (count_from or 0) + size))


class Question(NamedTuple):
    """target: which of the choices is right, from 0."""

    text: str
    choices: list[str]
    target: int


def question_of(
    row: Row, number: int, choice_columns: Sequence[str] = (), count_from: int | None = None
) -> Question:
    """See task(). Raises InputError for a row that cannot be learnt from.

    What a label may be is asked in order: a number, a column, a choice's text, a letter.
    """
    text = string_of(row, "question" if "question" in row and "text" not in row else "text", number)
    columns = columns_of(row, number, choice_columns)
    choices = choices_of(row, number, columns)
    size, label = len(choices), value_of(row, "label", number)
    name, numbers = name_of(label), numbers_of(columns, size, count_from)
    if name.isdecimal() and int(name) in numbers:
        return Question(text, choices, numbers.index(int(name)))
    for known in (columns[:size], [choice.strip() for choice in choices], LETTERS[:size]):
        if name and name in known:
            return Question(text, choices, known.index(name))
    raise InputError(
        f"the label {label!r:.60} of {where_of(row, number)} is none of its {size} choices",
        where="label",
        advice=f"give the choice itself, its letter or its number, {numbers[0]} to {numbers[-1]}; "
        "where labels count from 0 or 1 otherwise, say so: --task.count_from=0 (or 1)",
    )


def check_row(
    row: Row, number: int, *, choice_columns: Sequence[str] = (), count_from: int | None = None
) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    question_of(row, number, choice_columns, count_from)


# ---- the task ----


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    choice_columns: Sequence[str] = (),
    count_from: int | None = None,
    max_length: int | None = None,
    keep: str = "head",
    metric: str = "accuracy",
    evaluation_batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to choose. Rows: text (or question), choices and label, which is the right one.

    The choices are a list, or columns: those of choice_columns, else choice0 (or choice1), … or A,
    B, …. The label is a choice's text, its column, its letter, or its number, as the columns count,
    else from 0; from count_from where that is given (COPA has choice1 and choice2, and labels from
    0). A number goes before a text that is one.

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
            question = question_of(row, number, choice_columns, count_from)
            texts = tuple(encode(question.text, choice) for choice in question.choices)
            found.append(Example(texts, question.target))
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


KIND: Final = Kind("multiple-choice", task, check_row)


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
