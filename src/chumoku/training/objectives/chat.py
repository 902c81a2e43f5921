"""Chat tuning: causal language modelling whose targets are the assistant's answers alone.

A conversation is rendered by the model's own chat template. What an assistant's message adds to the
rendering of the messages before it, beyond the generation prompt, is that answer; it ends with the
end-of-turn token, which is a target too, so that the model learns to stop. The tokens before an
answer are exactly those that `chumoku chat` will put before it.

Shape letters: B batch, T position, M positions with a target, V vocabulary.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from chumoku.errors import InputError
from chumoku.generation.generate import generate
from chumoku.generation.settings import Settings
from chumoku.loading import Loaded
from chumoku.tasks.generation import effective
from chumoku.text import marked
from chumoku.text.chat import encode_marked, render_chat
from chumoku.text.encoding import Tokenizer
from chumoku.training.objectives import causal_lm, encoded
from chumoku.training.objectives.causal_lm import Row
from chumoku.training.objectives.conversations import Message, checked_messages, messages_of
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.task import IGNORED, Kind, Task

STRADDLING: Final = 2
"""So many tokens at the end of a prompt may come out differently when text follows them."""

# ---- which tokens are answers ----


class Talk(NamedTuple):
    """ids of a conversation; answers: (start, end) of each part of ids that is to be learned."""

    ids: list[int]
    answers: list[tuple[int, int]]


@dataclass(frozen=True)
class Renderer:
    """Messages -> text and ids, by the tokenizer's chat template. ends: ids that may end a turn."""

    tokenizer: Tokenizer
    template: str
    ends: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Renderer:
        """Raises InputError where there is no template."""
        if tokenizer.chat_template is None:
            raise InputError(
                "the tokenizer of this model has no chat template",
                advice="take a chat model, or add chat_template to its tokenizer_config.json",
            )
        named = (tokenizer.token_to_id(token.content) for token in tokenizer.controls)
        ends = frozenset(i for i in (*named, tokenizer.eos_id) if i is not None)
        return cls(tokenizer, tokenizer.chat_template, ends)

    def text(self, messages: Sequence[Message], *, prompt: bool) -> str:
        """prompt: followed by what asks the assistant to speak."""
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        return render_chat(
            self.template,
            messages,
            bos=None if bos is None else self.tokenizer.id_to_token(bos),
            eos=None if eos is None else self.tokenizer.id_to_token(eos),
            add_generation_prompt=prompt,
        )

    def ids(self, text: str) -> list[int]:
        return encode_marked(self.tokenizer, text)


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How many items the two begin with in common."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))


def turn_of(renderer: Renderer, messages: Sequence[Message]) -> Talk:
    """A conversation that ends with an answer, which alone is to be learned.

    The answer starts where the rendering leaves that of the prompt. (Where a token straddles the
    two, it counts as answer.) It ends with the last control token, if there is one: line breaks
    that a template puts behind it are never generated. Raises InputError where the template changes
    what was said before, so that the two cannot be told apart.
    """
    prompt = renderer.text(messages[:-1], prompt=True)
    whole = renderer.text(messages, prompt=False)
    said = common(str(prompt), str(whole))
    before = marked.spans_of(prompt)
    same = tuple(span for span in marked.spans_of(whole) if span[0] < said)
    ids = renderer.ids(whole)
    start = common(renderer.ids(prompt), ids)
    apart = len(renderer.ids(marked.cut(whole, 0, said))) - start <= STRADDLING
    if before != same or any(end > said for _, end in before) or not apart:
        raise InputError(
            "the chat template writes earlier messages differently once they are answered",
            advice="only templates that go on from the prompt can be learned from",
        )
    closing = [n for n in range(start, len(ids)) if ids[n] in renderer.ends]
    end = closing[-1] + 1 if closing else len(ids)
    return Talk(ids, [(start, end)])


def talks_of(renderer: Renderer, messages: Sequence[Message]) -> list[Talk]:
    """One conversation with all its answers; or one for each answer, where the template writes
    earlier answers differently (some leave out their thoughts), each with what it is then shown.
    An assistant's first word, with nothing before it, is no answer.
    """
    places = [n for n, m in enumerate(messages) if m.get("role") == "assistant" and n > 0]
    turns = [turn_of(renderer, messages[: n + 1]) for n in places]
    if not turns:
        return []
    last = turns[-1].ids
    answers = [turn.answers[0] for turn in turns]
    if all(turn.ids[:end] == last[:end] for turn, (_, end) in zip(turns, answers, strict=True)):
        return [Talk(last, answers)]
    return turns


def row_of(talk: Talk, length: int) -> Row | None:
    """At most `length` positions, from the beginning; None where no answer is left."""
    ids = torch.tensor(talk.ids[: length + 1])
    learned = torch.zeros(len(ids), dtype=torch.bool)
    for start, end in talk.answers:
        learned[start:end] = True
    if not bool(learned[1:].any()):
        return None
    return Row(ids[:-1], torch.where(learned[1:], ids[1:], IGNORED))


# ---- packing ----


def pack(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Indices in groups of at most `room` tokens each: best fit, longest first."""
    groups: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room left, group), ascending
    for index in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        place = bisect.bisect_left(free, (lengths[index], -1))
        left, group = free.pop(place) if place < len(free) else (room, len(groups))
        if group == len(groups):
            groups.append([])
        groups[group].append(index)
        bisect.insort(free, (left - lengths[index], group))
    return groups


def joined(rows: Sequence[Row]) -> Row:
    """Conversations in one row, numbered, so that none sees another."""
    if len(rows) == 1:
        return rows[0]
    return Row(
        torch.cat([row.ids_T for row in rows]),
        torch.cat([row.targets_T for row in rows]),
        torch.cat([torch.full_like(row.ids_T, n) for n, row in enumerate(rows)]),
    )


class Rows:
    """Rows made beforehand. notes: what was cut or left out, for the user."""

    def __init__(self, rows: Sequence[Row], notes: Sequence[str] = ()) -> None:
        self.rows, self.notes = rows, tuple(notes)

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, index: int) -> int:
        return len(self.rows[index].ids_T)

    def example(self, index: int, epoch: int) -> Row:
        return self.rows[index]


# ---- the task ----


def check_row(row: Any, number: int) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    messages_of(row, number)


def rows_of(
    renderer: Renderer,
    conversations: Sequence[Sequence[Message]],
    length: int,
    packing: bool,
    progress: Progress | None = None,
) -> Rows:
    """Raises InputError where no conversation has an answer within `length` tokens."""
    rows: list[Row] = []
    cut = 0
    left_out: dict[int, str] = {}
    for number, messages in enumerate(encoded.reported(conversations, progress, "tokenising")):
        try:
            talks = talks_of(renderer, messages)
        except InputError as error:
            left_out[number] = error.what
            continue
        made = [row for row in (row_of(talk, length) for talk in talks) if row is not None]
        cut += any(len(talk.ids) > length + 1 for talk in talks)
        if not made:
            left_out[number] = f"no answer within {length} tokens"
        rows += made
    if not rows:
        number, why = next(iter(left_out.items()), (0, "there are no rows"))
        raise InputError(f"no conversation can be learned from: {why}", where=f"row {number}")
    notes = [f"{cut} of {len(conversations)} conversations cut to {length} tokens"] if cut else []
    for why, numbers in _by_reason(left_out).items():
        shown = ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")
        notes.append(f"{len(numbers)} left out (rows {shown}): {why}")
    if packing:
        groups = pack([len(row.ids_T) for row in rows], length)
        rows = [joined([rows[n] for n in group]) for group in groups]
    return Rows(rows, notes)


def _by_reason(reasons: Mapping[int, str]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for number, why in reasons.items():
        found.setdefault(why, []).append(number)
    return found


def task(
    loaded: Loaded,
    rows: Sequence[Any],
    *,
    evaluation: Sequence[Any] | None = None,
    length: int | None = None,
    packing: bool = False,
    evaluation_batch_size: int = 8,
    sample_tokens: int = 64,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to answer. rows: messages, or a question and an answer, see checked_messages().

    length: most tokens of a row (default: what the model takes, at most 512); longer conversations
    are cut, and `examples.notes` says how many. packing: several conversations share a row, without
    seeing each other. Evaluation: loss, perplexity and accuracy of a token of the answers. While
    training, the answer to the first evaluation row is shown. seed: not used, nothing is drawn.
    Raises InputError, TokenizerError.
    """
    check_head(loaded, ("causal-lm",))
    tokenizer = encoded.checked_tokenizer(loaded)
    renderer = Renderer.of(tokenizer)
    length = encoded.checked_length(loaded, length, 2)
    evaluate = sample = None
    if evaluation is not None:
        talks = checked_messages(evaluation)
        held_out = rows_of(renderer, talks, length, False, progress)
        evaluate = causal_lm.evaluator(held_out, evaluation_batch_size)
        settings = effective(loaded, {"max_new_tokens": sample_tokens, "do_sample": False})
        sample = sampler(renderer, talks, settings)
    return Task(
        examples=rows_of(renderer, checked_messages(rows), length, packing, progress),
        collate=causal_lm.collate,
        loss=causal_lm.loss,
        evaluate=evaluate,
        sample=sample,
    )


KIND: Final = Kind("causal-lm", task, check_row)


def sampler(
    renderer: Renderer, conversations: Sequence[Sequence[Message]], settings: Settings
) -> Callable[[nn.Module], str] | None:
    """model -> its answer to the first conversation that has one, up to that answer."""
    for messages in conversations:
        places = [n for n, m in enumerate(messages) if m["role"] == "assistant" and n > 0]
        if places:
            before = messages[: places[0]]
            break
    else:
        return None
    ids = renderer.ids(renderer.text(before, prompt=True))

    def sample(model: Any) -> str:
        (made,) = generate(model, [ids], settings, tokenizer=renderer.tokenizer)
        return f"{before[-1].get('content')} -> {made.text}"

    return sample
