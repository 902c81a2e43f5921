"""The command line as a whole: words, exit codes, pipes, and a real terminal."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.zoo import Zoo

from chumoku.cli import COMMANDS, EXAMPLES
from chumoku.cli.common import download_progress

pty = pytest.importorskip("pty")
Run = Callable[..., Any]


# ---- words ----


@pytest.mark.parametrize(
    ("variables", "lang"),
    [
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "C"}, "en"),
    ],
)
def test_five_examples_in_the_language_of_the_locale(
    variables: dict[str, str], lang: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    ran = run()
    lines = [line.strip() for line in ran.out.splitlines() if line.strip()]
    assert ran.code == 0
    assert lines == list(EXAMPLES[lang])
    assert sum(line.startswith("chumoku ") and "--help" not in line for line in lines) == 5
    verbs = [line.split()[1] for line in lines if line.startswith("chumoku ")]
    assert set(verbs) - {"--help"} <= COMMANDS.keys()


def test_help_names_every_command_and_its_options(run: Run) -> None:
    ran = run("--help")
    assert ran.code == 0
    for verb in COMMANDS:
        assert re.search(rf"\b{verb}\s", ran.out)
        told = run(verb, "--help")
        assert told.code == 0
        assert told.out.startswith(f"Usage: chumoku {verb}")
    told = run("generate", "--help").out
    for option in ("--model", "--device", "--dtype", "--batch-size", "--threads", "--seed"):
        assert re.search(rf"{option} [A-Z]+ +\S", told), option  # each has a description
    for option in ("--revision", "--json", "--file", "--offline", "--temperature"):
        assert re.search(rf"{option}( [A-Z]+)? +\S", told), option


@pytest.mark.parametrize(
    "words",
    [
        ("nothing-such",),
        ("--nothing-such",),
        ("generate", "--nothing-such", "a"),
        ("generate", "--max-new-tokens", "many", "a"),
        ("generate", "--model"),
        ("models", "nothing-such"),
        ("models", "show"),
        ("cache", "remove"),
        ("rerank",),
        ("search",),
        ("fill-mask", "--lang", "xx", "a [MASK]"),
        ("generate", "--threads", "0", "a"),
        ("generate", "--batch-size", "0", "a"),
        ("similarity", "a", "b", "--file", "x"),
        ("zero-shot", "a"),
        ("multiple-choice", "--file", "x", "prompt"),
    ],
)
def test_a_wrong_command_line(words: tuple[str, ...], run: Run) -> None:
    ran = run(*words)
    assert ran.code == 2
    assert ran.err.strip()
    assert ran.out == ""


# ---- models and cache ----


def test_models_show(run: Run, models: Zoo) -> None:
    ran = run("models", "show", models("sentence"))
    assert ran.code == 0
    assert "blocks.1.attention.query.weight" in ran.out
    row = next(
        r for r in run("models", "show", models("sentence"), "--json").rows if "1" in r["key"]
    )
    assert set(row) == {"key", "name", "shape", "type", "bytes"}
    rows = {r["key"]: r for r in run("models", "show", models("gpt2"), "--json").rows}
    assert rows["transformer.h.0.attn.c_attn.weight"] == {
        "key": "transformer.h.0.attn.c_attn.weight",
        "name": "blocks.0.attention.query.weight, blocks.0.attention.key.weight, "
        "blocks.0.attention.value.weight",
        "shape": "24x72",
        "type": "F32",
        "bytes": 24 * 72 * 4,
    }


def test_models_convert(run: Run, models: Zoo, tmp_path: Path) -> None:
    words = ("generate", "--max-new-tokens", "6", "--json", "the cat", "--model")
    expected = run(*words, models("chat")).rows[0]["ids"]
    file, folder = tmp_path / "model.gguf", tmp_path / "half"
    assert run("models", "convert", models("chat"), file, "--type", "F32").code == 0
    assert run(*words, file).rows[0]["ids"] == expected
    ran = run("models", "convert", file, folder, "--dtype", "bfloat16")
    assert ran.out == f"written: {folder}\n"
    shown = run("models", "show", folder, "--json").rows
    assert {row["type"] for row in shown} == {"BF16"}
    assert len(shown) == len(run("models", "show", models("chat"), "--json").rows)
    for wrong in (("--type", "F32"), ("--dtype", "int3")):
        assert run("models", "convert", models("chat"), tmp_path / "no", *wrong).code == 2
    assert run("models", "convert", models("masked"), file, "--type", "F32").code == 2


def test_models_defaults(run: Run) -> None:
    ran = run("models", "defaults")
    assert ran.code == 0
    rows = run("models", "defaults", "--json").rows
    verbs = {row["verb"] for row in rows}
    without = {"demo", "models", "cache", "train", "finetune", "tokenizer"}
    assert verbs == COMMANDS.keys() - without
    for row in rows:
        assert row["source"] in ran.out
    assert sum(row["verified"] for row in rows) == ran.out.count("(run here)") > 0


# ---- real processes ----


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "chumoku", *map(str, words)]


def test_a_reader_that_leaves_early(models: Zoo, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("the cat sat\n" * 3000, "utf-8")
    for words in (
        ("models", "defaults"),
        ("models", "show", models("gpt2")),
        ("embed", "--json", "--model", models("sentence"), "--file", many),
    ):
        with subprocess.Popen(
            command(*words), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline()
            process.stdout.close()
            assert process.stderr.read() == b""
            assert process.wait() == 0


class Terminal:
    """A program on a pseudo-terminal of 80 columns, and what it has shown so far."""

    def __init__(self, words: list[str], folder: Path) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:  # pragma: no cover
            os.chdir(folder)
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a suite in the background ignores it
            os.execvpe(words[0], words, os.environ | {"COLUMNS": "80", "TERM": "dumb"})
        self.shown = ""

    def expect(self, text: str, seconds: float = 60) -> str:
        """Read until the text appears; what came before it is given back and forgotten."""
        until = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < until, f"no {text!r} in {self.shown!r}"
            assert self.read(), f"ended without {text!r}: {self.shown!r}"
        before, self.shown = self.shown.split(text, 1)
        return before

    def read(self, size: int = 4096, seconds: float = 30) -> bool:
        """Take what has been shown since; False where the program has ended."""
        assert select.select([self.fd], [], [], seconds)[0], f"silent after {self.shown!r}"
        try:
            data = os.read(self.fd, size)
        except OSError:  # how Linux says that the other side is closed
            return False
        self.shown += data.decode(errors="replace")
        return bool(data)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """Wait for the end; the exit code."""
        while self.read():
            pass
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.fd)
        self.pid = 0
        return code


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    started: list[Terminal] = []

    def start(*words: str | Path) -> Terminal:
        started.append(Terminal(command(*words), tmp_path))
        return started[-1]

    yield start
    for one in started:
        if one.pid:
            os.kill(one.pid, signal.SIGKILL)
            os.waitpid(one.pid, 0)
            os.close(one.fd)


def test_a_conversation(terminal: Callable[..., Terminal], models: Zoo, tmp_path: Path) -> None:
    there = terminal("chat", "--model", models("chat"), "--max-new-tokens", "5")
    there.expect("/help")
    there.expect("> ")
    for message in ("the cat", "and the dog"):
        there.type(f"{message}\n")
        there.expect("\r\n")  # the echo
        there.expect("\r\n> ")
    there.type("/save talk.json\n")
    there.expect("4 messages in talk.json")
    talk = json.loads((tmp_path / "talk.json").read_text("utf-8"))
    assert [m["role"] for m in talk] == ["user", "assistant"] * 2
    assert [m["content"] for m in talk[::2]] == ["the cat", "and the dog"]
    there.type("/system be brief\n/save b.json\n")
    there.expect("1 messages in b.json")
    assert json.loads((tmp_path / "b.json").read_text("utf-8")) == [
        {"role": "system", "content": "be brief"}
    ]
    there.type("the cat\n")
    there.expect("> ")
    there.type("/reset\n/save c.json\n/nothing\n/save no/such/folder\n")
    there.expect("1 messages in c.json")
    there.expect("There is no command /nothing")
    there.expect("error: cannot write no/such/folder")
    there.type("/quit\n")
    assert there.end() == 0
    assert "Traceback" not in there.shown


def test_the_second_answer_depends_on_the_first_message(
    terminal: Callable[..., Terminal], models: Zoo, tmp_path: Path
) -> None:
    """A conversation is more than single messages."""
    answers = []
    for reset in ("", "/reset\n"):
        there = terminal("chat", "--model", models("chat"), "--max-new-tokens", "9")
        there.type(f"one two three\n{reset}the cat\n/save talk.json\n/quit\n")
        there.expect("messages in talk.json")
        assert there.end() == 0
        answers.append(json.loads((tmp_path / "talk.json").read_text("utf-8"))[-1]["content"])
    assert answers[0] != answers[1]


def test_control_c_stops_the_answer_alone(
    terminal: Callable[..., Terminal], models: Zoo, tmp_path: Path
) -> None:
    options = ("--max-new-tokens", "8000", "--min-new-tokens", "8000")
    there = terminal("chat", "--model", models("chat"), *options)
    there.expect("> ")
    while not select.select([there.fd], [], [], 0.5)[0]:
        there.type("\x03")  # again where it came before input() was ready for it
    there.expect("/quit or Ctrl-D leaves.")
    there.expect("> ")
    there.type("the cat\n")
    there.expect("the cat\r\n")
    while len(there.shown) < 10:
        assert there.read(64)
    there.type("\x03")
    there.expect("\n> ", seconds=20)
    there.type("/save talk.json\n")
    there.expect("2 messages in talk.json")
    answer = json.loads((tmp_path / "talk.json").read_text("utf-8"))[1]
    assert answer["role"] == "assistant"
    assert 0 < len(answer["content"]) < 20_000
    there.type("again\n")
    there.expect("again\r\n")
    while len(there.shown) < 10:
        assert there.read(64)
    there.type("\x03")
    there.expect("\n> ", seconds=20)
    there.type("\x04")
    for _ in range(60):
        if not select.select([there.fd], [], [], 0.5)[0]:
            there.type("\x04")  # again where it came before input() was ready for it
        elif not there.read():
            break
    assert there.end() == 0
    assert "Traceback" not in there.shown


def test_tables_fit_a_terminal_of_80_columns(
    terminal: Callable[..., Terminal], models: Zoo, tmp_path: Path
) -> None:
    long = "the cat sat on the mat and " * 8
    there = terminal("rerank", "--model", models("rerank"), "the cat", long, "猫が座っている。" * 9)
    assert there.end() == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", there.shown).splitlines()
    assert max(sum(2 if ord(c) > 0x2E80 else 1 for c in line) for line in lines) <= 80
    assert len(lines) > 5


def test_a_model_cannot_steer_the_terminal(terminal: Callable[..., Terminal], models: Zoo) -> None:
    """Bytes of an answer that are control characters are shown as such, not obeyed."""
    options = ("--max-new-tokens", "400", "--do-sample", "--temperature", "9.0", "--seed", "3")
    there = terminal("generate", "--model", models("chat"), *options, "a")
    assert there.end() == 0
    assert not set(there.shown) & {chr(n) for n in (*range(9), *range(14, 32), 127)}
    assert "\ufffd" in there.shown


def test_progress_of_a_download(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line in a log; on a terminal one line that grows to 100% once."""
    steps = [(0, 4_000_000), (1_000_000, 4_000_000), (4_000_000, 4_000_000), (4_000_000, 4_000_000)]
    report = download_progress()
    for done, total in steps:
        report("a model", done, total)
    assert capsys.readouterr().err == "fetching a model (4.0 MB)\n"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    report = download_progress()
    for done, total in steps:
        report("a model", done, total)
    shown = capsys.readouterr().err
    assert shown.count("100% of 4.0 MB\n") == 1
    assert shown.endswith("fetching a model 100% of 4.0 MB\n")
