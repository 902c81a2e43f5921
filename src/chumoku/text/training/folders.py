"""Trained parts -> the files of each family's folder, in the hub's layout.

A folder is named after a class of transformers where that class cuts text as the folder says. Where
it would not (text that is normalised first, LLaMA's leading spaces), the whole tokenizer stands in
tokenizer.json, and the class is PreTrainedTokenizerFast, which takes the file as it is.
"""

from __future__ import annotations

import base64
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine
from tokenizers.normalizers import Normalizer

from chumoku.errors import TokenizerError
from chumoku.text import engine as engines
from chumoku.text.decoding import unspell
from chumoku.text.encoding import Tokenizer
from chumoku.text.families import character_tokenizer
from chumoku.text.fast import FastTokenizer
from chumoku.text.files import AddedToken
from chumoku.text.load import load_tokenizer
from chumoku.text.sentencepieces import PieceModel
from chumoku.text.training.settings import ROLES, TokenizerSettings
from chumoku.text.training.words import bert_normalizer, plain_normalizer

Files = dict[str, bytes]
CONFIG, SPEC = "tokenizer_config.json", "tokenizer.json"
WHOLE = "PreTrainedTokenizerFast"


def opened(files: Mapping[str, bytes]) -> Tokenizer:
    """The tokenizer of these files. Raises TokenizerError where they do not load."""
    with tempfile.TemporaryDirectory() as name:
        for file, data in files.items():
            (Path(name) / file).write_bytes(data)
        tokenizer = load_tokenizer(Path(name))
    if tokenizer is None:
        raise TokenizerError("These files hold no tokenizer", where=", ".join(files))
    return tokenizer


def to_json(value: object) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _lines(tokens: Sequence[str]) -> bytes:
    return "".join(f"{token}\n" for token in tokens).encode("utf-8")


def _config(settings: TokenizerSettings, name: str, **more: object) -> dict[str, Any]:
    """tokenizer_config.json, as far as all families write it alike."""
    config: dict[str, Any] = {"tokenizer_class": name}
    config |= {f"{role}_token": token for role, token in ROLES[settings.target].items()}
    if settings.window is not None:
        config["model_max_length"] = settings.window
    if settings.extra_tokens:
        config["additional_special_tokens"] = list(settings.extra_tokens)
    return config | {"clean_up_tokenization_spaces": False} | more


def _with_json(files: Files, normalizer: Normalizer | None) -> Files:
    """Add tokenizer.json; with a normaliser that the family's own class does not have, it is the
    file that counts, and the config says so."""
    tokenizer = opened(files)
    assert isinstance(tokenizer, FastTokenizer)
    engine = tokenizer.engine
    if normalizer is not None:
        engine.normalizer = normalizer
        config = json.loads(files[CONFIG])
        for name in ("do_lower_case", "strip_accents", "tokenize_chinese_chars"):
            config.pop(name, None)
        files = files | {CONFIG: to_json(config | {"tokenizer_class": WHOLE})}
    return files | {SPEC: engine.to_str(pretty=True).encode("utf-8")}


# --- BERT


def bert(vocab: Sequence[str], settings: TokenizerSettings) -> Files:
    """BERT and DistilBERT: vocab.txt."""
    options: dict[str, object] = {
        "do_lower_case": settings.lowercase,
        "strip_accents": settings.strip_accents,
        "tokenize_chinese_chars": True,
    }
    config = _config(settings, "BertTokenizer", **options)
    files = {"vocab.txt": _lines(vocab), CONFIG: to_json(config)}
    return _with_json(files, bert_normalizer(settings) if settings.normalizes else None)


def japanese_bert(
    vocab: Sequence[str], settings: TokenizerSettings, model: bytes | None = None
) -> Files:
    """BertJapaneseTokenizer: vocab.txt, or spiece.model, and which dictionary cuts the words."""
    kind = settings.japanese or "basic"
    pieces = {"wordpiece": "wordpiece", "characters": "character", "unigram": "sentencepiece"}
    options: dict[str, object] = {
        "do_lower_case": settings.lowercase,
        "word_tokenizer_type": kind,
        "subword_tokenizer_type": pieces[settings.kind],
    }
    if settings.japanese:
        options[f"{kind}_kwargs"] = settings.segmenter_options
    config = to_json(_config(settings, "BertJapaneseTokenizer", **options))
    if model is not None:
        return {"spiece.model": model, CONFIG: config}
    return {"vocab.txt": _lines(vocab), CONFIG: config}


# --- byte-level BPE


def byte_bpe(
    tokens: Sequence[str], merges: Sequence[tuple[str, str]], settings: TokenizerSettings
) -> Files:
    """GPT-2 (<|endoftext|> last), RoBERTa (<s> <pad> </s> <unk> first, <mask> last), or bytes
    without control tokens: vocab.json and merges.txt."""
    extra = settings.extra_tokens
    order = {
        "gpt2": [*tokens, "<|endoftext|>", *extra],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>", *tokens, "<mask>", *extra],
        "none": [*tokens, *extra],
    }[settings.target]
    name = {"gpt2": "GPT2Tokenizer", "roberta": "RobertaTokenizer", "none": WHOLE}
    config = _config(settings, name[settings.target], add_prefix_space=False)
    if settings.target == "roberta":
        # RoBERTa's mask swallows the space in front of it.
        mask = {"content": "<mask>", "lstrip": True, "rstrip": False, "single_word": False}
        config["mask_token"] = {"__type": "AddedToken", **mask, "normalized": False}
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    files = {
        "vocab.json": to_json({token: index for index, token in enumerate(order)}),
        "merges.txt": _lines(lines),
        CONFIG: to_json(config),
    }
    return _with_json(files, plain_normalizer(settings))


def llama3(tokens: Sequence[str], settings: TokenizerSettings) -> Files:
    """LLaMA 3: the ranks of tiktoken, then its 256 control tokens, all in tokenizer.json."""
    ranks = [
        base64.b64encode(unspell(token)) + b" %d\n" % rank for rank, token in enumerate(tokens)
    ]
    config = _config(settings, WHOLE)
    config |= {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    config.pop("unk_token")
    extra = {
        str(len(tokens) + 256 + n): {"content": token, "special": True}
        for n, token in enumerate(settings.extra_tokens)
    }
    first = {"tokenizer.model": b"".join(ranks), CONFIG: to_json({"added_tokens_decoder": extra})}
    files = _with_json(first, None)
    files = {SPEC: files[SPEC], CONFIG: to_json(config)}
    normalizer = plain_normalizer(settings)
    return files if normalizer is None else _with_json(files, normalizer)


# --- SentencePiece


def llama(model: bytes, settings: TokenizerSettings) -> Files:
    """LLaMA 1 and 2: tokenizer.model, and the same as tokenizer.json."""
    pieces = PieceModel(model, "tokenizer.model")
    ids = pieces.ids
    controls = sorted({*pieces.controls, pieces.unk_id})
    prepend = {"type": "Prepend", "prepend": "▁"}
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    back = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders: list[engines.Spec] = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, strip]
    bpe = engines.bpe(ids, _merges(pieces))
    spec = {
        "version": "1.0",
        "added_tokens": engines.added(AddedToken(pieces.pieces[n], n) for n in controls),
        "normalizer": engines.sequence("normalizers", [prepend, spaces]),
        "post_processor": engines.bos_eos_template(("<s>", ids["<s>"]), None),
        "decoder": engines.sequence("decoders", decoders),
        "model": bpe | {"unk_token": "<unk>", "fuse_unk": True, "byte_fallback": True},
    }
    engine: Engine = engines.build(spec, SPEC)
    return {
        "tokenizer.model": model,
        SPEC: engine.to_str(pretty=True).encode("utf-8"),
        CONFIG: to_json(_config(settings, WHOLE)),
    }


def _merges(model: PieceModel) -> list[tuple[str, str]]:
    """The merges behind a SentencePiece BPE model: each way to make a piece of two, best first."""
    ids, scores = model.ids, model.scores
    silent = {*model.controls, *model.bytes, model.unk_id}
    found = []
    for piece, index in ids.items():
        if index in silent:
            continue
        for cut in range(1, len(piece)):
            left, right = piece[:cut], piece[cut:]
            if left in ids and right in ids and silent.isdisjoint((ids[left], ids[right])):
                found.append((-scores[index], ids[left], ids[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def t5(model: bytes, settings: TokenizerSettings) -> Files:
    """T5: spiece.model; the sentinels are numbered behind it, <extra_id_0> last."""
    count = settings.sentinels
    config = _config(settings, "T5Tokenizer", extra_ids=count)
    sentinels = [f"<extra_id_{n}>" for n in range(count)]
    config["additional_special_tokens"] = [*sentinels, *settings.extra_tokens]
    return {"spiece.model": model, CONFIG: to_json(config)}


def marian(source: bytes, target: bytes, settings: TokenizerSettings) -> Files:
    """Marian: a model a language, one vocab.json over both; </s> 0, <unk> 1, <pad> last."""
    names = dict.fromkeys(["</s>", "<unk>"])
    for model in (source, target):
        names |= dict.fromkeys(PieceModel(model, "source.spm").pieces[3:])
    names |= dict.fromkeys([*settings.extra_tokens, "<pad>"])
    vocab = {name: index for index, name in enumerate(names)}
    return {
        "source.spm": source,
        "target.spm": target,
        "vocab.json": to_json(vocab),
        CONFIG: to_json(_config(settings, "MarianTokenizer", separate_vocabs=False)),
    }


# --- characters


def characters(alphabet: Sequence[str], settings: TokenizerSettings) -> Files:
    """Every character a token, in tokenizer.json; gpt2 adds <|endoftext|>, which also stands for
    what is unknown. Without it an unknown character is an error."""
    unk = "<|endoftext|>" if settings.target == "gpt2" else None
    tokenizer = character_tokenizer(alphabet, unk=unk, specials=settings.extra_tokens)
    files = {
        SPEC: tokenizer.engine.to_str(pretty=True).encode("utf-8"),
        CONFIG: to_json(_config(settings, WHOLE)),
    }
    normalizer = plain_normalizer(settings)
    return files if normalizer is None else _with_json(files, normalizer)
