"""chumoku perplexity"""

from __future__ import annotations

from chumoku.cli.common import (
    DEFAULT,
    Flag,
    Options,
    TextFile,
    in_batches,
    open_model,
    print_json,
    print_table,
    read_text,
    read_texts,
)


def run(
    *text: str,
    file: TextFile = None,
    lines: Flag = False,
    window: int | None = None,
    stride: int | None = None,
    options: Options = DEFAULT,
) -> None:
    """How surprising a text is to a language model.

    Args:
        text: texts; without any, the whole of --file or of stdin.
        file: a text file; - is stdin.
        lines: --file or stdin holds a text a line, or JSONL with "text".
        window: tokens read at once.
        stride: tokens that each further window adds.
    """
    from chumoku.tasks.perplexity import perplexity

    items = read_texts(text, file) if text or lines else [read_text(None, file)]
    loaded = open_model(options, "perplexity", items[0])
    rows = []
    for item, answer in in_batches(
        items,
        1,
        lambda some: [
            perplexity(one, loaded, window=window, stride=stride, batch_size=options.batch_size)
            for one in some
        ],
    ):
        if options.json:
            print_json(answer)
        values = (answer["perplexity"], answer["nll"], answer["tokens"], answer["kind"])
        rows.append((*values, item) if len(items) > 1 else values)
    if not options.json:
        names = ("perplexity", "nats a token", "tokens", "kind", "text")
        print_table(names[: len(rows[0])], rows)
