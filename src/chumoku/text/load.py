"""A folder of tokenizer files -> the tokenizer, whichever family it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from chumoku.errors import TokenizerError
from chumoku.text import families
from chumoku.text.encoding import Tokenizer
from chumoku.text.fast import FastTokenizer
from chumoku.text.files import AddedToken, Settings, read_bytes, read_settings
from chumoku.text.sentencepieces import PieceModel, SentencePieceTokenizer

# tokenizer_class (without "Fast") and model_type -> family.
CLASSES = {
    "BertTokenizer": "bert",
    "DistilBertTokenizer": "bert",
    "ElectraTokenizer": "bert",
    "MPNetTokenizer": "roberta",
    "RobertaTokenizer": "roberta",
    "GPT2Tokenizer": "gpt2",
    "T5Tokenizer": "t5",
    "MT5Tokenizer": "t5",
    "ByT5Tokenizer": "byt5",
    "LlamaTokenizer": "llama",
    "CodeLlamaTokenizer": "llama",
    "MarianTokenizer": "marian",
    "BertJapaneseTokenizer": "japanese",
    "DistilBertJapaneseTokenizer": "japanese",
}
MODEL_TYPES = {
    "bert": "bert",
    "distilbert": "bert",
    "roberta": "roberta",
    "gpt2": "gpt2",
    "t5": "t5",
    "mt5": "t5",
    "llama": "llama",
    "mistral": "llama",
    "marian": "marian",
}
DEFAULT_ROLES: Mapping[str, Mapping[str, str]] = {
    "bert": families.BERT_ROLES,
    "roberta": families.ROBERTA_ROLES,
    "gpt2": families.GPT2_ROLES,
    "llama": families.LLAMA_ROLES,
    "t5": families.T5_ROLES,
}
PIECE_FILES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model")
TOKENIZER_FILES = frozenset(
    {*PIECE_FILES, "tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json"}
    | {"merges.txt", "source.spm", "target.spm"}
)


def load_tokenizer(folder: Path, config: Mapping[str, Any] | None = None) -> Tokenizer | None:
    """The tokenizer of a folder in the hub's layout; None where it holds no tokenizer files.

    config: the model's config.json, which decides between families whose files look alike.
    Raises TokenizerError for damaged files, DependencyError where a dictionary is missing.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    config = config or {}
    family = _family(settings, config)
    files = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if family != "byt5" and files.isdisjoint(TOKENIZER_FILES):
        return None
    if family == "japanese":
        from chumoku.text.japanese import japanese_tokenizer

        return japanese_tokenizer(settings)
    if family == "byt5":
        from chumoku.text.bytes import byte_tokenizer

        return byte_tokenizer(settings)
    if family == "marian" or {"source.spm", "target.spm"} <= files:
        from chumoku.text.marian import marian_tokenizer

        return marian_tokenizer(settings)
    if "tokenizer.json" in files:
        return families.json_tokenizer(settings, DEFAULT_ROLES.get(family, {}), family)
    pieces = next((folder / name for name in PIECE_FILES if name in files), None)
    if pieces is not None:
        return piece_tokenizer(settings, pieces, family, config)
    if {"vocab.json", "merges.txt"} <= files:
        return families.byte_bpe_tokenizer(settings, roberta=family == "roberta")
    if "vocab.txt" in files:
        return families.wordpiece_tokenizer(settings)
    if "vocab.json" in files or "merges.txt" in files:
        raise TokenizerError("vocab.json and merges.txt belong together", where=folder)
    return None


def _family(settings: Settings, config: Mapping[str, Any]) -> str:
    name = settings.options.get("tokenizer_class") or config.get("tokenizer_class")
    if isinstance(name, str) and name.removesuffix("Fast") in CLASSES:
        return CLASSES[name.removesuffix("Fast")]
    if "word_tokenizer_type" in settings.options:
        return "japanese"
    return MODEL_TYPES.get(str(config.get("model_type")), "")


def piece_tokenizer(
    settings: Settings, path: Path, family: str, config: Mapping[str, Any]
) -> Tokenizer:
    """A single .model file: SentencePiece (LLaMA 1 and 2, T5) or tiktoken (LLaMA 3)."""
    data = read_bytes(path)
    if data[:64].split(b" ")[0].isascii() and not data.startswith(b"\n"):
        scaled = bool(config.get("rope_scaling") or config.get("use_scaled_rope"))
        return families.tiktoken_tokenizer(settings, path, scaled_rope=scaled)
    model = PieceModel(data, path)
    if _is_t5(model, family):
        return t5_tokenizer(settings, model)
    return llama_tokenizer(settings, model)


def _is_t5(model: PieceModel, family: str) -> bool:
    if family:
        return family == "t5"
    return model.ids.get("<pad>") == 0 and model.role("bos") is None


def llama_tokenizer(settings: Settings, model: PieceModel) -> SentencePieceTokenizer:
    """LLaMA 1 and 2 (and Mistral): bos in front, byte fallback, dummy prefix space.

    Where legacy is not given it is true, as in transformers 4 and in Meta's own code: text after
    a control token gets the prefix space as well.
    """
    roles = families.roles_of(settings, families.LLAMA_ROLES)
    tokens = families.place_tokens(model.ids, settings, roles)
    ids = {token.content: token.id for token in tokens}
    prefix = "always" if families.option(settings, "legacy", True) else "first"
    if not families.option(settings, "add_prefix_space", True):
        prefix = "never"
    ends = {}
    for name, default in (("bos", True), ("eos", False)):
        wanted = families.option(settings, f"add_{name}_token", default)
        ends[name] = ids.get(roles[name].content) if wanted else None
    return SentencePieceTokenizer(
        model,
        tokens,
        {name: token.content for name, token in roles.items()},
        prefix=prefix,
        start=ends["bos"],
        end=ends["eos"],
        max_length=settings.max_length,
        chat_template=settings.chat_template,
    )


def t5_tokenizer(settings: Settings, model: PieceModel) -> SentencePieceTokenizer:
    """T5 and mT5: pieces, then the sentinels <extra_id_99> … <extra_id_0> unless the model has
    them; </s> after each text."""
    roles = families.roles_of(settings, families.T5_ROLES)
    count = settings.options.get("extra_ids", 100)
    if type(count) is not int or not 0 <= count <= 10_000:
        raise TokenizerError(f"extra_ids is {count!r:.40}", where=settings.folder)
    numbered = any(t.id is not None and t.content == "<extra_id_0>" for t in settings.added)
    held = not {"<extra_id_0>", "▁<extra_id_0>"}.isdisjoint(model.ids)
    if numbered or held:
        count = 0
    sentinels = [AddedToken(f"<extra_id_{n}>", model.size + count - 1 - n) for n in range(count)]
    added = [t for t in settings.added if t.id is not None or not t.content.startswith("<extra_id")]
    placed = replace(settings, added=(*added, *sentinels))
    tokens = families.place_tokens(model.ids, placed, roles)
    end = families.id_of(tokens, roles["eos"].content, settings.folder)
    return SentencePieceTokenizer(
        model,
        tokens,
        {name: token.content for name, token in roles.items()},
        prefix="always" if families.option(settings, "legacy", True) else "first",
        end=end,
        max_length=settings.max_length,
        chat_template=settings.chat_template,
        clean_up=settings.options.get("clean_up_tokenization_spaces") is True,
    )


def export_tokenizer_json(tokenizer: Tokenizer) -> str | None:
    """tokenizer.json for a tokenizer that runs in the `tokenizers` library; else None."""
    if not isinstance(tokenizer, FastTokenizer):
        return None
    text: str = tokenizer.engine.to_str(pretty=True)
    return text
