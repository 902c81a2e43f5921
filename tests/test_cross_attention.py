"""examples/cross_attention.py: the weights belong to the tokens they stand beside."""

from __future__ import annotations

import sys
from html import escape
from pathlib import Path

import pytest
import torch

import chumoku

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "examples"))

import cross_attention  # noqa: E402


@pytest.fixture(scope="module")
def loaded() -> chumoku.Loaded:
    return chumoku.load("tiny:translator", head="conditional-generation")


def test_a_row_is_the_step_that_writes_its_token(loaded: chumoku.Loaded) -> None:
    """The last row again, by decoding step by step up to it."""
    looked = cross_attention.look(cross_attention.SENTENCE, loaded, num_beams=1)
    L, N, T, S = looked.weights_LNTS.shape
    config = loaded.config
    assert (config.num_decoder_blocks, config.decoder_heads) == (L, N)
    assert (len(looked.target), len(looked.source)) == (T, S)
    torch.testing.assert_close(looked.weights_LNTS.sum(-1), torch.ones(L, N, T))
    assert (
        looked.translation
        == chumoku.translate(cross_attention.SENTENCE, loaded)[0]["translation_text"]
    )
    source = torch.tensor([loaded.tokenizer.encode(cross_attention.SENTENCE).ids])
    ids = [config.start_id]
    with torch.no_grad(), chumoku.trace(loaded.model, cross_attention.TAP) as seen:
        for name in looked.target:
            ids.append(int(loaded.model(source, torch.tensor([ids]))[0, -1].argmax()))
            assert cross_attention.piece(loaded, ids[-1]) == name
    last = torch.stack([weights_BNTS[0, :, -1] for weights_BNTS in seen.values()])
    torch.testing.assert_close(looked.weights_LNTS[:, :, -1], last)


def test_the_picture_names_every_token(loaded: chumoku.Loaded, tmp_path: Path) -> None:
    looked = cross_attention.look("He is a good teacher.", loaded)
    cross_attention.draw(looked, tmp_path / "picture.svg")
    picture = (tmp_path / "picture.svg").read_text(encoding="utf-8")
    for name in (*looked.source, *looked.target):
        assert f">{escape(name)}</text>" in picture


def test_the_page_shows_a_picture_of_the_shipped_translator(loaded: chumoku.Loaded) -> None:
    looked = cross_attention.look(cross_attention.SENTENCE, loaded)
    picture = cross_attention.OUTPUT.read_text(encoding="utf-8")
    for name in (*looked.source, *looked.target):
        assert f">{escape(name)}</text>" in picture
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"figures/{cross_attention.OUTPUT.name}" in page
    assert looked.translation in page
