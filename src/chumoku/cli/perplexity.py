"""chumoku perplexity"""

from __future__ import annotations

from pathlib import Path

from chumoku.cli.common import DEFAULT, Options, open_model, print_json, print_table, read_text
from chumoku.tasks.perplexity import perplexity


def run(
    text: str | None = None,
    *,
    file: Path | None = None,
    window: int | None = None,
    stride: int | None = None,
    options: Options = DEFAULT,
) -> None:
    """How surprising a text is to a language model.

    Parameters
    ----------
    text: the text; without it, the whole of --file or of stdin.
    file: a text file; - is stdin.
    window: tokens read at once.
    stride: tokens that each further window adds.
    """
    item = read_text(text, file)
    loaded = open_model(options, "perplexity", item)
    answer = perplexity(item, loaded, window=window, stride=stride, batch_size=options.batch_size)
    if options.json:
        print_json(answer)
    else:
        row = (answer["perplexity"], answer["nll"], answer["tokens"], answer["kind"])
        print_table(("perplexity", "nats a token", "tokens", "kind"), [row])
