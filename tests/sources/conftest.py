from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.hub import FakeHub, serve

_CLEARED = (
    *("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CHUMOKU_OFFLINE", "HF_DATASETS_CACHE"),
    *("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "PIP_FIND_LINKS"),
    *("PIP_EXTRA_INDEX_URL", "PIP_NO_INDEX"),
)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches of this test alone."""
    for name in _CLEARED:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("CHUMOKU_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return tmp_path


@pytest.fixture
def fake(home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """The fake hub and index, set as the only ones; waiting between attempts is cut short."""
    wait = time.sleep
    monkeypatch.setattr("time.sleep", lambda seconds: wait(min(seconds, 0.01)))
    with serve(FakeHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        monkeypatch.setenv("PIP_INDEX_URL", hub.index_url)
        yield hub
