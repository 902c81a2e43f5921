from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes.zoo import Zoo, zoo

from chumoku.cli import main


@dataclass(frozen=True)
class Ran:
    """What a command line did."""

    code: int
    out: str
    err: str

    @property
    def rows(self) -> list[Any]:
        """stdout as JSON, an object a line; anything else fails the test."""
        return [json.loads(line) for line in self.out.splitlines()]


Run = Callable[..., Ran]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """run(words…, stdin="…"): a command line in this process; a refused one has no traceback."""
    threads = torch.get_num_threads()

    def call(*words: str | Path, stdin: str | bytes = "") -> Ran:
        raw = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), "utf-8"))
        capsys.readouterr()
        code = main([str(word) for word in words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err + captured.out
        return Ran(code, captured.out, captured.err)

    yield call
    torch.set_num_threads(threads)
