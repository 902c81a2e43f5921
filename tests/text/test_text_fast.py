"""Families that run in the `tokenizers` library, beside transformers' classes."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from text_samples import HARD, bert_vocab, byte_bpe, fuzz, shared_data, write_json

from chumoku.errors import InputError, TokenizerError
from chumoku.text import export_tokenizer_json, files, load_tokenizer
from chumoku.text.families import character_tokenizer
from chumoku.text.fast import FastTokenizer

transformers = pytest.importorskip("transformers")
TEXTS = [*HARD, *fuzz(200)]


def same(ours: object, theirs: object, texts: list[str], *, offsets: bool = True) -> None:
    for text in texts:
        mine = ours.encode(text)
        reference = theirs(text, return_offsets_mapping=True)
        assert mine.ids == reference["input_ids"], text
        assert mine.tokens == theirs.convert_ids_to_tokens(mine.ids)
        if offsets:
            assert mine.offsets == [tuple(pair) for pair in reference["offset_mapping"]]
        for skip in (True, False):
            assert ours.decode(mine.ids, skip_special=skip) == theirs.decode(
                mine.ids, skip_special_tokens=skip
            )


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    (tmp_path / "vocab.txt").write_text("\n".join(bert_vocab()) + "\n", "utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False},
        {"clean_up_tokenization_spaces": True, "model_max_length": 64},
        {"mask_token": "<hole>", "additional_special_tokens": ["<x>"]},
        {
            "added_tokens_decoder": {
                "4": {"content": "[MASK]", "lstrip": True, "special": True},
                "250": {"content": "<ent>", "special": False},
            }
        },
    ],
)
def test_wordpiece_equals_transformers(bert: Path, options: dict[str, object]) -> None:
    write_json(bert / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer", **options})
    ours = load_tokenizer(bert, {"model_type": "bert"})
    theirs = transformers.BertTokenizer.from_pretrained(bert)
    texts = TEXTS if not options else TEXTS[:60]
    if "added_tokens_decoder" in options:  # transformers renumbers a token beyond a gap
        assert ours.token_to_id("<ent>") == 250
        assert ours.encode("a<ent>b").ids[2] == 250
        return
    same(ours, theirs, texts)
    pair = ours.encode("hello [MASK]", "the cat")
    assert pair.ids == theirs("hello [MASK]", "the cat")["input_ids"]
    assert pair.segments == theirs("hello [MASK]", "the cat")["token_type_ids"]
    assert pair.sequences == theirs("hello [MASK]", "the cat").sequence_ids()
    assert ours.max_length == options.get("model_max_length")
    assert ours.mask_id == theirs.mask_token_id


def test_wordpiece_words_and_plain_text(bert: Path) -> None:
    tokenizer = load_tokenizer(bert)
    encoding = tokenizer.encode("unaffable [MASK] cats")
    assert encoding.tokens == ["[CLS]", "un", "##aff", "##able", "[MASK]", "cat", "##s", "[SEP]"]
    assert encoding.words == [None, 0, 0, 0, 1, 2, 2, None]
    assert encoding.special == [True, *[False] * 6, True]
    plain = tokenizer.encode("a [MASK] b", parse_special=False)
    assert tokenizer.mask_id not in plain.ids
    assert plain.tokens[2:-2] == ["[", "m", "##a", "##s", "##k", "]"]


def test_whitespace_wordpiece_cannot_smuggle_a_control_token(tmp_path: Path) -> None:
    """Here [MASK] is an ordinary word of the model, so hiding the added token is not enough."""
    letters = [*"abk[MASK]", *("##" + c for c in "[MASK]abk")]
    vocab = {t: n for n, t in enumerate(dict.fromkeys(["[UNK]", "[MASK]", *letters]))}
    spec = {
        "version": "1.0",
        "added_tokens": [
            {"id": 1, "content": "[MASK]", "special": True, "single_word": False}
            | {"lstrip": False, "rstrip": False, "normalized": False}
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordPiece",
            "vocab": vocab,
            "unk_token": "[UNK]",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
        },
    }
    write_json(tmp_path / "tokenizer.json", spec)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("a [MASK] b").ids.count(1) == 1
    plain = tokenizer.encode("a [MASK] b [MASK]", parse_special=False)
    assert 1 not in plain.ids
    assert 1 not in tokenizer.encode_plain("[MASK]")
    # Negative control: the library alone lets it through.
    assert 1 in tokenizer._plain_engine().encode("a [MASK] b", add_special_tokens=False).ids


@pytest.fixture(scope="module")
def bpe() -> tuple[dict[str, int], list[tuple[str, str]]]:
    return byte_bpe([t for t in HARD if t])


def write_bpe(folder: Path, bpe: tuple[dict[str, int], list[tuple[str, str]]], *more: str) -> None:
    vocab = dict(bpe[0])
    for token in more:
        vocab[token] = len(vocab)
    write_json(folder / "vocab.json", vocab)
    lines = ["#version: 0.2", *(" ".join(merge) for merge in bpe[1])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", "utf-8")


@pytest.mark.parametrize("options", [{}, {"add_prefix_space": True}, {"add_bos_token": True}])
def test_gpt2_equals_transformers(tmp_path: Path, bpe, options) -> None:
    write_bpe(tmp_path, bpe, "<|endoftext|>")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **options})
    ours = load_tokenizer(tmp_path, {"model_type": "gpt2"})
    theirs = transformers.GPT2Tokenizer.from_pretrained(tmp_path)
    same(ours, theirs, TEXTS)
    assert ours.eos_id == theirs.eos_token_id
    for text in TEXTS:
        ids = ours.encode(text, special=False).ids
        assert ours.decode(ids) == (
            " " * bool("add_prefix_space" in options and text and text[0] != " ") + text
        )


def test_roberta_equals_transformers(tmp_path: Path, bpe) -> None:
    write_bpe(tmp_path, bpe, "<s>", "<pad>", "</s>", "<unk>", "<mask>")
    write_json(tmp_path / "tokenizer_config.json", {"tokenizer_class": "RobertaTokenizer"})
    ours = load_tokenizer(tmp_path)
    theirs = transformers.RobertaTokenizer.from_pretrained(tmp_path)
    same(ours, theirs, TEXTS)
    assert ours.encode("a", "b").ids == theirs("a", "b")["input_ids"]
    assert set(ours.encode("a", "b").segments) == {0}
    assert ours.encode("it is <mask>").tokens[-2:] == ["<mask>", "</s>"]
    assert "Ġ" not in ours.encode("it is <mask>").tokens[-3:-2]


def test_byte_level_round_trips_all_of_unicode(tmp_path: Path, bpe) -> None:
    write_bpe(tmp_path, bpe)
    tokenizer = load_tokenizer(tmp_path, {"model_type": "gpt2"})
    for first in range(0, 0x110000, 0x1000):
        codes = [c for c in range(first, first + 0x1000, 7) if not 0xD800 <= c < 0xE000]
        text = "".join(map(chr, codes))
        if text:
            assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_added_token_outside_the_byte_alphabet_decodes_as_written(tmp_path: Path, bpe) -> None:
    """The library turns an added 'č' into a carriage return (its issue 1996)."""
    write_bpe(tmp_path, bpe)
    added = {"added_tokens_decoder": {str(len(bpe[0])): {"content": "<čx>", "special": True}}}
    write_json(tmp_path / "tokenizer_config.json", added)
    tokenizer = load_tokenizer(tmp_path, {"model_type": "gpt2"})
    ids = tokenizer.encode("a <čx> b").ids
    assert tokenizer.decode(ids) == "a <čx> b"
    assert tokenizer.engine.decode(ids, skip_special_tokens=False) != "a <čx> b"


def test_tokenizer_json_with_options_equals_the_same_folder_without_it(
    bert: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain = load_tokenizer(bert)
    text = export_tokenizer_json(plain)
    folder = tmp_path_factory.mktemp("json")
    (folder / "tokenizer.json").write_text(text, "utf-8")
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "BertTokenizerFast"})
    again = load_tokenizer(folder)
    assert [again.encode(t) for t in TEXTS] == [plain.encode(t) for t in TEXTS]
    cased = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    write_json(folder / "tokenizer_config.json", cased)
    assert load_tokenizer(folder).encode("CAT").tokens != again.encode("CAT").tokens


def test_tokenizer_json_ends_follow_add_bos_and_add_eos(tmp_path: Path, bpe) -> None:
    write_bpe(tmp_path, bpe, "<s>", "</s>")
    text = export_tokenizer_json(load_tokenizer(tmp_path, {"model_type": "gpt2"}))
    (tmp_path / "vocab.json").unlink()
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True, "add_eos_token": True}
    write_json(tmp_path / "tokenizer_config.json", config)
    ours = load_tokenizer(tmp_path, {"model_type": "llama"})
    bare = ours.encode("the", special=False).ids
    bos, eos = ours.bos_id, ours.eos_id
    assert ours.encode("the").ids == [bos, *bare, eos]
    assert ours.encode("the", "the").ids == [bos, *bare, eos, bos, *bare, eos]
    # For other classes the file's own template has the last word, as in transformers.
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).encode("the").ids == theirs("the")["input_ids"] == bare


def test_named_chat_templates_and_the_template_file(bert: Path) -> None:
    templates = [{"name": "tool", "template": "T"}, {"name": "default", "template": "D"}]
    write_json(bert / "tokenizer_config.json", {"chat_template": templates})
    assert load_tokenizer(bert).chat_template == "D"
    (bert / "chat_template.jinja").write_text("F", "utf-8")
    assert load_tokenizer(bert).chat_template == "F"


def test_characters() -> None:
    tokenizer = character_tokenizer("hello\nworld 日本", specials=["<pad>", "<eos>"])
    encoding = tokenizer.encode("hé\nllo日")
    assert encoding.tokens == ["h", "<unk>", "\n", "l", "l", "o", "日"]
    assert encoding.offsets == [(n, n + 1) for n in range(7)]
    assert tokenizer.decode(tokenizer.encode("world\n日本").ids) == "world\n日本"
    assert (tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id) == (0, 1, 2)
    again = FastTokenizer(type(tokenizer.engine).from_str(export_tokenizer_json(tokenizer)), {})
    assert again.encode("held").ids == tokenizer.encode("held").ids


def test_lone_surrogates_and_other_types_are_input_errors(bert: Path) -> None:
    tokenizer = load_tokenizer(bert)
    for text in ("\ud800", "a\udfff", None, 3, b"x"):
        with pytest.raises(InputError):
            tokenizer.encode(text)
    with pytest.raises(InputError):
        tokenizer.id_to_token(10**9)
    assert tokenizer.token_to_id("nothing of the kind") is None


def test_no_files_is_none_and_half_a_pair_is_an_error(tmp_path: Path) -> None:
    assert load_tokenizer(tmp_path) is None
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


def test_published_vocabularies_equal_transformers() -> None:
    folder = shared_data("tokenizers")
    theirs = transformers.BertTokenizer.from_pretrained(folder / "bert-uncased")
    same(load_tokenizer(folder / "bert-uncased"), theirs, TEXTS)
    gpt2 = load_tokenizer(folder / "gpt2", {"model_type": "gpt2"})
    same(gpt2, transformers.GPT2Tokenizer.from_pretrained(folder / "gpt2"), TEXTS)
    assert gpt2.encode("Hello world").ids == [15496, 995]


def test_streams_join_to_the_decoded_text(bert: Path, tmp_path_factory, bpe) -> None:
    folder = tmp_path_factory.mktemp("bpe")
    write_bpe(folder, bpe, "<|endoftext|>")
    write_json(bert / "tokenizer_config.json", {"clean_up_tokenization_spaces": True})
    rng = random.Random(3)
    for tokenizer in (load_tokenizer(bert), load_tokenizer(folder, {"model_type": "gpt2"})):
        lists = [tokenizer.encode(text).ids for text in TEXTS]
        lists += [[rng.randrange(tokenizer.vocab_size + 3) for _ in range(12)] for _ in range(300)]
        for ids in lists:
            for skip in (True, False):
                stream = tokenizer.stream(skip_special=skip)
                parts = [stream.push(index) for index in ids]
                assert "".join([*parts, stream.flush()]) == tokenizer.decode(ids, skip_special=skip)
        whole = tokenizer.stream()
        parts = [whole.push(index) for index in tokenizer.encode("日本語😀").ids]
        assert all("\ufffd" not in part for part in parts)


def test_library_decoders_equal_the_librarys_own() -> None:
    """Each decoder that chumoku carries out itself gives what the library gives."""
    pieces = ["<unk>", "▁a", "b", "▁", "<0xE6>", "<0x97>", "<0xA5>", "c▁d", "##x", "▁▁e", "."]
    decoders = [
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": True},
        {"type": "WordPiece", "prefix": "##", "cleanup": True},
        {"type": "Fuse"},
        None,
        {"type": "BPEDecoder", "suffix": "</w>"},
        {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    ]
    rng = random.Random(0)
    from chumoku.text import engine as engines

    for decoder in decoders:
        spec = {"version": "1.0", "added_tokens": [], "decoder": decoder}
        vocab = {piece: n for n, piece in enumerate(pieces)}
        spec["model"] = {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"}
        tokenizer = FastTokenizer(engines.build(json.loads(json.dumps(spec)), "test"), {})
        for _ in range(200):
            ids = [rng.randrange(len(pieces)) for _ in range(rng.randint(0, 7))]
            if decoder and decoder["type"] == "Sequence":
                ids = [i for i in ids if i not in (4, 5, 6)] + [4, 5, 6]  # whole characters
            assert tokenizer.decode(ids) == tokenizer.engine.decode(ids)


def test_numbers_that_no_reader_takes(tmp_path: Path) -> None:
    path = tmp_path / "vocab.json"
    for digits in (41, 5000):
        path.write_text('{"a": ' + "9" * digits + "}")
        with pytest.raises(TokenizerError):
            files.read_vocab_json(path)
    path.write_text('{"a": 0, "b": 1}')
    assert files.read_vocab_json(path) == {"a": 0, "b": 1}
    for wrong in ('{"a": 0, "b": 0}', '{"a": -1}', '{"a": true}', '{"a": 1.0}', '{"a": 9999999}'):
        path.write_text(wrong)
        with pytest.raises(TokenizerError):
            files.read_vocab_json(path)
