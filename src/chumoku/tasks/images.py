"""classify-image: labels for pictures (Dosovitskiy et al., 2010.11929)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.tasks.classification import Label, class_scores, ranked


def classify_image(
    image: Any,
    model: common.ModelLike = None,
    *,
    top_k: int | None = 5,
    function: str = "auto",
    batch_size: int = 8,
) -> list[Label] | list[list[Label]]:
    """The `top_k` best labels (None: all) of an image or of each of several.

    image: a path, a PIL image or an array [height, width, channels]; or a list of these.
    function: "auto" is softmax; sigmoid for one class or a multi-label model; none for regression.
    Raises InputError for a file that is no image.
    """
    single = not isinstance(image, list | tuple)
    items: Sequence[Any] = [image] if single else image
    if not items:
        raise InputError("there is no image")
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, it is {batch_size}")
    loaded = common.ready(model, "classify-image")
    if loaded.head not in ("image-classification", "distilled-classification"):
        raise InputError(
            f"a model with head {loaded.head!r} does not label images",
            where=loaded.source.origin,
        )
    answers: list[list[Label]] = []
    for start in range(0, len(items), batch_size):
        logits_BC = _logits(loaded, items[start : start + batch_size])
        scores_BC = class_scores(logits_BC, loaded, function)
        answers += [ranked(loaded.config.labels, row, top_k) for row in scores_BC]
    return answers[0] if single else answers


def _logits(loaded: Loaded, items: Sequence[Any]) -> Tensor:
    """[B, C], float32, on the CPU."""
    if loaded.images is None:
        raise InputError(
            "this model says nothing of how to prepare images",
            where=loaded.source.origin,
            advice="add preprocessor_config.json to its folder",
        )
    pixels_BCHW = loaded.images(items).to(loaded.device)
    weight = next(loaded.model.parameters())
    with torch.inference_mode():
        logits_BC: Tensor = loaded.model(pixels_BCHW.to(weight.dtype)).float().cpu()
    return logits_BC
