"""ner: names in a text. Tokens are labelled one by one, then joined into words and entities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.tasks.windows import cut, windows
from chumoku.text.encoding import Encoding, Tokenizer

AGGREGATIONS: Final = ("none", "simple", "first", "average", "max")


@dataclass(frozen=True)
class _Piece:
    """A token, or after aggregation a word: its ids, place in the text, and class scores.

    unknown: what stands in the text for each id that is the unknown token.
    """

    ids: tuple[int, ...]
    unknown: tuple[str, ...]
    index: int
    start: int
    end: int
    scores_C: Tensor

    def best(self, labels: Sequence[str]) -> tuple[str, float]:
        number = int(self.scores_C.argmax())
        return labels[number], float(self.scores_C[number])


def ner(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    aggregation: str = "simple",
    ignore: Sequence[str] = ("O",),
    stride: int = 64,
    batch_size: int = 8,
    lang: str | None = None,
) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
    """The entities of each text: {entity_group, score, word, start, end}.

    start and end are code points of the text. aggregation: "none" gives every token
    ({entity, score, index, word, start, end}); "simple" joins neighbours of one label; "first",
    "average" and "max" first give each word one label: its first token's, that of the mean scores,
    or that of its surest token. A text longer than the model is read in windows that share
    `stride` tokens; each token is labelled where it has most context.
    """
    if aggregation not in AGGREGATIONS:
        raise InputError(
            f"unknown aggregation {aggregation!r}", advice=f"one of {', '.join(AGGREGATIONS)}"
        )
    items, single = common.many(text)
    loaded = common.ready(model, "ner", items[0], lang)
    tokenizer = common.tokenizer_of(loaded)
    encodings = [tokenizer.encode(item) for item in items]
    scores = token_scores(loaded, encodings, stride, batch_size)
    answers = []
    for item, encoding, scores_TC in zip(items, encodings, scores, strict=True):
        pieces = _pieces(item, encoding, scores_TC, tokenizer)
        entities = _entities(encoding, pieces, loaded.config.labels, aggregation, tokenizer)
        key = "entity" if aggregation == "none" else "entity_group"
        answers.append([e for e in entities if e[key] not in ignore])
    return answers[0] if single else answers


def token_scores(
    loaded: Loaded, encodings: Sequence[Encoding], stride: int, batch_size: int
) -> list[Tensor]:
    """Softmax over the classes for every token of every text: [T, C] each."""
    limit = common.limit_of(loaded)
    places = [windows(e, limit or len(e), stride) for e in encodings]
    jobs = [(n, place) for n, some in enumerate(places) for place in some]
    pieces = [cut(encodings[n], [place])[0] for n, place in jobs]
    best = [[-1] * len(e) for e in encodings]
    scores = [torch.zeros(len(e), len(loaded.config.labels)) for e in encodings]
    for indices in common.by_length(pieces, batch_size):
        logits = common.run(loaded, common.collate([pieces[i] for i in indices], loaded)).cpu()
        for row, job in enumerate(indices):
            number, place = jobs[job]
            for column, token in enumerate(place):
                context = min(column, len(place) - 1 - column)
                if context > best[number][token]:
                    best[number][token] = context
                    scores[number][token] = logits[row, column].softmax(-1)
    return scores


def _pieces(text: str, encoding: Encoding, scores_TC: Tensor, tokenizer: Tokenizer) -> list[_Piece]:
    """The tokens of the text itself."""
    pieces = []
    for i, index in enumerate(encoding.ids):
        if not encoding.special[i]:
            start, end = encoding.offsets[i]
            unknown = (text[start:end],) if index == tokenizer.unk_id else ()
            pieces.append(_Piece((index,), unknown, i, start, end, scores_TC[i]))
    return pieces


def _entities(
    encoding: Encoding,
    pieces: list[_Piece],
    labels: Sequence[str],
    aggregation: str,
    tokenizer: Tokenizer,
) -> list[dict[str, Any]]:
    if aggregation == "none":
        return [_token_entity(piece, labels, tokenizer) for piece in pieces]
    if aggregation != "simple":
        pieces = _words(encoding, pieces, aggregation)
    groups: list[list[_Piece]] = []
    previous = ""
    for piece in pieces:
        label = piece.best(labels)[0]
        if groups and _kind(label) == _kind(previous) and not label.startswith("B-"):
            groups[-1].append(piece)
        else:
            groups.append([piece])
        previous = label
    return [_group_entity(group, labels, tokenizer) for group in groups]


def _kind(label: str) -> str:
    return label[2:] if label[:2] in ("B-", "I-") else label


def _token_entity(piece: _Piece, labels: Sequence[str], tokenizer: Tokenizer) -> dict[str, Any]:
    label, score = piece.best(labels)
    return {
        "entity": label,
        "score": score,
        "index": piece.index,
        "word": piece.unknown[0] if piece.unknown else tokenizer.id_to_token(piece.ids[0]),
        "start": piece.start,
        "end": piece.end,
    }


def _group_entity(
    group: Sequence[_Piece], labels: Sequence[str], tokenizer: Tokenizer
) -> dict[str, Any]:
    scores = [piece.best(labels)[1] for piece in group]
    return {
        "entity_group": _kind(group[0].best(labels)[0]),
        "score": sum(scores) / len(scores),
        "word": _spelled(group, tokenizer),
        "start": group[0].start,
        "end": group[-1].end,
    }


def _spelled(group: Sequence[_Piece], tokenizer: Tokenizer) -> str:
    """The pieces as text; where the model knows no token, as the text has it."""
    decoded = tokenizer.decode([i for piece in group for i in piece.ids])
    unknown = [part for piece in group for part in piece.unknown]
    if not unknown or tokenizer.unk_id is None:
        return decoded
    known = decoded.split(tokenizer.id_to_token(tokenizer.unk_id))
    if len(known) != len(unknown) + 1:
        return decoded
    return known[0] + "".join(a + b for a, b in zip(unknown, known[1:], strict=True))


def _words(encoding: Encoding, pieces: Sequence[_Piece], aggregation: str) -> list[_Piece]:
    """One piece for each word, with the scores that the aggregation gives it."""
    words: list[list[_Piece]] = []
    last: int | None = None
    for piece in pieces:
        word = encoding.words[piece.index]
        if words and word is not None and word == last:
            words[-1].append(piece)
        else:
            words.append([piece])
        last = word
    return [_word(tokens, aggregation) for tokens in words]


def _word(tokens: Sequence[_Piece], aggregation: str) -> _Piece:
    if aggregation == "first":
        scores_C = tokens[0].scores_C
    elif aggregation == "max":
        scores_C = max(tokens, key=lambda t: float(t.scores_C.max())).scores_C
    else:
        scores_C = torch.stack([t.scores_C for t in tokens]).mean(0)
    ids = tuple(i for t in tokens for i in t.ids)
    unknown = tuple(part for t in tokens for part in t.unknown)
    return _Piece(ids, unknown, tokens[0].index, tokens[0].start, tokens[-1].end, scores_C)
