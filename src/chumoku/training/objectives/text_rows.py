"""Rows with texts as batches of ids: what the objectives on top of an encoder share.

A row is a mapping. Its texts are tokenised once, when a task is made, by the same calls as the
verbs use later: a special token that is spelled out in a text ("title [SEP] text") is one.

Shape letters: B batch, T position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import Batch
from chumoku.tasks.common import take
from chumoku.text.encoding import Encoding, Tokenizer
from chumoku.training.data.tables import naming, where_of
from chumoku.training.objectives.vocabulary import stacked
from chumoku.training.task import Examples, to_device

Row = Mapping[str, Any]

# ---- rows ----


def checked_rows(rows: Sequence[Row]) -> Sequence[Row]:
    """The rows. Raises InputError where there is none, or one is no mapping."""
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise InputError(f"row {number} is not a mapping but {type(row).__name__}")
    if not len(rows):
        raise InputError("there are no rows to learn from")
    return rows


def value_of(row: Row, name: str, number: int) -> Any:
    """row[name]. Raises InputError, naming the columns, where it is absent or None."""
    value = row.get(name)
    if value is None:
        raise InputError(
            f"{where_of(row, number)} has no {name!r}",
            where=name,
            advice=naming(name, row),
        )
    return value


def string_of(row: Row, name: str, number: int) -> str:
    """A text that is not empty. Raises InputError."""
    value = _text(row, name, number)
    if not value.strip():
        raise InputError(f"{name!r} of {where_of(row, number)} is empty")
    return value


def check_text(row: Row, number: int) -> None:
    """Raises InputError for a row without a "text". An empty one is a text: a line may be."""
    _text(row, "text", number)


def _text(row: Row, name: str, number: int) -> str:
    value = value_of(row, name, number)
    if not isinstance(value, str):
        kind = type(value).__name__
        raise InputError(f"{name!r} of {where_of(row, number)} is not a text but {kind}")
    return value


# ---- label names ----


def name_of(label: Any) -> str:
    """A label as a name: 3, 3.0 and "3" are one label."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip()


def sorted_names(names: Iterator[str] | Sequence[str]) -> tuple[str, ...]:
    """Each name once; whole numbers by their value, other names by their letters."""
    found = set(names)
    if all(name.removeprefix("-").isdecimal() for name in found):
        return tuple(sorted(found, key=lambda name: (int(name), name)))
    return tuple(sorted(found))


def number_of(label: Any, labels: Sequence[str], where: str) -> int:
    """Which class a row's label is: by name; where no name is a number, a number may be the class.

    where: the row, see where_of(). Raises InputError, with the known labels, for another.
    """
    name = name_of(label)
    if name in labels:
        return labels.index(name)
    whole = isinstance(label, int) and not isinstance(label, bool)
    numbered = any(one.removeprefix("-").isdecimal() for one in labels)
    if whole and not numbered and 0 <= label < len(labels):
        return int(label)
    known = ", ".join(labels[:20]) + (", …" if len(labels) > 20 else "")
    raise InputError(
        f"the label {label!r} of {where} is none of the model's: {known}",
        where="label",
        advice="a head is made for the labels of [data] train, unless [model] keep_head keeps the "
        "model's own: add rows with this label to --train, or leave it out of the others (from "
        "Python: load(…, new_head=True, labels=labels_of(rows)))",
    )


# ---- texts longer than the model ----

KEEP: Final = ("head", "tail", "head+tail")
HEAD_SHARE: Final = 0.25
"""Of the tokens kept by "head+tail", those from the beginning: 128 of 510 (1905.05583, 5.3.1)."""


def shorten(encoding: Encoding, limit: int, keep: str = "head") -> Encoding:
    """At most `limit` tokens; special ones stay, and the longer text of a pair is cut first.

    keep: which part of a text is left: its head, its tail, or both ends (Sun et al., 1905.05583,
    section 5.3.1). Raises InputError where there is no room beside the special tokens.
    """
    excess = len(encoding) - limit
    if excess <= 0:
        return encoding
    places: dict[int, list[int]] = {0: [], 1: []}
    for index, sequence in enumerate(encoding.sequences):
        if sequence is not None:
            places[sequence].append(index)
    sizes = [len(places[0]), len(places[1])]
    if excess > sum(sizes):
        raise InputError(f"{limit} tokens leave no room beside the special tokens")
    for _ in range(excess):
        sizes[0 if sizes[0] >= sizes[1] else 1] -= 1
    kept = {i for n, size in enumerate(sizes) for i in _ends(places[n], size, keep)}
    return take(encoding, [i for i, s in enumerate(encoding.sequences) if s is None or i in kept])


def _ends(places: Sequence[int], size: int, keep: str) -> list[int]:
    shares = {"head": size, "tail": 0, "head+tail": round(size * HEAD_SHARE)}
    head = size if size >= len(places) else shares[keep]
    return [*places[:head], *places[len(places) - (size - head) :]]


class Text(NamedTuple):
    """What is kept of an encoded text, or pair of texts."""

    ids_T: Tensor
    segments_T: Tensor


def text_of(encoding: Encoding) -> Text:
    return Text(*(torch.tensor(v, dtype=torch.int32) for v in (encoding.ids, encoding.segments)))


class Encoder:
    """Texts -> ids, cut to a limit. notes(): how many were cut, for the user."""

    def __init__(self, tokenizer: Tokenizer, limit: int, keep: str = "head") -> None:
        if keep not in KEEP:
            raise ConfigError(f"{keep!r} is not one of {', '.join(KEEP)}", where="keep")
        self.tokenizer, self.limit, self.keep = tokenizer, limit, keep
        self.encoded = self.cut = 0

    def __call__(self, text: str, pair: str | None = None) -> Text:
        encoding = self.tokenizer.encode(text, pair)
        fitted = shorten(encoding, self.limit, self.keep)
        self.encoded += 1
        self.cut += len(fitted) < len(encoding)
        return text_of(fitted)

    def notes(self) -> tuple[str, ...]:
        if not self.cut:
            return ()
        what = f"{self.cut} of {self.encoded} texts cut to {self.limit} tokens"
        return (f"{what}, keeping the {self.keep.replace('+', ' and the ')}",)


# ---- examples and batches ----


class Rows:
    """Examples that were made beforehand. notes: what was cut or left out, for the user."""

    def __init__(
        self, examples: Sequence[Any], lengths: Sequence[int], notes: Sequence[str] = ()
    ) -> None:
        self.examples, self.lengths, self.notes = examples, lengths, tuple(notes)

    def __len__(self) -> int:
        return len(self.examples)

    def length(self, index: int) -> int:
        return self.lengths[index]

    def example(self, index: int, epoch: int) -> Any:
        return self.examples[index]


class Padded(NamedTuple):
    """mask_BT: None where nothing is padded. segments_BT: None where all are 0."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    segments_BT: Tensor | None


def padded_texts(texts: Sequence[Text], pad: int) -> Padded:
    """Padded on the right to the longest."""
    ids_BT = stacked([text.ids_T for text in texts], pad).long()
    lengths_B = torch.tensor([len(text.ids_T) for text in texts])
    mask_BT = torch.arange(ids_BT.shape[1]) < lengths_B[:, None]
    segments_BT = stacked([text.segments_T for text in texts], 0).long()
    return Padded(
        ids_BT,
        None if bool(mask_BT.all()) else mask_BT,
        segments_BT if bool(segments_BT.any()) else None,
    )


def answer(model: nn.Module, batch: Any) -> Any:
    """What the head gives for a batch with ids_BT, mask_BT and segments_BT."""
    return model(batch.ids_BT, batch.mask_BT, batch=Batch(segments_BT=batch.segments_BT))


def in_batches(
    examples: Examples,
    collate: Callable[[Sequence[Any]], Any],
    batch_size: int,
    model: nn.Module,
) -> Iterator[tuple[list[int], Any]]:
    """(indices, batch) of all examples as of epoch 0, longest first, on the model's device."""
    device = next(model.parameters()).device
    order = sorted(range(len(examples)), key=lambda i: -examples.length(i))
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        yield indices, to_device(collate([examples.example(i, 0) for i in indices]), device)
