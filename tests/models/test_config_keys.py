"""Every key of the published config classes is read, fixed or harmless; nothing else passes.

The keys come from transformers 4.57.1 (golden/config_keys.json, made by the script beside it) and
from the release that is installed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from chumoku.errors import ConfigError
from chumoku.models import MODEL_TYPES, architecture

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "config_keys.json").read_text(encoding="utf-8")
)
PUBLISHED = [name for name in MODEL_TYPES if name != "transformer"]


def installed(model_type: str) -> dict[str, Any]:
    raw: dict[str, Any] = transformers.AutoConfig.for_model(model_type).to_dict()
    return raw


def module(model_type: str) -> Any:
    return architecture(model_type)


def test_the_golden_file_covers_every_published_type() -> None:
    assert set(GOLDEN["defaults"]) == set(PUBLISHED)
    assert GOLDEN["transformers"].startswith("4.57")


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_every_published_key_is_handled(model_type: str) -> None:
    for raw in (GOLDEN["defaults"][model_type], installed(model_type)):
        model = module(model_type)
        written = model.write_config(model.read_config(raw), next(iter(model.HEADS)))
        assert written["model_type"] == model_type


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_an_absent_key_means_the_published_default(model_type: str) -> None:
    """A file of an older release lacks keys; the published class then takes its default."""
    # transformers 5 ties mT5's matrices by default; released files of mT5 say tie false.
    raw = GOLDEN["defaults"][model_type]
    read = module(model_type).read_config
    full = read(raw)
    for key in sorted(raw):
        if key not in ("model_type", "tie_word_embeddings"):
            fewer = {k: v for k, v in raw.items() if k != key}
            assert read(fewer) == full, f"{key} absent is not {raw[key]!r}"


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_an_unknown_key_is_an_error_unless_empty_or_ignored(model_type: str) -> None:
    raw = GOLDEN["defaults"][model_type]
    read = module(model_type).read_config
    for value in (0, 1, True, "x", {"a": 1}, [0]):
        with pytest.raises(ConfigError, match="secret_gate"):
            read(raw | {"secret_gate": value})
        assert read(raw | {"secret_gate": value}, ignore=["secret_gate"]) == read(raw)
    for value in (None, False, "", [], {}):
        assert read(raw | {"secret_gate": value}) == read(raw)


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_a_fixed_key_with_another_value_is_refused(model_type: str) -> None:
    raw = GOLDEN["defaults"][model_type]
    model = module(model_type)
    for key, allowed in model.KEYS.fixed.items():
        for value in allowed:
            model.read_config(raw | {key: value})
        wrong = "surely not this" if True in allowed else True
        with pytest.raises(ConfigError, match=key):
            model.read_config(raw | {key: wrong})


def changed(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value * 2 + 2
    if isinstance(value, float):
        return value + 0.125
    return {"relu": "gelu"}.get(value, "relu")


@pytest.mark.parametrize("model_type", PUBLISHED)
def test_no_key_that_is_read_is_lost(model_type: str) -> None:
    """Changing a key changes the config (or is refused), and writing gives the change back."""
    raw = GOLDEN["defaults"][model_type]
    model = module(model_type)
    before = model.read_config(raw)
    for key in sorted(set(model.KEYS.reads) & set(raw)):
        if raw[key] is None or isinstance(raw[key], dict | list):
            continue
        if (model_type, key) == ("marian", "decoder_vocab_size"):
            continue  # without effect, as published, while both languages share one vocabulary
        try:
            after = model.read_config(raw | {key: changed(raw[key])})
        except ConfigError:
            continue
        assert after != before, f"{key} had no effect"
        head = next(iter(model.HEADS))
        assert model.read_config(model.write_config(after, head)) == after, key


@pytest.mark.parametrize("model_type", PUBLISHED)
@pytest.mark.parametrize("value", ["64", 1.5, True, [64], -64])
def test_a_value_of_the_wrong_type_is_refused(model_type: str, value: object) -> None:
    raw = GOLDEN["defaults"][model_type]
    key = next(k for k in ("vocab_size", "num_channels") if k in raw)
    with pytest.raises(ConfigError):
        module(model_type).read_config(raw | {key: value})


def test_an_unknown_model_type_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="mamba") as caught:
        architecture("mamba")
    assert "llama" in caught.value.advice


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "bert", "hidden_size": 10, "num_attention_heads": 3},
        {"model_type": "bert", "hidden_act": "warble"},
        {"model_type": "bert", "id2label": {"0": "a", "2": "b"}},
        {"model_type": "llama", "num_attention_heads": 5, "num_key_value_heads": 2},
        {"model_type": "llama", "rms_norm_eps": float("nan")},
    ],
)
def test_contradictions_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        module(raw["model_type"]).read_config(raw)
