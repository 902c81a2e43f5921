"""From pictures to pixels_BCHW, as a published preprocessor_config.json asks for.

The steps are those of transformers' ViT and DeiT processors (their Pillow form): RGB or grey,
resize, crop the middle, rescale, normalise. timm's own config is read too.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from chumoku.errors import InputError

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
    except UnidentifiedImageError as error:  # its text names an object in memory
        raise InputError(
            "this is no image that can be read: its format is not known",
            where=where,
            advice=f"formats: {', '.join(FORMATS)}",
        ) from error
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
