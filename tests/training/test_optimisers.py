"""Optimisers beside formulas written out in NumPy, and beside transformers' Adafactor."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers.optimization import Adafactor as PublishedAdafactor

from chumoku.errors import CheckpointError, ConfigError
from chumoku.loading import create
from chumoku.models import bert
from chumoku.training.optimisers import (
    MasterWeights,
    OptimiserSettings,
    load_state_tensors,
    make_optimiser,
    parameter_kind,
    state_tensors,
)
from chumoku.training.schedules import ScheduleSettings, factor
from chumoku.training.snapshots import Snapshot, read_snapshot, write_snapshot

KINDS = ["adamw", "bert-adam", "adafactor"]
CONFIG = bert.Config(
    vocab_size=40, max_positions=16, width=16, num_blocks=2, num_heads=2, feedforward_width=24
)
RELATIVE = {torch.float32: 2e-6, torch.float64: 1e-12}


class Net(nn.Module):
    """A matrix, a stack of matrices and a vector."""

    def __init__(self, dtype=torch.float32, seed=0):
        super().__init__()
        random = torch.Generator().manual_seed(seed)

        def draw(*shape):
            values = torch.randn(*shape, generator=random, dtype=torch.float64)
            return nn.Parameter(values.to(dtype))

        self.matrix = draw(5, 7)
        self.stack = draw(2, 3, 4)
        self.vector = draw(6)


def gradients(net, step):
    """Gradients of very different sizes, the same for each type."""
    random = torch.Generator().manual_seed(100 + step)
    for p in net.parameters():
        values = torch.randn(p.shape, generator=random, dtype=torch.float64)
        scale = 10.0 ** torch.randint(-3, 2, p.shape, generator=random)
        p.grad = (values * scale).to(p.dtype)


def trained(net, optimiser, steps=6, rate=1.0):
    for step in range(steps):
        gradients(net, step)
        for group in optimiser.param_groups:
            group["lr"] = rate(step) if callable(rate) else group["lr"]
        optimiser.step()
    return [p.detach().double().numpy() for p in net.parameters()]


def by_formula(update, steps=6, **options):
    """The same training in NumPy, float64; update(p, g, n, state) -> p."""
    net = Net(torch.float64)
    states = [{} for _ in net.parameters()]
    values = [p.detach().numpy().copy() for p in net.parameters()]
    for step in range(steps):
        gradients(net, step)
        for i, p in enumerate(net.parameters()):
            values[i] = update(values[i], p.grad.numpy(), step + 1, states[i], **options)
    return values


def adam(p, g, n, state, *, lr=0.01, b1=0.8, b2=0.95, eps=1e-5, decay=0.1, corrected, matrix=None):
    """Kingma & Ba, 1412.6980, algorithm 1, with Loshchilov & Hutter's decay, 1711.05101, alg. 2."""
    state["m"] = b1 * state.get("m", 0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0) + (1 - b2) * g**2
    m, v = state["m"], state["v"]
    if corrected:
        m, v = m / (1 - b1**n), v / (1 - b2**n)
    decayed = p * (1 - lr * decay) if p.ndim > 1 else p  # vectors do not decay
    return decayed - lr * m / (np.sqrt(v) + eps)


def close(mine, expected, relative):
    return all(
        np.abs(a - b).max() <= relative * max(1.0, np.abs(b).max())
        for a, b in zip(mine, expected, strict=True)
    )


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize(("kind", "corrected"), [("adamw", True), ("bert-adam", False)])
def test_adam_equals_its_formula(kind, corrected, dtype):
    settings = OptimiserSettings(
        kind=kind, learning_rate=0.01, betas=(0.8, 0.95), eps=1e-5, weight_decay=0.1
    )
    net = Net(dtype)
    mine = trained(net, make_optimiser(net, settings))
    assert close(mine, by_formula(adam, corrected=corrected), RELATIVE[dtype])
    # the other rule, and one without decay, must not pass
    assert not close(mine, by_formula(adam, corrected=not corrected), 1e-3)
    assert not close(mine, by_formula(adam, corrected=corrected, decay=0.0), 1e-4)


@pytest.mark.parametrize("dtype", RELATIVE)
def test_first_step_without_correction_is_3_16_times_the_rate(dtype):
    """m = 0.1 g and v = 0.001 g^2 exactly, so that lr m / sqrt(v) = 3.16 lr; corrected: 1.0 lr."""
    moved = {}
    for kind in ("adamw", "bert-adam"):
        net = Net(dtype)
        before = net.matrix.detach().clone()
        settings = OptimiserSettings(kind=kind, learning_rate=1e-3, weight_decay=0.0, eps=1e-30)
        optimiser = make_optimiser(net, settings)
        gradients(net, 0)
        g = net.matrix.grad.clone()
        optimiser.step()
        state = optimiser.state[net.matrix]
        torch.testing.assert_close(state["exp_avg"], 0.1 * g, rtol=3e-7, atol=0)
        torch.testing.assert_close(state["exp_avg_sq"], 0.001 * g * g, rtol=3e-7, atol=0)
        moved[kind] = ((before - net.matrix.detach()) / g.sign() / 1e-3).double()
        if kind == "bert-adam":
            m, v = 0.1 * g.double(), 0.001 * g.double() ** 2
            exact = 1e-3 * m / (v.sqrt() + 1e-30)
            got = (before - net.matrix.detach()).double()
            assert (got - exact).abs().max() <= 1e-6 * (dtype == torch.float32) + 1e-15
    ulp = 3e-4 if dtype == torch.float32 else 1e-9  # of a weight near 2, over a rate of 1e-3
    assert (moved["bert-adam"] - 0.1 / 0.001**0.5).abs().max() < ulp
    assert (moved["adamw"] - 1.0).abs().max() < ulp
    assert (moved["bert-adam"] / moved["adamw"]).mean().item() == pytest.approx(3.1623, abs=1e-3)


def adafactor(p, g, n, state, *, lr=0.02, clip=1.0, scaled=True, power=0.8, decay=0.0):
    """1804.04235, algorithms 4 and 5, with sums where ours has means."""
    b2, square = 1 - n**-power, g**2 + 1e-30
    if p.ndim == 1:
        state["v"] = b2 * state.get("v", 0) + (1 - b2) * square
        v = state["v"]
    else:
        state["r"] = b2 * state.get("r", 0) + (1 - b2) * square.sum(-1, keepdims=True)
        state["c"] = b2 * state.get("c", 0) + (1 - b2) * square.sum(-2, keepdims=True)
        v = state["r"] * state["c"] / state["r"].sum(-2, keepdims=True)
    u = g / np.sqrt(v)
    u = u / max(1.0, np.sqrt(np.mean(u**2)) / clip)
    alpha = lr * (max(1e-3, np.sqrt(np.mean(p**2))) if scaled else 1.0)
    return p * (1 - lr * decay) - alpha * u


@pytest.mark.parametrize("dtype", RELATIVE)
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("clip", [1.0, 0.3])
def test_adafactor_equals_paper_and_published(dtype, scaled, clip):
    settings = OptimiserSettings(
        kind="adafactor",
        learning_rate=0.02,
        weight_decay=0.0,
        clip_threshold=clip,
        scale_parameter=scaled,
    )
    net = Net(dtype)
    mine = trained(net, make_optimiser(net, settings))
    options = {"lr": 0.02, "clip": clip, "scaled": scaled}
    assert close(mine, by_formula(adafactor, **options), 5 * RELATIVE[dtype])
    other = Net(dtype)
    theirs = PublishedAdafactor(
        other.parameters(),
        lr=0.02,
        relative_step=False,
        clip_threshold=clip,
        scale_parameter=scaled,
    )
    assert close(mine, trained(other, theirs), 5 * RELATIVE[dtype])
    for wrong in ({"clip": 9.0}, {"scaled": not scaled}, {"power": 0.5}):
        assert not close(mine, by_formula(adafactor, **{**options, **wrong}), 1e-4), wrong


def test_adafactor_relative_step_is_the_t5_schedule():
    schedule = ScheduleSettings(kind="t5")
    settings = OptimiserSettings(kind="adafactor", learning_rate=1.0, weight_decay=0.0)
    net, other = Net(torch.float64), Net(torch.float64)
    mine = trained(net, make_optimiser(net, settings), rate=lambda step: factor(schedule, step, 9))
    theirs = PublishedAdafactor(other.parameters(), lr=None)
    assert close(mine, trained(other, theirs), 1e-12)


def test_adafactor_decays_matrices_by_the_rate():
    settings = OptimiserSettings(kind="adafactor", learning_rate=0.02, weight_decay=0.5)
    net = Net(torch.float64)
    mine = trained(net, make_optimiser(net, settings))[:2]
    assert close(mine, by_formula(adafactor, decay=0.5)[:2], 1e-12)
    assert not close(mine, by_formula(adafactor)[:2], 1e-3)


def test_adafactor_survives_a_gradient_of_zeros():
    net = Net()
    optimiser = make_optimiser(net, OptimiserSettings(kind="adafactor", learning_rate=0.1))
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
        p.grad.view(-1)[0] = 1e-12
    optimiser.step()
    assert all(torch.isfinite(p).all() for p in net.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_decay_to_the_start(kind):
    """Gradients being given, it is decay to zero of what has been moved from the start."""
    common = {"kind": kind, "learning_rate": 0.05, "weight_decay": 0.3}
    if kind == "adafactor":
        common["scale_parameter"] = False  # the scale depends on p, which the shift changes
    net, shifted = Net(torch.float64), Net(torch.float64)
    starts = [p.detach().clone() for p in net.parameters()]
    optimiser = make_optimiser(net, OptimiserSettings(**common, decay_to="pretrained"))
    with torch.no_grad():
        for p in shifted.parameters():
            p.zero_()
    expected = trained(shifted, make_optimiser(shifted, OptimiserSettings(**common)))
    mine = trained(net, optimiser)
    moved = [a - s.numpy() for a, s in zip(mine, starts, strict=True)]
    assert close(moved, expected, 1e-12)
    plain = Net(torch.float64)
    to_zero = trained(plain, make_optimiser(plain, OptimiserSettings(**common)))
    assert not close(mine, to_zero, 1e-3)


def test_decay_to_the_start_leaves_what_has_not_moved():
    net = Net()
    before = [p.detach().clone() for p in net.parameters()]
    settings = OptimiserSettings(learning_rate=0.1, weight_decay=0.9, decay_to="pretrained")
    optimiser = make_optimiser(net, settings)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))


# ---- groups ----


def model(seed=0, head="masked-lm"):
    """A small BERT whose every parameter is random."""
    made = create(CONFIG, head, seed).model
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(torch.randn(p.shape, generator=random) * 0.1)
    return made


def of_group(made, optimiser, key):
    """Parameter name -> its group's value."""
    names = {id(p): name for name, p in made.named_parameters()}
    found = {}
    for group in optimiser.param_groups:
        for p in group["params"]:
            assert names[id(p)] not in found, "in two groups"
            found[names[id(p)]] = group[key]
    return found


def test_biases_and_norms_do_not_decay():
    made = model()
    decay = of_group(made, make_optimiser(made, OptimiserSettings()), "weight_decay")
    assert set(decay) == {name for name, _ in made.named_parameters()}
    still = {name for name, value in decay.items() if value == 0}
    assert still == {n for n in decay if n.endswith("bias") or "norm" in n}
    assert decay["embeddings.token.weight"] == decay["blocks.1.attention.query.weight"] == 0.01
    assert "head.output.weight" not in decay  # tied to the embeddings


@pytest.mark.parametrize(
    ("knob", "name"),
    [
        ("decay_embeddings", "embeddings.token.weight"),
        ("decay_norms", "blocks.0.attention_norm.weight"),
        ("decay_biases", "head.bias"),
    ],
)
def test_what_decays_is_a_choice(knob, name):
    made = model()
    default = getattr(OptimiserSettings(), knob)
    values = [
        of_group(made, make_optimiser(made, OptimiserSettings(**{knob: on})), "weight_decay")[name]
        for on in (default, not default)
    ]
    assert sorted(values) == [0.0, 0.01]


def test_kinds_by_name():
    kinds = {
        "embeddings.patch.weight": (3, 3),
        "embeddings.class": (1, 1, 3),
        "embeddings.norm.weight": (3,),
        "embeddings.norm.bias": (3,),
        "blocks.0.attention.query.magnitude": (3,),
        "head.output.weight": (3, 3),
    }
    found = [parameter_kind(name, torch.zeros(shape)) for name, shape in kinds.items()]
    assert found == ["embedding", "embedding", "norm", "bias", "norm", "matrix"]


def test_frozen_parameters_are_in_no_group():
    made = model()
    made.embeddings.requires_grad_(False)
    groups = of_group(made, make_optimiser(made, OptimiserSettings()), "lr")
    assert groups
    assert not any(name.startswith("embeddings") for name in groups)
    made.requires_grad_(False)
    with pytest.raises(ConfigError, match="no parameter is left"):
        MasterWeights(made)
    with pytest.raises(ConfigError, match="no parameter is left"):
        make_optimiser(made, OptimiserSettings())


def test_layer_decay_becomes_the_groups_scale():
    made = model()
    settings = OptimiserSettings(learning_rate=1.0, layer_decay=0.5)
    optimiser = make_optimiser(made, settings)
    scales = of_group(made, optimiser, "scale")
    assert scales["head.bias"] == 1.0
    assert scales["blocks.1.feedforward.up.weight"] == 0.5
    assert scales["blocks.0.attention_norm.bias"] == 0.25
    assert scales["embeddings.token.weight"] == 0.125
    assert scales == of_group(made, optimiser, "lr")


# ---- state ----


def train(made, optimiser, master, start, steps):
    """Steps of a little training with dropout off and two batches a step."""
    for step in range(start, start + steps):
        random = torch.Generator().manual_seed(step)
        for _ in range(2):
            ids_BT = torch.randint(0, 40, (3, 8), generator=random)
            made(ids_BT).float().logsumexp(-1).mean().backward()
            master.gather()
        optimiser.step()
        master.refresh()
        optimiser.zero_grad()


def pieces(kind, dtype, decay_to="zero"):
    made = model().eval()
    master = MasterWeights(made, dtype)
    settings = OptimiserSettings(kind=kind, learning_rate=1e-3, decay_to=decay_to)
    return made, make_optimiser(made, settings, master), master


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("decay_to", ["zero", "pretrained"])
def test_state_restores_bit_for_bit(kind, dtype, decay_to, tmp_path):
    """3 + 3 steps through files equal 6 steps; with a fresh optimiser they do not."""
    whole, first, second, forgetful = (pieces(kind, dtype, decay_to) for _ in range(4))
    train(*whole, 0, 6)
    train(*first, 0, 3)
    made, optimiser, master = first
    tensors = {
        "model": dict(made.named_parameters()),
        "optimiser": state_tensors(optimiser, made, master),
    }
    path = write_snapshot(tmp_path, Snapshot(3, tensors, {}), keep=1)
    saved = read_snapshot(path).tensors
    for other in (second, forgetful):
        with torch.no_grad():
            for name, p in other[0].named_parameters():
                p.copy_(saved["model"][name])
    load_state_tensors(second[1], second[0], saved["optimiser"], second[2])
    train(*second, 3, 3)
    train(*forgetful, 3, 3)
    same = [
        torch.equal(a, b)
        for a, b in zip(whole[0].parameters(), second[0].parameters(), strict=True)
    ]
    assert all(same)
    lost = zip(whole[0].parameters(), forgetful[0].parameters(), strict=True)
    assert not all(torch.equal(a, b) for a, b in lost)
    mine, theirs = (state_tensors(o, m, w) for m, o, w in (whole, second))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_names_of_the_state():
    made, optimiser, master = pieces("adamw", torch.bfloat16)
    name = "blocks.0.attention.query.weight"
    state = state_tensors(optimiser, made, master)
    keys = {key.rpartition("/")[2] for key in state if key.startswith(name + "/")}
    assert keys == {"step", "exp_avg", "exp_avg_sq", "master"}
    assert state[f"{name}/exp_avg"].dtype == torch.float32
    assert not any(key.startswith("head.output.weight") for key in state)  # tied


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_that_does_not_fit_changes_nothing(kind):
    made, optimiser, master = pieces(kind, torch.float32)
    train(made, optimiser, master, 0, 1)
    good = {name: value.clone() for name, value in state_tensors(optimiser, made, master).items()}
    name = next(n for n in good if n.startswith("head.transform.weight/") and good[n].dim() > 0)
    bad = {
        "lacks": {n: v + 1 for n, v in good.items() if n != name},
        "no such state": {**{n: v + 1 for n, v in good.items()}, "x/exp_avg": torch.ones(1)},
        "does not fit": {**{n: v + 1 for n, v in good.items()}, name: torch.ones(3)},
        "float64": {**{n: v + 1 for n, v in good.items()}, name: good[name].double()},
    }
    for words, tensors in bad.items():
        with pytest.raises(CheckpointError, match=words):
            load_state_tensors(optimiser, made, tensors, master)
    now = state_tensors(optimiser, made, master)
    assert all(torch.equal(now[n], good[n]) for n in good)


# ---- float32 copies of narrow weights ----


def test_wide_training_needs_no_copies():
    for dtype in (torch.float32, torch.float64):
        made = model()
        master = MasterWeights(made, dtype)
        assert all(master.named[n] is p for n, p in made.named_parameters())
        assert next(made.parameters()).dtype == dtype


def test_narrow_training_keeps_what_rounding_would_lose():
    """A step of 2^-12 next to 1 vanishes in bfloat16; 64 of them are seen."""
    net = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        net.weight.fill_(1.0)
    master = MasterWeights(net, torch.bfloat16)
    optimiser = torch.optim.SGD(master.trained, lr=2.0**-12)
    for _ in range(64):
        net.weight.grad = -torch.ones_like(net.weight)
        master.gather()
        optimiser.step()
        optimiser.zero_grad()
        master.refresh()
    assert net.weight.dtype == torch.bfloat16
    assert torch.equal(master.named["weight"], torch.full((4, 4), 1 + 2.0**-6))
    assert torch.equal(net.weight.float(), torch.full((4, 4), 1 + 2.0**-6))
    alone = torch.ones(4, 4, dtype=torch.bfloat16)
    for _ in range(64):
        alone += 2.0**-12
    assert torch.equal(alone, torch.ones_like(alone))  # without copies nothing is learned


def test_gradients_are_added_up_in_float32():
    net = nn.Linear(2, 2, bias=False)
    master = MasterWeights(net, torch.bfloat16)
    for value in (256.0, 1.0, 1.0):
        net.weight.grad = torch.full((2, 2), value, dtype=torch.bfloat16)
        master.gather()
        assert net.weight.grad is None
    assert torch.equal(master.trained[0].grad, torch.full((2, 2), 258.0))
    narrow = torch.tensor(256.0, dtype=torch.bfloat16) + 1 + 1
    assert narrow == 256.0


def test_copies_are_taken_before_rounding_and_ties_stay():
    made = model()
    exact = {name: p.detach().clone() for name, p in made.named_parameters()}
    master = MasterWeights(made, torch.bfloat16)
    assert master.named.keys() == exact.keys()
    assert all(torch.equal(master.named[n], exact[n]) for n in exact)
    assert made.head.output.weight is made.embeddings.token.weight
    assert made.head.output.weight.dtype == torch.bfloat16
    master.refresh()
    assert all(torch.equal(p, exact[n].bfloat16()) for n, p in made.named_parameters())


@pytest.mark.parametrize(
    ("settings", "knob"),
    [
        ({"kind": "sgd"}, "kind"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"weight_decay": float("nan")}, "weight_decay"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"eps": 0.0}, "eps"),
        ({"layer_decay": 0.0}, "layer_decay"),
        ({"decay_to": "mean"}, "decay_to"),
        ({"clip_threshold": 2.0}, "clip_threshold"),
        ({"kind": "adafactor", "betas": (0.9, 0.98)}, "betas"),
        ({"kind": "adafactor", "clip_threshold": 0.0}, "clip_threshold"),
    ],
)
def test_wrong_settings_name_the_knob(settings, knob):
    with pytest.raises(ConfigError, match=rf"optimiser\] {knob}"):
        OptimiserSettings(**settings)


def test_lists_from_toml_are_taken():
    assert OptimiserSettings(kind="adafactor", betas=[0.9, 0.999]).betas == [0.9, 0.999]
