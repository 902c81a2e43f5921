"""Positions: golden numbers, and the properties that each scheme is for."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from parity.harness import difference

from chumoku.layers.ops import rotate
from chumoku.layers.positions import (
    RotaryScaling,
    relative_buckets,
    resized_grid,
    rotary_frequencies,
    rotary_tables,
    sinusoids,
)

CPU = torch.device("cpu")
GOLDEN_SINUSOIDS = {
    (0, 0): 0.0,
    (0, 1): 1.0,
    (1, 0): 0.841471,
    (1, 1): 0.540302,
    (1, 2): 0.821856,
    (1, 3): 0.569695,
    (10, 0): -0.544021,
    (10, 100): 0.996472,
    (10, 101): -0.083922,
    (49, 510): 0.005079,
    (49, 511): 0.999987,
}


def test_sinusoids_have_the_golden_values() -> None:
    table = sinusoids(torch.arange(50)[None], 512, interleaved=True, dtype=torch.float64)[0]
    for (position, index), value in GOLDEN_SINUSOIDS.items():
        assert abs(float(table[position, index]) - value) < 1e-6
    halves = sinusoids(torch.arange(50)[None], 512, interleaved=False, dtype=torch.float64)[0]
    assert torch.equal(halves, torch.cat((table[:, 0::2], table[:, 1::2]), dim=1))


@pytest.mark.parametrize("width", [7, 8])
def test_sinusoids_of_odd_width(width: int) -> None:
    table = sinusoids(torch.tensor([[3]]), width, interleaved=True, dtype=torch.float64)[0, 0]
    for index, value in enumerate(table.tolist()):
        angle = 3 / 10000 ** (index // 2 * 2 / width)
        assert abs(value - (math.sin(angle) if index % 2 == 0 else math.cos(angle))) < 1e-12


def frequencies(theta: float, scaling: RotaryScaling | None = None) -> list[float]:
    frequency, factor = rotary_frequencies(128, theta, scaling, 0, CPU)
    assert factor == 1.0
    return frequency.tolist()


def test_rotary_frequencies_have_the_golden_values() -> None:
    plain = frequencies(1e4)
    for index, value in {0: 1.0, 1: 0.86596432, 2: 0.74989421, 63: 0.00011548}.items():
        assert abs(plain[index] - value) < 5e-8
    base = frequencies(5e5)
    assert abs(base[1] - 0.8146) < 5e-5
    assert abs(base[63] - 2.455e-06) < 5e-10
    scaled = frequencies(5e5, RotaryScaling("llama3", 8.0, 8192, low=1.0, high=4.0))
    golden = {
        28: (3.211446e-03, 3.211446e-03),
        29: (2.616099e-03, 2.166571e-03),
        34: (9.384739e-04, 1.785078e-04),
        35: (7.644970e-04, 9.556212e-05),
        63: (2.455141e-06, 3.068926e-07),
    }
    for index, (before, after) in golden.items():
        assert base[index] == pytest.approx(before, rel=1e-6)
        assert scaled[index] == pytest.approx(after, rel=1e-6)


SCALINGS = [
    None,
    RotaryScaling("linear", 4.0),
    RotaryScaling("dynamic", 4.0, original=10),
    RotaryScaling("llama3", 8.0, original=40),
    RotaryScaling("yarn", 4.0, original=40),
    RotaryScaling("longrope", 4.0, original=9, short=(1.0, 1.5, 2.0), long=(2.0, 3.0, 5.0)),
]


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda s: "none" if s is None else s.kind)
def test_a_rotated_product_depends_on_the_distance_only(scaling: RotaryScaling | None) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, 6, dtype=torch.float64)
    frequency, factor = rotary_frequencies(6, 1e4, scaling, 30, CPU)

    def product(at_q: int, at_k: int) -> float:
        turned = []
        for x, place in ((q, at_q), (k, at_k)):
            tables = rotary_tables(torch.tensor([[place]]), frequency, factor, torch.float64)
            turned.append(rotate(x, *tables))
        return float((turned[0] * turned[1]).sum())

    assert product(3, 1) == pytest.approx(product(29, 27), abs=1e-12)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    assert product(0, 0) == pytest.approx(float((q * k).sum()) * factor**2, abs=1e-12)


def test_rotation_is_the_complex_product() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64)
    places = torch.tensor([[0, 1, 5, 9], [2, 2, 0, 100]])
    frequency, _ = rotary_frequencies(6, 1e4, None, 0, CPU)
    tables = rotary_tables(places, frequency, 1.0, torch.float64)
    angle = places[:, None, :, None] * frequency.double()
    turned = torch.complex(x[..., :3], x[..., 3:]) * torch.polar(torch.ones_like(angle), angle)
    assert difference(rotate(x, *tables), torch.cat((turned.real, turned.imag), -1)) < 1e-14


def test_linear_scaling_reads_positions_between_the_trained_ones() -> None:
    plain, _ = rotary_frequencies(8, 1e4, None, 0, CPU)
    stretched, _ = rotary_frequencies(8, 1e4, RotaryScaling("linear", 4.0), 0, CPU)
    a = rotary_tables(torch.tensor([[3]]), plain, 1.0, torch.float32)
    b = rotary_tables(torch.tensor([[12]]), stretched, 1.0, torch.float32)
    assert difference(a[0], b[0]) < 1e-6
    assert difference(a[1], b[1]) < 1e-6


BIDIRECTIONAL = {
    **{-200: 15, -128: 15, -127: 15, -64: 14, -20: 10, -9: 8, -8: 8, -7: 7, -1: 1, 0: 0},
    **{1: 17, 7: 23, 8: 24, 9: 24, 20: 26, 64: 30, 127: 31, 200: 31},
}
CAUSAL = {
    **{5: 0, 0: 0, -1: 1, -8: 8, -15: 15, -16: 16, -17: 16, -20: 17, -31: 21, -64: 26},
    **{-113: 31, -200: 31},
}


@pytest.mark.parametrize(("causal", "golden"), [(False, BIDIRECTIONAL), (True, CAUSAL)])
def test_relative_buckets_have_the_golden_values(causal: bool, golden: dict[int, int]) -> None:
    table = relative_buckets(401, 401, buckets=32, distance=128, causal=causal, device=CPU)
    for relative, bucket in golden.items():
        assert int(table[200, 200 + relative]) == bucket, relative
    last = relative_buckets(3, 401, buckets=32, distance=128, causal=causal, device=CPU)
    assert torch.equal(last, table[-3:])


def test_a_grid_resized_to_itself_is_itself_and_resizing_is_bicubic() -> None:
    torch.manual_seed(0)
    table = torch.randn(1, 6, 4)
    assert resized_grid(table, (2, 3), (2, 3)) is table
    got = resized_grid(table, (2, 3), (4, 5))
    for channel in range(4):
        image = table[0, :, channel].reshape(1, 1, 2, 3)
        expected = F.interpolate(image, size=(4, 5), mode="bicubic", align_corners=False)
        assert difference(got[0, :, channel], expected.flatten()) < 1e-6
    bilinear = F.interpolate(table[0].T.reshape(1, 4, 2, 3), size=(4, 5), mode="bilinear")
    assert difference(got[0].T, bilinear.reshape(4, 20)) > 1e-3
