"""Tiny published models with seeded weights, made the same way by transformers 4.57 and 5.

Used by the tests of tasks and loading, and by tests/golden/make_pipelines_457.py: only numpy,
torch, tokenizers, and what both releases of transformers have.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as engines

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = list("abcdefghijklmnopqrstuvwxyz0123456789.,!?'-:;()")
_WORDS = """
the a an of in is was are to and it he she they we you paris london berlin capital france
city big small river cat dog sat mat john mary smith works at google lives example this
good bad movie very not sport politics music science where what who when how many people
born year king queen tower bridge hello world new york ##s ##ed ##ing ##er ##ly ##ton
"""
_JAPANESE = """
私 の 今日 昼 ご飯 は です 。 、 東京 ##都 都 京都 に 行く 行き まし た 太郎 さん 花子 住ん で
いる 日本 ##国 首都 どこ ? ｡ 寿司 ラーメン を 食べ ##る 東 ##京 ##タワー タワー へ が
"""
WORDS = _WORDS.split()
JAPANESE_WORDS = _JAPANESE.split()

ENGLISH = list(dict.fromkeys([*SPECIALS, *LETTERS, *("##" + c for c in LETTERS[:36]), *WORDS]))
JAPANESE = list(
    dict.fromkeys([*SPECIALS, *JAPANESE_WORDS, *dict.fromkeys(c for c in "日本語大阪市長会社名前")])
)
MERGES = ["t h", "i n", "a n", "e r", "Ġ t", "Ġt h", "Ġth e", "o u", "Ġ a", "Ġ c", "Ġc at", "a t"]

ENCODER = {
    **{"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"intermediate_size": 36, "max_position_embeddings": 64},
}
SIZES: dict[str, dict[str, Any]] = {
    "bert": ENCODER,
    "roberta": ENCODER | {"max_position_embeddings": 66, "type_vocab_size": 1},
    "distilbert": {"dim": 24, "n_layers": 2, "n_heads": 4, "hidden_dim": 36}
    | {"max_position_embeddings": 64},
    "gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "llama": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"num_key_value_heads": 2, "intermediate_size": 36, "max_position_embeddings": 64},
    "t5": {"d_model": 24, "d_kv": 6, "num_heads": 4, "d_ff": 36, "num_layers": 2},
    "marian": {"d_model": 24, "encoder_layers": 2, "decoder_layers": 2}
    | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 36}
    | {"decoder_ffn_dim": 36, "max_position_embeddings": 64},
    "vit": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 36, "image_size": 20, "patch_size": 5},
}
SIZES["mistral"] = SIZES["llama"] | {"sliding_window": 8, "head_dim": 6}
SIZES["mt5"] = SIZES["t5"]
SIZES["deit"] = SIZES["vit"]


def build(class_name: str, seed: int = 0, **config: Any) -> Any:
    """A published model with weights that depend on nothing but `seed`, names and shapes."""
    kind = getattr(transformers, class_name)
    settings = kind.config_class(**{**SIZES[kind.config_class.model_type], **config})
    model = kind(settings).eval()
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "embed_positions" in name:
                continue  # Marian's sinusoids, which are no weights
            tensor.copy_(torch.from_numpy(weight(name, tuple(tensor.shape), seed)))
    return model


def weight(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Norms 1 + N(0, 0.1), biases N(0, 0.1), tables N(0, 1), matrices N(0, 1/fan_in) or wider."""
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape)
    low = name.lower()
    if len(shape) < 2:
        norm = low.endswith("weight")
        values = (1.0 if norm else 0.0) + 0.1 * values
    elif not any(part in low for part in ("embed", "wte", "wpe", "shared", "cls_token")):
        head = any(part in low for part in ("classifier", "qa_outputs", "score"))
        values *= (3.0 if head else 1.0) / np.sqrt(np.prod(shape[1:]))
    return values.astype(np.float32)


def checksum(model: Any) -> str:
    """SHA-256 over all parameters, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.named_parameters()):
        digest.update(name.encode() + tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def save(folder: Path, class_name: str, tokenizer: str = "", seed: int = 0, **config: Any) -> Any:
    """build(), saved with its tokenizer: "english", "japanese", "gpt2", "roberta", "t5" or ""."""
    size = WRITERS[tokenizer](folder) if tokenizer else 0
    if size:
        config = {"vocab_size": size, **config}
    model = build(class_name, seed, **config)
    model.save_pretrained(folder)
    return model


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), "utf-8")


# ---- tokenizers; each writer returns the number of ids ----


def english(folder: Path) -> int:
    """BERT's, uncased."""
    engine = tokenizers.Tokenizer(
        engines.WordPiece({t: i for i, t in enumerate(ENGLISH)}, unk_token="[UNK]")
    )
    engine.normalizer = normalizers.BertNormalizer(lowercase=True)
    engine.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    engine.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    engine.decoder = decoders.WordPiece()
    engine.add_special_tokens(SPECIALS)
    names = ("pad", "unk", "cls", "sep", "mask")
    roles = {f"{n}_token": t for n, t in zip(names, SPECIALS, strict=True)}
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 64, "do_lower_case": True}
    _write(folder, engine, settings | roles)
    return len(ENGLISH)


def japanese(folder: Path) -> int:
    """Tohoku's kind: MeCab with unidic-lite, then WordPiece."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("".join(t + "\n" for t in JAPANESE), "utf-8")
    settings = {
        **{"tokenizer_class": "BertJapaneseTokenizer", "model_max_length": 64},
        **{"word_tokenizer_type": "mecab", "subword_tokenizer_type": "wordpiece"},
        **{"do_lower_case": False, "mecab_kwargs": {"mecab_dic": "unidic_lite"}},
    }
    write_json(folder / "tokenizer_config.json", settings)
    return len(JAPANESE)


def _byte_level(specials: list[str]) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*specials, *alphabet, *(m.replace(" ", "") for m in MERGES)]
    tokens.append("Ġcat")
    merges = [tuple(m.split()) for m in MERGES if m != "Ġc at"] + [("Ġc", "at")]
    vocab = {t: i for i, t in enumerate(dict.fromkeys(tokens))}
    engine = tokenizers.Tokenizer(engines.BPE(vocab, merges))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens(specials)
    return engine


def gpt2(folder: Path) -> int:
    engine = _byte_level(["<|endoftext|>"])
    end = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    _write(folder, engine, {"tokenizer_class": "GPT2Tokenizer", "model_max_length": 64} | end)
    return engine.get_vocab_size()


def roberta(folder: Path) -> int:
    engine = _byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    engine.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    roles = {"cls": "<s>", "bos": "<s>", "sep": "</s>", "eos": "</s>", "unk": "<unk>"}
    roles |= {"pad": "<pad>", "mask": "<mask>"}
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 64}
    _write(folder, engine, settings | {f"{n}_token": t for n, t in roles.items()})
    return engine.get_vocab_size()


def t5(folder: Path) -> int:
    """T5's kind of Unigram model, without the sentinels."""
    plain = [w for w in WORDS if not w.startswith("##")]
    pieces: list[tuple[str, float]] = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -3.0)]
    pieces += [("▁" + w, -4.0 - n / 50) for n, w in enumerate(plain)]
    pieces += [(c, -9.0 - n / 50) for n, c in enumerate(LETTERS)]
    pieces += [(w, -6.0) for w in ("translate", "English", "German", "ing", "er")]
    engine = tokenizers.Tokenizer(engines.Unigram(pieces, unk_id=2, byte_fallback=False))
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    engine.decoder = decoders.Metaspace(prepend_scheme="always")
    engine.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    engine.add_special_tokens(["<pad>", "</s>", "<unk>"])
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 64, "extra_ids": 0}
    roles = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    _write(folder, engine, settings | roles | {"additional_special_tokens": []})
    return engine.get_vocab_size()


def _write(folder: Path, engine: tokenizers.Tokenizer, settings: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    engine.save(str(folder / "tokenizer.json"))
    write_json(folder / "tokenizer_config.json", settings)


WRITERS = {
    "english": english,
    "japanese": japanese,
    "gpt2": gpt2,
    "roberta": roberta,
    "t5": t5,
}
