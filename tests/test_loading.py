"""load() and create(): equal outputs, choice of the head, and each thing that can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tasks import models

import chumoku
from chumoku import devices
from chumoku.errors import (
    CheckpointError,
    ChumokuError,
    ConfigError,
    DeviceError,
    InputError,
    ResourceError,
    SourceError,
)
from chumoku.loading import create, load

BERT = {"vocab_size": 50}


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; None removes one."""
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    raw = {k: v for k, v in (raw | changes).items() if v is not None}
    (folder / "config.json").write_text(json.dumps(raw), "utf-8")


def edit_tensors(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Add, replace or (None) remove tensors of model.safetensors."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def masters(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """masters(class, **config): a folder that must not be changed."""
    made: dict[str, Path] = {}

    def make(name: str, **config: Any) -> Path:
        key = name + repr(config)
        if key not in made:
            made[key] = tmp_path_factory.mktemp(name)
            models.build(name, **{**BERT, **config}).save_pretrained(made[key])
        return made[key]

    return make


@pytest.fixture
def published(masters: Any, tmp_path: Path) -> Any:
    """published(class, **config): a copy that the test may spoil."""

    def make(name: str, **config: Any) -> Path:
        return Path(shutil.copytree(masters(name, **config), tmp_path / name))

    return make


# ---- what comes out ----

HEADS = {
    "BertModel": "encoder",
    "BertForMaskedLM": "masked-lm",
    "BertForPreTraining": "pre-training",
    "BertForNextSentencePrediction": "next-sentence",
    "BertForSequenceClassification": "classification",
    "BertForTokenClassification": "token-classification",
    "BertForQuestionAnswering": "question-answering",
    "BertForMultipleChoice": "multiple-choice",
    "RobertaForMaskedLM": "masked-lm",
    "RobertaForSequenceClassification": "classification",
    "DistilBertForTokenClassification": "token-classification",
    "GPT2LMHeadModel": "causal-lm",
    "GPT2Model": "encoder",
    "LlamaForCausalLM": "causal-lm",
    "LlamaForSequenceClassification": "classification",
    "MistralForCausalLM": "causal-lm",
}
SAME_TENSORS = ("BertForMultipleChoice", "GPT2Model")
"""What no file tells apart by its tensors alone: a classifier of one class, and the stack below a
tied language model."""


@pytest.mark.parametrize("name", HEADS)
@torch.no_grad()
def test_the_head_and_its_outputs(published: Any, name: str) -> None:
    folder = published(name, pad_token_id=0)
    theirs = getattr(__import__("transformers"), name).from_pretrained(folder).eval()
    ids = torch.randint(1, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    if name == "BertForMultipleChoice":
        ids = ids[None]
    loaded = load(folder, device="cpu")
    assert loaded.head == HEADS[name]
    expected = theirs(ids)
    values = [
        v for v in expected.to_tuple() if isinstance(v, torch.Tensor) and v.is_floating_point()
    ]
    found = loaded.model(ids)
    found = found if isinstance(found, tuple) else (found,)
    for a, b in zip(found, values, strict=False):
        assert a.dtype == torch.float32
        assert float((a - b).abs().max()) <= 1e-5 * max(1.0, float(b.abs().max()))
    assert not loaded.model.training
    assert loaded.source.origin == str(folder)
    if name not in SAME_TENSORS:
        edit_config(folder, architectures=None)
        assert load(folder).head == HEADS[name], "by the tensors present"
    edit_config(folder, architectures=["SomethingElse"])
    with torch.no_grad():
        asked = load(folder, head=HEADS[name]).model(ids)
    asked = asked if isinstance(asked, tuple) else (asked,)
    assert all(torch.equal(a, b) for a, b in zip(asked, found, strict=True))


def test_the_type_of_the_weights(published: Any, masters: Any, tmp_path: Path) -> None:
    folder = published("BertForMaskedLM")
    for dtype in ("float32", "float64", "float16", "bfloat16"):
        model = load(folder, dtype=dtype, device="cpu").model
        assert {str(p.dtype) for p in model.parameters()} == {f"torch.{dtype}"}
    half = models.build("BertForMaskedLM", **BERT).to(torch.bfloat16)
    half.save_pretrained(tmp_path / "half")
    for dtype, expected in (("auto", torch.float32), ("stored", torch.bfloat16)):
        model = load(tmp_path / "half", dtype=dtype, device="cpu").model
        assert {p.dtype for p in model.parameters()} == {expected}
        assert torch.equal(
            model.embeddings.token.weight.float(),  # type: ignore[union-attr, operator]
            half.bert.embeddings.word_embeddings.weight.float(),
        )
    with pytest.raises(InputError, match="dtype 'int4' is not known"):
        load(folder, dtype="int4")


def test_ties_are_one_parameter(published: Any) -> None:
    model: Any = load(published("BertForMaskedLM")).model
    assert model.head.output.weight is model.embeddings.token.weight
    untied: Any = load(published("LlamaForCausalLM")).model
    assert untied.unembedding.weight is not untied.embeddings.token.weight


def test_a_file_is_as_good_as_its_folder(published: Any) -> None:
    folder = published("BertForMaskedLM")
    one, other = load(folder), load(folder / "model.safetensors")
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b)


# ---- heads that are not there ----


def test_a_missing_head_is_an_error_unless_it_is_to_be_made(published: Any) -> None:
    folder = published("BertModel")
    with pytest.raises(CheckpointError, match=r"2 tensors are missing: head\.output") as caught:
        load(folder, head="classification")
    assert "new_head=True" in caught.value.advice
    torch.manual_seed(5)
    made: Any = load(folder, head="classification", new_head=True, labels=["a", "b", "c"])
    assert made.config.labels == ("a", "b", "c")
    assert made.model.head.output.weight.shape == (3, 24)
    assert bool(made.model.head.output.weight.isfinite().all())
    assert 0.005 < float(made.model.head.output.weight.detach().std()) < 0.05, "the published 0.02"
    assert not made.model.head.output.bias.any()
    torch.manual_seed(5)
    again: Any = load(folder, head="classification", new_head=True, labels=["a", "b", "c"])
    assert torch.equal(made.model.head.output.weight, again.model.head.output.weight)
    base: Any = load(folder).model
    assert torch.equal(made.model.embeddings.token.weight, base.embeddings.token.weight)
    assert torch.equal(made.model.pooler.output.weight, base.pooler.output.weight)


def test_a_new_head_is_saved_under_its_published_names(published: Any, tmp_path: Path) -> None:
    import transformers

    made = load(published("BertModel"), head="classification", new_head=True, labels=["x", "y"])
    folder = chumoku.save(made, tmp_path / "saved")
    theirs, info = transformers.BertForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert theirs.config.id2label == {0: "x", 1: "y"}
    again = load(folder)
    assert (again.head, again.config.labels) == ("classification", ("x", "y"))
    ids = torch.arange(1, 8)[None]
    with torch.no_grad():
        assert torch.allclose(made.model(ids), theirs(ids).logits, atol=1e-6)


def test_new_head_does_not_hide_a_missing_block(published: Any) -> None:
    folder = published("BertModel")
    edit_tensors(folder, {"encoder.layer.1.output.dense.weight": None})
    with pytest.raises(CheckpointError, match=r"1 tensors are missing: blocks\.1") as caught:
        load(folder, head="classification", new_head=True)
    assert "new_head" not in caught.value.advice


def test_a_classifier_does_not_pass_for_another_one(published: Any) -> None:
    """Three heads have the published name `classifier`, and may have the same size."""
    folder = published("BertForTokenClassification")
    with pytest.raises(CheckpointError, match="missing"):
        load(folder, head="classification", ignore_config=())
    made: Any = load(folder, head="classification", new_head=True)
    stored = load_file(folder / "model.safetensors")["classifier.weight"]
    assert not torch.equal(made.model.head.output.weight, stored)


def test_an_old_pooler_or_none_may_be_there(published: Any) -> None:
    folder = published("BertModel")
    full: Any = load(folder)
    assert full.model.pooler is not None
    edit_tensors(folder, {"pooler.dense.weight": None, "pooler.dense.bias": None})
    loaded: Any = load(folder, head="encoder")
    assert loaded.model.pooler is None
    ids = torch.arange(1, 8)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(ids), full.model(ids))
    for head in ("classification", "next-sentence"):  # these stand on the pooler
        with pytest.raises(CheckpointError, match="missing: pooler"):
            load(folder, head=head)
    made: Any = load(folder, head="classification", new_head=True)
    assert made.model(ids).isfinite().all()


def test_a_new_head_of_a_file_that_does_not_say_what_it_is(published: Any, tmp_path: Path) -> None:
    folder = published("BertModel")
    edit_config(folder, architectures=None)
    made: Any = load(folder, head="token-classification", new_head=True)
    again: Any = load(chumoku.save(made, tmp_path / "saved"))
    assert again.head == "token-classification"
    assert torch.equal(again.model.head.output.weight, made.model.head.output.weight)


@pytest.mark.parametrize("dtype", ["stored", "auto", "float64"])
def test_a_new_head_has_the_type_of_the_rest(tmp_path: Path, dtype: str) -> None:
    models.build("BertModel", **BERT).to(torch.bfloat16).save_pretrained(tmp_path)
    made = load(tmp_path, head="classification", new_head=True, dtype=dtype, device="cpu")
    assert len({p.dtype for p in made.model.parameters()}) == 1
    assert made.model(torch.arange(1, 8)[None]).isfinite().all()


# ---- bad checkpoints ----


def fails(kind: type[ChumokuError], match: str, advice: str, source: Any, **options: Any) -> None:
    with pytest.raises(kind, match=match) as caught:
        load(source, **options)
    assert type(caught.value) is kind
    assert advice in str(caught.value)


def test_sources_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No model is called"):
        load("no-such-model-here", offline=True)
    with pytest.raises(ChumokuError):
        load(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ChumokuError):
        load(tmp_path / "empty")


def test_tensors_that_do_not_fit(published: Any) -> None:
    folder = published("BertForMaskedLM")
    whole = load_file(folder / "model.safetensors")
    some = "bert.encoder.layer.0.attention.self.query.weight"
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({some: None}, r"1 tensors are missing: blocks\.0\.attention\.query\.weight", ""),
        (
            {"bert.encoder.layer.0.gate.weight": torch.ones(2)},
            "1 tensors are not known",
            "model_type",
        ),
        ({some: torch.ones(24, 23)}, r"has shape \(24, 23\)", "different sizes"),
        ({some: torch.ones(24 * 24)}, r"has shape \(576,\)", "different sizes"),
        ({"bert.encoder.layer.2." + some[21:]: whole[some]}, "", ""),
    ]
    for changes, match, advice in cases[:4]:
        edit_tensors(folder, changes)
        fails(CheckpointError, match, advice, folder)
        save_file(whole, folder / "model.safetensors")
    edit_tensors(folder, cases[4][0])  # a block more than the config has
    fails(CheckpointError, "1 tensors more than the config describes", "different models", folder)
    save_file(whole, folder / "model.safetensors")
    edit_config(folder, num_hidden_layers=3)
    fails(CheckpointError, "16 tensors are missing", "", folder)
    edit_config(folder, num_hidden_layers=2, vocab_size=51)
    fails(CheckpointError, "has shape", "different sizes", folder)


def test_damaged_files(published: Any) -> None:
    folder = published("BertForMaskedLM")
    data = (folder / "model.safetensors").read_bytes()
    for spoiled in (data[:-7], data[:5], b"", data[:8] + b"x" + data[9:]):
        (folder / "model.safetensors").write_bytes(spoiled)
        with pytest.raises(CheckpointError):
            load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ChumokuError):
        load(folder)
    (folder / "model.safetensors").write_bytes(data)
    for text in ("{", "[]", '{"model_type": 3}', "\x00"):
        (folder / "config.json").write_text(text)
        with pytest.raises(ChumokuError) as caught:
            load(folder)
        assert isinstance(caught.value, CheckpointError | ConfigError)


def test_configs_that_say_too_much_or_nothing(published: Any) -> None:
    folder = published("BertForMaskedLM")
    edit_config(folder, rotary_frobnication=3, novelty=None, harmless_list=[])
    fails(ConfigError, "rotary_frobnication", "ignore_config=['rotary_frobnication']", folder)
    load(folder, ignore_config=["rotary_frobnication"])
    edit_config(folder, rotary_frobnication=None, is_decoder=True)
    fails(ConfigError, "is_decoder", "", folder)
    edit_config(folder, is_decoder=False, hidden_act="softsign")
    fails(ConfigError, "softsign", "gelu", folder)
    edit_config(folder, hidden_act="gelu", model_type="mamba")
    fails(ConfigError, "'mamba' is not supported", "distilbert", folder)
    edit_config(folder, model_type=None)
    assert load(folder).head == "masked-lm", "model_type by the tensors"
    edit_config(folder, model_type="bert", num_attention_heads=5)
    fails(ConfigError, "not a multiple", "", folder)


def test_a_head_that_the_architecture_lacks(published: Any) -> None:
    fails(
        ConfigError,
        "no head 'causal-lm'",
        "masked-lm",
        published("BertForMaskedLM"),
        head="causal-lm",
    )


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    models.save(tmp_path, "BertForMaskedLM", "english", vocab_size=60)
    fails(
        CheckpointError,
        r"the tokenizer has 1\d\d ids, the model only 60",
        "another model",
        tmp_path,
    )
    models.save(tmp_path, "BertForMaskedLM", "english", vocab_size=len(models.ENGLISH) + 9)
    assert load(tmp_path).tokenizer.vocab_size == len(models.ENGLISH)  # type: ignore[union-attr]


def test_a_folder_without_tokenizer_files(masters: Any) -> None:
    for name in (
        "BertForMaskedLM",
        "GPT2LMHeadModel",
        "LlamaForCausalLM",
        "T5ForConditionalGeneration",
    ):
        assert load(masters(name, decoder_start_token_id=0)).tokenizer is None
    marian = masters("MarianMTModel", pad_token_id=49, decoder_start_token_id=49)
    assert load(marian).tokenizer is None


# ---- devices and memory ----


def test_too_large_for_the_memory(masters: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = masters("BertForMaskedLM")
    size = sum(t.numel() for t in load_file(folder / "model.safetensors").values())
    for dtype, width in (("auto", 4), ("stored", 4), ("float16", 2), ("float64", 8)):
        monkeypatch.setattr(devices, "free_bytes", lambda _, n=size * width - 1: n)
        with pytest.raises(ResourceError, match="GiB are free") as caught:
            load(folder, dtype=dtype, device="cpu")
        assert "quantised" in caught.value.advice
        monkeypatch.setattr(devices, "free_bytes", lambda _, n=size * width: n)
        load(folder, dtype=dtype, device="cpu")


def test_free_memory_is_read_where_the_system_tells_it() -> None:
    free = devices.free_bytes(torch.device("cpu"))
    assert 1 << 20 < free < 1 << 62


@pytest.mark.parametrize("name", ["tpu", "cuda:99", "gpu", "", "meta", "cpu:x"])
def test_unknown_devices(masters: Any, name: str) -> None:
    if name.startswith("cuda") and torch.cuda.device_count() > 99:
        pytest.skip("there are a hundred GPUs here")
    with pytest.raises(DeviceError, match="device"):
        load(masters("BertForMaskedLM"), device=name)


def test_auto_is_cuda_then_mps_then_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, mps, expected in ((1, 1, "cuda"), (0, 1, "mps"), (0, 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda c=cuda: bool(c))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda m=mps: bool(m))
        assert devices.pick_device("auto").type == expected


# ---- create ----

CREATED = [
    ("bert", "masked-lm"),
    ("roberta", "classification"),
    ("distilbert", "question-answering"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("t5", "conditional-generation"),
    ("marian", "conditional-generation"),
    ("vit", "image-classification"),
]


@pytest.mark.parametrize(("model_type", "head"), CREATED)
def test_create_is_seeded_and_leaves_the_generator_alone(model_type: str, head: str) -> None:
    raw = {"model_type": model_type, **models.SIZES[model_type]}
    raw |= {} if model_type == "vit" else BERT
    raw |= {"pad_token_id": 49, "decoder_start_token_id": 49} if model_type == "marian" else {}
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    one, same, other = create(raw, head, seed=4), create(raw, head, 4), create(raw, head, 5)
    assert torch.equal(torch.rand(3), expected)
    pairs = list(zip(one.model.parameters(), same.model.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b in pairs)
    assert all(bool(a.isfinite().all()) for a, _ in pairs)
    drawn = [
        not torch.equal(a, b)
        for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)
        if a.dim() > 1
    ]
    assert all(drawn)
    assert one.head == head
    assert (one.tokenizer, one.source.published) == (None, None)
    assert not one.model.training
    by_config = create(one.config, head, seed=4)
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.model.parameters(), by_config.model.parameters(), strict=True)
    )


def test_create_with_what_cannot_be() -> None:
    raw = {"model_type": "bert", **models.SIZES["bert"], **BERT}
    with pytest.raises(ConfigError, match="no head 'causal-lm'"):
        create(raw, "causal-lm")
    with pytest.raises(ConfigError, match="'mamba' is not supported"):
        create({"model_type": "mamba"}, "encoder")
    with pytest.raises(ConfigError, match="frobnicate"):
        create(raw | {"frobnicate": 1}, "encoder")
