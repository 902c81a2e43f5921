"""load(dtype="stored"), then save(): the same keys, tensor bytes and config, for every layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tasks import models

import chumoku
from chumoku import saving
from chumoku.errors import CheckpointError, InputError
from chumoku.loading import load

PUBLISHED: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "BertForMaskedLM": {"vocab_size": 50},
    "BertForPreTraining": {"vocab_size": 50},
    "BertForSequenceClassification": {"vocab_size": 50, "num_labels": 3},
    "RobertaForMaskedLM": {"vocab_size": 50},
    "RobertaForTokenClassification": {"vocab_size": 50},
    "DistilBertForMaskedLM": {"vocab_size": 50},
    "DistilBertForQuestionAnswering": {"vocab_size": 50},
    "GPT2LMHeadModel": {"vocab_size": 50},
    "GPT2Model": {"vocab_size": 50},
    "LlamaForCausalLM": {"vocab_size": 50},
    "MistralForCausalLM": {"vocab_size": 50, "tie_word_embeddings": True},
    "T5ForConditionalGeneration": {"vocab_size": 50, "decoder_start_token_id": 0},
    "MT5ForConditionalGeneration": {"vocab_size": 50, "decoder_start_token_id": 0}
    | {"tie_word_embeddings": False},
    "MarianMTModel": {"vocab_size": 50, "pad_token_id": 49, "decoder_start_token_id": 49},
    "ViTForImageClassification": {"num_labels": 4},
    "ViTModel": {},
    "DeiTForImageClassification": {},
}


def tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> dtype, shape and bytes of every tensor of a folder's safetensors files."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            raw = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
            found[name] = (str(tensor.dtype), tuple(tensor.shape), raw)
    return found


def config(folder: Path) -> Any:
    return json.loads((folder / "config.json").read_text("utf-8"))


def check_same(before: Path, after: Path) -> None:
    assert tensors(after) == tensors(before) != {}
    assert config(after) == config(before)
    for path in after.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PUBLISHED)
def test_unchanged(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    models.build(name, **PUBLISHED[name]).to(dtype).save_pretrained(tmp_path / "a")
    loaded = load(tmp_path / "a", dtype="stored")
    assert chumoku.save(loaded, tmp_path / "b") == tmp_path / "b"
    check_same(tmp_path / "a", tmp_path / "b")
    again = load(tmp_path / "b", dtype="stored")
    assert (again.head, again.config) == (loaded.head, loaded.config)


@pytest.mark.parametrize(
    "name", ["LlamaForCausalLM", "BertForMaskedLM", "T5ForConditionalGeneration"]
)
def test_a_changed_tensor_is_written_and_no_other(tmp_path: Path, name: str) -> None:
    models.build(name, **PUBLISHED[name]).save_pretrained(tmp_path / "a")
    loaded = load(tmp_path / "a", dtype="stored")
    ours = next(
        n for n, p in loaded.model.named_parameters() if n.endswith("attention.query.weight")
    )
    with torch.no_grad():
        loaded.model.get_parameter(ours).mul_(2)
    chumoku.save(loaded, tmp_path / "b")
    before, after = tensors(tmp_path / "a"), tensors(tmp_path / "b")
    assert before.keys() == after.keys()
    changed = [n for n in before if before[n] != after[n]]
    assert len(changed) == 1
    theirs = load_file(tmp_path / "a" / "model.safetensors")[changed[0]]
    assert torch.equal(load_file(tmp_path / "b" / "model.safetensors")[changed[0]], theirs * 2)


def test_shards_come_back_as_one_and_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models.build("LlamaForCausalLM", vocab_size=50)
    model.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 2
    chumoku.save(load(tmp_path / "a", dtype="stored"), tmp_path / "b")
    check_same(tmp_path / "a", tmp_path / "b")
    monkeypatch.setattr(saving, "SHARD_BYTES", 20_000)
    chumoku.save(load(tmp_path / "a", dtype="stored"), tmp_path / "c")
    check_same(tmp_path / "a", tmp_path / "c")
    index = json.loads((tmp_path / "c" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(tensors(tmp_path / "a"))
    for name, file in index["weight_map"].items():
        assert name in load_file(tmp_path / "c" / file)
    again = type(model).from_pretrained(tmp_path / "c")
    assert models.checksum(again) == models.checksum(model)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "GPT2LMHeadModel", "MarianMTModel"])
def test_a_legacy_bin_file(tmp_path: Path, name: str) -> None:
    """Such files name tied matrices twice, and hold old buffers; both are kept."""
    model = models.build(name, **PUBLISHED[name])
    model.config.architectures = [name]
    model.config.save_pretrained(tmp_path / "a")
    state = {k: v.clone() for k, v in model.state_dict().items()}
    if name == "BertForMaskedLM":
        state["bert.embeddings.position_ids"] = torch.arange(64)[None]
    torch.save(state, tmp_path / "a" / "pytorch_model.bin")
    loaded = load(tmp_path / "a", dtype="stored")
    chumoku.save(loaded, tmp_path / "b")
    found = load_file(tmp_path / "b" / "model.safetensors")
    assert set(found) == set(state)
    for key, value in state.items():
        assert torch.equal(found[key], value)
    assert config(tmp_path / "b") == config(tmp_path / "a")
    again = type(model).from_pretrained(tmp_path / "b")
    assert models.checksum(again) == models.checksum(model)


def test_side_files_go_with_the_weights(tmp_path: Path) -> None:
    models.save(tmp_path / "a", "GPT2LMHeadModel", "gpt2", bos_token_id=0, eos_token_id=0)
    models.write_json(
        tmp_path / "a" / "generation_config.json", {"max_length": 7, "eos_token_id": 0}
    )
    chumoku.save(load(tmp_path / "a", dtype="stored"), tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "b" / name).read_bytes() == (tmp_path / "a" / name).read_bytes()
    assert load(tmp_path / "b").generation == load(tmp_path / "a").generation


def test_onto_itself(tmp_path: Path) -> None:
    """Dropped tensors are read from the very files that are replaced."""
    models.build("BertForPreTraining", vocab_size=50).save_pretrained(tmp_path)
    before = tensors(tmp_path)
    loaded = load(tmp_path, head="pre-training", dtype="stored")
    with torch.no_grad():
        loaded.model.embeddings.token.weight.add_(1)  # type: ignore[union-attr, operator]
    chumoku.save(loaded, tmp_path)
    after = tensors(tmp_path)
    assert [n for n in before if before[n] != after[n]] == [
        "bert.embeddings.word_embeddings.weight"
    ]
    assert {p.name for p in tmp_path.iterdir()} <= {
        "config.json",
        "model.safetensors",
        "generation_config.json",
    }


def test_onto_itself_under_another_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models.save(tmp_path / "a", "GPT2LMHeadModel", "gpt2", bos_token_id=0, eos_token_id=0)
    monkeypatch.chdir(tmp_path)
    chumoku.save(load(tmp_path / "a", dtype="stored"), "a")
    # Every file as readable as the umask has it, the small ones too.
    modes = {path.stat().st_mode for path in Path("a").iterdir()}
    (tmp_path / "plain").touch()
    assert modes == {(tmp_path / "plain").stat().st_mode}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_new_model_is_read_by_transformers(tmp_path: Path, name: str) -> None:
    """What was not loaded is written canonically: the published class finds every tensor."""
    theirs = models.build(name, **PUBLISHED[name])
    theirs.save_pretrained(tmp_path / "a")
    first = load(tmp_path / "a", dtype="stored")
    raw = json.loads((tmp_path / "a" / "config.json").read_text())
    created = chumoku.create(raw, first.head, seed=3)
    created.model.load_state_dict(first.model.state_dict())
    chumoku.save(created, tmp_path / "b")
    again, info = type(theirs).from_pretrained(tmp_path / "b", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert models.checksum(again) == models.checksum(theirs)


def test_another_head_is_another_model(tmp_path: Path) -> None:
    models.build("BertForPreTraining", vocab_size=50).save_pretrained(tmp_path / "a")
    chumoku.save(load(tmp_path / "a", head="masked-lm", dtype="stored"), tmp_path / "b")
    assert config(tmp_path / "b")["architectures"] == ["BertForMaskedLM"]
    kept = tensors(tmp_path / "b")
    assert kept.items() <= tensors(tmp_path / "a").items()
    assert not any("seq_relationship" in name for name in kept)
    again = load(tmp_path / "b", dtype="stored")
    assert again.head == "masked-lm"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_conversion(tmp_path: Path, dtype: str) -> None:
    theirs = models.build("LlamaForCausalLM", vocab_size=50)
    theirs.save_pretrained(tmp_path / "a")
    chumoku.save(load(tmp_path / "a", dtype="stored"), tmp_path / "b", dtype=dtype)
    before = load_file(tmp_path / "a" / "model.safetensors")
    after = load_file(tmp_path / "b" / "model.safetensors")
    for name, value in before.items():
        assert torch.equal(after[name], value.to(getattr(torch, dtype)))
    assert config(tmp_path / "b").get("dtype") == dtype


def test_bad_arguments(tmp_path: Path) -> None:
    loaded = chumoku.create(
        {"model_type": "bert", **models.SIZES["bert"], "vocab_size": 9}, "encoder"
    )
    with pytest.raises(InputError, match="dtype 'int7' is not known"):
        chumoku.save(loaded, tmp_path, dtype="int7")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        chumoku.save(loaded, tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot write"):
        chumoku.save(loaded, tmp_path / "file" / "below")
