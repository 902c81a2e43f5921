"""chumoku classify-image"""

from __future__ import annotations

from chumoku.cli.common import (
    DEFAULT,
    Options,
    TextFile,
    in_batches,
    open_model,
    print_json,
    print_table,
    read_items,
)


def run(*image: str, file: TextFile = None, top_k: int = 5, options: Options = DEFAULT) -> None:
    """Label pictures.

    Args:
        image: image files; without any, a path a line of --file or of stdin.
        file: a path a line, or JSONL with "image"; - is stdin.
        top_k: how many labels to show for each.
    """
    from chumoku.tasks.images import classify_image

    images = [item["image"] for item in read_items(image, file, ("image",))]
    loaded = open_model(options, "classify-image")
    pairs = in_batches(
        images,
        options.batch_size,
        lambda some: classify_image(list(some), loaded, top_k=top_k, batch_size=options.batch_size),
    )
    for path, answer in pairs:
        if options.json:
            print_json({"image": path, "labels": answer})
        else:
            rows = [(label["label"], label["score"]) for label in answer]
            print_table(("label", "score"), rows, title=path if len(images) > 1 else None)
