"""next-sentence: does B follow A? multiple-choice: which of several endings fits?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch

from chumoku.checkpoints.defaults import DEFAULTS, detect_language
from chumoku.errors import InputError
from chumoku.layers.attention import Batch
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.tasks.likelihood import masked_log_probabilities


class NextSentence(TypedDict):
    """is_next, not_next: probabilities; label: the larger one's name."""

    label: str
    is_next: float
    not_next: float


class Choice(TypedDict):
    """index: its place among the choices given; score: a probability over the choices."""

    index: int
    choice: str
    score: float


def next_sentence(
    first: str,
    second: str,
    model: common.ModelLike = None,
    *,
    truncate: bool = False,
    lang: str | None = None,
) -> NextSentence:
    """BERT's second pre-training task: class 0 says that `second` follows `first`."""
    common.many([first, second])
    loaded = common.ready(model, "next-sentence", first, lang)
    encoding = common.tokenizer_of(loaded).encode(first, second)
    inputs = common.collate([common.fit(encoding, common.limit_of(loaded), truncate)], loaded)
    with torch.inference_mode():
        answer = loaded.model(inputs.ids_BT, inputs.mask_BT, batch=inputs.batch)
    logits_B2 = answer.next_sentence_B2 if loaded.head == "pre-training" else answer
    is_next, not_next = logits_B2[0].float().softmax(-1).tolist()
    label = "is_next" if is_next >= not_next else "not_next"
    return {"label": label, "is_next": is_next, "not_next": not_next}


def multiple_choice(
    prompt: str,
    choices: Sequence[str],
    model: common.ModelLike = None,
    *,
    method: str = "auto",
    normalize: bool = True,
    truncate: bool = False,
    batch_size: int = 16,
    lang: str | None = None,
) -> list[Choice]:
    """The choices, best first, with a probability each.

    method: "head" asks a multiple-choice head about each (prompt, choice) pair (SWAG's form);
    "masked" fills each choice into the mask of the prompt (or puts it behind) and sums
    log P(piece | everything else) over its pieces, a mean where `normalize` (1910.14659), as in
    cloze tests; "auto" is "masked" where the prompt has a mask, or the model a masked-LM head.
    """
    common.many(prompt)
    items, _ = common.many(choices)
    if len(items) < 2:
        raise InputError("multiple-choice needs at least two choices")
    if method not in ("auto", "head", "masked"):
        raise InputError(f"unknown method {method!r}", advice="auto, head or masked")
    if isinstance(model, Loaded) and method == "auto":
        verb = "multiple-choice" if model.head == "multiple-choice" else "fill-mask"
    else:
        verb = verb_of(prompt, method, lang, model is not None)
    loaded = common.ready(model, verb, prompt, lang)
    if verb == "multiple-choice":
        scores = _by_head(loaded, prompt, items, truncate)
    else:
        scores = _by_masks(loaded, prompt, items, normalize, batch_size)
    probabilities = torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()
    order = sorted(range(len(items)), key=lambda i: -probabilities[i])
    return [{"index": i, "choice": items[i], "score": probabilities[i]} for i in order]


def verb_of(prompt: str, method: str, lang: str | None, named: bool) -> str:
    """Whose default model, and whose head: that of multiple-choice, or that of fill-mask.

    named: the user named a model. Where the language's default is a masked one, so is the method.
    """
    gap = "[mask]" in prompt.lower() or "<mask>" in prompt.lower()
    if method == "masked" or (method == "auto" and gap):
        return "fill-mask"
    table = DEFAULTS.get(lang or detect_language(prompt), {})
    cloze = not named and table.get("multiple-choice") == table.get("fill-mask")
    return "fill-mask" if cloze else "multiple-choice"


def _by_head(loaded: Loaded, prompt: str, choices: Sequence[str], truncate: bool) -> list[float]:
    tokenizer, limit = common.tokenizer_of(loaded), common.limit_of(loaded)
    rows = [common.fit(tokenizer.encode(prompt, choice), limit, truncate) for choice in choices]
    inputs = common.collate(rows, loaded)
    segments = inputs.batch.segments_BT
    batch = Batch(segments_BT=None if segments is None else segments[None])
    mask = None if inputs.mask_BT is None else inputs.mask_BT[None]
    scores: list[float] = common.run(loaded, common.Inputs(inputs.ids_BT[None], mask, batch))[
        0
    ].tolist()
    return scores


def _by_masks(
    loaded: Loaded, prompt: str, choices: Sequence[str], normalize: bool, batch_size: int
) -> list[float]:
    tokenizer, limit = common.tokenizer_of(loaded), common.limit_of(loaded)
    mask = "" if tokenizer.mask_id is None else tokenizer.id_to_token(tokenizer.mask_id)
    if mask and prompt.count(mask) > 1:
        raise InputError(f"the prompt has more than one {mask}")
    before, gap, after = prompt.partition(mask) if mask else (prompt, "", "")
    if not gap and before and not before[-1].isspace() and before[-1].isascii():
        before += " "
    scores = []
    for choice in choices:
        encoding = common.fit(tokenizer.encode(before + choice + after), limit, False)
        first, last = len(before), len(before) + len(choice)
        places = [
            i
            for i, (start, end) in enumerate(encoding.offsets)
            if not encoding.special[i] and start < last and end > first
        ]
        if not places:
            raise InputError(f"the choice {choice!r} has no tokens")
        values = masked_log_probabilities(loaded, encoding, places, batch_size)
        scores.append(sum(values) / len(values) if normalize else sum(values))
    return scores
