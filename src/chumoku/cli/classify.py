"""chumoku classify, chumoku zero-shot"""

from __future__ import annotations

from chumoku.cli.common import (
    DEFAULT,
    Flag,
    Many,
    Options,
    TextFile,
    in_batches,
    open_model,
    print_json,
    print_table,
    ranked_rows,
    read_items,
    read_texts,
)
from chumoku.errors import InputError


def run(
    *text: str,
    pair: str | None = None,
    file: TextFile = None,
    top_k: int | None = None,
    function: str = "auto",
    truncate: Flag = False,
    options: Options = DEFAULT,
) -> None:
    """Label texts, or pairs of texts.

    Args:
        text: texts; without any, lines of --file or of stdin.
        pair: a second text, for models of pairs (entailment, paraphrase).
        file: a text a line, or JSONL with "text" (and "pair"); - is stdin.
        top_k: how many labels to show; all by default.
        function: softmax, sigmoid, none, or auto (what the model's config says).
        truncate: cut texts that are too long.
    """
    from chumoku.tasks import classification

    items = read_items(text, file, optional=("pair",))
    loaded = open_model(options, "classify", items[0]["text"])
    if pair is not None:
        items = [item | {"pair": pair} for item in items]
    if len({"pair" in item for item in items}) > 1:
        raise InputError('some items have a "pair", others have none')
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: classification.classify(
            [item["text"] for item in some],
            loaded,
            pair=[item["pair"] for item in some] if "pair" in some[0] else None,
            top_k=top_k,
            function=function,
            truncate=truncate,
            batch_size=options.batch_size,
        ),
    )
    for item, answer in pairs:
        if options.json:
            print_json(item | {"labels": answer})
        else:
            title = item["text"] if len(items) > 1 else None
            print_table(("label", "score"), ranked_rows(answer, "label", "score"), title=title)


def zero_shot(
    *text: str,
    label: Many = None,
    template: str = "This example is {}.",
    multi_label: Flag = False,
    file: TextFile = None,
    options: Options = DEFAULT,
) -> None:
    """Choose among labels that you name, by what the text entails.

    Args:
        text: texts; without any, lines of --file or of stdin.
        label: a label (repeat it for each).
        template: the sentence in which {} stands for the label.
        multi_label: judge each label on its own.
        file: a text a line, or JSONL with "text"; - is stdin.
    """
    if not label:
        raise InputError("name the labels", advice='--label sport --label politics "…"')
    from chumoku.tasks import classification

    items = read_texts(text, file)
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
