"""SentencePiece families beside the sentencepiece library and transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import sentencepiece
from text_samples import HARD, fuzz, sentencepiece_model, shared_data, visible, write_json
from tokenizers import AddedToken as HubToken

from chumoku.errors import TokenizerError
from chumoku.text import load_tokenizer
from chumoku.text.sentencepieces import PieceModel, model_proto

transformers = pytest.importorskip("transformers")
TEXTS = [*HARD, *fuzz(200)]
LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True}
LLAMA |= {"remove_extra_whitespaces": False}


def llama_folder(folder: Path, **config: object) -> Path:
    (folder / "tokenizer.model").write_bytes(sentencepiece_model("bpe", 700, **LLAMA))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "LlamaTokenizer", **config})
    return folder


def t5_folder(folder: Path, **config: object) -> Path:
    options = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    (folder / "spiece.model").write_bytes(sentencepiece_model("unigram", 400, **options))
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "T5Tokenizer", **config})
    return folder


def test_llama_equals_sentencepiece(tmp_path: Path) -> None:
    ours = load_tokenizer(llama_folder(tmp_path))
    engine = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    for text in TEXTS:
        if any(name in text for name in ("<s>", "</s>", "<unk>")):
            continue
        encoding = ours.encode(text)
        assert encoding.ids == [1, *engine.encode(text)]
        assert ours.decode(encoding.ids, skip_special=True) == engine.decode(encoding.ids[1:])
    assert ours.encode("a", "b").ids == [1, *engine.encode("a"), 1, *engine.encode("b")]


def merges_of(engine: sentencepiece.SentencePieceProcessor) -> list[tuple[str, str]]:
    """BPE merges by score, the way any reader of .model files recovers them."""
    ids = {engine.id_to_piece(n): n for n in range(engine.get_piece_size())}
    found = []
    for piece, index in ids.items():
        if engine.is_control(index) or engine.is_byte(index) or engine.is_unknown(index):
            continue
        local = [
            (ids[piece[:cut]], ids[piece[cut:]], piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in ids and piece[cut:] in ids
        ]
        found += [(-engine.get_score(index), *sorted(local)[n]) for n in range(len(local))]
    return [(left, right) for *_, left, right in sorted(found)]


def hub_llama(folder: Path, *, legacy: bool) -> object:
    engine = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab = {engine.id_to_piece(n): n for n in range(engine.get_piece_size())}
    return transformers.LlamaTokenizer(
        vocab=vocab, merges=merges_of(engine), legacy=legacy, add_bos_token=True
    )


@pytest.mark.parametrize("legacy", [True, False])
def test_llama_legacy_equals_transformers(tmp_path: Path, legacy: bool) -> None:
    ours = load_tokenizer(llama_folder(tmp_path, legacy=legacy))
    theirs = hub_llama(tmp_path, legacy=legacy)
    texts = [t for t in TEXTS if not t.startswith((" ", "<"))]  # see the next test
    texts += ["a<s>b", "the cat</s>the dog</s>sat", "x <s>y"]
    for text in texts:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text
        ids = ours.encode(text).ids
        assert ours.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode(ids) == theirs.decode(ids)
    # Negative control: the two ways differ behind a control token.
    other = hub_llama(tmp_path, legacy=not legacy)
    assert ours.encode("a<s>b").ids != other("a<s>b")["input_ids"]


def test_leading_space_follows_sentencepiece(tmp_path: Path) -> None:
    """transformers' Metaspace drops the dummy prefix in front of a space; Meta's code does not."""
    ours = load_tokenizer(llama_folder(tmp_path, legacy=False))
    engine = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert ours.encode(" hi").ids == [1, *engine.encode(" hi")]


def test_llama_ends_and_prefix(tmp_path: Path) -> None:
    ours = load_tokenizer(llama_folder(tmp_path, add_bos_token=False, add_eos_token=True))
    assert (ours.encode("a").ids[0] != 1, ours.encode("a").ids[-1]) == (True, 2)
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (1, 2, 0, None)


def test_t5_equals_transformers(tmp_path: Path) -> None:
    ours = load_tokenizer(t5_folder(tmp_path))
    engine = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    size = engine.get_piece_size()
    assert ours.vocab_size == size + 100
    assert ours.token_to_id("<extra_id_0>") == size + 99
    assert ours.token_to_id("<extra_id_99>") == size
    for text in TEXTS:
        if "<" not in text:
            assert ours.encode(text).ids == [*engine.encode(text), 1]
    charsmap = _charsmap((tmp_path / "spiece.model").read_bytes())
    scores = [(engine.id_to_piece(n), engine.get_score(n)) for n in range(size)]
    scores += [(f"<extra_id_{n}>", 0.0) for n in range(99, -1, -1)]
    theirs = transformers.T5Tokenizer(vocab=scores, _spm_precompiled_charsmap=charsmap)
    texts = [
        "the <extra_id_0> sat on<extra_id_1>",
        "a cat</s> b",
        *(t for t in HARD if "<" not in t),
    ]
    # transformers normalises by grapheme, SentencePiece does not: ﾊﾟ differs there.
    for text in [t for t in texts if "ﾊﾟ" not in t]:
        ids = ours.encode(text).ids
        assert ids == theirs(text)["input_ids"], text
        assert ours.decode(ids) == theirs.decode(ids)
    assert ours.encode("a", "b").ids == theirs("a", "b")["input_ids"]


def _charsmap(proto: bytes) -> bytes:
    from chumoku.text.sentencepieces import fields

    spec = next(v for n, v in fields(proto, "") if n == 3)
    return next(v for n, v in fields(spec, "") if n == 2)


def test_mt5_holds_its_own_sentinels(tmp_path: Path) -> None:
    options = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1}
    symbols = tuple(f"▁<extra_id_{n}>" for n in range(3))
    model = sentencepiece_model("unigram", 400, user_defined_symbols=",".join(symbols), **options)
    (tmp_path / "spiece.model").write_bytes(model)
    write_json(tmp_path / "tokenizer_config.json", {"extra_ids": 0})
    ours = load_tokenizer(tmp_path, {"model_type": "mt5"})
    assert ours.vocab_size == PieceModel(model, "").size
    assert "▁<extra_id_1>" in ours.encode("a <extra_id_1>").tokens
    assert ours.token_to_id("▁<extra_id_1>") not in ours.encode_plain("a <extra_id_1>")


def test_offsets_point_at_the_text_as_written(tmp_path: Path) -> None:
    llama = load_tokenizer(llama_folder(tmp_path))
    folder = tmp_path / "t5"
    folder.mkdir()
    t5 = load_tokenizer(t5_folder(folder))
    for text in TEXTS:
        for tokenizer in (llama, t5):
            encoding = tokenizer.encode(text)
            last = 0
            for token, (start, end), special in zip(
                encoding.tokens, encoding.offsets, encoding.special, strict=True
            ):
                if special:
                    assert (start, end) == (0, 0)
                    continue
                assert 0 <= last <= end <= len(text)
                last = end
                if start == end or token.startswith("<0x") or token == "<unk>":
                    continue
                surface, piece = visible(text[start:end]), visible(token.replace("▁", " "))
                assert piece in surface, text


def test_byte_pieces_and_expansions_share_their_character(tmp_path: Path) -> None:
    llama = load_tokenizer(llama_folder(tmp_path))
    encoding = llama.encode("x𐍈y")
    spans = [o for t, o in zip(encoding.tokens, encoding.offsets, strict=True) if "<0x" in t]
    assert spans == [(1, 2)] * 4


def test_streams(tmp_path: Path) -> None:
    llama = load_tokenizer(llama_folder(tmp_path))
    rng = random.Random(1)
    lists = [llama.encode(text).ids for text in TEXTS]
    lists += [[rng.randrange(llama.vocab_size) for _ in range(15)] for _ in range(500)]
    for ids in lists:
        for skip in (True, False):
            stream = llama.stream(skip_special=skip)
            parts = [stream.push(index) for index in ids]
            assert "".join([*parts, stream.flush()]) == llama.decode(ids, skip_special=skip)
    stream = llama.stream()
    parts = [stream.push(index) for index in llama.encode("x𐍈y 👍🏽").ids]
    assert "\ufffd" not in "".join(parts)
    assert "".join(parts) + stream.flush() == "x𐍈y 👍🏽"


def test_words_follow_the_space_mark(tmp_path: Path) -> None:
    llama = load_tokenizer(llama_folder(tmp_path))
    encoding = llama.encode("the cat sat</s>on")
    words = {}
    for word, (start, end) in zip(encoding.words, encoding.offsets, strict=True):
        if word is not None:
            words.setdefault(word, []).append((start, end))
    text = "the cat sat</s>on"
    spans = [text[w[0][0] : w[-1][1]].strip() for w in words.values()]
    assert spans == ["the", "cat", "sat", "</s>", "on"]


def test_a_model_rebuilt_in_memory_is_the_same(tmp_path: Path) -> None:
    model = PieceModel(sentencepiece_model("bpe", 700, **LLAMA), "test")
    engine = model._with_prefix
    kinds = [1] * model.size
    kinds[model.unk_id] = 2
    for index in range(model.size):
        kinds[index] = 3 if index in model.controls else 6 if index in model.bytes else kinds[index]
    scores = [engine.get_score(n) for n in range(model.size)]
    again = model_proto(model.pieces, scores, kinds, dummy_prefix=True, byte_fallback=True)
    rebuilt = PieceModel(again, "memory")
    for text in TEXTS:
        assert rebuilt.encode(text) == model.encode(text)
    bare = model_proto(model.pieces, scores, kinds, dummy_prefix=False, byte_fallback=True)
    assert PieceModel(bare, "memory").encode("the") != model.encode("the")


def test_plain_text_never_becomes_a_control_token(tmp_path: Path) -> None:
    symbols = "<|im_start|>,<|im_end|>"
    model = sentencepiece_model("bpe", 700, user_defined_symbols=symbols, **LLAMA)
    (tmp_path / "tokenizer.model").write_bytes(model)
    ours = load_tokenizer(tmp_path, {"model_type": "llama"})
    controls = {token.id for token in ours.controls}
    text = "a<|im_start|>user</s><s> <|im_end|>"
    assert controls & set(ours.encode(text, special=False).ids)
    plain = ours.encode(text, special=False, parse_special=False)
    assert not controls & set(plain.ids)
    assert ours.decode(plain.ids) == text


def test_added_tokens_strip_the_space_beside_them(tmp_path: Path) -> None:
    added = {"700": {"content": "<x>", "lstrip": True, "rstrip": True, "special": True}}
    size = PieceModel(sentencepiece_model("bpe", 700, **LLAMA), "").size
    added = {str(size): added["700"]}
    ours = load_tokenizer(llama_folder(tmp_path, added_tokens_decoder=added))
    plain = load_tokenizer(llama_folder(tmp_path))
    ids = plain.encode("the", special=False).ids
    assert ours.encode("the  <x>  the", special=False).ids == [*ids, size, *ids]
    assert HubToken("<x>", lstrip=True).lstrip  # the flag means the same as the library's


@pytest.mark.parametrize("cut", [0, 1, 50, 1000, -1])
def test_damaged_models_are_typed_errors(tmp_path: Path, cut: int) -> None:
    data = sentencepiece_model("unigram", 400)
    (tmp_path / "spiece.model").write_bytes(data[:cut])
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path, {"model_type": "t5"})


def test_published_test_models_equal_sentencepiece() -> None:
    folder = shared_data("tokenizers") / "sentencepiece"
    for path in sorted(folder.glob("*.model")):
        model = PieceModel(path.read_bytes(), path)
        engine = sentencepiece.SentencePieceProcessor(model_file=str(path))
        for text in TEXTS:
            assert [piece.id for piece in model.encode(text)] == engine.encode(text)
