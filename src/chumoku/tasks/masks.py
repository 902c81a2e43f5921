"""fill-mask: what a masked language model would put in the gaps (1810.04805, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict, cast

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.tasks import common
from chumoku.text.encoding import Encoding, Tokenizer


class Fill(TypedDict):
    """score: probability; token: id; sequence: the text with the gap filled.

    As in transformers, the sequence has no special tokens where one gap was there, and all of them
    (so that the other gaps are seen) where there were several.
    """

    score: float
    token: int
    token_str: str
    sequence: str


Fills = list[Fill] | list[list[Fill]]
"""For one gap a list of fills, best first; for several gaps such a list for each."""


def fill_mask(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    top_k: int = 5,
    targets: str | Sequence[str] | None = None,
    truncate: bool = False,
    batch_size: int = 16,
    lang: str | None = None,
) -> Fills | list[Fills]:
    """The most probable tokens for each mask token ([MASK], <mask>) of each text.

    targets: choose only among these tokens. Probabilities are over the whole vocabulary either way.
    Raises InputError where a text has no mask, or a target is not one token.
    """
    items, single = common.many(text)
    loaded = common.ready(model, "fill-mask", items[0], lang)
    tokenizer = common.tokenizer_of(loaded)
    if tokenizer.mask_id is None:
        raise InputError("the tokenizer of this model has no mask token")
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, it is {top_k}")
    limit = common.limit_of(loaded)
    encodings = [common.fit(tokenizer.encode(t), limit, truncate) for t in items]
    for item, encoding in zip(items, encodings, strict=True):
        if tokenizer.mask_id not in encoding.ids:
            mask = tokenizer.id_to_token(tokenizer.mask_id)
            raise InputError(f"no {mask} in {item!r}", advice=f"write {mask} where the gap is")
    chosen = None if targets is None else _target_ids(tokenizer, targets)
    answers: list[Fills | None] = [None] * len(items)
    for indices in common.by_length(encodings, batch_size):
        batch = [encodings[i] for i in indices]
        logits_BTV = common.run(loaded, common.collate(batch, loaded))
        for row, index in enumerate(indices):
            answers[index] = _fills(tokenizer, batch[row], logits_BTV[row], top_k, chosen)
    found = cast(list[Fills], answers)
    return found[0] if single else found


def _target_ids(tokenizer: Tokenizer, targets: str | Sequence[str]) -> list[int]:
    """Each target's id, once."""
    names = [targets] if isinstance(targets, str) else list(targets)
    if not names:
        raise InputError("targets is empty", advice="name one at least, or leave it out")
    return list(dict.fromkeys(_target_id(tokenizer, name) for name in names))


def _target_id(tokenizer: Tokenizer, target: str) -> int:
    """A target's id: as it stands in the vocabulary, else as the one token it is split into."""
    index = tokenizer.token_to_id(target)
    if index is not None:
        return index
    ids = tokenizer.encode(target, special=False).ids
    if len(ids) != 1 or ids[0] == tokenizer.unk_id:
        raise InputError(f"the target {target!r} is not one token of this model")
    return ids[0]


def _fills(
    tokenizer: Tokenizer,
    encoding: Encoding,
    logits_TV: Tensor,
    top_k: int,
    chosen: Sequence[int] | None,
) -> Fills:
    gaps = [i for i, index in enumerate(encoding.ids) if index == tokenizer.mask_id]
    lists: list[list[Fill]] = []
    for gap in gaps:
        probabilities_V = torch.softmax(logits_TV[gap], dim=-1)
        if chosen is None:
            scores, ids = probabilities_V.topk(min(top_k, probabilities_V.shape[0]))
        else:
            scores, order = probabilities_V[list(chosen)].sort(descending=True)
            ids = torch.tensor(chosen, device=order.device)[order][:top_k]
        pairs = zip(scores.tolist(), ids.tolist(), strict=False)
        clean = len(gaps) == 1
        lists.append([_fill(tokenizer, encoding, gap, s, index, clean) for s, index in pairs])
    return lists[0] if len(lists) == 1 else lists


def _fill(
    tokenizer: Tokenizer, encoding: Encoding, gap: int, score: float, index: int, clean: bool
) -> Fill:
    ids = list(encoding.ids)
    ids[gap] = index
    kept = [i for i in ids if i != tokenizer.pad_id]
    return {
        "score": score,
        "token": index,
        "token_str": tokenizer.decode([index]),
        "sequence": tokenizer.decode(kept, skip_special=clean),
    }
