"""Tokenizer files for a folder, from a tokenizer that did not come from one (GGUF)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chumoku.text.encoding import Tokenizer
from chumoku.text.fast import FastTokenizer
from chumoku.text.files import ROLES
from chumoku.text.sentencepieces import SentencePieceTokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """File name -> contents: tokenizer.json or tokenizer.model, and tokenizer_config.json.

    Empty for a tokenizer that is neither in the `tokenizers` library nor SentencePiece.
    """
    settings: dict[str, Any] = {}
    for role in ROLES:
        index = getattr(tokenizer, f"{role}_id", None)
        if index is not None:
            settings[f"{role}_token"] = tokenizer.id_to_token(index)
    if tokenizer.max_length is not None:
        settings["model_max_length"] = tokenizer.max_length
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    if isinstance(tokenizer, FastTokenizer):
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        content = tokenizer.engine.to_str(pretty=True).encode("utf-8")
        return {"tokenizer.json": content, "tokenizer_config.json": _json(settings)}
    if isinstance(tokenizer, SentencePieceTokenizer):
        settings["tokenizer_class"] = "LlamaTokenizer"
        settings["add_bos_token"] = tokenizer.start is not None
        settings["add_eos_token"] = tokenizer.end is not None
        settings["legacy"] = tokenizer.prefix == "always"
        settings["add_prefix_space"] = tokenizer.prefix != "never"
        settings["added_tokens_decoder"] = {
            str(token.id): {"content": token.content, "special": token.special}
            for token in tokenizer.added.values()
        }
        return {"tokenizer.model": tokenizer.model.proto, "tokenizer_config.json": _json(settings)}
    return {}


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer_files() into a folder."""
    for name, content in tokenizer_files(tokenizer).items():
        (folder / name).write_bytes(content)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")
