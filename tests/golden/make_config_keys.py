"""Writes config_keys.json: the default config.json of each published config class.

Run it with the release whose keys are wanted; the committed file is from transformers 4.57.1:

    pip install transformers==4.57.1 && python tests/golden/make_config_keys.py
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import transformers

CLASSES = ("Bert", "Roberta", "DistilBert", "GPT2", "T5", "MT5", "Llama", "Mistral", "ViT", "DeiT")


def main() -> None:
    warnings.simplefilter("ignore")
    dumped = {
        config.model_type: config.to_dict()
        for config in (getattr(transformers, f"{name}Config")() for name in (*CLASSES, "Marian"))
    }
    text = json.dumps({"transformers": transformers.__version__, "defaults": dumped}, indent=1)
    (Path(__file__).parent / "config_keys.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
