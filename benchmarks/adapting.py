"""Ways to adapt a model, each beside what it is compared with, over several seeds, on SST-2.

    python benchmarks/adapting.py {distil,lora,steady} --data ../shared/data --output OUT \
        [--seeds 5] [--limit N] [--rate 5e-5] [--threads 1]

- distil: a student of half the teacher's depth, beside the same student without the teacher; and
  the time of a forward pass of both, in pairs.
- lora: the recipe `sst2-lora` beside full fine-tuning (`sst2`): the share of its gain over the most
  frequent answer, and the share of the weights that is trained.
- steady: 3 epochs on 300 sentences as BERT was published (AdamW without bias correction, no
  warm-up), beside what Mosbach et al. advise (2006.04884, section 6: correction, warm-up, 20
  epochs), at one learning rate, `--rate`. A run has failed that is no better than the most
  frequent answer.

Accuracy is that on the 1,821 test sentences. A run that is in OUT is not run again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from measuring import load_average, processor

from chumoku.loading import load
from chumoku.training.finetune import Seeds, run_seeds
from chumoku.training.recipe import Recipe, read_recipe
from chumoku.training.runner import train

RECIPES = Path(__file__).parent.parent / "recipes"
SMALL = 300


@dataclass(frozen=True)
class Bench:
    data: Path
    output: Path
    seeds: int
    limit: int | None
    rate: float

    def recipe(self, name: str, *settings: str) -> Recipe:
        recipe = read_recipe(RECIPES / f"{name}.toml", settings)
        if self.limit is not None:
            recipe = replace(recipe, data=replace(recipe.data, limit=self.limit))
        return replace(recipe, training=replace(recipe.training, evaluate_every=0, save_every=0))

    def run(self, label: str, recipe: Recipe, seeds: int | None = None) -> Seeds:
        found = run_seeds(
            recipe,
            self.output / label,
            seeds or self.seeds,
            lambda one, place: train(one, place, places=[self.data], device="cpu"),
        )
        values = " ".join(f"{value:.4f}" for value in found.values.values())
        print(
            f"{label:<10} mean {found.mean:.4f}, deviation {found.deviation:.4f}, "
            f"failed {len(found.failed)} of {len(found.values)}: {values}",
            flush=True,
        )
        return found


def distil(bench: Bench) -> None:
    teacher = bench.run("teacher", bench.recipe("sst2"), seeds=1)
    folder = bench.output / "teacher" / "seed-0"
    recipe = bench.recipe("distil-sst2", f"model.student_of={folder}", f"task.teacher={folder}")
    taught = bench.run("taught", recipe)
    alone = bench.run("alone", replace(recipe, task={"kind": "classification"}))
    print(f"teacher - taught: {100 * (teacher.mean - taught.mean):+.2f} points")
    print(f"taught - alone:   {100 * (taught.mean - alone.mean):+.2f} points")
    ratio = forward_ratio(bench.output / "taught" / "seed-0", folder)
    print(f"forward pass of the student: {ratio:.2f} of the teacher's (median of pairs)")


def forward_ratio(student: Path, teacher: Path, pairs: int = 21) -> float:
    """Of a batch of 32 rows of 32 tokens."""
    models = [load(folder, head="classification").model.eval() for folder in (student, teacher)]
    ids_BT = torch.randint(1000, 20_000, (32, 32), generator=torch.Generator().manual_seed(0))
    ratios = []
    with torch.inference_mode():
        for pair in range(pairs):
            seconds = []
            for model in models:
                start = time.perf_counter()
                model(ids_BT)
                seconds.append(time.perf_counter() - start)
            if pair:  # the first warms up
                ratios.append(seconds[0] / seconds[1])
    return statistics.median(ratios)


def lora(bench: Bench) -> None:
    full = bench.run("full", bench.recipe("sst2"))
    adapted = bench.run("lora", bench.recipe("sst2-lora"))
    result = json.loads((bench.output / "lora" / "seed-0" / "run" / "result.json").read_text())
    usual = result["test"]["majority"]
    if full.mean > usual:
        gain = (adapted.mean - usual) / (full.mean - usual)
        print(f"LoRA has {gain:.1%} of full fine-tuning's gain over {usual:.4f}")
    print(f"and trains {result['trained_share']:.2%} of the weights")


def steady(bench: Bench) -> None:
    common = ("training.batching.batch_size=16", f"training.optimiser.learning_rate={bench.rate}")
    naive = bench.recipe(
        "sst2",
        *common,
        "training.epochs=3",
        "training.optimiser.kind=bert-adam",
        "training.schedule.warmup_fraction=0.0",
    )
    advised = bench.recipe("sst2", *common, "training.epochs=20")
    for label, recipe in (("naive", naive), ("advised", advised)):
        bench.run(label, replace(recipe, data=replace(recipe.data, limit=bench.limit or SMALL)))


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("distil", "lora", "steady"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, help="rows of train, for a trial")
    parser.add_argument("--rate", type=float, default=5e-5, help="of `steady`")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(words)
    torch.set_num_threads(options.threads)
    print(f"{processor()}, torch {torch.__version__}, {options.threads} thread(s)", flush=True)
    print(f"load before: {load_average():.2f}", flush=True)
    bench = Bench(
        options.data, options.output / options.what, options.seeds, options.limit, options.rate
    )
    {"distil": distil, "lora": lora, "steady": steady}[options.what](bench)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
