"""The loop: what one step is, and that a run which is broken off goes on to the last bit."""

from __future__ import annotations

import contextlib
import copy
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils import clip_grad_norm_
from training import runs
from training.runs import SETTINGS, Kept, model, task, weights

from chumoku.errors import CheckpointError, ConfigError, ResourceError, TrainingError
from chumoku.training import loop, snapshots
from chumoku.training.data.batching import Batches, Batching
from chumoku.training.loop import Run
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.schedules import ScheduleSettings, factor
from chumoku.training.settings import Settings, changed_settings
from chumoku.training.signals import StoppedError
from chumoku.training.task import Loss


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def whole(folder: Path, settings: Settings = SETTINGS) -> tuple[Kept, str]:
    loaded, report = model(), Kept()
    Run(loaded.model, task(), settings, folder, report).train()
    return report, weights(loaded)


# ---- one step ----


def test_a_step_is_that_of_a_plain_loop(tmp_path: Path) -> None:
    """Token means over all batches of a step, clipping, AdamW, the schedule: written out here."""
    settings = replace(SETTINGS, ema=None, steps=6, evaluate_every=0, keep_best=False, clip=0.5)
    loaded, report = model(), Kept()
    plain = copy.deepcopy(loaded.model)
    for block in (loaded.model, plain):
        for module in block.modules():
            if hasattr(module, "dropout") and isinstance(module.dropout, float):
                module.dropout = 0.0
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    Run(loaded.model, task(), settings, tmp_path, report).train()

    own = task()
    batches = Batches(own.examples, settings.batching, settings.seed)
    matrices = [p for p in plain.parameters() if p.dim() > 1]
    vectors = [p for p in plain.parameters() if p.dim() < 2]
    groups = [
        {"params": matrices, "weight_decay": 0.01},
        {"params": vectors, "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.999), eps=1e-8)
    for step in range(6):
        some = [own.collate(next(batches).examples) for _ in range(2)]
        totals, units = [], 0
        for batch in some:
            logits = plain(batch.ids_BT, batch=loop_batch(batch))
            chosen = logits.flatten(0, 1)
            if batch.places_M is not None:
                chosen = chosen[batch.places_M]
            totals.append(
                torch.nn.functional.cross_entropy(chosen, batch.targets_M, reduction="sum")
            )
            units += batch.targets_M.numel()
        mean = torch.stack(totals).sum() / units
        mean.backward()
        clip_grad_norm_(plain.parameters(), 0.5)
        for group in adam.param_groups:
            group["lr"] = 3e-3 * factor(settings.schedule, step, 6)
        adam.step()
        adam.zero_grad()
        assert float.fromhex(report.losses[step + 1]) == pytest.approx(mean.item(), abs=1e-6)
    for ours, theirs in zip(loaded.model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def loop_batch(batch: object) -> object:
    from chumoku.layers.attention import Batch

    return Batch(sequences_BT=batch.sequences_BT)  # type: ignore[attr-defined]


def test_accumulated_batches_are_one_large_one(tmp_path: Path) -> None:
    """The mean is over tokens, not over batches' means, which differ in length."""
    losses = []
    for size, accumulate in ((8, 1), (2, 4)):
        loaded, report = model(), Kept()
        for module in loaded.model.modules():
            module.train = lambda mode=True, module=module: module  # type: ignore[method-assign, misc]
        settings = replace(
            SETTINGS,
            steps=5,
            accumulate=accumulate,
            batching=Batching(size, window=0),
            evaluate_every=0,
            keep_best=False,
        )
        Run(loaded.model, task(), settings, tmp_path / str(size), report).train()
        losses.append([float.fromhex(x) for x in report.losses.values()])
    assert losses[0] == pytest.approx(losses[1], abs=2e-6)


@pytest.mark.parametrize("change", [{"recompute": True}, {"dtype": "float64"}])
def test_recomputing_and_wider_types_give_the_same_curve(
    tmp_path: Path, change: dict[str, object]
) -> None:
    plain, _ = whole(tmp_path / "a")
    if change == {"dtype": "float64"}:
        loaded, other = model(), Kept()
        settings = replace(SETTINGS, dtype="float64")
        Run(loaded.model.double(), task(), settings, tmp_path / "b", other).train()
    else:
        other, _ = whole(tmp_path / "b", replace(SETTINGS, **change))  # type: ignore[arg-type]
    ours = [float.fromhex(x) for x in plain.losses.values()]
    theirs = [float.fromhex(x) for x in other.losses.values()]
    tolerance = 1e-6 if change == {"recompute": True} else 5e-2  # float64 draws other dropouts
    assert ours == pytest.approx(theirs, rel=tolerance)


def test_bfloat16_follows_float32(tmp_path: Path) -> None:
    plain, _ = whole(tmp_path / "a")
    narrow, _ = whole(tmp_path / "b", replace(SETTINGS, dtype="bfloat16"))
    ours = [float.fromhex(x) for x in narrow.losses.values()]
    theirs = [float.fromhex(x) for x in plain.losses.values()]
    assert ours == pytest.approx(theirs, rel=0.03)
    assert ours != pytest.approx(theirs, rel=1e-5)  # it is not float32 in disguise


# ---- resuming ----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopping_anywhere_and_going_on_changes_no_bit(tmp_path: Path, dtype: str) -> None:
    settings = replace(SETTINGS, dtype=dtype)
    expected, digest = whole(tmp_path / "whole", settings)
    for number, stop in enumerate((3, 4, 14, 29)):
        folder, seen = tmp_path / str(number), Kept()

        class Killed(Exception):  # noqa: N818
            pass

        step = seen.step

        def until(told: object, step=step, stop=stop) -> None:  # type: ignore[no-untyped-def]
            step(told)
            if told.step == stop:  # type: ignore[attr-defined]
                raise Killed

        seen.step = until  # type: ignore[method-assign]
        with pytest.raises(Killed):
            Run(model().model, task(), settings, folder, seen).train()
        seen.step = step  # type: ignore[method-assign]
        loaded = model()
        torch.manual_seed(99)  # whatever was drawn before must not matter
        Run(loaded.model, task(), settings, folder, seen).train()
        assert seen.begun == [0, (stop - 1) // 4 * 4]  # saved between steps
        assert seen.losses == expected.losses
        assert seen.metrics == expected.metrics
        assert weights(loaded) == digest


def resumed_without(folder: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> Kept:
    """A run that is stopped after 10 steps and taken up with a part of its state dropped."""
    with pytest.raises(ZeroDivisionError):
        Run(model().model, task(), SETTINGS, folder, _stopping_at(10)).train()
    nothing = lambda *args, **named: None  # noqa: E731
    targets = {
        "random": (loop.randomness, "set_random_state"),
        "data": (Batches, "restore"),
        "optimiser": (loop, "load_state_tensors"),
        "weights": (loop.weights, "restore"),
    }
    report = Kept()
    with monkeypatch.context() as patch:
        if what == "average":
            patch.setattr("chumoku.training.averaging.EMA.load", nothing)
        elif what != "nothing":
            patch.setattr(*targets[what], nothing)
        loaded = model()
        Run(loaded.model, task(), SETTINGS, folder, report).train()
    return report


class _StoppingAt(Kept):
    stop = 10

    def step(self, step: object) -> None:
        super().step(step)  # type: ignore[arg-type]
        if len(self.losses) == self.stop:
            raise ZeroDivisionError


def _stopping_at(stop: int) -> Kept:
    report = _StoppingAt()
    report.stop = stop
    return report


@pytest.mark.parametrize("what", ["nothing", "random", "data", "optimiser", "weights", "average"])
def test_dropping_any_part_of_the_state_is_seen(
    tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = whole(tmp_path / "whole")
    seen = resumed_without(tmp_path / "cut", what, monkeypatch)
    later = {step: loss for step, loss in expected.losses.items() if step > 8}
    evaluations = {s: m for s, m in expected.metrics.items() if s > 8}
    same = seen.losses == later and seen.metrics == evaluations
    assert same == (what == "nothing")


def test_other_settings_or_another_base_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Run(model().model, task(), SETTINGS, tmp_path, _stopping_at(10)).train()
    other = replace(SETTINGS, optimiser=OptimiserSettings(learning_rate=1e-3))
    with pytest.raises(TrainingError, match=r"training\.optimiser\.learning_rate"):
        Run(model().model, task(), other, tmp_path, Kept()).train()
    Run(model().model, task(), replace(SETTINGS, keep=5), tmp_path, Kept()).train()

    frozen = tmp_path / "frozen"
    for seed in (1, 2):
        loaded = model(seed)
        loaded.model.embeddings.token.weight.requires_grad_(False)
        run = Run(loaded.model, task(), replace(SETTINGS, steps=4), frozen, Kept())
        if seed == 1:
            run.train()
        else:
            with pytest.raises(TrainingError, match="not trained"):
                run.train()


def test_a_damaged_snapshot_is_passed_by(tmp_path: Path) -> None:
    expected, digest = whole(tmp_path / "whole")
    folder = tmp_path / "cut"
    with pytest.raises(ZeroDivisionError):
        Run(model().model, task(), SETTINGS, folder, _stopping_at(14)).train()
    newest = snapshots.snapshots(folder / "snapshots")[-1]
    victim = newest / "optimiser.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-5] ^= 4
    victim.write_bytes(raw)
    loaded, report = model(), Kept()
    Run(loaded.model, task(), SETTINGS, folder, report).train()
    assert report.begun == [8]
    assert "optimiser.safetensors" in report.notes[0]
    assert report.losses == {s: x for s, x in expected.losses.items() if s > 8}
    assert weights(loaded) == digest


# ---- faults ----


def poisoned(at: int, value: float) -> object:
    own = task()
    calls = 0

    def loss(model: torch.nn.Module, batch: object) -> Loss:
        nonlocal calls
        calls += 1
        found = own.loss(model, batch)
        return found._replace(total=found.total * value) if calls == at else found

    return replace(own, loss=loss)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_number_stops_the_run_before_the_weights_change(tmp_path: Path, value: float) -> None:
    loaded, report = model(), Kept()
    run = Run(loaded.model, poisoned(9, value), SETTINGS, tmp_path, report)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=r"step 5: loss.*not changed \[epoch 0, examples \["):
        run.train()
    good = snapshots.latest_snapshot(tmp_path / "snapshots")[0]
    assert good is not None
    assert good.step == 4
    for name, tensor in good.tensors["model"].items():
        assert torch.equal(tensor, loaded.model.state_dict()[name]), name


def test_no_number_can_be_skipped_and_is_named(tmp_path: Path) -> None:
    loaded, report = model(), Kept()
    settings = replace(SETTINGS, on_nonfinite="skip", steps=8)
    run = Run(loaded.model, poisoned(9, float("nan")), settings, tmp_path, report)  # type: ignore[arg-type]
    result = run.train()
    assert result.skipped == 1
    assert "step 5" in report.notes[0]
    assert all(torch.isfinite(p).all() for p in loaded.model.parameters())


def test_skipping_comes_to_an_end(tmp_path: Path) -> None:
    own = task()
    bad = replace(own, loss=lambda m, b: _nan(own.loss(m, b)))
    settings = replace(SETTINGS, on_nonfinite="skip")
    with pytest.raises(TrainingError, match="step 10"):
        Run(model().model, bad, settings, tmp_path, Kept()).train()


def _nan(loss: Loss) -> Loss:
    return loss._replace(total=loss.total * float("nan"))


def test_out_of_memory_names_the_knobs(tmp_path: Path) -> None:
    own = task()

    def loss(model: torch.nn.Module, batch: object) -> Loss:
        torch.empty(1 << 60)
        return own.loss(model, batch)

    with pytest.raises(ResourceError, match=r"batching\.batch_size"):
        Run(model().model, replace(own, loss=loss), SETTINGS, tmp_path, Kept()).train()


def test_patience_and_the_best_weights(tmp_path: Path) -> None:
    """Evaluations 3, 1, 2, 2, …: stop two after the best, and end with the weights it had."""
    values = iter([3.0, 1.0, 2.0, 2.0, 0.0])
    kept: list[str] = []
    loaded = model()

    def evaluate(judged: torch.nn.Module) -> dict[str, float]:
        kept.append(weights(replace(loaded, model=judged)))
        return {"loss": next(values)}

    settings = replace(SETTINGS, patience=2, steps=100, evaluate_every=3, ema=None)
    result = Run(
        loaded.model, replace(task(), evaluate=evaluate), settings, tmp_path, Kept()
    ).train()
    assert (result.reason, result.steps, result.best_step) == ("patience", 12, 6)
    assert result.metrics == {"loss": 1.0}
    assert weights(loaded) == kept[1] != kept[2]


def test_a_model_that_does_not_fit_its_snapshot_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        Run(model().model, task(), SETTINGS, tmp_path, _stopping_at(10)).train()
    wide = runs.create(runs.CONFIG | {"n_embd": 32}, "causal-lm", 1)
    with pytest.raises(CheckpointError):
        Run(wide.model, task(), SETTINGS, tmp_path, Kept()).train()


def test_schedule_sees_the_number_of_the_step(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=8, schedule=ScheduleSettings(kind="linear", warmup_steps=2))
    rates: list[float] = []

    class Rates(Kept):
        def step(self, step: object) -> None:
            rates.append(step.learning_rate)  # type: ignore[attr-defined]

    Run(model().model, task(), settings, tmp_path, Rates()).train()
    expected = [3e-3 * factor(settings.schedule, step, 8) for step in range(8)]
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("moment", ["in", "out"])
def test_a_signal_while_averages_are_swapped_leaves_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """SIGTERM comes in the middle of an exchange of weights around an evaluation."""
    settings = replace(SETTINGS, steps=8, evaluate_every=4, save_every=100, ema=0.9)
    full = Kept()
    Run(model().model, task(), settings, tmp_path / "full", full).train()
    real, made = torch.Tensor.copy_, []

    def copy(self: torch.Tensor, *more: object) -> torch.Tensor:
        made.append(1)
        if len(made) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *more)  # type: ignore[arg-type]

    run = Run(model().model, task(), settings, tmp_path / "broken", Kept())
    swapped = run.ema.swapped  # type: ignore[union-attr]

    @contextlib.contextmanager
    def watched(averaged: torch.nn.Module) -> Iterator[None]:
        if moment == "in":
            monkeypatch.setattr(torch.Tensor, "copy_", copy)
        with swapped(averaged):
            yield
            if moment == "out":
                monkeypatch.setattr(torch.Tensor, "copy_", copy)

    monkeypatch.setattr(run.ema, "swapped", watched)
    with pytest.raises(StoppedError):
        run.train()
    monkeypatch.undo()
    again = Kept()
    Run(model().model, task(), settings, tmp_path / "broken", again).train()
    assert again.losses == {step: full.losses[step] for step in again.losses}
    assert len(again.losses) >= 3


def test_damaged_best_weights_are_not_replaced_in_silence(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=6, evaluate_every=2)
    Run(model().model, task(), settings, tmp_path, Kept()).train()
    (best,) = (tmp_path / "best").glob("step-*/model.safetensors")
    data = best.read_bytes()
    best.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckpointError, match="best weights") as caught:
        Run(model().model, task(), settings, tmp_path, Kept()).train()
    assert "another folder" in str(caught.value)


def test_an_evaluation_without_a_number_is_never_the_best(tmp_path: Path) -> None:
    values = iter([float("nan"), 1.0, 0.5])
    odd = replace(task(), evaluate=lambda _: {"loss": next(values)})
    result = Run(
        model().model, odd, replace(SETTINGS, steps=6, evaluate_every=2), tmp_path, Kept()
    ).train()
    assert (result.best_step, result.metrics) == (6, {"loss": 0.5})


def test_an_epoch_of_accumulated_batches_is_one_epoch(tmp_path: Path) -> None:
    """17 batches, 16 to a step: two steps, not one more epoch for the last one."""
    settings = replace(SETTINGS, steps=None, accumulate=16)
    for epochs in (1.0, 16.0):
        run = Run(model().model, task(), replace(settings, epochs=epochs), tmp_path, Kept())
        batches = epochs * run.batches.batches_per_epoch
        assert 0 <= run.steps * 16 - batches < 16


def test_the_mean_of_the_last_snapshots(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=6, save_every=2, keep=3, average=2, ema=None)
    loaded, report = model(), Kept()
    result = Run(loaded.model, task(), settings, tmp_path, report).train()
    last = [snapshots.read_snapshot(p) for p in snapshots.snapshots(tmp_path / "snapshots")[-2:]]
    assert [one.step for one in last] == [4, 6]
    for name, p in loaded.model.named_parameters():
        if name in last[0].tensors["model"]:
            first, second = (one.tensors["model"][name] for one in last)
            assert torch.allclose(p, (first + second) / 2, atol=1e-7, rtol=1e-6)
            assert not torch.equal(p, second)
    assert report.metrics[6] == result.metrics
    with pytest.raises(ConfigError, match="at least average"):
        replace(settings, keep=1)


def test_damaged_snapshots_do_not_push_out_new_ones(tmp_path: Path) -> None:
    """They are put aside, whatever `keep` is: those written from then on stay."""
    settings, folder = replace(SETTINGS, save_every=5, keep=1), tmp_path / "snapshots"
    for stop, saved in ((13, "step-00000010"), (8, "step-00000005")):
        with pytest.raises(ZeroDivisionError):
            Run(model().model, task(), settings, tmp_path, _stopping_at(stop)).train()
        (newest,) = snapshots.snapshots(folder)
        assert newest.name == saved
        if stop == 13:
            (newest / "state.json").write_text("{}")
    assert (folder / "damaged-step-00000010").is_dir()
    report = Kept()
    Run(model().model, task(), settings, tmp_path, report).train()
    assert report.begun == [5]


def test_what_is_trained_is_saved_before_it_is_judged(tmp_path: Path) -> None:
    failing = replace(task(), metric="acc")
    settings = replace(SETTINGS, evaluate_every=7, save_every=7)
    with pytest.raises(ConfigError, match="the evaluation has no 'acc'"):
        Run(model().model, failing, settings, tmp_path, Kept()).train()
    (saved,) = snapshots.snapshots(tmp_path / "snapshots")
    assert saved.name == "step-00000007"
    again = Kept()
    Run(model().model, task(), settings, tmp_path, again).train()
    assert again.begun == [7]
    assert min(again.metrics) == 7  # judged when it was taken up


def test_a_signal_in_an_evaluation_loses_no_step(tmp_path: Path) -> None:
    """Also at a step at which no save is due."""

    def evaluate(judged: torch.nn.Module) -> dict[str, float]:
        os.kill(os.getpid(), signal.SIGTERM)
        return {"loss": 1.0}

    settings = replace(SETTINGS, evaluate_every=5, save_every=0)
    with pytest.raises(StoppedError):
        Run(model().model, replace(task(), evaluate=evaluate), settings, tmp_path, Kept()).train()
    (saved,) = snapshots.snapshots(tmp_path / "snapshots")
    assert saved.name == "step-00000005"


def test_best_weights_do_not_pile_up_between_saves(tmp_path: Path) -> None:
    """Kept are the last best, and the one that the last snapshot speaks of."""
    there: list[list[str]] = []
    values = iter(range(99, 0, -1))

    def evaluate(judged: torch.nn.Module) -> dict[str, float]:
        there.append([path.name for path in snapshots.snapshots(tmp_path / "best")])
        return {"loss": float(next(values))}

    settings = replace(SETTINGS, evaluate_every=2, save_every=9)
    Run(model().model, replace(task(), evaluate=evaluate), settings, tmp_path, Kept()).train()
    assert max(map(len, there)) == 2
    assert there[7] == ["step-00000008", "step-00000014"]


def test_the_last_step_of_an_uneven_epoch_is_its_end(tmp_path: Path) -> None:
    found: list[float] = []

    class Told(Kept):
        def step(self, step: Any) -> None:
            found.append(step.epoch)

    some = task()
    n = len(some.examples)
    settings = replace(SETTINGS, steps=None, epochs=2.0, accumulate=3)
    run = Run(model().model, some, settings, tmp_path, Told())
    run.train()
    assert found[-1] == pytest.approx(run.steps * 3 / -(-n // 4), abs=1e-9)


def test_every_change_of_a_free_table_is_a_change() -> None:
    changed = changed_settings
    assert changed({"task": {"keep": "head"}}, {"task": {"keep": "tail"}}) == ["task.keep"]
    assert changed({"task": {}}, {"task": {"smoothing": 0.0}}) == ["task.smoothing"]
    assert changed({"model": {"config": {"a": 0}}}, {"model": {"config": {}}}) == ["model.config.a"]
    assert changed({"training": {"keep": 1}}, {"training": {"keep": 2}}) == []
    assert changed({"training": {}}, {"training": {"later": 0}}) == []
