"""Image preparation against transformers' own processors, and every way a picture can be bad."""

from __future__ import annotations

import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from chumoku.errors import ConfigError, InputError
from chumoku.image_settings import load_images_config, read_config, read_timm
from chumoku.images import ImagePreparation

PROCESSORS = {
    "ViTImageProcessor": ViTImageProcessorPil,
    "DeiTImageProcessor": DeiTImageProcessorPil,
}
COUNT = [*range(12), *(pytest.param(n, marks=pytest.mark.slow) for n in range(12, 120))]


def picture(seed: int, size: tuple[int, int] = (37, 23), mode: str = "RGB") -> Image.Image:
    bands = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], bands), dtype=np.uint8)
    return Image.fromarray(
        values[..., 0] if bands == 1 else values, mode=None if bands != 4 else mode
    )


def settings(seed: int) -> dict[str, Any]:
    """A random preprocessor_config.json with every key that the two processors have."""
    draw = random.Random(seed)
    sides = [draw.randint(3, 50), draw.randint(3, 50)]
    raw: dict[str, Any] = {"image_processor_type": draw.choice(list(PROCESSORS))}
    maybe: dict[str, Any] = {
        "size": draw.choice(
            [sides[0], {"height": sides[0], "width": sides[1]}, {"shortest_edge": sides[0]}]
        ),
        "resample": draw.randint(0, 5),
        "do_center_crop": draw.random() < 0.5,
        "crop_size": draw.choice([sides[1], {"height": sides[1], "width": sides[0]}]),
        "do_resize": draw.random() < 0.8,
        "do_rescale": draw.random() < 0.8,
        "rescale_factor": draw.choice([1 / 255, 1 / 127.5, 0.5]),
        "do_normalize": draw.random() < 0.8,
        "image_mean": [draw.random() for _ in range(3)],
        "image_std": [0.1 + draw.random() for _ in range(3)],
        "do_convert_rgb": draw.choice([None, True]),
    }
    chosen = {key: value for key, value in maybe.items() if draw.random() < 0.8}
    if chosen.get("do_center_crop"):
        chosen["crop_size"] = maybe["crop_size"]  # the ViT processor has no default for it
    return raw | chosen


def reference(raw: dict[str, Any], images: list[Any]) -> torch.Tensor:
    keys = {key: value for key, value in raw.items() if key != "image_processor_type"}
    processor = PROCESSORS[raw["image_processor_type"]](**keys)
    return processor(images, return_tensors="pt")["pixel_values"].float()


@pytest.mark.parametrize("seed", COUNT)
def test_equals_published_to_the_last_bit(seed: int) -> None:
    raw = settings(seed)
    draw = random.Random(seed + 1)
    size = (draw.randint(5, 60), draw.randint(5, 60))  # a side of 3 could be taken for channels
    images = [picture(seed, size), picture(seed + 1000, size)]
    ours, theirs = read_config(raw)(images), reference(raw, images)
    assert torch.equal(ours, theirs)
    for channels_first in (False, True):
        arrays = [np.asarray(image) for image in images]
        arrays = [np.moveaxis(a, -1, 0) if channels_first else a for a in arrays]
        assert torch.equal(read_config(raw)(arrays), theirs)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("resample", 3),
        ("size", {"height": 20, "width": 20}),
        ("size", {"shortest_edge": 20}),
        ("do_center_crop", True),
        ("rescale_factor", 0.5),
        ("do_normalize", False),
        ("image_mean", [0.5, 0.5, 0.4]),
        ("image_std", [0.5, 0.6, 0.5]),
    ],
)
def test_each_setting_counts(key: str, value: Any) -> None:
    """Negative control: with one setting changed, the comparison fails."""
    raw = {"image_processor_type": "ViTImageProcessor", "size": 24, "crop_size": 21}
    image = picture(1)
    changed = read_config(raw | {key: value})([image])
    assert torch.equal(changed, reference(raw | {key: value}, [image]))
    expected = reference(raw, [image])
    assert changed.shape != expected.shape or (changed - expected).abs().max() > 1e-3


# ---- kinds of file ----


def stored(image: Image.Image, path: Path, **options: Any) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["L.png", "LA.png", "RGBA.png", "RGB.jpg", "CMYK.jpg", "RGB.bmp"])
def test_files_of_every_kind_equal_published(kind: str, tmp_path: Path) -> None:
    mode = kind.split(".")[0]
    path = stored(picture(3, mode=mode), tmp_path / kind)
    raw = {"image_processor_type": "ViTImageProcessor", "size": 12}
    expected = reference(raw, [str(path)])
    assert torch.equal(read_config(raw)([path]), expected)
    assert torch.equal(read_config(raw)([str(path), path.read_bytes()])[1:], expected)
    # Only an image that is already in memory is laid on white.
    white = raw | {"do_convert_rgb": True}
    assert torch.equal(read_config(white)([path]), expected)
    with Image.open(path) as opened:
        assert torch.equal(read_config(white)([opened]), reference(white, [opened]))


def test_palettes_with_and_without_transparency_equal_published(tmp_path: Path) -> None:
    raw = {"image_processor_type": "ViTImageProcessor", "size": 12}
    flat = picture(3).quantize(16)
    paths = [stored(flat, tmp_path / "a.png"), stored(flat, tmp_path / "b.gif")]
    paths.append(stored(flat, tmp_path / "c.png", transparency=3))
    for path in paths:
        with Image.open(path) as opened:  # the published loader leaves a GIF open
            expected = reference(raw, [opened.convert("RGB")])
        assert torch.equal(read_config(raw)([path]), expected)
    bytes_each = stored(flat, tmp_path / "d.png", transparency=bytes(range(0, 160, 10)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns in the reference, not in ours
        expected = reference(raw, [str(bytes_each)])
    assert torch.equal(read_config(raw)([bytes_each]), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_file_is_turned_as_its_exif_says(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = stored(picture(4), tmp_path / "turned.png", exif=exif)
    raw = {"image_processor_type": "ViTImageProcessor", "size": 12}
    ours = read_config(raw)
    assert torch.equal(ours([path]), reference(raw, [str(path)]))
    with Image.open(path) as opened:  # in memory it is left as it is, as published
        left = ours([opened])
        assert torch.equal(left, reference(raw, [opened]))
    assert torch.equal(left, ours([path])) == (orientation == 1)


def test_the_first_picture_of_an_animation_is_taken(tmp_path: Path) -> None:
    first, second = picture(5).quantize(16), picture(6).quantize(16)
    path = stored(first, tmp_path / "moving.gif", save_all=True, append_images=[second])
    raw = {"image_processor_type": "ViTImageProcessor", "size": 12}
    got = read_config(raw)([path])
    assert torch.equal(got, reference(raw, [first.convert("RGB")]))
    assert not torch.equal(got, reference(raw, [second.convert("RGB")]))


def test_sixteen_bits_keep_their_upper_half(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    path = stored(Image.fromarray(values), tmp_path / "deep.png")
    plain = ImagePreparation(size=None, rescale=None, mean=None, std=None)
    got = plain([path])
    assert torch.equal(got, torch.from_numpy((values >> 8).astype(np.float32)).expand(1, 3, 9, 7))


def test_grey_models_get_one_channel(tmp_path: Path) -> None:
    raw = {"image_processor_type": "ViTImageProcessor", "size": 12}
    raw |= {"image_mean": [0.4], "image_std": [0.3]}
    grey = picture(7, mode="L")
    assert torch.equal(read_config(raw)([grey]), reference(raw, [grey]))
    assert torch.equal(read_config(raw)([np.asarray(grey)]), reference(raw, [grey]))
    path = stored(picture(7), tmp_path / "colour.png")
    assert torch.equal(read_config(raw)([path]), reference(raw, [picture(7).convert("L")]))


def test_a_crop_larger_than_the_picture_is_black_outside() -> None:
    plain = ImagePreparation(size=None, crop=(9, 4), rescale=None, mean=None, std=None)
    image = Image.fromarray(np.full((6, 7, 3), 200, dtype=np.uint8))
    got = plain([image])[0, 0]
    assert torch.equal(got.amax(1), torch.tensor([0, 0, 200, 200, 200, 200, 200, 200, 0.0]))
    raw = {"do_resize": False, "crop_size": {"height": 9, "width": 4}, "do_center_crop": True}
    raw |= {"image_processor_type": "ViTImageProcessor", "do_rescale": False, "do_normalize": False}
    assert torch.equal(plain([image]), reference(raw, [image]))


# ---- timm ----


def timm_expected(image: Image.Image, size: int, part: float, filter_: int) -> np.ndarray[Any, Any]:
    """timm's evaluation transform from its definition: shorter side, middle, /255, normalise."""
    scale = int(size // part)
    width, height = image.size
    longer = int(scale * max(width, height) / min(width, height))
    new = (scale, longer) if width <= height else (longer, scale)
    array = np.asarray(image.resize(new, filter_), dtype=np.float32) / np.float32(255)
    top, left = (round((side - size) / 2.0) for side in array.shape[:2])
    array = array[top : top + size, left : left + size]
    mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
    return ((array - mean) / std).transpose(2, 0, 1)


@pytest.mark.parametrize("seed", range(8))
def test_timm_preparation(seed: int) -> None:
    draw = random.Random(seed)
    image = picture(seed, (draw.randint(20, 60), draw.randint(20, 60)))
    part, size = draw.choice([0.875, 0.9, 1.0]), draw.choice([15, 16])
    cfg = {"input_size": [3, size, size], "crop_pct": part, "interpolation": "bicubic"}
    got = read_timm(cfg)([image])[0].numpy()
    assert np.abs(got - timm_expected(image, size, part, 3)).max() < 1e-6
    assert np.abs(got - timm_expected(image, size, part, 2)).max() > 1e-2


def test_timm_settings_that_are_not_supported() -> None:
    square = read_timm({"crop_mode": "squash", "input_size": [3, 12, 18], "crop_pct": 0.9})
    assert (square.size, square.crop, square.resample) == ((13, 20), (12, 18), 3)
    assert read_timm({"input_size": [1, 8, 8], "mean": [0.1], "std": [0.2]}).channels == 1
    for cfg in (
        {"crop_mode": "border"},
        {"interpolation": "random"},
        {"crop_pct": 1.5},
        {"input_size": [3, 12, 18]},
    ):
        with pytest.raises(ConfigError):
            read_timm(cfg)


# ---- folders and settings ----


def test_settings_of_a_folder(tmp_path: Path) -> None:
    assert load_images_config(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert load_images_config(tmp_path) is None
    timm = {"architecture": "vit_base_patch16_224", "pretrained_cfg": {"crop_pct": 0.9}}
    (tmp_path / "config.json").write_text(json.dumps(timm))
    got = load_images_config(tmp_path)
    assert got is not None
    assert (got.size, got.nearest_crop) == (248, True)
    DeiTImageProcessorPil(size=40, crop_size=33).save_pretrained(tmp_path)
    got = load_images_config(tmp_path)
    assert got == ImagePreparation(size=(40, 40), crop=(33, 33), resample=3)
    for damaged in ("{", "[]", '{"a":' * 100_000, b"\xff\xfe"):
        data = damaged if isinstance(damaged, bytes) else damaged.encode()
        (tmp_path / "preprocessor_config.json").write_bytes(data)
        with pytest.raises(ConfigError, match="preprocessor_config"):
            load_images_config(tmp_path)


@pytest.mark.parametrize("seed", range(30))
def test_settings_survive_writing_and_reading(seed: int) -> None:
    wanted = read_config(settings(seed))
    assert read_config(wanted.to_config()) == wanted


def test_older_files_are_read() -> None:
    old = {"do_normalize": True, "do_resize": True, "size": 224, "resample": 2}
    old |= {"feature_extractor_type": "ViTFeatureExtractor", "image_mean": [0.5, 0.5, 0.5]}
    assert read_config(old) == ImagePreparation()
    deit = {"feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "size": 256}
    assert read_config(deit) == ImagePreparation(size=(256, 256), crop=(224, 224), resample=3)


@pytest.mark.parametrize(
    "change",
    [
        {"do_reduce_labels": True},
        {"image_processor_type": "CLIPImageProcessor"},
        {"size": {"longest_edge": 4}},
        {"size": 0},
        {"size": 10**9},
        {"size": "224"},
        {"size": [1, 2, 3]},
        {"size": {"height": 4}},
        {"crop_size": {"shortest_edge": 4}, "do_center_crop": True},
        {"resample": 6},
        {"resample": "bicubic"},
        {"image_mean": [0.5, 0.5]},
        {"image_mean": [0.5], "image_std": [0.5, 0.5, 0.5]},
        {"image_mean": ["a"]},
        {"image_std": [0.5, 0.5, 0.0]},
        {"image_std": [float("nan")] * 3},
        {"rescale_factor": "1/255"},
    ],
)
def test_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        read_config({"image_processor_type": "ViTImageProcessor"} | change)


# ---- bad pictures ----


def test_bad_files_are_named(tmp_path: Path) -> None:
    prepare = ImagePreparation()
    whole = stored(picture(1), tmp_path / "whole.png").read_bytes()
    cases = {
        "none.png": b"this is text",
        "empty.png": b"",
        "truncated.png": whole[: len(whole) // 2],
        "truncated.jpg": stored(picture(1), tmp_path / "j.jpg").read_bytes()[:-300],
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage",
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError) as error:
            prepare([tmp_path / "whole.png", tmp_path / name])
        assert error.value.where == str(tmp_path / name)
    for path in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(InputError) as error:
            prepare([path])
        assert error.value.where == str(path)
    with pytest.raises(InputError, match="no picture"):
        prepare([])


def test_a_picture_of_too_many_pixels_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = stored(picture(1), tmp_path / "p.png")  # 851 pixels
    prepare = ImagePreparation(size=(4, 4))
    assert prepare([path]).shape == (1, 3, 4, 4)
    for limit in (850, 400):  # Pillow warns above the limit, and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match="allowed") as error:
            prepare([path])
        assert error.value.where == str(path)
        with pytest.raises(InputError, match="allowed"):
            prepare([picture(1)])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    thin = Image.new("RGB", (1000, 1))
    with pytest.raises(InputError, match="would become 4 x 4000"):
        ImagePreparation(size=4)([thin])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4), dtype=np.float32),
        np.full((4, 4, 3), 256, dtype=np.int32),
        np.full((4, 4, 3), -1, dtype=np.int32),
        np.zeros((6, 4, 5), dtype=np.uint8),
        np.zeros((0, 4, 3), dtype=np.uint8),
        np.zeros((2, 4, 4, 3), dtype=np.uint8),
        np.zeros(4, dtype=np.uint8),
        np.array([["a"]]),
    ],
)
def test_arrays_that_are_no_pictures(array: Any) -> None:
    with pytest.raises(InputError):
        ImagePreparation()([array])


def test_pictures_of_different_sizes_cannot_be_one_batch() -> None:
    prepare = ImagePreparation(size=8)
    images = [picture(1, (20, 30)), picture(2, (30, 20))]
    with pytest.raises(InputError, match="one batch") as error:
        prepare(images)
    assert error.value.where == "picture 1"
    assert [tuple(prepare([image]).shape) for image in images] == [(1, 3, 12, 8), (1, 3, 8, 12)]


def mutated(data: bytes, draw: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 6)):
        place = draw.randrange(len(changed))
        action = draw.choice(["set", "cut", "repeat"])
        if action == "set":
            changed[place] = draw.randrange(256)
        elif action == "cut":
            del changed[place : place + draw.randint(1, 40)]
        else:
            changed[place:place] = changed[place : place + draw.randint(1, 40)]
        if not changed:
            return b""
    return bytes(changed)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF"])
@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_are_read_or_refused(kind: str, count: int) -> None:
    buffer = io.BytesIO()
    picture(9).save(buffer, kind)
    prepare, draw = ImagePreparation(size=(6, 6)), random.Random(f"{kind}/{count}")
    refused = 0
    for _ in range(count):
        try:
            assert prepare([mutated(buffer.getvalue(), draw)]).isfinite().all()
        except InputError:
            refused += 1
    assert refused > 0
