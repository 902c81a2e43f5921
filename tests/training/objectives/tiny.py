"""Tiny models with every parameter drawn, their tokenizers, and a plain loop to train them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tasks import models
from tokenizers import Tokenizer as Engine

import chumoku
from chumoku.loading import Loaded
from chumoku.text import load_tokenizer
from chumoku.text.fast import FastTokenizer
from chumoku.training.task import Task

ENGLISH = [
    "the cat sat in london.",
    "mary works at the big bridge and lives in new york.",
    "john is a good king, but not a good example.",
    "where is the capital of france? it is paris.",
    "tesing wording: the towering cities born in the sea of politics!",
]


def tokenizer(kind: str) -> Any:
    """english, japanese, gpt2, roberta or t5, as tests/tasks/models.py writes them."""
    with tempfile.TemporaryDirectory() as place:
        models.WRITERS[kind](Path(place))
        return load_tokenizer(Path(place), {})


def with_sentinels(tokens: FastTokenizer, count: int) -> FastTokenizer:
    """The tokenizer with <extra_id_0> … added."""
    engine = Engine.from_str(tokens.engine.to_str())
    engine.add_special_tokens([f"<extra_id_{n}>" for n in range(count)])
    return FastTokenizer(engine, tokens.roles, max_length=tokens.max_length)


def randomised(model: torch.nn.Module, seed: int = 0, scale: float = 0.3) -> None:
    """Norms 1 + N(0, 0.1), the rest N(0, scale)."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
            new = 1.0 + 0.1 * noise if bool((parameter == 1).all()) else scale * noise
            parameter.copy_(new)


def created(config: Any, head: str, kind: str | None, *, seed: int = 0) -> Loaded:
    """A new model beside the tokenizer; the config's vocab_size is that of the tokenizer."""
    tokens = None if kind is None else tokenizer(kind)
    if tokens is not None:
        config = replace(config, vocab_size=tokens.vocab_size)
    return replace(chumoku.create(config, head, seed), tokenizer=tokens)


def train(task: Task, model: torch.nn.Module, steps: int, rate: float = 0.01) -> list[float]:
    """Mean loss a unit, step by step; every step sees all examples of its epoch."""
    optimiser = torch.optim.Adam(model.parameters(), rate)
    losses = []
    model.train()
    for step in range(steps):
        examples = [task.examples.example(i, step) for i in range(len(task.examples))]
        loss = task.loss(model, task.collate(examples))
        optimiser.zero_grad()
        (loss.total / loss.units).backward()
        optimiser.step()
        losses.append(float(loss.total.detach() / loss.units))
    model.eval()
    return losses


def metrics(task: Task, model: torch.nn.Module) -> dict[str, float]:
    assert task.evaluate is not None
    model.eval()
    with torch.inference_mode():
        return task.evaluate(model)
