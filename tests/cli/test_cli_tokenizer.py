"""chumoku tokenizer train and show."""

from __future__ import annotations

import cProfile
import gzip
import json
import os
import pstats
import random
import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chumoku.cli import COMMANDS, common
from chumoku.cli.tokenizer import BLOCK_CHARACTERS
from chumoku.text import load_tokenizer
from chumoku.text.training import TokenizerSettings, train_tokenizer

Run = Callable[..., Any]
LINES = [
    "the cat sat on the mat and the other cats ran after the dog",
    "hello world: there they were, then and there, in the garden",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "",
    "私の今日の昼ご飯はカレーライスでした。",
] * 3


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "tokenizer", ("tokenizer:app", "Train a tokenizer."))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(LINES) + "\n", "utf-8")
    return path


def same_files(folder: Path, texts: list[str], **options: Any) -> bool:
    made = train_tokenizer(texts, TokenizerSettings(**options))
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    return found == dict(made.files)


CASES = {
    "bert": ({"vocab_size": 300}, ("--vocab-size", "300")),
    "uncased": (
        {"vocab_size": 300, "lowercase": True, "strip_accents": False},
        ("--vocab-size", "300", "--lowercase", "--no-strip-accents", "--family", "bert"),
    ),
    "japanese": (
        {"vocab_size": 300, "japanese": "mecab", "dictionary": "ipadic"},
        ("--vocab-size", "300", "--japanese", "mecab", "--dictionary", "ipadic"),
    ),
    "t5": (
        {"kind": "unigram", "vocab_size": 110, "sentinels": 3, "coverage": 0.999},
        ("--kind", "unigram", "--vocab-size=110", "--sentinels", "3", "--coverage", "0.999"),
    ),
    "llama": (
        {"kind": "bpe", "vocab_size": 400, "extra_tokens": ("<a>", "<b>"), "max_length": 64},
        ("--kind=bpe", "--vocab-size=400", "--token=<a>", "--token=<b>", "--max-length=64"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_command_is_the_function(name: str, run: Run, corpus: Path, tmp_path: Path) -> None:
    pytest.importorskip("fugashi")
    options, words = CASES[name]
    folder = tmp_path / "made"
    ran = run("tokenizer", "train", *words, "--output", folder, corpus)
    assert ran.code == 0, ran.err
    assert same_files(folder, LINES, **options)
    assert not same_files(folder, LINES[:3], **options)  # negative control
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    count = sum(len(tokenizer.encode(line, special=False)) for line in LINES)
    characters = sum(map(len, LINES))
    assert f"{tokenizer.vocab_size} tokens ({options.get('kind', 'wordpiece')}," in ran.out
    rate = f"{count / characters:.3f} tokens a character on the first {characters} characters"
    assert rate in ran.out
    smaller = tokenizer.vocab_size < options["vocab_size"]
    assert smaller == ("fewer than" in ran.err)
    words = shlex.split(ran.out.splitlines()[-1].removeprefix("try: "))
    shown = run(*words[1:])
    assert shown.code == 0
    assert shown.out.split("\n")[0].split() == ["token", "id", "start", "end", "text", "word"]


@pytest.mark.parametrize("kind", ["byte-bpe", "characters"])
def test_line_ends_are_text_for_bytes_and_characters(
    kind: str, run: Run, corpus: Path, tmp_path: Path
) -> None:
    text = corpus.read_text("utf-8")
    windows = tmp_path / "windows.txt"
    windows.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    ways = [(corpus, b""), (windows, b""), ("-", text.encode())]
    for number, (source, stdin) in enumerate(ways):
        folder = tmp_path / str(number)
        words = ("--kind", kind, "--vocab-size", "500", "--output", folder)
        ran = run("tokenizer", "train", *words, source, stdin=stdin)
        assert ran.code == 0, ran.err
        assert same_files(folder, [text], kind=kind, vocab_size=500)
        tokenizer = load_tokenizer(folder)
        assert tokenizer is not None
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert not same_files(folder, [text.replace("\n", "")], kind=kind, vocab_size=500)


def test_a_long_file_is_read_in_blocks(run: Run, tmp_path: Path) -> None:
    text = ("one line\n\n\nand another one\n" * 4000)[:-1]
    assert len(text) > BLOCK_CHARACTERS
    path, folder = tmp_path / "long.txt", tmp_path / "made"
    path.write_text(text, "utf-8")
    words = ("--kind", "byte-bpe", "--vocab-size", "300", "--output", folder)
    assert run("tokenizer", "train", *words, path).code == 0
    assert same_files(folder, [text], kind="byte-bpe", vocab_size=300)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    assert tokenizer.token_to_id("ĊĊ") is not None  # a blank line, seen between its neighbours


def test_several_files_and_an_alphabet(run: Run, corpus: Path, tmp_path: Path) -> None:
    more, alphabet = tmp_path / "more.txt", tmp_path / "alphabet.txt"
    more.write_text("zebra zebra\n", "utf-8")
    alphabet.write_text("ß æ\nø\n", "utf-8")
    words = ("--vocab-size", "300", "--alphabet", alphabet, "--output", tmp_path / "made")
    assert run("tokenizer", "train", *words, corpus, more).code == 0
    texts = [*LINES, "zebra zebra"]
    assert same_files(tmp_path / "made", texts, vocab_size=300, alphabet="ßæø")


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe"])
@pytest.mark.parametrize("encoding", ["cp932", "utf-16", "iso2022_jp", "euc_jp", "gz"])
def test_other_encodings_are_read_as_training_data_is(
    encoding: str, kind: str, run: Run, corpus: Path, tmp_path: Path
) -> None:
    text = corpus.read_text("utf-8")
    other = tmp_path / ("other.txt.gz" if encoding == "gz" else "other.txt")
    other.write_bytes(gzip.compress(text.encode()) if encoding == "gz" else text.encode(encoding))
    words = ("--kind", kind, "--vocab-size", "320")
    named = ("--encoding", "euc_jp") if encoding == "euc_jp" else ()
    made = {}
    for path, more in ((corpus, ()), (other, named)):
        folder = tmp_path / f"made-{path.name}"
        ran = run("tokenizer", "train", *words, *more, "--output", folder, path)
        assert ran.code == 0, ran.err
        made[path] = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert made[other] == made[corpus]


def test_a_pipe_is_read_once(run: Run, corpus: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(corpus.read_bytes(),), daemon=True)
    writer.start()
    ran = run("tokenizer", "train", "--vocab-size", "300", "--output", tmp_path / "made", pipe)
    assert ran.code == 0, ran.err
    assert same_files(tmp_path / "made", LINES, vocab_size=300)


def test_an_encoding_that_is_not_found_out(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Größe\n".encode("latin-1") * 9)
    ran = run("tokenizer", "train", "--output", tmp_path / "made", path)
    assert ran.code == 2
    assert "--encoding" in ran.err
    ran = run("tokenizer", "train", "--encoding", "cp932", "--output", tmp_path / "made", "-")
    assert "stdin is read as UTF-8" in ran.err


def test_a_marian_pair(run: Run, corpus: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    corpus.write_text("\n".join(LINES[:2] * 4), "utf-8")
    other.write_text("\n".join(LINES[2:5] * 4), "utf-8")
    words = ("--kind", "unigram", "--family", "marian", "--vocab-size", "240")
    folder = tmp_path / "made"
    ran = run("tokenizer", "train", *words, "--target", other, "--output", folder, corpus)
    assert ran.code == 0, ran.err
    tokenizer: Any = load_tokenizer(folder)
    for flag, encode in (("", tokenizer.encode), ("--target", tokenizer.encode_target)):
        shown = run("tokenizer", "show", "--json", *filter(None, [flag]), folder, LINES[4])
        assert [row["id"] for row in shown.rows] == encode(LINES[4]).ids
    assert tokenizer.encode(LINES[4]).ids != tokenizer.encode_target(LINES[4]).ids


def test_show_is_the_encoding(run: Run, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    run("tokenizer", "train", "--vocab-size", "300", "--output", folder, corpus)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    text, pair = "the [MASK] cats 猫", "hello"
    encoding = tokenizer.encode(text, pair)
    rows = run("tokenizer", "show", folder, text, "--pair", pair, "--json").rows
    assert [row["token"] for row in rows] == encoding.tokens
    assert [(row["start"], row["end"]) for row in rows] == encoding.offsets
    assert [row["word"] for row in rows] == encoding.words
    assert "".join(row["text"] for row in rows) == "the[MASK]cats猫hello"
    plain = run("tokenizer", "show", folder, text, "--plain", "--json").rows
    ids = tokenizer.encode(text, special=False, parse_special=False).ids
    assert [row["id"] for row in plain] == ids
    assert tokenizer.mask_id not in ids  # and the rows above have it
    piped = run("tokenizer", "show", folder, stdin=text)
    assert piped.out == run("tokenizer", "show", folder, text).out
    assert piped.out.endswith(f"{len(tokenizer.encode(text))} tokens, {len(text)} characters\n")
    lines = run("tokenizer", "show", folder, "the\ncat").out.splitlines()
    assert len(lines) == len(tokenizer.encode("the\ncat")) + 3


def test_line_ends_do_not_break_the_table(run: Run, corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    run("tokenizer", "train", "--kind", "characters", "--output", folder, corpus)
    lines = run("tokenizer", "show", folder, "a\nc").out.splitlines()
    assert [line.split()[-2] for line in lines[1:4]] == ["a", "⏎", "c"]


SHOWN = {
    "bert": "the [MASK] cats 猫である。ﬁn é\u0301 🙂 \u2028x",
    "japanese": "吾輩は猫である。\n名前は\tまだ無い。",
    "t5": "the cat sat  on\r\nthe 猫 mat",
    "characters": "a\nc, the 猫",
    "byte-bpe": "猫 sat on the mat\n\n",
}


@pytest.mark.parametrize("name", [*SHOWN])
def test_show_is_drawn_as_rich_draws_it(
    name: str, run: Run, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = CASES[name][1] if name in CASES else ("--kind", name)
    run("tokenizer", "train", *flags, "--output", tmp_path / "made", corpus)
    quick = run("tokenizer", "show", tmp_path / "made", SHOWN[name]).out
    monkeypatch.setattr(common, "_is_one_line", lambda cell: False)
    assert quick == run("tokenizer", "show", tmp_path / "made", SHOWN[name]).out
    assert len(quick.splitlines()) > 5


@pytest.mark.parametrize("seed", range(30))
def test_a_table_is_drawn_as_rich_draws_it(
    seed: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wide and combining characters, blanks at both ends, tabs, line ends, a narrow terminal."""
    dice = random.Random(seed)
    letters = [*"ab 猫ｱe\u0301🙂\u0644", "👩\u200d🚀", "❤\ufe0f", *"\n\t\u2028"]
    letters = letters if seed % 3 == 0 else letters[:-3]
    rows = [
        [
            dice.randint(-9, 10**6),
            "".join(dice.choices(letters, k=dice.randint(0, 9))),
            dice.random(),
        ]
        for _ in range(dice.randint(0, 20))
    ]
    monkeypatch.setattr(common, "PIPE_WIDTH", dice.choice([16, 30, 10_000]))
    found = []
    for is_one_line in (common._is_one_line, lambda cell: False):
        monkeypatch.setattr(common, "_is_one_line", is_one_line)
        common.print_table(["number", "猫", "x"], rows, title="title" if seed % 2 else None)
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]


def test_showing_a_long_text_costs_little_a_token(run: Run, corpus: Path, tmp_path: Path) -> None:
    """Counted in calls of functions: a table of rich takes hundreds for each row."""
    run("tokenizer", "train", "--kind", "characters", "--output", tmp_path / "made", corpus)

    def calls(characters: int) -> int:
        text = ("the cat sat. " * characters)[:characters]
        profile = cProfile.Profile()
        profile.runcall(run, "tokenizer", "show", tmp_path / "made", stdin=text)
        return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]

    calls(10)  # what is imported once
    few, some, many = (calls(count) for count in (1000, 2000, 4000))
    assert (some - few) / 1000 == pytest.approx((many - some) / 2000, rel=0.05)
    assert (many - some) / 2000 < 120


def test_bad_bytes_are_named(run: Run, corpus: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes("一行目\n".encode() + "二行目".encode("cp932") + b"\n")
    ran = run("tokenizer", "train", "--output", tmp_path / "made", corpus, bad)
    assert ran.code == 2
    assert f"[{bad}:2]" in ran.err
    assert "byte 0x93 is not utf-8" in ran.err
    assert not (tmp_path / "made").exists()
    ran = run("tokenizer", "train", "--output", tmp_path / "made", "-", stdin=b"ok\nx\xff\n")
    assert "stdin:2, byte 1" in ran.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--kind", "foo"), "no kind of tokenizer"),
        (("--vocab-size", "20"), "at least"),
        (("--family", "gpt2"), "No gpt2 model"),
        (("--coverage", "0.99"), "no coverage"),
        (("--dictionary", "ipadic"), "needs japanese"),
        (("--alphabet", "/nowhere/at/all"), "cannot read the file"),
    ],
)
def test_bad_options(
    words: tuple[str, ...], message: str, run: Run, corpus: Path, tmp_path: Path
) -> None:
    ran = run("tokenizer", "train", *words, "--output", tmp_path / "made", corpus)
    assert (ran.code, ran.out) == (2, "")
    assert message in ran.err
    assert not (tmp_path / "made").exists()


def test_bad_files(run: Run, corpus: Path, tmp_path: Path) -> None:
    output = ("--output", tmp_path / "made")
    assert "name the files" in run("tokenizer", "train", *output).err
    assert "cannot read" in run("tokenizer", "train", *output, tmp_path / "absent").err
    assert "cannot read" in run("tokenizer", "train", *output, tmp_path).err
    empty = tmp_path / "empty.txt"
    empty.write_bytes(b"\xef\xbb\xbf\n\n")
    assert "no text to learn from" in run("tokenizer", "train", *output, empty).err
    assert "no text to learn from" in run("tokenizer", "train", *output, "-").err
    assert "no tokenizer files" in run("tokenizer", "show", tmp_path, "a").err


def test_a_tokenizer_is_not_overwritten_unasked(run: Run, corpus: Path, tmp_path: Path) -> None:
    words = ("--vocab-size", "300", "--output", tmp_path / "made")
    assert run("tokenizer", "train", *words, corpus).code == 0
    # The refusal comes before the work: the file is not even opened.
    ran = run("tokenizer", "train", *words, tmp_path / "absent")
    assert ran.code == 2
    assert "--overwrite" in ran.err
    assert run("tokenizer", "train", "--lowercase", "--overwrite", *words, corpus).code == 0
    config = json.loads((tmp_path / "made" / "tokenizer_config.json").read_text("utf-8"))
    assert config["do_lower_case"] is True
