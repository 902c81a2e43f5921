"""Ties and scales of T5, mT5 and Marian as files have them, from transformers 4.57 and from 5."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import test_t5
import test_transformer
import torch
from golden.encoder_decoder_457 import SOURCE, TARGET, weight
from parity import harness
from torch import nn

from chumoku.errors import CheckpointError
from chumoku.loading import load
from chumoku.models import architecture

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "encoder_decoder_457.json").read_text(encoding="utf-8")
)


def filled(raw: dict[str, Any]) -> Any:
    """A model of this config.json, each tensor filled by its published name."""
    module: Any = architecture(raw["model_type"])
    config = module.read_config(raw)
    model = module.Model(config, "conditional-generation").eval()
    table = module.names(config, "conditional-generation", "hub")
    state = {}
    for group in _groups(model):
        name = table.publish(group[0])[1]
        state |= dict.fromkeys(group, weight(name, tuple(model.state_dict()[group[0]].shape)))
    model.load_state_dict(state)
    return model


def _groups(model: nn.Module) -> list[list[str]]:
    groups: dict[int, list[str]] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        groups.setdefault(id(tensor), []).append(name)
    return list(groups.values())


@pytest.mark.parametrize("title", list(GOLDEN))
@torch.no_grad()
def test_logits_of_release_4(title: str) -> None:
    model = filled(GOLDEN[title]["config"])
    expected = torch.tensor(GOLDEN[title]["logits"])
    got = model(torch.tensor(SOURCE), torch.tensor(TARGET))
    harness.compare(got, expected, 1e-5, title)


def test_release_5_would_not_scale() -> None:
    """Negative control: the same tied mT5 file, if release 5 had written it."""
    golden = GOLDEN["mt5 tied"]
    model = filled({**golden["config"], "transformers_version": "5.23.0"})
    got = model(torch.tensor(SOURCE), torch.tensor(TARGET))
    assert harness.difference(got, torch.tensor(golden["logits"])) > 1e-2


def saved(folder: Path, *, differ: bool) -> Any:
    """v1.1 and mT5 files as release 5 saves them again: tie_word_embeddings is true in each."""
    theirs = test_t5.published("mt5", "conditional-generation", 2)
    theirs.config.tie_word_embeddings = True
    theirs.lm_head.weight = theirs.shared.weight
    if differ:
        theirs.lm_head.weight = nn.Parameter(theirs.shared.weight.detach().clone())
    harness.randomise(theirs, 1)
    theirs.eval().save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("differ", [False, True])
@torch.no_grad()
def test_the_tensors_tell_whether_the_output_is_tied(tmp_path: Path, differ: bool) -> None:
    theirs = saved(tmp_path, differ=differ)
    loaded = load(tmp_path)
    assert loaded.config.tied is not differ
    run = test_t5.case(theirs, 2)
    expected = test_t5.theirs_of("conditional-generation", run)(theirs)
    harness.compare(run.ours(loaded.model), expected, 1e-5)


def test_tables_that_should_be_one_and_differ_are_refused(tmp_path: Path) -> None:
    """Release 5 separates all of Marian's tables with tie_word_embeddings=False; we have one."""
    theirs = test_transformer.published("encoder-decoder", 3)
    theirs.config.share_encoder_decoder_embeddings = True
    theirs.config.decoder_vocab_size = theirs.config.vocab_size
    size = (theirs.config.vocab_size, theirs.config.d_model)
    for owner in (theirs.encoder, theirs.decoder):
        owner.embed_tokens.weight = nn.Parameter(torch.randn(size))
    theirs._tied_weights_keys = theirs.all_tied_weights_keys = {}
    theirs.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"differ in the file: .*embed_tokens"):
        load(tmp_path)
