"""Data of two tasks for one T5, and its scores on each: English to Japanese, and a title in brief.

    python recipes/two_tasks.py write --data FOLDER --output runs/two-tasks
    python recipes/two_tasks.py judge MODEL --data FOLDER

Translating: Tanaka's pairs as in `tiny/translator`. Summarising: a paragraph of Wikipedia (JGLUE's
JSQuAD) is to become the title of its article. Every tenth paragraph is for testing; others of the
same article are learned from, so this asks what a text is about, not to write of what is new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from data_script import parser_of, write_rows

import chumoku
from chumoku.training.data.rows import read_rows
from chumoku.training.metrics import bleu, rouge

TRANSLATE = "translate English to Japanese: "
SUMMARIZE = "summarize: "
PARTS = ("train", "dev", "test")
TITLE = " [SEP] "
REPEATS = 4
"""Each title is learned so many times in an epoch, beside 50,000 translations."""


class Pair(NamedTuple):
    source: str
    target: str


def translations(data: Path, part: str) -> list[Pair]:
    files = [data / "small_parallel_enja" / f"{part}.{language}" for language in ("en", "ja")]
    rows = read_rows(files, format="parallel", detokenise=("en", "ja")).rows
    return [Pair(row["source"].lower(), row["target"]) for row in rows]


def titles(data: Path, part: str) -> list[Pair]:
    """Of ten paragraphs the first is for testing, the second for choosing."""
    found = [pair for name in ("valid", "test") for pair in _titled(data, name)]
    numbers = {"test": {0}, "dev": {1}, "train": set(range(2, 10))}[part]
    return [pair for number, pair in enumerate(found) if number % 10 in numbers]


def _titled(data: Path, name: str) -> Iterator[Pair]:
    file = data / "jglue" / "jsquad-v1.3" / f"{name}-v1.3.json"
    for article in json.loads(file.read_text(encoding="utf-8"))["data"]:
        for paragraph in article["paragraphs"]:
            title, _, text = paragraph["context"].partition(TITLE)
            yield Pair(text, title)


def write(data: Path, output: Path) -> None:
    for part in PARTS:
        rows = [(TRANSLATE, *pair) for pair in translations(data, part)]
        rows += [(SUMMARIZE, *pair) for pair in titles(data, part)] * (
            REPEATS if part == "train" else 1
        )
        names = ("prefix", "source", "target")
        named = [dict(zip(names, row, strict=True)) for row in rows]
        write_rows(output / f"{part}.jsonl", named)


def judge(model: str, data: Path) -> dict[str, float]:
    """BLEU of the translations; of the titles ROUGE-L and how many are right, beside the best that
    always says the same."""
    loaded = chumoku.load(model, head="conditional-generation")
    pairs, titled = translations(data, "test"), titles(data, "test")
    translated = _answers(TRANSLATE, pairs, loaded)
    shortened = _answers(SUMMARIZE, titled, loaded)
    wanted = [pair.target for pair in titled]
    usual, _ = Counter(pair.target for pair in titles(data, "train")).most_common(1)[0]
    return {
        "translate bleu": bleu(translated, [pair.target for pair in pairs], "ja-mecab"),
        "summarize rougeL": rouge(shortened, wanted, language="ja")["rougeL"],
        "summarize right": _share(shortened, wanted),
        "summarize right, the most frequent title": _share([usual] * len(wanted), wanted),
    }


def _answers(prefix: str, pairs: Sequence[Pair], loaded: chumoku.Loaded) -> list[str]:
    texts = [prefix + pair.source for pair in pairs]
    found = chumoku.text2text(texts, loaded, num_beams=4, max_new_tokens=48, overflow="truncate")
    return [one["generated_text"] for one in found]


def _share(found: Sequence[str], wanted: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)


def main() -> None:
    options = parser_of(__doc__)[0].parse_args()
    if options.verb == "write":
        write(options.data, options.output)
    else:
        for name, value in judge(options.model, options.data).items():
            print(f"{name}: {value:.4f}")


if __name__ == "__main__":
    main()
