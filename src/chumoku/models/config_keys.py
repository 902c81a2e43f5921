"""Strict reading of a published config.json: every key is read, fixed, harmless, or an error.

A model file states a `Keys` table; nothing that could change the numbers is lost in silence.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from chumoku.errors import ConfigError
from chumoku.layers.ops import ACTIVATIONS

C = TypeVar("C")

HARMLESS: Final = frozenset(
    [
        *("_name_or_path", "architectures", "transformers_version", "_commit_hash", "model_type"),
        *("torch_dtype", "dtype", "use_cache", "id2label", "label2id", "num_labels"),
        *("problem_type", "finetuning_task", "task_specific_params", "tokenizer_class", "prefix"),
        *("output_attentions", "output_hidden_states", "output_past", "return_dict"),
        *("torchscript", "use_bfloat16", "tf_legacy_loss", "gradient_checkpointing"),
        *("chunk_size_feed_forward", "is_encoder_decoder", "bos_token_id", "eos_token_id"),
        *("eos_token_ids", "pad_token_id", "sep_token_id", "decoder_start_token_id"),
        *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens"),
        *("begin_suppress_tokens", "max_length", "min_length", "do_sample", "early_stopping"),
        *("num_beams", "num_beam_groups", "diversity_penalty", "temperature", "top_k", "top_p"),
        *("typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "num_return_sequences", "output_scores"),
        *("return_dict_in_generate", "remove_invalid_values", "max_new_tokens"),
        *("exponential_decay_length_penalty", "min_new_tokens", "language", "directionality"),
        *("sentence_transformers", "sbert_ce_default_activation_function"),  # read by rerank
    ]
)
"""Keys of the published base class that say how to generate, log or label, not how to compute."""


@dataclass(frozen=True)
class Keys:
    """reads: published key -> our field (the first key that maps to a field is the one written).

    fixed: published key -> values that change nothing; any other value is refused.
    harmless: further keys that do not touch the forward pass. special: keys that the model's own
    read_config() handles. required: published keys that must be present.
    """

    reads: Mapping[str, str]
    fixed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    special: frozenset[str] = frozenset()
    required: tuple[str, ...] = ()


def read(raw: Mapping[str, Any], keys: Keys, ignore: Collection[str] = ()) -> dict[str, Any]:
    """Our fields and their values. Raises ConfigError for unknown, fixed or missing keys."""
    unknown: list[str] = []
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if key in ignore:
            continue
        if key in keys.reads:
            name = keys.reads[key]
            if name in values and value is not None and values[name] != value:
                raise ConfigError(f"config keys disagree on {name}", where=key)
            if value is not None:
                values[name] = value
        elif key in keys.fixed:
            if value is not None and not any(value == v for v in keys.fixed[key]):
                allowed = " or ".join(repr(v) for v in keys.fixed[key])
                raise ConfigError(
                    f"config key {key!r} is {value!r}; this model supports {allowed}", where=key
                )
        elif key not in keys.special and key not in keys.harmless | HARMLESS and not _empty(value):
            unknown.append(key)
    if unknown:
        raise ConfigError(
            f"unknown config keys that may matter: {', '.join(sorted(unknown))}",
            where="config.json",
            advice=f"if they do not, pass ignore_config={sorted(unknown)!r}",
        )
    missing = [key for key in keys.required if raw.get(key) is None and key not in ignore]
    if missing:
        raise ConfigError(f"config keys are missing: {', '.join(missing)}", where="config.json")
    return values


def _empty(value: object) -> bool:
    return value is None or value is False or value in ("", [], {}, ())


def build(config: type[C], values: Mapping[str, Any]) -> C:
    """config(**values), every value checked against its field's type."""
    hints = typing.get_type_hints(config)
    checked = {name: _checked(name, value, hints[name]) for name, value in values.items()}
    return config(**checked)


LARGEST: Final = 2**31 - 1
MOST_BLOCKS: Final = 10_000
"""Bounds on what a hostile config can make a loader build before it meets the tensors."""


def _checked(name: str, value: Any, hint: Any) -> Any:
    kinds = typing.get_args(hint) if typing.get_origin(hint) is types.UnionType else (hint,)
    most = MOST_BLOCKS if name.endswith("blocks") else LARGEST
    if type(value) is int and abs(value) > most:
        raise ConfigError(f"{name} is {value:.3e}, the largest possible is {most}", where=name)
    if float in kinds and type(value) is int:
        value = float(value)
    if type(value) in kinds:
        if type(value) is int and value < 0:
            raise ConfigError(f"{name} must not be negative, it is {value}", where=name)
        if type(value) is float and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}, not a number", where=name)
        if type(value) is float and name.endswith("dropout") and not 0 <= value <= 1:
            raise ConfigError(f"{name} must lie between 0 and 1, it is {value}", where=name)
        return value
    if not {int, float, bool, str} & set(kinds):
        return value  # made by the model's own reader
    wanted = " or ".join(getattr(k, "__name__", str(k)) for k in kinds)
    raise ConfigError(f"{name} must be {wanted}, it is {value!r}", where=name)


def write(config: Any, keys: Keys) -> dict[str, Any]:
    """The published keys of a config: the inverse of read() + build()."""
    published: dict[str, Any] = {}
    written: set[str] = set()
    names = {f.name for f in dataclasses.fields(config)}
    for key, name in keys.reads.items():
        if name in names and name not in written:
            published[key] = getattr(config, name)
            written.add(name)
    return published


def token_ids(raw: Mapping[str, Any], key: str, default: tuple[int, ...]) -> tuple[int, ...]:
    """A key that holds one token id or a list of them (eos_token_id); `default` where absent."""
    value = raw.get(key)
    if value is None:
        return default
    ids = tuple(value) if isinstance(value, list) else (value,)
    if not ids or any(type(i) is not int or i < 0 for i in ids):
        raise ConfigError(f"{key} must be a token id or a list of them, it is {value!r}", where=key)
    return ids


def one_or_list(ids: tuple[int, ...]) -> int | list[int]:
    """The inverse of token_ids()."""
    return ids[0] if len(ids) == 1 else list(ids)


MOST_LABELS: Final = 1 << 20


def labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes, from id2label, else from num_labels, else two of them.

    Where an id2label of another size than num_labels is left over from a default, num_labels wins.
    """
    names = raw.get("id2label")
    count = raw.get("num_labels")
    if isinstance(names, Mapping) and (count is None or len(names) == count):
        try:
            table = {int(key): str(value) for key, value in names.items()}
        except (TypeError, ValueError) as error:
            raise ConfigError("id2label must map numbers to names", where="id2label") from error
        if sorted(table) != list(range(len(table))):
            raise ConfigError("id2label must number the labels 0, 1, 2, …", where="id2label")
        return tuple(table[i] for i in range(len(table)))
    size = 2 if count is None else count
    if not isinstance(size, int) or not 1 <= size <= MOST_LABELS:
        raise ConfigError(f"num_labels must be a positive whole number, not {size!r}")
    return tuple(f"LABEL_{i}" for i in range(size))


def write_labels(names: tuple[str, ...]) -> dict[str, Any]:
    """id2label and label2id."""
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def divides(part: int, whole: int, what: str) -> int:
    """whole // part, or ConfigError where part does not divide it."""
    if part <= 0 or whole % part:
        raise ConfigError(f"{what}: {whole} is not a multiple of {part}")
    return whole // part


def known_activation(name: str) -> None:
    """Raise ConfigError for an activation that layers/ops.py does not have."""
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"unknown activation {name!r}", advice=f"known: {', '.join(sorted(ACTIVATIONS))}"
        )
