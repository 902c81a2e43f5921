"""The architectures, one paper a file, imported only when one is asked for.

Every architecture module has the same parts; `Architecture` names them. What a layout other than
the hub's says of an architecture lies beside it, in a file named after both (`llama_gguf.py`).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final, Protocol, cast

from torch import Tensor, nn

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

GGUF: Final = ("llama", "gpt2")
"""Modules of this package that GGUF files hold, under the same names there."""


class Architecture(Protocol):
    """What each model module exports. Config objects are that module's own Config.

    A published class is called PUBLISHED[model_type] + HEADS[head]. OPTIONAL: modules of the model
    that some files leave out.
    """

    HEADS: Mapping[str, str]
    PUBLISHED: Mapping[str, str]
    OPTIONAL: tuple[str, ...]

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


class GGUFLayout(Protocol):
    """What each of the GGUF modules exports, e.g. llama_gguf.py."""

    def config_from_gguf(
        self,
        metadata: Mapping[str, Any],
        tensors: Collection[str],
        read: Callable[[str], Tensor],
    ) -> dict[str, Any]: ...
    def gguf_metadata(self, config: Any) -> dict[str, Any]: ...
    def gguf_tensors(self, config: Any) -> dict[str, Tensor]: ...


def gguf_layout(name: str) -> GGUFLayout:
    """The GGUF layout of an architecture. name: one of GGUF."""
    return cast(GGUFLayout, importlib.import_module(f"chumoku.models.{name}_gguf"))
