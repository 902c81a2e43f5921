"""chumoku classify, chumoku zero-shot"""

from __future__ import annotations

from pathlib import Path

from chumoku.cli.common import (
    DEFAULT,
    Options,
    in_batches,
    open_model,
    print_json,
    print_table,
    read_items,
)
from chumoku.errors import InputError
from chumoku.tasks import classification


def run(
    *text: str,
    pair: str | None = None,
    file: Path | None = None,
    top_k: int | None = None,
    function: str = "auto",
    truncate: bool = False,
    options: Options = DEFAULT,
) -> None:
    """Label texts, or pairs of texts.

    Parameters
    ----------
    text: texts; without any, lines of --file or of stdin.
    pair: a second text, for models of pairs (entailment, paraphrase).
    file: a text a line, or JSONL with "text" (and "pair"); - is stdin.
    top_k: how many labels to show; all by default.
    function: softmax, sigmoid, none, or auto (what the model's config says).
    truncate: cut texts that are too long.
    """
    items = [item["text"] for item in read_items(text, file)]
    loaded = open_model(options, "classify", items[0])
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: classification.classify(
            some,
            loaded,
            pair=None if pair is None else [pair] * len(some),
            top_k=top_k,
            function=function,
            truncate=truncate,
            batch_size=options.batch_size,
        ),
    )
    for item, answer in pairs:
        if options.json:
            print_json({"text": item, "labels": answer})
        else:
            rows = [(label["label"], label["score"]) for label in answer]
            print_table(("label", "score"), rows, title=item if len(items) > 1 else None)


def zero_shot(
    *text: str,
    label: list[str] | None = None,
    template: str = "This example is {}.",
    multi_label: bool = False,
    file: Path | None = None,
    options: Options = DEFAULT,
) -> None:
    """Choose among labels that you name, by what the text entails.

    Parameters
    ----------
    text: texts; without any, lines of --file or of stdin.
    label: a label (repeat it for each).
    template: the sentence in which {} stands for the label.
    multi_label: judge each label on its own.
    file: a text a line, or JSONL with "text"; - is stdin.
    """
    if not label:
        raise InputError("name the labels", advice='--label sport --label politics "…"')
    items = [item["text"] for item in read_items(text, file)]
    loaded = open_model(options, "zero-shot", items[0])
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: classification.zero_shot(
            some,
            label,
            loaded,
            template=template,
            multi_label=multi_label,
            batch_size=options.batch_size,
        ),
    )
    for item, answer in pairs:
        if options.json:
            print_json(answer)
        else:
            rows = list(zip(answer["labels"], answer["scores"], strict=True))
            print_table(("label", "score"), rows, title=item if len(items) > 1 else None)
