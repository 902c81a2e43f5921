"""Whole checkpoints of every published layout through chumoku.load, beside transformers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import gguf
import layout_files as files
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from layout_files import GGUF_GPT2, GGUF_LLAMA, META, as_stored, logits, plain, published
from parity import harness, timm_vit
from parity.harness import difference
from text.text_samples import sentencepiece_model

import chumoku
from chumoku.errors import CheckpointError, ConfigError
from chumoku.gguf_export import save_gguf
from chumoku.quantization.convert import quantized_layers

MAKERS = {"llama": (files.llama, GGUF_LLAMA), "gpt2": (files.gpt2, GGUF_GPT2)}


# ---- Meta ----

SCALED = {
    "rope_scaling": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0}
    | {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    | {"original_max_position_embeddings": 8192}
}


@pytest.mark.parametrize("shards", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
def test_meta_folder(tmp_path: Path, shards: int, scaled: bool) -> None:
    theirs = files.llama(
        1, intermediate_size=192, max_position_embeddings=131072, **(SCALED if scaled else {})
    )
    params = {"multiple_of": 32, "rope_theta": 500000.0, "use_scaled_rope": scaled}
    files.write_meta(tmp_path, theirs, shards, **params)
    loaded = chumoku.load(tmp_path)
    ids = torch.randint(0, 40, (1, 300), generator=torch.Generator().manual_seed(3))
    expected = logits(theirs, ids)
    assert difference(logits(loaded.model, ids), expected) < 1e-5
    assert loaded.tokenizer is None
    if shards > 1 or not scaled:
        return
    params["use_scaled_rope"] = not scaled
    files.write_meta(tmp_path, theirs, shards, **params)
    wrong = chumoku.load(tmp_path)
    assert difference(logits(wrong.model, ids), expected) > 1e-4, "the scaling is not seen"


def test_meta_shards_of_llama_3_cut_the_vocabulary(tmp_path: Path) -> None:
    theirs = files.llama(2, intermediate_size=192)
    files.write_meta(
        tmp_path,
        theirs,
        2,
        embedding_axis=0,
        multiple_of=32,
        rope_theta=500000.0,
        ffn_dim_multiplier=1.1,
        vocab_size=40,
    )
    assert difference(logits(chumoku.load(tmp_path).model), logits(theirs)) < 1e-5


def test_rows_of_meta_that_nobody_permuted_are_wrong(tmp_path: Path) -> None:
    theirs = files.llama(1, intermediate_size=192)
    files.write_meta(tmp_path, theirs, multiple_of=32, rope_theta=500000.0)
    tensors = published(theirs, META, permute=False)
    torch.save(
        {n: torch.from_numpy(a) for n, a in tensors.items()}, tmp_path / "consolidated.00.pth"
    )
    assert difference(logits(chumoku.load(tmp_path).model), logits(theirs)) > 1e-2


def test_meta_folder_with_its_tokenizer(tmp_path: Path) -> None:
    raw = sentencepiece_model("bpe", 700, byte_fallback=True)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    theirs = files.llama(1, vocab_size=700, intermediate_size=192)
    files.write_meta(tmp_path, theirs, multiple_of=32, rope_theta=500000.0)
    loaded = chumoku.load(tmp_path)
    assert loaded.tokenizer is not None
    import sentencepiece

    peer = sentencepiece.SentencePieceProcessor(model_proto=raw)
    for text in ("the cat sat on the mat", "hello 世界 12", ""):
        assert loaded.tokenizer.encode(text).ids == [peer.bos_id(), *peer.encode(text)]


# ---- GGUF ----

STORAGES = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
STORAGES += ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def gguf_pair(kind: str, storage: str, path: Path, **changes: Any) -> Any:
    """A file of one storage, and the model of transformers that its dequantised floats make."""
    make, names = MAKERS[kind]
    if storage.endswith("_K"):
        wide = {"hidden_size": 256, "intermediate_size": 256} if kind == "llama" else {}
        changes = {"n_embd": 256, **changes} if kind == "gpt2" else {**wide, **changes}
    theirs = make(4, **changes)
    stored = as_stored(published(theirs, names), storage)
    files.from_plain(theirs, plain(stored), names)
    files.write_gguf(path, theirs, stored)
    return theirs


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", list(MAKERS))
def test_gguf_of_each_storage(kind: str, storage: str, tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    theirs = gguf_pair(kind, storage, path)
    expected = logits(theirs)
    assert float(expected.abs().max()) > 0.1
    loaded = chumoku.load(path)
    assert difference(logits(loaded.model), expected) < 1e-5
    floats = chumoku.load(path, dtype="float32")
    assert not quantized_layers(floats.model)
    assert difference(logits(floats.model), expected) < 1e-5
    if not storage.startswith("Q"):
        assert not quantized_layers(loaded.model)
        return
    held = quantized_layers(loaded.model)
    linear = [n for n, m in floats.model.named_modules() if isinstance(m, torch.nn.Linear)]
    assert {*linear, "embeddings.token"} == set(held)
    assert set(held.values()) == {storage}
    in_memory = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
    on_disk = sum(t.n_bytes for t in gguf.GGUFReader(path).tensors)
    assert abs(in_memory - int(on_disk)) < 64
    as_floats = sum(p.numel() * 4 for p in floats.model.parameters())
    assert in_memory < 0.6 * as_floats


@pytest.mark.parametrize("kind", list(MAKERS))
def test_gguf_dtypes(kind: str, tmp_path: Path) -> None:
    theirs = gguf_pair(kind, "F16", tmp_path / "m.gguf")
    stored = chumoku.load(tmp_path / "m.gguf", dtype="stored")
    assert stored.model.embeddings.token.weight.dtype == torch.float16
    assert stored.model.final_norm.weight.dtype == torch.float32
    double = chumoku.load(tmp_path / "m.gguf", dtype="float64")
    assert logits(double.model).dtype == torch.float64
    assert difference(logits(double.model), logits(theirs)) < 1e-5


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("storage", ["F32", "Q8_0"])
def test_gguf_tied_and_untied(kind: str, tied: bool, storage: str, tmp_path: Path) -> None:
    theirs = gguf_pair(kind, storage, tmp_path / "m.gguf", tie_word_embeddings=tied)
    loaded = chumoku.load(tmp_path / "m.gguf")
    same = loaded.model.unembedding.weight is loaded.model.embeddings.token.weight
    assert same == tied == loaded.config.tied
    assert difference(logits(loaded.model), logits(theirs)) < 1e-5


@pytest.mark.parametrize("permuted", [True, False])
def test_gguf_rows_are_neighbouring_pairs(permuted: bool, tmp_path: Path) -> None:
    theirs = files.llama(5)
    stored = as_stored(published(theirs, GGUF_LLAMA, permute=permuted), "F32")
    files.write_gguf(tmp_path / "m.gguf", theirs, stored)
    gap = difference(logits(chumoku.load(tmp_path / "m.gguf").model), logits(theirs))
    assert gap < 1e-5 if permuted else gap > 1e-2


def rope_factors(width: int, theta: float, scaling: dict[str, Any]) -> np.ndarray:
    """What llama.cpp's converter stores for LLaMA 3.1: by how much each frequency is divided."""
    frequency = theta ** -(np.arange(0, width, 2, dtype=np.float64) / width)
    wave = 2 * np.pi / frequency
    low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    original = scaling["original_max_position_embeddings"]
    smooth = np.clip((original / wave - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_gguf_of_llama_3_1(factor: float, tmp_path: Path) -> None:
    scaling = SCALED["rope_scaling"] | {"factor": factor}
    changes = {"hidden_size": 256, "num_attention_heads": 4, "max_position_embeddings": 131072}
    theirs = files.llama(6, rope_scaling=scaling, **changes)
    stored = as_stored(published(theirs, GGUF_LLAMA), "F32")
    factors = rope_factors(64, 500000.0, scaling)
    assert factors.min() == 1
    assert factors.max() == factor
    assert ((factors > 1) & (factors < factor)).any(), "none on the ramp"
    files.write_gguf(tmp_path / "m.gguf", theirs, {**stored, "rope_freqs.weight": (factors, "F32")})
    ids = torch.randint(0, 40, (1, 400), generator=torch.Generator().manual_seed(0))
    expected = logits(theirs, ids)
    loaded = chumoku.load(tmp_path / "m.gguf")
    assert difference(logits(loaded.model, ids), expected) < 1e-5
    # Saved for the hub, transformers reads the formula.
    chumoku.save(loaded, tmp_path / "hub")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    assert again.config.rope_parameters["rope_type"] == "llama3"
    assert difference(logits(again, ids), expected) < 1e-5
    files.write_gguf(tmp_path / "m.gguf", theirs, stored)
    plain_rope = chumoku.load(tmp_path / "m.gguf")
    assert difference(logits(plain_rope.model, ids), expected) > 1e-4, "the scaling is not seen"


def test_gguf_with_factors_of_no_formula(tmp_path: Path) -> None:
    theirs = files.llama(6)
    factors = np.linspace(1, 3, 8, dtype=np.float32)
    stored = as_stored(published(theirs, GGUF_LLAMA), "F32")
    files.write_gguf(tmp_path / "m.gguf", theirs, {**stored, "rope_freqs.weight": (factors, "F32")})
    loaded = chumoku.load(tmp_path / "m.gguf")
    theirs.model.rotary_emb.inv_freq /= torch.from_numpy(factors)
    assert difference(logits(loaded.model), logits(theirs)) < 1e-5
    chumoku.save(loaded, tmp_path / "hub")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hub")
    assert difference(logits(again), logits(theirs)) < 1e-5


def test_gguf_in_parts(tmp_path: Path) -> None:
    theirs = files.llama(7)
    stored = as_stored(published(theirs, GGUF_LLAMA), "Q8_0")
    files.from_plain(theirs, plain(stored), GGUF_LLAMA)
    files.write_gguf(tmp_path / "m.gguf", theirs, stored, split=9)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert [p.name for p in parts] == [f"m-{n:05}-of-00003.gguf" for n in (1, 2, 3)]
    for source in (parts[0], tmp_path):
        assert difference(logits(chumoku.load(source).model), logits(theirs)) < 1e-5
    parts[1].unlink()
    with pytest.raises(CheckpointError, match="does not exist"):
        chumoku.load(parts[0])


def test_gguf_in_a_folder(tmp_path: Path) -> None:
    theirs = gguf_pair("gpt2", "F32", tmp_path / "a.gguf")
    assert difference(logits(chumoku.load(tmp_path).model), logits(theirs)) < 1e-5
    shutil.copy(tmp_path / "a.gguf", tmp_path / "b.gguf")
    with pytest.raises(CheckpointError) as caught:
        chumoku.load(tmp_path)
    assert "a.gguf" in str(caught.value)
    assert "b.gguf" in str(caught.value)
    (tmp_path / "a.gguf").unlink()
    (tmp_path / "b.gguf").unlink()
    with pytest.raises(CheckpointError, match="no model here"):
        chumoku.load(tmp_path)


def test_gguf_of_another_architecture(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="'mamba' is not supported") as caught:
        chumoku.load(tmp_path / "m.gguf")
    assert "llama, gpt2" in str(caught.value)


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_gguf_with_wrong_tensors(fault: str, tmp_path: Path) -> None:
    theirs = files.llama(1)
    stored = as_stored(published(theirs, GGUF_LLAMA), "F32")
    name = "blk.1.ffn_up.weight"
    if fault == "missing":
        del stored[name]
    elif fault == "extra":
        name = "blk.0.ffn_gate_exps.weight"
        stored[name] = (np.ones((4, 4), np.float32), "F32")
    else:
        stored[name] = (np.ones((4, 64), np.float32), "F32")
    files.write_gguf(tmp_path / "m.gguf", theirs, stored)
    told = "feedforward.up" if fault == "missing" else name
    with pytest.raises(CheckpointError, match=told):
        chumoku.load(tmp_path / "m.gguf")


def test_gguf_with_its_tokenizer(tmp_path: Path) -> None:
    theirs = files.gpt2(3)
    vocab = [*"abcdefgh", "Ġ", "ab", "Ġc", "<|end|>"]
    vocab += [f"[UNUSED{n}]" for n in range(len(vocab), 40)]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": vocab,
        "tokenizer.ggml.token_type": [1] * 11 + [3] + [5] * 28,
        "tokenizer.ggml.merges": ["a b", "Ġ c"],
        "tokenizer.ggml.eos_token_id": 11,
        "tokenizer.chat_template": "{{ messages[0]['content'] }}",
    }
    stored = as_stored(published(theirs, GGUF_GPT2), "F32")
    files.write_gguf(tmp_path / "m.gguf", theirs, stored, metadata=metadata)
    loaded = chumoku.load(tmp_path / "m.gguf")
    assert loaded.tokenizer is not None
    assert loaded.tokenizer.encode("ab cd<|end|>").ids == [9, 10, 3, 11]
    assert loaded.tokenizer.eos_id == 11
    assert loaded.tokenizer.chat_template == "{{ messages[0]['content'] }}"
    assert loaded.generation["eos_token_id"] == 11


# ---- the hub's folders ----

BERT = {
    **{"vocab_size": 40, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 36, "max_position_embeddings": 32},
}


def bert(kind: str = "BertForMaskedLM", **changes: Any) -> Any:
    model = getattr(transformers, kind)(transformers.BertConfig(**{**BERT, **changes}))
    harness.randomise(model, 8)
    return model.eval()


def write_hub(folder: Path, model: Any, tensors: dict[str, torch.Tensor] | None = None) -> None:
    """config.json by transformers, and these tensors."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tensors = dict(model.state_dict()) if tensors is None else tensors
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("form", ["single", "shards", "bin", "bin shards", "old bin"])
def test_hub_folder(form: str, tmp_path: Path) -> None:
    theirs = bert()
    if form in ("single", "shards"):
        theirs.save_pretrained(tmp_path, max_shard_size="20KB" if form == "shards" else "1GB")
        assert (tmp_path / "model.safetensors.index.json").exists() == (form == "shards")
    else:
        write_hub(tmp_path, theirs)
        (tmp_path / "model.safetensors").unlink()
    if form == "bin shards":
        weight_map = {n: f"part-{i % 3}.bin" for i, n in enumerate(theirs.state_dict())}
        for part in set(weight_map.values()):
            names = [n for n, file in weight_map.items() if file == part]
            torch.save({n: theirs.state_dict()[n] for n in names}, tmp_path / part)
        index = json.dumps({"metadata": {}, "weight_map": weight_map})
        (tmp_path / "pytorch_model.bin.index.json").write_text(index, "utf-8")
    elif "bin" in form:
        torch.save(
            theirs.state_dict(),
            tmp_path / "pytorch_model.bin",
            _use_new_zipfile_serialization=form == "bin",
        )
    loaded = chumoku.load(tmp_path)
    assert loaded.head == "masked-lm"
    assert difference(logits(loaded.model), logits(theirs)) < 1e-5


def test_names_of_before_2019_and_extra_buffers(tmp_path: Path) -> None:
    theirs = bert()
    old = {}
    for name, tensor in theirs.state_dict().items():
        if "LayerNorm" in name:
            name = name.replace("weight", "gamma").replace("bias", "beta")
        old[name] = tensor
    old["bert.embeddings.position_ids"] = torch.arange(32)[None]
    write_hub(tmp_path, theirs, old)
    assert difference(logits(chumoku.load(tmp_path).model), logits(theirs)) < 1e-5


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_buffers_that_old_files_hold(kind: str, tmp_path: Path) -> None:
    theirs = MAKERS[kind][0](9)
    extra = {
        "gpt2": {f"transformer.h.{n}.attn.bias": torch.ones(1, 1, 64, 64) for n in (0, 1)}
        | {"transformer.h.0.attn.masked_bias": torch.tensor(-1e4)},
        "llama": {f"model.layers.{n}.self_attn.rotary_emb.inv_freq": torch.ones(8) for n in (0, 1)},
    }[kind]
    write_hub(tmp_path, theirs, {**theirs.state_dict(), **extra})
    assert difference(logits(chumoku.load(tmp_path).model), logits(theirs)) < 1e-5
    write_hub(tmp_path, theirs, {**theirs.state_dict(), "lora.weight": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"lora\.weight"):
        chumoku.load(tmp_path)


@torch.no_grad()
def test_a_bare_encoder_gets_a_new_head_only_when_asked(tmp_path: Path) -> None:
    theirs = bert("BertModel")
    write_hub(tmp_path, theirs)
    assert not any(n.startswith("bert.") for n in theirs.state_dict())
    bare = chumoku.load(tmp_path)
    assert bare.head == "encoder"
    out = bare.model(files.IDS)
    hidden = out if isinstance(out, torch.Tensor) else out[0]
    assert difference(hidden, theirs(files.IDS).last_hidden_state) < 1e-5
    with pytest.raises(CheckpointError, match="missing") as caught:
        chumoku.load(tmp_path, head="classification")
    assert "new_head=True" in str(caught.value)
    made = chumoku.load(tmp_path, head="classification", new_head=True, labels=["a", "b", "c"])
    assert made.config.labels == ("a", "b", "c")
    assert torch.equal(
        made.model.blocks[1].attention.key.weight, bare.model.blocks[1].attention.key.weight
    )
    scores = made.model(files.IDS)
    assert scores.shape == (2, 3)
    assert float(scores.abs().max()) > 0
    chumoku.save(made, tmp_path / "made")
    again = chumoku.load(tmp_path / "made")
    assert again.head == "classification"
    assert torch.equal(again.model(files.IDS), scores)
    tuned = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "made")
    assert difference(tuned(files.IDS).logits, scores) < 1e-5


@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_hub_folders_with_wrong_tensors(fault: str, tmp_path: Path) -> None:
    theirs = bert()
    tensors = dict(theirs.state_dict())
    name = "bert.encoder.layer.1.output.dense.weight"
    if fault == "missing":
        del tensors[name]
    elif fault == "extra":
        name = "bert.encoder.layer.9.adapter.weight"
        tensors[name] = torch.ones(2, 2)
    else:
        tensors[name] = torch.ones(24, 35)
    write_hub(tmp_path, theirs, tensors)
    told = r"blocks\.1\.feedforward\.down" if fault == "missing" else name
    with pytest.raises(CheckpointError, match=told):
        chumoku.load(tmp_path)


def test_a_config_of_no_known_type(tmp_path: Path) -> None:
    theirs = bert()
    write_hub(tmp_path, theirs)
    raw = json.loads((tmp_path / "config.json").read_text("utf-8"))
    (tmp_path / "config.json").write_text(json.dumps(raw | {"model_type": "mamba"}), "utf-8")
    with pytest.raises(ConfigError, match="mamba"):
        chumoku.load(tmp_path)
    del raw["model_type"]
    (tmp_path / "config.json").write_text(json.dumps(raw), "utf-8")
    assert difference(logits(chumoku.load(tmp_path).model), logits(theirs)) < 1e-5


# ---- timm ----


@pytest.mark.parametrize("distilled", [False, True])
def test_timm_folder(distilled: bool, tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224" if distilled else "vit_tiny_patch16_224"
    arguments = {"img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3}
    theirs = timm_vit.models()[distilled](patch_size=8, num_classes=5, **arguments)
    harness.randomise(theirs, 3)
    theirs.eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    raw = {
        "architecture": name,
        "num_classes": 5,
        "num_features": 48,
        "global_pool": "token",
        "model_args": arguments | {"patch_size": 8},
        "pretrained_cfg": {"input_size": [3, 24, 24], "label_names": list("abcde")},
    }
    (tmp_path / "config.json").write_text(json.dumps(raw), "utf-8")
    loaded = chumoku.load(tmp_path)
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert difference(loaded.model(pixels), theirs(pixels)) < 1e-5
    assert loaded.config.labels == tuple("abcde")
    chumoku.save(loaded, tmp_path / "hub")
    again = chumoku.load(tmp_path / "hub")
    with torch.no_grad():
        assert torch.equal(again.model(pixels), loaded.model(pixels))


# ---- round trips ----


@pytest.mark.parametrize("scaled", [False, True])
def test_meta_hub_gguf_hub(scaled: bool, tmp_path: Path) -> None:
    theirs = files.llama(1, intermediate_size=192, **(SCALED if scaled else {}))
    files.write_meta(
        tmp_path / "meta", theirs, 2, multiple_of=32, rope_theta=500000.0, use_scaled_rope=scaled
    )
    ids = torch.randint(0, 40, (1, 200), generator=torch.Generator().manual_seed(3))
    first = chumoku.load(tmp_path / "meta")
    expected = logits(first.model, ids)
    chumoku.save(first, tmp_path / "hub")
    second = chumoku.load(tmp_path / "hub")
    save_gguf(second, tmp_path / "m.gguf", "F32")
    third = chumoku.load(tmp_path / "m.gguf")
    chumoku.save(third, tmp_path / "back")
    fourth = chumoku.load(tmp_path / "back")
    for loaded in (second, third, fourth):
        assert torch.equal(logits(loaded.model, ids), expected)
    one = (tmp_path / "hub" / "model.safetensors").read_bytes()
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == one
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert difference(logits(peer, ids), expected) < 1e-5


def test_gpt2_hub_gguf_hub(tmp_path: Path) -> None:
    theirs = files.gpt2(2)
    theirs.save_pretrained(tmp_path / "hub")
    first = chumoku.load(tmp_path / "hub")
    save_gguf(first, tmp_path / "m.gguf", "F32")
    second = chumoku.load(tmp_path / "m.gguf")
    chumoku.save(second, tmp_path / "back")
    third = chumoku.load(tmp_path / "back")
    for loaded in (second, third):
        assert torch.equal(logits(loaded.model), logits(first.model))
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back")
    assert difference(logits(peer), logits(theirs)) < 1e-5
