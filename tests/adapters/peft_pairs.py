"""The same tiny model twice, published and ours, and PEFT's adapters on the published one."""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from adapters.tiny import IDS, RAW, TARGET
from parity.harness import randomise
from torch import Tensor, nn

from chumoku.loading import load
from chumoku.models import architecture

TARGETS = {
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
    "distilbert": ["q_lin", "v_lin"],
    "gpt2": ["c_attn"],
    "llama": ["q_proj", "v_proj"],
    "t5": ["q", "v"],
    "marian": ["q_proj", "v_proj"],
    "vit": ["q_proj", "v_proj"],
    "deit": ["q_proj", "v_proj"],
}
"""What PEFT adapts by default, by its names."""


@contextmanager
def quiet() -> Iterator[None]:
    """PEFT and transformers warn of their own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@dataclass
class Pair:
    """theirs: never adapted itself; `wrapped` copies it. folder: where it is saved."""

    kind: str
    head: str
    theirs: Any
    ours: nn.Module
    config: Any
    folder: Path

    @property
    def model(self) -> tuple[Any, ...]:
        """The first arguments of save_adapter and load_adapter."""
        return self.ours, self.config, self.head, self.kind


def pair(kind: str, head: str, folder: Path, seed: int = 0, **more: Any) -> Pair:
    raw = dict({**RAW[kind], **more}.items())
    if head == "question-answering":
        raw |= {"id2label": {"0": "a", "1": "b"}}
    with quiet():
        arch = architecture(kind)
        config = transformers.AutoConfig.for_model(kind, **raw)
        theirs = getattr(transformers, arch.PUBLISHED[kind] + arch.HEADS[head])(config).eval()
        randomise(theirs, seed)
        for module in theirs.modules():  # Marian's table of sines holds nothing learned
            if type(module).__name__ == "MarianSinusoidalPositionalEmbedding":
                module.weight.data = module.create_weight()
        theirs.save_pretrained(folder)
    loaded = load(str(folder), head=head, dtype="float32", device="cpu")
    return Pair(kind, head, theirs, loaded.model.eval(), loaded.config, folder)


def wrapped(pair: Pair, seed: int = 1, **config: Any) -> Any:
    """PEFT's model with every trained number random."""
    values = {"r": 3, "lora_alpha": 7, "target_modules": TARGETS[pair.kind]} | config
    with quiet():
        model = peft.get_peft_model(copy.deepcopy(pair.theirs), peft.LoraConfig(**values)).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=random)
                if "magnitude" in name:
                    parameter.mul_(1 + 0.1 * noise)
                else:
                    parameter.copy_(noise * (0.5 if parameter.ndim < 2 else 0.3))
    return model


def saved(model: Any, folder: Path) -> Path:
    with quiet():
        model.save_pretrained(folder)
    return folder


def reloaded(pair: Pair, folder: Path) -> tuple[Any, list[str]]:
    """PEFT's model from a folder of ours, and the warnings about keys that it gave."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(copy.deepcopy(pair.theirs), folder).eval()
    texts = [str(w.message) for w in caught]
    with quiet():
        keys = peft.utils.load_peft_weights(str(folder), device="cpu")
        result = peft.set_peft_model_state_dict(model, keys)
    texts += [f"unexpected {key}" for key in result.unexpected_keys]
    texts += [f"missing {key}" for key in result.missing_keys if "lora_" in key or "_to_s" in key]
    return model, [t for t in texts if re.search("missing|unexpected|mismatch", t)]


@torch.no_grad()
def run_theirs(model: Any, kind: str, head: str) -> Tensor:
    """All that the published model gives, in the order of adapters.tiny.run."""
    if kind in ("vit", "deit"):
        pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        out = model(pixel_values=pixels)
    elif head in ("conditional-generation", "encoder-decoder"):
        out = model(input_ids=IDS, decoder_input_ids=TARGET)
    elif head == "multiple-choice":
        out = model(input_ids=IDS.unsqueeze(1).expand(-1, 2, -1).clone())
    else:
        out = model(input_ids=IDS, attention_mask=torch.ones_like(IDS))
    names = ("prediction_logits", "seq_relationship_logits", "start_logits", "end_logits", "logits")
    parts = [out[name] for name in names if name in out] or [out["last_hidden_state"]]
    return torch.cat([part.reshape(-1) for part in parts])
