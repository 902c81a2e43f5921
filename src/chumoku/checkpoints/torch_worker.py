"""The child process that reads PyTorch files: limits itself, loads with weights_only, writes.

Run as `python -I torch_worker.py` with a job as JSON on standard input; answers in JSON on standard
output. Limits are set after the imports, so that they bound what the file does and nothing else.
Even were weights_only by-passed, the audit hook refuses to start programs, to open connections and
to write anywhere but into the job's folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

ADDRESS_SPARE: Final = 1 << 30
"""Bytes of address space beyond a multiple of the file's size."""
CPU_SECONDS: Final = 60
BYTES_PER_SECOND: Final = 20_000_000
EXPANSION: Final = 8
"""Tensors may share storage, so they can take more bytes than their file; but not so many."""

_WRAPPERS: Final = ("state_dict", "model")
_REFUSED: Final = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.spawn")
_REFUSED_FAMILIES: Final = (
    "subprocess.",
    "socket.",
    "ftplib.",
    "urllib.",
    "webbrowser.",
    "ctypes.",
)
_CHANGES: Final = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink")


class RefusedError(Exception):
    """What a file asked for and does not get; the text is for the user."""


def limit_process(size: int) -> None:
    """Bound memory, time and written bytes of what follows by a file's size."""
    try:
        import resource
    except ImportError:  # Windows has none of these; the parent's time limit remains
        return
    seconds = CPU_SECONDS + size // BYTES_PER_SECOND
    used = int(sum(resource.getrusage(resource.RUSAGE_SELF)[:2]))
    limits = {resource.RLIMIT_CPU: used + seconds, resource.RLIMIT_CORE: 0}
    limits[resource.RLIMIT_FSIZE] = EXPANSION * size + (1 << 20)
    with contextlib.suppress(OSError, ValueError):  # no /proc: the address space stays unbounded
        with open("/proc/self/statm", encoding="ascii") as stream:
            pages = int(stream.read().split()[0])
        limits[resource.RLIMIT_AS] = pages * resource.getpagesize() + 3 * size + ADDRESS_SPARE
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (bound, bound))


def refuse_effects(folder: str) -> None:
    """From now on this process starts no program, opens no connection, writes only in `folder`."""
    inside = os.path.realpath(folder) + os.sep
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in _REFUSED or event.startswith(_REFUSED_FAMILIES):
            raise RefusedError(f"the file tried to act outside ({event})")
        if event in _CHANGES:
            paths = (
                arguments[:2] if event in ("os.rename", "os.link", "os.symlink") else arguments[:1]
            )
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & writing:
            paths = arguments[:1]
        else:
            return
        for path in paths:
            name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else ""
            if not os.path.realpath(name).startswith(inside) and name != os.devnull:
                raise RefusedError(f"the file tried to change {name!r:.100}")

    sys.addaudithook(hook)


def load_tensors(path: str) -> dict[str, Any]:
    """The tensors of a PyTorch file by name. Raises RefusedError with a text for the user."""
    import torch

    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=False)
    except (MemoryError, RefusedError):
        raise
    except Exception as error:
        raise RefusedError(_explain(error)) from error
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
            break
    if not isinstance(content, Mapping):
        raise RefusedError(f"holds a {type(content).__name__}, not tensors by name")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise RefusedError(f"the entry {name!r:.80} is a {kind}, not a tensor")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise RefusedError(f"tensor {name[:80]!r} is sparse, quantised or without values")
    return dict(content)


def _explain(error: Exception) -> str:
    """The fault in our words. PyTorch's own text advises to switch the protection off."""
    text = str(error)
    found = re.search(r"GLOBAL ([\w.]+)", text)
    if found:
        return f"the file asks for Python code ({found[1][:100]}), which is never run"
    if "weights_only" in text.lower() or "weights only" in text.lower():
        return "the file holds more than tensors, and nothing else is read from it"
    first = text.strip().splitlines()[0] if text.strip() else "no further words"
    return f"not a readable PyTorch file ({type(error).__name__}: {first[:160]})"


def convert(source: str, target: str) -> None:
    """Write the tensors of a PyTorch file as safetensors; shared storages are written twice."""
    from chumoku.checkpoints import assign
    from chumoku.checkpoints.safetensors import write_safetensors

    tensors = load_tensors(source)
    for name, tensor in tensors.items():
        if tensor.dtype not in assign.STORAGE_OF:
            raise RefusedError(f"tensor {name[:80]!r} has the dtype {tensor.dtype}, not supported")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > EXPANSION * os.path.getsize(source) + (1 << 20):
        raise RefusedError(f"its tensors would grow to {total} bytes")
    write_safetensors(target, (assign.lazy(n, t) for n, t in tensors.items()))


def _answers(job: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    for index, (source, target) in enumerate(job["files"]):
        try:
            convert(source, target)
        except MemoryError:
            yield {"file": index, "fault": "it needs far more memory than its size explains"}
            return
        except Exception as error:
            known = isinstance(error, RefusedError) or type(error).__name__ == "CheckpointError"
            text = str(error) if known else f"{type(error).__name__}: {str(error)[:160]}"
            yield {"file": index, "fault": text}
            return
    yield {"file": len(job["files"])}


def main() -> None:
    job = json.load(sys.stdin)
    sys.path[:] = job["path"]
    import torch

    # Everything that is imported later is imported now, while reading is all that can happen.
    from chumoku.checkpoints import assign, safetensors

    _ = (assign.lazy, safetensors.write_safetensors)
    torch.set_num_threads(1)
    limit_process(job["size"])
    refuse_effects(job["folder"])
    for answer in _answers(job):
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
