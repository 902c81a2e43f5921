"""Next-sentence prediction, beside masked tokens (Devlin et al., 1810.04805, section 3.1).

An example is two stretches of sentences, [CLS] A [SEP] B [SEP]. Half the time B is what follows A
in its document (label 0), half the time it comes from another document (label 1). The loss is the
mean over masked tokens plus the mean over pairs, as published. Sentences that stand alone can be
masked beside the pairs: [CLS] A [SEP], without a label.

Shape letters: B batch, T position, M chosen positions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.training.data.tables import where_of
from chumoku.training.metrics import wilson_lower
from chumoku.training.objectives import encoded, masked_lm
from chumoku.training.objectives.encoded import Frame, Pieces, Progress
from chumoku.training.objectives.masked_lm import Masked, MaskedBatch, Masking, joined, mask_example
from chumoku.training.objectives.text_rows import Row, value_of
from chumoku.training.objectives.vocabulary import (
    EVALUATION_SEED,
    Picked,
    Tally,
    cross_entropy,
    entropy,
    evaluation_batches,
    perplexity_of,
    unigram_loss,
)
from chumoku.training.task import IGNORED, Kind, Loss, Task, generator

IS_NEXT: Final = 0
NOT_NEXT: Final = 1

Document = Sequence[Pieces]
"""Sentences in their order."""

# ---- documents ----

_ENDS: Final = re.compile(r"(?<=[。！？!?])(?![」』）)])\s*|(?<=[.!?])\s+")


def sentences_of(text: str) -> list[str]:
    """Lines, where the text has several; else it is cut after 。！？ and after .!? and a space."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) > 1:
        return lines
    return [part.strip() for part in _ENDS.split(text) if part.strip()]


def check_row(row: Row, number: int) -> None:
    """Raises InputError for a row without "sentences": a text, or a list of texts."""
    if _as_sentences(value_of(row, "sentences", number)) is None:
        raise InputError(f"{where_of(row, number)} is neither a text nor a list of sentences")


def _as_sentences(value: Any) -> list[str] | None:
    sentences = sentences_of(value) if isinstance(value, str) else value
    if isinstance(sentences, list | tuple) and all(isinstance(s, str) for s in sentences):
        return [s for s in sentences if s.strip()]
    return None


def checked_documents(documents: Sequence[Any]) -> list[list[str]]:
    """Lists of sentences, from such lists, from texts, and from rows with "sentences" or "text".

    Raises InputError.
    """
    found = []
    for number, item in enumerate(documents):
        name = "sentences" if isinstance(item, Mapping) and "sentences" in item else "text"
        sentences = _as_sentences(encoded.field_of(item, name))
        if sentences is None:
            raise InputError(f"document {number} is neither a text nor a list of sentences")
        found.append(sentences)
    return found


class Chunk(NamedTuple):
    """Sentences start..end of a document, about as many as fill an example."""

    document: int
    start: int
    end: int


def chunks_of(documents: Sequence[Sequence[int]], room: int) -> list[Chunk]:
    """Cut documents, given as the lengths of their sentences, into chunks of about `room` tokens.

    A chunk has at least two sentences, so that either kind of pair can be made of it; a last
    sentence that would stand alone goes to the chunk before. A document of one sentence makes no
    chunk; it still serves as a random second part.
    """
    found: list[Chunk] = []
    for number, lengths in enumerate(documents):
        start = total = 0
        own: list[Chunk] = []
        for place, length in enumerate(lengths):
            total += length
            if total >= room and place > start:
                own.append(Chunk(number, start, place + 1))
                start, total = place + 1, 0
        if len(lengths) - start > 1:
            own.append(Chunk(number, start, len(lengths)))
        elif start < len(lengths) and own:
            own[-1] = own[-1]._replace(end=len(lengths))
        found += own
    return found


# ---- pairs ----


class Pair(NamedTuple):
    first: Pieces
    second: Pieces
    label: int


def pair_of(documents: Sequence[Document], chunk: Chunk, room: int, rng: torch.Generator) -> Pair:
    """Half of the time the chunk cut in two at a sentence, else its beginning and a random stretch.

    The random stretch begins at any sentence of any other document.
    """
    own = documents[chunk.document]
    cut = chunk.start + 1 + _below(chunk.end - chunk.start - 1, rng)
    first = joined(own[chunk.start : cut])
    if _below(2, rng) == IS_NEXT:
        return Pair(first, joined(own[cut : chunk.end]), IS_NEXT)
    number = _below(len(documents) - 1, rng)
    other = documents[number + (number >= chunk.document)]
    start = end = _below(len(other), rng)
    wanted, total = max(room - len(first.ids_T), 1), 0
    while end < len(other) and total < wanted:
        total += len(other[end].ids_T)
        end += 1
    return Pair(first, joined(other[start:end]), NOT_NEXT)


def _below(count: int, rng: torch.Generator) -> int:
    return int(torch.randint(count, (), generator=rng))


def truncate_pair(
    first: Pieces, second: Pieces, room: int, rng: torch.Generator
) -> tuple[Pieces, Pieces]:
    """Shorten the longer of the two, token by token, until both fit; each keeps a token.

    Tokens go from the front or the back by the toss of a coin (as the original tool does), so that
    the place of a cut tells nothing.
    """
    a, b = kept_lengths(len(first.ids_T), len(second.ids_T), room)
    return _trimmed(first, a, rng), _trimmed(second, b, rng)


def kept_lengths(a: int, b: int, room: int) -> tuple[int, int]:
    """What is left of a and b when the longer (of equals the second) loses one at a time."""
    excess = max(a + b - room, 0)
    if abs(a - b) >= excess:
        return (a - excess, b) if a > b else (a, b - excess)
    return (room + 1) // 2, room // 2


def _trimmed(pieces: Pieces, kept: int, rng: torch.Generator) -> Pieces:
    dropped = len(pieces.ids_T) - kept
    front = int(torch.randint(2, (dropped,), generator=rng).sum()) if dropped else 0
    return pieces.cut(front, front + kept)


class Example(NamedTuple):
    """label: IGNORED where there is no pair."""

    masked: Masked
    label: int


class SentencePairs:
    """A pair for each chunk, drawn and masked anew in each epoch; behind them what stands alone.

    short: share of the examples that are cut to a random length, so that short inputs are known too
    (0.1 in the original tool). alone: share of the documents of one sentence that an epoch masks
    without a pair; the next epoch has others. Above 0 they are no second parts of pairs.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        frame: Frame,
        length: int,
        masking: Masking,
        short: float,
        seed: int,
        alone: float = 0.0,
    ) -> None:
        for name, share in (("short", short), ("alone", alone)):
            if not 0.0 <= share <= 1.0:
                raise ConfigError(f"must be between 0 and 1, it is {share}", where=name)
        self.room = length - frame.pair
        least = 2 if alone else 1
        self.documents = [document for document in documents if len(document) >= least]
        single = [one[0].cut(0, self.room) for one in documents if alone and len(one) == 1]
        self.alone = sorted(single, key=lambda pieces: len(pieces.ids_T))
        self.drawn = round(len(single) * alone)
        if len(self.documents) < 2:
            raise InputError(
                "next-sentence prediction needs at least two documents",
                advice="the second part of half of the pairs comes from another document",
            )
        sizes = [[len(s.ids_T) for s in document] for document in self.documents]
        self.chunks = chunks_of(sizes, self.room)
        if not self.chunks:
            raise InputError("no document has two sentences")
        self.lengths = [
            min(sum(sizes[c.document][c.start : c.end]), self.room) + frame.pair
            for c in self.chunks
        ]
        longest = [self._neighbours(number)[-1] for number in range(self.drawn)]
        self.lengths += [len(pieces.ids_T) + frame.single for pieces in longest]
        self.frame, self.masking, self.short, self.seed = frame, masking, short, seed

    def __len__(self) -> int:
        return len(self.lengths)

    def length(self, index: int) -> int:
        return self.lengths[index]

    def example(self, index: int, epoch: int) -> Example:
        rng = generator(self.seed, epoch, index)
        if index >= len(self.chunks):
            some = self._neighbours(index - len(self.chunks))
            pieces = some[epoch % len(some)]
            masked = masked_lm.framed_and_masked(pieces, self.frame, self.masking, rng)
            return Example(masked._replace(segments_T=torch.zeros_like(masked.ids_T)), IGNORED)
        pair = pair_of(self.documents, self.chunks[index], self.room, rng)
        room = self.room
        if float(torch.rand((), generator=rng)) < self.short:
            room = 2 + _below(room - 1, rng)
        first, second = truncate_pair(pair.first, pair.second, room, rng)
        masked = mask_example(*self._framed(first, second), self.masking, rng)
        return Example(masked._replace(segments_T=self._segments(first, second)), pair.label)

    def _neighbours(self, number: int) -> Sequence[Pieces]:
        """Of like length; an epoch masks one of them."""
        n = len(self.alone)
        return self.alone[number * n // self.drawn : (number + 1) * n // self.drawn]

    def texts(self) -> Iterator[Tensor]:
        """ids_T of every sentence."""
        for document in (*self.documents, self.alone):
            yield from (pieces.ids_T for pieces in document)

    def _framed(self, first: Pieces, second: Pieces) -> tuple[Tensor, Tensor]:
        """ids_T and words_T with the special tokens."""
        before, between, after = (Pieces.of_specials(ids) for ids in self.frame)
        whole = joined((before, first, between, second, after))
        return whole.ids_T.long(), whole.words_T

    def _segments(self, first: Pieces, second: Pieces) -> Tensor:
        """0 up to the separator between the two, then 1."""
        before, between, after = map(len, self.frame)
        left = before + len(first.ids_T) + between
        return (torch.arange(left + len(second.ids_T) + after) >= left).long()


# ---- batch and loss ----


class PairBatch(NamedTuple):
    """A MaskedBatch, and next_B: 0 where the second part follows the first, IGNORED for no pair."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    places_M: Tensor
    targets_M: Tensor
    next_B: Tensor

    @property
    def masked(self) -> MaskedBatch:
        return MaskedBatch(*self[:-1])


def collate(examples: Sequence[Example], *, pad: int) -> PairBatch:
    """Padded on the right to the longest example."""
    batch = masked_lm.collate([e.masked for e in examples], pad=pad)
    return PairBatch(*batch, torch.tensor([e.label for e in examples]))


def predictions(model: Any, batch: PairBatch) -> tuple[Picked, Picked]:
    """Logits of the chosen tokens, and of the pairs there are."""
    hidden_BTD = masked_lm.hidden(model, batch.masked)
    masked = masked_lm.predictions(model, hidden_BTD, batch.masked)
    paired_B = batch.next_B != IGNORED
    logits_BC = model.head.next_sentence(model.pooler(hidden_BTD[paired_B]))
    return masked, Picked(logits_BC, batch.next_B[paired_B])


def loss(model: nn.Module, batch: PairBatch) -> Loss:
    """M * (mean over masked tokens + mean over pairs); units: M, the number of masked tokens.

    The published loss is the sum of the two means; where there is no pair, the first alone. parts:
    masked, next_sentence.
    """
    masked, pairs = predictions(model, batch)
    M = max(masked.targets_M.numel(), 1)
    of_tokens = cross_entropy(*masked)
    of_pairs = cross_entropy(*pairs) * (M / max(pairs.targets_M.numel(), 1))
    parts = {"masked": of_tokens, "next_sentence": of_pairs}
    return Loss(of_tokens + of_pairs, batch.targets_M.new_tensor(M), parts)


# ---- the task ----


def task(
    loaded: Loaded,
    documents: Sequence[Any],
    *,
    evaluation: Sequence[Any] | None = None,
    length: int | None = None,
    short: float = 0.1,
    alone: float = 0.0,
    rate: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
    whole_words: bool = False,
    max_predictions: int | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn both of BERT's tasks at once; the model has its "pre-training" head.

    documents: lists of sentences, or what checked_documents() takes. length: tokens of a pair
    (default: what the model takes). short, alone: see SentencePairs. The others: see Masking.
    Evaluation, on one fixed drawing: loss (both), masked_loss, perplexity, masked_accuracy,
    unigram_entropy (of the masked tokens), unigram_loss (of the same, by the frequencies of the
    training text), next_sentence_accuracy, next_sentence_lower_95 (Wilson's bound) and
    next_sentence_pairs; without what stands alone. Raises InputError, ConfigError.
    """
    masked_lm.check_head(loaded, ("pre-training",))
    if loaded.config.num_segments < 2:
        raise InputError("the model has one segment, pairs need two", where="type_vocab_size")
    tokenizer = encoded.checked_tokenizer(loaded)
    frame = encoded.frame_of(tokenizer, pair=True)
    length = encoded.checked_length(loaded, length, frame.pair + 4)
    masking = masked_lm.masking_of(
        tokenizer,
        rate=rate,
        masked=masked,
        random=random,
        whole_words=whole_words,
        max_predictions=max_predictions,
    )

    def examples(some: Sequence[Any], seed: int, alone: float) -> SentencePairs:
        pieces = [
            encoded.encode_pieces(tokenizer, sentences)
            for sentences in encoded.reported(checked_documents(some), progress, "tokenising")
        ]
        full = [[p for p in document if len(p.ids_T)] for document in pieces]
        return SentencePairs(full, frame, length, masking, short, seed, alone)

    gather = partial(collate, pad=tokenizer.pad_id or 0)
    trained = examples(documents, seed, alone)
    evaluate = None
    if evaluation is not None:
        held_out = examples(evaluation, EVALUATION_SEED, 0.0)
        drawn = [held_out.example(i, 0).masked.targets_M for i in range(len(held_out))]
        targets = torch.cat(drawn).tolist()
        context_free = {
            "unigram_entropy": entropy(targets),
            "unigram_loss": unigram_loss(targets, trained.texts(), tokenizer.vocab_size),
        }
        evaluate = evaluator(held_out, gather, evaluation_batch_size, context_free)
    return Task(examples=trained, collate=gather, loss=loss, evaluate=evaluate)


KIND: Final = Kind("pre-training", task, check_row, column="sentences")


def evaluator(
    examples: SentencePairs,
    gather: Callable[[Sequence[Any]], PairBatch],
    batch_size: int,
    context_free: Mapping[str, float],
) -> Callable[[nn.Module], dict[str, float]]:
    """Metrics of both tasks over one fixed drawing, beside those of no model at all."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        of_tokens, of_pairs = Tally(), Tally()
        for batch in evaluation_batches(examples, gather, batch_size, model):
            for tally, some in zip((of_tokens, of_pairs), predictions(model, batch), strict=True):
                tally.add(some)
        tokens, pairs = of_tokens.judged(), of_pairs.judged()
        return {
            "loss": tokens.nll + pairs.nll,
            "masked_loss": tokens.nll,
            "perplexity": perplexity_of(tokens.nll),
            "masked_accuracy": tokens.accuracy,
            **context_free,
            "next_sentence_accuracy": pairs.accuracy,
            "next_sentence_lower_95": wilson_lower(of_pairs.right, pairs.units),
            "next_sentence_pairs": float(pairs.units),
        }

    return evaluate
