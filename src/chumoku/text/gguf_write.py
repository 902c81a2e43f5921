"""The tokenizer.ggml.* keys of a GGUF file, from a tokenizer that was read from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from chumoku.errors import TokenizerError
from chumoku.text.encoding import Tokenizer
from chumoku.text.gguf import PRE_TOKENIZERS
from chumoku.text.load import export_tokenizer_json
from chumoku.text.sentencepieces import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER,
    SentencePieceTokenizer,
)

ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def gguf_metadata(tokenizer: Tokenizer, rows: int) -> dict[str, object]:
    """Kinds "gpt2" (byte-level BPE) and "llama" (SentencePiece BPE).

    rows: of the model's embedding; ids that the tokenizer does not use are written as unused.
    Raises TokenizerError for a family that GGUF has no kind for.
    """
    if isinstance(tokenizer, SentencePieceTokenizer):
        values = _pieces(tokenizer, rows)
    else:
        text = export_tokenizer_json(tokenizer)
        spec: dict[str, Any] = {} if text is None else json.loads(text)
        if (spec.get("model") or {}).get("type") != "BPE":
            raise TokenizerError(
                "this tokenizer has no kind in GGUF",
                advice="GGUF is written for byte-level BPE and SentencePiece BPE",
            )
        values = _byte_level(spec, rows)
    for role, name in ROLES.items():
        index = getattr(tokenizer, f"{role}_id")
        if index is not None:
            values[f"{name}_token_id"] = index
    bare = tokenizer.encode("a", special=True).ids
    values["add_bos_token"] = bool(bare) and bare[0] == tokenizer.bos_id
    values["add_eos_token"] = len(bare) > 1 and bare[-1] == tokenizer.eos_id
    found = {f"tokenizer.ggml.{name}": value for name, value in values.items()}
    if tokenizer.chat_template is not None:
        found["tokenizer.chat_template"] = tokenizer.chat_template
    return found


def _byte_level(spec: Mapping[str, Any], rows: int) -> dict[str, object]:
    model = spec["model"]
    tokens = {int(index): token for token, index in model["vocab"].items()}
    kinds = dict.fromkeys(tokens, NORMAL)
    for added in spec.get("added_tokens") or ():
        tokens[int(added["id"])] = added["content"]
        kinds[int(added["id"])] = CONTROL if added["special"] else USER
    merges = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return {
        "model": "gpt2",
        "pre": _pre_tokenizer(spec.get("pre_tokenizer") or {}, bool(model.get("ignore_merges"))),
        "tokens": [tokens.get(i, f"[UNUSED{i}]") for i in range(max(rows, len(tokens)))],
        "token_type": [kinds.get(i, UNUSED) for i in range(max(rows, len(tokens)))],
        "merges": merges,
    }


def _pre_tokenizer(part: Mapping[str, Any], ignore_merges: bool) -> str:
    """llama.cpp's name for these steps of pre-tokenisation."""
    steps = part.get("pretokenizers") or [part]
    splits: list[str] = []
    for step in steps:
        if step.get("type") == "Split":
            splits.append(str(step["pattern"].get("Regex", step["pattern"].get("String"))))
        elif step.get("type") == "Digits" and step.get("individual_digits"):
            splits.append(r"\p{N}")
        elif step.get("type") == "ByteLevel" and step.get("use_regex", True):
            splits.append(PRE_TOKENIZERS["gpt-2"].splits[0])
    for name, known in PRE_TOKENIZERS.items():
        if known.splits == tuple(splits) and known.ignore_merges == ignore_merges:
            return name
    raise TokenizerError("llama.cpp has no name for this tokenizer's pre-tokenisation")


def _pieces(tokenizer: SentencePieceTokenizer, rows: int) -> dict[str, object]:
    model = tokenizer.model
    kinds = [NORMAL] * model.size
    for index in model.controls:
        kinds[index] = CONTROL
    for index in model.bytes:
        kinds[index] = BYTE
    kinds[model.unk_id] = UNKNOWN
    tokens, scores = list(model.pieces), list(model.scores)
    for index in range(model.size, max(rows, model.size)):
        tokens.append(f"[UNUSED{index}]")
        scores.append(-1000.0)
        kinds.append(UNUSED)
    return {
        "model": "llama",
        "tokens": tokens,
        "scores": scores,
        "token_type": kinds,
        "add_space_prefix": model.facts.dummy_prefix,
    }
