"""Starting processes.py in several processes, with torchrun and without, and what it left."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PROGRAM = HERE / "processes.py"


def environment(**more: str) -> dict[str, str]:
    """Without anything that a launcher would set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TORCHELASTIC", "MASTER"))}
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        kept.pop(name, None)
    path = {"PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"}
    return kept | path | more


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def pair(*words: object, size: int = 2) -> list[subprocess.Popen[str]]:
    """The program in `size` processes, without torchrun, which takes seconds to start itself."""
    port = str(free_port())
    started = []
    for rank in range(size):
        told = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told |= {"CHUMOKU_PEER_TIMEOUT": "60"}
        started.append(
            subprocess.Popen(
                [sys.executable, str(PROGRAM), *map(str, words)],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(**told),
            )
        )
    return started


def ended(started: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """(exit code, stderr) of each."""
    told = [process.communicate(timeout=300)[1] for process in started]
    return [(process.returncode, text) for process, text in zip(started, told, strict=True)]


def torchrun(
    *words: object, restarts: int = 3, size: int = 2, standalone: bool = True
) -> list[str]:
    """The command. standalone: this machine alone."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={size}"]
    launcher += ["--standalone"] if standalone else []
    return [*launcher, f"--max-restarts={restarts}", str(PROGRAM), *map(str, words)]


def merged_batches(folder: Path, ranks: int = 2) -> list[Any]:
    """The examples of each batch, in their order, put together from what each process had."""
    told = [(folder / f"batches-{rank}").read_text().splitlines() for rank in range(ranks)]
    found = []
    for lines in zip(*told, strict=True):
        shares = [json.loads(line) for line in lines]
        whole: list[int] = [0] * sum(len(share[1]) for share in shares)
        for rank, (_, indices) in enumerate(shares):
            whole[rank::ranks] = indices
        found.append([shares[0][0], whole])
    return found


def taken(folder: Path, ranks: int = 2) -> list[Any]:
    found = merged_batches(folder, ranks)
    for file in folder.glob("batches-*"):
        file.unlink()
    return found
