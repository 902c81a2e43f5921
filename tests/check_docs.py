"""Check the documents without running them: links lead somewhere, commands and files exist, each
recipe has its heading.

Run by `make lint`. Commands of the README are executed by tests/test_readme.py.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)\s]*)?\)")
TARGET = re.compile(r"\bmake ([a-z][a-z-]*)")
PLACE = re.compile(r"`((?:src|tests|docs|benchmarks|examples|recipes)/[\w./-]+)`")


def faults(page: Path, targets: set[str]) -> list[str]:
    """What is wrong in one page, one line each."""
    text = page.read_text(encoding="utf-8")
    found = []
    for link in LINK.findall(text):
        outside = "://" in link or link.startswith("mailto:")
        if not outside and not (page.parent / link).exists():
            found.append(f"{page.name}: link to {link} leads nowhere")
    for target in TARGET.findall(text):
        if target not in targets:
            found.append(f"{page.name}: make has no target {target}")
    for place in PLACE.findall(text):
        if not (ROOT / place).exists():
            found.append(f"{page.name}: {place} does not exist")
    return found


def undescribed(page: Path) -> list[str]:
    """Recipes without a heading in the page of recipes, and headings that are no recipe."""
    folder = ROOT / "recipes"
    recipes = {str(p.relative_to(folder).with_suffix("")) for p in folder.glob("**/*.toml")}
    told = set(re.findall(r"^## (\S+)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE))
    lacking = [f"{page.name}: recipe {name} has no heading" for name in sorted(recipes - told)]
    return lacking + [f"{page.name}: there is no recipe {name}" for name in sorted(told - recipes)]


def main() -> int:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, flags=re.MULTILINE))
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("**/*.md")]
    found = [fault for page in pages for fault in faults(page, targets)]
    found += undescribed(ROOT / "docs" / "recipes.md")
    print("\n".join(found) or f"{len(pages)} pages checked")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
