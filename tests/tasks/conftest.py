from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tasks import models

Tiny = Callable[..., Path]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """tiny(class_name, tokenizer, seed=0, **config): the folder of such a model, made once."""
    made: dict[str, Path] = {}

    def make(class_name: str, tokenizer: str = "english", **options: Any) -> Path:
        key = repr((class_name, tokenizer, sorted(options.items())))
        if key not in made:
            made[key] = tmp_path_factory.mktemp(class_name)
            models.save(made[key], class_name, tokenizer, **options)
        return made[key]

    return make
