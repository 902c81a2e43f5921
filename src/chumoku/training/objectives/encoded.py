"""Texts as ids, tokenised once, when a task is made.

What is kept of a text is two small integers a token: its id, and the number of its word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.text.encoding import Encoding, Tokenizer, known_text

Progress = Callable[[str, int, int], None]
"""(what is being done, done, in all)"""

LONGEST: Final = 512
"""Tokens of an example where neither the task nor the model sets a limit below it."""

REPORT_EVERY: Final = 500


class Frame(NamedTuple):
    """The special tokens that a tokenizer puts before a text, between two, and after the last."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def single(self) -> int:
        """How many stand around one text."""
        return len(self.before) + len(self.after)

    @property
    def pair(self) -> int:
        """How many stand around two."""
        return self.single + len(self.between)


def frame_of(tokenizer: Tokenizer, *, pair: bool = False) -> Frame:
    """Read off an encoded text: the template is the tokenizer's own."""
    text = known_text(tokenizer)
    encoding = tokenizer.encode(text, text if pair else None, parse_special=False)
    own = [i for i, special in enumerate(encoding.special) if not special]
    inside = [i for i in range(own[0], own[-1]) if encoding.special[i]]
    ids = encoding.ids
    return Frame(tuple(ids[: own[0]]), tuple(ids[i] for i in inside), tuple(ids[own[-1] + 1 :]))


class Pieces(NamedTuple):
    """ids_T of a text without special tokens. words_T: number of the word; -1: not to be masked."""

    ids_T: Tensor
    words_T: Tensor

    @classmethod
    def of_specials(cls, ids: Sequence[int]) -> Pieces:
        """Special tokens, which are not to be masked."""
        return cls(
            torch.tensor(ids, dtype=torch.int32), torch.full((len(ids),), -1, dtype=torch.int32)
        )

    def cut(self, start: int, end: int) -> Pieces:
        return Pieces(self.ids_T[start:end], self.words_T[start:end])

    def split(self, room: int) -> list[Pieces]:
        """Pieces of `room` tokens, the last shorter."""
        return [self.cut(at, at + room) for at in range(0, len(self.ids_T), room)]


def checked_tokenizer(loaded: Loaded) -> Tokenizer:
    """The tokenizer. Raises InputError where there is none, or it has more ids than the model."""
    tokenizer = common.tokenizer_of(loaded)
    rows = getattr(loaded.config, "vocab_size", None)
    if rows is not None and tokenizer.vocab_size > rows:
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}",
            where=loaded.source.origin,
            advice="create the model with the tokenizer's vocab_size",
        )
    return tokenizer


def checked_length(loaded: Loaded, length: int | None, least: int) -> int:
    """Tokens of an example: as asked, else what the model takes, at most LONGEST."""
    limit = common.limit_of(loaded)
    if length is None:
        length = LONGEST if limit is None else min(limit, LONGEST)
    if limit is not None and length > limit:
        raise InputError(f"length is {length}, the model takes {limit}", where="length")
    if length < least:
        raise InputError(f"length is {length}, it must be at least {least}", where="length")
    return length


def field_of(item: Any, name: str) -> Any:
    """A row's value of that name; an item that is no row stands for itself."""
    return item.get(name) if isinstance(item, Mapping) else item


def checked_texts(texts: Sequence[Any], what: str) -> list[str]:
    """Strings, from strings or from rows with a "text".

    Raises InputError for none at all, and for one that is no string.
    """
    if isinstance(texts, str):
        texts = [texts]
    found = [field_of(item, "text") for item in texts]
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise InputError(f"{what} {number} is not a text but {type(text).__name__}")
    if not any(text.strip() for text in found):
        raise InputError(f"there is no {what}")
    return found


def reported(items: Sequence[Any], progress: Progress | None, what: str) -> Iterator[Any]:
    """The items, telling `progress` now and then how many have been done."""
    for number, item in enumerate(items):
        if progress is not None and number % REPORT_EVERY == 0:
            progress(what, number, len(items))
        yield item
    if progress is not None:
        progress(what, len(items), len(items))


def encode_ids(
    tokenizer: Tokenizer, texts: Sequence[str], progress: Progress | None = None
) -> list[list[int]]:
    """Ids of each text, without special tokens; nothing in a text counts as a control token."""
    return [tokenizer.encode_plain(text) for text in reported(texts, progress, "tokenising")]


def encode_pieces(
    tokenizer: Tokenizer, texts: Sequence[str], progress: Progress | None = None
) -> list[Pieces]:
    """Ids and words of each text. Words are the tokenizer's: MeCab's for a Japanese one."""
    return [pieces_of(tokenizer, text) for text in reported(texts, progress, "tokenising")]


def pieces_of(tokenizer: Tokenizer, text: str) -> Pieces:
    encoding: Encoding = tokenizer.encode(text, special=False, parse_special=False)
    words = [-1 if word is None else word for word in encoding.words]
    return Pieces(
        torch.tensor(encoding.ids, dtype=torch.int32), torch.tensor(words, dtype=torch.int32)
    )
