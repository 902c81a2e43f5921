"""Japanese tokenizers beside transformers' BertJapaneseTokenizer, and offsets, which it lacks."""

from __future__ import annotations

import builtins
import importlib
import shutil
import subprocess
import sys
import unicodedata
import warnings
from pathlib import Path

import pytest
from text_samples import (
    HARD,
    fuzz,
    japanese_sentences,
    sentencepiece_model,
    shared_data,
    visible,
    write_json,
)

from chumoku.errors import ConfigError, DependencyError, InputError
from chumoku.text import load_tokenizer, segmentation
from chumoku.text.alignment import aligned
from chumoku.text.segmentation import STRETCH, segmenter, stretches

transformers = pytest.importorskip("transformers")
MASKED = ["私の今日の昼ご飯は[MASK]です。", "LINE株式会社で[MASK]の研究・開発をしている。"]
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = "私今日昼ご飯は です。吾輩猫あるまだ無い株式会社研究開発をしているの・名前でガパ12345a"
WORDS = ["今日", "昼", "##ご飯", "です", "猫", "で", "ある", "株式", "会社", "研究", "line", "LINE"]

KINDS = [
    ("mecab", {"mecab_dic": "unidic_lite"}),
    ("mecab", {"mecab_dic": "ipadic"}),
    ("mecab", {"mecab_dic": "unidic_lite", "normalize_text": False}),
    ("sudachi", {"sudachi_split_mode": "A"}),
    ("sudachi", {"sudachi_split_mode": "B"}),
    ("sudachi", {"sudachi_split_mode": "C", "trim_whitespace": True}),
    ("basic", {}),
]
SUBWORDS = ["wordpiece", "character", "sentencepiece"]


def folder_of(
    folder: Path, kind: str, options: dict[str, object], subword: str, **config: object
) -> Path:
    letters = [c for c in dict.fromkeys(LETTERS) if not c.isspace()]
    vocab = dict.fromkeys([*SPECIALS, *letters, *WORDS, *("##" + c for c in letters)])
    (folder / "vocab.txt").write_text("\n".join(vocab) + "\n", "utf-8")
    if subword == "sentencepiece":
        model = sentencepiece_model(
            "unigram", 380, user_defined_symbols=",".join(SPECIALS), bos_id=-1, eos_id=-1
        )
        (folder / "spiece.model").write_bytes(model)
    config |= {"word_tokenizer_type": kind, "subword_tokenizer_type": subword}
    config.setdefault("tokenizer_class", "BertJapaneseTokenizer")
    if options:
        config[f"{kind}_kwargs"] = options
    write_json(folder / "tokenizer_config.json", config)
    return folder


def texts() -> list[str]:
    # MeCab's text ends at a NUL, so transformers loses what stands behind it.
    return [t for t in [*HARD, *MASKED, *fuzz(80, seed=5)] if "\x00" not in t]


@pytest.mark.parametrize("lower", [False, True])
@pytest.mark.parametrize("subword", SUBWORDS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_ids_equal_transformers(
    tmp_path: Path, kind: str, options: dict[str, object], subword: str, lower: bool
) -> None:
    pytest.importorskip("sudachipy" if kind == "sudachi" else "fugashi")
    folder = folder_of(tmp_path, kind, options, subword, do_lower_case=lower)
    ours = load_tokenizer(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers uses what SudachiPy 0.7 renamed
        theirs = transformers.BertJapaneseTokenizer.from_pretrained(folder)
    for text in texts():
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids)
    pair = theirs(MASKED[0], MASKED[1], return_token_type_ids=True)
    encoding = ours.encode(*MASKED)
    assert encoding.ids == pair["input_ids"]
    assert encoding.segments == pair["token_type_ids"]
    assert (ours.mask_id, ours.cls_id, ours.sep_id) == (
        theirs.mask_token_id,
        theirs.cls_token_id,
        theirs.sep_token_id,
    )


@pytest.mark.parametrize("subword", SUBWORDS)
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_mask_stays_one_token_and_maps_back(
    tmp_path: Path, kind: str, options: dict[str, object], subword: str
) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, kind, options, subword))
    for text in MASKED:
        encoding = tokenizer.encode(text)
        assert encoding.ids.count(tokenizer.mask_id) == 1
        start, end = encoding.offsets[encoding.ids.index(tokenizer.mask_id)]
        assert text[start:end] == "[MASK]"
        plain = tokenizer.encode(text, parse_special=False)
        assert tokenizer.mask_id not in plain.ids


@pytest.mark.parametrize("subword", SUBWORDS)
def test_offsets_go_back_through_normalisation(tmp_path: Path, subword: str) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, "mecab", {}, subword))
    for text in texts():
        encoding = tokenizer.encode(text)
        last = 0
        for token, (start, end), special in zip(
            encoding.tokens, encoding.offsets, encoding.special, strict=True
        ):
            if special:
                continue
            assert 0 <= start <= end <= len(text)
            if start < end:  # an empty ▁ stands before each word
                assert end >= last
                last = end
            bare = token.replace("▁", "").removeprefix("##")
            if bare and token not in SPECIALS and token != "<unk>":
                assert visible(bare) in visible(text[start:end])
    text = "㈱とｶﾞﾊﾟ"
    encoding = tokenizer.encode(text, special=False)
    assert {text[a:b] for a, b in encoding.offsets} >= {"㈱"}
    assert encoding.offsets[-1][1] == len(text)


def test_words_are_the_dictionarys(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(folder_of(tmp_path, "mecab", {}, "character"))
    text = "吾輩は猫である。"
    encoding = tokenizer.encode(text)
    spans: dict[int, str] = {}
    for word, (start, end) in zip(encoding.words, encoding.offsets, strict=True):
        if word is not None:
            spans[word] = spans.get(word, "") + text[start:end]
    assert list(spans.values()) == ["吾輩", "は", "猫", "で", "ある", "。"]


def test_published_vocabulary_over_a_thousand_sentences(tmp_path: Path) -> None:
    source = shared_data("tokenizers") / "bert-base-japanese-v3"
    sentences = japanese_sentences(1200)
    assert len(sentences) >= 1000
    for name in ("unidic_lite", "ipadic"):
        for subword in ("wordpiece", "character"):
            shutil.copy(source / "vocab.txt", tmp_path)
            config = {"tokenizer_class": "BertJapaneseTokenizer", "word_tokenizer_type": "mecab"}
            config |= {"subword_tokenizer_type": subword, "mecab_kwargs": {"mecab_dic": name}}
            write_json(tmp_path / "tokenizer_config.json", config)
            ours = load_tokenizer(tmp_path)
            theirs = transformers.BertJapaneseTokenizer.from_pretrained(tmp_path)
            for sentence in sentences:
                encoding = ours.encode(sentence)
                assert encoding.ids == theirs(sentence)["input_ids"]
                for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True):
                    if token not in SPECIALS:
                        assert sentence[start:end] == token.removeprefix("##") or (
                            token.removeprefix("##")
                            in unicodedata.normalize("NFKC", sentence[start:end])
                        )


def test_line_distilbert_is_mecab_then_sentencepiece(tmp_path: Path) -> None:
    """DistilBertJapaneseTokenizer's folder holds code; it is not run, the construction is known."""
    config = {
        "tokenizer_class": "DistilBertJapaneseTokenizer",
        "auto_map": {"AutoTokenizer": ["distilbert_japanese_tokenizer.X", None]},
        "model_max_length": 512,
    }
    folder = folder_of(tmp_path, "mecab", {"mecab_dic": "unidic_lite"}, "sentencepiece", **config)
    (folder / "distilbert_japanese_tokenizer.py").write_text("raise SystemExit('was run')")
    ours = load_tokenizer(folder, {"model_type": "distilbert"})
    write_json(
        folder / "tokenizer_config.json",
        {
            "word_tokenizer_type": "mecab",
            "subword_tokenizer_type": "sentencepiece",
            "mecab_kwargs": {"mecab_dic": "unidic_lite"},
        },
    )
    theirs = transformers.BertJapaneseTokenizer.from_pretrained(folder)
    for text in texts():
        assert ours.encode(text).ids == theirs(text)["input_ids"]
    assert ours.max_length == 512
    assert ours.encode(MASKED[1]).ids.count(ours.mask_id) == 1


def test_text_behind_a_nul_is_kept(tmp_path: Path) -> None:
    ours = load_tokenizer(folder_of(tmp_path, "mecab", {}, "wordpiece"))
    assert ours.encode("猫\x00猫").tokens.count("猫") == 2


LONG = """
from chumoku.text.alignment import aligned
from chumoku.text.segmentation import segmenter

cut = segmenter("mecab", {"normalize_text": False}, lower=False, never_split=())
text = "Before we proceed any further, hear me speak.\\n" * 25_000
assert "".join(word.text for word in cut(aligned(text))) == "".join(text.split())
spaced = cut(aligned("猫" + " " * 200_000 + "猫"))
assert [word.text for word in spaced] == ["猫", "猫"]
"""


def test_a_long_text_does_not_end_the_process() -> None:
    pytest.importorskip("fugashi")
    done = subprocess.run([sys.executable, "-c", LONG], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("短い", ["短い"]),
        ("a b\ncd。ef", ["a b\n", "cd。ef"]),
        ("ab。cd efg", ["ab。", "cd ", "efg"]),
        ("a bcdefgh", ["a ", "bcdef", "gh"]),
        ("abcdefghijkl", ["abcde", "fghij", "kl"]),
        ("\n" * 7, ["\n" * 5, "\n" * 2]),
        ("ab\n\u3000cd", ["ab\n\u3000", "cd"]),
        ("abcd\n\u3000e", ["abcd", "\n\u3000e"]),
        ("a\nbc\n\n\nd", ["a\n", "bc", "\n\n\nd"]),
    ],
)
def test_a_stretch_ends_where_a_word_does(text: str, parts: list[str]) -> None:
    assert list(stretches(text, 5)) == parts


def test_an_ordinary_text_is_one_stretch() -> None:
    text = "猫である。\n" * (STRETCH // 6)
    assert list(stretches(text, STRETCH)) == [text]


NEKO = "吾輩は猫である。名前はまだ無い。\n　どこで生れたかとんと見当がつかぬ。\n" * 20


@pytest.mark.parametrize(("kind", "most"), [("mecab", "STRETCH"), ("sudachi", "SUDACHI_STRETCH")])
def test_stretches_change_no_word(
    kind: str, most: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut every few sentences, a text has the tokens and offsets that it has as a whole."""
    pytest.importorskip({"mecab": "fugashi", "sudachi": "sudachipy"}[kind])
    found = []
    for stretch in (getattr(segmentation, most), 60):
        monkeypatch.setattr(segmentation, most, stretch)
        folder = tmp_path / str(stretch)
        folder.mkdir()
        tokenizer = load_tokenizer(folder_of(folder, kind, {}, "character"))
        assert tokenizer is not None
        found.append(tokenizer.encode(NEKO))
    assert found[0] == found[1]
    assert len(found[0]) > 500


@pytest.mark.parametrize(
    "text", ["猫である。" * 20_000, "あ" * 30_000, "𠮷a" * 9_000, "\ufdfa" * 5000]
)
def test_sudachi_reads_a_text_beyond_its_limits(text: str) -> None:
    pytest.importorskip("sudachipy")
    cut = segmenter("sudachi", {"normalize_text": False}, lower=False, never_split=())
    words = cut(aligned(text))
    assert "".join(word.text for word in words) == text
    places = [word.whole for word in words if word.text]  # Sudachi gives empty ones in U+FDFA
    assert [start for start, _ in places] == [0, *(end for _, end in places[:-1])]


def test_streams(tmp_path: Path) -> None:
    for subword in SUBWORDS:
        folder = tmp_path / subword
        folder.mkdir()
        tokenizer = load_tokenizer(folder_of(folder, "basic", {}, subword))
        for text in texts():
            ids = tokenizer.encode(text).ids
            for skip in (True, False):
                stream = tokenizer.stream(skip_special=skip)
                parts = [stream.push(index) for index in ids]
                assert "".join([*parts, stream.flush()]) == tokenizer.decode(ids, skip_special=skip)


@pytest.mark.parametrize(
    ("missing", "kind", "options", "line"),
    [
        ("fugashi", "mecab", {}, 'pip install "chumoku[ja]"'),
        ("unidic_lite", "mecab", {}, 'pip install "chumoku[ja]"'),
        ("ipadic", "mecab", {"mecab_dic": "ipadic"}, 'pip install "chumoku[ja]"'),
        ("unidic", "mecab", {"mecab_dic": "unidic"}, "unidic download"),
        ("sudachipy", "sudachi", {}, 'pip install "chumoku[sudachi]"'),
        ("sudachidict_core", "sudachi", {}, 'pip install "chumoku[sudachi]"'),
    ],
)
def test_missing_dictionary_names_the_line_to_run(
    tmp_path: Path, monkeypatch, missing: str, kind: str, options: dict[str, object], line: str
) -> None:
    folder = folder_of(tmp_path, kind, options, "wordpiece")
    real = importlib.import_module

    def without(name: str, package: str | None = None) -> object:
        if name == missing:
            raise ImportError(name)
        return real(name, package)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(DependencyError) as caught:
        load_tokenizer(folder)
    assert line in str(caught.value)
    assert builtins.__import__  # nothing else was touched


@pytest.mark.parametrize(
    ("kind", "options", "error"),
    [
        ("jumanpp", {}, DependencyError),
        ("kytea", {}, ConfigError),
        ("mecab", {"mecab_dic": "/nowhere/at/all"}, ConfigError),
        ("mecab", {"mecab_option": "-o /tmp/written"}, ConfigError),
        ("mecab", {"mecab_option": '-d "unclosed'}, ConfigError),
        ("mecab", {"mecab_dic": None, "mecab_option": "-d /nowhere"}, ConfigError),
        ("mecab", {"surprise": 1}, ConfigError),
        ("mecab", {"normalize_text": "yes"}, ConfigError),
        ("sudachi", {"sudachi_split_mode": "D"}, ConfigError),
        ("sudachi", {"sudachi_projection": "reading"}, ConfigError),
        ("sudachi", {"sudachi_config_path": "/nowhere.json"}, ConfigError),
    ],
)
def test_bad_configs_are_typed_errors(
    tmp_path: Path, kind: str, options: dict[str, object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        load_tokenizer(folder_of(tmp_path, kind, options, "wordpiece"))


def test_a_dictionary_may_be_given_as_a_folder(tmp_path: Path) -> None:
    unidic_lite = pytest.importorskip("unidic_lite")
    named = load_tokenizer(folder_of(tmp_path, "mecab", {}, "wordpiece"))
    options = {"mecab_dic": unidic_lite.DICDIR}
    given = load_tokenizer(folder_of(tmp_path, "mecab", options, "wordpiece"))
    assert [given.encode(t) for t in texts()] == [named.encode(t) for t in texts()]
    with pytest.raises(InputError):
        named.encode("\ud800")
