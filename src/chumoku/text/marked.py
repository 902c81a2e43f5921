"""Strings that remember which of their characters a user wrote.

A chat template mixes its own control tokens with the text of messages. After rendering, a
control token is one only where none of its characters are marked. Every operation here keeps
the marks; one that cannot tell marks the whole result, which is safe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Span = tuple[int, int]


class Marked(str):
    """A string with the ranges that come from a user; plain str means that there are none."""

    spans: tuple[Span, ...] = ()


def spans_of(text: str) -> tuple[Span, ...]:
    return text.spans if isinstance(text, Marked) else ()


def with_spans(text: str, spans: Iterable[Span]) -> str:
    """text with these ranges marked; neighbouring ranges become one."""
    merged: list[Span] = []
    for start, end in spans:
        if start >= end:
            continue
        if merged and merged[-1][1] >= start:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    if not merged:
        return str.__str__(text)
    result = Marked(text)
    result.spans = tuple(merged)
    return result


def mark(text: str) -> str:
    """The whole text is a user's."""
    return with_spans(text, [(0, len(text))])


def mark_if(text: str, *sources: object) -> str:
    """Mark all of a result if anything that it was made of is marked."""
    if any(isinstance(source, Marked) for source in sources):
        return mark(text)
    return text


def concat(parts: Sequence[str]) -> str:
    """''.join(parts)."""
    text = "".join(parts)
    if not any(isinstance(part, Marked) for part in parts):
        return text
    spans: list[Span] = []
    place = 0
    for part in parts:
        spans += [(start + place, end + place) for start, end in spans_of(part)]
        place += len(part)
    return with_spans(text, spans)


def cut(text: str, start: int, end: int) -> str:
    """text[start:end] for 0 <= start <= end <= len(text)."""
    part = str.__getitem__(text, slice(start, end))
    return with_spans(
        part, [(max(a, start) - start, min(b, end) - start) for a, b in spans_of(text)]
    )


def strip(
    text: str, characters: str | None = None, *, left: bool = True, right: bool = True
) -> str:
    """str.strip, lstrip and rstrip."""
    bare = str.__str__(text)
    start = len(bare) - len(bare.lstrip(characters)) if left else 0
    end = len(bare.rstrip(characters)) if right else len(bare)
    return cut(text, start, max(start, end))


def join(between: str, parts: Sequence[str]) -> str:
    """between.join(parts)."""
    mixed: list[str] = []
    for part in parts:
        mixed += [between, part] if mixed else [part]
    return concat(mixed)


def split(text: str, separator: str | None, limit: int = -1, *, right: bool = False) -> list[str]:
    """str.split and rsplit."""
    bare = str.__str__(text)
    parts = bare.rsplit(separator, limit) if right else bare.split(separator, limit)
    found: list[str] = []
    place = 0
    for part in parts:
        # Each part stands behind the last one, and only the separator lies between.
        place = bare.index(part, place)
        found.append(cut(text, place, place + len(part)))
        place += len(part) + (len(separator) if separator else 0)
    return found


def splitlines(text: str, keep: bool = False) -> list[str]:
    """str.splitlines."""
    found: list[str] = []
    place = 0
    lines = str.__str__(text).splitlines(keepends=True)
    for line in lines:
        size = len(line) if keep else len(line.splitlines()[0]) if line.splitlines() else 0
        found.append(cut(text, place, place + size))
        place += len(line)
    return found


def replace(text: str, old: str, new: str, count: int = -1) -> str:
    """str.replace."""
    if old:
        return join(new, split(text, str.__str__(old), count))
    return mark_if(str.__str__(text).replace(old, new, count), text, new)
