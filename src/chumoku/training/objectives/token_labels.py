"""Which label each token has: labels of characters, carried to tokens and back.

Labels belong to characters: those of the words given, or of the entities marked in a text. A token
takes the label of the characters that it stands for, found by its offsets. So a Japanese tokenizer
may cut words as it likes, and where it cuts across a label's border, that is counted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple

from chumoku.checkpoints.defaults import detect_language
from chumoku.errors import InputError
from chumoku.text.encoding import Encoding
from chumoku.training.data.tables import where_of
from chumoku.training.objectives.text_rows import Row, name_of, string_of, value_of
from chumoku.training.task import IGNORED

OUTSIDE: Final = "O"
ENTITY_TAG: Final = re.compile(r"O|[BI]-.+")

# ---- labels of characters ----


class Span(NamedTuple):
    """Code points [start, end) of the text, and the label of its first token; `inside`: of others.

    word: which of the words given it is; -1 for an entity.
    """

    start: int
    end: int
    label: str
    inside: str
    word: int = -1


@dataclass(frozen=True)
class Labelled:
    """A text with its spans in order. words: how many words were given; 0: entities were."""

    text: str
    spans: tuple[Span, ...]
    words: int = 0


def labelled(row: Row, number: int, joiner: str | None = None) -> Labelled:
    """A row as characters with labels. See task() for the two forms of a row. Raises InputError.

    joiner: between two words; default: a space, and nothing in a Japanese text.
    """
    if row.get("words") is None:
        return _of_entities(row, number)
    where = where_of(row, number)
    words, tags = value_of(row, "words", number), value_of(row, "tags", number)
    if isinstance(words, str) and isinstance(tags, str):
        words, tags = words.split(), tags.split()
    if len(words) != len(tags):
        raise InputError(f"{where} has {len(words)} words and {len(tags)} tags", where="tags")
    words = [str(word) for word in words]
    if not any(word.strip() for word in words):
        raise InputError(f"{where} has no words", where="words")
    if joiner is None:
        joiner = "" if detect_language("".join(words)) == "ja" else " "
    spans, place = [], 0
    for index, (word, tag) in enumerate(zip(words, tags, strict=True)):
        label = name_of(tag)
        spans.append(Span(place, place + len(word), label, _inside(label), index))
        place += len(word) + len(joiner)
    return Labelled(joiner.join(words), tuple(spans), len(words))


def _of_entities(row: Row, number: int) -> Labelled:
    text, where = string_of(row, "text", number), where_of(row, number)
    spans = []
    for entity in value_of(row, "entities", number):
        try:
            (start, end), kind = _ends_of(entity), str(entity["type"])
        except (KeyError, TypeError, ValueError):
            raise InputError(
                f"an entity of {where} is not {{start, end, type}} but {entity!r:.80}",
                where="entities",
                advice="start and end may also be given as span: [start, end]",
            ) from None
        if not 0 <= start < end <= len(text):
            raise InputError(
                f"the entity {start} to {end} of {where} is not in its {len(text)} characters",
                where="entities",
                advice="start and end count code points from 0; end is the first one behind it",
            )
        spans.append(Span(start, end, f"B-{kind}", f"I-{kind}"))
    spans.sort()
    for one, other in pairwise(spans):
        if other.start < one.end:
            raise InputError(
                f"two entities of {where} overlap: {text[one.start : one.end]!r} and "
                f"{text[other.start : other.end]!r}",
                where="entities",
            )
    return Labelled(text, tuple(spans))


def _ends_of(entity: Mapping[str, Any]) -> tuple[int, int]:
    """By name, or as stockmark/ner-wikipedia-dataset has them: {"span": [start, end]}."""
    start, end = entity["span"] if "span" in entity else (entity["start"], entity["end"])
    return int(start), int(end)


# ---- labels of tokens ----


class Aligned(NamedTuple):
    """targets_T: a label or IGNORED. span_T: which span a token belongs to; -1: none.

    uneven: spans whose tokens together are not just their characters.
    """

    targets_T: list[str | int]
    span_T: list[int]
    uneven: int


def align(encoding: Encoding, row: Labelled, subwords: str = "all") -> Aligned:
    """The label of each token, by its offsets.

    A token belongs to the first span that it shares a character with; the first token of a span has
    its label, later ones `inside`. Tokens outside all entities are O, and outside all words
    IGNORED. subwords "first": of a word that the tokenizer cuts into pieces only the first has a
    label.
    """
    targets: list[str | int] = []
    spans: list[int] = []
    seen: set[int] = set()
    first = 0
    for index, (start, end) in enumerate(encoding.offsets):
        if encoding.special[index]:
            targets.append(IGNORED)
            spans.append(-1)
            continue
        while first < len(row.spans) and row.spans[first].end <= start:
            first += 1
        own = (
            first if first < len(row.spans) and row.spans[first].start < max(end, start + 1) else -1
        )
        later = _goes_on(encoding, index) if not row.words else own in seen
        spans.append(own)
        if subwords == "first" and later:
            targets.append(IGNORED)
        elif own < 0:
            targets.append(IGNORED if row.words else OUTSIDE)
        else:
            targets.append(row.spans[own].inside if own in seen else row.spans[own].label)
        if targets[-1] != IGNORED:
            seen.add(own)
    return Aligned(targets, spans, _uneven(encoding, row, spans))


def _uneven(encoding: Encoding, row: Labelled, spans: Sequence[int]) -> int:
    covered: dict[int, tuple[int, int]] = {}
    for own, (start, end) in zip(
        spans, map(partial(trimmed, row.text), encoding.offsets), strict=True
    ):
        first, last = covered.get(own, (start, end))
        covered[own] = (min(first, start), max(last, end))
    return sum(
        covered.get(n) != trimmed(row.text, (span.start, span.end))
        for n, span in enumerate(row.spans)
    )


def trimmed(text: str, place: tuple[int, int]) -> tuple[int, int]:
    """(start, end) without the space in front that some tokenizers count as the token's own."""
    start, end = place
    while start < end and text[start].isspace():
        start += 1
    return (start, end) if start < end else place


def _goes_on(encoding: Encoding, index: int) -> bool:
    """Whether the token continues the word of the token before it."""
    word = encoding.words[index]
    return index > 0 and word is not None and encoding.words[index - 1] == word


def owners(places: Sequence[Sequence[int]], length: int) -> list[int]:
    """Of each token, the window where it has most context; the first of equals."""
    best, owner = [-1] * length, [-1] * length
    for number, place in enumerate(places):
        for column, token in enumerate(place):
            context = min(column, len(place) - 1 - column)
            if context > best[token]:
                best[token], owner[token] = context, number
    return owner


# ---- back to characters ----


def tags_of(
    row: Labelled, encoding: Encoding, aligned: Aligned, predicted: Sequence[str]
) -> tuple[list[str], list[str]]:
    """(predicted, true) tags of a text: of its words, or of its characters.

    A word has the prediction of its first token, and is O where another word has all its tokens.
    """
    if row.words:
        tags = [OUTSIDE] * row.words
        for token, own in reversed(list(enumerate(aligned.span_T))):
            if aligned.targets_T[token] != IGNORED:
                tags[row.spans[own].word] = predicted[token]
        return tags, [span.label for span in row.spans]
    made, true = [OUTSIDE] * len(row.text), [OUTSIDE] * len(row.text)
    for span in row.spans:
        true[span.start : span.end] = [span.label, *[span.inside] * (span.end - span.start - 1)]
    before, label = 0, OUTSIDE
    for token, place in enumerate(encoding.offsets):
        if encoding.special[token]:
            continue
        label = predicted[token] if aligned.targets_T[token] != IGNORED else _inside(label)
        start, end = trimmed(row.text, place)
        end = min(max(end, start + 1), len(row.text))  # a token may stand for no character
        if label.startswith("I-") and made[before - 1][2:] == label[2:]:
            made[before:start] = [label] * max(start - before, 0)  # spaces inside an entity
        for character in range(max(start, before), end):
            made[character] = label if character == start else _inside(label)
        before = max(before, end)
    return made, true


def _inside(label: str) -> str:
    return f"I-{label[2:]}" if label.startswith("B-") else label
