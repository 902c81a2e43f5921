"""Claims 3 and 4: translating English into Japanese, and with the source's words shuffled.

    OMP_NUM_THREADS=1 python examples/why_attention/translation.py [FOLDER]

FOLDER: small_parallel_enja, whose words are cut already; by default the one beside the project.

An LSTM with attention, a Transformer, and the Transformer without positions in its encoder, all of
about the same number of parameters, learn from the same pairs. The first two have the same
processor time: each gets as many updates as fit, by its own speed in a few first ones; the third
gets as many updates as the second. Judged are the greedy translations of the test set, by
sacrebleu's corpus BLEU over the given words.
"""

from __future__ import annotations

import copy
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import learn
import lstm
import torch
from learn import DATA, END, FIRST, PAD, Shape, greedy, recurrent, rounded, task, transformer
from torch import nn

from chumoku.training import metrics
from chumoku.training.data.batching import Batching
from chumoku.training.objectives.seq2seq import Example, Pairs
from chumoku.training.objectives.vocabulary import stacked
from chumoku.training.optimisers import OptimiserSettings
from chumoku.training.schedules import ScheduleSettings
from chumoku.training.settings import Settings as RunSettings
from chumoku.training.task import Task, generator


@dataclass(frozen=True)
class Settings:
    """pairs: of the training set, from its start. least: a word is known that occurs so often in
    them. tested: sentences of the test set. seconds: of one thread; pilot: updates that give a
    model's speed, three times. checks: evaluations of a run. limit: most words of a translation.
    """

    pairs: int = 10_000
    least: int = 2
    tested: int = 500
    seconds: float = 100.0
    pilot: int = 12
    checks: int = 4
    batch: int = 64
    width: int = 128
    feedforward: int = 256
    dropout: float = 0.1
    smoothing: float = 0.1
    lstm_rate: float = 4e-3
    transformer_rate: float = 2e-3
    limit: int = 24
    seed: int = 0


# ---- words ----


class Words:
    """The words that occur at least `least` times, the most frequent first; others are unknown."""

    def __init__(self, texts: Sequence[str], least: int) -> None:
        counts = Counter(word for text in texts for word in text.split())
        known = [
            word for word, n in sorted(counts.items(), key=lambda c: (-c[1], c[0])) if n >= least
        ]
        self.words = ["<unknown>", *known]
        self.places = {word: FIRST + n for n, word in enumerate(self.words)}
        self.size = FIRST + len(self.words)

    def ids(self, text: str) -> list[int]:
        return [self.places.get(word, FIRST) for word in text.split()]

    def text(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i - FIRST] for i in ids if i >= FIRST)


@dataclass(frozen=True)
class Corpus:
    """examples: to learn from. sources, references: of the test."""

    source: Words
    target: Words
    examples: Pairs
    sources: list[list[int]]
    references: list[str]


def read(folder: Path, settings: Settings) -> Corpus:
    def lines(name: str, count: int) -> list[str]:
        return (folder / name).read_text(encoding="utf-8").splitlines()[:count]

    english, japanese = lines("train.en", settings.pairs), lines("train.ja", settings.pairs)
    source, target = Words(english, settings.least), Words(japanese, settings.least)
    pairs = [
        Example(torch.tensor(source.ids(e)), torch.tensor([*target.ids(j), END]))
        for e, j in zip(english, japanese, strict=True)
    ]
    sources = [source.ids(text) for text in lines("test.en", settings.tested)]
    return Corpus(source, target, Pairs(pairs), sources, lines("test.ja", settings.tested))


# ---- the three models ----


def without_positions(model: Any, longest: int = 64) -> nn.Module:
    """The encoder adds zeros where it had sinusoids; the decoder keeps its own."""
    embeddings = model.encoder.embeddings
    embeddings.position = nn.Embedding(longest, embeddings.token.embedding_dim)
    nn.init.zeros_(embeddings.position.weight)
    embeddings.position.requires_grad_(False)
    return model  # type: ignore[no-any-return]


def models(corpus: Corpus, settings: Settings) -> dict[str, nn.Module]:
    shape = Shape(
        corpus.source.size,
        corpus.target.size,
        settings.width,
        settings.feedforward,
        dropout=settings.dropout,
    )
    return {
        "lstm": recurrent(shape, settings.seed),
        "transformer": transformer(shape, settings.seed),
        "no_positions": without_positions(transformer(shape, settings.seed)),
    }


# ---- learning ----


def run_settings(settings: Settings, name: str, steps: int) -> RunSettings:
    rate = settings.lstm_rate if name == "lstm" else settings.transformer_rate
    return RunSettings(
        steps=steps,
        seed=settings.seed,
        save_every=0,
        evaluate_every=max(1, -(-steps // settings.checks)),
        keep_best=False,
        batching=Batching(settings.batch),
        optimiser=OptimiserSettings(learning_rate=rate, betas=(0.9, 0.98), weight_decay=0.0),
        schedule=ScheduleSettings("linear", warmup_steps=max(1, steps // 10)),
    )


def steps_that_fit(
    settings: Settings, corpus: Corpus, models: dict[str, nn.Module]
) -> dict[str, int]:
    """Updates in `seconds`. The models take turns, so that a busy machine is busy for both."""
    learned = task(corpus.examples, settings.smoothing)
    each: dict[str, list[float]] = {name: [] for name in ("lstm", "transformer")}
    for _ in range(3):
        for name, seconds in each.items():
            trial = copy.deepcopy(models[name])
            curve = learn.train(trial, learned, run_settings(settings, name, settings.pilot))
            seconds.append(curve.seconds / settings.pilot)
    steps = {n: max(1, int(settings.seconds / statistics.median(s))) for n, s in each.items()}
    return {**steps, "no_positions": steps["transformer"]}


def translate(
    model: nn.Module, corpus: Corpus, sources: Sequence[list[int]], limit: int
) -> list[str]:
    """In the order of the sources; like lengths together, so that little is padded."""
    order = sorted(range(len(sources)), key=lambda n: len(sources[n]))
    found = [""] * len(sources)
    for start in range(0, len(order), 100):
        some = order[start : start + 100]
        ids_BS = stacked([torch.tensor(sources[n]) for n in some], PAD)
        mask_BS = ids_BS != PAD
        for n, ids in zip(some, greedy(model, ids_BS, mask_BS, limit), strict=True):
            found[n] = corpus.target.text(ids)
    return found


def bleu(model: nn.Module, corpus: Corpus, limit: int) -> dict[str, float]:
    made = translate(model, corpus, corpus.sources, limit)
    score = metrics.bleu(made, corpus.references, "none")
    return {"bleu": round(score, 2), "loss": -score}


def shuffled(sources: Sequence[list[int]], seed: int) -> list[list[int]]:
    """Each sentence's words in another order, its last mark too."""
    found = []
    for n, ids in enumerate(sources):
        order = torch.randperm(len(ids), generator=generator(seed, 0, n))
        found.append([ids[int(i)] for i in order])
    return found


def effect_of_shuffling(model: nn.Module, corpus: Corpus, settings: Settings) -> dict[str, float]:
    """BLEU before and after, and the share of sentences whose translation stays word for word."""
    made = translate(model, corpus, corpus.sources, settings.limit)
    again = translate(model, corpus, shuffled(corpus.sources, settings.seed), settings.limit)
    return {
        "bleu": round(metrics.bleu(made, corpus.references, "none"), 2),
        "shuffled": round(metrics.bleu(again, corpus.references, "none"), 2),
        "unchanged": rounded(sum(a == b for a, b in zip(made, again, strict=True)) / len(made)),
    }


def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    corpus = read(folder, settings)
    fresh = models(corpus, settings)
    steps = steps_that_fit(settings, corpus, fresh)
    found: dict[str, Any] = {}
    for name, model in fresh.items():
        evaluate = partial(bleu, corpus=corpus, limit=settings.limit)
        learned: Task = task(corpus.examples, settings.smoothing, evaluate=evaluate)
        curve = learn.train(model, learned, run_settings(settings, name, steps[name]))
        found[name] = {
            "parameters": lstm.parameters(model),
            "steps": steps[name],
            "seconds": round(curve.seconds, 1),
            "curve": [{k: v for k, v in p.items() if k != "loss"} for p in curve.points],
            **effect_of_shuffling(model, corpus, settings),
        }
        print(name, found[name], flush=True)
    copied = [corpus.source.text(ids) for ids in corpus.sources]
    return learn.result(
        settings,
        {
            "words": {"source": corpus.source.size, "target": corpus.target.size},
            "signature": metrics.bleu_signature("none"),
            "copying": round(metrics.bleu(copied, corpus.references, "none"), 2),
            "models": found,
        },
    )


if __name__ == "__main__":
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else DATA / "small_parallel_enja"
    learn.write("translation", measure(place, Settings()))
