"""chumoku search"""

from __future__ import annotations

import tempfile
from pathlib import Path

from chumoku.cli.common import (
    DEFAULT,
    Options,
    TextFile,
    open_model,
    print_json,
    print_table,
    progress_bar,
    ranked_rows,
    read_texts,
)
from chumoku.errors import InputError


def run(
    query: str,
    corpus: Path | None = None,
    *,
    file: TextFile = None,
    top_k: int = 5,
    column: str = "text",
    index: Path | None = None,
    options: Options = DEFAULT,
) -> None:
    """Find the texts of a file that are nearest in meaning to a query.

    Args:
        query: what is looked for; left out where queries come from --file or stdin.
        corpus: a text a line, or JSONL.
        file: queries, one a line, or JSONL with "text"; - is stdin.
        top_k: how many to show.
        column: field of the corpus' JSONL that holds the text.
        index: folder that keeps the vectors for the next time.
    """
    from chumoku.tasks.search import search

    if corpus is not None and file is not None:
        raise InputError("give a query or --file, not both")
    queries = [query] if corpus is not None else read_texts((), file)
    place = Path(query) if corpus is None else corpus
    loaded = open_model(options, "search", queries[0])
    with tempfile.TemporaryDirectory() as once:
        folder = index or (Path(once) / "index" if len(queries) > 1 else None)
        with progress_bar() as report:
            found = [
                search(
                    text,
                    place,
                    loaded,
                    top_k=top_k,
                    column=column,
                    index=folder,
                    batch_size=options.batch_size,
                    progress=report,
                )
                for text in queries
            ]
    for text, answers in zip(queries, found, strict=True):
        if options.json and corpus is None:
            print_json({"query": text, "results": answers})
        elif options.json:
            for answer in answers:
                print_json(answer)
        else:
            title = text if len(queries) > 1 else None
            print_table(("score", "text"), ranked_rows(answers, "score", "text"), title=title)
