"""Joining the processes that torchrun has started: gloo between CPUs, NCCL between GPUs.

    torchrun --nproc-per-node 2 -m chumoku train RECIPE …

torchrun tells each process its number through the environment. When one dies, all are started
again, and the run goes on from the last snapshot (`--max-restarts`).
"""

from __future__ import annotations

import math
import os
import time
import uuid
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from chumoku.errors import ConfigError
from chumoku.training.replicas import TIMEOUT, Replicas, first_line
from chumoku.training.world import Alone, World

NUMBERS: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")
NEEDED: Final = (*NUMBERS, "MASTER_ADDR")
STRATEGIES: Final = ("ddp", "fsdp")
"""ddp: each process holds the whole model. fsdp: each holds a part of it."""


def world_of(device: torch.device, strategy: str = "ddp") -> tuple[World, torch.device]:
    """The processes that torchrun's environment tells of, and this one's device.

    Without that environment it is one process, and the strategy means nothing. Raises ConfigError
    where the environment is incomplete, a process has no GPU of its own, or the others do not come.
    """
    if strategy not in STRATEGIES:
        raise ConfigError(f"{strategy!r} is not one of {', '.join(STRATEGIES)}", where="strategy")
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return Alone(), device
    _check_environment()
    if device.type == "cuda":
        device = _own_gpu(int(os.environ["LOCAL_RANK"]))
    if not dist.is_initialized():
        _join("nccl" if device.type == "cuda" else "gloo", _patience())
    if strategy == "fsdp":
        from chumoku.training.sharded import Sharded  # loads for seconds

        return Sharded(device), device
    return Replicas(device), device


def leave() -> None:
    """Close what `world_of` opened."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _check_environment() -> None:
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment names no {', '.join(missing)}",
            advice="start the processes with torchrun, which sets them; to train in one process, "
            "unset RANK and WORLD_SIZE",
        )
    for name in NUMBERS:
        if not os.environ[name].isdecimal():
            raise ConfigError(
                f"{os.environ[name]!r} is no number",
                where=name,
                advice="start the processes with torchrun, which sets it",
            )
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank >= size:
        raise ConfigError(
            f"there is no process {rank} of {size}: they are counted from 0",
            where="RANK, WORLD_SIZE",
            advice="start the processes with torchrun, which sets it",
        )


def _own_gpu(local: int) -> torch.device:
    count = torch.cuda.device_count()
    if local >= count:
        raise ConfigError(
            f"process {local} of this machine has no GPU: there are {count}",
            where="LOCAL_RANK",
            advice="lower torchrun --nproc-per-node, or --device cpu",
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _patience() -> timedelta:
    text = os.environ.get(TIMEOUT, "600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < 1e9:
        raise ConfigError(f"{text!r} is no number of seconds", where=TIMEOUT)
    return timedelta(seconds=seconds)


def _join(backend: str, patience: timedelta) -> None:
    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=patience)))
        fresh = PrefixStore(_meet(store, rank, size, patience), store)
        dist.init_process_group(backend, store=fresh, rank=rank, world_size=size, timeout=patience)
    except (RuntimeError, ValueError, TimeoutError) as error:
        raise ConfigError(
            f"the processes do not find each other: {first_line(error)}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            advice="the same --nnodes, --rdzv-endpoint and --rdzv-id on each machine, a port that "
            "is open on the first; GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) names the network "
            f"device to use; {TIMEOUT} sets after how many seconds the search ends",
        ) from error


def _meet(store: Store, rank: int, size: int, patience: timedelta) -> str:
    """A name that the processes alive now have in common, and none before them had.

    torchrun keeps its store when it starts processes again (pytorch issue 135712), and what it says
    of the number of restarts differs between machines; so addresses of the dead are found there
    under the usual names. The first process answers each of the others under a name that only that
    one can have asked for.
    """
    token = uuid.uuid4().hex
    if rank > 0:
        store.set(f"asked/{rank}", token)
        token = str(store.get(f"answered/{token}").decode())  # waits, at most the store's patience
        store.set(f"met/{token}/{rank}", "")
        return token
    missing = set(range(1, size))
    deadline = time.monotonic() + patience.total_seconds()
    while missing := {peer for peer in missing if not store.check([f"met/{token}/{peer}"])}:
        if time.monotonic() > deadline:
            raise TimeoutError(f"no sign of process {min(missing)} of {size}")
        for peer in missing:
            if store.check([f"asked/{peer}"]):  # perhaps by a dead one, which costs nothing
                store.set(f"answered/{store.get(f'asked/{peer}').decode()}", token)
        time.sleep(0.02)
    return token
