"""Training a tokenizer: WordPiece, byte-level BPE, SentencePiece BPE and Unigram, characters."""

from __future__ import annotations

from chumoku.text.training.settings import TokenizerSettings
from chumoku.text.training.train import Trained, train_tokenizer

__all__ = ["TokenizerSettings", "Trained", "train_tokenizer"]
