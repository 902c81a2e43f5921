"""timm's folders of a ViT or DeiT: its config.json says little, the tensors say the rest.

Source: timm's models/vision_transformer.py and deit.py. Its tensors' names are in vit.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from chumoku.errors import ConfigError
from chumoku.models import config_keys
from chumoku.models.vit import HEADS, PUBLISHED

MODELS: Final = re.compile(
    r"(vit|deit)_(tiny|small|base|large|huge|giant|gigantic)(_distilled)?_patch\d+_\d+(_miil)?"
)
"""timm's architectures of exactly this shape; many others share the beginning of the name."""

NUM_HEADS: Final = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1408: 16, 1664: 16}
"""Model width -> attention heads, for those architectures."""

ARGUMENTS: Final = frozenset(
    {
        "global_pool",
        "class_token",
        "img_size",
        "patch_size",
        "in_chans",
        "num_classes",
        "embed_dim",
        "depth",
        "mlp_ratio",
    }
    | {"num_heads", "qkv_bias", "dynamic_img_size", "dynamic_img_pad", "drop_path_rate"}
    | {"drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate", "weight_init"}
)
"""model_args that are read here, or can be seen in the tensors, or act in training alone."""


def config_from_timm(raw: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """timm's config.json and the shapes of the tensors -> config.json of the hub.

    Dropout is 0, as in timm's own loading. Raises ConfigError for an architecture of another shape.
    """
    name = str(raw.get("architecture", "")).split(".")[0]
    arguments = raw.get("model_args") or {}
    _check(name, raw, arguments, shapes)
    data = {**raw, **(raw.get("pretrained_cfg") or {})}
    width, channels, *patch = shapes["patch_embed.proj.weight"]
    heads = arguments.get("num_heads") or (2 if name == "test_vit" else NUM_HEADS.get(width))
    if heads is None:
        raise ConfigError(f"the number of heads of {name!r} with width {width} is not known")
    model_type = "deit" if "dist_token" in shapes else "vit"
    classes = shapes.get("head.weight", (0,))[0]
    head = "distilled-classification" if model_type == "deit" else "image-classification"
    return {
        "model_type": model_type,
        "architectures": [PUBLISHED[model_type] + HEADS[head if classes else "encoder"]],
        "image_size": arguments.get("img_size") or list(data.get("input_size", (3, 224, 224)))[1:],
        "patch_size": patch,
        "num_channels": channels,
        "hidden_size": width,
        "num_hidden_layers": len({k.split(".")[1] for k in shapes if k.startswith("blocks.")}),
        "num_attention_heads": heads,
        "intermediate_size": shapes["blocks.0.mlp.fc1.weight"][0],
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
        "qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "interpolate_antialias": True,
        **(_labels(data.get("label_names"), classes) if classes else {}),
    }


def _check(
    name: str,
    raw: Mapping[str, Any],
    arguments: Mapping[str, Any],
    shapes: Mapping[str, Sequence[int]],
) -> None:
    pooling = arguments.get("global_pool", raw.get("global_pool", "token"))
    odd = sorted(k for k, v in arguments.items() if v and k not in ARGUMENTS)
    if odd or pooling != "token" or not (MODELS.fullmatch(name) or name == "test_vit"):
        raise ConfigError(
            f"timm architecture {name!r} is not a plain ViT or DeiT",
            where=f"model_args: {', '.join(odd)}" if odd else "architecture, global_pool",
            advice="supported: vit_{tiny…gigantic}_patchP_S, deit_{tiny…base}_patchP_S, distilled",
        )
    needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [key for key in needed if key not in shapes]
    if missing or len(shapes["patch_embed.proj.weight"]) != 4:
        raise ConfigError(f"these are no tensors of {name!r}", where=", ".join(missing))


def _labels(names: Any, classes: int) -> dict[str, Any]:
    if not isinstance(names, Sequence) or len(names) != classes:
        names = [f"LABEL_{n}" for n in range(classes)]
    return config_keys.write_labels(tuple(str(name) for name in names))
