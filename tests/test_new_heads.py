"""A published head and other labels: its weights must not serve new meanings."""

from __future__ import annotations

from pathlib import Path

import torch

import chumoku


def classes(model: torch.nn.Module) -> torch.Tensor:
    return next(p for n, p in model.named_parameters() if n.startswith("head.") and p.dim() == 2)


def test_other_labels_get_a_new_head(tmp_path: Path) -> None:
    config = {
        "model_type": "bert", "vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 16,
        "id2label": {"0": "good", "1": "bad"}, "label2id": {"good": 0, "bad": 1},
    }  # fmt: skip
    first = chumoku.create(config, "classification", 1)
    chumoku.save(first, tmp_path)
    same = chumoku.load(tmp_path, new_head=True, labels=("bad", "good"))
    assert torch.equal(classes(same.model), classes(first.model))
    assert same.config.labels == ("good", "bad")
    for labels in (("x", "y"), ("x", "y", "z")):
        other = chumoku.load(tmp_path, new_head=True, labels=labels)
        assert other.config.labels == labels
        assert len(classes(other.model)) == len(labels)
        assert not torch.equal(classes(other.model)[:2], classes(first.model))
        assert any("good, bad" in note for note in other.source.notes)
        assert torch.equal(
            other.model.get_parameter("blocks.0.attention.query.weight"),
            first.model.get_parameter("blocks.0.attention.query.weight"),
        )
