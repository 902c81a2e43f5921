"""Loading a model never runs what came with it, never leaves its folder, never dies of a change."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_folders as hostile
import layout_files as files
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from layout_files import GGUF_LLAMA, META, as_stored, logits, published
from parity import timm_vit
from parity.harness import difference
from tasks import models as tiny

import chumoku
from chumoku.checkpoints import published as readers
from chumoku.checkpoints.assign import lazy
from chumoku.checkpoints.gguf import GGUFValue, read_gguf, write_gguf
from chumoku.errors import CheckpointError, ChumokuError, ConfigError

MANY = pytest.param(500, marks=pytest.mark.slow)


def write_good(root: Path) -> list[Path]:
    """Folders of several kinds that load; small enough that hundreds of copies cost nothing."""
    small: dict[str, Any] = {"num_hidden_layers": 1}
    made = [root / name for name in ("bert", "gpt2", "sentence", "llama", "vit")]
    tiny.save(made[0], "BertForMaskedLM", "english", **small)
    tiny.save(made[1], "GPT2LMHeadModel", "gpt2", n_layer=1)
    tiny.save(made[2], "BertModel", "english", **small)
    tiny.save(made[3], "LlamaForCausalLM", "gpt2", **small)
    tiny.save(made[4], "ViTForImageClassification", **small)
    processor = transformers.ViTImageProcessor(size={"height": 20, "width": 20})
    processor.save_pretrained(made[4])
    settings = made[3] / "tokenizer_config.json"
    raw = json.loads(settings.read_text("utf-8"))
    tiny.write_json(settings, raw | {"chat_template": "{{ messages[0]['content'] }}"})
    steps = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Dense", "Dense")]
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(steps)
    ]
    tiny.write_json(made[2] / "modules.json", modules)
    tiny.write_json(made[2] / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_dense(made[2] / "2_Dense")
    return made


def write_dense(folder: Path) -> None:
    activation = "torch.nn.modules.activation.Tanh"
    tiny.write_json(folder / "config.json", {"activation_function": activation})
    safetensors.torch.save_file({"linear.weight": torch.ones(3, 24)}, folder / "model.safetensors")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_good(tmp_path_factory.mktemp("good"))


# ---- A4: no code of a folder runs ----


def run(folders: list[Path], root: Path, *, control: bool = False) -> list[dict[str, Any]]:
    job = {"folders": [str(f) for f in folders], "root": str(root), "control": control}
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    start = f"import sys; sys.path[:] = {path!r}; import hostile_folders; hostile_folders.main()"
    child = subprocess.run(
        [sys.executable, "-I", "-c", start],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HF_HOME": str(root / "hf"), "CHUMOKU_CACHE": str(root / "cache")},
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return [json.loads(line) for line in child.stdout.splitlines()]


CODE_FILES = (".py", ".pth", "._pth", ".so", ".bin", ".pt", ".pkl")


@pytest.mark.parametrize("count", [60, MANY])
def test_no_code_of_a_folder_runs(count: int, good: list[Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folders = [tmp_path / f"m{seed}" for seed in range(count)]
    for seed, folder in enumerate(folders):
        hostile.plant(good[seed % len(good)], folder, canary, seed)
    reports = run(folders, tmp_path)
    assert len(reports) == count
    bad = [r for r in reports if r["events"]]
    assert not bad, json.dumps(bad, indent=1)[:2000]
    assert not canary.exists()
    known = {"ok", "CheckpointError", "ConfigError", "TokenizerError", "InputError"}
    odd = [r for r in reports if r["outcome"] not in known]
    assert not odd, odd[:5]
    loaded = sum(r["outcome"] == "ok" for r in reports)
    assert count // 4 < loaded < count, "both outcomes are to be seen"
    left = [p for p in (tmp_path / "saved").rglob("*") if p.suffix in CODE_FILES]
    assert not left, "code was copied with the model"


def test_the_control_is_heard(good: list[Path], tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    folder = tmp_path / "m"
    hostile.plant(good[0], folder, canary, 0)
    (folder / "modeling_evil.py").write_text(hostile.code(canary), "utf-8")
    (report,) = run([folder], tmp_path, control=True)
    assert any(event.startswith(("exec", "compile")) for event in report["events"])
    assert any("writing" in event for event in report["events"])
    assert canary.exists()


def test_only_pickles_means_the_limited_child(good: list[Path], tmp_path: Path) -> None:
    """The one process that loading may start is ours, and what it reads cannot act."""
    canary = tmp_path / "canary"
    folders = [tmp_path / "plain", tmp_path / "evil"]
    for folder in folders:
        shutil.copytree(good[1], folder)
        (folder / "model.safetensors").unlink()
    theirs = tiny.build("GPT2LMHeadModel", n_layer=1, **json_sizes(good[1]))
    torch.save(theirs.state_dict(), folders[0] / "pytorch_model.bin")
    torch.save({"w": hostile.Gadget(str(canary))}, folders[1] / "pytorch_model.bin")
    first, second = run(folders, tmp_path)
    assert (first["outcome"], second["outcome"]) == ("ok", "CheckpointError")
    assert first["events"] == second["events"] == []
    assert not canary.exists()
    torch.load(folders[1] / "pytorch_model.bin", weights_only=False)
    assert canary.exists(), "the control: this pickle does act where it may"


def json_sizes(folder: Path) -> dict[str, Any]:
    raw = json.loads((folder / "config.json").read_text("utf-8"))
    return {"vocab_size": raw["vocab_size"]}


def test_sudachi_cannot_be_told_to_load_a_library(tmp_path: Path) -> None:
    """A settings file of Sudachi may name shared libraries, so no folder may name such a file."""
    pytest.importorskip("sudachipy")
    size = tiny.japanese(tmp_path)
    tiny.save(tmp_path, "BertForMaskedLM", vocab_size=size, num_hidden_layers=1)
    settings = {
        "tokenizer_class": "BertJapaneseTokenizer",
        "word_tokenizer_type": "sudachi",
        "subword_tokenizer_type": "wordpiece",
    }
    tiny.write_json(tmp_path / "tokenizer_config.json", settings)
    chumoku.load(tmp_path)
    (tmp_path / "sudachi.json").write_text("{}", "utf-8")
    for name, value in (
        ("sudachi_config_path", str(tmp_path / "sudachi.json")),
        ("sudachi_resource_dir", str(tmp_path)),
        ("sudachi_dict_type", str(tmp_path / "evil.dic")),
    ):
        raw = settings | {"sudachi_kwargs": {name: value}}
        tiny.write_json(tmp_path / "tokenizer_config.json", raw)
        with pytest.raises(ConfigError, match=name):
            chumoku.load(tmp_path)


# ---- values of the wrong kind are one typed error, never a traceback ----

WRONG = (None, True, -1, 0, 2**70, 1.5, "", "text", [], [[]], {}, {"a": 1}, ["a", 3], "\ud800")


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_wrong_values_in_any_json_file(count: int, good: list[Path], tmp_path: Path) -> None:
    outcomes = []
    for seed in range(count):
        draw = random.Random(seed)
        folder = tmp_path / "m"
        shutil.copytree(draw.choice(good), folder)
        path = draw.choice(sorted(folder.rglob("*.json")))
        raw = json.loads(path.read_text("utf-8"))
        told = spoil(raw, draw)
        path.write_text(json.dumps(raw), "utf-8")
        try:
            chumoku.load(folder)
            outcomes.append("ok")
        except ChumokuError as error:
            outcomes.append(type(error).__name__)
        except Exception as error:
            pytest.fail(f"seed {seed}, {path.relative_to(folder)}, {told}: {error!r}")
        shutil.rmtree(folder)
    assert set(outcomes) >= {"ok", "ConfigError", "CheckpointError", "TokenizerError"}


def spoil(raw: Any, draw: random.Random) -> str:
    """Put a wrong value somewhere near the top of a JSON value."""
    place, path = raw, ""
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return f"{path}: nothing to change"
        key = draw.choice(keys[:40])
        inner = place[key]
        if isinstance(inner, dict | list) and inner and draw.random() < 0.6:
            place, path = inner, f"{path}/{key}"
            continue
        place[key] = draw.choice(WRONG)
        return f"{path}/{key} = {place[key]!r}"


METADATA = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": [*"abcdefgh", *(f"[{n}]" for n in range(32))],
    "tokenizer.ggml.token_type": [1] * 8 + [3] * 32,
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.eos_token_id": 11,
    "tokenizer.ggml.eot_token_id": 12,
    "tokenizer.ggml.add_bos_token": False,
    "llama.rope.scaling.type": "linear",
    "llama.rope.scaling.factor": 2.0,
    "llama.rope.scaling.original_context_length": 32,
}
KINDS = (
    *(GGUFValue("u32", n) for n in (0, 1, 7, 2**32 - 1)),
    *(GGUFValue("i32", -1), GGUFValue("u64", 2**63), GGUFValue("bool", True)),
    *(GGUFValue("f32", float("nan")), GGUFValue("f64", 1e300), GGUFValue("f32", 0.5)),
    *(GGUFValue("str", ""), GGUFValue("str", "yarn"), GGUFValue("array", [], "str")),
    *(GGUFValue("array", ["x", "x"], "str"), GGUFValue("array", [1.5], "f32")),
    GGUFValue("array", [GGUFValue("array", [1], "u8")], "array"),
)


def test_wrong_values_in_gguf_metadata(tmp_path: Path) -> None:
    theirs = files.llama(1, num_hidden_layers=1)
    stored = as_stored(published(theirs, GGUF_LLAMA), "F32")
    stored["rope_freqs.weight"] = (np.linspace(1, 2, 8, dtype=np.float32), "F32")
    metadata = {**METADATA, "tokenizer.ggml.tokens": METADATA["tokenizer.ggml.tokens"]}
    metadata["tokenizer.ggml.merges"] = ["a b"]
    metadata["tokenizer.ggml.tokens"][20] = "ab"
    files.write_gguf(tmp_path / "m.gguf", theirs, stored, metadata=metadata)
    file = read_gguf(tmp_path / "m.gguf")
    chumoku.load(tmp_path / "m.gguf")
    outcomes: list[str] = []
    for key in file.values:
        for value in (*KINDS, None):
            values = {k: v for k, v in file.values.items() if k != key or value is not None}
            if value is not None:
                values[key] = value
            write_gguf(tmp_path / "n.gguf", values, file.tensors.values())
            try:
                chumoku.load(tmp_path / "n.gguf")
                outcomes.append("ok")
            except ChumokuError as error:
                outcomes.append(type(error).__name__)
            except Exception as error:
                pytest.fail(f"{key} = {value}: {error!r}")
    assert set(outcomes) >= {"ok", "ConfigError", "CheckpointError", "TokenizerError"}


@pytest.mark.parametrize("layout", ["meta", "timm"])
def test_wrong_values_in_other_configs(
    layout: str, good: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params: dict[str, Any]
    if layout == "meta":
        theirs = files.llama(1, intermediate_size=192)
        params = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "norm_eps": 1e-5}
        params |= {"multiple_of": 32, "rope_theta": 1e4, "use_scaled_rope": True}
        params |= {"ffn_dim_multiplier": 1.0}
        tensors = {n: lazy(n, torch.from_numpy(a)) for n, a in published(theirs, META).items()}
        monkeypatch.setattr(readers, "read_meta_folder", lambda path: (dict(params), tensors))
    else:
        arguments = {"img_size": 24, "embed_dim": 48, "depth": 2, "num_heads": 3, "patch_size": 8}
        params = {"architecture": "vit_tiny_patch8_24", "model_args": arguments}
        params |= {"pretrained_cfg": {"label_names": ["a"]}, "global_pool": "token"}
        net = timm_vit.models()[0](num_classes=5, **arguments)
        safetensors.torch.save_file(net.state_dict(), tmp_path / "model.safetensors")
    name = tmp_path / ("params.json" if layout == "meta" else "config.json")
    tiny.write_json(name, params)
    chumoku.load(tmp_path)
    whole, outcomes = dict(params), []
    for seed in range(150):
        params = json.loads(json.dumps(whole))
        told = spoil(params, random.Random(seed))
        name.write_text(json.dumps(params), "utf-8")
        try:
            chumoku.load(tmp_path)
            outcomes.append("ok")
        except ChumokuError:
            outcomes.append("refused")
        except Exception as error:
            pytest.fail(f"seed {seed}, {told}: {error!r}")
    assert set(outcomes) == {"ok", "refused"}


# ---- A3: nothing leads out of the folder ----

READ = (
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    *("special_tokens_map.json", "generation_config.json", "chat_template.jinja", "vocab.txt"),
    *("1_Pooling", "1_Pooling/config.json", "modules.json", "2_Dense/model.safetensors"),
    *("config_sentence_transformers.json", "added_tokens.json", "tokenizer.model"),
)


@pytest.mark.parametrize("name", READ)
def test_a_link_out_of_the_folder_is_refused(name: str, good: list[Path], tmp_path: Path) -> None:
    folder, outside = tmp_path / "m", tmp_path / "outside"
    shutil.copytree(good[2], folder)
    outside.mkdir()
    target = outside / Path(name).name
    if (folder / name).exists():
        shutil.move(folder / name, target)
    else:
        target.write_text("{}", "utf-8")
    (folder / name).symlink_to(target)
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        chumoku.load(folder)
    (folder / name).unlink()
    shutil.move(target, (folder / name).with_name(f"kept{target.suffix}"))
    (folder / name).symlink_to(f"kept{target.suffix}")
    if (folder / name).stat().st_size > 2:
        chumoku.load(folder)  # a link inside the folder is as good as a file


STEPS_OUT = (
    *("..", "../outside", "/etc", "1_Pooling/../../outside", "a\\..\\..\\b", "C:\\x", "//host/x"),
    *("con", "1_Pooling/", "./1_Pooling", "a\0b", "x" * 300, "~"),
)


@pytest.mark.parametrize("path", STEPS_OUT)
@pytest.mark.parametrize("kind", ["Transformer", "Pooling", "Dense"])
def test_a_step_out_of_the_folder_is_refused(
    path: str, kind: str, good: list[Path], tmp_path: Path
) -> None:
    shutil.copytree(good[2], tmp_path / "m")
    shutil.copytree(good[2], tmp_path / "outside")
    steps = json.loads((tmp_path / "m" / "modules.json").read_text("utf-8"))
    for step in steps:
        if step["type"].endswith(kind):
            step["path"] = path
    tiny.write_json(tmp_path / "m" / "modules.json", steps)
    with pytest.raises((CheckpointError, ConfigError)):
        chumoku.load(tmp_path / "m")


def test_saving_copies_nothing_that_a_link_brings_in(good: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(good[2], folder)
    (tmp_path / "secret").write_text("secret", "utf-8")
    loaded = chumoku.load(folder)
    (folder / "README.md").symlink_to(tmp_path / "secret")  # after loading
    (folder / "1_Pooling" / "README.md").symlink_to(tmp_path / "secret")
    (folder / "1_Pooling" / "evil.py").write_text("1", "utf-8")
    for name in ("README.md", "1_Pooling/README.md"):
        with pytest.raises(CheckpointError, match="leads out"):
            chumoku.save(loaded, tmp_path / "saved")
        (folder / name).unlink()
    chumoku.save(loaded, tmp_path / "saved")
    texts = [p.read_bytes() for p in (tmp_path / "saved").rglob("*") if p.is_file()]
    assert b"secret" not in texts
    assert not list((tmp_path / "saved").rglob("*.py"))
    assert chumoku.load(tmp_path / "saved").sentence == read_again(loaded)


def read_again(loaded: Any) -> Any:
    """Settings without the lazy tensors, which differ by where they lie."""
    return Same(loaded.sentence)


class Same:
    def __init__(self, sentence: Any) -> None:
        self.sentence = sentence

    def __eq__(self, other: object) -> bool:
        a, b = self.sentence, other
        same = all(getattr(a, n) == getattr(b, n) for n in ("pooling", "normalize", "prompts"))
        pairs = zip(a.dense, b.dense, strict=True)  # type: ignore[attr-defined]
        return same and all(x.weight.read() == y.weight.read() for x, y in pairs)

    __hash__ = None  # type: ignore[assignment]


# ---- A10: a file that changes later does no harm ----


def changes(path: Path, draw: random.Random) -> None:
    """Truncate, overwrite, replace or remove a file that was loaded."""
    size = path.stat().st_size if path.exists() else 100
    kind = draw.randrange(4)
    if kind == 0 and path.exists():
        os.truncate(path, draw.choice([0, size // 2, max(size - 1, 0)]))
    elif kind == 1:
        path.write_bytes(draw.randbytes(size))
    elif kind == 2:
        (path.parent / "new").write_bytes(bytes(size))
        (path.parent / "new").replace(path)
    else:
        path.unlink(missing_ok=True)


VICTIM = """
import json, random, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
import chumoku, test_hostile_folders as t
folder, seed = Path(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed)
settings = {"max_new_tokens": 12, "ignore_eos": True}
for round in range(int(sys.argv[4])):
    t.restore(folder, round)
    path = t.weights(folder)
    dtype = draw.choice(["auto", "stored", "float32"])
    loaded = chumoku.load(path if path.suffix == ".gguf" else folder, dtype=dtype)
    expected = t.answers(loaded)
    seen = []
    for ids in t.steps(loaded):
        t.changes(path, draw)
        seen.append(ids)
    assert seen == expected, (round, seen, expected)
    try:
        chumoku.save(loaded, folder / "saved")
    except chumoku.ChumokuError as error:
        assert "changed" in str(error) or "exist" in str(error), error
print("alive")
"""


def restore(folder: Path, number: int) -> None:
    """Write the model anew: every third time as safetensors, else as GGUF."""
    for path in folder.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    theirs = files.llama(number, num_hidden_layers=1)
    if number % 3 == 0:
        theirs.save_pretrained(folder)
    else:
        storage = ("F32", "Q8_0")[number % 3 - 1]
        stored = as_stored(published(theirs, GGUF_LLAMA), storage)
        files.write_gguf(folder / "m.gguf", theirs, stored)


def weights(folder: Path) -> Path:
    return next(p for p in folder.iterdir() if p.suffix in (".safetensors", ".gguf"))


def steps(loaded: Any) -> Any:
    """Greedy ids one by one."""
    ids = [3, 5, 8]
    for _ in range(6):
        ids.append(int(logits(loaded.model, torch.tensor([ids]))[0, -1].argmax()))
        yield ids[-1]


def answers(loaded: Any) -> list[int]:
    return list(steps(loaded))


@pytest.mark.parametrize("count", [15, pytest.param(50, marks=pytest.mark.slow)])
def test_files_that_change_while_a_model_answers(count: int, tmp_path: Path) -> None:
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    folder = tmp_path / "m"
    folder.mkdir()
    child = subprocess.run(
        [sys.executable, "-c", VICTIM, json.dumps(path), str(folder), "1", str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == 0, f"{child.returncode}: {child.stderr[-2000:]}"
    assert child.stdout.strip().endswith("alive")


def test_a_mapping_would_have_died(tmp_path: Path) -> None:
    """The control: the same truncation under a memory map ends the process by a signal."""
    (tmp_path / "f").write_bytes(bytes(100_000))
    code = (
        "import mmap, os; f = open('f', 'rb')"
        "; m = mmap.mmap(f.fileno(), 0, access=1); os.truncate('f', 0); print(m[50_000])"
    )
    child = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=False)
    assert child.returncode < 0


def test_a_model_in_memory_is_its_own(tmp_path: Path) -> None:
    theirs = files.llama(3)
    path = tmp_path / "m.gguf"
    files.write_gguf(path, theirs, as_stored(published(theirs, GGUF_LLAMA), "Q8_0"))
    loaded = chumoku.load(path)
    before = logits(loaded.model)
    with path.open("r+b") as stream:
        stream.seek(path.stat().st_size // 2)
        stream.write(b"\xff" * (path.stat().st_size // 2))
    assert torch.equal(logits(loaded.model), before)
    assert difference(logits(chumoku.load(path).model), before) > 0
