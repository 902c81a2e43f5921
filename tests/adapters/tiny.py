"""Tiny models of every architecture and head with random weights, and inputs that fit each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from parity.harness import randomise
from torch import Tensor, nn

from chumoku.models import architecture

IDS = torch.tensor([[5, 9, 3, 7, 11, 1], [8, 2, 6, 4, 12, 1]])
TARGET = torch.tensor([[0, 4, 9, 13], [0, 6, 2, 10]])

_ENCODER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIZES = _ENCODER | {"intermediate_size": 64, "vocab_size": 40}
_LABELS = {"id2label": {"0": "a", "1": "b", "2": "c"}}

RAW: dict[str, dict[str, Any]] = {
    "bert": _SIZES | _LABELS | {"max_position_embeddings": 16},
    "roberta": _SIZES | _LABELS | {"max_position_embeddings": 20, "pad_token_id": 0},
    "distilbert": _LABELS
    | {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 40}
    | {"max_position_embeddings": 16},
    "gpt2": _LABELS
    | {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 40}
    | {"pad_token_id": 0},
    "llama": _SIZES | _LABELS | {"num_key_value_heads": 1, "pad_token_id": 0},
    "t5": _LABELS
    | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    | {"vocab_size": 40, "decoder_start_token_id": 0},
    "marian": {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "vocab_size": 40}
    | {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    | {"encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 16}
    | {"pad_token_id": 39, "decoder_start_token_id": 39, "eos_token_id": 1},
    "vit": _ENCODER | _LABELS | {"intermediate_size": 64, "image_size": 8, "patch_size": 4},
    "deit": _ENCODER | _LABELS | {"intermediate_size": 64, "image_size": 8, "patch_size": 4},
}

CASES = [
    (kind, head)
    for kind in RAW
    for head in architecture(kind).HEADS
    if not (kind == "roberta" and head in ("pre-training", "next-sentence"))
    and not (kind == "vit" and head == "distilled-classification")
]

SOME = {
    *(("bert", "classification"), ("bert", "masked-lm"), ("roberta", "classification")),
    *(("distilbert", "question-answering"), ("gpt2", "causal-lm"), ("llama", "classification")),
    *(("t5", "conditional-generation"), ("marian", "conditional-generation")),
    *(("vit", "image-classification"), ("deit", "distilled-classification")),
}
"""Those that are tested every day where the others are left to the slow tests."""


def everyday(cases: list[Any], keep: Callable[[Any], bool]) -> list[Any]:
    """Cases for parametrize, slow unless kept."""
    return [case if keep(case) else pytest.param(*case, marks=pytest.mark.slow) for case in cases]


def made(kind: str, head: str, seed: int = 0, **more: Any) -> nn.Module:
    """A model in eval mode whose every parameter is random."""
    arch = architecture(kind)
    config = arch.read_config({"model_type": kind, **RAW[kind], **more})
    model = arch.Model(config, head)
    randomise(model, seed)
    return model.eval()


def run(model: Any) -> Tensor:
    """All that the model gives, as one row of numbers, for the same input each time."""
    name = type(model).__module__.rpartition(".")[2]
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    if name == "vit":
        pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        outputs = model(pixels.to(dtype))
    elif name == "transformer" or model.head_name in ("conditional-generation", "encoder-decoder"):
        outputs = model(IDS, TARGET)
    elif model.head_name == "multiple-choice":
        outputs = model(IDS.unsqueeze(1).expand(-1, 2, -1).clone())
    else:
        outputs = model(IDS)
    parts: Sequence[Tensor] = outputs if isinstance(outputs, tuple) else (outputs,)
    return torch.cat([part.reshape(-1) for part in parts])


@torch.no_grad()
def stir(model: nn.Module, seed: int = 7, only: Callable[[str], bool] = lambda name: True) -> None:
    """Draw the numbers of all adapters; lengths are changed by a tenth."""
    random = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        kind = name.rpartition(".")[0].rpartition(".")[2]
        if kind not in ("lora_A", "lora_B", "lora_magnitude") or not only(name):
            continue
        noise = torch.randn(parameter.shape, generator=random).to(parameter.dtype)
        if kind == "lora_magnitude":
            parameter.mul_(1 + 0.1 * noise)
        else:
            size = parameter.shape[1] if kind == "lora_A" else 4
            parameter.copy_(noise * size**-0.5)


def bits(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and saved buffers."""
    return {name: value.clone() for name, value in model.state_dict().items()}
