"""Beam search: ids and scores of transformers, and what must hold without any peer."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pairs import (
    EOS,
    gpt2_pair,
    left_padded,
    llama_pair,
    marian_pair,
    reference,
    right_padded,
    t5_pair,
)
from parity.harness import to_ours

from chumoku.errors import InputError
from chumoku.generation import beams
from chumoku.generation.generate import generate
from chumoku.generation.jobs import plan
from chumoku.generation.settings import Settings
from chumoku.layers.cache import BlockCache
from chumoku.models import llama

GOLDEN = Path(__file__).parents[1] / "golden"
PROMPTS = [[1, 2, 3], [7, 8, 9, 10, 12, 13], [4], [30, 31, 32, 33, 6, 6, 20]]
BASE = Settings(
    max_new_tokens=12,
    eos_token_id=EOS,
    pad_token_id=0,
    decoder_start_token_id=0,
    num_beams=4,
    num_return_sequences=3,
)
CASES: list[dict[str, Any]] = [
    {},
    {"early_stopping": True},
    {"early_stopping": "never"},
    {"early_stopping": "never", "length_penalty": -1.0},
    {"length_penalty": 0.0, "num_beams": 2, "num_return_sequences": 2},
    {"length_penalty": 2.5, "max_new_tokens": 20},
    {"length_penalty": -2.0, "early_stopping": True},
    {"min_new_tokens": 6, "no_repeat_ngram_size": 2},
    {"repetition_penalty": 1.7, "renormalize_logits": True},
    {"bad_words_ids": ((13,), (2, 24)), "logit_bias": (((5,), 2.0), ((7, 8), 1.5))},
    {"forced_eos_token_id": (5,), "max_new_tokens": 4},
    {"eos_token_id": ()},
    {"num_beams": 7, "num_return_sequences": 7, "eos_token_id": tuple(range(0, 37, 3))},
]


def answers(model: Any, settings: Settings, **options: Any) -> tuple[list[Any], list[Any]]:
    made = generate(model, PROMPTS, settings, **options)
    return [m.ids for m in made], [m.score for m in made]


@pytest.mark.parametrize("case", range(len(CASES)))
@pytest.mark.parametrize("make", [llama_pair, gpt2_pair, t5_pair, marian_pair])
def test_ids_and_scores_are_transformers(make: Any, case: int) -> None:
    settings = dataclasses.replace(BASE, **CASES[case])
    pair = make()
    decoder_only = make in (llama_pair, gpt2_pair)
    pad = left_padded if decoder_only else right_padded
    prompts = PROMPTS
    if "no_repeat_ngram_size" in CASES[case] and decoder_only:
        prompts = [p[:1] * (4 - len(p[:4])) + p[:4] for p in PROMPTS]  # theirs counts padding
    expected, scores = reference(pair.theirs, pad(prompts), settings)
    made = generate(pair.ours, prompts, settings)
    assert [m.ids for m in made] == expected
    assert [m.score for m in made] == pytest.approx(scores, rel=1e-5, abs=2e-5)


def test_early_stopping_rules_differ() -> None:
    """Negative control: were the rule ignored, the cases above could not tell."""
    found = set()
    for rule in (True, False, "never"):
        settings = dataclasses.replace(
            BASE, early_stopping=rule, eos_token_id=tuple(range(0, 37, 3)), length_penalty=1.5
        )
        found.add(tuple(answers(llama_pair().ours, settings)[0]))
    assert len(found) == 3


def test_one_beam_is_greedy() -> None:
    settings = dataclasses.replace(BASE, num_beams=1, num_return_sequences=1)
    pair = llama_pair()
    greedy = generate(pair.ours, PROMPTS, settings)
    job = plan(pair.ours, PROMPTS, settings)
    found = beams.search(pair.ours, job, settings, BlockCache)
    assert [h[0].ids for h in found.hypotheses] == [g.ids for g in greedy]


@pytest.mark.parametrize("make", [llama_pair, marian_pair])
def test_batch_cache_and_chunks_change_nothing(make: Any) -> None:
    model = make().ours
    ids, scores = answers(model, BASE)
    for options in (
        {"cache_factory": BlockCache},
        {"settings": dataclasses.replace(BASE, prefill_chunk=2)},
    ):
        again, again_scores = answers(model, **({"settings": BASE} | options))
        assert again == ids
        assert again_scores == pytest.approx(scores, rel=1e-5, abs=2e-5)
    alone = [m for prompt in PROMPTS for m in generate(model, [prompt], BASE)]
    assert [m.ids for m in alone] == ids
    assert [m.score for m in alone] == pytest.approx(scores, rel=1e-5, abs=2e-5)


def test_score_is_the_sum_of_logprobs_over_length() -> None:
    settings = dataclasses.replace(BASE, length_penalty=0.7)
    model = llama_pair().ours
    for made in generate(model, [PROMPTS[1]], settings):
        row = torch.tensor([[*PROMPTS[1], *made.ids]])
        log_p = model(row).log_softmax(-1)[0, len(PROMPTS[1]) - 1 : -1]
        total = log_p.gather(1, torch.tensor(made.ids)[:, None]).sum().item()
        assert made.score == pytest.approx(total / len(made.ids) ** 0.7, abs=1e-5)
        assert made.finish_reason == ("stop" if made.ids[-1] in EOS else "length")


# ---- diverse groups ----


def golden_script() -> Any:
    spec = importlib.util.spec_from_file_location("group_beams", GOLDEN / "group_beams.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def golden() -> tuple[Any, list[Any], tuple[list[list[int]], tuple[int, ...]]]:
    script = golden_script()
    raw = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], **script.CONFIG}
    config = llama.read_config(raw)
    model = llama.Model(config, "causal-lm").eval()
    table = llama.names(config, "causal-lm", "hub")
    shapes = {table.publish(name)[1]: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(
        to_ours({n: script.weight(n, s) for n, s in shapes.items()}, table, model)
    )
    results = json.loads((GOLDEN / "group_beams.json").read_text())["results"]
    return model, results, (script.PROMPTS, script.EOS)


def grouped(case: dict[str, Any], eos: tuple[int, ...]) -> Settings:
    return Settings(eos_token_id=eos, pad_token_id=0, **case)


def until_end(row: list[int], eos: tuple[int, ...]) -> tuple[int, ...]:
    ends = [n + 1 for n, index in enumerate(row) if index in eos]
    return tuple(row[: min(ends, default=len(row))])


def test_groups_are_those_of_transformers_4(golden: Any) -> None:
    model, results, (prompts, eos) = golden
    for result in results:
        made = generate(model, prompts, grouped(result["case"], eos))
        expected = [until_end(row, eos)[:-1] for row in result["ids"]]
        # Of several end tokens, theirs writes the first whichever came: compare what is before it.
        got = [m.ids[:-1] for m in made]
        assert got == expected, result["case"]
        assert [m.score for m in made] == pytest.approx(result["scores"], rel=1e-5, abs=2e-5)


def test_diversity_matters(golden: Any) -> None:
    """Negative control: a hundredth of the penalty gives other answers."""
    model, results, (prompts, eos) = golden
    weak = [
        generate(
            model,
            prompts,
            grouped(r["case"] | {"diversity_penalty": r["case"]["diversity_penalty"] / 100}, eos),
        )
        for r in results
    ]
    differing = [
        [m.score for m in made] != pytest.approx(r["scores"], rel=1e-5, abs=2e-5)
        for made, r in zip(weak, results, strict=True)
    ]
    assert sum(differing) >= len(results) // 2


# ---- edges ----


def test_cancelled_beams_give_what_they_have() -> None:
    calls = iter([False, False, False, True])
    made = generate(llama_pair().ours, PROMPTS[:1], BASE, should_stop=lambda: next(calls))
    assert {m.finish_reason for m in made} <= {"cancelled", "stop"}
    assert max(len(m.ids) for m in made) == 3
    assert all(a.score >= b.score for a, b in itertools.pairwise(made))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_return_sequences": 5}, "5 sequences cannot come out of 4 beams"),
        ({"do_sample": True}, "does not sample"),
        ({"stop": ("x",)}, "do not go with beams"),
        ({"num_beam_groups": 3, "diversity_penalty": 1.0}, "do not divide"),
        ({"num_beam_groups": 2}, "go together"),
    ],
)
def test_impossible_beams_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        dataclasses.replace(BASE, **changes)
