"""Writes encoder_decoder_457.json: what transformers 4.57 computes and 5 no longer does.

A tied mT5 scales its hidden states there, and Marian may share its embeddings and yet have an
output matrix of its own. Run it with that release:

    pip install transformers==4.57.1 && python tests/golden/encoder_decoder_457.py
"""

from __future__ import annotations

import json
import math
import warnings
import zlib
from pathlib import Path

import torch

SOURCE = [[5, 9, 3, 17, 11, 1], [8, 2, 14, 6, 7, 1]]
TARGET = [[0, 4, 12, 9], [0, 15, 3, 3]]


def weight(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Values that depend on nothing but the published name and the shape."""
    start = zlib.crc32(name.encode()) % 1000
    values = [math.sin(start + 0.7 * i) for i in range(math.prod(shape))]
    tensor = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return (1 + 0.3 * tensor if "norm.weight" in name else 0.5 * tensor).float()


def main() -> None:
    import transformers

    warnings.simplefilter("ignore")
    sizes = {"vocab_size": 20, "d_model": 8}
    t5 = {**sizes, "d_kv": 4, "d_ff": 10, "num_layers": 2, "num_heads": 2}
    marian = {**sizes, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
    marian |= {"decoder_attention_heads": 2, "encoder_ffn_dim": 10, "decoder_ffn_dim": 12}
    marian |= {"pad_token_id": 19, "decoder_start_token_id": 0, "scale_embedding": True}
    models = {
        "mt5 tied": transformers.MT5ForConditionalGeneration(
            transformers.MT5Config(**t5, tie_word_embeddings=True)
        ),
        "t5 untied": transformers.T5ForConditionalGeneration(
            transformers.T5Config(**t5, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
        ),
        "marian shared, untied": transformers.MarianMTModel(
            transformers.MarianConfig(**marian, tie_word_embeddings=False)
        ),
    }
    golden = {}
    for title, model in models.items():
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                if "embed_positions" not in name:
                    tensor.copy_(weight(name, tuple(tensor.shape)))
            ids = torch.tensor(SOURCE), torch.tensor(TARGET)
            logits = model.eval()(input_ids=ids[0], decoder_input_ids=ids[1]).logits
        golden[title] = {"config": model.config.to_diff_dict(), "logits": logits.tolist()}
    path = Path(__file__).with_suffix(".json")
    path.write_text(json.dumps(golden) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
