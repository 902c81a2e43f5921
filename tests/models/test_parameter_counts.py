"""The published numbers of parameters, counted on the meta device (no memory, no weights)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from chumoku.models import architecture


def bert(width: int, blocks: int, vocabulary: int, **more: Any) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
        "vocab_size": vocabulary,
    } | more


def llama(
    width: int, blocks: int, heads: int, kv: int, hidden: int, vocabulary: int = 32000, **more: Any
) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": hidden,
        "vocab_size": vocabulary,
    } | more


def gpt2(width: int, blocks: int, heads: int) -> dict[str, Any]:
    return {"n_embd": width, "n_layer": blocks, "n_head": heads}


def t5(width: int, blocks: int, heads: int, hidden: int, head: int = 64, **m: Any) -> Any:
    values = {"d_model": width, "num_layers": blocks, "num_heads": heads, "d_ff": hidden}
    return values | {"d_kv": head, "vocab_size": 32128} | m


def vit(width: int, blocks: int, heads: int, patch: int) -> dict[str, Any]:
    sizes = {"hidden_size": width, "num_hidden_layers": blocks, "num_attention_heads": heads}
    labels = {str(n): f"LABEL_{n}" for n in range(1000)}
    return sizes | {"intermediate_size": 4 * width, "patch_size": patch, "id2label": labels}


GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
RELEASED = [
    ("bert", "encoder", bert(768, 12, 30522), 109_482_240),
    ("bert", "masked-lm", bert(768, 12, 30522), 109_514_298),
    ("bert", "pre-training", bert(768, 12, 30522), 110_106_428),
    ("bert", "encoder", bert(1024, 24, 30522), 335_141_888),
    ("bert", "encoder", bert(768, 12, 28996), 108_310_272),
    ("bert", "encoder", bert(128, 2, 30522), 4_385_920),
    ("bert", "encoder", bert(256, 4, 30522), 11_170_560),
    ("bert", "encoder", bert(512, 4, 30522), 28_763_648),
    ("bert", "encoder", bert(512, 8, 30522), 41_373_184),
    ("bert", "encoder", bert(768, 12, 32000), 110_617_344),
    ("bert", "encoder", bert(768, 12, 32768), 111_207_168),
    ("bert", "encoder", bert(768, 12, 7027), 91_438_080),
    ("bert", "encoder", bert(1024, 24, 32768), 337_441_792),
    ("distilbert", "encoder", {}, 66_362_880),
    ("distilbert", "masked-lm", {}, 66_985_530),
    ("distilbert", "encoder", {"vocab_size": 32768}, 68_087_808),
    ("gpt2", "causal-lm", gpt2(768, 12, 12), 124_439_808),
    ("gpt2", "causal-lm", gpt2(1024, 24, 16), 354_823_168),
    ("gpt2", "causal-lm", gpt2(1280, 36, 20), 774_030_080),
    ("gpt2", "causal-lm", gpt2(1600, 48, 25), 1_557_611_200),
    ("t5", "conditional-generation", t5(512, 6, 8, 2048), 60_506_624),
    ("t5", "conditional-generation", t5(768, 12, 12, 3072), 222_903_552),
    ("t5", "conditional-generation", t5(1024, 24, 16, 4096), 737_668_096),
    ("t5", "conditional-generation", t5(1024, 24, 32, 16384, 128), 2_851_598_336),
    ("t5", "conditional-generation", t5(1024, 24, 128, 65536, 128), 11_307_321_344),
    ("t5", "conditional-generation", t5(512, 8, 6, 1024, **GATED), 76_961_152),
    ("t5", "conditional-generation", t5(768, 12, 12, 2048, **GATED), 247_577_856),
    ("vit", "image-classification", vit(768, 12, 12, 16), 86_567_656),
    ("vit", "image-classification", vit(768, 12, 12, 32), 88_224_232),
    ("vit", "image-classification", vit(1024, 24, 16, 16), 304_326_632),
    ("vit", "image-classification", vit(1280, 32, 16, 14), 632_045_800),
    ("llama", "causal-lm", llama(4096, 32, 32, 32, 11008), 6_738_415_616),
    ("llama", "causal-lm", llama(5120, 40, 40, 40, 13824), 13_015_864_320),
    ("llama", "causal-lm", llama(6656, 60, 52, 52, 17920), 32_528_943_616),
    ("llama", "causal-lm", llama(8192, 80, 64, 64, 22016), 65_285_660_672),
    ("llama", "causal-lm", llama(8192, 80, 64, 8, 28672), 68_976_648_192),
    ("llama", "causal-lm", llama(4096, 32, 32, 8, 14336, 128256), 8_030_261_248),
    ("llama", "causal-lm", llama(8192, 80, 64, 8, 28672, 128256), 70_553_706_496),
    (
        "llama",
        "causal-lm",
        llama(2048, 16, 32, 8, 8192, 128256, tie_word_embeddings=True),
        1_235_814_400,
    ),
]


@pytest.mark.parametrize(("model_type", "head", "raw", "count"), RELEASED)
def test_number_of_parameters(model_type: str, head: str, raw: dict[str, Any], count: int) -> None:
    module = architecture(model_type)
    config = module.read_config({"model_type": model_type} | raw)
    with torch.device("meta"):
        model = module.Model(config, head)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
