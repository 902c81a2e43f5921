"""Optimisers: AdamW, BERT's uncorrected Adam, Adafactor; their groups, and their state as tensors.

Both Adams are PyTorch's fused AdamW, which reads every value once; Adafactor is ours.
Every group carries "scale", the factor of its learning rate: the loop sets lr = rate * scale.
Decay is decoupled and goes by the learning rate in all three: p <- p - lr * weight_decay * (p - a),
where a is 0 or the weight that training began with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.errors import CheckpointError, ConfigError
from chumoku.training.stabilising import layer_scales
from chumoku.training.weights import trained

EPS: Final = {"adamw": 1e-8, "bert-adam": 1e-6, "adafactor": 1e-30}
"""Published defaults. Adafactor's is added to squared gradients."""
ANCHORS: Final = ("zero", "pretrained")
BETAS: Final = (0.9, 0.999)
UNCORRECTED: Final = 2.0**40
"""A count of steps in float32 that one more does not change, and whose powers b^n are 0."""


@dataclass(frozen=True)
class OptimiserSettings:
    """kind: adamw (corrects the bias of its averages), bert-adam (does not), adafactor.

    eps: None: the published one of the kind. weight_decay: of matrices, and of what decay_* adds.
    decay_to: what weights decay to: zero, or the weights at the start ("pretrained"; Wiese et al.,
    1706.03610). layer_decay: each block's learning rate is that of the block above times this (1:
    all alike). Of Adafactor alone: clip_threshold, the largest root mean square of an update;
    decay_rate, of its averages; scale_parameter, multiply the learning rate by the parameter's root
    mean square; min_scale, at least by this. Its relative step is the schedule "t5" beside
    learning_rate = 1.
    """

    kind: str = "adamw"
    learning_rate: float = 5e-5
    betas: tuple[float, float] = BETAS
    eps: float | None = None
    weight_decay: float = 0.01
    decay_embeddings: bool = True
    decay_norms: bool = False
    decay_biases: bool = False
    decay_to: str = "zero"
    layer_decay: float = 1.0
    clip_threshold: float = 1.0
    decay_rate: float = 0.8
    scale_parameter: bool = True
    min_scale: float = 1e-3

    def __post_init__(self) -> None:
        if self.kind not in EPS:
            raise _error("kind", f"{self.kind!r} is not one of {', '.join(EPS)}")
        if self.decay_to not in ANCHORS:
            raise _error("decay_to", f"{self.decay_to!r} is not one of {', '.join(ANCHORS)}")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise _error(name, f"must be at least 0, it is {getattr(self, name)}")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise _error("betas", f"must be two numbers in [0, 1), they are {self.betas}")
        if not 0 < self.layer_decay <= 1:
            raise _error("layer_decay", f"must lie in (0, 1], it is {self.layer_decay}")
        for name in ("eps", "clip_threshold", "decay_rate", "min_scale"):
            if (value := getattr(self, name)) is not None and not 0 < value < float("inf"):
                raise _error(name, f"must be above 0, it is {value}")
        self._refuse_unused()

    def _refuse_unused(self) -> None:
        """A setting that the kind does not read is a mistake, not a wish."""
        default = type(self).__dict__  # a dataclass keeps its defaults as class attributes
        adafactors = ("clip_threshold", "decay_rate", "scale_parameter", "min_scale")
        for name in ("betas",) if self.kind == "adafactor" else adafactors:
            value = getattr(self, name)
            if (tuple(value) if name == "betas" else value) != default[name]:
                raise _error(name, f"means nothing to {self.kind!r}")


class MasterWeights:
    """What the optimiser steps: the parameters, or float32 copies where training is narrower.

    The model is brought to `dtype`. Gradients of narrow parameters are added up in float32, batch
    after batch (`gather`), and the stepped copies are rounded back into the model (`refresh`). With
    float32 and wider both do nothing, and `named` holds the parameters themselves. Tied parameters
    occur once, under their first name; frozen ones do not occur.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        found = trained(model)
        self.narrow = torch.finfo(dtype).bits < 32
        self.named: dict[str, nn.Parameter] = found
        if self.narrow:  # copied before the model is rounded
            copies = {n: p.detach().to(torch.float32, copy=True) for n, p in found.items()}
            self.named = {n: nn.Parameter(copy) for n, copy in copies.items()}
        model.to(dtype)  # the values change, the Parameters stay, and so do ties
        self.parameters: list[Tensor] = list(found.values())

    @property
    def trained(self) -> list[Tensor]:
        """The tensors that the optimiser steps; after `gather` they hold the gradients."""
        return list(self.named.values())

    def gather(self) -> None:
        """Add the model's gradients to the copies' and drop them. Call it after each backward."""
        if not self.narrow:
            return
        for parameter, copy in zip(self.parameters, self.named.values(), strict=True):
            if parameter.grad is None:
                continue
            if copy.grad is None:
                copy.grad = parameter.grad.float()
            else:
                copy.grad.add_(parameter.grad)
            parameter.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the copies into the model. Call it after each step."""
        if self.narrow:
            torch._foreach_copy_(self.parameters, self.trained)


def make_optimiser(
    model: nn.Module, settings: OptimiserSettings, master: MasterWeights | None = None
) -> torch.optim.Optimizer:
    """The optimiser over the model's trained parameters, or over `master`'s copies of them.

    Its state exists from the start, so that a state which lacks a tensor is noticed on loading.
    Raises ConfigError where nothing is to be trained.
    """
    groups = _groups(model, settings, _named(model, master))
    eps = EPS[settings.kind] if settings.eps is None else settings.eps
    optimiser: torch.optim.Optimizer
    if settings.kind == "adafactor":
        optimiser = Adafactor(groups, settings, eps)
    else:
        beta1, beta2 = settings.betas
        optimiser = torch.optim.AdamW(groups, betas=(beta1, beta2), eps=eps, fused=True)
        _create_adam_state(optimiser, corrected=settings.kind == "adamw")
    if settings.decay_to == "pretrained":
        _decay_to_start(optimiser)
    return optimiser


def parameter_kind(name: str, parameter: Tensor) -> str:
    """bias, norm (any other vector: scales, magnitudes), embedding or matrix, by our names."""
    *path, leaf = name.split(".")
    if leaf == "bias":
        return "bias"
    if parameter.dim() < 2 and path[-1:] != ["embeddings"]:  # there it is a token of its own
        return "norm"
    return "embedding" if "embeddings" in path else "matrix"


def _groups(
    model: nn.Module, settings: OptimiserSettings, named: Mapping[str, nn.Parameter]
) -> list[dict[str, Any]]:
    """One group for each pair (decay, scale) that occurs."""
    decayed = {
        "matrix": True,
        "embedding": settings.decay_embeddings,
        "norm": settings.decay_norms,
        "bias": settings.decay_biases,
    }
    scales = layer_scales(model, settings.layer_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named.items():
        decay = settings.weight_decay if decayed[parameter_kind(name, parameter)] else 0.0
        scale = scales[name]
        new = {"params": [], "weight_decay": decay, "scale": scale}
        group = groups.setdefault((decay, scale), new)
        group["lr"] = settings.learning_rate * scale
        group["params"].append(parameter)
    return list(groups.values())


def _create_adam_state(optimiser: torch.optim.Optimizer, *, corrected: bool) -> None:
    """What PyTorch would make at the first step of each parameter; without correction, one change.

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, p <- p - lr m' / (sqrt(v') + eps). AdamW has
    m' = m / (1 - b1^n), v' = v / (1 - b2^n) at step n; BERT's Adam has m' = m, v' = v (1810.04805,
    published code), so that its first step is 0.1 / sqrt(0.001) = 3.16 times as long (Zhang et al.,
    2006.05987, section 4; Mosbach et al., 2006.04884). A count n at which b^n is 0 says just that.
    """
    for p in _stepped(optimiser):
        count = 0.0 if corrected else UNCORRECTED
        step = torch.full((), count, dtype=torch.float32, device=p.device)
        averages = {name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")}
        optimiser.state[p] = {"step": step, **averages}


def _decay_to_start(optimiser: torch.optim.Optimizer) -> None:
    """Before each step, p <- p + lr * weight_decay * (a - p) with a the weight as it is now.

    The optimisers' own decay, to zero, is put out; a weight that has not moved does not move.
    """
    for group in optimiser.param_groups:
        group["decay_to_start"], group["weight_decay"] = group["weight_decay"], 0.0
        if group["decay_to_start"]:
            for p in group["params"]:
                optimiser.state[p]["start"] = p.detach().clone()

    @torch.no_grad()
    def decay(optimiser: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimiser.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if moving and group["decay_to_start"]:
                starts = [optimiser.state[p]["start"] for p in moving]
                torch._foreach_lerp_(moving, starts, group["lr"] * group["decay_to_start"])

    optimiser.register_step_pre_hook(decay)


class Adafactor(torch.optim.Optimizer):
    """Adam's second moment kept as row and column means (Shazeer & Stern, 1804.04235, alg. 4, 5).

    Without first moment. b2 = 1 - n^-decay_rate, n from 1; r and c average the rows' and columns'
    means of g^2 + eps; u = g / sqrt(r c / mean(r)), divided by max(1, rms(u) / clip_threshold);
    p <- p - lr max(min_scale, rms(p)) u. Vectors keep the full average. With more than
    two axes the last two are rows and columns. (PyTorch's own caps lr by 1 / sqrt(n), and cannot
    leave out the scale.)
    """

    def __init__(
        self, groups: list[dict[str, Any]], settings: OptimiserSettings, eps: float
    ) -> None:
        super().__init__(groups, {"eps": eps})
        self.settings = settings
        for p in _stepped(self):
            state = {"step": torch.zeros((), dtype=torch.int64)}
            if p.dim() < 2:
                state["square"] = torch.zeros_like(p)
            else:
                state["rows"] = torch.zeros_like(p[..., 0])
                state["columns"] = torch.zeros_like(p[..., 0, :])
            self.state[p] = state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self._step(p, p.grad, group)

    def _step(self, p: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state, settings = self.state[p], self.settings
        state["step"] += 1
        weight = float(state["step"]) ** -settings.decay_rate  # 1 - b2
        if "square" in state:
            state["square"].lerp_(gradient.square() + group["eps"], weight)
            update = gradient * state["square"].rsqrt()
        else:
            state["rows"].lerp_(_mean_square(gradient, -1) + group["eps"], weight)
            state["columns"].lerp_(_mean_square(gradient, -2) + group["eps"], weight)
            rows = state["rows"] / state["rows"].mean(dim=-1, keepdim=True)
            update = gradient * rows.rsqrt().unsqueeze(-1)
            update *= state["columns"].rsqrt().unsqueeze(-2)
        rate = group["lr"] / (_rms(update) / settings.clip_threshold).clamp(min=1.0)
        if settings.scale_parameter:
            rate = rate * _rms(p).clamp(min=settings.min_scale)
        if group["weight_decay"]:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(update.mul_(rate))


def _mean_square(x: Tensor, axis: int) -> Tensor:
    """The mean of x^2 along an axis, without a tensor of x's size."""
    norms: Tensor = torch.linalg.vector_norm(x, dim=axis)
    return norms.square().div_(x.shape[axis])


def _rms(x: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(x)
    return norm / math.sqrt(x.numel())


def _stepped(optimiser: torch.optim.Optimizer) -> Iterator[nn.Parameter]:
    for group in optimiser.param_groups:
        yield from group["params"]


# ---- state as tensors ----


def state_tensors(
    optimiser: torch.optim.Optimizer, model: nn.Module, master: MasterWeights | None = None
) -> dict[str, Tensor]:
    """All that later steps depend on: "blocks.0.attention.query.weight/exp_avg", ".../step", ….

    Float32 copies of narrow weights are ".../master". The tensors are the live ones, not copies.
    Rates and decay are not here: they come from the settings.
    """
    found = {}
    for name, parameter in _named(model, master).items():
        for key, value in optimiser.state[parameter].items():
            found[f"{name}/{key}"] = value
        if master is not None and master.narrow:
            found[f"{name}/master"] = parameter.detach()
    return found


def load_state_tensors(
    optimiser: torch.optim.Optimizer,
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    master: MasterWeights | None = None,
) -> None:
    """Put back what `state_tensors` gave, bit for bit, and refresh the model from the copies.

    Raises CheckpointError, before anything is changed, where a tensor is missing, too many, or of
    another shape or type.
    """
    current = state_tensors(optimiser, model, master)
    for name in sorted({*current, *tensors}):
        if name not in tensors:
            raise CheckpointError("the optimiser's state lacks a tensor", where=name)
        if name not in current:
            advice = "take the settings of the run that wrote it"
            raise CheckpointError("no such state in this optimiser", where=name, advice=advice)
        have, want = tensors[name], current[name]
        if have.shape != want.shape or have.dtype != want.dtype:
            raise CheckpointError(
                f"{have.dtype} {[*have.shape]} does not fit {want.dtype} {[*want.shape]}",
                where=name,
            )
    with torch.no_grad():
        for name, value in current.items():
            value.copy_(tensors[name])
    if master is not None:
        master.refresh()


def _named(model: nn.Module, master: MasterWeights | None) -> dict[str, nn.Parameter]:
    return trained(model) if master is None else master.named


def _error(name: str, what: str) -> ConfigError:
    return ConfigError(what, where=f"[training.optimiser] {name}")
