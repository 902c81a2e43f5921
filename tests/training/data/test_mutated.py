"""Files with one fault each: every other row comes out as it was, and the fault is named.

Every row of a file carries its number, so that a lost, doubled or shifted row is seen.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chumoku.errors import InputError
from chumoku.training.data import rows
from chumoku.training.data.json_rows import read_jsonl
from chumoku.training.data.rows import Table, read_rows

COUNT = 40
KINDS = ("text", "label-text", "jsonl", "json", "csv", "csv-quoted", "tsv", "conll", "documents")
QUOTED = 'い, "quoted"\r\nand on'


def made(kind: str) -> tuple[str, list[dict[str, Any]]]:
    """A file's text, and the rows that are in it."""
    texts = [f"row {i} 吾輩は猫 {i * i}" for i in range(COUNT)]
    records = [{"text": t, "label": str(i % 3)} for i, t in enumerate(texts)]
    if kind == "text":
        return "".join(t + "\n" for t in texts), [{"text": t} for t in texts]
    if kind == "label-text":
        return "".join(f"{r['label']} {r['text']}\n" for r in records), records
    if kind == "jsonl":
        return "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), records
    if kind == "json":
        return json.dumps(records, ensure_ascii=False, indent=1), records
    if kind == "conll":
        words = [{"words": t.split(" "), "tags": ["O"] * 4} for t in texts]
        blocks = ["".join(f"{w}\tO\n" for w in row["words"]) for row in words]
        return "\n".join(blocks), words
    if kind == "documents":
        found = [{"sentences": [f"{t} first", f"{t} second"]} for t in texts]
        return "\n\n".join("\n".join(row["sentences"]) for row in found), found
    if kind == "csv-quoted":
        for record in records[3::7]:
            record["text"] = QUOTED + record["text"]
    stream = io.StringIO(newline="")
    dialect = "excel-tab" if kind == "tsv" else "excel"
    writer = csv.DictWriter(stream, ["text", "label"], dialect=dialect)
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue(), records


def flipped(raw: bytes, place: int, rng: random.Random) -> bytes:
    return raw[:place] + bytes([raw[place] ^ (1 << rng.randrange(8))]) + raw[place + 1 :]


def inserted(what: bytes) -> Callable[[bytes, int, random.Random], bytes]:
    return lambda raw, place, rng: raw[:place] + what + raw[place:]


FAULTS: dict[str, Callable[[bytes, int, random.Random], bytes]] = {
    "flipped": flipped,
    "missing": lambda raw, place, rng: raw[:place] + raw[place + 1 :],
    "cut": lambda raw, place, rng: raw[:place],
    "NUL": inserted(b"\0"),
    "CR": inserted(b"\r"),
    "LF": inserted(b"\n"),
    "no UTF-8": inserted(b"\xff"),
    "quote": inserted(b'"'),
    "comma": inserted(b","),
    "tab": inserted(b"\t"),
    "brace": inserted(b"}"),
    "U+2028": inserted("\u2028".encode()),
    "form feed": inserted(b"\f"),
}


def read(path: Path, kind: str) -> Table | None:
    """None: the file as a whole was refused, with a reason."""
    try:
        return read_rows(path, format=kind.removesuffix("-quoted"), max_rejects=1.0)
    except InputError as error:
        if str(path) not in str(error):
            raise AssertionError(f"the file is not named: {error}") from error
        return None


def survivors(found: list[Any], before: list[Any]) -> int:
    """How many rows came out as they were; they must be in their order."""
    places = {json.dumps(row, sort_keys=True): i for i, row in enumerate(before)}
    kept = [places[key] for row in found if (key := json.dumps(row, sort_keys=True)) in places]
    assert kept == sorted(set(kept)), "a row came twice or out of order"
    return len(kept)


def check(path: Path, kind: str, fault: str, seed: int) -> str:
    """Mutate, read, hold against the promises; what became of it."""
    rng = random.Random(f"{kind} {fault} {seed}")
    text, before = made(kind)
    raw = text.encode()
    place = rng.randrange(len(raw))
    changed = FAULTS[fault](raw, place, rng)
    path.write_bytes(changed)
    header = kind in ("csv", "csv-quoted", "tsv") and place <= raw.index(b"\n")
    table = read(path, kind)
    if table is None:
        # Only a header that names a column twice, a list that breaks off, and rows none of which
        # is left may refuse a whole file.
        assert kind == "json" or header or fault == "cut", f"refused: {kind} {fault} {seed}"
        return "refused"
    found = [dict(row) for row in table.rows]
    kept = survivors(found, before)
    others = len(found) - kept
    whole = COUNT if fault != "cut" else survivors(before, before[: _whole_rows(kind, place)])
    swallowed = 0
    if header:
        swallowed = COUNT
    elif kind == "csv-quoted":
        swallowed = 8  # a stray quote may close at the next one, seven rows on: that is RFC 4180
    assert kept >= whole - 2 - swallowed, f"lost: {kind} {fault} {seed}"
    if swallowed < COUNT:
        assert others <= 2, f"invented: {kind} {fault} {seed}"
    if kind in ("text", "label-text", "jsonl"):
        lines = changed.decode("utf-8", "replace").split("\n")
        there = sum(bool(line.strip()) for line in lines)
        assert len(found) + len(table.rejects) == there, f"lost: {kind} {fault} {seed}"
    for reject in table.rejects:
        assert reject.file == str(path)
        assert reject.reason
        assert 1 <= reject.line <= changed.count(b"\n") + 1 + changed.count(b"\r")
    return "rejected" if table.rejects else "read"


def _whole_rows(kind: str, place: int) -> int:
    """Rows that end before a place of the file, at least."""
    text, before = made(kind)
    head = text.encode()[:place].decode("utf-8", "ignore")
    number = 0
    while number < len(before) and f"row {number} " in head:
        number += 1
    return max(number - 1, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_costs_one_row(kind: str, tmp_path: Path) -> None:
    outcomes = {check(tmp_path / "a", kind, f, seed) for f in FAULTS for seed in range(3)}
    assert {"rejected", "read"} <= outcomes


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_one_fault_costs_one_row_five_thousand_times(kind: str, tmp_path: Path) -> None:
    for fault in FAULTS:
        for seed in range(100, 143):
            check(tmp_path / "a", kind, fault, seed)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_broken_is_read_as_it_is(kind: str, tmp_path: Path) -> None:
    text, before = made(kind)
    for encoding in ("utf-8", "utf-8-sig", "cp932", "utf-16"):
        (tmp_path / "a").write_bytes(text.encode(encoding))
        table = read(tmp_path / "a", kind)
        assert table is not None
        assert (list(table.rows), table.rejects, table.encoding) == (before, (), encoding)


def swallowing(text: str, delimiter: str | None = None, header: bool = True) -> Any:
    """Python's csv module as it is: the negative control."""
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names = next(reader)
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield 1, str(error)
            continue
        yield reader.line_num, dict(zip(names, row, strict=False))


def silent(text: str) -> Any:
    """JSONL without its rejects: the other one."""
    return ((line, found) for line, found in read_jsonl(text) if not isinstance(found, str))


@pytest.mark.parametrize(("kind", "reader"), [("csv", swallowing), ("jsonl", silent)])
def test_a_reader_that_loses_rows_is_seen(
    kind: str, reader: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def checks() -> None:
        for seed in range(40):
            check(tmp_path / "a", kind, "quote", seed)

    checks()
    monkeypatch.setattr(rows, "READERS", {**rows.READERS, kind: reader})
    with pytest.raises(AssertionError, match="lost"):
        checks()
