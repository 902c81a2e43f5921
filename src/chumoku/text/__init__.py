"""Text: tokenizers of every family behind one Protocol, and chat templates.

The heavy parts load when they are first asked for.
"""

from __future__ import annotations

from chumoku.text.encoding import Encoding, Tokenizer, TokenStream

__all__ = ["Encoding", "TokenStream", "Tokenizer"]
