"""What the READMEs and the bare command tell a newcomer to type is typed here.

Lines whose default model can be had from the package index run as they stand (`-m real`). The
others need the hub: they run on a tiny model of the same kind, and say so (`pytest -s` shows it).
"""

from __future__ import annotations

import io
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
from fakes.zoo import Zoo, zoo

from chumoku.checkpoints.defaults import DEFAULTS, detect_language
from chumoku.cli import COMMANDS, EXAMPLES, main

ROOT = Path(__file__).parent.parent
PAGES = {name: (ROOT / name).read_text("utf-8") for name in ("README.md", "README.ja.md")}
PACKAGED = {"smollm2-135m-instruct", "all-minilm-l6-v2"}
TINY = {
    **{"fill-mask": "masked", "qa": "answers", "classify": "entailment", "ner": "names"},
    **{"similarity": "sentence", "translate": "t5", "chat": "chat", "summarize": "t5"},
}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)


def command_lines() -> list[str]:
    """Every line that starts with `chumoku`, of both pages and of the bare command, once."""
    told = [block for page in PAGES for block in blocks(page, "bash")]
    lines = [line for block in told for line in block.splitlines()]
    lines += [line for examples in EXAMPLES.values() for line in examples[1:-1]]
    return list(dict.fromkeys(line for line in lines if line.startswith("chumoku ")))


def words_of(line: str) -> list[str]:
    return shlex.split(line, comments=True)[1:]


def needed(line: str) -> str | None:
    """The default model that a line needs; None for one that names its own, or needs none."""
    verb, *rest = words_of(line)
    table = DEFAULTS[detect_language(rest[0] if rest else "")]
    return table[verb].source if verb in table and "--model" not in rest else None


TRAINING = [line for line in command_lines() if words_of(line)[0] in ("train", "finetune")]
TRAINING += [line for line in command_lines() if line.startswith("chumoku tokenizer train")]
REAL = [line for line in command_lines() if needed(line) in PACKAGED | {None}]
REAL = [line for line in REAL if line not in TRAINING]
HUB = [line for line in command_lines() if needed(line) not in PACKAGED | {None}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with nothing on stdin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(), "utf-8"))


@pytest.mark.real
@pytest.mark.parametrize("line", REAL)
def test_the_line_runs_as_it_stands(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words_of(line)) == 0
    assert capsys.readouterr().out.strip()


@pytest.mark.parametrize("line", HUB)
def test_the_line_runs_on_a_tiny_model(
    line: str, models: Zoo, capsys: pytest.CaptureFixture[str]
) -> None:
    verb, *rest = words_of(line)
    japanese = verb == "fill-mask" and detect_language(rest[0]) == "ja"
    tiny = models("japanese" if japanese else TINY[verb])
    assert main([verb, *rest, "--model", str(tiny)]) == 0
    assert capsys.readouterr().out.strip()
    print(f"{line}: needs {needed(line)} from the hub, was run on a tiny {TINY[verb]} model")


@pytest.mark.real
@pytest.mark.parametrize("line", TRAINING)
def test_the_line_trains(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    """In a folder with the files that it names, and a few steps only."""
    rows = [f"{text} {n},{label}" for n in range(20) for text, label in PAIRS]
    for name in ("train.csv", "dev.csv"):
        Path(name).write_text("\n".join(["本文,ラベル", *rows]), "utf-8")
    Path("texts.txt").write_text("\n".join(rows), "utf-8")
    Path("recipes").symlink_to(ROOT / "recipes")
    few = [] if "tokenizer" in line else ["--training.steps=2", "--device", "cpu"]
    assert main([*words_of(line), *few]) == 0
    assert capsys.readouterr().out.strip()
    folder = Path(words_of(line)[words_of(line).index("--output") + 1])
    assert (folder / ("vocab.txt" if "tokenizer" in line else "model.safetensors")).is_file()


PAIRS = (("a lovely film", "good"), ("a dull film", "bad"), ("この映画は良い", "good"))


@pytest.mark.real
@pytest.mark.parametrize("page", PAGES)
def test_the_python_block_runs(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks(page, "python")
    Path("block.py").write_text(block, "utf-8")
    runpy.run_path("block.py", run_name="__main__")
    shown = capsys.readouterr().out
    assert "Paris" in shown
    assert "[[" in shown
    if "chumoku.save" in block:
        assert Path("my-copy/model.safetensors").is_file()
        assert "blocks.5.attention.weights" in shown


def test_both_kinds_of_lines_were_found() -> None:
    assert len(REAL) >= 6
    assert len(HUB) >= 6
    assert all(words_of(line)[0] in COMMANDS for line in command_lines())


def test_the_two_commands_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for page in PAGES:
        first = blocks(page, "bash")[0]
        assert re.findall(r"^make (\S+)", first, re.MULTILINE) == ["demo", "test"]
    assert {"demo", "test", "test-slow", "test-peers", "lint", "check-hub"} <= targets


@pytest.mark.parametrize("page", PAGES)
def test_the_table_of_verbs_is_whole(page: str) -> None:
    rows = re.findall(r"^\| ((?:`[a-z0-9-]+`(?:, )?)+) \|", PAGES[page], re.MULTILINE)
    verbs = [verb for row in rows for verb in re.findall(r"`([^`]+)`", row)]
    assert sorted(verbs) == sorted(COMMANDS.keys() - {"demo"})
    assert "chumoku demo" in PAGES[page]


def test_the_readmes_say_which_models_were_run() -> None:
    """`verified` in the table of defaults, and nothing else, may be called tested."""
    verified = {m.source for table in DEFAULTS.values() for m in table.values() if m.verified}
    assert verified == PACKAGED
    assert "parity-tested, not yet run on published weights" in PAGES["README.md"]
    assert "公開された重みでは未実行" in PAGES["README.ja.md"]
