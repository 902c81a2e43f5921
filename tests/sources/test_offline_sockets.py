"""Offline opens no socket, ever (RELIABILITY A9); the audit hook that says so can be tripped."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.hub import FakeHub, Repo, tiny_model

from chumoku.checkpoints.sources import resolve

_PROBE = """
import json, sys
events = []
def watch(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.exec", "os.system"):
        events.append(event)
sys.addaudithook(watch)
from chumoku.checkpoints import cache
from chumoku.checkpoints.defaults import default_model
from chumoku.checkpoints.sources import resolve
outcomes = []
for source in json.loads(sys.argv[1]):
    try:
        outcomes.append(resolve(source, offline=json.loads(sys.argv[2])).origin)
    except Exception as error:
        outcomes.append(type(error).__name__)
cache.list_cached()
heavy = sorted({"torch", "huggingface_hub", "tokenizers"} & set(sys.modules))
print(json.dumps([outcomes, events, heavy]))
"""

SOURCES = ["someone/tiny", "someone/absent", "smollm2-135m-instruct", "pypi:rxnfp==0.1.0"]


def _probe(offline: bool | None) -> tuple[list[str], list[str], list[str]]:
    run = subprocess.run(
        [sys.executable, "-c", _PROBE, json.dumps(SOURCES), json.dumps(offline)],
        capture_output=True,
        text=True,
        check=True,
    )
    outcomes, events, heavy = json.loads(run.stdout)
    return outcomes, events, heavy


@pytest.mark.parametrize(
    "switch", ["offline=True", "CHUMOKU_OFFLINE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
)
def test_no_socket_and_no_process(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch, switch: str
) -> None:
    fake.repos["someone/tiny"] = Repo(tiny_model())
    resolve("someone/tiny")
    fake.log.clear()
    if switch != "offline=True":
        monkeypatch.setenv(switch, "1")
    outcomes, events, heavy = _probe(True if switch == "offline=True" else None)
    assert outcomes == ["cache", "UnreachableError", "UnreachableError", "UnreachableError"]
    assert events == []
    assert heavy == []
    assert fake.log == []


def test_control_online_does_trip_the_hook(fake: FakeHub, home: Path) -> None:
    fake.repos["someone/tiny"] = Repo(tiny_model())
    outcomes, events, heavy = _probe(None)
    assert outcomes == ["hub", "SourceError", "SourceError", "SourceError"]
    assert "socket.connect" in events
    assert "subprocess.Popen" in events
    assert heavy == ["huggingface_hub"]
