"""A file's bytes as text: unpacked within bounds, its encoding found out and named.

A byte that does not fit the encoding becomes a lone surrogate (PEP 383), so that only the row that
holds it is rejected (`damage`), and no line is shifted.
"""

from __future__ import annotations

import codecs
import gzip
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import IO, Final, NamedTuple

from chumoku.errors import InputError

BOMS: Final = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16's does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
GUESSES: Final = ("utf-8", "cp932")
SHIFTS: Final = (b"\x1b$B", b"\x1b$@")
"""How ISO-2022-JP begins its Japanese; the rest of such a file is ASCII."""
MOST_DAMAGED: Final = 0.1
"""Share of the lines that may be damaged before another encoding is more likely."""

MAX_EXPANSION: Final = 40
"""A compressed file may grow by so much (text shrinks to a tenth, seldom to a twentieth) …"""
LEAST_BOUND: Final = 64 << 20
"""… but to so many bytes in any case …"""
MOST_BOUND: Final = 8 << 30
"""… and to no more than these."""
PIECE: Final = 1 << 20

SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Decoded(NamedTuple):
    """encoding: a name that Python's codecs know; "utf-8-sig" is UTF-8 with a byte order mark."""

    text: str
    encoding: str


def decoded(path: Path, encoding: str | None = None) -> Decoded:
    """A file's text. Raises InputError where it cannot be unpacked, or no encoding fits."""
    raw = contents(path)
    if encoding is not None:
        return Decoded(_decode(raw, encoding, path), encoding)
    for mark, name in BOMS:
        if raw.startswith(mark):
            return Decoded(_decode(raw, name, path), name)
    if any(shift in raw for shift in SHIFTS) and raw.isascii():
        return Decoded(_decode(raw, "iso2022_jp", path), "iso2022_jp")
    for name in GUESSES:
        try:
            text = raw.decode(name)
        except UnicodeDecodeError:
            continue
        if name == "utf-8" or _is_japanese(text):
            return Decoded(text, name)
    return _damaged(raw, path)


def is_utf8(path: Path) -> bool:
    """Whether a file is plain UTF-8 as a whole, so that it can be read line by line.

    Takes a piece into memory at a time. Raises OSError.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with path.open("rb") as stream:
            while piece := stream.read(PIECE):
                if any(shift in piece for shift in SHIFTS):
                    return False
                decoder.decode(piece)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return path.suffix != ".gz"


def _damaged(raw: bytes, path: Path) -> Decoded:
    """The encoding that fits most lines, where there is such a one."""
    for name in GUESSES:
        text = _decode(raw, name, path)
        lines = text.count("\n") + 1
        bad = sum(SURROGATE.search(line) is not None for line in text.split("\n"))
        if bad <= max(1, MOST_DAMAGED * lines) and (name == "utf-8" or _is_japanese(text)):
            return Decoded(text, name)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        where = f"{path}, line {line}, byte {error.start}"
    raise InputError(
        f"the text is not in {' nor '.join(GUESSES)}",
        where=where,
        advice="name its encoding as Python's codecs do: latin-1, cp932, euc_jp, … "
        "(--data.encoding; tokenizer train: --encoding)",
    )


def _decode(raw: bytes, encoding: str, path: Path) -> str:
    wide = codecs_name(encoding, path).startswith(("utf-16", "utf-32"))
    try:
        text = raw.decode(encoding, "surrogatepass" if wide else "surrogateescape")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the text is not in {encoding}: {error.reason}", where=f"{path}, byte {error.start}"
        ) from error
    return text.lstrip("\ufeff")


def codecs_name(encoding: str, path: Path) -> str:
    """Python's own name of an encoding of text. Raises InputError for an unknown one."""
    try:
        "".encode(encoding)
        return codecs.lookup(encoding).name
    except (LookupError, ValueError) as error:
        raise InputError(f"{encoding!r} is no encoding of text", where=path) from error


BESIDE_ASCII: Final = re.compile("[\uff61-\uff9f][@-~]|[@-~][\uff61-\uff9f]")


def _is_japanese(text: str) -> bool:
    """Whether a text that decodes as cp932 was meant so, as Western bytes decode too.

    The sign is kana among the characters beyond ASCII. Without them it is that most stand in runs
    of common kanji or half-width kana: an é takes the letter behind it for a rare kanji, a curly
    quote for a common one, Ä is half-width kana; but ASCII parts them. EUC-JP's kana are in every
    second place ､ or ･. Of Big5 half-width kana with ASCII beside them are left.
    """
    beyond = sum(c > "\x7f" for c in text)
    kana = sum("\u3041" <= c <= "\u30ff" for c in text)
    if kana * 10 >= beyond:
        return True
    if len(BESIDE_ASCII.findall(text)) * 20 > beyond:
        return False
    return sum(map(len, _runs().findall(text))) * 2 > beyond


@cache
def _runs() -> re.Pattern[str]:
    """Runs of kana and of JIS X 0208's level 1, which is 0x889F to 0x9872 in cp932."""
    codes = (bytes((lead, trail)) for lead in range(0x88, 0x99) for trail in range(0x40, 0xFD))
    level1 = "".join(
        code.decode("cp932", "ignore") for code in codes if b"\x88\x9f" <= code <= b"\x98\x72"
    )
    level1 = "".join(char for char in level1 if char >= "\u4e00")
    return re.compile(f"[\u3041-\u30ff{level1}]{{2,}}|[\uff61-\uff63\uff66-\uff9f]{{3,}}")


def damage(text: str, encoding: str) -> str | None:
    """Why a text cannot be used: a byte that is not of the encoding, half a character, a NUL."""
    if "\0" in text:
        return "a NUL character"
    found = SURROGATE.search(text)
    if found is None:
        return None
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:
        return f"byte 0x{code - 0xDC00:02X} is not {encoding}"
    return f"half a surrogate pair, U+{code:04X}"


def lines_of(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, line). Lines end with LF or CRLF; with CR where a file has no LF at all.

    Nowhere else: not at a form feed, U+0085 or U+2028, which would shift the lines of two files
    against each other.
    """
    lines = text.split(newline_of(text))
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        yield number, line.removesuffix("\r")


def newline_of(text: str) -> str:
    return "\r" if "\n" not in text and "\r" in text else "\n"


# ---- bytes ----


def contents(path: Path) -> bytes:
    """A file's bytes, unpacked where it ends in .gz. Raises InputError."""
    try:
        if path.suffix != ".gz":
            return path.read_bytes()
        pieces = bytearray()
        with gzip.open(path) as stream:
            bounded = Bounded(stream, path)
            while piece := bounded.read(PIECE):
                pieces += piece
        return bytes(pieces)
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=path) from error
    except (OSError, EOFError) as error:
        kind = "damaged or cut short" if path.suffix == ".gz" else "not to be read"
        raise InputError(f"the file is {kind}: {error}", where=path) from error


def bound_of(path: Path) -> int:
    """Bytes that a compressed file may grow to."""
    return min(MOST_BOUND, max(LEAST_BOUND, path.stat().st_size * MAX_EXPANSION))


class Bounded:
    """A stream that raises InputError once more has come out of it than a file may grow to."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, path: Path) -> None:
        self.stream, self.path = stream, path
        self.bound = self.left = bound_of(path)

    def read(self, size: int) -> bytes:
        piece = self.stream.read(size)
        self.left -= len(piece)
        if self.left < 0:
            raise InputError(
                f"the compressed file grows to more than {self.bound} bytes",
                where=self.path,
                advice="unpack it first, if it is what it should be",
            )
        return piece
