"""Several processes under torchrun: DDP. gloo on CPUs, NCCL on GPUs.

    torchrun --nproc-per-node 2 -m chumoku train RECIPE …

torchrun tells each process its number through the environment. One that dies is started again with
all others, and the run goes on from the last snapshot (`--max-restarts`).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from chumoku.errors import ConfigError, TrainingError
from chumoku.training.world import Alone, World

TIMEOUT: Final = "CHUMOKU_PEER_TIMEOUT"
"""Seconds after which a peer that does not answer counts as dead; 600 where absent."""
NEEDED: Final = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


class Replicas:
    """DDP: each process holds the whole model and has its share of every batch."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.size = self.divided_by = dist.get_world_size()
        self.device = device

    def prepare(self, objective: nn.Module) -> nn.Module:
        # A head may leave part of the model unused (a pooler beside token labels).
        return DistributedDataParallel(
            objective,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
        )

    @contextmanager
    def backward(self, objective: nn.Module, last: bool) -> Iterator[None]:
        if last or not isinstance(objective, DistributedDataParallel):
            yield
            return
        with objective.no_sync():
            yield

    def sum(self, values: Tensor) -> Tensor:
        moved = values.to(self.device)
        self._together(lambda: dist.all_reduce(moved))
        return moved.to(values.device)

    def norm(self, gradients: Iterable[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)

    def gather(self, values: Tensor) -> list[Tensor]:
        moved = values.to(self.device)
        found = [torch.empty_like(moved) for _ in range(self.size)]
        self._together(lambda: dist.all_gather(found, moved))
        return [value.to(values.device) for value in found]

    def wait(self) -> None:
        self._together(dist.barrier)

    def _together(self, exchange: object) -> None:
        try:
            exchange()  # type: ignore[operator]
        except RuntimeError as error:
            raise lost_peer(error) from error


def lost_peer(error: RuntimeError) -> TrainingError:
    """What a collective says when another process has gone, in our words."""
    return TrainingError(
        f"another process of the run does not answer: {str(error).splitlines()[0][:200]}",
        advice="under torchrun --max-restarts=3 all are started again, from the last snapshot; "
        f"{TIMEOUT} sets after how many seconds a silent one counts as dead",
    )


def world_of(device: torch.device) -> tuple[World, torch.device]:
    """The processes that torchrun's environment tells of, and this one's device.

    Raises ConfigError where the environment is incomplete or the addresses lead nowhere.
    """
    if "WORLD_SIZE" not in os.environ and "RANK" not in os.environ:
        return Alone(), device
    missing = [name for name in NEEDED if name not in os.environ]
    if missing:
        raise ConfigError(
            f"the environment names no {', '.join(missing)}",
            advice="start the processes with torchrun, which sets them",
        )
    if device.type == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"process {local} of this machine has no GPU: there are "
                f"{torch.cuda.device_count()}",
                advice="lower torchrun --nproc-per-node, or --device cpu",
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    seconds = float(os.environ.get(TIMEOUT, "600"))
    try:
        if not dist.is_initialized():
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(seconds=seconds)
            )
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the processes do not find each other: {str(error).splitlines()[0][:200]}",
            where=f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}",
            advice="the same --nnodes, --rdzv-endpoint and --rdzv-id on each machine; "
            "an open port on the first",
        ) from error
    return Replicas(device), device


def leave() -> None:
    """Close what `world_of` opened."""
    if dist.is_initialized():
        dist.destroy_process_group()
