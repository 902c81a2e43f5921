"""chumoku (注目, "attention"): one Python system for the Transformer.

Everything named in `__all__` is imported when first used, so `import chumoku` is quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chumoku.errors import ChumokuError
    from chumoku.layers.recorder import record
    from chumoku.layers.taps import trace
    from chumoku.loading import Loaded, create, load
    from chumoku.saving import save
    from chumoku.tasks.choice import multiple_choice, next_sentence
    from chumoku.tasks.classification import classify, zero_shot
    from chumoku.tasks.embedding import embed, rerank, similarity
    from chumoku.tasks.generation import chat, generate, summarize, text2text, translate
    from chumoku.tasks.images import classify_image
    from chumoku.tasks.masks import fill_mask
    from chumoku.tasks.perplexity import perplexity
    from chumoku.tasks.pipelines import pipeline
    from chumoku.tasks.questions import qa
    from chumoku.tasks.search import search
    from chumoku.tasks.tokens import ner

__version__ = "0.1.0"

_PLACES = {
    "ChumokuError": "errors",
    "Loaded": "loading",
    "chat": "tasks.generation",
    "classify": "tasks.classification",
    "classify_image": "tasks.images",
    "create": "loading",
    "embed": "tasks.embedding",
    "fill_mask": "tasks.masks",
    "generate": "tasks.generation",
    "load": "loading",
    "multiple_choice": "tasks.choice",
    "ner": "tasks.tokens",
    "next_sentence": "tasks.choice",
    "perplexity": "tasks.perplexity",
    "pipeline": "tasks.pipelines",
    "qa": "tasks.questions",
    "record": "layers.recorder",
    "rerank": "tasks.embedding",
    "save": "saving",
    "search": "tasks.search",
    "similarity": "tasks.embedding",
    "summarize": "tasks.generation",
    "text2text": "tasks.generation",
    "trace": "layers.taps",
    "translate": "tasks.generation",
    "zero_shot": "tasks.classification",
}

__all__ = [
    "ChumokuError",
    "Loaded",
    "chat",
    "classify",
    "classify_image",
    "create",
    "embed",
    "fill_mask",
    "generate",
    "load",
    "multiple_choice",
    "ner",
    "next_sentence",
    "perplexity",
    "pipeline",
    "qa",
    "record",
    "rerank",
    "save",
    "search",
    "similarity",
    "summarize",
    "text2text",
    "trace",
    "translate",
    "zero_shot",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'chumoku' has no attribute {name!r}")
    return getattr(importlib.import_module(f"chumoku.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
