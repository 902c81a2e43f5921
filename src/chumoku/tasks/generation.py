"""generate, chat, translate, summarize, text2text: text out of a model, whole or as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from chumoku.errors import InputError
from chumoku.generation.generate import Piece, stream_text
from chumoku.generation.generate import generate as generate_ids
from chumoku.generation.results import Generated
from chumoku.generation.runner import Stop
from chumoku.generation.settings import Settings, merge, settings_from_published
from chumoku.loading import Loaded
from chumoku.tasks import common
from chumoku.text.chat import encode_chat

Message = Mapping[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}"""


def effective(loaded: Loaded, arguments: Mapping[str, Any]) -> Settings:
    """The checkpoint's published settings, with the call's own in their place."""
    return merge(settings_from_published(loaded.generation), **arguments)


def check_generates(loaded: Loaded) -> None:
    """Raise InputError where the model cannot write text."""
    if loaded.head not in ("causal-lm", "conditional-generation"):
        raise InputError(
            f"a model with head {loaded.head!r} does not generate text",
            where=loaded.source.origin,
            advice="take a decoder (GPT-2, LLaMA) or an encoder-decoder (T5, Marian)",
        )


def generate(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    batch_size: int = 8,
    lang: str | None = None,
    **settings: Any,
) -> Generated | list[Generated]:
    """Continue a text (a decoder), or answer it (an encoder-decoder).

    settings: those of generation.settings.Settings (max_new_tokens, temperature, num_beams, stop,
    seed, …); greedy unless sampling is asked for. One Generated for one text and one sequence,
    else a list, in order. The result holds text, ids, finish_reason, timings and the settings.
    """
    items, single = common.many(text)
    loaded = common.ready(model, "generate", items[0], lang)
    chosen = effective(loaded, settings)
    answers = _run(loaded, items, chosen, batch_size)
    return answers[0] if single and len(answers) == 1 else answers


def _run(
    loaded: Loaded, texts: Sequence[str], settings: Settings, batch_size: int
) -> list[Generated]:
    check_generates(loaded)
    tokenizer = common.tokenizer_of(loaded)
    model: Any = loaded.model
    if batch_size < 1:
        raise InputError(f"batch_size must be at least 1, it is {batch_size}")
    answers: list[Generated] = []
    for start in range(0, len(texts), batch_size):
        prompts = [tokenizer.encode(t).ids for t in texts[start : start + batch_size]]
        for one in generate_ids(model, prompts, settings, tokenizer=tokenizer):
            answers.append(replace(one, prompt=one.prompt + start))
    return answers


def stream(
    text: str,
    loaded: Loaded,
    settings: Settings,
    should_stop: Stop | None = None,
) -> Iterator[Piece]:
    """generate() for one text, as pieces of text; the last one carries the result."""
    check_generates(loaded)
    tokenizer = common.tokenizer_of(loaded)
    model: Any = loaded.model
    ids = tokenizer.encode(text).ids
    yield from stream_text(model, tokenizer, ids, settings, should_stop=should_stop)


# ---- chat ----


def chat(
    messages: str | Sequence[Message],
    model: common.ModelLike = None,
    *,
    lang: str | None = None,
    **settings: Any,
) -> Generated:
    """The model's answer to a message, or to a conversation of {"role", "content"}."""
    talk = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
    if not talk:
        raise InputError("the conversation is empty")
    loaded = common.ready(model, "chat", talk[-1].get("content", ""), lang)
    check_generates(loaded)
    chosen = effective(loaded, settings)
    tokenizer = common.tokenizer_of(loaded)
    decoder: Any = loaded.model
    prompt = encode_chat(tokenizer, talk)
    return generate_ids(decoder, [prompt], chosen, tokenizer=tokenizer)[0]


def stream_chat(
    messages: Sequence[Message],
    loaded: Loaded,
    settings: Settings,
    should_stop: Stop | None = None,
) -> Iterator[Piece]:
    """chat(), as pieces of text; the last one carries the result."""
    check_generates(loaded)
    tokenizer = common.tokenizer_of(loaded)
    model: Any = loaded.model
    prompt = encode_chat(tokenizer, messages)
    yield from stream_text(model, tokenizer, prompt, settings, should_stop=should_stop)


# ---- encoder-decoders ----


def translate(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    source: str | None = None,
    target: str | None = None,
    prefix: str | None = None,
    batch_size: int = 8,
    lang: str | None = None,
    **settings: Any,
) -> list[dict[str, str]]:
    """[{"translation_text"}] for each text.

    source, target: language codes, for models that know several: T5's published prefix for the
    pair, or Marian's `>>target<<` token. prefix: words to put in front, instead.
    """
    items, _ = common.many(text)
    loaded = common.ready(model, "translate", items[0], lang)
    front, published = _translation(loaded, source, target)
    answers = _prefixed(
        loaded, items, front if prefix is None else prefix, published, settings, batch_size
    )
    return [{"translation_text": answer.text or ""} for answer in answers]


def summarize(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    prefix: str | None = None,
    batch_size: int = 8,
    lang: str | None = None,
    **settings: Any,
) -> list[dict[str, str]]:
    """[{"summary_text"}] for each text. prefix: default as the checkpoint publishes it."""
    items, _ = common.many(text)
    loaded = common.ready(model, "summarize", items[0], lang)
    published = dict(task_parameters(loaded).get("summarization") or {})
    own = published.pop("prefix", "")
    front = own if prefix is None else prefix
    answers = _prefixed(loaded, items, front, published, settings, batch_size)
    return [{"summary_text": answer.text or ""} for answer in answers]


def text2text(
    text: str | Sequence[str],
    model: common.ModelLike = None,
    *,
    batch_size: int = 8,
    lang: str | None = None,
    **settings: Any,
) -> list[dict[str, str]]:
    """[{"generated_text"}] for each text, given to the model as it stands."""
    items, _ = common.many(text)
    loaded = common.ready(model, "text2text", items[0], lang)
    answers = _prefixed(loaded, items, "", {}, settings, batch_size)
    return [{"generated_text": answer.text or ""} for answer in answers]


def _prefixed(
    loaded: Loaded,
    items: Sequence[str],
    prefix: str,
    published: Mapping[str, Any],
    settings: Mapping[str, Any],
    batch_size: int,
) -> list[Generated]:
    if loaded.head != "conditional-generation":
        raise InputError(
            f"this needs an encoder-decoder, the model has head {loaded.head!r}",
            where=loaded.source.origin,
            advice="take a T5 or a Marian (OPUS-MT) model",
        )
    chosen = effective(loaded, {**published, **settings})
    return _run(loaded, [prefix + item for item in items], chosen, batch_size)


def task_parameters(loaded: Loaded) -> dict[str, Any]:
    """Prefix and settings by the name of a task, as config.json publishes them."""
    published = loaded.source.published
    raw = {} if published is None else published.raw_config
    return dict(raw.get("task_specific_params") or {})


def _translation(
    loaded: Loaded, source: str | None, target: str | None
) -> tuple[str, dict[str, Any]]:
    """What the model wants in front of the text, and its published settings for the pair."""
    if target is None:
        if source is not None:
            raise InputError("translate with source= needs target= too")
        return "", {}
    token = f">>{target}<<"
    tokenizer = common.tokenizer_of(loaded)
    if tokenizer.token_to_id(token) is not None:
        return f"{token} ", {}
    name = f"translation_{source or 'en'}_to_{target}"
    parameters = task_parameters(loaded)
    if name not in parameters:
        pairs = [key for key in parameters if key.startswith("translation_")]
        known = ", ".join(pairs) or "a single pair, without source and target"
        raise InputError(f"this model does not know {name}", advice=f"it knows {known}")
    published = dict(parameters[name])
    return published.pop("prefix", ""), published
