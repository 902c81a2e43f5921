"""Texts -> a trained tokenizer -> a folder that chumoku and transformers load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from chumoku.errors import ConfigError, InputError, ResourceError
from chumoku.text.encoding import Tokenizer
from chumoku.text.load import TOKENIZER_FILES
from chumoku.text.training import folders, trainers
from chumoku.text.training.folders import Files
from chumoku.text.training.settings import BERT_SPECIALS, TokenizerSettings
from chumoku.text.training.words import (
    checked,
    count_characters,
    count_words,
    most_frequent,
    plain_normalizer,
    words_of,
)

LLAMA3_SPECIALS = 256
# Left from another tokenizer, these would speak for the new one.
_OTHER_FILES = ("special_tokens_map.json", "added_tokens.json", "target_vocab.json")

_LLAMA = {
    "byte_fallback": True,
    "split_digits": True,
    "allow_whitespace_only_pieces": True,
    "remove_extra_whitespaces": False,
}
_T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
_BERT = {
    **{"pad_id": 0, "pad_piece": "[PAD]", "unk_id": 1, "unk_piece": "[UNK]"},
    **{"bos_id": -1, "eos_id": -1},
}


def files_in_the_way(folder: Path, *, overwrite: bool) -> list[Path]:
    """Another tokenizer's files in a folder. Raises InputError for them unless overwrite is set."""
    names = sorted(TOKENIZER_FILES | set(_OTHER_FILES))
    old = [folder / name for name in names if (folder / name).is_file()]
    if old and not overwrite:
        raise InputError(
            f"The folder holds a tokenizer already ({', '.join(path.name for path in old)})",
            where=folder,
            advice="Choose another folder, or overwrite it (overwrite=True, --overwrite).",
        )
    return old


@dataclass(frozen=True)
class Trained:
    """The files of a tokenizer, not yet on disk.

    files: name -> contents. notes: what the reader should know, such as a smaller vocabulary.
    """

    settings: TokenizerSettings
    files: Mapping[str, bytes]
    notes: tuple[str, ...] = ()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer, as load_tokenizer gives it for the saved folder."""
        return folders.opened(self.files)

    @property
    def vocab_size(self) -> int:
        """Ids in all: the rows that a model's embedding needs."""
        return self.tokenizer.vocab_size

    def save(self, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Write the files into a folder, which may hold a model without a tokenizer.

        overwrite: replace another tokenizer that lies there. Raises InputError, ResourceError.
        """
        folder = Path(folder)
        old = files_in_the_way(folder, overwrite=overwrite)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for path in old:
                path.unlink()
            for name, data in self.files.items():
                (folder / name).write_bytes(data)
        except OSError as error:
            raise ResourceError(
                f"The tokenizer cannot be written: {error.strerror}", where=folder
            ) from error
        return folder


def train_tokenizer(
    texts: Iterable[str],
    settings: TokenizerSettings,
    target_texts: Iterable[str] | None = None,
) -> Trained:
    """Learn a vocabulary from texts; the same texts give the same bytes.

    texts: read once; SentencePiece keeps them all in memory, the other kinds only their words.
    target_texts: Marian only: the other language, with pieces of its own (half of vocab_size each;
        what both have is numbered once). Without it both languages share the pieces of `texts`.
    Sources: WordPiece (Schuster and Nakajima 2012; BERT), BPE (Sennrich et al. 2016), over bytes
    (GPT-2), Unigram (Kudo 2018). Raises ConfigError, InputError, DependencyError, TokenizerError.
    """
    if target_texts is not None and settings.target != "marian":
        raise ConfigError("Only Marian has a second language", where="target_texts")
    make = {
        "wordpiece": _wordpiece,
        "byte-bpe": _byte_bpe,
        "bpe": _pieces,
        "unigram": _pieces,
        "characters": _characters,
    }[settings.kind]
    if settings.target == "marian":
        files = _marian(texts, target_texts, settings)
    else:
        files = make(texts, settings)
    trained = Trained(settings, files)
    size = trained.vocab_size
    if size >= settings.vocab_size or settings.kind == "characters":
        return trained
    note = f"the text gives {size} tokens, fewer than the {settings.vocab_size} asked for"
    return Trained(settings, files, (note,))


def _wordpiece(texts: Iterable[str], settings: TokenizerSettings) -> Files:
    words = count_words(texts, words_of(settings))
    vocab = trainers.wordpiece(words, _bert_specials(settings), settings)
    if settings.japanese:
        return folders.japanese_bert(vocab, settings)
    return folders.bert(vocab, settings)


def _bert_specials(settings: TokenizerSettings) -> list[str]:
    return [*BERT_SPECIALS, *settings.extra_tokens]


def _byte_bpe(texts: Iterable[str], settings: TokenizerSettings) -> Files:
    own = {"gpt2": 1, "roberta": 5, "llama": LLAMA3_SPECIALS, "none": 0}[settings.target]
    size = settings.vocab_size - own - len(settings.extra_tokens)
    tokens, merges = trainers.byte_bpe(texts, size, settings)
    if settings.target == "llama":
        return folders.llama3(tokens, settings)
    return folders.byte_bpe(tokens, merges, settings)


def _pieces(texts: Iterable[str], settings: TokenizerSettings) -> Files:
    extra = list(settings.extra_tokens)
    if settings.target == "bert":
        cut = words_of(settings)
        lines = (" ".join(cut(text)) for text in checked(texts))
        options = _BERT | {"control_symbols": [*BERT_SPECIALS[2:], *extra]}
        model = trainers.piece_model(lines, settings.vocab_size, settings, options, words=True)
        return folders.japanese_bert([], settings, model)
    if settings.target == "t5":
        size = settings.vocab_size - settings.sentinels
        options = _T5 | {"control_symbols": extra}
        return folders.t5(trainers.piece_model(texts, size, settings, options), settings)
    options = _LLAMA | {"control_symbols": extra}
    return folders.llama(
        trainers.piece_model(texts, settings.vocab_size, settings, options), settings
    )


def _marian(
    texts: Iterable[str], target_texts: Iterable[str] | None, settings: TokenizerSettings
) -> Files:
    # Of each model's three control pieces none is numbered; vocab.json has three of its own.
    room = settings.vocab_size - 3 - len(settings.extra_tokens)
    if target_texts is None:
        model = trainers.piece_model(texts, room + 3, settings, {})
        return folders.marian(model, model, settings)
    both = [
        trainers.piece_model(side, room // 2 + 3, settings, {}, sides=2)
        for side in (texts, target_texts)
    ]
    return folders.marian(both[0], both[1], settings)


def _characters(texts: Iterable[str], settings: TokenizerSettings) -> Files:
    least = settings.min_frequency or 1
    if settings.target == "bert":
        counts = count_characters(count_words(texts, words_of(settings)))
        specials = _bert_specials(settings)
    else:
        counts = Counter()
        normalizer = plain_normalizer(settings)
        for text in checked(texts):
            counts.update(text if normalizer is None else normalizer.normalize_str(text))
        specials = [*settings.extra_tokens, *(["<|endoftext|>"] * (settings.target == "gpt2"))]
    room = settings.vocab_size - len(specials)
    needed = len(counts.keys() | set(settings.alphabet))
    if settings.target == "none" and needed > room:
        advice = "Take a larger vocab_size, or the family gpt2, which has a token for the rest."
        raise trainers.too_small(settings.vocab_size, needed + len(specials), advice)
    if room < max(1, len(set(settings.alphabet))):
        advice = "Take a larger vocab_size."
        least_size = len(specials) + max(1, len(set(settings.alphabet)))
        raise trainers.too_small(settings.vocab_size, least_size, advice)
    limit = min(room, settings.alphabet_limit or room)
    alphabet = most_frequent(counts, limit, least, settings.alphabet)
    if not alphabet:
        raise ConfigError(
            f"No character occurs {least} times",
            where="min_frequency",
            advice="Take a smaller one.",
        )
    if settings.target == "bert":
        return folders.japanese_bert([*specials, *sorted(alphabet)], settings)
    return folders.characters(sorted(alphabet), settings)
