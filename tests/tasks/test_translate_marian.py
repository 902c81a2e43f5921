"""translate with a Marian checkpoint, beside MarianMTModel.generate and MarianTokenizer."""

from __future__ import annotations

import io
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
import transformers
from tasks import models
from tasks.compare import same

import chumoku
from chumoku.errors import InputError
from chumoku.loading import load

CORPUS = ["the cat sat on the mat and the dog ran", "hello world, john smith! 12 345"] * 20
TEXTS = ["the cat sat", "hello, john smith and the dog in the mat!", "world"]


def pieces(kind: str, size: int) -> tuple[bytes, list[str]]:
    """A SentencePiece model trained here, and its pieces."""
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS),
        model_writer=out,
        model_type=kind,
        vocab_size=size,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    model = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    return out.getvalue(), [model.id_to_piece(i) for i in range(3, model.get_piece_size())]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("marian")
    vocab = dict.fromkeys(["</s>", "<unk>"])
    for name, kind, size in (("source", "unigram", 60), ("target", "bpe", 80)):
        data, found = pieces(kind, size)
        (place / f"{name}.spm").write_bytes(data)
        vocab |= dict.fromkeys(found)
    vocab |= dict.fromkeys([">>jpn<<", ">>deu<<", "<pad>"])
    size = len(vocab)
    models.write_json(place / "vocab.json", {piece: n for n, piece in enumerate(vocab)})
    settings = {"tokenizer_class": "MarianTokenizer", "source_lang": "en", "target_lang": "ja"}
    models.write_json(place / "tokenizer_config.json", settings)
    config = {"vocab_size": size, "pad_token_id": size - 1, "decoder_start_token_id": size - 1}
    config |= {"eos_token_id": 0, "scale_embedding": True, "activation_function": "swish"}
    models.save(place, "MarianMTModel", seed=4, forced_eos_token_id=0, **config)
    return place


@pytest.fixture(scope="module")
def published(folder: Path) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers recommends sacremoses
        tokenizer = transformers.MarianTokenizer.from_pretrained(folder)
    return tokenizer, transformers.MarianMTModel.from_pretrained(folder)


def expected(published: Any, texts: list[str], **settings: Any) -> list[dict[str, str]]:
    tokenizer, model = published
    answers = []
    for text in texts:
        with torch.no_grad():
            ids = model.generate(**tokenizer(text, return_tensors="pt"), **settings)[0]
        answers.append({"translation_text": tokenizer.decode(ids, skip_special_tokens=True)})
    return answers


@pytest.mark.parametrize(
    "settings", [{"num_beams": 1}, {"num_beams": 4}, {"num_beams": 1, "no_repeat_ngram_size": 2}]
)
def test_translation(folder: Path, published: Any, settings: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 10, **settings}
    found = expected(published, TEXTS, **settings)
    for name in ("translation", "translate"):
        same(chumoku.pipeline(name, folder)(TEXTS, **settings), found)
    same(chumoku.translate(TEXTS[1], folder, **settings), found[1:2])
    same(chumoku.translate(TEXTS, folder, batch_size=1, **settings), found)
    towards = [">>deu<< " + text for text in TEXTS]
    directed = expected(published, towards, **settings)
    same(chumoku.translate(TEXTS, folder, target="deu", **settings), directed)
    same(chumoku.translate(towards, folder, **settings), directed)


def test_the_language_code_counts(folder: Path, published: Any) -> None:
    """Negative control: another target, another text."""
    with pytest.raises(AssertionError):
        same(
            chumoku.translate(TEXTS, folder, target="jpn", max_new_tokens=10),
            expected(published, [">>deu<< " + t for t in TEXTS], max_new_tokens=10, num_beams=1),
        )
    with pytest.raises(InputError, match="does not know translation_en_to_fra"):
        chumoku.translate(TEXTS, folder, target="fra")


def test_saved_again_it_translates_the_same(folder: Path, tmp_path: Path) -> None:
    copy = chumoku.save(load(folder, dtype="stored"), tmp_path / "copy")
    for name in ("source.spm", "target.spm", "vocab.json"):
        assert (copy / name).read_bytes() == (folder / name).read_bytes()
    same(
        chumoku.translate(TEXTS, copy, max_new_tokens=10),
        chumoku.translate(TEXTS, folder, max_new_tokens=10),
    )
    assert json.loads((copy / "config.json").read_text()) == json.loads(
        (folder / "config.json").read_text()
    )


def test_only_encoder_decoders_translate(tiny: Any) -> None:
    loaded = load(tiny("GPT2LMHeadModel", "gpt2"))
    for call in (chumoku.translate, chumoku.summarize, chumoku.text2text):
        with pytest.raises(InputError, match="needs an encoder-decoder"):
            call("the cat", loaded)
    with pytest.raises(InputError, match="does not generate text"):
        chumoku.generate("the cat", load(tiny("BertForMaskedLM")))
