"""qa: the stretch of a context that answers a question (1810.04805, section 4.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.models.heads import Spans
from chumoku.tasks import common
from chumoku.tasks.windows import cut, windows
from chumoku.text.encoding import Encoding


class Answer(TypedDict):
    """start, end: code points in the context; an empty answer with 0, 0 means "not in there"."""

    score: float
    start: int
    end: int
    answer: str


@dataclass(frozen=True)
class SpanLimits:
    """What a window's spans may be. top_k: how many are wanted; max_answer_length: in tokens;
    cls_id: the first token's id, where a model points for "no answer" (None: it cannot); align:
    spans grow to whole words."""

    top_k: int
    max_answer_length: int
    cls_id: int | None
    align: bool


def qa(
    question: str,
    context: str,
    model: common.ModelLike = None,
    *,
    top_k: int = 1,
    max_length: int = 384,
    stride: int | None = None,
    max_answer_length: int = 15,
    impossible: bool = False,
    align_to_words: bool = True,
    batch_size: int = 8,
    lang: str | None = None,
) -> list[Answer]:
    """The `top_k` best answers, best first.

    A long context is read in windows of max_length tokens (question included) that share `stride`
    (default: half a window, at most 128). The score is P(start) * P(end) within the window, summed
    over the stretches, in all windows, that read the same but for upper case; so it may exceed 1.
    max_answer_length: in tokens. impossible: "no answer" may win, with the lowest score that any
    window gives it. align_to_words: whole words.
    """
    for name, value in (("question", question), ("context", context)):
        if not value.strip():
            raise InputError(f"the {name} is empty")
    if min(top_k, max_answer_length) < 1:
        raise InputError("top_k and max_answer_length must be at least 1")
    loaded = common.ready(model, "qa", context, lang)
    tokenizer = common.tokenizer_of(loaded)
    encoding = tokenizer.encode(question, context)
    limit = min(max_length, common.limit_of(loaded) or max_length)
    if stride is None:
        room = limit - sum(s != 1 for s in encoding.sequences)
        stride = min(limit // 2, 128)
        if stride >= room:
            stride = max(room // 2, 0)
    pieces = cut(encoding, windows(encoding, limit, stride, sequence=1))
    limits = SpanLimits(top_k, max_answer_length, tokenizer.cls_id, align_to_words)
    answers: list[list[Answer]] = [[] for _ in pieces]
    null_score = 1.0
    for batch in common.by_length(pieces, batch_size):
        spans = _spans(loaded, [pieces[i] for i in batch])
        for row, index in enumerate(batch):
            answers[index], null = best_spans(
                pieces[index], spans.start_BT[row], spans.end_BT[row], context, limits
            )
            null_score = min(null_score, null)
    merged = merge_same(one for window in answers for one in window)
    if impossible:
        merged.append({"score": null_score, "start": 0, "end": 0, "answer": ""})
    return sorted(merged, key=lambda answer: -answer["score"])[:top_k]


def _spans(loaded: Loaded, encodings: Sequence[Encoding]) -> Spans:
    inputs = common.collate(encodings, loaded)
    with torch.inference_mode():
        spans = loaded.model(inputs.ids_BT, inputs.mask_BT, batch=inputs.batch)
    return Spans(spans.start_BT.float().cpu(), spans.end_BT.float().cpu())


def best_spans(
    encoding: Encoding, start_T: Tensor, end_T: Tensor, context: str, limits: SpanLimits
) -> tuple[list[Answer], float]:
    """The best spans of one window, best first, and its score for "no answer" (the first token).

    encoding: question and context; start_T, end_T: their logits (padding behind them is passed
    over). A span's score is P(start) * P(end), each a softmax over the context's tokens; 2 * top_k
    + 10 spans where they grow to whole words, since some then read the same (`merge_same`).
    """
    length = len(encoding)
    inside = torch.tensor([s == 1 for s in encoding.sequences])
    allowed = inside.clone()
    allowed[0] |= encoding.ids[0] == limits.cls_id  # where a model points for "no answer"
    start_T = start_T[:length].masked_fill(~allowed, -10000.0).softmax(-1)
    end_T = end_T[:length].masked_fill(~allowed, -10000.0).softmax(-1)
    null = float(start_T[0] * end_T[0])
    start_T, end_T = start_T * inside, end_T * inside
    pairs_TT = torch.outer(start_T, end_T).triu().tril(limits.max_answer_length - 1)
    # Spans that fall together when they grow to whole words leave room for others.
    count = limits.top_k * 2 + 10 if limits.align else limits.top_k
    count = min(count, pairs_TT.numel())
    scores, places = pairs_TT.flatten().topk(count)
    found: list[Answer] = []
    for score, place in zip(scores.tolist(), places.tolist(), strict=True):
        first, last = divmod(place, length)
        if score > 0.0:
            start, end = _characters(encoding, first, last, limits.align)
            found.append({"score": score, "start": start, "end": end, "answer": context[start:end]})
    return found, null


def _characters(encoding: Encoding, first: int, last: int, align: bool) -> tuple[int, int]:
    if not align:
        return encoding.offsets[first][0], encoding.offsets[last][1]

    def same_word(token: int, other: int) -> bool:
        word = encoding.words[token]
        same = encoding.sequences[other] == encoding.sequences[token]
        return same and word is not None and encoding.words[other] == word

    while first > 0 and same_word(first, first - 1):
        first -= 1
    while last + 1 < len(encoding) and same_word(last, last + 1):
        last += 1
    return encoding.offsets[first][0], encoding.offsets[last][1]


def merge_same(answers: Iterable[Answer]) -> list[Answer]:
    """Answers that read the same are one, where the first stands, with their scores added."""
    found: dict[str, Answer] = {}
    for answer in answers:
        name = answer["answer"].lower()
        if name in found:
            found[name]["score"] += answer["score"]
        else:
            found[name] = answer
    return list(found.values())
