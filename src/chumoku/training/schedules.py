"""Learning-rate schedules: pure functions of the step, as factors of the learning rate.

`step` counts the updates already made, so it is 0 for the first one; `steps` is their number in the
whole run. The factor multiplies `OptimiserSettings.learning_rate`. Where a paper counts updates
from 1, n = step + 1. Letters: W steps of warm-up, u the share of the decay that is over.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from chumoku.errors import ConfigError

KINDS: Final = ("constant", "linear", "cosine", "inverse-sqrt", "wsd", "t5")
SHAPES: Final = ("linear", "1-sqrt")
FLOORED: Final = ("linear", "cosine", "wsd")
T5_WARMUP: Final = 10_000
WSD_DECAY: Final = 0.2


@dataclass(frozen=True)
class ScheduleSettings:
    """kind: one of KINDS; each function below gives its formula.

    warmup_steps, or warmup_fraction of the whole run. from_zero: the rise begins with 0, as
    transformers' does (the first update then changes nothing); else with 1 / (W + 1), as nanoGPT's.
    floor: where linear, cosine and wsd end, as a share of the learning rate. decay_fraction,
    decay_shape: of wsd (0.2 and "linear" where absent).
    """

    kind: str = "linear"
    warmup_steps: int | None = None
    warmup_fraction: float | None = None
    from_zero: bool = False
    floor: float = 0.0
    decay_fraction: float | None = None
    decay_shape: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise _error("kind", f"{self.kind!r} is not one of {', '.join(KINDS)}")
        if self.warmup_steps is not None and self.warmup_fraction is not None:
            raise _error("warmup_steps", "give warmup_steps or warmup_fraction, not both")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise _error("warmup_steps", f"must be at least 0, it is {self.warmup_steps}")
        self._check_share("warmup_fraction", self.warmup_fraction)
        self._check_share("floor", self.floor)
        self._check_share("decay_fraction", self.decay_fraction)
        if self.decay_shape not in (None, *SHAPES):
            raise _error("decay_shape", f"{self.decay_shape!r} is not one of {', '.join(SHAPES)}")
        self._refuse_unused()

    def _check_share(self, name: str, value: float | None) -> None:
        if value is not None and not 0 <= value <= 1:
            raise _error(name, f"must lie between 0 and 1, it is {value}")

    def _refuse_unused(self) -> None:
        """A setting that the kind does not read is a mistake, not a wish."""
        if self.floor and self.kind not in FLOORED:
            raise _error("floor", f"{self.kind!r} has no floor; it is for {', '.join(FLOORED)}")
        if self.from_zero and self.kind in ("inverse-sqrt", "t5"):
            raise _error("from_zero", f"{self.kind!r} has a rise of its own")
        for name in ("decay_fraction", "decay_shape"):
            if getattr(self, name) is not None and self.kind != "wsd":
                raise _error(name, f"is for 'wsd', not for {self.kind!r}")


def factor(settings: ScheduleSettings, step: int, steps: int) -> float:
    """What the learning rate is multiplied by for the update after `step` updates of `steps`."""
    warmup = warmup_steps(settings, steps)
    if settings.kind == "inverse-sqrt":
        return inverse_sqrt(step, warmup)
    if settings.kind == "t5":
        return t5(step, warmup)
    if step < warmup:
        return rise(step, warmup, from_zero=settings.from_zero)
    if settings.kind == "constant":
        return 1.0
    if settings.kind == "wsd":
        share = WSD_DECAY if settings.decay_fraction is None else settings.decay_fraction
        length = min(round(share * steps), max(0, steps - warmup))
        u = progress(step, steps - length, steps)
        shape = one_minus_sqrt if settings.decay_shape == "1-sqrt" else linear
    else:
        u = progress(step, warmup, steps)
        shape = cosine if settings.kind == "cosine" else linear
    return settings.floor + (1.0 - settings.floor) * shape(u)


def warmup_steps(settings: ScheduleSettings, steps: int) -> int:
    """W. A fraction is rounded up, as transformers' warmup_ratio is; t5 has 10,000 where absent."""
    if settings.warmup_fraction is not None:
        return math.ceil(settings.warmup_fraction * steps)
    if settings.warmup_steps is None:
        return T5_WARMUP if settings.kind == "t5" else 0
    return settings.warmup_steps


def rise(step: int, warmup: int, *, from_zero: bool) -> float:
    """step / W, or (step + 1) / (W + 1); both reach 1 at step = W."""
    return step / warmup if from_zero else (step + 1) / (warmup + 1)


def progress(step: int, start: int, end: int) -> float:
    """u = (step - start) / (end - start) within [0, 1]; 0 up to `start`."""
    return min(1.0, max(0.0, (step - start) / max(1, end - start)))


def linear(u: float) -> float:
    """1 - u (Devlin et al., 1810.04805, appendix A.2). The last update has 1 / (steps - W)."""
    return 1.0 - u


def cosine(u: float) -> float:
    """(1 + cos(pi u)) / 2 (Loshchilov & Hutter, 1608.03983, eq. 5, one period)."""
    return 0.5 * (1.0 + math.cos(math.pi * u))


def one_minus_sqrt(u: float) -> float:
    """1 - sqrt(u), the end of a warm-up-stable-decay run (Hägele et al., 2405.18392).

    The stable part between rise and decay is Hu et al.'s (2404.06395, section 4).
    """
    return 1.0 - math.sqrt(u)


def inverse_sqrt(step: int, warmup: int) -> float:
    """min(n / W, sqrt(W / n)), n = step + 1; 1 at n = W (Vaswani et al., 1706.03762, eq. 3).

    The paper's own rate d^-0.5 min(n^-0.5, n W^-1.5) is this times `noam_rate(d, W)`.
    """
    n, W = step + 1, max(1, warmup)
    return min(n / W, math.sqrt(W / n))


def noam_rate(width: int, warmup: int) -> float:
    """(d W)^-0.5: the learning rate that, with "inverse-sqrt", gives the paper's (eq. 3)."""
    return float((width * max(1, warmup)) ** -0.5)


def t5(step: int, warmup: int) -> float:
    """1 / sqrt(max(n, W)), n = step + 1 (Raffel et al., 1910.10683, section 3.1.2; W = 10,000).

    It is a rate, not a share: the learning rate beside it is 1. With the default W it is also
    Adafactor's relative step min(0.01, 1 / sqrt(n)) (1804.04235, section 9).
    """
    return 1.0 / math.sqrt(max(step + 1, warmup))


def _error(name: str, what: str) -> ConfigError:
    return ConfigError(what, where=f"[training.schedule] {name}")
