"""SentencePiece models: LLaMA 1 and 2, T5 and mT5, and the llama kind inside GGUF.

The `sentencepiece` library does the work; here are the offsets, the added tokens, and the two
ways ("legacy" or not) in which a prefix space is put in front of text after a control token.
File format: sentencepiece_model.proto (ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec).
"""

from __future__ import annotations

import struct
import unicodedata
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sentencepiece

from chumoku.errors import InputError, TokenizerError
from chumoku.text import decoding
from chumoku.text.decoding import Stream
from chumoku.text.encoding import Encoding
from chumoku.text.fast import check_text, is_markup
from chumoku.text.files import AddedToken
from chumoku.text.parts import Token, cutter, end_slots, fill, plain_slots

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
MAX_PIECES = 2_000_000


class Piece(NamedTuple):
    id: int
    piece: str
    start: int
    end: int


# ---------------------------------------------------------------------------------------------
# The wire format of protocol buffers, as much as is needed.


def fields(data: bytes, where: object) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of a message; raises TokenizerError where it is cut or wrong."""
    position, size = 0, len(data)
    while position < size:
        key, position = _varint(data, position, where)
        number, kind = key >> 3, key & 7
        if kind == 0:
            value, position = _varint(data, position, where)
            yield number, value
            continue
        if kind == 2:
            length, position = _varint(data, position, where)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise TokenizerError("Not a SentencePiece model", where=f"{where}, byte {position}")
        if number == 0 or length > size - position:
            raise TokenizerError("The file is cut short", where=f"{where}, byte {position}")
        yield number, data[position : position + length]
        position += length


def _varint(data: bytes, position: int, where: object) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        if position >= len(data):
            raise TokenizerError("The file is cut short", where=f"{where}, byte {position}")
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise TokenizerError("Not a SentencePiece model", where=f"{where}, byte {position}")


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _message(number: int, body: bytes) -> bytes:
    return encode_varint(number << 3 | 2) + encode_varint(len(body)) + body


def _flag(number: int, value: bool | int) -> bytes:
    return encode_varint(number << 3) + encode_varint(int(value))


def model_proto(
    pieces: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    *,
    dummy_prefix: bool,
    byte_fallback: bool,
) -> bytes:
    """A SentencePiece BPE model in memory, from what GGUF keeps of one."""
    body = bytearray()
    for piece, score, kind in zip(pieces, scores, kinds, strict=True):
        text = piece.encode("utf-8")
        entry = _message(1, text) + b"\x15" + struct.pack("<f", score) + _flag(3, kind)
        body += _message(1, entry)
    body += _message(2, _flag(3, 2) + _flag(35, byte_fallback))  # model_type BPE
    spec = _message(1, b"identity") + _flag(3, dummy_prefix) + _flag(4, False) + _flag(5, True)
    return bytes(body + _message(3, spec))


# ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What a model file says about itself."""

    pieces: int
    dummy_prefix: bool = True
    trims: bool = True  # remove_extra_whitespaces
    byte_fallback: bool = False


def scan(proto: bytes, where: object) -> Facts:
    """Check the framing of a model file and read its flags. Raises TokenizerError."""
    pieces, flags = 0, {3: 1, 4: 1}
    byte_fallback = 0
    for number, value in fields(proto, where):
        if number == 1:
            pieces += 1
        elif number == 2 and isinstance(value, bytes):
            byte_fallback = dict(fields(value, where)).get(35, byte_fallback)  # type: ignore[assignment]
        elif number == 3 and isinstance(value, bytes):
            flags |= {n: v for n, v in fields(value, where) if n in (3, 4) and isinstance(v, int)}
    if not 0 < pieces <= MAX_PIECES:
        raise TokenizerError(f"A SentencePiece model of {pieces} pieces", where=where)
    return Facts(pieces, bool(flags[3]), bool(flags[4]), bool(byte_fallback))


class PieceModel:
    """A SentencePiece model that gives offsets into the text as it was written."""

    def __init__(self, proto: bytes, where: object) -> None:
        self.facts = scan(proto, where)
        self.where, self.proto = where, proto
        self._with_prefix = _load(proto, where)
        # A second message in field 3 is merged into the first: add_dummy_prefix = false.
        self._bare = _load(proto + _message(3, _flag(3, False)), where)
        self.size: int = self._with_prefix.get_piece_size()
        try:
            self.pieces: list[str] = [self._with_prefix.id_to_piece(n) for n in range(self.size)]
        except UnicodeDecodeError:
            raise TokenizerError("A piece of the model is not UTF-8", where=where) from None
        self.ids = {piece: index for index, piece in reversed(list(enumerate(self.pieces)))}
        ids = range(self.size)
        self.controls = {n for n in ids if self._with_prefix.is_control(n)}
        self.bytes = {n for n in ids if self._with_prefix.is_byte(n)}
        self.unk_id: int = self._with_prefix.unk_id()

    @property
    def scores(self) -> list[float]:
        """The score of every piece: the higher, the earlier it is merged."""
        return [self._with_prefix.get_score(n) for n in range(self.size)]

    def role(self, name: str) -> int | None:
        """The id of bos, eos or pad by the file's own trainer settings."""
        index: int = getattr(self._with_prefix, f"{name}_id")()
        return index if index >= 0 else None

    def encode(self, text: str, *, prefix: bool = True) -> list[Piece]:
        """Pieces with code point offsets. prefix: put a space in front, if the model does so."""
        engine = self._with_prefix if prefix else self._bare
        if self.facts.trims and text[:1].isspace():
            engine = self._with_prefix  # such a model drops the space and would glue the word on
        try:
            raw: bytes = engine.encode(text, out_type="serialized_proto")
            pieces = _pieces(raw, text)
            if not unicodedata.is_normalized("NFKC", text):
                pieces = _spread(pieces, *engine.normalize(text, with_offsets=True))
        except (RuntimeError, UnicodeDecodeError) as error:
            raise InputError(f"SentencePiece cannot read this text: {error}"[:200]) from None
        return pieces

    def decode(self, pieces: Sequence[str]) -> str:
        """SentencePiece's own detokeniser."""
        text: str = self._with_prefix.decode_pieces(list(pieces))
        return text


def _load(proto: bytes, where: object) -> Any:
    engine = sentencepiece.SentencePieceProcessor()
    try:
        engine.LoadFromSerializedProto(proto)
    except (RuntimeError, ValueError, UnicodeDecodeError) as error:
        raise TokenizerError(
            f"SentencePiece refuses the model: {error}"[:200], where=where
        ) from None
    return engine


def _pieces(raw: bytes, text: str) -> list[Piece]:
    """SentencePieceText: 2 pieces {1 piece, 2 id, 4 begin, 5 end}, in bytes of the text."""
    found: list[list[Any]] = []
    for number, body in fields(raw, "SentencePieceText"):
        if number == 2 and isinstance(body, bytes):
            part = dict(fields(body, "SentencePieceText"))
            label = part.get(1, b"")
            name = label.decode("utf-8", "replace") if isinstance(label, bytes) else ""
            found.append([part.get(2, 0), name, part.get(4, 0), part.get(5, 0)])
    if not text.isascii():
        starts = [0]  # byte at which each code point starts
        for char in text:
            starts.append(starts[-1] + len(char.encode("utf-8")))
        for piece in found:
            piece[2], piece[3] = bisect_left(starts, piece[2]), bisect_left(starts, piece[3])
    # Where one character became several pieces (bytes, or ㈱ written out), only the last has
    # its range; the others are empty. All of them come from that character.
    for here, following in zip(reversed(found[:-1]), reversed(found[1:]), strict=True):
        if here[2] == here[3] == following[2] and here[1] != SPACE:
            here[3] = following[3]
    return [Piece(*piece) for piece in found]


def _spread(pieces: list[Piece], normal: str, origins: Sequence[int]) -> list[Piece]:
    """Ranges where one character of the text became several: a piece that ends inside the
    expansion of ﬁ comes from all of ﬁ. origins: for each character of `normal`, and for its end,
    where in the text it came from."""
    if "".join(piece.piece for piece in pieces) != normal or len(origins) != len(normal) + 1:
        return pieces  # bytes instead of characters
    found: list[Piece] = []
    place = 0
    for piece in pieces:
        last = place + len(piece.piece)
        end = following = origins[last]
        step = last
        while following <= origins[last - 1] and step < len(normal):
            step += 1
            following = origins[step]
        if place > 0 or piece.piece != SPACE:  # the dummy prefix comes from nowhere
            end = max(end, following)
        found.append(piece._replace(start=min(piece.start, origins[place]), end=end))
        place = last
    return found


class SentencePieceTokenizer:
    """A SentencePiece model with control tokens around it.

    added: tokens cut out of the text (control tokens, sentinels), with their ids.
    prefix: "always" puts the dummy space in front of every stretch of text between control
        tokens (transformers' legacy, llama.cpp); "first" only in front of the whole text; "never".
    start, end: ids around each text, or None.
    """

    def __init__(
        self,
        model: PieceModel,
        added: Iterable[AddedToken],
        roles: Mapping[str, str],
        *,
        prefix: str = "always",
        start: int | None = None,
        end: int | None = None,
        max_length: int | None = None,
        chat_template: str | None = None,
        clean_up: bool = False,
    ) -> None:
        self.model, self.prefix, self.start, self.end = model, prefix, start, end
        self.max_length, self.chat_template, self.clean_up = max_length, chat_template, clean_up
        self.added = {token.id: token for token in added if token.id is not None}
        self._names = {index: token.content for index, token in self.added.items()}
        self._ids = {name: index for index, name in self._names.items()}
        self.vocab_size = max([model.size - 1, *self.added]) + 1
        self.roles = dict(roles)
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = (
            self.token_to_id(roles.get(name, "")) for name in ("pad", "bos", "eos", "unk", "mask")
        )
        self.cls_id, self.sep_id = (self.token_to_id(roles.get(n, "")) for n in ("cls", "sep"))
        special = {index for index, token in self.added.items() if token.special}
        self.special_ids = frozenset(special | model.controls)
        bare = enumerate(piece.lstrip(SPACE) for piece in model.pieces)
        markup = {n for n, piece in bare if is_markup(piece)} - model.bytes
        markup |= {index for index, token in self.added.items() if is_markup(token.content)}
        self._forbidden = frozenset((self.special_ids | markup) - {self.unk_id, model.unk_id})
        self._cut = cutter(self.added.values())
        self._cut_plain = cutter(
            token for index, token in self.added.items() if index not in self._forbidden
        )

    # --- encoding

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
        tokens = [self._tokens(text, parse_special, True) for text in texts]
        count = len(texts)
        slots = end_slots(count, self.start, self.end) if special else plain_slots(count)
        return fill(slots, tokens, self.id_to_token)

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of text in which nothing is a control token. first: it starts the sequence."""
        return [token.id for token in self._tokens(check_text(text), False, first)]

    def _tokens(self, text: str, parse_special: bool, first: bool) -> list[Token]:
        tokens: list[Token] = []
        word, glued = -1, False
        for segment in (self._cut if parse_special else self._cut_plain)(text):
            if segment.token is not None and segment.token.id is not None:
                word += 1
                name, index = segment.token.content, segment.token.id
                tokens.append(Token(index, name, segment.start, segment.end, word))
                glued = False
            else:
                part = text[segment.start : segment.end]
                at_start = self.prefix == "first" and first and segment.start == 0
                prefix = self.prefix == "always" or at_start
                for piece in self._pieces(part, prefix, parse_special):
                    word += not glued or piece.piece.startswith(SPACE)
                    glued = True
                    start, end = piece.start + segment.start, piece.end + segment.start
                    tokens.append(Token(piece.id, piece.piece, start, end, word))
        return tokens

    def _pieces(self, text: str, prefix: bool, parse_special: bool) -> list[Piece]:
        pieces = self.model.encode(text, prefix=prefix)
        if parse_special:
            return pieces
        bad = next((piece for piece in pieces if piece.id in self._forbidden), None)
        if bad is None:
            return pieces
        # A control token that the model itself holds as a whole word: cut it in two.
        if bad.end - bad.start < 2:
            raise InputError(f"{bad.piece!r} has no plain spelling in this vocabulary")
        cut = bad.start + 1
        left = self._pieces(text[:cut], prefix, parse_special)
        right = self._pieces(text[cut:], False, parse_special)
        return left + [p._replace(start=p.start + cut, end=p.end + cut) for p in right]

    # --- decoding

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return decoding.run(self.stream(skip_special=skip_special), ids)

    def stream(self, *, skip_special: bool = True) -> Stream:
        filters: list[decoding.Filter] = []
        if self.model.facts.dummy_prefix and self.prefix != "never":
            filters.append(decoding.Strip(left=1))
        if self.clean_up:
            filters += decoding.clean_up_filters()
        skip = self.special_ids if skip_special else frozenset[int]()
        return Stream(self._piece_of, filters, skip=skip, errors="each")

    def _piece_of(self, index: int, first: bool) -> str | bytes | None:
        if index in self._names:
            return self._names[index]
        if not 0 <= index < self.model.size:
            return None
        piece = self.model.pieces[index]
        if index in self.model.bytes:
            return bytes([decoding.byte_piece(piece) or 0])
        return piece.replace(SPACE, " ")

    # --- vocabulary

    def id_to_token(self, index: int) -> str:
        if index in self._names:
            return self._names[index]
        if not 0 <= index < self.model.size:
            raise InputError(f"There is no token {index} in this vocabulary")
        return self.model.pieces[index]

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token, self.model.ids.get(token))

    @property
    def controls(self) -> list[AddedToken]:
        """Tokens that text from a user must never become."""
        held = [
            AddedToken(self.model.pieces[index], index)
            for index in sorted(self._forbidden - self.added.keys())
        ]
        return [self.added[index] for index in sorted(self.added.keys() & self._forbidden)] + held
