"""GGUF files as chumoku writes them: read by the `gguf` package, and by chumoku again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import layout_files as files
import numpy as np
import pytest
import safetensors.torch
import sentencepiece
import tokenizers
import torch
import transformers
from gguf import GGMLQuantizationType
from layout_files import GGUF_GPT2, GGUF_LLAMA, as_stored, logits, plain, published
from parity.harness import difference, randomise
from text.text_samples import HARD, byte_bpe, fuzz, sentencepiece_model
from tokenizers import pre_tokenizers, processors

import chumoku
from chumoku.checkpoints import assign
from chumoku.checkpoints.gguf import read_gguf
from chumoku.errors import ChumokuError, ConfigError, InputError, TokenizerError
from chumoku.gguf_export import FILE_TYPES, save_gguf

TEXTS = [*HARD, *fuzz(20), "3 + 44 = 1234567", "<|im_start|>user\nhi 5<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% endfor %}"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ROWS = 620


def bpe_engine(pre: str) -> tokenizers.Tokenizer:
    vocab, merges = byte_bpe([t for t in HARD if t], 600)
    ignore = pre == "llama3"
    engine = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, merges, ignore_merges=ignore))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not ignore)
    if pre == "gpt-2":
        engine.pre_tokenizer = byte_level
    elif pre == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        engine.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])
    else:
        split = pre_tokenizers.Split(tokenizers.Regex(LLAMA3), "isolated")
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    engine.decoder = tokenizers.decoders.ByteLevel()
    engine.add_special_tokens(SPECIALS)
    engine.add_tokens(["<think>"])
    if pre == "llama3":
        bos = ("<|endoftext|>", engine.token_to_id("<|endoftext|>"))
        engine.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", pair="<|endoftext|> $A $B", special_tokens=[bos]
        )
    return engine


def write_bpe(folder: Path, pre: str) -> None:
    bpe_engine(pre).save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|pad|>",
            "chat_template": TEMPLATE,
        },
    )
    ends = [600, 602]
    write_json(folder / "generation_config.json", {"bos_token_id": 600, "eos_token_id": ends})


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), "utf-8")


def write_pieces(folder: Path) -> bytes:
    raw = sentencepiece_model(
        "bpe",
        500,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=0.98,
        user_defined_symbols="<user>",
    )
    (folder / "tokenizer.model").write_bytes(raw)
    size = sentencepiece.SentencePieceProcessor(model_proto=raw).get_piece_size()
    added = {str(size + n): {"content": t, "special": True} for n, t in enumerate(SPECIALS)}
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "LlamaTokenizer",
            "bos_token": "<s>",
            "eos_token": "</s>",
            "pad_token": "<|pad|>",
            "added_tokens_decoder": added,
            "chat_template": TEMPLATE,
        },
    )
    write_json(folder / "generation_config.json", {"eos_token_id": [2, size + 2]})
    return raw


def hub(folder: Path, kind: str, **changes: Any) -> Any:
    """A folder with a model of transformers, its weights random."""
    make = files.llama if kind == "llama" else files.gpt2
    theirs = make(11, vocab_size=ROWS, **changes)
    theirs.config.architectures = [type(theirs).__name__]
    theirs.config.save_pretrained(folder)
    tensors = {n: t.clone() for n, t in theirs.state_dict().items()}
    if theirs.config.tie_word_embeddings:
        del tensors["lm_head.weight"]
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    return theirs


NAMES = {"llama": GGUF_LLAMA, "gpt2": GGUF_GPT2}


def expected_storage(name: str, array: np.ndarray, storage: str) -> str:
    if array.ndim < 2 or name == "position_embd.weight" or storage == "F32":
        return "F32"
    if storage.startswith("Q4") and name in ("token_embd.weight", "output.weight"):
        return "Q8_0"
    return storage


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", list(FILE_TYPES))
def test_tensors_are_those_of_the_gguf_package(kind: str, storage: str, tmp_path: Path) -> None:
    theirs = hub(tmp_path, kind)
    save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", storage)
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    expected = published(theirs, NAMES[kind])
    known = set(gguf.MODEL_TENSORS[getattr(gguf.MODEL_ARCH, kind.upper())])
    suffixes = {gguf.TENSOR_NAMES[t] for t in known}
    assert {t.name for t in reader.tensors} == set(expected)
    held: files.Stored = {}
    for tensor in reader.tensors:
        array = expected[tensor.name]
        wanted = expected_storage(tensor.name, array, storage)
        assert tensor.tensor_type.name == wanted, tensor.name
        assert tensor.shape.tolist() == list(array.shape)[::-1], tensor.name
        raw = gguf.quants.quantize(array, GGMLQuantizationType[wanted])
        assert np.array_equal(tensor.data.view(np.uint8), raw.view(np.uint8)), tensor.name
        layer = [part for part in tensor.name.split(".")[:-1] if not part.isdigit()]
        assert ".".join(layer).replace("blk.", "blk.{bid}.") in suffixes, tensor.name
        held[tensor.name] = (np.array(tensor.data), wanted)
    files.from_plain(theirs, plain(held), NAMES[kind])
    loaded = chumoku.load(tmp_path / "m.gguf")
    assert difference(logits(loaded.model), logits(theirs)) < 1e-5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_float32_changes_no_bit_of_the_answer(kind: str, tmp_path: Path) -> None:
    hub(tmp_path, kind)
    first = chumoku.load(tmp_path)
    save_gguf(first, tmp_path / "m.gguf", "F32")
    second = chumoku.load(tmp_path / "m.gguf")
    assert torch.equal(logits(second.model), logits(first.model))
    if kind == "llama":
        names = {n: n for n in assign.shared_names(first.model)}
        assert all(
            torch.equal(first.model.state_dict()[n], second.model.state_dict()[n]) for n in names
        )


def test_rows_must_be_permuted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub(tmp_path, "llama")
    first = chumoku.load(tmp_path)
    monkeypatch.setattr(assign, "halves_to_pairs", lambda rows, heads: rows)
    save_gguf(first, tmp_path / "m.gguf", "F32")
    second = chumoku.load(tmp_path / "m.gguf")
    assert difference(logits(second.model), logits(first.model)) > 1e-2


# What llama.cpp reads with a fixed kind.
KINDS = {
    "general.architecture": "STRING",
    "general.name": "STRING",
    "general.type": "STRING",
    "general.quantization_version": "UINT32",
    "general.file_type": "UINT32",
    "llama.vocab_size": "UINT32",
    "llama.context_length": "UINT32",
    "llama.embedding_length": "UINT32",
    "llama.block_count": "UINT32",
    "llama.feed_forward_length": "UINT32",
    "llama.rope.dimension_count": "UINT32",
    "llama.attention.key_length": "UINT32",
    "llama.attention.value_length": "UINT32",
    "llama.attention.head_count": "UINT32",
    "llama.attention.head_count_kv": "UINT32",
    "llama.attention.layer_norm_rms_epsilon": "FLOAT32",
    "llama.rope.freq_base": "FLOAT32",
    "llama.rope.scaling.type": "STRING",
    "llama.rope.scaling.factor": "FLOAT32",
    "llama.rope.scaling.original_context_length": "UINT32",
    "gpt2.vocab_size": "UINT32",
    "gpt2.context_length": "UINT32",
    "gpt2.embedding_length": "UINT32",
    "gpt2.block_count": "UINT32",
    "gpt2.feed_forward_length": "UINT32",
    "gpt2.attention.head_count": "UINT32",
    "gpt2.attention.layer_norm_epsilon": "FLOAT32",
    "tokenizer.ggml.model": "STRING",
    "tokenizer.ggml.pre": "STRING",
    "tokenizer.ggml.tokens": "ARRAY STRING",
    "tokenizer.ggml.scores": "ARRAY FLOAT32",
    "tokenizer.ggml.token_type": "ARRAY INT32",
    "tokenizer.ggml.merges": "ARRAY STRING",
    "tokenizer.ggml.bos_token_id": "UINT32",
    "tokenizer.ggml.eos_token_id": "UINT32",
    "tokenizer.ggml.eot_token_id": "UINT32",
    "tokenizer.ggml.eom_token_id": "UINT32",
    "tokenizer.ggml.unknown_token_id": "UINT32",
    "tokenizer.ggml.padding_token_id": "UINT32",
    "tokenizer.ggml.add_bos_token": "BOOL",
    "tokenizer.ggml.add_eos_token": "BOOL",
    "tokenizer.ggml.add_space_prefix": "BOOL",
    "tokenizer.chat_template": "STRING",
}


def metadata(path: Path) -> dict[str, Any]:
    """Values by `gguf`; every kind is the one that llama.cpp reads, every key one that it knows."""
    found = {}
    for key, field in gguf.GGUFReader(path).fields.items():
        if key.startswith("GGUF."):
            continue
        kinds = [t.name for t in field.types[:2]]
        assert " ".join(kinds) == KINDS[key], key
        found[key] = field.contents()
    assert found["general.quantization_version"] == gguf.GGML_QUANT_VERSION
    return found


def test_metadata_of_llama(tmp_path: Path) -> None:
    scaling = {"rope_type": "linear", "factor": 2}
    hub(tmp_path, "llama", rope_parameters=scaling | {"rope_theta": 10000})
    write_bpe(tmp_path, "smollm")
    save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", "Q4_1")
    found = metadata(tmp_path / "m.gguf")
    told = {key: found[f"llama.{key}"] for key in ("context_length", "embedding_length")}
    assert told == {"context_length": 64, "embedding_length": 64}
    assert found["llama.rope.dimension_count"] == 16
    assert (found["llama.attention.head_count"], found["llama.attention.head_count_kv"]) == (4, 2)
    assert found["llama.rope.freq_base"] == 10000
    assert (found["llama.rope.scaling.type"], found["llama.rope.scaling.factor"]) == ("linear", 2)
    assert found["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert found["general.file_type"] == gguf.LlamaFileType.MOSTLY_Q4_1
    assert len(found["tokenizer.ggml.tokens"]) == found["llama.vocab_size"] == ROWS


def test_factors_of_llama_3_1(tmp_path: Path) -> None:
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0} | {
        "high_freq_factor": 2.0,
        "original_max_position_embeddings": 32,
    }
    theirs = hub(tmp_path, "llama", rope_scaling=scaling, rope_theta=100.0)
    save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", "F16")
    metadata(tmp_path / "m.gguf")
    tensor = next(
        t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight"
    )
    assert tensor.tensor_type.name == "F32"
    rotary = theirs.model.rotary_emb
    base = rotary.config.rope_parameters["rope_theta"] ** -(np.arange(0, 16, 2) / 16)
    assert np.allclose(tensor.data, base / rotary.inv_freq.numpy(), rtol=1e-6)
    assert 1 == tensor.data.min() < tensor.data.max() == 8
    ids = torch.randint(0, 40, (1, 60), generator=torch.Generator().manual_seed(3))
    again = chumoku.load(tmp_path / "m.gguf")
    assert difference(logits(again.model, ids), logits(theirs, ids)) < 2e-3
    save_gguf(again, tmp_path / "n.gguf", "stored")
    assert torch.equal(
        logits(chumoku.load(tmp_path / "n.gguf").model, ids), logits(again.model, ids)
    )


# ---- tokenizers ----


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama3"])
def test_byte_level_tokenizers(kind: str, pre: str, tmp_path: Path) -> None:
    hub(tmp_path, kind)
    write_bpe(tmp_path, pre)
    first = chumoku.load(tmp_path)
    save_gguf(first, tmp_path / "m.gguf", "F16")
    found = metadata(tmp_path / "m.gguf")
    assert found["tokenizer.ggml.pre"] == pre
    assert found["tokenizer.ggml.model"] == "gpt2"
    assert found["tokenizer.ggml.add_bos_token"] == (pre == "llama3")
    types = found["tokenizer.ggml.token_type"]
    assert types[600:605] == [gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.USER_DEFINED]
    assert set(types[605:]) == {gguf.TokenType.UNUSED}
    assert found["tokenizer.ggml.tokens"][600:605] == [*SPECIALS, "<think>"]
    assert (found["tokenizer.ggml.eos_token_id"], found["tokenizer.ggml.eot_token_id"]) == (
        600,
        602,
    )
    assert found["tokenizer.chat_template"] == TEMPLATE
    same_tokenizer(first, chumoku.load(tmp_path / "m.gguf"), tmp_path)
    engine = bpe_engine(pre)
    for text in TEXTS:
        assert first.tokenizer.encode(text).ids == engine.encode(text).ids


def same_tokenizer(first: Any, second: Any, folder: Path) -> None:
    """The same ids and text, template and ends: in the GGUF file, and saved from it for the hub."""
    chumoku.save(second, folder / "back")
    for other in (second, chumoku.load(folder / "back")):
        for text in TEXTS:
            ids = first.tokenizer.encode(text).ids
            assert other.tokenizer.encode(text).ids == ids, text
            plainly = first.tokenizer.encode(text, parse_special=False).ids
            assert other.tokenizer.encode(text, parse_special=False).ids == plainly, text
            assert other.tokenizer.decode(ids) == first.tokenizer.decode(ids), text
            bare = other.tokenizer.decode(ids, skip_special=True)
            assert bare == first.tokenizer.decode(ids, skip_special=True), text
        assert other.tokenizer.chat_template == first.tokenizer.chat_template == TEMPLATE
        for role in ("bos_id", "eos_id", "pad_id"):
            assert getattr(other.tokenizer, role) == getattr(first.tokenizer, role) is not None
        assert other.generation["eos_token_id"] == first.generation["eos_token_id"]


def test_a_digit_rule_that_is_lost_is_seen(tmp_path: Path) -> None:
    hub(tmp_path, "llama")
    write_bpe(tmp_path, "smollm")
    first = chumoku.load(tmp_path)
    write_bpe(tmp_path, "gpt-2")
    other = chumoku.load(tmp_path)
    assert any(first.tokenizer.encode(t).ids != other.tokenizer.encode(t).ids for t in TEXTS)


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece(prefix: bool, tmp_path: Path) -> None:
    hub(tmp_path, "llama")
    raw = write_pieces(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    write_json(tmp_path / "tokenizer_config.json", settings | {"add_prefix_space": prefix})
    first = chumoku.load(tmp_path)
    save_gguf(first, tmp_path / "m.gguf", "F32")
    found = metadata(tmp_path / "m.gguf")
    peer = sentencepiece.SentencePieceProcessor(model_proto=raw)
    size = peer.get_piece_size()
    assert size + len(SPECIALS) < ROWS
    assert found["tokenizer.ggml.model"] == "llama"
    tokens, types = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[:size] == [peer.id_to_piece(n) for n in range(size)]
    assert tokens[size : size + 4] == SPECIALS
    assert found["tokenizer.ggml.scores"][:size] == [peer.get_score(n) for n in range(size)]
    assert types[:3] == [gguf.TokenType.UNKNOWN, *[gguf.TokenType.CONTROL] * 2]
    assert types.count(gguf.TokenType.BYTE) == 256
    assert types[peer.piece_to_id("<user>")] == gguf.TokenType.USER_DEFINED
    assert types[size : size + 5] == [gguf.TokenType.CONTROL] * 4 + [gguf.TokenType.UNUSED]
    assert found["tokenizer.ggml.add_space_prefix"] == prefix
    assert found["tokenizer.ggml.add_bos_token"]
    same_tokenizer(first, chumoku.load(tmp_path / "m.gguf"), tmp_path)
    if prefix:
        for text in ("the cat", "12 hello", "世界"):
            assert first.tokenizer.encode(text).ids == [1, *peer.encode(text)]


def repeated(raw: bytes) -> tokenizers.Tokenizer:
    """A SentencePiece BPE model as the tokenizer.json that LLaMA 2 has beside it."""
    peer = sentencepiece.SentencePieceProcessor(model_proto=raw)
    vocab = {peer.id_to_piece(n): n for n in range(peer.get_piece_size())}
    merges = [
        (-peer.get_score(index), piece[:cut], piece[cut:])
        for piece, index in vocab.items()
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab and not peer.is_byte(index)
    ]
    pairs = [(a, b) for _, a, b in sorted(merges)]
    engine = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab, pairs, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    parts = [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    engine.normalizer = tokenizers.normalizers.Sequence(parts)
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


def test_a_tokenizer_json_that_repeats_a_sentencepiece_model(tmp_path: Path) -> None:
    hub(tmp_path, "llama")
    write_pieces(tmp_path)
    first = chumoku.load(tmp_path)
    repeated(first.tokenizer.model.proto).save(str(tmp_path / "tokenizer.json"))
    fast = chumoku.load(tmp_path)
    assert type(fast.tokenizer) is not type(first.tokenizer)
    save_gguf(fast, tmp_path / "m.gguf", "F32")
    assert metadata(tmp_path / "m.gguf")["tokenizer.ggml.model"] == "llama"
    again = chumoku.load(tmp_path / "m.gguf")
    for text in ("the cat sat", "hello world 12 345", "naïve 世界"):
        assert again.tokenizer.encode(text).ids == first.tokenizer.encode(text).ids


def test_ends_without_a_tokenizer(tmp_path: Path) -> None:
    hub(tmp_path, "gpt2")
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [7, 3, 5], "pad_token_id": 9})
    save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", "F32")
    metadata(tmp_path / "m.gguf")
    again = chumoku.load(tmp_path / "m.gguf")
    assert again.tokenizer is None
    assert again.generation["eos_token_id"] == [7, 3, 5]
    assert again.generation["pad_token_id"] == 9
    write_json(tmp_path / "generation_config.json", {"eos_token_id": [7, 3, 5, 6]})
    with pytest.raises(InputError, match="holds 3 ids"):
        save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", "F32")


# ---- as stored ----


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", ["Q4_K", "Q8_0", "BF16", "F16", "F32"])
def test_as_stored(kind: str, storage: str, tmp_path: Path) -> None:
    wide = {"llama": {"hidden_size": 256, "intermediate_size": 256}, "gpt2": {"n_embd": 256}}
    theirs = (files.llama if kind == "llama" else files.gpt2)(4, **wide[kind])
    stored = as_stored(published(theirs, NAMES[kind]), storage)
    told = {"general.license": "apache-2.0", "general.name": "A Name", "general.file_type": 15}
    files.write_gguf(tmp_path / "a.gguf", theirs, stored, metadata=told)
    for dtype in ("auto", "stored"):
        save_gguf(chumoku.load(tmp_path / "a.gguf", dtype=dtype), tmp_path / "b.gguf", "stored")
        before, after = (gguf.GGUFReader(tmp_path / f"{n}.gguf").tensors for n in "ab")
        found = {t.name: t for t in after}
        for tensor in before:
            other = found.pop(tensor.name)
            assert other.tensor_type == tensor.tensor_type, tensor.name
            assert np.array_equal(other.data, tensor.data), tensor.name
        assert not found
        assert read_gguf(tmp_path / "b.gguf").metadata.items() >= told.items()
    save_gguf(chumoku.load(tmp_path / "a.gguf"), tmp_path / "c.gguf", "F16")
    again = read_gguf(tmp_path / "c.gguf").metadata
    assert again["general.license"] == "apache-2.0"
    assert again["general.file_type"] == gguf.LlamaFileType.MOSTLY_F16


def test_quantised_again_as_something_else(tmp_path: Path) -> None:
    theirs = files.llama(4)
    files.write_gguf(tmp_path / "a.gguf", theirs, as_stored(published(theirs, GGUF_LLAMA), "Q5_0"))
    loaded = chumoku.load(tmp_path / "a.gguf")
    save_gguf(loaded, tmp_path / "b.gguf", "F32")
    again = chumoku.load(tmp_path / "b.gguf")
    assert difference(logits(again.model), logits(loaded.model)) < 1e-5
    types = {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "b.gguf").tensors}
    assert types == {"F32"}


def test_rows_of_no_whole_number_of_blocks_stay_floats(tmp_path: Path) -> None:
    theirs = hub(tmp_path, "llama", hidden_size=48, intermediate_size=64, head_dim=12)
    save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", "Q8_0")
    found = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert found["blk.0.ffn_down.weight"] == "Q8_0"
    assert found["blk.0.attn_q.weight"] == found["token_embd.weight"] == "F16"
    assert difference(logits(chumoku.load(tmp_path / "m.gguf").model), logits(theirs)) < 0.05


# ---- what is refused ----


def refused(folder: Path, error: type[ChumokuError], words: str, storage: str = "F16") -> None:
    with pytest.raises(error, match=words):
        save_gguf(chumoku.load(folder), folder / "m.gguf", storage)
    assert not list(folder.glob("*.gguf*"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention_bias": True}, "biases"),
        ({"mlp_bias": True}, "biases"),
        ({"hidden_act": "gelu"}, "only SiLU"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "'dynamic' is not written"),
        (
            {
                "rope_scaling": {"rope_type": "yarn", "factor": 2.0}
                | {"original_max_position_embeddings": 32}
            },
            "'yarn' is not written",
        ),
    ],
)
def test_a_llama_that_gguf_cannot_describe(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    hub(tmp_path, "llama", **changes)
    refused(tmp_path, ConfigError, words)


@pytest.mark.parametrize("window", [None, 8])
def test_mistral_is_a_llama_without_its_window(window: int | None, tmp_path: Path) -> None:
    config = transformers.MistralConfig(
        vocab_size=40,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=64,
        sliding_window=window,
        head_dim=16,
    )
    theirs = transformers.MistralForCausalLM(config)
    randomise(theirs, 2)
    theirs.eval().save_pretrained(tmp_path)
    if window:
        refused(tmp_path, ConfigError, "no sliding window")
        return
    save_gguf(chumoku.load(tmp_path), tmp_path / "m.gguf", "F32")
    assert metadata(tmp_path / "m.gguf")["general.architecture"] == "llama"
    assert difference(logits(chumoku.load(tmp_path / "m.gguf").model), logits(theirs)) < 1e-5


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"activation_function": "relu"}, "tanh form only"),
        ({"scale_attn_by_inverse_layer_idx": True}, "no more"),
    ],
)
def test_a_gpt2_that_gguf_cannot_describe(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    hub(tmp_path, "gpt2", **changes)
    refused(tmp_path, ConfigError, words)


def test_other_models_heads_and_storages(tmp_path: Path) -> None:
    hub(tmp_path, "gpt2")
    refused(tmp_path, InputError, "'Q4_K' is not written here", "Q4_K")
    with pytest.raises(InputError, match="language models"):
        save_gguf(chumoku.load(tmp_path, head="encoder"), tmp_path / "m.gguf")
    raw = {"model_type": "bert", "hidden_size": 24, "num_attention_heads": 2} | {
        "num_hidden_layers": 1,
        "vocab_size": 30,
        "intermediate_size": 8,
    }
    with pytest.raises(InputError, match="not for bert"):
        save_gguf(chumoku.create(raw, "masked-lm"), tmp_path / "m.gguf")
    assert not list(tmp_path.glob("*.gguf*"))


def test_a_number_too_large_for_float16(tmp_path: Path) -> None:
    hub(tmp_path, "gpt2")
    loaded = chumoku.load(tmp_path)
    with torch.no_grad():
        loaded.model.blocks[0].feedforward.up.weight[3, 3] = 1e5
    with pytest.raises(InputError, match="cannot hold"):
        save_gguf(loaded, tmp_path / "m.gguf", "F16")
    save_gguf(loaded, tmp_path / "m.gguf", "F32")


def changed_engine(fault: str) -> tokenizers.Tokenizer:
    engine = bpe_engine("gpt-2")
    if fault == "normaliser":
        engine.normalizer = tokenizers.normalizers.NFC()
    elif fault == "prefix space":
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    elif fault == "other pattern":
        split = pre_tokenizers.Split(tokenizers.Regex(r"\d+"), "isolated")
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False)])
    elif fault == "pattern removed":
        split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}"), "removed")
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False)])
    elif fault == "word pieces":
        vocab = {t: n for n, t in enumerate(["[UNK]", "a", "b"])}
        engine = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
    return engine


@pytest.mark.parametrize(
    "fault", ["normaliser", "prefix space", "other pattern", "pattern removed", "word pieces"]
)
def test_a_tokenizer_that_gguf_cannot_describe(fault: str, tmp_path: Path) -> None:
    hub(tmp_path, "gpt2")
    changed_engine(fault).save(str(tmp_path / "tokenizer.json"))
    refused(tmp_path, TokenizerError, "no kind for this tokenizer")


@pytest.mark.parametrize("fault", ["unigram", "nfkc"])
def test_a_sentencepiece_model_that_gguf_cannot_describe(fault: str, tmp_path: Path) -> None:
    hub(tmp_path, "llama")
    options = {"character_coverage": 0.98, "byte_fallback": True}
    if fault == "unigram":
        options |= {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    raw = sentencepiece_model("unigram" if fault == "unigram" else "bpe", 500, **options)
    (tmp_path / "tokenizer.model").write_bytes(raw)
    refused(tmp_path, TokenizerError, "no BPE" if fault == "unigram" else "normalises")
