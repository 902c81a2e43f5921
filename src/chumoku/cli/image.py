"""chumoku classify-image"""

from __future__ import annotations

from pathlib import Path

from chumoku.cli.common import (
    DEFAULT,
    Options,
    in_batches,
    open_model,
    print_json,
    print_table,
)
from chumoku.tasks.images import classify_image


def run(*image: Path, top_k: int = 5, options: Options = DEFAULT) -> None:
    """Label pictures.

    Parameters
    ----------
    image: image files.
    top_k: how many labels to show for each.
    """
    loaded = open_model(options, "classify-image")
    pairs = in_batches(
        image,
        options.batch_size,
        lambda some: classify_image(list(some), loaded, top_k=top_k, batch_size=options.batch_size),
    )
    for path, answer in pairs:
        if options.json:
            print_json({"image": str(path), "labels": answer})
        else:
            rows = [(label["label"], label["score"]) for label in answer]
            print_table(("label", "score"), rows, title=str(path) if len(image) > 1 else None)
