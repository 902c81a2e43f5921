"""How to generate: one frozen set of settings, read from published files and from call arguments.

Names are those of the published generation_config.json, so that a file, a call and the result speak
one language. Nothing here touches a model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from chumoku.errors import ConfigError, InputError

DEFAULT_NEW_TOKENS: Final = 256
"""Tokens made where neither max_new_tokens nor max_length is given."""

Bias = tuple[tuple[tuple[int, ...], float], ...]


@dataclass(frozen=True)
class Settings:
    """All that decides which tokens come out. Greedy search unless `do_sample` or beams are set.

    max_new_tokens: None means max_length (which counts the prompt too, or an encoder-decoder's
    start token), and where that is None as well, 256. Both stop at the model's context.
    temperature: 0 is greedy. top_k: 0 is off. logit_bias: (token ids, value added to the logit of
    the last of them where the others came just before). presence_penalty, frequency_penalty: on
    generated tokens only. stop: strings, never part of the text. logprobs: None is off, n gives the
    n likeliest alternatives too, under the model's own distribution before any processing.
    overflow, for a prompt longer than the context: "error"; "truncate" keeps the prompt's tail;
    "shift" does too, and goes on past the context by forgetting its older half.
    prefill_chunk: tokens of the prompt read in one pass; None is all. seed: None is a fresh one.
    Raises InputError for a value outside its range or a combination that means nothing.
    """

    max_new_tokens: int | None = None
    max_length: int | None = None
    min_new_tokens: int = 0
    min_length: int = 0
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    no_repeat_ngram_size: int = 0
    encoder_no_repeat_ngram_size: int = 0
    logit_bias: Bias = ()
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    renormalize_logits: bool = False
    num_beams: int = 1
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0
    length_penalty: float = 1.0
    early_stopping: bool | Literal["never"] = False
    num_return_sequences: int = 1
    stop: tuple[str, ...] = ()
    eos_token_id: tuple[int, ...] = ()
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    decoder_start_token_id: int | None = None
    seed: int | None = None
    logprobs: int | None = None
    overflow: Literal["error", "truncate", "shift"] = "error"
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        for name, (kind, fits, meaning) in RULES.items():
            value = getattr(self, name)
            if not (kind(value) and fits(value)):
                raise InputError(f"{name} must be {meaning}, not {value!r}", where=name)
        _check_together(self)

    @property
    def sampling(self) -> bool:
        """True where tokens are drawn; temperature 0 is greedy."""
        return self.do_sample and self.temperature > 0.0


# ---- what a value may be ----


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _real(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _flag(value: object) -> bool:
    return isinstance(value, bool)


def _whole_or_none(value: object) -> bool:
    return value is None or _whole(value)


def _ids(value: object) -> bool:
    return isinstance(value, tuple) and all(_whole(i) and i >= 0 for i in value)


def _id_lists(value: object) -> bool:
    return isinstance(value, tuple) and all(_ids(ids) and ids for ids in value)


def _biases(value: object) -> bool:
    """-inf is allowed as a bias: it forbids."""
    return isinstance(value, tuple) and all(
        _ids(ids) and ids and isinstance(bias, int | float) and bias < math.inf
        for ids, bias in value
    )


def _strings(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(s, str) and s for s in value)


def _any(value: object) -> bool:
    return True


def _at_least(least: int) -> Callable[[Any], bool]:
    return lambda value: value is None or value >= least


def _share(value: float) -> bool:
    return 0.0 < value <= 1.0


Rule = tuple[Callable[[object], bool], Callable[[Any], bool], str]
_count: Rule = (_whole, _at_least(0), "a whole number, 0 or more")
_size: Rule = (_whole, _at_least(1), "a whole number, 1 or more")
_limit: Rule = (_whole_or_none, _at_least(1), "a whole number, 1 or more, or None")
_id: Rule = (_whole_or_none, _at_least(0), "a token id or None")
_list: Rule = (_ids, _any, "a tuple of token ids")
_part: Rule = (_real, _share, "above 0 and at most 1")
_number: Rule = (_real, _any, "a finite number")
_penalty: Rule = (_real, lambda v: -2.0 <= v <= 2.0, "between -2 and 2")

RULES: Final[Mapping[str, Rule]] = {
    "max_new_tokens": _limit,
    "max_length": _limit,
    "min_new_tokens": _count,
    "min_length": _count,
    "do_sample": (_flag, _any, "True or False"),
    "temperature": (_real, lambda v: v >= 0.0, "0 or more"),
    "top_k": _count,
    "top_p": _part,
    "min_p": (_real, lambda v: 0.0 <= v <= 1.0, "between 0 and 1"),
    "typical_p": _part,
    "repetition_penalty": (_real, lambda v: v > 0.0, "above 0"),
    "presence_penalty": _penalty,
    "frequency_penalty": _penalty,
    "no_repeat_ngram_size": _count,
    "encoder_no_repeat_ngram_size": _count,
    "logit_bias": (_biases, _any, "a tuple of (token ids, number)"),
    "bad_words_ids": (_id_lists, _any, "a tuple of tuples of token ids"),
    "suppress_tokens": _list,
    "begin_suppress_tokens": _list,
    "forced_bos_token_id": _id,
    "forced_eos_token_id": _list,
    "renormalize_logits": (_flag, _any, "True or False"),
    "num_beams": _size,
    "num_beam_groups": _size,
    "diversity_penalty": (_real, lambda v: v >= 0.0, "0 or more"),
    "length_penalty": _number,
    "early_stopping": (
        lambda v: isinstance(v, bool) or v == "never",
        _any,
        'True, False or "never"',
    ),
    "num_return_sequences": _size,
    "stop": (_strings, _any, "a tuple of strings, none of them empty"),
    "eos_token_id": _list,
    "pad_token_id": _id,
    "bos_token_id": _id,
    "decoder_start_token_id": _id,
    "seed": (_whole_or_none, lambda v: v is None or 0 <= v < 2**63, "0 to 2^63 - 1, or None"),
    "logprobs": (_whole_or_none, _at_least(0), "a whole number, 0 or more, or None"),
    "overflow": (
        lambda v: v in ("error", "truncate", "shift"),
        _any,
        '"error", "truncate" or "shift"',
    ),
    "prefill_chunk": _limit,
}


def _check_together(s: Settings) -> None:
    if s.num_beams > 1:
        if s.num_return_sequences > s.num_beams:
            raise InputError(
                f"{s.num_return_sequences} sequences cannot come out of {s.num_beams} beams",
                where="num_return_sequences",
            )
        if s.sampling:
            raise InputError("beam search does not sample here", advice="set do_sample=False")
        if s.stop or s.logprobs is not None or s.overflow == "shift":
            raise InputError("stop strings, logprobs and overflow='shift' do not go with beams")
    elif s.num_return_sequences > 1 and not s.sampling:
        raise InputError(
            f"greedy search gives one sequence, {s.num_return_sequences} were asked for",
            advice="set do_sample=True, or num_beams",
        )
    if s.num_beams % s.num_beam_groups:
        raise InputError(f"{s.num_beams} beams do not divide into {s.num_beam_groups} groups")
    if (s.num_beam_groups > 1) != (s.diversity_penalty > 0.0):
        raise InputError("num_beam_groups above 1 and diversity_penalty above 0 go together")


# ---- call arguments ----

SAMPLING: Final = ("temperature", "top_k", "top_p", "min_p", "typical_p")


def merge(settings: Settings, **arguments: Any) -> Settings:
    """Call arguments win over published settings; None leaves a setting as it is.

    A call that names a temperature or a top-k, top-p, min-p or typical-p asks for sampling, unless
    it says do_sample=False or temperature=0. Sampling takes the place of published beams, and beams
    that of published sampling. A length
    limit of the call takes the place of the published one, whichever of the two kinds that was.
    Lists become tuples; logit_bias may be a mapping. Raises InputError.
    """
    given = {name: value for name, value in arguments.items() if value is not None}
    unknown = sorted(given.keys() - RULES.keys())
    if unknown:
        raise InputError(
            f"unknown setting {unknown[0]!r}", advice=f"settings are {', '.join(RULES)}"
        )
    if "do_sample" not in given:
        if given.get("num_beams", 1) > 1 or given.get("temperature") == 0:
            given["do_sample"] = False
        elif any(name in given for name in SAMPLING):
            given["do_sample"] = True
    if given.get("do_sample") and "num_beams" not in given:
        given["num_beams"] = 1
    if given.get("num_beams") == 1:
        given = {"num_beam_groups": 1, "diversity_penalty": 0.0} | given
    if "max_new_tokens" in given and "max_length" not in given:
        given["max_length"] = None
    if "max_length" in given and "max_new_tokens" not in given:
        given["max_new_tokens"] = None
    changes = {name: _frozen(name, value) for name, value in given.items()}
    return dataclasses.replace(settings, **changes)


def _frozen(name: str, value: Any) -> Any:
    """The value as the field holds it: tuples all the way, one id or string as a tuple of one."""
    if name == "logit_bias":
        pairs = value.items() if isinstance(value, Mapping) else value
        return tuple(((ids,) if _whole(ids) else tuple(ids), bias) for ids, bias in pairs)
    if name == "bad_words_ids" and isinstance(value, list | tuple):
        return tuple(tuple(ids) if isinstance(ids, list) else ids for ids in value)
    if name in ("eos_token_id", "forced_eos_token_id") and _whole(value):
        return (value,)
    if name == "stop" and isinstance(value, str):
        return (value,)
    return tuple(value) if isinstance(value, list) else value


# ---- published files ----

RENAMED: Final = {
    "stop_strings": "stop",
    "sequence_bias": "logit_bias",
    "prefill_chunk_size": "prefill_chunk",
}
"""Published key -> our field, where the two differ."""

OURS_ONLY: Final = frozenset(
    {"presence_penalty", "frequency_penalty", "stop", "logit_bias", "prefill_chunk"}
    | {"seed", "logprobs", "overflow"}
)

NEUTRAL: Final[Mapping[str, tuple[object, ...]]] = {
    "encoder_repetition_penalty": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "guidance_scale": (1,),
    "penalty_alpha": (0,),
    "diversity_penalty": (0,),
}
"""Published keys of behaviours that are not built, and the values at which they do nothing."""

HARMLESS: Final = frozenset(
    [
        *("_from_model_config", "transformers_version", "_commit_hash", "use_cache"),
        *("cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache"),
        *("output_attentions", "output_hidden_states", "output_scores", "output_logits"),
        *("return_dict_in_generate", "compile_config", "disable_compile", "low_memory"),
        *("is_assistant", "num_assistant_tokens", "num_assistant_tokens_schedule"),
        *("assistant_confidence_threshold", "max_matching_ngram_size", "assistant_early_exit"),
        *("assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight"),
        *("prompt_lookup_num_tokens", "speculation_type", "use_mtp"),
        *("continuous_batching_config", "_name_or_path", "model_type", "trust_remote_code"),
    ]
)
"""Published keys that change speed, memory or what is returned, never which tokens come out."""

SPECIAL_IDS: Final = ("eos_token_id", "pad_token_id", "bos_token_id", "decoder_start_token_id")

WHERE: Final = "generation_config.json"


def settings_from_published(generation: Mapping[str, Any]) -> Settings:
    """Loaded.generation, which has the keys of generation_config.json -> Settings.

    Raises ConfigError for a key that is not known and not null, false or empty, and for a value out
    of range.
    """
    values: dict[str, Any] = {}
    for key, value in generation.items():
        name = RENAMED.get(key, key)
        if value is None or key in HARMLESS:
            continue
        if name in RULES and (key in RENAMED or key not in OURS_ONLY):
            values[name] = _frozen(name, value)
        elif value not in (False, "", [], {}) and value not in NEUTRAL.get(key, ()):
            raise ConfigError(
                f"generation key {key!r} is not supported",
                where=WHERE,
                advice="name it in ignore_config to load without it",
            )
    return _published(values)


def _published(values: dict[str, Any]) -> Settings:
    """Settings from read values, after the small contradictions that published files carry."""
    for name in SPECIAL_IDS:
        if _whole(values.get(name)) and values[name] < 0:
            del values[name]  # -1 is how early LLaMA files say that there is none
    if values.get("num_beams", 1) > 1 and values.get("do_sample"):
        raise ConfigError("beam search with sampling is not supported", where=WHERE)
    if values.get("num_beam_groups", 1) == 1:
        values.pop("diversity_penalty", None)  # does nothing without groups
    if values.get("num_beams", 1) == 1 and not values.get("do_sample"):
        values.pop("num_return_sequences", None)  # greedy search has one answer
    try:
        return Settings(**values)
    except InputError as error:
        raise ConfigError(error.what, where=f"{WHERE}: {error.where}") from error
