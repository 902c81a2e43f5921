"""Masks and caches that do not fit are refused; before, some gave plausible numbers."""

from __future__ import annotations

import pytest
import torch

from chumoku.errors import InputError
from chumoku.layers.attention import Batch
from chumoku.layers.cache import ContiguousCache
from chumoku.layers.taps import trace
from chumoku.models import gpt2, llama

CONFIG = llama.Config(
    vocab_size=40, width=16, num_blocks=2, num_heads=4, num_kv_heads=2, head_width=4
)
IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def model() -> llama.Model:
    torch.manual_seed(0)
    made = llama.Model(CONFIG)
    llama.initialise(made)
    return made.eval()


@pytest.fixture
def cache(model: llama.Model) -> ContiguousCache:
    """Five positions of IDS."""
    held = ContiguousCache()
    model(IDS[:, :5], batch=Batch(cache=held))
    held.advance(5)
    return held


def test_a_mask_without_the_cached_positions(model: llama.Model, cache: ContiguousCache) -> None:
    """One column would spread over all keys, and put the token at position 0."""
    whole = torch.ones(2, 6, dtype=torch.bool)
    expected = model(IDS)[:, -1:]
    found = model(IDS[:, 5:], whole, batch=Batch(cache=cache))
    assert (found - expected).abs().max() < 1e-5
    with pytest.raises(InputError, match=r"mask is torch.bool \[2, 1\], not torch.bool \[B, 6\]"):
        model(IDS[:, 5:], whole[:, 5:], batch=Batch(cache=cache))


def test_packed_sequences_after_cached_positions(
    model: llama.Model, cache: ContiguousCache
) -> None:
    """The cache does not know to which sequence its positions belong."""
    batch = Batch(cache=cache, sequences_BT=torch.tensor([[1], [1]]))
    with pytest.raises(InputError, match="packed sequences have no cache"):
        model(IDS[:, 5:], batch=batch)


def test_masks_are_truth_values(model: llama.Model) -> None:
    with pytest.raises(InputError, match=r"torch.int64"):
        model(IDS, torch.ones(2, 6, dtype=torch.long))


@pytest.mark.parametrize("T", [0, 6])
def test_a_batch_of_no_rows(model: llama.Model, T: int) -> None:
    assert model(IDS[:0, :T]).shape == (0, T, 40)
    assert model(IDS[:0, :T]).numel() == 0


@pytest.mark.parametrize("head", ["causal-lm", "classification", "token-classification"])
def test_what_a_head_gives_is_called_logits(head: str) -> None:
    small = gpt2.Config(vocab_size=40, max_positions=8, width=16, num_blocks=1, num_heads=2)
    for made in (llama.Model(CONFIG, head), gpt2.Model(small, head)):
        with trace(made.eval(), "logits") as seen:
            answer = made(IDS)
        assert seen["logits"] is answer
