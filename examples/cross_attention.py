"""Where does a translator look while it writes each word? Its cross-attention, as a picture.

    python examples/cross_attention.py ["My brother lives in Tokyo."] [--model tiny:translator] \
        [--output docs/figures/cross-attention.svg]

The model translates by beams; then one forward pass over source and translation, watched by
`chumoku.trace`, gives every decoder block's weights. A row is one written token, a column one of
the source: P(look at the column | about to write the row), the mean of the block's heads.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import chumoku
from chumoku.training.curves import canvas

SENTENCE = "My brother lives in Tokyo."
OUTPUT = Path(__file__).parents[1] / "docs" / "figures" / "cross-attention.svg"
TAP = "decoder.blocks.*.cross_attention.weights"


@dataclass(frozen=True)
class Looked:
    """weights_LNTS: of L blocks and N heads, from T written tokens to S source tokens."""

    source: list[str]
    target: list[str]
    translation: str
    weights_LNTS: Tensor


@torch.no_grad()
def look(text: str, loaded: chumoku.Loaded, num_beams: int = 4) -> Looked:
    """Translate, and say where each block looked before it wrote each token."""
    written = chumoku.generate(text, loaded, num_beams=num_beams)
    source = loaded.tokenizer.encode(text).ids
    before = [loaded.config.start_id, *written.ids[:-1]]
    with chumoku.trace(loaded.model, TAP) as seen:
        loaded.model(torch.tensor([source]), torch.tensor([before]))
    return Looked(
        [piece(loaded, token) for token in source],
        [piece(loaded, token) for token in written.ids],
        written.text,
        torch.stack([weights_BNTS[0] for weights_BNTS in seen.values()]),
    )


def piece(loaded: chumoku.Loaded, token: int) -> str:
    """As the vocabulary has it, without the mark of a word's beginning."""
    return loaded.tokenizer.id_to_token(token).lstrip("▁") or "▁"


def draw(looked: Looked, output: Path) -> None:
    """One panel a block; .svg or .png."""
    blocks = looked.weights_LNTS.mean(dim=1)
    wide, high = len(looked.source) * 0.32 + 0.8, len(looked.target) * 0.28 + 0.9
    with canvas(output, (len(blocks) * wide, high)) as figure:
        for number, axis in enumerate(figure.subplots(1, len(blocks), squeeze=False)[0]):
            axis.imshow(blocks[number].numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
            axis.set_xticks(range(len(looked.source)), looked.source, rotation=60, ha="right")
            axis.set_yticks(range(len(looked.target)), looked.target)
            axis.set_title(f"decoder block {number}", fontsize="medium")
            axis.grid(visible=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", nargs="?", default=SENTENCE)
    parser.add_argument("--model", default="tiny:translator")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    looked = look(options.text, chumoku.load(options.model, head="conditional-generation"))
    draw(looked, options.output)
    print(f"{options.text} -> {looked.translation} [{options.output}]")


if __name__ == "__main__":
    main()
