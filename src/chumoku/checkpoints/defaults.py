"""Which published model answers when none is named: a table of verb by language.

All are of the seven architectures, small, and free to use under the licence given. `verified`
says that this project ran chumoku on these very weights; for the others the architecture is
tested against the published implementation, the weights themselves were out of reach.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from chumoku.errors import InputError

Language = Literal["en", "ja"]


@dataclass(frozen=True)
class DefaultModel:
    """A default.

    source:       what `resolve` takes
    architecture: which model file reads it
    size_mb:      download in megabytes, rounded; the weights chumoku picks, not the whole repo
    expect:       one honest line on what it can do
    """

    source: str
    architecture: str
    size_mb: int
    licence: str
    expect: str
    verified: bool = False


_SMOLLM2 = DefaultModel(
    "smollm2-135m-instruct",
    "llama",
    98,
    "Apache-2.0",
    "fluent short English; facts, sums and long answers are often wrong",
    verified=True,
)
_MINILM = DefaultModel(
    "all-minilm-l6-v2",
    "bert",
    91,
    "Apache-2.0",
    "good similarity of English sentences up to 256 tokens",
    verified=True,
)
_BERT = DefaultModel(
    "google-bert/bert-base-uncased",
    "bert",
    440,
    "Apache-2.0",
    "fills masks and judges sentence order in English; ignores upper case",
)
_BERT_JA = DefaultModel(
    "tohoku-nlp/bert-base-japanese-v3",
    "bert",
    445,
    "Apache-2.0",
    "fills masks in Japanese; needs chumoku[ja]",
)
_GPT2_JA = DefaultModel(
    "rinna/japanese-gpt2-small",
    "gpt2",
    454,
    "MIT",
    "continues Japanese text; follows no instructions",
)
_SIMCSE_JA = DefaultModel(
    "cl-nagoya/sup-simcse-ja-base",
    "bert",
    445,
    "CC-BY-SA-4.0",
    "similarity of Japanese sentences; needs chumoku[ja]",
)
_VIT = DefaultModel(
    "google/vit-base-patch16-224",
    "vit",
    346,
    "Apache-2.0",
    "names the main object of a photograph, of the 1,000 ImageNet classes",
)

_ENGLISH: Mapping[str, DefaultModel] = {
    "fill-mask": _BERT,
    "generate": _SMOLLM2,
    "chat": _SMOLLM2,
    "translate": DefaultModel(
        "staka/fugumt-en-ja",
        "transformer",
        156,
        "CC-BY-SA-4.0",
        "English to Japanese, one sentence at a time",
    ),
    "summarize": DefaultModel(
        "google-t5/t5-small",
        "t5",
        242,
        "Apache-2.0",
        "a short English summary, mostly of sentences taken over",
    ),
    "text2text": DefaultModel(
        "google/flan-t5-small",
        "t5",
        308,
        "Apache-2.0",
        "follows short English instructions with short answers",
    ),
    "classify": DefaultModel(
        "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        "distilbert",
        268,
        "Apache-2.0",
        "positive or negative, for English reviews",
    ),
    "zero-shot": DefaultModel(
        "typeform/distilbert-base-uncased-mnli",
        "distilbert",
        268,
        "see the model's page",
        "labels of your own on English text; rough",
    ),
    "ner": DefaultModel(
        "dslim/bert-base-NER", "bert", 433, "MIT", "persons, places, organisations in English news"
    ),
    "qa": DefaultModel(
        "distilbert/distilbert-base-cased-distilled-squad",
        "distilbert",
        261,
        "Apache-2.0",
        "finds the answer in an English passage, if it is there",
    ),
    "next-sentence": _BERT,
    "multiple-choice": DefaultModel(
        "ehdwns1516/bert-base-uncased_SWAG",
        "bert",
        438,
        "see the model's page",
        "chooses how an English everyday scene goes on",
    ),
    "embed": _MINILM,
    "similarity": _MINILM,
    "search": _MINILM,
    "rerank": DefaultModel(
        "cross-encoder/ms-marco-MiniLM-L6-v2",
        "bert",
        91,
        "Apache-2.0",
        "orders English passages by how well they answer a question",
    ),
    "classify-image": _VIT,
    "perplexity": _SMOLLM2,
}

_JAPANESE: Mapping[str, DefaultModel] = {
    "fill-mask": _BERT_JA,
    "generate": _GPT2_JA,
    "chat": DefaultModel(
        "llm-jp/llm-jp-3-150m-instruct3",
        "llama",
        305,
        "Apache-2.0",
        "fluent short Japanese; facts and longer answers are often wrong",
    ),
    "translate": DefaultModel(
        "staka/fugumt-ja-en",
        "transformer",
        156,
        "CC-BY-SA-4.0",
        "Japanese to English, one sentence at a time",
    ),
    "summarize": DefaultModel(
        "tsmatz/mt5_summarize_japanese",
        "t5",
        1200,
        "Apache-2.0",
        "a headline-like summary of Japanese news",
    ),
    "text2text": DefaultModel(
        "bigscience/mt0-small",
        "t5",
        1200,
        "Apache-2.0",
        "follows short instructions in many languages, Japanese among them, with short answers",
    ),
    "classify": DefaultModel(
        "koheiduck/bert-japanese-finetuned-sentiment",
        "bert",
        443,
        "see the model's page",
        "positive, neutral or negative, for Japanese; needs chumoku[ja]",
    ),
    "zero-shot": DefaultModel(
        "Formzu/bert-base-japanese-jsnli",
        "bert",
        443,
        "CC-BY-SA-4.0",
        "labels of your own on Japanese text; rough; needs chumoku[ja]",
    ),
    "ner": DefaultModel(
        "jurabi/bert-ner-japanese",
        "bert",
        443,
        "CC-BY-SA-3.0",
        "eight kinds of names in Japanese; needs chumoku[ja]",
    ),
    "qa": DefaultModel(
        "SkelterLabsInc/bert-base-japanese-jaquad",
        "bert",
        440,
        "CC-BY-SA-3.0",
        "finds the answer in a Japanese passage, if it is there; needs chumoku[ja]",
    ),
    "next-sentence": DefaultModel(
        "google-bert/bert-base-multilingual-cased",
        "bert",
        714,
        "Apache-2.0",
        "judges sentence order in 104 languages; Japanese is one of many",
    ),
    # Cloze: the masked language model scores each choice; no Japanese head is published widely.
    "multiple-choice": _BERT_JA,
    "embed": _SIMCSE_JA,
    "similarity": _SIMCSE_JA,
    "search": _SIMCSE_JA,
    "rerank": DefaultModel(
        "hotchpotch/japanese-reranker-cross-encoder-base-v1",
        "bert",
        445,
        "MIT",
        "orders Japanese passages by how well they answer a question; needs chumoku[ja]",
    ),
    "classify-image": _VIT,
    "perplexity": _GPT2_JA,
}

DEFAULTS: Mapping[str, Mapping[str, DefaultModel]] = MappingProxyType(
    {"en": MappingProxyType(_ENGLISH), "ja": MappingProxyType(_JAPANESE)}
)
VERBS: tuple[str, ...] = tuple(_ENGLISH)

TOYS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("fill-mask", "ja"): "tiny:bert-ja",
        ("next-sentence", "ja"): "tiny:bert-ja",
        ("multiple-choice", "ja"): "tiny:bert-ja",
        ("generate", "en"): "tiny:bard",
        ("generate", "ja"): "tiny:neko",
        ("perplexity", "en"): "tiny:bard",
        ("perplexity", "ja"): "tiny:neko",
        ("translate", "en"): "tiny:translator",
        ("summarize", "ja"): "tiny:t5",
        ("text2text", "en"): "tiny:t5",
        ("text2text", "ja"): "tiny:t5",
    }
)
"""Verb and language -> the toy of this package that answers where the default cannot be had."""


def default_model(verb: str, language: str = "en") -> DefaultModel:
    """The model for a verb and a language (`en` or `ja`).

    Raises InputError for an unknown verb or language, and where no good small model is published
    for the pair; it names what does exist.
    """
    if language not in DEFAULTS:
        raise InputError(
            f"No default models for the language {language!r}",
            advice=f"Languages with defaults: {', '.join(DEFAULTS)}. Else give --model.",
        )
    if verb not in VERBS:
        raise InputError(f"Unknown verb {verb!r}", advice=f"Verbs: {', '.join(VERBS)}")
    if verb not in DEFAULTS[language]:
        has = [lang for lang, table in DEFAULTS.items() if verb in table]
        raise InputError(
            f"No default model for {verb} in the language {language!r}",
            advice=f"Give --model, or --lang {has[0]} for {DEFAULTS[has[0]][verb].source}.",
        )
    return DEFAULTS[language][verb]


# Unicode blocks that only Japanese text uses (kana), and those it shares (Han, full width).
_KANA = ((0x3041, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))
_SHARED = ((0x3001, 0x303F), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))


def written_in(texts: Sequence[str]) -> Language:
    """The language of most texts, as `detect_language` sees each."""
    return Counter(map(detect_language, texts)).most_common(1)[0][0]


def _within(character: str, blocks: tuple[tuple[int, int], ...]) -> bool:
    return any(first <= ord(character) <= last for first, last in blocks)


def detect_language(text: str) -> Language:
    """`ja` or `en`, by script alone.

    Japanese when there is kana, or when Han characters are at least a tenth of the letters; so an
    English sentence about 寿司 stays English, and a headline of kanji alone is Japanese.
    """
    letters = [c for c in text if c.isalpha()]
    kana = sum(_within(c, _KANA) for c in letters)
    han = sum(_within(c, _SHARED) for c in letters)
    # One Latin word stands for about as much text as two or three Japanese characters.
    return "ja" if letters and (kana + han) * 10 >= len(letters) else "en"
