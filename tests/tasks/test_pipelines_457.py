"""The pipelines that transformers 5 dropped, beside the answers of 4.57 kept in golden/."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden.make_pipelines_457 import GENERATED, LONG, PARIS, QA, SPANS, T5, TEXTS
from tasks import models
from tasks.compare import same

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "golden" / "pipelines_457.json").read_text(encoding="utf-8")
)


@pytest.fixture(scope="module", params=range(len(SPANS)))
def spans(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, list[Any]]:
    """A folder, and what 4.57 answered on it."""
    kind, tokenizer, seed = SPANS[request.param]
    golden = GOLDEN["spans"][request.param]
    folder = tmp_path_factory.mktemp("spans")
    model = models.save(folder, kind, tokenizer, seed)
    assert models.checksum(model) == golden["weights"], "the weights are not those of the golden"
    return folder, golden["answers"]


def test_question_answering(spans: tuple[Any, list[Any]]) -> None:
    folder, golden = spans
    ours = chumoku.pipeline("question-answering", folder)
    for (question, context, settings), expected in zip(QA, golden, strict=True):
        found = ours(question=question, context=context, **settings)
        same(found, [a for a in expected if a["score"] > 0] if settings else expected)
        for answer in found if isinstance(found, list) else [found]:
            assert answer["answer"] == context[answer["start"] : answer["end"]]


def test_question_answering_of_lists(spans: tuple[Any, list[Any]]) -> None:
    folder, golden = spans
    ours = chumoku.pipeline("question-answering", folder)
    first, long = PARIS, ["when?", LONG]
    found = ours(question=[first[0], long[0]], context=[first[1], long[1]])
    same(found, [golden[0], golden[7]])
    same(ours(question="when?", context=[LONG, LONG]), [golden[7]] * 2)
    same(chumoku.qa(*PARIS, folder), [golden[0]])
    with pytest.raises(InputError, match="2 questions, but 1"):
        ours(question=["a", "b"], context=["c"])


def test_the_comparison_can_fail(spans: tuple[Any, list[Any]]) -> None:
    """Negative controls: other settings, and the windows in another place."""
    folder, golden = spans
    with pytest.raises(AssertionError):
        same(chumoku.qa("when?", LONG, folder, top_k=8, align_to_words=False), golden[8])
    with pytest.raises(AssertionError):
        same(chumoku.qa("when?", LONG, folder, top_k=8, stride=20), golden[8])


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("t5")
    model = models.save(folder, "T5ForConditionalGeneration", "t5", 7, **T5)
    assert models.checksum(model) == GOLDEN["weights"]
    return folder


@pytest.mark.parametrize("number", range(len(GENERATED)))
def test_encoder_decoders(t5: Any, number: int) -> None:
    task, settings = GENERATED[number]
    ours = chumoku.pipeline(task, t5)
    same(ours(TEXTS, **settings), GOLDEN["generated"][number])
    same(ours(TEXTS[1], **settings), GOLDEN["generated"][number][1:2])
    same(ours(TEXTS, batch_size=1, **settings), GOLDEN["generated"][number])


def test_verbs_take_the_published_settings_of_the_pair(t5: Any) -> None:
    loaded = load(t5)
    expected = GOLDEN["generated"][0]
    # The pair's max_length of 12 counts the start token: eleven new ones.
    same(chumoku.translate(TEXTS, loaded, source="en", target="de"), expected)
    same(chumoku.translate(TEXTS, loaded, target="de"), expected)
    with pytest.raises(AssertionError):  # without the prefix and the pair's settings
        same(chumoku.translate(TEXTS, loaded, max_new_tokens=11), expected)
    same(chumoku.summarize(TEXTS, loaded), GOLDEN["generated"][2])
    with pytest.raises(InputError, match="does not know translation_en_to_fr"):
        chumoku.pipeline("translation_en_to_fr", loaded)(TEXTS)
    with pytest.raises(InputError, match="needs target"):
        chumoku.translate(TEXTS, loaded, source="en")
