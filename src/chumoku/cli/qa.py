"""chumoku qa"""

from __future__ import annotations

from pathlib import Path

from chumoku.cli.common import (
    DEFAULT,
    Options,
    open_model,
    print_json,
    print_table,
    ranked_rows,
    read_text,
)
from chumoku.tasks.questions import qa


def run(
    question: str,
    context: str | None = None,
    *,
    file: Path | None = None,
    top_k: int = 3,
    max_length: int = 384,
    stride: int = 128,
    impossible: bool = False,
    options: Options = DEFAULT,
) -> None:
    """Find the answer to a question in a context.

    Parameters
    ----------
    question: what is asked.
    context: the text to look in; without it, --file or stdin.
    file: the context as a file; - is stdin.
    top_k: how many answers to show.
    max_length: tokens read at once, question included.
    stride: tokens that the windows of a long context share.
    impossible: allow "no answer".
    """
    text = read_text(context, file)
    loaded = open_model(options, "qa", text)
    answers = qa(
        question,
        text,
        loaded,
        top_k=top_k,
        max_length=max_length,
        stride=stride,
        impossible=impossible,
        batch_size=options.batch_size,
    )
    if options.json:
        for answer in answers:
            print_json(answer)
    else:
        rows = ranked_rows(answers, "answer", "score", "start", "end")
        print_table(("answer", "score", "start", "end"), rows)
