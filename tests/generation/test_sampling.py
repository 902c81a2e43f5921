"""Every penalty and filter beside transformers' own on random logits; draws beside their law."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from chumoku.errors import InputError
from chumoku.generation import sampling
from chumoku.generation.processors import Past, apply, processors
from chumoku.generation.settings import Settings

B, T, V = 5, 14, 29
EOS = (3, 8)


def drawn(seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """ids_BT with repeats, and logits_BV of which some are forbidden already."""
    g = torch.Generator().manual_seed(seed)
    ids_BT = torch.randint(0, 9, (B, T), generator=g)
    logits_BV = 3 * torch.randn(B, V, generator=g, dtype=dtype)
    logits_BV[:, 20:23] = -torch.inf
    return ids_BT, logits_BV


def past(ids_BT: Tensor, given: int = T, limit: int = 99, source: Tensor | None = None) -> Past:
    lengths_B = torch.full((B,), given)
    return Past(
        ids_BT, given, lengths_B, torch.full((B,), limit), ids_BT if source is None else source
    )


BIAS = {(4,): 1.5, (6,): -2.0, (1, 2): 3.0, (5, 2): -1.0, (2, 5, 7): 4.0}
WORDS = [[4], [1, 2], [0, 7], [2, 5, 7], [3]]
SOURCE = torch.randint(0, 9, (B, 20), generator=torch.Generator().manual_seed(4))

Chain = tuple[dict[str, Any], Callable[[], Any]]
CHAINS: dict[str, Chain] = {
    "temperature": ({"temperature": 0.6}, lambda: theirs.TemperatureLogitsWarper(0.6)),
    "top_k": ({"top_k": 4}, lambda: theirs.TopKLogitsWarper(4)),
    "top_k over V": ({"top_k": 99}, lambda: theirs.TopKLogitsWarper(99)),
    "top_p": ({"top_p": 0.8}, lambda: theirs.TopPLogitsWarper(0.8)),
    "top_p small": ({"top_p": 0.01}, lambda: theirs.TopPLogitsWarper(0.01)),
    "min_p": ({"min_p": 0.07}, lambda: theirs.MinPLogitsWarper(0.07)),
    "typical_p": ({"typical_p": 0.7}, lambda: theirs.TypicalLogitsWarper(0.7)),
    "repetition": (
        {"repetition_penalty": 1.6},
        lambda: theirs.RepetitionPenaltyLogitsProcessor(1.6),
    ),
    "repetition reward": (
        {"repetition_penalty": 0.7},
        lambda: theirs.RepetitionPenaltyLogitsProcessor(0.7),
    ),
    "1-gram": ({"no_repeat_ngram_size": 1}, lambda: theirs.NoRepeatNGramLogitsProcessor(1)),
    "2-gram": ({"no_repeat_ngram_size": 2}, lambda: theirs.NoRepeatNGramLogitsProcessor(2)),
    "3-gram": ({"no_repeat_ngram_size": 3}, lambda: theirs.NoRepeatNGramLogitsProcessor(3)),
    "long n-gram": ({"no_repeat_ngram_size": 30}, lambda: theirs.NoRepeatNGramLogitsProcessor(30)),
    "encoder 2-gram": (
        {"encoder_no_repeat_ngram_size": 2},
        lambda: theirs.EncoderNoRepeatNGramLogitsProcessor(2, SOURCE),
    ),
    "logit bias": (
        {"logit_bias": tuple(BIAS.items())},
        lambda: theirs.SequenceBiasLogitsProcessor([[list(i), b] for i, b in BIAS.items()]),
    ),
    "bad words": (
        {"bad_words_ids": tuple(map(tuple, WORDS)), "eos_token_id": EOS},
        lambda: theirs.NoBadWordsLogitsProcessor(WORDS, list(EOS)),
    ),
    "min length": (
        {"min_length": T + 1, "eos_token_id": EOS},
        lambda: theirs.MinLengthLogitsProcessor(T + 1, list(EOS)),
    ),
    "min length reached": (
        {"min_length": T, "eos_token_id": EOS},
        lambda: theirs.MinLengthLogitsProcessor(T, list(EOS)),
    ),
    "suppress": (
        {"suppress_tokens": (2, 9, 28, 400)},
        lambda: theirs.SuppressTokensLogitsProcessor([2, 9, 28, 400]),
    ),
    "begin suppress": (
        {"begin_suppress_tokens": (2, 9)},
        lambda: theirs.SuppressTokensAtBeginLogitsProcessor([2, 9], T),
    ),
    "normalisation": ({"renormalize_logits": True}, theirs.LogitNormalization),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_each_processor_is_transformers(name: str, dtype: torch.dtype) -> None:
    given, make = CHAINS[name]
    settings = Settings(do_sample=True, **given)
    changed = False
    for seed in range(20):
        ids_BT, logits_BV = drawn(seed, dtype)
        before = logits_BV.clone()
        chain = processors(settings, logits_BV)
        ours = apply(chain, past(ids_BT, source=SOURCE), logits_BV)
        assert len(chain) == 1
        assert torch.equal(logits_BV, before), "the input was changed"
        assert torch.equal(ours, make()(ids_BT, before.clone())), seed
        changed |= not torch.equal(ours, before)
    assert changed == (name not in ("top_k over V", "long n-gram", "min length reached"))


@pytest.mark.parametrize("made", [0, 1, 2, 3])
def test_lengths_count_what_was_generated(made: int) -> None:
    """Minimum of new tokens, forced first and last token, and suppression at the beginning."""
    ids_BT, logits_BV = drawn(1)
    given = T - made
    pairs = [
        (
            Settings(min_new_tokens=2, eos_token_id=EOS),
            theirs.MinNewTokensLengthLogitsProcessor(given, 2, list(EOS)),
        ),
        (
            Settings(forced_eos_token_id=(3, 4)),
            theirs.ForcedEOSTokenLogitsProcessor(given + 3, [3, 4]),
        ),
        (
            Settings(begin_suppress_tokens=(1, 2)),
            theirs.SuppressTokensAtBeginLogitsProcessor([1, 2], given),
        ),
    ]
    for settings, reference in pairs:
        ours = apply(processors(settings, logits_BV), past(ids_BT, given, limit=3), logits_BV)
        assert torch.equal(ours, reference(ids_BT, logits_BV.clone())), settings


@pytest.mark.parametrize("length", [1, 2])
def test_forced_first_token_follows_a_lone_start_token(length: int) -> None:
    ids_BT, logits_BV = drawn(2)
    ids_BT = ids_BT[:, :length]
    settings = Settings(forced_bos_token_id=7, begin_suppress_tokens=(5,))
    ours = apply(processors(settings, logits_BV), past(ids_BT, 1), logits_BV)
    expected = theirs.ForcedBOSTokenLogitsProcessor(7)(ids_BT, logits_BV.clone())
    expected = theirs.SuppressTokensAtBeginLogitsProcessor([5], 2)(ids_BT, expected)
    assert torch.equal(ours, expected)


def test_presence_and_frequency_follow_the_published_formula() -> None:
    """logit[j] - frequency * c[j] - presence * (c[j] > 0), counted one by one."""
    for seed in range(20):
        ids_BT, logits_BV = drawn(seed, torch.float64)
        settings = Settings(presence_penalty=0.7, frequency_penalty=-0.4)
        ours = apply(processors(settings, logits_BV), past(ids_BT, given=6), logits_BV)
        for b in range(B):
            counts = collections.Counter(ids_BT[b, 6:].tolist())
            for j in range(V):
                expected = logits_BV[b, j] - -0.4 * counts[j] - 0.7 * (counts[j] > 0)
                assert ours[b, j] == pytest.approx(expected.item(), abs=1e-12)


def test_order_is_transformers() -> None:
    """All at once; and as negative control, the filters the other way round."""
    settings = Settings(
        do_sample=True,
        logit_bias=tuple(BIAS.items()),
        repetition_penalty=1.4,
        no_repeat_ngram_size=2,
        bad_words_ids=((4,), (1, 2)),
        min_new_tokens=3,
        eos_token_id=EOS,
        suppress_tokens=(0,),
        temperature=0.7,
        top_k=9,
        top_p=0.9,
        min_p=0.02,
        typical_p=0.95,
        renormalize_logits=True,
    )
    differing = 0
    for seed in range(30):
        ids_BT, logits_BV = drawn(seed)
        chain: list[Any] = [
            theirs.SequenceBiasLogitsProcessor([[list(i), b] for i, b in BIAS.items()]),
            theirs.RepetitionPenaltyLogitsProcessor(1.4),
            theirs.NoRepeatNGramLogitsProcessor(2),
            theirs.NoBadWordsLogitsProcessor([[4], [1, 2]], list(EOS)),
            theirs.MinNewTokensLengthLogitsProcessor(T, 3, list(EOS)),
            theirs.SuppressTokensLogitsProcessor([0]),
            theirs.TemperatureLogitsWarper(0.7),
            theirs.TopKLogitsWarper(9),
            theirs.TopPLogitsWarper(0.9),
            theirs.MinPLogitsWarper(0.02),
            theirs.TypicalLogitsWarper(0.95),
            theirs.LogitNormalization(),
        ]
        ours = apply(processors(settings, logits_BV), past(ids_BT), logits_BV)
        expected, wrong = logits_BV.clone(), logits_BV.clone()
        for step in chain:
            expected = step(ids_BT, expected)
        for step in chain[::-1]:
            wrong = step(ids_BT, wrong)
        assert torch.equal(ours, expected), seed
        differing += not torch.equal(ours, wrong)
    assert differing > 20


def test_padding_is_no_token() -> None:
    """A row with -1 in front gives what the row gives alone."""
    ids_BT, logits_BV = drawn(3)
    settings = Settings(
        repetition_penalty=1.5,
        no_repeat_ngram_size=2,
        encoder_no_repeat_ngram_size=3,
        logit_bias=tuple(BIAS.items()),
        presence_penalty=0.5,
    )
    chain = processors(settings, logits_BV)
    whole = apply(chain, past(ids_BT), logits_BV)
    padding = torch.full((B, 6), -1)
    longer = torch.cat((padding, ids_BT), 1)
    padded = apply(
        chain, Past(longer, T + 6, torch.full((B,), T), past(ids_BT).limits_B, longer), logits_BV
    )
    assert torch.equal(whole, padded)


def test_plain_greedy_has_no_processors() -> None:
    assert processors(Settings(eos_token_id=EOS, temperature=0.5, top_k=3), drawn(0)[1]) == ()


def test_ids_outside_the_vocabulary_are_refused() -> None:
    logits_BV = drawn(0)[1]
    for settings in (Settings(logit_bias=(((V,), 1.0),)), Settings(forced_eos_token_id=(V,))):
        with pytest.raises(InputError, match=f"{V}"):
            processors(settings, logits_BV)


# ---- draws ----


def chi_square_p(counts: Tensor, expected: Tensor) -> float:
    """Upper tail of the chi-square law with len - 1 degrees of freedom."""
    statistic = ((counts - expected).square() / expected).sum()
    freedom = torch.tensor((len(counts) - 1) / 2.0, dtype=torch.float64)
    return torch.special.gammaincc(freedom, statistic / 2).item()


def law(logits_V: Tensor, draws: int, generator: torch.Generator) -> float:
    """p-value of `draws` draws against softmax(logits); impossible tokens must never come."""
    counts = torch.zeros(len(logits_V), dtype=torch.float64)
    rows = 1000
    many = logits_V.expand(rows, -1)
    for _ in range(draws // rows):
        ids = sampling.sample(many, [generator] * rows)
        counts += torch.bincount(ids, minlength=len(logits_V))
    probability = logits_V.double().softmax(-1)
    assert counts[probability == 0].sum() == 0
    kept = probability > 0
    return chi_square_p(counts[kept], draws * probability[kept])


SAMPLERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "temperature": {"temperature": 1.7},
    "top_k": {"top_k": 6},
    "top_p": {"top_p": 0.9},
    "min_p": {"min_p": 0.05},
    "typical_p": {"typical_p": 0.9},
}


def filtered(name: str) -> Tensor:
    logits_BV = drawn(12, torch.float64)[1] / 2
    chain = processors(Settings(do_sample=True, **SAMPLERS[name]), logits_BV)
    return apply(chain, past(drawn(12)[0]), logits_BV)[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_draws_follow_the_law(name: str) -> None:
    assert law(filtered(name), 50_000, sampling.generator(7)) > 1e-4 / len(SAMPLERS)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_million_draws_follow_the_law(name: str) -> None:
    assert law(filtered(name), 1_000_000, sampling.generator(8)) > 1e-4 / len(SAMPLERS)


def test_a_wrong_law_is_seen() -> None:
    """Negative control: draws at temperature 1.1 do not pass for draws at 1."""
    logits_V = filtered("plain")
    counts = torch.zeros(V, dtype=torch.float64)
    g = sampling.generator(7)
    for _ in range(50):
        ids = sampling.sample((logits_V / 1.1).expand(1000, -1), [g] * 1000)
        counts += torch.bincount(ids, minlength=V)
    expected = 50_000 * logits_V.softmax(-1)
    kept = expected > 0
    assert chi_square_p(counts[kept], expected[kept]) < 1e-6


def test_a_row_draws_by_its_own_generator() -> None:
    logits_BV = drawn(5)[1]
    together = sampling.sample(logits_BV, [sampling.generator(9, n) for n in range(B)])
    alone = [sampling.sample(logits_BV[n : n + 1], [sampling.generator(9, n)]) for n in range(B)]
    assert torch.equal(together, torch.cat(alone))
    other = sampling.sample(logits_BV, [sampling.generator(10, n) for n in range(B)])
    assert not torch.equal(together, other)


def test_the_edges_of_the_unit_interval_stay_possible() -> None:
    """The smallest and the largest number a generator can give never choose what is forbidden."""
    logits_BV = torch.full((1, 6), -torch.inf)
    logits_BV[0, 2:4] = torch.tensor([0.3, -0.2])
    for draw, expected in ((0.0, 2), (1 - 2.0**-53, 3)):
        mass = logits_BV.double().softmax(-1).cumsum(-1)
        level = torch.tensor([[draw]], dtype=torch.float64) * sampling.BELOW_ONE * mass[:, -1:]
        assert torch.searchsorted(mass, level, right=True).item() == expected


def test_nothing_left_to_choose_is_an_error() -> None:
    for bad in (torch.full((1, 4), -torch.inf), torch.full((1, 4), torch.nan)):
        with pytest.raises(InputError, match="no token left"):
            sampling.sample(bad, [sampling.generator(0)])


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_properties_of_the_filters(count: int) -> None:
    """Each keeps the likeliest token, keeps what is kept as it was, and is idempotent where it
    should be; top-p keeps the mass it promises and no token that it could do without."""
    g = torch.Generator().manual_seed(1)
    for _ in range(count // 10):
        x = torch.randn(10, V, generator=g, dtype=torch.float64) * torch.rand((), generator=g) * 9
        p = torch.rand((), generator=g).item() * 0.98 + 0.01
        k = int(torch.randint(1, V, (), generator=g))
        for y in (
            sampling.top_k(x, k),
            sampling.top_p(x, p),
            sampling.min_p(x, p),
        ):
            kept = y > -torch.inf
            assert torch.equal(y[kept], x[kept])
            assert kept.gather(1, x.argmax(1, keepdim=True)).all()
            assert (
                x.masked_fill(~kept, torch.inf)
                .amin(1)
                .ge(x.masked_fill(kept, -torch.inf).amax(1))
                .all()
            )
        assert ((sampling.top_k(x, k) > -torch.inf).sum(1) == k).all()
        kept = sampling.top_p(x, p) > -torch.inf
        probability = x.softmax(-1)
        mass = (probability * kept).sum(1)
        least = probability.masked_fill(~kept, 2).amin(1)
        assert (mass >= p - 1e-9).all()
        assert (mass - least < p + 1e-9).all()
