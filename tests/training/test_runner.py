"""From a recipe, or a few words, to a model in a folder that the verbs can use."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import chumoku
from chumoku.checkpoints.source_names import TINY
from chumoku.cli import main
from chumoku.cli.train import finetune
from chumoku.errors import ChumokuError, ConfigError, InputError, ResourceError, TrainingError
from chumoku.quantization.convert import quantized_layers
from chumoku.text.training import TokenizerSettings, train_tokenizer
from chumoku.training import metrics, preparing
from chumoku.training.data.rows import read_rows
from chumoku.training.data.tables import usable
from chumoku.training.finetune import VERBS, Wish, recipe_of, run_seeds
from chumoku.training.objectives import distillation
from chumoku.training.preparing import KINDS, Prepared, kind_of, prepare, tables_of
from chumoku.training.progress import read_log
from chumoku.training.recipe import Recipe, build, override
from chumoku.training.recipe_data import hold_out
from chumoku.training.runner import Outcome, train

WORDS = {"good": ["fine", "lovely", "great"], "bad": ["poor", "awful", "dull"]}


def sentences(count: int, seed: int) -> list[dict[str, str]]:
    dice = random.Random(seed)
    rows = []
    for _ in range(count):
        label = dice.choice([*WORDS])
        noise = [dice.choice(["film", "plot", "the", "a", "is", "was"]) for _ in range(3)]
        words = [*noise, dice.choice(WORDS[label])]
        dice.shuffle(words)
        rows.append({"本文": " ".join(words), "ラベル": label})
    return rows


def csv_of(rows: list[dict[str, str]], path: Path, encoding: str = "utf-8") -> Path:
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def table(folder: Path) -> dict[str, Any]:
    """A recipe that learns the planted words with a BERT of one block from nothing."""
    return {
        "about": {"title": "words"},
        "model": {
            "config": {
                "model_type": "bert",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "max_position_embeddings": 32,
                "hidden_dropout_prob": 0.0,
                "attention_probs_dropout_prob": 0.0,
                "initializer_range": 0.2,
            }
        },
        "tokenizer": {"kind": "wordpiece", "vocab_size": 120, "min_frequency": 1},
        "data": {
            "train": str(csv_of(sentences(160, 1), folder / "train.csv", "cp932")),
            "test": str(csv_of(sentences(60, 2), folder / "test.csv")),
            "columns": {"text": "本文", "label": "ラベル"},
            "holdout": 0.2,
        },
        "task": {"kind": "classification"},
        "training": {
            "steps": 80,
            "evaluate_every": 20,
            "batching": {"batch_size": 16},
            "optimiser": {"learning_rate": 1e-2},
        },
    }


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Recipe]:
    folder = tmp_path_factory.mktemp("words")
    recipe = build(Recipe, table(folder), "test")
    return train(recipe, folder / "out", device="cpu"), recipe


def test_a_recipe_makes_a_model_that_the_verbs_can_use(done: tuple[Outcome, Recipe]) -> None:
    outcome, _ = done
    assert outcome.test["accuracy"] > 0.9
    loaded = chumoku.load(outcome.folder)
    assert loaded.config.labels == ("bad", "good")
    (found,) = [chumoku.classify("the film is lovely", loaded)]
    assert found[0]["label"] == "good"  # type: ignore[index]
    raw = json.loads((outcome.folder / "config.json").read_text())
    assert raw["id2label"] == {"0": "bad", "1": "good"}


def test_what_lies_beside_the_model(done: tuple[Outcome, Recipe]) -> None:
    outcome, recipe = done
    run = outcome.folder / "run"
    kinds = [entry["kind"] for entry in read_log(run / "log.jsonl")]
    assert kinds.count("step") == 80
    assert (run / "curve.svg").read_text().startswith("<?xml")
    result = json.loads((run / "result.json").read_text())
    assert result["test"]["accuracy"] == outcome.test["accuracy"]
    assert result["rejected_rows"] == 0
    assert not (run / "rejects.jsonl").exists()
    from chumoku.training.recipe import read_recipe

    assert read_recipe(run / "recipe.toml") == recipe


def test_the_same_call_again_trains_no_further(done: tuple[Outcome, Recipe]) -> None:
    outcome, recipe = done
    again = train(recipe, outcome.folder, device="cpu")
    assert again.result.steps == 80
    assert again.test == outcome.test
    other = replace(recipe, training=replace(recipe.training, seed=5))
    with pytest.raises(TrainingError, match="other settings"):
        train(other, outcome.folder, device="cpu")


def test_other_rows_are_another_run(tmp_path: Path) -> None:
    """One word of one row, and one held-out row, are noticed; the same rows again are not."""
    own = table(tmp_path)
    own["training"] |= {"steps": 4}
    own["data"]["holdout_rows"] = "regular"
    recipe, folder = build(Recipe, own, "test"), tmp_path / "out"
    train(recipe, folder, device="cpu")
    train(recipe, folder, device="cpu")
    path = Path(own["data"]["train"])
    lines = path.read_text("cp932").splitlines()
    for number, part in ((3, "rows.train"), (5, "rows.evaluation")):  # every fifth is held out
        other = [*lines]
        other[number] = other[number].replace(",", " indeed,")
        path.write_text("\n".join(other), "cp932")
        with pytest.raises(TrainingError, match=part):
            train(recipe, folder, device="cpu")


def test_the_card_speaks_of_this_model(done: tuple[Outcome, Recipe]) -> None:
    outcome, _ = done
    text = (outcome.folder / "README.md").read_text("utf-8")
    assert "# words" in text
    assert "from nothing" in text
    assert f"| accuracy | {outcome.result.metrics['accuracy']:.4f} |" in text


def test_a_result_says_the_type_of_its_weights(
    done: tuple[Outcome, Recipe], tmp_path: Path
) -> None:
    """Of a base in float16, its card is not kept either."""
    outcome, _ = done
    base = chumoku.save(chumoku.load(outcome.folder), tmp_path / "base", dtype="float16")
    (base / "README.md").write_text("the base's own card")
    own = table(tmp_path)
    own |= {"model": {"source": str(base)}, "tokenizer": {}}
    own["training"] |= {"steps": 2}
    train(build(Recipe, own, "test"), tmp_path / "out", device="cpu")
    types = [json.loads((f / "config.json").read_text()) for f in (base, tmp_path / "out")]
    assert [raw["torch_dtype"] for raw in types] == ["float16", "float32"]
    assert "own card" not in (tmp_path / "out" / "README.md").read_text("utf-8")


def test_qlora_makes_blocks_of_a_base_in_floats(
    done: tuple[Outcome, Recipe], tmp_path: Path
) -> None:
    outcome, _ = done
    own = table(tmp_path)
    own |= {
        "model": {"source": str(outcome.folder), "dtype": "stored", "quantise": "Q4_1"},
        "tokenizer": {},
        "adapter": {"kind": "lora", "rank": 4},
    }
    made = prepared(own, tmp_path)
    assert set(quantized_layers(made.loaded.model).values()) == {"Q4_1"}
    assert not any(name.startswith("head") for name in quantized_layers(made.loaded.model))
    adapted = train(build(Recipe, own, "test"), tmp_path / "out", device="cpu")
    assert adapted.test["accuracy"] > 0.9


def test_transformers_reads_the_result(done: tuple[Outcome, Recipe]) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    outcome, _ = done
    theirs = AutoModelForSequenceClassification.from_pretrained(outcome.folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(outcome.folder)
    loaded = chumoku.load(outcome.folder)
    assert loaded.tokenizer is not None
    for row in sentences(20, 3):
        ids = tokenizer(row["本文"], return_tensors="pt")
        assert ids["input_ids"][0].tolist() == loaded.tokenizer.encode(row["本文"]).ids
        with torch.no_grad():
            ours = loaded.model(ids["input_ids"])
            torch.testing.assert_close(ours, theirs(**ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_is_written_for_peft_and_fused_into_the_model(
    done: tuple[Outcome, Recipe], tmp_path: Path, kind: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification

    outcome, _ = done
    own = table(tmp_path)
    changes = {
        "model": {"source": str(outcome.folder)},
        "tokenizer": {},
        "adapter": {"kind": kind, "rank": 4},
        "training": own["training"] | {"steps": 10},
    }
    adapted = train(build(Recipe, own | changes, "test"), tmp_path / "out", device="cpu")
    result = json.loads((tmp_path / "out" / "run" / "result.json").read_text())
    assert result["trained_share"] < 0.5
    base = AutoModelForSequenceClassification.from_pretrained(outcome.folder)
    theirs = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    loaded = chumoku.load(adapted.folder)
    assert loaded.tokenizer is not None
    ids = torch.tensor([loaded.tokenizer.encode("the film is lovely").ids])
    with torch.no_grad():
        fused, apart = loaded.model(ids), theirs(input_ids=ids).logits
        before = chumoku.load(outcome.folder).model(ids)
    torch.testing.assert_close(fused, apart, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(fused, before, atol=1e-3)
    again = chumoku.load(outcome.folder, adapter=adapted.folder / "adapter")
    assert again.config.labels == loaded.config.labels == ("bad", "good")
    with torch.no_grad():
        torch.testing.assert_close(again.model(ids), fused, atol=1e-5, rtol=1e-5)


# ---- what can be wrong ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": {"kind": "dreaming"}}, "no objective.*masked-lm"),
        ({"task": {"kind": "classification", "depth": 3}}, "'depth' is no option.*max_length"),
        ({"data": {"train": "nowhere.csv"}}, "there is no 'nowhere.csv'"),
        ({"data": {}}, "no data to train on"),
        ({"model": {}}, "either a source or a config"),
    ],
)
def test_a_recipe_that_cannot_be_run(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    recipe = build(Recipe, table(tmp_path) | change, "test")
    with pytest.raises(ChumokuError, match=f"(?s){message}"):
        train(recipe, tmp_path / "out", device="cpu")


def test_a_missing_column_names_those_there_are(tmp_path: Path) -> None:
    own = table(tmp_path)
    own["data"]["columns"]["label"] = "答え"
    with pytest.raises(InputError, match=r"(?s)no column '答え'.*ラベル, 本文"):
        train(build(Recipe, own, "test"), tmp_path / "out", device="cpu")


def test_a_label_that_the_head_has_not(tmp_path: Path) -> None:
    own = table(tmp_path)
    rows = [*sentences(30, 2), {"本文": "the film", "ラベル": "so-so"}]
    own["data"]["test"] = str(csv_of(rows, tmp_path / "test.csv"))
    with pytest.raises(InputError, match="so-so"):
        train(build(Recipe, own, "test"), tmp_path / "out", device="cpu")


def test_bad_rows_stop_the_run_and_are_named(tmp_path: Path) -> None:
    own = table(tmp_path)
    path = Path(own["data"]["train"])
    raw = path.read_text("cp932").splitlines()
    raw[7] = "a,b,c"
    path.write_text("\n".join(raw), "cp932")
    own["data"]["max_rejects"] = 0.0
    with pytest.raises(InputError, match=r"(?s)train\.csv:8: 3 columns.*max_rejects"):
        train(build(Recipe, own, "test"), tmp_path / "out", device="cpu")


def test_every_objective_has_its_file() -> None:
    files = Path(chumoku.__file__).parent / "training" / "objectives"
    for name, file in KINDS.items():
        assert (files / f"{file}.py").is_file()
        kind = kind_of(Recipe(task={"kind": name}))
        assert kind.task.__module__ == f"chumoku.training.objectives.{file}"
    with pytest.raises(ConfigError, match="'masked' is no objective"):
        kind_of(Recipe(task={"kind": "masked"}))


def test_symbols_go_with_the_model_and_on_to_other_rows(tmp_path: Path) -> None:
    own = table(tmp_path)
    boards = [{"symbols": "x.o..xo.."}, {"symbols": "..xoo...x"}]
    lines = [json.dumps(board) for board in boards * 8]
    (tmp_path / "boards.jsonl").write_text("\n".join(lines))
    (tmp_path / "empty.jsonl").write_text(json.dumps({"symbols": "........."}) + "\n")
    own |= {"tokenizer": {}, "task": {"kind": "symbols"}}
    own["data"] = {"train": str(tmp_path / "boards.jsonl")}
    own["training"] |= {"steps": 2}
    first = train(build(Recipe, own, "test"), tmp_path / "first", device="cpu")
    vocabulary = json.loads((first.folder / "symbols.json").read_text())
    assert vocabulary == [".", "o", "x"]
    own |= {"model": {"source": str(first.folder)}}
    own["data"] = {"train": str(tmp_path / "empty.jsonl")}
    own["task"] = {"kind": "symbols", "vocabulary": vocabulary}
    second = train(build(Recipe, own, "test"), tmp_path / "second", device="cpu")
    assert json.loads((second.folder / "symbols.json").read_text()) == vocabulary


def test_rows_held_out_do_not_go_with_a_pattern_of_the_rows(tmp_path: Path) -> None:
    """Alternating labels: every tenth row has the same one."""
    parted: dict[str, Any] = {}
    for how in ("random", "regular"):
        parted[how] = {"train": [(n, n % 2) for n in range(200)]}
        hold_out(parted[how], 0.1, how)
        assert len(parted[how]["evaluation"]) == 20
        assert sorted([*parted[how]["train"], *parted[how]["evaluation"]]) == [
            (n, n % 2) for n in range(200)
        ]
        assert parted[how]["evaluation"] == sorted(parted[how]["evaluation"])
    assert {label for _, label in parted["regular"]["evaluation"]} == {1}
    assert 5 <= sum(label for _, label in parted["random"]["evaluation"]) <= 15
    own = table(tmp_path)
    judged = []
    for seed in (1, 2):  # other seeds of a run are judged on the same rows
        own["training"]["seed"] = seed
        judged.append(prepared(own, tmp_path).rows["evaluation"])
    assert judged[0] == judged[1]
    with pytest.raises(ConfigError, match="holdout_rows"):
        build(Recipe, {"data": {"holdout_rows": "some"}}, "test")


# ---- a few words ----


def test_finetune_from_the_command_line(
    done: tuple[Outcome, Recipe], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome, _ = done
    rows = csv_of(sentences(64, 5), tmp_path / "train.csv")
    words = ["finetune", "classify", "--model", str(outcome.folder), "--train", str(rows)]
    words += ["--output", str(tmp_path / "out"), "--text-column", "本文"]
    words += ["--label-column", "ラベル", "--epochs", "2", "--device", "cpu", "--batch-size", "8"]
    assert main([*words, "--training.clip=0.5"]) == 0
    shown = capsys.readouterr().out
    assert "clip = 0.5" in shown
    assert f'chumoku classify "…" --model {tmp_path / "out"}' in shown
    assert chumoku.load(tmp_path / "out").config.labels == ("bad", "good")
    assert main([*words, "--pair-column", "x"]) == 2
    assert "has no --pair-column" in capsys.readouterr().err


def test_seeds_are_summed_up(done: tuple[Outcome, Recipe], tmp_path: Path) -> None:
    outcome, recipe = done
    values = {0: 0.9, 1: 0.7, 2: 0.4}

    def run(one: Recipe, folder: Path) -> Outcome:
        accuracy = values[one.training.seed]
        return replace(outcome, folder=folder, test={"accuracy": accuracy, "majority": 0.5})

    seeds = run_seeds(replace(recipe, training=replace(recipe.training, seed=0)), tmp_path, 3, run)
    assert (seeds.best, seeds.failed) == (0, (2,))
    assert seeds.mean == pytest.approx(2 / 3)
    assert seeds.deviation == pytest.approx(0.2516611, abs=1e-6)
    kept = json.loads((tmp_path / "seeds.json").read_text())
    assert kept["values"] == {"0": 0.9, "1": 0.7, "2": 0.4}
    assert outcome.test["majority"] >= 0.5  # a real run says it too


def test_a_seed_that_breaks_is_a_failed_one(done: tuple[Outcome, Recipe], tmp_path: Path) -> None:
    """The others count; and a loss is not compared with an accuracy."""
    outcome, recipe = done

    def run(one: Recipe, folder: Path) -> Outcome:
        if one.training.seed == 1:
            raise TrainingError("step 3: loss nan")
        test = {"loss": 0.9 - one.training.seed / 10, "majority": 0.5}
        result = replace(outcome.result, metrics=test)
        return replace(outcome, folder=folder, test=test, result=result, metric="loss", lower=True)

    told: list[str] = []
    first = replace(recipe, training=replace(recipe.training, seed=0))
    seeds = run_seeds(first, tmp_path, 3, run, told.append)
    assert (seeds.best, seeds.failed, sorted(seeds.values)) == (2, (1,), [0, 2])
    assert told == ["seed 1 broke: step 3: loss nan"]
    assert "loss nan" in json.loads((tmp_path / "seeds.json").read_text())["errors"]["1"]
    with pytest.raises(TrainingError, match="nan"):
        run_seeds(replace(recipe, training=replace(recipe.training, seed=1)), tmp_path, 1, run)
    kept = json.loads((tmp_path / "seeds.json").read_text())
    assert (kept["failed"], kept["best_seed"], kept["mean"]) == ([1], None, None)


def test_the_best_seed_is_not_chosen_by_the_test_rows(
    done: tuple[Outcome, Recipe], tmp_path: Path
) -> None:
    outcome, recipe = done
    evaluation, test = {0: 0.9, 1: 0.6, 2: 0.8}, {0: 0.5, 1: 0.7, 2: 0.6}

    def run(one: Recipe, folder: Path) -> Outcome:
        seed = one.training.seed
        result = replace(outcome.result, metrics={"accuracy": evaluation[seed]})
        tested = {"accuracy": test[seed]} if seed < 2 else {"mse": 1.0}  # of another kind of rows
        return replace(outcome, folder=folder, result=result, test=tested)

    first = replace(recipe, training=replace(recipe.training, seed=0))
    seeds = run_seeds(first, tmp_path, 3, run)
    assert seeds.best == 0
    assert seeds.values == {0: 0.5, 1: 0.7, 2: 0.8}
    nothing = replace(first, data=replace(first.data, evaluation=(), test=(), holdout=0.0))
    with pytest.raises(InputError, match=r"(?s)no rows to judge.*--eval"):
        run_seeds(nothing, tmp_path, 2, run)
    with pytest.raises(InputError, match="--seeds must be at least 1"):
        run_seeds(first, tmp_path, 0, run)


def test_options_that_mean_nothing_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the advice for a column is the verb's own option."""
    rows = csv_of(sentences(8, 5), tmp_path / "train.csv")
    words = ["finetune", "classify", "--model", "tiny:bert-ja", "--train", str(rows)]
    words += ["--output", str(tmp_path / "out"), "--device", "cpu"]
    for more, said in (
        (["--rank", "4"], "--rank is an adapter's"),
        (["--lr", "1e-4"], "did you mean --learning-rate?"),
        (["--text-colum", "x"], "did you mean --text-column"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        ([], "--text-column NAME says which is meant"),
    ):
        assert main([*words, *more]) == 2
        assert said in capsys.readouterr().err
    assert main(["finetune", "pair", *words[2:], "--text-column", "本文"]) == 2
    assert "--pair-column NAME says which is meant" in capsys.readouterr().err
    image = ["finetune", "image", *words[2:], "--max-length", "16"]
    assert main(image) == 2
    assert "finetune image has no --max-length" in capsys.readouterr().err


def test_help_names_the_columns_of_each_verb() -> None:
    listed = (finetune.__doc__ or "").partition("what: ")[2].partition("overrides: ")[0]
    text = " ".join(listed.split())
    for name, verb in VERBS.items():
        part = next(part for part in re.split("; ", text) if re.search(rf"\b{name}\b.*\(", part))
        own = {f"--{option.replace('_', '-')}" for option in verb.columns}
        assert set(re.findall(r"--[a-z-]+", part)) - {"--choice-column"} <= own


def test_a_summary_is_made_as_it_was_trained_and_judged(tmp_path: Path) -> None:
    """With the base's published prefix; its other settings are not the result's."""
    rows = [{"text": f"{word} is here", "short": word} for word in ("pen", "book", "dog", "cat")]
    path = csv_of(rows, tmp_path / "rows.csv")
    columns = {"text_column": "text", "target_column": "short"}
    files = (str(path),)
    wish = Wish("tiny:t5", files, evaluation=files, test=files, columns=columns, max_length=24)
    recipe = override(
        recipe_of("summarize", wish),
        ["training.steps=3", "task.language=en", "training.evaluate_every=0"],
    )
    outcome = train(recipe, tmp_path / "out", device="cpu")
    told = chumoku.load(tmp_path / "out")
    stated = json.loads((tmp_path / "out" / "config.json").read_text())["task_specific_params"]
    base = json.loads((TINY / "t5" / "config.json").read_text())["task_specific_params"]
    assert list(stated) == ["summarization"]
    assert stated["summarization"]["prefix"] == base["summarization"]["prefix"] != ""
    said = chumoku.summarize([row["text"] for row in rows], told)
    own = [one["summary_text"] for one in said]
    scores = metrics.rouge(own, [row["short"] for row in rows], "en")
    assert outcome.test["rougeL"] == pytest.approx(scores["rougeL"])


def test_an_adapter_that_cannot_be_merged_is_refused_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("吾輩は猫である。\n" * 20, encoding="utf-8")
    own = {
        "model": {"source": "tiny:neko"},
        "data": {"train": str(tmp_path / "a.txt")},
        "task": {"kind": "causal-lm", "length": 8},
        "adapter": {"kind": "lora", "targets": ["embeddings.token"]},
    }
    with pytest.raises(InputError, match="shares its weight with unembedding"):
        prepared(own, tmp_path)


def test_a_score_that_is_no_number_is_a_reject(tmp_path: Path) -> None:
    rows = [{"text": f"the film {n}", "label": f"{n / 8}"} for n in range(30)]
    rows[7]["label"] = "N/A"
    path = csv_of(rows, tmp_path / "scores.csv")
    own = {"data": {"train": str(path), "max_rejects": 0.1}, "task": {"kind": "classification"}}
    table = tables_of(build(Recipe, own, "test"), ())["train"]
    assert [str(reject) for reject in table.rejects] == [
        f"{path}:9: the label 'N/A' of the row is not a number"
    ]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    own = table(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"(?s)Not a directory.*file/run.*--output"):
        train(build(Recipe, own, "test"), tmp_path / "file", device="cpu")


def test_a_model_that_does_not_fit_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_large(*words: Any) -> Any:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9")

    monkeypatch.setattr(preparing, "build_model", too_large)
    with pytest.raises(ResourceError, match=r"(?s)out of memory.*a smaller model"):
        train(build(Recipe, table(tmp_path), "test"), tmp_path / "out", device="cpu")


def test_a_refused_run_leaves_the_folder_as_it_is(
    done: tuple[Outcome, Recipe], tmp_path: Path
) -> None:
    outcome, recipe = done
    shutil.copytree(outcome.folder, tmp_path / "out")

    def all_of(folder: Path) -> dict[str, bytes]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    other = replace(recipe, tokenizer={**recipe.tokenizer, "vocab_size": 90})
    with pytest.raises(TrainingError, match=r"other settings: tokenizer\.vocab_size"):
        train(other, tmp_path / "out", device="cpu")
    assert all_of(tmp_path / "out") == all_of(outcome.folder)


def test_nothing_is_not_the_default() -> None:
    with pytest.raises(ConfigError, match="epochs"):
        recipe_of("classify", Wish("m", ("t",), epochs=0))
    with pytest.raises(ConfigError, match="batch_size"):
        recipe_of("classify", Wish("m", ("t",), batch_size=0))


def test_a_wish_for_what_cannot_be_learnt() -> None:
    with pytest.raises(InputError, match="cannot be learnt"):
        recipe_of("dream", Wish("m", ("t",)))
    with pytest.raises(ConfigError):
        build(Recipe, {"adapter": {"kind": "prefix"}}, "test")


# ---- rows that cannot be used ----


def prepared(own: dict[str, Any], folder: Path) -> Prepared:
    return prepare(build(Recipe, own, "test"), folder, (), torch.device("cpu"))


def with_lines(own: dict[str, Any], lines: dict[int, str]) -> None:
    """Lines of train.csv, from 1, become others."""
    path = Path(own["data"]["train"])
    there = path.read_text("cp932").splitlines()
    for number, line in lines.items():
        there[number - 1] = line
    path.write_text("\n".join(there), "cp932")


def test_rejected_rows_are_counted_and_all_listed(tmp_path: Path) -> None:
    own = table(tmp_path)
    with_lines(own, dict.fromkeys(range(10, 40), "a,b,c") | {101: ",good", 102: "film,"})
    own["data"]["max_rejects"] = 0.5
    made = prepared(own, tmp_path)
    train_file = own["data"]["train"]
    assert made.rejected == 32
    assert f"{train_file}: cp932" in made.notes
    assert any("32 of 160 rows rejected" in note for note in made.notes)
    listed = [json.loads(line) for line in (tmp_path / "rejects.jsonl").read_text().splitlines()]
    assert [one["line"] for one in listed] == [*range(10, 40), 101, 102]
    assert {one["file"] for one in listed} == {train_file}
    assert listed[-2]["reason"] == "'text' of the row is empty"
    assert listed[-1]["reason"] == "the label of the row is empty"


def test_a_picture_that_cannot_be_opened_is_rejected(tmp_path: Path) -> None:
    for number in range(6):
        folder = tmp_path / "pictures" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number * 40,) * 3).save(folder / f"{number}.jpg")
    cut = tmp_path / "pictures" / "a" / "2.jpg"
    cut.write_bytes(cut.read_bytes()[:-99])
    own = {
        "about": {"title": "pictures"},
        "model": {"source": "tiny:digits"},
        "data": {"train": str(tmp_path / "pictures"), "max_rejects": 0.2},
        "task": {"kind": "image-classification"},
        "training": {"steps": 2, "evaluate_every": 0, "batching": {"batch_size": 5}},
    }
    outcome = train(build(Recipe, own, "test"), tmp_path / "out", device="cpu")
    assert outcome.result.steps == 2
    (line,) = (tmp_path / "out" / "run" / "rejects.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == str(cut)
    own["data"]["max_rejects"] = 0.1
    with pytest.raises(InputError, match=r"1 of 6 rows are bad: .*/a/2\.jpg: this is no image"):
        prepared(own, tmp_path)


@pytest.mark.parametrize(
    ("kind", "good", "bad", "reason"),
    [
        ("seq2seq", {"source": "a", "target": "b"}, {"source": " ", "target": "b"}, "is empty"),
        ("seq2seq", {"source": "a", "target": "b"}, {"source": "a", "target": ""}, "is empty"),
        ("symbols", {"symbols": "a b"}, {"symbols": ""}, "is no sequence of symbols"),
        ("pre-training", {"sentences": ["a", "b"]}, {"sentences": [1]}, "nor a list of sentences"),
        *(
            (kind, {"text": ""}, {"title": "a"}, "has no 'text'")
            for kind in ("masked-lm", "causal-lm", "span-corruption", "distillation")
        ),
    ],
)
def test_rows_that_an_objective_refuses(
    kind: str, good: dict[str, Any], bad: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    check_row = kind_of(Recipe(task={"kind": kind})).check_row
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, [good, bad, good])), encoding="utf-8")
    found = usable(read_rows(path), check_row, 0.4)
    assert [row.line for row in found.rows] == [1, 3]
    (reject,) = found.rejects
    assert reject.line == 2
    assert reason in reject.reason


def test_a_student_that_classifies_needs_labels(tmp_path: Path) -> None:
    row = {"text": "a"}
    distillation.check_row(row, 0, head="masked-lm")
    with pytest.raises(InputError, match="row 0 has no 'label'"):
        distillation.check_row(row, 0, head="classification")


def letters(folder: Path, text: str) -> dict[str, Any]:
    """A recipe that learns characters, of which the last tenth is held out."""
    (folder / "text.txt").write_text(text, encoding="utf-8")
    sizes = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    return {
        "about": {"title": "letters"},
        "model": {"config": {"model_type": "gpt2", **sizes}},
        "tokenizer": {"kind": "characters"},
        "data": {"train": str(folder / "text.txt"), "format": "whole", "holdout": 0.1},
        "task": {"kind": "causal-lm", "length": 8, "separate": False, "end": False},
    }


def test_a_letter_of_the_held_out_text_is_known(tmp_path: Path) -> None:
    own = letters(tmp_path, "to be or not to be " * 10 + "é")
    tokenizer = prepared(own, tmp_path).loaded.tokenizer
    assert tokenizer is not None
    assert [tokenizer.id_to_token(n) for n in range(tokenizer.vocab_size)] == sorted(" benorté")


def test_other_rows_make_another_tokenizer(tmp_path: Path) -> None:
    """As where a run failed before its first snapshot, and the rows were mended."""
    made = tmp_path / "tokenizer" / "tokenizer.json"
    own = letters(tmp_path, "to be or not to be " * 10)
    own["data"]["holdout"] = 0.0
    prepared(own, tmp_path)
    first, at = made.read_bytes(), made.stat().st_mtime_ns
    prepared(own, tmp_path)
    assert made.stat().st_mtime_ns == at  # kept
    prepared(letters(tmp_path, "TO BE OR NOT TO BE " * 10) | {"data": own["data"]}, tmp_path)
    assert made.read_bytes() != first


def test_a_letter_of_another_text_is_named(tmp_path: Path) -> None:
    own = letters(tmp_path, "to be or not to be " * 10)
    (tmp_path / "other.txt").write_text("to bé " * 9, encoding="utf-8")
    del own["data"]["holdout"]
    own["data"]["evaluation"] = str(tmp_path / "other.txt")
    with pytest.raises(
        InputError, match=r"(?s)'é' is not in the vocabulary.*\[tokenizer\] alphabet"
    ):
        prepared(own, tmp_path)
    own["tokenizer"]["alphabet"] = "é"
    tokenizer = prepared(own, tmp_path).loaded.tokenizer
    assert tokenizer is not None
    assert tokenizer.token_to_id("é") is not None


SHAKESPEARE = Path(__file__).parents[3] / "shared/data/shakespeare/input.txt"


@pytest.mark.skipif(not SHAKESPEARE.is_file(), reason="the shared data are not here")
def test_shakespeare_has_65_letters_whatever_is_held_out() -> None:
    text = SHAKESPEARE.read_text(encoding="utf-8")
    settings = TokenizerSettings(kind="characters")
    whole, part = (train_tokenizer([t], settings) for t in (text, text[: round(len(text) * 0.9)]))
    assert whole.vocab_size == 65
    assert whole.files == part.files


def test_a_faulty_row_is_named_by_its_line(tmp_path: Path) -> None:
    own = table(tmp_path)
    with_lines(own, {101: ",good"})
    own["data"]["max_rejects"] = 0.0
    with pytest.raises(InputError, match=r"train\.csv:101: 'text' of the row is empty"):
        prepared(own, tmp_path)


def test_an_objective_names_the_line_of_a_row(tmp_path: Path) -> None:
    own = table(tmp_path)
    path = csv_of(
        [*sentences(3, 2), {"本文": "the film", "ラベル": "so-so"}], tmp_path / "test.csv"
    )
    own["data"]["test"] = str(path)
    with pytest.raises(InputError, match=r"'so-so' of .*test\.csv:5 is none of the model's"):
        prepared(own, tmp_path)


def test_a_rare_label_may_be_held_out(tmp_path: Path) -> None:
    own = table(tmp_path)
    with_lines(own, {6: "the film,稀"})  # of five rows the last is held out
    assert prepared(own, tmp_path).loaded.config.labels == ("bad", "good", "稀")


@pytest.mark.parametrize(
    ("row", "names"),
    [
        ({"a": ["x"], "b": ["O"]}, ("words", "tags")),
        ({"a": "x y", "b": "O O"}, ("words", "tags")),
        ({"a": "x", "b": []}, ("text", "entities")),
        ({"a": "x", "b": [{"span": [0, 1], "type": "PER"}]}, ("text", "entities")),
    ],
)
def test_the_columns_of_ner_follow_the_first_row(
    row: dict[str, Any], names: tuple[str, str], tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(row) + "\n")
    columns = {"text_column": "a", "label_column": "b"}
    recipe = recipe_of("ner", Wish("m", (str(path),), columns=columns))
    assert recipe.data.columns == dict(zip(names, "ab", strict=True))


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    from filelock import FileLock

    from chumoku.training.runner import _alone_in

    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(InputError, match="another run"),
        _alone_in(tmp_path),
    ):
        pass
