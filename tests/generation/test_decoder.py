"""The streaming decoder: transformers' greedy ids, and nothing that changes a row but itself."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from pairs import (
    EOS,
    VOCAB,
    gpt2_pair,
    left_padded,
    llama_pair,
    marian_pair,
    reference,
    right_padded,
    t5_pair,
)

from chumoku.errors import InputError
from chumoku.generation import sampling
from chumoku.generation.decoder import stream
from chumoku.generation.generate import generate, stream_text
from chumoku.generation.settings import Settings
from chumoku.layers.cache import BlockCache, ContiguousCache

PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 12, 13], [4], [30, 31, 32, 33, 6, 6, 20]]
BASE = Settings(max_new_tokens=14, eos_token_id=EOS, pad_token_id=0, decoder_start_token_id=0)
CASES: list[dict[str, Any]] = [
    {},
    {"repetition_penalty": 1.8},
    {"min_new_tokens": 9, "eos_token_id": tuple(range(0, VOCAB, 4))},
    {"max_new_tokens": None, "max_length": 16},
    {"suppress_tokens": (12, 13, 26), "begin_suppress_tokens": (24, 8)},
    {"bad_words_ids": ((13,), (26, 14)), "logit_bias": (((9,), 3.0), ((9, 9), -4.0))},
    {"forced_eos_token_id": (11,), "max_new_tokens": 5},
    {"forced_bos_token_id": 6},
]
MODELS = [llama_pair, gpt2_pair, t5_pair, marian_pair]


def ids(model: Any, prompts: Sequence[list[int]], settings: Settings, **options: Any) -> list[Any]:
    return [made.ids for made in generate(model, prompts, settings, **options)]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_greedy_ids_are_transformers(make: Any, case: int) -> None:
    settings = dataclasses.replace(BASE, **CASES[case])
    pair = make()
    decoder_only = make in (llama_pair, gpt2_pair)
    pad = left_padded if decoder_only else right_padded
    prompts = PROMPTS
    if decoder_only and settings.max_length:
        prompts = [p[:1] * (7 - len(p)) + p for p in PROMPTS]  # theirs counts padding
    if decoder_only and settings.forced_bos_token_id:
        prompts = [p for p in PROMPTS if len(p) > 1]  # likewise
    assert ids(pair.ours, prompts, settings) == reference(pair.theirs, pad(prompts), settings)[0]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ngrams_are_transformers(make: Any, size: int) -> None:
    """One prompt at a time, for theirs counts padding; encoder n-grams too."""
    for changes in ({"no_repeat_ngram_size": size}, {"encoder_no_repeat_ngram_size": size}):
        settings = dataclasses.replace(BASE, **changes)
        pair = make()
        for prompt in PROMPTS:
            expected = reference(pair.theirs, left_padded([prompt]), settings)[0]
            assert ids(pair.ours, [prompt], settings) == expected


SAMPLED = dataclasses.replace(
    BASE,
    do_sample=True,
    temperature=1.3,
    top_k=20,
    repetition_penalty=1.3,
    no_repeat_ngram_size=3,
    frequency_penalty=0.3,
    encoder_no_repeat_ngram_size=4,
    num_return_sequences=3,
    seed=5,
)


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("settings", [BASE, SAMPLED], ids=["greedy", "sampled"])
def test_batch_cache_and_chunks_change_nothing(make: Any, settings: Settings) -> None:
    model = make().ours
    ends = tuple(range(3, VOCAB, 6))
    settings = dataclasses.replace(settings, no_repeat_ngram_size=1, eos_token_id=ends)
    together = ids(model, PROMPTS, settings)
    each = settings.num_return_sequences
    assert len(together) == len(PROMPTS) * each
    assert len({len(row) for row in together}) > 1, "no row ends before another"
    assert ids(model, PROMPTS, settings, cache_factory=BlockCache) == together
    alone = [row for prompt in PROMPTS for row in ids(model, [prompt], settings)]
    assert alone == together
    backwards = ids(model, PROMPTS[::-1], settings)
    assert [backwards[(3 - p) * each + n] for p in range(4) for n in range(each)] == together
    for chunk in (1, 2, 3, 6):
        chunked = dataclasses.replace(settings, prefill_chunk=chunk)
        assert ids(model, PROMPTS, chunked) == together


@pytest.mark.parametrize("count", [40, pytest.param(2000, marks=pytest.mark.slow)])
def test_random_batches_change_nothing(count: int) -> None:
    """RELIABILITY D2: random prompts, batch, cache, chunk and settings; each row as alone."""
    draw = random.Random(count)
    for _ in range(count):
        pair = draw.choice(MODELS)()
        prompts = [
            [draw.randrange(VOCAB) for _ in range(draw.randint(1, 20))]
            for _ in range(draw.randint(1, 16))
        ]
        settings = dataclasses.replace(
            BASE,
            max_new_tokens=draw.randint(1, 12),
            eos_token_id=tuple(draw.sample(range(VOCAB), draw.choice([0, 2, 5]))),
            prefill_chunk=draw.choice([None, 1, 2, 5, 30]),
            repetition_penalty=draw.choice([1.0, 1.3]),
            do_sample=draw.random() < 0.5,
            top_k=draw.choice([0, 5]),
            seed=draw.randrange(100),
        )
        factory = draw.choice([ContiguousCache, BlockCache])
        together = ids(pair.ours, prompts, settings, cache_factory=factory)
        row = draw.randrange(len(prompts))
        plain = dataclasses.replace(settings, prefill_chunk=None)
        assert ids(pair.ours, [prompts[row]], plain) == [together[row]], settings


def test_cached_is_uncached() -> None:
    """Each token is the likeliest one after a pass over everything, without any cache."""
    model = llama_pair().ours
    for prompt, made in zip(PROMPTS, ids(model, PROMPTS, BASE), strict=True):
        text = list(prompt)
        for token in made:
            assert token == model(torch.tensor([text]))[0, -1].argmax().item()
            text.append(token)


def test_a_wrong_model_gives_other_ids() -> None:
    """Negative control: the comparisons above can fail."""
    assert ids(llama_pair(1).ours, PROMPTS, BASE) != ids(llama_pair(0).ours, PROMPTS, BASE)


# ---- sampling ----


def test_seeds() -> None:
    model = llama_pair().ours
    first = generate(model, PROMPTS, SAMPLED)
    assert [m.ids for m in generate(model, PROMPTS, SAMPLED)] == [m.ids for m in first]
    other = dataclasses.replace(SAMPLED, seed=6)
    assert ids(model, PROMPTS, other) != [m.ids for m in first]
    assert len({m.ids for m in first[:3]}) == 3, "sequences of one prompt share random numbers"


def test_a_recorded_seed_makes_the_sequence_again() -> None:
    model = llama_pair().ours
    unseeded = dataclasses.replace(SAMPLED, seed=None)
    made = generate(model, [PROMPTS[1]] * 2, unseeded)
    assert len({m.seed for m in made}) == 6
    assert len({m.ids for m in made}) > 1  # not 6: two may end at once, with the same token
    for one in made:
        again = dataclasses.replace(SAMPLED, seed=one.seed, num_return_sequences=1)
        assert ids(model, [PROMPTS[1]], again) == [one.ids]


def test_sampling_follows_the_model() -> None:
    """First tokens of many sequences, beside the model's own distribution (chi-square)."""
    model = llama_pair().ours
    settings = Settings(max_new_tokens=1, do_sample=True, num_return_sequences=4000, seed=1)
    first = torch.tensor([m.ids[0] for m in generate(model, [PROMPTS[0]], settings)])
    expected = 4000 * model(torch.tensor([PROMPTS[0]]))[0, -1].double().softmax(-1)
    assert expected.min() > 5
    counts = torch.bincount(first, minlength=VOCAB).double()
    statistic = ((counts - expected).square() / expected).sum()
    freedom = torch.tensor((VOCAB - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(freedom, statistic / 2) > 1e-4


# ---- what a result says ----


def test_logprobs_are_the_models_own() -> None:
    model = llama_pair().ours
    settings = dataclasses.replace(SAMPLED, logprobs=4)
    for made in generate(model, PROMPTS, settings):
        prompt = PROMPTS[made.prompt]
        row = torch.tensor([[*prompt, *made.ids]])
        log_p = model(row).log_softmax(-1)[0, len(prompt) - 1 : -1]
        chosen = log_p.gather(1, torch.tensor(made.ids)[:, None])[:, 0]
        assert made.logprobs == pytest.approx(chosen.tolist(), abs=1e-5)
        assert made.top_logprobs is not None
        best = log_p.topk(4)
        for step, top in enumerate(made.top_logprobs):
            assert [i for i, _ in top] == best.indices[step].tolist()
            assert [v for _, v in top] == pytest.approx(best.values[step].tolist(), abs=1e-5)
    assert generate(model, PROMPTS, SAMPLED)[0].logprobs is None


def test_reasons_timings_and_effective_settings() -> None:
    for made in generate(
        llama_pair().ours, PROMPTS, dataclasses.replace(SAMPLED, max_length=14, max_new_tokens=None)
    ):
        assert made.settings.max_new_tokens == 14 - len(PROMPTS[made.prompt])
        ended = made.ids[-1] in EOS
        assert made.finish_reason == ("stop" if ended else "length")
        assert ended or len(made.ids) == made.settings.max_new_tokens
        assert made.timings.prompt_tokens == len(PROMPTS[made.prompt])
        assert made.timings.generated_tokens == len(made.ids)
        assert made.timings.prompt_seconds > 0
        assert made.timings.generated_seconds > 0


def test_steps_are_the_answers_in_time() -> None:
    model = llama_pair().ours
    rows: dict[int, list[int]] = {n: [] for n in range(4)}
    open_rows = set(rows)
    for step in stream(model, PROMPTS, BASE):
        assert {token.row for token in step.tokens} == open_rows
        for token in step.tokens:
            rows[token.row].append(token.id)
        open_rows -= step.finished.keys()
        assert not torch.is_inference_mode_enabled()
    assert [tuple(row) for row in rows.values()] == ids(model, PROMPTS, BASE)


@pytest.mark.parametrize("passes", [0, 1, 4])
def test_should_stop_ends_with_what_was_made(passes: int) -> None:
    model = llama_pair().ours
    full = ids(model, PROMPTS[:2], BASE)
    answers = iter([False] * passes + [True])
    made = generate(model, PROMPTS[:2], BASE, should_stop=lambda: next(answers))
    assert [m.finish_reason for m in made] == ["cancelled"] * 2
    assert [m.ids for m in made] == [row[:passes] for row in full]


# ---- the context ----


def window(model: Any, prompt: list[int], count: int, context: int) -> tuple[int, ...]:
    """Greedy ids by the rule of overflow="shift", each from a pass over the window alone."""
    text, made = list(prompt), []
    for _ in range(count):
        if len(text) > context:
            text = text[-((context + 1) // 2) :]
        made.append(model(torch.tensor([text]))[0, -1].argmax().item())
        text.append(made[-1])
    return tuple(made)


@pytest.mark.parametrize("context", [16, 17])
def test_shift_goes_on_past_the_context(context: int) -> None:
    model = llama_pair(0, context).ours
    settings = Settings(max_new_tokens=40, overflow="shift")
    made = ids(model, PROMPTS, settings)
    assert made == [window(model, prompt, 40, context) for prompt in PROMPTS]
    assert made == [ids(model, [prompt], settings)[0] for prompt in PROMPTS]
    assert ids(model, PROMPTS, settings, cache_factory=BlockCache) == made


def test_the_context_ends_an_answer() -> None:
    model = llama_pair(0, 16).ours
    made = generate(model, PROMPTS, Settings(max_new_tokens=99))
    assert [len(m.ids) for m in made] == [16 - len(prompt) for prompt in PROMPTS]
    assert {m.finish_reason for m in made} == {"length"}


def test_a_prompt_too_long() -> None:
    model = llama_pair(0, 16).ours
    prompt = [n % 30 for n in range(40)]
    with pytest.raises(InputError, match=r"40 tokens, the context holds 16"):
        stream(model, [prompt], BASE)
    for overflow in ("truncate", "shift"):
        settings = Settings(max_new_tokens=5, overflow=overflow)
        made = generate(model, [prompt], settings)[0]
        assert made.dropped == 40 - 11
        assert made.ids == ids(model, [prompt[-11:]], Settings(max_new_tokens=5))[0]


def test_a_source_too_long_keeps_its_end_mark() -> None:
    model = marian_pair().ours
    source = [n % 30 + 1 for n in range(70)] + [36]
    with pytest.raises(InputError, match=r"71 tokens, the model reads at most 64"):
        generate(model, [source], BASE)
    made = generate(model, [source], dataclasses.replace(BASE, overflow="truncate"))[0]
    assert made.dropped == 7
    assert made.ids == ids(model, [[*source[:63], 36]], BASE)[0]


# ---- bad input ----


def test_bad_input_is_refused_at_once() -> None:
    model = llama_pair().ours
    for prompts, message in (
        ([], "no prompt"),
        ([[]], "prompt is empty"),
        ([[VOCAB]], f"token {VOCAB} is outside"),
        ([[-1, 2]], "token -1 is outside"),
    ):
        with pytest.raises(InputError, match=message):
            stream(model, prompts, BASE)
    assert ids(model, [[]], dataclasses.replace(BASE, bos_token_id=4)) == ids(model, [[4]], BASE)
    with pytest.raises(InputError, match="beam search"):
        stream(model, PROMPTS, dataclasses.replace(BASE, num_beams=2))
    with pytest.raises(InputError, match="max_length is 3"):
        generate(model, PROMPTS, Settings(max_length=3))
    with pytest.raises(InputError, match="first token"):
        generate(t5_pair().ours, PROMPTS, Settings(max_new_tokens=2))
    with pytest.raises(InputError, match="stop strings need a tokenizer"):
        generate(model, PROMPTS, Settings(stop=("x",)))
    model.train()
    with pytest.raises(InputError, match="training mode"):
        generate(model, PROMPTS, BASE)
    model.eval()


def test_prefixes_start_an_encoder_decoder() -> None:
    model = t5_pair().ours
    whole = ids(model, PROMPTS[:2], BASE)
    rest = generate(model, PROMPTS[:2], BASE, prefixes=[[0, *row[:3]] for row in whole])
    assert [m.ids[:11] for m in rest] == [row[3:] for row in whole]
    with pytest.raises(InputError, match="prefixes are for encoder-decoders"):
        generate(llama_pair().ours, PROMPTS, BASE, prefixes=[[1]])


# ---- text ----


class Letters:
    """A tokenizer of which token n is the n-th of these strings; 'é' comes in two tokens."""

    words = ("é1", "é2", *(f"<{n}>" for n in range(2, VOCAB)))

    def stream(self, *, skip_special: bool = True) -> Any:
        return Letters.Stream()

    def decode(self, ids: Sequence[int], *, skip_special: bool = False) -> str:
        return "".join(self.words[i] for i in ids)

    class Stream:
        def push(self, index: int) -> str:
            return Letters.words[index]

        def flush(self) -> str:
            return ""


def test_text_streams_to_the_same_answer() -> None:
    model, tokenizer = llama_pair().ours, Letters()
    for prompt in PROMPTS:
        pieces = list(stream_text(model, tokenizer, prompt, BASE))  # type: ignore[arg-type]
        made = pieces[-1].result
        assert made is not None
        assert made.ids == ids(model, [prompt], BASE)[0]
        text = tokenizer.decode([i for i in made.ids if i not in EOS])
        assert "".join(piece.text for piece in pieces) == made.text == text


def test_stop_strings_end_the_row_and_leave_no_trace() -> None:
    model, tokenizer = llama_pair().ours, Letters()
    full = generate(model, PROMPTS, BASE, tokenizer=tokenizer)  # type: ignore[arg-type]
    text = full[1].text
    assert text is not None
    stop = text[7:14]  # spans tokens
    settings = dataclasses.replace(BASE, stop=(stop,))
    made = generate(model, PROMPTS, settings, tokenizer=tokenizer)  # type: ignore[arg-type]
    assert made[1].text == text[: text.index(stop)]
    assert made[1].finish_reason == "stop"
    assert len(made[1].ids) < len(full[1].ids)
    for other, before in zip(made, full, strict=True):
        if stop not in (before.text or ""):
            assert other.ids == before.ids
    pieces = list(stream_text(model, tokenizer, PROMPTS[1], settings))  # type: ignore[arg-type]
    assert "".join(piece.text for piece in pieces) == made[1].text


def test_generators_differ_by_sequence_only() -> None:
    draws = [torch.rand(3, generator=sampling.generator(3, n)).tolist() for n in range(3)]
    assert draws[0] == torch.rand(3, generator=torch.Generator().manual_seed(3)).tolist()
    assert len({tuple(d) for d in draws}) == 3


def test_cache_factory_is_called_once_without_shift() -> None:
    made: list[Any] = []

    def factory() -> ContiguousCache:
        made.append(ContiguousCache())
        return made[-1]

    generate(llama_pair().ours, PROMPTS, BASE, cache_factory=factory)
    assert len(made) == 1
