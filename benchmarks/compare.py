"""chumoku beside transformers, sentence-transformers and llama.cpp, in one run.

    python benchmarks/compare.py [--quick] [--threads 2] [--only load prompt decode encode fill]
                                 [--pairs 5] [--json FILE]

Each library runs in a process of its own; the two of a row are measured in turn (A B A B …), and
the table has the medians and the median ratio of the pairs: above 1, chumoku is faster. A peer that
is not installed is reported and left out. Files are read from the page cache by all.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import PeerError, Row, Worker, load_average, pairs, processor, row
from rich.console import Console
from rich.table import Table

from chumoku.checkpoints.sources import resolve
from chumoku.errors import ChumokuError

# What the sentences are made of.
COMMON = (
    "the of a to and in it was that he for on with as his they be at one have this from or had by",
    "word but what some we can out other were all there when up use your how said an each she",
    "which do their time if will way about many then them write would like so these her long make",
    "thing see him two has look more day could go come did number sound no most people my over",
    "know water than call first who may down side been now find river mountain paper window music",
)
STORY = "Once upon a time there was a small robot who wanted to learn the names of all the stars."


@dataclass(frozen=True)
class Plan:
    """What is measured with, and how often. The three sources are anything `chumoku.load` takes."""

    text_model: str = "smollm2-135m-instruct"
    encoder: str = "all-minilm-l6-v2"
    masked: str = "pypi:rxnfp==0.1.0:bert_pretrained"
    masked_text: str = "C C ( = O ) O . [MASK] C O > > C C ( = O ) O C C"
    threads: int = 2
    pairs: int = 5
    loads: int = 3
    prompt_tokens: int = 469
    new_tokens: int = 128
    sentences: int = 512
    only: tuple[str, ...] = ("load", "prompt", "decode", "encode", "fill")


QUICK = {"pairs": 2, "loads": 1, "new_tokens": 32, "sentences": 96}

# Ours beside theirs: (our dtype, peer, its dtype)
TEXT_ROWS = (
    ("auto", "transformers", "float32"),
    ("float32", "transformers", "float32"),
    ("bfloat16", "transformers", "bfloat16"),
    ("auto", "llama.cpp", "stored"),
    # Without the special layouts for AMX and the like, with which version 0.3.36 may crash.
    ("auto", "llama.cpp", "stored, not repacked"),
)
ENCODER_ROWS = (("float32", "float32"), ("bfloat16", "bfloat16"))
Note = Callable[[str], None]


def sentences(count: int, in_order: bool) -> list[str]:
    """Sentences of 5 to 60 words, the same ones each time."""
    draw, words = random.Random(20), " ".join(COMMON).split()
    made = [" ".join(draw.choices(words, k=draw.randint(5, 60))) + "." for _ in range(count)]
    return sorted(made, key=len) if in_order else made


def prompt_ids(worker: Worker, count: int) -> list[int]:
    text = " ".join(sentences(count // 8 + 1, in_order=False))
    return list(worker.ask("ids", text=text)["result"])[:count]


def agreement(ours: Sequence[int], theirs: Sequence[int]) -> str:
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    return "same ids" if same is None else f"same {same} ids"


class Bench:
    """Workers that stay alive between rows, one for each library and dtype."""

    def __init__(self, plan: Plan, note: Note) -> None:
        self.plan, self.note = plan, note
        self._stack, self._workers = ExitStack(), dict[tuple[str, ...], Worker]()
        self._missing: set[str] = set()

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def worker(self, peer: str, path: str, dtype: str, kind: str) -> Worker:
        key = (peer, path, dtype)
        if key not in self._workers:
            worker = self._stack.enter_context(Worker(peer, self.plan.threads))
            worker.load(path, dtype, kind)
            self._workers[key] = worker
        return self._workers[key]

    def done_with(self, path: str) -> None:
        """Free the memory of this model's workers."""
        for key in [key for key in self._workers if key[1] == path]:
            self._workers.pop(key).close()

    def attempt(self, peer: str, rows: Callable[[], Iterator[Row]]) -> Iterator[Row]:
        """The rows, or a note of why there are none."""
        if peer in self._missing:
            return
        try:
            yield from rows()
        except PeerError as error:
            self.note(str(error))
            if "not installed" in str(error):
                self._missing.add(peer)


# ---- what is measured ----


def load_rows(bench: Bench, path: str, what: str, kind: str, ours: str, peer: str) -> Iterator[Row]:
    """A new process for every load. One row without and one with the time of the imports."""
    answers: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def fresh(name: str, dtype: str) -> dict[str, Any]:
        with Worker(name, bench.plan.threads) as worker:
            return worker.load(path, dtype, kind)

    for _ in range(bench.plan.loads):
        answers.append((fresh("chumoku", ours), fresh(peer, "float32")))
    names = (f"chumoku {ours}", f"{peer} float32")
    alone = [(a["seconds"], b["seconds"]) for a, b in answers]
    whole = [(a["seconds"] + a["imports"], b["seconds"] + b["imports"]) for a, b in answers]
    yield row(f"load {what}", names, "s", alone, None)
    yield row(f"import and load {what}", names, "s", whole, None)


def text_rows(bench: Bench, path: str, ours: str, peer: str, theirs: str) -> Iterator[Row]:
    plan, names = bench.plan, (f"chumoku {ours}", f"{peer} {theirs}")
    a = bench.worker("chumoku", path, ours, "text")
    b = bench.worker(peer, path, theirs, "text")
    if "prompt" in plan.only:
        ids = prompt_ids(a, plan.prompt_tokens)
        made = [w.ask("generate", ids=ids, new=1)["result"] for w in (a, b)]
        seconds = [lambda w=w: w.ask("generate", ids=ids, new=1)["seconds"] for w in (a, b)]
        yield row(
            f"prompt of {len(ids)} tokens",
            names,
            "tok/s",
            pairs(*seconds, plan.pairs, warm=False),
            len(ids),
            agreement(*made),
        )
    if "decode" in plan.only:
        ids, new = a.ask("ids", text=STORY)["result"], plan.new_tokens

        def decode(worker: Worker) -> float:
            first = worker.ask("generate", ids=ids, new=1)["seconds"]
            return float(worker.ask("generate", ids=ids, new=new)["seconds"]) - float(first)

        made = [w.ask("generate", ids=ids, new=new)["result"] for w in (a, b)]
        measured = pairs(lambda: decode(a), lambda: decode(b), plan.pairs, warm=False)
        name = f"decode {new} tokens"
        yield row(name, names, "tok/s", measured, new - 1, agreement(*made))


def encoder_rows(bench: Bench, path: str, ours: str, theirs: str) -> Iterator[Row]:
    plan = bench.plan
    names = (f"chumoku {ours}", f"sentence-transformers {theirs}")
    a = bench.worker("chumoku", path, ours, "encode")
    b = bench.worker("sentence-transformers", path, theirs, "encode")
    for in_order in (True, False):
        texts = sentences(plan.sentences, in_order)
        made = [np.array(w.ask("encode", texts=texts)["result"]) for w in (a, b)]
        seconds = [lambda w=w, t=texts: w.ask("encode", texts=t)["seconds"] for w in (a, b)]
        yield row(
            f"encode {len(texts)} sentences, {'sorted' if in_order else 'shuffled'}",
            names,
            "1/s",
            pairs(*seconds, plan.pairs, warm=False),
            len(texts),
            f"differ by {np.abs(made[0] - made[1]).max():.0e}",
        )


def fill_rows(bench: Bench, path: str) -> Iterator[Row]:
    a = bench.worker("chumoku", path, "float32", "fill")
    b = bench.worker("transformers", path, "float32", "fill")
    text, repeat = bench.plan.masked_text, 10

    def fill(worker: Worker) -> float:
        return sum(worker.ask("fill", text=text)["seconds"] for _ in range(repeat)) / repeat

    made = [w.ask("fill", text=text)["result"].strip() for w in (a, b)]
    measured = pairs(lambda: fill(a), lambda: fill(b), bench.plan.pairs)
    names = ("chumoku float32", "transformers float32")
    said = f"same token {made[0]}" if made[0] == made[1] else f"{made[0]}, {made[1]}"
    yield row("fill-mask, one text", names, "ms", measured, None, said)


def rows(bench: Bench) -> Iterator[Row]:
    plan = bench.plan
    only = set(plan.only)
    text = _place(bench, plan.text_model) if only & {"load", "prompt", "decode"} else None
    encoder = _place(bench, plan.encoder) if only & {"load", "encode"} else None
    masked = _place(bench, plan.masked) if "fill" in only else None
    if "load" in only:
        for path, what, kind, ours, peer in (
            (text, "SmolLM2 GGUF", "text", "auto", "transformers"),
            (encoder, "MiniLM safetensors", "encode", "float32", "sentence-transformers"),
        ):
            if path is not None:
                arguments = (bench, path, what, kind, ours, peer)
                yield from bench.attempt(peer, lambda a=arguments: load_rows(*a))
    if text is not None and only & {"prompt", "decode"}:
        for ours, peer, theirs in TEXT_ROWS:
            arguments = (bench, text, ours, peer, theirs)
            yield from bench.attempt(peer, lambda a=arguments: text_rows(*a))
        bench.done_with(text)
    if encoder is not None and "encode" in only:
        for ours, theirs in ENCODER_ROWS:
            arguments = (bench, encoder, ours, theirs)
            yield from bench.attempt("sentence-transformers", lambda a=arguments: encoder_rows(*a))
        bench.done_with(encoder)
    if masked is not None:
        yield from bench.attempt("transformers", lambda: fill_rows(bench, masked))


def _place(bench: Bench, source: str) -> str | None:
    """The path of a source, fetched where needed; None and a note where it cannot be had."""
    try:
        return str(resolve(source).path)
    except ChumokuError as error:
        bench.note(f"{source}: {error}")
        return None


# ---- the table ----


def table(found: Sequence[Row]) -> Table:
    grid = Table(box=None, header_style="bold")
    for name, side in (("what", "left"), ("chumoku", "left"), ("beside", "left")):
        grid.add_column(name, justify=side, no_wrap=name == "what")  # type: ignore[arg-type]
    for name in ("ours", "theirs", "unit", "ratio", "of the pairs", "results"):
        grid.add_column(name, justify="left" if name in ("unit", "results") else "right")
    for line in found:
        colour = "green" if line.ratio >= 1 else "red"
        grid.add_row(
            line.name,
            line.ours_name.removeprefix("chumoku "),
            line.theirs_name,
            f"{line.ours:.4g}",
            f"{line.theirs:.4g}",
            line.unit,
            f"[{colour}]{line.ratio:.2f}[/]",
            f"{line.spread[0]:.2f} to {line.spread[1]:.2f}",
            line.agreement,
        )
    return grid


def facts(plan: Plan) -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "threads": plan.threads,
        "load_before": load_average(),
    }


def run(plan: Plan, console: Console) -> tuple[dict[str, Any], list[Row]]:
    """Measure everything in `plan`, printing progress, and then the table."""
    machine = facts(plan)
    console.print(" | ".join(f"{key} {value}" for key, value in machine.items()))
    if machine["load_before"] > 0.5:
        console.print("[yellow]The machine is busy: the figures below are not worth keeping.[/]")
    found: list[Row] = []
    with Bench(plan, lambda text: console.print(f"[yellow]left out:[/] {text}")) as bench:
        for line in rows(bench):
            found.append(line)
            console.print(f"  {line.name}, {line.ours_name}: {line.ratio:.2f}", highlight=False)
    machine["load_after"] = load_average()
    console.print(table(found))
    slower = [line for line in found if line.ratio < 1 and line.theirs_name[:5] != "llama"]
    told = f"{len(slower)} of {len(found)} rows slower than transformers or sentence-transformers"
    console.print(f"{told} | load_after {machine['load_after']:.2f}")
    return machine, found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few pairs, short inputs")
    parser.add_argument("--threads", type=int, default=min(os.cpu_count() or 1, 8))
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--only", nargs="+", choices=Plan.only, default=list(Plan.only))
    parser.add_argument("--json", type=Path, help="write the rows here too")
    options = parser.parse_args()
    plan = Plan(threads=options.threads, only=tuple(options.only))
    if options.quick:
        plan = dataclasses.replace(plan, **QUICK)
    if options.pairs:
        plan = dataclasses.replace(plan, pairs=options.pairs)
    machine, found = run(plan, Console(width=150))
    if options.json is not None:
        lines = [dataclasses.asdict(line) for line in found]
        options.json.write_text(json.dumps({"machine": machine, "rows": lines}, indent=1))


if __name__ == "__main__":
    main()
