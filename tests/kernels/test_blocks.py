"""Block formats beside the `gguf` package (bit for bit) and the golden bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from torch import Tensor

from chumoku.checkpoints import lazy
from chumoku.errors import InputError
from chumoku.kernels import blocks
from chumoku.kernels.blocks import READABLE, STORAGE, dequantize, quantize

BLOCK_STORAGES = [name for name in READABLE if STORAGE[name][0] > 1]
BLOCK_WRITABLE = [name for name in blocks.WRITABLE if STORAGE[name][0] > 1]
# Where each format keeps its float16 scales, so that edge cases can be written into them.
SCALES_AT = {
    "Q4_0": [0],
    "Q4_1": [0, 2],
    "Q5_0": [0],
    "Q5_1": [0, 2],
    "Q8_0": [0],
    "Q2_K": [80, 82],
    "Q3_K": [108],
    "Q4_K": [0, 2],
    "Q5_K": [0, 2],
    "Q6_K": [208],
}
EDGE_SCALES = (0.0, -0.0, 65504.0, -65504.0, 6e-8, float("inf"), float("-inf"), float("nan"))


def random_blocks(storage: str, count: int, seed: int) -> np.ndarray:
    """uint8 [count, block_bytes]; the first blocks carry the edge scales."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, STORAGE[storage][1]), dtype=np.uint8)
    for row, value in enumerate(EDGE_SCALES):
        for at in SCALES_AT[storage]:
            raw[row, at : at + 2] = np.frombuffer(np.float16(value).tobytes(), dtype=np.uint8)
    raw[len(EDGE_SCALES)] = 0
    return raw


def finite_blocks(storage: str, count: int, seed: int) -> np.ndarray:
    """uint8 [count, block_bytes] whose scales are all below 2 in magnitude."""
    rng = np.random.default_rng(seed)
    raw = rng.integers(0, 256, (count, STORAGE[storage][1]), dtype=np.uint8)
    for at in SCALES_AT[storage]:
        raw[:, at + 1] &= 0xBF
    return raw


def peer_values(raw: np.ndarray, storage: str) -> np.ndarray:
    with np.errstate(all="ignore"):
        return gguf.quants.dequantize(raw, GGMLQuantizationType[storage])


def same_bits(ours: Tensor, theirs: np.ndarray) -> bool:
    """Equal bit for bit (so -0 is not 0), any NaN equal to any NaN."""
    a, b = ours.numpy(), theirs
    equal = a.view(np.uint32) == b.view(np.uint32)
    return a.shape == b.shape and bool((equal | (np.isnan(a) & np.isnan(b))).all())


@pytest.mark.parametrize("storage", BLOCK_STORAGES)
def test_ten_thousand_random_blocks_equal_gguf(storage: str) -> None:
    raw = random_blocks(storage, 10_000, seed=1)
    assert same_bits(dequantize(torch.from_numpy(raw), storage), peer_values(raw, storage))


@pytest.mark.parametrize("storage", BLOCK_STORAGES)
def test_one_wrong_bit_is_seen(storage: str) -> None:
    """Negative control: a flipped bit changes the values (save where a sub-block's scale is 0)."""
    raw = finite_blocks(storage, 1, seed=2)
    expected = peer_values(raw, storage)
    seen = 0
    for bit in range(64):
        wrong = raw.copy()
        wrong[0, (bit * 7) % raw.shape[1]] ^= 1 << (bit % 8)
        seen += not same_bits(dequantize(torch.from_numpy(wrong), storage), expected)
    assert seen >= 60


def test_swapped_nibbles_fail() -> None:
    raw = random_blocks("Q4_0", 100, seed=3)
    wrong = raw.copy()
    wrong[:, 2:] = (raw[:, 2:] >> 4) | (raw[:, 2:] << 4)
    assert not same_bits(dequantize(torch.from_numpy(wrong), "Q4_0"), peer_values(raw, "Q4_0"))


@pytest.mark.parametrize("storage", BLOCK_STORAGES)
def test_rows_of_many_blocks_and_other_dtypes(storage: str) -> None:
    raw = finite_blocks(storage, 18, seed=4)
    rows = torch.from_numpy(raw.reshape(3, 2, -1))
    values = dequantize(rows, storage)
    assert same_bits(values, peer_values(raw, storage).reshape(3, 2, -1))
    assert torch.equal(dequantize(rows, storage, torch.float64), values.double())
    assert torch.equal(dequantize(rows, storage, torch.bfloat16), values.bfloat16())
    shape_only = dequantize(rows.to("meta"), storage)
    assert shape_only.shape == values.shape


def test_bytes_may_start_anywhere() -> None:
    raw = finite_blocks("Q8_0", 30, seed=5)
    shifted = torch.from_numpy(np.concatenate([[np.uint8(7)], raw.ravel()]))[1:].unflatten(
        0, (30, 34)
    )
    assert same_bits(dequantize(shifted, "Q8_0"), peer_values(raw, "Q8_0"))
    odd = torch.arange(9, dtype=torch.uint8)[1:]
    assert torch.equal(dequantize(odd, "F32"), odd.clone().view(torch.float32))


@pytest.mark.parametrize("storage", ["F16", "BF16"])
def test_every_sixteen_bit_pattern(storage: str) -> None:
    raw = np.arange(65536, dtype=np.uint16).view(np.uint8)
    assert same_bits(dequantize(torch.from_numpy(raw.copy()), storage), peer_values(raw, storage))


def test_plain_floats_are_exact() -> None:
    values = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    assert torch.equal(dequantize(quantize(values, "F64"), "F64", torch.float64), values)
    assert torch.equal(dequantize(quantize(values, "F32"), "F32"), values.float())


def rows_to_store(seed: int) -> np.ndarray:
    """float32 [600, 64]: many scales, and the edges: zeros, one outlier, ties of sign, tiny."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((600, 64)) * np.exp(rng.uniform(-12, 6, (600, 1)))
    rows[0] = 0
    rows[1] = -0.0
    rows[2, 5] = 1e4
    rows[3] = np.where(np.arange(64) % 3 == 0, 2.5, -2.5)
    rows[4] = np.where(np.arange(64) % 3 == 0, -2.5, 2.5)
    rows[5] = 7.25
    rows[6] = 1e-9
    # Many exact ties. No mixture of 0 and -0: which of them is the smaller is left open.
    rows[7:300] = np.round(rows[7:300] * 16) / 16 + 0.0
    return rows.astype(np.float32)


@pytest.mark.parametrize("storage", [*BLOCK_WRITABLE, "F16", "BF16"])
def test_quantised_bytes_equal_gguf(storage: str) -> None:
    rows = rows_to_store(7)
    with np.errstate(all="ignore"):
        expected = gguf.quants.quantize(rows, GGMLQuantizationType[storage]).view(np.uint8)
    ours = quantize(torch.from_numpy(rows), storage).numpy()
    np.testing.assert_array_equal(ours, expected)
    rows[300, 0] *= 1.5  # negative control: the bytes do depend on the values
    assert not np.array_equal(quantize(torch.from_numpy(rows), storage).numpy(), expected)


def test_bfloat16_nan_and_infinity_equal_gguf() -> None:
    bits = np.random.default_rng(8).integers(0, 2**32, 4096, dtype=np.uint32)
    bits[:8] = [0x7F800001, 0xFF800001, 0x7FC12345, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0, 2**31]
    values = bits.view(np.float32)
    expected = gguf.quants.quantize(values, GGMLQuantizationType.BF16).view(np.uint8)
    np.testing.assert_array_equal(quantize(torch.from_numpy(values), "BF16").numpy(), expected)


@pytest.mark.parametrize(
    ("storage", "first", "expected"),
    [
        ("Q4_0", -16, "0034809191a2a2b3b3c4c4d5d5e6e6f7f7f8"),
        ("Q4_0", -15, "00b48f7f7f6e6e5d5d4c4c3b3b2a2a191908"),
        ("Q4_1", -16, "223400c080809191a2a2b3b3c4c4d5d5e6e6f7f7"),
        ("Q5_0", -16, "00300000ffff00112233445566778899aabbccddeeff"),
        (
            "Q8_0",
            -16,
            "082481899199a1a9b1b9c0c8d0d8e0e8f0f8000810182028303840474f575f676f77",
        ),
    ],
)
def test_golden_bytes(storage: str, first: int, expected: str) -> None:
    values = torch.arange(first, first + 32, dtype=torch.float64) / 8
    raw = quantize(values, storage)
    assert bytes(raw.numpy()).hex() == expected
    step = 0.25 if storage.startswith("Q4") else 0.125 if storage == "Q5_0" else 1 / 60
    assert (dequantize(raw, storage, torch.float64) - values).abs().max() <= step


def test_what_cannot_be_stored_is_an_error() -> None:
    with pytest.raises(InputError, match="whole number of Q8_0 blocks"):
        dequantize(torch.zeros(35, dtype=torch.uint8), "Q8_0")
    with pytest.raises(InputError, match="uint8"):
        dequantize(torch.zeros(34), "Q8_0")
    with pytest.raises(InputError, match="does not hold floating-point"):
        dequantize(torch.zeros(8, dtype=torch.uint8), "I32")
    with pytest.raises(InputError, match="unknown storage"):
        dequantize(torch.zeros(8, dtype=torch.uint8), "Q9_9")
    with pytest.raises(InputError, match="cannot be stored as Q8_0"):
        quantize(torch.zeros(33), "Q8_0")
    with pytest.raises(InputError, match="cannot write Q4_K"):
        quantize(torch.zeros(256), "Q4_K")
    for bad in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="infinite or NaN"):
            quantize(torch.full((32,), bad), "Q4_0")
    with pytest.raises(InputError, match="too large"):
        quantize(torch.full((32,), 1e30), "Q8_0")


def test_one_table_of_storages() -> None:
    assert lazy.STORAGE is STORAGE
    for name in BLOCK_STORAGES:
        assert gguf.GGML_QUANT_SIZES[GGMLQuantizationType[name]] == STORAGE[name]


@pytest.mark.parametrize("storage", BLOCK_WRITABLE)
def test_the_size_of_pieces_changes_nothing(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randn(3, 5, 96, generator=torch.Generator().manual_seed(12))
    whole = quantize(values, storage)
    for piece in (1, 200, 1000):
        monkeypatch.setattr(blocks, "_PIECE", piece)
        assert torch.equal(quantize(values, storage), whole)
        assert quantize(values[:0], storage).shape == (0, *whole.shape[1:])
    assert not torch.equal(quantize(values.flip(0), storage), whole)
    values[2, 4, 95] = float("nan")  # in the last piece
    with pytest.raises(InputError, match="NaN"):
        quantize(values, storage)
