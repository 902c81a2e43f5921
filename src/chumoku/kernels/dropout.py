"""Dropout's noise on a CPU, number for number PyTorch's, in a tenth of the time.

Definition: torch.nn.functional.dropout, which draws one number after another in a slow loop.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Generator, Tensor
from torch.nn import functional

from chumoku.errors import InputError
from chumoku.kernels import native
from chumoku.kernels.activations import in_one_pass
from chumoku.kernels.native import WORDS


def draws_natively(x: Tensor) -> bool:
    """True where dropout_noise(x, rate) serves for the noise that PyTorch would draw for x."""
    return in_one_pass(x) and x.is_contiguous() and same_numbers()


def dropout_noise(x: Tensor, rate: float, generator: Generator | None = None) -> Tensor:
    """Like x: 0 with probability rate (0 <= rate < 1), else 1 / (1 - rate).

    x * dropout_noise(x, rate) is F.dropout(x, rate), bit for bit, and leaves the generator (None:
    the default one) as that would. InputError: a rate outside.
    """
    if not 0 <= rate < 1:
        raise InputError(f"a dropout rate lies between 0 and 1, not {rate}")
    generator = torch.default_generator if generator is None else generator
    state = generator.get_state()
    # MT19937 as PyTorch writes it: seed (8 bytes), words left (4), seeded (4), next (8), then the
    # words (8 bytes each). Of the words left the last is never drawn: at 1 the state is used up.
    left, following, words = (
        state[8:12].view(torch.int32),
        state[16:24].view(torch.int64),
        state[24 : 24 + 8 * WORDS].view(torch.int64),
    )
    mine = words.to(torch.int32)
    next_word = torch.tensor([WORDS if left.item() == 1 else int(following)], dtype=torch.int32)
    noise = torch.empty_like(x)
    value = 1.0 / torch.tensor(1.0 - rate, dtype=torch.float32)
    native.native_bernoulli(noise, mine, next_word, 1.0 - rate, float(value))
    words.copy_(mine.to(torch.int64) & 0xFFFFFFFF)
    left.fill_(WORDS - int(next_word) + 1)
    following.copy_(next_word)
    generator.set_state(state)
    return noise


@cache
def same_numbers() -> bool:
    """Whether PyTorch draws here as is assumed; on some processors another library draws for it."""
    ours, theirs = Generator().manual_seed(1), Generator().manual_seed(1)
    like, keep = torch.empty(1001), 0.9
    for _ in range(2):
        noise = dropout_noise(like, 1 - keep, ours)
        if not torch.equal(noise != 0, like.bernoulli_(keep, generator=theirs) != 0):
            return False
    return torch.equal(ours.get_state(), theirs.get_state())


def training_dropout(x: Tensor, rate: float) -> Tensor:
    """F.dropout(x, rate) in training."""
    if not 0 < rate < 1 or not draws_natively(x):
        return functional.dropout(x, rate)
    return x * dropout_noise(x, rate)
