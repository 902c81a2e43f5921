"""Causal language modelling: -sum over t of log P(x[t+1] | x[1..t]) (2207.09238, algorithm 13).

Texts are put end to end in one stream, and an example is a window of it. `separate` keeps documents
apart in a window: attention stays inside a document, and its first token is nobody's target.
Without it a window is read as one text, as nanoGPT and GPT-2 do.

Shape letters: B batch, T position, D model width, M positions with a target, V vocabulary,
N tokens of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.generation.generate import generate
from chumoku.generation.settings import Settings
from chumoku.layers.attention import Batch
from chumoku.loading import Loaded
from chumoku.text.encoding import Tokenizer
from chumoku.training.data.packing import Packed, Packer
from chumoku.training.data.streaming import Changed, RowStream, Stage, Streamed
from chumoku.training.objectives import encoded
from chumoku.training.objectives.encoded import Frame, Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.text_rows import check_text
from chumoku.training.objectives.vocabulary import (
    Picked,
    cross_entropy,
    evaluation_batches,
    judge,
    picked,
    places_of,
    stacked,
)
from chumoku.training.task import IGNORED, Examples, Kind, Loss, Task, generator

# ---- rows, batches, and the loss ----


class Row(NamedTuple):
    """targets_T: the token that follows each of ids_T, or IGNORED.

    sequences_T: the document's number; None where the row is one text.
    """

    ids_T: Tensor
    targets_T: Tensor
    sequences_T: Tensor | None = None


class CausalBatch(NamedTuple):
    """places_M: positions with a target in the flattened [B * T]; None: every position has one."""

    ids_BT: Tensor
    sequences_BT: Tensor | None
    places_M: Tensor | None
    targets_M: Tensor


PADDING: Final = -1
"""Sequence number of padding."""


def row_of(ids: Tensor, documents: Tensor | None = None) -> Row:
    """T + 1 tokens -> T inputs and their targets. A document's first token is not predicted."""
    ids_T, targets_T = ids[:-1].long(), ids[1:].long()
    if documents is None or bool((documents == documents[0]).all()):
        return Row(ids_T, targets_T)
    targets_T = torch.where(documents[1:] == documents[:-1], targets_T, IGNORED)
    return Row(ids_T, targets_T, documents[:-1].long())


def collate(rows: Sequence[Row]) -> CausalBatch:
    """Padded on the right, which no token sees; hence there is no mask."""
    sequences: Tensor | None = None
    if any(row.sequences_T is not None for row in rows):
        own = [torch.zeros_like(r.ids_T) if r.sequences_T is None else r.sequences_T for r in rows]
        sequences = stacked(own, PADDING)
    places_M, targets_M = places_of(stacked([row.targets_T for row in rows], IGNORED))
    return CausalBatch(stacked([row.ids_T for row in rows], 0), sequences, places_M, targets_M)


def predictions(model: Any, batch: CausalBatch) -> Picked:
    """Logits where there is a target, and the targets."""
    hidden_BTD = model.hidden(batch.ids_BT, batch=Batch(sequences_BT=batch.sequences_BT))
    return Picked(model.unembed(picked(hidden_BTD, batch.places_M)), batch.targets_M)


def loss(model: nn.Module, batch: CausalBatch) -> Loss:
    """-sum log P(next token); units: how many targets there are."""
    logits_MV, targets_M = predictions(model, batch)
    return Loss(cross_entropy(logits_MV, targets_M), targets_M.new_tensor(targets_M.numel()))


# ---- the stream and its windows ----


@dataclass(frozen=True, eq=False)
class Stream:
    """ids_N of all texts, end to end. documents_N: number of each token's text; None: one text."""

    ids_N: Tensor
    documents_N: Tensor | None

    def __len__(self) -> int:
        return len(self.ids_N)


def stream_of(texts: Sequence[Sequence[int]], separate: bool) -> Stream:
    """Ids of texts -> one stream. Raises InputError for fewer than two tokens."""
    ids_N = torch.tensor([i for ids in texts for i in ids], dtype=torch.int32)
    if len(ids_N) < 2:
        raise InputError("the texts have fewer than two tokens, so there is nothing to predict")
    if not separate or len(texts) == 1:
        return Stream(ids_N, None)
    lengths = torch.tensor([len(ids) for ids in texts])
    numbers = torch.arange(len(texts), dtype=torch.int32)
    return Stream(ids_N, numbers.repeat_interleave(lengths))


ORDERS: Final = ("each", "random", "fixed")


class Windows:
    """Windows of `length` targets.

    order "each": one after another, from an offset that differs in each epoch, the end joined to
    the beginning; every window is full, and fewer than `length` tokens are left out of an epoch.
    "random": each begins anywhere (nanoGPT's). "fixed": one after another from the first token,
    each target once, the last window shorter.
    """

    def __init__(self, stream: Stream, length: int, order: str, seed: int) -> None:
        if order not in ORDERS:
            raise ConfigError(f"{order!r} is not one of {', '.join(ORDERS)}", where="order")
        self.stream, self.order, self.seed = stream, order, seed
        self.width = min(length, len(stream) - 1)

    def __len__(self) -> int:
        if self.order == "fixed":
            return math.ceil((len(self.stream) - 1) / self.width)
        return len(self.stream) // self.width

    def length(self, index: int) -> int:
        if self.order == "fixed":
            return min(self.width, len(self.stream) - 1 - index * self.width)
        return self.width

    def example(self, index: int, epoch: int) -> Row:
        N, T = len(self.stream), self.width
        if self.order == "fixed":
            return self._row(index * T, min(index * T + T + 1, N))
        if self.order == "random":
            rng = generator(self.seed, epoch, index)
            start = int(torch.randint(N - T, (), generator=rng))
        else:
            rng = generator(self.seed, epoch, -1)
            start = (int(torch.randint(N, (), generator=rng)) + index * T) % N
        return self._row(start, start + T + 1)

    def _row(self, start: int, end: int) -> Row:
        ids_N, documents_N, N = self.stream.ids_N, self.stream.documents_N, len(self.stream)
        if end <= N:
            numbers = None if documents_N is None else documents_N[start:end]
            return row_of(ids_N[start:end], numbers)
        if documents_N is None:
            documents_N = torch.zeros(N, dtype=torch.int32)
        joined = torch.cat([documents_N[start:], documents_N[: end - N] + documents_N[-1] + 1])
        return row_of(torch.cat([ids_N[start:], ids_N[: end - N]]), joined)


@dataclass(frozen=True, eq=False)
class Some:
    """Part of the examples: those at `indices`."""

    examples: Examples
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def length(self, index: int) -> int:
        return self.examples.length(self.indices[index])

    def example(self, index: int, epoch: int) -> Any:
        return self.examples.example(self.indices[index], epoch)


def spread(examples: Examples, limit: int | None) -> Some:
    """At most `limit` of the examples, evenly spaced."""
    count = len(examples) if limit is None else min(limit, len(examples))
    return Some(examples, [n * len(examples) // count for n in range(count)])


# ---- the task ----


class Framed:
    """A text's ids in the tokenizer's frame; end: closed by the end token, where there is one.

    A text without a token has no frame either.
    """

    def __init__(self, tokenizer: Tokenizer, end: bool) -> None:
        frame: Frame = encoded.frame_of(tokenizer)
        self.tokenizer, self.before, self.after = tokenizer, frame.before, frame.after
        if end and tokenizer.eos_id is not None and tokenizer.eos_id not in self.after:
            self.after = (*self.after, tokenizer.eos_id)

    def __call__(self, text: str) -> list[int]:
        ids = self.tokenizer.encode_plain(text)
        return [*self.before, *ids, *self.after] if ids else []


def documents(
    tokenizer: Tokenizer, texts: Sequence[str], end: bool, progress: Progress | None = None
) -> list[list[int]]:
    """Each text in its frame; those without a token are left out."""
    framed = Framed(tokenizer, end)
    found = (framed(text) for text in encoded.reported(texts, progress, "tokenising"))
    return [ids for ids in found if ids]


def task(
    loaded: Loaded,
    texts: Sequence[Any] | RowStream,
    *,
    evaluation: Sequence[Any] | None = None,
    length: int | None = None,
    separate: bool = True,
    order: str = "each",
    end: bool = True,
    evaluation_limit: int | None = None,
    evaluation_batch_size: int = 32,
    sample_prompt: str = "",
    sample_tokens: int = 100,
    sample_temperature: float = 0.8,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to go on with a text. texts: strings, or rows with a "text", or a stream of such rows,
    whose windows follow each other ("each", from the first token on in every epoch).

    length: targets of a window (default: what the model takes). separate, end: see the head of this
    file, and documents(). order: "each" or "random", see Windows. evaluation_limit: most windows of
    the evaluation, evenly spaced; default: all.
    Evaluation gives loss, perplexity and accuracy of the next token, and bits_per_byte and
    bits_per_character (end tokens are paid for too) where no text was lost to the unknown token.
    sample_*: the text to show while training; temperature 0 is greedy. Raises InputError,
    ConfigError.
    """
    check_head(loaded, ("causal-lm",))
    tokenizer = encoded.checked_tokenizer(loaded)
    length = encoded.checked_length(loaded, length, 2)

    def stream(some: Sequence[str]) -> Stream:
        return stream_of(documents(tokenizer, some, end, progress), separate)

    evaluate = None
    if evaluation is not None:
        held_out = encoded.checked_texts(evaluation, "evaluation text")
        judged = stream(held_out)
        windows = spread(Windows(judged, length, "fixed", 0), evaluation_limit)
        sizes = text_sizes(tokenizer, held_out, judged)
        evaluate = evaluator(windows, evaluation_batch_size, sizes)
    examples: Examples
    if isinstance(texts, RowStream):
        if order != "each":
            raise ConfigError('the windows of a stream follow each other: "each"', where="order")
        framed = Framed(tokenizer, end)
        first = next((ids for row in texts.first(10) if (ids := framed(row["text"]))), [0])[0]
        examples = streamed(texts, framed, length, separate)
    else:
        trained = stream(encoded.checked_texts(texts, "training text"))
        first = int(trained.ids_N[0])
        examples = Windows(trained, length, order, seed)
    sampler = Sampler(tokenizer, sample_prompt, first, sample_tokens, sample_temperature, seed)
    return Task(
        examples=examples,
        collate=collate,
        loss=loss,
        evaluate=evaluate,
        sample=sampler,
    )


KIND: Final = Kind("causal-lm", task, check_text, column="text", streams=True)


def streamed(texts: RowStream, framed: Framed, length: int, separate: bool) -> Streamed:
    """Windows of `length` targets, cut out of the documents of a stream end to end."""

    def window(packed: Packed, rng: torch.Generator) -> list[Row]:
        return [row_of(packed.ids_T, packed.sequences_T if separate else None)]

    def stage() -> Stage:
        packer = Packer(lambda row: framed(row["text"]), length + 1, overlap=1)
        return Changed(packer, window)

    return Streamed(texts.open, stage, texts.examples, tokens=length)


class Sizes(NamedTuple):
    """Of the text whose tokens are predicted: bytes of UTF-8 and code points for each target."""

    bytes_per_target: float
    characters_per_target: float


def text_sizes(tokenizer: Tokenizer, texts: Sequence[str], stream: Stream) -> Sizes | None:
    """None where a token is unknown: what it stood for is not predicted.

    A text's first token is no target unless special tokens go before it; its text is not counted.
    """
    unknown = tokenizer.unk_id
    if unknown not in (None, tokenizer.eos_id) and bool((stream.ids_N == unknown).any()):
        return None
    texts = [text for text in texts if text]
    unpaid: list[str] = []
    if not encoded.frame_of(tokenizer).before:
        firsts = texts if stream.documents_N is not None else texts[:1]
        unpaid = [_first_token(tokenizer, text) for text in firsts]
    numbers = stream.documents_N
    starts = 1 if numbers is None else 1 + int((numbers[1:] != numbers[:-1]).sum())
    targets = len(stream) - starts
    octets = sum(len(t.encode()) for t in texts) - sum(len(t.encode()) for t in unpaid)
    characters = sum(map(len, texts)) - sum(map(len, unpaid))
    return Sizes(octets / targets, characters / targets) if targets and characters > 0 else None


def _first_token(tokenizer: Tokenizer, text: str) -> str:
    """The text that the first token stands for; a part of a character counts as all of it."""
    offsets = tokenizer.encode(text[:200], special=False, parse_special=False).offsets
    return text[: offsets[0][1]] if offsets else ""


def evaluator(
    examples: Examples, batch_size: int, sizes: Sizes | None = None
) -> Callable[[nn.Module], dict[str, float]]:
    """Metrics over the targets of these examples."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        batches = evaluation_batches(examples, collate, batch_size, model)
        judged = judge(predictions(model, batch) for batch in batches)
        metrics = {
            "loss": judged.nll,
            "perplexity": judged.perplexity,
            "accuracy": judged.accuracy,
        }
        if sizes is not None:
            bits = judged.nll / math.log(2.0)
            metrics["bits_per_byte"] = bits / sizes.bytes_per_target
            metrics["bits_per_character"] = bits / sizes.characters_per_target
        return metrics

    return evaluate


@dataclass(frozen=True)
class Sampler:
    """model -> a text that it makes, the prompt included; the same numbers are drawn each time.

    first: the token to begin with where there is no prompt and no special token to begin with.
    """

    tokenizer: Tokenizer
    prompt: str
    first: int
    tokens: int
    temperature: float
    seed: int

    def __call__(self, model: Any) -> str:
        tokenizer = self.tokenizer
        ids = [*encoded.frame_of(tokenizer).before, *tokenizer.encode_plain(self.prompt)]
        if not ids:
            ids = [self.first if tokenizer.eos_id is None else tokenizer.eos_id]
        settings = Settings(
            max_new_tokens=self.tokens,
            do_sample=self.temperature > 0.0,
            temperature=self.temperature,
            seed=self.seed,
            eos_token_id=() if tokenizer.eos_id is None else (tokenizer.eos_id,),
        )
        (made,) = generate(model, [ids], settings, tokenizer=tokenizer)
        return self.prompt + (made.text or "")
