"""chumoku tokenizer: train one; see how one cuts a text."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final

from cyclopts import App, Parameter

from chumoku.cli.common import (
    Flag,
    Many,
    download_progress,
    print_json,
    print_table,
    progress_bar,
    read_text,
)
from chumoku.errors import InputError, TokenizerError

if TYPE_CHECKING:
    from chumoku.text import Tokenizer

app = App(name="tokenizer", help="Train a tokenizer; see how it cuts a text.")

BLOCK_CHARACTERS: Final = 65_536
SAMPLE_CHARACTERS: Final = 100_000
Files = Annotated[list[Path] | None, Parameter(negative="", allow_leading_hyphen=True)]
Report = Callable[[int, int], None]


@app.command
def train(
    *files: Annotated[Path, Parameter(allow_leading_hyphen=True)],
    output: Path,
    kind: str = "wordpiece",
    vocab_size: int = 8000,
    family: str | None = None,
    japanese: str | None = None,
    dictionary: str | None = None,
    lowercase: Flag = False,
    nfkc: bool | None = None,
    strip_accents: bool | None = None,
    min_frequency: int | None = None,
    alphabet: Path | None = None,
    alphabet_limit: int | None = None,
    coverage: float | None = None,
    sentinels: int = 100,
    token: Many = None,
    target: Files = None,
    max_length: int | None = None,
    encoding: str | None = None,
    overwrite: Flag = False,
) -> None:
    """Learn a vocabulary from text files; the folder loads here and in transformers.

    Args:
        files: text, a text a line (byte-bpe and characters learn the line ends too), packed
            where it ends in .gz; - is stdin, in UTF-8.
        output: the folder to write.
        kind: wordpiece, byte-bpe, bpe or unigram (SentencePiece), characters.
        vocab_size: ids in all, control tokens included.
        family: bert, roberta, gpt2, t5, llama, marian or none; by default the kind's usual one.
        japanese: mecab or sudachi: no token crosses the end of a word.
        dictionary: mecab: unidic_lite, ipadic, unidic, a folder; sudachi: core, small, full.
        lowercase: lower-case all text.
        nfkc: bring text into Unicode's NFKC; by default as the family does it.
        strip_accents: take accents off (BERT); by default where --lowercase is.
        min_frequency: how often what is learned must occur; 2 (characters: 1).
        alphabet: a file with characters that must be in the vocabulary.
        alphabet_limit: keep only so many characters, the most frequent (wordpiece, characters).
        coverage: share of the text that the characters must cover (bpe, unigram); 0.9995.
        sentinels: how many <extra_id_N> a T5 has.
        token: one more control token (may be repeated).
        target: marian: text files of the other language (may be repeated).
        max_length: tokens that the model takes.
        encoding: of the files; by default found out: UTF-8, UTF-16, UTF-32, cp932, iso2022_jp.
        overwrite: replace a tokenizer that lies in the folder.
    """
    from chumoku.text.training import TokenizerSettings, files_in_the_way, train_tokenizer

    settings = TokenizerSettings(
        kind=kind,
        vocab_size=vocab_size,
        family=family,
        lowercase=lowercase,
        nfkc=nfkc,
        strip_accents=strip_accents,
        japanese=japanese,
        dictionary=dictionary,
        min_frequency=min_frequency,
        alphabet="" if alphabet is None else _characters(alphabet),
        alphabet_limit=alphabet_limit,
        coverage=coverage,
        sentinels=sentinels,
        extra_tokens=tuple(token or ()),
        max_length=max_length,
    )
    if not files:
        raise InputError("name the files to learn from", advice="- is stdin")
    files_in_the_way(output, overwrite=overwrite)  # before the work, not after it
    whole = kind in ("byte-bpe", "characters")
    sample: list[str] = []
    with progress_bar() as report:
        source = _sampled(_texts(files, whole, report, encoding), sample)
        other = _texts(target, whole, report, encoding) if target else None
        trained = train_tokenizer(source, settings, other)
    trained.save(output, overwrite=overwrite)
    for note in trained.notes:
        print(f"note: {note}", file=sys.stderr)
    tokenizer = trained.tokenizer
    count = sum(len(tokenizer.encode(text, special=False)) for text in sample)
    characters = sum(map(len, sample))
    print(f"written: {output} ({', '.join(sorted(trained.files))})")
    print(f"{trained.vocab_size} tokens ({kind}, {settings.target})")
    print(f"{count / characters:.3f} tokens a character on the first {characters} characters")
    first = next((text for text in sample if not text.isspace()), "text")
    first = first.strip().split("\n")[0][:24]
    words = ["chumoku", "tokenizer", "show", str(output), first]
    print(f"try: {' '.join(map(shlex.quote, words))}")


def _characters(file: Path) -> str:
    return "".join(char for char in read_text(None, file) if not char.isspace())


def _sampled(texts: Iterator[str], sample: list[str]) -> Iterator[str]:
    """The texts; the first of them are kept in `sample`."""
    left = SAMPLE_CHARACTERS
    for text in texts:
        if left > 0 and text:
            sample.append(text[:left])
            left -= len(text)
        yield text


def _texts(
    files: Sequence[Path], whole: bool, report: Report, encoding: str | None
) -> Iterator[str]:
    """The lines of all files without their ends; whole: blocks of lines with \\n behind each.

    Raises InputError with file, line and byte where a file cannot be read or decoded.
    """
    total = sum(_size(file) for file in files)
    done = 0
    for file in files:
        lines = _lines(file, encoding)
        if whole:
            lines = _blocks(lines)
        for text, size in lines:
            done += size
            report(min(done, total), total)
            yield text if whole else text.rstrip("\r\n")


def _size(file: Path) -> int:
    try:
        return 0 if str(file) == "-" else file.stat().st_size
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=file) from error


def _lines(file: Path, encoding: str | None) -> Iterator[tuple[str, int]]:
    """(line, bytes), decoded; a byte order mark is no text, and \\r\\n is \\n.

    Plain UTF-8 goes by line by line; what has to be unpacked or recoded is taken in as a whole.
    """
    from chumoku.training.data.decoding import is_utf8

    if str(file) == "-":
        if encoding not in (None, "utf-8"):
            raise InputError("stdin is read as UTF-8", advice="give the file's name, not -")
        yield from _decoded(sys.stdin.buffer, "stdin")
        return
    try:
        # A pipe can be read only once.
        if encoding is None and (not file.is_file() or is_utf8(file)):
            with file.open("rb") as stream:
                yield from _decoded(stream, str(file))
            return
    except OSError as error:
        raise InputError(f"cannot read the file: {error.strerror}", where=file) from error
    yield from _recoded(file, encoding)


def _recoded(file: Path, encoding: str | None) -> Iterator[tuple[str, int]]:
    """The lines of a file that is decoded as training data is; bytes: its share of the file."""
    from chumoku.training.data.decoding import damage, decoded, lines_of

    text, encoding = decoded(file, encoding)
    share = _size(file) / max(1, len(text))
    for number, line in lines_of(text):
        fault = damage(line, encoding)
        if fault is not None:
            raise InputError(fault, where=f"{file}:{number}", advice="mend or remove the line")
        yield line + "\n", int(len(line) * share)


def _decoded(stream: BinaryIO, name: str) -> Iterator[tuple[str, int]]:
    for number, raw in enumerate(stream, 1):
        data = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"the text is not UTF-8: {error.reason}",
                where=f"{name}:{number}, byte {error.start} of the line",
                advice="Convert the file: iconv -f CP932 -t UTF-8, for instance.",
            ) from None
        yield text.removesuffix("\r\n") + "\n" if text.endswith("\r\n") else text, len(raw)


def _blocks(lines: Iterator[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Many lines as one text, so that a blank line is seen between its neighbours.

    A block ends between two lines that begin with no space: no token could lie across.
    """
    block: list[str] = []
    size = characters = 0
    for text, count in lines:
        full = characters >= BLOCK_CHARACTERS
        if full and not (text[:1].isspace() or block[-1].isspace()):
            yield "".join(block), size
            block, size, characters = [], 0, 0
        block.append(text)
        size += count
        characters += len(text)
    if block:
        yield "".join(block), size


@app.command
def show(
    source: str,
    text: str | None = None,
    *,
    pair: str | None = None,
    file: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    plain: Flag = False,
    target: Flag = False,
    revision: str | None = None,
    json: Flag = False,
) -> None:
    """The tokens of a text: id, place in the text (characters), what stands there, word.

    Args:
        source: a folder, a name, hf:…, pypi:…, or a .gguf file.
        text: a text; without it the whole of --file or of stdin.
        pair: a second text.
        file: a text file; - is stdin.
        plain: no control tokens: none are added, and one spelled out in the text is text.
        target: marian: text of the target language.
        revision: branch, tag or commit on the hub.
        json: print JSON, a token a line.
    """
    from chumoku.text.marian import MarianTokenizer

    tokenizer = _open(source, revision)
    first = read_text(text, file)
    if target:
        if not isinstance(tokenizer, MarianTokenizer) or pair is not None:
            raise InputError("--target is for one text of a Marian model")
        found = tokenizer.encode_target(first, special=not plain, parse_special=not plain)
    else:
        found = tokenizer.encode(first, pair, special=not plain, parse_special=not plain)
    names = ("token", "id", "start", "end", "text", "word")
    rows = []
    columns = (found.tokens, found.ids, found.offsets, found.words, found.sequences)
    for name, index, (start, end), word, sequence in zip(*columns, strict=True):
        part = "" if sequence is None else ((first, pair or "")[sequence][start:end])
        rows.append((name, index, start, end, part, word))
    if json:
        for row in rows:
            print_json(dict(zip(names, row, strict=True)))
        return
    print_table(names, [tuple(_visible(value) for value in row) for row in rows])
    count = len(first) + len(pair or "")
    print(f"\n{len(rows)} tokens, {count} characters")


def _visible(value: object) -> object:
    """A cell on one line: what is no letter is written so that it can be seen."""
    if value is None:
        return "-"
    if not isinstance(value, str):
        return value
    return value.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")


def _open(source: str, revision: str | None) -> Tokenizer:
    """The tokenizer of a source; a folder need hold no model."""
    from chumoku.checkpoints.sources import resolve
    from chumoku.text import gguf_tokenizer, load_tokenizer
    from chumoku.text.files import read_object

    path = Path(source)
    if not path.exists():
        path = resolve(source, revision=revision, progress=download_progress()).path
    if path.suffix == ".gguf" and path.is_file():
        from chumoku.checkpoints.gguf import read_gguf

        return gguf_tokenizer(read_gguf(path).metadata)
    folder = path if path.is_dir() else path.parent
    tokenizer = load_tokenizer(folder, read_object(folder / "config.json"))
    if tokenizer is None:
        raise TokenizerError("there are no tokenizer files here", where=folder)
    return tokenizer
