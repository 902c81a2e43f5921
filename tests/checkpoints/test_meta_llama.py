"""Meta's folders: shards cut from whole tensors are joined again, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from chumoku.checkpoints import assign
from chumoku.checkpoints.meta_llama import read_meta_folder
from chumoku.errors import CheckpointError, ConfigError

WIDTH, HEADS, GROUPS, HIDDEN, VOCABULARY = 16, 4, 2, 24, 10
PARAMS = {"dim": WIDTH, "n_layers": 1, "n_heads": HEADS, "n_kv_heads": GROUPS, "vocab_size": -1}


def whole() -> dict[str, Tensor]:
    torch.manual_seed(1)
    keys = WIDTH // HEADS * GROUPS
    shapes = {
        "tok_embeddings.weight": (VOCABULARY, WIDTH),
        "layers.0.attention.wq.weight": (WIDTH, WIDTH),
        "layers.0.attention.wk.weight": (keys, WIDTH),
        "layers.0.attention.wv.weight": (keys, WIDTH),
        "layers.0.attention.wo.weight": (WIDTH, WIDTH),
        "layers.0.feed_forward.w1.weight": (HIDDEN, WIDTH),
        "layers.0.feed_forward.w2.weight": (WIDTH, HIDDEN),
        "layers.0.feed_forward.w3.weight": (HIDDEN, WIDTH),
        "layers.0.attention_norm.weight": (WIDTH,),
        "layers.0.ffn_norm.weight": (WIDTH,),
        "norm.weight": (WIDTH,),
        "output.weight": (VOCABULARY, WIDTH),
    }
    return {name: torch.randn(shape).bfloat16() for name, shape in shapes.items()}


def cut(name: str, value: Tensor, count: int, embedding: int) -> list[Tensor]:
    """As the authors' model-parallel layers hold it."""
    if value.dim() == 1:
        return [value] * count
    if name == "tok_embeddings.weight":
        axis = embedding
    else:
        axis = 1 if name.split(".")[-2] in ("wo", "w2") else 0
    return [part.clone() for part in value.chunk(count, axis)]


def write_folder(folder: Path, count: int, embedding: int = 1) -> list[dict[str, Tensor]]:
    folder.mkdir()
    shards: list[dict[str, Tensor]] = [{"rope.freqs": torch.rand(2)} for _ in range(count)]
    for name, value in whole().items():
        for shard, part in zip(shards, cut(name, value, count, embedding), strict=True):
            shard[name] = part
    write_shards(folder, shards)
    return shards


def write_shards(folder: Path, shards: list[dict[str, Tensor]], **changes: object) -> None:
    (folder / "params.json").write_text(json.dumps(PARAMS | changes))
    for number, shard in enumerate(shards):
        torch.save(shard, folder / f"consolidated.{number:02}.pth")


@pytest.mark.parametrize(("count", "embedding"), [(1, 1), (2, 1), (2, 0)])
def test_shards_join_to_the_whole(count: int, embedding: int, tmp_path: Path) -> None:
    write_folder(tmp_path / "m", count, embedding)
    params, tensors = read_meta_folder(tmp_path / "m")
    assert params == PARAMS
    expected = whole()
    assert tensors.keys() == expected.keys()
    for name, value in expected.items():
        assert tensors[name].shape == tuple(value.shape), name
        assert torch.equal(assign.dense(tensors[name]), value), name


def test_shards_in_another_order_are_another_model(tmp_path: Path) -> None:
    """The negative control: the order and the axis of joining both matter."""
    shards = write_folder(tmp_path / "m", 2)
    write_shards(tmp_path / "m", shards[::-1])
    _, tensors = read_meta_folder(tmp_path / "m")
    same = {n: torch.equal(assign.dense(tensors[n]), value) for n, value in whole().items()}
    assert not any(same[n] for n in same if "norm" not in n)
    assert all(same[n] for n in same if "norm" in n)


def test_faults_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shards = write_folder(folder, 2)
    first = folder / "consolidated.00.pth"
    first.rename(folder / "other")
    with pytest.raises(CheckpointError, match=r"consolidated\.00\.pth is missing"):
        read_meta_folder(folder)
    (folder / "other").rename(first)
    write_shards(folder, [shards[0], {**shards[1], "norm.weight": torch.ones(WIDTH).bfloat16()}])
    _, tensors = read_meta_folder(folder)
    with pytest.raises(CheckpointError, match=r"differ in 'norm\.weight'"):
        tensors["norm.weight"].read()
    (folder / "params.json").write_text('{"dim": true}')
    with pytest.raises(ConfigError, match="dim"):
        read_meta_folder(folder)
    (folder / "params.json").unlink()
    with pytest.raises(CheckpointError, match=r"params\.json"):
        read_meta_folder(folder)


def without(shards: list[dict[str, Tensor]]) -> None:
    del shards[1]["norm.weight"]


def another_shape(shards: list[dict[str, Tensor]]) -> None:
    shards[1]["output.weight"] = torch.zeros(1, WIDTH).bfloat16()


def another_type(shards: list[dict[str, Tensor]]) -> None:
    shards[1]["output.weight"] = shards[1]["output.weight"].half()


def strange_name(shards: list[dict[str, Tensor]]) -> None:
    for shard in shards:
        shard["adapter.weight"] = torch.zeros(2, 2)


def repeated_keys(shards: list[dict[str, Tensor]]) -> None:
    for shard in shards:
        shard["layers.0.attention.wk.weight"] = torch.zeros(8, WIDTH).bfloat16()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without, "not every shard has 'norm.weight'"),
        (another_shape, "differ in shape or type"),
        (another_type, "differ in shape or type"),
        (strange_name, "'adapter.weight' of shape"),
        (repeated_keys, "16 rows, not the 8 of 2 heads"),
    ],
)
def test_shards_that_do_not_fit(
    change: object, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = write_folder(tmp_path / "m", 2)
    assert callable(change)
    change(shards)
    lazies = [{n: assign.lazy(n, value) for n, value in shard.items()} for shard in shards]
    monkeypatch.setattr("chumoku.checkpoints.meta_llama.read_torch_files", lambda _: lazies)
    with pytest.raises(CheckpointError, match=words):
        read_meta_folder(tmp_path / "m")
