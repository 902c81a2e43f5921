"""What every download needs: safe names, digests, room on the disk, a place to work in.

Nothing here knows a hub or a package index. Names follow the stricter of the POSIX and the
Windows rules on every system, so that one cache can be shared between them.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from chumoku.errors import ResourceError

# (what is being fetched, bytes so far, bytes in all; 0 where the total is not known)
Progress = Callable[[str, int, int], None]

_DEVICE_NAMES = re.compile(r"^(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?$", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_STALE_SECONDS = 24 * 3600
_STAGING = ".chumoku-staging-"
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def unsafe_reason(name: str) -> str:
    """Why a relative file name from outside must not be used; empty when it is safe.

    A safe name stays inside its folder on POSIX and on Windows: no absolute path, drive, `..`,
    backslash, control character, reserved device name, or part that Windows would rename.
    """
    if not name:
        return "it is empty"
    if _FORBIDDEN.search(name):
        return "it contains a character that is not allowed in a file name"
    if name.startswith("/"):
        return "it is an absolute path"
    if len(name) > 1024:
        return "it is longer than 1024 characters"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return f"it contains the part {part!r}"
        if len(part.encode("utf-8", "surrogatepass")) > 255:
            return "one of its parts is longer than 255 bytes"
        if part[-1] in ". " or _DEVICE_NAMES.match(part):
            return f"the part {part!r} has another meaning on Windows"
    return ""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def git_blob_sha1_of(path: Path) -> str:
    """The name git gives these bytes: SHA-1 over `blob SIZE NUL` and the content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def digest_holds(path: Path, sha256: str, markers: Path) -> bool:
    """Whether a file has this SHA-256, hashed once per state of the file.

    An empty marker, named after path, size, time and digest, remembers a good answer. A folder
    that cannot be written only costs the hashing again.
    """
    state = path.stat()
    identity = f"{path.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\0{state.st_ino}\0{sha256}"
    marker = markers / hashlib.sha256(identity.encode("utf-8", "surrogateescape")).hexdigest()
    if marker.exists():
        return True
    if sha256_of(path) != sha256:
        return False
    with contextlib.suppress(OSError):
        markers.mkdir(parents=True, exist_ok=True)
        marker.touch()
    return True


def readable_size(size: int) -> str:
    """A number of bytes for people: `98.4 MB` (decimal units, as disks are sold)."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} bytes" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{size} bytes"


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuse, before the first byte is written, what the disk cannot hold.

    Raises ResourceError with both figures.
    """
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise ResourceError(
            f"The disk is too full for {what}: "
            f"{readable_size(needed)} needed, {readable_size(free)} free",
            where=folder,
            advice=_SPACE_ADVICE,
        )


_SPACE_ADVICE = (
    "Free some space (`chumoku cache` lists what can go), or put the caches on another disk "
    "with HF_HOME and CHUMOKU_CACHE."
)


@contextlib.contextmanager
def disk_faults(folder: Path, what: str) -> Iterator[None]:
    """Turn a disk that fills up, or a folder that cannot be written, into a ResourceError."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_DISK:
            raise ResourceError(
                f"The disk became full while fetching {what}; nothing half-written was kept",
                where=folder,
                advice=_SPACE_ADVICE,
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ResourceError(
                f"No permission to write {what}",
                where=error.filename or folder,
                advice="Choose a folder that can be written with HF_HOME and CHUMOKU_CACHE.",
            ) from error
        raise


@contextlib.contextmanager
def staging_folder(parent: Path) -> Iterator[Path]:
    """A folder of this call alone, on the same disk as its parent, gone at the end.

    Work in progress never has a final name, so a process that is killed leaves nothing that
    could be taken for a result. What a killed process left is swept after a day.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for old in parent.glob(_STAGING + "*"):
        with contextlib.suppress(OSError):
            if time.time() - old.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(old, ignore_errors=True)
    folder = parent / f"{_STAGING}{os.getpid()}-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def folder_bytes(folder: Path) -> int:
    """Bytes of all regular files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total


@contextlib.contextmanager
def watch_growth(folder: Path, what: str, total: int, progress: Progress | None) -> Iterator[None]:
    """Report how much has arrived in a folder, a few times a second, while the body runs."""
    if progress is None:
        yield
        return
    done = threading.Event()

    def report() -> None:
        while not done.wait(0.25):
            arrived = folder_bytes(folder)
            progress(what, min(arrived, total) if total else arrived, total)

    thread = threading.Thread(target=report, name="chumoku-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    progress(what, total or folder_bytes(folder), total)
