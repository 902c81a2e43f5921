"""The published families that run in the `tokenizers` library, each from its own files.

BERT's vocab.txt; GPT-2's and RoBERTa's vocab.json with merges.txt; LLaMA 3's tiktoken file;
plain characters; and tokenizer.json itself, with the options of tokenizer_config.json applied
as transformers applies them.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from chumoku.errors import TokenizerError
from chumoku.text import engine as engines
from chumoku.text.decoding import spell
from chumoku.text.engine import Spec
from chumoku.text.fast import FastTokenizer
from chumoku.text.files import (
    ROLES,
    AddedToken,
    Settings,
    parse_json,
    read_bytes,
    read_merges,
    read_text,
    read_vocab_json,
    read_vocab_txt,
)

# The control tokens that each family has where its files name none.
BERT_ROLES = {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"}
ROBERTA_ROLES = {
    "bos": "<s>",
    "eos": "</s>",
    "sep": "</s>",
    "cls": "<s>",
    "unk": "<unk>",
    "pad": "<pad>",
    "mask": "<mask>",
}
GPT2_ROLES = {"bos": "<|endoftext|>", "eos": "<|endoftext|>", "unk": "<|endoftext|>"}
LLAMA_ROLES = {"bos": "<s>", "eos": "</s>", "unk": "<unk>"}
T5_ROLES = {"eos": "</s>", "unk": "<unk>", "pad": "<pad>"}

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def roles_of(settings: Settings, defaults: Mapping[str, str]) -> dict[str, AddedToken]:
    """Which token is bos, eos, …: what the files say, else the family's own."""
    table = {name: AddedToken(content) for name, content in defaults.items()}
    return table | dict(settings.roles)


def place_tokens(
    vocab: Mapping[str, int], settings: Settings, roles: Mapping[str, AddedToken]
) -> list[AddedToken]:
    """All added tokens with their ids: those of the files, then the roles that are named there.

    A family's default role that the vocabulary lacks is left out: transformers would number it
    past the end, where the model has no embedding.
    """
    placed: dict[str, AddedToken] = {}
    taken: dict[int, str] = {}
    following = max(vocab.values(), default=-1) + 1
    named = [
        token for name, token in roles.items() if name in settings.roles or token.content in vocab
    ]
    # transformers numbers the roles before the tokens that have neither role nor number.
    loose = [token for token in settings.added if token.id is None]
    numbered = [token for token in settings.added if token.id is not None]
    for token in (*numbered, *named, *loose):
        if token.content in placed or not token.content:
            continue
        index = vocab.get(token.content, token.id)
        if index is None:
            index, following = following, following + 1
        following = max(following, index + 1)
        if taken.setdefault(index, token.content) != token.content:
            raise TokenizerError(
                f"{taken[index]!r:.60} and {token.content!r:.60} share the id {index}",
                where=settings.folder,
            )
        placed[token.content] = replace(token, id=index)
    return list(placed.values())


def finish(
    spec: Spec, settings: Settings, roles: Mapping[str, AddedToken], where: object
) -> FastTokenizer:
    """A spec and its settings -> the tokenizer."""
    return FastTokenizer(
        engines.build(spec, where),
        {name: token.content for name, token in roles.items()},
        max_length=settings.max_length,
        chat_template=settings.chat_template,
        clean_up=settings.options.get("clean_up_tokenization_spaces") is True,
        spec=spec,
    )


def option(settings: Settings, name: str, default: bool) -> bool:
    """A boolean option of tokenizer_config.json."""
    value = settings.options.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise TokenizerError(
            f"{name} must be true or false, not {value!r:.40}",
            where=settings.folder / "tokenizer_config.json",
        )
    return value


def id_of(tokens: Iterable[AddedToken], content: str, where: object) -> int:
    for token in tokens:
        if token.content == content and token.id is not None:
            return token.id
    raise TokenizerError(f"The vocabulary lacks {content!r}", where=where)


def wordpiece_tokenizer(settings: Settings) -> FastTokenizer:
    """BERT and DistilBERT: vocab.txt (section 5 of the format notes)."""
    path = settings.folder / "vocab.txt"
    vocab = read_vocab_txt(path)
    roles = roles_of(settings, BERT_ROLES)
    tokens = place_tokens(vocab, settings, roles)
    cls, sep = roles["cls"].content, roles["sep"].content
    spec: Spec = {
        "version": "1.0",
        "added_tokens": engines.added(tokens),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": option(settings, "tokenize_chinese_chars", True),
            "strip_accents": settings.options.get("strip_accents"),
            "lowercase": option(settings, "do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": engines.bert_template(
            (cls, id_of(tokens, cls, path)), (sep, id_of(tokens, sep, path))
        ),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": roles["unk"].content,
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }
    return finish(spec, settings, roles, path)


def byte_bpe_tokenizer(settings: Settings, *, roberta: bool) -> FastTokenizer:
    """GPT-2 and RoBERTa: vocab.json and merges.txt in GPT-2's byte alphabet."""
    path = settings.folder / "vocab.json"
    vocab = read_vocab_json(path)
    merges = read_merges(settings.folder / "merges.txt")
    roles = roles_of(settings, ROBERTA_ROLES if roberta else GPT2_ROLES)
    if roberta and not settings.added:
        # RoBERTa's mask swallows the space in front of it: "is <mask>" is two tokens.
        roles["mask"] = replace(roles["mask"], lstrip=True)
    tokens = place_tokens(vocab, settings, roles)
    prefix_space = option(settings, "add_prefix_space", False)
    spec: Spec = {
        "version": "1.0",
        "added_tokens": engines.added(tokens),
        "normalizer": None,
        "pre_tokenizer": engines.byte_level(prefix_space=prefix_space),
        "post_processor": _gpt2_template(settings, roles, tokens),
        "decoder": engines.byte_level(prefix_space=True),
        "model": engines.bpe(vocab, merges),
    }
    if roberta:
        cls, sep = roles["cls"].content, roles["sep"].content
        spec["post_processor"] = {
            "type": "RobertaProcessing",
            "sep": [sep, id_of(tokens, sep, path)],
            "cls": [cls, id_of(tokens, cls, path)],
            "trim_offsets": True,
            "add_prefix_space": prefix_space,
        }
    return finish(spec, settings, roles, path)


def _gpt2_template(
    settings: Settings, roles: Mapping[str, AddedToken], tokens: Sequence[AddedToken]
) -> Spec | None:
    ends: list[tuple[str, int] | None] = []
    for name in ("bos", "eos"):
        wanted = option(settings, f"add_{name}_token", False) and name in roles
        content = roles[name].content if wanted else ""
        ends.append((content, id_of(tokens, content, settings.folder)) if wanted else None)
    if not any(ends):
        return engines.byte_level(prefix_space=True, trim=False)
    return engines.bos_eos_template(ends[0], ends[1])


# ---------------------------------------------------------------------------------------------
# tokenizer.json


def json_tokenizer(settings: Settings, defaults: Mapping[str, str], family: str) -> FastTokenizer:
    """A folder's tokenizer.json with the options of tokenizer_config.json on top."""
    path = settings.folder / "tokenizer.json"
    spec = parse_json(read_text(path), path)
    engines.check(spec, path)
    _apply_options(spec, settings, family)
    roles = roles_of(settings, defaults)
    vocab = _all_ids(spec)
    present = {token["content"] for token in spec["added_tokens"]}
    new = [t for t in place_tokens(vocab, settings, roles) if t.content not in present]
    spec["added_tokens"] = sorted(
        spec["added_tokens"] + engines.added(new), key=lambda token: int(token["id"])
    )
    roles = {n: t for n, t in roles.items() if t.content in vocab or n in settings.roles}
    _apply_ends(spec, settings, roles, family)
    return finish(spec, settings, roles, path)


def _all_ids(spec: Spec) -> dict[str, int]:
    vocab: dict[str, int] | list[list[str]] = spec["model"]["vocab"]
    if isinstance(vocab, list):
        vocab = {piece: index for index, (piece, _) in enumerate(vocab)}
    return vocab | {token["content"]: token["id"] for token in spec["added_tokens"]}


def _apply_options(spec: Spec, settings: Settings, family: str) -> None:
    """do_lower_case and its like rewrite the normaliser; add_prefix_space the pre-tokeniser."""
    normalizer, before = spec["normalizer"], spec["pre_tokenizer"]
    names = (
        ("do_lower_case", "lowercase"),
        ("tokenize_chinese_chars", "handle_chinese_chars"),
        ("strip_accents", "strip_accents"),
    )
    if isinstance(normalizer, dict) and normalizer.get("type") == "BertNormalizer":
        for theirs, ours in names:
            if theirs in settings.options:
                normalizer[ours] = settings.options[theirs]
    if "add_prefix_space" in settings.options and isinstance(before, dict):
        for part in before.get("pretokenizers", [before]):
            if isinstance(part, dict) and part.get("type") == "ByteLevel":
                part["add_prefix_space"] = option(settings, "add_prefix_space", False)


def _apply_ends(
    spec: Spec, settings: Settings, roles: Mapping[str, AddedToken], family: str
) -> None:
    """add_bos_token and add_eos_token, where a LLaMA's config gives them, replace the template.

    For every other class the template in tokenizer.json has the last word.
    """
    if family != "llama" or not {"add_bos_token", "add_eos_token"} & settings.options.keys():
        return
    ids = _all_ids(spec)
    ends: list[tuple[str, int] | None] = []
    for name in ("bos", "eos"):
        # LLaMA's own default is to start with bos; an absent add_bos_token keeps it.
        wanted = option(settings, f"add_{name}_token", name == "bos")
        content = roles[name].content if wanted and name in roles else None
        ends.append((content, ids[content]) if content in ids and content is not None else None)
    post = spec["post_processor"]
    if not any(ends) and isinstance(post, dict) and post.get("type") == "ByteLevel":
        return
    spec["post_processor"] = engines.bos_eos_template(ends[0], ends[1])


# ---------------------------------------------------------------------------------------------
# tiktoken


def read_tiktoken(path: Path) -> dict[bytes, int]:
    """token bytes -> rank; a line is base64, a space, the rank. Raises TokenizerError."""
    ranks: dict[bytes, int] = {}
    seen: set[int] = set()
    for number, line in enumerate(read_bytes(path).split(b"\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        token, _, rank = line.rstrip(b"\r").partition(b" ")
        try:
            data = base64.b64decode(token, validate=True)
        except binascii.Error:
            raise TokenizerError("Not a tiktoken line: no base64", where=where) from None
        if not data or not rank.isdigit() or len(rank) > 9 or int(rank) in seen or data in ranks:
            raise TokenizerError("Not a tiktoken line: base64 and a rank, each once", where=where)
        seen.add(int(rank))
        ranks[data] = int(rank)
    if len(ranks) < 256 or any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError("The tiktoken file lacks some of the 256 bytes", where=path)
    return ranks


def merges_of_ranks(ranks: Mapping[bytes, int]) -> list[tuple[str, str]]:
    """The BPE merges behind tiktoken's ranks: every split of a token into two tokens, by rank."""
    merges = []
    for token, rank in ranks.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ranks and right in ranks:
                merges.append((rank, ranks[left], ranks[right], left, right))
    merges.sort(key=lambda merge: merge[:3])
    return [(spell(left), spell(right)) for *_, left, right in merges]


def llama3_specials(*, scaled_rope: bool) -> list[str]:
    """LLaMA 3's 256 control tokens in order; 3.1 gave names to some reserved ones."""
    reserved = iter(range(256))

    def more(count: int) -> list[str]:
        return [f"<|reserved_special_token_{next(reserved)}|>" for _ in range(count)]

    head = ["<|begin_of_text|>", "<|end_of_text|>"]
    ids = ["<|start_header_id|>", "<|end_header_id|>"]
    if scaled_rope:
        names = head + more(2) + ["<|finetune_right_pad_id|>"] + more(1) + ids
        names += ["<|eom_id|>", "<|eot_id|>", "<|python_tag|>"]
    else:
        names = head + more(4) + ids + more(1) + ["<|eot_id|>"]
    return names + more(256 - len(names))


def tiktoken_tokenizer(settings: Settings, path: Path, *, scaled_rope: bool) -> FastTokenizer:
    """LLaMA 3's tokenizer.model: byte-level BPE by ranks, then 256 control tokens."""
    ranks = read_tiktoken(path)
    base = max(ranks.values()) + 1
    named = {token.id: token for token in settings.added if token.id is not None}
    specials = llama3_specials(scaled_rope=scaled_rope)
    tokens = [
        named.pop(base + n, AddedToken(content, base + n)) for n, content in enumerate(specials)
    ]
    tokens += [token for index, token in named.items() if index is not None and index >= base]
    bos, eos = tokens[0], tokens[1]
    roles = {"bos": bos, "eos": eos} | dict(settings.roles)
    ids = {token.content: token.id for token in tokens}
    start = (roles["bos"].content, ids.get(roles["bos"].content) or base)
    spec: Spec = {
        "version": "1.0",
        "added_tokens": engines.added(tokens),
        "normalizer": None,
        "pre_tokenizer": engines.sequence(
            "pretokenizers", [engines.split(LLAMA3_SPLIT), engines.byte_level(regex=False)]
        ),
        "post_processor": engines.bos_eos_template(
            start if option(settings, "add_bos_token", True) else None, None
        ),
        "decoder": engines.byte_level(prefix_space=True),
        "model": engines.bpe(
            {spell(data): rank for data, rank in ranks.items()},
            merges_of_ranks(ranks),
            ignore_merges=True,
        ),
    }
    return finish(spec, settings, roles, path)


# ---------------------------------------------------------------------------------------------
# characters


def character_tokenizer(
    characters: Iterable[str],
    *,
    unk: str | None = "<unk>",
    specials: Sequence[str] = (),
    max_length: int | None = None,
) -> FastTokenizer:
    """A tokenizer whose tokens are single code points; ids: specials, unk, then characters sorted.

    export_tokenizer_json gives a file that any tool reads. Raises TokenizerError without
    characters.
    """
    alphabet = sorted({char for text in characters for char in text})
    if not alphabet:
        raise TokenizerError("A character tokenizer needs characters")
    names = [*specials, *([unk] if unk else [])]
    vocab = {token: index for index, token in enumerate([*names, *alphabet])}
    tokens = [AddedToken(name, vocab[name]) for name in names]
    spec: Spec = {
        "version": "1.0",
        "added_tokens": engines.added(tokens),
        "pre_tokenizer": engines.split(r"(?m)."),  # Oniguruma: m lets the dot match a new line
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": unk or ""},
    }
    roles = {"unk": unk} if unk else {}
    for name in specials:
        role = name.strip("<[]>").lower()
        if role in ROLES:
            roles[role] = name
    return FastTokenizer(engines.build(spec, "characters"), roles, max_length=max_length)
