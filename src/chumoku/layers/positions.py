"""Where a token stands: sinusoids, rotation, relative buckets, interpolated grids."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from chumoku.layers.ops import primitive, wide


@primitive
def sinusoids(positions_BT: Tensor, width: int, *, interleaved: bool, dtype: torch.dtype) -> Tensor:
    """PE(p, 2i) = sin(p / 10000^(2i/D)), PE(p, 2i+1) = cos(same) (1706.03762, section 3.5).

    interleaved: that order; otherwise all sines first, then all cosines (Marian). [B, T, D].
    """
    half = (width + 1) // 2
    index = torch.arange(half, device=positions_BT.device, dtype=torch.float64)
    angle = positions_BT[..., None].double() / torch.pow(10000.0, 2.0 * index / width)
    sin, cos = angle.sin(), angle.cos()[..., : width - half]
    if not interleaved:
        return torch.cat((sin, cos), dim=-1).to(dtype)
    table = angle.new_empty(*positions_BT.shape, width)
    table[..., 0::2], table[..., 1::2] = sin, cos
    return table.to(dtype)


@dataclass(frozen=True)
class RotaryScaling:
    """How the rotation is stretched beyond the trained context.

    kind: "linear" (all angles / factor), "dynamic" (base grows with length past `original`),
    "llama3" (LLaMA 3.1: long waves / factor, short ones kept, a ramp between), "yarn"
    (Peng et al., 2309.00071: the same idea with a linear ramp, and attention scaled),
    "longrope" (Ding et al., 2402.13753: one factor for each pair, by length).
    """

    kind: str
    factor: float = 1.0
    original: int = 0
    low: float = 1.0
    high: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()


def rotary_frequencies(
    width: int, theta: float, scaling: RotaryScaling | None, length: int, device: torch.device
) -> tuple[Tensor, float]:
    """Radians a position for each pair, [H / 2] in float32, and the factor on cos and sin.

    width: the rotated part of a head. length: positions in use, for the kinds that depend on it.
    """
    if scaling is not None and scaling.kind == "dynamic" and length > scaling.original:
        used = torch.tensor(float(length), device=device)  # float32, as published
        grown = scaling.factor * used / scaling.original - (scaling.factor - 1)
        base: Tensor | float = theta * grown ** (width / (width - 2))
    else:
        base = theta
    exponent = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    power = base**exponent
    frequency = 1.0 / power
    if scaling is None or scaling.kind == "dynamic":
        return frequency, 1.0
    if scaling.kind == "linear":
        return frequency / scaling.factor, 1.0
    if scaling.kind == "llama3":
        return _llama3(frequency, scaling), 1.0
    if scaling.kind == "yarn":
        return _yarn(power, width, theta, scaling)
    factors = scaling.long if length > scaling.original else scaling.short
    stretch = torch.tensor(factors, device=device, dtype=torch.float32)
    return 1.0 / (stretch * power), _longrope_attention(scaling)


def _llama3(frequency: Tensor, s: RotaryScaling) -> Tensor:
    """Waves longer than original / low are divided by factor; shorter than original / high kept."""
    wavelength = 2 * math.pi / frequency
    smooth = (s.original / wavelength - s.low) / (s.high - s.low)
    ramp = (1 - smooth) * frequency / s.factor + smooth * frequency
    out = torch.where(wavelength > s.original / s.low, frequency / s.factor, ramp)
    return torch.where(wavelength < s.original / s.high, frequency, out)


def _yarn(power: Tensor, width: int, theta: float, s: RotaryScaling) -> tuple[Tensor, float]:
    """2309.00071, section 3.2 (ramp by number of turns) and 3.4 (temperature)."""

    def pair_with(turns: float) -> float:
        return width * math.log(s.original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_with(s.beta_fast), pair_with(s.beta_slow)
    if s.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    index = torch.arange(width // 2, device=power.device, dtype=torch.float32)
    keep = 1 - ((index - low) / (high - low)).clamp(0, 1)
    # In the published order of operations, so that the float32 table is the same to the last bit.
    blended = 1.0 / (s.factor * power) * (1 - keep) + 1.0 / power * keep
    return blended, _yarn_attention(s)


def _yarn_attention(s: RotaryScaling) -> float:
    if s.attention_factor is not None:
        return s.attention_factor

    def temperature(m: float) -> float:
        return 1.0 if s.factor <= 1 else 0.1 * m * math.log(s.factor) + 1.0

    if s.mscale and s.mscale_all_dim:
        return temperature(s.mscale) / temperature(s.mscale_all_dim)
    return temperature(1.0)


def _longrope_attention(s: RotaryScaling) -> float:
    if s.attention_factor is not None:
        return s.attention_factor
    return 1.0 if s.factor <= 1.0 else math.sqrt(1 + math.log(s.factor) / math.log(s.original))


@primitive
def rotary_tables(
    positions_BT: Tensor, frequency: Tensor, attention_factor: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """cos and sin of position * frequency, each [B, T, H], both halves of a head alike."""
    angle = positions_BT[..., None].to(wide(dtype)) * frequency.to(wide(dtype))
    angle = torch.cat((angle, angle), dim=-1)
    return (angle.cos() * attention_factor).to(dtype), (angle.sin() * attention_factor).to(dtype)


@primitive
def relative_buckets(
    T: int, S: int, *, buckets: int, distance: int, causal: bool, device: torch.device
) -> Tensor:
    """T5's bucket of key position - query position, [T, S] of int64 (1910.10683, section 2.1).

    Half of the buckets hold one distance each, the other half grow logarithmically up to
    `distance`; not causal: one half for keys behind, one for keys ahead. The T queries are the last
    T of the S positions.
    """
    query = torch.arange(S - T, S, device=device)[:, None]
    relative = torch.arange(S, device=device)[None, :] - query
    offset = torch.zeros_like(relative)
    if causal:
        relative = -relative.clamp(max=0)
    else:
        buckets //= 2
        offset = (relative > 0).long() * buckets
        relative = relative.abs()
    exact = buckets // 2
    # float32, as published: the edges of the logarithmic buckets depend on its rounding.
    growth = torch.log(relative.float().clamp(min=1) / exact) / math.log(distance / exact)
    large = (exact + (growth * (buckets - exact)).long()).clamp(max=buckets - 1)
    return offset + torch.where(relative < exact, relative, large)


@primitive
def resized_grid(
    table_1PD: Tensor, old: tuple[int, int], new: tuple[int, int], *, antialias: bool = False
) -> Tensor:
    """Learned positions of an old grid of patches, bicubically resized to a new one.

    2010.11929, section 3.2 (fine-tuning at a higher resolution). [1, h * w, D] -> [1, h' * w', D].
    antialias: PyTorch's smoothed form, whose cubic has another coefficient too (timm's choice).
    """
    if old == new:
        return table_1PD
    D = table_1PD.shape[-1]
    image = table_1PD.to(wide(table_1PD.dtype)).reshape(1, *old, D).permute(0, 3, 1, 2)
    image = F.interpolate(image, size=new, mode="bicubic", align_corners=False, antialias=antialias)
    return image.permute(0, 2, 3, 1).reshape(1, -1, D).to(table_1PD.dtype)
