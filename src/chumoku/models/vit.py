"""The Vision Transformer (Dosovitskiy et al., 2010.11929), and DeiT (Touvron et al., 2012.12877).

An encoder with pre-normalisation that reads an image as a row of patches behind a class token.
DeiT's distilled models have one more token, which learned from a teacher.

Shape letters: B batch, C channels, H image height, W image width, P patch, T position (class token,
then patches row by row), D model width, F feed-forward width, N heads.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.attention import Attention, Shape, Visible
from chumoku.layers.dropout import Dropout
from chumoku.layers.feedforward import FeedForward
from chumoku.layers.ops import ACTIVATIONS, patches
from chumoku.layers.positions import resized_grid
from chumoku.layers.taps import ResidualTaps, Tap
from chumoku.models import config_keys
from chumoku.models.heads import unknown_head
from chumoku.models.names import NameTable, head_rules, rule


@dataclass(frozen=True)
class Config:
    """Defaults are ViT-B/16's. image, patch: (height, width) in pixels.

    antialias: positions are smoothed when resized for an image of another size (timm's habit).
    model_type: "vit", or "deit" for the models with a distillation token.
    """

    image: tuple[int, int] = (224, 224)
    patch: tuple[int, int] = (16, 16)
    channels: int = 3
    width: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    feedforward_width: int = 3072
    activation: str = "gelu"
    norm_eps: float = 1e-12
    attention_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    pooler_width: int = 768
    pooler_activation: str = "tanh"
    antialias: bool = False
    init_std: float = 0.02
    model_type: str = "vit"
    labels: tuple[str, ...] = ("LABEL_0", "LABEL_1")
    problem_type: str | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.image[0] // self.patch[0], self.image[1] // self.patch[1]

    @property
    def num_tokens(self) -> int:
        """Tokens before the patches: the class token, and DeiT's distillation token."""
        return 2 if self.model_type == "deit" else 1


class Embeddings(nn.Module):
    """[class; (distillation;) W p + b of each patch] + positions (equation 1)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        rows, columns = config.grid
        flat = config.channels * config.patch[0] * config.patch[1]
        self.patch = nn.Linear(flat, config.width)
        # Not called `class`, which is a keyword: parameters are reached by name, see tokens().
        self.register_parameter("class", nn.Parameter(torch.zeros(1, 1, config.width)))
        self.distillation: nn.Parameter | None = None
        if config.num_tokens == 2:
            self.distillation = nn.Parameter(torch.zeros(1, 1, config.width))
        count = config.num_tokens + rows * columns
        self.position = nn.Parameter(torch.zeros(1, count, config.width))
        self.dropout = Dropout(config.dropout)
        self.config = config

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        size = self.config.patch
        new = pixels_BCHW.shape[2] // size[0], pixels_BCHW.shape[3] // size[1]
        x_BTD = self.patch(patches(pixels_BCHW, size))
        x_BTD = torch.cat((*self.tokens(x_BTD.shape[0]), x_BTD), dim=1)
        return self.dropout(x_BTD + self.positions(new))  # type: ignore[no-any-return]

    def tokens(self, rows: int) -> list[Tensor]:
        """The tokens before the patches, each [rows, 1, D]."""
        # The name is a keyword; torch.compile cannot follow get_parameter() to it.
        learned = (self._parameters["class"], self.distillation)
        return [token.expand(rows, -1, -1) for token in learned if token is not None]

    def positions(self, grid: tuple[int, int]) -> Tensor:
        """Position vectors for a grid of patches, [1, T, D]; resized from the config's grid."""
        config = self.config
        first, table = self.position.tensor_split([config.num_tokens], dim=1)
        table = resized_grid(table, config.grid, grid, antialias=config.antialias)
        return torch.cat((first, table), dim=1)


class Block(nn.Module):
    """Pre-normalisation (equations 2 and 3)."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        head_width = config_keys.divides(config.num_heads, config.width, "width over heads")
        self.attention_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attention = Attention(
            Shape(config.width, config.num_heads, head_width),
            bias=config.attention_bias,
            output_bias=True,
            dropout=config.attention_dropout,
        )
        self.feedforward_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.feedforward = FeedForward(config.width, config.feedforward_width, config.activation)
        self.dropout = Dropout(config.dropout)
        self.residual = ResidualTaps()

    def forward(self, x_BTD: Tensor, seen: Visible) -> Tensor:
        x_BTD = self.residual.input(x_BTD)
        a_BTD = self.attention(*self.attention.project(self.attention_norm(x_BTD)), seen)
        x_BTD = self.residual.attention(x_BTD + self.dropout(a_BTD))
        f_BTD = self.feedforward(self.feedforward_norm(x_BTD))
        return self.residual.feedforward(x_BTD + self.dropout(f_BTD))  # type: ignore[no-any-return]


class Pooler(nn.Module):
    """f(W h + b) of the class token's hidden state: [B, pooler width]."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.output = nn.Linear(config.width, config.pooler_width)
        self.activation = ACTIVATIONS[config.pooler_activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.activation(self.output(x_BTD[:, 0]))


class ClassHead(nn.Module):
    """One linear layer on the class token: [B, classes]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.output(x_BTD[:, 0])  # type: ignore[no-any-return]


class DistilledHead(nn.Module):
    """The mean of two classifiers, of the class and of the distillation token: [B, classes].

    2012.12877, section 4, adds the two softmax outputs; the published code means the logits.
    """

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.output = nn.Linear(width, classes)
        self.distillation = nn.Linear(width, classes)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return (self.output(x_BTD[:, 0]) + self.distillation(x_BTD[:, 1])) / 2  # type: ignore[no-any-return]


HEADS: Final = {
    "image-classification": "ForImageClassification",
    "distilled-classification": "ForImageClassificationWithTeacher",
    "encoder": "Model",
}
"""Our head -> the published class name after "ViT" or "DeiT"; the second belongs to DeiT alone."""

PUBLISHED: Final = {"vit": "ViT", "deit": "DeiT"}

OPTIONAL: Final = ("pooler",)
"""Modules of a bare encoder that some files leave out."""


def _head(head: str, config: Config) -> nn.Module | None:
    classes = len(config.labels)
    if head == "encoder":
        return None
    if head == "image-classification":
        return ClassHead(config.width, classes)
    if head == "distilled-classification" and config.model_type == "deit":
        return DistilledHead(config.width, classes)
    raise unknown_head(head, tuple(HEADS))


class Model(nn.Module):
    """head: a name of HEADS; "encoder" is the bare stack and returns the last hidden states."""

    def __init__(self, config: Config, head: str = "image-classification") -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_blocks))
        self.final_norm = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.pooler = Pooler(config) if head == "encoder" else None
        self.head_name = head
        self.head = _head(head, config)
        self.logits = Tap()

    def hidden(self, pixels_BCHW: Tensor) -> Tensor:
        """The stack, up to and with the final norm: [B, T, D].

        pixels_BCHW: prepared as images.py does. An image of another size than the config's is
        read at its own resolution, with resized positions; pixels beyond whole patches are cut.
        Raises InputError for another number of channels, or less than one patch.
        """
        self._check(pixels_BCHW)
        x_BTD = self.embeddings(pixels_BCHW)
        seen = Visible(None, causal=False)
        for block in self.blocks:
            x_BTD = block(x_BTD, seen)
        return self.final_norm(x_BTD)  # type: ignore[no-any-return]

    def _check(self, pixels_BCHW: Tensor) -> None:
        shape, config = tuple(pixels_BCHW.shape), self.config
        if len(shape) != 4 or shape[1] != config.channels:
            raise InputError(
                f"pixels must be [images, {config.channels}, height, width], not {list(shape)}"
            )
        if shape[2] < config.patch[0] or shape[3] < config.patch[1]:
            raise InputError(f"an image of {shape[2:]} is less than one patch of {config.patch}")

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """Class logits [B, classes]; bare: hidden states [B, T, D]."""
        x_BTD = self.hidden(pixels_BCHW)
        return x_BTD if self.head is None else self.logits(self.head(x_BTD))


def initialise(model: Model) -> None:
    """Matrices, tokens and positions N(0, init_std), biases 0, norms 1.

    The published code truncates at 2, a hundred deviations: that is the same distribution.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=model.config.init_std)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for table in model.embeddings.parameters(recurse=False):
        nn.init.normal_(table, std=model.config.init_std)


# ---- published files ----

KEYS: Final = config_keys.Keys(
    reads={
        "num_channels": "channels",
        "hidden_size": "width",
        "num_hidden_layers": "num_blocks",
        "num_attention_heads": "num_heads",
        "intermediate_size": "feedforward_width",
        "hidden_act": "activation",
        "layer_norm_eps": "norm_eps",
        "qkv_bias": "attention_bias",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
        "pooler_output_size": "pooler_width",
        "pooler_act": "pooler_activation",
        "interpolate_antialias": "antialias",
        "initializer_range": "init_std",
        "model_type": "model_type",
        "problem_type": "problem_type",
    },
    special=frozenset({"image_size", "patch_size"}),
    harmless=frozenset({"encoder_stride", "tie_word_embeddings"}),
)
"""encoder_stride belongs to masked image modelling, a head that is not supported.

interpolate_antialias is our own addition, written for models that come from timm.
"""


def read_config(raw: Mapping[str, Any], ignore: Collection[str] = ()) -> Config:
    """config.json -> Config. Raises ConfigError."""
    values = config_keys.read(raw, KEYS, ignore)
    for key, name in (("image_size", "image"), ("patch_size", "patch")):
        if raw.get(key) is not None:
            values[name] = _pair(raw[key], key)
    values = {"pooler_width": values.get("width", Config.width)} | values
    config = config_keys.build(Config, {**values, "labels": config_keys.labels(raw)})
    config_keys.divides(config.num_heads, config.width, "width over heads")
    config_keys.known_activation(config.activation)
    config_keys.known_activation(config.pooler_activation)
    if 0 in config.grid:
        raise ConfigError(f"an image of {config.image} is less than one patch of {config.patch}")
    if config.model_type not in PUBLISHED:
        raise ConfigError(f"model_type {config.model_type!r} is not ViT or DeiT")
    return config


def _pair(value: Any, key: str) -> tuple[int, int]:
    """One number for a square, or [height, width]."""
    sides = [value, value] if type(value) is int else value
    if not isinstance(sides, Sequence) or [type(v) for v in sides] != [int, int] or min(sides) < 1:
        raise ConfigError(f"{key} must be one or two positive whole numbers, not {value!r}")
    return sides[0], sides[1]


def write_config(config: Config, head: str) -> dict[str, Any]:
    """Config -> config.json."""
    raw = config_keys.write(config, KEYS)
    if not config.antialias:
        del raw["interpolate_antialias"]
    for key, sides in (("image_size", config.image), ("patch_size", config.patch)):
        raw[key] = sides[0] if sides[0] == sides[1] else list(sides)
    architecture = PUBLISHED[config.model_type] + HEADS[head]
    return {"architectures": [architecture], **raw, **config_keys.write_labels(config.labels)}


def names(config: Config, head: str, layout: str) -> NameTable:
    """Published names of layout "hub" or "timm" <-> ours."""
    # A patch is stored as a convolution's kernel; its numbers lie in the order of our rows.
    kernel = (config.width, config.channels, *config.patch)
    if layout == "timm":
        patch = rule("patch_embed.proj.weight", "embeddings.patch.weight", shape=kernel)
        return NameTable((patch, *TIMM), head_rules(TIMM_HEADS, head))
    patch = rule(f"{_KERNEL}.weight", "embeddings.patch.weight", shape=kernel)
    heads = head_rules(HUB_HEADS, head)
    return NameTable((patch, *HUB), heads, f"{config.model_type}.", aliases=ALIASES)


_A = "blocks.{n}.attention"
_F = "blocks.{n}.feedforward"
_KERNEL = "embeddings.patch_embeddings.projection"

HUB: Final = (
    rule(f"{_KERNEL}.bias", "embeddings.patch.bias"),
    rule("embeddings.cls_token", "embeddings.class"),
    rule("embeddings.distillation_token", "embeddings.distillation"),
    rule("embeddings.position_embeddings", "embeddings.position"),
    rule("encoder.layer.{n}.layernorm_before.{p}", f"{_A}_norm.{{p}}"),
    rule("encoder.layer.{n}.attention.attention.query.{p}", f"{_A}.query.{{p}}"),
    rule("encoder.layer.{n}.attention.attention.key.{p}", f"{_A}.key.{{p}}"),
    rule("encoder.layer.{n}.attention.attention.value.{p}", f"{_A}.value.{{p}}"),
    rule("encoder.layer.{n}.attention.output.dense.{p}", f"{_A}.output.{{p}}"),
    rule("encoder.layer.{n}.layernorm_after.{p}", f"{_F}_norm.{{p}}"),
    rule("encoder.layer.{n}.intermediate.dense.{p}", f"{_F}.up.{{p}}"),
    rule("encoder.layer.{n}.output.dense.{p}", f"{_F}.down.{{p}}"),
    rule("layernorm.{p}", "final_norm.{p}"),
    rule("pooler.dense.{p}", "pooler.output.{p}"),
)

ALIASES: Final = (
    (r"(^|\.)layers\.(\d+)\.attention\.q_proj\.", r"\1encoder.layer.\2.attention.attention.query."),
    (r"(^|\.)layers\.(\d+)\.attention\.k_proj\.", r"\1encoder.layer.\2.attention.attention.key."),
    (r"(^|\.)layers\.(\d+)\.attention\.v_proj\.", r"\1encoder.layer.\2.attention.attention.value."),
    (r"(^|\.)layers\.(\d+)\.attention\.o_proj\.", r"\1encoder.layer.\2.attention.output.dense."),
    (r"(^|\.)layers\.(\d+)\.mlp\.fc1\.", r"\1encoder.layer.\2.intermediate.dense."),
    (r"(^|\.)layers\.(\d+)\.mlp\.fc2\.", r"\1encoder.layer.\2.output.dense."),
    (r"(^|\.)layers\.(\d+)\.layernorm_", r"\1encoder.layer.\2.layernorm_"),
)
"""Names inside transformers 5, which still saves under the names above."""

HUB_HEADS: Final = {
    "image-classification": (rule("classifier.{p}", "head.output.{p}"),),
    "distilled-classification": (
        rule("cls_classifier.{p}", "head.output.{p}"),
        rule("distillation_classifier.{p}", "head.distillation.{p}"),
    ),
}

TIMM: Final = (
    rule("patch_embed.proj.bias", "embeddings.patch.bias"),
    rule("cls_token", "embeddings.class"),
    rule("dist_token", "embeddings.distillation"),
    rule("pos_embed", "embeddings.position"),
    rule("blocks.{n}.norm1.{p}", f"{_A}_norm.{{p}}"),
    rule(
        "blocks.{n}.attn.qkv.{p}",
        f"{_A}.query.{{p}}",
        f"{_A}.key.{{p}}",
        f"{_A}.value.{{p}}",
    ),
    rule("blocks.{n}.attn.proj.{p}", f"{_A}.output.{{p}}"),
    rule("blocks.{n}.norm2.{p}", f"{_F}_norm.{{p}}"),
    rule("blocks.{n}.mlp.fc1.{p}", f"{_F}.up.{{p}}"),
    rule("blocks.{n}.mlp.fc2.{p}", f"{_F}.down.{{p}}"),
    rule("norm.{p}", "final_norm.{p}"),
)

TIMM_HEADS: Final = {
    "image-classification": (rule("head.{p}", "head.output.{p}"),),
    "distilled-classification": (
        rule("head.{p}", "head.output.{p}"),
        rule("head_dist.{p}", "head.distillation.{p}"),
    ),
}
