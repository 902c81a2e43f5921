"""timm's own Vision Transformer as an oracle, without torchvision.

timm imports torchvision for its data transforms, which its ViT does not use; there is no build of
it for every machine that runs these tests. Where it is missing, empty modules take its place.
"""

from __future__ import annotations

import enum
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from typing import Any

MODES = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
INTERPOLATION = enum.Enum("InterpolationMode", {mode.upper(): mode for mode in MODES})


class _Empty(types.ModuleType):
    """A module that has a new, empty class under every name."""

    __path__: list[str] = []  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return INTERPOLATION if name == "InterpolationMode" else type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name.split(".")[0] != "torchvision":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: Any) -> types.ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def models() -> tuple[Any, Any]:
    """timm's VisionTransformer and VisionTransformerDistilled classes."""
    finder = None
    if importlib.util.find_spec("torchvision") is None:
        finder = _Finder()
        sys.meta_path.insert(0, finder)
    try:
        from timm.models.deit import VisionTransformerDistilled
        from timm.models.vision_transformer import VisionTransformer
    finally:
        if finder is not None:
            sys.meta_path.remove(finder)
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
    return VisionTransformer, VisionTransformerDistilled
