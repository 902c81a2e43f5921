"""classify-image: labels for pictures (Dosovitskiy et al., 2010.11929)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.tasks.classification import Label


def classify_image(
    image: Any,
    model: common.ModelLike = None,
    *,
    top_k: int = 5,
    batch_size: int = 8,
) -> list[Label] | list[list[Label]]:
    """The `top_k` best labels of an image or of each of several.

    image: a path, a PIL image or an array [height, width, channels]; or a list of these.
    Raises InputError for a file that is no image.
    """
    single = not isinstance(image, list | tuple)
    items: Sequence[Any] = [image] if single else image
    if not items:
        raise InputError("there is no image")
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, it is {top_k}")
    loaded = common.ready(model, "classify-image")
    if loaded.head not in ("image-classification", "distilled-classification"):
        raise InputError(
            f"a model with head {loaded.head!r} does not label images",
            where=loaded.source.origin,
        )
    answers: list[list[Label]] = []
    for start in range(0, len(items), batch_size):
        answers += _batch(loaded, items[start : start + batch_size], top_k)
    return answers[0] if single else answers


def _batch(loaded: Loaded, items: Sequence[Any], top_k: int) -> list[list[Label]]:
    if loaded.images is None:
        raise InputError(
            "this model says nothing of how to prepare images",
            where=loaded.source.origin,
            advice="add preprocessor_config.json to its folder",
        )
    pixels_BCHW = loaded.images(items).to(loaded.device)
    weight = next(loaded.model.parameters())
    with torch.inference_mode():
        logits_BC = loaded.model(pixels_BCHW.to(weight.dtype)).float().cpu()
    scores, places = logits_BC.softmax(-1).topk(min(top_k, logits_BC.shape[1]))
    names = loaded.config.labels
    return [
        [{"label": names[i], "score": s} for s, i in zip(row, places_, strict=True)]
        for row, places_ in zip(scores.tolist(), places.tolist(), strict=True)
    ]
