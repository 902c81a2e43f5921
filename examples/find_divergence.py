"""Which value is the first that two models do not agree on? (docs/numerical-divergence.md)

Run it: two small BERTs with the same weights, the second with a planted fault of each usual kind.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.layers import ops
from chumoku.layers.attention import Batch
from chumoku.layers.taps import trace
from chumoku.models import bert


class Gap(NamedTuple):
    """difference: max |a - b| / max(1, max |b|)."""

    name: str
    difference: float


def gaps(suspect: nn.Module, trusted: nn.Module, run: Callable[[nn.Module], Tensor]) -> list[Gap]:
    """For each value that can be watched, in order of computation: how far apart the models are."""
    with torch.no_grad(), trace(suspect, "*") as ours, trace(trusted, "*") as theirs:
        run(suspect)
        run(trusted)
    return [Gap(name, _gap(ours[name], theirs[name])) for name in theirs]


def _gap(a: Tensor, b: Tensor) -> float:
    a, b = a.detach(), b.detach()
    finite = torch.isfinite(b)  # hidden scores are -inf in both
    if not torch.equal(finite, torch.isfinite(a)):
        return float("inf")
    a, b = a[finite].double(), b[finite].double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def first(found: list[Gap], limit: float) -> Gap | None:
    """The earliest value that is further apart than rounding explains."""
    return next((gap for gap in found if gap.difference > limit), None)


CONFIG = bert.Config(
    vocab_size=50,
    max_positions=16,
    width=24,
    num_blocks=4,
    num_heads=3,
    feedforward_width=40,
    dropout=0.0,
    attention_dropout=0.0,
)


def _config_fault(**changes: object) -> Callable[[bert.Model], bert.Model]:
    def make(model: bert.Model) -> bert.Model:
        other = bert.Model(dataclasses.replace(CONFIG, **changes), "masked-lm")  # type: ignore[arg-type]
        other.load_state_dict(model.state_dict(), strict=False)
        return other.to(model.head.bias.dtype)  # type: ignore[union-attr]

    return make


def _swapped_biases(model: bert.Model) -> bert.Model:
    layer = model.blocks[2].attention
    layer.key.bias.data, layer.value.bias.data = layer.value.bias.data, layer.key.bias.data  # type: ignore[union-attr]
    return model


def _loose_output(model: bert.Model) -> bert.Model:
    loose = torch.randn_like(model.embeddings.token.weight) * 0.2
    model.head.output.weight = nn.Parameter(loose)  # type: ignore[union-attr]
    return model


FAULTS = {
    "none": lambda model: model,
    "GELU by tanh": _config_fault(activation="gelu_new"),
    "another epsilon": _config_fault(norm_eps=1e-3),
    "key and value bias exchanged in block 2": _swapped_biases,
    "output matrix not tied": _loose_output,
}


def models(fault: str, dtype: torch.dtype) -> tuple[bert.Model, bert.Model]:
    """The faulty model and the right one, every parameter drawn."""
    torch.manual_seed(0)
    trusted = bert.Model(CONFIG, "masked-lm").eval()
    for name, parameter in trusted.named_parameters():
        nn.init.normal_(parameter, 1.0 if "norm.weight" in name else 0.0, 0.3)
    trusted = trusted.to(dtype)
    return FAULTS[fault](copy.deepcopy(trusted)).eval(), trusted


IDS = torch.tensor([[7, 3, 9, 21, 4, 11, 30, 2], [8, 40, 5, 6, 1, 0, 0, 0]])
MASK = IDS > 0


def plain(model: nn.Module) -> Tensor:
    return model(IDS, MASK)  # type: ignore[no-any-return]


def without_mask(model: nn.Module) -> Tensor:
    return model(IDS)  # type: ignore[no-any-return]


def shifted(model: nn.Module) -> Tensor:
    places = torch.arange(1, 9).expand_as(IDS)
    return model(IDS, MASK, batch=Batch(positions_BT=places))  # type: ignore[no-any-return]


def main() -> None:
    print("activation        x = 1        x = 3   (the two GELUs)")
    for name, function in (("erf", F.gelu), ("tanh", ops.gelu_new)):
        print(f"{name:10} {function(torch.tensor(1.0)):12.7f} {function(torch.tensor(3.0)):12.7f}")
    single, double = (models("none", dtype)[0] for dtype in (torch.float32, torch.float64))
    found = gaps(single, double, plain)
    worst = max(found, key=lambda gap: gap.difference)
    print(f"\nrounding alone: float32 is {worst.difference:.0e} from float64, at {worst.name}")
    for fault in FAULTS:
        print(f"\nfault: {fault}")
        for dtype, limit in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
            found = gaps(*models(fault, dtype), plain)
            gap = first(found, limit)
            place = "nowhere" if gap is None else f"{gap.name} ({gap.difference:.1e})"
            print(f"  {dtype!s:13} logits {found[-1].difference:.1e}   first beyond: {place}")
    suspect, trusted = models("none", torch.float64)
    for what, run in (("padding not masked", without_mask), ("positions start at 1", shifted)):
        wrong, right = run(suspect), plain(trusted)
        rows = [f"row {n}: {_gap(wrong[n], right[n]):.1e}" for n in range(2)]
        print(f"\nfault: {what}\n  {'   '.join(rows)}")


if __name__ == "__main__":
    main()
