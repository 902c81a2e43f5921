"""Writes group_beams.json: diverse beam search as transformers had it until 4.55 (5.x dropped it).

Run in an environment of its own (any torch, transformers==4.55.4, numpy):
    python tests/golden/group_beams.py
The model is small and its weights come from their names, so that our test can build the same one.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch

OUT = Path(__file__).with_suffix(".json")
CONFIG = {
    "vocab_size": 29,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
PROMPTS = [[1, 2, 3, 4], [7, 8, 9, 10], [20, 4, 6, 25]]
EOS = (5, 11)
CASES = [
    {
        "num_beams": beams,
        "num_beam_groups": groups,
        "diversity_penalty": diversity,
        "length_penalty": length_penalty,
        "early_stopping": early,
        "num_return_sequences": beams if early is True else 2,
        "max_new_tokens": new_tokens,
        "no_repeat_ngram_size": ngram,
        "repetition_penalty": repetition,
    }
    for (beams, groups, diversity), (
        length_penalty,
        early,
        new_tokens,
        ngram,
        repetition,
    ) in itertools.product(
        [(2, 2, 0.5), (4, 2, 1.0), (6, 3, 0.3), (4, 4, 2.0)],
        [
            (1.0, False, 10, 0, 1.0),
            (0.0, True, 12, 2, 1.0),
            (2.0, "never", 9, 0, 1.0),
            (-0.5, False, 14, 3, 1.0),
            (1.0, False, 10, 0, 1.6),
        ],
    )
]


def weight(name: str, shape: torch.Size) -> torch.Tensor:
    """A fixed value for every place: norms about 1, matrices about N(0, 1 / fan_in)."""
    seed = sum((n + 1) * ord(letter) for n, letter in enumerate(name))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if len(shape) == 1:
        return (1 + 0.3 * values).float()
    return (values * (1.0 if "embed_tokens" in name else shape[1] ** -0.5)).float()


def main() -> None:
    import transformers

    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    model.load_state_dict({n: weight(n, t.shape) for n, t in model.state_dict().items()})
    results = []
    for case in CASES:
        with torch.no_grad():
            out = model.generate(
                torch.tensor(PROMPTS),
                attention_mask=torch.ones(len(PROMPTS), len(PROMPTS[0]), dtype=torch.long),
                eos_token_id=list(EOS),
                pad_token_id=0,
                return_dict_in_generate=True,
                output_scores=True,
                **case,
            )
        rows = [row[len(PROMPTS[0]) :].tolist() for row in out.sequences]
        results.append({"case": case, "ids": rows, "scores": out.sequences_scores.tolist()})
    document = {"transformers": transformers.__version__, "results": results}
    OUT.write_text(json.dumps(document, indent=None, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
