"""What the tokenizers written in Python share: cutting out added tokens, and filling templates."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from chumoku.text.encoding import Encoding
from chumoku.text.files import AddedToken


class Token(NamedTuple):
    """One token of a text; start and end count code points of the original text."""

    id: int
    token: str
    start: int
    end: int
    word: int


class Segment(NamedTuple):
    """A stretch of text: an added token, or text between two of them (token is None)."""

    start: int
    end: int
    token: AddedToken | None


Slot = tuple[int | str, int]
"""A place in a template: a token id, or "A" or "B" for a text; and its segment number."""


def cutter(tokens: Iterable[AddedToken]) -> Callable[[str], list[Segment]]:
    """A function that cuts a text at these tokens, leftmost first, then longest."""
    table = {token.content: token for token in tokens if token.content}
    if not table:
        return lambda text: [Segment(0, len(text), None)] if text else []
    names = sorted(table, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(name) for name in names))

    def cut(text: str) -> list[Segment]:
        segments: list[Segment] = []
        position = 0
        for match in pattern.finditer(text):
            token = table[match.group()]
            start, end = match.span()
            if token.single_word and _inside_word(text, start, end):
                continue
            left = start
            while token.lstrip and left > position and text[left - 1].isspace():
                left -= 1
            if left > position:
                segments.append(Segment(position, left, None))
            segments.append(Segment(start, end, token))
            while token.rstrip and end < len(text) and text[end].isspace():
                end += 1
            position = max(position, end)
        if position < len(text):
            segments.append(Segment(position, len(text), None))
        return segments

    return cut


def _inside_word(text: str, start: int, end: int) -> bool:
    before = start > 0 and text[start - 1] != " "
    return before or (end < len(text) and text[end] != " ")


def fill(
    slots: Sequence[Slot], texts: Sequence[Sequence[Token]], names: Callable[[int], str]
) -> Encoding:
    """A template with the texts' tokens in place. names: id -> token string."""
    encoding = Encoding([], [], [], [], [], [], [])
    for what, segment in slots:
        if isinstance(what, int):
            _append(encoding, Token(what, names(what), 0, 0, 0), None, segment)
            continue
        number = "AB".index(what)
        for token in texts[number]:
            _append(encoding, token, number, segment)
    return encoding


def _append(encoding: Encoding, token: Token, sequence: int | None, segment: int) -> None:
    encoding.ids.append(token.id)
    encoding.tokens.append(token.token)
    encoding.offsets.append((token.start, token.end))
    encoding.words.append(None if sequence is None else token.word)
    encoding.sequences.append(sequence)
    encoding.segments.append(segment)
    encoding.special.append(sequence is None)


def plain_slots(count: int) -> list[Slot]:
    """No template: the texts one after the other."""
    slots: list[Slot] = [("A", 0), ("B", 0)]
    return slots[:count]


def end_slots(count: int, before: int | None, after: int | None) -> list[Slot]:
    """[before] A [after], and the same around B."""
    slots: list[Slot] = []
    for name in "AB"[:count]:
        slots += [(before, 0)] if before is not None else []
        slots.append((name, 0))
        slots += [(after, 0)] if after is not None else []
    return slots


def bert_slots(count: int, cls: int, sep: int) -> list[Slot]:
    """[CLS] A [SEP] and [CLS] A [SEP] B [SEP]; the second text and its end are segment 1."""
    single: list[Slot] = [(cls, 0), ("A", 0), (sep, 0)]
    return single if count == 1 else [*single, ("B", 1), (sep, 1)]
