"""Claim 4, exactly: attention does not see an order; positions bring it in.

    python examples/why_attention/shuffling.py

A Transformer with random weights reads a sentence, and reads it with its words in another order.
Without positions its outputs are the same vectors in that other order, so that nothing behind the
encoder can tell the two sentences apart; with positions they are other vectors. float64, so that
rounding cannot be taken for an effect.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import learn
import torch
from learn import FIRST, Shape, recurrent, rounded, transformer
from torch import Tensor
from translation import without_positions


@dataclass(frozen=True)
class Settings:
    words: int = 12
    orders: int = 20
    vocab: int = 100
    width: int = 128
    feedforward: int = 256
    seed: int = 0


def states(model: Any, ids_S: Tensor) -> Tensor:
    """What the decoder looks at: [S, D] of a Transformer, [S, H] of an LSTM."""
    if hasattr(model, "encoder"):
        return model.encoder(ids_S[None], None)[0]  # type: ignore[no-any-return]
    return model.encode(ids_S[None]).states_BSH[0]  # type: ignore[no-any-return]


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """The largest difference of an output from that of the same word in the first order."""
    shape = Shape(settings.vocab, settings.vocab, settings.width, settings.feedforward)
    models = {
        "lstm": recurrent(shape, settings.seed),
        "transformer": transformer(shape, settings.seed),
        "no_positions": without_positions(transformer(shape, settings.seed)),
    }
    rng = torch.Generator().manual_seed(settings.seed)
    ids_S = torch.randint(FIRST, settings.vocab, (settings.words,), generator=rng)
    orders = [torch.randperm(settings.words, generator=rng) for _ in range(settings.orders)]
    found = {}
    for name, model in models.items():
        model.double()
        first = states(model, ids_S)
        gaps = [float((states(model, ids_S[o]) - first[o]).abs().max()) for o in orders]
        found[name] = {"difference": rounded(max(gaps), 2), "size": rounded(float(first.std()), 2)}
    return learn.result(settings, {"encoder": found})


if __name__ == "__main__":
    learn.write("shuffling", measure(Settings()))
