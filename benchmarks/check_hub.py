"""make check-hub: pull every default model, run one example through its verb; read the data sets
that recipes name on the hub; print a report.

For a machine with a network (about 12 GB for all of them). A failure does not stop the rest; the
exit code is 1 if there was one. `python benchmarks/check_hub.py VERB…` checks only some verbs, and
`recipes` the data sets.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from chumoku.checkpoints.defaults import DEFAULTS, VERBS
from chumoku.cli import main as chumoku
from chumoku.cli.common import print_table
from chumoku.training.preparing import tables_of
from chumoku.training.recipe import read_recipe

EXAMPLES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "fill-mask": ("Paris is the [MASK] of France.",),
        "generate": ("Once upon a time", "--max-new-tokens", "20"),
        "chat": ("Why is the sky blue?", "--max-new-tokens", "30"),
        "translate": ("It will rain tomorrow.", "--max-new-tokens", "40"),
        "summarize": (
            "The tower is 324 metres tall, about the height of an 81-storey building, and the "
            "tallest structure in Paris. It was finished in 1889 and is visited every year by "
            "nearly seven million people.",
            *("--max-new-tokens", "40"),
        ),
        "text2text": ("Translate to German: How old are you?", "--max-new-tokens", "20"),
        "classify": ("What a wonderful film!",),
        "zero-shot": ("The match ended two to one.", "--label", "sport", "--label", "politics"),
        "ner": ("Marie Curie was born in Warsaw.",),
        "qa": ("Who wrote it?", "The novel was written by Natsume Soseki in 1905."),
        "next-sentence": ("He went to the kitchen.", "He made himself a cup of tea."),
        "multiple-choice": ("She opens the umbrella because", "it rains.", "it is Monday."),
        "embed": ("A man is eating.",),
        "similarity": ("A man is eating.", "Somebody has lunch.", "The market fell."),
        "search": ("somebody has lunch", "CORPUS"),
        "rerank": ("Who is eating?", "A man is eating.", "The market fell."),
        "classify-image": ("PICTURE",),
        "perplexity": ("The cat sat on the mat.",),
    },
    "ja": {
        "fill-mask": ("私の今日の昼ご飯は[MASK]です。",),
        "generate": ("昔々あるところに", "--max-new-tokens", "20"),
        "chat": ("日本の首都はどこですか。", "--max-new-tokens", "30"),
        "translate": ("明日は雨が降るでしょう。", "--max-new-tokens", "40"),
        "summarize": (
            "この塔の高さは三百二十四メートルで、八十一階建ての建物とほぼ同じである。千八百八十九年に"
            "完成し、毎年七百万人近くが訪れる。",
            *("--max-new-tokens", "40"),
        ),
        "text2text": ("英語に訳してください: 猫が好きです。", "--max-new-tokens", "20"),
        "classify": ("この映画はとても面白かった。",),
        "zero-shot": (
            "試合は二対一で終わった。",
            *("--label", "スポーツ", "--label", "政治", "--template", "これは{}の話です。"),
        ),
        "ner": ("夏目漱石は東京で生まれた。",),
        "qa": ("誰が書きましたか。", "この小説は夏目漱石が千九百五年に書いた。"),
        "next-sentence": ("彼は台所へ行った。", "お茶を入れた。"),
        "multiple-choice": ("雨が[MASK]。", "降る", "走る"),
        "embed": ("昼ご飯を食べる。",),
        "similarity": ("昼ご飯を食べる。", "ランチにする。", "株価が下がった。"),
        "search": ("ランチ", "CORPUS"),
        "rerank": ("何を食べますか。", "昼ご飯にパンを食べる。", "株価が下がった。"),
        "classify-image": ("PICTURE",),
        "perplexity": ("猫がマットの上に座った。",),
    },
}
RECIPES = "recipes"
CORPUS = "A man is eating.\nThe market fell.\n昼ご飯を食べる。\n株価が下がった。\n"


@dataclass(frozen=True)
class Report:
    """One default: what came of it. answer: its first words, or the fault. Of a recipe verb, lang
    and model are "recipes", its name, and the data set that it trains on.
    """

    verb: str
    lang: str
    model: str
    ok: bool
    seconds: float
    answer: str


def check(verb: str, lang: str, folder: Path) -> Report:
    """Pull the default of a verb and language, and run its example. Never raises."""
    places = {"CORPUS": str(folder / "corpus.txt"), "PICTURE": str(folder / "picture.png")}
    words = [places.get(word, word) for word in EXAMPLES[lang][verb]]
    model = DEFAULTS[lang][verb].source
    shown, told = io.StringIO(), io.StringIO()
    started = time.perf_counter()
    ok = False
    with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(told):
        try:
            pulled = chumoku(["models", "pull", model]) == 0
            mark = shown.tell()
            ok = pulled and chumoku([verb, *words, "--lang", lang]) == 0
        except Exception:  # a fault of chumoku's own: the report goes on with the next
            mark = shown.tell()
            traceback.print_exc(file=told)
    seconds = time.perf_counter() - started
    answer = shown.getvalue()[mark:] if ok else told.getvalue().rpartition("error: ")[2]
    return Report(verb, lang, model, ok and bool(answer.strip()), seconds, first_words(answer, ok))


def recipes() -> list[Path]:
    """Those that name data on the hub."""
    folder = Path(__file__).parents[1] / "recipes"
    return [path for path in sorted(folder.glob("**/*.toml")) if read_recipe(path).data.fallback]


def check_recipe(path: Path) -> Report:
    """Read all parts of the data that a recipe names on the hub, row by row. Never raises."""
    recipe, started = read_recipe(path), time.perf_counter()
    try:
        with tempfile.TemporaryDirectory() as empty, contextlib.chdir(empty):
            tables = tables_of(recipe, ())
        ok, answer = True, ", ".join(f"{len(t.rows)} {name}" for name, t in tables.items())
    except Exception as error:  # as above
        ok, answer = False, first_words(f"{type(error).__name__}: {error}", True)
    seconds, source = time.perf_counter() - started, str(recipe.data.fallback["train"])
    return Report("recipes", path.stem, source, ok, seconds, answer)


def first_words(text: str, ok: bool, length: int = 60) -> str:
    """The beginning of an answer on one line; of a traceback its end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if "Traceback" in text and not ok:
        lines = lines[-1:]
    line = " | ".join(lines)
    return line if len(line) <= length else line[: length - 1] + "…"


def main(verbs: Sequence[str]) -> int:
    """Check the defaults of these verbs, or of all; 1 if any failed."""
    known = (*VERBS, RECIPES)
    unknown = set(verbs) - set(known)
    if unknown:
        print(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
        return 2
    folder = Path(tempfile.mkdtemp())
    (folder / "corpus.txt").write_text(CORPUS, "utf-8")
    Image.linear_gradient("L").convert("RGB").save(folder / "picture.png")
    reports = []
    try:
        for path in recipes() if RECIPES in (verbs or known) else ():
            print(f"{RECIPES} {path.stem} …", file=sys.stderr, flush=True)
            reports.append(check_recipe(path))
        for verb in [verb for verb in verbs or VERBS if verb != RECIPES]:
            for lang in DEFAULTS:
                print(f"{verb} {lang} {DEFAULTS[lang][verb].source} …", file=sys.stderr, flush=True)
                reports.append(check(verb, lang, folder))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [
        (r.verb, r.lang, r.model, "ok" if r.ok else "FAILED", f"{r.seconds:.1f}", r.answer)
        for r in reports
    ]
    names = ("verb", "lang", "model", "result", "seconds", "answer begins")
    print_table(names, rows, fold=False)
    failed = sum(not r.ok for r in reports)
    print(f"\n{len(reports) - failed} ok, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
