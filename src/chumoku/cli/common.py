"""What the commands share: options, where the input comes from, how the answer is shown."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from cyclopts import Group, Parameter
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from chumoku.errors import InputError

if TYPE_CHECKING:
    from chumoku.loading import Loaded

PROGRESS_AFTER_SECONDS: Final = 2.0
PIPE_WIDTH: Final = 10_000
"""Columns for a table that is not shown on a terminal: no line of it is ever folded."""

Flag = Annotated[bool, Parameter(negative="", show_default=False)]
"""An option that is there or not."""
TextFile = Annotated[Path | None, Parameter(allow_leading_hyphen=True)]
"""A file, or - for stdin."""
Many = Annotated[list[str] | None, Parameter(negative="")]
"""An option that may be repeated."""


@Parameter(name="*", group=Group("Options of every command", sort_key=2))
@dataclass(frozen=True)
class Options:
    """Options of every command that runs a model.

    Args:
        model: a name, hf:ORG/NAME@REVISION, pypi:NAME==VERSION, a folder or a file.
        adapter: a folder of PEFT's with an adapter for the model; without --model for the one that
            it names.
        lang: language for the default model, en or ja; by the text's script where absent.
        device: auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps.
        dtype: auto, stored, float32, bfloat16, float16, float64.
        batch_size: texts that go through the model together.
        threads: CPU threads; by default PyTorch's choice.
        seed: seed of everything that is drawn.
        revision: branch, tag or commit on the hub.
        ignore_config: a key of config.json that does not matter (may be repeated).
        offline: use only what lies on this machine.
        json: print JSON, one object a line.
    """

    model: str | None = None
    adapter: Path | None = None
    lang: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16
    threads: int | None = None
    seed: int | None = None
    revision: str | None = None
    ignore_config: Many = None
    offline: Flag = False
    json: Flag = False


DEFAULT = Options()


def open_model(options: Options, verb: str, text: str = "", *, published: bool = False) -> Loaded:
    """The model of these options, or the verb's default for the text's language.

    published: take the head that the file was published for, not the one that the verb needs.
    """
    import torch

    from chumoku.checkpoints.defaults import detect_language
    from chumoku.loading import load
    from chumoku.tasks.common import HEADS, load_default

    for name, value in (("threads", options.threads), ("batch-size", options.batch_size)):
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1, it is {value}")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    source = options.model
    if source is None and options.adapter is not None:
        source = base_of(options.adapter)

    def open_source(source: str) -> Loaded:
        return load(
            source,
            head=None if published else HEADS.get(verb),
            dtype=options.dtype,
            device=options.device,
            revision=options.revision,
            ignore_config=options.ignore_config or (),
            adapter=options.adapter,
            offline=True if options.offline else None,
            progress=download_progress(),
        )

    if source is None:
        loaded = load_default(verb, options.lang or detect_language(text), open_source)
    else:
        loaded = open_source(source)
    for note in loaded.source.notes:
        print(f"note: {note}", file=sys.stderr)
    return loaded


def base_of(adapter: Path) -> str:
    """The model that an adapter was trained on, as its folder names it. Raises InputError."""
    from chumoku.adapters.peft_folder import read_peft_folder

    base = read_peft_folder(adapter).base
    if not base:
        raise InputError(
            "the adapter does not name its base", where=adapter, advice="name it with --model"
        )
    return base


def download_progress() -> Callable[[str, int, int], None]:
    """Says on stderr what is being fetched; on a terminal also how far it is."""
    shown: dict[str, float] = {}

    def report(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        whole = bool(total) and done >= total
        if not sys.stderr.isatty():
            if name not in shown and not whole:
                print(f"fetching {name} ({_megabytes(total)})", file=sys.stderr)
            shown[name] = now
            return
        if now - shown.get(name, 0.0) < (0.25 if not whole else 0.0):
            return
        shown[name] = math.inf if whole else now
        share = f"{done / total:4.0%} of {_megabytes(total)}" if total else _megabytes(done)
        print(f"\r\x1b[Kfetching {name} {share}", end="\n" if whole else "", file=sys.stderr)
        sys.stderr.flush()

    return report


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count else "size unknown"


# ---- input ----


def read_items(
    texts: Sequence[str],
    file: Path | None,
    fields: Sequence[str] = ("text",),
    optional: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Items from arguments, a file or stdin: a line each, or a JSON object each.

    fields: names that an item has; a plain line fills the first, which must then be the only one.
    optional: names that a JSON object may have too. Raises InputError.
    """
    if texts:
        if file is not None:
            raise InputError("give texts or --file, not both")
        if any(not text.strip() for text in texts):
            raise InputError("the text is empty")
        return [{fields[0]: text} for text in texts]
    items = []
    for where, line in _lines(file):
        value = _object(line)
        if value is None and len(fields) > 1:
            wanted = ", ".join(f'"{name}"' for name in fields)
            raise InputError(f"the line is not a JSON object with {wanted}", where=where)
        value = {fields[0]: line} if value is None else value
        present = [*fields, *(name for name in optional if name in value)]
        wrong = [name for name in present if not isinstance(value.get(name), str)]
        if wrong:
            raise InputError(f"the JSON object has no text in {', '.join(wrong)}", where=where)
        items.append({name: value[name] for name in present})
    return items


def read_texts(texts: Sequence[str], file: Path | None) -> list[str]:
    """read_items() where an item is a text alone."""
    return [item["text"] for item in read_items(texts, file)]


def read_choices(file: Path | None) -> list[tuple[str, list[str]]]:
    """(prompt, choices) from JSON objects {"prompt": …, "choices": […]}, a line each."""
    items = []
    for where, line in _lines(file):
        value = _object(line) or {}
        prompt, choices = value.get("prompt"), value.get("choices")
        if not isinstance(prompt, str) or not isinstance(choices, list):
            raise InputError('the line is no JSON object with "prompt" and "choices"', where=where)
        if not all(isinstance(choice, str) for choice in choices):
            raise InputError("a choice is not a text", where=where)
        items.append((prompt, choices))
    return items


def read_text(text: str | None, file: Path | None) -> str:
    """One text: an argument, the whole of a file, or the whole of stdin."""
    if text is not None:
        if file is not None:
            raise InputError("give the text or --file, not both")
        return text
    whole = _decoded(file)
    if not whole.strip():
        raise InputError("the input is empty", where=_name(file))
    return whole


def _lines(file: Path | None) -> list[tuple[str, str]]:
    """(place, line) of every line that is not blank. Raises InputError where there is none."""
    where = _name(file)
    lines = _decoded(file).split("\n")
    found = [(f"{where}:{n}", line.rstrip("\r")) for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise InputError("the input is empty", where=where)
    return found


def _name(file: Path | None) -> str:
    return "stdin" if file is None or str(file) == "-" else str(file)


def _decoded(file: Path | None) -> str:
    where = _name(file)
    if where != "stdin":
        try:
            raw = Path(where).read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the file: {error.strerror}", where=where) from error
    elif sys.stdin is None or (sys.stdin.isatty() and file is None):
        raise InputError("there is no text", advice="give it as an argument, with --file, or piped")
    else:
        raw = sys.stdin.buffer.read()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        place = f"{where}: byte {error.start}"
        raise InputError(f"the input is not UTF-8: {error.reason}", where=place) from error


def _object(line: str) -> dict[str, Any] | None:
    """The JSON object of a line; None for a text, even for one that begins with a brace."""
    if not line.lstrip().startswith("{"):
        return None
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


# ---- output ----


@contextmanager
def progress_bar() -> Iterator[Callable[[int, int], None]]:
    """Yields report(done, total): a bar on a terminal, once the work has taken a while."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    started = time.monotonic()
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    )
    task = progress.add_task("working")

    def report(done: int, total: int) -> None:
        if console.is_terminal and time.monotonic() - started > PROGRESS_AFTER_SECONDS:
            progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield report
    finally:
        if progress.live.is_started:
            progress.stop()


def in_batches(
    items: Sequence[Any], size: int, run: Callable[[Sequence[Any]], Iterable[Any]]
) -> Iterator[tuple[Any, Any]]:
    """(item, answer) pairs, a batch at a time, with a progress bar."""
    with progress_bar() as report:
        for start in range(0, len(items), size):
            some = items[start : start + size]
            yield from zip(some, run(some), strict=True)
            report(start + len(some), len(items))


def print_json(value: object) -> None:
    """One line of JSON; text stays readable."""
    print(json.dumps(value, ensure_ascii=False))


GAP: Final = 2
"""Blank columns of the terminal between two of a table."""


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    fold: bool = True,
) -> None:
    """A readable table; numbers are aligned on the right.

    fold: False keeps what is wider than the terminal on one line, for names that get copied. In a
    pipe nothing is folded.
    """
    kept = [list(row) for row in rows]
    cells = [[_cell(value) for value in row] for row in kept]
    numeric = [
        bool(kept) and all(isinstance(row[number], int | float) for row in kept)
        for number in range(len(columns))
    ]
    console = Console(highlight=False, markup=False, emoji=False)
    if not (fold and console.is_terminal):
        console.width = PIPE_WIDTH
    widths = [max(map(cell_len, column)) for column in zip(columns, *cells, strict=True)]
    gaps = GAP * (len(columns) - 1)
    fits = sum(widths) + gaps <= console.width
    if fits and all(_is_one_line(cell) for row in cells for cell in row):
        # Nothing has to be folded: rich draws the head, but would take minutes for 10^6 rows.
        lines = _drawn(console, columns, [], numeric, widths, title)
        lines += [_line(row, numeric, widths) for row in cells]
    else:
        lines = _drawn(console, columns, cells, numeric, [None] * len(columns), title)
    print("\n".join(line.rstrip() for line in lines))


def _drawn(
    console: Console,
    columns: Sequence[str],
    cells: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    widths: Sequence[int | None],
    title: str | None,
) -> list[str]:
    """A table by rich, folded to the console. widths: of the columns; None: as their cells ask."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for name, right, width in zip(columns, numeric, widths, strict=True):
        justify: Literal["right", "left"] = "right" if right else "left"
        table.add_column(name, justify=justify, overflow="fold", no_wrap=right, width=width)
    for row in cells:
        table.add_row(*row)
    with console.capture() as shown:
        console.print(table)
    return shown.get().splitlines()


def _is_one_line(cell: str) -> bool:
    return "\t" not in cell and cell.splitlines() in ([], [cell])


def _line(row: Sequence[str], numeric: Sequence[bool], widths: Sequence[int]) -> str:
    """A row as rich draws it where each cell fits."""
    parts = []
    for cell, right, width in zip(row, numeric, widths, strict=True):
        blank = " " * (width - cell_len(cell))
        parts.append(blank + cell if right else cell + blank)
    return (" " * GAP).join(parts)


_CONTROLS: Final = {n: 0xFFFD for n in (*range(32), *range(127, 160)) if chr(n) not in "\n\t"}


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else printable(str(value))


def printable(text: str) -> str:
    """The text without control characters, with which a model's answer could steer a terminal."""
    return text.translate(_CONTROLS)


def say(text: str) -> None:
    """Write a piece of an answer at once; as it is into a pipe, harmless on a terminal."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def ranked_rows(answers: Sequence[Mapping[str, Any]], *keys: str) -> list[list[object]]:
    """The values of some keys, row by row."""
    return [[answer[key] for key in keys] for answer in answers]
