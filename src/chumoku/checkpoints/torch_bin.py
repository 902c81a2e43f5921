"""PyTorch's own files (.bin, .pt, .pth): pickles, so they are read in a limited child process.

The child loads with weights_only and hands the tensors back as safetensors in a private folder,
which lives as long as one of the tensors does. There is no other way in, and no way round it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from chumoku.checkpoints.lazy import LazyTensor, Raw
from chumoku.checkpoints.ranges import stable_file
from chumoku.checkpoints.safetensors import read_safetensors
from chumoku.checkpoints.torch_worker import BYTES_PER_SECOND
from chumoku.errors import CheckpointError, ChumokuError, ResourceError

WORKER: Final = Path(__file__).with_name("torch_worker.py")
START_SECONDS: Final = 120

log = logging.getLogger("chumoku")


def read_torch_bin(path: str | os.PathLike[str]) -> dict[str, LazyTensor]:
    """The tensors of one PyTorch file, of the zip or the older format.

    Raises CheckpointError where the file holds anything but tensors by name, is damaged, or costs
    more memory or time than its size explains; ResourceError where the temporary folder is full.
    """
    return read_torch_files([Path(path)])[0]


def read_torch_files(paths: Sequence[Path]) -> list[dict[str, LazyTensor]]:
    """The tensors of several files, read by one child process. Raises as read_torch_bin."""
    files = [stable_file(path) for path in paths]
    total = sum(file.size for file in files)
    names = ", ".join(file.path.name for file in files[:3])
    more = f" and {len(files) - 3} more" if len(files) > 3 else ""
    log.info("%s%s: pickle, read in a limited child process", names, more)
    folder = _private_folder(total)
    targets = [os.path.join(folder.path, f"{n}.safetensors") for n in range(len(files))]
    job = {
        "files": [(str(file.path), target) for file, target in zip(files, targets, strict=True)],
        "folder": folder.path,
        "size": max((file.size for file in files), default=0),
        "path": [entry for entry in sys.path if os.path.isabs(entry)],
    }
    answer = _run(job, START_SECONDS + 2 * total / BYTES_PER_SECOND, str(files[0].path))
    done = answer.get("file")
    if done != len(files):
        place = files[done].path if isinstance(done, int) else files[0].path
        raise CheckpointError(
            str(answer.get("fault", "the child process gave no reason")),
            where=place,
            advice="ask for a safetensors file of this model",
        )
    return [_kept(read_safetensors(target).tensors, folder) for target in targets]


class _Folder:
    """A private temporary folder that goes when nothing refers to this object, or at exit."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="chumoku-torch-")  # mode 0700
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


def _private_folder(needed: int) -> _Folder:
    """A folder with so much room. Raises ResourceError."""
    try:
        place = tempfile.gettempdir()
        free = shutil.disk_usage(place).free
        if free >= needed:
            return _Folder()
    except OSError as error:
        raise ResourceError(f"no temporary folder: {error.strerror}", advice=_SPACE) from error
    raise ResourceError(
        f"a PyTorch file needs {needed} bytes of temporary space, {free} are free",
        where=place,
        advice=_SPACE,
    )


_SPACE: Final = "set TMPDIR to a folder on a disk with room, or use a safetensors file"


@dataclass(frozen=True)
class _Held:
    """A tensor together with the folder that its bytes lie in."""

    tensor: LazyTensor
    folder: _Folder

    def read(self) -> Raw:
        return self.tensor.read()


def _kept(tensors: Mapping[str, LazyTensor], folder: _Folder) -> dict[str, LazyTensor]:
    return {name: replace(t, read=_Held(t, folder).read) for name, t in tensors.items()}


def _run(job: dict[str, object], seconds: float, where: str) -> dict[str, object]:
    """Give the child its job; its last answer. Raises CheckpointError where it ends badly."""
    try:
        child = subprocess.run(
            [sys.executable, "-I", str(WORKER)],
            input=json.dumps(job),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=seconds,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckpointError(f"not read within {seconds:.0f} seconds", where=where) from None
    except OSError as error:
        raise ChumokuError(f"cannot start a child process: {error.strerror}") from error
    lines = child.stdout.strip().splitlines()
    try:
        answer = json.loads(lines[-1])
    except (IndexError, ValueError):
        last = child.stderr.strip().splitlines()[-1:]
        raise CheckpointError(
            f"the child process that read it ended with code {child.returncode}: "
            f"{''.join(last)[:200]}",
            where=where,
            advice="the file is damaged or hostile; ask for a safetensors file of this model",
        ) from None
    return answer if isinstance(answer, dict) else {}
