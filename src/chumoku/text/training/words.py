"""Text into words before training, exactly as the finished tokenizer will cut it."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping

from tokenizers import normalizers, pre_tokenizers

from chumoku.errors import InputError
from chumoku.text import segmentation
from chumoku.text.alignment import aligned
from chumoku.text.fast import check_text
from chumoku.text.training.settings import TokenizerSettings

MAX_WORD = 100
"""WordPiece makes [UNK] of a longer word (BERT's max_input_chars_per_word)."""

Split = Callable[[str], list[str]]


def checked(texts: Iterable[str]) -> Iterator[str]:
    """The texts that are not empty. Raises InputError for what is no text, or if there is none."""
    if isinstance(texts, str):
        raise InputError("texts must be several texts, not one string", advice="Pass [text].")
    empty = True
    for text in texts:
        check_text(text)
        if text:
            empty = empty and text.isspace()
            yield text
    if empty:
        raise InputError("There is no text to learn from")


def words_of(settings: TokenizerSettings) -> Split:
    """How a BERT cuts text into words: BasicTokenizer's rules, or a Japanese dictionary."""
    if settings.japanese is None and settings.kind == "wordpiece":
        return _bert_words(settings)
    kind = settings.japanese or "basic"
    options = settings.segmenter_options if settings.japanese else {}
    segment = segmentation.segmenter(kind, options, lower=settings.lowercase, never_split=())
    nfkc = settings.normalizes

    def cut(text: str) -> list[str]:
        # Text that is in NFKC already is not normalised once more, character by character.
        text = unicodedata.normalize("NFKC", text) if nfkc else text
        return [part for word in segment(aligned(text)) for part in word.text.split()]

    return cut


def _bert_words(settings: TokenizerSettings) -> Split:
    normalizer = bert_normalizer(settings)
    splitter = pre_tokenizers.BertPreTokenizer()

    def cut(text: str) -> list[str]:
        text = normalizer.normalize_str(text)
        return [word for word, _ in splitter.pre_tokenize_str(text)]

    return cut


def bert_normalizer(settings: TokenizerSettings) -> normalizers.Normalizer:
    """BERT's cleaning of text, behind NFKC where that is asked for."""
    bert = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=True,
        strip_accents=settings.strip_accents,
        lowercase=settings.lowercase,
    )
    if not settings.normalizes:
        return bert
    return normalizers.Sequence([normalizers.NFKC(), bert])


def plain_normalizer(settings: TokenizerSettings) -> normalizers.Normalizer | None:
    """NFKC and lower case, where asked for, for a tokenizer that has no rules of its own."""
    parts: list[normalizers.Normalizer] = []
    if settings.normalizes:
        parts.append(normalizers.NFKC())
    if settings.lowercase:
        parts.append(normalizers.Lowercase())
    return normalizers.Sequence(parts) if parts else None


def stretches_of(settings: TokenizerSettings) -> Split:
    """Text cut behind each Japanese word, with nothing lost: the stretches join to the text."""
    if settings.japanese is None:
        return lambda text: [text]
    options = settings.segmenter_options | {"normalize_text": False}
    segment = segmentation.segmenter(settings.japanese, options, lower=False, never_split=())
    nfkc = settings.normalizes

    def cut(text: str) -> list[str]:
        text = unicodedata.normalize("NFKC", text) if nfkc else text
        ends = [word.whole[1] for word in segment(aligned(text)) if word.text]
        starts = [0, *ends]
        return [text[a:b] for a, b in zip(starts, [*ends, len(text)], strict=True) if a < b]

    return cut


def count_words(texts: Iterable[str], cut: Split) -> Counter[str]:
    """word -> how often it occurs. Raises InputError where there is no word."""
    counts: Counter[str] = Counter()
    for text in checked(texts):
        counts.update(cut(text))
    if not counts:
        raise InputError("There is no word in the text to learn from")
    return counts


def count_characters(words: Mapping[str, int]) -> Counter[str]:
    """character -> how often it occurs."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for char in word:
            counts[char] += count
    return counts


def most_frequent(counts: Mapping[str, int], limit: int | None, least: int, more: str) -> set[str]:
    """The characters that are kept: `more`, and up to `limit` in all that occur `least` times.
    Of equally frequent ones those that stand first in Unicode, so that it is no matter of chance.
    """
    kept = dict.fromkeys(more)
    for char in sorted(counts, key=lambda char: (-counts[char], char)):
        if counts[char] < least or (limit is not None and len(kept) >= limit):
            break
        kept[char] = None
    return set(kept)
