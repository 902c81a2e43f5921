"""Stands in for chumoku.training.metrics, whose libraries are an extra: plain and independent."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from chumoku import training


def f1(predicted: set[Any], gold: set[Any]) -> float:
    return 2 * len(predicted & gold) / max(len(predicted) + len(gold), 1)


def classification(
    predicted: Sequence[int], gold: Sequence[int], scores: Any, labels: Sequence[str]
) -> dict[str, float]:
    assert scores.shape == (len(gold), len(labels))
    assert float(abs(scores.sum(-1) - 1).max()) < 1e-5
    each = []
    for c in sorted({*predicted, *gold}):
        own = [{n for n, y in enumerate(ys) if y == c} for ys in (predicted, gold)]
        each.append(f1(*own))
    right = sum(p == y for p, y in zip(predicted, gold, strict=True))
    return {"accuracy": right / len(gold), "macro_f1": sum(each) / len(each)}


def multilabel(
    predicted: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], labels: Sequence[str]
) -> dict[str, float]:
    each = [
        f1(*({n for n, row in enumerate(rows) if row[c]} for rows in (predicted, gold)))
        for c in range(len(labels))
    ]
    return {"macro_f1": sum(each) / len(each)}


def regression(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    ranks = [np.argsort(np.argsort(values)) for values in (predicted, gold)]
    return {
        "pearson": float(np.corrcoef(predicted, gold)[0, 1]),
        "spearman": float(np.corrcoef(*ranks)[0, 1]),
        "mse": float(np.mean((np.array(predicted) - np.array(gold)) ** 2)),
    }


def spans(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """(type, start, end) of BIO tags; an I- without its B- begins an entity too."""
    found, start, kind = set(), 0, ""
    for place, tag in enumerate([*tags, "O"]):
        goes_on = tag.startswith("I-") and tag[2:] == kind
        if kind and not goes_on:
            found.add((kind, start, place))
            kind = ""
        if tag != "O" and not goes_on:
            start, kind = place, tag[2:]
    return found


def entities(predicted: Sequence[list[str]], gold: Sequence[list[str]]) -> dict[str, float]:
    pairs = [(spans(p), spans(y)) for p, y in zip(predicted, gold, strict=True)]
    right = sum(len(p & y) for p, y in pairs)
    made, real = sum(len(p) for p, _ in pairs), sum(len(y) for _, y in pairs)
    return {
        "precision": right / max(made, 1),
        "recall": right / max(real, 1),
        "f1": 2 * right / max(made + real, 1),
    }


def fake_metrics(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Put the functions above in the place of chumoku.training.metrics."""
    module = ModuleType("chumoku.training.metrics")
    for function in (classification, multilabel, regression, entities):
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(training, "metrics", module, raising=False)
    return module
