"""classify: a label for a text or a pair. zero-shot: labels that the model was never trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypedDict

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common

FUNCTIONS: Final = ("auto", "softmax", "sigmoid", "none")


class Label(TypedDict):
    label: str
    score: float


class ZeroShot(TypedDict):
    """labels and scores are sorted, best first."""

    sequence: str
    labels: list[str]
    scores: list[float]


def classify(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    pair: str | Sequence[str] | None = None,
    top_k: int | None = 1,
    function: str = "auto",
    truncate: bool = False,
    batch_size: int = 16,
    lang: str | None = None,
) -> list[Label] | list[list[Label]]:
    """The `top_k` best labels (None: all) of each text, or of each text with its `pair`.

    function: "auto" is softmax; sigmoid for one class or a multi-label model; none for regression.
    """
    items, single = common.many(text)
    seconds = _pairs(pair, len(items))
    loaded = common.ready(model, "classify", items[0], lang)
    logits_BC = class_logits(loaded, items, seconds, truncate, batch_size)
    scores_BC = class_scores(logits_BC, loaded, function)
    names = loaded.config.labels
    answers = [ranked(names, row, top_k) for row in scores_BC]
    return answers[0] if single else answers


def zero_shot(
    text: str | Sequence[str],
    labels: Sequence[str],
    model: common.ModelLike = None,
    *,
    template: str = "This example is {}.",
    multi_label: bool = False,
    batch_size: int = 16,
    lang: str | None = None,
) -> ZeroShot | list[ZeroShot]:
    """Score labels by whether the text entails `template` with the label in it (1909.00161).

    multi_label: each label on its own, entailment against contradiction; otherwise the entailments
    compete. Raises InputError where the model has no entailment class.
    """
    items, single = common.many(text)
    if not labels or any(not label.strip() for label in labels):
        raise InputError("zero-shot needs at least one label, and none may be empty")
    hypotheses = [_hypothesis(template, label) for label in labels]
    loaded = common.ready(model, "zero-shot", items[0], lang)
    entailment = _entailment(loaded)
    firsts = [item for item in items for _ in labels]
    logits = class_logits(loaded, firsts, hypotheses * len(items), True, batch_size)
    logits = logits.view(len(items), len(labels), -1)
    if multi_label or len(labels) == 1:
        contradiction = -1 if entailment == 0 else 0
        scores = logits[..., [contradiction, entailment]].softmax(-1)[..., 1]
    else:
        scores = logits[..., entailment].softmax(-1)
    answers: list[ZeroShot] = []
    for item, row in zip(items, scores, strict=True):
        order = ranked(labels, row, None)
        values = [one["score"] for one in order]
        names = [one["label"] for one in order]
        answers.append({"sequence": item, "labels": names, "scores": values})
    return answers[0] if single else answers


def class_logits(
    loaded: Loaded,
    texts: Sequence[str],
    pairs: Sequence[str | None],
    truncate: bool,
    batch_size: int,
) -> Tensor:
    """One row of class logits for each text: [B, C], float32 or wider, on the CPU."""
    tokenizer, limit = common.tokenizer_of(loaded), common.limit_of(loaded)
    encodings = [
        common.fit(tokenizer.encode(text, pair), limit, truncate)
        for text, pair in zip(texts, pairs, strict=True)
    ]
    rows: list[Tensor] = [torch.empty(0)] * len(encodings)
    for indices in common.by_length(encodings, batch_size):
        inputs = common.collate([encodings[i] for i in indices], loaded)
        for index, row in zip(indices, common.run(loaded, inputs).cpu(), strict=True):
            rows[index] = row
    return torch.stack(rows)


def _pairs(pair: str | Sequence[str] | None, count: int) -> list[str | None]:
    if pair is None:
        return [None] * count
    seconds = common.many(pair)[0]
    if len(seconds) != count:
        raise InputError(f"{count} texts, but {len(seconds)} second texts")
    return list(seconds)


def class_scores(logits_BC: Tensor, loaded: Loaded, function: str) -> Tensor:
    """Logits as scores, [B, C]; see classify() for `function`. Raises InputError."""
    if function not in FUNCTIONS:
        raise InputError(f"unknown function {function!r}", advice=f"one of {', '.join(FUNCTIONS)}")
    if function == "auto":
        kind = loaded.config.problem_type
        if kind == "regression":
            function = "none"
        elif kind == "multi_label_classification" or logits_BC.shape[1] == 1:
            function = "sigmoid"
        else:
            function = "softmax"
    if function == "softmax":
        return logits_BC.softmax(-1)
    return logits_BC.sigmoid() if function == "sigmoid" else logits_BC


def ranked(names: Sequence[str], scores_C: Tensor, top_k: int | None) -> list[Label]:
    """The `top_k` best names with their scores, best first; None: all."""
    if top_k is not None and top_k < 1:
        raise InputError(f"top_k must be at least 1, it is {top_k}")
    order = scores_C.argsort(descending=True, stable=True).tolist()[:top_k]
    return [{"label": names[i], "score": float(scores_C[i])} for i in order]


def _hypothesis(template: str, label: str) -> str:
    try:
        filled = template.format(label)
    except (IndexError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"the template {template!r} is not understood: {error}") from error
    if filled == template:
        raise InputError("the template has no {} for the label")
    return filled


def _entailment(loaded: Loaded) -> int:
    for index, name in enumerate(loaded.config.labels):
        if name.lower().startswith("entail"):
            return index
    raise InputError(
        f"this model has no entailment class, only {', '.join(loaded.config.labels[:5])}",
        advice="zero-shot needs a model trained on natural language inference (MNLI, JNLI)",
    )
