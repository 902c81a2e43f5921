"""Fine-tuning MiniLM on SST-2's sentences, beside transformers' Trainer, in one run.

    python benchmarks/finetuning.py ../shared/data/sst [--epochs 2] [--dtypes float32]

Both sides: the same weights, sentences, batch size 32, AdamW at 5e-5 with linear decay, no warm-up,
clipping at 1; each in a process of its own. The time is that of the training loop alone; loading
and tokenising come before it. Accuracy is that on the 1,821 test sentences.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SOURCE = "all-minilm-l6-v2"
RATE, BATCH, SEED = 5e-5, 32, 0


def read(folder: Path, name: str, limit: int | None = None) -> list[dict[str, str]]:
    from chumoku.training.data.rows import read_rows

    file = folder / f"stsa.binary.{name}"
    return [dict(r) for r in read_rows(file, format="label-text", limit=limit).rows]


def ours(folder: Path, epochs: float, limit: int | None, dtype: str) -> dict[str, Any]:
    from chumoku.loading import load
    from chumoku.training.data.batching import Batching
    from chumoku.training.loop import Run
    from chumoku.training.objectives import classification
    from chumoku.training.optimisers import OptimiserSettings
    from chumoku.training.progress import Reports
    from chumoku.training.schedules import ScheduleSettings
    from chumoku.training.settings import Settings

    rows, test = read(folder, "train", limit), read(folder, "test")
    import torch

    torch.manual_seed(SEED)
    loaded = load(
        SOURCE, head="classification", new_head=True, labels=classification.labels_of(rows)
    )
    learned = classification.task(loaded, rows)
    judged = classification.task(loaded, test, evaluation=test)
    settings = Settings(
        epochs=epochs,
        dtype=dtype,
        seed=SEED,
        save_every=0,
        batching=Batching(BATCH),
        optimiser=OptimiserSettings(learning_rate=RATE, weight_decay=0.0),
        schedule=ScheduleSettings("linear"),
    )
    with tempfile.TemporaryDirectory() as place:
        run = Run(loaded.model, learned, settings, Path(place), Reports(()))
        start = time.perf_counter()
        result = run.train()
        seconds = time.perf_counter() - start
    loaded.model.float().eval()
    with torch.no_grad():
        assert judged.evaluate is not None
        metrics = judged.evaluate(loaded.model)
    return {"seconds": seconds, "steps": result.steps, "accuracy": metrics["accuracy"]}


def trainer(folder: Path, epochs: float, limit: int | None, dtype: str) -> dict[str, Any]:
    import numpy as np
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from chumoku.checkpoints.sources import resolve

    rows, test = read(folder, "train", limit), read(folder, "test")
    place = str(resolve(SOURCE).path)
    tokenizer = AutoTokenizer.from_pretrained(place)
    model = AutoModelForSequenceClassification.from_pretrained(place, num_labels=2)

    def encoded(rows: list[dict[str, str]]) -> list[dict[str, Any]]:
        found = tokenizer([row["text"] for row in rows], truncation=True)
        return [
            {"input_ids": ids, "attention_mask": mask, "label": int(row["label"])}
            for ids, mask, row in zip(
                found["input_ids"], found["attention_mask"], rows, strict=True
            )
        ]

    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output_dir=output,
            per_device_train_batch_size=BATCH,
            per_device_eval_batch_size=BATCH,
            learning_rate=RATE,
            num_train_epochs=epochs,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=dtype == "bfloat16",
            seed=SEED,
            disable_tqdm=True,
        )
        run = Trainer(
            model=model,
            args=arguments,
            train_dataset=encoded(rows),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        start = time.perf_counter()
        run.train()
        seconds = time.perf_counter() - start
        logits = run.predict(encoded(test)).predictions
    gold = np.array([int(row["label"]) for row in test])
    accuracy = float((np.asarray(logits).argmax(-1) == gold).mean())
    return {"seconds": seconds, "steps": run.state.global_step, "accuracy": accuracy}


SIDES = {"chumoku": ours, "transformers": trainer}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--dtypes", nargs="+", default=["float32"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--side", choices=SIDES)
    options = parser.parse_args()
    if options.side:
        import torch

        torch.set_num_threads(options.threads)
        answer = SIDES[options.side](
            options.folder, options.epochs, options.limit, options.dtypes[0]
        )
        print(json.dumps(answer))
        return 0
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads), HF_HUB_OFFLINE="1")
    for dtype in options.dtypes:
        found = {}
        for side in SIDES:
            words = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--dtypes", dtype]
            done = subprocess.run(
                words, env=environment, stdout=subprocess.PIPE, text=True, check=True
            )
            found[side] = json.loads(done.stdout.splitlines()[-1])
            one = found[side]
            print(
                f"{side:<13} {dtype}  {one['steps']} steps  {one['seconds']:.1f} s  "
                f"test accuracy {one['accuracy']:.4f}",
                flush=True,
            )
        ratio = found["chumoku"]["seconds"] / found["transformers"]["seconds"]
        print(f"chumoku takes {ratio:.2f} of transformers' time ({dtype})", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
