"""Rows as conversations: the forms in which published data sets and plain tables hold them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from chumoku.errors import InputError
from chumoku.training.data.tables import naming, where_of
from chumoku.training.objectives.text_rows import Row, string_of

Message = Mapping[str, Any]

LISTS: Final = ("messages", "conversations")
ASKED: Final = ("user", "question", "instruction", "prompt", "input")
ANSWERED: Final = ("assistant", "answer", "output", "response", "completion")
MATERIAL: Final = ("input", "context")
"""What an instruction is about: Alpaca's name for it, and databricks-dolly-15k's."""
SPEAKERS: Final = {
    **{name: name for name in ("system", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "chatgpt": "assistant"},
}
"""Who speaks in a message of ShareGPT's form -> role."""


def checked_messages(rows: Sequence[Any]) -> list[Sequence[Message]]:
    """Lists of {"role", "content"}, both texts, from such lists and from rows of these forms.

    A list in "messages" or "conversations", of ShareGPT's {"from", "value"} too. Or one turn: what
    is asked (the first of ASKED that the row has) and what is answered (of ANSWERED), both texts,
    or lists of messages as TRL has them; what an "instruction" is about (MATERIAL) follows it
    behind a blank line. Columns "user" and "assistant" go before a list. A text in "system" comes
    first, unless the messages begin with one. Raises InputError.
    """
    return [messages_of(row, number) for number, row in enumerate(rows)]


def messages_of(row: Any, number: int) -> Sequence[Message]:
    """A row's messages. Raises InputError: a template would write None for absent content."""
    if not isinstance(row, Mapping):
        return _listed(row, row, number)
    name = _first(LISTS, row)
    if name is not None and {"user", "assistant"}.isdisjoint(row):
        messages = _listed(row[name], row, number)
    else:
        messages = _side(ASKED, "question", row, number) + _side(ANSWERED, "answer", row, number)
    if row.get("system") in (None, "") or (messages and messages[0]["role"] == "system"):
        return messages
    return [{"role": "system", "content": string_of(row, "system", number)}, *messages]


def _first(names: Sequence[str], row: Row) -> str | None:
    return next((name for name in names if row.get(name) is not None), None)


def _side(names: Sequence[str], what: str, row: Row, number: int) -> list[Message]:
    """What is asked, or what is answered. names: of its columns, the first of which is a role."""
    name, role = _first(names, row), names[0]
    if name is None:
        raise InputError(
            f"{where_of(row, number)} has no messages, and no {what}: none of {', '.join(names)}",
            where=role,
            advice=f"{naming(role, row)}; `finetune chat` has --{what}-column",
        )
    if isinstance(row[name], list | tuple):
        return _listed(row[name], row, number)
    content = string_of(row, name, number)
    if name == "instruction":
        about = [more for more in MATERIAL if str(row.get(more) or "").strip()]
        content = "\n\n".join([content, *(string_of(row, more, number) for more in about)])
    return [{"role": role, "content": content}]


def _listed(found: Any, row: Any, number: int) -> list[Message]:
    if isinstance(found, list | tuple):
        messages = [_message(one) for one in found if isinstance(one, Mapping)]
        texts = all(isinstance(m.get(key), str) for m in messages for key in ("role", "content"))
        if texts and len(messages) == len(found):
            return messages
    raise InputError(
        f"{where_of(row, number)} has no list of messages with role and content",
        where="messages",
        advice="both are texts; leave out messages without content "
        f"(in ShareGPT's form: value, and from, which is one of {', '.join(SPEAKERS)})",
    )


def _message(found: Message) -> Message:
    """A message of ShareGPT's form as one of ours; an unknown speaker has no role."""
    if "role" in found or "from" not in found:
        return found
    return {"role": SPEAKERS.get(str(found["from"])), "content": found.get("value")}
