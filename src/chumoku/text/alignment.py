"""Text that remembers, for each of its code points, where in the original it came from."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Aligned:
    """text[i] came from original[starts[i]:ends[i]], both in code points."""

    text: str
    starts: Sequence[int]
    ends: Sequence[int]

    def __getitem__(self, part: slice) -> Aligned:
        return Aligned(self.text[part], self.starts[part], self.ends[part])

    def span(self, start: int, end: int) -> tuple[int, int]:
        """The range of the original behind text[start:end]."""
        if start >= end:
            place = self.starts[start] if start < len(self.text) else (self.ends or [0])[-1]
            return place, place
        return min(self.starts[start:end]), max(self.ends[start:end])

    @property
    def whole(self) -> tuple[int, int]:
        return self.span(0, len(self.text))


def aligned(text: str, offset: int = 0) -> Aligned:
    """A text as it stands, `offset` code points into the original."""
    return Aligned(
        text, range(offset, offset + len(text)), range(offset + 1, offset + len(text) + 1)
    )


def map_characters(source: Aligned, change: Callable[[str], str]) -> Aligned:
    """Replace each character by what `change` makes of it (nothing, one or several)."""
    parts = [change(char) for char in source.text]
    text = "".join(parts)
    if text == source.text:
        return source
    starts = [s for part, s in zip(parts, source.starts, strict=True) for _ in part]
    ends = [e for part, e in zip(parts, source.ends, strict=True) for _ in part]
    return Aligned(text, starts, ends)


def lower(source: Aligned) -> Aligned:
    """str.lower(); the final sigma rule looks at the whole word but keeps its length."""
    mapped = map_characters(source, str.lower)
    text = source.text.lower()
    return Aligned(text, mapped.starts, mapped.ends) if len(text) == len(mapped.text) else mapped


def normalize(source: Aligned, form: str) -> Aligned:
    """Unicode normal form ("NFKC", "NFC", "NFD"). Each output character comes from the smallest
    stretch of input that can be normalised on its own."""
    if unicodedata.is_normalized(form, source.text):  # type: ignore[arg-type]
        return source
    out: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for start, end in _chunks(source.text, form):
        part = unicodedata.normalize(form, source.text[start:end])  # type: ignore[arg-type]
        first, last = source.span(start, end)
        out.append(part)
        if len(part) == end - start == 1:
            first, last = source.starts[start], source.ends[start]
        starts += [first] * len(part)
        ends += [last] * len(part)
    return Aligned("".join(out), starts, ends)


TAIL: Final = 32
"""Characters that decide whether the next one joins them: the last starter and what follows it.

These are ample, and keep a text of a million combining marks linear.
"""


def _chunks(text: str, form: str) -> list[tuple[int, int]]:
    """Cut where the normal form of the whole is the normal forms of the parts, joined."""
    chunks: list[tuple[int, int]] = []
    start, size = 0, len(text)
    for position in range(1, size + 1):
        tail = text[max(start, position - TAIL) : position]
        if position < size and not _boundary(tail, text[position], form):
            continue
        chunks.append((start, position))
        start = position
    return chunks


def _boundary(tail: str, char: str, form: str) -> bool:
    if char.isascii():
        return True  # ASCII never combines with what stands before it
    if unicodedata.combining(char):
        return False
    both = unicodedata.normalize(form, tail + char)  # type: ignore[arg-type]
    apart = unicodedata.normalize(form, tail) + unicodedata.normalize(form, char)  # type: ignore[arg-type]
    return both == apart


def words(source: Aligned) -> list[Aligned]:
    """str.split(): the stretches between white space."""
    found: list[Aligned] = []
    start = 0
    for position, char in enumerate(source.text + " "):
        if char.isspace():
            if position > start:
                found.append(source[start:position])
            start = position + 1
    return found


def strip(source: Aligned) -> Aligned:
    """str.strip()."""
    left = len(source.text) - len(source.text.lstrip())
    return source[left : left + len(source.text.strip())]


def join(parts: Sequence[Aligned], between: str) -> Aligned:
    """str.join(); what is put between comes from the gap."""
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    for part in parts:
        if text:
            place = ends[-1] if ends else 0
            text.append(between)
            starts += [place] * len(between)
            ends += [part.starts[0] if part.text else place] * len(between)
        text.append(part.text)
        starts += part.starts
        ends += part.ends
    return Aligned("".join(text), starts, ends)


def replace(source: Aligned, old: str, new: str) -> Aligned:
    """str.replace(); the new text comes from the range of the old."""
    position = source.text.find(old)
    if position < 0:
        return source
    text: list[str] = []
    starts: list[int] = []
    ends: list[int] = []
    done = 0
    while position >= 0:
        first, last = source.span(position, position + len(old))
        text += [source.text[done:position], new]
        starts += [*source.starts[done:position], *[first] * len(new)]
        ends += [*source.ends[done:position], *[last] * len(new)]
        done = position + len(old)
        position = source.text.find(old, done)
    text.append(source.text[done:])
    return Aligned("".join(text), [*starts, *source.starts[done:]], [*ends, *source.ends[done:]])
