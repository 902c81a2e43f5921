"""Damaged files: seeds, mutations, and a child process in which a reader meets them under limits.

The child has 64 MiB and twice the largest file beyond what it needs to start. A mutant may be
refused with CheckpointError; where it is accepted, every tensor must lie inside the file and share
no byte with another. Anything else, and more than two seconds, is a problem.
"""

from __future__ import annotations

import json
import random
import re
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chumoku.checkpoints import assign, gguf, ranges, safetensors
from chumoku.checkpoints.gguf_values import GGUFValue
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.errors import CheckpointError

EXTREMES = [0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1, 2**32, 2**32 + 1]
EXTREMES += [2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
SPARE = 64 << 20
SECONDS = 2.0

# Where the package accepts and we refuse: the format says so, or chumoku cannot hold it.
JUSTIFIED = {
    "does not begin with {": "the format: a header begins with {",
    "comes twice": "the format: no duplicate keys",
    "unknown field": "the format names three fields",
    "expected one of {": "an entry is an object, and metadata is one where it is there",
    "not supported": "a dtype that PyTorch or chumoku does not have",
    "more than 64 numbers": "PyTorch holds 64 dimensions",
    "go beyond 64 bits": "a product that only a zero among the sizes hides",
}


# ---- seeds ----


def lazy_bytes(name: str, shape: tuple[int, ...], storage: str, raw: bytes) -> LazyTensor:
    return LazyTensor(name, shape, storage, lambda: bytearray(raw))


def safetensors_seeds(folder: Path) -> list[bytes]:
    """Files of none to six tensors, with and without metadata."""
    torch.manual_seed(0)
    small = {"a": torch.randn(2, 3), "b": torch.arange(5, dtype=torch.int64)}
    many = {
        **small,
        "half": torch.randn(4, 2).half(),
        "brain": torch.randn(3).bfloat16(),
        "empty": torch.zeros(0, 4),
        "flag": torch.tensor([True, False]),
        'quoted "é" \\': torch.randn(()),
    }
    seeds = []
    for index, (tensors, metadata) in enumerate(
        [({}, None), (small, None), (small, {"format": "pt", "k": "v\n"}), (many, {"format": "pt"})]
    ):
        path = folder / f"seed{index}.safetensors"
        safetensors.write_safetensors(
            path, [assign.lazy(k, v) for k, v in tensors.items()], metadata
        )
        seeds.append(path.read_bytes())
    return seeds


def gguf_seeds(folder: Path) -> list[bytes]:
    """Files with every kind of metadata, nested arrays, several storages and alignments."""
    random.seed(0)
    numbers = {k: GGUFValue(k, 3) for k in ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")}
    rich: dict[str, object] = {
        "general.architecture": "llama",
        **numbers,
        "f64": GGUFValue("f64", 0.1),
        "f": 1.5,
        "yes": True,
        "tokens": ["a", "", "é", "<unk>"],
        "scores": [0.5, -1.0, 2.0, 3.0],
        "flags": [True, False],
        "nested": GGUFValue("array", [GGUFValue("array", [1, 2], "u8")], "array"),
    }
    q8 = lazy_bytes("blk.0.w", (3, 32), "Q8_0", random.randbytes(3 * 34))
    f32 = lazy_bytes("norm", (5,), "F32", random.randbytes(20))
    f16 = lazy_bytes("cube", (2, 3, 4), "F16", random.randbytes(48))
    seeds = []
    for index, (metadata, tensors) in enumerate(
        [
            ({}, []),
            ({"general.architecture": "gpt2"}, [f32]),
            (rich, [q8, f32, f16]),
            ({"general.alignment": 64}, [f32, f16]),
        ]
    ):
        path = folder / f"seed{index}.gguf"
        gguf.write_gguf(path, metadata, tensors)
        seeds.append(path.read_bytes())
    return seeds


# ---- mutations ----


def flips(seed: bytes, rng: random.Random) -> bytes:
    raw = bytearray(seed)
    for _ in range(rng.choice((1, 1, 2, 8))):
        place = rng.randrange(len(raw))
        raw[place] = (
            rng.randrange(256) if rng.random() < 0.5 else raw[place] ^ 1 << rng.randrange(8)
        )
    return bytes(raw)


def binary_field(seed: bytes, rng: random.Random) -> bytes:
    """An extreme value in four or eight bytes, wherever a field could begin."""
    size, code = rng.choice(((4, "<I"), (8, "<Q")))
    place = rng.randrange(max(1, min(len(seed), 1200) - size))
    value = rng.choice([v for v in EXTREMES if v < 1 << 8 * size])
    return seed[:place] + struct.pack(code, value) + seed[place + size :]


def json_field(seed: bytes, rng: random.Random) -> bytes:
    """An extreme value for one number of a safetensors header, or for its length."""
    (length,) = struct.unpack("<Q", seed[:8])
    header = seed[8 : 8 + length]
    found = list(re.finditer(rb"\d+", header))
    if not found or rng.random() < 0.1:
        return struct.pack("<Q", rng.choice(EXTREMES)) + seed[8:]
    number = rng.choice(found)
    value = str(rng.choice([*EXTREMES, 2**64, 10**400, -1, 1.5])).encode()
    changed = header[: number.start()] + value + header[number.end() :]
    return struct.pack("<Q", len(changed)) + changed + seed[8 + length :]


def every_field(kind: str, seed: bytes) -> Iterator[bytes]:
    """Every extreme value in every place where a number stands, or (GGUF) could stand."""
    if kind == "gguf":
        for place in range(min(len(seed), 1200) - 8):
            for value in EXTREMES:
                yield seed[:place] + struct.pack("<Q", value) + seed[place + 8 :]
                if value < 1 << 32:
                    yield seed[:place] + struct.pack("<I", value) + seed[place + 4 :]
        return
    (length,) = struct.unpack("<Q", seed[:8])
    header, data = seed[8 : 8 + length], seed[8 + length :]
    for value in EXTREMES:
        yield struct.pack("<Q", value) + header + data
    for number in re.finditer(rb"\d+", header):
        for value in [*EXTREMES, 2**64, -1]:
            changed = header[: number.start()] + b"%d" % value + header[number.end() :]
            yield struct.pack("<Q", len(changed)) + changed + data


def truncation(seed: bytes, rng: random.Random) -> bytes:
    return seed[: rng.randrange(len(seed))]


def splice(seed: bytes, other: bytes, rng: random.Random) -> bytes:
    return seed[: rng.randrange(len(seed))] + other[rng.randrange(len(other)) :]


def length_lie(kind: str, seed: bytes, rng: random.Random) -> bytes:
    """Bytes added or removed somewhere, and a length nearby that goes along with it."""
    place = rng.randrange(8, len(seed))
    step = rng.choice((-8, -1, 1, 8, 32))
    raw = seed[:place] + bytes(max(step, 0)) + seed[place + max(-step, 0) :]
    at = 0 if kind == "safetensors" else rng.randrange(max(1, min(len(raw), 1200) - 8))
    (value,) = struct.unpack("<Q", raw[at : at + 8])
    return raw[:at] + struct.pack("<Q", (value + step) % 2**64) + raw[at + 8 :]


def mutants(kind: str, seeds: list[bytes], count: int, rng: random.Random) -> Iterator[bytes]:
    """Half flips, a quarter fields, then truncations, splices, lies; first a small file's prefixes.

    A count of 0 asks for every field of the richest file instead.
    """
    if not count:
        yield from every_field(kind, max(seeds, key=len))
        return
    prefixes = min(count // 5, len(seeds[1]))
    for end in rng.sample(range(len(seeds[1])), prefixes):
        yield seeds[1][:end]
    for _ in range(count - prefixes):
        seed, draw = rng.choice(seeds), rng.random()
        if draw < 0.5:
            yield flips(seed, rng)
        elif draw < 0.75:
            yield (json_field if kind == "safetensors" else binary_field)(seed, rng)
        elif draw < 0.8:
            yield truncation(seed, rng)
        elif draw < 0.9:
            yield splice(seed, rng.choice(seeds), rng)
        else:
            yield length_lie(kind, seed, rng)


# ---- the child ----


def run_child(kind: str, count: int, folder: Path, weaken: str = "") -> dict[str, Any]:
    """Let a child process read `count` mutants; its findings."""
    source = str(Path(gguf.__file__).parents[2])
    child = subprocess.run(
        [sys.executable, "-W", "error", __file__, kind, str(count), str(folder), weaken],
        env={"PYTHONPATH": source, "OMP_NUM_THREADS": "1", "PATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if child.returncode:
        return {"problems": [f"ended with {child.returncode}: {child.stderr[-2000:]}"]}
    result: dict[str, Any] = json.loads(child.stdout)
    return result


_SEEN: list[tuple[int, int]] = []


def _record_ranges() -> None:
    """Note where the readers say that tensors lie."""
    original = ranges.StableFile.tensor

    def tensor(self: Any, name: str, shape: Any, storage: str, offset: int, size: int) -> Any:
        _SEEN.append((offset, size))
        return original(self, name, shape, storage, offset, size)

    ranges.StableFile.tensor = tensor  # type: ignore[method-assign]


def _weaken(kind: str) -> None:
    """The negative controls: a reader that does not look, and one that allocates first."""
    if kind == "ranges":
        gguf._check_ranges = lambda *_: None
        safetensors._check_ranges = lambda *_: None
    elif kind == "allocation":
        honest = gguf._bounded

        def greedy(cursor: Any, what: str, least: int, most: int) -> int:
            start = cursor.position
            np.empty(min(cursor.count("u64", what), 1 << 60), np.uint8)
            cursor.position = start
            return honest(cursor, what, least, most)

        gguf._bounded = greedy
        parse = safetensors.read_safetensors

        def greedy_read(path: Path) -> Any:
            raw = path.read_bytes()[:8].ljust(8, b"\0")
            np.empty(min(struct.unpack("<Q", raw)[0], 1 << 60), np.uint8)
            return parse(path)

        safetensors.read_safetensors = greedy_read  # type: ignore[assignment]


def _verdict(read: Callable[[Path], Any], path: Path, size: int) -> tuple[str, str]:
    """accepted, refused or problem; and why."""
    _SEEN.clear()
    try:
        tensors = read(path).tensors
        for tensor in tensors.values():
            if len(tensor.read()) != tensor.nbytes:
                return "problem", f"{tensor.name!r} gave another number of bytes"
    except CheckpointError as error:
        if _SEEN:
            return "problem", f"opened, and then: {error}"
        return "refused", str(error)
    except BaseException as error:
        return "problem", f"{type(error).__name__}: {error}"
    position = 0
    for offset, nbytes in sorted(_SEEN):
        if nbytes and (offset < position or offset + nbytes > size):
            return "problem", f"bytes {offset} to {offset + nbytes} overlap or leave the file"
        position = max(position, offset + nbytes)
    return "accepted", ""


def _difference(verdict: str, why: str, raw: bytes) -> str:
    """Where the safetensors package judges otherwise without a reason that we know."""
    from safetensors import SafetensorError, deserialize

    try:
        deserialize(raw)
        accepted = True
    except (SafetensorError, OverflowError):
        accepted = False
    if accepted == (verdict == "accepted"):
        return ""
    if not accepted:
        return "accepted, but the package refuses"
    return "" if any(reason in why for reason in JUSTIFIED) else f"the package accepts: {why}"


def _limit_memory(extra: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + extra
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def main(kind: str, count: int, folder: Path, weaken: str) -> None:
    seeds = safetensors_seeds(folder) if kind == "safetensors" else gguf_seeds(folder)
    _record_ranges()
    _weaken(weaken)
    from safetensors import deserialize  # loaded before the limit

    deserialize(seeds[0]) if kind == "safetensors" else None
    rng, path = random.Random(1), folder / f"mutant.{kind}"
    found: dict[str, Any] = {"accepted": 0, "refused": 0, "problem": 0, "problems": []}
    slowest = 0.0
    _limit_memory(SPARE + 2 * max(map(len, seeds)))
    for number, raw in enumerate(mutants(kind, seeds, count, rng)):
        path.write_bytes(raw)
        begin = time.perf_counter()
        read = safetensors.read_safetensors if kind == "safetensors" else gguf.read_gguf
        verdict, why = _verdict(read, path, len(raw))
        taken = time.perf_counter() - begin
        slowest = max(slowest, taken)
        if taken > SECONDS:
            verdict, why = "problem", f"{taken:.1f} seconds"
        if verdict != "problem" and kind == "safetensors":
            difference = _difference(verdict, why, raw)
            verdict, why = ("problem", difference) if difference else (verdict, why)
        found[verdict] += 1
        if verdict == "problem" and len(found["problems"]) < 5:
            found["problems"].append(f"mutant {number}: {why}; {raw[:400]!r}")
    print(json.dumps(found | {"slowest": slowest}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
