"""[data] stream = true: the same text as when it is read whole, exact resuming, bad rows named."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from chumoku.errors import ConfigError, InputError
from chumoku.training.data import hub
from chumoku.training.data.streaming import RowStream, StreamBatches, batches_of, row_stream
from chumoku.training.objectives import causal_lm, masked_lm
from chumoku.training.objectives.encoded import frame_of, pieces_of
from chumoku.training.preparing import prepare
from chumoku.training.progress import JsonLog, Step, read_log
from chumoku.training.recipe import Recipe, build
from chumoku.training.runner import train

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 24}
T5 = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 16,
    "num_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
}
WORDPIECE = {"kind": "wordpiece", "vocab_size": 90, "min_frequency": 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "causal-lm": (GPT2, {"kind": "byte-bpe", "vocab_size": 280}, {"length": 16}),
    "masked-lm": (BERT, WORDPIECE, {"length": 16}),
    "masked-lm joined": (BERT, WORDPIECE, {"length": 16, "join": True, "whole_words": True}),
    "span-corruption": (T5, {"kind": "unigram", "vocab_size": 130, "family": "t5"}, {"length": 16}),
    "span-corruption apart": (
        T5,
        {"kind": "unigram", "vocab_size": 130, "family": "t5"},
        {"length": 16, "join": False},
    ),
}


def lines(count: int = 60) -> list[str]:
    dice = random.Random(3)
    words = ["cat", "dog", "sat", "ran", "the", "on", "mat", "hill", "old", "new", "river", "stone"]
    return [" ".join(dice.choices(words, k=dice.randint(1, 25))) for _ in range(count)]


def recipe(folder: Path, case: str, **data: Any) -> Recipe:
    model, tokenizer, options = CASES[case]
    path = folder / "text.jsonl"
    if not path.exists():
        path.write_text("".join(json.dumps({"body": line}) + "\n" for line in lines()))
    table = {
        "model": {"config": model},
        "tokenizer": tokenizer,
        "data": {"train": str(path), "columns": {"text": "body"}, "stream": True, **data},
        "task": {"kind": case.partition(" ")[0], **options},
        "training": {
            "steps": 14,
            "save_every": 3,
            "accumulate": 2,
            "batching": {"batch_size": 3, "window": 2},
        },
    }
    return build(Recipe, table, "test")


class Killed(Exception):  # noqa: N818
    pass


class Stopper(JsonLog):
    """Raises behind a step."""

    def __init__(self, path: Path, stop: int) -> None:
        super().__init__(path)
        self.stop = stop

    def step(self, step: Step) -> None:
        super().step(step)
        if step.step == self.stop:
            raise Killed


def outcome(folder: Path) -> tuple[str, list[str]]:
    """SHA-256 of the weights, and each step's loss as a hex float."""
    weights = (folder / "model.safetensors").read_bytes()
    steps = [e for e in read_log(folder / "run" / "log.jsonl") if e["kind"] == "step"]
    return hashlib.sha256(weights).hexdigest(), [e["loss"].hex() for e in steps]


@pytest.mark.parametrize("case", CASES)
def test_a_run_over_a_stream_goes_on_exactly(case: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    own = recipe(tmp_path, case)
    train(own, tmp_path / "whole", device="cpu")
    for stop in (2, 10):  # 10: in the second epoch, and not at a snapshot
        place = tmp_path / str(stop)
        with pytest.raises(Killed):
            train(own, place, device="cpu", reports=[Stopper(tmp_path / f"{stop}.log", stop)])
        train(own, place, device="cpu")
        assert outcome(place) == outcome(tmp_path / "whole")
    assert len(outcome(tmp_path / "whole")[1]) == 14


# ---- the same text ----


def streamed(folder: Path, case: str) -> tuple[Any, Any, StreamBatches]:
    """Loaded, task and unshuffled batches of one example each."""
    from dataclasses import replace

    own = recipe(folder, case)
    prepared = prepare(own, folder, (), torch.device("cpu"))
    batching = replace(own.training.batching, batch_size=1, shuffle=False)
    batches = batches_of(prepared.task.examples, batching, 0)
    assert isinstance(batches, StreamBatches)
    return prepared.loaded, prepared.task, batches


def epoch_of(batches: StreamBatches) -> list[Any]:
    found = []
    while (picked := next(batches)).epoch == 0:
        found += picked.examples
    return found


def test_windows_are_those_of_the_whole_text(tmp_path: Path) -> None:
    loaded, _, batches = streamed(tmp_path, "causal-lm")
    texts = causal_lm.documents(loaded.tokenizer, lines(), end=True)
    whole = causal_lm.Windows(causal_lm.stream_of(texts, separate=True), 16, "fixed", 0)
    found = epoch_of(batches)
    assert len(found) == len(whole) > 20
    for index, row in enumerate(found):
        expected = whole.example(index, 0)
        assert torch.equal(row.ids_T, expected.ids_T)
        assert torch.equal(row.targets_T, expected.targets_T)
        assert (row.sequences_T is None) == (expected.sequences_T is None)


@pytest.mark.parametrize("join", [True, False])
def test_masked_pieces_are_those_of_the_whole_text(join: bool, tmp_path: Path) -> None:
    loaded, _, batches = streamed(tmp_path, "masked-lm joined" if join else "masked-lm")
    tokenizer, frame = loaded.tokenizer, frame_of(loaded.tokenizer)
    pieces = [pieces_of(tokenizer, line) for line in lines()]
    whole = masked_lm.cut(pieces, 16, frame, join)
    found = epoch_of(batches)
    assert len(found) == len(whole) > 20
    inputs = []
    for masked, piece in zip(found, whole, strict=True):
        ids_T = masked.ids_T.clone()
        ids_T[masked.places_M] = masked.targets_M
        assert ids_T.tolist() == [*frame.before, *piece.ids_T.tolist(), *frame.after]
        inputs.append(masked.ids_T.tolist())
    stage = masked_lm.Joining(lambda piece: piece, 16, frame, join)
    again = [part for piece in pieces for part in stage.add(piece)] + stage.flush()
    for part, piece in zip(again, whole, strict=True):  # words as whole as before
        same = piece.words_T[:, None] == piece.words_T
        assert torch.equal(part.words_T[:, None] == part.words_T, same)
    later = [x for picked in [next(batches) for _ in found[1:]] for x in picked.examples]
    assert [x.ids_T.tolist() for x in later] != inputs[1:]  # masked anew


# ---- rows that are no good, and wishes that cannot be ----


def test_bad_rows_are_named_in_the_log(tmp_path: Path) -> None:
    path = tmp_path / "text.jsonl"
    rows = [json.dumps({"body": line}) for line in lines()]
    rows[4], rows[7] = '{"body": 3}', "{"
    path.write_text("\n".join(rows) + "\n")
    train(recipe(tmp_path, "causal-lm", max_rejects=0.1), tmp_path / "out", device="cpu")
    notes = [e["text"] for e in read_log(tmp_path / "out" / "run" / "log.jsonl") if "text" in e]
    assert any(":5: no text in column 'body'" in note for note in notes)
    assert any(":8: " in note for note in notes)
    with pytest.raises(InputError, match="2 of 60 rows are bad"):
        train(recipe(tmp_path, "causal-lm"), tmp_path / "strict", device="cpu")


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("task", {"kind": "seq2seq"}, r"\[task\] kind(?s:.*)causal-lm"),
        ("training", {}, r"\[training\] steps"),
        ("data", {"holdout": 0.1}, r"\[data\] holdout(?s:.*)evaluation"),
        ("data", {"limit": 3}, r"\[data\] limit"),
        ("data", {"encoding": "cp932"}, r"\[data\] encoding"),
    ],
)
def test_what_does_not_go_with_a_stream(
    section: str, change: dict[str, Any], message: str, tmp_path: Path
) -> None:
    from dataclasses import asdict

    table = asdict(recipe(tmp_path, "causal-lm"))
    table[section] = table[section] | change if change else {}
    with pytest.raises(ConfigError, match=message):
        train(build(Recipe, table, "test"), tmp_path / "out", device="cpu")


def rows_of(stream: RowStream) -> list[Any]:
    return stream.first(1000)


def test_where_a_stream_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, packed = tmp_path / "a.txt", tmp_path / "b.txt.gz"
    text.write_text("one\ntwo\n")
    packed.write_bytes(gzip.compress(b"three\n"))
    found = rows_of(row_stream([str(tmp_path / "*.t*")], None, {"text": "text"}, 0.0, 9))
    assert [row["text"] for row in found] == ["one", "two", "three"]
    (tmp_path / "c.jsonl").write_text("{}")
    with pytest.raises(InputError, match="jsonl and of text"):
        row_stream([str(text), str(tmp_path / "c.jsonl")], None, {}, 0.0, 9)
    with pytest.raises(InputError, match="'csv' cannot be read as a stream"):
        rows_of(row_stream([str(text)], "csv", {}, 0.0, 9))
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"body": ["x", "y", None]}).to_iterable_dataset()
    asked: list[Any] = []

    class Library:
        @staticmethod
        def load_dataset(*words: Any, **named: Any) -> Any:
            asked.append((words, named))
            return data

    monkeypatch.setattr(hub, "datasets_library", Library)
    stream = row_stream(["hf:org/name/en:test"], None, {"text": "body"}, 0.0, 9)
    assert stream.first(2) == [{"text": "x"}, {"text": "y"}]
    options = {"split": "test", "revision": None, "streaming": True}
    assert asked[0] == (("org/name", "en"), options)
    with pytest.raises(InputError, match="no text in 'body'"):
        rows_of(stream)
    with pytest.raises(InputError, match="one name on the hub"):
        row_stream(["hf:a/b", "hf:c/d"], None, {}, 0.0, 9)
