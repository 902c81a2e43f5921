"""Recipes: what a run is, as a TOML file; read strictly, overridden by key, written out resolved.

    recipe = read_recipe("recipes/sst2.toml", ["training.steps=100", "model.source=my-model"])

Every key is a field of a dataclass below (or of `Settings`); a key that is none is an error. The
options of [task] are the arguments of that objective's `task` function.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import chumoku
from chumoku.errors import ConfigError
from chumoku.training.settings import Settings

T = TypeVar("T")
NONE: Final = "none"
"""Stands for "no value" where a setting may have none: TOML has no word for it."""


@dataclass(frozen=True)
class About:
    """Shown with the recipe: what it makes, of what, and under which licence the data stand."""

    title: str = ""
    description: str = ""
    licence: str = ""


@dataclass(frozen=True)
class ModelSection:
    """Where the weights come from: a source, or a config for a new model.

    source: as for chumoku.load (`--model`). student_of: a teacher's source, half of whose blocks
    (or those of `layers`) the new model is made of; student_type: another architecture for it
    (distilbert of a bert). config: a config.json as a table; what the tokenizer says (vocab_size)
    may be absent. head: default: what the task needs. tokenizer: a source whose tokenizer is used;
    default: the source's own. dtype: as for load ("stored" keeps a quantised base in its blocks).
    quantise: under an adapter, the base's linear layers become such blocks (Q4_1, Q8_0, …) where
    they are floats still.
    keep_head: the source's own head is kept (it must fit); else one that is missing is made anew.
    freeze: patterns of parameter names that are not trained. freeze_blocks: the embeddings and so
    many lowest blocks. reinitialise: so many top blocks (and the pooler) are drawn anew. mixout:
    its probability. dropout: put in the place of the config's, where it is given.
    """

    source: str | None = None
    student_of: str | None = None
    student_type: str | None = None
    layers: tuple[int, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    tokenizer: str | None = None
    dtype: str = "float32"
    quantise: str | None = None
    keep_head: bool = False
    ignore_config: tuple[str, ...] = ()
    freeze: tuple[str, ...] = ()
    freeze_blocks: int = 0
    reinitialise: int = 0
    mixout: float = 0.0
    dropout: float | None = None

    def __post_init__(self) -> None:
        for name in ("mixout", "dropout"):
            rate = getattr(self, name)
            if rate is not None and not 0.0 <= rate < 1.0:
                raise ConfigError(
                    f"must be at least 0 and below 1, it is {rate}", where=f"[model] {name}"
                )


@dataclass(frozen=True)
class DataSection:
    """Where the rows come from.

    train, evaluation, test: files (a list, or one), or names on the hub; relative ones are looked
    for in --data, then in the working folder. fallback: the same three as names on the hub, for who
    lacks the files, and the `columns` of those. detokenise: languages of the two sides of parallel
    text that comes in tokens (en, ja, none). format: by the file's ending where absent. columns:
    the task's name of a column -> the file's. encoding: found out where absent. max_rejects:
    largest share of bad rows. limit: so many rows of train at most. holdout: without `evaluation`,
    this share of train is kept for it. holdout_rows: random (always the same ones), or regular:
    every n-th, which must not go with a pattern of the rows. stream: train is read while it is
    trained on, by lines of text or JSONL or from the hub, for objectives that learn from texts;
    then [training] steps says how long.
    """

    train: str | tuple[str, ...] = ()
    evaluation: str | tuple[str, ...] = ()
    test: str | tuple[str, ...] = ()
    fallback: Mapping[str, Any] = field(default_factory=dict)
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    encoding: str | None = None
    max_rejects: float = 0.01
    limit: int | None = None
    holdout: float = 0.0
    holdout_rows: str = "random"
    detokenise: tuple[str, ...] = ()
    stream: bool = False

    def __post_init__(self) -> None:
        for name in ("max_rejects", "holdout"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(
                    f"must be a share from 0 to 1, it is {getattr(self, name)}",
                    where=f"[data] {name}",
                )
        if self.holdout_rows not in ("random", "regular"):
            raise ConfigError(
                f"{self.holdout_rows!r} is not one of random, regular", where="[data] holdout_rows"
            )


@dataclass(frozen=True)
class AdapterSection:
    """LoRA and its kin; kind none trains the whole model.

    kind: lora (2106.09685), rslora (scaled by alpha / sqrt(rank), 2312.03732), dora (2402.09353).
    The rest: see LoRASettings.
    """

    kind: str = "none"
    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("attention.query", "attention.value")
    train_bias: str = "none"
    also_train: tuple[str, ...] = ("head", "pooler")

    def __post_init__(self) -> None:
        if self.kind not in ADAPTERS:
            raise ConfigError(
                f"{self.kind!r} is not one of {', '.join(ADAPTERS)}", where="[adapter] kind"
            )


ADAPTERS: Final = ("none", "lora", "rslora", "dora")
BASE_CHANGES: Final = ("freeze", "freeze_blocks", "reinitialise", "mixout")
"""Settings of [model] that change what is trained of a base."""


@dataclass(frozen=True)
class Recipe:
    """The whole of a run. task: {"kind": an objective, …its options}. tokenizer: settings of a
    tokenizer to train first, on the training texts (characters: also on those that holdout takes
    from them); empty: none is trained."""

    about: About = field(default_factory=About)
    model: ModelSection = field(default_factory=ModelSection)
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    data: DataSection = field(default_factory=DataSection)
    task: Mapping[str, Any] = field(default_factory=dict)
    adapter: AdapterSection = field(default_factory=AdapterSection)
    training: Settings = field(default_factory=Settings)

    def __post_init__(self) -> None:
        adapted = self.adapter.kind != "none"
        if self.model.quantise is not None and not adapted:
            raise ConfigError(
                "blocks cannot be trained",
                where="[model] quantise",
                advice="add an adapter to them",
            )
        changes = [name for name in BASE_CHANGES if getattr(self.model, name)]
        if adapted and changes:
            raise ConfigError(
                "does not go with an adapter: its base stays as it is, all of it",
                where=f"[model] {changes[0]}",
                advice='leave it out, or train the whole model ([adapter] kind = "none")',
            )


def find_recipe(name: str) -> Path:
    """The file of a recipe's name ("sst2", "tiny/neko"): in ./recipes, then chumoku's own.

    Raises ConfigError that names those that there are.
    """
    package = Path(chumoku.__file__).parent
    places = [Path("recipes"), package / "recipes", package.parent.parent / "recipes"]
    for place in places:
        if (place / f"{name}.toml").is_file():
            return place / f"{name}.toml"
    known = {
        path.relative_to(place).with_suffix("").as_posix()
        for place in places
        for path in place.rglob("*.toml")
    }
    raise ConfigError(
        f"there is no recipe {name!r}",
        advice=f"a path that ends in .toml, or one of {', '.join(sorted(known))}",
    )


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a TOML file; overrides are `section.key=value`, the value TOML or a bare word.

    Raises ConfigError for a file that is none, and for a key or a value that does not fit.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise ConfigError("there is no such recipe", where=path) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=path) from error
    for override in overrides:
        _override(table, override)
    return build(Recipe, table, str(path))


def override(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """The recipe with some settings replaced, written as for `read_recipe`."""
    if not overrides:
        return recipe
    table = tomllib.loads(to_toml(recipe))
    for text in overrides:
        _override(table, text)
    return build(Recipe, table, "the command line")


def _override(table: dict[str, Any], text: str) -> None:
    name, equals, value = text.removeprefix("--").partition("=")
    *sections, key = name.split(".")
    if not equals or not sections or not key:
        raise ConfigError(
            f"{text!r} is no override",
            advice="write it as --training.steps=100 (section.key=value)",
        )
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"{section!r} is a value, not a section", where=name)
    table[key] = parse_value(value)


def parse_value(text: str) -> Any:
    """A TOML value; what is none is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


# ---- a table to a dataclass ----


def build(kind: type[T], table: Mapping[str, Any], where: str) -> T:
    """A frozen dataclass from a table. ConfigError names the key, and what it might have been."""
    hints = typing.get_type_hints(kind)
    known = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{key!r} is no setting", where=where, advice=advice)
    values = {key: _value(hints[key], value, f"{where}: {key}") for key, value in table.items()}
    return kind(**values)


def _value(kind: Any, value: Any, where: str) -> Any:
    """`value` as the annotated type, without guessing: an int may stand for a float, no more."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        options = typing.get_args(kind)
        if value == NONE and type(None) in options:
            return None
        for option in options:
            if _fits(option, value):
                return _value(option, value, where)
        raise _unfit(kind, value, where)
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        return build(typing.cast(type, kind), value, where)
    if not _fits(kind, value):
        raise _unfit(kind, value, where)
    if typing.get_origin(kind) is tuple or kind is tuple:
        inner = (typing.get_args(kind) or (Any,))[0]
        return tuple(_value(inner, v, where) for v in value)
    return float(value) if kind is float else value


def _fits(kind: Any, value: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is Any:
        return True
    if origin is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if origin is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        return isinstance(value, list | tuple)
    if dataclasses.is_dataclass(origin) or (
        isinstance(origin, type) and issubclass(origin, Mapping)
    ):
        return isinstance(value, Mapping)
    return isinstance(origin, type) and isinstance(value, origin)


def _unfit(kind: Any, value: Any, where: str) -> ConfigError:
    name = getattr(kind, "__name__", str(kind))
    return ConfigError(f"{value!r} is not a value of type {name}", where=where)


# ---- a dataclass to TOML ----


def to_toml(recipe: Recipe) -> str:
    """The resolved recipe as TOML which `read_recipe` reads back to an equal one."""
    lines = _table(dataclasses.asdict(recipe), dataclasses.asdict(Recipe()), "")
    return "\n".join(lines).strip() + "\n"


def _table(table: Mapping[str, Any], default: Mapping[str, Any], name: str) -> Iterator[str]:
    """What has no value is left out, unless it has one by default."""
    shown = {k: v for k, v in table.items() if v is not None or default.get(k) is not None}
    plain = {k: v for k, v in shown.items() if not isinstance(v, Mapping)}
    if name and (plain or not table):
        yield f"\n[{name}]"
    for key, value in plain.items():
        yield f"{_key(key)} = {_literal(value)}"
    for key, value in shown.items():
        if isinstance(value, Mapping) and value:
            below = default.get(key) or {}
            yield from _table(value, below, f"{name}.{_key(key)}" if name else _key(key))


def _key(key: str) -> str:
    bare = key.replace("_", "").replace("-", "")
    return key if bare.isascii() and bare.isalnum() else json.dumps(key, ensure_ascii=False)


def _literal(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, Mapping):
        inside = (f"{_key(k)} = {_literal(v)}" for k, v in value.items() if v is not None)
        return f"{{ {', '.join(inside)} }}"
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
