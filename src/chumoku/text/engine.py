"""tokenizer.json as a plain dict (here: a spec), checked before the `tokenizers` library sees it.

Every family that this library can run is written as such a spec, so there is one way in.
The checks bound what a hostile file can ask for: ids, depth, empty patterns, and regular
expressions whose matching time could grow exponentially.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer as Engine

from chumoku.errors import InputError, TokenizerError
from chumoku.text.files import MAX_DEPTH, MAX_ID, AddedToken, checked_vocab

MAX_ADDED = 200_000
Spec = dict[str, Any]


def build(spec: Spec, where: object) -> Engine:
    """A checked spec -> the running tokenizer. Raises TokenizerError naming the file."""
    check(spec, where)
    try:
        engine = Engine.from_str(json.dumps(spec, ensure_ascii=False))
    except BaseException as error:
        raise TokenizerError(f"The tokenizer is damaged: {_reason(error)}", where=where) from None
    for token in spec["added_tokens"]:
        if engine.token_to_id(token["content"]) != token["id"]:
            raise TokenizerError(
                f"The added token {token['content']!r:.80} claims the id {token['id']}, "
                f"its place is {engine.token_to_id(token['content'])}",
                where=where,
            )
    return engine


def guarded(error: BaseException, doing: str) -> InputError:
    """A panic inside the library as an InputError; anything else that is not ours goes on."""
    return InputError(f"The text cannot be {doing}: {_reason(error)}")


def _reason(error: BaseException) -> str:
    # A Rust panic derives from BaseException, not from Exception.
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
    return f"{error}"[:200]


def check(spec: object, where: object) -> None:
    """Raises TokenizerError unless spec is a sound tokenizer.json; drops its batch settings."""
    if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
        raise TokenizerError("tokenizer.json must be an object with a model", where=where)
    # Padding and truncation belong to a call, dropout to training; padding to a length that a
    # file chooses would also let the file choose how much memory is taken.
    spec["truncation"] = spec["padding"] = None
    model = spec["model"]
    if "dropout" in model:
        model["dropout"] = None
    _check_model(model, where)
    _check_added(spec, where)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        _check_part(spec.setdefault(part, None), f"{where}, {part}", 0)


def _check_model(model: dict[str, Any], where: object) -> None:
    vocab = model.get("vocab")
    if isinstance(vocab, list):
        if not vocab or not all(
            isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
            and type(entry[1]) in (int, float)
            for entry in vocab
        ):  # fmt: skip
            raise TokenizerError("The vocabulary must be a list of [piece, score]", where=where)
    else:
        checked_vocab(vocab, where)
    merges = model.get("merges")
    if merges is not None and not isinstance(merges, list):
        raise TokenizerError("merges must be a list", where=where)
    for name, value in model.items():
        if name not in ("vocab", "merges") and isinstance(value, list | dict):
            raise TokenizerError(f"{name} of the model must be a plain value", where=where)
        if type(value) is int and not 0 <= value <= MAX_ID:
            raise TokenizerError(f"{name} of the model is {value}", where=where)


def _check_added(spec: Spec, where: object) -> None:
    added = spec.setdefault("added_tokens", [])
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise TokenizerError(f"added_tokens must be a list of at most {MAX_ADDED}", where=where)
    vocab = spec["model"]["vocab"]
    known = {piece: n for n, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
    seen: dict[int, str] = {}
    expected = len(vocab)
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise TokenizerError(f"{token!r:.80} is no added token", where=where)
        content, index = token["content"], token.get("id")
        if not content:
            raise TokenizerError(f"The added token {index} is empty", where=where)
        if type(index) is not int or not 0 <= index <= MAX_ID:
            raise TokenizerError(f"The id of {content!r:.80} is {index!r:.40}", where=where)
        if seen.setdefault(index, content) != content:
            raise TokenizerError(
                f"{seen[index]!r:.80} and {content!r:.80} share the id {index}", where=where
            )
        if content not in known:
            if index != expected and isinstance(vocab, dict):
                vocab[content] = index  # the library would number it itself, leaving no gaps
            else:
                expected += 1
    if isinstance(vocab, dict):
        checked_vocab(vocab, where)


def _check_part(part: object, where: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise TokenizerError("The parts are nested too deeply", where=where)
    if isinstance(part, list):
        for item in part:
            _check_part(item, where, depth + 1)
    if not isinstance(part, dict):
        if type(part) is int and abs(part) > MAX_ID:
            raise TokenizerError(f"A number out of range: {part}", where=where)
        return
    if isinstance(part.get("special_tokens"), dict):
        _check_template(part["special_tokens"], where)
    pattern = part.get("pattern")
    if isinstance(pattern, dict):
        if pattern.get("String") == "" or pattern.get("Regex") == "":
            raise TokenizerError("A pattern is empty", where=where)
        if isinstance(pattern.get("Regex"), str):
            check_regex(pattern["Regex"], where)
    for value in part.values():
        _check_part(value, where, depth + 1)


def _check_template(specials: dict[str, Any], where: str) -> None:
    for name, entry in specials.items():
        entry = entry if isinstance(entry, dict) else {}
        ids, tokens = entry.get("ids"), entry.get("tokens")
        if not (isinstance(ids, list) and isinstance(tokens, list) and len(ids) == len(tokens)):
            raise TokenizerError(f"The template's {name!r:.40} is damaged", where=where)


def check_regex(pattern: str, where: object) -> None:
    """Refuse a repeated group that itself holds a repetition or a choice, as (a+)+ and (a|a)*.

    Matching such a pattern may take exponential time. No published pre-tokeniser has one.
    """
    if len(pattern) > 20_000:
        raise TokenizerError(f"A regular expression of {len(pattern)} characters", where=where)
    open_groups: list[bool] = [False]  # has this group a choice or an endless repetition in it?
    last_risky = False  # was the atom just read a group that has?
    position, in_class = 0, 0
    while position < len(pattern):
        char = pattern[position]
        position += 1
        if char == "\\":
            position += 1
            last_risky = False
        elif in_class:
            in_class += (char == "[") - (char == "]")
            last_risky = False
        elif char == "[":
            in_class = 1
        elif char == "(":
            open_groups.append(False)
        elif char == ")":
            last_risky = open_groups.pop() if len(open_groups) > 1 else False
            open_groups[-1] |= last_risky
        elif char == "|":
            open_groups[-1] = True
        elif char in "*+" or _endless(pattern, position - 1):
            if last_risky:
                raise TokenizerError(
                    f"A regular expression that could run for ever: {pattern!r:.80}",
                    where=where,
                    advice="A group with a repetition or a choice in it is repeated without limit.",
                )
            open_groups[-1] = True
        else:
            last_risky = False


def _endless(pattern: str, position: int) -> bool:
    if pattern[position] != "{":
        return False
    inside = pattern[position + 1 : pattern.find("}", position)]
    low, comma, high = inside.partition(",")
    if not (low + high).isdigit():
        return False
    return (bool(comma) and not high) or int((high or low)[:6]) > 64


# ---------------------------------------------------------------------------------------------
# Parts of specs, named after what they do.


def added(tokens: Iterable[AddedToken]) -> list[dict[str, Any]]:
    """The added_tokens of a spec, by id."""
    entries = [
        {
            "id": token.id,
            "content": token.content,
            "single_word": token.single_word,
            "lstrip": token.lstrip,
            "rstrip": token.rstrip,
            "normalized": token.normalized,
            "special": token.special,
        }
        for token in tokens
        if token.content
    ]
    return sorted(entries, key=lambda entry: int(entry["id"] or 0))


def template(
    single: Sequence[str], pair: Sequence[tuple[str, int]], ids: Mapping[str, int]
) -> Spec | None:
    """A post-processor; $A and $B stand for the texts: ["[CLS]", "$A", "[SEP]"]."""

    def item(name: str, kind: int) -> Spec:
        if name in ("$A", "$B"):
            return {"Sequence": {"id": name[1], "type_id": kind}}
        return {"SpecialToken": {"id": name, "type_id": kind}}

    return {
        "type": "TemplateProcessing",
        "single": [item(name, 0) for name in single],
        "pair": [item(name, kind) for name, kind in pair],
        "special_tokens": {
            name: {"id": name, "ids": [index], "tokens": [name]} for name, index in ids.items()
        },
    }


def bos_eos_template(bos: tuple[str, int] | None, eos: tuple[str, int] | None) -> Spec | None:
    """[bos] A [eos], and the same around B: decoders' convention in transformers."""
    before, after = [bos[0]] if bos else [], [eos[0]] if eos else []
    single = [*before, "$A", *after]
    pair = [(name, 0) for name in single] + [(name, 0) for name in (*before, "$B", *after)]
    return template(single, pair, dict(token for token in (bos, eos) if token))


def bert_template(cls: tuple[str, int], sep: tuple[str, int]) -> Spec | None:
    """[CLS] A [SEP], and [CLS] A [SEP] B [SEP] with segments 0 and 1 (BERT, section 3.2)."""
    return template(
        [cls[0], "$A", sep[0]],
        [(cls[0], 0), ("$A", 0), (sep[0], 0), ("$B", 1), (sep[0], 1)],
        {cls[0]: cls[1], sep[0]: sep[1]},
    )


def byte_level(*, prefix_space: bool = False, regex: bool = True, trim: bool = True) -> Spec:
    return {
        "type": "ByteLevel",
        "add_prefix_space": prefix_space,
        "trim_offsets": trim,
        "use_regex": regex,
    }


def split(pattern: str) -> Spec:
    """Cut out each match of a regular expression, and what lies between."""
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def sequence(kind: str, parts: Sequence[Spec]) -> Spec:
    return {"type": "Sequence", kind: list(parts)}


def bpe(
    vocab: Mapping[str, int], merges: Sequence[tuple[str, str]], *, ignore_merges: bool = False
) -> Spec:
    """Byte-level BPE; ignore_merges: a whole word of the vocabulary is taken as it is."""
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocab),
        "merges": [list(merge) for merge in merges],
    }


def spec_of(engine: Engine) -> Spec:
    """The spec of a running tokenizer."""
    spec: Spec = json.loads(engine.to_str())
    return spec
