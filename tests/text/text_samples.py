"""Texts and small vocabularies that the tests of tokenizers share."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import string
import unicodedata
from pathlib import Path

import pytest
import sentencepiece

HARD = [
    "",
    " ",
    "Hello, world!",
    "  leading and  double  spaces ",
    "don't stop 'quoted' we've I'm they're",
    "naïve café résumé Ångström ﬁne",
    "e\u0301a\u0308o\u0302 combining",
    "数は12345、㈱日本 ｶﾞﾊﾟ Ａｂｃ　全角",
    "吾輩は猫である。名前はまだ無い。",
    "私の今日の昼ご飯は[MASK]です。",
    "👨‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽",
    "tabs\tand\nnew\r\nlines\n\n\n  end",
    "مرحبا עברית हिन्दी ไทย 한국어",
    "x" * 120,
    "\u0301\u0301 leading marks",
    "a\u00a0b\u2003c\u200bd",
    "def f(x):\n    return x**2  # 100%",
    "<s> </s> <unk> [CLS] [SEP] <|endoftext|> <extra_id_0>",
    "3.14159 1,000,000 2024-05-06",
    "ﷺ ΑΣ ὈΔΥΣΣΕΎΣ İstanbul ß",
]


def fuzz(count: int, seed: int = 0) -> list[str]:
    """Random texts over scripts, marks and emoji."""
    rng = random.Random(seed)
    ranges = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0x400), (0x3040, 0x30FF)]
    ranges += [(0x4E00, 0x9FFF), (0xFF00, 0xFFEF), (0x1F300, 0x1F650), (0x200B, 0x200F), (9, 14)]
    texts = []
    for _ in range(count):
        words = []
        for _ in range(rng.randint(1, 8)):
            low, high = rng.choice(ranges)
            words.append("".join(chr(rng.randrange(low, high)) for _ in range(rng.randint(1, 7))))
        texts.append(rng.choice(["", " "]).join(words))
    return texts


def shared_data(name: str) -> Path:
    """A folder of ../shared/data; the test is skipped where it is absent."""
    root = Path(os.environ.get("CHUMOKU_SHARED_DATA", Path(__file__).parents[3] / "shared/data"))
    if not (root / name).exists():
        pytest.skip(f"{root / name} is absent")
    return root / name


def japanese_sentences(count: int) -> list[str]:
    """Sentences of JNLI, where the shared data is there."""
    path = shared_data("jglue") / "jnli-v1.3" / "valid-v1.3.json"
    lines = path.read_text("utf-8").splitlines()
    found = [json.loads(line)[key] for line in lines for key in ("sentence1", "sentence2")]
    return list(dict.fromkeys(found))[:count]


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


WORDS = [
    *("the", "a", "cat", "dog", "sat", "mat", "hello", "world", "run", "un", "na", "cafe"),
    *("##s", "##ing", "##ed", "##aff", "##able", "##ive"),
]


def bert_vocab() -> list[str]:
    """A small WordPiece vocabulary with every ASCII character alone and inside a word."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [c for c in string.printable if not c.isspace()]
    japanese = list("吾輩は猫である。名前まだ無い私の今日昼ご飯です日本")
    everything = specials + letters + ["##" + c for c in letters] + WORDS + japanese
    return list(dict.fromkeys(everything))


@functools.cache
def sentencepiece_model(kind: str, size: int = 400, **options: object) -> bytes:
    """A SentencePiece model trained here on the texts above."""
    out = io.BytesIO()
    corpus = [t for t in HARD if t.strip()] * 3
    corpus += ["the cat sat on the mat and the dog ran", "hello world 12 345 hello there"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus),
        model_writer=out,
        model_type=kind,
        vocab_size=size,
        minloglevel=2,
        hard_vocab_limit=False,
        **options,
    )
    return out.getvalue()


def byte_bpe(texts: list[str], size: int = 600) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """vocab and merges of a byte-level BPE trained here."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    engine.train_from_iterator(
        texts * 4,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False),
    )
    model = json.loads(engine.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def visible(text: str) -> str:
    """NFKC without control characters, which T5's normaliser drops, and without spaces."""
    kept = [c for c in text if unicodedata.category(c)[0] != "C"]
    return unicodedata.normalize("NFKC", "".join(kept)).replace(" ", "")
