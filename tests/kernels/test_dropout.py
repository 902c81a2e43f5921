"""Dropout's noise by the native kernel, beside PyTorch's own: the same numbers, the same state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from chumoku.errors import InputError
from chumoku.kernels import dropout, native
from chumoku.layers.dropout import Dropout
from chumoku.layers.recorder import record

pytestmark = pytest.mark.skipif(
    not (native.available() and dropout.same_numbers()),
    reason="the native library is not built, or PyTorch draws by another library here",
)

DTYPES = [torch.float32, torch.bfloat16]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of what was drawn natively."""
    seen: list[int] = []
    drawn = native.native_bernoulli

    def called(noise: Tensor, *rest: object, **named: object) -> None:
        seen.append(noise.numel())
        drawn(noise, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(native, "native_bernoulli", called)
    return seen


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [1, 2, 311, 312, 313, 5003])
def test_equal_to_pytorch(count: int, dtype: torch.dtype, calls: list[int]) -> None:
    """Bit for bit, wherever in its 624 words the generator stands, and what it draws next too."""
    for used, rate in enumerate((0.1, 0.5, 1 / 3, 0.999, 1e-3)):
        x, found = torch.randn(count, generator=Generator().manual_seed(3)).to(dtype), []
        for function in (F.dropout, dropout.training_dropout):
            torch.manual_seed(17 + count)
            torch.rand(used * 131)  # odd and even numbers of words
            found.append((function(x, rate), function(x, rate), torch.get_rng_state()))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
        if count > 300 and 0.1 <= rate <= 0.5:
            assert not torch.equal(found[0][0], dropout.training_dropout(x, rate))  # a later state
    assert calls


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_set_of_instructions(level: int) -> None:
    if level not in native.levels():
        pytest.skip(f"this processor or build lacks level {level}")
    state = torch.randint(-(2**31), 2**31, (624,), dtype=torch.int32)
    found = []
    for one in (level, 0):
        words, next_word, noise = (
            state.clone(),
            torch.tensor([623], dtype=torch.int32),
            torch.empty(999),
        )
        native.native_bernoulli(noise, words, next_word, 0.7, 2.5, level=one)
        found.append((noise, words, next_word))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert set(found[0][0].tolist()) == {0.0, 2.5}
    assert int(found[0][2]) == (623 + 2 * 999) % 624


def test_the_layer(calls: list[int]) -> None:
    layer, x = Dropout(0.4), torch.randn(6, 50, requires_grad=True)
    torch.manual_seed(2)
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    torch.manual_seed(2)
    assert torch.equal(y, F.dropout(x, 0.4))
    assert torch.equal(gradient, (y != 0) / 0.6)
    assert calls == [300]
    assert {"dropout"} <= {node.op for node in record(layer, x.detach()).nodes.values()}
    for other in (x.double(), x.T, x[:0]):  # left to PyTorch, or nothing to draw
        layer(other)
    assert layer.eval()(x) is x
    assert sum(calls) == 300


def test_wrong_values() -> None:
    state, next_word = torch.zeros(624, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    with pytest.raises(InputError, match="between 0 and 1"):
        dropout.dropout_noise(torch.zeros(3), 1.0)
    with pytest.raises(InputError, match=r"int32 \[624\]"):
        native.native_bernoulli(torch.zeros(3), state[1:], next_word, 0.5, 2.0)
    with pytest.raises(InputError, match="number 625"):
        native.native_bernoulli(torch.zeros(3), state, next_word + 625, 0.5, 2.0)
    with pytest.raises(InputError, match="contiguous"):
        native.native_bernoulli(torch.zeros(3, 2).T, state, next_word, 0.5, 2.0)
