"""What the scripts beside the recipes share: two verbs, and rows as JSONL."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def parser_of(doc: str | None) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser]:
    """The parser, and that of `judge MODEL --data`, for more options; `write` has --output."""
    parser = argparse.ArgumentParser(description=doc)
    verbs = parser.add_subparsers(dest="verb", required=True)
    write, judge = verbs.add_parser("write"), verbs.add_parser("judge")
    for verb in (write, judge):
        verb.add_argument("--data", type=Path, required=True)
    write.add_argument("--output", type=Path, required=True)
    judge.add_argument("model")
    return parser, judge


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """A row a line; the folder is made."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text("".join(lines), encoding="utf-8")
    print(f"{file}: {len(rows):,} rows")
