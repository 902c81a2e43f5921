"""The command line: `chumoku VERB …`. Each verb lives in a module of its own, loaded when used."""

from __future__ import annotations

import io
import locale
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cyclopts import App

COMMANDS: Final = {
    "demo": ("demo:run", "A short tour with real models: chat, similarity, attention."),
    "chat": ("chat:run", "Talk with a model; /system, /reset, /save, /quit."),
    "generate": ("generate:run", "Continue a text."),
    "translate": ("generate:translate", "Translate a text."),
    "summarize": ("generate:summarize", "Summarise a text."),
    "text2text": ("generate:text2text", "Give a text to an encoder-decoder as it stands."),
    "fill-mask": ("fill_mask:run", "Fill the gaps in a text."),
    "classify": ("classify:run", "Label a text, or a pair of texts."),
    "zero-shot": ("classify:zero_shot", "Choose among labels that you name."),
    "ner": ("ner:run", "Find names in a text."),
    "qa": ("qa:run", "Find the answer to a question in a context."),
    "next-sentence": ("choice:next_sentence", "Does the second sentence follow the first?"),
    "multiple-choice": ("choice:multiple_choice", "Which of several choices fits?"),
    "embed": ("embed:run", "Turn texts into vectors."),
    "similarity": ("embed:similarity", "Compare the meaning of texts."),
    "rerank": ("embed:rerank", "Order documents by relevance to a query."),
    "search": ("search:run", "Find the nearest texts of a file."),
    "classify-image": ("image:run", "Label pictures."),
    "perplexity": ("perplexity:run", "How surprising a text is to a model."),
    "train": ("train:run", "Train by a recipe, or go on with it."),
    "finetune": (
        "train:finetune",
        "Adapt a model to your data (any other setting: --section.key=value).",
    ),
    "tokenizer": ("tokenizer:app", "Train a tokenizer; see how it cuts a text."),
    "models": ("models:app", "Show, convert, pull models; list the defaults."),
    "cache": ("cache:app", "What lies on this machine, where, and how large."),
}
"""Command -> place of its function in this package, and its line in the help."""

EXAMPLES: Final = {
    "en": (
        "Five things to try:",
        'chumoku chat "Why is the sky blue?"',
        'chumoku similarity "A man is eating." "Somebody has lunch." "The market fell."',
        'chumoku fill-mask "Paris is the [MASK] of France."',
        'chumoku ner "Marie Curie was born in Warsaw."',
        "chumoku models defaults",
        "chumoku --help lists every command.",
    ),
    "ja": (
        "まずは次の五つを:",
        'chumoku fill-mask "私の今日の昼ご飯は[MASK]です。"',
        'chumoku similarity "昼ご飯を食べる。" "ランチにする。" "株価が下がった。"',
        'chumoku classify "この映画はとても面白かった。"',
        'chumoku chat "Why is the sky blue?"',
        "chumoku models defaults",
        "すべてのコマンドは chumoku --help で見られます。",
    ),
}


def language() -> str:
    """ "ja" where the locale says so, else "en"."""
    names = (os.environ.get(key, "") for key in ("LC_ALL", "LC_MESSAGES", "LANG"))
    name = next((n for n in names if n), None) or locale.getlocale()[0] or ""
    return "ja" if name.lower().startswith(("ja", "japanese")) else "en"


def build() -> App:
    """The application, with every command registered by name only."""
    from cyclopts import App

    from chumoku import __version__

    app = App(
        name="chumoku",
        version=__version__,
        help='The Transformer in one readable, fast and honest Python system (注目, "attention").',
        help_format="plaintext",
        result_action="return_value",
    )
    for name, (place, line) in COMMANDS.items():
        app.command(f"chumoku.cli.{place}", name=name, help=line)
    return app


def expand(words: Sequence[str]) -> list[str]:
    """The command line with transformers' name of a task replaced by our verb."""
    from chumoku.tasks.names import verb_of

    verb, options = verb_of(words[0])
    if verb not in COMMANDS:
        return list(words)
    return [verb, *words[1:], *(f"--{name}={value}" for name, value in options.items())]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line. 0: done; 2: an error of the user's, told in words; 130: interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words:
        first, *rest, last = EXAMPLES[language()]
        print("\n".join((first, "", *(f"  {line}" for line in rest), "", last)))
        return 0
    from cyclopts import CycloptsError

    from chumoku.errors import ChumokuError

    _show_log()
    try:
        build()(expand(words), exit_on_error=False, print_error=True)
        sys.stdout.flush()
    except CycloptsError:  # told by the parser
        return 2
    except ChumokuError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _show_log() -> None:
    """What the library has to say (a slow path, an old file format) goes to stderr, once."""
    log = logging.getLogger("chumoku")
    handler = logging.StreamHandler()  # a new one: sys.stderr may be another than the last time
    handler.setFormatter(logging.Formatter("%(message)s"))
    log.handlers[:] = [handler]
    log.setLevel(logging.INFO)


def entry() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal of an old encoding must not stop us
            stream.reconfigure(errors="backslashreplace")
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader of our output has gone, e.g. `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
