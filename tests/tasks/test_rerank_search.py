"""rerank beside CrossEncoder.rank; search with and without an index on disk."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from tasks.compare import same

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load
from chumoku.tasks import search as search_module

QUERY = "where is the capital of france?"
DOCUMENTS = [
    "paris is a big city in france",
    "the cat sat on the mat",
    "john smith works at google, " * 20,
    "the queen is in london",
    "berlin!",
]
NAME = "BertForSequenceClassification"


@pytest.mark.parametrize("activation", [None, "Identity", "Sigmoid", "Tanh"])
@pytest.mark.parametrize("older", [False, True])
def test_rerank(tiny: Any, tmp_path: Path, activation: str | None, older: bool) -> None:
    """older: the activation is named in config.json, as before sentence-transformers 4."""
    function = None if activation is None else getattr(torch.nn, activation)()
    CrossEncoder(str(tiny(NAME, num_labels=1)), activation_fn=function, device="cpu").save(
        str(tmp_path)
    )
    if older:
        (tmp_path / "modules.json").unlink()
        (tmp_path / "config_sentence_transformers.json").unlink()
        raw = json.loads((tmp_path / "config.json").read_text())
        if function is not None:
            name = f"torch.nn.modules.{type(function).__module__.rsplit('.', 1)[-1]}.{activation}"
            raw["sbert_ce_default_activation_function"] = name
        (tmp_path / "config.json").write_text(json.dumps(raw))
    theirs = CrossEncoder(str(tmp_path), device="cpu")
    expected = theirs.rank(QUERY, DOCUMENTS, return_documents=True)
    for batch_size in (1, 2, 16):
        same(chumoku.rerank(QUERY, DOCUMENTS, tmp_path, batch_size=batch_size), expected)
    same(chumoku.rerank(QUERY, DOCUMENTS, tmp_path, top_k=2), expected[:2])
    swapped = chumoku.rerank("paris", DOCUMENTS, tmp_path)
    with pytest.raises(AssertionError):
        same(swapped, expected)


def test_rerank_by_a_model_of_two_classes(tiny: Any) -> None:
    folder = tiny(NAME)
    found = chumoku.rerank(QUERY, DOCUMENTS, folder)
    for one in found:
        text = DOCUMENTS[one["corpus_id"]]
        scores = chumoku.classify(QUERY, folder, pair=text, top_k=None, truncate=True)
        positive = next(s["score"] for s in scores if s["label"] == "LABEL_1")  # type: ignore[call-overload,index]
        assert one["score"] == pytest.approx(positive, abs=1e-6)
    assert [r["score"] for r in found] == sorted((r["score"] for r in found), reverse=True)
    with pytest.raises(InputError, match="3 classes"):
        chumoku.rerank(QUERY, DOCUMENTS, tiny(NAME, num_labels=3))


def test_an_unknown_activation_is_refused(tiny: Any, tmp_path: Path) -> None:
    chumoku.save(load(tiny(NAME, num_labels=1)), tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    raw["sentence_transformers"] = {"activation_fn": "my.own.Thing"}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    with pytest.raises(InputError, match=r"my\.own\.Thing"):
        chumoku.rerank(QUERY, DOCUMENTS, tmp_path)


# ---- search ----


@pytest.fixture
def loaded(tiny: Any) -> Any:
    return load(tiny("BertModel"))


def expected(loaded: Any, texts: list[str], top_k: int) -> list[dict[str, Any]]:
    vectors = chumoku.embed(texts, loaded, normalize=True)
    scores = vectors @ chumoku.embed("paris city", loaded, normalize=True)
    order = np.argsort(-scores, kind="stable")[:top_k]
    return [{"corpus_id": int(i), "score": float(scores[i]), "text": texts[i]} for i in order]


def test_search_in_a_list_and_in_files(loaded: Any, tmp_path: Path) -> None:
    same(chumoku.search("paris city", DOCUMENTS, loaded, top_k=3), expected(loaded, DOCUMENTS, 3))
    lines = tmp_path / "corpus.txt"
    lines.write_text("\ufeff" + "\n\n".join(DOCUMENTS) + "\n", encoding="utf-8")
    same(chumoku.search("paris city", lines, loaded), expected(loaded, DOCUMENTS, 5))
    rows = tmp_path / "corpus.jsonl"
    rows.write_text("\n".join(json.dumps({"id": 3, "body": d}) for d in DOCUMENTS), "utf-8")
    found = chumoku.search("paris city", str(rows), loaded, column="body", top_k=99)
    same(found, expected(loaded, DOCUMENTS, 5))


def test_the_index_is_kept_and_made_anew_when_stale_or_damaged(
    loaded: Any, tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index"
    made: list[int] = []
    embed = search_module.embed

    def counted(text: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(text, str):
            made.append(len(text))
        return embed(text, *args, **kwargs)

    monkeypatch.setattr(search_module, "embed", counted)

    def ask(texts: list[str], model: Any = loaded) -> int:
        """How many texts were embedded; the answer must be right either way."""
        made.clear()
        same(chumoku.search("paris city", texts, model, index=index), expected(model, texts, 5))
        return sum(made)

    assert ask(DOCUMENTS) == 5
    assert sorted(p.name for p in index.iterdir()) == ["index.json", "texts.jsonl", "vectors.npy"]
    assert (index / "texts.jsonl").read_text("utf-8").splitlines() == [
        json.dumps(t, ensure_ascii=False) for t in DOCUMENTS
    ]
    assert ask(DOCUMENTS) == 0
    assert ask(DOCUMENTS[::-1]) == 5  # the same texts in another order are another corpus
    assert ask(DOCUMENTS) == 5
    assert ask(DOCUMENTS, load(tiny("BertModel", seed=1))) == 5  # another model
    assert ask(DOCUMENTS) == 5
    damages = [
        ("vectors.npy", b"\x93NUMPY garbage"),
        ("vectors.npy", (index / "vectors.npy").read_bytes()[:-40]),
        ("index.json", b"{"),
        ("index.json", b"[1]"),
    ]
    for name, data in damages:
        (index / name).write_bytes(data)
        assert ask(DOCUMENTS) == 5, name
        assert ask(DOCUMENTS) == 0
    np.save(index / "vectors.npy", np.zeros((5, 3), np.float32))
    assert ask(DOCUMENTS) == 5, "vectors of another width"
    np.save(index / "vectors.npy", np.full((5, 24), np.nan, np.float32))
    assert ask(DOCUMENTS) == 5, "vectors that are none"


def test_the_index_knows_how_the_vectors_were_pooled(tiny: Any, tmp_path: Path) -> None:
    """Two models at one place in turn: the folder's contents count, not only its name."""
    place = tmp_path / "model"
    chumoku.save(load(tiny("BertModel")), place)
    first = chumoku.search("paris city", DOCUMENTS, load(place), index=tmp_path / "index")
    chumoku.save(load(tiny("BertModel", seed=1)), place)
    os.utime(place / "model.safetensors", ns=(1, 1))
    again = chumoku.search("paris city", DOCUMENTS, load(place), index=tmp_path / "index")
    same(again, expected(load(place), DOCUMENTS, 5))
    with pytest.raises(AssertionError):
        same(again, first)


def test_progress_is_told(loaded: Any) -> None:
    seen: list[tuple[int, int]] = []
    texts = [f"text {n}" for n in range(20)]
    chumoku.search("cat", texts, loaded, batch_size=1, progress=lambda *a: seen.append(a))
    assert seen == [(8, 20), (16, 20), (20, 20)]


def test_bad_input(loaded: Any, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text"\n')
    (tmp_path / "none.jsonl").write_text('{"text": "a"}\n{"other": "b"}\n')
    (tmp_path / "empty.txt").write_text("\n\n")
    (tmp_path / "file").write_text("not a folder")
    for message, call in {
        "cannot read the corpus": lambda: chumoku.search("cat", tmp_path / "absent.txt", loaded),
        "not UTF-8": lambda: chumoku.search("cat", tmp_path / "latin.txt", loaded),
        "not JSON": lambda: chumoku.search("cat", tmp_path / "bad.jsonl", loaded),
        "no text in": lambda: chumoku.search("cat", tmp_path / "none.jsonl", loaded),
        "there is no text": lambda: chumoku.search("cat", tmp_path / "empty.txt", loaded),
        "the text is empty": lambda: chumoku.search(" ", DOCUMENTS, loaded),
        "top_k": lambda: chumoku.search("cat", DOCUMENTS, loaded, top_k=0),
        "cannot write the index": lambda: chumoku.search(
            "cat", DOCUMENTS, loaded, index=tmp_path / "file"
        ),
    }.items():
        with pytest.raises(InputError, match=message):
            call()
    with pytest.raises(InputError) as caught:
        chumoku.search("cat", tmp_path / "bad.jsonl", loaded)
    assert caught.value.where.endswith("bad.jsonl:2")
