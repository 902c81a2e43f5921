"""Conversations into text and into ids, by the model's own chat template.

Text from messages never becomes a control token: the template's output remembers which
characters came from messages, and a control token counts only where none of its characters did.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from chumoku.errors import InputError, TokenizerError
from chumoku.text import marked, templates
from chumoku.text.encoding import Tokenizer
from chumoku.text.files import AddedToken
from chumoku.text.template_values import TemplateError, imported

Message = Mapping[str, Any]
MAX_MESSAGES = 100_000
NO_TEMPLATE = "Pass template=…, or use generate with a prompt of your own."


def render_chat(
    tokenizer_template: str,
    messages: Sequence[Message],
    *,
    bos: str | None,
    eos: str | None,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The text of a conversation. Characters that come from the arguments are marked in it.

    messages: [{"role": …, "content": …}, …]. variables: further names that a template may ask
    for; their strings count as a user's.
    Raises TokenizerError where the template is wrong or exceeds its budget of steps and memory,
    InputError where it refuses the conversation.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str):
        raise InputError("A conversation is a list of messages")
    if len(messages) > MAX_MESSAGES or not all(isinstance(m, Mapping) for m in messages):
        raise InputError("Each message must be an object with role and content")
    try:
        names = {str(k): imported(value) for k, value in (variables or {}).items()}
        names |= {"messages": imported(list(messages))}
        names |= {"tools": imported(None if tools is None else list(tools))}
        names |= {"documents": imported(None if documents is None else list(documents))}
    except TemplateError as fault:
        raise InputError(f"The conversation cannot be used: {fault}") from None
    names["add_generation_prompt"] = add_generation_prompt
    names |= {
        key: text for key, text in (("bos_token", bos), ("eos_token", eos)) if text is not None
    }
    return templates.render(tokenizer_template, names, size=_size(names) + 200 * len(messages))


def _size(value: Any) -> int:
    """Characters and entries in a value."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(_size(key) + _size(item) + 1 for key, item in value.items())
    if isinstance(value, list):
        return sum(_size(item) + 1 for item in value)
    return 1


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    template: str | None = None,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a conversation. Raises InputError, TokenizerError as render_chat does."""
    source = template if template is not None else tokenizer.chat_template
    if source is None:
        raise InputError("This model has no chat template", advice=NO_TEMPLATE)
    text = render_chat(
        source,
        messages,
        bos=_name(tokenizer, tokenizer.bos_id),
        eos=_name(tokenizer, tokenizer.eos_id),
        add_generation_prompt=add_generation_prompt,
        tools=tools,
        documents=documents,
        variables=variables,
    )
    return encode_marked(tokenizer, text)


def _name(tokenizer: Tokenizer, index: int | None) -> str | None:
    return None if index is None else tokenizer.id_to_token(index)


def encode_marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of rendered text; a control token counts only outside what users wrote."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"A message holds a lone surrogate, at character {error.start}") from None
    controls = {token.content: token for token in tokenizer.controls}
    if not controls:
        return tokenizer.encode_plain(text)
    pattern = re.compile("|".join(map(re.escape, sorted(controls, key=len, reverse=True))))
    spans = marked.spans_of(text)
    bare = str.__str__(text)
    if not any(_touches(spans, *match.span()) for match in _overlapping(pattern, bare)):
        return tokenizer.encode(bare, special=False).ids
    ids: list[int] = []
    for part, token in _parts(bare, pattern, controls, spans):
        if token is not None:
            ids.append(_id(tokenizer, token))
        elif part:
            ids += tokenizer.encode_plain(part, first=not ids)
    return ids


def _overlapping(pattern: re.Pattern[str], text: str) -> Any:
    """Every place where a control token is spelled, also inside another."""
    place = 0
    while (match := pattern.search(text, place)) is not None:
        yield match
        place = match.start() + 1


def _touches(spans: Sequence[marked.Span], start: int, end: int) -> bool:
    return any(a < end and start < b for a, b in spans)


def _parts(
    text: str,
    pattern: re.Pattern[str],
    controls: Mapping[str, AddedToken],
    spans: Sequence[marked.Span],
) -> list[tuple[str, AddedToken | None]]:
    """The text cut at its true control tokens, which may swallow the space beside them."""
    parts: list[tuple[str, AddedToken | None]] = []
    place = search = 0
    while (match := pattern.search(text, search)) is not None:
        if _touches(spans, *match.span()):
            search = match.start() + 1
            continue
        token = controls[match.group()]
        before = text[place : match.start()]
        parts += [(before.rstrip() if token.lstrip else before, None), (match.group(), token)]
        place = search = match.end()
        if token.rstrip:
            place = search = len(text) - len(text[place:].lstrip())
    return [*parts, (text[place:], None)]


def _id(tokenizer: Tokenizer, token: AddedToken) -> int:
    index = token.id if token.id is not None else tokenizer.token_to_id(token.content)
    if index is None:
        raise TokenizerError(f"The control token {token.content!r} has no id")
    return index
