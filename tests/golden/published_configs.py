"""Writes published_configs.json: the default configs of transformers 4.57 as it saves them.

Run in an environment with transformers 4.57 (5.x has dropped many of the keys):
    python tests/golden/published_configs.py
"""

from __future__ import annotations

import json
from pathlib import Path

import transformers

CLASSES = ("GPT2Config", "DistilBertConfig", "ViTConfig", "DeiTConfig")


def main() -> None:
    if not transformers.__version__.startswith("4.57."):
        raise SystemExit(f"needs transformers 4.57, this is {transformers.__version__}")
    configs = {name: getattr(transformers, name)().to_dict() for name in CLASSES}
    text = json.dumps(configs, indent=1, sort_keys=True)
    Path(__file__).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
