"""Where the settings of generation come from: their own file, config.json, GGUF's metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from chumoku.checkpoints.gguf import GGUFFile
from chumoku.checkpoints.published import Published, read_generation
from chumoku.errors import ConfigError

CONFIG = {"hidden_size": 8, "eos_token_id": 2, "num_beams": 4, "early_stopping": True}


def folder(path: Path, config: dict[str, Any], generation: dict[str, Any] | None) -> Published:
    if generation is not None:
        (path / "generation_config.json").write_text(json.dumps(generation))
    return Published("hub", path, config, {})


def from_gguf(metadata: dict[str, object]) -> dict[str, Any]:
    file = GGUFFile(3, metadata, {}, 32, {})
    return read_generation(Published("gguf", Path("model.gguf"), {}, {}, gguf=file))


def test_legacy_keys_of_the_config(tmp_path: Path) -> None:
    found = read_generation(folder(tmp_path, CONFIG, None))
    assert found == {"eos_token_id": 2, "num_beams": 4, "early_stopping": True}


def test_special_ids_that_the_file_leaves_out_come_from_the_config(tmp_path: Path) -> None:
    config = CONFIG | {"pad_token_id": 5}
    published = folder(tmp_path, config, {"do_sample": True, "pad_token_id": 1})
    assert read_generation(published) == {"eos_token_id": 2, "pad_token_id": 1, "do_sample": True}


def test_ignored_keys_are_left_out(tmp_path: Path) -> None:
    published = folder(tmp_path, CONFIG, {"guidance_scale": 3, "top_k": 4})
    assert read_generation(published, ["guidance_scale"]) == {"eos_token_id": 2, "top_k": 4}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ({"bos": 1, "eos": 2, "padding": 0}, {"bos_token_id": 1, "eos_token_id": 2}),
        ({"eos": 2, "eot": 7, "eom": 2, "padding": 0}, {"eos_token_id": [2, 7]}),
        ({"eot": 7, "padding": 0}, {"eos_token_id": 7}),
    ],
)
def test_ids_of_gguf(ids: dict[str, int], expected: dict[str, Any]) -> None:
    metadata: dict[str, object] = {f"tokenizer.ggml.{k}_token_id": i for k, i in ids.items()}
    assert from_gguf(metadata) == expected | {"pad_token_id": 0}


@pytest.mark.parametrize("value", [True, "2", [2], 2.0])
def test_ids_that_are_none(value: object) -> None:
    with pytest.raises(ConfigError, match="eot_token_id is no token id"):
        from_gguf({"tokenizer.ggml.eot_token_id": value})
