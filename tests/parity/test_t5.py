"""T5 and mT5 against the published implementation, every head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from parity import encoder_decoder, harness
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.layers.ops import ACTIVATIONS
from chumoku.layers.positions import relative_buckets
from chumoku.models import t5

EVERY_ACTIVATION = sorted(set(ACTIVATIONS) & set(transformers.activations.ACT2FN))
CASES = [(kind, head) for kind in t5.PUBLISHED for head in t5.HEADS]
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]
PAD, END = 0, 1


def published(kind: str, head: str, seed: int) -> Any:
    draw = harness.sampler(kind, head, seed)
    activation = EVERY_ACTIVATION[(seed * 7 + len(head)) % len(EVERY_ACTIVATION)]
    gated = draw.random() < 0.6
    values = {
        "vocab_size": draw.randint(30, 90),
        "d_model": draw.choice([12, 17, 24]),
        "d_kv": draw.choice([3, 4, 7]),
        "d_ff": draw.randint(9, 50),
        "num_layers": draw.randint(1, 3),
        "num_decoder_layers": draw.choice([None, 1, 2, 3]),
        "num_heads": draw.choice([1, 2, 3, 5]),
        "relative_attention_num_buckets": draw.choice([4, 8, 11, 32]),
        "relative_attention_max_distance": draw.choice([7, 20, 128]) + 16,
        "dropout_rate": draw.choice([0.1, 0.3]),
        "classifier_dropout": draw.choice([0.0, 0.4]),
        "layer_norm_epsilon": draw.choice([1e-6, 1e-3]),
        "feed_forward_proj": f"gated-{activation}" if gated else activation,
        "num_labels": 2 if head == "question-answering" else draw.randint(2, 5),
        "decoder_start_token_id": PAD,
        "attn_implementation": "eager",
    }
    if kind == "t5":
        values["tie_word_embeddings"] = draw.random() < 0.5
    name = t5.PUBLISHED[kind]
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, name + t5.HEADS[head])(config)
    if head == "conditional-generation" and draw.random() < 0.5:
        # As after loading a file whose two matrices differ; the class itself always ties.
        model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    return model


def case(model: Any, seed: int) -> encoder_decoder.Case:
    size = model.config.vocab_size
    return encoder_decoder.case(size, size, pad=PAD, start=PAD, end=END, seed=seed)


def theirs_of(head: str, run: encoder_decoder.Case) -> harness.Run:
    source = {"input_ids": run.source, "attention_mask": run.source_mask.long()}

    def call(model: Any) -> harness.Outputs:
        if head == "encoder":
            return model(**source).last_hidden_state[run.source_mask]  # type: ignore[no-any-return]
        if head == "token-classification":
            return model(**source).logits[run.source_mask]  # type: ignore[no-any-return]
        if head == "classification":
            return model(**source).logits  # type: ignore[no-any-return]
        if head == "question-answering":
            out = model(**source)
            return out.start_logits[run.source_mask], out.end_logits[run.source_mask]
        out = model(**run.published())
        states = out.logits if head == "conditional-generation" else out.last_hidden_state
        return states[run.target_mask]  # type: ignore[no-any-return]

    return call


def ours_of(head: str, run: encoder_decoder.Case) -> harness.Run:
    def call(model: Any) -> harness.Outputs:
        if head in ("encoder", "token-classification"):
            return model(run.source, run.source_mask)[run.source_mask]  # type: ignore[no-any-return]
        if head == "classification":
            return model(run.source, source_mask=run.source_mask)  # type: ignore[no-any-return]
        if head == "question-answering":
            out = model(run.source, source_mask=run.source_mask)
            return out.start_BT[run.source_mask], out.end_BT[run.source_mask]
        return run.ours(model)

    return call


def swaps(ours: Any) -> list[tuple[str, str]]:
    first = "encoder.blocks.0"
    pairs = [
        (f"{first}.attention.query.weight", f"{first}.attention.key.weight"),
        (f"{first}.attention_norm.weight", f"{first}.feedforward_norm.weight"),
    ]
    names = dict(ours.named_parameters())
    if "decoder.final_norm.weight" in names:
        last = "decoder.blocks.0"
        pairs += [
            (f"{last}.cross_attention.value.weight", f"{last}.attention.value.weight"),
            (f"{last}.cross_attention_norm.weight", "decoder.final_norm.weight"),
            (
                "encoder.blocks.0.attention.relative_bias.weight",
                "decoder.blocks.0.attention.relative_bias.weight",
            ),
        ]
    if ours.config.gated and ours.config.activation != "linear":  # there, gate and up commute
        pairs.append((f"{first}.feedforward.gate.weight", f"{first}.feedforward.up.weight"))
    return pairs


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_equals_published(kind: str, head: str, seed: int) -> None:
    theirs = published(kind, head, seed)
    pair = harness.make_pair(theirs, t5, head, seed=seed)
    run = case(theirs, seed)
    harness.check_all(pair, theirs_of(head, run), ours_of(head, run), swaps(pair.ours))


@pytest.mark.parametrize("kind", list(t5.PUBLISHED))
def test_greedy_tokens_and_attention_equal_published(kind: str) -> None:
    head, different = "conditional-generation", []
    for seed in range(4):
        theirs = published(kind, head, 40 + seed)
        pair = harness.make_pair(theirs, t5, head, seed=seed)
        run = case(theirs, seed)
        encoder_decoder.check_published_attention(pair, run)
        different.append(encoder_decoder.check_greedy(pair, run, start=PAD))
    assert max(different) > 6


@pytest.mark.parametrize("kind", list(t5.PUBLISHED))
def test_caches_padding_and_causality(kind: str) -> None:
    theirs = published(kind, "conditional-generation", 3)
    pair = harness.make_pair(theirs, t5, "conditional-generation", seed=3)
    run = case(theirs, 3)
    encoder_decoder.check_caches(pair.ours, run)
    encoder_decoder.check_padding(pair.ours, run, PAD)
    encoder_decoder.check_causal(pair.ours, run, theirs.config.vocab_size)
    encoder_decoder.check_nothing_to_see(pair.ours, run)


def test_bias_of_another_place_is_seen() -> None:
    """Negative control of the cached bias: a step that forgets its past gives other logits."""
    theirs = published("t5", "conditional-generation", 3)
    ours = harness.make_pair(theirs, t5, "conditional-generation", seed=3).ours
    bias = ours.decoder.blocks[0].attention.relative_bias
    assert torch.equal(bias(1, 9), bias(9, 9)[:, :, -1:])
    assert harness.difference(bias(1, 9), bias(9, 9)[:, :, :1]) > 1e-3


def test_golden_buckets() -> None:
    """SYSTEMS.md section 24: key position - query position -> bucket, 32 buckets up to 128."""
    both = {
        **{-200: 15, -128: 15, -127: 15, -64: 14, -20: 10, -9: 8, -8: 8, -7: 7, -1: 1, 0: 0},
        **{1: 17, 7: 23, 8: 24, 9: 24, 20: 26, 64: 30, 127: 31, 128: 31, 200: 31},
    }
    past = {
        **{5: 0, 0: 0, -1: 1, -8: 8, -15: 15, -16: 16, -17: 16, -20: 17, -31: 21, -64: 26},
        **{-113: 31, -150: 31},
    }
    device = torch.device("cpu")
    for golden, causal in ((both, False), (past, True)):
        table = relative_buckets(401, 401, buckets=32, distance=128, causal=causal, device=device)
        got = {relative: int(table[200, 200 + relative]) for relative in golden}
        assert got == golden


SIZES = {
    # width, feed-forward width, head width, heads, blocks, gated; SYSTEMS.md section 20
    "small": (512, 2048, 64, 8, 6, False, 60_506_624),
    "base": (768, 3072, 64, 12, 12, False, 222_903_552),
    "large": (1024, 4096, 64, 16, 24, False, 737_668_096),
    "3b": (1024, 16384, 128, 32, 24, False, 2_851_598_336),
    "11b": (1024, 65536, 128, 128, 24, False, 11_307_321_344),
    "v1.1 small": (512, 1024, 64, 6, 8, True, 76_961_152),
    "v1.1 base": (768, 2048, 64, 12, 12, True, 247_577_856),
}


@pytest.mark.parametrize("size", list(SIZES))
def test_parameter_counts(size: str) -> None:
    width, hidden, head_width, heads, blocks, gated, count = SIZES[size]
    config = t5.Config(
        width=width,
        feedforward_width=hidden,
        head_width=head_width,
        num_heads=heads,
        num_blocks=blocks,
        num_decoder_blocks=blocks,
        gated=gated,
        tied=not gated,
    )
    with torch.device("meta"):
        model = t5.Model(config)
    assert sum(p.numel() for p in model.parameters()) == count


def test_initialisation_has_the_published_deviations() -> None:
    values = {"d_model": 48, "d_kv": 16, "d_ff": 96, "num_layers": 1, "num_heads": 6}
    values |= {"vocab_size": 500, "initializer_factor": 0.7, "feed_forward_proj": "gated-gelu"}
    for head in t5.HEADS:
        extra = {"num_labels": 2 if head == "question-answering" else 40}
        config = transformers.T5Config(**values, **extra)
        theirs = getattr(transformers, "T5" + t5.HEADS[head])(config)
        ours = t5.Model(t5.read_config(config.to_dict()), head)
        torch.manual_seed(3)
        t5.initialise(ours)
        expected = harness.to_ours(theirs.state_dict(), t5.names(ours.config, head, "hub"), ours)
        for name, value in ours.state_dict().items():
            wanted = expected[name]
            if value.numel() == 1 or float(wanted.std()) == 0.0:
                assert torch.equal(value, wanted), name
            else:
                allowed = 6 / value.numel() ** 0.5
                assert abs(float(value.std() / wanted.std()) - 1) < allowed, name


# ---- config ----


def test_old_files_tie_and_scale_together() -> None:
    """Up to transformers 4 one key says both; 5 keeps them apart, and never scales for mT5."""

    def read(**raw: object) -> tuple[bool, bool]:
        config = t5.read_config({"model_type": "t5", **raw})
        return config.tied, config.scaled_logits

    assert read() == (True, True)
    assert read(tie_word_embeddings=False) == (False, False)
    assert read(tie_word_embeddings=True, scale_decoder_outputs=False) == (True, False)
    assert read(model_type="mt5") == (False, False)
    four, five = {"transformers_version": "4.57.1"}, {"transformers_version": "5.23.0"}
    assert read(model_type="mt5", tie_word_embeddings=True, **four) == (True, True)
    assert read(model_type="mt5", tie_word_embeddings=True, **five) == (True, False)


def test_every_combination_survives_writing() -> None:
    for kind in t5.PUBLISHED:
        for tied in (True, False):
            for scale in (True, False):
                for activation in ("relu", "gelu", "gelu_new", "silu"):
                    config = t5.Config(
                        model_type=kind,
                        tied=tied,
                        scaled_logits=scale,
                        activation=activation,
                        eos_ids=(1, 7),
                    )
                    assert t5.read_config(t5.write_config(config, "encoder-decoder")) == config


def test_exact_gelu_may_gate() -> None:
    """ "gated-gelu" names the tanh approximation; the exact function has another name."""
    config = t5.Config(activation="gelu", gated=True)
    raw = t5.write_config(config, "encoder")
    assert raw["feed_forward_proj"] == "gated-gelu_python"
    again = t5.read_config(raw)
    assert ACTIVATIONS[again.activation] is ACTIVATIONS["gelu"]
    assert transformers.T5Config(**raw).dense_act_fn == "gelu_python"


@pytest.mark.parametrize(
    "raw",
    [
        {"feed_forward_proj": "gated-gelu", "dense_act_fn": "relu"},
        {"feed_forward_proj": "gated-gelu", "is_gated_act": False},
        {"feed_forward_proj": "double-gelu"},
        {"feed_forward_proj": "gated-nothing"},
        {"is_decoder": True},
        {"tie_encoder_decoder": True},
        {"eos_token_id": "one"},
        {"num_layers": 0},
        {"relative_attention_num_buckets": 2},
        {"d_model": 512, "hidden_size": 256},
        {"unheard_of": 3},
    ],
)
def test_configs_that_are_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        t5.read_config({"model_type": "t5", **raw})


def test_input_that_is_refused() -> None:
    config = t5.Config(vocab_size=20, width=8, head_width=4, feedforward_width=8, num_heads=2)
    ids: Tensor = torch.tensor([[5, 6, 7]])
    with pytest.raises(InputError, match="no end token"):
        t5.Model(config, "classification")(ids)
    with pytest.raises(InputError, match="needs a target"):
        t5.Model(config)(ids)
    bare: Any = t5.Model(config, "encoder-decoder")
    with pytest.raises(InputError, match="no vocabulary logits"):
        bare.unembed(torch.zeros(1, 2, 8))
    with pytest.raises(ConfigError, match="no head"):
        t5.Model(config, "masked-lm")
