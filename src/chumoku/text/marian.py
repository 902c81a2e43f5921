"""Marian / OPUS-MT: a SentencePiece model a language, and one vocab.json over both.

source.spm and target.spm cut text into pieces, vocab.json numbers them. A multilingual model
wants a language code such as >>jpn<< in front of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from chumoku.errors import InputError, TokenizerError
from chumoku.text import decoding, families
from chumoku.text.decoding import Stream
from chumoku.text.encoding import Encoding
from chumoku.text.fast import check_text, is_markup
from chumoku.text.files import AddedToken, Settings, read_bytes, read_vocab_json
from chumoku.text.parts import Slot, Token, cutter, fill, plain_slots
from chumoku.text.sentencepieces import SPACE, PieceModel


def marian_tokenizer(settings: Settings) -> MarianTokenizer:
    """A folder with source.spm, target.spm and vocab.json. Raises TokenizerError."""
    folder = settings.folder
    missing = [n for n in ("source.spm", "target.spm", "vocab.json") if not (folder / n).is_file()]
    if missing:
        raise TokenizerError(f"{', '.join(missing)} missing", where=folder)
    models = [PieceModel(read_bytes(folder / n), folder / n) for n in ("source.spm", "target.spm")]
    vocab = read_vocab_json(folder / "vocab.json")
    separate = families.option(settings, "separate_vocabs", False)
    target = read_vocab_json(folder / "target_vocab.json") if separate else vocab
    roles = families.roles_of(settings, families.T5_ROLES)
    for name in ("unk", "eos"):
        if roles[name].content not in vocab:
            raise TokenizerError(
                f"The vocabulary lacks {roles[name].content!r}", where=folder / "vocab.json"
            )
    return MarianTokenizer(
        Side(models[0], vocab, roles["unk"].content),
        Side(models[1], target, roles["unk"].content),
        families.place_tokens(vocab, settings, roles),
        {name: token.content for name, token in roles.items()},
        max_length=settings.max_length or 512,
        clean_up=settings.options.get("clean_up_tokenization_spaces") is True,
    )


@dataclass(frozen=True)
class Side:
    """One language: its pieces and their numbers."""

    model: PieceModel
    vocab: Mapping[str, int]
    unk: str

    @cached_property
    def names(self) -> dict[int, str]:
        return {index: token for token, index in self.vocab.items()}

    def tokens(self, text: str, offset: int, word: int) -> list[Token]:
        """Tokens of a stretch of text; `word` is the number of its first word."""
        found: list[Token] = []
        unk = self.vocab[self.unk]
        code = text.find("<<") + 2 if text.startswith(">>") and "<<" in text else 0
        if code:
            index = self.vocab.get(text[:code], unk)
            found.append(Token(index, text[:code], offset, offset + code, word))
        for piece in self.model.encode(text[code:]):
            word += bool(found) and (piece.piece.startswith(SPACE) or len(found) == bool(code))
            index = self.vocab.get(piece.piece, unk)
            start, end = piece.start + offset + code, piece.end + offset + code
            found.append(Token(index, piece.piece, start, end, word))
        return found


class MarianTokenizer:
    """encode is for the source language, encode_target for the target; A </s>, A B </s>."""

    bos_id: int | None = None
    mask_id: int | None = None
    cls_id: int | None = None
    sep_id: int | None = None
    chat_template: str | None = None

    def __init__(
        self,
        source: Side,
        target: Side,
        tokens: Sequence[AddedToken],
        roles: Mapping[str, str],
        *,
        max_length: int | None,
        clean_up: bool,
    ) -> None:
        self.source, self.target, self.clean_up = source, target, clean_up
        self.max_length = max_length
        self.added = {token.id: token for token in tokens if token.id is not None}
        self.roles = dict(roles)
        self._ids = dict(source.vocab) | {t.content: i for i, t in self.added.items()}
        self.vocab_size = max([*source.vocab.values(), *target.vocab.values(), *self.added]) + 1
        self.eos_id: int | None = self._ids[roles["eos"]]
        self.unk_id: int | None = self._ids[roles["unk"]]
        self.pad_id: int | None = self._ids.get(roles["pad"])
        self.special_ids = frozenset(i for i, token in self.added.items() if token.special)
        self._cut = cutter(tokens)
        plain = [t for t in tokens if not (t.special or is_markup(t.content))]
        self._cut_plain = cutter(plain)

    @property
    def languages(self) -> list[str]:
        """Language codes such as >>jpn<< that the source may start with."""
        return sorted(t for t in self.source.vocab if t.startswith(">>") and t.endswith("<<"))

    def encode(
        self,
        text: str,
        pair: str | None = None,
        *,
        special: bool = True,
        parse_special: bool = True,
    ) -> Encoding:
        """Text of the source language. See Tokenizer.encode."""
        texts = [text] if pair is None else [text, pair]
        return self._encode(self.source, texts, special, parse_special)

    def encode_target(
        self, text: str, *, special: bool = True, parse_special: bool = True
    ) -> Encoding:
        """Text of the target language."""
        return self._encode(self.target, [text], special, parse_special)

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of source text in which nothing is a control token."""
        return self.encode(text, special=False, parse_special=False).ids

    def _encode(
        self, side: Side, texts: Sequence[str], special: bool, parse_special: bool
    ) -> Encoding:
        tokens = [self._tokens(side, check_text(text), parse_special) for text in texts]
        slots: list[Slot] = plain_slots(len(texts))
        return fill(slots + [(self._ids[self.roles["eos"]], 0)] * special, tokens, self.id_to_token)

    def _tokens(self, side: Side, text: str, parse_special: bool) -> list[Token]:
        tokens: list[Token] = []
        for segment in (self._cut if parse_special else self._cut_plain)(text):
            word = tokens[-1].word + 1 if tokens else 0
            if segment.token is not None and segment.token.id is not None:
                name, index = segment.token.content, segment.token.id
                tokens.append(Token(index, name, segment.start, segment.end, word))
            else:
                tokens += side.tokens(text[segment.start : segment.end], segment.start, word)
        return tokens

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        """Text of the target language."""
        return decoding.run(self.stream(skip_special=skip_special), ids)

    def stream(self, *, skip_special: bool = True) -> Stream:
        filters: list[decoding.Filter] = [decoding.Strip(" \n\t\r", 2**31, right=True)]
        if self.clean_up:
            filters += decoding.clean_up_filters()
        skip = self.special_ids if skip_special else frozenset[int]()
        return Stream(self._pieces(), filters, skip=skip, errors="each")

    def _pieces(self) -> decoding.PieceOf:
        """A control token stands between spaces, and the text behind it starts afresh."""
        fresh = [True]

        def piece_of(index: int, first: bool) -> str | bytes | None:
            if index in self.special_ids:
                fresh[0] = True
                return self.added[index].content + " "
            piece = self.target.names.get(index)
            if piece is None:
                return None
            byte = decoding.byte_piece(piece)
            starts, fresh[0] = fresh[0], False
            if byte is not None:
                return bytes([byte])
            text = piece.replace(SPACE, " ")
            return text[1:] if starts and text.startswith(" ") else text

        return piece_of

    def id_to_token(self, index: int) -> str:
        if index in self.added:
            return self.added[index].content
        token = self.source.names.get(index, self.target.names.get(index))
        if token is None:
            raise InputError(f"There is no token {index} in this vocabulary")
        return token

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    @property
    def controls(self) -> list[AddedToken]:
        """Tokens that text from a user must never become."""
        return [t for t in self.added.values() if t.special or is_markup(t.content)]
