"""benchmarks/check_hub.py on a hub of our own, where every default is a tiny model of its kind."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from fakes.hub import FakeHub, Repo, serve
from fakes.zoo import zoo
from training import test_fallbacks

from chumoku.checkpoints.defaults import DEFAULTS, VERBS

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "check_hub.py"
KINDS = {
    **{"fill-mask": "masked", "generate": "chat", "chat": "chat", "translate": "t5"},
    **{"summarize": "t5", "text2text": "t5", "classify": "entailment", "zero-shot": "entailment"},
    **{"ner": "names", "qa": "answers", "next-sentence": "next", "multiple-choice": "choice"},
    **{"embed": "sentence", "similarity": "sentence", "search": "sentence", "rerank": "rerank"},
    **{"classify-image": "vit", "perplexity": "chat"},
}


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("check_hub", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_hub"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hub(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[FakeHub]:
    """Every default is tiny/KIND; the one of `ner` is not there."""
    tiny = zoo(tmp_path_factory.mktemp("zoo"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE", "CHUMOKU_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("CHUMOKU_CACHE", str(tmp_path / "own"))
    tables = {}
    for lang, table in DEFAULTS.items():
        kinds = dict(KINDS)
        if lang == "ja":
            kinds["multiple-choice"] = kinds["fill-mask"] = "japanese"
        tables[lang] = {v: replace(m, source=f"tiny/{kinds[v]}") for v, m in table.items()}
    changed = MappingProxyType(tables)
    monkeypatch.setattr("chumoku.checkpoints.defaults.DEFAULTS", changed)
    monkeypatch.setattr("check_hub.DEFAULTS", changed)
    with serve(FakeHub()) as server:
        for kind in {*KINDS.values(), "japanese"} - {"names"}:
            folder = tiny(kind)
            files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
            server.repos[f"tiny/{kind}"] = Repo({n: p.read_bytes() for n, p in files.items()})
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_every_default_has_an_example(script: Any) -> None:
    assert {lang: set(table) for lang, table in script.EXAMPLES.items()} == {
        lang: set(table) for lang, table in DEFAULTS.items()
    }


def test_the_report(script: Any, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main([*VERBS]) == 1
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert lines[0][:5] == ["verb", "lang", "model", "result", "seconds"]
    rows = lines[1 : 1 + 2 * len(VERBS)]
    assert [(row[0], row[1]) for row in rows] == [(v, lang) for v in VERBS for lang in DEFAULTS]
    for verb, lang, model, result, seconds, *answer in rows:
        assert result == ("FAILED" if verb == "ner" else "ok"), (verb, lang, answer)
        assert model.startswith("tiny/")
        assert float(seconds) >= 0
        assert answer
    assert "34 ok, 2 failed" in shown
    pulled = {entry.split()[1] for entry in hub.log if entry.startswith("GET")}
    assert any(path.startswith("/tiny/chat/resolve") for path in pulled)


def test_some_verbs(script: Any, hub: FakeHub, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["classify", "embed"]) == 0
    assert "4 ok, 0 failed" in capsys.readouterr().out
    assert script.main(["nothing-such"]) == 2


def test_a_crash_is_a_failure_and_the_next_goes_on(
    script: Any, hub: FakeHub, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = script.chumoku

    def crashing(words: list[str]) -> int:
        if words[0] == "classify":
            raise ZeroDivisionError("a fault of ours")
        return int(ours(words))

    monkeypatch.setattr(script, "chumoku", crashing)
    assert script.main(["classify", "embed"]) == 1
    shown = capsys.readouterr().out
    assert "ZeroDivisionError: a fault of ours" in shown
    assert "2 ok, 2 failed" in shown


def test_the_data_of_recipes(
    script: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets")

    def load(name: str, *more: Any, **named: Any) -> Any:
        if name == "mteb/JSTS":
            raise FileNotFoundError("it was renamed")
        return test_fallbacks.load(name, *more, **named)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert script.main(["recipes"]) == 1
    shown = capsys.readouterr().out
    assert "4 train, 4 evaluation, 4 test" in shown
    (failed,) = [line for line in shown.splitlines() if "FAILED" in line]
    assert "jsts" in failed
    assert "SourceError" in failed
    assert f"{len(script.recipes()) - 1} ok, 1 failed" in shown
