"""chumoku fill-mask"""

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
    read_texts,
)


def run(
    *text: str,
    file: TextFile = None,
    top_k: int = 5,
    target: Many = None,
    truncate: Flag = False,
    options: Options = DEFAULT,
) -> None:
    """Fill the gaps ([MASK] or <mask>) in texts.

    Args:
        text: texts with a mask; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
        top_k: how many tokens to show for each gap.
        target: choose only among these tokens (may be repeated).
        truncate: cut texts that are too long.
    """
    from chumoku.tasks.masks import fill_mask

    items = read_texts(text, file)
    loaded = open_model(options, "fill-mask", items[0])
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: fill_mask(
            some,
            loaded,
            top_k=top_k,
            targets=target,
            truncate=truncate,
            batch_size=options.batch_size,
        ),
    )
    for item, answer in pairs:
        if options.json:
            print_json({"text": item, "fills": answer})
            continue
        gaps = answer if answer and isinstance(answer[0], list) else [answer]
        for gap in gaps:
            print_table(
                ("score", "token", "text"), ranked_rows(gap, "score", "token_str", "sequence")
            )
