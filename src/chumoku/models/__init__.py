"""The architectures, one paper a file, imported only when one is asked for.

Every architecture module has the same parts; `Architecture` names them.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any, Final, Protocol, cast

from torch import nn

from chumoku.errors import ConfigError
from chumoku.models.names import NameTable

MODEL_TYPES: Final = {
    "bert": "bert",
    "roberta": "bert",
    "distilbert": "distilbert",
    "gpt2": "gpt2",
    "llama": "llama",
    "mistral": "llama",
    "t5": "t5",
    "mt5": "t5",
    "marian": "transformer",
    "transformer": "transformer",
    "vit": "vit",
    "deit": "vit",
}
"""model_type of a published config.json -> module of this package."""


class Architecture(Protocol):
    """What each model module exports. Config objects are that module's own Config."""

    HEADS: Mapping[str, str]

    def Model(self, config: Any, head: str) -> nn.Module: ...
    def initialise(self, model: Any) -> None: ...
    def read_config(self, raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Any: ...
    def write_config(self, config: Any, head: str) -> dict[str, Any]: ...
    def names(self, config: Any, head: str, layout: str) -> NameTable: ...


def architecture(model_type: str) -> Architecture:
    """The module for a published model_type. Raises ConfigError with the list of known ones."""
    if model_type not in MODEL_TYPES:
        raise ConfigError(
            f"architecture {model_type!r} is not supported",
            where="config.json: model_type",
            advice=f"supported: {', '.join(sorted(MODEL_TYPES))}",
        )
    return cast(Architecture, importlib.import_module(f"chumoku.models.{MODEL_TYPES[model_type]}"))
