"""Pictures of runs: loss, evaluations and learning rate from `log.jsonl`, as SVG or PNG.

The same log gives the same bytes of an SVG. An SVG keeps its text as text, so any script is shown
with the reader's fonts; a PNG needs a font here, and it is said where a letter has none.
"""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chumoku.checkpoints.ranges import atomic_file
from chumoku.errors import DependencyError, InputError
from chumoku.training.progress import printable, read_log

FORMATS: Final = (".svg", ".png")
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which people with a colour-vision deficiency can tell apart."""
JAPANESE_FONTS: Final = (
    "Noto Sans CJK JP",
    "Noto Sans JP",
    "IPAexGothic",
    "IPAGothic",
    "TakaoGothic",
    "VL Gothic",
    "Hiragino Sans",
    "Yu Gothic",
    "Meiryo",
    "MS Gothic",
)
SPAN: Final = 50
"""A smoothed curve is a mean over about a fiftieth of the run."""
MOST_POINTS: Final = 2000
"""Of one line in a picture; more could not be seen, and would make an SVG large."""

Points = tuple[Sequence[float], Sequence[float]]
"""x and y."""


@dataclass(frozen=True)
class Curve:
    """What a log tells of a run. evaluations: by the metric's name; all are points of steps."""

    loss: Points
    rate: Points
    evaluations: Mapping[str, Points]


def read_curve(log: Path) -> Curve:
    """Raises InputError where the log has no step."""
    entries = read_log(log)
    steps = [e for e in entries if e.get("kind") == "step"]
    if not steps:
        raise InputError("the log tells of no step", where=log)
    at = [float(e["at"]) for e in steps]
    found: dict[str, tuple[list[float], list[float]]] = {}
    for entry in entries:
        if entry.get("kind") == "evaluation":
            for name, value in entry["metrics"].items():
                xs, ys = found.setdefault(name, ([], []))
                xs.append(float(entry["at"]))
                ys.append(float(value))
    return Curve(
        (at, [float(e["loss"]) for e in steps]),
        (at, [float(e["learning_rate"]) for e in steps]),
        found,
    )


def smooth(values: Sequence[float], span: float) -> list[float]:
    """Exponential mean over about `span` values, without a pull to the first (1412.6980, alg. 1).

    What is not finite is passed over: the value before it stays.
    """
    keep = 1 - 1 / max(span, 1.0)
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        if math.isfinite(value):
            mean = keep * mean + (1 - keep) * value
            weight = keep * weight + (1 - keep)
        out.append(mean / weight if weight else math.nan)
    return out


def thinned(points: Points, most: int = MOST_POINTS) -> Points:
    """At most about so many points: the lowest and the highest of each stretch, so peaks stay."""
    xs, ys = points
    size = 2 * math.ceil(len(ys) / most)
    if size <= 2:
        return points
    kept: list[int] = []
    for start in range(0, len(ys), size):
        stretch = [n for n in range(start, min(start + size, len(ys))) if math.isfinite(ys[n])]
        if stretch:
            ends = {min(stretch, key=ys.__getitem__), max(stretch, key=ys.__getitem__)}
            kept += sorted(ends)
    return [xs[n] for n in kept], [ys[n] for n in kept]


# ---- pictures of runs ----


def draw_curve(log: Path, out: Path, *, metric: str | None = None) -> None:
    """One run: see draw_curves."""
    draw_curves({"": log}, out, metric=metric)


def draw_curves(
    logs: Mapping[str, Path], out: Path, *, metric: str | None = None, title: str = ""
) -> None:
    """Several runs in one picture, by name: the training loss, raw and smoothed, the evaluations'
    loss, the learning rate below, and above it another metric where there is one.

    metric: which one; by default the first that is not a loss. out: .svg or .png. Raises InputError
    for an empty log, an unknown metric or ending; DependencyError without the training extra.
    """
    if not logs:
        raise InputError("there is no log to draw")
    curves = {name: read_curve(log) for name, log in logs.items()}
    metric = _metric(curves, metric)
    heights = [4.0, 1.6, 0.9] if metric else [4.0, 0.9]
    with canvas(out, (8.0, sum(heights) + 0.6)) as figure:
        grid = figure.add_gridspec(len(heights), 1, height_ratios=heights)
        top = figure.add_subplot(grid[0])
        axes = [top, *(figure.add_subplot(grid[n], sharex=top) for n in range(1, len(heights)))]
        for (name, curve), colour in zip(curves.items(), _colours(len(curves)), strict=True):
            _draw_losses(axes[0], name, curve, colour)
            if metric and metric in curve.evaluations:
                axes[1].plot(*curve.evaluations[metric], ".-", color=colour)
            axes[-1].plot(*thinned(curve.rate), color=colour, linewidth=1)
        axes[0].set_ylabel("loss")
        axes[0].set_ylim(*_limits(curves.values()))
        axes[0].legend(frameon=False, fontsize="small")
        if title:
            axes[0].set_title(_label(title))
        if metric:
            axes[1].set_ylabel(_label(metric))
        axes[-1].set_ylabel("learning rate", fontsize="small")
        axes[-1].tick_params(labelsize="small")
        axes[-1].set_xlabel("step")
        for axis in axes[:-1]:
            axis.tick_params(labelbottom=False)
        figure.align_ylabels(axes)


def _draw_losses(axis: Any, name: str, curve: Curve, colour: str) -> None:
    before = f"{_label(name)}: " if name else ""
    at, losses = curve.loss
    axis.plot(*thinned(curve.loss), color=colour, alpha=0.2, linewidth=0.8)
    smoothed = smooth(losses, len(losses) / SPAN)
    axis.plot(*thinned((at, smoothed)), color=colour, label=f"{before}training")
    if "loss" in curve.evaluations:
        points = curve.evaluations["loss"]
        axis.plot(*points, "o--", color=colour, markersize=4, label=f"{before}evaluation")


def _metric(curves: Mapping[str, Curve], wanted: str | None) -> str | None:
    names = list(dict.fromkeys(name for c in curves.values() for name in c.evaluations))
    if wanted is None:
        return next((name for name in names if not name.endswith("loss")), None)
    if wanted not in names:
        known = ", ".join(names) or "none"
        raise InputError(f"no evaluation has {wanted!r:.60}", advice=f"they have {known}")
    return wanted


def _limits(curves: Any) -> tuple[float, float]:
    """The losses shown: all smoothed and evaluated ones, with a margin; single peaks may leave."""
    seen: list[float] = []
    for curve in curves:
        losses = curve.loss[1]
        seen += smooth(losses, len(losses) / SPAN)
        seen += curve.evaluations.get("loss", ((), ()))[1]
    finite = [y for y in seen if math.isfinite(y)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    margin = 0.06 * (high - low) or 0.5
    return low - margin, high + margin


# ---- the canvas ----


def _label(text: str) -> str:
    """A text as it is shown: matplotlib leaves labels with a leading underscore out."""
    shown = printable(text)
    return f" {shown}" if shown.startswith("_") else shown


def _colours(count: int) -> list[str]:
    return [COLOURS[n % len(COLOURS)] for n in range(count)]


@contextmanager
def canvas(path: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure that becomes the file when the body ends. It never opens a window."""
    if path.suffix not in FORMATS:
        raise InputError(f"no picture is written as {path.suffix!r:.20}", where=path, advice=".svg")
    try:
        matplotlib = importlib.import_module("matplotlib")
        figures = importlib.import_module("matplotlib.figure")
        fonts = importlib.import_module("matplotlib.font_manager")
    except ImportError as error:
        raise DependencyError(
            "matplotlib is not installed", advice='Run: pip install "chumoku[train]"'
        ) from error
    there = set(fonts.fontManager.get_font_names())
    settings = {
        # Not the reader's own style: a picture looks the same everywhere.
        **matplotlib.rcParamsDefault,
        "font.family": ["DejaVu Sans", *(n for n in JAPANESE_FONTS if n in there), "sans-serif"],
        "font.sans-serif": ["DejaVu Sans"],
        "text.parse_math": False,  # a name may hold a dollar
        "svg.fonttype": "none",
        "svg.hashsalt": "chumoku",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.25,
        "axes.formatter.useoffset": False,
        "savefig.dpi": 150,
    }
    settings.pop("backend")
    with matplotlib.rc_context(settings):
        figure = figures.Figure(figsize=size, layout="constrained")
        yield figure
        picture = _rendered(figure, path)
    with atomic_file(path) as stream:
        stream.write(picture)


def _rendered(figure: Any, path: Path) -> bytes:
    """The bytes of a picture. Warns once where a PNG lacks a font."""
    buffer, kind = io.BytesIO(), path.suffix[1:]
    metadata = {"Date": None, "Creator": "chumoku"} if kind == "svg" else {"Software": "chumoku"}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        figure.savefig(buffer, format=kind, metadata=metadata)
    missing = [w for w in caught if str(w.message).startswith("Glyph ")]
    for other in caught:
        if other not in missing:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    if missing and kind == "png":
        warnings.warn(
            f"{path.name}: no font here has all letters of its text, which shows boxes; write an "
            f".svg, or install a font such as {JAPANESE_FONTS[0]}",
            stacklevel=2,
        )
    return buffer.getvalue()
