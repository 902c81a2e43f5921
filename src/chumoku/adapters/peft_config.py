"""PEFT's adapter_config.json for LoRA, as peft 0.7 to 0.21 write it; strict about what matters."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from chumoku.adapters.layers import LoRASettings
from chumoku.errors import ConfigError

BIASES: Final = {"none": "none", "all": "all", "lora_only": "lora"}
"""PEFT's word -> ours."""

READ: Final = frozenset(
    {"peft_type", "r", "lora_alpha", "lora_dropout", "bias", "use_rslora", "use_dora"}
    | {"rank_pattern", "alpha_pattern", "init_lora_weights"}
)

HARMLESS: Final = frozenset(
    # Which layers: the file's own tensors say it.
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
    | {"modules_to_save", "fan_in_fan_out"}
    # Where it comes from, and how it is run.
    | {"auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"}
    | {"task_type", "megatron_config", "megatron_core", "runtime_config"}
    # How other kinds begin: they stand behind a switch that is refused.
    | {"loftq_config", "eva_config", "corda_config", "lora_ga_config", "qalora_group_size"}
)
"""Keys that say nothing about the adapter's numbers. Any other key must be null, false or empty."""

STARTS: Final = (True, False, "gaussian", "eva")
"""Values of init_lora_weights under which the base stays as it is."""

MAX_PATTERN: Final = 200

T = TypeVar("T", int, float)


@dataclass(frozen=True)
class PeftConfig:
    """What the file says of the numbers. ranks, alphas: pattern of a module's name -> value."""

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False
    bias: str = "none"
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        return _fitting(self.ranks, module, self.rank)

    def alpha_of(self, module: str) -> float:
        return _fitting(self.alphas, module, self.alpha)


def _fitting(patterns: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first pattern that is the whole name or its end after a dot."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def read_peft_config(raw: Mapping[str, Any], where: object) -> PeftConfig:
    """adapter_config.json -> PeftConfig. Raises ConfigError."""
    kind = raw.get("peft_type")
    if kind != "LORA":
        raise ConfigError(f"peft_type is {kind!r}; only LORA is known", where=where)
    for key, value in raw.items():
        if key not in READ | HARMLESS and value not in (None, False, "", [], {}):
            raise ConfigError(f"{key} is {value!r:.60}, which is not supported", where=where)
    start = raw.get("init_lora_weights", True)
    if start not in STARTS:
        raise ConfigError(
            f"init_lora_weights is {start!r:.60}: this adapter belongs to a base that was changed",
            where=where,
            advice="let peft convert it: save_pretrained(…, path_initial_model_for_weight_"
            "conversion=…)",
        )
    bias = raw.get("bias", "none")
    if bias not in BIASES:
        raise ConfigError(f"bias is {bias!r:.60}, not {', '.join(BIASES)}", where=where)
    return PeftConfig(
        rank=_rank(raw.get("r", 8), where),
        alpha=_number(raw.get("lora_alpha", 8), "lora_alpha", where),
        dropout=_number(raw.get("lora_dropout", 0.0), "lora_dropout", where),
        rslora=_switch(raw, "use_rslora", where),
        dora=_switch(raw, "use_dora", where),
        bias=BIASES[bias],
        ranks={p: _rank(v, where) for p, v in _patterns(raw, "rank_pattern", where).items()},
        alphas={
            p: _number(v, "alpha_pattern", where)
            for p, v in _patterns(raw, "alpha_pattern", where).items()
        },
    )


def _rank(value: Any, where: object) -> int:
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ConfigError(f"a rank is a whole number from 1, not {value!r:.60}", where=where)
    return value


def _number(value: Any, key: str, where: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{key} must be a number, not {value!r:.60}", where=where)
    return float(value)


def _switch(raw: Mapping[str, Any], key: str, where: object) -> bool:
    value = raw.get(key) or False
    if not isinstance(value, bool):
        raise ConfigError(f"{key} must be true or false, not {value!r:.60}", where=where)
    return value


def _patterns(raw: Mapping[str, Any], key: str, where: object) -> Mapping[str, Any]:
    """Patterns are regular expressions; those that could take for ever are refused."""
    patterns = raw.get(key) or {}
    if not isinstance(patterns, Mapping):
        raise ConfigError(f"{key} must be an object, not {patterns!r:.60}", where=where)
    for pattern in patterns:
        repeats = len(re.findall(r"[*+{]", pattern))
        if len(pattern) > MAX_PATTERN or repeats > 2 or re.search(r"\)\s*[*+?{]", pattern):
            raise ConfigError(f"{key}: {pattern[:60]!r} is no plain pattern", where=where)
        try:
            re.compile(rf"(.*\.)?({pattern})$")
        except re.error as error:
            raise ConfigError(f"{key}: {pattern[:60]!r}: {error}", where=where) from error
    return patterns


def write_peft_config(
    settings: LoRASettings,
    ranks: Mapping[str, int],
    alphas: Mapping[str, float],
    targets: list[str],
    whole: list[str],
    *,
    base: str,
    task: str | None,
    transposed: bool,
) -> dict[str, Any]:
    """adapter_config.json. ranks, alphas: of every adapted module, by its published name.

    The values that most modules have stand in r and lora_alpha, the others in the patterns.
    """
    rank, alpha = _commonest(ranks), _commonest(alphas)
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": _plain(alpha),
        "lora_dropout": settings.dropout,
        "target_modules": targets,
        "modules_to_save": whole or None,
        "bias": next(word for word, ours in BIASES.items() if ours == settings.train_bias),
        "use_rslora": settings.scaling == "rslora",
        "use_dora": settings.dora,
        "rank_pattern": {m: r for m, r in ranks.items() if r != rank},
        "alpha_pattern": {m: _plain(a) for m, a in alphas.items() if a != alpha},
        "fan_in_fan_out": transposed,
        "init_lora_weights": True,
    }


def _commonest(values: Mapping[str, T]) -> T:
    found = list(values.values())
    return max(dict.fromkeys(found), key=found.count)


def _plain(value: float) -> float:
    """A whole number without a point, as people write it."""
    return int(value) if value == int(value) else value
