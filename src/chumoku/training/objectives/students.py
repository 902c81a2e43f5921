"""A smaller model whose layers are copied from a larger one (1910.01108, section 3).

DistilBERT has every second block of BERT, to the bit, and neither segments nor pooler. What is
copied is found by our one vocabulary of names, so that any model that is one stack of blocks has a
student of its own architecture, or of another with the same parts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from chumoku.errors import ConfigError, InputError
from chumoku.loading import Loaded, Source, create
from chumoku.models import MODEL_TYPES, architecture
from chumoku.quantization.convert import is_quantized

DROPPED: Final = ("embeddings.segment.", "pooler.")
"""Parts that a student may lack."""


def spread(count: int, depth: int) -> tuple[int, ...]:
    """`depth` of `count` blocks, the first and the last among them, evenly spread.

    Of 12 blocks 6: 0, 2, 4, 7, 9, 11, those of DistilBERT. Raises ConfigError.
    """
    if not 1 <= depth <= count:
        raise ConfigError(f"{depth} blocks cannot be taken of {count}", where="layers")
    if depth == 1:
        return (0,)
    return tuple(round(n * (count - 1) / (depth - 1)) for n in range(depth))


def student_from(
    teacher: Loaded,
    layers: Sequence[int] | None = None,
    *,
    model_type: str | None = None,
    head: str | None = None,
    fold_segments: bool = False,
    seed: int = 0,
) -> Loaded:
    """A model with these blocks of the teacher, and all else that both have, equal to the bit.

    layers: default: half of them, see spread(). model_type: another architecture ("distilbert" for
    a teacher that is a BERT). head: default: the teacher's; "masked-lm" takes that part of a
    "pre-training" head. Where the student has no segments, the teacher's are dropped as in the
    published tool; fold_segments adds the first segment's vector to every position instead, so
    that with all blocks the student's hidden states are the teacher's. What the teacher does not
    have (a classifier's first layer) is drawn anew from the seed; `source.notes` says what. Raises
    ConfigError, InputError.
    """
    _check(teacher)
    kind = model_type or teacher.source.model_type
    chosen = _chosen(teacher, layers)
    config = _config(teacher, kind, len(chosen))
    head = _head(teacher, kind, head)
    student = create(config, head, seed)
    model = student.model
    old = {_unprefixed(n, teacher.head, head): v for n, v in teacher.model.state_dict().items()}
    copied, new = _copy(model, old, chosen)
    first = next(iter(teacher.model.parameters()))
    for name in new:
        model.get_parameter(name).data = model.get_parameter(name).data.to(first.dtype)
    if fold_segments and "embeddings.segment.weight" in old.keys() - copied:
        with torch.no_grad():
            position: Any = model.get_parameter("embeddings.position.weight")
            position += old["embeddings.segment.weight"][0].to(position)
    return replace(
        student,
        model=model.to(first.device).eval(),
        tokenizer=teacher.tokenizer,
        images=teacher.images,
        generation=teacher.generation,
        sentence=teacher.sentence,
        source=_source(teacher, kind, head, chosen, new),
    )


def _check(teacher: Loaded) -> None:
    if not isinstance(getattr(teacher.model, "blocks", None), nn.ModuleList):
        raise InputError(
            "a student is made of a teacher with one stack of blocks",
            where=teacher.source.origin,
        )
    if is_quantized(teacher.model):
        raise InputError(
            "the teacher's weights are stored in blocks",
            where=teacher.source.origin,
            advice='load it with dtype="float32"',
        )


def _chosen(teacher: Loaded, layers: Sequence[int] | None) -> tuple[int, ...]:
    count = teacher.config.num_blocks
    if layers is None:
        return spread(count, max(1, count // 2))
    if not layers or not all(0 <= n < count for n in layers):
        raise ConfigError(
            f"{list(layers)} are no blocks of a teacher that has {count}, from 0", where="layers"
        )
    return tuple(layers)


def _config(teacher: Loaded, kind: str, depth: int) -> Any:
    """The teacher's config with fewer blocks; of another architecture, what both have."""
    config = teacher.config
    if kind == teacher.source.model_type:
        return replace(config, num_blocks=depth)
    if kind not in MODEL_TYPES:
        raise ConfigError(f"{kind!r} is no architecture", where="model_type")
    other = architecture(kind).read_config({"model_type": kind})
    shared = {f.name for f in fields(other)} & {f.name for f in fields(config)} - {"model_type"}
    values = {name: getattr(config, name) for name in shared}
    values = {name: value for name, value in values.items() if value is not None}
    made = replace(other, **values | {"num_blocks": depth})
    if getattr(made, "first_position", 0) != getattr(config, "first_position", 0):
        raise ConfigError(
            f"a {kind} counts positions from another number than its teacher",
            where="model_type",
            advice=f"leave model_type out: the student is then a {teacher.source.model_type}",
        )
    return made


def _head(teacher: Loaded, kind: str, head: str | None) -> str:
    head = head or teacher.head
    known = architecture(kind).HEADS
    if head not in known:
        advice = "head='masked-lm' takes that part of it" if head == "pre-training" else ""
        raise ConfigError(f"{kind} has no head {head!r}", where="head", advice=advice)
    return head


def _unprefixed(name: str, old: str, new: str) -> str:
    """The masked-LM part of a pre-training head by the name that it has alone."""
    both = (old, new) == ("pre-training", "masked-lm")
    return name.replace("head.masked.", "head.") if both else name


def _copy(
    model: nn.Module, old: Mapping[str, Tensor], chosen: Sequence[int]
) -> tuple[set[str], list[str]]:
    """Fill the student. Returns the teacher's names that were used, and what stays new."""
    used, new = set(), []
    with torch.no_grad():
        for name, value in model.state_dict(keep_vars=True).items():
            source = re.sub(r"^blocks\.(\d+)\.", lambda m: f"blocks.{chosen[int(m[1])]}.", name)
            found = old.get(source)
            if found is not None and found.shape == value.shape:
                value.data = found.detach().clone().to("cpu")
                used.add(source)
            else:
                new.append(name)
    beyond = [name for name in new if not name.startswith(("head.", "pooler."))]
    kept = {f"blocks.{n}." for n in chosen}
    lost = [
        name
        for name in old.keys() - used
        if name.startswith(("embeddings.", "final_norm.", *kept)) and not name.startswith(DROPPED)
    ]
    if beyond or lost:
        raise ConfigError(
            f"teacher and student do not have the same parts: {', '.join([*beyond, *lost][:3])}",
            where="model_type",
        )
    return used, new


def _source(
    teacher: Loaded, kind: str, head: str, chosen: Sequence[int], new: Sequence[str]
) -> Source:
    """Saving copies the teacher's tokenizer files, and its config keys where they are the same."""
    published = teacher.source.published
    if published is not None and kind != teacher.source.model_type:
        published = replace(published, raw_config={})
    notes = [f"blocks {', '.join(map(str, chosen))} of {teacher.source.origin}"]
    if new:
        notes.append(f"drawn anew: {', '.join(new)}")
    return Source(f"a student of {teacher.source.origin}", published, head, kind, notes=(*notes,))
