"""Training a tokenizer: WordPiece, byte-level BPE, SentencePiece BPE and Unigram, characters."""

from __future__ import annotations

from chumoku.text.training.settings import TokenizerSettings
from chumoku.text.training.train import Trained, files_in_the_way, train_tokenizer

__all__ = ["TokenizerSettings", "Trained", "files_in_the_way", "train_tokenizer"]
