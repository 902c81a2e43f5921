"""What kind of tokenizer to train, and for which family of models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from chumoku.errors import ConfigError
from chumoku.text import families

# kind -> the families that have such a tokenizer; the first is the default.
KINDS: Final = {
    "wordpiece": ("bert",),
    "byte-bpe": ("gpt2", "roberta", "llama", "none"),
    "bpe": ("llama", "marian"),
    "unigram": ("t5", "marian", "bert"),
    "characters": ("none", "gpt2", "bert"),
}
PIECE_KINDS: Final = ("bpe", "unigram")
"""Kinds that the `sentencepiece` library trains."""
FAMILIES: Final = ("bert", "roberta", "gpt2", "t5", "llama", "marian", "none")
SEGMENTERS: Final = ("mecab", "sudachi")
ROLES: Final = {
    "bert": families.BERT_ROLES,
    "roberta": families.ROBERTA_ROLES,
    "gpt2": families.GPT2_ROLES,
    "t5": families.T5_ROLES,
    "llama": families.LLAMA_ROLES,
    "marian": families.T5_ROLES,
    "none": {},
}
# Tohoku's Japanese BERTs: five control tokens, ten spare ones, ids 0 to 14.
BERT_SPECIALS: Final = (
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(f"[unused{n}]" for n in range(10)),
)
MAX_LENGTHS: Final = {"bert": 512, "roberta": 512, "gpt2": 1024, "t5": 512, "marian": 512}
MAX_VOCAB: Final = 2_000_000


@dataclass(frozen=True)
class TokenizerSettings:
    """A tokenizer that is to be trained.

    kind:           wordpiece, byte-bpe, bpe (SentencePiece), unigram (SentencePiece), characters.
    vocab_size:     ids in all, control tokens included; an upper bound where the text gives less.
    family:         whose control tokens and files: bert, roberta, gpt2, t5, llama, marian, none;
                    None: the usual one of the kind (bert, gpt2, llama, t5, none).
    lowercase:      text is lower-cased (SentencePiece: case-folded) first.
    nfkc:           text is brought into NFKC; None: as the family does it (Japanese BERTs, T5 and
                    Marian do).
    strip_accents:  BERT without japanese only; None: where lowercase is set, as BERT does.
                    It also takes the dakuten off kana.
    japanese:       cut words with mecab or sudachi first, so that no token crosses a word's end.
                    A BERT goes on doing so in use; for the other families only training does.
    dictionary:     mecab: unidic_lite, ipadic, unidic, or a folder. sudachi: core, small, full.
    min_frequency:  of a pair that is merged (2 by default), or of a character (1). Not for
                    SentencePiece, which has no such limit.
    alphabet:       characters that the vocabulary has even if the text lacks them.
    alphabet_limit: so many characters at most, the most frequent ones (wordpiece, characters).
    coverage:       share of the text that the characters must cover (SentencePiece), 0.9995.
    sentinels:      T5's <extra_id_N>, which have the last ids.
    extra_tokens:   more control tokens: a chat format's, or Marian's language codes (>>jpn<<).
    max_length:     tokens that the model takes; None: as published for the family, none for llama.
    Raises ConfigError for what contradicts itself.
    """

    kind: str = "wordpiece"
    vocab_size: int = 8000
    family: str | None = None
    lowercase: bool = False
    nfkc: bool | None = None
    strip_accents: bool | None = None
    japanese: str | None = None
    dictionary: str | None = None
    min_frequency: int | None = None
    alphabet: str = ""
    alphabet_limit: int | None = None
    coverage: float | None = None
    sentinels: int = 100
    extra_tokens: tuple[str, ...] = ()
    max_length: int | None = None

    def __post_init__(self) -> None:
        _check_names(self)
        _check_numbers(self)
        _check_tokens(self)
        _check_text_options(self)

    @property
    def target(self) -> str:
        """The family, with the default filled in."""
        return self.family or KINDS[self.kind][0]

    @property
    def normalizes(self) -> bool:
        """Is text brought into NFKC?"""
        if self.nfkc is not None:
            return self.nfkc
        if self.target == "bert":
            return self.japanese is not None or self.kind == "characters"
        return self.target in ("t5", "marian")

    @property
    def window(self) -> int | None:
        """model_max_length."""
        return self.max_length or MAX_LENGTHS.get(self.target)

    @property
    def segmenter_options(self) -> dict[str, Any]:
        """mecab_kwargs or sudachi_kwargs of a BertJapaneseTokenizer."""
        options: dict[str, Any] = {}
        if self.japanese == "mecab":
            options["mecab_dic"] = self.dictionary or "unidic_lite"
        elif self.japanese == "sudachi":
            options["sudachi_split_mode"] = "A"
            options["sudachi_dict_type"] = self.dictionary or "core"
        if not self.normalizes:
            options["normalize_text"] = False
        return options


def _check_names(settings: TokenizerSettings) -> None:
    if settings.kind not in KINDS:
        raise ConfigError(
            f"There is no kind of tokenizer {settings.kind!r:.40}",
            where="kind",
            advice=f"Known: {', '.join(KINDS)}.",
        )
    known = KINDS[settings.kind]
    if settings.target not in known:
        if settings.target not in FAMILIES:
            what = f"There is no family {settings.target!r:.40}"
        else:
            what = f"No {settings.target} model has a tokenizer of the kind {settings.kind}"
        raise ConfigError(
            what, where="family", advice=f"Families of {settings.kind}: {', '.join(known)}."
        )
    if settings.japanese is not None and settings.japanese not in SEGMENTERS:
        raise ConfigError(
            f"There is no word segmentation {settings.japanese!r:.40}",
            where="japanese",
            advice=f"Known: {', '.join(SEGMENTERS)}.",
        )
    if settings.dictionary is not None and settings.japanese is None:
        raise ConfigError("dictionary needs japanese (mecab or sudachi)", where="dictionary")
    if settings.kind == "unigram" and settings.target == "bert" and settings.japanese is None:
        raise ConfigError(
            "A BERT with SentencePiece pieces cuts Japanese words first",
            where="japanese",
            advice='Set japanese="mecab" (--japanese mecab), or take wordpiece.',
        )


def _check_numbers(settings: TokenizerSettings) -> None:
    lowest: tuple[tuple[str, object, int], ...] = (
        ("vocab_size", settings.vocab_size, 1),
        ("min_frequency", settings.min_frequency, 1),
        ("alphabet_limit", settings.alphabet_limit, 1),
        ("max_length", settings.max_length, 1),
        ("sentinels", settings.sentinels, 0),
    )
    for name, value, least in lowest:
        if value is None and name != "vocab_size":
            continue
        if type(value) is not int or not least <= value <= MAX_VOCAB:
            raise ConfigError(
                f"{name} must be a whole number from {least} to {MAX_VOCAB}, not {value!r:.40}",
                where=name,
            )
    if settings.coverage is not None and not 0.98 <= settings.coverage <= 1:
        raise ConfigError(
            f"coverage must lie between 0.98 and 1, it is {settings.coverage!r:.40}",
            where="coverage",
        )
    pieces = settings.kind in PIECE_KINDS
    for name, given, possible in (
        ("min_frequency", settings.min_frequency, not pieces),
        ("alphabet_limit", settings.alphabet_limit, settings.kind in ("wordpiece", "characters")),
        ("coverage", settings.coverage, pieces),
        ("alphabet", settings.alphabet or None, settings.kind != "byte-bpe"),
    ):
        if given is not None and not possible:
            raise ConfigError(f"{settings.kind} has no {name}", where=name)


def _check_tokens(settings: TokenizerSettings) -> None:
    own = {*ROLES[settings.target].values(), *(BERT_SPECIALS if settings.target == "bert" else ())}
    seen: set[str] = set()
    for token in settings.extra_tokens:
        if not token or any(char.isspace() for char in token):
            raise ConfigError(
                f"A control token must be a word without spaces, not {token!r:.40}",
                where="extra_tokens",
            )
        if token in own or token in seen:
            raise ConfigError(f"The token {token!r:.40} is there already", where="extra_tokens")
        seen.add(token)


def _check_text_options(settings: TokenizerSettings) -> None:
    target, kind = settings.target, settings.kind
    if settings.strip_accents is not None and (kind != "wordpiece" or settings.japanese):
        raise ConfigError("strip_accents is for a BERT without japanese", where="strip_accents")
    if kind in PIECE_KINDS and target == "llama" and (settings.normalizes or settings.lowercase):
        raise ConfigError(
            "LLaMA's tokenizer takes text as it is: neither nfkc nor lowercase",
            where="nfkc" if settings.normalizes else "lowercase",
        )
    needs = target == "t5" or (target == "bert" and kind == "characters")
    if settings.nfkc is False and needs:
        raise ConfigError(f"The tokenizer of {target} always brings text into NFKC", where="nfkc")
    if kind in PIECE_KINDS and settings.lowercase and not settings.normalizes:
        raise ConfigError(
            "SentencePiece folds case only together with NFKC",
            where="lowercase",
            advice="Leave nfkc as it is.",
        )
    drops = settings.alphabet_limit is not None or (settings.min_frequency or 1) > 1
    if kind == "characters" and target == "none" and drops:
        raise ConfigError(
            "Without a control token for unknown characters none may be dropped",
            where="alphabet_limit" if settings.alphabet_limit else "min_frequency",
            advice="Take the family gpt2.",
        )
