"""Tokens apart by spaces back to text as people write it; good enough to learn from."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final

BEFORE: Final = re.compile(r" ([.,!?;:%)\]}]|'(?:s|t|m|d|re|ve|ll)\b|n't\b)")
AFTER: Final = re.compile(r"([(\[{$]) ")
QUOTED: Final = re.compile(r'" ([^"]*?) "')
BETWEEN: Final = re.compile(r"(?<=[^\x00-\x7f]) | (?=[^\x00-\x7f])")


def english(tokens: str) -> str:
    """Marks go to the word they belong to: "i can 't ." -> "i can't."."""
    return AFTER.sub(r"\1", QUOTED.sub(r'"\1"', BEFORE.sub(r"\1", tokens)))


def japanese(tokens: str) -> str:
    """No spaces beside a character that is not ASCII."""
    return BETWEEN.sub("", tokens)


def unchanged(tokens: str) -> str:
    return tokens


DETOKENISERS: Final[Mapping[str, Callable[[str], str]]] = {
    "en": english,
    "ja": japanese,
    "none": unchanged,
}
"""Language -> how its tokens are put together."""
