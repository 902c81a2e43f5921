"""SIGTERM and SIGINT end a run between two steps, after it has saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from chumoku.errors import TrainingError

EXIT_CODES: Final = {signal.SIGINT: 130, signal.SIGTERM: 143}


class StoppedError(TrainingError):
    """The run was asked to stop by a signal; it has saved. code: what the process exits with."""

    def __init__(self, number: int | None, step: int, folder: Path) -> None:
        asked = signal.Signals(number or signal.SIGTERM)  # another process may have had the signal
        super().__init__(
            f"stopped by {asked.name} after step {step}; everything is saved",
            where=folder,
            advice="the same command goes on from there",
        )
        self.code = EXIT_CODES[asked]


class BrokenOffError(Exception):
    """Raised inside evaluations and samples, which may be broken off: they change nothing."""


class Signals:
    """SIGTERM and SIGINT are noted and obeyed between steps; a second SIGINT at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._may_interrupt = False

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield  # only the main thread may set handlers
            return
        before = {number: signal.signal(number, self._note) for number in EXIT_CODES}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def interrupting(self, allowed: bool) -> Iterator[None]:
        """What is done inside may be broken off by a signal."""
        if allowed and self.number is not None:
            raise BrokenOffError
        self._may_interrupt = allowed
        try:
            yield
        finally:
            self._may_interrupt = False

    def _note(self, number: int, frame: object) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        if self._may_interrupt:
            self._may_interrupt = False
            raise BrokenOffError
