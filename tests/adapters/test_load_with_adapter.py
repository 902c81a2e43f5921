"""load(…, adapter=FOLDER) and --adapter beside peft: heads, classes, saving, what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from adapters.peft_pairs import pair, quiet, run_theirs, saved, wrapped
from adapters.tiny import RAW, run
from fakes.zoo import zoo
from parity.harness import difference, randomise

from chumoku.adapters.registry import adapters_of
from chumoku.cli import main
from chumoku.errors import CheckpointError, ChumokuError, InputError
from chumoku.gguf_export import save_gguf
from chumoku.loading import load
from chumoku.saving import save

CASES = [
    ("bert", "classification"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("t5", "conditional-generation"),
]


@pytest.mark.parametrize(("kind", "head"), CASES)
def test_equals_peft(kind: str, head: str, tmp_path: Path) -> None:
    base = pair(kind, head, tmp_path / "base")
    theirs = wrapped(base)
    folder = saved(theirs, tmp_path / "adapter")
    loaded = load(base.folder, dtype="float32", device="cpu", adapter=folder)
    assert loaded.head == head
    expected = run_theirs(theirs, kind, head)
    assert difference(run(loaded.model), expected) <= 1e-5
    assert difference(run(base.ours), expected) > 1e-3
    again = load(save(loaded, tmp_path / "saved"), dtype="float32", device="cpu")
    assert difference(run(again.model), expected) <= 1e-5
    assert adapters_of(loaded.model) is not None  # saving has left it as it was
    if kind in ("gpt2", "llama"):
        gguf = load(save_gguf(loaded, tmp_path / "saved.gguf", "F32"), device="cpu")
        assert difference(run(gguf.model), expected) <= 1e-5


# ---- a head that the base has not ----


def classifier(folder: Path) -> tuple[Path, Path, Any]:
    """A BERT without a head, and an adapter on it with a new head of three classes."""
    with quiet():
        bare = transformers.BertModel(transformers.BertConfig(**RAW["bert"])).eval()
        randomise(bare, 0)
        bare.save_pretrained(folder / "base")
        config = json.loads((folder / "base" / "config.json").read_text())
        for key in ("id2label", "label2id"):
            config.pop(key, None)
        (folder / "base" / "config.json").write_text(json.dumps(config))
        whole = transformers.BertForSequenceClassification.from_pretrained(
            folder / "base", num_labels=3
        )
        settings = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")
        model = peft.get_peft_model(whole.eval(), settings)
        randomise(model.base_model.model.classifier, 1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
    return folder / "base", saved(model, folder / "adapter"), model.eval()


def test_the_adapters_head_on_a_bare_base(tmp_path: Path) -> None:
    base, folder, theirs = classifier(tmp_path)
    with pytest.raises(CheckpointError, match=r"(?s)classifier.*3.*labels"):
        load(base, adapter=folder, device="cpu")
    names = {"id2label": {"0": "cat", "1": "dog", "2": "猫"}}
    (folder / "config.json").write_text(json.dumps(names))
    loaded = load(base, adapter=folder, device="cpu")
    assert (loaded.head, loaded.config.labels) == ("classification", ("cat", "dog", "猫"))
    assert difference(run(loaded.model), run_theirs(theirs, "bert", "classification")) <= 1e-5
    (folder / "config.json").unlink()
    named = load(base, adapter=folder, labels=["x", "y", "z"], device="cpu")
    assert difference(run(named.model), run(loaded.model)) == 0


def test_a_head_that_neither_has(tmp_path: Path) -> None:
    base, folder, _ = classifier(tmp_path)
    with pytest.raises(ChumokuError, match=r"(?s)head"):
        load(base, adapter=folder, head="token-classification", device="cpu")
    raw = json.loads((folder / "adapter_config.json").read_text())
    model = pair("bert", "encoder", tmp_path / "other")
    bare = saved(wrapped(model), tmp_path / "bare")
    assert raw["task_type"] == "SEQ_CLS"
    with pytest.raises(CheckpointError, match=r"(?s)neither the base nor the adapter.*head"):
        load(base, adapter=bare, head="classification", device="cpu")


# ---- what is refused ----


def test_no_adapter_there(tmp_path: Path) -> None:
    base = pair("gpt2", "causal-lm", tmp_path / "base").folder
    with pytest.raises(InputError, match=r"(?s)no such folder.*finetune"):
        load(base, adapter=tmp_path / "nowhere", device="cpu")
    with pytest.raises(InputError, match=r"no adapter_config.json"):
        load(base, adapter=base, device="cpu")


def test_the_adapter_of_another_model(tmp_path: Path) -> None:
    base = pair("gpt2", "causal-lm", tmp_path / "base").folder
    folder = saved(wrapped(pair("llama", "causal-lm", tmp_path / "other")), tmp_path / "adapter")
    with pytest.raises(CheckpointError, match="no module"):
        load(base, adapter=folder, device="cpu")


# ---- on the command line ----


def generated(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Any:
    capsys.readouterr()
    code = main(
        [str(w) for w in ("generate", "the cat", "--max-new-tokens", "6", "--json", *words)]
    )
    shown = capsys.readouterr()
    return json.loads(shown.out)["ids"] if code == 0 else shown.err


def test_the_verbs_take_an_adapter(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    chat = zoo(tmp_path / "zoo")("chat")
    with quiet():
        theirs = transformers.AutoModelForCausalLM.from_pretrained(chat).eval()
        model = peft.get_peft_model(theirs, peft.LoraConfig(target_modules="all-linear"))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter)
    folder = saved(model, tmp_path / "adapter")
    with_it = generated(capsys, "--model", chat, "--adapter", folder)
    fused = tmp_path / "fused"
    assert main(["models", "convert", str(chat), str(fused), "--adapter", str(folder)]) == 0
    assert with_it == generated(capsys, "--model", fused)
    assert with_it != generated(capsys, "--model", chat)
    assert with_it == generated(capsys, "--adapter", folder)  # the base that the file names
    raw = json.loads((folder / "adapter_config.json").read_text())
    shutil.copytree(folder, tmp_path / "nameless")
    raw["base_model_name_or_path"] = None
    (tmp_path / "nameless" / "adapter_config.json").write_text(json.dumps(raw))
    assert "--model" in generated(capsys, "--adapter", tmp_path / "nameless")
