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
from chumoku.kernels.blocks import row_values
from chumoku.kernels.memory import keep_freed_memory

log = logging.getLogger("chumoku.kernels")

# The order is that of the enum Storage in native_core.h.
STORAGES: Final = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)
_NUMBER: Final = {name: number for number, name in enumerate(STORAGES)}
_INTERFACE: Final = 4

WORDS: Final = 624
"""Of the state of PyTorch's random numbers, MT19937."""


@dataclass(frozen=True)
class Library:
    """functions: C functions by name, without the prefix chumoku_.

    parallel: address of OpenMP's entry point in PyTorch's library, None where it was not found
    (kernels then run on one thread).
    levels: instruction sets that this processor can run. best: the highest of them.
    """

    functions: dict[str, Any]
    levels: dict[int, str]
    best: int
    parallel: int | None


def available() -> bool:
    """True where the native library was built and can be loaded. Says so once in the log if not."""
    return _library() is not None


def serves(x: Tensor) -> bool:
    """True on the CPU where the library is built, outside torch.compile: a compiler can see through
    a definition, not through C."""
    return x.is_cpu and not torch.compiler.is_compiling() and available()


def describe() -> str:
    """One line for people: the instructions and whether threads are shared with PyTorch."""
    library = _library()
    if library is None:
        return "native kernels: not built, using PyTorch"
    threads = "PyTorch's threads" if library.parallel else "one thread"
    return f"native kernels: {library.levels[library.best]}, {threads}"


def levels() -> tuple[int, ...]:
    """Instruction sets that can be asked for with `level`: 0 portable, 1 AVX2, 2 AVX-512."""
    library = _library()
    return tuple(library.levels) if library else ()


def tiles_are_fast() -> bool:
    """True where native_block_product is written for the processor's own vectors.

    In plain C++ it is slower than PyTorch's product, which then has a library of the system's.
    """
    library = _library()
    return library is not None and library.best > 0


def native_dequantize(
    raw: Tensor, storage: str, *, level: int | None = None, threads: int | None = None
) -> Tensor:
    """As blocks.dequantize into float32, bit for bit: CPU uint8 [..., row_bytes] -> [..., row].

    level, threads: default to the best instructions and torch.get_num_threads().
    InputError: not a CPU uint8 tensor or a broken row. DependencyError: the library is not built.
    """
    if raw.dtype != torch.uint8 or not raw.is_cpu:
        raise InputError(f"stored rows must be uint8 on the CPU, not {raw.dtype} on {raw.device}")
    number, values = _row_of(storage, raw.shape[-1])
    raw = raw.contiguous()
    out = torch.empty(*raw.shape[:-1], values, dtype=torch.float32)
    sizes = (math.prod(raw.shape[:-1]), values, raw.shape[-1])
    _run("dequantize", (number, raw, out, *sizes), level, threads)
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
    return _multiply("block_linear", x, raw, storage, bias, level, threads)


def native_block_product(
    x: Tensor,
    raw: Tensor,
    storage: str,
    bias: Tensor | None = None,
    *,
    level: int | None = None,
    threads: int | None = None,
) -> Tensor:
    """As native_block_linear, faster for many tokens, with the products summed in another order.

    That order is fixed too, whatever the number of tokens and threads. Needs D > 0.
    """
    return _multiply("block_product", x, raw, storage, bias, level, threads)


def native_silu_product(
    gate: Tensor, up: Tensor, *, level: int | None = None, threads: int | None = None
) -> Tensor:
    """SiLU(gate) * up, float32 or bfloat16 on the CPU, both of one shape and dtype; to 1e-6 in
    float32. Errors as of native_gelu."""
    number = _pointwise(gate, up)
    if gate.shape != up.shape:
        raise InputError(f"gate {[*gate.shape]} and up {[*up.shape]} must have one shape")
    gate, up = gate.contiguous(), up.contiguous()
    y = torch.empty_like(gate)
    _run("silu_product", (number, gate, up, y, gate.numel()), level, threads)
    return y


def native_rms_norm(
    x: Tensor, weight: Tensor, eps: float, *, level: int | None = None, threads: int | None = None
) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps), x [..., D], weight [D], both float32 or both bfloat16,
    on the CPU; to 1e-6 in float32. Errors as of native_gelu."""
    number = _pointwise(x, weight)
    if x.shape[-1:] != weight.shape:
        raise InputError(f"weight {[*weight.shape]} does not fit x {[*x.shape]}")
    x, weight = x.contiguous(), weight.contiguous()
    y = torch.empty_like(x)
    sizes = (math.prod(x.shape[:-1]), x.shape[-1])
    _run("rms_norm", (number, x, weight, y, *sizes, eps), level, threads)
    return y


def native_bernoulli(
    noise: Tensor,
    state: Tensor,
    next_word: Tensor,
    keep: float,
    value: float,
    *,
    level: int | None = None,
) -> None:
    """Fill noise, contiguous float32 or bfloat16 on the CPU: value with probability keep, else 0.

    The draws are those of PyTorch's Tensor.bernoulli_ (53 bits of two words). state int32 [624]:
    the words of MT19937; next_word int32 [1]: the first not yet used, 624 if none; both are moved
    on.
    InputError: others than these. DependencyError: the library is not built.
    """
    number = _pointwise(noise)
    if (
        state.dtype is not torch.int32
        or state.shape != (624,)
        or next_word.dtype is not torch.int32
    ):
        raise InputError(f"a state is int32 [{WORDS}], not {state.dtype} {[*state.shape]}")
    if not all(x.is_contiguous() for x in (noise, state, next_word)):
        raise InputError("noise and state must be contiguous")
    if not 0 <= int(next_word) <= WORDS:
        raise InputError(f"the next word of {WORDS} cannot be number {int(next_word)}")
    _run("bernoulli", (number, state, next_word, noise, noise.numel(), keep, value), level, 1)


def native_gelu(
    x: Tensor,
    approximate: str,
    *,
    slope: bool = True,
    level: int | None = None,
    threads: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """(GELU(x), its slope at x if wanted), float32 on the CPU, to 1e-6.

    approximate: "none" or "tanh". The values are the same with the slope and without.
    InputError: another dtype, device or formula. DependencyError: the library is not built.
    """
    if x.dtype is not torch.float32 or not x.is_cpu:
        raise InputError("the native kernel takes float32 tensors on the CPU")
    if approximate not in ("none", "tanh"):
        raise InputError(f"approximate is 'none' or 'tanh', not {approximate!r}")
    x = x.contiguous()
    y, rise = torch.empty_like(x), torch.empty_like(x) if slope else None
    _run("gelu", (approximate == "none", x, y, rise, x.numel()), level, threads)
    return y, rise


def _multiply(
    name: str,
    x: Tensor,
    raw: Tensor,
    storage: str,
    bias: Tensor | None,
    level: int | None,
    threads: int | None,
) -> Tensor:
    number = _number_of(x, raw, storage, bias)
    x, raw, bias = x.contiguous(), raw.contiguous(), None if bias is None else bias.contiguous()
    y = torch.empty(*x.shape[:-1], raw.shape[0], dtype=torch.float32)
    sizes = (math.prod(x.shape[:-1]), x.shape[-1], raw.shape[0])
    _run(name, (number, x, raw, bias, y, *sizes), level, threads)
    return y


def _run(
    name: str,
    arguments: tuple[Tensor | float | None, ...],
    level: int | None,
    threads: int | None,
) -> None:
    """Call chumoku_<name>, contiguous tensors as pointers. InputError: it has no such kernel."""
    library = _library()
    if library is None:
        raise DependencyError(
            "the native kernels are not built",
            advice="install a C++ compiler and run: pip install --force-reinstall chumoku",
        )
    status = library.functions[name](
        library.best if level is None else level,
        *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments),
        torch.get_num_threads() if threads is None else threads,
        library.parallel,
    )
    if status:
        raise InputError(f"no native kernel {name} at level {level}")


def _pointwise(*tensors: Tensor) -> int:
    """The number of the dtype that all have. InputError: others than float32 and bfloat16."""
    dtypes = {x.dtype for x in tensors}
    if not dtypes < {torch.float32, torch.bfloat16} or not all(x.is_cpu for x in tensors):
        raise InputError("the native kernel takes float32 or bfloat16 tensors on the CPU")
    return _NUMBER["BF16" if torch.bfloat16 in dtypes else "F32"]


def _number_of(x: Tensor, raw: Tensor, storage: str, bias: Tensor | None) -> int:
    """The number of the storage. InputError: shapes, dtypes or devices that do not fit."""
    number, values = _row_of(storage, raw.shape[-1])
    fits = x.dtype is torch.float32 and x.is_cpu and raw.is_cpu and raw.dtype is torch.uint8
    if not fits or raw.ndim != 2 or x.shape[-1:] != (values,):
        raise _misfit(x, raw, storage)
    if bias is not None:
        outputs = raw.shape[0]
        if bias.dtype is not torch.float32 or not bias.is_cpu or bias.shape != (outputs,):
            raise InputError(f"bias must be float32 [{outputs}] on the CPU, not {[*bias.shape]}")
    return number


@cache
def _row_of(storage: str, nbytes: int) -> tuple[int, int]:
    """(number of the storage, values in a row of so many bytes). InputError: there is no kernel."""
    values = row_values(storage, nbytes)
    if storage not in _NUMBER:
        raise InputError(f"no native kernel for storage {storage}")
    return _NUMBER[storage], values


def _misfit(x: Tensor, raw: Tensor, storage: str) -> InputError:
    if raw.ndim != 2 or raw.dtype != torch.uint8:
        return InputError(f"stored rows must be uint8 [outputs, row_bytes], not {[*raw.shape]}")
    if x.dtype != torch.float32 or not x.is_cpu or not raw.is_cpu:
        return InputError("the native kernel takes float32 tensors on the CPU")
    values = row_values(storage, raw.shape[1])
    return InputError(f"x {[*x.shape]} does not fit rows of {values} {storage} values")


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
    keep_freed_memory()
    levels = _levels(loaded)
    return Library(_functions(loaded), levels, max(levels), _parallel_entry())


def _path() -> Path:
    """Beside this file; after an editable install, in the other folder of the package."""
    name = "_native.dll" if sys.platform == "win32" else "_native.so"
    folders = [Path(__file__).parent, *map(Path, sys.modules[__package__].__path__)]
    return next((f / name for f in folders if (f / name).exists()), folders[0] / name)


def _functions(loaded: ctypes.CDLL) -> dict[str, Any]:
    pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    between = {  # the level and the threads
        "block_linear": [number, *[pointer] * 4, *[size] * 3],
        "block_product": [number, *[pointer] * 4, *[size] * 3],
        "dequantize": [number, *[pointer] * 2, *[size] * 3],
        "silu_product": [number, *[pointer] * 3, size],
        "rms_norm": [number, *[pointer] * 3, *[size] * 2, ctypes.c_float],
        "bernoulli": [number, *[pointer] * 3, size, ctypes.c_double, ctypes.c_float],
        "gelu": [number, *[pointer] * 3, size],
    }
    functions = {}
    for name, types in between.items():
        functions[name] = getattr(loaded, f"chumoku_{name}")
        functions[name].argtypes = [number, *types, number, pointer]
    return functions


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
