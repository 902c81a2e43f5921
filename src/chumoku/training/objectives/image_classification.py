"""A label for a picture (2010.11929, section 4.1): -log softmax(z)[y], as for texts.

Pictures are prepared once, as the model's published settings ask; what is drawn for an example
(mirroring, shifting, cropping) is drawn anew in each epoch from its seed, epoch and number.

Shape letters: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.images import ImagePreparation, Picture
from chumoku.loading import Loaded
from chumoku.training.data.tables import where_of
from chumoku.training.objectives.classification import (
    LOWER,
    Answers,
    judged,
    softmax_loss,
    weights_of,
)
from chumoku.training.objectives.classification import described as with_problem
from chumoku.training.objectives.encoded import Progress, reported
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.text_rows import (
    Row,
    in_batches,
    name_of,
    number_of,
    sorted_names,
    value_of,
)
from chumoku.training.task import Examples, Kind, Loss, Task, generator

HEADS: Final = ("image-classification", "distilled-classification")
PLAIN: Final = ImagePreparation(size=None, rescale=None, mean=None, std=None)
"""Opens a picture, and leaves it as it is."""

# ---- what is drawn for an example ----


@dataclass(frozen=True)
class Augmentation:
    """flip: probability of mirroring left and right. shift: most pixels up, down, left and right;
    the border's pixels are repeated. area: least share of the picture that a random crop keeps,
    enlarged again (1: no crop); its sides' ratio is drawn between 3/4 and 4/3. Raises ConfigError.
    """

    flip: float = 0.0
    shift: int = 0
    area: float = 1.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.flip <= 1.0:
            raise ConfigError(f"must lie between 0 and 1, it is {self.flip}", where="flip")
        if self.shift < 0:
            raise ConfigError(f"must be at least 0, it is {self.shift}", where="shift")
        if not 0.0 < self.area <= 1.0:
            raise ConfigError(f"must be above 0 and at most 1, it is {self.area}", where="area")


def augmented(pixels_CHW: Tensor, how: Augmentation, rng: torch.Generator) -> Tensor:
    """The picture, changed by numbers from rng alone; the same size."""
    # All is drawn whatever the settings, so that one setting does not change another's draws.
    mirror, size, ratio, *places = torch.rand(7, generator=rng, dtype=torch.float64).tolist()
    if how.area < 1.0:
        pixels_CHW = _cropped(pixels_CHW, how.area + size * (1 - how.area), ratio, places[:2])
    if how.shift:
        pixels_CHW = _shifted(pixels_CHW, how.shift, places[2:])
    return pixels_CHW.flip(-1) if mirror < how.flip else pixels_CHW


def _cropped(pixels_CHW: Tensor, area: float, ratio: float, places: Sequence[float]) -> Tensor:
    H, W = pixels_CHW.shape[1:]
    stretch = (4 / 3) ** (ratio - 0.5)  # sqrt of a ratio drawn evenly on a log scale
    h = min(H, max(1, round(H * area**0.5 / stretch)))
    w = min(W, max(1, round(W * area**0.5 * stretch)))
    top, left = int(places[0] * (H - h + 1)), int(places[1] * (W - w + 1))
    part = pixels_CHW[None, :, top : top + h, left : left + w]
    return F.interpolate(part, (H, W), mode="bilinear", align_corners=False, antialias=True)[0]


def _shifted(pixels_CHW: Tensor, most: int, places: Sequence[float]) -> Tensor:
    H, W = pixels_CHW.shape[1:]
    down, right = (int(place * (2 * most + 1)) - most for place in places)
    rows = (torch.arange(H) - down).clamp(0, H - 1)
    columns = (torch.arange(W) - right).clamp(0, W - 1)
    return pixels_CHW[:, rows][:, :, columns]


# ---- batch and loss ----


class Example(NamedTuple):
    pixels_CHW: Tensor
    target: int


class ImageBatch(NamedTuple):
    pixels_BCHW: Tensor
    targets_B: Tensor


def collate(examples: Sequence[Example]) -> ImageBatch:
    return ImageBatch(
        torch.stack([e.pixels_CHW for e in examples]), torch.tensor([e.target for e in examples])
    )


def logits(model: nn.Module, batch: ImageBatch) -> Tensor:
    """[B, classes], from pixels in the model's own float type."""
    kind = next(p.dtype for p in model.parameters() if p.is_floating_point())
    return model(batch.pixels_BCHW.to(kind))  # type: ignore[no-any-return]


def loss(
    model: nn.Module,
    batch: ImageBatch,
    *,
    weights_C: Tensor | None = None,
    smoothing: float = 0.0,
) -> Loss:
    """Summed over pictures; see classification.softmax_loss()."""
    return softmax_loss(logits(model, batch), batch.targets_B, weights_C, smoothing)


# ---- examples ----

KEPT: Final = 1 << 26
"""So many prepared numbers are kept in memory at most (256 MiB); others are prepared each time."""


class Pictures:
    """Pictures with their classes. augmentation None: as they are."""

    def __init__(
        self,
        pictures: Sequence[Picture],
        targets: Sequence[int],
        prepare: ImagePreparation,
        augmentation: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        self.pictures, self.targets, self.prepare = pictures, targets, prepare
        self.augmentation, self.seed = augmentation, seed
        self.notes: tuple[str, ...] = ()
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT

    def __len__(self) -> int:
        return len(self.pictures)

    def length(self, index: int) -> int:
        return 1

    def example(self, index: int, epoch: int) -> Example:
        pixels_CHW = self._pixels(index)
        if self.augmentation is not None:
            rng = generator(self.seed, epoch, index)
            pixels_CHW = augmented(pixels_CHW, self.augmentation, rng)
        return Example(pixels_CHW, self.targets[index])

    def _pixels(self, index: int) -> Tensor:
        found = self._kept.get(index)
        if found is None:
            try:
                found = self.prepare([self.pictures[index]])[0]
            except InputError as error:
                error.where = f"row {index}: {error.where}"
                raise
            if self._room >= found.numel():
                self._kept[index] = found
                self._room -= found.numel()
        return found


# ---- the task ----


def picture_of(row: Row, number: int) -> Picture:
    """Raises InputError where a row has none, or a path that leads to no file."""
    picture = value_of(row, "image", number)
    if isinstance(picture, Mapping):  # as the datasets library stores a picture
        picture = picture.get("bytes") or picture.get("path")
        if not picture:
            raise InputError(f"the picture of {where_of(row, number)} is empty")
    if isinstance(picture, str | os.PathLike) and not os.path.isfile(picture):
        raise InputError(f"{where_of(row, number)} names a picture that is not there: {picture}")
    return picture  # type: ignore[no-any-return]


def check_row(row: Row, number: int) -> None:
    """Raises InputError for a row that cannot be learnt from: each picture is opened once."""
    value_of(row, "label", number)
    PLAIN([picture_of(row, number)])


def labels_of(rows: Sequence[Row]) -> tuple[str, ...]:
    """The names for a new head: those in the rows, sorted."""
    if not len(rows):
        raise InputError("there are no rows to learn from")
    return sorted_names([name_of(value_of(row, "label", n)) for n, row in enumerate(rows)])


def preparation_of(loaded: Loaded) -> ImagePreparation:
    """The model's own; for one that has none: its size and channels, to -1 … 1 (2010.11929's)."""
    if loaded.images is not None:
        return loaded.images
    half = (0.5,) * loaded.config.channels
    return ImagePreparation(size=loaded.config.image, mean=half, std=half)


def described(loaded: Loaded, problem: str = "single") -> Loaded:
    """The model with its preparation, so that saving writes it and the verb uses it."""
    return replace(with_problem(loaded, problem), images=preparation_of(loaded))


def task(
    loaded: Loaded,
    rows: Sequence[Row],
    *,
    evaluation: Sequence[Row] | None = None,
    flip: float = 0.0,
    shift: int = 0,
    area: float = 1.0,
    class_weights: str | Sequence[float] | Mapping[str, float] | None = None,
    smoothing: float = 0.0,
    metric: str = "accuracy",
    evaluation_batch_size: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn labels of pictures. Rows: image (a path, a Pillow image, bytes, or an array of 0 to
    255), label.

    flip, shift, area: see Augmentation; the evaluation's pictures stay as they are. class_weights:
    see classification.weights_of(). Evaluation: loss, accuracy and the like. seed: of what is
    drawn. Raises InputError, also for files that are missing; ConfigError.
    """
    check_head(loaded, HEADS)
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(f"must be at least 0 and below 1, it is {smoothing}", where="smoothing")
    augmentation = Augmentation(flip, shift, area)
    labels, prepare = loaded.config.labels, preparation_of(loaded)
    pictures, targets = _read(rows, labels, progress, "looking for pictures")
    weights_C = weights_of(class_weights, targets, labels, "single")
    evaluate = None
    if evaluation is not None:
        held_out = Pictures(*_read(evaluation, labels, progress, "evaluation"), prepare)
        evaluate = evaluator(held_out, labels, evaluation_batch_size)
    drawn = None if augmentation == Augmentation() else augmentation
    metric = metric if evaluation is not None else "loss"
    size = loaded.config.grid[0] * loaded.config.grid[1] + loaded.config.num_tokens
    return Task(
        examples=Pictures(pictures, targets, prepare, drawn, seed),
        collate=collate,
        loss=partial(loss, weights_C=weights_C, smoothing=smoothing),
        evaluate=evaluate,
        metric=metric,
        lower=metric in LOWER,
        tokens=partial(_tokens, size),
    )


KIND: Final = Kind(
    "image-classification", task, check_row, labels_of=labels_of, described=described
)


def _tokens(size: int, batch: ImageBatch) -> int:
    return size * len(batch.targets_B)


def _read(
    rows: Sequence[Row], labels: Sequence[str], progress: Progress | None, what: str
) -> tuple[list[Picture], list[int]]:
    """Pictures and classes; a path that leads to no file is found out before the first step."""
    if not len(rows):
        raise InputError("there are no rows to learn from")
    pictures: list[Picture] = []
    targets = []
    for number, row in enumerate(reported(rows, progress, what)):
        pictures.append(picture_of(row, number))
        targets.append(number_of(value_of(row, "label", number), labels, where_of(row, number)))
    return pictures, targets


def evaluator(
    examples: Examples, labels: Sequence[str], batch_size: int
) -> Callable[[nn.Module], dict[str, float]]:
    """The loss without weights and smoothing, and the metrics of classification."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        rows: list[Tensor] = []
        targets: list[Tensor] = []
        for _, batch in in_batches(examples, collate, batch_size, model):
            rows.append(logits(model, batch).float().cpu())
            targets.append(batch.targets_B.cpu())
        return judged(Answers(torch.cat(rows), torch.cat(targets)), labels, "single")

    return evaluate
