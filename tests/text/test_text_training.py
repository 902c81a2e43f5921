"""Trained tokenizers: beside the libraries' own trainers, a slow trainer, and transformers."""

from __future__ import annotations

import functools
import hashlib
import io
import itertools
import json
import os
import subprocess
import sys
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
from text_samples import HARD, fuzz, write_json
from tokenizers import (
    ByteLevelBPETokenizer,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

from chumoku.errors import ChumokuError, ConfigError, DependencyError, InputError, ResourceError
from chumoku.text import load_tokenizer
from chumoku.text.encoding import known_text
from chumoku.text.gguf_write import writable
from chumoku.text.training import TokenizerSettings, Trained, train_tokenizer

transformers = pytest.importorskip("transformers")
pytest.importorskip("fugashi")

ENGLISH = [
    "the cat sat on the mat and the other cats ran after the dog, which sat there",
    "whether the weather is cold or whether the weather is hot, we weather the weather",
    "hello world 12 345: there they were, then and there, in the garden of the others",
]
JAPANESE = [
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
    "何でも薄暗いじめじめした所でニャーニャー泣いていた事だけは記憶している。",
    "すもももももももものうち。東京都に住んでいる猫の名前は、まだ無いのである。",
    "ここではきものをぬいでください。私の今日の昼ご飯はカレーライスでした。",
]
CORPUS = [t for t in HARD if t.strip()] + fuzz(60) + (ENGLISH + JAPANESE) * 6
TEXTS = [
    *(t for t in [*HARD, *fuzz(230, seed=9)] if "\x00" not in t),
    *ENGLISH,
    *JAPANESE,
    *("a <mask> b", "x [MASK] y", "the <extra_id_0> sat<extra_id_1>", "日本語 <|endoftext|> b"),
    *(" lead", "trail \n", "\n\n a\n\nb", "a\tb", ">>jpn<< the cat", "<|im_start|>the cat"),
]

S = TokenizerSettings
FAMILIES = {
    "bert-cased": S(vocab_size=2200),
    "bert-uncased": S(vocab_size=2200, lowercase=True),
    "bert-nfkc": S(vocab_size=2200, nfkc=True, extra_tokens=("<x>",)),
    "bert-mecab": S(vocab_size=2200, japanese="mecab"),
    "bert-ipadic": S(vocab_size=2200, japanese="mecab", dictionary="ipadic", lowercase=True),
    "bert-sudachi": S(vocab_size=2200, japanese="sudachi"),
    "bert-characters": S("characters", 2000, "bert", japanese="mecab"),
    "bert-pieces": S("unigram", 1500, "bert", japanese="mecab"),
    "gpt2": S("byte-bpe", 600, extra_tokens=("<|im_start|>",)),
    "gpt2-nfkc": S("byte-bpe", 600, nfkc=True, lowercase=True),
    "roberta": S("byte-bpe", 600, "roberta"),
    "llama3": S("byte-bpe", 800, "llama"),
    "bytes": S("byte-bpe", 500, "none"),
    "llama": S("bpe", 2400, extra_tokens=("<|im_start|>",)),
    "marian": S("unigram", 1500, "marian", extra_tokens=(">>jpn<<",)),
    "marian-bpe": S("bpe", 1500, "marian"),
    "t5": S("unigram", 1500, extra_tokens=("<x>",)),
    "t5-few": S("unigram", 1200, sentinels=4),
    "characters": S("characters", 3000),
    "characters-gpt2": S("characters", 1000, "gpt2"),
}


@functools.cache
def trained(name: str) -> Trained:
    return train_tokenizer(CORPUS, FAMILIES[name])


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    pytest.importorskip("sudachipy" if request.param == "bert-sudachi" else "fugashi")
    return trained(request.param).save(tmp_path / "tokenizer")


def in_transformers(folder: Path, name: str = "AutoTokenizer") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it recommends sacremoses, and uses old names of Sudachi
        return getattr(transformers, name).from_pretrained(folder)


def ids_in(theirs: Any, text: str) -> Any:
    try:
        return theirs(text)["input_ids"]
    except Exception as error:  # a bare Exception of the `tokenizers` library
        return "refused" if "UNK" in str(error) else error


def ids_of(ours: Any, text: str) -> Any:
    try:
        return ours.encode(text).ids
    except InputError:
        return "refused"


def by_grapheme(text: str) -> bool:
    """Where transformers' SentencePiece normaliser is known to leave SentencePiece: it works on
    whole graphemes (see test_text_sentencepiece.py)."""
    return any(c in "ﾞﾟ" or unicodedata.combining(c) or c in "\u200d\ufe0f" for c in text)


@pytest.mark.parametrize(("folder", "name"), [(n, n) for n in FAMILIES], indirect=["folder"])
def test_same_ids_in_transformers(folder: Path, name: str) -> None:
    ours, theirs = load_tokenizer(folder), in_transformers(folder)
    assert ours is not None
    texts = TEXTS
    if name.startswith("t5"):
        texts = [t for t in [*TEXTS, *fuzz(200, seed=11)] if not by_grapheme(t)]
    assert len(texts) >= 200
    for text in texts:
        assert ids_of(ours, text) == ids_in(theirs, text), text
    assert ours.vocab_size == len(theirs) == trained(name).vocab_size
    assert ours.vocab_size <= FAMILIES[name].vocab_size
    assert ours.max_length == FAMILIES[name].window
    encoded = [ids_of(ours, text) for text in texts]
    assert sum(map(len, encoded)) > 2000
    # Negative control: another vocabulary, of the same size and family, is told apart.
    other = train_tokenizer(CORPUS[: len(CORPUS) // 2], FAMILIES[name]).tokenizer
    assert any(ids_of(other, t) != ids for t, ids in zip(texts, encoded, strict=True))


FAMILY_CLASSES = {
    "bert-cased": "BertTokenizer",
    "bert-uncased": "BertTokenizer",
    "bert-mecab": "BertJapaneseTokenizer",
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
    "llama": "LlamaTokenizer",
    "marian": "MarianTokenizer",
    "t5": "T5Tokenizer",
}


@pytest.mark.parametrize(("folder", "name"), [(n, n) for n in FAMILY_CLASSES], indirect=["folder"])
def test_the_family_class_reads_the_folder(folder: Path, name: str) -> None:
    ours, theirs = load_tokenizer(folder), in_transformers(folder, FAMILY_CLASSES[name])
    assert ours is not None
    texts = [*ENGLISH, *JAPANESE, *(t for t in HARD if not by_grapheme(t))]
    for text in texts:
        if name == "llama" and text.startswith((" ", "<")):
            continue  # the class drops the dummy prefix there; the folder's own file does not
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


@pytest.mark.parametrize(
    ("folder", "model_type"),
    [("llama", "llama"), ("llama3", "llama"), ("characters", "gpt2"), ("t5", "t5")],
    indirect=["folder"],
)
def test_a_model_beside_it_changes_nothing(folder: Path, model_type: str) -> None:
    alone = load_tokenizer(folder)
    write_json(folder / "config.json", {"model_type": model_type})
    ours, theirs = load_tokenizer(folder, {"model_type": model_type}), in_transformers(folder)
    assert alone is not None
    assert ours is not None
    for text in (*ENGLISH, *JAPANESE, " lead"):
        assert ours.encode(text).ids == alone.encode(text).ids == theirs(text)["input_ids"]


UNUSED = {f"[unused{n}]": 5 + n for n in range(10)}
BERT = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
SPECIALS: dict[str, dict[str, int]] = {
    "bert-cased": BERT | UNUSED,
    "bert-nfkc": BERT | UNUSED | {"<x>": 15},
    "bert-mecab": BERT | UNUSED,
    "bert-characters": BERT | UNUSED,
    "bert-pieces": BERT | UNUSED,
    "gpt2": {"!": 0, "<|endoftext|>": -2, "<|im_start|>": -1},
    "roberta": {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "!": 4, "<mask>": -1},
    "llama3": {"<|begin_of_text|>": -256, "<|end_of_text|>": -255, "<|eot_id|>": -247},
    "bytes": {"!": 0},
    "llama": {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_start|>": 3, "<0x00>": 4, "<0xFF>": 259},
    "marian": {"</s>": 0, "<unk>": 1, ">>jpn<<": -2, "<pad>": -1},
    "t5": {"<pad>": 0, "</s>": 1, "<unk>": 2, "<x>": 3, "<extra_id_0>": -1, "<extra_id_99>": -100},
    "t5-few": {"<extra_id_0>": -1, "<extra_id_3>": -4},
    "characters": {"\t": 0, "\n": 1},
}


@pytest.mark.parametrize("name", SPECIALS)
def test_control_tokens_have_the_ids_of_the_family(name: str) -> None:
    tokenizer = trained(name).tokenizer
    size = tokenizer.vocab_size
    for token, index in SPECIALS[name].items():
        assert tokenizer.token_to_id(token) == index % size, token
        assert tokenizer.id_to_token(index % size) == token
    named = {"pad": "<pad>", "eos": "</s>", "unk": "<unk>"}
    if name in ("t5", "marian"):
        for role, token in named.items():
            assert getattr(tokenizer, f"{role}_id") == tokenizer.token_to_id(token)
    if name == "llama3":
        assert (tokenizer.bos_id, tokenizer.eos_id) == (size - 256, size - 255)


# --- vocabularies


def slow_wordpiece(words: Counter[str], size: int, least: int, start: int) -> list[str]:
    """WordPiece as `tokenizers` learns it, in the plainest way: the most frequent pair is joined,
    of equally frequent ones the pair whose ids are smaller."""
    letters = sorted({c for w in words for c in w})
    inside = sorted({"##" + c for w in words for c in w[1:]})
    vocab = letters + inside
    ids = {token: start + n for n, token in enumerate(vocab)}
    cut = {w: [w[0], *("##" + c for c in w[1:])] for w in words}
    while start + len(vocab) < size:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, parts in cut.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], ids[p[0]], ids[p[1]]))
        if pairs[best] < least:
            break
        new = best[0] + best[1].removeprefix("##")
        if new not in ids:
            ids[new] = start + len(vocab)
            vocab.append(new)
        for parts in cut.values():
            n = 0
            while n + 1 < len(parts):
                if (parts[n], parts[n + 1]) == best:
                    parts[n : n + 2] = [new]
                n += 1
    return vocab


def mecab_words(text: str, dictionary: str = "unidic_lite") -> list[str]:
    """MeCab by itself."""
    import fugashi

    package = __import__(dictionary)
    tagger = _tagger(fugashi, f'-d "{package.DICDIR}" -r "{package.DICDIR}/mecabrc"')
    return [node.surface for node in tagger(unicodedata.normalize("NFKC", text))]


@functools.cache
def _tagger(fugashi: Any, options: str) -> Any:
    return fugashi.GenericTagger(options)


def vocab_txt(made: Trained) -> list[str]:
    return made.files["vocab.txt"].decode().split("\n")[:-1]


@pytest.mark.parametrize("japanese", [None, "mecab"])
def test_wordpiece_equals_a_slow_trainer(japanese: str | None) -> None:
    texts = ENGLISH * 3 + JAPANESE * 2
    settings = S(vocab_size=330, japanese=japanese, min_frequency=2)
    if japanese:
        words = Counter(w for text in texts for w in mecab_words(text))
    else:
        splitter = pre_tokenizers.BertPreTokenizer()
        spaced = normalizers.BertNormalizer(lowercase=False)
        words = Counter(
            w for t in texts for w, _ in splitter.pre_tokenize_str(spaced.normalize_str(t))
        )
    expected = slow_wordpiece(words, 330, 2, 15)
    found = vocab_txt(train_tokenizer(iter(texts), settings))
    assert found[15:] == expected
    # Negative control: texts counted otherwise give another vocabulary.
    assert vocab_txt(train_tokenizer(texts[2:], settings))[15:] != expected


@pytest.mark.parametrize("name", ["bert-cased", "bert-uncased", "bert-mecab", "bert-ipadic"])
def test_wordpiece_equals_the_library(name: str) -> None:
    """`tokenizers` on the raw text, given the numbers of the ## characters, which it draws."""
    settings = FAMILIES[name]
    texts = [t for t in CORPUS if "x" * 101 not in t and "\x00" not in t]
    found = vocab_txt(train_tokenizer(texts, settings))

    def library(lines: list[str], lower: bool) -> list[str]:
        engine = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        if settings.japanese:
            engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        else:
            engine.normalizer = normalizers.BertNormalizer(lowercase=lower)
            engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        first = [t for t in found if len(t.removeprefix("##")) == 1 or t.startswith("[")]
        first = [t for t in found[: found.index(first[-1]) + 1] if t in set(first)]
        trainer = trainers.WordPieceTrainer(
            vocab_size=settings.vocab_size,
            min_frequency=2,
            special_tokens=first,
            show_progress=False,
        )
        engine.train_from_iterator(lines, trainer)
        vocab = engine.get_vocab()
        return sorted(vocab, key=lambda token: vocab[token])

    lines = texts
    if settings.japanese:
        dictionary = settings.dictionary or "unidic_lite"
        lines = [" ".join(mecab_words(t, dictionary)) for t in texts]
        lines = [t.lower() for t in lines] if settings.lowercase else lines
    assert found == library(lines, settings.lowercase)
    # Negative control: text that is normalised otherwise.
    assert found != library([t.upper() for t in lines], not settings.lowercase)


@pytest.mark.parametrize("name", ["gpt2", "roberta", "bytes"])
def test_byte_bpe_equals_the_library(name: str) -> None:
    made, settings = trained(name), FAMILIES[name]
    own = {"gpt2": 2, "roberta": 5, "bytes": 0}[name]
    library = ByteLevelBPETokenizer()
    library.train_from_iterator(
        CORPUS, vocab_size=settings.vocab_size - own, min_frequency=2, show_progress=False
    )
    theirs = library.get_vocab()
    vocab = json.loads(made.files["vocab.json"])
    shift = 4 if name == "roberta" else 0
    assert {t: n - shift for t, n in vocab.items() if t in theirs} == theirs
    assert len(vocab) == len(theirs) + own
    merges = made.files["merges.txt"].decode().split("\n")[1:-1]
    spec = json.loads(library._tokenizer.to_str())
    assert merges == [" ".join(pair) for pair in spec["model"]["merges"]]
    # Negative control: half of the text.
    library.train_from_iterator(
        CORPUS[::2], vocab_size=settings.vocab_size - own, min_frequency=2, show_progress=False
    )
    assert library.get_vocab() != theirs


LLAMA = {
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "control_symbols": "<|im_start|>",
    "vocab_size": 2400,
}
T5 = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "control_symbols": "<x>"}
PIECES = {
    "llama": ("tokenizer.model", "bpe", LLAMA),
    "t5": ("spiece.model", "unigram", T5 | {"vocab_size": 1400}),
    "marian-bpe": ("source.spm", "bpe", {"vocab_size": 1500}),
}


@pytest.mark.parametrize("name", PIECES)
def test_pieces_equal_sentencepiece(name: str, tmp_path: Path) -> None:
    file, kind, options = PIECES[name]
    corpus = tmp_path / "corpus.txt"
    lines = [line for text in CORPUS for line in text.replace("\r", "\n").split("\n")]
    corpus.write_text("\n".join(line for line in lines if line.strip()), "utf-8")

    def library(**more: object) -> list[tuple[str, float]]:
        out = io.BytesIO()
        chosen: dict[str, Any] = {**options, "hard_vocab_limit": False, "minloglevel": 2, **more}
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_writer=out, model_type=kind, num_threads=4, **chosen
        )
        return pieces(out.getvalue())

    found = pieces(trained(name).files[file])
    assert found == library()
    # Negative control: another setting is told apart.
    assert found != library(character_coverage=0.98)


def pieces(model: bytes) -> list[tuple[str, float]]:
    engine = sentencepiece.SentencePieceProcessor()
    engine.LoadFromSerializedProto(model)
    return [(engine.id_to_piece(n), engine.get_score(n)) for n in range(engine.get_piece_size())]


def test_characters_are_the_characters() -> None:
    text = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    tokenizer = train_tokenizer([text], S("characters", 300)).tokenizer
    letters = sorted(set(text))
    assert tokenizer.vocab_size == len(letters)
    assert tokenizer.encode(text).ids == [letters.index(c) for c in text]
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
    with pytest.raises(InputError):
        tokenizer.encode("猫")
    known = train_tokenizer([text], S("characters", 300, "gpt2")).tokenizer
    assert known.encode("猫").ids == [known.eos_id]


def test_a_known_text_is_one_of_the_vocabulary() -> None:
    kana = train_tokenizer(["ねこ \nいぬ"], S("characters", 300)).tokenizer
    with pytest.raises(InputError):
        kana.encode("a")
    assert len(kana.encode(known_text(kana), special=False)) == 1
    assert known_text(kana) in "ねこいぬ"
    letters = train_tokenizer(["cab"], S("characters", 300)).tokenizer
    assert known_text(letters) == "a"


@pytest.mark.parametrize("parse_special", [True, False])
def test_an_unknown_character_is_named(parse_special: bool, tmp_path: Path) -> None:
    settings = S("characters", 300, extra_tokens=("<x>",), lowercase=True)
    made = train_tokenizer(["cab <x>"], settings)
    made.save(tmp_path / "made")
    for tokenizer in (made.tokenizer, load_tokenizer(tmp_path / "made")):
        assert tokenizer is not None
        tokenizer.encode("CAB<x>a", parse_special=parse_special)
        with pytest.raises(InputError, match=r"^'é' is not in the vocabulary") as caught:
            tokenizer.encode("a<x>CABÉü", parse_special=parse_special)
        assert "--alphabet" in caught.value.advice
        with pytest.raises(InputError, match=r"^'é' is not in"):
            tokenizer.encode_plain("aé")
    known = train_tokenizer(["cab"], S("characters", 300, alphabet="é")).tokenizer
    assert known.decode(known.encode("aé").ids) == "aé"


def test_limits_of_the_alphabet() -> None:
    text = "aaaa bbb cc d " * 2 + "cab bad dab"
    vocab = vocab_txt(train_tokenizer([text], S(vocab_size=100, alphabet_limit=3, alphabet="zb")))
    assert {t for t in vocab if len(t) == 1} == {"z", "b", "a"}  # two were asked for, a is next
    assert "d" not in "".join(vocab[15:])
    chars = S("characters", 18, "bert", alphabet="x")
    assert vocab_txt(train_tokenizer([text], chars))[15:] == ["a", "b", "x"]
    often = train_tokenizer([text], S("characters", 50, "gpt2", min_frequency=9)).tokenizer
    assert often.vocab_size == 1 + sum(n >= 9 for n in Counter(text).values())
    with pytest.raises(ConfigError, match="No character"):
        train_tokenizer([text], S("characters", 50, "gpt2", min_frequency=99))
    full = vocab_txt(train_tokenizer([text], S(vocab_size=100)))
    assert {"a", "b", "c", "d"} <= set(full)  # negative control: without a limit all are there


def test_words_that_can_only_be_unknown_teach_nothing() -> None:
    long = "ab" * 60
    vocab = vocab_txt(train_tokenizer([f"{long} {long} cd cd"], S(vocab_size=100)))
    assert vocab[15:] == ["c", "d", "##d", "cd"]
    short = vocab_txt(train_tokenizer([f"{long[:90]} {long[:90]} cd cd"], S(vocab_size=100)))
    assert "ab" in short


# --- Japanese words


def crossing(vocabulary: list[str], texts: list[str]) -> list[str]:
    """Tokens of Japanese characters that lie in no MeCab word."""
    words = {word for text in texts for word in mecab_words(text)}
    joined = "\n".join(words)
    return [
        token
        for token in vocabulary
        if len(token) > 1 and all("\u3040" <= c <= "\u9fff" for c in token) and token not in joined
    ]


@pytest.mark.parametrize(
    ("kind", "family", "size"),
    [
        ("wordpiece", "bert", 500),
        ("unigram", "bert", 300),
        ("byte-bpe", "gpt2", 700),
        ("bpe", "llama", 700),
        ("unigram", "marian", 300),
    ],
)
def test_no_token_crosses_a_word(kind: str, family: str, size: int) -> None:
    texts = JAPANESE * 4

    def learned(japanese: str | None) -> list[str]:
        made = train_tokenizer(texts, S(kind, size, family, japanese=japanese, nfkc=None))
        tokenizer = made.tokenizer
        names = [tokenizer.id_to_token(n) for n in range(tokenizer.vocab_size)]
        if kind == "byte-bpe":
            names = [tokenizer.decode([n]) for n in range(tokenizer.vocab_size)]
        return [name.removeprefix("##").replace("▁", "").strip() for name in names]

    assert sum(len(token) > 1 for token in learned("mecab")) >= 5
    assert crossing(learned("mecab"), texts) == []
    if (kind, family) != ("unigram", "bert"):  # which needs words
        assert crossing(learned(None), texts) != []  # negative control: without MeCab some do


@pytest.mark.parametrize("name", ["bert-mecab", "bert-pieces", "bert-characters"])
def test_tokens_of_a_text_lie_within_its_words(name: str) -> None:
    tokenizer = trained(name).tokenizer
    for text in (*JAPANESE, "私は東京都の大学で自然言語処理を勉強していました。"):
        ends, position = set(), 0
        for word in mecab_words(text):
            ends.update(range(position + 1, position + len(word)))
            position += len(word)
        encoding = tokenizer.encode(text)
        places = [o for o, s in zip(encoding.offsets, encoding.special, strict=True) if not s]
        assert [o for o in places if set(range(o[0] + 1, o[1])) - ends] == []
        assert "".join(text[a:b] for a, b in places) == text


# --- round trips, determinism, folders


@pytest.mark.parametrize("name", ["gpt2", "roberta", "llama3", "bytes", "llama", "characters-gpt2"])
def test_round_trips(name: str) -> None:
    tokenizer = trained(name).tokenizer
    exact = 0
    for text in TEXTS:
        ids = tokenizer.encode(text, special=False, parse_special=False).ids
        if name == "characters-gpt2" and tokenizer.unk_id in ids:
            continue
        exact += 1
        assert tokenizer.decode(ids) == text
    assert exact >= 40
    if name == "bytes":  # negative control: what is normalised first does not come back
        folded = trained("gpt2-nfkc").tokenizer
        assert folded.decode(folded.encode("ﬁne Å").ids) == "fine å"


_HASHES = """
import hashlib, sys
from chumoku.text.training import TokenizerSettings, train_tokenizer
texts = sys.stdin.read().split("\\x01")
for options in (dict(vocab_size=1500), dict(vocab_size=1500, japanese="mecab"),
                dict(kind="byte-bpe", vocab_size=700), dict(kind="unigram", vocab_size=900),
                dict(kind="bpe", vocab_size=1900), dict(kind="characters", vocab_size=3000)):
    made = train_tokenizer(texts, TokenizerSettings(**options))
    print(hashlib.sha256(repr(sorted(made.files.items())).encode()).hexdigest())
"""


def test_the_same_text_gives_the_same_bytes() -> None:
    texts = [t for t in CORPUS if "\x00" not in t and "\x01" not in t]

    def hashes(some: list[str], seed: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", _HASHES],
            input="\x01".join(some).encode(),
            capture_output=True,
            check=True,
            env=os.environ | {"PYTHONHASHSEED": seed},
        )
        return done.stdout.decode().split()

    first = hashes(texts, "1")
    assert first == hashes(texts, "2")
    assert len(first) == 6
    made = train_tokenizer(texts, S(vocab_size=1500))
    digest = hashlib.sha256(repr(sorted(made.files.items())).encode()).hexdigest()
    assert digest == first[0]
    # Negative control: the hash sees the text.
    made = train_tokenizer(texts[1:], S(vocab_size=1500))
    assert hashlib.sha256(repr(sorted(made.files.items())).encode()).hexdigest() != first[0]


def test_a_marian_pair(tmp_path: Path) -> None:
    settings = S("unigram", 400, "marian", extra_tokens=(">>jpn<<",))
    made = train_tokenizer(ENGLISH * 5, settings, JAPANESE * 5)
    folder = made.save(tmp_path)
    ours, theirs = load_tokenizer(folder), in_transformers(folder)
    assert made.vocab_size <= 400
    assert made.files["source.spm"] != made.files["target.spm"]
    for text in (*ENGLISH, *JAPANESE, *HARD, ">>jpn<< the cat"):
        assert ours.encode(text).ids == theirs(text)["input_ids"]
        assert ours.encode_target(text).ids == theirs(text_target=text)["input_ids"]
    assert ours.encode(ENGLISH[0]).ids != ours.encode_target(ENGLISH[0]).ids
    assert ours.unk_id not in ours.encode_target(JAPANESE[0]).ids


def test_llama_has_a_form_for_gguf(tmp_path: Path) -> None:
    folder = trained("llama").save(tmp_path)
    ours = load_tokenizer(folder)
    pieces_only = writable(ours, folder, {})
    assert type(pieces_only).__name__ == "SentencePieceTokenizer"
    for text in TEXTS:
        assert pieces_only.encode(text).ids == ours.encode(text).ids, text


def test_save_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    trained("bert-cased").save(tmp_path)
    with pytest.raises(InputError, match=r"vocab\.txt"):
        trained("bert-mecab").save(tmp_path)
    trained("bert-mecab").save(tmp_path, overwrite=True)
    assert not (tmp_path / "tokenizer.json").exists()  # of the other one: it would win
    assert (tmp_path / "config.json").exists()
    ours = load_tokenizer(tmp_path)
    assert ours.encode(JAPANESE[0]).ids == trained("bert-mecab").tokenizer.encode(JAPANESE[0]).ids
    with pytest.raises(ResourceError):
        trained("bert-cased").save(tmp_path / "config.json" / "below")


# --- bad input


@pytest.mark.parametrize("kind", ["wordpiece", "byte-bpe", "bpe", "unigram", "characters"])
@pytest.mark.parametrize(
    "texts",
    [[], ["", ""], [" ", "\n\t"], "one string", [None], ["a", 3], ["a\ud800b"]],
    ids=["none", "empty", "blank", "string", "no text", "number", "surrogate"],
)
def test_bad_texts(kind: str, texts: Any) -> None:
    with pytest.raises(InputError):
        train_tokenizer(texts, S(kind))


@pytest.mark.parametrize(
    "options",
    [
        {"vocab_size": 60},
        {"vocab_size": 60, "japanese": "mecab"},
        {"kind": "byte-bpe", "vocab_size": 256},
        {"kind": "byte-bpe", "vocab_size": 511, "family": "llama"},
        {"kind": "bpe", "vocab_size": 300},
        {"kind": "unigram", "vocab_size": 150},
        {"kind": "unigram", "vocab_size": 99},
        {"kind": "unigram", "vocab_size": 60, "family": "marian"},
        {"kind": "characters", "vocab_size": 60},
        {"kind": "characters", "vocab_size": 15, "family": "bert"},
    ],
)
def test_a_vocabulary_too_small_says_how_large(options: dict[str, Any]) -> None:
    texts = ENGLISH + JAPANESE
    with pytest.raises(ConfigError, match="too small") as caught:
        train_tokenizer(texts, S(**options))
    needed = int(caught.value.what.split("at least ")[1].split()[0])
    assert train_tokenizer(texts, S(**options | {"vocab_size": needed})).vocab_size <= needed
    with pytest.raises(ConfigError, match="too small"):  # and one less is too few
        train_tokenizer(texts, S(**options | {"vocab_size": needed - 1}))


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"kind": "sentencepiece"}, "kind"),
        ({"family": "electra"}, "family"),
        ({"kind": "wordpiece", "family": "gpt2"}, "family"),
        ({"kind": "unigram", "family": "llama"}, "family"),
        ({"kind": "unigram", "family": "bert"}, "japanese"),
        ({"japanese": "juman"}, "japanese"),
        ({"dictionary": "ipadic"}, "dictionary"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": "8000"}, "vocab_size"),
        ({"vocab_size": True}, "vocab_size"),
        ({"min_frequency": 0}, "min_frequency"),
        ({"kind": "unigram", "min_frequency": 2}, "min_frequency"),
        ({"kind": "byte-bpe", "alphabet_limit": 9}, "alphabet_limit"),
        ({"kind": "byte-bpe", "alphabet": "x"}, "alphabet"),
        ({"coverage": 0.99}, "coverage"),
        ({"kind": "unigram", "coverage": 0.9}, "coverage"),
        ({"kind": "bpe", "nfkc": True}, "nfkc"),
        ({"kind": "bpe", "lowercase": True}, "lowercase"),
        ({"kind": "unigram", "nfkc": False}, "nfkc"),
        ({"kind": "bpe", "family": "marian", "nfkc": False, "lowercase": True}, "lowercase"),
        ({"kind": "characters", "alphabet_limit": 9}, "alphabet_limit"),
        ({"kind": "characters", "min_frequency": 9}, "min_frequency"),
        ({"kind": "byte-bpe", "strip_accents": True}, "strip_accents"),
        ({"extra_tokens": ("[MASK]",)}, "extra_tokens"),
        ({"extra_tokens": ("<x>", "<x>")}, "extra_tokens"),
        ({"extra_tokens": ("a b",)}, "extra_tokens"),
    ],
)
def test_settings_that_contradict_themselves(options: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        S(**options)
    assert caught.value.where == where


def test_a_second_language_is_for_marian() -> None:
    with pytest.raises(ConfigError, match="second language"):
        train_tokenizer(ENGLISH, S(), JAPANESE)


def _no_package(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    ("options", "package", "error"),
    [
        ({"japanese": "mecab"}, "fugashi", DependencyError),
        ({"japanese": "mecab"}, "unidic_lite", DependencyError),
        ({"japanese": "mecab", "dictionary": "ipadic"}, "ipadic", DependencyError),
        ({"japanese": "mecab", "dictionary": "no-such-dictionary"}, None, ConfigError),
        ({"japanese": "sudachi"}, "sudachipy", DependencyError),
        ({"kind": "byte-bpe", "japanese": "mecab"}, "fugashi", DependencyError),
        ({"kind": "unigram", "japanese": "sudachi"}, "sudachipy", DependencyError),
    ],
)
def test_a_missing_dictionary(
    options: dict[str, Any],
    package: str | None,
    error: type[ChumokuError],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if package is not None:
        _no_package(package)(monkeypatch)
    with pytest.raises(error) as caught:
        train_tokenizer(JAPANESE, S(**options))
    assert caught.value.advice
