"""How probable a text is: under a causal model token by token, under a masked one gap by gap.

Shape letters: B batch, T position, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from chumoku.errors import InputError
from chumoku.layers.attention import EMPTY
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.text.encoding import Encoding


def masked_log_probabilities(
    loaded: Loaded, encoding: Encoding, places: Sequence[int], batch_size: int
) -> list[float]:
    """log P(token | all others) for the tokens at these places, each masked in turn.

    The pseudo-log-likelihood of Salazar et al., 1910.14659, section 2.
    """
    tokenizer = common.tokenizer_of(loaded)
    if tokenizer.mask_id is None:
        raise InputError("the tokenizer of this model has no mask token")
    found: list[float] = []
    for start in range(0, len(places), batch_size):
        some = places[start : start + batch_size]
        rows = [_masked(encoding, place, tokenizer.mask_id) for place in some]
        logits_BTV = common.run(loaded, common.collate(rows, loaded))
        for row, place in enumerate(some):
            log_p_V = torch.log_softmax(logits_BTV[row, place], dim=-1)
            found.append(float(log_p_V[encoding.ids[place]]))
    return found


def _masked(encoding: Encoding, place: int, mask_id: int) -> Encoding:
    ids = list(encoding.ids)
    ids[place] = mask_id
    return replace(encoding, ids=ids)


def causal_log_probabilities(
    loaded: Loaded, ids: Sequence[int], window: int, stride: int
) -> list[float]:
    """log P(token | those before it), for all tokens but the first.

    A text longer than `window` is read in windows; each token but those of the first window is
    judged with at least window - stride tokens before it.
    """
    found: list[float] = []
    scored = 1  # the first token has nothing before it
    for start in range(0, max(len(ids) - 1, 1), stride):
        end = min(start + window, len(ids))
        chunk = torch.tensor([ids[start:end]], device=loaded.device)
        logits_TV = common.run(loaded, common.Inputs(chunk, None, EMPTY))[0]
        log_p_TV = torch.log_softmax(logits_TV[:-1], dim=-1)
        picked = log_p_TV.gather(1, chunk[0, 1:, None])[:, 0]
        found += picked[scored - start - 1 :].tolist()
        scored = end
        if end == len(ids):
            break
    return found
