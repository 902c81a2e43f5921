"""Processes that each hold the whole model and have their share of every batch: DDP."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from chumoku.errors import ChumokuError, TrainingError
from chumoku.training.snapshots import Snapshot, write_snapshot

TIMEOUT: Final = "CHUMOKU_PEER_TIMEOUT"
"""Seconds after which a peer that does not answer counts as dead; 600 where absent."""
BACKENDS: Final = ("gloo", "NCCL", "closed by peer", "reset by peer", "pair closure", "Timed out")
"""Words in what a collective says when it fails; older ones raise a plain RuntimeError."""


class Processes:
    """Abstract: what processes do together however the model lies in them."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.size = self.divided_by = dist.get_world_size()
        self.device = device

    def sum(self, values: Tensor) -> Tensor:
        moved = values.to(self.device, copy=True)
        with self.together():
            dist.all_reduce(moved)
        return moved.to(values.device)

    def gather(self, values: Tensor) -> list[Tensor]:
        moved = values.to(self.device)
        found = [torch.empty_like(moved) for _ in range(self.size)]
        with self.together():
            dist.all_gather(found, moved)
        return [value.to(values.device) for value in found]

    def wait(self) -> None:
        self.sum(torch.zeros(1))  # a barrier of NCCL's would guess the device

    @contextmanager
    def together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            if not is_lost_peer(error):
                raise
            raise TrainingError(
                f"another process of the run does not answer: {first_line(error)}",
                advice="under torchrun --max-restarts=3 all are started again, from the last "
                f"snapshot; {TIMEOUT} sets after how many seconds a silent one counts as dead",
            ) from error

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """What cannot be written inside, by one process, is an error in all of them."""
        try:
            yield
        except (ChumokuError, OSError):
            self.sum(torch.ones(1))
            raise
        if self.sum(torch.zeros(1)).item():
            raise TrainingError(
                "another process of the run cannot save",
                advice="its own message says why; the last snapshot is good",
            )

    def share_weights(self, module: nn.Module) -> None:
        """Parameters and buffers become the first process's."""
        with self.together(), torch.no_grad():
            for tensor in (*module.parameters(), *module.buffers()):
                dist.broadcast(tensor.detach(), 0)


class Replicas(Processes):
    """DDP. Gradients narrower than 32 bits are not exchanged by it, which would add them up in
    their own type: their float32 sums are (see MasterWeights), once a step.
    """

    _late = False

    def prepare(self, objective: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, torch.dtype]:
        self.share_weights(objective)
        if torch.finfo(dtype).bits < 32:
            self._late, self.divided_by = True, 1
            return objective, dtype
        # A head may leave part of the model unused (a pooler beside token labels). DDP then looks
        # for such parameters, and complains at length where there are none: so there is one.
        objective.register_parameter("unused", nn.Parameter(torch.zeros(1, device=self.device)))
        parallel = DistributedDataParallel(
            objective.to(dtype),
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
        )
        parallel.broadcast_buffers = False  # nothing changes them; the argument's name is changing
        return parallel, dtype

    @contextmanager
    def backward(self, objective: nn.Module, last: bool) -> Iterator[None]:
        if last or not isinstance(objective, DistributedDataParallel):
            yield
            return
        with objective.no_sync():
            yield

    def exchange(self, parameters: Sequence[Tensor]) -> None:
        if not self._late:
            return
        held = torch.tensor([float(p.grad is not None) for p in parameters])
        used = [p for p, n in zip(parameters, self.sum(held).tolist(), strict=True) if n]
        for p in used:
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        with self.together():
            for work in [dist.all_reduce(p.grad, async_op=True) for p in used]:
                work.wait()

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.get_total_norm(gradients, foreach=True)

    def whole(self, model: nn.Module) -> nn.Module:
        return model

    def placed(
        self, like: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        return values

    def save(self, folder: Path, snapshot: Snapshot, *, keep: int | None) -> None:
        with self.agreed():
            if self.rank == 0:
                write_snapshot(folder, snapshot, keep=keep)


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective raised this, not a computation."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in BACKENDS)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, shortened."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
