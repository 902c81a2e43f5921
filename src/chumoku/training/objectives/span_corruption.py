"""Span corruption (Raffel et al., 1910.10683, section 3.1.4): T5's pre-training.

Spans of a text are dropped; each leaves one sentinel token behind. The target is the sentinels,
each followed by its span. 15% of the tokens are dropped, in spans of 3 on average.

    text    the cat sat on the old mat today
    input   the <0> on the old <1> </s>
    target  <0> cat sat <1> mat today </s>

The paper's figure closes the target with one more sentinel; the published code does not, and
counts its lengths without. Here `closing` chooses; the default is the code's.

Shape letters: L tokens of the raw text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.text.encoding import Tokenizer
from chumoku.training.data.packing import Packed, Packer
from chumoku.training.data.streaming import Changed, Each, RowStream, Stage, Streamed
from chumoku.training.objectives import encoded, seq2seq
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.seq2seq import Example
from chumoku.training.objectives.text_rows import check_text
from chumoku.training.objectives.vocabulary import EVALUATION_SEED
from chumoku.training.task import Kind, Task, generator

DENSITY: Final = 0.15
MEAN_SPAN: Final = 3.0

# ---- how many, and where ----


class Counts(NamedTuple):
    """noise: tokens that are dropped. spans: in how many pieces."""

    noise: int
    spans: int


def counts(length: int, density: float = DENSITY, mean_span: float = MEAN_SPAN) -> Counts:
    """noise = round(L * density), spans = round(noise / mean), each at least 1 (half to even).

    Something is always kept, and each span has a kept one before it. length: at least 2.
    """
    noise = min(max(round(length * density), 1), length - 1)
    spans = max(round(noise / mean_span), 1)
    return Counts(noise, min(spans, noise, length - noise))


def lengths(
    raw: int,
    density: float = DENSITY,
    mean_span: float = MEAN_SPAN,
    *,
    closing: bool = False,
) -> tuple[int, int]:
    """(input, target) made of `raw` tokens: a sentinel for each span, and an end token each."""
    noise, spans = counts(raw, density, mean_span)
    return raw - noise + spans + 1, noise + spans + closing + 1


def raw_length(input_length: int, density: float = DENSITY, mean_span: float = MEAN_SPAN) -> int:
    """The most raw tokens whose input has at most `input_length` (512: 568, the target 114)."""
    raw = max(input_length - 2, 2)
    while lengths(raw + 1, density, mean_span)[0] <= input_length:
        raw += 1
    return raw


def span_mask(
    length: int, rng: torch.Generator, density: float = DENSITY, mean_span: float = MEAN_SPAN
) -> Tensor:
    """True where a token is dropped, [L]. Kept and dropped spans alternate; a kept one is first.

    Of all ways to cut the kept and the dropped tokens into that many spans, each is as likely.
    """
    noise, spans = counts(length, density, mean_span)
    kept = _random_parts(length - noise, spans, rng)
    dropped = _random_parts(noise, spans, rng)
    sizes = torch.stack([kept, dropped], dim=1).flatten()
    return torch.tensor([False, True]).repeat(spans).repeat_interleave(sizes)


def _random_parts(total: int, parts: int, rng: torch.Generator) -> Tensor:
    """`parts` whole numbers of at least 1 that add up to `total`."""
    cuts = torch.randperm(total - 1, generator=rng)[: parts - 1].sort().values + 1
    edges = torch.cat([torch.tensor([0]), cuts, torch.tensor([total])])
    return edges.diff()


# ---- what becomes of a text ----


def corrupt(
    ids: Sequence[int], dropped: Sequence[bool], sentinels: Sequence[int], *, closing: bool = False
) -> tuple[list[int], list[int]]:
    """(input, target), both without an end token. Raises InputError where sentinels run out."""
    kept: list[int] = []
    target: list[int] = []
    used = 0
    before = False
    for index, gone in zip(ids, dropped, strict=True):
        if gone and not before:
            if used == len(sentinels):
                raise _too_few(used + 1, len(sentinels))
            kept.append(sentinels[used])
            target.append(sentinels[used])
            used += 1
        (target if gone else kept).append(index)
        before = gone
    if closing:
        if used == len(sentinels):
            raise _too_few(used + 1, len(sentinels))
        target.append(sentinels[used])
    return kept, target


def _too_few(needed: int, there: int) -> InputError:
    return InputError(
        f"{needed} sentinels are needed, the tokenizer has {there}",
        advice="shorten length, raise mean_span, or add <extra_id_…> tokens to the tokenizer",
    )


def restore(kept: Sequence[int], target: Sequence[int], sentinels: Sequence[int]) -> list[int]:
    """The text again: each sentinel of the input gives way to its span in the target."""
    known = set(sentinels)
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for index in target:
        if index in known:
            current = spans.setdefault(index, [])
        else:
            current.append(index)
    text: list[int] = []
    for index in kept:
        text += spans.get(index, []) if index in known else [index]
    return text


def sentinels_of(tokenizer: Tokenizer) -> list[int]:
    """Ids of <extra_id_0>, <extra_id_1>, … as far as they go. Raises InputError for none."""
    found: list[int] = []
    while (index := tokenizer.token_to_id(f"<extra_id_{len(found)}>")) is not None:
        found.append(index)
    if not found:
        raise InputError(
            "the tokenizer has no sentinels",
            advice="span corruption needs the tokens <extra_id_0>, <extra_id_1>, …",
        )
    return found


# ---- the task ----


class Corruption(NamedTuple):
    sentinels: Sequence[int]
    end: int
    density: float = DENSITY
    mean_span: float = MEAN_SPAN
    closing: bool = False


def corrupted(ids_L: Tensor, how: Corruption, rng: torch.Generator) -> Example:
    """Input and target of at least two tokens of a text."""
    dropped = span_mask(len(ids_L), rng, how.density, how.mean_span)
    kept, target = corrupt(ids_L.tolist(), dropped.tolist(), how.sentinels, closing=how.closing)
    return Example(torch.tensor([*kept, how.end]), torch.tensor([*target, how.end]))


class CorruptedTexts:
    """Pieces of texts, corrupted anew in each epoch."""

    def __init__(self, pieces: Sequence[Tensor], how: Corruption, seed: int) -> None:
        if not pieces:
            raise InputError("no text has two tokens, so none can be corrupted")
        self.pieces, self.how, self.seed = pieces, how, seed

    def __len__(self) -> int:
        return len(self.pieces)

    def length(self, index: int) -> int:
        how = self.how
        raw = len(self.pieces[index])
        return max(lengths(raw, how.density, how.mean_span, closing=how.closing))

    def example(self, index: int, epoch: int) -> Example:
        return corrupted(self.pieces[index], self.how, generator(self.seed, epoch, index))


def cut(texts: Sequence[Sequence[int]], length: int, join: bool) -> list[Tensor]:
    """Pieces of `length` tokens, the last of a text shorter; one token alone makes none.

    join: texts are put end to end first, as published. Else a short text of one dropped span (up to
    about 30 tokens) always loses its end, because a kept span comes first.
    """
    if join:
        texts = [[i for ids in texts for i in ids]]
    pieces = [
        torch.tensor(ids[start : start + length], dtype=torch.int32)
        for ids in texts
        for start in range(0, len(ids), length)
    ]
    return [piece for piece in pieces if len(piece) > 1]


def task(
    loaded: Loaded,
    texts: Sequence[Any] | RowStream,
    *,
    evaluation: Sequence[Any] | None = None,
    length: int | None = None,
    join: bool = True,
    density: float = DENSITY,
    mean_span: float = MEAN_SPAN,
    closing: bool = False,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to give dropped spans back. texts: strings, or rows with a "text", or a stream of
    them.

    length: of the corrupted input, its end token included (default: what the model takes, at most
    512). join, closing: see cut() and the head of this file. Evaluation, on one fixed corruption:
    loss, perplexity and accuracy of the target's tokens. Raises InputError, ConfigError.
    """
    check_head(loaded, ("conditional-generation",))
    if not 0.0 < density < 1.0:
        raise ConfigError(f"must be between 0 and 1, it is {density}", where="density")
    if mean_span < 1.0:
        raise ConfigError(f"must be at least 1, it is {mean_span}", where="mean_span")
    tokenizer = encoded.checked_tokenizer(loaded)
    length = encoded.checked_length(loaded, length, 4)
    raw = raw_length(length, density, mean_span)
    config = loaded.config
    how = Corruption(sentinels_of(tokenizer), config.eos_ids[0], density, mean_span, closing)
    needed = counts(raw, density, mean_span).spans + closing
    if needed > len(how.sentinels):
        raise _too_few(needed, len(how.sentinels))

    def examples(some: Sequence[Any], what: str, seed: int) -> CorruptedTexts:
        ids = encoded.encode_ids(tokenizer, encoded.checked_texts(some, what), progress)
        return CorruptedTexts(cut(ids, raw, join), how, seed)

    def streamed(stream: RowStream) -> Streamed:
        def ids_of(row: Any) -> list[int]:
            return tokenizer.encode_plain(row["text"])

        def pieces(row: Any) -> list[Tensor]:
            return cut([ids_of(row)], raw, join=False)

        def dropped(piece: Packed | Tensor, rng: torch.Generator) -> list[Example]:
            ids_L = piece.ids_T if isinstance(piece, Packed) else piece
            return [corrupted(ids_L, how, rng)] if len(ids_L) > 1 else []

        def stage() -> Stage:
            return Changed(Packer(ids_of, raw) if join else Each(pieces), dropped, seed)

        return Streamed(stream.open, stage, stream.examples, tokens=length)

    pad = tokenizer.pad_id if config.pad_id is None else config.pad_id
    gather = partial(seq2seq.collate, pad=pad or 0, start=config.start_id)
    evaluate = None
    if evaluation is not None:
        held_out = examples(evaluation, "evaluation text", EVALUATION_SEED)
        evaluate = seq2seq.evaluator(held_out, gather, evaluation_batch_size)
    return Task(
        examples=streamed(texts)
        if isinstance(texts, RowStream)
        else examples(texts, "training text", seed),
        collate=gather,
        loss=seq2seq.loss,
        evaluate=evaluate,
        tokens=seq2seq.tokens,
    )


KIND: Final = Kind("conditional-generation", task, check_text, column="text", streams=True)
