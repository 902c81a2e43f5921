"""README.md of a trained model: from what it was made, how, and what was measured."""

from __future__ import annotations

from collections.abc import Mapping

import chumoku
from chumoku.training.recipe import Recipe


def card(
    recipe: Recipe, steps: int, evaluation: Mapping[str, float], test: Mapping[str, float]
) -> str:
    """Markdown. The base model's own card does not speak for this one."""
    about, model, data = recipe.about, recipe.model, recipe.data
    origin = model.source or model.student_of
    lines = [f"# {about.title or recipe.task['kind']}", ""]
    if about.description:
        lines += [about.description, ""]
    lines += [
        f"- Task: {recipe.task['kind']}",
        f"- Weights: {f'from {origin}, whose licence holds' if origin else 'from nothing'}",
        f"- Learned from: {', '.join([data.train] if isinstance(data.train, str) else data.train)}",
    ]
    if about.licence:
        lines.append(f"- Data licence: {about.licence}")
    lines += [
        f"- {steps} steps, seed {recipe.training.seed}, by chumoku {chumoku.__version__}; all "
        "settings are in [run/recipe.toml](run/recipe.toml)",
        "",
    ]
    if recipe.adapter.kind != "none":
        lines[-1:] = ["- The adapter alone, in PEFT's files, lies in [adapter](adapter)", ""]
    names = list({**evaluation, **test})
    if names:
        lines += ["| | evaluation | test |", "|---|---|---|"]
        lines += [f"| {n} | {_shown(evaluation, n)} | {_shown(test, n)} |" for n in names]
    return "\n".join(lines).strip() + "\n"


def _shown(metrics: Mapping[str, float], name: str) -> str:
    return f"{metrics[name]:.4f}" if name in metrics else ""
