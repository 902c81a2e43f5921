"""chumoku ner"""

from __future__ import annotations

from chumoku.cli.common import (
    DEFAULT,
    Options,
    TextFile,
    in_batches,
    open_model,
    print_json,
    print_table,
    ranked_rows,
    read_texts,
)


def run(
    *text: str,
    file: TextFile = None,
    aggregation: str = "simple",
    stride: int = 64,
    options: Options = DEFAULT,
) -> None:
    """Find names in texts: persons, places, organisations, whatever the model knows.

    Args:
        text: texts; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
        aggregation: none (every token), simple, first, average or max.
        stride: tokens that the windows of a long text share.
    """
    from chumoku.tasks.tokens import ner

    items = read_texts(text, file)
    loaded = open_model(options, "ner", items[0])
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: ner(
            some,
            loaded,
            aggregation=aggregation,
            stride=stride,
            batch_size=options.batch_size,
        ),
    )
    key = "entity" if aggregation == "none" else "entity_group"
    for item, answer in pairs:
        if options.json:
            print_json({"text": item, "entities": answer})
        else:
            rows = ranked_rows(answer, key, "word", "score", "start", "end")
            title = item if len(items) > 1 else None
            print_table(("entity", "word", "score", "start", "end"), rows, title=title)
