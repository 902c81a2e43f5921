"""chumoku qa"""

from __future__ import annotations

from chumoku.cli.common import (
    DEFAULT,
    Flag,
    Options,
    TextFile,
    open_model,
    print_json,
    print_table,
    ranked_rows,
    read_items,
    read_text,
)


def run(
    question: str | None = None,
    context: str | None = None,
    *,
    file: TextFile = None,
    top_k: int = 3,
    max_length: int = 384,
    stride: int | None = None,
    impossible: Flag = False,
    options: Options = DEFAULT,
) -> None:
    """Find the answer to a question in a context.

    Args:
        question: what is asked; without it, lines of --file or of stdin.
        context: the text to look in; without it, the whole of --file or of stdin.
        file: the context; where no question is given, JSONL with "question" and "context".
        top_k: how many answers to show.
        max_length: tokens read at once, question included.
        stride: tokens that the windows of a long context share; default: half, at most 128.
        impossible: allow "no answer".
    """
    from chumoku.tasks.questions import qa

    if question is None:
        items = read_items((), file, ("question", "context"))
    else:
        items = [{"question": question, "context": read_text(context, file)}]
    loaded = open_model(options, "qa", items[0]["context"])
    for item in items:
        answers = qa(
            item["question"],
            item["context"],
            loaded,
            top_k=top_k,
            max_length=max_length,
            stride=stride,
            impossible=impossible,
            batch_size=options.batch_size,
        )
        if options.json and question is None:
            print_json({"question": item["question"], "answers": answers})
        elif options.json:
            for answer in answers:
                print_json(answer)
        else:
            rows = ranked_rows(answers, "answer", "score", "start", "end")
            title = item["question"] if len(items) > 1 else None
            print_table(("answer", "score", "start", "end"), rows, title=title)
