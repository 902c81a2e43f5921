"""Fetching a model from the hub: chosen files, checked bytes, all or nothing.

huggingface_hub moves the bytes (proxies, tokens, Xet, retries are its business) into a folder of
this call alone; only files whose digest is the published one then get their place in the standard
cache. So neither chumoku nor another tool ever meets an unchecked file there.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from chumoku.checkpoints.cache import (
    MODULE_FOLDER,
    SHA256,
    WEIGHT_SUFFIXES,
    Caches,
    repo_folder_name,
)
from chumoku.checkpoints.files import (
    Progress,
    digest_holds,
    disk_faults,
    git_blob_sha1_of,
    require_space,
    sha256_of,
    staging_folder,
    unsafe_reason,
    watch_growth,
)
from chumoku.errors import SourceError

Reason = Literal["network", "server", "unknown", "gated", "content", "hash"]
_TIMEOUT_SECONDS = 10.0
_ATTEMPTS = 2


class HubError(Exception):
    """Why the hub did not deliver: `reason` for the caller, `error` for the user."""

    def __init__(self, reason: Reason, error: SourceError) -> None:
        super().__init__(str(error))
        self.reason: Reason = reason
        self.error = error


@dataclass(frozen=True)
class HubFile:
    """One file as the hub describes it; sha256 for large files, git_sha1 for small ones."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None


# ---- which files of a repo ----

_SHARD = re.compile(r"(model|pytorch_model)-\d+-of-\d+\.(safetensors|bin)")
_SIDE_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".spm", ".tiktoken", ".vocab")
_NOT_NEEDED = re.compile(
    r"(trainer_state|data_config|.*_results|.*\.index|eval.*|handler|requirements)\.(json|txt)"
)
# Formats of weights in the order of preference: (single file, index of shards, shards).
_FORMATS = (
    ("model.safetensors", "model.safetensors.index.json", ".safetensors"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json", ".bin"),
)


def choose_files(files: Sequence[HubFile], wanted: str | None, repo: str) -> list[HubFile]:
    """The files that loading needs: one format of weights, configuration, tokenizer.

    safetensors before .bin; other frameworks' files (ONNX, OpenVINO, TensorFlow, Flax) never.
    With `wanted`, that file alone. Raises HubError("content").
    """
    for file in files:
        if reason := unsafe_reason(file.name):
            raise _error(
                "content", f"The repo {repo} holds a file name that is unsafe: {reason}", file.name
            )
    if wanted is not None:
        chosen = [file for file in files if file.name == wanted]
        if not chosen:
            ggufs = ", ".join(f.name for f in files if f.name.endswith(".gguf"))
            raise _error(
                "content",
                f"The repo {repo} has no file {wanted}",
                advice=f"It has: {ggufs}" if ggufs else "",
            )
        return chosen
    chosen = []
    for folder in ("", *sorted({f.name.split("/")[0] for f in files if f.name.count("/") == 1})):
        if folder and not MODULE_FOLDER.fullmatch(folder):
            continue
        inside = [f for f in files if str(PurePosixPath(f.name).parent) == (folder or ".")]
        chosen += _weights(inside) + _side_files(inside)
    if any(_is_weight(file) for file in chosen):
        return chosen
    return _only_gguf(files, repo)


def _base(file: HubFile) -> str:
    return file.name.rsplit("/", 1)[-1]


def _is_weight(file: HubFile) -> bool:
    return file.name.endswith(WEIGHT_SUFFIXES)


def _weights(inside: list[HubFile]) -> list[HubFile]:
    by_name = {_base(file): file for file in inside}
    for single, index, suffix in _FORMATS:
        if single in by_name:
            return [by_name[single]]
        if index in by_name:
            shards = [f for n, f in by_name.items() if _SHARD.fullmatch(n) and n.endswith(suffix)]
            return [by_name[index], *shards]
    # Meta's own layout, where nothing else is there.
    meta = [f for n, f in by_name.items() if re.fullmatch(r"consolidated\.\d+\.pth", n)]
    return meta if "params.json" in by_name else []


def _side_files(inside: list[HubFile]) -> list[HubFile]:
    return [
        file
        for file in inside
        if (_base(file).endswith(_SIDE_SUFFIXES) or _base(file).startswith("tokenizer.model"))
        and not _NOT_NEEDED.fullmatch(_base(file))
    ]


def _only_gguf(files: Sequence[HubFile], repo: str) -> list[HubFile]:
    ggufs = [file for file in files if file.name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise _error(
            "content",
            f"The repo {repo} holds {len(ggufs)} GGUF files; say which",
            advice=f"hf:{repo}:FILE, where FILE is one of: " + ", ".join(f.name for f in ggufs),
        )
    raise _error(
        "content", f"The repo {repo} holds no weights that chumoku reads (safetensors, .bin, GGUF)"
    )


# ---- talking to the hub ----


def _error(reason: Reason, what: str, where: object = "", advice: str = "") -> HubError:
    return HubError(reason, SourceError(what, where=where, advice=advice))


def _endpoint() -> str | None:
    # Read at each call: huggingface_hub reads the variable once, at its import.
    return os.environ.get("HF_ENDPOINT") or None


def _is_transport(error: BaseException) -> bool:
    module = type(error).__module__.split(".")[0]
    if module in ("httpx", "httpx2", "httpcore", "requests", "urllib3"):
        return True
    return isinstance(error, (ConnectionError, TimeoutError))


@contextlib.contextmanager
def _hub_faults(repo: str, revision: str) -> Iterator[None]:
    """Sort every way in which the hub can fail into a HubError with a message of its own."""
    from huggingface_hub import errors

    host = _endpoint() or "https://huggingface.co"
    try:
        yield
    except errors.GatedRepoError as error:
        raise _error(
            "gated",
            f"{repo} is gated: its owner asks you to accept a licence first",
            f"{host}/{repo}",
            "Accept the licence on that page, then run `hf auth login` (or set HF_TOKEN) on this "
            "machine and try again.",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _error("unknown", f"{repo} has no revision {revision!r}", f"{host}/{repo}") from error
    except errors.RepositoryNotFoundError as error:
        raise _error(
            "unknown",
            f"The hub knows no model {repo!r}",
            f"{host}/{repo}",
            "Check the spelling. A private model needs `hf auth login` or HF_TOKEN first.",
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        if status in (401, 403):
            raise _error(
                "gated",
                f"The hub refuses access to {repo} (HTTP {status})",
                f"{host}/{repo}",
                "Accept the model's licence on that page if it has one, and run `hf auth login` "
                "(or set HF_TOKEN).",
            ) from error
        raise _error(
            "server", f"The hub answered with HTTP {status} for {repo}", host, "Try again later."
        ) from error
    except errors.HFValidationError as error:
        raise _error("unknown", f"{repo!r} cannot be the name of a model on the hub") from error
    except Exception as error:
        if isinstance(error, HubError):
            raise
        cause = error.__cause__ or error
        lost = isinstance(error, errors.LocalEntryNotFoundError)
        if lost or _is_transport(error) or _is_transport(cause):
            raise _error(
                "network",
                f"The hub cannot be reached for {repo} ({type(cause).__name__}: "
                f"{str(cause).splitlines()[0][:120] if str(cause) else 'no answer'})",
                host,
                "Check the network; HTTPS_PROXY names a proxy, HF_ENDPOINT a mirror.",
            ) from error
        if isinstance(error, OSError) and error.errno is None:
            raise _error("server", f"The download of {repo} failed: {error}", host) from error
        raise


def describe(repo: str, revision: str | None) -> tuple[str, list[HubFile]]:
    """The commit that a revision means now, and the files it holds. Raises HubError."""
    from huggingface_hub import HfApi

    wanted = revision or "main"
    with _hub_faults(repo, wanted):
        info = HfApi(endpoint=_endpoint()).model_info(
            repo, revision=wanted, files_metadata=True, timeout=_TIMEOUT_SECONDS
        )
    commit = info.sha or ""
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise _error("server", f"The hub's answer for {repo} names no commit", _endpoint() or "")
    files = []
    for item in info.siblings or []:
        sha256 = item.lfs.sha256 if item.lfs is not None else None
        size = item.size or (item.lfs.size if item.lfs is not None else 0) or 0
        files.append(HubFile(item.rfilename, size, sha256, None if sha256 else item.blob_id))
    return commit, files


def pull(
    repo: str,
    revision: str | None,
    file: str | None,
    where: Caches,
    *,
    pinned_sha256: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """Fetch what is missing of a model into the hub's cache; returns its snapshot folder.

    pinned_sha256: refuse, before downloading, weights with another digest.
    Raises HubError, or ResourceError for a full disk. Whatever is raised, no new file of this
    call is left in the cache unless its digest was right.
    """
    commit, listed = describe(repo, revision)
    chosen = choose_files(listed, file, repo)
    if pinned_sha256 and pinned_sha256 not in {f.sha256 for f in chosen if _is_weight(f)}:
        raise _error("hash", f"The hub's {repo} no longer holds the weights that were verified")
    folder = where.hub.path / repo_folder_name(repo)
    snapshot = folder / "snapshots" / commit
    missing = [f for f in chosen if not _in_place(f, folder, snapshot, where.markers)]
    needed = sum(f.size for f in missing)
    require_space(folder, needed, repo)
    if missing:
        with disk_faults(folder, repo), staging_folder(folder) as staging:
            with watch_growth(staging, repo, needed, progress):
                for item in missing:
                    _download(repo, commit, item, staging)
            # Weights last: a snapshot that has them has all the rest.
            for item in sorted(missing, key=_is_weight):
                _install(staging / item.name, item, folder, snapshot)
    with disk_faults(folder, repo):
        _write_ref(folder, revision or "main", commit)
    return snapshot


def _digest_ok(path: Path, file: HubFile) -> bool:
    if file.sha256 is not None:
        return sha256_of(path) == file.sha256
    if file.git_sha1 is not None:
        return git_blob_sha1_of(path) == file.git_sha1
    return path.stat().st_size == file.size


def _in_place(file: HubFile, folder: Path, snapshot: Path, markers: Path) -> bool:
    """Whether a file with the right bytes is there already; a wrong one is taken away."""
    path = snapshot / file.name
    if path.is_file():
        if path.stat().st_size == file.size and (
            digest_holds(path, file.sha256, markers) if file.sha256 else _digest_ok(path, file)
        ):
            return True
        if path.is_symlink():
            path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)
    blob = folder / "blobs" / (file.sha256 or file.git_sha1 or "-")
    if blob.is_file() and _digest_ok(blob, file):
        _link(blob, path)
        return True
    return False


def _download(repo: str, commit: str, file: HubFile, staging: Path) -> None:
    from huggingface_hub import hf_hub_download

    # Without a cache_dir of its own it would take a copy, unchecked, from the default cache.
    elsewhere = staging / ".cache" / "empty"
    for _ in range(_ATTEMPTS):
        with _hub_faults(repo, commit), _silent_bars():
            hf_hub_download(
                repo,
                file.name,
                revision=commit,
                local_dir=staging,
                cache_dir=elsewhere,
                endpoint=_endpoint(),
            )
        if _digest_ok(staging / file.name, file):
            return
        # Forget it wholly, or the next attempt would find "a download" in place.
        (staging / file.name).unlink()
        for trace in (staging / ".cache").rglob(f"{PurePosixPath(file.name).name}.metadata"):
            trace.unlink()
    raise _error(
        "hash",
        f"{file.name} of {repo} arrived damaged: its digest is not the one that the hub publishes",
        f"{repo}@{commit[:12]}",
        "Nothing was kept. A proxy or mirror that changes files is the usual cause; try another "
        "network or HF_ENDPOINT.",
    )


@contextlib.contextmanager
def _silent_bars() -> Iterator[None]:
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if are_progress_bars_disabled() or os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


# ---- writing into the cache ----


def _install(source: Path, file: HubFile, folder: Path, snapshot: Path) -> None:
    """Give a checked file its place, by renames alone."""
    etag = file.sha256 or file.git_sha1 or git_blob_sha1_of(source)
    blob = folder / "blobs" / etag
    blob.parent.mkdir(parents=True, exist_ok=True)
    path = snapshot / file.name
    os.replace(source, blob)
    _link(blob, path)


def _link(blob: Path, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{os.urandom(4).hex()}")
    try:
        os.symlink(os.path.relpath(blob, path.parent), temporary)
    except OSError:
        # Windows without the right to make links: the snapshot holds the file itself.
        os.replace(blob, path)
        return
    os.replace(temporary, path)


def _write_ref(folder: Path, revision: str, commit: str) -> None:
    if revision == commit:
        return
    ref = folder / "refs" / revision
    ref.parent.mkdir(parents=True, exist_ok=True)
    temporary = ref.with_name(f".{ref.name}-{os.getpid()}-{os.urandom(4).hex()}")
    temporary.write_text(commit, encoding="ascii")
    os.replace(temporary, ref)


def weight_digests(snapshot: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """SHA-256 of a snapshot's weights as their blobs are named; files without one are left out."""
    found = {}
    for path in sorted(snapshot.rglob("*") if names is None else (snapshot / n for n in names)):
        if path.is_symlink() and path.name.endswith(WEIGHT_SUFFIXES):
            etag = Path(os.readlink(path)).name
            if SHA256.fullmatch(etag):
                found[path.relative_to(snapshot).as_posix()] = etag
    return found
