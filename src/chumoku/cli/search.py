"""chumoku search"""

from __future__ import annotations

from pathlib import Path

from chumoku.cli.common import (
    DEFAULT,
    Options,
    open_model,
    print_json,
    print_table,
    ranked_rows,
)
from chumoku.tasks.search import search


def run(
    query: str,
    corpus: Path,
    *,
    top_k: int = 5,
    column: str = "text",
    index: Path | None = None,
    options: Options = DEFAULT,
) -> None:
    """Find the texts of a file that are nearest in meaning to a query.

    Parameters
    ----------
    query: what is looked for.
    corpus: a text a line, or JSONL.
    top_k: how many to show.
    column: field of the JSONL that holds the text.
    index: folder that keeps the vectors for the next time.
    """
    loaded = open_model(options, "search", query)
    answers = search(
        query,
        corpus,
        loaded,
        top_k=top_k,
        column=column,
        index=index,
        batch_size=options.batch_size,
    )
    if options.json:
        for answer in answers:
            print_json(answer)
    else:
        print_table(("score", "text"), ranked_rows(answers, "score", "text"))
