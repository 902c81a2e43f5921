"""Fine-tuning by a few words: what is asked for becomes a recipe, which is what is run.

Defaults are those of the papers: 3 epochs, batches of 32, 5e-5 with a linear decay after a tenth of
warm-up (1810.04805, appendix A.3); for adapters 2e-4 (2106.09685, appendix D).
"""

from __future__ import annotations

import contextlib
import re
import shlex
import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from chumoku.checkpoints.ranges import write_json
from chumoku.errors import ChumokuError, InputError, TrainingError
from chumoku.training.data.batching import Batching
from chumoku.training.data.rows import read_rows
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.recipe import (
    About,
    AdapterSection,
    DataSection,
    ModelSection,
    Recipe,
)
from chumoku.training.runner import Outcome
from chumoku.training.schedules import ScheduleSettings
from chumoku.training.settings import Settings
from chumoku.training.signals import StoppedError


@dataclass(frozen=True)
class Verb:
    """kind: [task] kind. columns: the task's columns, by the option that renames each; one may have
    two options. verb: the command that uses the result. options: of the task. epochs, batch_size:
    where not asked for. choices: it has choices, whose columns can be named. needed: columns that
    the objective could do without, and this verb cannot.
    """

    kind: str
    columns: Mapping[str, str]
    verb: str
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: float = 3.0
    batch_size: int = 32
    choices: bool = False
    needed: tuple[str, ...] = ()


Number = TypeVar("Number", int, float)

TEXT: Final = {"text_column": "text"}
PAIR: Final = {"text_column": "text", "pair_column": "pair"}
LABEL: Final = {"label_column": "label"}
WORDS: Final = {"text_column": "words", "label_column": "tags"}
ASKED: Final = {"question_column": "text"}
CONTEXT: Final = {"context_column": "context", "text_column": "context"}
FOUND: Final = {"question_column": "question", "answer_column": "answer"} | CONTEXT
SAID: Final = {"question_column": "user", "answer_column": "assistant", "system_column": "system"}
TURNED: Final = {"text_column": "source", "target_column": "target"}

VERBS: Final = {
    "classify": Verb("classification", TEXT | LABEL, "classify"),
    "pair": Verb("classification", PAIR | LABEL, "classify", needed=("pair",)),
    "ner": Verb("token-classification", WORDS, "ner"),
    "qa": Verb("question-answering", FOUND, "qa", epochs=2.0, batch_size=16),
    "multiple-choice": Verb(
        "multiple-choice", TEXT | ASKED | LABEL, "multiple-choice", batch_size=16, choices=True
    ),
    "embed": Verb("sentence-embedding", PAIR | {"label_column": "score"}, "similarity"),
    "image": Verb("image-classification", {"text_column": "image"} | LABEL, "classify-image"),
    "chat": Verb("chat", SAID, "chat", batch_size=8),
    "translate": Verb("seq2seq", TURNED, "translate", {"score": "bleu"}),
    "summarize": Verb(
        "seq2seq",
        TURNED,
        "summarize",
        {"score": "rouge", "published": "summarization"},
        batch_size=8,
    ),
}
"""What can be asked for -> what it means."""

COLUMN: Final = re.compile(r"--data\.columns\.(\w+)=NAME")
BLOCKS: Final = "Q4_1"
"""4 bits and a smallest value a block of 32, as QLoRA's 4 bits (2305.14314, section 3)."""
RANK: Final = 8
FULL_RATE: Final = 5e-5
ADAPTER_RATE: Final = 2e-4


@dataclass(frozen=True)
class Wish:
    """What a user says. model, train, evaluation, test: as in a recipe. columns: option -> the
    file's column; choices: those of the choices. adapter: none, lora, rslora, dora; quantised: the
    base is, or becomes, blocks.
    """

    model: str
    train: tuple[str, ...]
    evaluation: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    format: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    choices: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    epochs: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None
    max_length: int | None = None
    adapter: str = "none"
    rank: int | None = None
    quantised: bool = False
    seed: int = 0
    dtype: str = "float32"
    layer_decay: float = 1.0
    reinitialise: int = 0
    freeze_blocks: int = 0
    mixout: float = 0.0
    patience: int | None = None


def recipe_of(name: str, wish: Wish) -> Recipe:
    """The recipe of a wish. Raises InputError for an unknown verb or a column it has not."""
    if name not in VERBS:
        raise InputError(f"{name!r} cannot be learnt", advice=f"one of {', '.join(VERBS)}")
    verb = VERBS[name]
    adapted = wish.adapter != "none"
    if wish.rank is not None and not adapted:
        raise InputError("--rank is an adapter's", advice="add --lora, or --adapter dora")
    rank = _given(wish.rank, RANK)
    rate = _given(wish.learning_rate, ADAPTER_RATE if adapted else FULL_RATE)
    if wish.choices and not verb.choices:
        raise _no_option(name, "choice_column")
    choices = {"choice_columns": list(wish.choices)} if wish.choices else {}
    if wish.max_length is not None and verb.kind == "image-classification":
        raise _no_option(name, "max_length")
    length = {} if wish.max_length is None else _length(verb.kind, wish.max_length)
    return Recipe(
        about=About(title=f"finetune {name}"),
        model=ModelSection(
            source=wish.model,
            dtype="stored" if wish.quantised else "float32",
            quantise=BLOCKS if wish.quantised else None,
            reinitialise=wish.reinitialise,
            freeze_blocks=wish.freeze_blocks,
            mixout=wish.mixout,
        ),
        data=DataSection(
            train=wish.train,
            evaluation=wish.evaluation,
            test=wish.test,
            format=wish.format,
            columns=_columns(name, _fitting(verb, wish), wish.columns),
            holdout=0.0 if wish.evaluation else 0.1,
        ),
        task={"kind": verb.kind, **verb.options, **length, **choices, **wish.options},
        adapter=AdapterSection(kind=wish.adapter, rank=rank, alpha=2.0 * rank),
        training=Settings(
            epochs=_given(wish.epochs, verb.epochs),
            seed=wish.seed,
            dtype=wish.dtype,
            patience=wish.patience,
            batching=Batching(batch_size=_given(wish.batch_size, verb.batch_size)),
            optimiser=OptimiserSettings(learning_rate=rate, layer_decay=wish.layer_decay),
            schedule=ScheduleSettings(kind="linear", warmup_fraction=0.1),
        ),
    )


def _given(value: Number | None, default: Number) -> Number:
    """A 0 that was asked for goes on to the settings, which refuse it by name."""
    return default if value is None else value


def _length(kind: str, tokens: int) -> dict[str, int]:
    if kind == "seq2seq":
        return {"source_length": tokens, "target_length": tokens}
    return {"length" if kind == "chat" else "max_length": tokens}


def _fitting(verb: Verb, wish: Wish) -> Verb:
    """The verb with the columns of the form that the first row has, where there are two forms.

    Words come with tags, a text with entities; which of them the file's columns are, only their
    values tell.
    """
    if verb.kind != "token-classification" or not wish.columns:
        return verb
    try:
        first = read_rows(wish.train[:1], format=wish.format, max_rejects=1.0, limit=1).rows[0]
    except InputError:
        return verb  # the run itself will say what is wrong with the file
    text = first.get(wish.columns.get("text_column", "text"))
    labels = first.get(wish.columns.get("label_column", "entities"))
    marked = isinstance(labels, list) and all(isinstance(one, Mapping) for one in labels)
    if isinstance(text, list) or not marked:
        return verb
    return replace(verb, columns={"text_column": "text", "label_column": "entities"})


def _columns(name: str, verb: Verb, given: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for option, theirs in given.items():
        if option not in verb.columns:
            raise _no_option(name, option)
        ours = verb.columns[option]
        if ours in found:
            both = [_flag(one) for one in given if verb.columns.get(one) == ours]
            raise InputError(f"{' and '.join(both)} mean the same column: give one of them")
        found[ours] = theirs
    return {name: name for name in verb.needed} | found


def _no_option(name: str, option: str) -> InputError:
    verb = VERBS[name]
    known = [*verb.columns, *(["choice_column"] if verb.choices else [])]
    return InputError(
        f"finetune {name} has no {_flag(option)}", advice=f"it has {', '.join(map(_flag, known))}"
    )


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


@contextlib.contextmanager
def in_options(name: str) -> Iterator[None]:
    """Errors inside that advise to name a column do so by the options of this verb."""
    flags = {ours: _flag(option) for option, ours in reversed([*VERBS[name].columns.items()])}
    try:
        yield
    except ChumokuError as error:
        error.advice = COLUMN.sub(
            lambda found: f"{flags[found[1]]} NAME" if found[1] in flags else found[0], error.advice
        )
        raise


def next_commands(name: str, folder: Path) -> list[str]:
    """What to type to use the result, with texts and pictures of one's own."""
    example = {
        "pair": ' "…" --pair "…"',
        "qa": ' "question" "context"',
        "multiple-choice": ' "question" "one answer" "another"',
        "embed": ' "one text" "another"',
        "image": " picture.png",
        "chat": "",
    }
    place = shlex.quote(str(folder))
    words = example.get(name, ' "…"')
    return [f"chumoku {VERBS[name].verb}{words} --model {place}", f"chumoku models show {place}"]


# ---- several seeds ----


@dataclass(frozen=True)
class Seeds:
    """metric: its name. values: by seed that came to its end. failed: seeds no better than the most
    frequent answer, or whose training broke. best: the seed that did best on the evaluation rows.
    """

    metric: str
    values: Mapping[int, float]
    failed: tuple[int, ...]
    best: int

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def deviation(self) -> float:
        """Of the sample; 0 for one seed."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else 0.0


def run_seeds(
    recipe: Recipe,
    folder: Path,
    count: int,
    run: Callable[[Recipe, Path], Outcome],
    tell: Callable[[str], None] = print,
) -> Seeds:
    """Train with so many seeds, each in `folder/seed-N`; `folder/seeds.json` sums up.

    A run has failed that is no better than always giving the most frequent answer (2006.04884,
    section 3), where its metrics say what that gives ("majority"). tell: gets a line for each seed
    that breaks. Raises InputError where there is nothing to judge by, and the first seed's
    TrainingError where all of them break.
    """
    if count < 1:
        raise InputError(f"--seeds must be at least 1, it is {count}")
    if not (recipe.data.evaluation or recipe.data.holdout or recipe.data.test):
        raise InputError(
            "there are no rows to judge several seeds by",
            advice="name some with --eval or --test, or hold out a share: --data.holdout=0.1",
        )
    values: dict[int, float] = {}
    judged: dict[int, float] = {}
    broken: dict[int, TrainingError] = {}
    metric, lower, baseline = "loss", True, None
    for seed in range(recipe.training.seed, recipe.training.seed + count):
        one = replace(recipe, training=replace(recipe.training, seed=seed))
        try:
            outcome = run(one, folder / f"seed-{seed}")
        except StoppedError:
            raise
        except TrainingError as error:  # as where a loss is no number: what one seed may do
            broken[seed] = error
            tell(f"seed {seed} broke: {error}")
            continue
        metric, lower = outcome.metric, outcome.lower
        evaluated, tested = outcome.result.metrics, outcome.test
        found = tested if metric in tested else evaluated
        values[seed] = found[metric]
        # The best is not chosen by the rows that the result is measured on.
        judged[seed] = (evaluated if metric in evaluated else tested)[metric]
        baseline = found.get("majority", baseline)
    failed = [*broken]
    if baseline is not None and metric == "accuracy":  # what "majority" is a value of
        failed += [seed for seed, value in values.items() if value <= baseline]
    summary = {
        "metric": metric,
        "mean": None,
        "deviation": 0.0,
        "best_seed": None,
        "failed": sorted(failed),
        "errors": {str(seed): error.what for seed, error in broken.items()},
        "values": {str(seed): value for seed, value in values.items()},
    }
    if not values:
        write_json(folder / "seeds.json", summary)
        raise next(iter(broken.values()))
    best = (min if lower else max)(judged, key=lambda seed: judged[seed])
    seeds = Seeds(metric, values, tuple(sorted(failed)), best)
    told = {"mean": seeds.mean, "deviation": seeds.deviation, "best_seed": best}
    write_json(folder / "seeds.json", summary | told)
    return seeds
