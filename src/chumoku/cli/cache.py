"""chumoku cache: models and data sets on this machine."""

from __future__ import annotations

from cyclopts import App

from chumoku.cli.common import Flag, print_json, print_table
from chumoku.errors import InputError

app = App(name="cache", help="What lies on this machine, where, and how large.")


@app.default
def show(*, json: Flag = False) -> None:
    """List the models and data sets in the caches, their places and sizes."""
    from chumoku.checkpoints.cache import caches, disk_use, list_cached

    items = list_cached()
    if json:
        for item in items:
            print_json(
                {
                    "kind": item.kind,
                    "source": item.source,
                    "path": str(item.path),
                    "bytes": item.size_bytes,
                    "decided_by": item.decided_by,
                }
            )
        return
    if items:
        rows = [(i.kind, i.source, f"{i.size_bytes / 1e6:.1f}", i.path) for i in items]
        print_table(("kind", "source", "MB", "where"), rows, fold=False)
        print(
            f"\n{disk_use(items) / 1e6:.1f} MB in all; remove one with: chumoku cache remove SOURCE"
        )
    else:
        print("The caches are empty.")
    where = caches()
    print_table(
        ("cache", "folder", "decided by"),
        [
            (name, place.path, place.decided_by)
            for name, place in (
                ("hub", where.hub),
                ("data sets", where.datasets),
                ("packages", where.packages),
            )
        ],
        fold=False,
    )


@app.command
def remove(source: str) -> None:
    """Delete a model or data set from the cache.

    Args:
        source: as `chumoku cache` lists it.
    """
    from chumoku.checkpoints.cache import list_cached
    from chumoku.checkpoints.cache import remove as remove_item

    found = [item for item in list_cached() if item.source == source]
    if not found:
        raise InputError(f"{source!r} is not in the cache", advice="chumoku cache lists what is")
    freed = sum(remove_item(item) for item in found)
    print(f"removed {source}: {freed / 1e6:.1f} MB")
