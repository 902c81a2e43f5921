"""Where a model lies and in which type: device, dtype, and whether there is memory for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

import torch

from chumoku.checkpoints.assign import DTYPES
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.errors import DeviceError, InputError, ResourceError

FLOATS: Final = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


def pick_device(name: str) -> torch.device:
    """ "auto" is cuda, then mps, then cpu. Raises DeviceError for one that is unknown or absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    present = {"cpu": True, "cuda": torch.cuda.is_available()}
    present["mps"] = torch.backends.mps.is_available()
    if device is None or not present.get(device.type, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise DeviceError(f"device {name!r} is not available", advice=f"on this machine: {here}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there is no device {name!r}: {torch.cuda.device_count()} GPUs are here")
    return device


def check_dtype(dtype: str) -> None:
    """Raise InputError for a dtype that load() does not know."""
    if dtype not in ("auto", "stored", *FLOATS):
        raise InputError(
            f"dtype {dtype!r} is not known", advice=f"auto, stored, {', '.join(FLOATS)}"
        )


def keeps_blocks(dtype: str) -> bool:
    """Whether quantised tensors stay in their blocks."""
    return dtype not in FLOATS


def float_type(
    tensors: Mapping[str, LazyTensor], dtype: str, device: torch.device
) -> torch.dtype | None:
    """The type that all floats of a model get; None: each the one that it is stored in.

    "auto" is float32 on a CPU, and beside quantised blocks, whose values are float32. On a GPU it
    is the type of most values, because a file may mix them (GGUF: norms in F32, matrices in F16)
    and a product may not.
    """
    if dtype in FLOATS or dtype == "stored":
        return FLOATS.get(dtype)
    if device.type == "cpu" or any(tensor.quantized for tensor in tensors.values()):
        return torch.float32
    counts = {torch.float32: 0}
    for tensor in tensors.values():
        kind = DTYPES[tensor.storage]
        if kind.is_floating_point:
            counts[kind] = counts.get(kind, 0) + torch.Size(tensor.shape).numel()
    return max(counts, key=lambda kind: counts[kind])


def needed_bytes(tensors: Mapping[str, LazyTensor], dtype: str, device: torch.device) -> int:
    """Bytes that the weights will take in memory."""
    kind = float_type(tensors, dtype, device)
    total = 0
    for tensor in tensors.values():
        if kind is None or (tensor.quantized and keeps_blocks(dtype)):
            total += tensor.nbytes
        else:
            total += torch.Size(tensor.shape).numel() * kind.itemsize
    return total


def free_bytes(device: torch.device) -> int:
    """Memory that a new allocation may take now; 2^62 where the system does not tell."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass  # not Linux
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf
        return 1 << 62


def check_memory(tensors: Mapping[str, LazyTensor], dtype: str, device: torch.device) -> None:
    """Raise ResourceError where the weights do not fit."""
    needed, free = needed_bytes(tensors, dtype, device), free_bytes(device)
    if needed > free:
        raise ResourceError(
            f"the weights need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
            where=device,
            advice="take a smaller or a quantised checkpoint, or dtype='bfloat16'",
        )
