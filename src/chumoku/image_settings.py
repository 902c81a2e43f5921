"""Published settings of image preparation: preprocessor_config.json, and timm's pretrained_cfg."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from chumoku.errors import ConfigError
from chumoku.images import ImagePreparation

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
