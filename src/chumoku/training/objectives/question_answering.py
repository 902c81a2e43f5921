"""The stretch of a context that answers a question (1810.04805, sections 4.2 and 4.3).

The loss is (-log P(start) - log P(end)) / 2, each a softmax over the tokens of a window; padding
takes no part. A long context is read in windows that overlap. A window that does not hold the whole
answer, and each window of a question without one, points to its first token, as SQuAD 2.0 has it.

Shape letters: B batch (windows), T position.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.checkpoints.defaults import written_in
from chumoku.errors import ConfigError, InputError
from chumoku.layers.ops import wide
from chumoku.loading import Loaded
from chumoku.tasks import questions
from chumoku.tasks.windows import cut, windows
from chumoku.text.encoding import Encoding, Tokenizer
from chumoku.training.data.tables import where_of
from chumoku.training.objectives import encoded
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.text_rows import (
    Row,
    Rows,
    Text,
    answer,
    checked_rows,
    in_batches,
    padded_texts,
    string_of,
    text_of,
    value_of,
)
from chumoku.training.task import Kind, Loss, Task

# ---- the loss ----


def span_loss(start_BT: Tensor, end_BT: Tensor, mask_BT: Tensor | None, places_B2: Tensor) -> Loss:
    """Half the sum of both cross-entropies; units: windows."""
    total = start_BT.new_zeros((), dtype=wide(start_BT.dtype))
    for logits_BT, places_B in zip((start_BT, end_BT), places_B2.unbind(1), strict=True):
        logits_BT = logits_BT.to(wide(logits_BT.dtype))
        if mask_BT is not None:
            logits_BT = logits_BT.masked_fill(~mask_BT, -torch.inf)
        total = total + 0.5 * F.cross_entropy(logits_BT, places_B, reduction="sum")
    return Loss(total, places_B2.new_tensor(len(places_B2)))


# ---- rows ----


class Gold(NamedTuple):
    """An answer: context[start : start + len(text)] is text.

    repeated: its place was not given, and it stands in the context more than once.
    """

    text: str
    start: int
    repeated: bool = False


@dataclass(frozen=True)
class Question:
    """answers: empty where the context has none."""

    question: str
    context: str
    answers: tuple[Gold, ...]


def question_of(row: Row, number: int) -> Question:
    """A row of either form, see task().

    Raises InputError where an answer is not where it is said to be, or not in the context at all.
    """
    question, context = (string_of(row, name, number) for name in ("question", "context"))
    name = "answers" if row.get("answer") is None and "answers" in row else "answer"
    found, where = value_of(row, name, number), where_of(row, number)
    plain = name == "answer" and isinstance(found, str)
    answers = _plain(found, row, context, where) if plain else _listed(found, where)
    for text, start, _ in answers:
        if not text or context[start : start + len(text)] != text or start < 0:
            there = context[max(start, 0) : max(start, 0) + len(text)]
            raise InputError(
                f"the answer {text!r:.60} of {where} is not at {start}; {there!r:.60} is",
                where=name,
                advice="answer_start counts code points of the context, from 0",
            )
    return Question(question, context, answers)


def _listed(found: Any, where: str) -> tuple[Gold, ...]:
    """Answers in SQuAD's form."""
    try:
        if isinstance(found, Sequence) and not isinstance(found, str):  # as in SQuAD's own files
            pairs = [(one["text"], one["answer_start"]) for one in found]
        else:
            pairs = list(zip(found["text"], found["answer_start"], strict=True))
        return tuple(Gold(str(text), int(start)) for text, start in pairs)
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"the answers of {where} are {found!r:.80}",
            where="answers",
            advice='they should be {"text": [...], "answer_start": [...]}, or a text as "answer"',
        ) from None


def _plain(answer: str, row: Row, context: str, where: str) -> tuple[Gold, ...]:
    """A text as an answer, at "answer_start" or where the context has it first."""
    if not answer.strip():
        return ()
    given = row.get("answer_start")
    if given not in (None, ""):
        try:  # a spreadsheet may have made 42.0 of 42
            place = float(given)
            whole = place.is_integer()
        except (TypeError, ValueError, OverflowError):
            whole = False
        if not whole:
            raise InputError(
                f"the answer_start of {where} is no whole number: {given!r:.60}",
                where="answer_start",
            )
        return (Gold(answer, int(place)),)
    answer = answer.strip()
    start = context.find(answer)
    if start < 0:
        raise InputError(
            f"the answer {answer!r:.60} of {where} is not in its context",
            where="answer",
            advice="it has to stand there letter for letter",
        )
    return (Gold(answer, start, context.find(answer, start + 1) >= 0),)


def check_row(row: Row, number: int) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    question_of(row, number)


# ---- windows ----


@dataclass(frozen=True)
class Reader:
    """Questions -> windows, cut as the verb `qa` cuts them."""

    tokenizer: Tokenizer
    limit: int
    stride: int | None

    def windows(self, question: Question) -> list[Encoding]:
        """Each with the whole question, and a stretch of the context. Raises InputError."""
        encoding = self.tokenizer.encode(question.question, question.context)
        room = self.limit - sum(s != 1 for s in encoding.sequences)
        stride = self.stride
        if stride is None:
            stride = min(self.limit // 2, 128)
            stride = stride if stride < room else max(room // 2, 0)
        return cut(encoding, windows(encoding, self.limit, stride, sequence=1))

    def read(
        self, rows: Sequence[Row], progress: Progress | None, what: str, *, judged: bool = False
    ) -> Windows:
        """judged: what an evaluation needs of the texts is kept beside the windows."""
        examples: list[Example] = []
        asked: list[Question] = []
        encodings: list[Encoding] = []
        empty = unanswered = repeated = 0
        for number, row in enumerate(encoded.reported(checked_rows(rows), progress, what)):
            question = question_of(row, number)
            unanswered += not question.answers
            repeated += any(gold.repeated for gold in question.answers)
            for piece in self.windows(question):
                first, last = place_of(piece, question)
                examples.append(Example(text_of(piece), (first, last), number))
                empty += first == last == 0
                encodings += [piece] if judged else []
            asked += [question] if judged else []
        notes = []
        if len(examples) > len(rows):
            notes.append(f"{len(rows)} questions are read in {len(examples)} windows")
            notes += [f"{empty} of these do not hold the answer"] if empty else []
        if unanswered:
            notes.append(f"{unanswered} of {len(rows)} questions have no answer in their context")
        if repeated:
            notes.append(f"{repeated} answers stand more than once: the first place is learnt")
        return Windows(examples, asked, encodings, notes)


def place_of(window: Encoding, question: Question) -> tuple[int, int]:
    """(first, last) token of the first answer in this window; (0, 0) where it is not whole."""
    if not question.answers:
        return 0, 0
    text, start, _ = question.answers[0]
    end = start + len(text)
    inside = [i for i, s in enumerate(window.sequences) if s == 1]
    own = [i for i in inside if window.offsets[i][0] < end and window.offsets[i][1] > start]
    if not own or window.offsets[own[0]][0] > start or window.offsets[own[-1]][1] < end:
        return 0, 0
    return own[0], own[-1]


# ---- batch and loss ----


class Example(NamedTuple):
    """A window. place: (first, last) token of the answer. row: the question's."""

    text: Text
    place: tuple[int, int]
    row: int


class SpanBatch(NamedTuple):
    """places_B2: the first and the last token of the answer."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    places_B2: Tensor


def collate(examples: Sequence[Example], *, pad: int) -> SpanBatch:
    """Padded on the right to the longest window."""
    places_B2 = torch.tensor([e.place for e in examples])
    return SpanBatch(*padded_texts([e.text for e in examples], pad), places_B2)


def loss(model: nn.Module, batch: SpanBatch) -> Loss:
    """Summed over windows."""
    spans = answer(model, batch)
    return span_loss(spans.start_BT, spans.end_BT, batch.mask_BT, batch.places_B2)


class Windows(Rows):
    """Windows as examples; for an evaluation the questions, and each window's encoding."""

    def __init__(
        self,
        examples: Sequence[Example],
        asked: Sequence[Question],
        encodings: Sequence[Encoding],
        notes: Sequence[str],
    ) -> None:
        super().__init__(examples, [len(e.text.ids_T) for e in examples], notes)
        self.asked, self.encodings = asked, encodings


# ---- the task ----

LANGUAGES: Final = ("auto", "en", "ja")


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    max_length: int | None = None,
    stride: int | None = None,
    max_answer_length: int = 30,
    language: str = "auto",
    metric: str = "f1",
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to find answers. Rows: question, context and answers, {"text": [...], "answer_start":
    [...]} (or a list of {"text", "answer_start"}); empty lists: the context has no answer. Or, as
    in a plain table, "answer", a text, and where it is known "answer_start"; where it is not, the
    first place in the context is taken. An empty answer: the context has none.

    The first answer is learnt, all of them are right in an evaluation. max_length: most tokens of a
    window, question included (default: what the model takes, at most 512); neighbours share
    `stride` tokens (default: as the verb `qa`). Evaluation: loss, and exact and f1, in percent, of
    what the verb would answer, with at most max_answer_length tokens. language: "en" for F1 over
    words, "ja" over characters; "auto": what most contexts are in. seed: not used, nothing is
    drawn. Raises InputError, ConfigError.
    """
    check_head(loaded, ("question-answering",))
    if language not in LANGUAGES:
        raise ConfigError(f"{language!r} is not one of {', '.join(LANGUAGES)}", where="language")
    if max_answer_length < 1:
        raise ConfigError("must be at least 1", where="max_answer_length")
    if stride is not None and stride < 0:
        raise ConfigError(f"must be at least 0, it is {stride}", where="stride")
    tokenizer = encoded.checked_tokenizer(loaded)
    reader = Reader(tokenizer, encoded.checked_length(loaded, max_length, 8), stride)
    gather = partial(collate, pad=tokenizer.pad_id or 0)
    evaluate = None
    if evaluation is not None:
        held_out = reader.read(evaluation, progress, "tokenising the evaluation", judged=True)
        decoder = Decoder(tokenizer.cls_id, max_answer_length)
        evaluate = evaluator(held_out, gather, decoder, language, evaluation_batch_size)
    metric = metric if evaluation is not None else "loss"
    return Task(
        examples=reader.read(rows, progress, "tokenising"),
        collate=gather,
        loss=loss,
        evaluate=evaluate,
        metric=metric,
        lower=metric == "loss",
    )


KIND: Final = Kind("question-answering", task, check_row)


@dataclass(frozen=True)
class Decoder:
    """From scores to answers, as the verb `qa` does it."""

    cls_id: int | None
    max_answer_length: int

    def answers(self, held_out: Windows, spans: Sequence[tuple[Tensor, Tensor]]) -> list[str]:
        """One answer for each question. spans: (start_T, end_T) of each window."""
        limits = questions.SpanLimits(1, self.max_answer_length, self.cls_id, align=True)
        found: list[list[questions.Answer]] = [[] for _ in held_out.asked]
        nulls = [1.0] * len(held_out.asked)
        for example, encoding, (start_T, end_T) in zip(
            held_out.examples, held_out.encodings, spans, strict=True
        ):
            context = held_out.asked[example.row].context
            best, null = questions.best_spans(encoding, start_T, end_T, context, limits)
            found[example.row] += best
            nulls[example.row] = min(nulls[example.row], null)
        impossible = any(not question.answers for question in held_out.asked)
        texts = []
        for some, null in zip(found, nulls, strict=True):
            merged = questions.merge_same(some)
            best_one = max(merged, key=lambda a: a["score"], default=None)
            none = best_one is None or (impossible and null > best_one["score"])
            texts.append("" if none or best_one is None else best_one["answer"])
        return texts


def evaluator(
    held_out: Windows,
    gather: Callable[[Sequence[Any]], SpanBatch],
    decoder: Decoder,
    language: str,
    batch_size: int,
) -> Callable[[nn.Module], dict[str, float]]:
    """Loss of a window, and exact match and F1 of the answers."""

    gold = [[one.text for one in question.answers] for question in held_out.asked]
    if language == "auto":
        language = written_in([question.context for question in held_out.asked])

    def evaluate(model: nn.Module) -> dict[str, float]:
        from chumoku.training import metrics

        none = torch.empty(0)
        spans = [(none, none)] * len(held_out)
        total = 0.0
        for indices, batch in in_batches(held_out, gather, batch_size, model):
            found = answer(model, batch)
            start_BT, end_BT = found.start_BT.float(), found.end_BT.float()
            total += float(span_loss(start_BT, end_BT, batch.mask_BT, batch.places_B2).total)
            rows = zip(start_BT.cpu(), end_BT.cpu(), strict=True)
            for index, row in zip(indices, rows, strict=True):
                spans[index] = row
        answers = decoder.answers(held_out, spans)
        return {"loss": total / len(held_out)} | metrics.squad(answers, gold, language)

    return evaluate
