"""Records from plain text, with the line that each came from; what is broken is a Reject.

Every reader is a generator over the lines of one file. It yields (line, record) or (line, reason):
nothing is dropped without a word, and a broken line never shifts the ones after it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, Final

from chumoku.training.data.decoding import lines_of
from chumoku.training.data.detokenising import japanese

Record = dict[str, Any]
Found = Iterator[tuple[int, Record | str]]
"""(line number from 1, a record, or in its place why there is none)"""

MAX_LINE: Final = 10_000_000
"""Characters of a line; a longer one is rejected."""


def too_long(line: str) -> str | None:
    """Why a line is rejected for its length; None: it is not."""
    if len(line) <= MAX_LINE:
        return None
    return f"{len(line)} characters in a line; the limit is {MAX_LINE}"


def read_text(text: str) -> Found:
    """A text a line; blank lines are skipped. -> {"text"}"""
    for number, line in lines_of(text):
        if line.strip():
            yield number, too_long(line) or {"text": line}


def read_whole(text: str) -> Found:
    """The file as one text, line ends included. -> {"text"}"""
    yield 1, {"text": text}


def read_documents(text: str) -> Found:
    """A sentence a line, documents apart by blank lines. -> {"sentences": [...]}"""
    sentences: list[str] = []
    start = 1
    for number, line in [*lines_of(text), (0, "")]:
        if line.strip():
            start = number if not sentences else start
            sentences.append(line.strip())
        elif sentences:
            yield start, {"sentences": sentences}
            sentences = []


ENDS: Final = re.compile(r"(?<=[。！？])(?![」』）。！？])|(?<=[.!?])\s+(?=[\"'“A-Z0-9])")
"""Where a sentence ends: after 。！？ outside of brackets, or after .!? before a capital."""


def read_sentences(text: str) -> Found:
    """Each line a document of one sentence. Japanese words that stand apart are put together.

    -> {"text", "sentences"}
    """
    for number, line in lines_of(text):
        line = japanese(line.strip())
        if line:
            yield number, too_long(line) or {"text": line, "sentences": [line]}


def read_paragraphs(text: str) -> Found:
    """A paragraph a line, cut into sentences; headings (= … =) are left out.

    -> {"text", "sentences"}
    """
    for number, line in lines_of(text):
        line = line.strip().strip("\u3000")
        if not line or line.startswith("= "):
            continue
        yield number, too_long(line) or {"text": line, "sentences": sentences_of(line)}


TITLE: Final = re.compile(r"= [^=].* =")
JOINED: Final = re.compile(r" @(.)@ ")
UNKNOWN: Final = re.compile(r"<unk> ?")


def read_wikitext(text: str) -> Found:
    """WikiText's articles: each begins with a title, `= Title =`; headings are left out.

    Its marks inside numbers and words ("1 @,@ 000") become plain ones, and the place of a word that
    the published text has lost (<unk>) is closed. -> {"text", "sentences"}
    """
    for number, document in _parted(text, 0, lambda line: bool(TITLE.fullmatch(line)), "= "):
        clean = [UNKNOWN.sub("", JOINED.sub(r"\1", sentence)) for sentence in document]
        yield number, _document(clean)


def _parted(
    text: str, before: int, begins: Callable[[str], bool], heading: str
) -> Iterator[tuple[int, list[str]]]:
    """(line, sentences) of documents, a new one from each line on where one begins.

    before: lines before the text. heading: how a line begins that is left out.
    """
    sentences: list[str] = []
    start = 1
    for number, line in lines_of(text):
        line = line.strip().strip("\u3000")
        if begins(line):
            if sentences:
                yield before + start, sentences
            sentences, start = [], number
        elif line and not line.startswith(heading):
            sentences += sentences_of(line)
    if sentences:
        yield before + start, sentences


def _document(sentences: list[str]) -> Record:
    return {"text": "\n".join(sentences), "sentences": sentences}


def sentences_of(text: str) -> list[str]:
    """Cut behind the marks that end a sentence."""
    return [part.strip() for part in ENDS.split(text) if part.strip()]


RULE: Final = re.compile(r"^-{20,}\r?$", re.MULTILINE)
NOTES: Final = re.compile(r"《[^》]*》|［＃[^］]*］|｜")
COLOPHON: Final = re.compile(r"^底本：", re.MULTILINE)
HEADING: Final = "見出し］"


def read_aozora(text: str) -> Found:
    """Aozora Bunko's text files: paragraphs without ruby, notes, legend and colophon.

    -> {"text", "sentences"}. The form is that of the legend at the head of each file.
    """
    body, before = _aozora_body(text)
    for number, line in lines_of(body):
        heading = HEADING in line
        line = NOTES.sub("", line).strip().strip("\u3000")
        if line and not heading:
            yield before + number, {"text": line, "sentences": sentences_of(line)}


def read_aozora_chapters(text: str) -> Found:
    """The same; a chapter, from its heading on, is one document. -> {"text", "sentences"}"""
    body, before = _aozora_body(text)
    lines = (HEADING if HEADING in line else NOTES.sub("", line) for _, line in lines_of(body))
    for number, sentences in _parted("\n".join(lines), before, HEADING.__eq__, HEADING):
        yield number, _document(sentences)


def _aozora_body(text: str) -> tuple[str, int]:
    """What stands between legend and colophon, and how many lines are before it."""
    rules = [match.end() for match in RULE.finditer(text)]
    start = rules[1] if len(rules) > 1 else 0
    end = COLOPHON.search(text, start)
    return text[start : end.start() if end else len(text)], text.count("\n", 0, start)


def read_label_text(text: str) -> Found:
    """`label text`, apart by the first space, a line each. -> {"label", "text"}"""
    for number, line in lines_of(text):
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
    for number, line in [*lines_of(text), (0, "")]:
        if line.strip() and not line.startswith("-DOCSTART-"):
            start = number if not rows else start
            columns = line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))
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
