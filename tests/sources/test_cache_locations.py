"""Where things lie: the hub's own precedence, hand-made trees, listing, removing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from chumoku.checkpoints import cache
from chumoku.checkpoints.sources import resolve
from chumoku.errors import SourceError

_VARIABLES = (
    *("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_HOME", "XDG_CACHE_HOME"),
    *("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"),
)
_ORACLE = """
import importlib, json, os, sys
from huggingface_hub import constants
answers = []
for env in json.load(sys.stdin):
    for name in list(os.environ):
        if name not in ("PATH", "HOME"):
            del os.environ[name]
    os.environ.update(env)
    importlib.reload(constants)
    answers.append([constants.HF_HUB_CACHE, constants.HF_HUB_OFFLINE])
json.dump(answers, sys.stdout)
"""


def _environments() -> list[dict[str, str]]:
    values = {
        "HF_HUB_CACHE": "/a/hub",
        "HUGGINGFACE_HUB_CACHE": "~/b$XVAR/hub",
        "TRANSFORMERS_CACHE": "/c",
        "HF_HOME": "~/d/$XVAR",
        "XDG_CACHE_HOME": "/e/$XVAR",
    }
    found = []
    for chosen in itertools.product((False, True), repeat=len(values)):
        env = {name: value for (name, value), on in zip(values.items(), chosen, strict=True) if on}
        found.append(env | {"XVAR": "xx"})
    flags = ("", "0", "1", "true", "on", "yes", "no", "2")
    for hub, old in itertools.product((None, *flags), repeat=2):
        env = {"HF_HUB_OFFLINE": hub, "TRANSFORMERS_OFFLINE": old}
        found.append({name: value for name, value in env.items() if value is not None})
    return found


def test_precedence_is_huggingface_hubs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environments = _environments()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XVAR", "xx")
    run = subprocess.run(
        [sys.executable, "-c", _ORACLE],
        input=json.dumps(environments),
        capture_output=True,
        text=True,
        check=True,
    )
    answers = json.loads(run.stdout)
    assert len(answers) == 32 + 81
    wrong_order = 0
    for env, (hub, offline) in zip(environments, answers, strict=True):
        ours = cache.hub_cache(env)
        assert str(ours.path) == hub, env
        assert bool(cache.offline_reason(None, env)) == offline, env
        decider = next((name for name in _VARIABLES[:2] if name in env), None)
        decider = decider or next((n for n in _VARIABLES[3:5] if n in env), "default")
        assert ours.decided_by == decider
        # Negative control: the order reversed would be noticed.
        reversed_order = {n: env[n] for n in env if n != "HF_HUB_CACHE"}
        wrong_order += str(cache.hub_cache(reversed_order).path) != hub
    assert wrong_order == 16


def test_own_cache_and_offline_switch(tmp_path: Path) -> None:
    home = str(Path("~").expanduser())
    assert cache.package_cache({"CHUMOKU_CACHE": "/x", "XDG_CACHE_HOME": "/y"}) == (
        cache.Location(Path("/x"), "CHUMOKU_CACHE")
    )
    assert cache.package_cache({"XDG_CACHE_HOME": "/y"}).path == Path("/y/chumoku")
    assert cache.package_cache({}).path == Path(home) / ".cache/chumoku"
    assert cache.datasets_cache({"HF_HOME": "/h"}).path == Path("/h/datasets")
    assert cache.offline_reason(True, {}) == "offline=True"
    assert cache.offline_reason(None, {"CHUMOKU_OFFLINE": "1"}) == "CHUMOKU_OFFLINE"
    assert cache.offline_reason(None, {"TRANSFORMERS_OFFLINE": "1"}) == "TRANSFORMERS_OFFLINE"
    assert cache.offline_reason(None, {"CHUMOKU_OFFLINE": "0"}) == ""
    assert cache.offline_reason(False, {"CHUMOKU_OFFLINE": "1"}) == ""


# --- A tree made by hand ------------------------------------------------------------------------

OLD, NEW = "a" * 40, "b" * 40


def _hand_made(root: Path, *, links: bool, kind: str = "models") -> Path:
    """Two revisions that share their weights, as the hub's cache lays them out."""
    repo = root / f"{kind}--someone--made"
    weights = b"w" * 10_000
    contents = {OLD: {"config.json": b'{"v": 1}'}, NEW: {"config.json": b'{"v": 22}'}}
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(NEW)
    (repo / "refs/v1").write_text(OLD)
    for commit, files in contents.items():
        folder = repo / "snapshots" / commit
        folder.mkdir(parents=True)
        for name, data in {**files, "model.safetensors": weights}.items():
            blob = repo / "blobs" / hashlib.sha256(data).hexdigest()
            if links:
                blob.write_bytes(data)
                os.symlink(f"../../blobs/{blob.name}", folder / name)
            else:
                (folder / name).write_bytes(data)
    return repo


@pytest.mark.parametrize("links", [True, False])
def test_opens_by_repo_and_revision_offline(home: Path, links: bool) -> None:
    repo = _hand_made(home / "hf/hub", links=links)
    for text, commit in {
        "someone/made": NEW,
        "hf:someone/made@main": NEW,
        "hf:someone/made@v1": OLD,
        f"hf:someone/made@{OLD}": OLD,
    }.items():
        found = resolve(text, offline=True)
        assert found.path == repo / "snapshots" / commit
        assert found.revision == commit
        assert found.origin == "cache"
    assert resolve("someone/made", revision="v1", offline=True).revision == OLD
    for text in ("hf:someone/made@v2", "someone/other"):
        with pytest.raises(SourceError, match="not in the local cache"):
            resolve(text, offline=True)
    (repo / "snapshots" / NEW / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="not complete: it lacks the weights"):
        resolve("someone/made", offline=True)


def test_transformers_cache_and_cache_dir(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = _hand_made(tmp_path / "old", links=True)
    with pytest.raises(SourceError):
        resolve("someone/made", offline=True)
    assert (
        resolve("someone/made", offline=True, cache_dir=tmp_path / "old").path.parent.parent == repo
    )
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(tmp_path / "old"))
    assert resolve("someone/made", offline=True).path == repo / "snapshots" / NEW
    (item,) = cache.list_cached()
    assert (item.source, item.decided_by) == ("hf:someone/made", "TRANSFORMERS_CACHE")


def test_a_ref_cannot_lead_out_of_the_cache(home: Path) -> None:
    repo = _hand_made(home / "hf/hub", links=True)
    (home / "outside").mkdir()
    (home / "outside/model.safetensors").write_bytes(b"x")
    (repo / "refs/main").write_text("../../../../../outside")
    with pytest.raises(SourceError, match="not in the local cache"):
        resolve("hf:someone/made@main", offline=True)


def test_sizes_count_shared_blobs_once(home: Path) -> None:
    _hand_made(home / "hf/hub", links=True)
    _hand_made(home / "hf/hub", links=True, kind="datasets")
    (home / "hf/datasets/some_table").mkdir(parents=True)
    (home / "hf/datasets/some_table/part.arrow").write_bytes(b"z" * 77)
    items = {(item.kind, item.source): item for item in cache.list_cached()}
    model = items["model", "hf:someone/made"]
    # 10,000 of weights once, two configurations, two refs of 40 characters.
    assert model.size_bytes == 10_000 + 8 + 9 + 80
    assert model.files == 5
    assert model.decided_by == "HF_HOME"
    assert model.last_used > 1e9
    assert items["dataset", "hf:someone/made"].size_bytes == model.size_bytes
    assert items["dataset", "some_table"].size_bytes == 77
    assert cache.disk_use(items.values()) == 2 * model.size_bytes + 77
    # Control: following every link would count the weights twice.
    naive = sum(p.stat().st_size for p in (model.path / "snapshots").rglob("*") if p.is_file())
    assert naive > 20_000
    assert cache.remove(model) == model.size_bytes
    assert not model.path.exists()
    assert len(cache.list_cached()) == 2
    with pytest.raises(SourceError, match="not in the cache"):
        cache.remove(model)


def test_remove_touches_nothing_else(home: Path) -> None:
    from dataclasses import replace

    _hand_made(home / "hf/hub", links=True)
    (item,) = cache.list_cached()
    precious = home / "precious"
    precious.mkdir()
    with pytest.raises(SourceError, match="not in the cache"):
        cache.remove(replace(item, path=precious))
    assert precious.exists()


def test_remove_with_the_hubs_shared_store(home: Path) -> None:
    """huggingface_hub 2 keeps blobs once for all repos: what another repo uses stays."""
    root = home / "hf/hub"
    repo = _hand_made(root, links=True)
    (root / "blobs").mkdir()
    (item,) = cache.list_cached()
    cache.remove(item)
    assert not repo.exists()
