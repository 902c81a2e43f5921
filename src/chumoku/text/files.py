"""Tokenizer files read strictly: a damaged or hostile file is a TokenizerError that names it.

The settings are those of the hub's tokenizer_config.json, special_tokens_map.json and
added_tokens.json, merged in the order in which transformers merges them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chumoku.errors import TokenizerError

MAX_FILE_BYTES = 256 * 2**20
MAX_DEPTH = 40
# The `tokenizers` library walks through all ids up to the largest when it writes a vocabulary.
MAX_ID = 2**22
ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
# transformers writes int(1e30) where a tokenizer has no limit of its own.
NO_LIMIT = 10**9


@dataclass(frozen=True)
class AddedToken:
    """A string that is cut out of the text before the model of the tokenizer sees it.

    lstrip, rstrip: it swallows the white space on that side. special: left out of decoded text
    when asked, and never parsed from text that is marked as plain.
    """

    content: str
    id: int | None = None
    special: bool = True
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


@dataclass(frozen=True)
class Settings:
    """What the small JSON files beside a vocabulary say."""

    folder: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    roles: Mapping[str, AddedToken] = field(default_factory=dict)
    added: tuple[AddedToken, ...] = ()
    chat_template: str | None = None

    @property
    def max_length(self) -> int | None:
        value = self.options.get("model_max_length")
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < NO_LIMIT:
            return int(value)
        return None


def read_bytes(path: Path) -> bytes:
    """The bytes of a file of bounded size. Raises TokenizerError."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise TokenizerError(
                f"The file is larger than {MAX_FILE_BYTES >> 20} MiB, no tokenizer is", where=path
            )
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(f"The file cannot be read: {error.strerror}", where=path) from error


def read_text(path: Path) -> str:
    """The UTF-8 text of a file. Raises TokenizerError with the byte where it is not UTF-8."""
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError("The file is not UTF-8", where=f"{path}, byte {error.start}") from None


def read_json(path: Path) -> Any:
    """JSON without what Python's parser lets through: duplicate keys, NaN, endless numbers."""
    return parse_json(read_text(path), path)


def parse_json(text: str, where: object) -> Any:
    """Strict JSON. Raises TokenizerError."""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(items)
        if len(table) != len(items):
            seen: set[str] = set()
            twice = next(key for key, _ in items if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise TokenizerError(f"The key {twice!r:.80} stands twice in one object", where=where)
        return table

    def constant(name: str) -> None:
        raise TokenizerError(f"{name} is not JSON", where=where)

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        place = f"{where}, line {error.lineno}, column {error.colno}"
        raise TokenizerError(f"The file is not JSON: {error.msg}", where=place) from None
    except ValueError as error:  # Python reads no number of more than 4300 digits
        raise TokenizerError(f"The file is not JSON: {error}", where=where) from None
    except RecursionError:
        raise TokenizerError("The JSON is nested too deeply", where=where) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is no file."""
    if not path.is_file():
        return {}
    value = read_json(path)
    if not isinstance(value, dict):
        raise TokenizerError("The file must hold a JSON object", where=path)
    return value


def read_vocab_txt(path: Path) -> dict[str, int]:
    """One token a line; the id is the line number from 0 (BERT's vocab.txt)."""
    lines = read_text(path).split("\n")
    if lines and lines[-1] == "":
        lines.pop()
    # transformers lets the last of equal lines win, and the ids of the others stay unused.
    vocab = {line.rstrip("\r"): index for index, line in enumerate(lines)}
    if not vocab:
        raise TokenizerError("The vocabulary is empty", where=path)
    return vocab


def read_vocab_json(path: Path) -> dict[str, int]:
    """token -> id, with every id an integer in range and used once."""
    return checked_vocab(read_json(path), path)


def checked_vocab(vocab: object, where: object) -> dict[str, int]:
    """A mapping token -> id that is sound, or a TokenizerError."""
    if not isinstance(vocab, dict) or not vocab:
        raise TokenizerError("The vocabulary must be an object token -> id", where=where)
    ids = vocab.values()
    sound = set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) <= MAX_ID
    if sound and len(set(ids)) == len(vocab):
        return vocab
    owner: dict[int, str] = {}
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index <= MAX_ID:
            raise TokenizerError(f"The id of {token!r:.80} is {index!r:.40}", where=where)
        if index in owner:
            raise TokenizerError(
                f"The tokens {owner[index]!r:.80} and {token!r:.80} share the id {index}",
                where=where,
            )
        owner[index] = token
    return vocab


def read_merges(path: Path) -> list[tuple[str, str]]:
    """merges.txt: a pair a line, best first; a first line '#version' is skipped."""
    merges = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        line = line.rstrip("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        parts = line.split(" ")
        if len(parts) != 2 or not parts[0] or not parts[1]:
            raise TokenizerError(
                f"A merge must be two tokens, not {line!r:.60}", where=f"{path}, line {number}"
            )
        merges.append((parts[0], parts[1]))
    return merges


def added_token(value: object, where: object, *, index: int | None = None) -> AddedToken:
    """A token written as a string or as the object of tokenizer_config.json."""
    if isinstance(value, str):
        value = {"content": value}
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(
            f"A token must be a string or an object, not {value!r:.60}", where=where
        )
    flags = {}
    for name in ("special", "lstrip", "rstrip", "single_word", "normalized"):
        flag = value.get(name, name == "special")
        if not isinstance(flag, bool):
            raise TokenizerError(
                f"{name} of {value['content']!r:.60} is not a boolean", where=where
            )
        flags[name] = flag
    return AddedToken(value["content"], index, **flags)


def read_settings(folder: Path) -> Settings:
    """tokenizer_config.json and its companions in `folder`. Raises TokenizerError."""
    place = folder / "tokenizer_config.json"
    options = read_object(place)
    decoder = options.get("added_tokens_decoder")
    if decoder is not None and not isinstance(decoder, dict):
        raise TokenizerError("added_tokens_decoder must be an object", where=place)
    named = {name: options.get(f"{name}_token") for name in ROLES}
    extra = _list_of_tokens(options, place)
    if not decoder:  # the older layout, in which the map has the last word
        place_map = folder / "special_tokens_map.json"
        table = read_object(place_map)
        named |= {name: table[f"{name}_token"] for name in ROLES if f"{name}_token" in table}
        extra = _list_of_tokens(table, place_map) or extra
    roles = {name: added_token(value, place) for name, value in named.items() if value is not None}
    added = _added_tokens(folder, decoder, {token.content for token in (*roles.values(), *extra)})
    known = {token.content for token in added}
    by_content = {token.content: token for token in added}
    roles = {name: by_content.get(token.content, token) for name, token in roles.items()}
    added += [token for token in extra if token.content not in known]
    return Settings(folder, options, roles, tuple(added), read_chat_template(folder, options))


def _list_of_tokens(table: Mapping[str, Any], where: Path) -> list[AddedToken]:
    """additional_special_tokens (4.x) or extra_special_tokens (5.x)."""
    values: Any = table.get("additional_special_tokens") or table.get("extra_special_tokens") or []
    if isinstance(values, dict):
        values = list(values.values())
    if not isinstance(values, list):
        raise TokenizerError("additional_special_tokens must be a list", where=where)
    return [added_token(value, where) for value in values]


def _added_tokens(
    folder: Path, decoder: Mapping[str, Any] | None, special: set[str]
) -> list[AddedToken]:
    if decoder:
        where: Path = folder / "tokenizer_config.json"
        tokens = [
            added_token(value, where, index=_index(key, where)) for key, value in decoder.items()
        ]
    else:
        where = folder / "added_tokens.json"
        tokens = [
            AddedToken(token, _index(index, where), token in special)
            for token, index in read_object(where).items()
        ]
    seen: dict[int | None, str] = {}
    for token in tokens:
        if token.id in seen:
            raise TokenizerError(
                f"{seen[token.id]!r:.60} and {token.content!r:.60} share the id {token.id}",
                where=where,
            )
        seen[token.id] = token.content
    return sorted(tokens, key=lambda token: token.id or 0)


def _index(value: object, where: Path) -> int:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 10:
        value = int(value)
    if type(value) is not int or not 0 <= value <= MAX_ID:
        raise TokenizerError(f"{value!r:.40} is not a token id", where=where)
    return value


def read_chat_template(folder: Path, options: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else the string, or the entry named default of the list."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return read_text(path)
    template = options.get("chat_template")
    if isinstance(template, list):
        named = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict)
        }
        template = named.get("default", next(iter(named.values()), None))
    if template is not None and not isinstance(template, str):
        raise TokenizerError(
            "chat_template must be a string or a list of named ones",
            where=folder / "tokenizer_config.json",
        )
    return template
