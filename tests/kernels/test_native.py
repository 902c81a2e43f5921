"""The native kernels beside their definitions: every storage, every set of instructions."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.errors import DependencyError, InputError
from chumoku.kernels import linear, native
from chumoku.kernels.blocks import STORAGE, dequantize, quantize, row_bytes
from chumoku.kernels.linear import (
    block_embedding,
    block_linear,
    block_linear_reference,
    dequantize_fast,
)

built = pytest.mark.skipif(not native.available(), reason="the native library is not built")
SCALES_AT = {"Q2_K": [80, 82], "Q3_K": [108], "Q6_K": [208]}  # elsewhere: at 0, and at 2
TWO_SCALES = ("Q4_1", "Q5_1", "Q4_K", "Q5_K")
LEVELS = pytest.mark.parametrize("level", [0, 1, 2])


def need(level: int) -> int:
    if level not in native.levels():
        pytest.skip(f"this processor or build lacks level {level}")
    return level


def stored_rows(storage: str, rows: int, values: int, seed: int) -> Tensor:
    """Random rows as a model would hold them: values of about 1 / sqrt(values)."""
    generator = torch.Generator().manual_seed(seed)
    if storage in ("F32", "F16", "BF16", "F64"):
        return quantize(torch.randn(rows, values, generator=generator) / values**0.5, storage)
    per_block, block_bytes = STORAGE[storage]
    shape = (rows, values // per_block, block_bytes)
    raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for at in SCALES_AT.get(storage, [0, 2] if storage in TWO_SCALES else [0]):
        scale = torch.randn(rows, values // per_block, 1, generator=generator) * 1e-3
        raw[..., at : at + 2] = scale.half().view(torch.uint8)
    return raw.flatten(1)


def difference(ours: Tensor, reference: Tensor) -> float:
    return float((ours.double() - reference).abs().max() / max(1.0, reference.abs().max().item()))


def row_sizes(storage: str) -> tuple[int, ...]:
    """Rows of one block, of several, beyond a panel of 256; uneven ones where a row may be."""
    per_block = STORAGE[storage][0]
    return {1: (1, 31, 48, 300, 577), 32: (32, 96, 256, 576), 256: (256, 768)}[per_block]


@built
@LEVELS
@pytest.mark.parametrize("storage", native.STORAGES)
def test_dequantize_is_bit_exact(storage: str, level: int) -> None:
    need(level)
    generator = torch.Generator().manual_seed(1)
    for values in row_sizes(storage):
        shape = (40, row_bytes(storage, values))
        raw = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        raw[:2] = 0
        ours = native.native_dequantize(raw, storage, level=level, threads=2)
        expected = dequantize(raw, storage)
        same = ours.view(torch.int32) == expected.view(torch.int32)
        assert bool((same | (ours.isnan() & expected.isnan())).all())
        assert ours.shape == (40, values)


@built
@LEVELS
@pytest.mark.parametrize("storage", native.STORAGES)
def test_linear_equals_the_definition(storage: str, level: int) -> None:
    need(level)
    generator = torch.Generator().manual_seed(2)
    for case, values in enumerate(row_sizes(storage)):
        for tokens, outputs in ((1, 9), (1, 64), (3, 17), (7, 5), (70, 22)):
            raw = stored_rows(storage, outputs, values, seed=case)
            x = torch.randn(tokens, values, generator=generator)
            bias = 0.1 * torch.randn(outputs, generator=generator) if tokens % 2 else None
            ours = native.native_block_linear(x, raw, storage, bias, level=level)
            wide = None if bias is None else bias.double()
            assert difference(ours, block_linear_reference(x.double(), raw, storage, wide)) < 1e-5
            if bias is not None:  # negative control: the bias is seen
                plain = native.native_block_linear(x, raw, storage, level=level)
                assert difference(plain, ours.double()) > 1e-3


@built
@pytest.mark.parametrize("storage", native.STORAGES)
def test_a_wrong_layout_fails(storage: str) -> None:
    """Negative control: nibbles swapped in every byte, or rows in another order."""
    raw = stored_rows(storage, 8, 512, seed=3)
    x = torch.randn(2, 512, generator=torch.Generator().manual_seed(3))
    right = block_linear_reference(x.double(), raw, storage)
    if STORAGE[storage][0] > 1:
        block = raw.unflatten(1, (-1, STORAGE[storage][1])).clone()
        first = 16 if storage == "Q2_K" else 4
        part = block[..., first : first + 12]
        block[..., first : first + 12] = (part >> 4) | (part << 4)
        assert difference(native.native_block_linear(x, block.flatten(1), storage), right) > 1e-3
    assert difference(native.native_block_linear(x, raw.flip(0), storage), right) > 1e-3
    assert difference(native.native_block_linear(x, raw, storage), right) < 1e-5


@pytest.mark.parametrize("storage", ["Q4_1", "Q6_K"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("piece", [1, 3 * 512, 1 << 20])
def test_many_rows_go_by_pieces(
    storage: str, dtype: torch.dtype, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the definition, whatever the size of a piece, on either side of the border MANY."""
    monkeypatch.setattr(linear, "PIECE", piece)
    monkeypatch.setattr(native, "tiles_are_fast", lambda: False)
    raw = stored_rows(storage, 37, 512, seed=9)
    draw = torch.Generator().manual_seed(9)
    bias = torch.randn(37, generator=draw, dtype=dtype)
    for rows in (linear.MANY - 1, linear.MANY, linear.MANY + 7):
        x = torch.randn(rows, 512, generator=draw, dtype=dtype)
        right = block_linear_reference(x.double(), raw, storage, bias.double())
        assert difference(block_linear(x, raw, storage, bias), right) < 1e-5
        assert difference(block_linear(x, raw, storage, bias.flip(0)), right) > 1e-3
        assert difference(block_linear(x, raw.roll(1, 0), storage, bias), right) > 1e-3


@built
@LEVELS
@pytest.mark.parametrize("storage", ["Q8_0", "Q4_0", "Q4_K", "F16"])
def test_a_row_does_not_depend_on_its_neighbours(storage: str, level: int) -> None:
    """Bit for bit: alone, in a batch, in a slice of the outputs, on one thread or three."""
    need(level)
    raw = stored_rows(storage, 173, 768, seed=4)
    x = torch.randn(67, 768, generator=torch.Generator().manual_seed(4))
    together = native.native_block_linear(x, raw, storage, level=level, threads=1)
    alone = [native.native_block_linear(row, raw, storage, level=level) for row in x]
    assert torch.equal(together, torch.stack(alone))
    threaded = native.native_block_linear(x, raw, storage, level=level, threads=3)
    assert torch.equal(together, threaded)
    part = native.native_block_linear(x[5:9], raw[50:91], storage, level=level)
    assert torch.equal(together[5:9, 50:91], part)
    # A float32 weight of the same values gives the same bits: decoding is exact, the order one.
    floats = quantize(dequantize(raw, storage), "F32")
    assert torch.equal(native.native_block_linear(x, floats, "F32", level=level), together)


@built
def test_width_of_vectors_does_not_matter() -> None:
    if not {1, 2} <= set(native.levels()):
        pytest.skip("needs AVX2 and AVX-512")
    for storage in native.STORAGES:
        raw = stored_rows(storage, 21, 512, seed=5)
        x = torch.randn(3, 512, generator=torch.Generator().manual_seed(5))
        for product in (native.native_block_linear, native.native_block_product):
            assert torch.equal(*(product(x, raw, storage, level=n) for n in (1, 2)))


@built
@LEVELS
@pytest.mark.parametrize("storage", native.STORAGES)
def test_product_equals_the_definition(storage: str, level: int) -> None:
    """Tiles, chunks, stretches and calls that are whole and that are not."""
    need(level)
    generator = torch.Generator().manual_seed(12)
    sizes = (*row_sizes(storage), 1280)
    for case, values in enumerate(sizes):
        for tokens, outputs in ((1, 1), (16, 48), (35, 49), (64, 7), (97, 106)):
            raw = stored_rows(storage, outputs, values, seed=case)
            x = torch.randn(tokens, values, generator=generator)
            bias = torch.randn(outputs, generator=generator) if tokens % 2 else None
            ours = native.native_block_product(x, raw, storage, bias, level=level)
            wide = None if bias is None else bias.double()
            assert difference(ours, block_linear_reference(x.double(), raw, storage, wide)) < 1e-5
            if bias is not None:  # negative control: the bias is seen
                plain = native.native_block_product(x, raw, storage, level=level)
                assert difference(plain, ours.double()) > 1e-3


@built
@LEVELS
def test_a_row_of_the_product_does_not_depend_on_its_neighbours(level: int) -> None:
    """Bit for bit, over more tokens than one call takes: alone, in a slice, on three threads."""
    need(level)
    raw = stored_rows("Q4_1", 131, 1024, seed=13)
    x = torch.randn(2, 300, 1024, generator=torch.Generator().manual_seed(13))
    together = native.native_block_product(x, raw, "Q4_1", level=level, threads=1)
    right = block_linear_reference(x.double(), raw, "Q4_1")
    assert difference(together, right) < 1e-5
    assert difference(together.flip(1), right) > 1e-3
    assert difference(native.native_block_product(x, raw.roll(1, 0), "Q4_1"), right) > 1e-3
    threaded = native.native_block_product(x, raw, "Q4_1", level=level, threads=3)
    assert torch.equal(together, threaded)
    alone = native.native_block_product(x[1, 211], raw, "Q4_1", level=level)
    assert torch.equal(together[1, 211], alone)
    part = native.native_block_product(x[:, 5:90:2], raw[50:101], "Q4_1", level=level)
    assert torch.equal(together[:, 5:90:2, 50:101], part)


@built
def test_many_rows_take_the_product_where_it_is_fast() -> None:
    """Two sums in two orders: equal up to rounding, and which was taken is seen in the bits."""
    raw = stored_rows("Q4_1", 160, 1024, seed=14)
    x = torch.randn(linear.MANY, 1024, generator=torch.Generator().manual_seed(14))
    few = native.native_block_linear(x[1:], raw, "Q4_1")
    assert torch.equal(block_linear(x[1:], raw, "Q4_1"), few)
    product = native.native_block_product(x, raw, "Q4_1")
    assert not torch.equal(product[1:], few)
    assert torch.equal(block_linear(x, raw, "Q4_1"), product) == native.tiles_are_fast()
    nothing = torch.empty(3, 0, dtype=torch.uint8)  # rows without values
    assert torch.equal(block_linear(torch.empty(2, 0), nothing, "F32"), torch.zeros(2, 3))


COUNT_THREADS = """
import os
import torch
from chumoku.kernels import native
def threads(): return len(os.listdir("/proc/self/task"))
torch.set_num_threads(2)
raw, x = torch.empty(2048, 544, dtype=torch.uint8), torch.ones(4, 512)  # empty: no thread yet
counts = [threads()]
native.native_block_linear(x, raw, "Q8_0")
counts.append(threads())
torch.ones(1 << 20).sin()
counts.append(threads())
print(*counts)
"""


@built
@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_threads_are_borrowed_from_pytorch() -> None:
    """The kernel starts the one thread that PyTorch then uses too; a second pool would add one."""
    assert "PyTorch's threads" in native.describe()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_THREADS], env=environment, capture_output=True, text=True
    )
    before, kernel, pytorch = map(int, done.stdout.split())
    assert kernel == before + 1
    assert pytorch == kernel


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("storage", ["Q4_1", "Q6_K", "F64", "BF16"])
def test_block_linear_in_every_dtype(storage: str, dtype: torch.dtype) -> None:
    raw = stored_rows(storage, 12, 256, seed=7)
    x = torch.randn(2, 3, 256, generator=torch.Generator().manual_seed(7)).to(dtype)
    y = block_linear(x, raw, storage)
    expected = F.linear(x, dequantize(raw, storage, dtype))
    assert y.dtype == dtype
    assert difference(y, expected.double()) < (1e-5 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("storage", ["Q8_0", "Q4_0", "Q4_K"])
def test_gradients_equal_those_of_the_definition(storage: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    raw = stored_rows(storage, 12, 256, seed=8)
    x = torch.randn(2, 5, 256, generator=generator).to(dtype).requires_grad_()
    bias = torch.randn(12, generator=generator).to(dtype).requires_grad_()
    upstream = torch.randn(2, 5, 12, generator=generator).to(dtype)
    ours = torch.autograd.grad(block_linear(x, raw, storage, bias), (x, bias), upstream)
    reference = block_linear_reference(x, raw, storage, bias)
    for a, b in zip(ours, torch.autograd.grad(reference, (x, bias), upstream), strict=True):
        assert difference(a, b.double()) < 1e-5
    wrong = torch.autograd.grad(block_linear_reference(x, raw.flip(0), storage), x, upstream)[0]
    assert difference(ours[0], wrong.double()) > 1e-3


def test_gradcheck_and_second_derivative() -> None:
    raw = stored_rows("Q8_0", 3, 32, seed=9)
    x = torch.randn(2, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(9))

    def function(x: Tensor) -> Tensor:
        return block_linear(x, raw, "Q8_0").square()

    assert torch.autograd.gradcheck(function, x.requires_grad_())
    assert torch.autograd.gradgradcheck(function, x)


def test_embedding_decodes_the_rows_asked_for() -> None:
    raw = stored_rows("Q6_K", 50, 256, seed=10)
    ids = torch.tensor([[3, 49, 0], [3, 3, 7]])
    assert torch.equal(block_embedding(ids, raw, "Q6_K"), dequantize(raw, "Q6_K")[ids])
    double = block_embedding(ids, raw, "Q6_K", torch.float64)
    assert torch.equal(double, dequantize(raw, "Q6_K", torch.float64)[ids])
    assert not torch.equal(block_embedding(ids, raw.flip(0), "Q6_K"), dequantize(raw, "Q6_K")[ids])


class Seen(torch.overrides.TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(func.__name__)
        return func(*args, **(kwargs or {}))


def test_a_recorder_sees_one_step() -> None:
    raw = stored_rows("Q8_0", 4, 32, seed=11)
    with Seen() as seen:
        block_linear(torch.ones(1, 32), raw, "Q8_0")
        block_embedding(torch.tensor([1]), raw, "Q8_0")
    assert [n for n in seen.names if n.startswith("block_")] == ["block_linear", "block_embedding"]


def test_compiling_uses_the_definition() -> None:
    raw = stored_rows("Q8_0", 6, 64, seed=12)
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(12))
    compiled = torch.compile(
        lambda x, raw: block_linear(x, raw, "Q8_0"), backend="eager", fullgraph=True
    )
    assert difference(compiled(x, raw), block_linear(x, raw, "Q8_0").double()) < 1e-5


@built
def test_what_does_not_fit_is_an_error() -> None:
    raw = stored_rows("Q8_0", 4, 64, seed=13)
    x = torch.ones(2, 64)
    with pytest.raises(InputError, match="does not fit rows of 64"):
        native.native_block_linear(torch.ones(2, 32), raw, "Q8_0")
    with pytest.raises(InputError, match=r"bias must be float32 \[4\]"):
        native.native_block_linear(x, raw, "Q8_0", torch.ones(5))
    with pytest.raises(InputError, match="float32 tensors on the CPU"):
        native.native_block_linear(x.double(), raw, "Q8_0")
    with pytest.raises(InputError, match=r"\[outputs, row_bytes\]"):
        native.native_block_linear(x, raw[0], "Q8_0")
    with pytest.raises(InputError, match="uint8 on the CPU"):
        native.native_dequantize(raw.float(), "Q8_0")
    with pytest.raises(InputError, match="no native kernel"):
        native.native_block_linear(x, raw, "Q8_0", level=9)
    with pytest.raises(InputError, match="no native kernel"):
        native.native_dequantize(torch.zeros(1, 8, dtype=torch.uint8), "F64")


@built
def test_empty_inputs() -> None:
    raw = stored_rows("Q8_0", 4, 64, seed=14)
    assert native.native_block_linear(torch.ones(0, 64), raw, "Q8_0").shape == (0, 4)
    assert native.native_block_linear(torch.ones(3, 64), raw[:0], "Q8_0").shape == (3, 0)
    bias = torch.ones(4)
    empty_rows = torch.zeros(4, 0, dtype=torch.uint8)
    no_inputs = native.native_block_linear(torch.ones(3, 0), empty_rows, "Q8_0", bias)
    assert torch.equal(no_inputs, torch.ones(3, 4))


def test_without_the_library_everything_still_works(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    raw = stored_rows("Q5_K", 6, 256, seed=15)
    x = torch.randn(2, 256, generator=torch.Generator().manual_seed(15))
    with_library = block_linear(x, raw, "Q5_K")
    monkeypatch.setattr(native, "_path", lambda: tmp_path / "_native.so")
    native._library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING, logger="chumoku.kernels"):
            for _ in range(3):
                without = block_linear(x, raw, "Q5_K")
        assert len(caplog.records) == 1
        assert "run slower" in caplog.records[0].getMessage()
        assert difference(without, with_library.double()) < 1e-5
        assert torch.equal(dequantize_fast(raw, "Q5_K"), dequantize(raw, "Q5_K"))
        assert native.levels() == ()
        with pytest.raises(DependencyError, match="not built"):
            native.native_dequantize(raw, "Q5_K")
    finally:
        native._library.cache_clear()
