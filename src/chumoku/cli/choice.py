"""chumoku next-sentence, chumoku multiple-choice"""

from __future__ import annotations

from chumoku.cli.common import (
    DEFAULT,
    Options,
    open_model,
    print_json,
    print_table,
    ranked_rows,
)
from chumoku.tasks import choice


def next_sentence(
    first: str, second: str, *, truncate: bool = False, options: Options = DEFAULT
) -> None:
    """Does the second sentence follow the first?

    Parameters
    ----------
    first: a sentence.
    second: the one that may follow it.
    truncate: cut texts that are too long.
    """
    loaded = open_model(options, "next-sentence", first)
    answer = choice.next_sentence(first, second, loaded, truncate=truncate)
    if options.json:
        print_json(answer)
    else:
        rows = [("is next", answer["is_next"]), ("not next", answer["not_next"])]
        print_table(("second sentence", "score"), rows)


def multiple_choice(
    prompt: str,
    *choices: str,
    method: str = "auto",
    normalize: bool = True,
    options: Options = DEFAULT,
) -> None:
    """Which of several choices fits the prompt?

    Parameters
    ----------
    prompt: the question, or a sentence with [MASK] where the choice goes.
    choices: two or more.
    method: head (a multiple-choice model), masked (a masked language model), or auto.
    normalize: for masked: mean instead of sum over a choice's pieces.
    """
    verb = "fill-mask" if options.model is None or method == "masked" else "multiple-choice"
    if method == "auto" and "mask" in prompt.lower():
        verb = "fill-mask"
    loaded = open_model(options, verb, prompt)
    answers = choice.multiple_choice(
        prompt,
        choices,
        loaded,
        method="head" if verb == "multiple-choice" else "masked",
        normalize=normalize,
        batch_size=options.batch_size,
    )
    if options.json:
        for answer in answers:
            print_json(answer)
    else:
        print_table(("choice", "score"), ranked_rows(answers, "choice", "score"))
