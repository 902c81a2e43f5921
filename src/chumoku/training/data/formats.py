"""Records from text files, with the line that each came from; what is broken is a Reject.

Every reader is a generator over the lines of one file. It yields (line, record) or (line, reason):
nothing is dropped without a word, and a broken line never shifts the ones after it.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

Record = dict[str, Any]
Found = Iterator[tuple[int, Record | str]]
"""(line number from 1, a record, or in its place why there is none)"""

MAX_LINE: Final = 10_000_000
"""Characters of a line; a longer one is rejected."""


def read_text(text: str) -> Found:
    """A text a line; blank lines are skipped. -> {"text"}"""
    for number, line in _lines(text):
        if line.strip():
            yield number, _long(line) or {"text": line}


def read_whole(text: str) -> Found:
    """The file as one text, line ends included. -> {"text"}"""
    yield 1, {"text": text}


def read_documents(text: str) -> Found:
    """A sentence a line, documents apart by blank lines. -> {"sentences": [...]}"""
    sentences: list[str] = []
    start = 1
    for number, line in [*_lines(text), (0, "")]:
        if line.strip():
            start = number if not sentences else start
            sentences.append(line.strip())
        elif sentences:
            yield start, {"sentences": sentences}
            sentences = []


ENDS: Final = re.compile(r"(?<=[。！？])(?![」』）。！？])|(?<=[.!?])\s+(?=[\"'“A-Z0-9])")
"""Where a sentence ends: after 。！？ outside of brackets, or after .!? before a capital."""


def read_paragraphs(text: str) -> Found:
    """A paragraph a line, cut into sentences; headings (= … =) are left out.

    -> {"text", "sentences"}
    """
    for number, line in _lines(text):
        line = line.strip().strip("\u3000")
        if not line or line.startswith("= "):
            continue
        yield number, _long(line) or {"text": line, "sentences": sentences_of(line)}


def sentences_of(text: str) -> list[str]:
    """Cut behind the marks that end a sentence."""
    return [part.strip() for part in ENDS.split(text) if part.strip()]


RULE: Final = re.compile(r"^-{20,}\r?$", re.MULTILINE)
NOTES: Final = re.compile(r"《[^》]*》|［＃[^］]*］|｜")
COLOPHON: Final = re.compile(r"^底本：", re.MULTILINE)


def read_aozora(text: str) -> Found:
    """Aozora Bunko's text files: paragraphs without ruby, notes, legend and colophon.

    -> {"text", "sentences"}. The form is that of the legend at the head of each file.
    """
    rules = [match.end() for match in RULE.finditer(text)]
    start = rules[1] if len(rules) > 1 else 0
    end = COLOPHON.search(text, start)
    before = text.count("\n", 0, start)
    body = text[start : end.start() if end else len(text)]
    for number, line in _lines(body):
        heading = "見出し］" in line
        line = NOTES.sub("", line).strip().strip("\u3000")
        if line and not heading:
            yield before + number, {"text": line, "sentences": sentences_of(line)}


def read_label_text(text: str) -> Found:
    """`label text`, apart by the first space, a line each. -> {"label", "text"}"""
    for number, line in _lines(text):
        if not line.strip():
            continue
        label, space, rest = line.strip().partition(" ")
        yield number, {"label": label, "text": rest} if space and rest else "no text after a label"


def read_conll(text: str) -> Found:
    """A word and its tag a line (first and last column), sentences apart by blank lines.

    A language before the word ("en:word", WikiANN's form) is left out where every word of the
    sentence has it. -> {"words", "tags"}
    """
    rows: list[list[str]] = []
    start = 1
    fault = ""
    for number, line in [*_lines(text), (0, "")]:
        if line.strip() and not line.startswith("-DOCSTART-"):
            start = number if not rows else start
            columns = line.split("\t") if "\t" in line else line.split()
            if len(columns) < 2:
                fault = fault or f"line {number} has a word without a tag"
            rows.append(columns)
        elif rows:
            yield start, fault or _sentence(rows)
            rows, fault = [], ""


def _sentence(rows: list[list[str]]) -> Record:
    words = [row[0] for row in rows]
    if all(len(word) > 3 and word[2] == ":" and word[:2].isalpha() for word in words):
        words = [word[3:] for word in words]
    return {"words": words, "tags": [row[-1].strip() for row in rows]}


def read_csv(text: str, delimiter: str = ",", header: bool = True) -> Found:
    """RFC 4180, any line ends inside quotes. Without a header the columns are "0", "1", ….

    A row of another width than the header's, a NUL, or a quote that is not closed is rejected.
    """
    counted = _Counted(text)
    reader = csv.reader(counted, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    while True:
        line = counted.number + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield line, f"{error}"
            continue
        if not row:
            continue
        if names is None:
            names = row if header else [str(i) for i in range(len(row))]
            doubled = sorted({name for name in names if names.count(name) > 1})
            if doubled:
                raise ValueError(f"the header names {doubled[0]!r} twice")
            if header:
                continue
        if len(row) != len(names):
            yield line, f"{len(row)} columns where there are {len(names)}"
        elif any("\0" in cell for cell in row):
            yield line, "a NUL character"
        else:
            yield line, dict(zip(names, row, strict=True))


class _Counted:
    """The lines of a text, with the number of the last one handed out."""

    def __init__(self, text: str) -> None:
        self.stream = io.StringIO(text, newline="")
        self.number = 0

    def __iter__(self) -> _Counted:
        return self

    def __next__(self) -> str:
        line = self.stream.readline()
        if not line:
            raise StopIteration
        self.number += 1
        return line


def read_jsonl(text: str) -> Found:
    """A JSON object a line. A key that comes twice, NaN and Infinity are rejected."""
    for number, line in _lines(text):
        if line.strip():
            yield number, _long(line) or _object(line)


def read_json(text: str) -> Found:
    """A list of objects; or SQuAD's {"data": [...]}, whose questions become rows."""
    value = _parsed(text)
    if isinstance(value, str):
        raise ValueError(value)
    if isinstance(value, Mapping) and isinstance(value.get("data"), list):
        yield from _squad(value["data"])
        return
    if not isinstance(value, list):
        raise ValueError("is neither a list of objects nor SQuAD's form")
    for number, item in enumerate(value, 1):
        yield number, item if isinstance(item, dict) else "not an object"


def _squad(articles: list[Any]) -> Found:
    """-> {"question", "context", "answers": {"text", "answer_start"}, "id"}; numbered in order."""
    number = 0
    for article in articles:
        for paragraph in article.get("paragraphs", ()):
            for asked in paragraph.get("qas", ()):
                number += 1
                answers = asked.get("answers", [])
                yield (
                    number,
                    {
                        "id": asked.get("id"),
                        "question": asked["question"],
                        "context": paragraph["context"],
                        "answers": {
                            "text": [a["text"] for a in answers],
                            "answer_start": [a["answer_start"] for a in answers],
                        },
                    },
                )


def _object(line: str) -> Record | str:
    value = _parsed(line)
    if isinstance(value, str | dict):
        return value
    return "not a JSON object"


def _parsed(text: str) -> Any:
    """The value, or the fault in words."""
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_constant)
    except RecursionError:
        return "nested too deeply"
    except ValueError as error:
        return f"no JSON: {error}"


def _once(pairs: list[tuple[str, Any]]) -> Record:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} comes twice")
    if any(isinstance(value, float) and not math.isfinite(value) for value in found.values()):
        raise ValueError("a number is too large")
    return found


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines end with LF, CRLF or a lone CR, and nowhere else (form feeds and U+2028 stay)."""
    stream = io.StringIO(text, newline=None)
    for number, line in enumerate(stream, 1):
        yield number, line.rstrip("\n")


def _long(line: str) -> str | None:
    if len(line) > MAX_LINE:
        return f"{len(line)} characters in a line; the limit is {MAX_LINE}"
    return "a NUL character" if "\0" in line else None


READERS: Final[Mapping[str, Callable[[str], Found]]] = {
    "text": read_text,
    "whole": read_whole,
    "documents": read_documents,
    "paragraphs": read_paragraphs,
    "aozora": read_aozora,
    "label-text": read_label_text,
    "conll": read_conll,
    "csv": read_csv,
    "csv-no-header": lambda text: read_csv(text, header=False),
    "tsv": lambda text: read_csv(text, "\t"),
    "tsv-no-header": lambda text: read_csv(text, "\t", header=False),
    "jsonl": read_jsonl,
    "json": read_json,
}
"""Format -> reader of a file's text."""

ENDINGS: Final = {
    ".txt": "text",
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".conll": "conll",
}
"""File ending -> format, where none is named."""
