"""An adapter's folder as a user names it: which base and head it was trained on, which classes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from chumoku.adapters.peft_files import CONFIG, TASKS
from chumoku.checkpoints.folder import inside, read_json
from chumoku.checkpoints.ranges import write_json
from chumoku.errors import InputError

MODEL_CONFIG: Final = "config.json"
"""PEFT's files hold a head's numbers but not what its classes are called. This file, which PEFT
does not look at, may lie beside them and say so, under the keys of any config.json."""
OF_CLASSES: Final = ("id2label", "label2id", "num_labels", "problem_type")

HEADS: Final = {task: head for head, task in TASKS.items()}
"""PEFT's task_type -> our head."""


@dataclass(frozen=True)
class PeftFolder:
    """base: the model that it was trained on, as the file names it, "" where it does not. head:
    None where the file does not say. classes: keys of config.json that describe the head's classes.
    """

    path: Path
    base: str
    head: str | None
    classes: Mapping[str, Any]


def read_peft_folder(folder: str | os.PathLike[str]) -> PeftFolder:
    """What a folder of PEFT's says of the model around it. Raises InputError, CheckpointError."""
    path = Path(folder)
    if not (path / CONFIG).is_file():
        raise InputError(
            f"there is no {CONFIG}" if path.is_dir() else "there is no such folder",
            where=path,
            advice="name a folder that peft's save_pretrained, or chumoku finetune, has written",
        )
    raw = read_json(inside(path, CONFIG))
    classes: dict[str, Any] = {}
    if (path / MODEL_CONFIG).is_file():
        told = read_json(inside(path, MODEL_CONFIG))
        classes = {key: told[key] for key in OF_CLASSES if key in told}
    base = raw.get("base_model_name_or_path") or ""
    return PeftFolder(path, str(base), HEADS.get(str(raw.get("task_type"))), classes)


def write_classes(config: Mapping[str, Any], folder: Path) -> None:
    """Put what a config.json says of the classes beside PEFT's files, if it says anything."""
    classes = {key: config[key] for key in OF_CLASSES if key in config}
    if classes:
        write_json(folder / MODEL_CONFIG, classes)
