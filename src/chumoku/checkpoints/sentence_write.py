"""A sentence-transformers folder around a Transformer's files: what `sentence.py` reads, written.

Releases from 2.0 on read it: the older keys and module names are used, which the newer ones know.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from chumoku.checkpoints.folder import SINGLE, read_json
from chumoku.checkpoints.ranges import write_json
from chumoku.checkpoints.safetensors import write_safetensors
from chumoku.checkpoints.sentence import MODES, POOLING, Dense, Sentence

ACTIVATIONS: Final = {
    "tanh": "torch.nn.modules.activation.Tanh",
    "identity": "torch.nn.modules.linear.Identity",
    "relu": "torch.nn.modules.activation.ReLU",
    "gelu": "torch.nn.modules.activation.GELU",
    "sigmoid": "torch.nn.modules.activation.Sigmoid",
}
"""Our name -> what a Dense step's config.json says."""


def write_sentence(settings: Sentence, folder: Path, width: int) -> None:
    """modules.json, a folder a step, and the settings around them. width: of a token's vector.

    Keys of a config_sentence_transformers.json that is there and that we do not read are kept.
    Raises CheckpointError, ResourceError.
    """
    steps = [("Transformer", settings.transformer), ("Pooling", "1_Pooling")]
    _write_step(folder / "1_Pooling", _pooling(settings, width))
    for dense in settings.dense:
        steps.append(("Dense", f"{len(steps)}_Dense"))
        _write_dense(folder / steps[-1][1], dense)
    if settings.normalize:
        steps.append(("Normalize", f"{len(steps)}_Normalize"))
        (folder / steps[-1][1]).mkdir(exist_ok=True)
    if settings.max_length is not None or settings.lower_case:
        limits = {"max_seq_length": settings.max_length, "do_lower_case": settings.lower_case}
        write_json(folder / settings.transformer / "sentence_bert_config.json", limits)
    around = folder / "config_sentence_transformers.json"
    own = {
        "prompts": dict(settings.prompts),
        "default_prompt_name": settings.default_prompt,
        "similarity_fn_name": "cosine",
    }
    kept = read_json(around) if around.is_file() else {}
    write_json(around, own | kept | {k: own[k] for k in ("prompts", "default_prompt_name")})
    listing = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (kind, path) in enumerate(steps)
    ]
    write_json(folder / "modules.json", listing)


def _pooling(settings: Sentence, width: int) -> dict[str, Any]:
    shared = {"word_embedding_dimension": width, "include_prompt": settings.include_prompt}
    flags = {key: name in settings.pooling for key, name in POOLING.items()}
    if settings.pooling == tuple(name for name in POOLING.values() if name in settings.pooling):
        return shared | flags
    published = {ours: theirs for theirs, ours in MODES.items()}  # flags cannot say the order
    return shared | {"pooling_mode": [published[name] for name in settings.pooling]}


def _write_dense(place: Path, dense: Dense) -> None:
    outputs, inputs = dense.weight.shape
    _write_step(
        place,
        {
            "in_features": inputs,
            "out_features": outputs,
            "bias": dense.bias is not None,
            "activation_function": ACTIVATIONS[dense.activation],
        },
    )
    named = {"linear.weight": dense.weight, "linear.bias": dense.bias}
    tensors = [replace(tensor, name=name) for name, tensor in named.items() if tensor is not None]
    write_safetensors(place / SINGLE, tensors, {"format": "pt"})


def _write_step(place: Path, config: dict[str, Any]) -> None:
    place.mkdir(exist_ok=True)
    write_json(place / "config.json", config)
