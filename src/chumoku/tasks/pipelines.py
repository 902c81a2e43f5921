"""pipeline(task, model=…): the tasks under transformers' names, with the fields they have there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from chumoku.errors import InputError
from chumoku.loading import Loaded, load
from chumoku.tasks import common
from chumoku.tasks.names import ALIASES, verb_of

RENAMED: Final = {
    "truncation": "truncate",
    "function_to_apply": "function",
    "candidate_labels": "labels",
    "hypothesis_template": "template",
    "aggregation_strategy": "aggregation",
    "ignore_labels": "ignore",
    "doc_stride": "stride",
    "max_seq_len": "max_length",
    "max_answer_len": "max_answer_length",
    "handle_impossible_answer": "impossible",
    "src_lang": "source",
    "tgt_lang": "target",
}
"""transformers' name of an argument -> ours; both are understood."""


def pipeline(
    task: str,
    model: common.ModelLike = None,
    *,
    device: str | int = "auto",
    dtype: str = "auto",
    **defaults: Any,
) -> Callable[..., Any]:
    """A function for the task, its model loaded once.

    task: one of our verbs, or transformers' name for it ("translation_en_to_de" too). device: as
    in load(); -1 is the CPU, a number that GPU. defaults: arguments for every call, which a call
    may override. Raises InputError for an unknown task.
    """
    verb, options = verb_of(task)
    run = _functions().get(verb)
    if run is None:
        known = ", ".join(sorted({*ALIASES, *_functions()}))
        raise InputError(f"unknown task {task!r}", advice=f"known: {known}")
    if model is not None and not isinstance(model, Loaded):
        place = device if isinstance(device, str) else "cpu" if device < 0 else f"cuda:{device}"
        model = load(model, head=common.HEADS.get(verb), device=place, dtype=dtype)

    def call(*inputs: Any, **settings: Any) -> Any:
        given = {**defaults, **settings}
        named = {RENAMED.get(key, key): value for key, value in given.items()}
        return run(*inputs, model=model, **options, **named)

    return call


def _functions() -> dict[str, Callable[..., Any]]:
    from chumoku.tasks.choice import multiple_choice, next_sentence
    from chumoku.tasks.embedding import embed, rerank, similarity
    from chumoku.tasks.generation import chat, summarize, text2text, translate
    from chumoku.tasks.images import classify_image
    from chumoku.tasks.masks import fill_mask
    from chumoku.tasks.perplexity import perplexity
    from chumoku.tasks.search import search

    return {
        "classify": _classify,
        "zero-shot": _zero_shot,
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


def _classify(text: Any, *, model: common.ModelLike, top_k: Any = "", **rest: Any) -> Any:
    """A text, {"text", "text_pair"}, or a list of these. Without top_k: one label a text."""
    from chumoku.tasks.classification import classify

    single = isinstance(text, str | dict)
    items = [text] if single else list(text)
    if any(isinstance(item, dict) for item in items):
        rest["pair"] = [item["text_pair"] for item in items]
        items = [item["text"] for item in items]
    elif isinstance(rest.get("pair"), str):
        rest["pair"] = [rest["pair"]]
    answers: Any = classify(items, model, top_k=1 if top_k == "" else top_k, **rest)
    if top_k == "":
        return [answer[0] for answer in answers]
    return answers[0] if single else answers


def _zero_shot(text: Any, labels: Any, *, model: common.ModelLike, **rest: Any) -> Any:
    """labels: a list, or one string with commas between."""
    from chumoku.tasks.classification import zero_shot

    if isinstance(labels, str):
        labels = [label.strip() for label in labels.split(",") if label.strip()]
    return zero_shot(text, labels, model, **rest)


def _ner(text: Any, *, model: common.ModelLike, aggregation: str = "none", **rest: Any) -> Any:
    from chumoku.tasks.tokens import ner

    return ner(text, model, aggregation=aggregation, **rest)


def _qa(*, question: Any, context: Any, model: common.ModelLike, **rest: Any) -> Any:
    """One answer as a dict, several as a list; for lists of questions and contexts, a list."""
    from chumoku.tasks.questions import qa

    if isinstance(question, str) and isinstance(context, str):
        answers = qa(question, context, model, **rest)
        return answers[0] if len(answers) == 1 else answers
    if isinstance(question, str):
        question = [question] * len(context)
    elif isinstance(context, str):
        context = [context] * len(question)
    if len(question) != len(context):
        raise InputError(f"{len(question)} questions, but {len(context)} contexts")
    pairs = zip(question, context, strict=True)
    return [_qa(question=q, context=c, model=model, **rest) for q, c in pairs]


def _generate(
    text: Any, *, model: common.ModelLike, return_full_text: bool = True, **rest: Any
) -> Any:
    """[{"generated_text"}], the prompt in front unless return_full_text is False.

    A conversation (a list of {"role", "content"}) is continued by the model's message.
    """
    from chumoku.tasks.generation import chat, generate

    if not isinstance(text, str) and text and isinstance(text[0], Mapping):
        answer = chat(text, model, **rest).text or ""
        message = {"role": "assistant", "content": answer}
        return [{"generated_text": [*text, message] if return_full_text else answer}]
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
