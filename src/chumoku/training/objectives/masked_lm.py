"""Masked language modelling (Devlin et al., 1810.04805, section 3.1; 2207.09238, algorithm 12).

A share of the positions is chosen; of these most become [MASK], some another token, and some stay.
The loss is -sum log P(the token that was there), over the chosen positions alone. Masks are drawn
anew each time that an example is read (RoBERTa's "dynamic masking", 1907.11692, section 4.1).

Shape letters: B batch, T position, D model width, M chosen positions, W words, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from chumoku.errors import CheckpointError, ConfigError, InputError
from chumoku.layers.attention import Batch
from chumoku.loading import Loaded
from chumoku.text.encoding import Tokenizer
from chumoku.training.data.packing import integers_in
from chumoku.training.data.streaming import Changed, RowStream, Stage, Streamed
from chumoku.training.objectives import encoded
from chumoku.training.objectives.encoded import Frame, Pieces, Progress
from chumoku.training.objectives.text_rows import check_text
from chumoku.training.objectives.vocabulary import (
    EVALUATION_SEED,
    Picked,
    cross_entropy,
    entropy,
    evaluation_batches,
    judge,
    picked,
    stacked,
)
from chumoku.training.task import Examples, Kind, Loss, Task, generator

HEADS: Final = ("masked-lm", "pre-training")

# ---- which positions, and what they become ----


@dataclass(frozen=True, eq=False)
class Masking:
    """rate: share of the positions that are chosen; masked, random: shares of the chosen ones.

    replacements: the ids that a random token is drawn from. whole_words: the pieces of a word are
    chosen together (published as "whole word masking"). max_predictions: most chosen positions of
    one example; the original tool takes 20 at length 128. Raises ConfigError.
    """

    mask_id: int
    replacements: Tensor
    rate: float = 0.15
    masked: float = 0.8
    random: float = 0.1
    whole_words: bool = False
    max_predictions: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.rate <= 1.0:
            raise ConfigError(f"must be above 0 and at most 1, it is {self.rate}", where="rate")
        if min(self.masked, self.random) < 0.0 or self.masked + self.random > 1.0 + 1e-9:
            raise ConfigError(
                f"{self.masked} and {self.random} are no shares of the chosen positions",
                where="masked, random",
                advice="both at least 0, and at most 1 together",
            )
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ConfigError("must be at least 1", where="max_predictions")


def choose(
    words_T: Tensor, rate: float, rng: torch.Generator, max_predictions: int | None = None
) -> Tensor:
    """places_M, ascending: the positions of rate * W words, drawn without replacement.

    words_T: number of each position's word; a negative one is never chosen. The count is rounded up
    or down at random so that its mean is exact: the original tool rounds to the nearest and takes
    at least one, and masks too much of short texts. Every word, and so every position, has the
    probability `rate`.
    """
    eligible = (words_T >= 0).nonzero()[:, 0]
    kinds, word_of = torch.unique(words_T[eligible], return_inverse=True)
    W = len(kinds)
    count = int(rate * W + float(torch.rand((), generator=rng, dtype=torch.float64)))
    chosen = torch.randperm(W, generator=rng)[:count]
    if max_predictions is not None:
        sizes = torch.bincount(word_of, minlength=W)
        chosen = chosen[sizes[chosen].cumsum(0) <= max_predictions]
    taken = torch.zeros(W, dtype=torch.bool)
    taken[chosen] = True
    return eligible[taken[word_of]]


def corrupt(ids_T: Tensor, places_M: Tensor, masking: Masking, rng: torch.Generator) -> Tensor:
    """The input: ids_T with each chosen place masked, replaced or left, drawn for each alone."""
    draw_M = torch.rand(len(places_M), generator=rng)
    other_M = torch.randint(len(masking.replacements), (len(places_M),), generator=rng)
    new_M = ids_T[places_M]
    new_M = torch.where(
        draw_M < masking.masked + masking.random, masking.replacements[other_M], new_M
    )
    new_M = torch.where(draw_M < masking.masked, masking.mask_id, new_M)
    return ids_T.index_copy(0, places_M, new_M)


class Masked(NamedTuple):
    """One example: what the model reads, where it must guess, and what was there."""

    ids_T: Tensor
    places_M: Tensor
    targets_M: Tensor
    segments_T: Tensor | None = None


def mask_example(
    ids_T: Tensor,
    words_T: Tensor,
    masking: Masking,
    rng: torch.Generator,
    segments_T: Tensor | None = None,
) -> Masked:
    """ids_T with its special tokens; words_T is negative at those."""
    if not masking.whole_words:
        place_T = torch.arange(len(words_T), dtype=words_T.dtype)
        words_T = torch.where(words_T >= 0, place_T, words_T)
    places_M = choose(words_T, masking.rate, rng, masking.max_predictions)
    return Masked(corrupt(ids_T, places_M, masking, rng), places_M, ids_T[places_M], segments_T)


# ---- batch and loss ----


class MaskedBatch(NamedTuple):
    """mask_BT: None where nothing is padded. places_M: in the flattened [B * T]."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None
    places_M: Tensor
    targets_M: Tensor


def collate(examples: Sequence[Masked], *, pad: int) -> MaskedBatch:
    """Padded on the right to the longest example."""
    ids_BT = stacked([e.ids_T for e in examples], pad)
    T = ids_BT.shape[1]
    lengths_B = torch.tensor([len(e.ids_T) for e in examples])
    mask_BT = torch.arange(T) < lengths_B[:, None]
    segments = [e.segments_T for e in examples if e.segments_T is not None]
    return MaskedBatch(
        ids_BT,
        None if bool(mask_BT.all()) else mask_BT,
        stacked(segments, 0) if segments else None,
        torch.cat([e.places_M + row * T for row, e in enumerate(examples)]),
        torch.cat([e.targets_M for e in examples]),
    )


def hidden(model: Any, batch: MaskedBatch) -> Tensor:
    """The encoder's last states, [B, T, D]."""
    around = Batch(segments_BT=batch.segments_BT)
    return model.hidden(batch.ids_BT, batch.mask_BT, batch=around)  # type: ignore[no-any-return]


def predictions(model: Any, hidden_BTD: Tensor, batch: MaskedBatch) -> Picked:
    """Vocabulary logits at the chosen places only."""
    head = model.head.masked if model.head_name == "pre-training" else model.head
    return Picked(head(picked(hidden_BTD, batch.places_M), None), batch.targets_M)


def loss(model: nn.Module, batch: MaskedBatch) -> Loss:
    """-sum log P(token) over the chosen places; units: how many they are."""
    logits_MV, targets_M = predictions(model, hidden(model, batch), batch)
    return Loss(cross_entropy(logits_MV, targets_M), targets_M.new_tensor(targets_M.numel()))


# ---- examples ----


def framed_and_masked(
    piece: Pieces, frame: Frame, masking: Masking, rng: torch.Generator
) -> Masked:
    """A piece of a text in the tokenizer's frame, masked."""
    parts = (Pieces.of_specials(frame.before), piece, Pieces.of_specials(frame.after))
    ids_T = torch.cat([part.ids_T for part in parts]).long()
    return mask_example(ids_T, torch.cat([part.words_T for part in parts]), masking, rng)


class MaskedTexts:
    """Pieces of texts in the tokenizer's frame, masked anew in each epoch."""

    def __init__(self, pieces: Sequence[Pieces], frame: Frame, masking: Masking, seed: int) -> None:
        self.pieces, self.frame, self.masking, self.seed = pieces, frame, masking, seed

    def __len__(self) -> int:
        return len(self.pieces)

    def length(self, index: int) -> int:
        return len(self.pieces[index].ids_T) + self.frame.single

    def example(self, index: int, epoch: int) -> Masked:
        rng = generator(self.seed, epoch, index)
        return framed_and_masked(self.pieces[index], self.frame, self.masking, rng)


def cut(texts: Sequence[Pieces], length: int, frame: Frame, join: bool) -> list[Pieces]:
    """Texts as examples of at most `length` tokens, special ones included; nothing is left out.

    join: texts are put end to end, the closing special tokens between them, and cut where an
    example is full (1907.11692, section 4.2, "full sentences"); else each text begins anew.
    """
    room = length - frame.single
    if join:
        mark = Pieces.of_specials(frame.after)
        texts = [joined([part for text in texts for part in (text, mark)][:-1])]
    return [piece for text in texts for piece in text.split(room)]


class Joining:
    """cut() for a stream (data/streaming.py), a text at a time; what is left over waits."""

    def __init__(
        self, pieces_of: Callable[[Any], Pieces], length: int, frame: Frame, join: bool
    ) -> None:
        self.pieces_of, self.room, self.join = pieces_of, length - frame.single, join
        self.mark = Pieces.of_specials(frame.after)
        self._begin()

    def _begin(self) -> None:
        self._rest, self._first = Pieces.of_specials(()), True

    def add(self, row: Any) -> list[Pieces]:
        text = self.pieces_of(row)
        if not self.join:
            return text.split(self.room)
        whole = joined([text] if self._first else [self._rest, self.mark, text])
        length = len(whole.ids_T)
        full = length - length % self.room
        self._rest, self._first = whole.cut(full, length), False
        return whole.cut(0, full).split(self.room)

    def flush(self) -> list[Pieces]:
        rest = self._rest
        self._begin()
        return rest.split(self.room)

    def state(self) -> dict[str, Any]:
        """JSON: the ids and words that wait, and whether no text has come."""
        ids, words = self._rest.ids_T.tolist(), self._rest.words_T.tolist()
        return {"ids": ids, "words": words, "first": self._first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Raises CheckpointError for what is no such state."""
        ids, words = integers_in(state, "ids"), integers_in(state, "words")
        if len(ids) != len(words) or len(ids) >= self.room:
            raise CheckpointError("what is left over of the stream does not fit the run")
        self._rest = Pieces(*(torch.tensor(each, dtype=torch.int32) for each in (ids, words)))
        self._first = bool(state.get("first"))


def joined(parts: Sequence[Pieces]) -> Pieces:
    """Pieces end to end. Word numbers go on from one to the next; negative ones stay."""
    words, first = [], 0
    for part in parts:
        own = part.words_T[part.words_T >= 0]
        lowest = int(own.min()) if len(own) else 0  # of the end of a text it is not 0
        words.append(torch.where(part.words_T >= 0, part.words_T - lowest + first, part.words_T))
        first += int(own.max()) - lowest + 1 if len(own) else 0
    return Pieces(torch.cat([part.ids_T for part in parts]), torch.cat(words))


# ---- the task ----


def masking_of(
    tokenizer: Tokenizer,
    *,
    rate: float,
    masked: float,
    random: float,
    whole_words: bool,
    max_predictions: int | None,
) -> Masking:
    """With the tokenizer's mask token; random tokens are drawn from all but [MASK], [PAD], [CLS],
    [SEP] and what the tokenizer keeps as control tokens.

    The original tool draws from all. Raises InputError where there is no mask token.
    """
    if tokenizer.mask_id is None:
        raise InputError("the tokenizer of this model has no mask token")
    ordinary = torch.ones(tokenizer.vocab_size, dtype=torch.bool)
    for token in tokenizer.controls:
        if token.id is not None:
            ordinary[token.id] = False
    named = (tokenizer.mask_id, tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
    ordinary[[index for index in named if index is not None]] = False
    replacements = ordinary.nonzero()[:, 0]
    return Masking(
        tokenizer.mask_id, replacements, rate, masked, random, whole_words, max_predictions
    )


def check_head(loaded: Loaded, heads: Sequence[str]) -> None:
    """Raise InputError where the model has none of these heads."""
    if loaded.head not in heads:
        raise InputError(
            f"this objective needs a model with head {' or '.join(map(repr, heads))}, "
            f"this one has {loaded.head!r}",
            where=loaded.source.origin,
            advice=f"load or create it with head={heads[0]!r}",
        )


def task(
    loaded: Loaded,
    texts: Sequence[Any] | RowStream,
    *,
    evaluation: Sequence[Any] | None = None,
    length: int | None = None,
    join: bool = False,
    rate: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
    whole_words: bool = False,
    max_predictions: int | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to fill masked tokens in. texts: strings, or rows with a "text", or a stream of them.

    length: tokens of an example (default: what the model takes). join: see cut(). The others: see
    Masking. Evaluation gives loss, perplexity and accuracy over the chosen tokens of one fixed
    masking, and `unigram_entropy` of those tokens, which the loss of a model that uses context lies
    below. Raises InputError, ConfigError.
    """
    check_head(loaded, HEADS)
    tokenizer = encoded.checked_tokenizer(loaded)
    frame = encoded.frame_of(tokenizer)
    length = encoded.checked_length(loaded, length, frame.single + 2)
    masking = masking_of(
        tokenizer,
        rate=rate,
        masked=masked,
        random=random,
        whole_words=whole_words,
        max_predictions=max_predictions,
    )

    def examples(some: Sequence[Any], what: str, seed: int) -> MaskedTexts:
        pieces = encoded.encode_pieces(tokenizer, encoded.checked_texts(some, what), progress)
        return MaskedTexts(cut(pieces, length, frame, join), frame, masking, seed)

    def streamed(stream: RowStream) -> Streamed:
        def masked(piece: Pieces, rng: torch.Generator) -> list[Masked]:
            return [framed_and_masked(piece, frame, masking, rng)]

        def pieces_of(row: Any) -> Pieces:
            return encoded.pieces_of(tokenizer, row["text"])

        def stage() -> Stage:
            return Changed(Joining(pieces_of, length, frame, join), masked, seed)

        return Streamed(stream.open, stage, stream.examples, tokens=length)

    gather = partial(collate, pad=tokenizer.pad_id or 0)
    held_out = None
    if evaluation is not None:
        held_out = examples(evaluation, "evaluation text", EVALUATION_SEED)
    return Task(
        examples=streamed(texts)
        if isinstance(texts, RowStream)
        else examples(texts, "training text", seed),
        collate=gather,
        loss=loss,
        evaluate=None if held_out is None else evaluator(held_out, gather, evaluation_batch_size),
    )


KIND: Final = Kind("masked-lm", task, check_text, column="text", streams=True)


def evaluator(
    examples: Examples, gather: Callable[[Sequence[Any]], MaskedBatch], batch_size: int
) -> Callable[[nn.Module], dict[str, float]]:
    """Metrics over the chosen tokens of a fixed masking of the examples."""
    targets = [t for i in range(len(examples)) for t in examples.example(i, 0).targets_M.tolist()]
    if not targets:
        raise InputError("no token of the evaluation data is masked", advice="give more of it")
    unigram_entropy = entropy(targets)

    def evaluate(model: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(examples, gather, batch_size, model)
        judged = judge(predictions(model, hidden(model, b), b) for b in batches)
        return {
            "loss": judged.nll,
            "perplexity": judged.perplexity,
            "accuracy": judged.accuracy,
            "unigram_entropy": unigram_entropy,
        }

    return evaluate
