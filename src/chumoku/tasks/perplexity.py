"""perplexity: exp of the mean negative log-probability of a text's tokens."""

from __future__ import annotations

import math
from typing import TypedDict

from chumoku.errors import InputError
from chumoku.tasks import common, likelihood


class Perplexity(TypedDict):
    """nll: mean negative log-probability a token, in nats. tokens: how many were judged."""

    perplexity: float
    nll: float
    tokens: int
    kind: str


def perplexity(
    text: str,
    model: common.ModelLike = None,
    *,
    window: int | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    lang: str | None = None,
) -> Perplexity:
    """Of a causal model: each token given those before it, in windows for a long text.

    window: tokens read at once (default: all that the model takes, at most 1024); stride: tokens
    that each further window adds (default: half a window). Of a masked model: each token given all
    others ("pseudo-perplexity", 1910.14659). A text of one token has none: InputError.
    """
    item = common.many(text)[0][0]
    loaded = common.ready(model, "perplexity", item, lang)
    tokenizer = common.tokenizer_of(loaded)
    encoding = tokenizer.encode(item)
    if loaded.head in ("masked-lm", "pre-training"):
        fitted = common.fit(encoding, common.limit_of(loaded), False)
        places = [i for i, special in enumerate(fitted.special) if not special]
        values = likelihood.masked_log_probabilities(loaded, fitted, places, batch_size)
        kind = "masked"
    elif loaded.head == "causal-lm":
        limit = common.limit_of(loaded)
        window = min(limit or 1024, 1024) if window is None else window
        if limit is not None and window > limit:
            raise InputError(f"a window of {window} tokens, but the model takes {limit}")
        stride = max(window // 2, 1) if stride is None else stride
        if window < 2 or not 1 <= stride < window:
            raise InputError(f"window {window} and stride {stride}: 1 <= stride < window is needed")
        values = likelihood.causal_log_probabilities(loaded, encoding.ids, window, stride)
        kind = "causal"
    else:
        raise InputError(f"a model with head {loaded.head!r} gives no probabilities of text")
    if not values:
        raise InputError("a text of one token has no perplexity")
    nll = -sum(values) / len(values)
    return {"perplexity": math.exp(nll), "nll": nll, "tokens": len(values), "kind": kind}
