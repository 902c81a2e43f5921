"""Japanese text into words: MeCab, Sudachi, or splitting at spaces and punctuation.

Each segmenter takes Aligned text and gives Aligned words, equal to those of the word tokenizers
of transformers' BertJapaneseTokenizer, but with their places in the text as it was written.
"""

from __future__ import annotations

import importlib
import shlex
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from chumoku.errors import ConfigError, DependencyError, InputError
from chumoku.text import alignment
from chumoku.text.alignment import Aligned

Segmenter = Callable[[Aligned], list[Aligned]]

INSTALL_JA = 'pip install "chumoku[ja]"'
INSTALL_SUDACHI = 'pip install "chumoku[sudachi]"'
STRETCH: Final = 20_000
"""Characters that MeCab is given at once.

Its costs end at 2^31, where it gives no result and fugashi reads one all the same (SIGSEGV); a word
costs less than 2^16. It loses what follows 2^16 bytes of white space.
"""
SUDACHI_STRETCH: Final = 12_000
"""Characters that Sudachi is given at once: with 4 bytes each they are within its 49,149 bytes."""
SHORT: Final = 1900
"""Characters that Sudachi takes whatever they are: written out they may grow, U+FDFA to 33 bytes,
and must be within 65,535 bytes again."""
# What a model's config may say to MeCab. Others, such as -o, write files or change the output.
MECAB_OPTIONS = ("-d", "--dicdir", "-u", "--userdic", "-r", "--rcfile", "-b", "-M", "-E")


def segmenter(
    kind: object, options: Mapping[str, Any], *, lower: bool, never_split: Collection[str]
) -> Segmenter:
    """The segmenter that word_tokenizer_type names. Raises ConfigError, DependencyError."""
    if kind == "basic":
        return lambda source: basic_words(source, lower=lower, never_split=never_split)
    if kind == "mecab":
        cut = _mecab(options)
    elif kind == "sudachi":
        cut = _sudachi(options)
    elif kind == "jumanpp":
        raise DependencyError(
            "word_tokenizer_type jumanpp needs the Juman++ program, which chumoku does not drive",
            where="tokenizer_config.json",
            advice="Choose a model that is segmented with MeCab or Sudachi.",
        )
    else:
        raise ConfigError(
            f"word_tokenizer_type is {kind!r:.40}",
            where="tokenizer_config.json",
            advice="Known: basic, mecab, sudachi.",
        )
    normal = _boolean(options, "normalize_text", True)
    trim = _boolean(options, "trim_whitespace", False)

    def segment(source: Aligned) -> list[Aligned]:
        if normal:
            source = alignment.normalize(source, "NFKC")
        words = _place(source, cut(source.text))
        if lower:
            words = [w if w.text in never_split else alignment.lower(w) for w in words]
        if trim:
            words = [alignment.strip(word) for word in words if word.text.strip()]
        return words

    return segment


def _place(source: Aligned, surfaces: list[str]) -> list[Aligned]:
    """Find each surface in the text, in order; only white space lies between them."""
    words: list[Aligned] = []
    position = 0
    for surface in surfaces:
        start = source.text.find(surface, position)
        if start < 0:
            raise InputError(f"The dictionary gave a word that is not in the text: {surface!r:.40}")
        position = start + len(surface)
        words.append(source[start:position])
    return words


def _boolean(options: Mapping[str, Any], name: str, default: bool) -> bool:
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be true or false, not {value!r:.40}")
    return value


def _text_option(options: Mapping[str, Any], name: str, default: str | None) -> str | None:
    value = options.get(name, default)
    if value is not None and not isinstance(value, str):
        raise ConfigError(f"{name} must be a string, not {value!r:.40}")
    return value


def _known(options: Mapping[str, Any], names: Collection[str], where: str) -> None:
    unknown = sorted(options.keys() - set(names))
    if unknown:
        raise ConfigError(f"{where} has the unknown keys {', '.join(unknown)}")


def _package(name: str, what: str, install: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise DependencyError(
            f"{what} is not installed ({name})", advice=f"Run: {install}"
        ) from error


# --- MeCab


def _mecab(options: Mapping[str, Any]) -> Callable[[str], list[str]]:
    _known(
        options, ("mecab_dic", "mecab_option", "normalize_text", "trim_whitespace"), "mecab_kwargs"
    )
    fugashi = _package("fugashi", "The MeCab wrapper", INSTALL_JA)
    dictionary = _text_option(options, "mecab_dic", "unidic_lite")
    arguments = _checked(_text_option(options, "mecab_option", None) or "")
    if dictionary is not None:
        folder = dictionary_folder(dictionary)
        rc = folder / "mecabrc"
        arguments = f'-d "{folder}" -r "{rc}" {arguments}'
    try:
        tagger = fugashi.GenericTagger(arguments)
    except RuntimeError as error:
        raise ConfigError(f"MeCab does not start with {arguments!r:.200}") from error

    def cut(text: str) -> list[str]:
        if "\x00" in text:
            # MeCab's text ends at a NUL: go on behind it, as nothing may be lost.
            return [word for part in text.split("\x00") for word in cut(part)]
        return [node.surface for part in stretches(text, STRETCH) for node in tagger(part)]

    return cut


def stretches(text: str, most: int) -> Iterator[str]:
    """The text in parts of at most `most` characters, which end where no word goes on, if any may.

    That is behind a line end, else behind a full stop, else behind a space; white space in a row,
    which is one word for Sudachi, stays together where it has room.
    """
    start = 0
    while len(text) - start > most:
        part = text[start : start + most].rstrip()  # what is taken off may go on behind it
        found = (part.rfind(mark) + 1 for mark in "\n。 ")
        end = next(filter(None, found), len(part) or most)
        end += len(part[end:]) - len(part[end:].lstrip())
        yield text[start : start + end]
        start += end
    yield text[start:]


def dictionary_folder(name: str) -> Path:
    """Where the MeCab dictionary lies: ipadic, unidic_lite, unidic, or a folder."""
    if name in ("ipadic", "unidic_lite", "unidic"):
        install = (
            "pip install unidic && python -m unidic download" if name == "unidic" else INSTALL_JA
        )
        package = _package(name, f"The MeCab dictionary {name}", install)
        folder = Path(package.DICDIR)
        if not folder.is_dir():
            raise DependencyError(
                f"The MeCab dictionary {name} is not downloaded",
                where=folder,
                advice=f"Run: {install}",
            )
        return folder
    folder = Path(name)
    if not folder.is_dir() or '"' in name:
        raise ConfigError(
            f"mecab_dic is {name!r:.80}", advice="Known: unidic_lite, ipadic, unidic, or a folder."
        )
    return folder


def _checked(option: str) -> str:
    """mecab_option of a config, if it says nothing but which dictionary to use."""
    try:
        words = shlex.split(option)
    except ValueError as error:
        raise ConfigError(f"mecab_option {option!r:.80} cannot be read: {error}") from error
    for word in words:
        name = word.split("=")[0] if word.startswith("--") else word[:2]
        if word.startswith("-") and name not in MECAB_OPTIONS:
            raise ConfigError(
                f"mecab_option holds {word!r:.40}", advice=f"Allowed: {', '.join(MECAB_OPTIONS)}."
            )
    return option


# --- Sudachi

_SUDACHI_OPTIONS = (
    "sudachi_split_mode",
    "sudachi_config_path",
    "sudachi_resource_dir",
    "sudachi_dict_type",
    "sudachi_projection",
    "normalize_text",
    "trim_whitespace",
)


def _sudachi(options: Mapping[str, Any]) -> Callable[[str], list[str]]:
    _known(options, _SUDACHI_OPTIONS, "sudachi_kwargs")
    sudachipy = _package("sudachipy", "Sudachi", INSTALL_SUDACHI)
    mode = _text_option(options, "sudachi_split_mode", "A")
    if mode not in ("A", "B", "C"):
        raise ConfigError(f"sudachi_split_mode is {mode!r:.20}", advice="Known: A, B, C.")
    kind = _text_option(options, "sudachi_dict_type", "core")
    if _text_option(options, "sudachi_projection", None) not in (None, "surface"):
        raise ConfigError(
            "sudachi_projection other than surface changes the words, which then have no place "
            "in the text",
        )
    # A settings file of Sudachi may name shared libraries as plug-ins, which it then runs.
    for name in ("sudachi_config_path", "sudachi_resource_dir"):
        if options.get(name) is not None:
            raise ConfigError(f"{name} is not allowed: such a file can make Sudachi run code")
    if kind not in ("core", "small", "full"):
        raise ConfigError(f"sudachi_dict_type is {kind!r:.40}", advice="Known: small, core, full.")
    install = INSTALL_SUDACHI if kind == "core" else f"pip install sudachidict_{kind}"
    _package(f"sudachidict_{kind}", f"The Sudachi dictionary {kind}", install)
    try:
        dictionary = sudachipy.Dictionary(dict=kind)
        # SudachiPy 0.7 calls it tokenizer, 0.6 create.
        make = getattr(dictionary, "tokenizer", None) or dictionary.create
        tokenizer = make(mode=getattr(sudachipy.SplitMode, mode))
    except Exception as error:
        raise ConfigError(f"Sudachi does not start: {error}"[:200]) from error

    def cut(text: str, most: int = SUDACHI_STRETCH) -> list[str]:
        return [word for part in stretches(text, most) for word in surfaces(part)]

    def surfaces(part: str) -> list[str]:
        try:
            return [word.surface() for word in tokenizer.tokenize(part)]
        except Exception as error:
            if len(part) > SHORT:
                return cut(part, len(part) // 2)
            raise InputError(f"Sudachi cannot read this text: {error}"[:200]) from error

    return cut


# --- basic splitting (BERT's BasicTokenizer without spaces around Chinese characters)


def basic_words(source: Aligned, *, lower: bool, never_split: Collection[str]) -> list[Aligned]:
    """Split at white space and punctuation; lower: also lower case and without accents."""
    source = alignment.normalize(alignment.map_characters(source, _clean), "NFC")
    found: list[Aligned] = []
    for word in alignment.words(source):
        if word.text in never_split:
            found.append(word)
            continue
        if lower:
            word = alignment.normalize(alignment.lower(word), "NFD")
            word = alignment.map_characters(word, _without_accent)
        found += _split_punctuation(word)
    return [word for part in found for word in alignment.words(part)]


def _clean(char: str) -> str:
    if char in "\t\n\r" or char == " " or unicodedata.category(char) == "Zs":
        return " "
    if char in "\x00\ufffd" or unicodedata.category(char).startswith("C"):
        return ""
    return char


def _without_accent(char: str) -> str:
    return "" if unicodedata.category(char) == "Mn" else char


def is_punctuation(char: str) -> bool:
    """ASCII that is neither letter, digit nor space, and Unicode's category P."""
    code = ord(char)
    if 33 <= code <= 47 or 58 <= code <= 64 or 91 <= code <= 96 or 123 <= code <= 126:
        return True
    return unicodedata.category(char).startswith("P")


def _split_punctuation(word: Aligned) -> list[Aligned]:
    parts: list[Aligned] = []
    start = 0
    for position, char in enumerate(word.text):
        if is_punctuation(char):
            parts += [word[start:position], word[position : position + 1]]
            start = position + 1
    return [part for part in [*parts, word[start:]] if part.text]
