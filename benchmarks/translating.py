"""The Transformer of 2017 beside transformers' MarianMTModel under its Trainer: BLEU in equal time.

    python benchmarks/translating.py transformer-enja --data ../shared/data --output out \
        [--seconds 300] [--seeds 0 1 2] [--threads 1] [--side chumoku]

Both sides read the recipe and learn from the same pairs in the same pieces (the recipe's
tokenizer): layers, widths, dropout, tied embeddings, label smoothing, AdamW, clipping, the schedule
and the average of the weights are the recipe's. Each stops after `--seconds` of training or the
recipe's epochs, whichever comes first, so the faster one takes more steps; a schedule that plans
its end (linear, cosine) is refused, as neither side knows its number of steps before. Their
differences: Marian has biases in attention (0.2 to 0.5 % more weights), other sinusoids and normal
initial weights, here of deviation width^-0.5, about the Xavier ones of the recipe's model; the
Trainer's batches have a number of pairs, grouped by length, the recipe's a number of tokens (the
Trainer gets as many pairs as those have on average). Its average is chumoku's, in a callback.

Then both translate the test set by beams, as the recipe says. The two sides of a seed run at the
same time, each a process with `--threads`; `--side` runs one in this process. A result is a file
in `--output`; one that is there is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from chumoku.errors import ConfigError
from chumoku.training.averaging import EMA
from chumoku.training.loop import Run
from chumoku.training.metrics import bleu, bleu_signature
from chumoku.training.objectives.seq2seq import Example
from chumoku.training.preparing import Prepared, prepare
from chumoku.training.progress import Reports, Step
from chumoku.training.recipe import Recipe, read_recipe
from chumoku.training.recipe_data import read_data
from chumoku.training.task import IGNORED, padded
from chumoku.training.weights import trained

ENDLESS = ("inverse-sqrt", "constant")
"""Schedules whose value at a step does not depend on how many there will be."""


def mask_of(rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """True where `padded` has a token: [B, T]."""
    return padded([[1] * len(row) for row in rows], 0).bool()


@dataclass
class Meter:
    """Tokens that were learned from, padding apart, and whether the time is over."""

    limit: float
    tokens: int = 0
    began: float = 0.0
    seconds: float = 0.0

    def counting(self, collate: Callable[[Sequence[Any]], Any]) -> Callable[[Sequence[Any]], Any]:
        def counted(examples: Sequence[Any]) -> Any:
            self.tokens += sum(len(ids) for example in examples for ids in pair(example))
            return collate(examples)

        return counted

    def start(self) -> None:
        self.began = time.perf_counter()

    def over(self) -> bool:
        self.seconds = time.perf_counter() - self.began
        return self.seconds >= self.limit


def pair(example: Any) -> tuple[Any, Any]:
    """Source and target of either side's example."""
    if isinstance(example, Example):
        return example.source_S, example.target_T
    return example["input_ids"], example["labels"]


@dataclass(frozen=True)
class Job:
    """references: the test set's targets."""

    recipe: Recipe
    prepared: Prepared
    references: Sequence[str]
    meter: Meter


# ---- chumoku ----


class Until(Reports):
    """Ends a run when its time is over."""

    def __init__(self, meter: Meter) -> None:
        super().__init__(())
        self.meter, self.run = meter, None

    def resumed(self, step: int) -> None:
        self.meter.start()

    def step(self, step: Step) -> None:
        if self.meter.over():
            self.run.steps = step.step


def ours(job: Job) -> dict[str, Any]:
    recipe, prepared, meter = job.recipe, job.prepared, job.meter
    task = replace(prepared.task, collate=meter.counting(prepared.task.collate))
    model, until = prepared.loaded.model, Until(meter)
    with tempfile.TemporaryDirectory() as place:
        until.run = run = Run(model, task, recipe.training, Path(place), until)
        steps = run.train().steps
    model.eval()
    start = time.perf_counter()
    with torch.no_grad():
        found = prepared.test.evaluate(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": steps,
        "bleu": found["bleu"],
        "decoding": time.perf_counter() - start,
    }


# ---- transformers ----


def theirs(job: Job) -> dict[str, Any]:
    from datasets import Dataset
    from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, set_seed

    recipe, prepared, meter = job.recipe, job.prepared, job.meter
    settings, examples = recipe.training, prepared.task.examples.examples
    set_seed(settings.seed)
    model = marian(prepared)
    pairs = Dataset.from_list(
        [
            {"input_ids": s.tolist(), "labels": t.tolist(), "length": max(len(s), len(t))}
            for s, t in examples
        ]
    )
    with tempfile.TemporaryDirectory() as place:
        batches = Run(prepared.loaded.model, prepared.task, settings, Path(place), Reports(()))
        arguments = Seq2SeqTrainingArguments(
            output_dir=place,
            per_device_train_batch_size=round(len(examples) / batches.epoch_steps),
            train_sampling_strategy="group_by_length",
            num_train_epochs=settings.epochs,
            learning_rate=settings.optimiser.learning_rate,
            adam_beta1=settings.optimiser.betas[0],
            adam_beta2=settings.optimiser.betas[1],
            weight_decay=settings.optimiser.weight_decay,
            max_grad_norm=settings.clip or 0.0,
            lr_scheduler_type=settings.schedule.kind.replace("-", "_"),
            warmup_steps=settings.schedule.warmup_steps or 0,
            label_smoothing_factor=recipe.task.get("smoothing", 0.1),
            remove_unused_columns=False,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
            seed=settings.seed,
        )
        average = None if settings.ema is None else EMA(trained(model), settings.ema)
        trainer = Seq2SeqTrainer(
            model=model,
            args=arguments,
            train_dataset=pairs,
            data_collator=meter.counting(collator(model)),
            callbacks=[stopping(meter, model, average)],
        )
        trainer.train()
    if average is not None:
        average.copy_to(model)
    start = time.perf_counter()
    hypotheses = translations(model.eval(), job)
    return {
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "steps": trainer.state.global_step,
        "bleu": bleu(hypotheses, job.references, recipe.task["tokenize"]),
        "decoding": time.perf_counter() - start,
    }


def marian(prepared: Prepared) -> Any:
    """The published class in the recipe's sizes."""
    from transformers import MarianConfig, MarianMTModel

    config = prepared.loaded.model.config
    return MarianMTModel(
        MarianConfig(
            vocab_size=config.vocab_size,
            d_model=config.width,
            encoder_layers=config.num_encoder_blocks,
            decoder_layers=config.num_decoder_blocks,
            encoder_attention_heads=config.encoder_heads,
            decoder_attention_heads=config.decoder_heads,
            encoder_ffn_dim=config.encoder_feedforward_width,
            decoder_ffn_dim=config.decoder_feedforward_width,
            activation_function=config.activation,
            max_position_embeddings=config.max_positions,
            dropout=config.dropout,
            scale_embedding=config.scaled_embeddings,
            init_std=config.width**-0.5,
            pad_token_id=config.pad_id,
            eos_token_id=config.eos_ids[0],
            decoder_start_token_id=config.start_id,
            forced_eos_token_id=None,
        )
    )


def collator(model: Any) -> Callable[[Sequence[Any]], dict[str, torch.Tensor]]:
    pad = model.config.pad_token_id

    def collate(rows: Sequence[Any]) -> dict[str, torch.Tensor]:
        sources = [row["input_ids"] for row in rows]
        labels = padded([row["labels"] for row in rows], IGNORED)
        return {
            "input_ids": padded(sources, pad),
            "attention_mask": mask_of(sources).long(),
            "labels": labels,
            "decoder_input_ids": model.prepare_decoder_input_ids_from_labels(labels),
        }

    return collate


def stopping(meter: Meter, model: Any, average: EMA | None) -> Any:
    from transformers import TrainerCallback

    class Stopping(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            if average is not None:
                average.update(trained(model))
            control.should_training_stop |= meter.over()

    return Stopping()


@torch.no_grad()
def translations(model: Any, job: Job) -> list[str]:
    """Of the test set; like lengths are translated together, as on our side."""
    recipe, prepared = job.recipe, job.prepared
    sources = [example.source_S.tolist() for example in prepared.test.examples.examples]
    order = sorted(range(len(sources)), key=lambda n: -len(sources[n]))
    size = recipe.task.get("evaluation_batch_size", 32)
    found = [""] * len(sources)
    for start in range(0, len(order), size):
        places = order[start : start + size]
        some = [sources[n] for n in places]
        rows = model.generate(
            input_ids=padded(some, model.config.pad_token_id),
            attention_mask=mask_of(some).long(),
            num_beams=recipe.task["num_beams"],
            max_new_tokens=recipe.task["target_length"],
            length_penalty=recipe.task.get("length_penalty", 1.0),
            do_sample=False,
        )
        for n, row in zip(places, rows.tolist(), strict=True):
            found[n] = prepared.loaded.tokenizer.decode(row, skip_special=True)
    return found


# ---- both ----

SIDES = {"chumoku": ours, "transformers": theirs}


def without_evaluation(recipe: Recipe, seed: int) -> Recipe:
    """The recipe as it is measured: nothing between the steps, judged on the test set alone."""
    if recipe.training.schedule.kind not in ENDLESS:
        raise ConfigError(
            f"{recipe.training.schedule.kind!r} has to know the number of steps",
            where="[training.schedule] kind",
            advice=f"one of {', '.join(ENDLESS)}",
        )
    training = replace(recipe.training, seed=seed, evaluate_every=0, save_every=0)
    return replace(recipe, training=training, data=replace(recipe.data, evaluation=()))


def measure(
    side: str, recipe: Recipe, places: Sequence[Path], folder: Path, seconds: float
) -> dict[str, Any]:
    prepared = prepare(recipe, folder, places, torch.device("cpu"))
    references = [row["target"] for row in read_data(recipe.data, places)["test"].rows]
    meter = Meter(seconds)
    found = SIDES[side](Job(recipe, prepared, references, meter))
    return {
        "side": side,
        "seed": recipe.training.seed,
        **found,
        "signature": bleu_signature(recipe.task["tokenize"]),
        "seconds": meter.seconds,
        "tokens": meter.tokens,
        "threads": torch.get_num_threads(),
    }


def line(found: dict[str, Any]) -> str:
    return (
        f"{found['side']:<13} seed {found['seed']}  BLEU {found['bleu']:.2f}  "
        f"{found['parameters']:,} parameters  {found['seconds']:.0f} s  {found['steps']} steps  "
        f"{found['tokens']:,} tokens  translating {found['decoding']:.0f} s"
    )


def summary(found: Sequence[dict[str, Any]]) -> list[str]:
    lines, means = [], {}
    for side in SIDES:
        scores = [one["bleu"] for one in found if one["side"] == side]
        if scores:
            means[side] = statistics.mean(scores)
            spread = f" +- {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
            lines.append(f"{side:<13} BLEU {means[side]:.2f}{spread}, {len(scores)} seeds")
    if len(means) == len(SIDES):
        lines.append(f"chumoku - transformers: {means['chumoku'] - means['transformers']:+.2f}")
    return [*lines, *sorted({one["signature"] for one in found})]


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", help="a name in recipes/, or a file")
    parser.add_argument("--data", type=Path, action="append", default=[])
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=SIDES)
    options, overrides = parser.parse_known_args(words)
    file = Path(options.recipe)
    if not file.suffix:
        file = Path(__file__).parent.parent / "recipes" / f"{options.recipe}.toml"
    recipe = read_recipe(file, [word.removeprefix("--") for word in overrides])
    folder = options.output / file.stem
    folder.mkdir(parents=True, exist_ok=True)
    if options.side:
        torch.set_num_threads(options.threads)
    else:  # so that two processes do not train it at once
        prepare(without_evaluation(recipe, 0), folder, options.data, torch.device("cpu"))
    for seed in options.seeds:
        missing = [s for s in SIDES if not result_file(folder, s, seed).exists()]
        if options.side in missing:
            chosen = without_evaluation(recipe, seed)
            found = measure(options.side, chosen, options.data, folder, options.seconds)
            result_file(folder, options.side, seed).write_text(json.dumps(found), encoding="utf-8")
        elif not options.side:
            together([[*words, "--side", s, "--seeds", str(seed)] for s in missing], options)
    found = [json.loads(f.read_text()) for f in sorted(folder.glob("*-seed*.json"))]
    print(*map(line, found), *summary(found), sep="\n", flush=True)
    return 0


def result_file(folder: Path, side: str, seed: int) -> Path:
    return folder / f"{side}-seed{seed}.json"


def together(commands: Sequence[Sequence[str]], options: argparse.Namespace) -> None:
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads), HF_HUB_OFFLINE="1")
    running = [
        subprocess.Popen(
            [sys.executable, __file__, *command], env=environment, stdout=subprocess.DEVNULL
        )
        for command in commands
    ]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a side has failed")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
