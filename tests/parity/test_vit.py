"""ViT and DeiT against transformers and timm: heads, oblong images and patches, resolutions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from parity import harness, timm_vit
from torch import Tensor

from chumoku.errors import ConfigError, InputError
from chumoku.layers.ops import ACTIVATIONS
from chumoku.models import vit, vit_timm

GOLDEN = Path(__file__).parents[1] / "golden" / "config_keys.json"
EVERY_ACTIVATION = sorted(set(ACTIVATIONS) & set(transformers.activations.ACT2FN))
CASES = [("vit", "image-classification"), ("vit", "encoder")] + [
    ("deit", head) for head in vit.HEADS
]
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]


def published(kind: str, head: str, seed: int, **more: Any) -> Any:
    draw = harness.sampler(kind, head, seed)
    heads = draw.choice([1, 2, 3, 5])
    patch = draw.choice([2, 3, 5])
    side = patch * draw.randint(2, 4)
    values: dict[str, Any] = {
        "hidden_size": heads * draw.choice([4, 7, 10]),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "intermediate_size": draw.randint(9, 60),
        "hidden_act": EVERY_ACTIVATION[(seed * 5 + len(head)) % len(EVERY_ACTIVATION)],
        "hidden_dropout_prob": draw.choice([0.1, 0.3]),
        "attention_probs_dropout_prob": draw.choice([0.1, 0.2]),
        "layer_norm_eps": draw.choice([1e-12, 1e-6, 1e-3]),
        "image_size": side + draw.choice([0, 1]),
        "patch_size": patch,
        "num_channels": draw.choice([1, 3, 4]),
        "qkv_bias": draw.random() < 0.7,
        "pooler_output_size": draw.randint(3, 20),
        "pooler_act": draw.choice(["tanh", "relu", "gelu"]),
        "num_labels": draw.randint(2, 6),
    }
    if seed % 4 == 3:  # an oblong image, oblong patches
        values |= {"image_size": [side, side + 2 * patch], "patch_size": [patch, patch + 1]}
    name = vit.PUBLISHED[kind]
    config = getattr(transformers, f"{name}Config")(**(values | more))
    return getattr(transformers, name + vit.HEADS[head])(config)


def saved(theirs: Any, folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and config of the folder that the published implementation writes."""
    theirs.save_pretrained(folder)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    return safetensors.torch.load_file(folder / "model.safetensors"), raw


def make_pair(theirs: Any, head: str, folder: Path, seed: int) -> harness.Pair:
    """As harness.make_pair, by way of saved files: transformers 5 has other names in memory."""
    harness.randomise(theirs, seed)
    tensors, raw = saved(theirs, folder)
    config = vit.read_config(raw)
    assert config == vit.read_config(vit.write_config(config, head))
    ours = vit.Model(config, head).eval()
    table = vit.names(config, head, "hub")
    ours.load_state_dict(harness.to_ours(tensors, table, ours))
    in_memory = harness.to_ours(theirs.state_dict(), table, ours)
    assert all(torch.equal(in_memory[n], t) for n, t in ours.state_dict().items())
    published_names = set()
    for name, tensor in ours.state_dict().items():
        rule, key, part = table.publish(name, prefixed=head != "encoder")  # type: ignore[misc]
        assert part == 0
        back = tensor if rule.shape is None else tensor.reshape(rule.shape)
        assert torch.equal(back, tensors[key])
        published_names.add(key)
    assert published_names == set(tensors)
    return harness.Pair(theirs.eval(), ours, table, head)


def pixels(config: Any, seed: int, size: tuple[int, int] | None = None) -> Tensor:
    size = config.image if size is None else size
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, config.channels, *size, generator=generator)


def runs(image: Tensor, head: str, **options: Any) -> tuple[harness.Run, harness.Run]:
    def theirs(model: Any) -> Any:
        out = model(image.to(model.dtype), **options)
        if head == "encoder":
            return out.last_hidden_state, out.pooler_output
        return out.logits

    def ours(model: Any) -> Any:
        mine = image.to(model.embeddings.position.dtype)
        if head == "encoder":
            hidden = model(mine)
            return hidden, model.pooler(hidden)
        return model(mine)

    return theirs, ours


def swaps(ours: Any) -> list[tuple[str, str]]:
    names = dict(ours.named_parameters())
    pairs = [
        ("blocks.0.attention_norm.weight", "blocks.0.feedforward_norm.weight"),
        ("blocks.0.attention.key.weight", "blocks.0.attention.value.weight"),
        ("blocks.0.attention.output.bias", "blocks.0.feedforward.down.bias"),
        ("embeddings.patch.bias", "final_norm.bias"),
    ]
    if "embeddings.distillation" in names:
        pairs.append(("embeddings.class", "embeddings.distillation"))
    if "head.distillation.bias" in names:
        pairs.append(("head.output.weight", "head.distillation.weight"))
    return pairs


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_equals_published(kind: str, head: str, seed: int, tmp_path: Path) -> None:
    pair = make_pair(published(kind, head, seed), head, tmp_path, seed)
    theirs, ours = runs(pixels(pair.ours.config, seed), head)
    harness.check_all(pair, theirs, ours, swaps(pair.ours))


@pytest.mark.parametrize("name", EVERY_ACTIVATION)
def test_every_activation_equals_published(name: str, tmp_path: Path) -> None:
    theirs = published("vit", "encoder", 1, hidden_act=name, pooler_act=name)
    pair = make_pair(theirs, "encoder", tmp_path, 1)
    run, ours = runs(pixels(pair.ours.config, 1), "encoder")
    harness.check_float32(pair, run, ours)
    other = "tanh" if name != "tanh" else "relu"
    for change in ({"activation": other}, {"pooler_activation": other}):
        wrong = vit.Model(dataclasses.replace(pair.ours.config, **change), "encoder").eval()
        wrong.load_state_dict(pair.ours.state_dict())
        got, expected = ours(wrong), run(pair.theirs)
        assert max(map(harness.difference, got, expected)) > 1e-3


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_attention_weights_equal_published(kind: str, tmp_path: Path) -> None:
    pair = make_pair(published(kind, "encoder", 2), "encoder", tmp_path, 2)
    image = pixels(pair.ours.config, 2)
    harness.check_attention(
        pair,
        lambda m: m(image, output_attentions=True).attentions,
        runs(image, "encoder")[1],
    )


@pytest.mark.parametrize("size", [(20, 20), (11, 17), (8, 32), (4, 4), (16, 16), (18, 19)])
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_another_resolution_equals_published(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    theirs = published(kind, "encoder", 5, image_size=16, patch_size=4)
    pair = make_pair(theirs, "encoder", tmp_path, 5)
    image = pixels(pair.ours.config, 5, size)
    run, ours = runs(image, "encoder", interpolate_pos_encoding=True)
    harness.check_float32(pair, run, ours)
    harness.check_float64(pair, run, ours)
    smooth = vit.Model(dataclasses.replace(pair.ours.config, antialias=True), "encoder").eval()
    smooth.load_state_dict(pair.ours.state_dict())
    gap = harness.difference(ours(smooth)[0], run(pair.theirs)[0])
    own_grid = (size[0] // 4, size[1] // 4) == (4, 4)
    assert gap < 1e-5 if own_grid else gap > 1e-3


def test_positions_of_an_oblong_grid_are_resized_as_one_image() -> None:
    config = vit.Config(image=(6, 10), patch=(2, 2), width=4, num_heads=1, num_blocks=1)
    embeddings = vit.Embeddings(config)
    torch.nn.init.normal_(embeddings.position)
    table = embeddings.position[:, 1:].reshape(1, 3, 5, 4).permute(0, 3, 1, 2)
    bigger = F.interpolate(table, size=(4, 6), mode="bicubic").flatten(2).transpose(1, 2)
    expected = torch.cat((embeddings.position[:, :1], bigger), dim=1)
    assert torch.equal(embeddings.positions((4, 6)), expected)
    assert torch.equal(embeddings.positions((3, 5)), embeddings.position)


def test_order_of_patches_is_told_by_positions_alone() -> None:
    config = vit.Config(image=(6, 6), patch=(2, 2), width=12, num_heads=3, num_blocks=2)
    model = vit.Model(dataclasses.replace(config, pooler_width=5), "image-classification").eval()
    harness.randomise(model, 3)
    image = pixels(config, 1)
    tiles = image.unfold(2, 2, 2).unfold(3, 2, 2).reshape(2, 3, 9, 2, 2)
    tiles = tiles[:, :, torch.randperm(9, generator=torch.Generator().manual_seed(0))]
    shuffled = tiles.reshape(2, 3, 3, 3, 2, 2).permute(0, 1, 2, 4, 3, 5).reshape(2, 3, 6, 6)
    assert harness.difference(model(image), model(shuffled)) > 1e-2
    torch.nn.init.zeros_(model.embeddings.position)
    assert harness.difference(model(image), model(shuffled)) < 1e-5


# ---- timm ----


def timm_model(distilled: bool, seed: int, **more: Any) -> tuple[Any, dict[str, Any]]:
    """One of timm's models with random weights, and the config.json that it would write."""
    draw = harness.sampler("timm", distilled, seed)
    heads = draw.choice([1, 2, 3])
    patch = draw.choice([2, 3])
    arguments: dict[str, Any] = {
        "img_size": patch * draw.randint(2, 4),
        "patch_size": patch,
        "in_chans": draw.choice([1, 3]),
        "num_classes": draw.randint(2, 6),
        "embed_dim": heads * draw.choice([4, 6]),
        "depth": draw.randint(1, 3),
        "num_heads": heads,
        "mlp_ratio": draw.choice([2.0, 3.5]),
        "qkv_bias": draw.random() < 0.7,
        **more,
    }
    model = timm_vit.models()[distilled](**arguments)
    harness.randomise(model, seed)
    name = "deit_base_distilled_patch16_224" if distilled else "vit_base_patch16_224"
    raw = {"architecture": name, "num_classes": arguments["num_classes"], "global_pool": "token"}
    return model.eval(), raw | {"model_args": arguments, "pretrained_cfg": {"mean": [0.5] * 3}}


def from_timm(theirs: Any, raw: dict[str, Any]) -> tuple[Any, Any]:
    tensors = theirs.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    published_raw = vit_timm.config_from_timm(raw, shapes)
    config = vit.read_config(published_raw)
    suffix = published_raw["architectures"][0].removeprefix(vit.PUBLISHED[config.model_type])
    head = next(h for h, name in vit.HEADS.items() if name == suffix)
    ours = vit.Model(config, head).eval()
    if ours.pooler is not None:
        ours.pooler = None  # timm has none
    table = vit.names(config, head, "timm")
    ours.load_state_dict(harness.to_ours(tensors, table, ours))
    back = harness.to_theirs(ours.state_dict(), table, theirs)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert vit.read_config(vit.write_config(config, head)) == config
    return ours, table


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize("distilled", [False, True])
def test_equals_timm(distilled: bool, seed: int) -> None:
    theirs, raw = timm_model(distilled, seed)
    ours, table = from_timm(theirs, raw)
    image = pixels(ours.config, seed)
    pair = harness.Pair(theirs, ours, table, ours.head_name)

    def run(model: Any) -> Any:
        return model(image.to(next(model.parameters()).dtype))

    harness.check_float32(pair, run, run)
    harness.check_float64(pair, run, run)
    harness.check_gradients(pair, run, run)
    harness.check_wrong_mapping(pair, run, run, swaps(ours))


@pytest.mark.parametrize("size", [(12, 12), (7, 9), (3, 15)])
@pytest.mark.parametrize("distilled", [False, True])
def test_another_resolution_equals_timm(distilled: bool, size: tuple[int, int]) -> None:
    options = {"img_size": 9, "patch_size": 3, "dynamic_img_size": True}
    theirs, raw = timm_model(distilled, 1, **options)
    ours, _ = from_timm(theirs, raw)
    image = pixels(ours.config, 1, (size[0] // 3 * 3, size[1] // 3 * 3))
    assert harness.difference(ours(image), theirs(image)) < 1e-5
    plain = vit.Model(dataclasses.replace(ours.config, antialias=False), ours.head_name).eval()
    plain.load_state_dict(ours.state_dict())
    assert harness.difference(plain(image), theirs(image)) > 1e-4


def test_a_timm_model_without_classes_is_a_bare_encoder() -> None:
    theirs, raw = timm_model(False, 2, num_classes=0)
    ours, _ = from_timm(theirs, raw)
    assert ours.head_name == "encoder"
    image = pixels(ours.config, 2)
    assert harness.difference(ours(image), theirs.forward_features(image)) < 1e-5


def test_timm_models_of_another_shape_are_refused() -> None:
    theirs, raw = timm_model(False, 0)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    config = vit_timm.config_from_timm(raw, shapes)
    assert config["num_attention_heads"] == theirs.blocks[0].attn.num_heads
    for name in ("vit_base_patch16_clip_224", "vit_small_patch14_dinov2", "resnet50", "deit3_base"):
        with pytest.raises(ConfigError, match=name):
            vit_timm.config_from_timm(raw | {"architecture": name}, shapes)
    for more in ({"reg_tokens": 4}, {"init_values": 1e-5}, {"global_pool": "avg"}):
        with pytest.raises(ConfigError, match="plain"):
            vit_timm.config_from_timm(raw | {"model_args": raw["model_args"] | more}, shapes)
    with pytest.raises(ConfigError, match="plain"):
        vit_timm.config_from_timm(raw | {"global_pool": "avg"}, shapes)
    no_class = {name: shape for name, shape in shapes.items() if name != "cls_token"}
    with pytest.raises(ConfigError, match="cls_token"):
        vit_timm.config_from_timm(raw, no_class)
    unknown = {k: v for k, v in raw.items() if k != "model_args"}
    with pytest.raises(ConfigError, match="heads"):
        vit_timm.config_from_timm(unknown, shapes)


def test_timm_labels() -> None:
    theirs, raw = timm_model(False, 0, num_classes=3)
    shapes = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    named = vit_timm.config_from_timm(raw | {"label_names": ["ant", "bee", "cat"]}, shapes)
    assert vit.read_config(named).labels == ("ant", "bee", "cat")
    plain = vit_timm.config_from_timm(raw | {"label_names": ["ant"]}, shapes)
    assert vit.read_config(plain).labels == ("LABEL_0", "LABEL_1", "LABEL_2")


# ---- config, counts, errors ----


@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_every_published_config_key_is_known(kind: str) -> None:
    name = f"{vit.PUBLISHED[kind]}Config"
    old = json.loads(GOLDEN.read_text(encoding="utf-8"))["defaults"][kind]
    for raw in (old, getattr(transformers, name)().to_dict()):
        assert vit.read_config(raw) == vit.Config(model_type=kind)
        oblong = vit.read_config(raw | {"image_size": [32, 48], "patch_size": [4, 6]})
        assert oblong.grid == (8, 8)
        assert (
            vit.read_config(raw | {"hidden_size": 96, "pooler_output_size": None}).pooler_width
            == 96
        )
        with pytest.raises(ConfigError, match="layer_scale"):
            vit.read_config(raw | {"layer_scale": 0.1})
        for value in ("224", [224], [0, 224], 0, 3.5, [1, 2, 3]):
            with pytest.raises(ConfigError):
                vit.read_config(raw | {"image_size": value})
        with pytest.raises(ConfigError, match="less than one patch"):
            vit.read_config(raw | {"patch_size": 225})


@pytest.mark.parametrize(
    ("patch", "blocks", "width", "heads", "count"),
    [
        (16, 12, 768, 12, 86_567_656),
        (32, 12, 768, 12, 88_224_232),
        (16, 24, 1024, 16, 304_326_632),
        (14, 32, 1280, 16, 632_045_800),
    ],
)
def test_number_of_parameters(patch: int, blocks: int, width: int, heads: int, count: int) -> None:
    raw = {
        "patch_size": patch,
        "num_hidden_layers": blocks,
        "hidden_size": width,
        "num_attention_heads": heads,
        "intermediate_size": 4 * width,
        "num_labels": 1000,
    }
    with torch.device("meta"):
        model = vit.Model(vit.read_config(raw), "image-classification")
    assert sum(p.numel() for p in model.parameters()) == count


def test_initialisation() -> None:
    config = vit.Config(image=(32, 32), patch=(4, 4), width=96, num_heads=3, num_blocks=2)
    torch.manual_seed(0)
    model = vit.Model(config)
    vit.initialise(model)
    for name, tensor in model.named_parameters():
        if tensor.ndim == 1:
            assert torch.all(tensor == ("norm.weight" in name)), name
        else:
            error = 4 * 0.02 / (2 * tensor.numel()) ** 0.5
            assert abs(float(tensor.detach().std()) - 0.02) < error, name


def test_wrong_pixels_and_heads_are_refused() -> None:
    config = vit.Config(image=(6, 6), patch=(3, 3), width=4, num_heads=1, num_blocks=1)
    model = vit.Model(config)
    for shape in ((1, 1, 6, 6), (3, 6, 6), (1, 3, 2, 6), (1, 3, 6, 2)):
        with pytest.raises(InputError):
            model(torch.zeros(shape))
    with pytest.raises(ConfigError, match="image-classification"):
        vit.Model(config, "distilled-classification")
    with pytest.raises(ConfigError, match="encoder"):
        vit.Model(config, "masked-lm")
