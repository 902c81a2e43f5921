"""Hostile and damaged tokenizer files: a tokenizer or a typed error, nothing else."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from text_samples import bert_vocab, byte_bpe, sentencepiece_model, write_json

from chumoku.errors import ChumokuError, TokenizerError
from chumoku.text import export_tokenizer_json, load_tokenizer
from chumoku.text.engine import check_regex
from chumoku.text.families import LLAMA3_SPLIT
from chumoku.text.gguf import PRE_TOKENIZERS
from chumoku.text.sentencepieces import PieceModel

EXTREMES = [
    0,
    1,
    -1,
    2**22,
    2**31 - 1,
    2**31,
    2**32,
    2**63,
    2**64,
    1e308,
    "",
    "x",
    None,
    [],
    {},
    True,
]


def seeds(folder: Path) -> list[str]:
    """Small tokenizer.json files of three kinds."""
    (folder / "vocab.txt").write_text("\n".join(bert_vocab()) + "\n", "utf-8")
    bert = export_tokenizer_json(load_tokenizer(folder))
    (folder / "vocab.txt").unlink()
    vocab, merges = byte_bpe(["hello hello world world the the cat"], 280)
    write_json(folder / "vocab.json", vocab)
    (folder / "merges.txt").write_text("\n".join(map(" ".join, merges)) + "\n", "utf-8")
    bpe = export_tokenizer_json(load_tokenizer(folder))
    (folder / "vocab.json").unlink()
    (folder / "merges.txt").unlink()
    unigram = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Replace", "pattern": {"String": "``"}, "content": '"'},
                {"type": "NFKC"},
                {"type": "Prepend", "prepend": "▁"},
            ],
        },
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
        "model": {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": False,
            "vocab": [["<unk>", 0.0], *([c, -float(n)] for n, c in enumerate("▁helowrdabc", 1))],
        },
    }
    return [bert, bpe, json.dumps(unigram)]


def mutate(text: str, rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    data = bytearray(text.encode("utf-8"))
    if kind == 0:
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[rng.randrange(len(data)) :]
    elif kind == 2:
        start = rng.randrange(len(data))
        data[start : start + rng.randrange(40)] = data[rng.randrange(len(data)) :][:40]
    else:
        spec = json.loads(text)
        for _ in range(rng.randint(1, 3)):
            replace_one(spec, rng)
        return json.dumps(spec).encode()
    return bytes(data)


def replace_one(spec: object, rng: random.Random) -> None:
    """Put an extreme value, or another part of the file, somewhere into it."""
    part = spec
    while True:
        keys = list(part) if isinstance(part, dict) else list(range(len(part)))
        if not keys:
            return
        key = rng.choice(keys)
        child = part[key]
        if isinstance(child, dict | list) and child and rng.random() < 0.8:
            part = child
            continue
        part[key] = copy.deepcopy(rng.choice([*EXTREMES, child, spec.get("decoder")]))
        return


def survive(folder: Path, texts: tuple[str, ...] = ("hello [MASK] w``orld 日本", "a" * 300)) -> str:
    """'ok' or the class of the typed error; anything else is raised."""
    started = time.monotonic()
    try:
        tokenizer = load_tokenizer(folder, {"model_type": "bert"})
        assert tokenizer is not None
        for text in texts:
            ids = tokenizer.encode(text, "pair").ids
            assert all(0 <= index < 2**32 for index in ids)
            tokenizer.decode(ids)
            tokenizer.encode(text, parse_special=False)
        result = "ok"
    except ChumokuError as error:
        result = type(error).__name__
    assert time.monotonic() - started < 60  # no hang
    return result


@pytest.mark.parametrize("count", [1000, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_tokenizer_json(tmp_path: Path, count: int) -> None:
    sources = seeds(tmp_path)
    rng = random.Random(count)
    results: dict[str, int] = {}
    for number in range(count):
        data = mutate(sources[number % len(sources)], rng)
        (tmp_path / "tokenizer.json").write_bytes(data)
        outcome = survive(tmp_path)
        results[outcome] = results.get(outcome, 0) + 1
    assert results["TokenizerError"] > count // 5
    assert results["ok"] > count // 50


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_mutated_sentencepiece_models(count: int) -> None:
    rng = random.Random(count)
    sources = [sentencepiece_model("unigram", 200), sentencepiece_model("bpe", 300)]
    refused = 0
    for number in range(count):
        data = bytearray(sources[number % 2])
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        try:
            PieceModel(bytes(data), "mutant").encode("hello 日本 ﬁ the cat")
        except ChumokuError:
            refused += 1
    assert refused > count // 10


def spec_with(**changes: object) -> dict[str, object]:
    spec = {
        "version": "1.0",
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1}, "unk_token": "[UNK]"},
    }
    return spec | changes


def regex_part(pattern: str) -> dict[str, object]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def nested(depth: int) -> dict[str, object]:
    part: dict[str, object] = {"type": "Lowercase"}
    for _ in range(depth):
        part = {"type": "Sequence", "normalizers": [part]}
    return part


def token(index: object, content: object) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return {"id": index, "content": content, "special": True, **flags}


BOMBS = {
    "exponential regex": spec_with(pre_tokenizer=regex_part("(a+)+$")),
    "choices repeated": spec_with(pre_tokenizer=regex_part("(a|a)*b")),
    "many repeats": spec_with(pre_tokenizer=regex_part("(?:a+){1000}")),
    "empty pattern": spec_with(pre_tokenizer=regex_part("")),
    "empty string pattern": spec_with(
        normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"}
    ),
    "deep sequence": spec_with(normalizer=nested(60)),
    "negative id": spec_with(model={"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}),
    "large id": spec_with(model={"type": "WordLevel", "vocab": {"a": 2**31}, "unk_token": "a"}),
    "two tokens, one id": spec_with(
        model={"type": "WordLevel", "vocab": {"a": 1, "b": 1}, "unk_token": "a"}
    ),
    "empty vocabulary": spec_with(model={"type": "WordLevel", "vocab": {}, "unk_token": "a"}),
    "vocabulary is a number": spec_with(model={"type": "WordLevel", "vocab": 3}),
    "fractional id": spec_with(model={"type": "WordLevel", "vocab": {"a": 1.5}}),
    "added tokens share an id": spec_with(added_tokens=[token(7, "x"), token(7, "y")]),
    "added token takes an id": spec_with(added_tokens=[token(1, "x")]),
    "added token without text": spec_with(added_tokens=[token(2, "")]),
    "added token id -1": spec_with(added_tokens=[token(-1, "x")]),
    "added token of a wrong type": spec_with(added_tokens=[3]),
    "no model": {"version": "1.0"},
    "model of an unknown type": spec_with(model={"type": "Magic", "vocab": {"a": 0}}),
    "a list": [],
    "merge of a missing token": spec_with(
        model={"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}
    ),
    "merges are a number": spec_with(model={"type": "BPE", "vocab": {"a": 0}, "merges": 3}),
    "unigram without its unknown": spec_with(
        model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 5}
    ),
    "bad charsmap": spec_with(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "////////"}
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_in_tokenizer_json(tmp_path: Path, name: str) -> None:
    write_json(tmp_path / "tokenizer.json", BOMBS[name])
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path)
    assert "tokenizer.json" in str(caught.value)


def test_padding_truncation_and_dropout_of_the_file_do_not_apply(tmp_path: Path) -> None:
    padding = {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_id": 0, "pad_token": "a"}
    padding |= {"pad_type_id": 0, "pad_to_multiple_of": None}
    truncation = {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    write_json(tmp_path / "tokenizer.json", spec_with(padding=padding, truncation=truncation))
    assert load_tokenizer(tmp_path).encode("a a a").ids == [1, 1, 1]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        '{"a": NaN}',
        '{"a": 1, "a": 2}',
        '{"a": 1e999}x',
        "\x00",
        "",
        '"text"',
    ],
)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_strict_json(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(TokenizerError) as caught:
        load_tokenizer(tmp_path, {"model_type": "gpt2"})
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("added_tokens.json", '{"x": -1}'),
        ("added_tokens.json", '{"x": "1e5"}'),
        ("added_tokens.json", '{"x": 7, "y": 7}'),
        ("special_tokens_map.json", '{"mask_token": 3}'),
        ("special_tokens_map.json", '{"mask_token": {"content": 3}}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": []}'),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"-3": {"content": "x"}}}'),
        (
            "tokenizer_config.json",
            '{"added_tokens_decoder": {"3": {"content": "x", "special": 5}}}',
        ),
        ("tokenizer_config.json", '{"do_lower_case": "yes"}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("tokenizer_config.json", '{"additional_special_tokens": 5}'),
        ("vocab.txt", ""),
    ],
)
def test_small_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(bert_vocab()) + "\n", "utf-8")
    if '"x": "1e5"' in text or "[]" in text:
        text = text.replace("[]", "[1]")
    (tmp_path / name).write_text(text, "utf-8")
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path, {"model_type": "bert"})


def test_not_utf8_names_the_byte(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_bytes(b"[PAD]\n\xff\n")
    with pytest.raises(TokenizerError, match="byte 6"):
        load_tokenizer(tmp_path)


def test_published_expressions_pass_the_check() -> None:
    for pattern in [LLAMA3_SPLIT, *(s for pre in PRE_TOKENIZERS.values() for s in pre.splits)]:
        check_regex(pattern, "test")
    for pattern in (r"\(a+\)+", "[(a+)]+", "(?:abc)+", r"(ab)*c|d", "a{3}", "(a{2,5})+"):
        check_regex(pattern, "test")
    for pattern in ("((a)*)*", "(?:x|y)+", "(a*){2,}", "([ab]+)*", "(a(b+))*"):
        with pytest.raises(TokenizerError):
            check_regex(pattern, "test")


LONG_TEXTS = """
import resource, sys
from chumoku.text import load_tokenizer
tokenizer = load_tokenizer(sys.argv[1])
resource.setrlimit(resource.RLIMIT_CPU, (120, 120))
for unit in ("a", " ", "\u0301", "ab c", "\u65e5"):
    print(len(tokenizer.encode(unit * (400_000 // len(unit))).ids))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on processor time")
def test_long_texts_end(tmp_path: Path) -> None:
    """A method that is quadratic in the length would meet the limit, some forty times what is
    needed, whatever else the machine does."""
    vocab, merges = byte_bpe(["hello hello world world aaaa aaaa"], 300)
    write_json(tmp_path / "vocab.json", vocab)
    (tmp_path / "merges.txt").write_text("\n".join(map(" ".join, merges)) + "\n", "utf-8")
    command = [sys.executable, "-c", LONG_TEXTS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    counts = list(map(int, done.stdout.split()))
    assert len(counts) == 5
    assert all(0 < count <= 3 * 400_000 for count in counts)
