"""BERT and RoBERTa against the published implementation, every head."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
import transformers
from parity import harness
from torch import Tensor

from chumoku.layers.attention import Batch
from chumoku.layers.ops import ACTIVATIONS
from chumoku.models import bert

# Published activations that the reference's own config accepts.
EVERY_ACTIVATION = sorted(set(ACTIVATIONS) & set(transformers.activations.ACT2FN))
CASES = [("bert", head) for head in bert.HEADS] + [
    ("roberta", head) for head in bert.HEADS if head not in ("pre-training", "next-sentence")
]
COUNT = [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 20))]


def published(kind: str, head: str, seed: int) -> Any:
    draw = harness.sampler(kind, head, seed)
    heads = draw.choice([1, 2, 3, 5])
    values = {
        "vocab_size": draw.randint(30, 90),
        "hidden_size": heads * draw.choice([4, 7, 10]),
        "num_hidden_layers": draw.randint(1, 3),
        "num_attention_heads": heads,
        "intermediate_size": draw.randint(9, 60),
        "hidden_act": EVERY_ACTIVATION[(seed * 5 + len(head)) % len(EVERY_ACTIVATION)],
        "max_position_embeddings": draw.randint(24, 40),
        "type_vocab_size": draw.randint(2, 4),
        "layer_norm_eps": draw.choice([1e-12, 1e-5, 1e-3]),
        "hidden_dropout_prob": draw.choice([0.1, 0.3]),
        "attention_probs_dropout_prob": draw.choice([0.1, 0.2]),
        "classifier_dropout": draw.choice([None, 0.4]),
        "tie_word_embeddings": draw.random() < 0.5,
        "num_labels": 2 if head == "question-answering" else draw.randint(2, 5),
        "pad_token_id": draw.randint(0, 3),
    }
    name = bert.PUBLISHED[kind]
    config = getattr(transformers, f"{name}Config")(**values)
    model = getattr(transformers, name + bert.HEADS[head])(config)
    for module in model.modules():
        # 5.x leaves a second, unused copy of this bias where the matrices are not tied.
        if hasattr(module, "decoder") and isinstance(getattr(module, "bias", None), Tensor):
            module.bias = module.decoder.bias
    return model


@dataclasses.dataclass(frozen=True)
class Case:
    ids: Tensor
    mask: Tensor
    segments: Tensor
    head: str

    def theirs(self, model: Any) -> Any:
        out = model(**self.inputs())
        if self.head == "encoder":
            return out.last_hidden_state[self.mask]
        if self.head == "pre-training":
            return out.prediction_logits[self.mask], out.seq_relationship_logits
        if self.head == "question-answering":
            return out.start_logits[self.mask], out.end_logits[self.mask]
        return self.cut(out.logits)

    def inputs(self) -> dict[str, Tensor]:
        return {
            "input_ids": self.ids,
            "attention_mask": self.mask.long(),
            "token_type_ids": self.segments,
        }

    def cut(self, logits: Tensor) -> Tensor:
        return logits[self.mask] if self.head in ("masked-lm", "token-classification") else logits

    def ours(self, model: Any) -> Any:
        out = model(self.ids, self.mask, batch=Batch(segments_BT=self.segments))
        if self.head == "encoder":
            return out[self.mask]
        if self.head == "pre-training":
            return out.logits_BTV[self.mask], out.next_sentence_B2
        if self.head == "question-answering":
            return out.start_BT[self.mask], out.end_BT[self.mask]
        return self.cut(out)


def case(model: Any, head: str, seed: int) -> Case:
    """Right-padded rows; the pad id where there is no token, and nowhere else (RoBERTa counts)."""
    generator = torch.Generator().manual_seed(seed)
    config = model.config
    shape = (2, 3, 9) if head == "multiple-choice" else (3, 11)
    ids = torch.randint(4, config.vocab_size, shape, generator=generator)
    segments = torch.randint(0, config.type_vocab_size, shape, generator=generator)
    mask = torch.ones(shape, dtype=torch.bool)
    mask[-1, ..., 7:] = False
    ids[~mask] = config.pad_token_id
    return Case(ids, mask, segments, head)


def swaps(ours: Any) -> list[tuple[str, str]]:
    names = dict(ours.named_parameters())
    first = "blocks.0.attention"
    pairs = [
        (f"{first}.query.weight", f"{first}.key.weight"),
        (f"{first}.value.bias", f"{first}.output.bias"),
        (f"{first}_norm.weight", "blocks.0.feedforward_norm.weight"),
        (f"{first}_norm.bias", "blocks.0.feedforward.down.bias"),
    ]
    if "head.transform.bias" in names and "head.norm.bias" in names:
        pairs.append(("head.transform.bias", "head.norm.bias"))
    return pairs


@pytest.mark.parametrize("seed", COUNT)
@pytest.mark.parametrize(("kind", "head"), CASES)
def test_equals_published(kind: str, head: str, seed: int) -> None:
    theirs = published(kind, head, seed)
    pair = harness.make_pair(theirs, bert, head, seed=seed)
    run = case(theirs, head, seed)
    harness.check_all(pair, run.theirs, run.ours, swaps(pair.ours))


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_attention_weights_equal_published(kind: str) -> None:
    theirs = published(kind, "masked-lm", 77)
    pair = harness.make_pair(theirs, bert, "masked-lm", seed=1)
    run = case(theirs, "masked-lm", 1)
    harness.check_attention(
        pair,
        lambda m: m(**run.inputs(), output_attentions=True).attentions,
        run.ours,
        rows_BT=run.mask,  # a pad's own position is another here than in the reference
    )


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_padding_and_batching_change_nothing(kind: str) -> None:
    theirs = published(kind, "encoder", 5)
    pair = harness.make_pair(theirs, bert, "encoder", seed=2)
    run = case(theirs, "encoder", 2)
    harness.check_padding(pair.ours, run.ids[:2], pad=theirs.config.pad_token_id)
