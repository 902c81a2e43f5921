"""Schedules: golden values of the papers, and transformers' own schedulers."""

import math

import pytest
import torch
from transformers import (
    get_constant_schedule_with_warmup,
    get_cosine_with_min_lr_schedule_with_warmup,
    get_inverse_sqrt_schedule,
    get_linear_schedule_with_warmup,
    get_wsd_schedule,
)

from chumoku.errors import ConfigError
from chumoku.training.schedules import ScheduleSettings, factor, noam_rate, warmup_steps

STEPS, WARMUP = 50, 7


def published(make, steps=STEPS, **options):
    """Factors that a scheduler of transformers gives to a learning rate of 1."""
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = make(optimiser, **options)
    factors = []
    for _ in range(steps):
        factors.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return factors


def ours(**settings):
    return [factor(ScheduleSettings(**settings), step, STEPS) for step in range(STEPS)]


PAIRS = {
    "constant": (
        {"kind": "constant"},
        (get_constant_schedule_with_warmup, {"num_warmup_steps": WARMUP}),
    ),
    "linear": (
        {"kind": "linear"},
        (
            get_linear_schedule_with_warmup,
            {"num_warmup_steps": WARMUP, "num_training_steps": STEPS},
        ),
    ),
    "cosine": (
        {"kind": "cosine", "floor": 0.1},
        (
            get_cosine_with_min_lr_schedule_with_warmup,
            {"num_warmup_steps": WARMUP, "num_training_steps": STEPS, "min_lr_rate": 0.1},
        ),
    ),
    "wsd": (
        {"kind": "wsd", "decay_fraction": 0.3, "decay_shape": "1-sqrt"},
        (
            get_wsd_schedule,
            {
                "num_warmup_steps": WARMUP,
                "num_decay_steps": 15,
                "num_training_steps": STEPS,
                "decay_type": "1-sqrt",
            },
        ),
    ),
    "wsd linear": (
        {"kind": "wsd"},
        (
            get_wsd_schedule,
            {
                "num_warmup_steps": WARMUP,
                "num_decay_steps": 10,
                "num_training_steps": STEPS,
                "decay_type": "linear",
            },
        ),
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_from_zero_is_the_published_scheduler(name):
    settings, (make, options) = PAIRS[name]
    settings = {**settings, "warmup_steps": WARMUP}
    expected = published(make, **options)
    assert ours(**settings, from_zero=True) == pytest.approx(expected, abs=1e-12)
    # the default rise is another one, and only the rise
    other = ours(**settings)
    assert other[WARMUP:] == pytest.approx(expected[WARMUP:], abs=1e-12)
    assert other[:WARMUP] == [(step + 1) / (WARMUP + 1) for step in range(WARMUP)]
    assert other[:WARMUP] != pytest.approx(expected[:WARMUP], abs=1e-3)


def test_nanogpt_formula():
    """Rate of iteration `it`: rise, then cosine from 1 to a tenth, written out once more."""

    def rate(it, warmup=100, total=2000, low=1e-4, high=1e-3):
        if it < warmup:
            return high * (it + 1) / (warmup + 1)
        share = (it - warmup) / (total - warmup)
        return low + 0.5 * (1 + math.cos(math.pi * share)) * (high - low)

    settings = ScheduleSettings(kind="cosine", warmup_steps=100, floor=0.1)
    for it in (0, 1, 99, 100, 101, 1000, 1999):
        assert 1e-3 * factor(settings, it, 2000) == pytest.approx(rate(it), rel=1e-12)


@pytest.mark.parametrize(
    ("n", "rate"),
    [
        (1, 1.746928e-07),
        (1000, 1.746928e-04),
        (4000, 6.987712e-04),
        (8000, 4.941059e-04),
        (100000, 1.397542e-04),
    ],
)
def test_noam_golden_values(n, rate):
    settings = ScheduleSettings(kind="inverse-sqrt", warmup_steps=4000)
    mine = noam_rate(512, 4000) * factor(settings, n - 1, 100_000)
    assert mine == pytest.approx(rate, rel=1e-6)
    assert mine == pytest.approx(512**-0.5 * min(n**-0.5, n * 4000**-1.5), rel=1e-12)


def test_noam_big_model_peak():
    assert noam_rate(1024, 4000) == pytest.approx(4.941059e-04, rel=1e-6)


def test_inverse_sqrt_is_the_published_one_an_update_later():
    """transformers' counts from 0, so that its update n + 1 has the paper's rate of n."""
    expected = published(get_inverse_sqrt_schedule, STEPS + 1, num_warmup_steps=WARMUP)
    mine = ours(kind="inverse-sqrt", warmup_steps=WARMUP)
    assert mine == pytest.approx(expected[1:], abs=1e-12)
    assert mine != pytest.approx(expected[:-1], abs=1e-3)


def test_t5_rate():
    settings = ScheduleSettings(kind="t5")
    for n in (1, 9_999, 10_000, 10_001, 500_000):
        expected = 1 / math.sqrt(max(n, 10_000))
        assert factor(settings, n - 1, 1_000_000) == expected
        assert expected == pytest.approx(min(1e-2, n**-0.5))  # Adafactor's relative step
    assert factor(ScheduleSettings(kind="t5", warmup_steps=4), 15, 100) == 0.25


def test_linear_ends_above_zero_and_stays_at_its_floor_afterwards():
    settings = ScheduleSettings(kind="linear", floor=0.25)
    assert factor(settings, 0, 4) == 1.0
    assert factor(settings, 3, 4) == 0.25 + 0.75 / 4
    assert factor(settings, 4, 4) == factor(settings, 400, 4) == 0.25


def test_warmup_as_a_fraction_is_rounded_up():
    assert warmup_steps(ScheduleSettings(warmup_fraction=0.1), 101) == 11
    assert warmup_steps(ScheduleSettings(), 101) == 0
    assert warmup_steps(ScheduleSettings(warmup_steps=3), 101) == 3


@pytest.mark.parametrize("kind", ["linear", "cosine", "wsd", "constant", "inverse-sqrt", "t5"])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_short_runs_stay_within_0_and_1(kind, steps):
    for warmup in (0, 1, 5, 9):
        settings = ScheduleSettings(kind=kind, warmup_steps=warmup)
        factors = [factor(settings, step, steps) for step in range(steps)]
        assert all(0 < f <= 1 for f in factors), factors


@pytest.mark.parametrize(
    ("settings", "knob"),
    [
        ({"kind": "noam"}, "kind"),
        ({"warmup_steps": 3, "warmup_fraction": 0.1}, "warmup_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_fraction": 1.5}, "warmup_fraction"),
        ({"floor": float("nan")}, "floor"),
        ({"kind": "constant", "floor": 0.1}, "floor"),
        ({"kind": "t5", "from_zero": True}, "from_zero"),
        ({"kind": "linear", "decay_fraction": 0.1}, "decay_fraction"),
        ({"kind": "wsd", "decay_shape": "round"}, "decay_shape"),
    ],
)
def test_wrong_settings_name_the_knob(settings, knob):
    with pytest.raises(ConfigError, match=rf"schedule\] {knob}"):
        ScheduleSettings(**settings)
