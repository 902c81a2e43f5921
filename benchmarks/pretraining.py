"""nanoGPT's README setting for a CPU, beside nanoGPT's own script, in one run.

    python benchmarks/pretraining.py NANOGPT_FOLDER ../shared/data/shakespeare/input.txt \
        [--dtypes float32 bfloat16] [--pairs 1] [--threads 2]

4 blocks, 4 heads, width 128, windows of 64 characters, 12 of them a step, 2,000 steps, no dropout.
nanoGPT's script computes in float32 on a CPU; chumoku in each of the dtypes. Both sides are
commands of their own and their whole time counts: imports, reading, evaluations every 250 steps on
240 windows, saving. NANOGPT_FOLDER: a checkout whose data/shakespeare_char/prepare.py has been run
on the same text.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OPTIONS = (
    *("--device=cpu", "--compile=False", "--eval_iters=20", "--log_interval=1", "--block_size=64"),
    *("--batch_size=12", "--n_layer=4", "--n_head=4", "--n_embd=128", "--max_iters=2000"),
    *("--lr_decay_iters=2000", "--dropout=0.0"),
)


def theirs(folder: Path, environment: dict[str, str]) -> tuple[float, float]:
    """(seconds, validation loss at the end)."""
    words = [sys.executable, "train.py", "config/train_shakespeare_char.py", *OPTIONS]
    start = time.perf_counter()
    done = subprocess.run(
        words, cwd=folder, env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    seconds = time.perf_counter() - start
    losses = re.findall(r"step \d+: train loss [\d.]+, val loss ([\d.]+)", done.stdout)
    return seconds, float(losses[-1])


def ours(text: Path, environment: dict[str, str], dtype: str) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as place:
        words = [sys.executable, "-m", "chumoku", "train", "recipes/shakespeare.toml"]
        words += ["--output", place, "--data", str(text.parent), f"--data.train={text.name}"]
        words += [f"--training.dtype={dtype}"]
        start = time.perf_counter()
        subprocess.run(words, env=environment, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        result = json.loads((Path(place) / "run" / "result.json").read_text())
    return seconds, result["evaluation"]["loss"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("nanogpt", type=Path)
    parser.add_argument("text", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    options = parser.parse_args()
    environment = dict(os.environ, OMP_NUM_THREADS=str(options.threads))
    for _ in range(options.pairs):
        seconds, loss = theirs(options.nanogpt, environment)
        print(f"nanoGPT            {seconds:.1f} s  loss {loss:.4f} (20 batches)", flush=True)
        for dtype in options.dtypes:
            own, loss = ours(options.text, environment, dtype)
            print(
                f"chumoku {dtype:<9}  {own:.1f} s  loss {loss:.4f} (240 windows): "
                f"{own / seconds:.2f} of nanoGPT's time",
                flush=True,
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
