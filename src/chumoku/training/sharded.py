"""Processes that each hold a part of every weight, gradient and average: FSDP2.

Blocks are the unit that is gathered for computing and let go again; what lies outside of them is
one more. Weights are cut along their first dimension, as torch.chunk does.
"""

from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from chumoku.errors import CheckpointError, ConfigError
from chumoku.training import snapshots
from chumoku.training.replicas import Processes
from chumoku.training.shards import Piece, merged, write_pieces
from chumoku.training.snapshots import Snapshot

APART: Final = ("attention.relative_bias", "cross_attention.key", "cross_attention.value")
"""Modules that lie in a block and are called from outside of it: units of their own."""


class Sharded(Processes):
    """FSDP2. Narrow training keeps float32 weights, rounds what is gathered for computing, and adds
    gradients up in float32, so that no second copy of the weights is needed (see MasterWeights).
    """

    def prepare(self, objective: nn.Module, dtype: torch.dtype) -> tuple[nn.Module, torch.dtype]:
        found = units(objective)
        self.share_weights(objective)
        self._dtype = dtype
        wide = torch.float32 if torch.finfo(dtype).bits < 32 else dtype
        objective.to(wide)
        for buffer in objective.buffers():
            buffer.data = buffer.to(dtype) if buffer.is_floating_point() else buffer
        # Made before sharding, for `whole`: the same modules, with weights that hold no values.
        self._empty = [(m, with_parameters(m, _on_meta)) for m in objective.children()]
        narrow = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
        policy = MixedPrecisionPolicy() if wide == dtype else narrow
        mesh = init_device_mesh(self.device.type, (self.size,))
        for unit in found:
            # Were its output a view, as a bias often is, the hook on it could be lost.
            unit.register_forward_hook(_own_memory)
            fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        return objective, wide

    def backward(self, objective: nn.Module, last: bool) -> AbstractContextManager[None]:
        # Every batch's gradients are exchanged: to add them up first, each process would have to
        # hold all of them.
        return self.together()

    def exchange(self, parameters: Sequence[Tensor]) -> None:
        return None

    def norm(self, gradients: Sequence[Tensor]) -> Tensor:
        total = torch.nn.utils.get_total_norm(gradients, foreach=True)
        with self.together():
            return total.full_tensor() if isinstance(total, DTensor) else total

    def whole(self, model: nn.Module) -> nn.Module:
        (empty,) = [copied for module, copied in self._empty if module is model]
        weights = dict(model.named_parameters())

        def filled(name: str, held: nn.Parameter) -> nn.Parameter:
            value = weights[name].detach()
            with self.together():
                value = value.full_tensor() if isinstance(value, DTensor) else value
            value = value.to(self._dtype) if value.is_floating_point() else value
            return nn.Parameter(value, requires_grad=held.requires_grad)

        return with_parameters(empty, filled).train(model.training)

    def placed(
        self, like: Mapping[str, Tensor], values: Mapping[str, Tensor]
    ) -> Mapping[str, Tensor]:
        return _Placed(like, values, self.rank, self.size)

    def save(self, folder: Path, snapshot: Snapshot, *, keep: int | None) -> None:
        pieces = {
            file: {name: piece_of(value, self.rank, self.size) for name, value in named.items()}
            for file, named in snapshot.tensors.items()
        }
        token = self._same_text(uuid.uuid4().hex)[0]
        with snapshots.unfinished(folder, token, remove=self.rank == 0) as temporary:
            with self.agreed():
                for file, named in pieces.items():
                    snapshots.refuse_non_finite(file, {n: p.value for n, p in named.items()})
                layout = write_pieces(temporary, pieces, self.rank, self.size)
            layouts = [json.loads(text) for text in self._same_text(json.dumps(layout))]
            with self.agreed():
                if self.rank == 0:
                    snapshots.commit(temporary, snapshot, merged(layouts))
                    snapshots.prune(folder, keep)

    def _same_text(self, text: str) -> list[str]:
        """Each process's text, in the order of ranks."""
        raw = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
        lengths = [int(n) for n in self.gather(torch.tensor([len(raw)]))]
        padded = torch.zeros(max(lengths), dtype=torch.uint8)
        padded[: len(raw)] = raw
        found = zip(self.gather(padded), lengths, strict=True)
        return [bytes(value[:length].numpy()).decode() for value, length in found]


def units(objective: nn.Module) -> list[nn.Module]:
    """What is gathered together: modules apart, blocks, and last the objective itself.

    Raises ConfigError where two of them share a weight, or one is stored in blocks of bytes: FSDP2
    can have neither.
    """
    for name, parameter in objective.named_parameters():
        if not parameter.is_floating_point():
            raise ConfigError(
                "quantised weights cannot be sharded",
                where=name,
                advice='train with the strategy "ddp", or load the model with dtype = "float32"',
            )
    found = [m for name, m in objective.named_modules() if name.endswith(APART)]
    for name, module in objective.named_modules():
        if isinstance(module, nn.ModuleList) and name.rpartition(".")[2] == "blocks":
            found += module
    found.append(objective)
    owners: dict[Tensor, nn.Module] = {}

    def own(module: nn.Module, unit: nn.Module) -> None:
        unit = module if module in found else unit
        for name, parameter in module.named_parameters(recurse=False):
            if owners.setdefault(parameter, unit) is not unit:
                raise ConfigError(
                    f"a weight that several blocks share cannot be sharded: {name}",
                    advice='train with the strategy "ddp"',
                )
        for child in module.children():
            own(child, unit)

    own(objective, objective)
    return found


def with_parameters(
    module: nn.Module, change: Callable[[str, nn.Parameter], nn.Parameter]
) -> nn.Module:
    """A copy with other parameters; ties stay ties, and buffers are shared with the original."""
    memo: dict[int, object] = {id(b): b for b in module.buffers()}
    memo |= {id(p): change(name, p) for name, p in module.named_parameters()}
    return copy.deepcopy(module, memo)


def _own_memory(module: nn.Module, inputs: object, output: object) -> object:
    return output.clone() if isinstance(output, Tensor) and output._is_view() else None


def _on_meta(name: str, parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)


# ---- a tensor and its piece ----


def piece_of(value: Tensor, rank: int, size: int) -> Piece:
    """What this process holds of a tensor."""
    shape = tuple(value.shape)
    if not isinstance(value, DTensor):
        return Piece(value.detach(), shape)
    local, (placement,) = value.to_local().detach(), value.placements
    if not isinstance(placement, Shard):
        return Piece(local, shape)
    begin, end = _rows(shape[placement.dim], rank, size)
    if local.shape[placement.dim] != end - begin:
        raise CheckpointError(f"a piece of {shape} has {tuple(local.shape)} in process {rank}")
    return Piece(local, shape, placement.dim, begin, end)


class _Placed(Mapping[str, Tensor]):
    """Whole tensors, each cut when it is asked for as that of the same name in `like` is."""

    def __init__(
        self, like: Mapping[str, Tensor], values: Mapping[str, Tensor], rank: int, size: int
    ) -> None:
        self.like, self.values_, self.rank, self.size = like, values, rank, size

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def __getitem__(self, name: str) -> Tensor:
        value, like = self.values_[name], self.like.get(name)
        if not isinstance(like, DTensor) or like.shape != value.shape:
            return value  # where it does not fit, the caller says so
        (placement,) = like.placements
        if isinstance(placement, Shard):
            begin, end = _rows(value.shape[placement.dim], self.rank, self.size)
            value = value.narrow(placement.dim, begin, end - begin).clone()
        return DTensor.from_local(
            value.to(like.device),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )


def _rows(n: int, rank: int, size: int) -> tuple[int, int]:
    """The part of n rows that torch.chunk gives one of `size` processes."""
    each = -(-n // size)
    return min(rank * each, n), min((rank + 1) * each, n)
