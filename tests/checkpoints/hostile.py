"""Hostile and damaged PyTorch files, and a child process in which the worker's functions meet them.

One child reads hundreds of files with the worker's limits, where the real way starts one child for
each: the functions that load are the same.
"""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from chumoku.checkpoints import torch_worker
from chumoku.errors import CheckpointError

# module, name, and what to call it with; CANARY and CODE stand for a path and for Python code.
GADGETS: list[tuple[str, str, tuple[object, ...]]] = [
    *((module, "system", ("touch CANARY",)) for module in ("os", "posix", "nt")),
    *(("builtins", name, ("CODE",)) for name in ("eval", "exec", "compile", "breakpoint")),
    *(("__builtin__", name, ("CODE",)) for name in ("eval", "exec", "execfile")),
    ("builtins", "open", ("CANARY", "w")),
    ("builtins", "__import__", ("antigravity",)),
    ("builtins", "getattr", (1, "__class__")),
    ("io", "open", ("CANARY", "w")),
    ("_io", "FileIO", ("CANARY", "w")),
    ("os", "popen", ("touch CANARY",)),
    ("os", "execv", ("/bin/touch", ["touch", "CANARY"])),
    ("os", "spawnlp", (0, "touch", "touch", "CANARY")),
    ("os", "mkdir", ("CANARY",)),
    ("os", "mkfifo", ("CANARY",)),
    *(("subprocess", n, (["touch", "CANARY"],)) for n in ("Popen", "run", "call", "check_output")),
    ("subprocess", "getoutput", ("touch CANARY",)),
    ("runpy", "run_path", ("CANARY",)),
    ("runpy", "_run_code", ("CODE", {})),
    ("code", "interact", ()),
    ("pdb", "run", ("CODE",)),
    ("timeit", "timeit", ("CODE",)),
    ("cProfile", "run", ("CODE",)),
    ("bdb", "Bdb", ()),
    ("pty", "spawn", ("touch CANARY",)),
    ("shutil", "copyfile", ("/etc/hostname", "CANARY")),
    ("pathlib", "PosixPath.touch", ("CANARY",)),
    ("ctypes", "CDLL", ("libc.so.6",)),
    ("socket", "create_connection", (("127.0.0.1", 9),)),
    ("webbrowser", "open", ("file:///CANARY",)),
    ("importlib", "import_module", ("antigravity",)),
    ("pickle", "loads", (b"cos\nsystem\n(S'touch CANARY'\ntR.",)),
    ("torch", "load", ("CANARY",)),
    ("torch.hub", "load", ("CANARY", "m")),
    ("torch.jit", "load", ("CANARY",)),
    ("torch", "save", ([], "CANARY")),
    ("torch.serialization", "load", ("CANARY",)),
    ("torch.utils.collect_env", "run", ("touch CANARY",)),
    ("numpy", "save", ("CANARY", 1)),
    ("numpy.testing._private.utils", "runstring", ("CODE", {})),
    ("operator", "methodcaller", ("system", "touch CANARY")),
    ("functools", "partial", (print,)),
    ("logging", "FileHandler", ("CANARY",)),
    ("codecs", "open", ("CANARY", "w")),
    ("tempfile", "NamedTemporaryFile", ()),
]
STYLES = ("global", "stack_global", "inst", "obj", "build")


def hostile_pickle(module: str, name: str, arguments: tuple[object, ...], style: str) -> bytes:
    """A pickle of {"w": call} that calls by one of the ways that pickle has."""

    def packed(value: object) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]

    loaded = b"".join(packed(a) for a in arguments)
    named = f"c{module}\n{name}\n".encode()
    if style == "inst":
        call = b"(" + loaded + f"i{module}\n{name}\n".encode()
    elif style == "obj":
        call = b"(" + named + loaded + b"o"
    elif style == "stack_global":
        short = b"".join(b"\x8c" + bytes([len(t)]) + t.encode() for t in (module, name))
        call = short + b"\x93(" + loaded + b"tR"
    elif style == "build":
        call = b"ccollections\nOrderedDict\n)R" + b"}U\x0c__setstate__" + named + b"sb"
        call += b"(" + loaded + b"tb"
    else:
        call = named + b"(" + loaded + b"tR"
    return b"\x80\x04}U\x01w" + call + b"s."


def in_zip(pickled: bytes) -> bytes:
    """The zip format of torch.save around a pickle."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/data/0", bytes(16))
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def in_legacy(pickled: bytes) -> bytes:
    """The older format of torch.save around a pickle."""
    magic = 0x1950A86A20F9469CFC6C
    head = [magic, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join(pickle.dumps(part, protocol=2) for part in head) + pickled


def hostile_files(canary: str) -> Iterator[tuple[str, bytes]]:
    """Every gadget in every style; the zip format, the older one and a raw pickle by turns."""

    def fill(value: object) -> object:
        if isinstance(value, str):
            code = f"__import__('os').system('touch {canary}')"
            return value.replace("CANARY", canary).replace("CODE", code)
        if isinstance(value, list):
            return [fill(item) for item in value]
        return value.replace(b"CANARY", canary.encode()) if isinstance(value, bytes) else value

    wraps = (in_zip, in_legacy, bytes)
    for number, (module, name, arguments) in enumerate(GADGETS):
        filled = tuple(fill(argument) for argument in arguments)
        for offset, style in enumerate(STYLES):
            raw = hostile_pickle(module, name, filled, style)
            yield f"{module}.{name} by {style}", wraps[(number + offset) % 3](raw)


def state_files() -> list[bytes]:
    """A small state dict in both formats."""
    torch.manual_seed(0)
    shared = torch.randn(4, 4)
    state = {"a": shared, "b": shared.t()[1:], "c": torch.arange(3), "d": torch.randn(2).bfloat16()}
    files = []
    for modern in (True, False):
        stream = io.BytesIO()
        torch.save(state, stream, _use_new_zipfile_serialization=modern)
        files.append(stream.getvalue())
    return files


def damaged_files(count: int) -> Iterator[tuple[str, bytes]]:
    """Flipped bytes, extreme numbers and cuts in both formats."""
    rng, seeds = random.Random(2), state_files()
    for number in range(count):
        raw = bytearray(seeds[number % 2])
        place = rng.randrange(len(raw) - 8)
        draw = rng.random()
        if draw < 0.6:
            raw[place] ^= 1 << rng.randrange(8)
        elif draw < 0.8:
            size, code = rng.choice(((4, "<I"), (8, "<Q")))
            value = rng.choice((0, 1, 2**31 - 1, 2**31, 2**32 - 1))
            raw[place : place + size] = struct.pack(code, value)
        else:
            del raw[place:]
        yield f"damaged {number}", bytes(raw)


# ---- the child ----


def run_child(kind: str, count: int, folder: Path) -> dict[str, Any]:
    """Let a child process convert the files of one kind; its findings."""
    source = str(Path(torch_worker.__file__).parents[2])
    child = subprocess.run(
        [sys.executable, __file__, kind, str(count), str(folder)],
        env={"PYTHONPATH": source, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if child.returncode:
        return {"problems": [f"ended with {child.returncode}: {child.stderr[-2000:]}"]}
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def main(kind: str, count: int, folder: Path) -> None:
    canary = folder.with_name(folder.name + "-canary")
    files = list(hostile_files(str(canary)) if kind == "hostile" else damaged_files(count))
    for number, (_, raw) in enumerate(files):
        (folder / f"{number}.bin").write_bytes(raw)
    torch_worker.limit_process(max(len(raw) for _, raw in files))
    torch_worker.refuse_effects(str(folder))
    found: dict[str, Any] = {"accepted": 0, "refused": 0, "problems": [], "reasons": []}
    for number, (name, _) in enumerate(files):
        try:
            torch_worker.convert(str(folder / f"{number}.bin"), str(folder / "out"))
            found["accepted"] += 1
            if kind == "hostile":
                found["problems"].append(f"{name}: accepted")
        except (torch_worker.RefusedError, MemoryError, CheckpointError) as error:
            found["refused"] += 1
            found["reasons"].append(str(error))
        except BaseException as error:
            found["problems"].append(f"{name}: {type(error).__name__}: {error}")
        if canary.exists():
            found["problems"].append(f"{name}: the canary is there")
            break
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
