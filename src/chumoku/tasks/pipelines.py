"""pipeline(task, model=…): the tasks under transformers' names, with the fields they have there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from chumoku.errors import InputError
from chumoku.loading import Loaded, load
from chumoku.tasks import common

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
    "feature-extraction": "feature-extraction",
    "sentence-similarity": "similarity",
    "image-classification": "classify-image",
}
"""transformers' task name -> our verb."""


def pipeline(
    task: str, model: common.ModelLike = None, *, device: str = "auto", dtype: str = "auto"
) -> Callable[..., Any]:
    """A function for the task, its model loaded once.

    task: one of our verbs, or transformers' name for it ("translation_en_to_de" too).
    Raises InputError for an unknown task.
    """
    verb, options = _verb(task)
    run = _functions().get(verb)
    if run is None:
        known = ", ".join(sorted({*ALIASES, *_functions()}))
        raise InputError(f"unknown task {task!r}", advice=f"known: {known}")
    if model is not None and not isinstance(model, Loaded):
        model = load(model, head=common.HEADS.get(verb), device=device, dtype=dtype)

    def call(*inputs: Any, **settings: Any) -> Any:
        return run(*inputs, model=model, **options, **settings)

    return call


def _verb(task: str) -> tuple[str, dict[str, Any]]:
    parts = task.split("_")
    if len(parts) == 4 and parts[0] == "translation" and parts[2] == "to":
        return "translate", {"source": parts[1], "target": parts[3]}
    return ALIASES.get(task, task), {}


def _functions() -> dict[str, Callable[..., Any]]:
    from chumoku.tasks.choice import multiple_choice, next_sentence
    from chumoku.tasks.classification import zero_shot
    from chumoku.tasks.embedding import embed, rerank, similarity
    from chumoku.tasks.generation import chat, summarize, text2text, translate
    from chumoku.tasks.images import classify_image
    from chumoku.tasks.masks import fill_mask
    from chumoku.tasks.perplexity import perplexity
    from chumoku.tasks.search import search

    return {
        "classify": _classify,
        "zero-shot": zero_shot,
        "ner": _ner,
        "qa": _qa,
        "fill-mask": fill_mask,
        "generate": _generate,
        "chat": chat,
        "text2text": text2text,
        "translate": translate,
        "summarize": summarize,
        "feature-extraction": _features,
        "embed": embed,
        "similarity": similarity,
        "rerank": rerank,
        "search": search,
        "classify-image": classify_image,
        "next-sentence": next_sentence,
        "multiple-choice": multiple_choice,
        "perplexity": perplexity,
    }


def _classify(text: Any, *, model: common.ModelLike, top_k: int | None = 1, **rest: Any) -> Any:
    """With top_k=1 a flat list, one label a text, as transformers gives it."""
    from chumoku.tasks.classification import classify

    answers: Any = classify(text, model, top_k=top_k, **rest)
    if top_k == 1 and not isinstance(text, str):
        return [answer[0] for answer in answers]
    return answers


def _ner(
    text: Any, *, model: common.ModelLike, aggregation_strategy: str = "none", **rest: Any
) -> Any:
    from chumoku.tasks.tokens import ner

    return ner(text, model, aggregation=aggregation_strategy, **rest)


def _qa(
    *, question: str, context: str, model: common.ModelLike, top_k: int = 1, **rest: Any
) -> Any:
    """One answer as a dict, several as a list."""
    from chumoku.tasks.questions import qa

    answers = qa(question, context, model, top_k=top_k, **rest)
    return answers[0] if top_k == 1 and answers else answers


def _generate(
    text: Any, *, model: common.ModelLike, return_full_text: bool = True, **rest: Any
) -> Any:
    """[{"generated_text"}], the prompt in front unless return_full_text is False."""
    from chumoku.tasks.generation import generate

    items, single = common.many(text)
    found = generate(items, model, **rest)
    answers: list[list[dict[str, str]]] = [[] for _ in items]
    for one in found if isinstance(found, list) else [found]:
        front = items[one.prompt] if return_full_text else ""
        answers[one.prompt].append({"generated_text": front + (one.text or "")})
    return answers[0] if single else answers


def _features(text: Any, *, model: common.ModelLike, truncate: bool = True) -> Any:
    """Last hidden states as nested lists, [1, T, D] for each text."""
    from chumoku.tasks.embedding import hidden_states

    items, single = common.many(text)
    loaded = common.ready(model, "embed", items[0])
    tokenizer = common.tokenizer_of(loaded)
    answers = []
    for item in items:
        encoding = common.fit(tokenizer.encode(item), common.limit_of(loaded), truncate)
        answers.append(hidden_states(loaded, common.collate([encoding], loaded)).tolist())
    return answers[0] if single else answers
