"""A label for each token: named entities, parts of speech (1810.04805, section 5.3).

The loss is -sum over labelled tokens of log softmax(z)[y]; which token has which label is worked
out in token_labels.py. A text longer than the model is read in windows, and each token is learnt,
and judged, in the window where it has most context: nothing is left out.

Shape letters: B batch (windows), T position, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import ConfigError
from chumoku.layers.ops import wide
from chumoku.loading import Loaded
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
    number_of,
    padded_texts,
    text_of,
)
from chumoku.training.objectives.token_labels import (
    ENTITY_TAG,
    OUTSIDE,
    Aligned,
    Labelled,
    align,
    labelled,
    owners,
    tags_of,
)
from chumoku.training.objectives.vocabulary import stacked
from chumoku.training.task import IGNORED, Kind, Loss, Task

SUBWORDS: Final = ("all", "first")

# ---- the loss ----


def token_loss(logits_BTC: Tensor, targets_BT: Tensor, weights_C: Tensor | None = None) -> Loss:
    """sum of w[y] * -log softmax(z)[y] where there is a target; units: the sum of w[y]."""
    logits = logits_BTC.flatten(0, 1).to(wide(logits_BTC.dtype))
    targets = targets_BT.flatten()
    learnt = targets != IGNORED
    if weights_C is not None:
        weights_C = weights_C.to(logits)
    total = F.cross_entropy(
        logits, targets, weight=weights_C, ignore_index=IGNORED, reduction="sum"
    )
    units = learnt.sum() if weights_C is None else weights_C[targets[learnt]].sum()
    return Loss(total, units)


# ---- labels ----


def check_row(row: Row, number: int) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    labelled(row, number)


def labels_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names for a new head: O, then B- and I- of each type, else the tags, sorted."""
    found = set()
    for number, row in enumerate(checked_rows(rows)):
        for span in labelled(row, number).spans:
            found |= {span.label, span.inside}
        found |= set() if row.get("words") is not None else {OUTSIDE}
    if all(map(ENTITY_TAG.fullmatch, found)):
        kinds = sorted({name[2:] for name in found - {OUTSIDE}})
        return (OUTSIDE, *(f"{place}-{kind}" for kind in kinds for place in "BI"))
    return tuple(sorted(found))


# ---- batch and loss ----


class Example(NamedTuple):
    """A window. targets_T: IGNORED where nothing is learnt. row, tokens: where it comes from."""

    text: Text
    targets_T: Tensor
    row: int
    tokens: Sequence[int]


class TokenBatch(NamedTuple):
    """targets_BT: IGNORED where there is no label."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    targets_BT: Tensor


def collate(examples: Sequence[Example], *, pad: int) -> TokenBatch:
    """Padded on the right to the longest example."""
    targets_BT = stacked([e.targets_T for e in examples], IGNORED)
    return TokenBatch(*padded_texts([e.text for e in examples], pad), targets_BT)


def loss(model: nn.Module, batch: TokenBatch, *, weights_C: Tensor | None = None) -> Loss:
    """Summed over labelled tokens."""
    return token_loss(answer(model, batch), batch.targets_BT, weights_C)


# ---- examples ----


@dataclass(frozen=True)
class Reader:
    """Rows -> windows with labels."""

    tokenizer: Tokenizer
    labels: tuple[str, ...]
    limit: int
    stride: int
    subwords: str
    joiner: str | None

    def read(
        self, rows: Sequence[Row], progress: Progress | None, what: str, *, judged: bool = False
    ) -> Texts:
        """judged: what an evaluation needs of the texts is kept beside the windows."""
        examples: list[Example] = []
        texts: list[tuple[Labelled, Encoding, Aligned]] = []
        uneven = spans = 0
        for number, row in enumerate(encoded.reported(checked_rows(rows), progress, what)):
            text = labelled(row, number, self.joiner)
            encoding = self.tokenizer.encode(text.text)
            aligned = align(encoding, text, self.subwords)
            examples += self._windows(
                encoding, self._numbers(aligned, where_of(row, number)), number
            )
            uneven, spans = uneven + aligned.uneven, spans + len(text.spans)
            if judged:
                texts.append((text, encoding, aligned))
        notes = []
        if uneven:
            notes.append(f"{uneven} of {spans} labels do not begin and end where tokens do")
        if len(examples) > len(rows):
            notes.append(f"{len(rows)} texts are read in {len(examples)} windows")
        return Texts(examples, texts, notes)

    def _numbers(self, aligned: Aligned, where: str) -> list[int]:
        targets = []
        for target in aligned.targets_T:
            if isinstance(target, str):
                # A head that has B- alone was trained to say it of every token.
                if target.startswith("I-") and target not in self.labels:
                    target = f"B-{target[2:]}"
                target = number_of(target, self.labels, where)
            targets.append(target)
        return targets

    def _windows(self, encoding: Encoding, targets: Sequence[int], row: int) -> list[Example]:
        places = windows(encoding, self.limit, min(self.stride, (self.limit - 2) // 2))
        owner = owners(places, len(encoding))
        found = []
        for number, (place, piece) in enumerate(zip(places, cut(encoding, places), strict=True)):
            own = [targets[t] if owner[t] == number else IGNORED for t in place]
            tokens = range(len(place)) if len(places) == 1 else place
            found.append(Example(text_of(piece), torch.tensor(own), row, tokens))
        return found


class Texts(Rows):
    """Windows as examples, and for an evaluation the texts that they are of."""

    def __init__(
        self,
        examples: Sequence[Example],
        texts: Sequence[tuple[Labelled, Encoding, Aligned]],
        notes: Sequence[str],
    ) -> None:
        super().__init__(examples, [len(e.text.ids_T) for e in examples], notes)
        self.texts = texts


# ---- the task ----


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    max_length: int | None = None,
    stride: int = 64,
    subwords: str = "all",
    joiner: str | None = None,
    class_weights: Mapping[str, float] | None = None,
    metric: str | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn a label for each token. Rows: words and tags (lists of one length, or texts with spaces
    between), or text and entities (a list of {start, end, type}
    or {span: [start, end], type}, in code points).

    max_length: most tokens of a window; neighbours share `stride`. subwords: "all" pieces of a word
    are labelled, as the verb `ner` reads them by default, or the "first" alone (its
    aggregation="first"). joiner: what stands between words (default: a space, nothing in Japanese).
    class_weights: by label name, 1 where none is given. Evaluation: precision, recall and f1 of
    whole entities, by words where words were given, else by characters, so that an entity that the
    tokenizer cannot cut out counts as missed; and the accuracy of a token. metric: chooses the best
    checkpoint (default f1; accuracy for labels that are no entities). seed: not used, nothing is
    drawn. Raises InputError, ConfigError.
    """
    check_head(loaded, ("token-classification",))
    if subwords not in SUBWORDS:
        raise ConfigError(f"{subwords!r} is not one of {', '.join(SUBWORDS)}", where="subwords")
    if stride < 0:
        raise ConfigError(f"must be at least 0, it is {stride}", where="stride")
    tokenizer, labels = encoded.checked_tokenizer(loaded), loaded.config.labels
    limit = encoded.checked_length(loaded, max_length, 4)
    reader = Reader(tokenizer, labels, limit, stride, subwords, joiner)
    gather = partial(collate, pad=tokenizer.pad_id or 0)
    evaluate = None
    default = "f1" if all(map(ENTITY_TAG.fullmatch, labels)) else "accuracy"
    if evaluation is not None:
        held_out = reader.read(evaluation, progress, "tokenising the evaluation", judged=True)
        evaluate = evaluator(held_out, gather, labels, evaluation_batch_size)
    metric = (metric or default) if evaluation is not None else "loss"
    return Task(
        examples=reader.read(rows, progress, "tokenising"),
        collate=gather,
        loss=partial(loss, weights_C=_weights(class_weights, labels)),
        evaluate=evaluate,
        metric=metric,
        lower=metric == "loss",
    )


KIND: Final = Kind("token-classification", task, check_row, labels_of=labels_of)


def _weights(weights: Mapping[str, float] | None, labels: Sequence[str]) -> Tensor | None:
    if weights is None:
        return None
    unknown = sorted(set(weights) - set(labels))
    if unknown:
        raise ConfigError(f"{unknown[0]!r} is none of {', '.join(labels)}", where="class_weights")
    return torch.tensor([float(weights.get(name, 1.0)) for name in labels])


# ---- judging ----


def evaluator(
    examples: Texts, gather: Callable[[Sequence[Any]], TokenBatch], labels: Sequence[str], size: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Loss and accuracy of labelled tokens, and whole entities where the labels are theirs."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        predicted = [[OUTSIDE] * len(encoding) for _, encoding, _ in examples.texts]
        total = right = units = 0.0
        for indices, batch in in_batches(examples, gather, size, model):
            logits_BTC = answer(model, batch).float()
            total += float(token_loss(logits_BTC, batch.targets_BT).total)
            best_BT = logits_BTC.argmax(-1)
            learnt_BT = batch.targets_BT != IGNORED
            right += float((best_BT == batch.targets_BT)[learnt_BT].sum())
            units += float(learnt_BT.sum())
            for index, row in zip(indices, best_BT.tolist(), strict=True):
                _note(examples.examples[index], row, predicted, labels)
        found = {"loss": total / max(units, 1.0), "accuracy": right / max(units, 1.0)}
        if all(map(ENTITY_TAG.fullmatch, labels)):
            from chumoku.training import metrics  # needs the training extra

            pairs = [
                tags_of(*text, own) for text, own in zip(examples.texts, predicted, strict=True)
            ]
            found |= metrics.entities([p for p, _ in pairs], [y for _, y in pairs])
        return found

    return evaluate


def _note(
    example: Example, best: Sequence[int], predicted: list[list[str]], labels: Sequence[str]
) -> None:
    """Write down what a window says of the tokens that are its own."""
    for column, token in enumerate(example.tokens):
        if int(example.targets_T[column]) != IGNORED:
            predicted[example.row][token] = labels[best[column]]
