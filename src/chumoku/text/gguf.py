"""The tokenizer inside a GGUF file: metadata keys tokenizer.ggml.* (llama.cpp's format).

gpt2 is byte-level BPE whose pre-tokeniser goes by a name; llama is SentencePiece BPE by scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chumoku.errors import TokenizerError
from chumoku.text import engine as engines
from chumoku.text.engine import Spec
from chumoku.text.families import LLAMA3_SPLIT, finish
from chumoku.text.fast import FastTokenizer
from chumoku.text.files import MAX_ID, ROLES, AddedToken, Settings
from chumoku.text.sentencepieces import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER,
    PieceModel,
    SentencePieceTokenizer,
    model_proto,
)

WHERE = "GGUF metadata, tokenizer.ggml"

GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _TAIL
GLM4_SPLIT = _SUFFIXES + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _TAIL
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    + _SLASH_TAIL
)
_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
GPT4O_SPLIT = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CASE}"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CASE}|\p{{N}}{{1,3}}" + _SLASH_TAIL
)
BLOOM_SPLIT = r" ?[^(\s|.,!?…。，、।۔،)]+"


@dataclass(frozen=True)
class PreTokenizer:
    """Regular expressions, each applied to what the one before left; and llama.cpp's defaults."""

    splits: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False


_GPT2 = PreTokenizer((GPT2_SPLIT,))
_DIGITS = PreTokenizer((r"\p{N}", GPT2_SPLIT))
_LLAMA3 = PreTokenizer((LLAMA3_SPLIT,), ignore_merges=True, add_bos=True)
_QWEN2 = PreTokenizer((QWEN2_SPLIT,))
_GPT4O = PreTokenizer((GPT4O_SPLIT,))
_BLOOM = PreTokenizer((BLOOM_SPLIT,))
_DBRX = PreTokenizer((LLAMA3_SPLIT,))

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]")),
    **dict.fromkeys(("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "gigachat"), _GPT2),
    **dict.fromkeys(("jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"), _GPT2),
    **dict.fromkeys(("jina-v2-code", "roberta-bpe", "granite-docling"), _GPT2),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), _DIGITS),
    **dict.fromkeys(("exaone", "minerva-7b"), _DIGITS),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3"), _LLAMA3),
    **dict.fromkeys(("dbrx", "smaug-bpe"), _DBRX),
    **dict.fromkeys(("qwen2", "stablelm2", "megrez", "deepseek-r1-qwen"), _QWEN2),
    "chatglm-bpe": PreTokenizer((GLM4_SPLIT,)),
    "glm4": PreTokenizer((GLM4_SPLIT,)),
    "tekken": PreTokenizer((TEKKEN_SPLIT,), ignore_merges=True, add_bos=True),
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    **dict.fromkeys(("bloom", "poro-chat", "gpt3-finnish"), _BLOOM),
    "viking": PreTokenizer((BLOOM_SPLIT, r"\p{N}")),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", GPT2_SPLIT, "[0-9][0-9][0-9]")),
}

_ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # the format's own spelling
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}


def gguf_tokenizer(metadata: Mapping[str, object]) -> FastTokenizer | SentencePieceTokenizer:
    """The tokenizer that a GGUF file's metadata describes.

    metadata: key -> value, arrays as sequences. Raises TokenizerError where a key is missing,
    damaged, or names a tokenizer that chumoku does not have.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind == "gpt2":
        return _gpt2_kind(metadata)
    if kind == "llama":
        return _llama_kind(metadata)
    raise TokenizerError(
        f"The file's tokenizer is of kind {kind!r:.40}",
        where=f"{WHERE}.model",
        advice="chumoku reads the kinds gpt2 and llama.",
    )


def _tokens(metadata: Mapping[str, object]) -> list[str]:
    """The token strings, each made unique: a later twin can be decoded but never encoded."""
    values = _array(metadata, "tokens", required=True)
    tokens: list[str] = []
    seen: set[str] = set()
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise TokenizerError(f"Token {index} is no string", where=f"{WHERE}.tokens")
        token = value if value and value not in seen else f"[DUPLICATE_{index}]"
        if token in seen:
            raise TokenizerError(f"Token {index} is a duplicate", where=f"{WHERE}.tokens")
        seen.add(token)
        tokens.append(token)
    return tokens


def _array(
    metadata: Mapping[str, object], name: str, *, required: bool = False
) -> Sequence[object]:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None and not required:
        return ()
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        to_list = getattr(value, "tolist", None)  # a numpy array
        value = to_list() if to_list is not None else value
    if not isinstance(value, Sequence) or isinstance(value, str | bytes) or (
        required and not value
    ):  # fmt: skip
        raise TokenizerError(f"{name} is missing or no array", where=f"{WHERE}.{name}")
    return value


def _numbers(metadata: Mapping[str, object], name: str, count: int, default: float) -> list[float]:
    values = _array(metadata, name)
    if not values:
        return [default] * count
    if len(values) != count:
        raise TokenizerError(
            f"{name} has {len(values)} entries for {count} tokens", where=f"{WHERE}.{name}"
        )
    try:
        return [float(value) for value in values]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TokenizerError(f"{name} must be numbers", where=f"{WHERE}.{name}") from None


def _flag(metadata: Mapping[str, object], name: str, default: bool) -> bool:
    value = metadata.get(f"tokenizer.ggml.{name}")
    if value is None:
        return default
    if value not in (True, False):
        raise TokenizerError(f"{name} must be a boolean", where=f"{WHERE}.{name}")
    return bool(value)


def _roles(
    metadata: Mapping[str, object], tokens: Sequence[str], defaults: Mapping[str, int]
) -> dict[str, int]:
    """bos, eos, … -> id."""
    roles = {name: index for name, index in defaults.items() if index < len(tokens)}
    for name in ROLES:
        key = _ROLE_KEYS[name]
        value = metadata.get(f"tokenizer.ggml.{key}")
        if value is None:
            continue
        index = int(value) if hasattr(value, "__index__") else -1
        if not 0 <= index < len(tokens) or index > MAX_ID:
            raise TokenizerError(
                f"{key} is {value!r:.40}, there are {len(tokens)} tokens", where=f"{WHERE}.{key}"
            )
        roles[name] = index
    return roles


def _template(metadata: Mapping[str, object]) -> str | None:
    template = metadata.get("tokenizer.chat_template")
    return template if isinstance(template, str) else None


def _added(
    tokens: Sequence[str], kinds: Sequence[float], roles: Mapping[str, int]
) -> list[AddedToken]:
    """Control tokens are special; user-defined ones are cut out of text but stay in it."""
    special = {index for index, kind in enumerate(kinds) if kind == CONTROL}
    special |= {index for name, index in roles.items() if name != "unk" or kinds[index] != NORMAL}
    user = {index for index, kind in enumerate(kinds) if kind == USER} - special
    return [AddedToken(tokens[index], index, index in special) for index in sorted(special | user)]


def _gpt2_kind(metadata: Mapping[str, object]) -> FastTokenizer:
    tokens = _tokens(metadata)
    kinds = _numbers(metadata, "token_type", len(tokens), NORMAL)
    name = metadata.get("tokenizer.ggml.pre", "default")
    pre = PRE_TOKENIZERS.get(name) if isinstance(name, str) else None
    if pre is None:
        raise TokenizerError(
            f"The file's pre-tokeniser is {name!r:.60}, which chumoku does not have",
            where=f"{WHERE}.pre",
            advice=f"Known: {', '.join(sorted(PRE_TOKENIZERS))}.",
        )
    roles = _roles(metadata, tokens, {})
    ends: list[tuple[str, int] | None] = []
    for role, default in (("bos", pre.add_bos), ("eos", False)):
        wanted = _flag(metadata, f"add_{role}_token", default) and role in roles
        ends.append((tokens[roles[role]], roles[role]) if wanted else None)
    spec: Spec = {
        "version": "1.0",
        "added_tokens": engines.added(_added(tokens, kinds, roles)),
        "normalizer": None,
        "pre_tokenizer": engines.sequence(
            "pretokenizers",
            [*map(engines.split, pre.splits), engines.byte_level(regex=False)],
        ),
        "post_processor": engines.bos_eos_template(*ends)
        if any(ends)
        else engines.byte_level(trim=False),
        "decoder": engines.byte_level(prefix_space=True),
        "model": engines.bpe(
            {token: index for index, token in enumerate(tokens)},
            _merges(metadata),
            ignore_merges=pre.ignore_merges,
        ),
    }
    named = {name: AddedToken(tokens[index], index) for name, index in roles.items()}
    settings = Settings(folder=Path(WHERE), chat_template=_template(metadata))
    return finish(spec, settings, named, WHERE)


def _merges(metadata: Mapping[str, object]) -> list[tuple[str, str]]:
    merges = []
    for number, merge in enumerate(_array(metadata, "merges", required=True)):
        # The space between the two is never the first character: llama.cpp searches from 1.
        cut = merge.find(" ", 1) if isinstance(merge, str) else -1
        if not isinstance(merge, str) or cut < 0 or cut == len(merge) - 1:
            raise TokenizerError(f"Merge {number} is {merge!r:.60}", where=f"{WHERE}.merges")
        merges.append((merge[:cut], merge[cut + 1 :]))
    return merges


def _llama_kind(metadata: Mapping[str, object]) -> SentencePieceTokenizer:
    tokens = _tokens(metadata)
    scores = _numbers(metadata, "scores", len(tokens), 0.0)
    kinds = [int(kind) for kind in _numbers(metadata, "token_type", len(tokens), NORMAL)]
    roles = _roles(metadata, tokens, {"bos": 1, "eos": 2, "unk": 0})
    prefix = _flag(metadata, "add_space_prefix", True)
    model = PieceModel(_proto(tokens, scores, kinds, roles, prefix), WHERE)
    start = roles.get("bos") if _flag(metadata, "add_bos_token", True) else None
    end = roles.get("eos") if _flag(metadata, "add_eos_token", False) else None
    return SentencePieceTokenizer(
        model,
        _added(tokens, kinds, roles),
        {name: tokens[index] for name, index in roles.items()},
        prefix="always" if prefix else "never",
        start=start,
        end=end,
        chat_template=_template(metadata),
    )


def _proto(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    roles: Mapping[str, int],
    prefix: bool,
) -> bytes:
    """SentencePiece wants exactly one unknown piece, spaces as ▁, and known types."""
    kinds = [kind if NORMAL <= kind <= BYTE else UNUSED for kind in kinds]
    unknown = roles.get("unk", kinds.index(UNKNOWN) if UNKNOWN in kinds else 0)
    kinds = [UNUSED if kind == UNKNOWN else kind for kind in kinds]
    kinds[unknown] = UNKNOWN
    known = set(tokens)
    pieces = []
    for token, kind in zip(tokens, kinds, strict=True):
        spaced = token.replace(" ", SPACE)
        pieces.append(spaced if kind == USER and spaced not in known else token)
    fallback = sum(kind == BYTE for kind in kinds) == 256
    return model_proto(pieces, scores, kinds, dummy_prefix=prefix, byte_fallback=fallback)
