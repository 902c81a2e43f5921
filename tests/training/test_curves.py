"""Pictures hold the right points and words, and an SVG is the same each time."""

from __future__ import annotations

import math
import re
import sys
import warnings
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from chumoku.errors import DependencyError, InputError
from chumoku.training import curves
from chumoku.training.curves import draw_curve, draw_curves, read_curve, smooth, thinned
from chumoku.training.progress import JsonLog, Step

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(autouse=True)
def fewer_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda handle: None)


def write_log(path: Path, steps: int = 20, *, shift: float = 0.0, evaluations: bool = True) -> Path:
    log = JsonLog(path)
    for n in range(1, steps + 1):
        loss = math.nan if n == 7 else 3.0 + shift - n / 10
        log.step(Step(n, steps, loss, 1e-3 * n, 1.0, 100, 0.1, n / 5))
        if evaluations and n % 5 == 0:
            log.evaluation(n, {"loss": 4.0 - n / 10, "accuracy": n / 40, "f1": n / 50})
    return path


def words(path: Path) -> list[str]:
    return [t.text or "" for t in ElementTree.parse(path).iter(f"{SVG}text")]


def test_a_log_becomes_points(tmp_path: Path) -> None:
    curve = read_curve(write_log(tmp_path / "log.jsonl"))
    assert curve.loss[0] == list(range(1, 21))
    assert curve.loss[1][:3] == [2.9, 2.8, 2.7]
    assert math.isnan(curve.loss[1][6])
    assert curve.rate[1][1] == 2e-3
    assert curve.evaluations["loss"] == ([5, 10, 15, 20], [3.5, 3.0, 2.5, 2.0])
    assert list(curve.evaluations) == ["loss", "accuracy", "f1"]


def test_smoothing_is_a_weighted_mean_of_the_past() -> None:
    values = np.random.default_rng(1).normal(size=40)
    keep = 1 - 1 / 6.0
    for n, mine in enumerate(smooth(values.tolist(), 6.0)):
        weights = keep ** np.arange(n, -1, -1)
        assert mine == pytest.approx(float(weights @ values[: n + 1] / weights.sum()), abs=1e-12)
    assert smooth([3.0, 1.0], 1.0) == [3.0, 1.0]
    assert smooth([math.inf, 2.0, math.nan, 2.0], 5.0)[1:] == [2.0, 2.0, 2.0]
    assert math.isnan(smooth([math.nan], 5.0)[0])


def test_thinning_keeps_peaks_order_and_ends_of_range() -> None:
    ys = np.random.default_rng(2).normal(size=10001).tolist()
    ys[1234], ys[8000] = 99.0, -99.0
    ys[5] = math.nan
    xs = list(range(len(ys)))
    few_x, few_y = thinned((xs, ys), 200)
    assert 150 < len(few_y) <= 202
    assert list(few_x) == sorted(set(few_x))
    assert [ys[x] for x in few_x] == list(few_y)
    assert {99.0, -99.0} <= set(few_y)
    assert thinned((xs[:200], ys[:200]), 200) == (xs[:200], ys[:200])


def test_a_run_as_svg_has_its_words_and_is_the_same_each_time(tmp_path: Path) -> None:
    log = write_log(tmp_path / "log.jsonl")
    one, two, other = tmp_path / "a.svg", tmp_path / "b.svg", tmp_path / "c.svg"
    draw_curve(log, one)
    draw_curve(log, two)
    assert one.read_bytes() == two.read_bytes()
    seen = words(one)
    for word in ("loss", "training", "evaluation", "accuracy", "learning rate", "step"):
        assert word in seen, word
    assert "dc:date" not in one.read_text()
    draw_curve(log, other, metric="f1")
    assert "f1" in words(other)
    assert "accuracy" not in words(other)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_the_drawn_evaluations_are_the_logged_ones(tmp_path: Path) -> None:
    """Their places in the SVG are a linear function of the values: 3.5, 3.0, 2.5, 2.0."""
    path = tmp_path / "a.svg"
    draw_curve(write_log(tmp_path / "log.jsonl"), path)
    places = [
        [float(n) for n in re.findall(r"[-\d.]+", e.get("d", ""))]
        for e in ElementTree.parse(path).iter(f"{SVG}path")
        if "stroke-dasharray: 5" in e.get("style", "")
    ]
    line = np.array(places[0]).reshape(-1, 2)
    assert line.shape == (4, 2)
    assert np.ptp(np.diff(line[:, 0])) < 1e-4
    assert np.ptp(np.diff(line[:, 1])) < 1e-4
    assert line[1, 1] > line[0, 1]  # down the page as the loss falls


def test_several_runs_and_no_evaluations(tmp_path: Path) -> None:
    logs = {
        f"seed {n}": write_log(tmp_path / str(n), shift=n / 4, evaluations=n < 2) for n in range(3)
    }
    draw_curves(logs, tmp_path / "a.svg", title="三つの種")
    seen = words(tmp_path / "a.svg")
    assert {"seed 0: training", "seed 1: evaluation", "seed 2: training", "三つの種"} <= set(seen)
    assert "seed 2: evaluation" not in seen
    draw_curve(tmp_path / "2", tmp_path / "b.svg")
    assert "accuracy" not in words(tmp_path / "b.svg")


def test_a_png_shows_lines(tmp_path: Path) -> None:
    draw_curve(write_log(tmp_path / "log.jsonl"), tmp_path / "a.png")
    pixels = np.asarray(Image.open(tmp_path / "a.png").convert("RGB")).reshape(-1, 3)
    blue = np.array([int(curves.COLOURS[0][n : n + 2], 16) for n in (1, 3, 5)])
    assert (pixels == blue).all(1).sum() > 1000
    assert (pixels == 255).all(1).mean() > 0.8


def test_boxes_are_not_drawn_in_silence(tmp_path: Path) -> None:
    """A letter that no font has: in a PNG it is said, in an SVG the reader's fonts show it."""
    name = "\ua5d0\U0001b170"  # Vai and Nüshu
    logs = {name: write_log(tmp_path / "log.jsonl")}
    with pytest.warns(UserWarning, match=r"a\.png: no font here has all letters"):
        draw_curves(logs, tmp_path / "a.png")
    draw_curves(logs, tmp_path / "a.svg")  # a warning would be an error
    assert any(name in word for word in words(tmp_path / "a.svg"))


def test_other_warnings_pass(tmp_path: Path) -> None:
    class Figure:
        def savefig(self, *_: object, **__: object) -> None:
            warnings.warn("something else", RuntimeWarning, stacklevel=1)

    with pytest.warns(RuntimeWarning, match="something else"):
        curves._rendered(Figure(), tmp_path / "a.png")


def test_bad_input_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = write_log(tmp_path / "log.jsonl", 3)
    with pytest.raises(InputError, match="no step"):
        draw_curve(tmp_path / "none", tmp_path / "a.svg")
    with pytest.raises(InputError, match=r"'\.pdf'"):
        draw_curve(log, tmp_path / "a.pdf")
    with pytest.raises(InputError, match="'blue'"):
        draw_curve(log, tmp_path / "a.svg", metric="blue")
    with pytest.raises(InputError, match="no log"):
        draw_curves({}, tmp_path / "a.svg")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(DependencyError, match=r'chumoku\[train\]"'):
        draw_curve(log, tmp_path / "a.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"]
