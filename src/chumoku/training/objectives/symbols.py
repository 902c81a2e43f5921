"""Masked pre-training on any sequence of symbols: the squares of a board, notes, amino acids.

There is no text and no tokenizer. Ids are places in a vocabulary: its symbols first, then the mask,
then the padding. All positions may be masked.

    vocabulary = symbols.collect(boards)
    loaded = chumoku.create(symbols.bert_config(vocabulary, length=81, width=128, …), "masked-lm")
    task = symbols.task(loaded, boards, vocabulary=vocabulary)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded
from chumoku.models import bert
from chumoku.tasks import common
from chumoku.training.data.tables import where_of
from chumoku.training.objectives import masked_lm
from chumoku.training.objectives.masked_lm import Masked, Masking
from chumoku.training.objectives.vocabulary import EVALUATION_SEED
from chumoku.training.task import Kind, Task, generator

Symbol = str | int
ADDED: Final = 2
"""Ids beyond the symbols: the mask, then the padding."""


def sequences_of(rows: Sequence[Any]) -> list[list[Symbol]]:
    """Lists of symbols, from lists, from rows with "symbols", and from strings.

    A string with spaces holds one symbol between two of them, any other one symbol a character.
    Raises InputError.
    """
    found = [_sequence_of(row, number) for number, row in enumerate(rows)]
    if not found:
        raise InputError("there are no sequences")
    return found


def _sequence_of(row: Any, number: int) -> list[Symbol]:
    value = row.get("symbols") if isinstance(row, Mapping) else row
    if isinstance(value, str):
        value = value.split() if " " in value.strip() else list(value.strip())
    fits = isinstance(value, list | tuple) and all(isinstance(s, str | int) for s in value)
    if not fits or not value:
        raise InputError(f"{where_of(row, number)} is no sequence of symbols: {value!r:.60}")
    return list(value)


def check_row(row: Any, number: int) -> None:
    """Raises InputError for a row that is no sequence."""
    _sequence_of(row, number)


def collect(rows: Sequence[Any]) -> tuple[Symbol, ...]:
    """Every symbol that occurs: numbers in their order, then strings in theirs."""
    seen = {symbol for row in sequences_of(rows) for symbol in row}
    return tuple(sorted(seen, key=lambda s: (isinstance(s, str), s)))


def files_of(
    rows: Sequence[Any], vocabulary: Sequence[Symbol] | None = None
) -> dict[str, list[Symbol]]:
    """What goes with the model as JSON: symbols.json, the symbols in the order of their ids.

    Hand them on as `vocabulary` to go on with the model on other rows.
    """
    return {"symbols.json": list(collect(rows) if vocabulary is None else vocabulary)}


def bert_config(vocabulary: Sequence[Symbol], length: int, **sizes: Any) -> bert.Config:
    """A BERT for sequences of at most `length` symbols. sizes: other fields of bert.Config."""
    mine = {
        "vocab_size": len(vocabulary) + ADDED,
        "max_positions": length,
        "num_segments": 1,
        "pad_id": len(vocabulary) + 1,
    }
    return bert.Config(**{**mine, **sizes})


class SymbolSequences:
    """Sequences of ids, masked anew in each epoch."""

    def __init__(self, sequences: Sequence[Tensor], masking: Masking, seed: int) -> None:
        self.sequences, self.masking, self.seed = sequences, masking, seed

    def __len__(self) -> int:
        return len(self.sequences)

    def length(self, index: int) -> int:
        return len(self.sequences[index])

    def example(self, index: int, epoch: int) -> Masked:
        ids_T = self.sequences[index].long()
        every_T = torch.arange(len(ids_T))
        rng = generator(self.seed, epoch, index)
        return masked_lm.mask_example(ids_T, every_T, self.masking, rng)


def task(
    loaded: Loaded,
    rows: Sequence[Any],
    *,
    vocabulary: Sequence[Symbol] | None = None,
    evaluation: Sequence[Any] | None = None,
    rate: float = 0.15,
    masked: float = 0.8,
    random: float = 0.1,
    max_predictions: int | None = None,
    evaluation_batch_size: int = 64,
    seed: int = 0,
) -> Task:
    """Learn to fill masked symbols in. rows: see sequences_of().

    vocabulary: in the order of the ids; default: what occurs in the rows. A random symbol is drawn
    from it. The rest: see Masking. Evaluation: as for masked tokens. Raises InputError for a symbol
    outside the vocabulary, for one that is too large for the model, and for sequences longer than
    the model; ConfigError.
    """
    masked_lm.check_head(loaded, masked_lm.HEADS)
    vocabulary = collect(rows) if vocabulary is None else tuple(vocabulary)
    number = {symbol: n for n, symbol in enumerate(vocabulary)}
    if len(number) < len(vocabulary):
        raise ConfigError("a symbol occurs twice", where="vocabulary")
    if len(vocabulary) + ADDED > loaded.config.vocab_size:
        raise InputError(
            f"{len(vocabulary)} symbols, mask and padding need a vocabulary of "
            f"{len(vocabulary) + ADDED}, the model has {loaded.config.vocab_size}",
            advice="create the model with symbols.bert_config(vocabulary, length)",
        )
    limit = common.limit_of(loaded)
    places = torch.arange(len(vocabulary))
    masking = Masking(
        len(vocabulary), places, rate, masked, random, max_predictions=max_predictions
    )

    def examples(some: Sequence[Any], seed: int) -> SymbolSequences:
        found = []
        for place, sequence in enumerate(sequences_of(some)):
            row = where_of(some[place], place)
            unknown = next((s for s in sequence if s not in number), None)
            if unknown is not None:
                raise InputError(f"{row} has {unknown!r}, which is not in the vocabulary")
            if limit is not None and len(sequence) > limit:
                raise InputError(f"{row} has {len(sequence)} symbols, the model takes {limit}")
            found.append(torch.tensor([number[s] for s in sequence], dtype=torch.int32))
        return SymbolSequences(found, masking, seed)

    gather = partial(masked_lm.collate, pad=len(vocabulary) + 1)
    evaluate = None
    if evaluation is not None:
        held_out = examples(evaluation, EVALUATION_SEED)
        evaluate = masked_lm.evaluator(held_out, gather, evaluation_batch_size)
    return Task(
        examples=examples(rows, seed), collate=gather, loss=masked_lm.loss, evaluate=evaluate
    )


KIND: Final = Kind("masked-lm", task, check_row, files_of=files_of)
