"""embed and similarity beside sentence-transformers on the same folders."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Dropout, LayerNorm, Pooling

import chumoku
from chumoku.errors import ConfigError, InputError
from chumoku.loading import load

TEXTS = [
    "The cat sat on the mat.",
    "paris",
    "John Smith lives in Paris, the capital of France, a big city!",
    "Zürich 猫 is not big",
    "the river " * 60,
]
MODES = ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
OURS = ["cls", "max", "mean", "mean_sqrt_len", "weighted_mean", "last"]
PROMPTS = {"query": "who is ", "document": "", "long": "the capital of france: "}


def dense(width: int, out: int, **options: Any) -> Any:
    """A Dense step with random biases, which would be small as created."""
    step = Dense(width, out, **options)
    with torch.no_grad():
        for tensor in step.parameters():
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(3)))
    return step


@pytest.fixture(scope="module")
def publish(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """publish(*steps, name=…, **options): the SentenceTransformer, and the folder it saved."""

    def make(
        *steps: Any, name: str = "BertModel", tokenizer: str = "english", **options: Any
    ) -> Any:
        first = Transformer(str(tiny(name, tokenizer)))
        model = SentenceTransformer(modules=[first, *steps], device="cpu", **options)
        folder = tmp_path_factory.mktemp("sentence")
        model.save(str(folder))
        return model, folder

    return make


def check(ours: Any, theirs: Any) -> None:
    assert ours.dtype == np.float32
    assert ours.shape == theirs.shape
    scale = max(1.0, float(np.abs(theirs).max()))
    assert float(np.abs(ours - theirs).max()) <= 1e-5 * scale


@pytest.mark.parametrize(("mode", "name"), list(zip(MODES, OURS, strict=True)))
def test_every_pooling(publish: Any, mode: str, name: str) -> None:
    model, folder = publish(Pooling(24, pooling_mode=mode))
    expected = model.encode(TEXTS)
    for batch_size in (1, 2, 32):
        check(chumoku.embed(TEXTS, folder, batch_size=batch_size), expected)
    check(chumoku.embed(TEXTS[2], folder), expected[2])
    check(
        chumoku.embed(TEXTS, folder, normalize=True), model.encode(TEXTS, normalize_embeddings=True)
    )
    _, other = publish(Pooling(24, pooling_mode="mean" if mode != "mean" else "max"))
    check(chumoku.embed(TEXTS, other, pooling=name), expected)
    with pytest.raises(AssertionError):
        check(chumoku.embed(TEXTS, other), expected)


@pytest.mark.parametrize("modes", [("max", "cls", "mean"), ("weightedmean", "lasttoken")])
def test_joined_poolings_keep_their_order(publish: Any, modes: Any) -> None:
    model, folder = publish(Pooling(24, pooling_mode=modes), Normalize())
    check(chumoku.embed(TEXTS, folder), model.encode(TEXTS))


def test_the_older_keys_of_a_pooling(publish: Any) -> None:
    """A folder of sentence-transformers 2: one flag a mode; joined in that release's order."""
    _, folder = publish(Pooling(24))
    old = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True}
    old |= {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    old |= {"pooling_mode_mean_sqrt_len_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(old))
    check(
        chumoku.embed(TEXTS, folder), SentenceTransformer(str(folder), device="cpu").encode(TEXTS)
    )


@pytest.mark.parametrize(
    "activation", [None, torch.nn.Tanh(), torch.nn.ReLU(), torch.nn.GELU(), torch.nn.Sigmoid()]
)
def test_dense_steps(publish: Any, activation: Any) -> None:
    steps = dense(24, 16, activation_function=activation), dense(16, 10, bias=False)
    model, folder = publish(Pooling(24), Dropout(0.1), *steps, Normalize())
    check(chumoku.embed(TEXTS, folder), model.encode(TEXTS))


@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("mode", MODES)
def test_prompts(publish: Any, include: bool, mode: str) -> None:
    pooling = Pooling(24, pooling_mode=mode, include_prompt=include)
    model, folder = publish(pooling, prompts=PROMPTS, default_prompt_name="long")
    texts = TEXTS[:4]
    check(chumoku.embed(texts, folder), model.encode(texts))
    for name in PROMPTS:
        check(chumoku.embed(texts, folder, prompt=name), model.encode(texts, prompt_name=name))
    check(chumoku.embed(texts, folder, prompt="he is: "), model.encode(texts, prompt="he is: "))
    if mode in ("mean", "max"):
        with pytest.raises(AssertionError):
            check(chumoku.embed(texts, folder), model.encode(texts, prompt_name="document"))


@pytest.mark.parametrize("normalize", [True, False])
def test_truncated_dimensions(publish: Any, normalize: bool) -> None:
    steps = (Normalize(),) if normalize else ()
    model, folder = publish(Pooling(24), *steps)
    for dimensions in (1, 7, 24):
        expected = model.encode(TEXTS, truncate_dim=dimensions, normalize_embeddings=normalize)
        check(chumoku.embed(TEXTS, folder, dimensions=dimensions), expected)


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("RobertaModel", "roberta"), ("DistilBertModel", "english"), ("GPT2Model", "gpt2")],
)
def test_other_architectures(publish: Any, name: str, tokenizer: str) -> None:
    model, folder = publish(Pooling(24, pooling_mode="mean"), name=name, tokenizer=tokenizer)
    texts = ["the cat", "an other man in the cat"]
    if tokenizer == "gpt2":  # which has no padding of its own
        model.tokenizer.pad_token = "<|endoftext|>"
    check(chumoku.embed(texts, folder), model.encode(texts))


def test_max_length_and_lower_case(publish: Any) -> None:
    model, folder = publish(Pooling(24))
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps({"max_seq_length": 9, "do_lower_case": True}))
    again = SentenceTransformer(str(folder), device="cpu")
    assert again.max_seq_length == 9
    check(chumoku.embed(TEXTS, folder), again.encode(TEXTS))
    with pytest.raises(AssertionError):
        check(chumoku.embed(TEXTS, folder), model.encode(TEXTS))


def test_a_folder_in_the_older_layout(tiny: Any, tmp_path: Path) -> None:
    """The Transformer in a subfolder of its own, `0_Transformer`."""
    import shutil

    shutil.copytree(tiny("BertModel"), tmp_path / "0_Transformer")
    (tmp_path / "1_Pooling").mkdir()
    config = {"word_embedding_dimension": 24, "pooling_mode_max_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    kinds = {"0_Transformer": "Transformer", "1_Pooling": "Pooling"}
    listing = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listing))
    expected = SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS)
    check(chumoku.embed(TEXTS, tmp_path), expected)
    again = chumoku.save(load(tmp_path, dtype="stored"), tmp_path / "copy")
    check(chumoku.embed(TEXTS, again), expected)


def test_similarity(publish: Any) -> None:
    model, folder = publish(Pooling(24))
    first, second = TEXTS[:3], [TEXTS[3], TEXTS[0], TEXTS[0]]
    a, b = model.encode(first), model.encode(second)
    check(chumoku.similarity(first, second, folder), model.similarity(a, b).numpy())
    check(chumoku.similarity(first, model=folder), model.similarity(a, a).numpy())
    one = chumoku.similarity(TEXTS[0], TEXTS[1], folder)
    assert one.shape == (1, 1)
    pipe = chumoku.pipeline("sentence-similarity", folder)
    check(pipe(first, second), model.similarity(a, b).numpy())


def test_saved_again_it_gives_the_same_vectors(publish: Any, tmp_path: Path) -> None:
    model, folder = publish(Pooling(24, pooling_mode="max"), dense(24, 8), Normalize())
    copy = chumoku.save(load(folder), tmp_path / "copy")
    check(SentenceTransformer(str(copy), device="cpu").encode(TEXTS), model.encode(TEXTS))


def test_bad_input(publish: Any, tiny: Any) -> None:
    folder = tiny("BertModel")
    with pytest.raises(InputError, match="unknown pooling"):
        chumoku.embed("cat", folder, pooling="median")
    with pytest.raises(InputError, match="dimensions"):
        chumoku.embed("cat", folder, dimensions=0)
    check(chumoku.embed("cat", folder), chumoku.embed("cat", folder, pooling="mean"))
    for steps, message in (
        ((Pooling(24), LayerNorm(24)), "LayerNorm"),
        ((Pooling(24), Normalize(), dense(24, 4)), "after Normalize"),
        ((Pooling(24), dense(24, 24, use_residual=True)), "residual"),
    ):
        _, saved = publish(*steps)
        with pytest.raises(ConfigError, match=message):
            load(saved)


@pytest.mark.parametrize("pooling", [("cls",), ("max", "mean"), ("mean", "cls")])
def test_changed_settings_are_saved_for_both(
    publish: Any, tmp_path: Path, pooling: tuple[str, ...]
) -> None:
    width = 24 * len(pooling)
    steps = dense(width, 16), dense(16, 10, bias=False, activation_function=torch.nn.ReLU())
    mode = [MODES[OURS.index(name)] for name in pooling[::-1]]
    _, folder = publish(Pooling(24, pooling_mode=mode), *steps, prompts=PROMPTS)
    loaded = load(folder)
    assert loaded.sentence is not None
    changed = replace(
        loaded.sentence,
        pooling=pooling,
        normalize=True,
        max_length=9,
        lower_case=True,
        include_prompt=False,
        default_prompt="query",
    )
    saved = chumoku.save(replace(loaded, sentence=changed), tmp_path / "saved")
    expected = chumoku.embed(TEXTS, replace(loaded, sentence=changed))
    check(chumoku.embed(TEXTS, saved), expected)
    again = SentenceTransformer(str(saved), device="cpu")
    check(expected, again.encode(TEXTS))
    check(chumoku.embed(TEXTS, saved, prompt="long"), again.encode(TEXTS, prompt_name="long"))
    assert float(np.abs(expected - chumoku.embed(TEXTS, folder)).max()) > 1e-2
