"""The answers of two pipelines, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest


def same(ours: Any, expected: Any, limit: float = 1e-5, at: str = "") -> None:
    """Same lists, same keys in the same order, same values; floats to `limit`."""
    if isinstance(expected, Mapping):
        assert list(ours) == list(expected), at
        for key, value in expected.items():
            same(ours[key], value, limit, f"{at}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected), at
        for n, (a, b) in enumerate(zip(ours, expected, strict=True)):
            same(a, b, limit, f"{at}[{n}]")
    elif isinstance(expected, str | int) or expected is None:
        assert ours == expected, f"{at}: {ours!r}, expected {expected!r}"
    else:
        assert isinstance(ours, float), "a float of Python's own, so that it can be written as JSON"
        assert ours == pytest.approx(float(expected), abs=limit), at
