"""Marian, the published checkpoints of the 2017 model, against the published implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers
from parity import encoder_decoder, harness
from torch import Tensor, nn

from chumoku.errors import ConfigError
from chumoku.layers.ops import ACTIVATIONS
from chumoku.models import transformer

EVERY_ACTIVATION = sorted(set(ACTIVATIONS) & set(transformers.activations.ACT2FN))
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]


def published(head: str, seed: int) -> Any:
    draw = harness.sampler("marian", head, seed)
    heads, other = draw.choice([(1, 2), (2, 4), (3, 3), (5, 1)])
    shared = draw.random() < 0.6
    vocab = draw.randint(30, 90)
    values = {
        "vocab_size": vocab,
        "decoder_vocab_size": draw.randint(30, 90) if not shared else None,
        "max_position_embeddings": draw.randint(24, 40),
        "d_model": heads * other * draw.choice([3, 4, 7]),
        "encoder_layers": draw.randint(1, 3),
        "decoder_layers": draw.randint(1, 3),
        "encoder_attention_heads": heads,
        "decoder_attention_heads": other,
        "encoder_ffn_dim": draw.randint(9, 50),
        "decoder_ffn_dim": draw.randint(9, 50),
        "activation_function": EVERY_ACTIVATION[(seed * 5 + len(head)) % len(EVERY_ACTIVATION)],
        "dropout": draw.choice([0.1, 0.3]),
        "attention_dropout": draw.choice([0.0, 0.2]),
        "activation_dropout": draw.choice([0.0, 0.2]),
        "encoder_layerdrop": draw.choice([0.0, 0.4]),
        "decoder_layerdrop": draw.choice([0.0, 0.4]),
        "scale_embedding": draw.random() < 0.5,
        "share_encoder_decoder_embeddings": shared,
        "pad_token_id": 29,
        "decoder_start_token_id": 29,
        "attn_implementation": "eager",
    }
    model = getattr(transformers, f"Marian{transformer.HEADS[head]}")(
        transformers.MarianConfig(**values)
    )
    if head == "conditional-generation" and draw.random() < 0.4:
        # As version 4 has it: only the output matrix stands alone; 5 would separate all three.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return model


def sinusoid_table(length: int, width: int) -> Tensor:
    """All sines, then all cosines, in float64, written out anew."""
    place = np.arange(length)[:, None]
    angle = [place / 10000.0 ** (2 * i / width) for i in range((width + 1) // 2)]
    sines = [np.sin(a) for a in angle]
    cosines = [np.cos(a) for a in angle][: width // 2]
    return torch.from_numpy(np.concatenate(sines + cosines, axis=1))


@torch.no_grad()
def restore_positions(model: Any) -> None:
    """The published positions are stored as a parameter, rounded to float32: set them exactly."""
    for module in model.modules():
        if hasattr(module, "embed_positions"):
            weight = module.embed_positions.weight
            weight.copy_(sinusoid_table(*weight.shape))


def make_pair(head: str, seed: int) -> harness.Pair:
    theirs = published(head, seed)
    buffers = ["final_logits_bias"] if head == "conditional-generation" else []
    return harness.make_pair(theirs, transformer, head, seed=seed, buffers=buffers)


def case(model: Any, seed: int) -> encoder_decoder.Case:
    config = model.config
    target = config.decoder_vocab_size
    if config.share_encoder_decoder_embeddings:
        target = config.vocab_size
    return encoder_decoder.case(config.vocab_size, target, pad=29, start=29, end=0, seed=seed)


def theirs_of(run: encoder_decoder.Case) -> harness.Run:
    def call(model: Any) -> harness.Outputs:
        restore_positions(model)
        out = model(**run.published())
        states = out.logits if "logits" in out else out.last_hidden_state
        return states[run.target_mask]  # type: ignore[no-any-return]

    return call


SWAPS = [
    ("encoder.blocks.0.attention.query.weight", "encoder.blocks.0.attention.key.weight"),
    ("encoder.blocks.0.attention.value.bias", "encoder.blocks.0.attention.output.bias"),
    ("encoder.blocks.0.attention_norm.weight", "encoder.blocks.0.feedforward_norm.weight"),
    ("decoder.blocks.0.attention.value.weight", "decoder.blocks.0.cross_attention.value.weight"),
    ("decoder.blocks.0.attention_norm.bias", "decoder.blocks.0.cross_attention_norm.bias"),
]


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize("head", list(transformer.HEADS))
def test_equals_published(head: str, seed: int) -> None:
    pair = make_pair(head, seed)
    run = case(pair.theirs, seed)
    harness.check_all(pair, theirs_of(run), run.ours, SWAPS)


def test_greedy_tokens_and_attention_equal_published() -> None:
    different = []
    for seed in (59, 60, 62, 63):  # weights that do not repeat one token for ever
        pair = make_pair("conditional-generation", seed)
        run = case(pair.theirs, seed)
        restore_positions(pair.theirs)
        encoder_decoder.check_published_attention(pair, run)
        different.append(encoder_decoder.check_greedy(pair, run, start=29))
    assert max(different) > 6


def test_caches_padding_and_causality() -> None:
    pair = make_pair("conditional-generation", 3)
    run = case(pair.theirs, 3)
    encoder_decoder.check_caches(pair.ours, run)
    encoder_decoder.check_padding(pair.ours, run, 29)
    encoder_decoder.check_causal(pair.ours, run, 30)
    encoder_decoder.check_nothing_to_see(pair.ours, run)


def test_the_other_order_of_sinusoids_is_seen() -> None:
    """Negative control: the paper's order of sines and cosines gives other logits."""
    pair = make_pair("conditional-generation", 3)
    run = case(pair.theirs, 3)
    right = run.ours(pair.ours)
    pair.ours.encoder.embeddings.interleaved = True
    assert harness.difference(run.ours(pair.ours), right) > 1e-3


def test_initialisation_has_the_published_deviation() -> None:
    config = transformers.MarianConfig(
        vocab_size=300,
        d_model=64,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        pad_token_id=299,
        decoder_start_token_id=299,
        init_std=0.07,
    )
    ours = transformer.Model(transformer.read_config(config.to_dict()))
    harness.randomise(ours, 1)
    torch.manual_seed(2)
    transformer.initialise(ours)
    embedding = ours.encoder.embeddings.token.weight
    assert not embedding[299].any()
    for name, value in ours.named_parameters():
        if "norm.weight" in name:
            assert bool((value == 1).all()), name
        elif name.endswith("bias"):
            assert not value.any(), name
        else:
            assert abs(float(value.detach().std()) / 0.07 - 1) < 6 / value.numel() ** 0.5 + 0.01, (
                name
            )


OPUS = {
    **{"_name_or_path": "/tmp/opus", "_num_labels": 3, "activation_dropout": 0.0},
    **{"activation_function": "swish", "add_bias_logits": False, "add_final_layer_norm": False},
    **{"architectures": ["MarianMTModel"], "attention_dropout": 0.0, "bad_words_ids": [[58100]]},
    **{"bos_token_id": 0, "classif_dropout": 0.0, "classifier_dropout": 0.0, "d_model": 512},
    **{"decoder_attention_heads": 8, "decoder_ffn_dim": 2048, "decoder_layerdrop": 0.0},
    **{"decoder_layers": 6, "decoder_start_token_id": 58100, "decoder_vocab_size": 58101},
    **{"dropout": 0.1, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    **{"encoder_layerdrop": 0.0, "encoder_layers": 6, "eos_token_id": 0},
    **{"extra_pos_embeddings": 58101, "forced_eos_token_id": 0, "gradient_checkpointing": False},
    **{"id2label": {"0": "A", "1": "B", "2": "C"}, "init_std": 0.02, "is_encoder_decoder": True},
    **{"max_length": 512, "max_position_embeddings": 512, "model_type": "marian"},
    **{"normalize_before": False, "normalize_embedding": False, "num_beams": 6},
    **{"num_hidden_layers": 6, "pad_token_id": 58100, "scale_embedding": True},
    **{"share_encoder_decoder_embeddings": True, "static_position_embeddings": True},
    **{"transformers_version": "4.22.0", "use_cache": True, "vocab_size": 58101},
}


def test_config_of_an_opus_checkpoint() -> None:
    config = transformer.read_config(OPUS)
    assert (config.width, config.num_encoder_blocks, config.activation) == (512, 6, "swish")
    assert (config.start_id, config.pad_id, config.eos_ids) == (58100, 58100, (0,))
    assert (config.positions, config.attention_bias, config.logits_bias) == (
        "concatenated",
        True,
        True,
    )
    written = transformer.write_config(config, "conditional-generation")
    assert {k: OPUS[k] for k in written if k in OPUS} == {
        k: written[k] for k in written if k in OPUS
    }
    assert transformers.MarianConfig(**written).to_dict()["d_model"] == 512


@pytest.mark.parametrize(
    "raw",
    [
        {"normalize_before": True},
        {"normalize_embedding": True},
        {"add_final_layer_norm": True},
        {"add_bias_logits": True},
        {"static_position_embeddings": False},
        {"is_decoder": True},
        {"encoder_attention_heads": 7},
        {"encoder_attention_heads": 0},
        {"encoder_layers": 0},
        {"pad_token_id": 70000},
        {"share_encoder_decoder_embeddings": False, "decoder_vocab_size": 100},
        {"activation_function": "none such"},
        {"hidden_size": 16},
        {"decoder_vocab_size": 100},
        {"d_k": 32},
        {"unheard_of": 1},
    ],
)
def test_configs_that_are_refused(raw: dict[str, Any]) -> None:
    transformer.read_config(OPUS)
    with pytest.raises(ConfigError):
        transformer.read_config({**OPUS, **raw})


def test_a_missing_logits_bias_is_zero() -> None:
    """Files may lack it; loading then removes the module (OPTIONAL), and logits are plain."""
    pair = make_pair("conditional-generation", 2)
    run = case(pair.theirs, 2)
    bias = pair.ours.head.bias
    with_bias = run.ours(pair.ours)
    pair.ours.head = None
    harness.compare(run.ours(pair.ours) + bias, with_bias, 1e-6)
    assert float(bias.abs().max()) > 0.1


def test_a_new_marian_starts_with_its_padding() -> None:
    raw = {"model_type": "marian", "vocab_size": 300, "pad_token_id": 7, "eos_token_id": 0}
    assert transformer.read_config(raw).start_id == 7
    assert transformer.read_config(raw | {"decoder_start_token_id": 3}).start_id == 3
    assert transformer.read_config(raw | {"vocab_size": 58101}).start_id == 58100
    for wrong, key in (
        ({"decoder_start_token_id": 300}, "decoder_start_token_id"),
        ({"model_type": "transformer", "decoder_start_token_id": 300}, "decoder_start_token_id"),
        ({"pad_token_id": 300}, "pad_token_id"),
    ):
        with pytest.raises(ConfigError) as caught:
            transformer.read_config(raw | wrong)
        assert caught.value.where == key
