"""Tokenizers that run in the `tokenizers` library, behind the Protocol of encoding.py."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tokenizers import Encoding as RawEncoding
from tokenizers import Tokenizer as Engine

from chumoku.errors import InputError
from chumoku.text import decoding
from chumoku.text import engine as engines
from chumoku.text.decoding import HoldAll, PieceOf, Stream
from chumoku.text.encoding import Encoding, known_text
from chumoku.text.files import ROLES, AddedToken
from chumoku.text.parts import cutter


def check_text(text: object) -> str:
    """The text, or an InputError: a lone surrogate is no character and has no UTF-8."""
    if not isinstance(text, str):
        raise InputError(f"The text must be a string, not {type(text).__name__}")
    if not text.isascii():
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"The text holds a lone surrogate U+{ord(text[error.start]):04X}",
                where=f"character {error.start}",
            ) from None
    return text


def is_markup(content: str) -> bool:
    """Does a token look like a control token even where its file does not call it special?"""
    return len(content) > 2 and (content[0], content[-1]) in {("<", ">"), ("[", "]"), ("{", "}")}


@dataclass(frozen=True)
class DecodePlan:
    """How a decoder of tokenizer.json makes text of tokens, as far as chumoku knows it.

    kind: bytes (byte alphabet), pieces (▁ is a space, <0x0A> a byte), wordpiece, metaspace,
    words (joined by spaces), joined (nothing between).
    """

    kind: str
    prefix: str = ""
    clean: bool = False
    strip: int = 0


def decode_plan(decoder: Mapping[str, Any] | None) -> DecodePlan | None:
    """None: not known, the library has to be asked."""
    if decoder is None:
        return DecodePlan("words")
    kind = decoder.get("type")
    if kind == "ByteLevel":
        return DecodePlan("bytes")
    if kind == "WordPiece":
        return DecodePlan("wordpiece", decoder.get("prefix", "##"), bool(decoder.get("cleanup")))
    if kind == "Fuse":
        return DecodePlan("joined")
    if kind == "Metaspace" and decoder.get("replacement", "▁") == "▁":
        scheme = decoder.get("prepend_scheme")
        prefixed = scheme != "never" if scheme else decoder.get("add_prefix_space", True)
        return DecodePlan("metaspace", strip=int(prefixed))
    if kind == "Sequence":
        return _plan_of_sequence(decoder.get("decoders") or [])
    return None


def _plan_of_sequence(parts: list[Mapping[str, Any]]) -> DecodePlan | None:
    kinds = [part.get("type") for part in parts]
    if len(parts) == 1:
        return decode_plan(parts[0])
    if kinds[:3] != ["Replace", "ByteFallback", "Fuse"]:
        return None
    if parts[0].get("pattern") != {"String": "▁"} or parts[0].get("content") != " ":
        return None
    if kinds == ["Replace", "ByteFallback", "Fuse"]:
        return DecodePlan("pieces")
    last = parts[3]
    if kinds[3:] == ["Strip"] and last.get("content") == " " and last.get("stop") == 0:
        return DecodePlan("pieces", strip=int(last.get("start", 0)))
    return None


class FastTokenizer:
    """A tokenizer.json, or any family that can be written as one.

    roles: bos, eos, … -> the token's string.
    clean_up: transformers' clean_up_tokenization_spaces.
    spec: the engine's tokenizer.json, where the caller has it at hand.
    """

    def __init__(
        self,
        engine: Engine,
        roles: Mapping[str, str],
        *,
        max_length: int | None = None,
        chat_template: str | None = None,
        clean_up: bool = False,
        spec: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.max_length, self.chat_template = max_length, chat_template
        spec = engines.spec_of(engine) if spec is None else spec
        self.vocab_size = _last_id(spec) + 1
        self.pad_id, self.bos_id, self.eos_id = (
            engine.token_to_id(roles.get(name, "")) for name in _FIRST
        )
        self.unk_id, self.mask_id, self.cls_id, self.sep_id = (
            engine.token_to_id(roles.get(name, "")) for name in _SECOND
        )
        self.roles = {name: roles[name] for name in ROLES if name in roles}
        self.plan = decode_plan(spec["decoder"])
        self.clean_up = clean_up and spec["model"].get("type") != "BPE"
        self._words_by_space = _words_by_space(spec)
        self._segments = _has_segments(spec["post_processor"])
        unknown = _unknown(spec["model"])
        self._is_closed = (
            spec["model"].get("type") == "WordLevel" and engine.token_to_id(unknown or "") is None
        )
        self.added = {
            index: AddedToken(
                token.content, index, token.special, token.lstrip, token.rstrip, token.single_word
            )
            for index, token in engine.get_added_tokens_decoder().items()
        }
        self.special_ids = frozenset(i for i, token in self.added.items() if token.special)
        self._forbidden = frozenset(
            index
            for index, token in self.added.items()
            if (token.special or is_markup(token.content)) and token.content != unknown
        )
        self._plain: dict[bool, Engine] = {}

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
        engine = self.engine if parse_special else self._plain_engine()
        raw = self._run(engine, texts, special)
        encoding = self._read(raw)
        if not parse_special:
            encoding = self._without_controls(encoding, texts, special)
        return encoding

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of text in which nothing is a control token. first: it starts the sequence, so
        that a dummy prefix space may be added."""
        raw = self._run(self._plain_engine(first), [check_text(text)], False)
        if self._forbidden.isdisjoint(raw.ids):
            return list(raw.ids)
        return self._without_controls(self._read(raw), [text], False).ids

    def _run(self, engine: Engine, texts: list[str], special: bool) -> RawEncoding:
        try:
            pair = texts[1] if len(texts) > 1 else None
            return engine.encode(texts[0], pair, add_special_tokens=special)
        except BaseException as error:
            refused = engines.guarded(error, "tokenised")
            raise self._without_token(engine, texts) or refused from None

    def _without_token(self, engine: Engine, texts: list[str]) -> InputError | None:
        """What to say where a vocabulary has no token for the unknown, and needs one."""
        if not self._is_closed:
            return None
        cut = cutter(self.added.values() if engine is self.engine else ())
        for text in texts:
            for segment in (segment for segment in cut(text) if segment.token is None):
                for piece in _words_of(engine, text[segment.start : segment.end]):
                    if engine.token_to_id(piece) is None:
                        return InputError(
                            f"{piece!r:.40} is not in the vocabulary, which has no token for what "
                            "is unknown",
                            advice="Train the tokenizer on texts that have it or with it in its "
                            "alphabet ([tokenizer] alphabet; tokenizer train: --alphabet), or as "
                            "family gpt2, whose <|endoftext|> stands for what is unknown.",
                        )
        return None

    def _read(self, raw: RawEncoding) -> Encoding:
        special = [bool(flag) for flag in raw.special_tokens_mask]
        # An added token that swallowed a space is reported with it: take its name instead.
        names = zip(raw.ids, raw.tokens, strict=True)
        tokens = [self.added[i].content if i in self.added else token for i, token in names]
        words: list[int | None] = list(raw.word_ids)
        if self._words_by_space:
            words = words_by_space(tokens, raw.sequence_ids, words, set(self.added), raw.ids)
        return Encoding(
            ids=list(raw.ids),
            tokens=tokens,
            offsets=[(0, 0) if s else o for s, o in zip(special, raw.offsets, strict=True)],
            words=words,
            sequences=list(raw.sequence_ids),
            segments=list(raw.type_ids) if self._segments else [0] * len(tokens),
            special=special,
        )

    def _plain_engine(self, first: bool = True) -> Engine:
        """A copy in which no control token is cut out of the text."""
        if first not in self._plain:
            spec = engines.spec_of(self.engine)
            for token in spec["added_tokens"]:
                token["special"] |= is_markup(token["content"])
            if not first:
                for part in ("normalizer", "pre_tokenizer"):
                    spec[part] = _without_prefix(spec[part])
            engine = Engine.from_str(json.dumps(spec, ensure_ascii=False))
            engine.encode_special_tokens = True
            self._plain[first] = engine
        return self._plain[first]

    def _without_controls(self, encoding: Encoding, texts: list[str], special: bool) -> Encoding:
        """Cut a text inside whatever the model itself still found to be a control token.

        This happens where a control token is also an ordinary word for the model: a WordPiece
        model that splits on white space alone finds [MASK] by itself.
        """
        bad = [
            n
            for n, index in enumerate(encoding.ids)
            if index in self._forbidden and not encoding.special[n]
        ]
        if not bad:
            return encoding
        if len(texts) > 1 or special:
            parts = [self.encode(text, special=False, parse_special=False) for text in texts]
            return self._framed(parts, special)
        start, end = encoding.offsets[bad[0]]
        if end - start < 2:
            raise InputError(f"{texts[0][start:end]!r} has no plain spelling in this vocabulary")
        front, back = texts[0][: start + 1], texts[0][start + 1 :]
        left = self.encode(front, special=False, parse_special=False)
        right = self._read(self._run(self._plain_engine(first=False), [back], False))
        right = self._without_controls(right, [back], False)
        return joined(left, right, start + 1)

    @cached_property
    def _known_text(self) -> str:
        return known_text(self)

    def _framed(self, parts: list[Encoding], special: bool) -> Encoding:
        """The template around texts that are tokenised already."""
        frame = self._read(self._run(self.engine, [self._known_text] * len(parts), special))
        whole = Encoding([], [], [], [], [], [], [])
        done: set[int] = set()
        for place, number in enumerate(frame.sequences):
            if number is not None and number in done:
                continue
            source = frame if number is None else parts[number]
            where = slice(place, place + 1) if number is None else slice(None)
            for name in ("ids", "tokens", "offsets", "words", "special"):
                getattr(whole, name).extend(getattr(source, name)[where])
            count = len(whole.ids) - len(whole.segments)
            whole.segments.extend([frame.segments[place]] * count)
            whole.sequences.extend([number] * count)
            done |= set() if number is None else {number}
        return whole

    # --- decoding

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return decoding.run(self._stream(skip_special), ids)

    def stream(self, *, skip_special: bool = True) -> Stream | HoldAll:
        return self._stream(skip_special)

    def _stream(self, skip_special: bool) -> Stream | HoldAll:
        skip = self.special_ids if skip_special else frozenset[int]()
        if self.plan is None:
            return HoldAll(self._decode_in_library, skip)
        filters: list[decoding.Filter] = []
        if self.plan.kind == "pieces" and self.plan.strip:
            filters.append(decoding.Strip(left=self.plan.strip))
        if self.clean_up:
            filters += decoding.clean_up_filters()
        errors = "each" if self.plan.kind == "pieces" else "replace"
        return Stream(self._piece_of(self.plan), filters, skip=skip, errors=errors)

    def _decode_in_library(self, ids: list[int]) -> str:
        text: str = self.engine.decode(ids, skip_special_tokens=False)
        for old, new in decoding.CLEAN_UP if self.clean_up else ():
            text = text.replace(old, new)
        return text

    def _piece_of(self, plan: DecodePlan) -> PieceOf:
        token_of, added = self.engine.id_to_token, self.added

        def in_bytes(index: int, first: bool) -> str | bytes | None:
            if index in added:
                return added[index].content
            token = _token(token_of, index)
            return None if token is None else decoding.unspell(token)

        def in_pieces(index: int, first: bool) -> str | bytes | None:
            token = _token(token_of, index)
            if token is None:
                return None
            byte = decoding.byte_piece(token)
            return token.replace("▁", " ") if byte is None else bytes([byte])

        def in_words(index: int, first: bool) -> str | None:
            token = _token(token_of, index)
            if token is None:
                return None
            if plan.kind == "joined":
                return token
            if plan.kind == "metaspace":
                return token.replace("▁", "" if first and plan.strip else " ")
            if plan.kind == "wordpiece" and not first and token.startswith(plan.prefix):
                token = token[len(plan.prefix) :]
            elif not first:
                token = " " + token
            for old, new in _PIECE_CLEAN_UP if plan.clean else ():
                token = token.replace(old, new)
            return token

        return {"bytes": in_bytes, "pieces": in_pieces}.get(plan.kind, in_words)

    # --- vocabulary

    def id_to_token(self, index: int) -> str:
        token = _token(self.engine.id_to_token, index)
        if token is None:
            raise InputError(f"There is no token {index} in this vocabulary")
        return token

    def token_to_id(self, token: str) -> int | None:
        index: int | None = self.engine.token_to_id(token)
        return index

    @property
    def controls(self) -> list[AddedToken]:
        """Tokens that text from a user must never become."""
        return [self.added[index] for index in sorted(self._forbidden)]


_FIRST = ("pad", "bos", "eos")
_SECOND = ("unk", "mask", "cls", "sep")
# The WordPiece decoder has one rule more than transformers' clean-up, and works token by token.
_PIECE_CLEAN_UP = (
    *decoding.CLEAN_UP[:7],
    (" do not", " don't"),
    *decoding.CLEAN_UP[7:],
)


def _token(token_of: Any, index: int) -> str | None:
    if not 0 <= index < 2**32:
        return None
    token: str | None = token_of(index)
    return token


def joined(left: Encoding, right: Encoding, shift: int) -> Encoding:
    """Two encodings of neighbouring parts of one text; right's offsets move by `shift`."""
    last = max((word for word in left.words if word is not None), default=-1)
    return replace(
        left,
        ids=left.ids + right.ids,
        tokens=left.tokens + right.tokens,
        offsets=left.offsets + [(a + shift, b + shift) for a, b in right.offsets],
        words=left.words + [None if w is None else w + last + 1 for w in right.words],
        sequences=left.sequences + right.sequences,
        segments=left.segments + right.segments,
        special=left.special + right.special,
    )


def words_by_space(
    tokens: Sequence[str],
    sequences: Sequence[int | None],
    raw: Sequence[int | None],
    added: set[int],
    ids: Sequence[int],
) -> list[int | None]:
    """Word indices where a word starts with ▁, or with an added token, or after one."""
    words: list[int | None] = []
    current, previous, after_added = -1, None, False
    for token, sequence, word, index in zip(tokens, sequences, raw, ids, strict=True):
        if word is None or sequence is None:
            words.append(None)
            continue
        if sequence != previous:
            current, previous, after_added = -1, sequence, False
        is_added = index in added
        if current < 0 or is_added or after_added or token.startswith("▁"):
            current += 1
        after_added = is_added
        words.append(current)
    return words


def _unknown(model: Mapping[str, Any]) -> str | None:
    """The token of what has no other: Unigram names it by its place in the vocabulary."""
    place = model.get("unk_id")
    if isinstance(place, int) and 0 <= place < len(model["vocab"]):
        return str(model["vocab"][place][0])
    name = model.get("unk_token")
    return None if name is None else str(name)


def _words_of(engine: Engine, text: str) -> list[str]:
    """What the model of an engine is given to look up."""
    if engine.normalizer is not None:
        text = engine.normalizer.normalize_str(text)
    if engine.pre_tokenizer is None:
        return [text]
    return [word for word, _ in engine.pre_tokenizer.pre_tokenize_str(text)]


def _last_id(spec: Mapping[str, Any]) -> int:
    """The largest id of a spec; -1 where it has none."""
    vocab = spec["model"]["vocab"]
    last = len(vocab) - 1 if isinstance(vocab, list) else max(vocab.values(), default=-1)
    return max([int(last), *(int(token["id"]) for token in spec["added_tokens"])])


def _words_by_space(spec: Mapping[str, Any]) -> bool:
    """Does the model see a whole text at once, so that only ▁ tells words apart?"""
    part = spec["pre_tokenizer"]
    parts = part.get("pretokenizers", [part]) if part else []
    if spec["model"].get("type") not in ("BPE", "Unigram"):
        return False
    return all(p.get("type") == "Metaspace" and p.get("split") is False for p in parts)


def _has_segments(post: Mapping[str, Any] | None) -> bool:
    if post is None:
        return False
    parts = post.get("processors", [post])
    return any(part.get("type") in ("TemplateProcessing", "BertProcessing") for part in parts)


def _without_prefix(part: Any) -> Any:
    """A normaliser or pre-tokeniser that adds no space in front."""
    if not isinstance(part, dict):
        return part
    part = dict(part)
    for name in ("normalizers", "pretokenizers"):
        if isinstance(part.get(name), list):
            kept = [_without_prefix(item) for item in part[name]]
            part[name] = [item for item in kept if item is not None]
    if part.get("type") == "Prepend":
        return None
    if part.get("type") == "Metaspace":
        part["prepend_scheme"] = "never"
    if "add_prefix_space" in part:
        part["add_prefix_space"] = False
    return part
