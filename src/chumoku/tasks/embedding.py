"""embed, similarity, rerank: texts as vectors, and pairs judged by a cross-encoder.

Shape letters: B batch (texts), T position, D vector width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, TypedDict

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.checkpoints import assign
from chumoku.checkpoints.sentence import Dense, Sentence
from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.tasks.classification import class_logits
from chumoku.text.encoding import Encoding

Vectors = npt.NDArray[np.float32]

POOLINGS: Final = ("cls", "mean", "max", "mean_sqrt_len", "weighted_mean", "last")

ACTIVATIONS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "tanh": torch.tanh,
    "identity": lambda x: x,
    "relu": F.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
}


class Ranked(TypedDict):
    """corpus_id: place in the list given."""

    corpus_id: int
    score: float
    text: str


def embed(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    dimensions: int | None = None,
    batch_size: int = 32,
    lang: str | None = None,
) -> Vectors:
    """Vectors [D] of a text or [B, D] of several, float32.

    pooling, normalize: default to what the checkpoint says (sentence-transformers), else mean and
    not normalised. prompt: a text put in front, or the name of one of the checkpoint's prompts.
    dimensions: keep only the first so many (then normalised again where asked). Texts longer than
    the model are cut, as the published model does.
    """
    items, single = common.many(text)
    loaded = common.ready(model, "embed", items[0], lang)
    settings = loaded.sentence or Sentence()
    poolings = settings.pooling if pooling is None else (pooling,)
    if dimensions is not None and dimensions < 1:
        raise InputError(f"dimensions must be at least 1, it is {dimensions}")
    for name in poolings:
        if name not in POOLINGS:
            raise InputError(f"unknown pooling {name!r}", advice=f"one of {', '.join(POOLINGS)}")
    prefix = prompt_text(settings, prompt)
    encodings, skipped = _encoded(loaded, settings, items, prefix)
    dense = [dense_step(step, loaded.device) for step in settings.dense]
    rows: list[Tensor] = [torch.empty(0)] * len(items)
    for indices in common.by_length(encodings, batch_size):
        inputs = common.collate([encodings[i] for i in indices], loaded)
        x_BTD = hidden_states(loaded, inputs)
        mask_BT = torch.ones_like(inputs.ids_BT) if inputs.mask_BT is None else inputs.mask_BT
        if not settings.include_prompt:
            mask_BT = mask_BT.clone()
            mask_BT[:, :skipped] = 0
        pooled_BD = torch.cat([pool(x_BTD, mask_BT, name) for name in poolings], dim=-1)
        for step in dense:
            pooled_BD = step(pooled_BD)
        for index, row in zip(indices, pooled_BD.cpu(), strict=True):
            rows[index] = row
    vectors_BD = torch.stack(rows)[:, :dimensions]
    if settings.normalize if normalize is None else normalize:
        vectors_BD = F.normalize(vectors_BD, dim=-1)
    found: Vectors = vectors_BD.numpy().astype(np.float32)
    return found[0] if single else found


def hidden_states(loaded: Loaded, inputs: common.Inputs) -> Tensor:
    """Last hidden states [B, T, D] of any encoder or decoder, float32 or wider."""
    model: Any = loaded.model
    with torch.inference_mode():
        x_BTD = model.hidden(inputs.ids_BT, inputs.mask_BT, batch=inputs.batch)
    found: Tensor = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
    return found


def pool(x_BTD: Tensor, mask_BT: Tensor, name: str) -> Tensor:
    """One vector of a text's token vectors, [B, D]; padding takes no part.

    mean: the average; cls: the first token; max: the largest of each dimension; mean_sqrt_len: the
    sum over the square root of the count; weighted_mean: later tokens weigh more; last: the last
    token (the modes of sentence-transformers' Pooling).
    """
    weight_BT1 = mask_BT[:, :, None].to(x_BTD.dtype)
    if name == "cls":
        first_B = mask_BT.long().argmax(dim=1)
        return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), first_B]
    if name == "last":
        place_T = torch.arange(mask_BT.shape[1], device=x_BTD.device)
        last_B = (mask_BT.long() * place_T).argmax(dim=1)
        return x_BTD[torch.arange(len(x_BTD), device=x_BTD.device), last_B]
    if name == "max":
        return x_BTD.masked_fill(weight_BT1 == 0, -torch.inf).amax(dim=1)
    if name == "weighted_mean":
        place_T = torch.arange(1, mask_BT.shape[1] + 1, device=x_BTD.device, dtype=x_BTD.dtype)
        weight_BT1 = weight_BT1 * place_T[None, :, None]
    count_B1 = weight_BT1.sum(dim=1).clamp(min=1e-9)
    total_BD = (x_BTD * weight_BT1).sum(dim=1)
    return total_BD / (count_B1.sqrt() if name == "mean_sqrt_len" else count_B1)


def prompt_text(settings: Sentence, prompt: str | None) -> str:
    """What is put in front of a text: the checkpoint's prompt of that name, else `prompt` itself;
    None: the checkpoint's default prompt, "" where it has none."""
    if prompt is None:
        prompt = settings.default_prompt
    return "" if prompt is None else settings.prompts.get(prompt, prompt)


def _encoded(
    loaded: Loaded, settings: Sentence, items: Sequence[str], prefix: str
) -> tuple[list[Encoding], int]:
    """The texts' encodings, and how many leading tokens belong to the prompt."""
    tokenizer = common.tokenizer_of(loaded)
    limits = [n for n in (settings.max_length, common.limit_of(loaded)) if n]
    limit = min(limits) if limits else None
    texts = [prefix + item for item in items]
    if settings.lower_case:
        texts = [text.lower() for text in texts]
    encodings = [common.fit(tokenizer.encode(text), limit, True) for text in texts]
    if not prefix:
        return encodings, 0
    alone = tokenizer.encode(prefix)
    return encodings, len(alone) - int(bool(alone.special) and alone.special[-1])


def dense_step(step: Dense, device: torch.device) -> Callable[[Tensor], Tensor]:
    """f(W x + b) for pooled vectors [B, D], in float32, with the weights on `device`."""
    weight = assign.dense(step.weight).float().to(device)
    bias = None if step.bias is None else assign.dense(step.bias).float().to(device)
    activation = ACTIVATIONS[step.activation]
    return lambda x_BD: activation(F.linear(x_BD.float(), weight, bias))


def similarity(
    texts: str | Sequence[str],
    others: str | Sequence[str] | None = None,
    model: common.ModelLike = None,
    *,
    pooling: str | None = None,
    prompt: str | None = None,
    batch_size: int = 32,
    lang: str | None = None,
) -> Vectors:
    """Cosine similarity of every text with every other, [texts, others] (others None: texts)."""
    first, _ = common.many(texts)
    second = first if others is None else common.many(others)[0]
    both = list(dict.fromkeys([*first, *second]))
    vectors = embed(
        both,
        model,
        pooling=pooling,
        normalize=True,
        prompt=prompt,
        batch_size=batch_size,
        lang=lang,
    )
    place = {text: row for row, text in enumerate(both)}
    a, b = ([place[t] for t in texts_] for texts_ in (first, second))
    table: Vectors = vectors[a] @ vectors[b].T
    return table


def rerank(
    query: str,
    documents: Sequence[str],
    model: common.ModelLike = None,
    *,
    top_k: int | None = None,
    batch_size: int = 16,
    lang: str | None = None,
) -> list[Ranked]:
    """The documents in order of relevance to the query, judged as pairs by a cross-encoder.

    A model of one class gives sigmoid(logit), or the logit itself where its config says so
    (sentence-transformers' activation); of two classes the probability of the second.
    """
    common.many(query)
    items, _ = common.many(documents)
    loaded = common.ready(model, "rerank", query, lang)
    logits_BC = class_logits(loaded, [query] * len(items), list(items), True, batch_size)
    if logits_BC.shape[1] == 1:
        scores = _activation(loaded)(logits_BC[:, 0])
    elif logits_BC.shape[1] == 2:
        scores = logits_BC.softmax(-1)[:, 1]
    else:
        raise InputError(f"a model with {logits_BC.shape[1]} classes does not rank documents")
    order = scores.argsort(descending=True, stable=True).tolist()[:top_k]
    return [{"corpus_id": i, "score": float(scores[i]), "text": items[i]} for i in order]


def _activation(loaded: Loaded) -> Callable[[Tensor], Tensor]:
    """What sentence-transformers was told to put on the logit: in its own file, or in config.json
    (under two names, the older one last); sigmoid where nothing is said."""
    published = loaded.source.published
    raw = {} if published is None else published.raw_config
    name = "" if loaded.sentence is None else loaded.sentence.activation
    name = name or (raw.get("sentence_transformers") or {}).get("activation_fn") or ""
    name = name or raw.get("sbert_ce_default_activation_function") or "Sigmoid"
    short = str(name).rsplit(".", 1)[-1].lower()
    if short not in ACTIVATIONS:
        raise InputError(f"the activation {name!r} is not supported", where=loaded.source.origin)
    return ACTIVATIONS[short]
