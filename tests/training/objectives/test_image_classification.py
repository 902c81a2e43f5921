"""What is drawn for a picture, rows, the loss, and learning scikit-learn's digits a little."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training.objectives import tiny

import chumoku
from chumoku.errors import ConfigError, InputError
from chumoku.images import ImagePreparation
from chumoku.loading import Loaded
from chumoku.models import vit
from chumoku.training.objectives import image_classification
from chumoku.training.objectives.image_classification import Augmentation, augmented, task
from chumoku.training.task import generator

CONFIG = vit.Config(
    image=(8, 8),
    patch=(4, 4),
    channels=1,
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    labels=("cat", "dog", "sky"),
)


def loaded_of(config: vit.Config = CONFIG) -> Loaded:
    loaded = chumoku.create(config, "image-classification")
    tiny.randomised(loaded.model)
    return loaded


def picture(seed: int, size: tuple[int, int] = (8, 8)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size)


ROWS: list[dict[str, Any]] = [
    {"image": picture(n), "label": CONFIG.labels[n % 3]} for n in range(4)
]


def batch_of(made: Any, epoch: int = 0) -> Any:
    return made.collate([made.examples.example(i, epoch) for i in range(len(made.examples))])


# ---- what is drawn ----


def test_the_same_numbers_give_the_same_picture() -> None:
    pixels = torch.randn(3, 12, 10)
    how = Augmentation(flip=0.5, shift=2, area=0.5)
    first, again = (augmented(pixels, how, generator(1, 2, 3)) for _ in range(2))
    assert torch.equal(first, again)
    others = [augmented(pixels, how, generator(1, 2, n)) for n in range(4, 12)]
    assert all(o.shape == pixels.shape and not torch.equal(o, first) for o in others)
    assert torch.equal(augmented(pixels, Augmentation(), generator(1, 2, 3)), pixels)


def test_flips_are_mirrors_with_their_probability() -> None:
    pixels = torch.randn(1, 4, 5)
    flipped = 0
    for n in range(400):
        seen = augmented(pixels, Augmentation(flip=0.3), generator(0, 0, n))
        mirrored = torch.equal(seen, pixels.flip(-1))
        assert mirrored or torch.equal(seen, pixels)
        flipped += mirrored
    assert 85 < flipped < 155  # 4 deviations around 120


def test_shifts_reach_every_place_and_repeat_the_border() -> None:
    pixels = torch.arange(30.0).view(1, 5, 6)
    seen = set()
    for n in range(100):
        moved = augmented(pixels, Augmentation(shift=1), generator(0, 0, n))
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                by_hand = torch.empty(1, 5, 6)
                for y in range(5):
                    for x in range(6):
                        source = min(max(y - down, 0), 4), min(max(x - right, 0), 5)
                        by_hand[0, y, x] = pixels[0, source[0], source[1]]
                if torch.equal(moved, by_hand):
                    seen.add((down, right))
    assert len(seen) == 9


def test_crops_keep_their_share_of_a_flat_slope() -> None:
    """Of a picture that is its own column number, a crop is a narrower slope."""
    pixels = torch.arange(64.0).expand(1, 64, 64)
    shares = []
    for n in range(200):
        seen = augmented(pixels, Augmentation(area=0.25), generator(0, 0, n))
        slope = float(seen[0, 32, 48] - seen[0, 32, 16]) / 32
        shares.append(slope)
    assert 0.5 * (3 / 4) ** 0.5 - 0.02 < min(shares) < 0.6
    assert 0.9 < max(shares) <= 1.001


# ---- rows and loss ----


def test_the_loss_is_its_formula() -> None:
    loaded = loaded_of()
    made = task(loaded, ROWS, smoothing=0.1, class_weights=[1.0, 2.0, 4.0])
    batch = batch_of(made)
    loss = made.loss(loaded.model, batch)
    total = units = 0.0
    for row, y in zip(loaded.model(batch.pixels_BCHW).tolist(), [0, 1, 2, 0], strict=True):
        norm = math.log(math.fsum(map(math.exp, row)))
        w = [1.0, 2.0, 4.0]
        total -= 0.9 * w[y] * (row[y] - norm)
        total -= 0.1 / 3 * math.fsum(a * (z - norm) for a, z in zip(w, row, strict=True))
        units += w[y]
    assert float(loss.total.detach()) == pytest.approx(total, rel=1e-5)
    assert float(loss.units) == units
    assert made.tokens(batch) == 4 * 5


def test_pixels_take_the_models_type() -> None:
    loaded = loaded_of()
    made = task(loaded, ROWS)
    single = float(made.loss(loaded.model, batch_of(made)).total.detach())
    loaded.model.double()
    double = float(made.loss(loaded.model, batch_of(made)).total.detach())
    assert double == pytest.approx(single, rel=1e-5)
    loaded.model.bfloat16()
    found = made.loss(loaded.model, batch_of(made))
    assert found.total.dtype == torch.float32
    assert float(found.total.detach()) == pytest.approx(single, rel=0.05)


def test_every_kind_of_picture(tmp_path: Path) -> None:
    array = picture(5).astype(np.uint8)
    image = Image.fromarray(array)
    path = tmp_path / "a.png"
    image.save(path)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    kinds = [array, image, path, str(path), stream.getvalue(), {"bytes": stream.getvalue()}]
    kinds.append({"bytes": None, "path": str(path)})
    made = task(loaded_of(), [{"image": kind, "label": "cat"} for kind in kinds])
    pixels = batch_of(made).pixels_BCHW
    assert torch.equal(pixels, pixels[:1].expand_as(pixels))
    by_hand = (torch.from_numpy(array).float() / 255 - 0.5) / 0.5
    torch.testing.assert_close(pixels[0, 0], by_hand)


def test_the_models_own_preparation_is_used() -> None:
    own = ImagePreparation(size=(8, 8), mean=(0.1,), std=(0.3,))
    loaded = replace(loaded_of(), images=own)
    made = task(loaded, [{"image": picture(1, (20, 30)), "label": 2}])
    assert torch.equal(batch_of(made).pixels_BCHW, own([picture(1, (20, 30))]))
    assert image_classification.described(loaded).images == own
    assert image_classification.described(loaded).config.problem_type == (
        "single_label_classification"
    )
    new = image_classification.described(loaded_of()).images
    assert new == ImagePreparation(size=(8, 8), mean=(0.5,), std=(0.5,))


def test_each_epoch_draws_anew_and_the_evaluation_does_not() -> None:
    made = task(loaded_of(), ROWS, flip=0.5, shift=1, seed=4)
    first, second = batch_of(made, 0).pixels_BCHW, batch_of(made, 1).pixels_BCHW
    assert not torch.equal(first, second)
    assert torch.equal(first, batch_of(made, 0).pixels_BCHW)
    assert not torch.equal(first, batch_of(task(loaded_of(), ROWS, flip=0.5, shift=1)).pixels_BCHW)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_classification, "KEPT", 150)
    made = task(loaded_of(), ROWS)
    first, again = batch_of(made), batch_of(made)
    assert torch.equal(first.pixels_BCHW, again.pixels_BCHW)
    assert len(made.examples._kept) == 2  # type: ignore[attr-defined]


def test_bad_rows(tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(InputError, match="row 0 names a picture that is not there"):
        task(loaded_of(), [{"image": str(tmp_path / "none.png"), "label": "cat"}])
    made = task(loaded_of(), [ROWS[0], {"image": str(broken), "label": "cat"}])
    with pytest.raises(InputError, match=r"row 1: .*broken\.png"):
        batch_of(made)
    with pytest.raises(InputError, match="'cow' of row 0 is none of the model's: cat, dog, sky"):
        task(loaded_of(), [{"image": picture(0), "label": "cow"}])
    with pytest.raises(InputError, match="row 0 has no 'image'"):
        task(loaded_of(), [{"label": "cat"}])
    with pytest.raises(InputError, match="no rows"):
        task(loaded_of(), [])
    for name, value in {"flip": 1.5, "shift": -1, "area": 0.0, "smoothing": 1.0}.items():
        with pytest.raises(ConfigError, match=name):
            task(loaded_of(), ROWS, **{name: value})


def test_it_learns_digits() -> None:
    from sklearn.datasets import load_digits

    digits = load_digits(n_class=4)
    rows = [
        {"image": (pixels * 15.9).astype(int), "label": int(label)}
        for pixels, label in zip(digits.images[:160], digits.target[:160], strict=True)
    ]
    labels = image_classification.labels_of(rows)
    assert labels == tuple("0123")
    config = replace(CONFIG, labels=labels, init_std=0.1)
    loaded = chumoku.create(config, "image-classification")
    made = task(loaded, rows[:100], evaluation=rows[100:])
    assert (made.metric, made.lower) == ("accuracy", False)
    before = tiny.metrics(made, loaded.model)
    tiny.train(made, loaded.model, 30, rate=1e-2)
    after = tiny.metrics(made, loaded.model)
    assert before["accuracy"] < 0.6
    assert after["accuracy"] > 0.9
    from chumoku.tasks.images import classify_image

    ready = image_classification.described(loaded)
    best = classify_image(rows[150]["image"].astype(np.uint8), ready, top_k=1)
    assert best[0]["label"] in labels
