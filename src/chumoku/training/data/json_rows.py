"""JSON (RFC 8259): an object a line, a list of objects, SQuAD's form. A bad one goes alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from chumoku.training.data.decoding import lines_of
from chumoku.training.data.formats import Found, Record, sentences_of, too_long

SPACE: Final = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class Fault:
    """Stands for a value that cannot be used; what holds one is a Fault too."""

    reason: str


def read_jsonl(text: str) -> Found:
    """An object a line. Rejected: a key that comes twice, NaN, infinities, what is no object."""
    for number, line in lines_of(text):
        if line.strip():
            yield number, too_long(line) or object_of(line)


def object_of(line: str) -> Record | str:
    """A line's object, or why it is none."""
    return _record(_parsed(line))


def read_json(text: str) -> Found:
    """A list of objects, with the line where each begins; {"data": [...]}, of objects or of SQuAD's
    articles, whose questions become rows, numbered in order; or, as often, an object a line.

    Raises ValueError where the text cannot be read any further.
    """
    start = _skip(text, 0)
    if text.startswith("[", start):
        yield from _items(text, start + 1)
        return
    whole = _parsed(text)
    if isinstance(whole, Mapping) and isinstance(data := whole.get("data"), list):
        is_squad = any(isinstance(one, Mapping) and "paragraphs" in one for one in data)
        yield from _squad(data) if is_squad else enumerate(map(_record, data), 1)
        return
    yield from read_jsonl(text)


def _items(text: str, place: int) -> Found:
    """The items of a list, from behind its bracket on."""
    line, counted = 1, 0
    place = _skip(text, place)
    if text.startswith("]", place):
        return
    while True:
        line += text.count("\n", counted, place)
        counted = place
        try:
            value, place = DECODER.raw_decode(text, place)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"it is no JSON from the item of line {line} on: {error}") from error
        yield line, _record(value)
        place = _skip(text, place)
        if text.startswith("]", place) and _skip(text, place + 1) == len(text):
            return
        if not text.startswith(",", place):
            raise ValueError(f"it is no list behind the item of line {line}")
        place = _skip(text, place + 1)


def _skip(text: str, place: int) -> int:
    found = SPACE.match(text, place)
    return found.end() if found else place


def _record(value: Any) -> Record | str:
    if isinstance(value, Fault):
        return value.reason
    return value if isinstance(value, dict) else "not a JSON object"


def _parsed(text: str) -> Any:
    try:
        return DECODER.decode(text)
    except RecursionError:
        return Fault("nested too deeply")
    except ValueError as error:
        return Fault(f"no JSON: {error}")


def _object(pairs: list[tuple[str, Any]]) -> Record | Fault:
    found: Record = {}
    for name, value in pairs:
        fault = _fault_in(value)
        if fault is not None:
            return fault
        if name in found:
            return Fault(f"key {name!r} comes twice")
        found[name] = value
    return found


def _fault_in(value: Any) -> Fault | None:
    if isinstance(value, list):
        return next(filter(None, map(_fault_in, value)), None)
    return value if isinstance(value, Fault) else None


def _number(digits: str) -> float | Fault:
    value = float(digits)
    return value if math.isfinite(value) else Fault(f"{digits} is too large")


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_float=_number,
    parse_constant=lambda name: Fault(f"{name} is no JSON"),
)


def _squad(articles: list[Any]) -> Found:
    """-> {"id", "question", "context", "answers": {"text", "answer_start"}} (1606.05250)."""
    number = 0
    for article in articles:
        for paragraph in _listed(article, "paragraphs"):
            for asked in _listed(paragraph, "qas"):
                number += 1
                yield number, _question(asked, paragraph)


def read_contexts(text: str) -> Found:
    """The articles of SQuAD's {"data": [...]}: all paragraphs of one are a document.

    JSQuAD's title before each paragraph ("title [SEP] …") is left out. -> {"text", "sentences"}
    """
    whole = _parsed(text)
    for number, article in enumerate(_listed(whole, "data"), 1):
        paragraphs = _listed(article, "paragraphs")
        found = [p.get("context") if isinstance(p, Mapping) else None for p in paragraphs]
        contexts = [c.rpartition(" [SEP] ")[2] for c in found if isinstance(c, str)]
        if len(contexts) < len(found):
            yield number, "a context is no text"
            continue
        sentences = [one for context in contexts for one in sentences_of(context)]
        yield number, {"text": "\n".join(contexts), "sentences": sentences}


def _listed(value: Any, name: str) -> list[Any]:
    found = value.get(name) if isinstance(value, Mapping) else None
    if not isinstance(found, list):
        raise ValueError(f"it is not of SQuAD's form: {name!r} is no list")
    return found


def _question(asked: Any, paragraph: Mapping[str, Any]) -> Record | str:
    try:
        answers = asked.get("answers") or []
        question, context = asked["question"], paragraph["context"]
        texts = [answer["text"] for answer in answers]
        starts = [answer["answer_start"] for answer in answers]
    except (KeyError, TypeError, AttributeError) as error:
        return f"not of SQuAD's form: {error!r}"
    if not isinstance(question, str) or not isinstance(context, str):
        return "the question or its context is no text"
    answered = {"text": texts, "answer_start": starts}
    return {"id": asked.get("id"), "question": question, "context": context, "answers": answered}
