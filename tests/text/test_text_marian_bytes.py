"""Marian pairs and ByT5 bytes beside transformers."""

from __future__ import annotations

import random
import warnings
from pathlib import Path

import pytest
from text_samples import HARD, fuzz, sentencepiece_model, write_json

from chumoku.errors import TokenizerError
from chumoku.text import load_tokenizer
from chumoku.text.sentencepieces import PieceModel

transformers = pytest.importorskip("transformers")
TEXTS = [*HARD, *fuzz(150)]


@pytest.fixture
def marian(tmp_path: Path) -> Path:
    source, target = sentencepiece_model("unigram", 150), sentencepiece_model("bpe", 380)
    (tmp_path / "source.spm").write_bytes(source)
    (tmp_path / "target.spm").write_bytes(target)
    pieces = dict.fromkeys(["</s>", "<unk>"])
    for model in (source, target):
        pieces |= dict.fromkeys(PieceModel(model, "").pieces[3:])
    pieces |= dict.fromkeys([">>jpn<<", ">>deu<<", "<pad>"])
    write_json(tmp_path / "vocab.json", {piece: n for n, piece in enumerate(pieces)})
    write_json(
        tmp_path / "tokenizer_config.json",
        {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "ja"},
    )
    return tmp_path


@pytest.fixture
def both(marian: Path) -> tuple[object, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers recommends sacremoses
        theirs = transformers.MarianTokenizer.from_pretrained(marian)
    return load_tokenizer(marian, {"model_type": "marian"}), theirs


def test_marian_ids_equal_transformers(both) -> None:
    ours, theirs = both
    texts = [*TEXTS, ">>jpn<< the cat sat", ">>xyz<< hello", ">>jpn<<hello", "a >>jpn<< b", ">>x"]
    for text in texts:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        assert ours.encode_target(text).ids == theirs(text_target=text)["input_ids"], text
    assert ours.encode("a", "b").ids == theirs("a", "b")["input_ids"]
    assert ours.languages == [">>deu<<", ">>jpn<<"]
    assert (ours.eos_id, ours.unk_id, ours.pad_id) == (0, 1, theirs.pad_token_id)
    assert any(ours.encode(t).ids != ours.encode_target(t).ids for t in TEXTS)


def test_marian_decodes_with_the_target_pieces(both) -> None:
    ours, theirs = both
    rng = random.Random(0)
    for text in TEXTS:
        ids = ours.encode_target(text).ids
        for skip in (True, False):
            expected = theirs.decode(ids, skip_special_tokens=skip, use_source_tokenizer=False)
            assert ours.decode(ids, skip_special=skip) == expected
    for _ in range(300):
        ids = [rng.randrange(ours.vocab_size) for _ in range(10)]
        stream = ours.stream(skip_special=True)
        parts = [stream.push(index) for index in ids]
        assert "".join([*parts, stream.flush()]) == ours.decode(ids, skip_special=True)


def test_marian_offsets_and_language_code(both) -> None:
    ours, _ = both
    text = ">>jpn<< the cat"
    encoding = ours.encode(text)
    assert encoding.tokens[0] == ">>jpn<<"
    assert encoding.offsets[0] == (0, 7)
    assert text[encoding.offsets[1][0] : encoding.offsets[-2][1]].strip() == "the cat"
    assert encoding.words[0] == 0
    assert encoding.words[1] == 1


def test_marian_separate_vocabularies(marian: Path) -> None:
    pieces = PieceModel((marian / "target.spm").read_bytes(), "").pieces[3:]
    names = ["</s>", "<unk>", *pieces, "<pad>"]
    write_json(marian / "target_vocab.json", {piece: n for n, piece in enumerate(names)})
    write_json(
        marian / "tokenizer_config.json",
        {"tokenizer_class": "MarianTokenizer", "separate_vocabs": True},
    )
    ours = load_tokenizer(marian)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.MarianTokenizer.from_pretrained(marian)
    for text in HARD:
        assert ours.encode_target(text).ids == theirs(text_target=text)["input_ids"]


def test_marian_without_a_file_names_it(marian: Path) -> None:
    (marian / "target.spm").unlink()
    with pytest.raises(TokenizerError, match=r"target\.spm"):
        load_tokenizer(marian)


@pytest.fixture
def byt5(tmp_path: Path) -> tuple[object, object]:
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "ByT5Tokenizer"})
    return load_tokenizer(tmp_path), transformers.ByT5Tokenizer()


def test_byt5_equals_transformers(byt5) -> None:
    ours, theirs = byt5
    for text in [*TEXTS, "a </s> b", "x<extra_id_0>y <pad>"]:
        encoding = ours.encode(text)
        assert encoding.ids == theirs(text)["input_ids"], text
        assert ours.decode(encoding.ids, skip_special=True) == theirs.decode(
            encoding.ids, skip_special_tokens=True
        )
    assert ours.encode("a", "b").ids == theirs("a", "b")["input_ids"]
    assert ours.vocab_size == 384
    assert ours.token_to_id("<extra_id_0>") == theirs.convert_tokens_to_ids("<extra_id_0>")


def test_byt5_offsets_and_streams(byt5) -> None:
    ours, _ = byt5
    text = "é日 x"
    encoding = ours.encode(text)
    spans = [text[a:b] for a, b in encoding.offsets[:-1]]
    assert spans == ["é"] * 2 + ["日"] * 3 + [" ", "x"]
    assert encoding.words == [0, 0, 0, 0, 0, 1, 1, None]
    rng = random.Random(0)
    for _ in range(300):
        ids = [rng.randrange(ours.vocab_size) for _ in range(12)]
        stream = ours.stream(skip_special=False)
        parts = [stream.push(index) for index in ids]
        assert "".join([*parts, stream.flush()]) == ours.decode(ids)
    assert not set(ours.encode("</s><pad>", special=False, parse_special=False).ids) & {0, 1}
