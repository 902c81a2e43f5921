"""Pictures with a class each: folders, tar and zip files of folders, IDX files, and digits.

A row is {"image", "label"}: an image is what chumoku.images takes (a path, a file's bytes, pixels).
Pictures are not opened here: objectives/image_classification.py finds those that are damaged, from
whatever source.
"""

from __future__ import annotations

import gzip
import re
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import numpy as np

from chumoku.errors import DependencyError, InputError
from chumoku.training.data.decoding import Bounded, bound_of, contents
from chumoku.training.data.tables import FileRow, Reject, Table

LITTER: Final = re.compile(r"\.(?!\.?$).*|__MACOSX")
"""What macOS and Jupyter put beside the files."""
PARTS: Final = {"train", "training", "test", "testing", "val", "valid", "validation", "dev"}
"""Folders that are no classes, and must not be learnt from together."""
ENDINGS: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")
MOST_BYTES: Final = 256 << 20
"""Of one picture's file."""
ARCHIVE: Final = re.compile(r"(.+?\.(?:tar|tar\.gz|tgz|zip))(?::(.*))?", re.IGNORECASE)


class Member(NamedTuple):
    """A picture's place below the folder that was named, and its bytes or its file."""

    place: PurePosixPath
    image: bytes | str


def is_pictures(name: str) -> bool:
    """Whether this is a folder or an archive, `pictures.tar:train` (a folder of one) included."""
    return Path(name).is_dir() or ARCHIVE.fullmatch(name) is not None


def read_pictures(name: str) -> Table:
    """FOLDER/CLASS/picture.png, in a folder or an archive, in order of their names.

    What does not end like a picture is passed by. Nothing is unpacked onto the disk. Raises
    InputError for an archive that is damaged or grows out of all proportion, and for no pictures.
    """
    archive = ARCHIVE.fullmatch(name)
    members: Iterable[Member]
    if archive is None or Path(name).is_dir():
        members = _in_folder(Path(name))
    else:
        members = _in_archive(Path(archive[1]), archive[2] or "")
    rows: list[FileRow] = []
    rejects: list[Reject] = []
    for place, image in members:
        if any(LITTER.fullmatch(part) for part in place.parts):
            continue
        where, label = f"{name}/{place}", place.parent.name
        if label:
            rows.append(FileRow({"image": image, "label": label, "file": str(place)}, where, 0))
        else:
            rejects.append(Reject(where, 0, "the picture lies in no folder of a class"))
    parts = {name for row in rows for name in PurePosixPath(row["file"]).parts[:-2]} & PARTS
    if len(parts) > 1:
        raise InputError(
            f"there are the parts {', '.join(sorted(parts))} in it",
            where=name,
            advice="name one of them: FOLDER/train, or of an archive pictures.zip:train",
        )
    if not rows and not rejects:
        advice = "FOLDER/CLASS/picture.png"
        raise InputError("no pictures in folders of classes", where=name, advice=advice)
    return Table(rows, tuple(rejects))


def _in_folder(folder: Path) -> Iterator[Member]:
    if not folder.is_dir():
        raise InputError("there is no such folder", where=folder)
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file():
            yield Member(PurePosixPath(path.relative_to(folder).as_posix()), str(path))


def _in_archive(path: Path, folder: str) -> list[Member]:
    """Members that are regular files; links and devices are passed by."""
    try:
        read = _in_zip if path.suffix.lower() == ".zip" else _in_tar
        found = sorted(read(path, folder))
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=path) from error
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        raise InputError(f"the archive is damaged: {error}", where=path) from error
    except (RuntimeError, NotImplementedError, ValueError) as error:  # a password, a method
        raise InputError(f"the archive cannot be read: {error}", where=path) from error
    return [Member(place.relative_to(folder), image) for place, image in found]


def _is_wanted(place: PurePosixPath, folder: str) -> bool:
    return place.suffix.lower() in ENDINGS and place.is_relative_to(folder)


def _in_tar(path: Path, folder: str) -> Iterator[Member]:
    opener = open if path.suffix.lower() == ".tar" else gzip.open
    with opener(path, "rb") as raw:
        stream: Any = Bounded(raw, path)
        with tarfile.open(fileobj=stream, mode="r|") as archive:
            for member in archive:
                place = PurePosixPath(member.name.lstrip("/"))
                if not member.isreg() or not _is_wanted(place, folder):
                    continue
                _check_size(member.size, path, member.name)
                file = archive.extractfile(member)
                yield Member(place, file.read() if file else b"")


def _in_zip(path: Path, folder: str) -> Iterator[Member]:
    left = bound_of(path)
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            place = PurePosixPath(info.filename.lstrip("/"))
            if info.is_dir() or not _is_wanted(place, folder):
                continue
            _check_size(info.file_size, path, info.filename)
            left -= info.file_size
            if left < 0:
                raise InputError(
                    f"the archive grows to more than {bound_of(path)} bytes", where=path
                )
            with archive.open(info) as file:
                yield Member(place, file.read(info.file_size))


def _check_size(size: int, path: Path, name: str) -> None:
    if size > MOST_BYTES:
        raise InputError(f"{name!r} has {size} bytes, too many for a picture", where=path)


# ---- IDX, and digits ----


def read_idx(names: list[str]) -> Table:
    """Pairs of IDX files (the format of MNIST's page): pixels, labels. Also as .gz."""
    if not names or len(names) % 2:
        raise InputError("IDX data is pairs of files: the pictures, then their labels")
    rows: list[FileRow] = []
    for name, of_labels in zip(names[::2], names[1::2], strict=True):
        pixels, labels = _idx(name), _idx(of_labels)
        if pixels.ndim != 3 or labels.shape != pixels.shape[:1]:
            raise InputError(
                f"pixels of {list(pixels.shape)} and labels of {list(labels.shape)}",
                where=name,
                advice="name the pictures [N, H, W] first, then the labels [N]",
            )
        rows += _labelled(pixels, labels.tolist(), name)
    return Table(rows)


def _idx(name: str) -> np.ndarray[Any, Any]:
    """Two bytes 0, the type (8: bytes), how many sizes; each size in 4 bytes, large end first."""
    raw = contents(Path(name))
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 or len(raw) < 4 + 4 * raw[3]:
        raise InputError("is no IDX file of bytes", where=name)
    head = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, head, 4)]
    count = 1
    for size in shape:
        count *= size
    if len(raw) - head != count:
        raise InputError(f"{len(raw) - head} values where there should be {count}", where=name)
    return np.frombuffer(raw, np.uint8, offset=head).reshape(shape)


def read_digits(name: str) -> Table:
    """scikit-learn's 1,797 digits, 8 x 8: `sklearn:digits:train`; every fifth is `:test`."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DependencyError(
            "the digits come with scikit-learn", advice='pip install "chumoku[train]"'
        ) from error
    part = name.removeprefix("sklearn:digits").removeprefix(":") or "train"
    if part not in ("train", "test"):
        raise InputError(f"{part!r} is neither train nor test", where=name)
    digits = load_digits()
    pixels = (digits.images * 15.9375).round().astype(np.uint8)
    chosen = (np.arange(len(pixels)) % 5 == 0) == (part == "test")
    return Table(_labelled(pixels[chosen], digits.target[chosen].tolist(), name))


def _labelled(pixels: np.ndarray[Any, Any], labels: list[int], name: str) -> list[FileRow]:
    """pixels [N, H, W] of a source, and a label for each."""
    pairs = enumerate(zip(pixels, labels, strict=True), 1)
    return [FileRow({"image": image, "label": str(label)}, name, n) for n, (image, label) in pairs]
