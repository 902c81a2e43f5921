"""Parquet, and data sets of the hub by name: mapped from the disk, and no socket when offline."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

datasets = pytest.importorskip("datasets")

from chumoku.errors import InputError  # noqa: E402
from chumoku.training.data import decoding  # noqa: E402
from chumoku.training.data.hub import open_hub  # noqa: E402
from chumoku.training.data.rows import read_rows  # noqa: E402
from chumoku.training.data.sources import HubRows  # noqa: E402
from chumoku.training.data.tables import MappedRows, usable, where_of  # noqa: E402
from chumoku.training.objectives import (  # noqa: E402
    image_classification,
    token_classification,
)
from chumoku.training.objectives.classification import check_row  # noqa: E402

ROWS = {"本文": ["猫", "犬", None, "鳥"], "label": [0, 1, 1, 0], "text": ["x"] * 4}


@pytest.fixture
def parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "a.parquet"
    datasets.Dataset.from_dict(ROWS).to_parquet(path)
    return str(path)


def test_parquet_is_mapped(parquet: str) -> None:
    table = read_rows(parquet)
    assert [dict(row) for row in table.rows] == [
        {"本文": text, "label": label, "text": "x"}
        for text, label in zip(ROWS["本文"], ROWS["label"], strict=True)
    ]
    assert table.rows.data.cache_files
    assert len(read_rows(parquet, limit=3).rows) == 3
    assert len(read_rows([parquet, parquet]).rows) == 8


def test_columns_of_parquet(parquet: str) -> None:
    table = read_rows(parquet, columns={"text": "本文"}, max_rejects=0.25)
    assert [dict(row) for row in table.rows] == [
        {"text": "猫", "label": 0},
        {"text": "犬", "label": 1},
        {"text": "鳥", "label": 0},
    ]
    assert [str(reject) for reject in table.rejects] == [f"{parquet}:3: no value in column '本文'"]
    with pytest.raises(InputError, match="1 of 4 rows are bad"):
        read_rows(parquet, columns={"text": "本文"})
    with pytest.raises(InputError, match="there is no column 'body'") as caught:
        read_rows(parquet, columns={"text": "body"})
    assert "label, text, 本文" in caught.value.advice


def test_columns_that_change_places(tmp_path: Path) -> None:
    """As in the other direction of a translation; and one column may have two names."""
    path = str(tmp_path / "a.parquet")
    datasets.Dataset.from_dict({"source": ["cat"], "target": ["猫"]}).to_parquet(path)
    (row,) = read_rows(path, columns={"source": "target", "target": "source"}).rows
    assert dict(row) == {"source": "猫", "target": "cat"}
    (row,) = read_rows(path, columns={"a": "source", "b": "source"}).rows
    assert dict(row) == {"a": "cat", "b": "cat", "target": "猫"}


def test_a_row_on_the_disk_knows_its_place(parquet: str, tmp_path: Path) -> None:
    """Over two files, behind gaps, and after a choice of a choice."""
    other = str(tmp_path / "b.parquet")
    datasets.Dataset.from_dict(ROWS).to_parquet(other)
    rows = read_rows([parquet, other], columns={"text": "本文"}, max_rejects=0.25).rows
    places = [f"{name}:{line}" for name in (parquet, other) for line in (1, 2, 4)]
    assert [where_of(row, 0) for row in rows] == places
    assert [where_of(rows[n], 0) for n in range(-6, 0)] == places
    assert [where_of(row, 0) for row in rows[1:].select([0, 3])] == [places[1], places[4]]
    assert [row["text"] for row in rows[1:].select([0, 3])] == ["犬", "犬"]
    with pytest.raises(IndexError):
        rows[6]


def test_rows_of_the_hub_know_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.Dataset.from_dict(ROWS)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **options: data)
    table = read_rows("hf:org/pets:test", columns={"text": "本文"}, max_rejects=0.25)
    assert [str(reject) for reject in table.rejects] == [
        "hf:org/pets:test:3: no value in column '本文'"
    ]
    assert [where_of(row, 0) for row in table.rows] == [f"hf:org/pets:test:{n}" for n in (1, 2, 4)]


def test_a_row_on_the_disk_that_an_objective_refuses(tmp_path: Path) -> None:
    path = str(tmp_path / "a.parquet")
    rows = {"text": ["x", " ", "y", "z"], "label": ["a", "b", "a", "b"]}
    datasets.Dataset.from_dict(rows).to_parquet(path)
    table = usable(read_rows(path), check_row, 0.25)
    assert [str(reject) for reject in table.rejects] == [f"{path}:2: 'text' of the row is empty"]
    assert [row["text"] for row in table.rows] == ["x", "y", "z"]
    assert isinstance(table.rows, MappedRows)


def test_pictures_on_the_disk(parquet: str) -> None:
    """They stay bytes: one that is damaged is found by the objective, not while reading."""
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "JPEG")
    good = stream.getvalue()
    files = [good, good[: len(good) // 2], b"<html>", good]
    pictures = [{"bytes": file, "path": None} for file in files] + [{"bytes": None, "path": None}]
    data = datasets.Dataset.from_dict({"image": pictures, "label": list("ababa")})
    data.cast_column("image", datasets.Image()).to_parquet(parquet)
    table = usable(read_rows(parquet), image_classification.check_row, 0.6)
    assert [row["image"]["bytes"] for row in table.rows] == [good, good]
    cut, html, none = map(str, table.rejects)
    assert cut.startswith(f"{parquet}:2: this is no image that can be read: ")
    assert html.startswith(f"{parquet}:3: this is no image that can be read: ")
    assert none == f"{parquet}:5: the picture of the row is empty"


def test_a_name_says_config_revision_and_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a column may lie in another, as in translation data sets."""
    asked: list[tuple[object, ...]] = []

    def load(path: str, config: str | None, **options: object) -> object:
        asked.append((path, config, options["revision"], options["split"]))
        return datasets.Dataset.from_list([{"translation": {"en": "dog", "ja": "犬"}, "id": 1}])

    monkeypatch.setattr(datasets, "load_dataset", load)
    columns = {"source": "translation.en", "target": "translation.ja"}
    (row,) = read_rows("hf:org/pairs/en-ja@refs/convert/parquet:train[:500]", columns=columns).rows
    assert dict(row) == {"source": "dog", "target": "犬", "id": 1}
    read_rows("hf:org/pairs@v1")
    read_rows("hf:org/pairs:test")
    assert asked == [
        ("org/pairs", "en-ja", "refs/convert/parquet", "train[:500]"),
        ("org/pairs", None, "v1", "train"),
        ("org/pairs", None, None, "test"),
    ]
    with pytest.raises(InputError, match=r"there is no column 'translation\.de'"):
        read_rows("hf:org/pairs", columns={"source": "translation.de"})


def test_a_stream_has_columns_in_columns_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"page": {"body": text, "id": n}, "text": "x"} for n, text in enumerate("猫犬鳥")]

    def load(*args: object, streaming: bool, **options: object) -> object:
        data = datasets.Dataset.from_list(rows)
        return data.to_iterable_dataset() if streaming else data

    monkeypatch.setattr(datasets, "load_dataset", load)
    for columns, texts in (
        ({"text": "page.body"}, ["猫", "犬", "鳥"]),
        ({"text": "text"}, ["x"] * 3),
    ):
        stream = HubRows(open_hub("hf:org/pages", columns), columns)
        assert [next(stream)["text"] for _ in range(3)] == texts
        assert [row["text"] for row in read_rows("hf:org/pages", columns=columns).rows] == texts
    nested = {"text": "page.body"}
    stream = HubRows(open_hub("hf:org/pages", nested), nested)
    next(stream)
    state, second = stream.state(), next(stream)
    stream.restore(state)
    assert next(stream) == second
    with pytest.raises(InputError, match="there is no column 'pages'"):
        open_hub("hf:org/pages", {"text": "pages.body"})
    absent = {"text": "page.title"}
    with pytest.raises(InputError, match=r"no text in 'page\.title' but None; it has page, text"):
        next(HubRows(open_hub("hf:org/pages", absent), absent))


def classed(names: list[str]) -> Any:
    features = {
        "words": datasets.List(datasets.Value("string")),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B-PER"])),
        "label": datasets.ClassLabel(names=names),
    }
    rows = {"words": [["a", "b"], ["c"], ["d"]], "tags": [[0, 1], [0], [1]], "label": [0, 1, -1]}
    return datasets.Dataset.from_dict(rows, datasets.Features(features))


def test_numbers_of_classes_are_names(tmp_path: Path) -> None:
    """So that they are what config.json calls the labels; -1, as in hidden test sets, is none."""
    one, other, third = (str(tmp_path / f"{n}.parquet") for n in range(3))
    classed(["neg", "pos"]).to_parquet(one)
    classed(["neg", "pos"]).to_parquet(other)
    classed(["no", "yes"]).to_parquet(third)
    rows = read_rows([one, other], columns={"sense": "label"}).rows
    assert [row["sense"] for row in rows] == ["neg", "pos", None] * 2
    assert rows[3]["tags"] == ["O", "B-PER"]
    assert token_classification.labels_of(rows) == ("O", "B-PER", "I-PER")
    with pytest.raises(InputError, match="do not fit together"):
        read_rows([one, third])


def test_damaged_parquet(parquet: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = Path(parquet).read_bytes()
    for broken in (b"", raw[:-9], b"PAR1" * 9, raw[:200] + bytes(200) + raw[400:], raw[:4]):
        Path(parquet).write_bytes(broken)
        with pytest.raises(InputError, match="cannot be read as Parquet"):
            read_rows(parquet)
    Path(parquet).write_bytes(raw)
    monkeypatch.setattr(decoding, "MOST_BOUND", 10)
    with pytest.raises(InputError, match="the file grows to"):
        read_rows(parquet)


OFFLINE = """
import json, socket, sys

def refuse(*args, **kwargs):
    raise AssertionError("a socket was opened")

socket.socket.connect = socket.getaddrinfo = refuse
from chumoku.errors import SourceError
from chumoku.training.data.rows import read_rows

for name in sys.argv[1:]:
    try:
        table = read_rows(name)
        print(json.dumps([dict(row) for row in table.rows]))
    except SourceError as error:
        print(json.dumps(str(error)))
"""


def test_offline_the_cache_is_read_and_no_socket_opened(tmp_path: Path) -> None:
    """A data set as the datasets library keeps it, under HF_HOME."""
    folder = tmp_path / "datasets" / "org___pets" / "default" / "0.0.0" / ("a" * 40)
    data = datasets.Dataset.from_dict({"text": ["cat", "dog"]})
    data.save_to_disk(tmp_path / "saved")
    arrow = next((tmp_path / "saved").glob("*.arrow"))
    folder.mkdir(parents=True)
    arrow.rename(folder / "pets-train.arrow")
    info = {
        "builder_name": "parquet",
        "dataset_name": "pets",
        "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "features": {"text": {"dtype": "string", "_type": "Value"}},
        "splits": {"train": {"name": "train", "num_bytes": 10, "num_examples": 2}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    environment.pop("HF_DATASETS_CACHE", None)
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, "hf:org/pets:train", "hf:org/unknown", "hf:pets"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found, unknown, bare = map(json.loads, done.stdout.splitlines())
    assert found == [{"text": "cat"}, {"text": "dog"}]
    assert "hf:org/unknown" in unknown
    assert "the data set cannot be had" in bare
