"""What every tokenizer returns, whatever its family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from chumoku.errors import InputError

if TYPE_CHECKING:
    from chumoku.text.files import AddedToken


@dataclass(frozen=True)
class Encoding:
    """One encoded text, or pair of texts; all lists have one entry a token.

    offsets:   (start, end) in code points of the *original* text of the token's sequence,
               before any normalisation; (0, 0) for special tokens that were added.
    words:     index of the word a token belongs to, counted within its sequence; None for specials.
    sequences: 0 for the first text, 1 for the second of a pair; None for specials that were added.
    segments:  token type ids (0, or 1 for the second text where the model has segments).
    special:   True for tokens added by the template ([CLS], </s>, ...).
    """

    ids: list[int]
    tokens: list[str]
    offsets: list[tuple[int, int]]
    words: list[int | None]
    sequences: list[int | None]
    segments: list[int]
    special: list[bool]

    def __len__(self) -> int:
        return len(self.ids)


class Tokenizer(Protocol):
    """What the rest of chumoku may ask of a tokenizer."""

    vocab_size: int
    """Number of ids, added tokens included (largest id + 1)."""
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None
    cls_id: int | None
    sep_id: int | None
    max_length: int | None
    chat_template: str | None

    @property
    def controls(self) -> list[AddedToken]:
        """The tokens that user text must not become: [CLS], <|im_end|>, <think>, …"""
        ...

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        special: bool = True,
        parse_special: bool = True,
    ) -> Encoding:
        """text (and pair) -> Encoding. special: add the template's tokens. parse_special: a special
        token spelled out in the text becomes that token ([MASK]); False treats it as plain text."""
        ...

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of text in which nothing counts as a control token. first: it begins the sequence,
        which matters where a space is put in front."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str: ...

    def id_to_token(self, index: int) -> str: ...

    def token_to_id(self, token: str) -> int | None: ...

    def stream(self, *, skip_special: bool = True) -> TokenStream:
        """An incremental decoder: the pieces it yields join to decode() of all ids."""
        ...


class TokenStream(Protocol):
    def push(self, index: int) -> str:
        """The text that is certain after this id: never half a character; may be empty."""
        ...

    def flush(self) -> str:
        """What was held back."""
        ...


def known_text(tokenizer: Tokenizer) -> str:
    """A text that the tokenizer makes tokens of: the letter a, else the first that it decodes to.

    A vocabulary of kana has no "a", and one without a token for the unknown refuses it.
    Raises InputError where there is none.
    """
    if _makes_tokens(tokenizer, "a"):
        return "a"
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index], skip_special=True)
        if text.strip() and _makes_tokens(tokenizer, text):
            return text
    raise InputError("the tokenizer makes nothing of any of its own tokens")


def _makes_tokens(tokenizer: Tokenizer, text: str) -> bool:
    try:
        return bool(tokenizer.encode_plain(text))
    except InputError:
        return False
