"""ByT5: the 256 bytes of UTF-8 as ids 3 to 258, and sentinels behind them."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.errors import InputError, TokenizerError
from chumoku.text import decoding, families
from chumoku.text.decoding import Stream
from chumoku.text.encoding import Encoding
from chumoku.text.fast import check_text
from chumoku.text.files import AddedToken, Settings
from chumoku.text.parts import Token, cutter, end_slots, fill, plain_slots

OFFSET = 3


def byte_tokenizer(settings: Settings) -> ByteTokenizer:
    """A ByT5 folder, which holds no vocabulary: <pad> 0, </s> 1, <unk> 2, then the bytes."""
    roles = families.roles_of(settings, families.T5_ROLES)
    own = {roles["pad"].content: 0, roles["eos"].content: 1, roles["unk"].content: 2}
    count = settings.options.get("extra_ids", 125)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise TokenizerError(f"extra_ids is {count!r:.40}", where=settings.folder)
    # transformers writes extra_ids 0 but keeps the sentinels as additional special tokens.
    named = [t for t in settings.added if t.content not in own]
    if not named:
        named = [AddedToken(f"<extra_id_{n}>") for n in range(count or 125)]
    tokens = [
        AddedToken(content, index, lstrip=True, rstrip=True) for content, index in own.items()
    ]
    following = OFFSET + 256
    for token in named:
        index = token.id if token.id is not None else following
        following = max(following, index + 1)
        tokens.append(AddedToken(token.content, index, token.special, token.lstrip, token.rstrip))
    return ByteTokenizer(tokens, settings)


class ByteTokenizer:
    """A </s> and A </s> B </s>."""

    bos_id: int | None = None
    mask_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None

    def __init__(self, tokens: Sequence[AddedToken], settings: Settings) -> None:
        self.added = {token.id: token for token in tokens if token.id is not None}
        self._ids = {token.content: index for index, token in self.added.items()}
        self.pad_id: int | None = 0
        self.eos_id: int | None = 1
        self.unk_id: int | None = 2
        self.vocab_size = max([*self.added, OFFSET + 255]) + 1
        self.max_length, self.chat_template = settings.max_length, settings.chat_template
        self.special_ids = frozenset(i for i, token in self.added.items() if token.special)
        self._cut = cutter(tokens)

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        special: bool = True,
        parse_special: bool = True,
    ) -> Encoding:
        """See Tokenizer.encode. Raises InputError for text that has no UTF-8."""
        texts = [check_text(text)] + ([] if pair is None else [check_text(pair)])
        tokens = [self._tokens(text, parse_special) for text in texts]
        slots = end_slots(len(texts), None, 1) if special else plain_slots(len(texts))
        return fill(slots, tokens, self.id_to_token)

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of text in which nothing is a control token."""
        return [token.id for token in self._tokens(check_text(text), False)]

    def _tokens(self, text: str, parse_special: bool) -> list[Token]:
        tokens: list[Token] = []
        word, inside = -1, False
        for segment in (self._cut if parse_special else cutter(()))(text):
            if segment.token is not None and segment.token.id is not None:
                word, inside = word + 1, False
                name, index = segment.token.content, segment.token.id
                tokens.append(Token(index, name, segment.start, segment.end, word))
                continue
            for place in range(segment.start, segment.end):
                char = text[place]
                word += not inside or (char.isspace() and not text[place - 1].isspace())
                inside = True
                for byte in char.encode("utf-8"):
                    tokens.append(Token(byte + OFFSET, chr(byte), place, place + 1, word))
        return tokens

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return decoding.run(self.stream(skip_special=skip_special), ids)

    def stream(self, *, skip_special: bool = True) -> Stream:
        skip = self.special_ids if skip_special else frozenset[int]()
        return Stream(self._piece_of, skip=skip, errors="ignore")

    def _piece_of(self, index: int, first: bool) -> str | bytes | None:
        if index in self.added:
            return self.added[index].content
        return bytes([index - OFFSET]) if OFFSET <= index < OFFSET + 256 else None

    def id_to_token(self, index: int) -> str:
        if index in self.added:
            return self.added[index].content
        if not OFFSET <= index < OFFSET + 256:
            raise InputError(f"There is no token {index} in this vocabulary")
        return chr(index - OFFSET)

    def token_to_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        return ord(token) + OFFSET if len(token) == 1 and ord(token) < 256 else None

    @property
    def controls(self) -> list[AddedToken]:
        """Tokens that text from a user must never become."""
        return [self.added[index] for index in sorted(self.added)]
