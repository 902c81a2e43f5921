"""Block kernels beside PyTorch's float32 product and beside dequantise-then-multiply, in one run.

    python benchmarks/kernels.py [--threads 1 2] [--tokens 1 8] [--storages Q8_0 Q4_0 ...]

GB/s counts the stored bytes of the weight once per call. The best of many calls is kept, since
other work on the machine can only make a call slower. Shapes are SmolLM2-135M's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.kernels import native
from chumoku.kernels.blocks import STORAGE, row_bytes
from chumoku.kernels.linear import block_linear, dequantize_fast

SHAPES = ((192, 576), (576, 576), (1536, 576), (576, 1536), (49152, 576))
SCALES_AT = {"Q2_K": (80, 82), "Q3_K": (108,), "Q6_K": (208,)}
TWO_SCALES = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")


def stored_weight(storage: str, rows: int, values: int) -> Tensor:
    """Random stored rows whose values are ordinary numbers (no subnormals, which run slowly)."""
    if STORAGE[storage][0] == 1:
        dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[storage]
        return torch.randn(rows, values).to(dtype).view(torch.uint8)
    per_block, block_bytes = STORAGE[storage]
    raw = torch.randint(0, 256, (rows, values // per_block, block_bytes), dtype=torch.uint8)
    scale = torch.full((rows, values // per_block, 1), 0.01).half().view(torch.uint8)
    for at in SCALES_AT.get(storage, (0, 2) if storage in TWO_SCALES else (0,)):
        raw[..., at : at + 2] = scale
    return raw.flatten(1)


def best_seconds(function: Callable[[], object], budget: float = 0.3) -> float:
    function()
    best, stop = float("inf"), time.perf_counter() + budget
    while time.perf_counter() < stop:
        start = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - start)
    return best


def measure(storage: str, rows: int, values: int, tokens: int) -> str:
    values -= values % STORAGE[storage][0]
    raw = stored_weight(storage, rows, values)
    x, weight = torch.randn(tokens, values), dequantize_fast(raw, storage)
    kernel = best_seconds(lambda: block_linear(x, raw, storage))
    floats = best_seconds(lambda: F.linear(x, weight))
    both = best_seconds(lambda: F.linear(x, dequantize_fast(raw, storage)))
    rate = rows * row_bytes(storage, values) / kernel / 1e9
    return (
        f"{storage:5} {tokens:4} {rows:6}x{values:<5} {kernel * 1e6:9.1f} us {rate:7.2f} GB/s "
        f"{floats / kernel:7.2f}x {both / kernel:9.2f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokens", type=int, nargs="+", default=[1])
    parser.add_argument("--storages", nargs="+", default=["Q8_0", "Q4_0", "Q4_K", "Q6_K", "F16"])
    options = parser.parse_args()
    print(native.describe())
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{threads} thread(s): storage, tokens, weight, time, rate of weights,")
        print("  times faster than F.linear in float32, than dequantise + F.linear")
        for storage in options.storages:
            for tokens in options.tokens:
                for rows, values in SHAPES:
                    print(measure(storage, rows, values, tokens), flush=True)


if __name__ == "__main__":
    main()
