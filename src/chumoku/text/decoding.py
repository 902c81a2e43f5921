"""Ids back to text, as a machine that takes one id at a time.

decode() of a list is defined as: push every id, then flush. So the pieces that a stream yields
always join to the decoded text, and no piece ends inside a character.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from typing import Protocol

Piece = str | bytes | None
PieceOf = Callable[[int, bool], Piece]
"""(id, is it the first shown) -> its text, its raw bytes, or None where it shows nothing."""


class Filter(Protocol):
    """Rewrites a text that arrives in parts; what push and flush return joins to the result."""

    def push(self, text: str) -> str: ...

    def flush(self) -> str: ...


class Replace:
    """str.replace(old, new) over parts: holds back only what may be the start of `old`."""

    def __init__(self, old: str, new: str) -> None:
        self.old, self.new, self.held = old, new, ""

    def push(self, text: str) -> str:
        *done, rest = (self.held + text).split(self.old)
        longest = min(len(rest), len(self.old) - 1)
        keep = next((n for n in range(longest, 0, -1) if self.old.startswith(rest[-n:])), 0)
        self.held = rest[len(rest) - keep :]
        return "".join(part + self.new for part in done) + rest[: len(rest) - keep]

    def flush(self) -> str:
        held, self.held = self.held, ""
        return held


class Strip:
    """Removes up to `left` characters of `what` in front and, where `right`, space at the end."""

    def __init__(self, what: str = " ", left: int = 1, *, right: bool = False) -> None:
        self.what, self.left, self.right, self.held = what, left, right, ""

    def push(self, text: str) -> str:
        while self.left and text:
            if text[0] not in self.what:
                self.left = 0
                break
            text, self.left = text[1:], self.left - 1
        if self.right:
            text = self.held + text
            body = text.rstrip()
            self.held = text[len(body) :]
            return body
        return text

    def flush(self) -> str:
        self.held = ""
        return ""


class BytesToText:
    """UTF-8 that arrives in parts. What is no UTF-8 becomes U+FFFD, or nothing.

    each: one U+FFFD for each bad byte (SentencePiece); else one for each maximal bad part
    (Unicode 3.9, as Python and Rust do); ignore: none at all (ByT5).
    """

    def __init__(self, errors: str = "replace") -> None:
        self.errors = errors
        self.decoder = self._new()

    def _new(self) -> codecs.IncrementalDecoder:
        name = "surrogateescape" if self.errors == "each" else self.errors
        return codecs.getincrementaldecoder("utf-8")(name)

    def push(self, data: bytes) -> str:
        return self._clean(self.decoder.decode(data))

    def flush(self) -> str:
        text = self._clean(self.decoder.decode(b"", final=True))
        self.decoder = self._new()
        return text

    def _clean(self, text: str) -> str:
        if self.errors == "each" and not text.isascii():
            # A byte that cannot be decoded arrives as a lone surrogate U+DC80 to U+DCFF.
            return "".join("\ufffd" if "\udc80" <= c <= "\udcff" else c for c in text)
        return text


class Stream:
    """See the Protocol TokenStream in encoding.py."""

    def __init__(
        self,
        piece_of: PieceOf,
        filters: Sequence[Filter] = (),
        *,
        skip: frozenset[int] = frozenset(),
        errors: str = "replace",
    ) -> None:
        self.piece_of, self.filters, self.skip = piece_of, filters, skip
        self.joiner = BytesToText(errors)
        self.first = True

    def push(self, index: int) -> str:
        if index in self.skip:
            return ""
        piece = self.piece_of(index, self.first)
        if piece is None:
            return ""
        self.first = False
        text = self.joiner.push(piece) if isinstance(piece, bytes) else self.joiner.flush() + piece
        for step in self.filters:
            text = step.push(text)
        return text

    def flush(self) -> str:
        text = self.joiner.flush()
        for step in self.filters:
            text = step.push(text) + step.flush()
        return text


class HoldAll:
    """For decoders that chumoku does not know part by part: everything comes at the end."""

    def __init__(self, decode: Callable[[list[int]], str], skip: frozenset[int]) -> None:
        self.decode, self.skip = decode, skip
        self.ids: list[int] = []

    def push(self, index: int) -> str:
        if index not in self.skip:
            self.ids.append(index)
        return ""

    def flush(self) -> str:
        ids, self.ids = self.ids, []
        return self.decode(ids)


def run(stream: Stream | HoldAll, ids: Sequence[int]) -> str:
    """Everything that a stream says about these ids."""
    return "".join([stream.push(int(index)) for index in ids]) + stream.flush()


# BERT's detokenising rules, in the order in which transformers applies them.
CLEAN_UP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)


def clean_up_filters() -> list[Filter]:
    """transformers' clean_up_tokenization, over parts."""
    return [Replace(old, new) for old, new in CLEAN_UP]


def byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of the 256 bytes: printable ones as themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    return table | {chr(0x100 + offset): byte for offset, byte in enumerate(others)}


BYTE_OF = byte_alphabet()
SPELLING = {byte: char for char, byte in BYTE_OF.items()}


def spell(data: bytes) -> str:
    """Bytes in GPT-2's byte alphabet."""
    return "".join([SPELLING[byte] for byte in data])


def unspell(token: str) -> bytes:
    """A token in GPT-2's byte alphabet as bytes; characters outside it stand for themselves."""
    try:
        return bytes([BYTE_OF[char] for char in token])
    except KeyError:
        return token.encode("utf-8", "replace")


def byte_piece(token: str) -> int | None:
    """The byte of a SentencePiece byte token `<0x0A>`, else None."""
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        try:
            return int(token[3:5], 16)
        except ValueError:
            return None
    return None
