"""transformers' names of the tasks, for pipeline() and for the command line. Imports nothing."""

from __future__ import annotations

from typing import Final

ALIASES: Final = {
    "text-classification": "classify",
    "sentiment-analysis": "classify",
    "zero-shot-classification": "zero-shot",
    "token-classification": "ner",
    "question-answering": "qa",
    "text-generation": "generate",
    "text2text-generation": "text2text",
    "translation": "translate",
    "summarization": "summarize",
    "sentence-similarity": "similarity",
    "image-classification": "classify-image",
}
"""transformers' task name -> our verb."""


def verb_of(task: str) -> tuple[str, dict[str, str]]:
    """The verb for a task's name, and what the name says beyond it ("translation_en_to_de")."""
    parts = task.split("_")
    if len(parts) == 4 and parts[0] == "translation" and parts[2] == "to":
        return "translate", {"source": parts[1], "target": parts[3]}
    return ALIASES.get(task, task), {}
