"""Text: tokenizers of every family behind one Protocol, and chat templates."""

from __future__ import annotations

from chumoku.text.chat import encode_chat, render_chat
from chumoku.text.encoding import Encoding, Tokenizer, TokenStream
from chumoku.text.gguf import gguf_tokenizer
from chumoku.text.load import export_tokenizer_json, load_tokenizer

__all__ = [
    "Encoding",
    "TokenStream",
    "Tokenizer",
    "encode_chat",
    "export_tokenizer_json",
    "gguf_tokenizer",
    "load_tokenizer",
    "render_chat",
]
