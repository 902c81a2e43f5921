"""search: the texts of a file that are nearest in meaning to a query. Exact, kept on disk.

The index is a folder of plain files: vectors.npy, texts.jsonl, and index.json, which holds digests
of the model, the corpus and the vectors: an index that is stale or damaged is made anew.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.tasks.embedding import Ranked, Vectors, embed

Progress = Callable[[int, int], None]
"""(done, total) after each batch."""


def search(
    query: str,
    corpus: str | os.PathLike[str] | Sequence[str],
    model: common.ModelLike = None,
    *,
    top_k: int = 5,
    column: str = "text",
    index: str | os.PathLike[str] | None = None,
    batch_size: int = 32,
    lang: str | None = None,
    progress: Progress | None = None,
) -> list[Ranked]:
    """The `top_k` texts of the corpus with the largest cosine similarity to the query.

    corpus: a list of texts, or a file: a text a line, or JSONL with the text in `column`. index: a
    folder that keeps the vectors; used again where corpus and model are the same.
    """
    common.many(query)
    if top_k < 1:
        raise InputError(f"top_k must be at least 1, it is {top_k}")
    if isinstance(corpus, str | os.PathLike):
        texts = read_corpus(Path(corpus), column)
    else:
        texts = list(corpus)
    common.many(texts)
    loaded = common.ready(model, "search", query, lang)
    vectors = _vectors(loaded, texts, index, batch_size, progress)
    scores = vectors @ embed(query, loaded, normalize=True)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"corpus_id": int(i), "score": float(scores[i]), "text": texts[int(i)]} for i in order]


def read_corpus(path: Path, column: str = "text") -> list[str]:
    """The texts of a .txt or .jsonl file; empty lines are passed over. Raises InputError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"cannot read the corpus: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise InputError(f"the corpus is not UTF-8: {error.reason}", where=path) from error
    if path.suffix not in (".jsonl", ".ndjson"):
        return [line for line in lines if line.strip()]
    texts = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            texts.append(_field(line, column, f"{path}:{number}"))
    return texts


def _field(line: str, column: str, where: str) -> str:
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the line is not JSON: {error}", where=where) from error
    text = value.get(column) if isinstance(value, dict) else value
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"the line has no text in {column!r}", where=where)
    return text


def _vectors(
    loaded: Loaded,
    texts: Sequence[str],
    index: str | os.PathLike[str] | None,
    batch_size: int,
    progress: Progress | None,
) -> Vectors:
    if index is None:
        return _embedded(loaded, texts, batch_size, progress)
    folder = Path(index)
    corpus = hashlib.sha256("\0".join(texts).encode("utf-8", "surrogatepass")).hexdigest()
    stamp = {"model": loaded.source.origin, "model_sha256": _model_digest(loaded)}
    stamp |= {"corpus_sha256": corpus}
    kept = _kept(folder, stamp)
    if kept is not None:
        return kept
    vectors = _embedded(loaded, texts, batch_size, progress)
    _write(folder, vectors, texts, stamp)
    return vectors


def _kept(folder: Path, stamp: Mapping[str, str]) -> Vectors | None:
    """The vectors on disk; None where there are none, or others, or damaged ones."""
    try:
        found = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        data = (folder / "vectors.npy").read_bytes()
        if found != {**stamp, "vectors_sha256": hashlib.sha256(data).hexdigest()}:
            return None
        vectors: Vectors = np.load(io.BytesIO(data), allow_pickle=False)
        return vectors
    except (OSError, ValueError, RecursionError):
        return None


def _model_digest(loaded: Loaded) -> str:
    """Of every tensor's name, type and about a thousand of its values, and of how they are pooled.

    Enough to tell a model that was trained further at the same place, quick for a large one.
    """
    digest = hashlib.sha256()
    for name, tensor in loaded.model.state_dict().items():
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // 1000)].contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    settings = loaded.sentence
    if settings is not None:
        digest.update(repr(dataclasses.replace(settings, dense=())).encode())
        for step in settings.dense:
            digest.update(step.activation.encode() + step.weight.read())
            digest.update(b"" if step.bias is None else step.bias.read())
    return digest.hexdigest()


def _embedded(
    loaded: Loaded, texts: Sequence[str], batch_size: int, progress: Progress | None
) -> Vectors:
    parts = []
    step = batch_size * 8
    for start in range(0, len(texts), step):
        some = texts[start : start + step]
        parts.append(embed(some, loaded, normalize=True, batch_size=batch_size))
        if progress is not None:
            progress(start + len(some), len(texts))
    return np.concatenate(parts)


def _write(folder: Path, vectors: Vectors, texts: Sequence[str], stamp: Mapping[str, str]) -> None:
    """index.json last: an index cut short is not taken for a whole one."""
    buffer = io.BytesIO()
    np.save(buffer, vectors, allow_pickle=False)
    data = buffer.getvalue()
    lines = "".join(json.dumps(t, ensure_ascii=False) + "\n" for t in texts)
    whole = {**stamp, "vectors_sha256": hashlib.sha256(data).hexdigest()}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "index.json").unlink(missing_ok=True)
        (folder / "vectors.npy").write_bytes(data)
        (folder / "texts.jsonl").write_text(lines, encoding="utf-8")
        (folder / "index.json").write_text(json.dumps(whole), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the index: {error.strerror}", where=folder) from error
