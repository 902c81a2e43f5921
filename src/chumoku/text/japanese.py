"""Japanese BERTs: words from a dictionary, then pieces of words.

Equal to transformers' BertJapaneseTokenizer for MeCab, Sudachi and basic words with WordPiece,
character or SentencePiece pieces; and to LINE DistilBERT's MeCab-then-SentencePiece tokenizer,
which is the same construction. Unlike them it knows where each token lies in the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from chumoku.errors import ConfigError, InputError, TokenizerError
from chumoku.text import alignment, decoding, families, segmentation
from chumoku.text.alignment import Aligned
from chumoku.text.decoding import Stream
from chumoku.text.encoding import Encoding
from chumoku.text.fast import check_text, is_markup
from chumoku.text.files import AddedToken, Settings, read_bytes, read_vocab_txt
from chumoku.text.parts import Token, bert_slots, cutter, fill, plain_slots
from chumoku.text.sentencepieces import SPACE, PieceModel

Subwords = Callable[[Aligned], list[Token]]
"""A word -> its tokens; the field `word` is filled in later."""

MAX_WORD = 100
SPM_FILES = ("spiece.model", "sentencepiece.model", "spm.model")


def japanese_tokenizer(settings: Settings) -> JapaneseTokenizer:
    """BertJapaneseTokenizer's or LINE DistilBERT's folder: tokenizer_config.json with vocab.txt
    or spiece.model. Raises ConfigError, DependencyError, TokenizerError."""
    options = settings.options
    lower = families.option(settings, "do_lower_case", False)
    roles = families.roles_of(settings, families.BERT_ROLES)
    specials = [token.content for token in roles.values()]
    never = {*specials, *_names(options.get("never_split"))}
    word_kind = options.get("word_tokenizer_type", "basic")
    words: segmentation.Segmenter = lambda source: [source]  # noqa: E731
    if families.option(settings, "do_word_tokenize", True):
        extra = options.get(f"{word_kind}_kwargs") or {}
        if not isinstance(extra, dict):
            raise ConfigError(f"{word_kind}_kwargs must be an object", where=settings.folder)
        extra = dict(extra)
        lower = bool(extra.pop("do_lower_case", lower))
        never |= set(_names(extra.pop("never_split", None)))
        words = segmentation.segmenter(word_kind, extra, lower=lower, never_split=never)
    kind = options.get("subword_tokenizer_type", "wordpiece")
    unk = roles["unk"].content
    if kind == "sentencepiece":
        path = next(
            (settings.folder / n for n in SPM_FILES if (settings.folder / n).is_file()), None
        )
        if path is None:
            raise TokenizerError("spiece.model is missing", where=settings.folder)
        model = PieceModel(read_bytes(path), path)
        vocab = model.ids
        return JapaneseTokenizer(settings, vocab, roles, words, sentencepiece(model), model)
    path = settings.folder / "vocab.txt"
    vocab = read_vocab_txt(path)
    if unk not in vocab:
        raise TokenizerError(f"The vocabulary lacks {unk!r}", where=path)
    if kind == "wordpiece":
        return JapaneseTokenizer(settings, vocab, roles, words, wordpiece(vocab, unk))
    if kind == "character":
        return JapaneseTokenizer(settings, vocab, roles, words, characters(vocab, unk))
    raise ConfigError(
        f"subword_tokenizer_type is {kind!r:.40}",
        where=settings.folder / "tokenizer_config.json",
        advice="Known: wordpiece, character, sentencepiece.",
    )


def _names(value: object) -> list[str]:
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError("never_split must be a list of strings")
    return list(value)


# --- pieces of words


def wordpiece(vocab: Mapping[str, int], unk: str) -> Subwords:
    """Greedy longest match first; pieces inside a word carry ## (BERT's WordPiece)."""
    longest = max(map(len, vocab))

    @lru_cache(maxsize=65_536)
    def pieces(word: str) -> tuple[tuple[str, int, int], ...]:
        if len(word) > MAX_WORD:
            return ((unk, 0, len(word)),)
        found: list[tuple[str, int, int]] = []
        start = 0
        while start < len(word):
            mark = "##" if start else ""
            for end in range(min(len(word), start + longest), start, -1):
                if mark + word[start:end] in vocab:
                    break
            else:
                return ((unk, 0, len(word)),)
            found.append((mark + word[start:end], start, end))
            start = end
        return tuple(found)

    def subwords(source: Aligned) -> list[Token]:
        tokens = []
        for word in alignment.words(source):
            for piece, start, end in pieces(word.text):
                tokens.append(Token(vocab[piece], piece, *word.span(start, end), 0))
        return tokens

    return subwords


def characters(vocab: Mapping[str, int], unk: str) -> Subwords:
    """Every character of the word's NFKC form; unknown ones are [UNK]."""

    def subwords(source: Aligned) -> list[Token]:
        word = alignment.normalize(source, "NFKC")
        tokens = []
        for position, char in enumerate(word.text):
            name = char if char in vocab else unk
            tokens.append(Token(vocab[name], name, *word.span(position, position + 1), 0))
        return tokens

    return subwords


def sentencepiece(model: PieceModel) -> Subwords:
    """SentencePiece on each word, with ALBERT's two extra rules: quotation marks are made one,
    and a comma behind a digit is a token of its own."""

    def encode(word: Aligned, *, keep_prefix: bool = True) -> list[Token]:
        pieces = model.encode(word.text)
        tokens = [Token(p.id, p.piece, *word.span(p.start, p.end), 0) for p in pieces]
        if keep_prefix or not tokens or not tokens[0].token.startswith(SPACE):
            return tokens
        bare = tokens[0].token[1:]
        if not bare:
            return tokens[1:]
        index = model.ids.get(bare, model.unk_id)
        return [tokens[0]._replace(token=bare, id=index), *tokens[1:]]

    def subwords(source: Aligned) -> list[Token]:
        word = alignment.join(alignment.words(source), " ")
        word = alignment.replace(alignment.replace(word, "``", '"'), "''", '"')
        tokens: list[Token] = []
        for piece in model.encode(word.text):
            token = Token(piece.id, piece.piece, *word.span(piece.start, piece.end), 0)
            name = piece.piece
            if not (len(name) > 1 and name[-1] == "," and name[-2].isdigit()):
                tokens.append(token)
                continue
            start = piece.start + (word.text[piece.start : piece.start + 1] == " ")
            tokens += encode(word[start : piece.end - 1], keep_prefix=name[0] == SPACE)
            place = word.span(piece.end - 1, piece.end)
            tokens.append(Token(model.ids.get(",", model.unk_id), ",", *place, 0))
        return tokens

    return subwords


# --- the tokenizer


class JapaneseTokenizer:
    """words cuts text into words, subwords cuts words into tokens; [CLS] A [SEP] B [SEP]."""

    def __init__(
        self,
        settings: Settings,
        vocab: Mapping[str, int],
        roles: Mapping[str, AddedToken],
        words: segmentation.Segmenter,
        subwords: Subwords,
        model: PieceModel | None = None,
    ) -> None:
        self.words, self.subwords, self.model = words, subwords, model
        self.max_length, self.chat_template = settings.max_length, settings.chat_template
        self.clean_up = settings.options.get("clean_up_tokenization_spaces") is True
        tokens = families.place_tokens(vocab, settings, roles)
        self.added = {token.id: token for token in tokens if token.id is not None}
        self._ids = dict(vocab) | {token.content: index for index, token in self.added.items()}
        self._names = {index: token for token, index in self._ids.items()}
        if model is not None:
            self._names |= {n: p for n, p in enumerate(model.pieces) if n not in self.added}
        self.vocab_size = max(self._names) + 1
        self.roles = {name: token.content for name, token in roles.items()}
        self._ends = (
            families.id_of(tokens, self.roles["cls"], settings.folder),
            families.id_of(tokens, self.roles["sep"], settings.folder),
        )
        self.cls_id: int | None = self._ends[0]
        self.sep_id: int | None = self._ends[1]
        self.pad_id, self.unk_id, self.mask_id, self.bos_id, self.eos_id = (
            self._ids.get(self.roles.get(name, "")) for name in ("pad", "unk", "mask", "bos", "eos")
        )
        special = {index for index, token in self.added.items() if token.special}
        self.special_ids = frozenset(special)
        markup = {index for index, token in self.added.items() if is_markup(token.content)}
        self._forbidden = frozenset((special | markup) - {self.unk_id})
        self._cut = cutter(tokens)
        self._cut_plain = cutter(t for t in tokens if t.id not in special | markup)

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
        count = len(texts)
        slots = bert_slots(count, *self._ends) if special else plain_slots(count)
        return fill(slots, tokens, self.id_to_token)

    def encode_plain(self, text: str, *, first: bool = True) -> list[int]:
        """Ids of text in which nothing is a control token."""
        return [token.id for token in self._tokens(check_text(text), False)]

    def _tokens(self, text: str, parse_special: bool) -> list[Token]:
        tokens: list[Token] = []
        count = 0
        for segment in (self._cut if parse_special else self._cut_plain)(text):
            if segment.token is not None and segment.token.id is not None:
                name, index = segment.token.content, segment.token.id
                tokens.append(Token(index, name, segment.start, segment.end, count))
                count += 1
                continue
            part = alignment.aligned(text[segment.start : segment.end], segment.start)
            for word in self.words(part):
                pieces = self._pieces(word, parse_special)
                tokens += [piece._replace(word=count) for piece in pieces]
                count += bool(pieces)
        return tokens

    def _pieces(self, word: Aligned, parse_special: bool) -> list[Token]:
        pieces = self.subwords(word)
        if parse_special or self._forbidden.isdisjoint(piece.id for piece in pieces):
            return pieces
        if len(word.text) < 2:
            raise InputError(f"{word.text!r} has no plain spelling in this vocabulary")
        return self._pieces(word[:1], False) + self._pieces(word[1:], False)

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return decoding.run(self.stream(skip_special=skip_special), ids)

    def stream(self, *, skip_special: bool = True) -> Stream:
        """Tokens joined by spaces, without " ##" (as BertJapaneseTokenizer decodes)."""
        filters: list[decoding.Filter]
        if self.model is not None:
            filters = [decoding.Strip(left=1)]
        else:
            filters = [decoding.Replace(" ##", ""), decoding.Strip(" \t\n\r", 2**31, right=True)]
        if self.clean_up:
            filters += decoding.clean_up_filters()
        skip = self.special_ids if skip_special else frozenset[int]()
        return Stream(self._piece_of, filters, skip=skip, errors="each")

    def _piece_of(self, index: int, first: bool) -> str | bytes | None:
        token = self._names.get(index)
        if self.model is None:
            token = self.roles["unk"] if token is None else token
            return token if first else " " + token
        if token is None:
            return None
        if index == self.model.unk_id:
            return " \u2047 "  # how SentencePiece writes what it does not know
        if index in self.model.bytes:
            return bytes([decoding.byte_piece(token) or 0])
        return token.replace(SPACE, " ")

    def id_to_token(self, index: int) -> str:
        token = self._names.get(index)
        if token is None:
            raise InputError(f"There is no token {index} in this vocabulary")
        return token

    def token_to_id(self, token: str) -> int | None:
        return self._ids.get(token)

    @property
    def controls(self) -> list[AddedToken]:
        """Tokens that text from a user must never become."""
        return [self.added[index] for index in sorted(self._forbidden)]
