"""The tokenizer.ggml.* keys of a GGUF file, from a tokenizer that was read from elsewhere.

What a kind of GGUF cannot say (a normaliser, another algorithm) is refused: the file would cut text
in another way than the model was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from chumoku.errors import TokenizerError
from chumoku.text.encoding import Tokenizer, known_text
from chumoku.text.files import read_settings
from chumoku.text.gguf import PRE_TOKENIZERS
from chumoku.text.load import export_tokenizer_json, piece_tokenizer
from chumoku.text.sentencepieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    PieceModel,
    SentencePieceTokenizer,
    fields,
)

ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
BPE = 2  # TrainerSpec.ModelType of SentencePiece


def writable(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """The form of a folder's tokenizer that GGUF can hold.

    LLaMA 2's tokenizer.json repeats its tokenizer.model; GGUF needs the scores of the latter.
    """
    text = export_tokenizer_json(tokenizer)
    pieces = folder / "tokenizer.model"
    if text is None or not pieces.is_file():
        return tokenizer
    if not (json.loads(text)["model"].get("byte_fallback") and pieces.is_file()):
        return tokenizer
    return piece_tokenizer(read_settings(folder), pieces, "llama", config)


def gguf_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, object]:
    """Kinds "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE).

    rows: of the model's embedding; ids that the tokenizer does not use are written as unused.
    Raises TokenizerError for a family that GGUF has no kind for.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        values = _pieces(tokenizer, rows)
    else:
        text = export_tokenizer_json(tokenizer)
        values = _byte_level({} if text is None else json.loads(text), rows)
    for role, name in ROLES.items():
        index = getattr(tokenizer, f"{role}_id")
        if index is not None:
            values[f"{name}_token_id"] = index
    bare = tokenizer.encode(known_text(tokenizer), special=True).ids
    values["add_bos_token"] = bool(bare) and bare[0] == tokenizer.bos_id
    values["add_eos_token"] = len(bare) > 1 and bare[-1] == tokenizer.eos_id
    found = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _refuse(what: str) -> NoReturn:
    raise TokenizerError(
        f"GGUF has no kind for this tokenizer: {what}",
        advice="byte-level BPE and SentencePiece BPE can be written; without its tokenizer files "
        "a model is written without a tokenizer",
    )


def _byte_level(spec: Mapping[str, Any], rows: int) -> dict[str, object]:
    model = spec.get("model") or {}
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        _refuse("it is no byte-level BPE")
    for part in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        if model.get(part):
            _refuse(f"its BPE has {part}")
    if spec.get("normalizer") is not None:
        _refuse(f"it normalises text ({spec['normalizer'].get('type')})")
    tokens = {int(index): token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in spec.get("added_tokens") or ():
        tokens[int(added["id"])] = added["content"]
        kinds[int(added["id"])] = CONTROL if added["special"] else USER
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    count = max(rows, max(tokens) + 1)
    return {
        "model": "gpt2",
        "pre": _pre_tokenizer(spec.get("pre_tokenizer") or {}, bool(model.get("ignore_merges"))),
        "tokens": [tokens.get(i, f"[UNUSED{i}]") for i in range(count)],
        "token_type": [kinds.get(i, UNUSED) for i in range(count)],
        "merges": merges,
    }


def _pre_tokenizer(part: Mapping[str, Any], ignore_merges: bool) -> str:
    """llama.cpp's name for these steps of pre-tokenisation."""
    steps = part.get("pretokenizers") or [part]
    splits: list[str] = []
    for step in steps:
        kind = step.get("type")
        plain = step.get("behavior") == "Isolated" and not step.get("invert")
        if kind == "Split" and plain and "Regex" in step["pattern"]:
            splits.append(str(step["pattern"]["Regex"]))
        elif kind == "Digits" and step.get("individual_digits"):
            splits.append(r"\p{N}")
        elif kind == "ByteLevel" and not step.get("add_prefix_space"):
            splits += PRE_TOKENIZERS["gpt-2"].splits if step.get("use_regex", True) else ()
        else:
            _refuse(f"llama.cpp has no such step of pre-tokenisation ({kind})")
    for name, known in PRE_TOKENIZERS.items():
        if known.splits == tuple(splits) and known.ignore_merges == ignore_merges:
            return name
    _refuse("llama.cpp has no name for its pre-tokenisation")


def _pieces(tokenizer: SentencePieceTokenizer, rows: int) -> dict[str, object]:
    model = tokenizer.model
    kinds, normalises, algorithm = _facts(model)
    if algorithm != BPE:
        _refuse("its SentencePiece model is no BPE")
    if normalises or model.facts.trims:
        _refuse("its SentencePiece model normalises text")
    count = max(rows, tokenizer.vocab_size)
    extra = range(model.size, count)
    tokens = [*model.pieces, *(f"[UNUSED{index}]" for index in extra)]
    scores = [*model.scores, *(-1000.0 for _ in extra)]
    kinds += [UNUSED for _ in extra]
    for index, token in tokenizer.added.items():
        tokens[index] = token.content
        if kinds[index] not in (UNKNOWN, BYTE):
            kinds[index] = CONTROL if token.special else USER
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "add_space_prefix": model.facts.dummy_prefix and tokenizer.prefix != "never",
    }


def _facts(model: PieceModel) -> tuple[list[int], bool, int]:
    """The pieces' types, whether text is normalised, and the algorithm, from the model's bytes."""
    kinds: list[int] = []
    normalises, algorithm = False, 1
    for number, value in fields(model.proto, model.where):
        if not isinstance(value, bytes):
            continue
        part = dict(fields(value, model.where)) if number in (1, 2, 3) else {}
        if number == 1:
            kinds.append(int(part.get(3, NORMAL)))
        elif number == 2:
            algorithm = int(part.get(3, algorithm))
        elif number == 3:
            normalises = bool(part.get(2))
    return kinds, normalises, algorithm
