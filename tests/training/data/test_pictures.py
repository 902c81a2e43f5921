"""Pictures by class: folders, tar and zip, IDX, digits; damage is named, nothing is written."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chumoku.errors import InputError
from chumoku.images import ImagePreparation
from chumoku.training.data import decoding, pictures
from chumoku.training.data.rows import read_rows
from chumoku.training.data.tables import usable, where_of
from chumoku.training.objectives.image_classification import check_row


def picture(seed: int, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


FILES = {
    "train/dog/b.png": picture(1),
    "train/cat/a.jpg": picture(2, "JPEG"),
    "test/dog/c.png": picture(3),
}
OTHERS = {"train/README.txt": b"no picture", "train/cat/.listing": b""}


def packed(kind: str, path: Path, files: dict[str, bytes]) -> Path:
    if kind == "folder":
        for name, content in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(content)
        return path
    path = path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz" if kind != "tar" else "w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("kind", ["folder", "tar", "tar.gz", "tgz", "zip"])
def test_pictures_by_class(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path, FILES | OTHERS)
    inside = f"{path}/train" if kind == "folder" else f"{path}:train"
    before = sorted(tmp_path.rglob("*"))
    table = read_rows(inside)
    assert [(row["label"], row["file"]) for row in table.rows] == [
        ("cat", "cat/a.jpg"),
        ("dog", "dog/b.png"),
    ]
    pixels = ImagePreparation(size=8)([row["image"] for row in table.rows])
    own = ImagePreparation(size=8)([FILES["train/cat/a.jpg"], FILES["train/dog/b.png"]])
    assert bool((pixels == own).all())
    with pytest.raises(InputError, match="there are the parts test, train in it"):
        read_rows(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", ["folder", "tar", "zip"])
def test_a_damaged_picture_is_rejected(kind: str, tmp_path: Path) -> None:
    bad = {"cat/cut.png": picture(4)[:80], "cat/no.jpg": b"<html>", "cat/empty.png": b""}
    path = packed(kind, tmp_path, bad | {"cat/good.png": picture(5), "top.png": picture(6)})
    table = usable(read_rows(path, max_rejects=1.0), check_row, 1.0)
    assert [row["file"] for row in table.rows] == ["cat/good.png"]
    named = dict(str(reject).removeprefix(f"{path}/").split(": ", 1) for reject in table.rejects)
    assert set(named) == {*bad, "top.png"}
    assert named["top.png"] == "the picture lies in no folder of a class"
    assert "no image that can be read" in named["cat/no.jpg"]
    with pytest.raises(InputError, match="4 of 5 rows are bad"):
        usable(read_rows(path, max_rejects=1.0), check_row, 0.7)


def test_pictures_know_their_place(tmp_path: Path) -> None:
    path = packed("zip", tmp_path, {"cat/a.png": picture(1)})
    assert where_of(read_rows(path).rows[0], 0) == f"{path}/cat/a.png"
    digits = read_rows("sklearn:digits:test").rows
    assert where_of(digits[9], 0) == "sklearn:digits:test:10"


def test_pictures_that_a_file_names(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2)[:80])
    file = tmp_path / "rows.csv"
    names = "".join(f"{tmp_path}/{name}.png,cat\n" for name in "abc")
    file.write_text("image,label\n" + names, encoding="utf-8")
    table = usable(read_rows(file), check_row, 0.7)
    assert [row["image"] for row in table.rows] == [f"{tmp_path}/a.png"]
    cut, absent = map(str, table.rejects)
    assert cut.startswith(f"{file}:3: this is no image that can be read: ")
    assert absent == f"{file}:4: the row names a picture that is not there: {tmp_path}/c.png"


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_what_macos_and_jupyter_leave_is_passed_by(kind: str, tmp_path: Path) -> None:
    litter = ("__MACOSX/cat/._a.jpg", "cat/._a.jpg", "cat/.ipynb_checkpoints/a-checkpoint.png")
    files = {"cat/a.jpg": picture(1)} | dict.fromkeys(litter, b"\0\5\x16\7")
    rows = read_rows(packed(kind, tmp_path, files)).rows
    assert [row["file"] for row in rows] == ["cat/a.jpg"]


def test_a_picture_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 63)
    path = packed("zip", tmp_path, {"x/a.png": picture(0)})
    with pytest.raises(InputError, match=r"more (pixels )?than is allowed"):
        usable(read_rows(path), check_row, 0.0)


def test_members_that_lie_outside_or_are_no_files(tmp_path: Path) -> None:
    """Names that lead out of the folder are only names, as nothing is unpacked."""
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("../../etc/x.png", "/abs/y.png", "cat/z.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture(1))
            archive.addfile(info, io.BytesIO(picture(1)))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE):
            info = tarfile.TarInfo("cat/link.png")
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    before = sorted(tmp_path.parent.rglob("*"))
    labels = sorted(row["label"] for row in read_rows(path).rows)
    assert labels == ["abs", "cat", "etc"]
    assert sorted(tmp_path.parent.rglob("*")) == before


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_damaged_archive(kind: str, tmp_path: Path) -> None:
    path = packed(kind, tmp_path, FILES)
    raw = path.read_bytes()
    for broken in (raw[:100], b"", b"no archive" * 99, raw[: len(raw) // 3]):
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"the archive (is|cannot)|no pictures"):
            read_rows(path)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_a_bomb(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "LEAST_BOUND", 1 << 16)
    path = packed(kind, tmp_path, {"x/a.png": bytes(5_000_000), "x/b.png": picture(1)})
    with pytest.raises(InputError, match="grows"):
        read_rows(path)
    monkeypatch.setattr(decoding, "LEAST_BOUND", 1 << 26)
    monkeypatch.setattr(pictures, "MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match="too many for a picture"):
        read_rows(path)


def test_a_zip_that_lies_about_a_size(tmp_path: Path) -> None:
    path = packed("zip", tmp_path, {"x/a.png": bytes(100_000)})
    raw = path.read_bytes()
    path.write_bytes(raw.replace(struct.pack("<I", 100_000), struct.pack("<I", 1000)))
    with pytest.raises(InputError, match=r"damaged|rows are bad"):
        usable(read_rows(path), check_row, 0.0)


def test_nothing_to_see(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no pictures in folders of classes"):
        read_rows(tmp_path)
    with pytest.raises(InputError, match="there is no such f"):
        read_rows(tmp_path / "b.tar")
    with pytest.raises(InputError, match="there is no such folder"):
        read_rows(tmp_path / "b", format="images")


def idx(array: np.ndarray) -> bytes:
    sizes = struct.pack(f">{array.ndim}I", *array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def test_idx(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (5, 3, 4), dtype=np.uint8)
    labels = np.array([3, 1, 4, 1, 5], dtype=np.uint8)
    (tmp_path / "p.gz").write_bytes(gzip.compress(idx(pixels)))
    (tmp_path / "l").write_bytes(idx(labels))
    names = [str(tmp_path / "p.gz"), str(tmp_path / "l")]
    table = read_rows(names, format="idx")
    assert [row["label"] for row in table.rows] == ["3", "1", "4", "1", "5"]
    assert all((row["image"] == own).all() for row, own in zip(table.rows, pixels, strict=True))
    assert [where_of(row, 0) for row in table.rows] == [f"{names[0]}:{n}" for n in range(1, 6)]
    with pytest.raises(InputError, match=r"pixels of \[5\] and labels of \[5, 3, 4\]"):
        read_rows(names[::-1], format="idx")
    with pytest.raises(InputError, match="pairs of files"):
        read_rows(names[:1], format="idx")
    no_bytes = b"\0\0\x0d\1" + bytes(8)
    for broken in (b"", idx(labels)[:-1], idx(labels) + b"x", no_bytes, b"\0\0\x08\xff"):
        (tmp_path / "l").write_bytes(broken)
        with pytest.raises(InputError, match=r"no IDX file|values where there should be"):
            read_rows(names, format="idx")


def test_digits() -> None:
    train, test = (read_rows(f"sklearn:digits:{part}") for part in ("train", "test"))
    assert (len(train.rows), len(test.rows)) == (1437, 360)
    assert {row["label"] for row in train.rows} == set("0123456789")
    assert max(row["image"].max() for row in train.rows) == 255
    with pytest.raises(InputError, match="neither train nor test"):
        read_rows("sklearn:digits:dev")
