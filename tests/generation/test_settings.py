"""Settings: published files, call arguments, and refusal of what means nothing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from transformers import GenerationConfig

from chumoku.errors import ConfigError, InputError
from chumoku.generation.settings import RULES, Settings, merge, settings_from_published

OPUS = {
    "_from_model_config": True,
    "bad_words_ids": [[58100]],
    "bos_token_id": 0,
    "decoder_start_token_id": 58100,
    "eos_token_id": 0,
    "forced_eos_token_id": 0,
    "max_length": 512,
    "num_beams": 6,
    "pad_token_id": 58100,
    "renormalize_logits": True,
    "transformers_version": "4.32.0.dev0",
}
LLAMA = {
    "bos_token_id": 128000,
    "do_sample": True,
    "eos_token_id": [128001, 128008, 128009],
    "temperature": 0.6,
    "top_p": 0.9,
    "transformers_version": "4.45.0.dev0",
}


def test_published_file_is_read() -> None:
    settings = settings_from_published(OPUS)
    assert settings == Settings(
        bad_words_ids=((58100,),),
        bos_token_id=0,
        decoder_start_token_id=58100,
        eos_token_id=(0,),
        forced_eos_token_id=(0,),
        max_length=512,
        num_beams=6,
        pad_token_id=58100,
        renormalize_logits=True,
    )


def test_published_sampling_counts_as_asked() -> None:
    settings = settings_from_published(LLAMA)
    assert settings.sampling
    assert (settings.temperature, settings.top_p, settings.eos_token_id) == (
        0.6,
        0.9,
        (128001, 128008, 128009),
    )
    assert not settings_from_published(LLAMA | {"do_sample": False}).sampling


def test_a_negative_id_means_none() -> None:
    published = {"do_sample": True, "eos_token_id": 2, "pad_token_id": -1}
    assert settings_from_published(published) == Settings(do_sample=True, eos_token_id=(2,))


@pytest.mark.parametrize(
    "key", ["guidance_scale", "epsilon_cutoff", "watermarking_config", "a_new_key", "seed"]
)
def test_unknown_keys_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        settings_from_published({key: 3})
    assert settings_from_published({key: None}) == Settings()


def test_every_published_key_is_known_at_its_default() -> None:
    """No key that transformers writes is strange to us where it does nothing."""
    defaults = GenerationConfig._get_default_generation_params()
    names = set(GenerationConfig().to_dict()) | set(vars(GenerationConfig()))
    for name in sorted(names):
        value = defaults.get(name)
        settings = settings_from_published({name: value})
        expected = Settings(**{name: value} if name in RULES and value is not None else {})
        assert settings == expected, name


def test_published_nonsense_names_the_file() -> None:
    with pytest.raises(ConfigError, match=r"top_p must be .*generation_config.json: top_p"):
        settings_from_published({"top_p": 1.5})


def test_call_arguments_win() -> None:
    base = settings_from_published(LLAMA)
    assert merge(base, temperature=0.9).temperature == 0.9
    assert merge(base, temperature=None) == base
    assert not merge(base, temperature=0).sampling
    assert not merge(base, do_sample=False).sampling
    assert not merge(base, num_beams=3).sampling
    assert merge(Settings(), top_k=5).sampling
    assert not merge(Settings(), top_k=5, do_sample=False).sampling
    assert not merge(Settings(), seed=3).sampling


def test_sampling_takes_the_place_of_published_beams() -> None:
    grouped = Settings(num_beams=4, num_beam_groups=2, diversity_penalty=1.0)
    assert merge(grouped, temperature=0.5) == Settings(do_sample=True, temperature=0.5)
    assert merge(grouped, num_beams=1) == Settings()


def test_the_length_limit_of_the_call_is_the_only_one() -> None:
    assert merge(Settings(max_length=20), max_new_tokens=5) == Settings(max_new_tokens=5)
    assert merge(Settings(max_new_tokens=5), max_length=20) == Settings(max_length=20)


def test_lists_become_tuples() -> None:
    settings = merge(
        Settings(),
        stop="x",
        eos_token_id=3,
        bad_words_ids=[[1, 2], [3]],
        logit_bias={4: 1.5, (1, 2): -math.inf},
        suppress_tokens=[7],
    )
    assert settings == Settings(
        stop=("x",),
        eos_token_id=(3,),
        bad_words_ids=((1, 2), (3,)),
        logit_bias=(((4,), 1.5), ((1, 2), -math.inf)),
        suppress_tokens=(7,),
    )
    assert hash(settings) == hash(dataclasses.replace(settings))


def test_unknown_argument() -> None:
    with pytest.raises(InputError, match="unknown setting 'temprature'"):
        merge(Settings(), temprature=1.0)


BAD: list[dict[str, Any]] = [
    {"max_new_tokens": 0},
    {"max_new_tokens": 2.5},
    {"max_new_tokens": True},
    {"min_length": -1},
    {"temperature": -0.1},
    {"temperature": math.nan},
    {"temperature": "1"},
    {"top_k": -1},
    {"top_p": 0.0},
    {"top_p": 1.1},
    {"min_p": 1.5},
    {"typical_p": 0.0},
    {"repetition_penalty": 0.0},
    {"presence_penalty": 2.5},
    {"no_repeat_ngram_size": -2},
    {"logit_bias": (((1,), math.inf),)},
    {"logit_bias": (((), 1.0),)},
    {"bad_words_ids": ((),)},
    {"bad_words_ids": ((-1,),)},
    {"suppress_tokens": [1]},
    {"forced_bos_token_id": -3},
    {"num_beams": 0},
    {"early_stopping": "always"},
    {"num_return_sequences": 0},
    {"num_return_sequences": 2},
    {"stop": ("",)},
    {"stop": "x"},
    {"seed": -1},
    {"seed": 2**63},
    {"logprobs": -1},
    {"overflow": "wrap"},
    {"prefill_chunk": 0},
    {"diversity_penalty": 1.0},
]


@pytest.mark.parametrize("bad", BAD, ids=str)
def test_nonsense_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        Settings(**bad)


def test_every_field_has_a_rule() -> None:
    assert list(RULES) == [f.name for f in dataclasses.fields(Settings)]
