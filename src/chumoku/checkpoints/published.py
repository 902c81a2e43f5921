"""Recognise what lies in a folder or file, and describe it in one form, whatever its layout."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from chumoku.checkpoints import assign
from chumoku.checkpoints.folder import read_folder_tensors, read_json, refuse_links
from chumoku.checkpoints.gguf import GGUFFile, read_gguf
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.meta_llama import read_meta_folder
from chumoku.checkpoints.sentence import Sentence, read_sentence
from chumoku.errors import CheckpointError, ConfigError
from chumoku.models import GGUF, MODEL_TYPES, architecture, gguf_layout
from chumoku.models.llama_meta import config_from_meta
from chumoku.models.vit_timm import config_from_timm

LATER_PART: Final = re.compile(r"-(?!00001)\d{5}-of-\d{5}\.gguf$")
"""The parts of a split GGUF file after the first, which stands for all of them."""


@dataclass(frozen=True)
class Published:
    """A checkpoint as it lies on disk, before a model is made of it.

    layout: hub, gguf, meta or timm. raw_config: the published config.json, or its equivalent.
    """

    layout: str
    path: Path
    raw_config: dict[str, Any]
    tensors: dict[str, LazyTensor]
    gguf: GGUFFile | None = None
    sentence: Sentence | None = None
    origin: Path | None = None

    @property
    def root(self) -> Path:
        """The folder that was asked for; `folder` may lie inside it (sentence-transformers)."""
        return self.folder if self.origin is None else self.origin

    @property
    def folder(self) -> Path:
        return self.path if self.path.is_dir() else self.path.parent


def read_published(path: Path) -> Published:
    """Recognise the layout of a folder or file and read its config and tensor list."""
    if path.is_file():
        return _read_file(path)
    if not path.is_dir():
        raise CheckpointError("there is no such file or folder", where=path)
    refuse_links(path)
    sentence, origin = read_sentence(path), path
    if sentence is not None and sentence.transformer:
        path = path / sentence.transformer
    if (path / "config.json").is_file():
        raw = read_json(path / "config.json")
        tensors = read_folder_tensors(path)
        if "architecture" in raw and "model_type" not in raw:
            shapes = {k: t.shape for k, t in tensors.items()}
            raw = _translated(config_from_timm, path / "config.json", raw, shapes)
            return Published("timm", path, raw, tensors)
        if not raw.get("model_type"):
            raw["model_type"] = infer_model_type(tensors, path)
        if not isinstance(raw["model_type"], str):
            raise ConfigError(f"model_type is {raw['model_type']!r:.60}, no name", where=path)
        return Published("hub", path, raw, tensors, sentence=sentence, origin=origin)
    if (path / "params.json").is_file():
        params, tensors = read_meta_folder(path)
        vocab_size = _rows(tensors, "tok_embeddings.weight")
        raw = _translated(config_from_meta, path / "params.json", params, vocab_size)
        return Published("meta", path, raw, tensors)
    ggufs = [p.name for p in sorted(path.glob("*.gguf")) if not LATER_PART.search(p.name)]
    if len(ggufs) == 1:
        return _read_file(path / ggufs[0])
    more = f" and {len(ggufs) - 5} more" if len(ggufs) > 5 else ""
    raise CheckpointError(
        "no model here: neither config.json, params.json nor one .gguf file",
        where=path,
        advice=f"name one of {', '.join(ggufs[:5])}{more}" if ggufs else "check the path",
    )


def _read_file(path: Path) -> Published:
    if path.suffix != ".gguf":
        if (path.parent / "config.json").is_file():
            return read_published(path.parent)
        raise CheckpointError("a weights file needs its config.json beside it", where=path)
    file = read_gguf(path)
    kind = file.metadata.get("general.architecture")
    if kind not in GGUF:
        raise CheckpointError(
            f"GGUF architecture {kind!r} is not supported",
            where=path,
            advice=f"supported: {', '.join(GGUF)}",
        )

    def read(name: str) -> Tensor:
        return assign.dense(file.tensors[name])

    translate = gguf_layout(str(kind)).config_from_gguf
    raw = _translated(translate, path, file.metadata, file.tensors, read)
    return Published("gguf", path, raw, dict(file.tensors), gguf=file)


def _rows(tensors: Mapping[str, LazyTensor], name: str) -> int:
    if name not in tensors:
        raise CheckpointError(f"tensor {name!r} is missing")
    return tensors[name].shape[0]


def _translated(translate: Callable[..., dict[str, Any]], where: Path, *given: Any) -> Any:
    """translate(*given): a config of another layout. Raises ConfigError where it makes no sense."""
    try:
        return translate(*given)
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        kind = type(error).__name__
        raise ConfigError(f"cannot be understood ({kind}: {error})"[:200], where=where) from error


def infer_model_type(tensors: Mapping[str, LazyTensor], where: object) -> str:
    """The first model_type whose name table knows every tensor, for configs that do not say it."""
    for model_type in MODEL_TYPES:
        module = architecture(model_type)
        config = module.read_config({"model_type": model_type})
        for head in module.HEADS:
            if tensors and not assign.match(tensors, module.names(config, head, "hub")).unknown:
                return model_type
    raise ConfigError(
        "config.json has no model_type and the tensor names fit no known architecture",
        where=where,
        advice=f'add "model_type", one of {", ".join(sorted(MODEL_TYPES))}',
    )


GENERATION_KEYS: Final = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
    *("forced_bos_token_id", "forced_eos_token_id", "bad_words_ids", "suppress_tokens"),
    *("begin_suppress_tokens", "max_length", "min_length", "max_new_tokens", "min_new_tokens"),
    *("do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty"),
    *("temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty"),
    *("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "num_return_sequences"),
)
"""Legacy keys of config.json that generation_config.json has taken over."""


def read_generation(published: Published, ignore: Collection[str] = ()) -> dict[str, Any]:
    """generation_config.json, else legacy keys of config.json, else GGUF metadata.

    Ids of special tokens that generation_config.json leaves out are those of config.json. ignore:
    keys to leave out.
    """
    if published.gguf is not None:
        found = _gguf_generation(published.gguf.metadata, published.path)
    else:
        raw, path = published.raw_config, published.folder / "generation_config.json"
        found = {key: raw[key] for key in GENERATION_KEYS if raw.get(key) is not None}
        if path.is_file():
            ids = {key: value for key, value in found.items() if key.endswith("_token_id")}
            found = ids | read_json(path)
    return {key: value for key, value in found.items() if key not in ignore}


def _gguf_generation(metadata: Mapping[str, object], where: Path) -> dict[str, Any]:
    """Special ids. Three end an answer: the end of a text, of a turn of a chat, of a message."""
    kinds = ("bos", "padding", "eos", "eot", "eom")
    held = {kind: metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in kinds}
    wrong = [kind for kind, index in held.items() if index is not None and type(index) is not int]
    if wrong:
        raise ConfigError(f"tokenizer.ggml.{wrong[0]}_token_id is no token id", where=where)
    ends = list(dict.fromkeys(held[k] for k in kinds[2:] if held[k] is not None))
    ids = {
        "bos_token_id": held["bos"],
        "pad_token_id": held["padding"],
        "eos_token_id": ends if len(ends) > 1 else next(iter(ends), None),
    }
    return {key: value for key, value in ids.items() if value is not None}
