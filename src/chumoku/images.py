"""From pictures to pixels_BCHW, as a published preprocessor_config.json asks for.

The steps are those of transformers' ViT and DeiT processors (their Pillow form): RGB or grey,
resize, crop the middle, rescale, normalise. timm's own config is read too.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from chumoku.errors import ConfigError, InputError

Picture = str | os.PathLike[str] | bytes | Image.Image | NDArray[Any]
"""A file, its bytes, a Pillow image, or an array of 0 to 255: [H, W], [H, W, C] or [C, H, W]."""

FORMATS: Final = (
    *("BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP", "AVIF"),
)
"""Formats of still pictures; Pillow has others, some of which start a program to read a file."""

MOST_PIXELS: Final = 89_478_485
"""Pillow's own limit, for where somebody has switched it off."""


@dataclass(frozen=True)
class ImagePreparation:
    """Defaults are those of the published ViT processor.

    size: (height, width), or the length of the shorter side, or None to keep the size.
    crop: (height, width) of the middle that is kept, with black where the picture is smaller.
    resample: Pillow's number of the filter (0 nearest, 1 lanczos, 2 bilinear, 3 bicubic, 4 box,
    5 hamming). rescale: factor on 0 to 255, or None. mean, std: one for each channel, or None; one
    channel means a grey picture. white_background: transparent parts of a picture that is given as
    a Pillow image or an array become white (`do_convert_rgb`); everywhere else, as published too,
    transparency is dropped. nearest_crop: half of an odd rest is rounded to the nearest even number
    (timm), not downwards.
    """

    size: tuple[int, int] | int | None = (224, 224)
    crop: tuple[int, int] | None = None
    resample: int = 2
    rescale: float | None = 1 / 255
    mean: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    std: tuple[float, ...] | None = (0.5, 0.5, 0.5)
    white_background: bool = False
    nearest_crop: bool = False

    @property
    def channels(self) -> int:
        return 3 if self.mean is None else len(self.mean)

    def __call__(self, images: Sequence[Picture]) -> Tensor:
        """pixels_BCHW, float32.

        Raises InputError, naming the file or the number of the picture, for one that is missing,
        damaged, no image, too large, or that ends up at another size than the first.
        """
        if not images:
            raise InputError("no picture was given")
        arrays = [self._pixels(image, _name(image, n)) for n, image in enumerate(images)]
        for n, array in enumerate(arrays):
            if array.shape != arrays[0].shape:
                raise InputError(
                    f"one batch has pictures of {array.shape[1:]} and {arrays[0].shape[1:]} pixels",
                    where=_name(images[n], n),
                    advice="give them one at a time, or a preparation with height and width",
                )
        return torch.from_numpy(np.stack(arrays))

    def _pixels(self, image: Picture, where: str) -> NDArray[np.float32]:
        white = self.white_background and isinstance(image, Image.Image | np.ndarray)
        picture = _guarded(lambda: self._converted(_opened(image, where), white), where)
        if self.size is not None:
            height, width = _target(self.size, picture)
            if height * width > _most_pixels():
                raise InputError(f"the picture would become {height} x {width} pixels", where=where)
            picture = picture.resize((width, height), resample=self.resample)
        array = np.asarray(picture)
        array_CHW = array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0)
        if self.crop is not None:
            array_CHW = _middle(array_CHW, self.crop, nearest=self.nearest_crop)
        if self.rescale is not None:
            array_CHW = array_CHW.astype(np.float64) * self.rescale
        pixels_CHW = array_CHW.astype(np.float32)
        if self.mean is not None and self.std is not None:
            mean, std = (
                np.array(v, dtype=np.float32)[:, None, None] for v in (self.mean, self.std)
            )
            pixels_CHW = (pixels_CHW - mean) / std
        return np.ascontiguousarray(pixels_CHW)

    def _converted(self, picture: Image.Image, white: bool) -> Image.Image:
        """An RGB or a grey picture of 8 bits."""
        picture.load()
        if picture.mode.startswith("I"):
            picture = _eight_bits(picture)
        transparent = "A" in picture.getbands() or picture.info.get("transparency") is not None
        if transparent and (white or picture.mode == "P"):
            picture = picture.convert("RGBA")
        if transparent and white:
            background = Image.new("RGBA", picture.size, (255, 255, 255, 255))
            picture = Image.alpha_composite(background, picture)
        return picture.convert("L" if self.channels == 1 else "RGB")

    def to_config(self) -> dict[str, Any]:
        """The preprocessor_config.json that says the same."""
        size: dict[str, Any] = {}
        if isinstance(self.size, int):
            size = {"size": {"shortest_edge": self.size}}
        elif self.size is not None:
            size = {"size": {"height": self.size[0], "width": self.size[1]}}
        crop = (
            {"crop_size": dict(zip(("height", "width"), self.crop, strict=True))}
            if self.crop
            else {}
        )
        return {
            "image_processor_type": "ViTImageProcessor",
            "do_resize": self.size is not None,
            **size,
            "resample": self.resample,
            "do_center_crop": self.crop is not None,
            **crop,
            "do_rescale": self.rescale is not None,
            **({} if self.rescale is None else {"rescale_factor": self.rescale}),
            "do_normalize": self.mean is not None,
            **({} if self.mean is None else {"image_mean": list(self.mean)}),
            **({} if self.std is None else {"image_std": list(self.std)}),
            **({"do_convert_rgb": True} if self.white_background else {}),
        }


# ---- pictures ----


def _name(image: Picture, number: int) -> str:
    return os.fspath(image) if isinstance(image, str | os.PathLike) else f"picture {number}"


def _most_pixels() -> int:
    return Image.MAX_IMAGE_PIXELS or MOST_PIXELS


def _opened(image: Picture, where: str) -> Image.Image:
    """A Pillow image; a file is turned as its EXIF says, as the published loader does."""
    if isinstance(image, np.ndarray):
        return _from_array(image, where)
    if isinstance(image, Image.Image):
        _check_pixels(image, where)
        return image
    Image.init()  # registers the formats that this build of Pillow has
    formats: list[str] = [name for name in FORMATS if name in Image.OPEN]
    file = io.BytesIO(image) if isinstance(image, bytes) else image
    with Image.open(file, formats=formats) as picture:
        _check_pixels(picture, where)
        return ImageOps.exif_transpose(picture)


def _check_pixels(picture: Image.Image, where: str) -> None:
    if picture.width * picture.height > _most_pixels():
        raise InputError(
            f"the picture has {picture.width} x {picture.height} pixels, more than is allowed",
            where=where,
            advice="make it smaller first, or raise PIL.Image.MAX_IMAGE_PIXELS",
        )


def _from_array(array: NDArray[Any], where: str) -> Image.Image:
    whole = np.issubdtype(array.dtype, np.integer) and array.size > 0
    if not whole or array.min() < 0 or array.max() > 255 or array.ndim not in (2, 3):
        raise InputError(
            f"an array of {array.dtype} {list(array.shape)} is no picture",
            where=where,
            advice="give whole numbers of 0 to 255 as [H, W], [H, W, C] or [C, H, W]",
        )
    if array.ndim == 3 and array.shape[0] in (1, 3, 4):
        array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] not in (1, 3, 4):
        raise InputError(f"an array of {list(array.shape)} has no colours", where=where)
    array = array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array
    return Image.fromarray(np.ascontiguousarray(array.astype(np.uint8)))


def _eight_bits(picture: Image.Image) -> Image.Image:
    """The upper half of 16 bits. The published loader clips here, which turns nearly all white."""
    values = np.asarray(picture).astype(np.int64)
    values = values >> 8 if values.max(initial=0) > 255 else values
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _guarded(read: Callable[[], Image.Image], where: str) -> Image.Image:
    """What Pillow raises for a file that it cannot read, as one InputError."""
    try:
        return read()
    except (InputError, MemoryError):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(
            "the picture has more pixels than is allowed",
            where=where,
            advice="make it smaller first, or raise PIL.Image.MAX_IMAGE_PIXELS",
        ) from error
    except FileNotFoundError as error:
        raise InputError("there is no such file", where=where) from error
    except Exception as error:  # a damaged file can make Pillow's readers raise nearly anything
        raise InputError(
            f"this is no image that can be read: {error}",
            where=where,
            advice=f"formats: {', '.join(FORMATS)}",
        ) from error


def _target(size: tuple[int, int] | int, picture: Image.Image) -> tuple[int, int]:
    """(height, width) after resizing; one number is the shorter side. The longer rounds down."""
    if not isinstance(size, int):
        return size
    width, height = picture.size
    longer = int(size * max(width, height) / min(width, height))
    return (longer, size) if width <= height else (size, longer)


def _middle(array_CHW: NDArray[Any], size: tuple[int, int], *, nearest: bool) -> NDArray[Any]:
    """The middle of this size; black where the picture does not reach."""
    out = np.zeros((array_CHW.shape[0], *size), dtype=array_CHW.dtype)
    source, target = [slice(None)], [slice(None)]
    for have, want in zip(array_CHW.shape[1:], size, strict=True):
        rest = have - want
        start = round(rest / 2) if nearest else rest // 2
        before = max(-start, 0)
        if rest < 0 and nearest:
            before = -rest // 2
        count = min(have, want)
        source.append(slice(max(start, 0), max(start, 0) + count))
        target.append(slice(before, before + count))
    out[tuple(target)] = array_CHW[tuple(source)]
    return out


# ---- published settings ----

DEFAULTS: Final = {
    "ViT": ImagePreparation(),
    "DeiT": ImagePreparation(size=(256, 256), crop=(224, 224), resample=3),
}
"""What each published processor does where its file says nothing."""

READ: Final = frozenset(
    {"do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale"}
    | {"rescale_factor", "do_normalize", "image_mean", "image_std", "do_convert_rgb"}
    | {"image_processor_type", "feature_extractor_type"}
)

HARMLESS: Final = frozenset(
    {"_valid_processor_keys", "_processor_class", "processor_class", "transformers_version"}
    | {"return_tensors", "data_format", "input_data_format", "device", "disable_grouping"}
    | {"default_to_square", "image_seq_length", "_name_or_path"}
)

FILTERS: Final = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""timm's names of Pillow's filters, in the order of their numbers."""


def load_images_config(folder: str | os.PathLike[str]) -> ImagePreparation | None:
    """The preparation that a model's folder asks for; None where it says nothing of pictures.

    Raises ConfigError for settings that are not known, or do not fit together.
    """
    path = Path(folder) / "preprocessor_config.json"
    if path.is_file():
        return read_config(_json(path), path)
    path = Path(folder) / "config.json"
    raw = _json(path) if path.is_file() else {}
    if "architecture" in raw and "model_type" not in raw:
        return read_timm({**raw, **(raw.get("pretrained_cfg") or {})}, path)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path.name} cannot be read: {error}", where=path) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path.name} is not a JSON object", where=path)
    return raw


def read_config(raw: Mapping[str, Any], where: object = "") -> ImagePreparation:
    """preprocessor_config.json -> ImagePreparation. Raises ConfigError."""
    unknown = sorted(
        k for k, v in raw.items() if k not in READ | HARMLESS and v not in (None, False)
    )
    if unknown:
        raise ConfigError(f"unknown image settings: {', '.join(unknown)}", where=where)
    default = DEFAULTS[_family(raw, where)]

    def wanted(key: str, otherwise: bool) -> bool:
        value = raw.get(key)
        return otherwise if value is None else bool(value)

    def value(key: str, otherwise: Any) -> Any:
        return otherwise if raw.get(key) is None else raw[key]

    size = _size(value("size", default.size), where) if wanted("do_resize", True) else None
    crop = None
    if wanted("do_center_crop", default.crop is not None):
        crop = _size(value("crop_size", default.crop or (224, 224)), where)
    rescale = value("rescale_factor", 1 / 255) if wanted("do_rescale", True) else None
    mean = std = None
    if wanted("do_normalize", True):
        mean, std = _each(value("image_mean", 0.5), where), _each(value("image_std", 0.5), where)
    if isinstance(crop, int):
        raise ConfigError("crop_size must have a height and a width", where=where)
    return _checked(
        ImagePreparation(
            size=size,
            crop=crop,
            resample=value("resample", default.resample),
            rescale=rescale,
            mean=mean,
            std=std,
            white_background=wanted("do_convert_rgb", False),
        ),
        where,
    )


def _family(raw: Mapping[str, Any], where: object) -> str:
    kind = raw.get("image_processor_type") or raw.get("feature_extractor_type")
    for family in DEFAULTS:
        endings = ("ImageProcessor", "ImageProcessorFast", "ImageProcessorPil", "FeatureExtractor")
        if kind in [family + ending for ending in endings]:
            return family
    if kind is None:
        return "ViT"
    raise ConfigError(
        f"image preparation {kind!r} is not supported",
        where=where,
        advice="supported: ViTImageProcessor, DeiTImageProcessor and their older names",
    )


def _size(value: Any, where: object) -> tuple[int, int] | int:
    """A number means a square, a list (height, width), a mapping says which."""
    if isinstance(value, Mapping):
        if set(value) == {"shortest_edge"} and _positive(value["shortest_edge"]):
            return int(value["shortest_edge"])
        if set(value) == {"height", "width"}:
            value = (value["height"], value["width"])
    pair = (value, value) if _positive(value) else value
    if not isinstance(pair, Sequence) or len(pair) != 2 or not all(map(_positive, pair)):
        raise ConfigError(
            f"a picture's size cannot be {value!r}",
            where=where,
            advice="a number, height and width, or shortest_edge",
        )
    return pair[0], pair[1]


def _positive(value: Any) -> bool:
    return type(value) is int and 0 < value <= 65535


def _each(value: Any, where: object) -> tuple[float, ...]:
    """One number for each channel; a single number serves red, green and blue."""
    values = list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(values) not in (1, 3) or any(type(v) not in (int, float) for v in values):
        raise ConfigError(f"mean and deviation are for 1 or 3 channels, not {value!r}", where=where)
    return tuple(float(v) for v in values)


def _checked(preparation: ImagePreparation, where: object) -> ImagePreparation:
    p = preparation
    if type(p.resample) is not int or not 0 <= p.resample < len(FILTERS):
        raise ConfigError(f"resample {p.resample!r} is no filter of Pillow's", where=where)
    if p.rescale is not None and type(p.rescale) not in (int, float):
        raise ConfigError(f"rescale_factor {p.rescale!r} is no number", where=where)
    if p.mean is not None and p.std is not None:
        if len(p.mean) != len(p.std):
            raise ConfigError("image_mean and image_std differ in length", where=where)
        if not all(map(math.isfinite, p.mean)) or not all(
            math.isfinite(s) and s > 0 for s in p.std
        ):
            raise ConfigError("image_mean must be finite, image_std positive", where=where)
    return p


def read_timm(cfg: Mapping[str, Any], where: object = "") -> ImagePreparation:
    """timm's pretrained_cfg -> what its evaluation transform does. Raises ConfigError."""
    channels, height, width = cfg.get("input_size") or (3, 224, 224)
    mode, part = cfg.get("crop_mode") or "center", cfg.get("crop_pct") or 0.875
    name = cfg.get("interpolation") or "bicubic"
    if mode not in ("center", "squash") or name not in FILTERS or not 0 < part <= 1:
        raise ConfigError(
            f"timm's {mode!r} crop of {part!r} with {name!r} filter is not supported",
            where=where,
        )
    if mode == "center" and height != width:
        raise ConfigError("timm's centre crop of an oblong picture is not supported", where=where)
    bigger = (math.floor(height / part), math.floor(width / part))
    mean = _each(cfg.get("mean") or (0.485, 0.456, 0.406), where)
    std = _each(cfg.get("std") or (0.229, 0.224, 0.225), where)
    return _checked(
        ImagePreparation(
            size=bigger if mode == "squash" else bigger[0],
            crop=(height, width),
            resample=FILTERS.index(name),
            mean=mean[:1] if channels == 1 else mean,
            std=std[:1] if channels == 1 else std,
            nearest_crop=True,
        ),
        where,
    )
