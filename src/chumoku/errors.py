"""Every error that a user can meet: what went wrong, where, and how to mend it.

The command line prints one of these without a traceback and exits with code 2.
"""

from __future__ import annotations


class ChumokuError(Exception):
    """Base of all errors raised on purpose.

    what:   the fault in one sentence.
    where:  file, key, line or byte offset; empty when there is no such place.
    advice: what the reader can do next; empty when `what` already says it.
    """

    def __init__(self, what: str, *, where: object = "", advice: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = str(where)
        self.advice = advice

    def __str__(self) -> str:
        place = f" [{self.where}]" if self.where else ""
        advice = f"\n  {self.advice}" if self.advice else ""
        return f"{self.what}{place}{advice}"


class CheckpointError(ChumokuError):
    """A model file is missing, damaged, lies about itself, or does not fit the architecture."""


class ConfigError(ChumokuError):
    """A configuration has an unknown key, a forbidden value, or contradicts itself."""


class SourceError(ChumokuError):
    """A model or data set could not be found or fetched: unknown, no network, gated, bad hash."""


class UnreachableError(SourceError):
    """A model is not on this machine, and there is no network, or none allowed, to fetch it by."""


class TokenizerError(ChumokuError):
    """Tokenizer files are missing or damaged, or do not fit the model."""


class InputError(ChumokuError):
    """What the user passed in cannot be processed: empty, too long, no image, a wrong option."""


class DeviceError(ChumokuError):
    """An unknown or unavailable device was asked for."""


class ResourceError(ChumokuError):
    """Too little memory or disk for what was asked."""


class TrainingError(ChumokuError):
    """A run cannot go on: a loss that is not a number, a peer that died, settings that changed."""


class DependencyError(ChumokuError):
    """An optional package is needed; the message names the line that installs it."""
