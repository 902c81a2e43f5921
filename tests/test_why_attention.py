"""docs/why-attention.md: its scripts run (in seconds, tiny), and it says what its results say."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples" / "why_attention"))

import copying  # noqa: E402
import learn  # noqa: E402
import lstm  # noqa: E402
import page  # noqa: E402
import pretraining  # noqa: E402
import shuffling  # noqa: E402
import timing  # noqa: E402
import translation  # noqa: E402

SHAPE = learn.Shape(40, 50, 16, 32, blocks=1, heads=2)


def randomised(model: torch.nn.Module) -> Any:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model.double().eval()


# ---- the LSTM ----


@pytest.mark.parametrize("bidirectional", [True, False])
@torch.no_grad()
def test_the_lstm_is_the_papers(bidirectional: bool) -> None:
    """Step by step by torch.nn.LSTMCell, one sentence at a time, against the batch with padding."""
    model = randomised(learn.recurrent(SHAPE, 0, bidirectional=bidirectional))
    ids_BS = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    mask_BS = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    inputs_BT = torch.tensor([[1, 20, 21], [1, 22, 23]])
    found = model.unembed(model.decode_hidden(inputs_BT, model.encode(ids_BS, mask_BS)))
    for row, size in ((0, 5), (1, 3)):
        expected = one_by_one(model, ids_BS[row, :size], inputs_BT[row])
        assert float((found[row] - expected).abs().max()) < 1e-12
        wrong = one_by_one(model, ids_BS[row, :size], inputs_BT[row], sharpness=1.1)
        assert float((found[row] - wrong).abs().max()) > 1e-4


def steps(lstm_: Any, suffix: str, x_TD: Any, state: Any) -> Any:
    """All states of one direction, and the last (h, c)."""
    cell = torch.nn.LSTMCell(lstm_.input_size, lstm_.hidden_size).double()
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    cell.load_state_dict({n: getattr(lstm_, f"{n}_l0{suffix}") for n in names})
    states = []
    for x_D in x_TD:
        state = cell(x_D[None], state)
        states.append(state[0])
    return torch.cat(states), state


def one_by_one(model: Any, ids_S: Any, inputs_T: Any, sharpness: float = 1.0) -> Any:
    scale = model.config.width**0.5
    x_SD = model.source(ids_S) * scale
    states_SH, (h, c) = steps(model.reader, "", x_SD, None)
    if model.config.bidirectional:
        back_SH, (h_back, c_back) = steps(model.reader, "_reverse", x_SD.flip(0), None)
        states_SH = torch.cat([states_SH, back_SH.flip(0)], dim=1)
        h, c = torch.cat([h, h_back], 1), torch.cat([c, c_back], 1)
    written_TH, _ = steps(model.writer, "", model.target(inputs_T) * scale, (h, c))
    rows = []
    for h_H in written_TH:
        scores_S = torch.stack([h_H @ model.score.weight.T @ r_H for r_H in states_SH])
        context_H = (scores_S * sharpness).softmax(0) @ states_SH
        joined = torch.cat([context_H, h_H])
        rows.append(model.target.weight @ torch.tanh(model.combine.weight @ joined))
    return torch.stack(rows)


def test_the_models_are_of_one_size() -> None:
    for attention in (True, False):
        shape = learn.Shape(500, 600, 64, 128)
        wanted = lstm.parameters(learn.transformer(shape, 0))
        own = lstm.parameters(learn.recurrent(shape, 0, attention=attention))
        assert abs(own - wanted) < 0.01 * wanted


def test_greedy_writes_the_likeliest_and_stops() -> None:
    """Against F.log_softmax over the whole target, for both kinds of model."""
    ids_BS = torch.tensor([[5, 6, 7], [8, 9, 0]])
    mask_BS = ids_BS != 0
    for model in (randomised(learn.recurrent(SHAPE, 0)), randomised(learn.transformer(SHAPE, 0))):
        for ids, source, mask in zip(
            learn.greedy(model, ids_BS, mask_BS, 6), ids_BS, mask_BS, strict=True
        ):
            memory = model.encode(source[None], mask[None])
            target = torch.tensor([[learn.START, *ids]])
            logits = model.unembed(model.decode_hidden(target, memory))
            best = F.log_softmax(logits, -1).argmax(-1)[0].tolist()
            assert best[: len(ids)] == ids
            assert len(ids) == 6 or best[len(ids)] == learn.END


# ---- the measurements, tiny ----


def test_timing_runs() -> None:
    cases = (timing.Case("narrow", 16, 32), timing.Case("wide", 32, 1))
    found = timing.measure(
        timing.Settings(cases, lengths=(4, 8), threads=(1,), epoch_tokens=64, updates=1)
    )
    assert [(r["case"], r["length"], r["rows"]) for r in found["epochs"]] == [
        ("narrow", 4, 8),
        ("narrow", 8, 4),
        ("wide", 4, 1),
        ("wide", 8, 1),
    ]
    assert all(r["lstm"] > 0 < r["transformer"] for r in found["epochs"])


def test_copying_is_learned() -> None:
    settings = copying.Settings(
        longest=2, judged=(1, 2), held_out=50, symbols=4, steps=70, width=32, seeds=1, rate=1e-2
    )
    found = copying.measure(settings)
    for name, runs in found["accuracy"].items():
        assert runs[0][0] > 0.9, name  # chance is a quarter


def test_translation_is_learned_and_shuffling_is_seen(tmp_path: Path) -> None:
    """Each word has one translation, in the same order: BLEU must leave zero behind."""
    words = [f"w{n}" for n in range(12)]
    generator = torch.Generator().manual_seed(0)
    for name, count in (("train", 300), ("test", 20)):
        rows = torch.randint(12, (count, 5), generator=generator).tolist()
        english = [" ".join(words[n] for n in row) for row in rows]
        (tmp_path / f"{name}.en").write_text("\n".join(english) + "\n", encoding="utf-8")
        japanese = "\n".join(english).replace("w", "j")
        (tmp_path / f"{name}.ja").write_text(japanese + "\n", encoding="utf-8")
    settings = translation.Settings(
        pairs=300, seconds=0.8, pilot=2, checks=1, width=32, feedforward=64, batch=32, limit=8
    )
    found = translation.measure(tmp_path, replace(settings, transformer_rate=4e-3))
    for name, one in found["models"].items():
        assert one["parameters"] > 0, name
        assert one["curve"][-1]["step"] == one["steps"]
    blind = found["models"]["no_positions"]
    assert blind["unchanged"] == 1.0
    assert blind["shuffled"] == blind["bleu"]
    assert found["models"]["lstm"]["unchanged"] < 1.0
    assert found["copying"] == 0.0


def test_without_positions_the_encoder_is_blind_to_order() -> None:
    found = shuffling.measure(shuffling.Settings(words=6, orders=4, width=32, feedforward=64))
    gaps = {name: one["difference"] for name, one in found["encoder"].items()}
    assert gaps["no_positions"] < 1e-12
    assert min(gaps["lstm"], gaps["transformer"]) > 0.01


@pytest.mark.real
def test_pretraining_runs() -> None:
    folder = learn.DATA / "sst"
    if not folder.exists():
        pytest.skip("the data set is not here")
    sizes = (pretraining.Size(8, 1, 1),)
    found = pretraining.measure(folder, pretraining.Settings(sizes, tested=8, batch=4, length=12))
    (row,) = found["sizes"]
    assert row["labels"] == 8
    assert 0 <= row["pretrained"][0] <= 1


# ---- the page ----


RESULTS = page.read()
TEXT = page.PAGE.read_text(encoding="utf-8")


def test_the_page_says_what_the_results_say() -> None:
    assert page.filled(TEXT, page.tables(RESULTS)) == TEXT


def test_a_changed_result_is_noticed() -> None:
    changed = RESULTS["translation"]["models"]["lstm"] | {"bleu": 99.9}
    models = RESULTS["translation"]["models"] | {"lstm": changed}
    other = RESULTS | {"translation": RESULTS["translation"] | {"models": models}}
    assert page.filled(TEXT, page.tables(other)) != TEXT


def test_the_results_are_those_of_the_scripts_settings() -> None:
    """Nobody changed a default without measuring again."""
    import json
    from dataclasses import asdict

    for name, module in (
        ("timing", timing),
        ("copying", copying),
        ("translation", translation),
        ("shuffling", shuffling),
        ("pretraining", pretraining),
    ):
        assert RESULTS[name]["settings"] == json.loads(json.dumps(asdict(module.Settings()))), name


def test_the_words_of_the_page_are_true_of_the_results() -> None:
    """What the prose claims, claim by claim."""
    for row in page.epochs(RESULTS["timing"], "narrow", 1):
        assert row["lstm"] < row["transformer"]
    for row in page.epochs(RESULTS["timing"], "wide", 1):
        assert (row["transformer"] < row["lstm"]) == (row["length"] <= 1024)
    judged, settings = RESULTS["copying"]["settings"]["judged"], RESULTS["copying"]["settings"]
    mean = {name: page.means(runs) for name, runs in RESULTS["copying"]["accuracy"].items()}
    far = judged.index(settings["longest"])
    assert (
        mean["lstm"][far] < 0.7 < 0.95 < min(mean["lstm_attention"][far], mean["transformer"][far])
    )
    assert mean["transformer"][-1] < 0.8 < 0.95 < mean["lstm_attention"][-1]
    models = RESULTS["translation"]["models"]
    assert models["lstm"]["bleu"] > models["transformer"]["bleu"] < models["no_positions"]["bleu"]
    assert models["lstm"]["steps"] > models["transformer"]["steps"]
    lost = {name: one["bleu"] - one["shuffled"] for name, one in models.items()}
    assert lost["lstm"] > lost["transformer"] > lost["no_positions"] == 0
    assert models["no_positions"]["unchanged"] == 1.0
    for row in RESULTS["pretraining"]["sizes"]:
        assert min(row["pretrained"]) > max(row["scratch"])


def test_the_plots_are_drawn_from_the_results(tmp_path: Path) -> None:
    """The committed pictures, byte for byte where the same matplotlib draws them."""
    matplotlib = pytest.importorskip("matplotlib")
    for path in page.draw(RESULTS, tmp_path):
        committed = (page.FIGURES / path.name).read_text(encoding="utf-8")
        assert len(committed) < 60_000
        assert f"figures/{path.name}" in TEXT
        if f"v{matplotlib.__version__}," in committed:
            assert path.read_text(encoding="utf-8") == committed, path.name
