"""chumoku generate, translate, summarize, text2text"""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cyclopts import Group, Parameter

from chumoku.cli.common import (
    DEFAULT,
    Many,
    Options,
    TextFile,
    in_batches,
    open_model,
    print_json,
    printable,
    read_texts,
    say,
)

if TYPE_CHECKING:
    from chumoku.generation.results import Generated
    from chumoku.generation.settings import Settings
    from chumoku.loading import Loaded


@Parameter(name="*", group=Group("How to generate", sort_key=1))
@dataclass(frozen=True)
class Sampling:
    """How to generate. What is not given is as the checkpoint publishes it.

    Args:
        max_new_tokens: most tokens of the answer.
        min_new_tokens: fewest tokens of the answer.
        do_sample: draw tokens instead of taking the likeliest.
        temperature: above 1 flatter, below 1 sharper; asks for sampling.
        top_k: draw only from the k likeliest.
        top_p: draw only from the likeliest that together have probability p.
        min_p: draw only from those at least p times as likely as the likeliest.
        typical_p: locally typical sampling.
        repetition_penalty: above 1 makes what was said less likely.
        presence_penalty: taken off the logit of what was said at all.
        frequency_penalty: taken off the logit for each time it was said.
        no_repeat_ngram_size: no stretch of so many tokens twice.
        num_beams: beam search with so many beams.
        length_penalty: of beam search; above 0 favours longer answers.
        num_return_sequences: answers for each prompt.
        stop: a string that ends the answer (may be repeated).
        overflow: for a prompt longer than the context: error, truncate or shift.
    """

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    no_repeat_ngram_size: int | None = None
    num_beams: int | None = None
    length_penalty: float | None = None
    num_return_sequences: int | None = None
    stop: Many = None
    overflow: str | None = None


PLAIN = Sampling()


def arguments(sampling: Sampling, options: Options) -> dict[str, Any]:
    """The settings that were given, as generate() takes them."""
    given = {**dataclasses.asdict(sampling), "seed": options.seed}
    return {name: value for name, value in given.items() if value is not None}


def as_json(answer: Generated) -> dict[str, Any]:
    """text, ids, finish_reason and timings of one answer."""
    return {
        "text": answer.text,
        "ids": list(answer.ids),
        "finish_reason": answer.finish_reason,
        "timings": dataclasses.asdict(answer.timings),
    }


def _shown(text: str) -> str:
    return printable(text) if sys.stdout.isatty() else text


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields should_stop(): Ctrl-C makes it True, and so ends the answer, not the program."""
    pressed: list[int] = []

    def note(number: int, _frame: object) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def write_aloud(prompt: str, loaded: Loaded, settings: Settings) -> None:
    """Stream what follows the prompt to stdout; Ctrl-C ends it with what was written so far."""
    from chumoku.tasks import generation

    with interruptible() as should_stop:
        for piece in generation.stream(prompt, loaded, settings, should_stop):
            say(piece.text)
    print()


def run(
    *text: str,
    file: TextFile = None,
    sampling: Sampling = PLAIN,
    options: Options = DEFAULT,
) -> None:
    """Continue texts.

    Args:
        text: prompts; without any, lines of --file or of stdin.
        file: a prompt a line, or JSONL with "text"; - is stdin.
    """
    from chumoku.tasks import generation

    items = read_texts(text, file)
    loaded = open_model(options, "generate", items[0])
    settings = generation.effective(loaded, arguments(sampling, options))
    alone = len(items) == 1 and settings.num_return_sequences == 1
    if alone and not options.json:
        write_aloud(items[0], loaded, settings)
        return

    def batch(some: Any) -> list[list[Generated]]:
        found = generation.generate(
            list(some), loaded, batch_size=options.batch_size, **arguments(sampling, options)
        )
        rows: list[list[Generated]] = [[] for _ in some]
        for answer in found if isinstance(found, list) else [found]:
            rows[answer.prompt].append(answer)
        return rows

    for item, answers in in_batches(items, options.batch_size, batch):
        for answer in answers:
            if options.json:
                print_json(as_json(answer))
            else:
                print(f"{item}{_shown(answer.text or '')}\n")


def _text_to_text(
    verb: str,
    text: tuple[str, ...],
    file: Path | None,
    options: Options,
    settings: dict[str, Any],
) -> None:
    from chumoku.tasks import generation

    functions: dict[str, Callable[..., list[dict[str, str]]]] = {
        "translate": generation.translate,
        "summarize": generation.summarize,
        "text2text": generation.text2text,
    }
    items = read_texts(text, file)
    loaded = open_model(options, verb, items[0])
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: functions[verb](list(some), loaded, batch_size=options.batch_size, **settings),
    )
    for _, answer in pairs:
        if options.json:
            print_json(answer)
        else:
            print(_shown(next(iter(answer.values()))))


def translate(
    *text: str,
    file: TextFile = None,
    source: str | None = None,
    target: str | None = None,
    prefix: str | None = None,
    sampling: Sampling = PLAIN,
    options: Options = DEFAULT,
) -> None:
    """Translate texts.

    Args:
        text: texts; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
        source: language of the text, for models that know several.
        target: language wanted, for models that know several.
        prefix: words in front of each text, instead.
    """
    own = {"source": source, "target": target, "prefix": prefix}
    settings = arguments(sampling, options) | own
    _text_to_text("translate", text, file, options, settings)


def summarize(
    *text: str,
    file: TextFile = None,
    prefix: str | None = None,
    sampling: Sampling = PLAIN,
    options: Options = DEFAULT,
) -> None:
    """Summarise texts.

    Args:
        text: texts; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
        prefix: words in front of each text, instead of the published ones.
    """
    settings = arguments(sampling, options) | {"prefix": prefix}
    _text_to_text("summarize", text, file, options, settings)


def text2text(
    *text: str,
    file: TextFile = None,
    sampling: Sampling = PLAIN,
    options: Options = DEFAULT,
) -> None:
    """Give texts to an encoder-decoder as they stand.

    Args:
        text: texts; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
    """
    settings = arguments(sampling, options)
    _text_to_text("text2text", text, file, options, settings)
