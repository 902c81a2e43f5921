"""The native kernels, where they were built: loading, choice of instructions, threads.

The shared library `_native` lies beside this file. Without it (a pure wheel, an unsupported
compiler) `available()` is false and callers use the definitions in blocks.py, which are slower.
Letters: D values a row, O outputs.
"""

from __future__ import annotations

import ctypes
import logging
import math
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from chumoku.errors import DependencyError, InputError
from chumoku.kernels.blocks import row_bytes, row_values

log = logging.getLogger("chumoku.kernels")

# The order is that of the enum Storage in native_core.h.
STORAGES: Final = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
_NUMBER: Final = {name: number for number, name in enumerate(STORAGES)}
_INTERFACE: Final = 1


@dataclass(frozen=True)
class Library:
    """linear, dequantize: C functions. levels: instruction sets that this processor can run.

    parallel: address of OpenMP's entry point in the library that PyTorch uses, None where it was
    not found (kernels then run on one thread).
    """

    linear: Any
    dequantize: Any
    levels: dict[int, str]
    parallel: int | None


def available() -> bool:
    """True where the native library was built and can be loaded. Says so once in the log if not."""
    return _library() is not None


def describe() -> str:
    """One line for people: the instructions and whether threads are shared with PyTorch."""
    library = _library()
    if library is None:
        return "native kernels: not built, using PyTorch"
    threads = "PyTorch's threads" if library.parallel else "one thread"
    return f"native kernels: {library.levels[max(library.levels)]}, {threads}"


def levels() -> tuple[int, ...]:
    """Instruction sets that can be asked for with `level`: 0 portable, 1 AVX2, 2 AVX-512."""
    library = _library()
    return tuple(library.levels) if library else ()


def native_dequantize(
    raw: Tensor, storage: str, *, level: int | None = None, threads: int | None = None
) -> Tensor:
    """As blocks.dequantize into float32, bit for bit: CPU uint8 [..., row_bytes] -> [..., row].

    level, threads: default to the best instructions and torch.get_num_threads().
    InputError: not a CPU uint8 tensor or a broken row. DependencyError: the library is not built.
    """
    library = _require()
    raw = _stored(raw)
    values = row_values(storage, raw.shape[-1])
    out = torch.empty(*raw.shape[:-1], values, dtype=torch.float32)
    status = library.dequantize(
        max(library.levels) if level is None else level,
        _NUMBER.get(storage, -1),
        raw.data_ptr(),
        out.data_ptr(),
        math.prod(raw.shape[:-1]),
        values,
        raw.shape[-1],
        torch.get_num_threads() if threads is None else threads,
        library.parallel,
    )
    _check(status, storage, level)
    return out


def native_block_linear(
    x: Tensor,
    raw: Tensor,
    storage: str,
    bias: Tensor | None = None,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> Tensor:
    """x [..., D] times stored rows [O, row_bytes], plus bias [O]: float32 [..., O], on the CPU.

    Each output is one float32 sum in an order that is fixed: it depends neither on the number of
    tokens nor on threads. InputError: shapes, dtypes or devices that do not fit. DependencyError:
    the library is not built.
    """
    library = _require()
    outputs, inputs = _check_linear(x, raw, storage, bias)
    x, raw = x.contiguous(), _stored(raw)
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(*x.shape[:-1], outputs, dtype=torch.float32)
    status = library.linear(
        max(library.levels) if level is None else level,
        _NUMBER.get(storage, -1),
        x.data_ptr(),
        raw.data_ptr(),
        None if bias is None else bias.data_ptr(),
        y.data_ptr(),
        math.prod(x.shape[:-1]),
        inputs,
        outputs,
        torch.get_num_threads() if threads is None else threads,
        library.parallel,
    )
    _check(status, storage, level)
    return y


def _check_linear(x: Tensor, raw: Tensor, storage: str, bias: Tensor | None) -> tuple[int, int]:
    """(outputs, inputs). The C code trusts its arguments, so everything is checked here."""
    if raw.ndim != 2:
        raise InputError(f"stored rows must be [outputs, row_bytes], not {list(raw.shape)}")
    outputs, inputs = raw.shape[0], x.shape[-1] if x.ndim else 0
    if raw.shape[1] != row_bytes(storage, inputs):
        stored = row_values(storage, raw.shape[1])
        raise InputError(f"{inputs} inputs do not fit rows of {stored} {storage} values")
    floats = [x] if bias is None else [x, bias]
    if any(t.dtype != torch.float32 or t.device.type != "cpu" for t in floats):
        raise InputError("the native kernel takes float32 tensors on the CPU")
    if bias is not None and bias.shape != (outputs,):
        raise InputError(f"bias must be [{outputs}], not {list(bias.shape)}")
    return outputs, inputs


def _stored(raw: Tensor) -> Tensor:
    if raw.dtype != torch.uint8 or raw.device.type != "cpu":
        raise InputError(f"stored rows must be uint8 on the CPU, not {raw.dtype} on {raw.device}")
    return raw.contiguous()


def _check(status: int, storage: str, level: int | None) -> None:
    if status:
        raise InputError(f"no native kernel for storage {storage} at level {level}")


def _require() -> Library:
    library = _library()
    if library is None:
        raise DependencyError(
            "the native kernels are not built",
            advice="install a C++ compiler and run: pip install --force-reinstall chumoku",
        )
    return library


@cache
def _library() -> Library | None:
    path = _path()
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        log.warning("native kernels are not in use, quantised models run slower: %s", error)
        return None
    if loaded.chumoku_interface() != _INTERFACE:
        log.warning("native kernels are not in use: %s is of another version; rebuild it", path)
        return None
    return Library(*_functions(loaded), levels=_levels(loaded), parallel=_parallel_entry())


def _path() -> Path:
    """Beside this file; after an editable install, in the other folder of the package."""
    name = "_native.dll" if sys.platform == "win32" else "_native.so"
    folders = [Path(__file__).parent, *map(Path, sys.modules[__package__].__path__)]
    return next((f / name for f in folders if (f / name).exists()), folders[0] / name)


def _functions(loaded: ctypes.CDLL) -> tuple[Any, Any]:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    linear = loaded.chumoku_block_linear
    linear.argtypes = [number, number, *[pointer] * 4, *[size] * 3, number, pointer]
    dequantize = loaded.chumoku_dequantize
    dequantize.argtypes = [number, number, *[pointer] * 2, *[size] * 3, number, pointer]
    return linear, dequantize


def _levels(loaded: ctypes.CDLL) -> dict[int, str]:
    loaded.chumoku_level.restype = ctypes.c_char_p
    names = {level: loaded.chumoku_level(level) for level in range(3)}
    return {level: name.decode() for level, name in names.items() if name}


def _parallel_entry() -> int | None:
    """The function that PyTorch itself calls to start its threads.

    A second pool of threads beside PyTorch's would fight it for the cores, so the kernels borrow
    PyTorch's: the symbol is looked up through libtorch_cpu and what that is linked with.
    """
    if sys.platform == "win32":  # Microsoft's OpenMP has no such entry point
        return None
    suffix = "dylib" if sys.platform == "darwin" else "so"
    path = Path(torch.__file__).parent / "lib" / f"libtorch_cpu.{suffix}"
    for name in (str(path), None):
        try:
            found = ctypes.CDLL(name, mode=os.RTLD_LAZY | os.RTLD_NOLOAD).GOMP_parallel
        except (OSError, AttributeError):
            continue
        return ctypes.cast(found, ctypes.c_void_p).value
    return None
