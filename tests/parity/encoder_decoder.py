"""What the parity tests of T5 and Marian share: ragged cases, decoding with both caches, greedy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from parity import harness
from torch import Tensor

from chumoku.layers.attention import Batch
from chumoku.layers.cache import BlockCache, Cache, ContiguousCache


@dataclass(frozen=True)
class Case:
    """Right-padded rows of source and target; masks are True where there is a token."""

    source: Tensor
    source_mask: Tensor
    target: Tensor
    target_mask: Tensor

    def published(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.source,
            "attention_mask": self.source_mask.long(),
            "decoder_input_ids": self.target,
            "decoder_attention_mask": self.target_mask.long(),
        }

    def ours(self, model: Any) -> Tensor:
        """What the model gives at the target's tokens."""
        return model(self.source, self.target, self.source_mask, self.target_mask)[self.target_mask]  # type: ignore[no-any-return]


def case(vocab: int, target_vocab: int, *, pad: int, start: int, end: int, seed: int) -> Case:
    """Three rows of 9, 9 and 5 source tokens, each closed by `end`; 8, 8 and 4 target tokens."""
    generator = torch.Generator().manual_seed(seed)

    def ids(size: int, shape: tuple[int, int]) -> Tensor:
        drawn = torch.randint(0, size, shape, generator=generator)
        allowed = torch.tensor([i for i in range(size) if i not in (pad, end)])
        return allowed[drawn % len(allowed)]

    source, target = ids(vocab, (3, 9)), ids(target_vocab, (3, 8))
    source_mask, target_mask = torch.ones(3, 9).bool(), torch.ones(3, 8).bool()
    source_mask[2, 5:], target_mask[2, 4:] = False, False
    source[:2, 8], source[2, 4], target[:, 0] = end, end, start
    source[~source_mask], target[~target_mask] = pad, pad
    return Case(source, source_mask, target, target_mask)


def caches() -> Iterator[Callable[[], Cache]]:
    yield lambda: ContiguousCache(capacity=3)
    yield lambda: BlockCache(block=3)


@torch.no_grad()
def check_caches(ours: Any, run: Case) -> None:
    """Both caches, token by token and in chunks, equal the uncached decoder."""
    T = run.target.shape[1]
    memory = ours.encode(run.source, run.source_mask)
    expected = ours.decode(run.target, memory, run.target_mask)[run.target_mask]
    for make in caches():
        for points in ([*range(T + 1)], [0, T // 2, T // 2 + 1, T], [0, T]):
            cache, parts = make(), []
            for start, end in itertools.pairwise(points):
                step, mask = run.target[:, start:end], run.target_mask[:, :end]
                parts.append(ours.decode(step, memory, mask, batch=Batch(cache=cache)))
                cache.advance(end - start)
            got = torch.cat(parts, 1)[run.target_mask]
            harness.compare(got, expected, 1e-5, f"{type(cache).__name__} {points}")


@torch.no_grad()
def greedy(ours: Any, run: Case, start: int, count: int, make: Callable[[], Cache]) -> Tensor:
    """The `count` most probable tokens after `start`, one after the other, with a cache."""
    memory, cache = ours.encode(run.source, run.source_mask), make()
    step = torch.full((run.source.shape[0], 1), start)
    out = []
    for _ in range(count):
        logits = ours.decode(step, memory, batch=Batch(cache=cache))
        cache.advance(1)
        step = logits[:, -1].argmax(-1, keepdim=True)
        out.append(step)
    return torch.cat(out, 1)


def check_greedy(pair: harness.Pair, run: Case, start: int, count: int = 12) -> int:
    """The published generate() and ours give the same tokens; how many different ones.

    No token ends a text. The caller looks whether there was variety: a constant proves little.
    """
    settings = pair.theirs.generation_config
    settings.eos_token_id = settings.forced_eos_token_id = None
    settings.decoder_start_token_id = start
    tokens = pair.theirs.generate(
        input_ids=run.source,
        attention_mask=run.source_mask.long(),
        max_new_tokens=count,
        do_sample=False,
        num_beams=1,
        use_cache=False,  # the published cache of T5 has no room for a deeper decoder
    )[:, 1:]
    for make in caches():
        assert torch.equal(greedy(pair.ours, run, start, count, make), tokens)
    return tokens.unique().numel()


@torch.no_grad()
def check_padding(ours: Any, run: Case, pad: int) -> None:
    """Further pads, on either side of the source and behind the target, change nothing."""
    expected = run.ours(ours)
    for side in ((2, 0), (0, 3)):
        source = torch.nn.functional.pad(run.source, side, value=pad)
        source_mask = torch.nn.functional.pad(run.source_mask, side, value=False)
        target = torch.nn.functional.pad(run.target, (0, 2), value=pad)
        target_mask = torch.nn.functional.pad(run.target_mask, (0, 2), value=False)
        padded = Case(source, source_mask, target, target_mask)
        harness.compare(padded.ours(ours), expected, 1e-5, f"source padded by {side}")
    alone = ours(run.source[2:, :5], run.target[2:, :4])
    harness.compare(alone[0], expected[-4:], 1e-5, "a row alone")


@torch.no_grad()
def check_causal(ours: Any, run: Case, vocab: int) -> None:
    """Another token at position t changes the outputs from t on, and none before."""
    memory = ours.encode(run.source, run.source_mask)
    before = ours.decode_hidden(run.target, memory)
    for t in (1, 4, 7):
        other = run.target.clone()
        other[:, t] = (other[:, t] + 1) % vocab
        after = ours.decode_hidden(other, memory)
        assert torch.equal(after[:, :t], before[:, :t])
        assert harness.difference(after[:, t], before[:, t]) > 1e-3


@torch.no_grad()
def check_nothing_to_see(ours: Any, run: Case) -> None:
    """A row whose source is all padding gives numbers, and leaves the other rows as they were."""
    mask = run.source_mask.clone()
    mask[1] = False
    out = ours(run.source, run.target, mask, run.target_mask)
    assert out[run.target_mask].isfinite().all()
    usual = ours(run.source, run.target, run.source_mask, run.target_mask)
    for row in (0, 2):
        real = run.target_mask[row]
        harness.compare(out[row][real], usual[row][real], 1e-5, f"row {row}")
    assert harness.difference(out[1], usual[1]) > 1e-3


def check_published_attention(pair: harness.Pair, run: Case) -> None:
    """Traced weights of both stacks and of cross-attention equal the published ones."""
    for pattern, key, rows in (
        ("encoder.blocks.*.attention.weights", "encoder_attentions", run.source_mask),
        ("decoder.blocks.*.attention.weights", "decoder_attentions", run.target_mask),
        ("decoder.blocks.*.cross_attention.weights", "cross_attentions", run.target_mask),
    ):
        harness.check_attention(
            pair,
            lambda m, key=key: m(**run.published(), output_attentions=True)[key],
            run.ours,
            pattern,
            rows_BT=rows,
        )
