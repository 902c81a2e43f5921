"""Streams: every example once an epoch, and after a resume exactly what was to come."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from chumoku.errors import CheckpointError, InputError
from chumoku.training.data import sources
from chumoku.training.data.batching import Batches, Batching, Picked
from chumoku.training.data.packing import PackedExamples, Packer
from chumoku.training.data.sources import HubRows, LineRows, Reopened, Source
from chumoku.training.data.streaming import Each, Stage, StreamBatches, Streamed, batches_of

COUNT = 53


def ids_of(row: Mapping[str, Any]) -> list[int]:
    """Texts of 0 to 12 tokens, each of which says where it belongs."""
    number = int(row["text"])
    return [100 * number + place for place in range(number * 7 % 13)]


def opened(epoch: int, row: int) -> Iterator[dict[str, Any]]:
    return ({"text": str(number)} for number in range(row, COUNT))


def lines(tmp_path: Path, ending: str = "jsonl") -> LineRows:
    names = []
    for number, part in enumerate((range(20), range(20, 21), range(21, COUNT))):
        path = tmp_path / f"{number}.{ending}"
        text = "".join(json.dumps({"text": str(i)}) + "\n\n" for i in part).encode()
        path.write_bytes(gzip.compress(text) if ending.endswith("gz") else text)
        names.append(str(path))
    return LineRows(names, "jsonl")


def hub(tmp_path: Path) -> HubRows:
    datasets = pytest.importorskip("datasets")
    data = datasets.Dataset.from_dict({"text": [str(i) for i in range(COUNT)]})
    return HubRows(data.to_iterable_dataset(num_shards=3))


SOURCES: dict[str, Callable[[Path], Source]] = {
    "reopened": lambda tmp_path: Reopened(opened),
    "lines": lines,
    "lines.gz": lambda tmp_path: lines(tmp_path, "jsonl.gz"),
    "hub": hub,
}
STAGES: dict[str, Callable[[], Stage]] = {
    "each": lambda: Each(lambda row: [int(row["text"])]),
    "packed": lambda: Packer(ids_of, 8),
    "overlapping": lambda: Packer(ids_of, 5, overlap=1),
}


def comparable(picked: Picked) -> Any:
    plain = [x if isinstance(x, int) else [part.tolist() for part in x] for x in picked.examples]
    return plain, picked.epoch, picked.indices


def made(
    tmp_path: Path, source: str = "reopened", stage: str = "packed", **options: Any
) -> StreamBatches:
    batching = options.pop("batching", Batching(batch_size=3, window=2))
    own = SOURCES[source](tmp_path)
    return StreamBatches(own, STAGES[stage](), batching, seed=4, rows=COUNT, **options)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("source", SOURCES)
def test_a_stream_goes_on_at_every_batch(source: str, stage: str, tmp_path: Path) -> None:
    whole = made(tmp_path, source, stage)
    states, batches = [], []
    while not batches or batches[-1][1] < 2:
        states.append(json.dumps(whole.state()))
        batches.append(comparable(next(whole)))
    again = made(tmp_path, source, stage)
    for place in range(0, len(states), 1 if source == "reopened" else 5):
        again.restore(json.loads(states[place]))
        following = [comparable(next(again)) for _ in batches[place : place + 12]]
        assert following == batches[place : place + 12]
    states.append(json.dumps(whole.state()))
    own = states[3]
    for place in range(3, len(batches)):  # resumed again and again, from its own states
        if place % 7 == 3:
            again = made(tmp_path, source, stage)
            again.restore(json.loads(own))
        assert comparable(next(again)) == batches[place]
        own = json.dumps(again.state())
        assert source == "hub" or own == states[place + 1]  # (which can say one place in two ways)


@pytest.mark.parametrize("lost", ["stage", "source", "taken", "used", "window", "epoch"])
def test_a_place_of_which_a_part_is_lost_is_seen(lost: str, tmp_path: Path) -> None:
    """The negative controls: the remainder, the row, what is taken of it, the batch, the window."""
    whole = made(tmp_path, stage="overlapping")
    beginning = whole.state()
    batches, states = [], []
    for _ in range(60):
        states.append(whole.state())
        batches.append(comparable(next(whole)))
    differ = []
    for place, state in enumerate(states[:50]):
        again = made(tmp_path, stage="overlapping")
        again.restore(state | {lost: beginning[lost]})
        found = [comparable(next(again)) for _ in range(5)]
        differ.append(found != batches[place : place + 5])
    assert sum(differ) > 10


def one_epoch(batches: StreamBatches) -> list[Picked]:
    return list(itertools.takewhile(lambda picked: picked.epoch == 0, batches))


@pytest.mark.parametrize("window", [0, 1, 4, 100])
def test_every_token_once_an_epoch(window: int, tmp_path: Path) -> None:
    batching = Batching(batch_size=3, window=window)
    found = one_epoch(made(tmp_path, batching=batching))
    tokens = [t for picked in found for packed in picked.examples for t in packed.ids_T.tolist()]
    expected = [t for row in opened(0, 0) for t in ids_of(row)]
    assert sorted(tokens) == sorted(expected)
    assert (tokens == expected) == (window == 0)
    indices = [index for picked in found for index in picked.indices]
    assert sorted(indices) == list(range(len(indices)))
    assert [len(picked.indices) for picked in found[:-1]] == [3] * (len(found) - 1)
    plain = made(tmp_path, batching=Batching(batch_size=3, window=window, shuffle=False))
    flat = [t for p in one_epoch(plain) for x in p.examples for t in x.ids_T.tolist()]
    assert flat == expected


def test_epochs_and_seeds_have_other_orders(tmp_path: Path) -> None:
    def orders(seed: int) -> list[list[int]]:
        each = STAGES["each"]()
        batches = StreamBatches(Reopened(opened), each, Batching(COUNT), seed, COUNT)
        return [next(batches).examples for _ in range(3)]

    first = orders(0)
    assert all(sorted(order) == list(range(COUNT)) for order in first)
    assert len({tuple(order) for order in [*first, *orders(1)]}) == 6
    windows = made(tmp_path, stage="each", batching=Batching(batch_size=5, window=2))
    found = [i for picked in itertools.islice(windows, 4) for i in picked.examples]
    assert sorted(found[:10]) == list(range(10))
    assert [i - 10 for i in found[10:]] != found[:10]


def test_the_batches_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    whole = list(itertools.islice(made(tmp_path), 40))
    for world in (2, 3, 5):
        for rank in range(world):
            share = list(itertools.islice(made(tmp_path, rank=rank, world=world), 40))
            for own, picked in zip(share, whole, strict=True):
                assert own.indices == picked.indices[rank::world]
                assert own.epoch == picked.epoch


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    whole = list(itertools.islice(made(tmp_path), 20))
    alone = made(tmp_path)
    for _ in range(7):
        next(alone)
    pair = [made(tmp_path, rank=rank, world=2) for rank in range(2)]
    for share in pair:
        share.restore(alone.state())
    for picked in whole[7:]:
        indices = [next(share).indices for share in pair]
        assert sorted(itertools.chain(*indices)) == sorted(picked.indices)


def test_drop_last(tmp_path: Path) -> None:
    batching = Batching(batch_size=4, window=3, drop_last=True)
    found = one_epoch(made(tmp_path, stage="each", batching=batching))
    assert [len(picked.examples) for picked in found] == [4] * (COUNT // 4)


def test_an_empty_stream_and_batches_by_tokens(tmp_path: Path) -> None:
    empty = Reopened(lambda epoch, row: iter(()))
    with pytest.raises(InputError, match="the stream is empty"):
        next(StreamBatches(empty, STAGES["packed"](), Batching(2), 0, 1))
    with pytest.raises(InputError, match="no batches by tokens"):
        made(tmp_path, batching=Batching(tokens=100))


def test_states_that_are_none(tmp_path: Path) -> None:
    batches = made(tmp_path)
    for _ in range(9):
        next(batches)
    state = batches.state()
    wrong: list[dict[str, Any]] = [{}, {"epoch": -1}, {"source": 3}, {"stage": None}]
    wrong += [{"taken": 99_999}, {"source": {}}, {"stage": {}}]
    for change in wrong:
        with pytest.raises(CheckpointError):
            made(tmp_path).restore(state | change if change else {})
    with pytest.raises(CheckpointError, match="no file number 7"):
        lines(tmp_path).restore(
            {"file": 7, "line": 0, "offset": 0, "rows": 0, "bad": 0, "bytes": 0}
        )
    with pytest.raises(CheckpointError, match="no place in the data"):
        hub(tmp_path).restore({})


def test_streamed_examples_stand_in_a_task(tmp_path: Path) -> None:
    streamed = Streamed(lambda: Reopened(opened), STAGES["packed"], rows=30)
    batches = batches_of(streamed, Batching(batch_size=4, window=0), 0)
    assert batches.batches_per_epoch == 8
    first = next(batches).examples[0]
    assert streamed.example(5, 3).ids_T.tolist() == first.ids_T.tolist()
    assert isinstance(batches, StreamBatches)
    assert isinstance(batches_of(PackedExamples([[1, 2]], 4, 0), Batching(), 0), Batches)


# ---- files of lines ----


def all_rows(source: Source) -> list[dict[str, Any]]:
    end = {"end": True}
    return list(iter(lambda: next(source, end), end))


def test_bad_lines_of_a_stream_are_named(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": NaN}\n{"a": "\xff"}\n{"a": 4}\n{"a": 5}'
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "b").write_bytes(b'{"a": 6}\n[]\n')
    names = [str(tmp_path / name) for name in "ab"]
    source = LineRows(names, "jsonl", max_rejects=0.5)
    assert [row["a"] for row in all_rows(source)] == [1, 4, 5, 6]
    assert [str(reject) for reject in source.tally.rejects] == [
        f"{names[0]}:3: NaN is no JSON",
        f"{names[0]}:4: byte 0xFF is not utf-8",
        f"{names[1]}:2: not a JSON object",
    ]
    strict = LineRows(names, "jsonl")
    with pytest.raises(InputError, match="3 of 7 rows are bad"):
        all_rows(strict)
    source.start(1)
    assert source.tally.rejects == []
    assert len(all_rows(source)) == 4


def test_bad_rows_of_the_hub_are_named(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    texts = ["a", None, "b", "c", None, "d"]
    data = datasets.Dataset.from_dict({"text": texts, "n": range(6)})

    def opened(share: float) -> HubRows:
        return HubRows(data.to_iterable_dataset(), {"text": "text"}, "hf:org/pets", share)

    source = opened(0.4)
    noted: list[str] = []
    source.note = noted.append
    bad = [f"hf:org/pets:{n}: no text in 'text' but None; it has text, n" for n in (2, 5)]
    for epoch in range(2):
        source.start(epoch)
        assert [row["text"] for row in all_rows(source)] == ["a", "b", "c", "d"]
        assert [str(reject) for reject in source.tally.rejects] == bad
    assert noted == bad * 2
    source.start(2)
    assert [next(source)["n"] for _ in range(2)] == [0, 2]
    again = opened(0.4)
    again.restore(json.loads(json.dumps(source.state())))
    assert [row["n"] for row in all_rows(again)] == [3, 5]
    assert [str(reject) for reject in again.tally.rejects] == bad[1:]
    with pytest.raises(InputError, match="2 of 6 rows are bad: hf:org/pets:2: no text"):
        all_rows(opened(0.3))


def test_a_stream_of_mostly_bad_lines_stops_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "JUDGED_FROM", 10)
    (tmp_path / "a").write_text("[]\n" * 50)
    with pytest.raises(InputError, match="10 of 10 rows are bad"):
        next(LineRows([str(tmp_path / "a")], "jsonl"))


def test_a_line_that_is_too_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE", 10)
    monkeypatch.setattr("chumoku.training.data.formats.MAX_LINE", 10)
    (tmp_path / "a").write_text("short\n" + "x" * 500 + "\nend", encoding="utf-8")
    source = LineRows([str(tmp_path / "a")], "text", max_rejects=0.5)
    assert [row["text"] for row in all_rows(source)] == ["short", "end"]
    assert [reject.line for reject in source.tally.rejects] == [2]
    assert "characters in a line; the limit is 10" in source.tally.rejects[0].reason


def test_files_that_cannot_be_streamed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read as a stream"):
        LineRows(["a.csv"], "csv")
    with pytest.raises(InputError, match="no file is named"):
        LineRows([], "text")
    with pytest.raises(InputError, match="the file cannot be read"):
        next(LineRows([str(tmp_path / "none")], "text"))
    (tmp_path / "a.gz").write_bytes(gzip.compress(b"a\n" * 9999)[:-20])
    with pytest.raises(InputError, match="the file cannot be read on"):
        all_rows(LineRows([str(tmp_path / "a.gz")], "text"))


def test_a_file_that_changed_is_seen(tmp_path: Path) -> None:
    batches = StreamBatches(lines(tmp_path), STAGES["packed"](), Batching(2, window=0), 0, COUNT)
    for _ in range(25):
        next(batches)
    state = batches.state()
    with (tmp_path / "2.jsonl").open("a") as stream:
        stream.write("\n")
    batches = StreamBatches(lines_again(tmp_path), STAGES["packed"](), Batching(2), 0, COUNT)
    with pytest.raises(CheckpointError, match="bytes of text, now there are"):
        batches.restore(state)


def lines_again(tmp_path: Path) -> LineRows:
    return LineRows([str(tmp_path / f"{n}.jsonl") for n in range(3)], "jsonl")
