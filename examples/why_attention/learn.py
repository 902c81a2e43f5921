"""What all measurements share: the Transformer, a run of chumoku's loop, greedy writing, JSON."""

from __future__ import annotations

import json
import platform
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import lstm
import torch
from torch import Tensor, nn

import chumoku
from chumoku.training.loop import Run
from chumoku.training.objectives import seq2seq
from chumoku.training.progress import Step
from chumoku.training.settings import Settings
from chumoku.training.task import Examples, Task

ROOT: Final = Path(__file__).parents[2]
FIGURES: Final = ROOT / "docs" / "figures"
DATA: Final = ROOT.parent / "shared" / "data"
PAD, START, END, FIRST = 0, 1, 2, 3
"""Ids of the special tokens, and the first id of a word."""

# ---- the two models ----


@dataclass(frozen=True)
class Shape:
    """Of the Transformer; the LSTM gets the same embeddings and as many parameters."""

    source_vocab: int
    target_vocab: int
    width: int
    feedforward: int
    blocks: int = 2
    heads: int = 4
    dropout: float = 0.1


def transformer(shape: Shape, seed: int) -> nn.Module:
    """The model of 2017, with `blocks` blocks in each stack."""
    config = {
        "model_type": "transformer",
        "vocab_size": shape.source_vocab,
        "decoder_vocab_size": shape.target_vocab,
        "share_encoder_decoder_embeddings": False,
        "d_model": shape.width,
        "encoder_layers": shape.blocks,
        "decoder_layers": shape.blocks,
        "encoder_attention_heads": shape.heads,
        "decoder_attention_heads": shape.heads,
        "encoder_ffn_dim": shape.feedforward,
        "decoder_ffn_dim": shape.feedforward,
        "dropout": shape.dropout,
        "pad_token_id": None,
        "decoder_start_token_id": START,
        "eos_token_id": END,
    }
    return chumoku.create(config, "conditional-generation", seed).model


def recurrent(
    shape: Shape, seed: int, *, attention: bool = True, bidirectional: bool = True
) -> nn.Module:
    """An LSTM encoder-decoder with as many parameters as the Transformer of this shape."""
    wanted = lstm.parameters(transformer(shape, seed))
    config = lstm.Config(
        shape.source_vocab,
        shape.target_vocab,
        shape.width,
        hidden=2,
        attention=attention,
        bidirectional=bidirectional,
        dropout=shape.dropout,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        return lstm.Model(lstm.as_large_as(wanted, config)).eval()


# ---- training ----

collate = partial(seq2seq.collate, pad=PAD, start=START)


def task(examples: Examples, smoothing: float = 0.0, **more: Any) -> Task:
    """Sequence to sequence, as chumoku learns it."""
    loss = partial(seq2seq.loss, smoothing=smoothing)
    return Task(examples, collate, loss, tokens=seq2seq.tokens, **more)


@dataclass
class Curve:
    """A report that keeps the processor seconds of training, without those of evaluations."""

    seconds: float = 0.0
    points: list[dict[str, float]] = field(default_factory=list)
    _since: float = 0.0

    def resumed(self, step: int) -> None:
        self._since = time.process_time()

    def step(self, step: Step) -> None:
        now = time.process_time()
        self.seconds += now - self._since
        self._since = now

    def evaluation(self, step: int, metrics: Mapping[str, float]) -> None:
        self.points.append({"step": step, "seconds": round(self.seconds, 1), **metrics})
        self._since = time.process_time()

    def sample(self, step: int, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def close(self) -> None: ...


def train(model: nn.Module, what: Task, settings: Settings) -> Curve:
    """Train in place. Nothing is kept but the curve."""
    curve = Curve()
    with tempfile.TemporaryDirectory() as folder:
        Run(model, what, settings, Path(folder), curve).train()
    model.eval()
    return curve


# ---- writing ----


@torch.inference_mode()
def greedy(model: Any, ids_BS: Tensor, mask_BS: Tensor | None, limit: int) -> list[list[int]]:
    """The likeliest word again and again, up to END or `limit` words.

    Each step reads all of the target again: slow, but the same few lines for both kinds of model.
    """
    memory = model.encode(ids_BS, mask_BS)
    target_BT = torch.full((len(ids_BS), 1), START)
    for _ in range(limit):
        hidden_BD = model.decode_hidden(target_BT, memory)[:, -1]
        target_BT = torch.cat([target_BT, model.unembed(hidden_BD).argmax(-1)[:, None]], dim=1)
        if bool((target_BT == END).any(1).all()):
            break
    return [until_end(row) for row in target_BT[:, 1:].tolist()]


def until_end(ids: Sequence[int]) -> list[int]:
    return list(ids[: ids.index(END)] if END in ids else ids)


# ---- results ----


def result(settings: Any, findings: Mapping[str, Any]) -> dict[str, Any]:
    """What is written: the settings, the machine, and what was found."""
    return {
        "settings": asdict(settings),
        "machine": {"cpu": cpu(), "torch": torch.__version__, "python": platform.python_version()},
        **findings,
    }


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def write(name: str, found: Mapping[str, Any], folder: Path = FIGURES) -> Path:
    """docs/figures/NAME.json; page.py draws and tabulates from it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps(found, indent=1, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def rounded(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")
