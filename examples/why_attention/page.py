"""The plots and tables of docs/why-attention.md, from the JSON files that the measurements wrote.

    python examples/why_attention/page.py

Draws docs/figures/NAME.svg and writes the part of the page between `<!-- NAME -->` and
`<!-- end -->` anew. Same JSON, same matplotlib: same bytes.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from learn import FIGURES, ROOT

PAGE = ROOT / "docs" / "why-attention.md"
Found = Mapping[str, Any]
LABELS = {
    "lstm": "LSTM",
    "lstm_attention": "LSTM with attention",
    "transformer": "Transformer",
    "no_positions": "Transformer, encoder without positions",
    "pretrained": "pre-trained",
    "scratch": "from scratch",
}
COLOURS = {
    "lstm": "#d95f02",
    "lstm_attention": "#7570b3",
    "transformer": "#1b9e77",
    "no_positions": "#999999",
    "pretrained": "#1b9e77",
    "scratch": "#d95f02",
}


def read(folder: Path = FIGURES) -> dict[str, Found]:
    """All results: timing, copying, translation, shuffling, pretraining."""
    names = ("timing", "copying", "translation", "shuffling", "pretraining")
    return {
        name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in names
    }


# ---- tables ----


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def label(name: str, *, attentive: bool = False) -> str:
    return LABELS["lstm_attention"] if attentive and name == "lstm" else LABELS[name]


def percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def spread(values: Sequence[float]) -> str:
    """Mean, and the deviation between seeds where there are several."""
    mean = percent(statistics.mean(values))
    return mean if len(values) < 2 else f"{mean} ± {100 * statistics.stdev(values):.1f}"


def timing_table(found: Found) -> str:
    parts = []
    for case in found["settings"]["cases"]:
        name, sizes = case["name"], found["parameters"][case["name"]]
        lengths = found["settings"]["lengths"]
        head = [f"{name}: width {case['width']}", *(f"L = {length:,}" for length in lengths)]
        head = [cell.replace(",", " ") for cell in head]
        rows = [["sequences in a batch", *(str(r["rows"]) for r in epochs(found, name, 1))]]
        for threads in found["settings"]["threads"]:
            own = epochs(found, name, threads)
            for model in ("lstm", "transformer"):
                what = f"{label(model, attentive=True)}, {threads} thread{'s' * (threads > 1)}"
                rows.append([what, *(f"{r[model]:.3g} s" for r in own)])
        parts.append(table(head, rows))
        parts.append(f"Parameters: {sizes['lstm']:,} and {sizes['transformer']:,}.")
    widest = max(
        row[f"{name}_spread"] for row in found["epochs"] for name in ("lstm", "transformer")
    )
    parts.append(
        f"The middle half of a cell's updates spans {percent(widest)} of its median at most."
    )
    return "\n\n".join(parts)


def epochs(found: Found, case: str, threads: int) -> list[Found]:
    """One case's rows, by length."""
    return [r for r in found["epochs"] if r["case"] == case and r["threads"] == threads]


def copying_table(found: Found) -> str:
    judged = found["settings"]["judged"]
    rows = [
        [label(name), *(percent(value) for value in means(runs))]
        for name, runs in found["accuracy"].items()
    ]
    sizes = ", ".join(f"{label(n)} {size:,}" for n, size in found["parameters"].items())
    seconds = ", ".join(f"{label(n)} {s:g} s" for n, s in found["seconds"].items())
    runs = len(next(iter(found["accuracy"].values())))
    return (
        table(["steps back", *map(str, judged)], rows)
        + f"\n\nMeans of {runs} seeds, {found['settings']['steps']:,} updates each; chance is "
        f"{percent(1 / found['settings']['symbols'])}. Parameters: {sizes}. One thread's processor "
        f"time to train one: {seconds}."
    )


def means(runs: Sequence[Sequence[float]]) -> list[float]:
    return [statistics.mean(column) for column in zip(*runs, strict=True)]


def translation_table(found: Found) -> str:
    settings = found["settings"]
    rows = [
        [
            label(name, attentive=True),
            f"{one['parameters']:,}",
            f"{one['steps']:,}",
            f"{one['seconds']:.0f} s",
            f"{one['bleu']:.1f}",
        ]
        for name, one in found["models"].items()
        if name != "no_positions"
    ]
    return (
        table(["", "parameters", "updates", "processor time", "BLEU"], rows)
        + f"\n\n{settings['pairs']:,} pairs, {found['words']['source']:,} English and "
        f"{found['words']['target']:,} Japanese words, {settings['batch']} pairs a batch, 1 seed; "
        f"judged on {settings['tested']} test sentences; sacrebleu `{found['signature']}`. The "
        f"source itself, handed in as its translation, has {found['copying']:.1f}."
    )


def shuffling_table(exact: Found, found: Found) -> str:
    rows = []
    for name, one in found["models"].items():
        encoder = exact["encoder"][name]
        rows.append(
            [
                label(name, attentive=True),
                f"{encoder['difference']:.2g}",
                f"{one['bleu']:.1f}",
                f"{one['shuffled']:.1f}",
                percent(one["unchanged"]),
            ]
        )
    head = ["", "encoder's change", "BLEU", "BLEU, shuffled", "translations unchanged"]
    return table(head, rows)


def pretraining_table(found: Found) -> str:
    rows = [
        [
            f"{row['labels']:,}",
            f"{row['updates']}",
            f"{len(row['pretrained'])}",
            spread(row["pretrained"]),
            spread(row["scratch"]),
        ]
        for row in found["sizes"]
    ]
    settings = found["settings"]
    return (
        table(["labels", "updates", "seeds", "pre-trained", "from scratch"], rows)
        + f"\n\n{found['sizes'][0]['parameters']:,} parameters, {settings['batch']} sentences a "
        f"batch, judged on {settings['tested']} test sentences; always answering the more frequent "
        f"class gives {percent(found['majority'])}. Learning rates "
        f"{settings['pretrained_rate']:g} and {settings['scratch_rate']:g}."
    )


def machines(found: Mapping[str, Found]) -> str:
    """Where the claims were measured: one machine for all, or each by its name."""
    used = {
        name: f"{one['machine']['cpu']}, 2 cores, PyTorch {one['machine']['torch']}"
        for name, one in found.items()
    }
    places = list(dict.fromkeys(used.values()))
    if len(places) == 1:
        return f"Measured on {places[0]}."
    parts = [f"{place} ({', '.join(n for n in used if used[n] == place)})" for place in places]
    return f"Measured on {'; '.join(parts)}."


def tables(found: Mapping[str, Found]) -> dict[str, str]:
    """Block of the page -> its text."""
    return {
        "machine": machines(found),
        "timing": timing_table(found["timing"]),
        "copying": copying_table(found["copying"]),
        "translation": translation_table(found["translation"]),
        "shuffling": shuffling_table(found["shuffling"], found["translation"]),
        "pretraining": pretraining_table(found["pretraining"]),
    }


def filled(text: str, blocks: Mapping[str, str]) -> str:
    """The page with its blocks written anew."""
    for name, block in blocks.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text, count = pattern.subn(lambda m, block=block: m[1] + block + "\n" + m[2], text)  # type: ignore[misc]
        if count != 1:
            raise SystemExit(f"{PAGE} has {count} blocks <!-- {name} -->, not one")
    return text


# ---- plots ----


def draw_timing(axes: Any, found: Found) -> None:
    lengths = found["settings"]["lengths"]
    for axis, case in zip(axes, found["settings"]["cases"], strict=True):
        for threads, line in zip(found["settings"]["threads"], ("-", "--"), strict=False):
            own = epochs(found, case["name"], threads)
            for name in ("lstm", "transformer"):
                what = f"{label(name, attentive=True)}, {threads} thread{'s' * (threads > 1)}"
                values = [row[name] for row in own]
                axis.plot(lengths, values, line, marker="o", color=COLOURS[name], label=what)
        rows = "1 sequence" if case["tokens"] == 1 else f"{case['tokens']} tokens"
        axis.set_title(f"width {case['width']}, {rows} a batch")
        axis.set_xscale("log", base=2)
        axis.set_xticks(lengths, [str(length) for length in lengths])
        axis.set_xlabel("length of a sequence")
        axis.set_ylim(bottom=0)
    axes[0].set_ylabel("seconds an epoch")
    axes[0].legend(loc="upper left")


def draw_copying(axes: Any, found: Found) -> None:
    (axis,) = axes
    judged, settings = found["settings"]["judged"], found["settings"]
    for name, runs in found["accuracy"].items():
        axis.plot(judged, means(runs), marker="o", color=COLOURS[name], label=label(name))
        lowest, highest = ([pick(c) for c in zip(*runs, strict=True)] for pick in (min, max))
        axis.fill_between(judged, lowest, highest, color=COLOURS[name], alpha=0.2, lw=0)
    axis.axhline(1 / settings["symbols"], color="#666666", lw=0.8, ls=":")
    axis.annotate(
        "chance", (judged[0], 1 / settings["symbols"]), (0, 3), textcoords="offset points"
    )
    axis.axvspan(settings["longest"], judged[-1], color="#eeeeee", zorder=0)
    axis.text(
        (settings["longest"] + judged[-1]) / 2, 0.12, "longer than\nlearned from", ha="center"
    )
    axis.set_xlabel("steps back")
    axis.set_ylabel("symbols recalled")
    axis.set_ylim(0, 1.03)
    axis.legend(loc="lower left", bbox_to_anchor=(0.0, 0.12))


def draw_translation(axes: Any, found: Found) -> None:
    (axis,) = axes
    for name in ("lstm", "transformer"):
        curve = found["models"][name]["curve"]
        seconds, scores = [p["seconds"] for p in curve], [p["bleu"] for p in curve]
        axis.plot(
            seconds, scores, marker="o", color=COLOURS[name], label=label(name, attentive=True)
        )
    axis.set_xlabel("seconds of training, one thread")
    axis.set_ylabel("BLEU on the test set")
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.legend(loc="lower right")


def draw_shuffling(axes: Any, found: Found) -> None:
    (axis,) = axes
    names = list(found["models"])
    for n, name in enumerate(names):
        one = found["models"][name]
        for place, score, alpha in ((n - 0.2, one["bleu"], 1.0), (n + 0.2, one["shuffled"], 0.45)):
            axis.bar(place, score, 0.36, color=COLOURS[name], alpha=alpha)
            axis.text(place, score + 0.2, f"{score:.1f}", ha="center")
    captions = ["LSTM with\nattention", "Transformer", "Transformer, encoder\nwithout positions"]
    axis.set_xticks(range(len(names)), captions)
    axis.set_ylabel("BLEU on the test set")
    axis.set_title("left: the source as it is; right: its words shuffled")
    axis.set_ylim(0, 1.12 * max(one["bleu"] for one in found["models"].values()))


def draw_pretraining(axes: Any, found: Found) -> None:
    (axis,) = axes
    labels = [row["labels"] for row in found["sizes"]]
    for name in ("pretrained", "scratch"):
        axis.plot(
            labels,
            [statistics.mean(row[name]) for row in found["sizes"]],
            color=COLOURS[name],
            label=LABELS[name],
        )
        for row in found["sizes"]:
            axis.plot([row["labels"]] * len(row[name]), row[name], "o", color=COLOURS[name], ms=4)
    axis.axhline(found["majority"], color="#666666", lw=0.8, ls=":")
    axis.text(labels[-1], found["majority"] - 0.008, "more frequent class", ha="right", va="top")
    axis.set_xscale("log")
    axis.set_xticks(labels, [f"{n:,}" for n in labels])
    axis.minorticks_off()
    axis.set_ylim(0.4, 1.0)
    axis.set_xlabel("labels")
    axis.set_ylabel("accuracy on test sentences")
    axis.legend(loc="upper left")


PLOTS: dict[str, tuple[str, int, Callable[[Any, Found], None]]] = {
    "timing": ("timing", 2, draw_timing),
    "copying": ("copying", 1, draw_copying),
    "translation": ("translation", 1, draw_translation),
    "shuffling": ("translation", 1, draw_shuffling),
    "pretraining": ("pretraining", 1, draw_pretraining),
}
"""Figure -> the result it draws, panels, function."""


def draw(found: Mapping[str, Found], folder: Path, kind: str = "svg") -> list[Path]:
    """All figures as FOLDER/NAME.svg (or another kind)."""
    import matplotlib
    from matplotlib.figure import Figure

    style = {"svg.hashsalt": "chumoku", "svg.fonttype": "none", "font.size": 9}
    style |= {"legend.frameon": False, "axes.spines.top": False, "axes.spines.right": False}
    paths = []
    for name, (source, panels, function) in PLOTS.items():
        with matplotlib.rc_context(style):
            figure = Figure(figsize=(4.4 * panels + 0.6, 3.2), layout="constrained")
            function(figure.subplots(1, panels, squeeze=False)[0], found[source])
            path = folder / f"{name}.{kind}"
            metadata = {"Date": None, "Creator": None} if kind == "svg" else None
            figure.savefig(path, metadata=metadata, dpi=110)
            paths.append(path)
    return paths


if __name__ == "__main__":
    results = read()
    draw(results, FIGURES)
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), tables(results)), encoding="utf-8")
