"""The sentence-transformers folder: a Transformer, then pooling, perhaps dense layers, normalising.

modules.json lists the steps; each step's settings lie in a folder of its own (`1_Pooling`, …).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from chumoku.checkpoints.files import unsafe_reason
from chumoku.checkpoints.folder import (
    inside,
    read_folder_tensors,
    read_json,
    read_json_value,
    refuse_links,
)
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.errors import CheckpointError, ConfigError

POOLING: Final = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last",
}
"""Key of 1_Pooling/config.json -> our name, in the order in which the results are joined."""

MODES: Final = {
    **{"cls": "cls", "max": "max", "mean": "mean", "mean_sqrt_len_tokens": "mean_sqrt_len"},
    **{"weightedmean": "weighted_mean", "lasttoken": "last"},
}
"""What the newer key "pooling_mode" holds (one, or a list to join in its order) -> our name."""


@dataclass(frozen=True)
class Dense:
    """y = f(W x + b) on the pooled vector."""

    weight: LazyTensor
    bias: LazyTensor | None
    activation: str


@dataclass(frozen=True)
class Sentence:
    """How token vectors become one vector for the text.

    pooling: names whose results are joined, in the published order. prompts: name -> text put in
    front. max_length: tokens kept of a text. include_prompt: False leaves the prompt's tokens out
    of the pooling. transformer: the subfolder of the Transformer; steps: those of the other steps.
    activation: of a cross-encoder's one logit, "" where the folder does not say.
    """

    pooling: tuple[str, ...] = ("mean",)
    normalize: bool = False
    dense: tuple[Dense, ...] = ()
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None
    max_length: int | None = None
    lower_case: bool = False
    include_prompt: bool = True
    transformer: str = ""
    steps: tuple[str, ...] = ()
    activation: str = ""


def read_sentence(folder: Path) -> Sentence | None:
    """The settings of a sentence-transformers folder; None where there is no modules.json."""
    listing = folder / "modules.json"
    if not listing.is_file():
        return None
    values: dict[str, Any] = {"dense": (), "steps": ()}
    for step in _steps(listing):
        kind = str(step.get("type", "")).rsplit(".", 1)[-1]
        path = str(step.get("path", ""))
        place = _step(folder, path)
        if kind != "Transformer" and path and place.is_dir():
            values["steps"] = (*values["steps"], path)
        if kind == "Transformer":
            values |= _transformer(place) | {"transformer": path}
        elif kind == "Pooling":
            values |= _pooling(place)
        elif kind == "Dense" and values.get("normalize"):
            raise ConfigError("a Dense step after Normalize is not supported", where=listing)
        elif kind == "Dense":
            values["dense"] = (*values["dense"], _dense(place))
        elif kind == "Normalize":
            values["normalize"] = True
        elif kind != "Dropout":
            raise ConfigError(
                f"sentence-transformers step {kind!r} is not supported", where=listing
            )
    settings = folder / "config_sentence_transformers.json"
    if settings.is_file():
        raw = read_json(settings)
        values["prompts"] = _prompts(raw.get("prompts") or {}, settings)
        values["default_prompt"] = raw.get("default_prompt_name")
        values["activation"] = str(raw.get("activation_fn") or "")
        if (raw.get("similarity_fn_name") or "cosine") not in ("cosine", "dot"):
            raise ConfigError(f"similarity {raw['similarity_fn_name']!r} is not supported")
    return Sentence(**values)


def _transformer(place: Path) -> dict[str, Any]:
    for name in ("sentence_bert_config.json", "sentence_roberta_config.json"):
        if (place / name).is_file():
            raw = read_json(place / name)
            length = raw.get("max_seq_length")
            return {"max_length": length, "lower_case": bool(raw.get("do_lower_case"))}
    return {}


def _pooling(place: Path) -> dict[str, Any]:
    raw = read_json(place / "config.json")
    modes = tuple(name for key, name in POOLING.items() if raw.get(key))
    newer = raw.get("pooling_mode")
    if newer is not None:
        names = [newer] if isinstance(newer, str) else newer
        unknown = [name for name in names if name not in MODES]
        if unknown:
            raise ConfigError(f"pooling mode {unknown[0]!r} is not supported", where=place)
        modes = tuple(MODES[name] for name in names)
    return {"pooling": modes or ("mean",), "include_prompt": raw.get("include_prompt", True)}


def _dense(place: Path) -> Dense:
    raw = read_json(place / "config.json")
    tensors = read_folder_tensors(place)
    ends = {raw.get("module_input_name"), raw.get("module_output_name")}
    if raw.get("use_residual") or not ends <= {None, "sentence_embedding"}:
        raise ConfigError(
            "a Dense step with a residual or for tokens is not supported", where=place
        )
    activation = str(raw.get("activation_function", "torch.nn.modules.activation.Tanh"))
    name = activation.rsplit(".", 1)[-1].lower()
    if name not in ("tanh", "identity", "relu", "gelu", "sigmoid"):
        raise ConfigError(f"activation {activation!r} is not supported", where=place)
    if "linear.weight" not in tensors:
        raise CheckpointError("a Dense step needs linear.weight", where=place)
    return Dense(tensors["linear.weight"], tensors.get("linear.bias"), name)


def _step(folder: Path, path: str) -> Path:
    """The folder of a step. Raises CheckpointError where it, or a file in it, lies elsewhere."""
    if not path:
        return folder
    if unsafe_reason(path):
        raise CheckpointError(f"modules.json points outside its folder: {path!r:.80}", where=folder)
    if (folder / path).is_dir():
        inside(folder, path)
        refuse_links(folder / path)
    return folder / path


def _steps(path: Path) -> list[dict[str, Any]]:
    steps = read_json_value(path)
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ConfigError(f"{path.name} must be a list of steps", where=path)
    return steps


def _prompts(prompts: object, where: Path) -> dict[str, str]:
    if not isinstance(prompts, dict) or not all(isinstance(p or "", str) for p in prompts.values()):
        raise ConfigError("prompts must give a text for each name", where=where)
    return {name: text or "" for name, text in prompts.items()}
