"""Small trained additions to a model that stays as it is: LoRA and its kin, as tree walks."""

from chumoku.adapters.apply import add_adapter, fuse, merge, remove, set_active, unmerge
from chumoku.adapters.layers import LoRASettings
from chumoku.adapters.peft_files import load_adapter, save_adapter

__all__ = [
    "LoRASettings",
    "add_adapter",
    "fuse",
    "load_adapter",
    "merge",
    "remove",
    "save_adapter",
    "set_active",
    "unmerge",
]
