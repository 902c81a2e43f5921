"""Small random models twice, as published and as ours, and transformers' answers."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
import transformers
from parity.harness import Pair, make_pair

from chumoku.generation.settings import Settings
from chumoku.models import gpt2, llama, t5, transformer

transformers.logging.set_verbosity_error()
VOCAB = 37
EOS = (5, 11)


@functools.cache
def llama_pair(seed: int = 0, max_positions: int = 64) -> Pair:
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=max_positions,
        pad_token_id=0,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return make_pair(transformers.LlamaForCausalLM(config), llama, "causal-lm", seed=seed)


@functools.cache
def gpt2_pair(seed: int = 0) -> Pair:
    config = transformers.GPT2Config(
        vocab_size=VOCAB,
        n_positions=48,
        n_embd=24,
        n_layer=2,
        n_head=4,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    return make_pair(transformers.GPT2LMHeadModel(config), gpt2, "causal-lm", seed=seed)


@functools.cache
def t5_pair(seed: int = 0) -> Pair:
    config = transformers.T5Config(
        vocab_size=VOCAB,
        d_model=24,
        d_kv=6,
        d_ff=40,
        num_layers=2,
        num_heads=4,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=0,
    )
    head = "conditional-generation"
    return make_pair(transformers.T5ForConditionalGeneration(config), t5, head, seed=seed)


@functools.cache
def marian_pair(seed: int = 0) -> Pair:
    config = transformers.MarianConfig(
        vocab_size=VOCAB,
        d_model=24,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=40,
        decoder_ffn_dim=40,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=None,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    model = transformers.MarianMTModel(config)
    pair = make_pair(
        model, transformer, "conditional-generation", seed=seed, buffers=("final_logits_bias",)
    )
    for module in pair.theirs.modules():  # a table that is no parameter, though it looks like one
        if type(module).__name__ == "MarianSinusoidalPositionalEmbedding":
            module.weight = torch.nn.Parameter(module.create_weight(), requires_grad=False)
    return pair


def left_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = [[0] * (longest - len(p)) + p for p in prompts]
    mask = [[0] * (longest - len(p)) + [1] * len(p) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


def right_padded(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    longest = max(map(len, prompts))
    ids = [p + [0] * (longest - len(p)) for p in prompts]
    mask = [[1] * len(p) + [0] * (longest - len(p)) for p in prompts]
    return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}


PUBLISHED = {"stop", "seed", "logprobs", "overflow", "prefill_chunk", "logit_bias"}


def published(settings: Settings) -> dict[str, Any]:
    """The settings that say something, as arguments of transformers' generate()."""
    default = Settings()
    given = {
        name: value
        for name, value in vars(settings).items()
        if value != getattr(default, name) and name not in PUBLISHED
    }
    if settings.logit_bias:
        given["sequence_bias"] = [[list(ids), float(b)] for ids, b in settings.logit_bias]
    return {k: _listed(v) for k, v in given.items()}


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, tuple) else value


def reference(
    model: Any, inputs: dict[str, torch.Tensor], settings: Settings
) -> tuple[list[tuple[int, ...]], list[float] | None]:
    """New ids of each row up to its end token, and the scores of beams."""
    arguments = {"pad_token_id": 0} | published(settings)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        out = model.generate(
            **inputs, **arguments, return_dict_in_generate=True, output_scores=True
        )
    given = 1 if model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
    rows = [_until_end(row[given:].tolist(), settings.eos_token_id) for row in out.sequences]
    scores = out.get("sequences_scores")
    return rows, None if scores is None else scores.tolist()


def _until_end(ids: list[int], eos: tuple[int, ...]) -> tuple[int, ...]:
    for place, index in enumerate(ids):
        if index in eos:
            return tuple(ids[: place + 1])
    return tuple(ids)
