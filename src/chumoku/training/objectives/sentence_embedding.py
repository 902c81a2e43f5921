"""Sentence embeddings: texts that belong together get vectors that lie together (1908.10084).

The losses are in contrastive.py. A text's vector is pooled from its tokens' as the checkpoint says,
the very way in which the verbs `embed` and `similarity` do it.

Shape letters: B batch (rows), C candidates, T position, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.checkpoints.sentence import Sentence
from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import Batch
from chumoku.layers.ops import wide
from chumoku.loading import Loaded
from chumoku.tasks import embedding
from chumoku.tasks.embedding import POOLINGS, pool
from chumoku.text.encoding import Tokenizer
from chumoku.training.data.tables import where_of
from chumoku.training.objectives import encoded
from chumoku.training.objectives.contrastive import (
    cosent_loss,
    cosine_loss,
    in_batch_loss,
    triplet_loss,
)
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.text_rows import (
    Row,
    Rows,
    Text,
    checked_rows,
    in_batches,
    padded_texts,
    shorten,
    string_of,
    text_of,
    value_of,
)
from chumoku.training.task import Kind, Loss, Task

# ---- vectors ----


class Texts(NamedTuple):
    """Padded texts. pooled_BT: the tokens that the vectors are made of."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    pooled_BT: Tensor


@dataclass(frozen=True)
class Pooling:
    """From token vectors to one: `names` of tasks.embedding.POOLINGS, joined; then dense steps,
    which are not trained, and normalising."""

    names: tuple[str, ...] = ("mean",)
    normalize: bool = False
    dense: tuple[Callable[[Tensor], Tensor], ...] = ()

    def __call__(self, model: Any, texts: Texts) -> Tensor:
        """[B, D] in float32 or wider."""
        around = Batch(segments_BT=texts.segments_BT)
        x_BTD = model.hidden(texts.ids_BT, texts.mask_BT, batch=around)
        x_BTD = x_BTD.to(wide(x_BTD.dtype))
        vectors_BD = torch.cat([pool(x_BTD, texts.pooled_BT, n) for n in self.names], dim=-1)
        for step in self.dense:
            vectors_BD = step(vectors_BD)
        return F.normalize(vectors_BD, dim=-1) if self.normalize else vectors_BD


# ---- batch and loss ----


class Piece(NamedTuple):
    """One text. skipped: leading tokens that take no part in its vector (a prompt's)."""

    text: Text
    skipped: int


class Example(NamedTuple):
    """(text, pair), (anchor, positive, negative); score: None where the row has none."""

    pieces: tuple[Piece, ...]
    score: float | None


class SentenceBatch(NamedTuple):
    """Texts of all rows below each other: those of the first column, of the second, of the third.

    columns: how many there are. same_BC: True where candidate j is no negative of row i: it reads
    as row i's own partner, or is the partner of a text that reads as row i's. scores_B: None for
    rows without.
    """

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    pooled_BT: Tensor
    same_BC: Tensor
    scores_B: Tensor | None
    columns: int


def collate(examples: Sequence[Example], *, pad: int) -> SentenceBatch:
    """Padded on the right to the longest text of all columns."""
    columns = len(examples[0].pieces)
    pieces = [e.pieces[c] for c in range(columns) for e in examples]
    ids_BT, mask_BT, segments_BT = padded_texts([p.text for p in pieces], pad)
    pooled_BT = torch.ones_like(ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.clone()
    for row, piece in enumerate(pieces):
        pooled_BT[row, : piece.skipped] = False
    scores = [e.score for e in examples if e.score is not None]
    return SentenceBatch(
        ids_BT,
        mask_BT,
        segments_BT,
        pooled_BT,
        _same(examples),
        torch.tensor(scores) if scores else None,
        columns,
    )


def _same(examples: Sequence[Example]) -> Tensor:
    """[B, C]: candidates (partners, then negatives) that are no negatives of a row."""
    names = [[tuple(p.text.ids_T.tolist()) for p in e.pieces] for e in examples]
    candidates = [(own[0], own[1]) for own in names] + [
        (None, own[2]) for own in names if len(own) > 2
    ]
    rows = [
        [i != j and (own[0] == a or own[1] == b) for j, (a, b) in enumerate(candidates)]
        for i, own in enumerate(names)
    ]
    return torch.tensor(rows)


@dataclass(frozen=True)
class Objective:
    """Which loss, with its numbers. kind: one of KINDS."""

    kind: str
    pooling: Pooling
    scale: float = 20.0
    symmetric: bool = False
    margin: float = 5.0


def loss(model: nn.Module, batch: SentenceBatch, *, objective: Objective) -> Loss:
    """Summed over rows; with "in-batch" and "cosent" a row's loss depends on its batch."""
    texts = Texts(batch.ids_BT, batch.mask_BT, batch.segments_BT, batch.pooled_BT)
    vectors = objective.pooling(model, texts).chunk(batch.columns)
    if objective.kind == "in-batch":
        return in_batch_loss(
            vectors[0],
            torch.cat(vectors[1:]),
            scale=objective.scale,
            symmetric=objective.symmetric,
            other_BC=~batch.same_BC,
        )
    if objective.kind == "triplet":
        return triplet_loss(*vectors, margin=objective.margin)
    if batch.scores_B is None:
        raise InputError(f"the objective {objective.kind!r} needs rows with a score")
    if objective.kind == "cosent":
        return cosent_loss(vectors[0], vectors[1], batch.scores_B, scale=objective.scale)
    return cosine_loss(vectors[0], vectors[1], batch.scores_B)


# ---- rows ----

KINDS: Final = ("in-batch", "triplet", "cosine", "cosent")
FORMS: Final = {
    "pairs": ("text", "pair"),
    "scored": ("text", "pair"),
    "triplets": ("anchor", "positive", "negative"),
}
"""The texts of a row."""
FORMS_OF: Final = {
    "in-batch": ("pairs", "triplets"),
    "triplet": ("triplets",),
    "cosine": ("scored",),
    "cosent": ("scored",),
}
"""The forms of rows that a loss can be computed of."""


def check_row(row: Row, number: int) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    for name in FORMS[form_of(row)]:
        string_of(row, name, number)


def form_of(row: Row) -> str:
    """pairs, scored or triplets, by a row's columns."""
    if row.get("anchor") is not None:
        return "triplets"
    return "pairs" if row.get("score") is None else "scored"


@dataclass(frozen=True)
class Reader:
    """Rows -> examples. prompts: put before the first, and before the other texts of a row.
    highest: the score that becomes the cosine 1."""

    tokenizer: Tokenizer
    settings: Sentence
    prompts: tuple[str, str]
    limit: int
    highest: float

    def read(self, rows: Sequence[Row], progress: Progress | None, what: str) -> tuple[str, Rows]:
        """The rows' form, and the examples."""
        form = form_of(checked_rows(rows)[0])
        names = FORMS[form]
        examples, cut = [], 0
        for number, row in enumerate(encoded.reported(rows, progress, what)):
            if form_of(row) != form:
                raise InputError(
                    f"{where_of(row, number)} is of the form {form_of(row)}, row 0 of {form}",
                    advice="all rows: text and pair, with a score or without, or anchor, positive "
                    "and negative",
                )
            pieces = []
            for place, name in enumerate(names):
                piece, shorter = self._piece(string_of(row, name, number), self.prompts[place > 0])
                pieces.append(piece)
                cut += shorter
            examples.append(Example(tuple(pieces), self._score(row, number, form)))
        lengths = [max(len(p.text.ids_T) for p in e.pieces) for e in examples]
        note = f"{cut} of {len(rows) * len(names)} texts cut to {self.limit} tokens"
        return form, Rows(examples, lengths, [note] if cut else [])

    def _piece(self, text: str, prompt: str) -> tuple[Piece, bool]:
        whole = prompt + text
        encoding = self.tokenizer.encode(whole.lower() if self.settings.lower_case else whole)
        fitted = shorten(encoding, self.limit)
        skipped = 0
        if prompt and not self.settings.include_prompt:
            alone = self.tokenizer.encode(prompt)
            skipped = len(alone) - int(bool(alone.special) and alone.special[-1])
        return Piece(text_of(fitted), skipped), len(fitted) < len(encoding)

    def _score(self, row: Row, number: int, form: str) -> float | None:
        if form != "scored":
            return None
        try:
            return float(value_of(row, "score", number)) / self.highest
        except (TypeError, ValueError):
            raise InputError(
                f"the score {row['score']!r} of {where_of(row, number)} is not a number"
            ) from None


# ---- the task ----


def sentence_of(
    loaded: Loaded,
    pooling: str | None = None,
    prompt: str | None = None,
    pair_prompt: str | None = None,
    max_length: int | None = None,
) -> Sentence:
    """How texts become vectors: as the checkpoint says, else the mean; what is given instead.

    A prompt that has no name yet is named as sentence-transformers looks for it: "query" and
    "document". One prompt for all texts is the default from then on.
    """
    settings = loaded.sentence or Sentence()
    if pooling is not None and pooling not in POOLINGS:
        raise ConfigError(f"{pooling!r} is not one of {', '.join(POOLINGS)}", where="pooling")
    prompts, default = dict(settings.prompts), settings.default_prompt
    for text, name in ((prompt, "query"), (pair_prompt, "document")):
        if text is not None and text not in prompts:
            prompts[name] = text
    if prompt is not None and pair_prompt is None:
        default = prompt if prompt in settings.prompts else "query"
    return replace(
        settings,
        pooling=settings.pooling if pooling is None else (pooling,),
        prompts=prompts,
        default_prompt=default,
        max_length=max_length or settings.max_length,
    )


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    objective: str = "auto",
    scale: float = 20.0,
    symmetric: bool = False,
    margin: float = 5.0,
    highest_score: float = 1.0,
    pooling: str | None = None,
    prompt: str | None = None,
    pair_prompt: str | None = None,
    max_length: int | None = None,
    metric: str | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn vectors of texts. Rows: text and pair that belong together; or text, pair, score; or
    anchor, positive, negative.

    objective: "in-batch" (of pairs, or of triplets, whose negatives are further candidates),
    "triplet", "cosine" or "cosent" (of scores); "auto": in-batch, triplet or cosine by the columns.
    scale, symmetric, margin: of the losses. highest_score: scores are divided by it (STS: 5), so
    that they are cosines. pooling: default: as the checkpoint says, else the mean of the tokens.
    prompt, pair_prompt: put before the first, and before the other texts of a row (default: the
    checkpoint's). max_length: longer texts are cut, and `examples.notes` says how many. Evaluation
    by the form of its rows: pearson and spearman of scores; mrr and accuracy (the partner comes
    first) among all partners; accuracy of triplets (the positive is nearer). metric: chooses the
    best checkpoint: spearman, mrr or accuracy. seed: not used, nothing is drawn. Raises InputError,
    ConfigError.
    """
    check_head(loaded, ("encoder",))
    _check(objective, scale, highest_score)
    settings = sentence_of(loaded, pooling, prompt, pair_prompt, max_length)
    dense = tuple(embedding.dense_step(step, loaded.device) for step in settings.dense)
    pooled = Pooling(settings.pooling, settings.normalize, dense)
    first = embedding.prompt_text(settings, prompt)
    second = first if pair_prompt is None else embedding.prompt_text(settings, pair_prompt)
    tokenizer = encoded.checked_tokenizer(loaded)
    limit = encoded.checked_length(loaded, max_length, 3)
    limit = min(limit, settings.max_length or limit)
    reader = Reader(tokenizer, settings, (first, second), limit, highest_score)
    form, examples = reader.read(rows, progress, "tokenising")
    if objective == "auto":
        objective = {"pairs": "in-batch", "triplets": "triplet", "scored": "cosine"}[form]
    if form not in FORMS_OF[objective]:
        raise InputError(
            f"the objective {objective!r} is of {' or '.join(FORMS_OF[objective])}, not of {form}",
            where="objective",
        )
    if objective == "cosine":
        _check_cosines(rows, examples)
    gather = partial(collate, pad=tokenizer.pad_id or 0)
    evaluate, default = None, "loss"
    if evaluation is not None:
        own, held_out = reader.read(evaluation, progress, "tokenising the evaluation")
        evaluate = evaluator(held_out, gather, pooled, own, evaluation_batch_size)
        default = metric or {"scored": "spearman", "pairs": "mrr", "triplets": "accuracy"}[own]
    return Task(
        examples=examples,
        collate=gather,
        loss=partial(loss, objective=Objective(objective, pooled, scale, symmetric, margin)),
        evaluate=evaluate,
        metric=default,
        lower=default == "loss",
    )


def described(
    loaded: Loaded,
    pooling: str | None = None,
    prompt: str | None = None,
    pair_prompt: str | None = None,
    max_length: int | None = None,
) -> Loaded:
    """The model with how its texts become vectors, so that saving writes it; see sentence_of()."""
    settings = sentence_of(loaded, pooling, prompt, pair_prompt, max_length)
    return replace(loaded, sentence=settings)


KIND: Final = Kind("encoder", task, check_row, described=described)


def _check(objective: str, scale: float, highest_score: float) -> None:
    if objective not in ("auto", *KINDS):
        raise ConfigError(
            f"{objective!r} is not one of auto, {', '.join(KINDS)}", where="objective"
        )
    for name, value in (("scale", scale), ("highest_score", highest_score)):
        if not value > 0.0:
            raise ConfigError(f"must be above 0, it is {value}", where=name)


def _check_cosines(rows: Sequence[Row], examples: Rows) -> None:
    """No cosine can learn a score beyond 1: most often the highest one was not named."""
    for number, example in enumerate(examples.examples):
        if abs(example.score) > 1.0:
            raise ConfigError(
                f"the score {rows[number]['score']} of {where_of(rows[number], number)} is no "
                "cosine, which lies between -1 and 1",
                where="highest_score",
                advice="name the highest that there can be, for STS: --task.highest_score=5",
            )


# ---- judging ----


def columns_of(
    model: nn.Module,
    examples: Rows,
    gather: Callable[[Sequence[Any]], SentenceBatch],
    pooling: Pooling,
    batch_size: int,
) -> list[Tensor]:
    """Normalised vectors of each column of the rows, in their order: [rows, D] each, float32."""
    rows: list[list[Tensor]] = [[] for _ in range(len(examples))]
    for indices, batch in in_batches(examples, gather, batch_size, model):
        texts = Texts(batch.ids_BT, batch.mask_BT, batch.segments_BT, batch.pooled_BT)
        vectors_BD = F.normalize(pooling(model, texts), dim=-1).float().cpu()
        for vectors in vectors_BD.chunk(batch.columns):
            for index, vector in zip(indices, vectors, strict=True):
                rows[index].append(vector)
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def evaluator(
    examples: Rows,
    gather: Callable[[Sequence[Any]], SentenceBatch],
    pooling: Pooling,
    form: str,
    batch_size: int,
) -> Callable[[nn.Module], dict[str, float]]:
    """The metrics of a form of rows; see task()."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        from chumoku.training import metrics  # needs the training extra

        columns = columns_of(model, examples, gather, pooling, batch_size)
        if form == "triplets":
            near, far = ((columns[0] * other).sum(-1) for other in columns[1:])
            return {"accuracy": float((near > far).float().mean())}
        if form == "pairs":
            found = metrics.ranks(columns[0] @ columns[1].T, range(len(examples)))
            return {"mrr": metrics.mrr(found), "accuracy": metrics.recall_at(found, 1)}
        cosines = (columns[0] * columns[1]).sum(-1).tolist()
        return metrics.regression(cosines, [e.score for e in examples.examples])

    return evaluate
