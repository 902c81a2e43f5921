"""Verb by language, and the guess of the language from the script."""

from __future__ import annotations

import pytest

from chumoku.checkpoints.defaults import DEFAULTS, VERBS, default_model, detect_language
from chumoku.checkpoints.source_names import AliasSource, HubSource, parse_source
from chumoku.errors import InputError

VERBS_OF_THE_ISSUE = {
    *("fill-mask", "generate", "chat", "translate", "summarize", "text2text", "classify"),
    *("zero-shot", "ner", "qa", "next-sentence", "multiple-choice", "embed", "similarity"),
    *("rerank", "search", "classify-image", "perplexity"),
}
ARCHITECTURES = {"transformer", "bert", "distilbert", "gpt2", "t5", "llama", "vit"}


def test_every_verb_has_a_default_in_both_languages() -> None:
    assert set(VERBS) == VERBS_OF_THE_ISSUE
    for language in ("en", "ja"):
        for verb in VERBS:
            model = default_model(verb, language)
            assert isinstance(parse_source(model.source), (HubSource, AliasSource))
            assert model.architecture in ARCHITECTURES
            assert 50 <= model.size_mb <= 1300
            assert model.expect
            assert model.licence


def test_only_weights_that_were_run_here_are_marked_verified() -> None:
    verified = {m.source for table in DEFAULTS.values() for m in table.values() if m.verified}
    assert verified == {"smollm2-135m-instruct", "all-minilm-l6-v2"}


def test_unknown_pairs() -> None:
    with pytest.raises(InputError, match="Unknown verb"):
        default_model("sing")
    with pytest.raises(InputError, match="language 'de'"):
        default_model("chat", "de")


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("Paris is the [MASK] of France.", "en"),
        ("私の今日の昼ご飯は[MASK]です。", "ja"),
        ("LINE株式会社で[MASK]の研究・開発をしている。", "ja"),
        ("日本経済新聞", "ja"),
        ("ｶﾀｶﾅ", "ja"),
        ("She ordered 寿司 and a large pot of green tea for everyone at the table.", "en"),
        ("", "en"),
        ("1234 !?", "en"),
        ("Ça va très bien, merci.", "en"),
        ("PyTorchでBERTを使う", "ja"),
    ],
)
def test_language_by_script(text: str, language: str) -> None:
    assert detect_language(text) == language
