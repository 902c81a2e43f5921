"""PEFT's files both ways: every architecture, fused matrices, heads, and what must be refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from adapters.peft_pairs import Pair, pair, quiet, reloaded, run_theirs, saved, wrapped
from adapters.tiny import bits, everyday, run, stir
from parity.harness import difference
from safetensors.torch import load_file, save_file

from chumoku.adapters.apply import add_adapter, fuse, merge, remove, set_active, unmerge
from chumoku.adapters.layers import LoRASettings
from chumoku.adapters.peft_files import load_adapter, save_adapter
from chumoku.adapters.peft_names import backwards, ends
from chumoku.adapters.registry import adapted_layers, adapters_of
from chumoku.errors import CheckpointError, ChumokuError, ConfigError, InputError
from chumoku.loading import load
from chumoku.saving import save

LIMIT = 1e-5
BIG = 1e-3

SAMPLE = [
    ("bert", "classification"),
    ("roberta", "classification"),
    ("distilbert", "classification"),
    ("gpt2", "causal-lm"),
    ("llama", "causal-lm"),
    ("t5", "conditional-generation"),
    ("marian", "conditional-generation"),
    ("vit", "image-classification"),
    ("deit", "distilled-classification"),
]
OTHERS = [
    ("bert", "encoder"),
    ("bert", "masked-lm"),
    ("bert", "pre-training"),
    ("bert", "question-answering"),
    ("bert", "multiple-choice"),
    ("roberta", "masked-lm"),
    ("distilbert", "masked-lm"),
    ("gpt2", "classification"),
    ("gpt2", "token-classification"),
    ("llama", "classification"),
    ("llama", "question-answering"),
    ("t5", "classification"),
    ("t5", "token-classification"),
    ("t5", "encoder"),
    ("marian", "encoder-decoder"),
    ("vit", "encoder"),
]
HEADS = {
    "classification": ["classifier", "score", "classification_head", "pre_classifier"],
    "image-classification": ["classifier"],
    "distilled-classification": ["cls_classifier", "distillation_classifier"],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
}
EACH = everyday(
    [(*case, variant) for case in SAMPLE for variant in VARIANTS],
    lambda case: case[2] == "lora" or case[0] in ("bert", "gpt2", "vit"),
)
DAILY = {("bert", "masked-lm"), ("distilbert", "masked-lm"), ("gpt2", "classification")}
DAILY |= {("llama", "question-answering"), ("t5", "classification"), ("vit", "encoder")}


def agrees(of: Pair, theirs: Any) -> None:
    expected = run_theirs(theirs, of.kind, of.head)
    gap, size = difference(run(of.ours), expected), max(float(expected.detach().abs().max()), 1.0)
    assert gap <= LIMIT * size, f"{of.kind} {of.head}: {gap:.3g} of {size:.3g}"


# ---- theirs, read by us ----


@pytest.mark.parametrize(("kind", "head", "variant"), EACH)
def test_reads_what_peft_writes(kind: str, head: str, variant: str, tmp_path: Path) -> None:
    both = pair(kind, head, tmp_path / "base")
    before = bits(both.ours)
    base = run(both.ours)
    heads = [m for m in HEADS.get(head, []) if m in dict(both.theirs.named_modules())]
    theirs = wrapped(both, modules_to_save=heads or None, **VARIANTS[variant])
    settings = load_adapter(*both.model, saved(theirs, tmp_path / "a"))
    agrees(both, theirs)
    assert difference(run(both.ours), base) > BIG
    assert (settings.rank, settings.alpha) == (3, 7.0)
    assert settings.dora == (variant == "dora")
    assert settings.scaling == ("rslora" if variant == "rslora" else "lora")
    # The same adapter, written by us: the same tensors under the same keys.
    save_adapter(*both.model, tmp_path / "b")
    ours, other = (load_file(tmp_path / f / "adapter_model.safetensors") for f in "ba")
    assert ours.keys() == other.keys()
    assert all(torch.equal(ours[key], other[key]) for key in other)
    merge(both.ours)
    agrees(both, theirs)
    unmerge(both.ours)
    remove(both.ours, "default")
    assert all(torch.equal(v, before[n]) for n, v in both.ours.state_dict().items())


@pytest.mark.parametrize(
    ("kind", "head", "config"),
    [
        ("bert", "classification", {"target_modules": "all-linear", "task_type": "SEQ_CLS"}),
        ("bert", "classification", {"bias": "all", "task_type": "SEQ_CLS"}),
        ("bert", "classification", {"bias": "lora_only", "modules_to_save": ["pooler"]}),
        ("bert", "masked-lm", {"modules_to_save": ["cls"]}),
        ("gpt2", "causal-lm", {"target_modules": "all-linear", "use_dora": True}),
        ("gpt2", "causal-lm", {"target_modules": ["c_attn", "wte"], "bias": "lora_only"}),
        ("gpt2", "causal-lm", {"target_modules": ["c_attn", "wte"], "use_dora": True}),
        ("gpt2", "causal-lm", {"target_modules": ["lm_head"]}),
        ("llama", "causal-lm", {"target_modules": "all-linear"}),
        ("llama", "causal-lm", {"modules_to_save": ["embed_tokens", "lm_head"]}),
        ("llama", "causal-lm", {"target_modules": ["embed_tokens", "q_proj"]}),
        ("t5", "conditional-generation", {"target_modules": "all-linear", "bias": "all"}),
        ("vit", "image-classification", {"target_modules": ["projection", "fc1", "o_proj"]}),
        ("vit", "image-classification", {"target_modules": ["projection"], "use_dora": True}),
        ("vit", "image-classification", {"target_modules": "all-linear"}),
        ("vit", "image-classification", {"bias": "all", "modules_to_save": ["classifier"]}),
        (
            "llama",
            "causal-lm",
            {
                "target_modules": "all-linear",
                "rank_pattern": {"layers.1.self_attn.q_proj": 2, "down_proj": 5},
                "alpha_pattern": {"^model.layers.0.self_attn.v_proj": 20, "down_proj": 3},
                "use_rslora": True,
            },
        ),
    ],
)
def test_reads_other_settings(kind: str, head: str, config: Any, tmp_path: Path) -> None:
    untied = {"tie_word_embeddings": False} if "cls" in config.get("modules_to_save", []) else {}
    both = pair(kind, head, tmp_path / "base", **untied)
    theirs = wrapped(both, **config)
    load_adapter(*both.model, saved(theirs, tmp_path / "a"))
    agrees(both, theirs)
    save_adapter(*both.model, tmp_path / "b")
    again, complaints = reloaded(both, tmp_path / "b")
    assert not complaints
    agrees(both, again)


def test_reads_a_pickle(tmp_path: Path) -> None:
    both = pair("bert", "classification", tmp_path / "base")
    theirs = wrapped(both, task_type="SEQ_CLS")
    with quiet():
        theirs.save_pretrained(tmp_path / "a", safe_serialization=False)
    assert (tmp_path / "a" / "adapter_model.bin").is_file()
    load_adapter(*both.model, tmp_path / "a")
    agrees(both, theirs)


# ---- ours, read by peft ----


@pytest.mark.parametrize(("kind", "head", "variant"), EACH)
def test_peft_reads_what_we_write(kind: str, head: str, variant: str, tmp_path: Path) -> None:
    both = pair(kind, head, tmp_path / "base")
    scaling, dora = ("rslora" if variant == "rslora" else "lora"), variant == "dora"
    settings = LoRASettings(rank=3, alpha=7.0, scaling=scaling, dora=dora)
    write_and_read(both, settings, tmp_path / "a")


@pytest.mark.parametrize(("kind", "head"), everyday(OTHERS, lambda case: case in DAILY))
def test_peft_reads_other_heads(kind: str, head: str, tmp_path: Path) -> None:
    both = pair(kind, head, tmp_path / "base")
    settings = LoRASettings(rank=2, targets=("all-linear",), train_bias="all")
    write_and_read(both, settings, tmp_path / "a")


@pytest.mark.parametrize(
    ("kind", "head", "settings"),
    [
        ("gpt2", "causal-lm", LoRASettings(targets=("attention.value",), dora=True)),
        ("gpt2", "causal-lm", LoRASettings(targets=("attention.query", "embeddings.token"))),
        ("gpt2", "causal-lm", LoRASettings(train_bias="lora", targets=("attention.key",))),
        (
            "gpt2",
            "causal-lm",
            LoRASettings(
                targets=("all-linear",),
                ranks=(("attention.key", 2), ("blocks.1.*", 5)),
                alphas=(("attention.value", 3.0), ("blocks.0.feedforward.up", 9.0)),
                scaling="rslora",
            ),
        ),
        ("bert", "classification", LoRASettings(also_train=("pooler", "embeddings"))),
        ("bert", "classification", LoRASettings(targets=("attention.output",), train_bias="lora")),
        ("bert", "encoder", LoRASettings(also_train=("pooler", "blocks.1.feedforward_norm"))),
        ("vit", "image-classification", LoRASettings(also_train=("embeddings",))),
        ("vit", "image-classification", LoRASettings(targets=("embeddings.patch",), dora=True)),
        ("distilbert", "classification", LoRASettings(targets=("all-linear",), dora=True)),
    ],
)
def test_peft_reads_other_settings(
    kind: str, head: str, settings: LoRASettings, tmp_path: Path
) -> None:
    write_and_read(pair(kind, head, tmp_path / "base"), settings, tmp_path / "a")


def write_and_read(both: Pair, settings: LoRASettings, folder: Path) -> None:
    """Random adapter and head, written; the same in PEFT, and in a fresh model of ours."""
    base = run(both.ours)
    add_adapter(both.ours, settings)
    stir(both.ours)
    random = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in both.ours.named_parameters():
            if parameter.requires_grad and ".lora_" not in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    expected = run(both.ours)
    assert difference(expected, base) > BIG
    save_adapter(*both.model, folder, base="some/base")
    theirs, complaints = reloaded(both, folder)
    assert not complaints
    agrees(both, theirs)
    remove(both.ours, "default")
    assert torch.equal(run(both.ours), base)
    again = load_adapter(*both.model, folder)
    assert difference(run(both.ours), expected) <= LIMIT
    assert (again.scaling, again.dora) == (settings.scaling, settings.dora)


def test_a_fused_matrix_is_written_exactly(tmp_path: Path) -> None:
    """query and value of c_attn: the As stacked, B in blocks, the scale kept, key untouched."""
    both = pair("gpt2", "causal-lm", tmp_path / "base")
    add_adapter(both.ours, LoRASettings(rank=2, alpha=5.0))
    stir(both.ours)
    save_adapter(*both.model, tmp_path / "a")
    raw = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert (raw["r"], raw["lora_alpha"], raw["fan_in_fan_out"]) == (4, 10, True)
    assert raw["target_modules"] == ["c_attn"]
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    at = "base_model.model.transformer.h.1.attn.c_attn.lora_"
    A, B = tensors[f"{at}A.weight"], tensors[f"{at}B.weight"]
    product = 10 / 4 * (B @ A)
    for place, name in enumerate(("query", "key", "value")):
        layer = both.ours.get_submodule(f"blocks.1.attention.{name}")
        rows = product[32 * place : 32 * (place + 1)]
        if name == "key":
            assert not rows.any()
        else:
            own = 5 / 2 * (layer.lora_B["default"] @ layer.lora_A["default"])
            assert torch.allclose(rows, own, atol=1e-6)


def test_several_adapters(tmp_path: Path) -> None:
    both = pair("bert", "classification", tmp_path / "base")
    results = {}
    for name, settings in (
        ("a", LoRASettings(rank=2)),
        ("b", LoRASettings(rank=3, dora=True, targets=("feedforward.up",))),
    ):
        add_adapter(both.ours, settings, name)
        stir(both.ours, len(results), lambda n, name=name: n.endswith(f".{name}"))
        with torch.no_grad():
            both.ours.head.output.bias.add_(1.0 + len(results))
        results[name] = run(both.ours)
    for name in results:  # one of them is not active
        save_adapter(*both.model, tmp_path / name, name)
    fresh = pair("bert", "classification", tmp_path / "base")
    for name in results:
        load_adapter(*fresh.model, tmp_path / name, name)
    for name, expected in results.items():
        set_active(fresh.ours, name)
        assert torch.equal(run(fresh.ours), expected)
        theirs, complaints = reloaded(both, tmp_path / name)
        assert not complaints
        agrees(fresh, theirs)
    assert difference(results["a"], results["b"]) > BIG


# ---- negative controls ----


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
def test_wrong_adapters_are_noticed(kind: str, tmp_path: Path) -> None:
    head = "encoder" if kind == "bert" else "causal-lm"
    both = pair(
        kind, head, tmp_path / "base", **({"num_key_value_heads": 2} if kind == "llama" else {})
    )
    theirs = wrapped(both, use_rslora=True)
    load_adapter(*both.model, saved(theirs, tmp_path / "a"))
    agrees(both, theirs)
    expected = run_theirs(theirs, kind, head)
    layers = adapted_layers(both.ours)
    first = next(name for name in layers if name.endswith(".query"))
    query, value = layers[first], layers[first.replace("query", "value")]

    def gap() -> float:
        return difference(run(both.ours), expected)

    part = query.parts["default"]
    for layer in layers.values():
        layer.parts["default"] = type(part)(part.rank, part.alpha, "lora")  # alpha / r, not sqrt
    assert gap() > BIG
    for layer in layers.values():
        layer.parts["default"] = part
    assert gap() <= LIMIT
    for leaf in ("lora_A", "lora_B"):
        one, other = getattr(query, leaf)["default"], getattr(value, leaf)["default"]
        one.data, other.data = other.data, one.data
    assert gap() > BIG
    for leaf in ("lora_A", "lora_B"):
        one, other = getattr(query, leaf)["default"], getattr(value, leaf)["default"]
        one.data, other.data = other.data, one.data
    assert gap() <= LIMIT
    A, B = query.lora_A["default"], query.lora_B["default"]  # square: the swap fits
    A.data, B.data = B.data.T.contiguous(), A.data.T.contiguous()
    assert gap() > BIG


# ---- refusals ----


@pytest.fixture
def written(tmp_path: Path) -> tuple[Pair, Path]:
    both = pair("bert", "classification", tmp_path / "base")
    theirs = wrapped(both, task_type="SEQ_CLS")
    return both, saved(theirs, tmp_path / "a")


def change(folder: Path, **values: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "values",
    [
        {"peft_type": "IA3"},
        {"init_lora_weights": "pissa"},
        {"use_qalora": True},
        {"trainable_token_indices": [1, 2]},
        {"target_parameters": ["x"]},
        {"lora_bias": True},
        {"something_new": 3},
        {"r": "8"},
        {"r": 0},
        {"lora_alpha": True},
        {"lora_dropout": 1.5},
        {"bias": "some"},
        {"use_dora": "yes"},
        {"rank_pattern": {"(a+)+b": 3}},
        {"rank_pattern": {"(": 3}},
        {"alpha_pattern": [1]},
        {"rank_pattern": {"query": 2}},
        {"use_dora": True},
    ],
)
def test_a_config_that_matters_is_refused(
    written: tuple[Pair, Path], values: dict[str, Any]
) -> None:
    both, folder = written
    before = bits(both.ours)
    change(folder, **values)
    with pytest.raises((ConfigError, CheckpointError)):
        load_adapter(*both.model, folder)
    assert adapters_of(both.ours) is None
    assert both.ours.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    ("change_tensors", "message"),
    [
        (lambda t: {k.replace("base_model.model.", ""): v for k, v in t.items()}, "does not begin"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "config says"),
        (lambda t: {k: v for k, v in t.items() if "lora_" not in k}, "no adapter"),
        (lambda t: t | {"base_model.model.x.lora_C.weight": torch.ones(1)}, "not supported"),
        (lambda t: t | {"base_model.model.lm_head.weight": torch.ones(1, 1)}, "no place for"),
        (lambda t: t | {"base_model.model.qa_outputs.bias": torch.ones(2)}, "no place for"),
        (lambda t: {k.replace(".query.", ".q."): v for k, v in t.items()}, "has no module"),
        (lambda t: {k.replace("layer.1.", "layer.7."): v for k, v in t.items()}, "has no module"),
        (lambda t: {k: v[:, :-1] if "lora_A" in k else v for k, v in t.items()}, "another size"),
        (lambda t: {k: v[:-1] if "lora_B" in k else v for k, v in t.items()}, "another size"),
        (lambda t: {k: v[:-1] if "classifier" in k else v for k, v in t.items()}, "has shape"),
    ],
)
def test_tensors_without_a_place_are_refused(
    written: tuple[Pair, Path], change_tensors: Any, message: str
) -> None:
    both, folder = written
    before = bits(both.ours)
    path = folder / "adapter_model.safetensors"
    tensors = {k: v.clone().contiguous() for k, v in change_tensors(load_file(path)).items()}
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=message):
        load_adapter(*both.model, folder)
    assert adapters_of(both.ours) is None
    assert both.ours.state_dict().keys() == before.keys()


def test_files_that_are_not_there(written: tuple[Pair, Path], tmp_path: Path) -> None:
    both, folder = written
    with pytest.raises(ChumokuError):
        load_adapter(*both.model, tmp_path / "nowhere")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="neither"):
        load_adapter(*both.model, folder)
    with pytest.raises(InputError, match="no adapter has this name"):
        save_adapter(*both.model, tmp_path / "x", "default")


def test_the_wrong_base_is_noticed(tmp_path: Path) -> None:
    """Embeddings that PEFT repeats beside an adapter on them must be this base's."""
    both = pair("llama", "causal-lm", tmp_path / "base")
    theirs = wrapped(both, target_modules=["embed_tokens"])
    folder = saved(theirs, tmp_path / "a")
    other = pair("llama", "causal-lm", tmp_path / "other", seed=5)
    with pytest.raises(CheckpointError, match="other values"):
        load_adapter(*other.model, folder)
    load_adapter(*both.model, folder)
    agrees(both, theirs)


def test_a_module_that_peft_cannot_name(tmp_path: Path) -> None:
    both = pair("vit", "encoder", tmp_path / "base")
    add_adapter(both.ours, LoRASettings(also_train=("embeddings",)))
    with pytest.raises(CheckpointError, match="cannot name this module"):
        save_adapter(*both.model, tmp_path / "a")


# ---- names ----


def test_an_alias_read_backwards() -> None:
    old, new = backwards(r"(^|\.)layers\.(\d+)\.mlp\.fc1\.", r"\1layer.\2.dense.") or ("", "")
    assert re.sub(old, new, "vit.layer.11.dense.weight") == "vit.layers.11.mlp.fc1.weight"
    assert re.sub(old, new, "vit.slayer.1.dense.weight") == "vit.slayer.1.dense.weight"
    assert backwards(r"LayerNorm\.gamma$", "LayerNorm.weight") is None
    assert backwards(r"^model\.", "") is None


def test_the_shortest_ends() -> None:
    every = ["a.0.q", "a.0.out.dense", "a.0.in.dense", "a.1.q", "a.1.out.dense", "a.1.in.dense"]
    assert ends(["a.0.q", "a.1.q"], every) == ["q"]
    assert ends(["a.0.q"], every) == ["0.q"]
    assert ends(["a.0.out.dense", "a.1.out.dense"], every) == ["out.dense"]
    assert ends(["a.0.in.dense", "a.0.out.dense"], every) == ["0.in.dense", "0.out.dense"]


def test_a_fused_model_is_saved_as_any_other(tmp_path: Path) -> None:
    """Adapter and whole model of one training, as the runner writes them."""
    both = pair("bert", "classification", tmp_path / "base")
    loaded = load(str(tmp_path / "base"), dtype="float32", device="cpu")
    model = loaded.model.eval()
    add_adapter(model, LoRASettings(train_bias="all", also_train=("pooler",)))
    stir(model)
    with torch.no_grad():
        model.head.output.bias.add_(1.0)
    expected = run(model)
    save_adapter(model, loaded.config, "classification", "bert", tmp_path / "adapter")
    fuse(model)
    save(loaded, tmp_path / "whole")
    again = load(str(tmp_path / "whole"), dtype="float32", device="cpu").model.eval()
    assert difference(run(again), expected) <= LIMIT
    load_adapter(*both.model, tmp_path / "adapter")
    assert torch.equal(run(both.ours), expected)
    sizes = [
        (tmp_path / f / n).stat().st_size
        for f, n in (("adapter", "adapter_model.safetensors"), ("whole", "model.safetensors"))
    ]
    assert sizes[0] < sizes[1] / 2
