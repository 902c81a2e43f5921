"""How a run goes: the [training] section of a recipe."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chumoku.devices import FLOATS
from chumoku.errors import ConfigError, TrainingError
from chumoku.training.data.batching import Batching
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.schedules import ScheduleSettings

NON_FINITE: Final = ("stop", "skip")
HARMLESS: Final = tuple(
    f"training.{name}"
    for name in ("keep", "sample_every", "save_every", "on_nonfinite", "recompute")
)
"""Settings that a resumed run may change: the curve does not depend on them."""
FREE: Final = ("task", "tokenizer", "rows", "model.config", "data.columns", "data.fallback")
"""Tables that hold what was written alone; the others are whole, with every default."""


@dataclass(frozen=True)
class Settings:
    """One step is one update of the weights, made from `accumulate` batches.

    steps: how many; None: `epochs` over the examples. clip: largest norm of the gradient; None: no
    limit. dtype: float32 or bfloat16 (weights and activations; the optimiser then keeps float32
    copies). recompute: forget activations inside blocks and compute them again on the way back.
    ema: decay of an average of the weights, which is then what is evaluated and kept; None: none.
    average: end with the mean of the weights of so many last snapshots, as the 2017 Transformer
    (1706.03762, 6.1), not with the best; None: do not.
    on_nonfinite: what a loss or gradient that is no number does: stop, or skip (the weights stay).
    evaluate_every, save_every: steps; None: once an epoch; 0: at the end alone. sample_every:
    steps; 0: never. keep: snapshots on the disk. keep_best: end with the weights of the best
    evaluation. patience: stop after so many evaluations without a better one; None: never.
    """

    steps: int | None = None
    epochs: float = 3.0
    accumulate: int = 1
    clip: float | None = 1.0
    dtype: str = "float32"
    seed: int = 0
    recompute: bool = False
    compile: bool = False
    ema: float | None = None
    average: int | None = None
    on_nonfinite: str = "stop"
    evaluate_every: int | None = None
    save_every: int | None = None
    sample_every: int = 0
    keep: int = 2
    keep_best: bool = True
    patience: int | None = None
    batching: Batching = field(default_factory=Batching)
    optimiser: OptimiserSettings = field(default_factory=OptimiserSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)

    def __post_init__(self) -> None:
        least = {"steps": 1, "accumulate": 1, "keep": 1, "patience": 1, "average": 2}
        least |= {"evaluate_every": 0, "save_every": 0, "sample_every": 0}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise _error(name, f"must be at least {lowest}, it is {value}")
        if not 0 <= self.seed < 1 << 63:
            raise _error("seed", f"must lie in 0 … 2^63 - 1, it is {self.seed}")
        if self.steps is None and not 0 < self.epochs < float("inf"):
            raise _error("epochs", f"must be above 0, it is {self.epochs}")
        if self.clip is not None and not self.clip > 0:
            raise _error("clip", f"must be above 0 or absent, it is {self.clip}")
        if self.dtype not in FLOATS:
            raise _error("dtype", f"{self.dtype!r} is not one of {', '.join(FLOATS)}")
        if self.dtype == "float16":
            raise _error("dtype", "float16 needs a scaled loss, which this loop has not: bfloat16")
        if self.ema is not None and not 0 < self.ema < 1:
            raise _error("ema", f"must lie between 0 and 1, it is {self.ema}")
        if self.average is not None and self.ema is not None:
            raise _error("average", "goes not with ema: one average is enough")
        if self.average is not None and self.keep < self.average:
            raise _error("keep", f"must be at least average, {self.average}, it is {self.keep}")
        if self.on_nonfinite not in NON_FINITE:
            raise _error("on_nonfinite", f"{self.on_nonfinite!r} is not one of stop, skip")


def _error(name: str, what: str) -> ConfigError:
    return ConfigError(what, where=f"[training] {name}")


def check_same_settings(before: Any, now: Any, folder: Path) -> None:
    """Raise TrainingError where a run in this folder had other settings. Both: recipes as JSON."""
    changed = changed_settings(before, now)
    if changed:
        raise TrainingError(
            f"the run in this folder had other settings: {', '.join(changed[:5])}",
            where=folder,
            advice="take the former settings and data, or another output folder",
        )


def changed_settings(before: Any, now: Any) -> list[str]:
    """Dotted names of what differs between two recipes as JSON and is not harmless."""
    return [name for name in sorted(_differences(before, now)) if name not in HARMLESS]


def _differences(a: Any, b: Any, path: str = "") -> Iterator[str]:
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        free = path.startswith(FREE)
        for key in {*a, *b}:
            where = f"{path}.{key}" if path else str(key)
            if key in a and key in b:
                yield from _differences(a[key], b[key], where)
            elif free or a.get(key) or b.get(key):  # what a version does not know is off there
                yield where
    elif isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if list(a) != list(b):
            yield path
    elif a != b:
        yield path
