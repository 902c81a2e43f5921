"""What a run shows and writes while it goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Step:
    """One update. loss, parts: a unit; tokens, seconds: of this step; epoch: how many are over."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    seconds: float
    epoch: float
    parts: Mapping[str, float] = field(default_factory=dict)


class Report(Protocol):
    """What the loop tells of itself."""

    def resumed(self, step: int) -> None:
        """The run goes on after this step; 0: it begins. What was told of later steps is void."""
        ...

    def step(self, step: Step) -> None: ...
    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None: ...
    def sample(self, step: int, text: str) -> None: ...
    def note(self, text: str) -> None: ...
    def close(self) -> None: ...
