"""The training itself, by the `tokenizers` and `sentencepiece` libraries, made repeatable.

The same text gives the same bytes. The WordPiece trainer of `tokenizers` alone does not: it numbers
the ## characters in the order of a hash table, and ties between pairs are decided by number.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import sentencepiece
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from chumoku.errors import ConfigError, InputError
from chumoku.text.families import LLAMA3_SPLIT
from chumoku.text.training.settings import TokenizerSettings
from chumoku.text.training.words import (
    MAX_WORD,
    checked,
    count_characters,
    most_frequent,
    plain_normalizer,
    stretches_of,
)

BLOCK_CHARACTERS = 1 << 16
THREADS = 4
"""A constant, not the machine's cores: Unigram's sums depend on it."""
LONGEST_LINE = 1 << 30
"""SentencePiece drops longer lines without a word; by default those above 4,192 bytes."""
DELIMITER = "\ue000"
"""Marks the end of a word for SentencePiece: a private-use character, dropped from the text."""
_UNFIT = re.compile("[\n\r\0\u2585\ue000]+")
"""Where text is cut for SentencePiece: it learns from lines, and drops any that hold a NUL or
U+2585, which stands for unknown characters inside it."""
_TOO_SMALL = re.compile(r"smaller than required_chars\. \d+ vs (\d+)")


def too_small(size: int, needed: int, advice: str) -> ConfigError:
    return ConfigError(
        f"A vocabulary of {size} is too small for this text: it needs at least {needed} ids, for "
        "the control tokens and the alphabet",
        where="vocab_size",
        advice=advice,
    )


# --- WordPiece


def wordpiece(
    words: Mapping[str, int], specials: Sequence[str], settings: TokenizerSettings
) -> list[str]:
    """word -> count into a vocabulary: specials, characters, ## characters, then merges in order.

    Words that could only become [UNK] (longer than 100 characters, or with a character outside the
    alphabet) teach nothing. Raises ConfigError where the vocabulary is too small.
    """
    words = {word: count for word, count in words.items() if len(word) <= MAX_WORD}
    letters = count_characters(words)
    alphabet = most_frequent(letters, settings.alphabet_limit, 1, settings.alphabet)
    words = {word: count for word, count in words.items() if alphabet.issuperset(word)}
    inside = {"##" + char for word in words for char in word[1:]}
    start = [*specials, *sorted(alphabet - set(specials)), *sorted(inside)]
    if len(start) > settings.vocab_size:
        advice = "Take a larger vocab_size, or set alphabet_limit."
        raise too_small(settings.vocab_size, len(start), advice)
    engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.CharDelimiterSplit("\n")
    trainer = trainers.WordPieceTrainer(
        vocab_size=settings.vocab_size,
        min_frequency=2 if settings.min_frequency is None else settings.min_frequency,
        show_progress=False,
        special_tokens=start,  # all numbers are given, none is left to the hash table
        continuing_subword_prefix="##",
    )
    engine.train_from_iterator(_blocks(words), trainer)
    vocab = engine.get_vocab(with_added_tokens=False)
    return sorted(vocab, key=lambda token: vocab[token])


def _blocks(words: Mapping[str, int]) -> Iterator[str]:
    """Each word as often as it was counted, a line each, in strings of a good size."""
    block: list[str] = []
    size = 0
    for word in sorted(words):
        left = words[word]
        while left:
            times = min(left, BLOCK_CHARACTERS // (len(word) + 1))
            left -= times
            block.append(f"{word}\n" * times)
            size += times * (len(word) + 1)
            if size >= BLOCK_CHARACTERS:
                yield "".join(block)
                block, size = [], 0
    yield "".join(block)


# --- byte-level BPE


def byte_bpe(
    texts: Iterable[str], size: int, settings: TokenizerSettings
) -> tuple[list[str], list[tuple[str, str]]]:
    """Tokens in GPT-2's byte alphabet (the 256 bytes first), and the merges, best first."""
    if size < 256:
        needed = 256 + settings.vocab_size - size
        raise too_small(settings.vocab_size, needed, "The 256 bytes must all be there.")
    engine = Tokenizer(models.BPE())
    normalizer = plain_normalizer(settings)
    if normalizer is not None:
        engine.normalizer = normalizer
    if settings.target == "llama":
        engine.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(LLAMA3_SPLIT), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    else:
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2 if settings.min_frequency is None else settings.min_frequency,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    cut = stretches_of(settings)
    engine.train_from_iterator((part for text in checked(texts) for part in cut(text)), trainer)
    model = json.loads(engine.to_str())["model"]
    vocab = model["vocab"]
    merges = [(left, right) for left, right in model["merges"]]
    return sorted(vocab, key=lambda token: int(vocab[token])), merges


# --- SentencePiece


def piece_model(
    texts: Iterable[str],
    size: int,
    settings: TokenizerSettings,
    options: Mapping[str, object],
    *,
    words: bool = False,
    sides: int = 1,
) -> bytes:
    """A SentencePiece model (ModelProto) of `size` pieces, its control pieces included.

    options: of the trainer, by family. words: the texts are words already, joined by spaces.
    sides: models of this size that share settings.vocab_size, for the advice of an error.
    Raises ConfigError where the vocabulary is too small, InputError where there is no text.
    """
    cut = (lambda text: [text]) if words else stretches_of(settings)
    lines = [
        DELIMITER.join(cut(line))
        for text in checked(texts)
        for line in _UNFIT.split(text)
        if line and not line.isspace()
    ]
    if not lines:
        raise InputError("There is no text to learn from")
    out = io.BytesIO()
    chosen: dict[str, Any] = {
        "model_type": settings.kind,
        "vocab_size": max(size, 4),  # below that its complaint does not say what is needed
        "hard_vocab_limit": False,  # a short text gives fewer pieces instead of an error
        "character_coverage": settings.coverage or 0.9995,
        "required_chars": settings.alphabet,
        "normalization_rule_name": _rule(settings),
        "max_sentence_length": LONGEST_LINE,
        "num_threads": THREADS,
        "minloglevel": 2,
        **options,
    }
    if settings.japanese and not words:
        chosen["pretokenization_delimiter"] = DELIMITER
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=out, **chosen
        )
    except RuntimeError as error:
        raise _told(error, size, sides, settings) from None
    return out.getvalue()


def _rule(settings: TokenizerSettings) -> str:
    if not settings.normalizes:
        return "identity"
    return "nmt_nfkc_cf" if settings.lowercase else "nmt_nfkc"


def _told(error: RuntimeError, size: int, sides: int, settings: TokenizerSettings) -> Exception:
    """SentencePiece's complaint as ours."""
    needed = _TOO_SMALL.search(str(error))
    if needed is not None:
        least = settings.vocab_size + sides * (int(needed[1]) - size)
        advice = "Take a larger vocab_size, or a smaller coverage (0.9995 is usual)."
        return too_small(settings.vocab_size, least, advice)
    reason = str(error).splitlines()[0][:200]
    return InputError(f"SentencePiece cannot learn from this text: {reason}")
