"""What the verbs share: which model answers, and how texts become batches of ids.

Shape letters: B batch, T position.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import torch
from torch import Tensor

from chumoku.checkpoints.defaults import TOYS, default_model, detect_language
from chumoku.errors import InputError, UnreachableError
from chumoku.layers.attention import Batch
from chumoku.loading import Loaded, load
from chumoku.text.encoding import Encoding, Tokenizer

log = logging.getLogger("chumoku.tasks")

ModelLike = str | os.PathLike[str] | Loaded | None
"""A source, a model that is already loaded, or None for the verb's default."""

HEADS: Final = {
    "fill-mask": "masked-lm",
    "classify": "classification",
    "zero-shot": "classification",
    "ner": "token-classification",
    "qa": "question-answering",
    "next-sentence": "next-sentence",
    "multiple-choice": "multiple-choice",
    "rerank": "classification",
}
"""The head that a verb needs; verbs that are not here take the head the file was published for."""

T = TypeVar("T")


def ready(model: ModelLike, verb: str, text: str = "", lang: str | None = None) -> Loaded:
    """The model that answers: as given, or the verb's default for the language of the text."""
    if isinstance(model, Loaded):
        needed = HEADS.get(verb)
        both = ("masked-lm", "next-sentence") if model.head == "pre-training" else (model.head,)
        if needed is not None and needed not in both:
            raise InputError(
                f"{verb} needs a model with head {needed!r}, this one has {model.head!r}",
                advice=f"load it with head={needed!r}",
            )
        return model
    if model is None:
        language = lang or detect_language(text)
        loaded = load_default(verb, language, lambda source: _cached_load(source, verb))
        for note in loaded.source.notes:
            log.warning("%s", note)
        return loaded
    return _cached_load(os.fspath(model), verb)


def load_default(verb: str, language: str, how: Callable[[str], Loaded]) -> Loaded:
    """The model of a verb and a language, loaded by how(source).

    Where it is neither here nor reachable, the toy that comes with the package, if there is one for
    the verb and the language; its notes then say so. UnreachableError: there is none.
    """
    wanted = default_model(verb, language).source
    try:
        return how(wanted)
    except UnreachableError:
        toy = TOYS.get((verb, language))
        if toy is None:
            raise
    loaded = how(toy)
    note = (
        f"{wanted} is not here and cannot be fetched now, so {toy} answers, a toy. "
        f"Once there is a network: chumoku models pull {wanted}"
    )
    return replace(loaded, source=replace(loaded.source, notes=(note, *loaded.source.notes)))


def _cached_load(source: str, verb: str) -> Loaded:
    return _loaded(source, HEADS.get(verb), _state(Path(source)))


@functools.lru_cache(maxsize=4)
def _loaded(source: str, head: str | None, state: tuple[object, ...]) -> Loaded:
    """Models stay in memory between calls of the same process, until their files change."""
    return load(source, head=head)


def _state(path: Path) -> tuple[object, ...]:
    """Name, size and time of the files of a local source; empty for a name."""
    if not path.exists():
        return ()
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.is_file())
    found = ((f.name, f.stat()) for f in files)
    return tuple((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)


def tokenizer_of(loaded: Loaded) -> Tokenizer:
    """The tokenizer, or InputError where the checkpoint came without one."""
    if loaded.tokenizer is None:
        raise InputError(
            "this model has no tokenizer files, and the task needs text",
            where=loaded.source.origin,
            advice="add tokenizer.json (or vocab.txt, merges.txt, …) to its folder",
        )
    return loaded.tokenizer


def many(texts: str | Sequence[str]) -> tuple[list[str], bool]:
    """A list of texts, and whether a single one was given. Raises InputError for empty input."""
    single = isinstance(texts, str)
    items = [texts] if isinstance(texts, str) else list(texts)
    for number, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError(f"item {number} is not a text but {type(item).__name__}")
        if not item.strip():
            raise InputError("the text is empty" if single else f"text {number} is empty")
    if not items:
        raise InputError("there is no text")
    return items, single


# ---- lengths ----


def limit_of(loaded: Loaded) -> int | None:
    """The most tokens that the model takes; None where its positions have no end."""
    positions: int | None = getattr(loaded.config, "max_positions", None)
    tokens = None if loaded.tokenizer is None else loaded.tokenizer.max_length
    first = getattr(loaded.config, "first_position", 0)
    limits = [n for n in (None if positions is None else positions - first, tokens) if n]
    return min(limits) if limits else None


def fit(encoding: Encoding, limit: int | None, truncate: bool) -> Encoding:
    """The encoding, cut to `limit` tokens if allowed. Raises InputError where it is not."""
    if limit is None or len(encoding) <= limit:
        return encoding
    if not truncate:
        raise InputError(
            f"the text has {len(encoding)} tokens, the model takes {limit}",
            advice="shorten the text, or allow truncate=True (--truncate)",
        )
    return shorten(encoding, limit)


def shorten(encoding: Encoding, limit: int) -> Encoding:
    """Drop tokens from the end of the longer text until `limit` remain; specials stay."""
    places: dict[int, list[int]] = {0: [], 1: []}
    for index, sequence in enumerate(encoding.sequences):
        if sequence is not None:
            places[sequence].append(index)
    excess = len(encoding) - limit
    if excess > len(places[0]) + len(places[1]):
        raise InputError(f"{limit} tokens leave no room beside the special tokens")
    for _ in range(max(excess, 0)):
        places[0 if len(places[0]) >= len(places[1]) else 1].pop()
    kept = {*places[0], *places[1]}
    keep = [i for i, s in enumerate(encoding.sequences) if s is None or i in kept]
    return take(encoding, keep)


def take(encoding: Encoding, indices: Sequence[int]) -> Encoding:
    """The encoding with only these tokens."""
    return replace(
        encoding,
        ids=[encoding.ids[i] for i in indices],
        tokens=[encoding.tokens[i] for i in indices],
        offsets=[encoding.offsets[i] for i in indices],
        words=[encoding.words[i] for i in indices],
        sequences=[encoding.sequences[i] for i in indices],
        segments=[encoding.segments[i] for i in indices],
        special=[encoding.special[i] for i in indices],
    )


# ---- batches ----


@dataclass(frozen=True)
class Inputs:
    """Padded ids on the model's device; mask_BT is None where nothing is padded."""

    ids_BT: Tensor
    mask_BT: Tensor | None
    batch: Batch


def collate(encodings: Sequence[Encoding], loaded: Loaded) -> Inputs:
    """Pad on the right to the longest of these encodings."""
    length = max(len(e) for e in encodings)
    pad = 0 if loaded.tokenizer is None else loaded.tokenizer.pad_id or 0
    ids = torch.full((len(encodings), length), pad)
    segments = torch.zeros_like(ids)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for row, encoding in enumerate(encodings):
        ids[row, : len(encoding)] = torch.tensor(encoding.ids)
        segments[row, : len(encoding)] = torch.tensor(encoding.segments)
        mask[row, : len(encoding)] = True
    device = loaded.device
    return Inputs(
        ids.to(device),
        None if bool(mask.all()) else mask.to(device),
        Batch(segments_BT=segments.to(device) if bool(segments.any()) else None),
    )


def by_length(encodings: Sequence[Encoding], batch_size: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, so that little is padded."""
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, it is {batch_size}")
    order = sorted(range(len(encodings)), key=lambda i: -len(encodings[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


def run(loaded: Loaded, inputs: Inputs) -> Tensor:
    """model(ids, mask, batch) without gradients, in float32 or wider; one tensor of answers."""
    with torch.inference_mode():
        answer = loaded.model(inputs.ids_BT, inputs.mask_BT, batch=inputs.batch)
    first: Tensor = answer if isinstance(answer, Tensor) else answer[0]
    return first.to(torch.promote_types(first.dtype, torch.float32))
