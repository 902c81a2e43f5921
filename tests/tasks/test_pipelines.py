"""pipeline(): the other tasks beside transformers' pipelines, names, arguments, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from PIL import Image
from tasks import models
from tasks.compare import same

import chumoku
from chumoku.errors import DeviceError, InputError
from chumoku.loading import load
from chumoku.tasks import common
from chumoku.tasks.pipelines import ALIASES

TEXTS = ["the cat", "in an other", "a"]


@pytest.mark.parametrize("name", ["GPT2LMHeadModel", "LlamaForCausalLM", "MistralForCausalLM"])
@pytest.mark.parametrize("full", [True, False])
def test_text_generation(tiny: Any, name: str, full: bool) -> None:
    folder = tiny(name, "gpt2", bos_token_id=0, eos_token_id=0)
    theirs = transformers.pipeline("text-generation", model=str(folder), device="cpu")
    ours = chumoku.pipeline("text-generation", folder)
    settings = {"max_new_tokens": 9, "return_full_text": full}
    # Their random model may write bytes that are no text; both show U+FFFD for those.
    expected = [theirs(text, do_sample=False, **settings) for text in TEXTS]
    for text, answer in zip(TEXTS, expected, strict=True):
        same(ours(text, **settings), answer)
    same(ours(TEXTS, **settings), expected)
    same(ours(TEXTS, batch_size=1, **settings), expected)
    same(
        ours(TEXTS, **settings, num_beams=3),
        theirs(TEXTS, do_sample=False, num_beams=3, **settings),
    )
    both = ours(TEXTS[0], **settings, num_beams=3, num_return_sequences=2)
    same(both, theirs(TEXTS[0], do_sample=False, num_beams=3, num_return_sequences=2, **settings))
    with pytest.raises(AssertionError):
        same(ours(TEXTS, max_new_tokens=9, return_full_text=not full), expected)


def test_a_conversation_is_continued(tiny: Any, tmp_path: Path) -> None:
    models.save(tmp_path, "LlamaForCausalLM", "gpt2", bos_token_id=0, eos_token_id=0)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings["chat_template"] = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    talk = [{"role": "user", "content": "the cat"}]
    theirs = transformers.pipeline("text-generation", model=str(tmp_path), device="cpu")
    ours = chumoku.pipeline("text-generation", tmp_path)
    same(ours(talk, max_new_tokens=8), theirs(talk, max_new_tokens=8, do_sample=False))


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [("BertModel", "english"), ("RobertaModel", "roberta"), ("GPT2Model", "gpt2")],
)
def test_feature_extraction(tiny: Any, name: str, tokenizer: str) -> None:
    folder = tiny(name, tokenizer)
    theirs = transformers.pipeline("feature-extraction", model=str(folder), device="cpu")
    ours = chumoku.pipeline("feature-extraction", folder)
    same(ours(TEXTS[0]), theirs(TEXTS[0]), 1e-5)
    same(ours(TEXTS), theirs(TEXTS), 1e-5)
    with pytest.raises(AssertionError):
        same(ours(TEXTS[1]), theirs(TEXTS[0]), 1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    found = []
    for number, (size, mode) in enumerate([((31, 20), "RGB"), ((20, 20), "RGBA"), ((9, 50), "L")]):
        bands = {"RGB": 3, "RGBA": 4, "L": 1}[mode]
        pixels = rng.integers(0, 256, (*size, bands), dtype=np.uint8)
        found.append(folder / f"{number}.png")
        Image.fromarray(pixels.squeeze(), mode=None).save(found[-1])
    return found


def vit(folder: Path, **config: Any) -> Path:
    models.save(folder, "ViTForImageClassification", **config)
    preparation = {
        **{"image_processor_type": "ViTImageProcessor", "do_resize": True, "resample": 2},
        **{"size": {"height": 20, "width": 20}, "do_normalize": True, "do_rescale": True},
        **{"rescale_factor": 1 / 255, "image_mean": [0.5, 0.4, 0.6], "image_std": [0.5, 0.3, 0.2]},
    }
    models.write_json(folder / "preprocessor_config.json", preparation)
    return folder


@pytest.mark.parametrize(
    "config",
    [
        {"num_labels": 7},
        {"id2label": {0: "cat", 1: "dog"}, "problem_type": "multi_label_classification"},
        {"num_labels": 1},
    ],
)
def test_image_classification(tmp_path: Path, pictures: list[Path], config: dict[str, Any]) -> None:
    folder = vit(tmp_path, **config)
    slow = transformers.ViTImageProcessor.from_pretrained(folder)
    theirs = transformers.pipeline(
        "image-classification", model=str(folder), image_processor=slow, device="cpu"
    )
    ours = chumoku.pipeline("image-classification", folder)
    for path in pictures:
        same(ours(str(path)), theirs(str(path)), 1e-3)  # theirs resizes with torchvision, if there
    pixels = np.asarray(Image.open(pictures[1]).convert("RGB"))  # of the right size already
    for image in (Image.fromarray(pixels), pixels):
        same(ours(image), theirs(Image.fromarray(pixels)))
    names = [str(p) for p in pictures]
    same(ours(names, top_k=2), [ours(name, top_k=2) for name in names])
    same(chumoku.classify_image(names, folder, batch_size=1), ours(names))
    flipped = Image.fromarray(pixels[::-1])
    with pytest.raises(AssertionError):
        same(ours(flipped), theirs(Image.fromarray(pixels)))


def test_images_that_are_none(tmp_path: Path, tiny: Any) -> None:
    folder = vit(tmp_path / "vit")
    (tmp_path / "text.png").write_text("not an image")
    for image in (tmp_path / "text.png", tmp_path / "absent.png", np.zeros((20, 20, 5)), "no"):
        with pytest.raises(InputError, match=r"image|file|array|picture"):
            chumoku.classify_image(image, folder)
    with pytest.raises(InputError, match="no image"):
        chumoku.classify_image([], folder)
    with pytest.raises(InputError, match="top_k"):
        chumoku.classify_image(np.zeros((20, 20, 3), np.uint8), folder, top_k=0)
    bare = tmp_path / "bare"
    models.save(bare, "ViTForImageClassification")
    with pytest.raises(InputError, match="how to prepare images"):
        chumoku.classify_image(np.zeros((20, 20, 3), np.uint8), bare)
    with pytest.raises(InputError, match="does not label images"):
        chumoku.classify_image(np.zeros((20, 20, 3), np.uint8), load(tiny("BertModel")))


def test_names(tiny: Any) -> None:
    with pytest.raises(InputError, match="unknown task 'translate-image'") as caught:
        chumoku.pipeline("translate-image")
    assert set(ALIASES) <= set(caught.value.advice.removeprefix("known: ").split(", "))
    folder = tiny("BertForMaskedLM")
    named = chumoku.pipeline("fill-mask", model=str(folder), device=-1, dtype="float32", top_k=2)
    assert len(named("the [MASK]")) == 2
    assert len(named("the [MASK]", top_k=3)) == 3
    with pytest.raises(DeviceError):
        chumoku.pipeline("fill-mask", folder, device=99)
    assert named("the [MASK]") == chumoku.fill_mask("the [MASK]", folder, top_k=2)


def test_a_folder_without_a_tokenizer(tiny: Any, tmp_path: Path) -> None:
    models.save(tmp_path, "BertForMaskedLM")
    loaded = load(tmp_path)
    assert loaded.tokenizer is None
    for call in (
        lambda: chumoku.fill_mask("the [MASK]", loaded),
        lambda: chumoku.perplexity("the cat", loaded),
        lambda: chumoku.embed("the cat", loaded),
        lambda: chumoku.pipeline("feature-extraction", loaded)("the cat"),
    ):
        with pytest.raises(InputError, match="no tokenizer files") as caught:
            call()
        assert "tokenizer.json" in caught.value.advice


def test_a_model_is_kept_in_memory_until_its_files_change(tiny: Any, tmp_path: Path) -> None:
    chumoku.save(load(tiny("BertForMaskedLM")), tmp_path)
    first = common.ready(tmp_path, "fill-mask")
    assert common.ready(str(tmp_path), "fill-mask") is first
    chumoku.save(load(tiny("BertForMaskedLM", seed=1)), tmp_path)
    assert common.ready(tmp_path, "fill-mask") is not first
    same(chumoku.fill_mask("[MASK]", tmp_path), chumoku.fill_mask("[MASK]", load(tmp_path)))


def test_a_head_of_pre_training_serves_its_two_tasks_only(tiny: Any) -> None:
    loaded = load(tiny("BertForPreTraining"))
    assert loaded.head == "pre-training"
    same(
        chumoku.fill_mask("[MASK]", loaded), chumoku.fill_mask("[MASK]", tiny("BertForPreTraining"))
    )
    with pytest.raises(InputError, match="needs a model with head 'classification'"):
        chumoku.classify("cat", loaded)
