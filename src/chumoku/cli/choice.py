"""chumoku next-sentence, chumoku multiple-choice"""

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
    read_choices,
    read_items,
)
from chumoku.errors import InputError


def next_sentence(
    first: str | None = None,
    second: str | None = None,
    *,
    file: TextFile = None,
    truncate: Flag = False,
    options: Options = DEFAULT,
) -> None:
    """Does the second sentence follow the first?

    Args:
        first: a sentence; without it, lines of --file or of stdin.
        second: the one that may follow it.
        file: JSONL with "first" and "second"; - is stdin.
        truncate: cut texts that are too long.
    """
    from chumoku.tasks import choice

    if first is None:
        items = read_items((), file, ("first", "second"))
    elif second is None or file is not None:
        raise InputError("next-sentence takes two sentences, or --file")
    else:
        items = [{"first": first, "second": second}]
    loaded = open_model(options, "next-sentence", items[0]["first"])
    for item in items:
        answer = choice.next_sentence(item["first"], item["second"], loaded, truncate=truncate)
        if options.json:
            print_json(answer)
        else:
            rows = [("is next", answer["is_next"]), ("not next", answer["not_next"])]
            title = item["second"] if len(items) > 1 else None
            print_table(("second sentence", "score"), rows, title=title)


def multiple_choice(
    prompt: str | None = None,
    *choices: str,
    file: TextFile = None,
    method: str = "auto",
    normalize: bool = True,
    truncate: Flag = False,
    options: Options = DEFAULT,
) -> None:
    """Which of several choices fits the prompt?

    Args:
        prompt: the question, or a sentence with [MASK] where the choice goes.
        choices: two or more.
        file: JSONL with "prompt" and "choices"; - is stdin.
        method: head (a multiple-choice model), masked (a masked language model), or auto.
        normalize: for masked: mean instead of sum over a choice's pieces.
        truncate: cut texts that are too long.
    """
    from chumoku.tasks import choice

    if prompt is not None and file is not None:
        raise InputError("give a prompt or --file, not both")
    items = read_choices(file) if prompt is None else [(prompt, list(choices))]
    verb = choice.verb_of(items[0][0], method, options.lang, options.model is not None)
    loaded = open_model(options, verb, items[0][0], published=_published(method, options))
    for question, some in items:
        answers = choice.multiple_choice(
            question,
            some,
            loaded,
            method=method,
            normalize=normalize,
            truncate=truncate,
            batch_size=options.batch_size,
        )
        if options.json and file is None and prompt is not None:
            for answer in answers:
                print_json(answer)
        elif options.json:
            print_json({"prompt": question, "choices": answers})
        else:
            title = question if len(items) > 1 else None
            print_table(("choice", "score"), ranked_rows(answers, "choice", "score"), title=title)


def _published(method: str, options: Options) -> bool:
    """With a model of the user's own, "auto" goes by the head that it was published for."""
    return options.model is not None and method == "auto"
