"""Averages of weights beside their definition in float64."""

import pytest
import torch

from chumoku.errors import CheckpointError, ConfigError
from chumoku.loading import create
from chumoku.models import bert
from chumoku.training.averaging import (
    EMA,
    UPDATES,
    average_snapshots,
    average_states,
    warm_decay,
)
from chumoku.training.optimisers import MasterWeights
from chumoku.training.snapshots import Snapshot, write_snapshot

CONFIG = bert.Config(
    vocab_size=30, max_positions=8, width=8, num_blocks=1, num_heads=2, feedforward_width=8
)


def model():
    return create(CONFIG, "masked-lm", 0).model


def shake(made, step):
    """Other random weights: what an optimiser's step would be."""
    random = torch.Generator().manual_seed(step)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=random, dtype=torch.float64))


def weights(made):
    return MasterWeights(made, next(made.parameters()).dtype).named


def test_warm_decay():
    assert warm_decay(0.99, 0) == 0.1
    assert warm_decay(0.99, 10) == 11 / 20
    assert warm_decay(0.99, 10_000) == 0.99


@pytest.mark.parametrize(
    ("dtype", "error"), [(torch.float32, 1e-6), (torch.float64, 1e-14), (torch.bfloat16, 1e-6)]
)
def test_ema_equals_its_definition(dtype, error):
    made = model().to(dtype)
    shake(made, 0)
    ema = EMA(weights(made), 0.5)
    expected = {name: p.detach().double().clone() for name, p in made.named_parameters()}
    fixed = dict(expected)
    for step in range(1, 8):
        shake(made, step)
        ema.update(weights(made))
        d = min(0.5, step / (step + 9))
        for name, p in made.named_parameters():
            expected[name] = d * expected[name] + (1 - d) * p.detach().double()
            fixed[name] = 0.5 * fixed[name] + 0.5 * p.detach().double()  # without the warm-up
    tensors = ema.tensors()
    assert int(tensors.pop(UPDATES)) == 7
    assert tensors.keys() == expected.keys()  # the tied matrix once
    difference = max((tensors[n].double() - expected[n]).abs().max() for n in expected)
    assert difference <= error
    assert max((tensors[n].double() - fixed[n]).abs().max() for n in fixed) > 1e-3


def test_swapping_in_and_out_is_exact():
    made = model().bfloat16()
    shake(made, 0)
    ema = EMA(weights(made), 0.9)
    shake(made, 1)
    ema.update(weights(made))
    own = {name: p.detach().clone() for name, p in made.named_parameters()}
    averaged = {}

    def fail():
        with ema.swapped(made):
            averaged.update({name: p.detach().clone() for name, p in made.named_parameters()})
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    for name, value in averaged.items():
        assert torch.equal(value, ema.averages[name].bfloat16())
        assert not torch.equal(value, own[name])
    assert made.head.output.weight is made.embeddings.token.weight
    assert all(torch.equal(p, own[name]) for name, p in made.named_parameters())
    ema.copy_to(made)
    assert all(torch.equal(p, ema.averages[n].bfloat16()) for n, p in made.named_parameters())


def test_frozen_weights_are_not_averaged():
    made = model()
    made.embeddings.requires_grad_(False)
    assert not any(name.startswith("embeddings") for name in EMA(weights(made), 0.9).tensors())


def test_state_restores_bit_for_bit():
    made = model()
    whole, first = EMA(weights(made), 0.9), EMA(weights(made), 0.9)
    for step in range(1, 6):
        shake(made, step)
        whole.update(weights(made))
        if step <= 3:
            first.update(weights(made))
    second, uncounted = EMA(weights(model()), 0.9), EMA(weights(model()), 0.9)
    saved = {name: value.clone() for name, value in first.tensors().items()}
    second.load(saved)
    uncounted.load({**saved, UPDATES: torch.tensor(0)})
    for step in (4, 5):
        shake(made, step)
        second.update(weights(made))
        uncounted.update(weights(made))
    assert all(torch.equal(second.tensors()[n], v) for n, v in whole.tensors().items())
    assert not all(torch.equal(uncounted.averages[n], v) for n, v in whole.averages.items())


@pytest.mark.parametrize("change", ["missing", "too many", "shape", "type"])
def test_a_state_that_does_not_fit_changes_nothing(change):
    ema = EMA(weights(model()), 0.9)
    good = {name: value.clone() for name, value in ema.tensors().items()}
    bad = {name: value + 1 for name, value in good.items()}
    name = "head.transform.weight"
    if change == "missing":
        del bad[name]
    elif change == "too many":
        bad["x"] = torch.ones(1)
    else:
        bad[name] = torch.ones(3) if change == "shape" else bad[name].double()
    with pytest.raises(CheckpointError):
        ema.load(bad)
    assert all(torch.equal(ema.tensors()[n], good[n]) for n in good)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, float("nan")])
def test_a_decay_must_lie_between_0_and_1(decay):
    with pytest.raises(ConfigError):
        EMA(weights(model()), decay)


def states(dtype, count=5):
    random = torch.Generator().manual_seed(0)
    return [
        {
            "a": (torch.randn(20, 3, generator=random, dtype=torch.float64) * 10**i).to(dtype),
            "n": torch.tensor([3, 1]),
        }
        for i in range(count)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_mean_is_exact_and_rounded_once(dtype):
    given = states(dtype)
    mean = average_states(iter(given))
    exact = torch.stack([state["a"].double() for state in given]).mean(0)
    if dtype == torch.float64:
        torch.testing.assert_close(mean["a"], exact, rtol=1e-15, atol=0)
    else:
        assert torch.equal(mean["a"], exact.to(dtype))
        running = given[0]["a"].clone()
        for state in given[1:]:
            running += state["a"]
        assert not torch.equal(running / len(given), mean["a"])  # summed in its own type
    assert torch.equal(mean["n"], torch.tensor([3, 1]))
    assert torch.equal(given[0]["a"], states(dtype)[0]["a"])  # what was given is untouched


def test_states_that_have_no_mean():
    one, two = states(torch.float32, 2)
    for bad in ({**two, "n": torch.tensor([3, 2])}, {"a": two["a"]}, {**two, "a": two["a"][:2]}):
        with pytest.raises(CheckpointError, match=r"\[[an]\]"):
            average_states([one, bad])
    with pytest.raises(CheckpointError, match="no checkpoints"):
        average_states([])


def test_snapshots_are_averaged(tmp_path):
    given = states(torch.float32, 3)
    paths = [
        write_snapshot(tmp_path, Snapshot(i, {"model": state}, {}), keep=9)
        for i, state in enumerate(given)
    ]
    mean = average_snapshots(paths)
    assert torch.equal(mean["a"], average_states(given)["a"])
    other = write_snapshot(tmp_path, Snapshot(7, {"other": given[0]}, {}), keep=9)
    with pytest.raises(CheckpointError, match="no weights"):
        average_snapshots([other])
