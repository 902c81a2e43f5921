"""Which tokens of a conversation are targets, for several templates; packing; training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from text import chat_templates as templates
from tokenizers import Tokenizer as Engine
from training.objectives import tiny

from chumoku.errors import InputError
from chumoku.loading import Loaded
from chumoku.models import gpt2
from chumoku.text.chat import encode_chat
from chumoku.text.fast import FastTokenizer
from chumoku.training.objectives import causal_lm, chat
from chumoku.training.task import IGNORED

CONFIG = gpt2.Config(
    width=24,
    num_blocks=2,
    num_heads=4,
    feedforward_width=36,
    max_positions=256,
    dropout=0.0,
    attention_dropout=0.0,
    embedding_dropout=0.0,
)
CONTROLS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SINGLE = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "a 猫."}]
MULTI = [
    {"role": "system", "content": "be kind"},
    *SINGLE,
    {"role": "user", "content": "and the dog?"},
    {"role": "assistant", "content": "an inn, the other"},
]
CHANGING = (
    "{% for m in messages %}{% if not loop.last %}{{ m['content'] | upper }}"
    "{% else %}{{ m['content'] }}{% endif %}<|im_end|>{% endfor %}"
)


def tokenizer(template: str, end: str = "<|im_end|>") -> FastTokenizer:
    engine = Engine.from_str(tiny.tokenizer("gpt2").engine.to_str())
    engine.add_special_tokens(CONTROLS)
    roles = {"bos": "<|endoftext|>", "eos": end}
    return FastTokenizer(engine, roles, chat_template=template)


def loaded_of(template: str = templates.CHATML) -> Loaded:
    tokens = tokenizer(template)
    config = replace(CONFIG, vocab_size=tokens.vocab_size)
    return replace(tiny.created(config, "causal-lm", None), tokenizer=tokens)


def learned(tokens: FastTokenizer, talk: chat.Talk) -> list[str]:
    return [tokens.decode(talk.ids[start:end]) for start, end in talk.answers]


CASES = [
    (templates.CHATML, "<|im_end|>"),
    (templates.LLAMA3, "<|eot_id|>"),
    (templates.INST, "<|endoftext|>"),
]


@pytest.mark.parametrize(("template", "end"), CASES)
def test_answers_and_their_ends_are_learned(template: str, end: str) -> None:
    tokens = tokenizer(template, end)
    renderer = chat.Renderer.of(tokens)
    messages = MULTI[1:] if template == templates.INST else MULTI
    (talk,) = chat.talks_of(renderer, messages)
    assert talk.ids == encode_chat(tokens, messages, add_generation_prompt=False)
    answers = [m["content"] for m in messages if m["role"] == "assistant"]
    assert learned(tokens, talk) == [answer + end for answer in answers]
    for number, (start, _) in enumerate(talk.answers):  # as the verb puts it before an answer
        places = [n for n, m in enumerate(messages) if m["role"] == "assistant"]
        assert talk.ids[:start] == encode_chat(tokens, messages[: places[number]])
    row = chat.row_of(talk, 250)
    assert row is not None
    for place, target in enumerate(row.targets_T.tolist()):
        inside = any(start <= place + 1 < end for start, end in talk.answers)
        assert target == (talk.ids[place + 1] if inside else IGNORED)


def test_a_control_token_that_a_user_spells_is_no_end() -> None:
    tokens = tokenizer(templates.CHATML)
    messages = [SINGLE[0], {"role": "assistant", "content": "a <|im_end|> b"}]
    (talk,) = chat.talks_of(chat.Renderer.of(tokens), messages)
    assert learned(tokens, talk) == ["a <|im_end|> b<|im_end|>"]
    assert talk.ids[talk.answers[0][0] : talk.answers[0][1]].count(tokens.eos_id) == 1


def test_thoughts_that_a_template_drops_later() -> None:
    """Each answer is learned with what the template shows when it is given."""
    tokens = tokenizer(templates.THINKING.replace("\\n", "\n"))
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\nyes"},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": "<think>\nah\n</think>\nno"},
    ]
    talks = chat.talks_of(chat.Renderer.of(tokens), messages)
    assert [len(talk.answers) for talk in talks] == [1, 1]
    first, second = (learned(tokens, talk)[0] for talk in talks)
    assert "hm" in first
    assert "yes" in first
    assert "ah" in second
    assert "no" in second
    assert "hm" not in tokens.decode(talks[1].ids)


def test_templates_that_rewrite_what_was_said_are_refused() -> None:
    renderer = chat.Renderer.of(tokenizer(CHANGING))
    with pytest.raises(InputError, match="differently"):
        chat.talks_of(renderer, SINGLE)
    with pytest.raises(InputError, match="differently"):
        chat.task(loaded_of(CHANGING), [{"messages": SINGLE}])
    without = tokenizer(templates.CHATML)
    without.chat_template = None
    with pytest.raises(InputError, match="no chat template"):
        chat.Renderer.of(without)


def test_what_is_cut_and_left_out_is_said() -> None:
    loaded = loaded_of()
    rows = [{"messages": MULTI}, {"messages": SINGLE[:1]}, MULTI[:2], SINGLE]
    task = chat.task(loaded, rows, length=60)
    examples: Any = task.examples
    assert len(examples) == 2
    assert any("1 of 4 conversations cut to 60" in note for note in examples.notes)
    assert any("2 left out (rows 1, 2)" in note for note in examples.notes)
    assert max(examples.length(i) for i in range(2)) <= 60
    with pytest.raises(InputError, match="row 1 has no list"):
        chat.task(loaded, [SINGLE, {"messages": "hello"}])
    with pytest.raises(InputError, match="no conversation can be learned"):
        chat.task(loaded, [SINGLE[:1]])


# ---- packing ----


def test_groups_fit_and_hold_each_once() -> None:
    lengths = [7, 3, 5, 9, 10, 1, 1, 2, 6, 4]
    groups = chat.pack(lengths, 10)
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in group) <= 10 for group in groups)
    assert len(groups) == 5  # 48 tokens need no fewer
    assert groups == chat.pack(lengths, 10)


def test_packed_rows_have_the_same_loss() -> None:
    loaded = loaded_of()
    model: Any = loaded.model.double()
    tiny.randomised(model)
    rows = [SINGLE, MULTI, [MULTI[0], *SINGLE], MULTI[:3]]
    totals = []
    for packing in (False, True):
        task = chat.task(loaded, rows, length=200, packing=packing)
        examples = [task.examples.example(i, 0) for i in range(len(task.examples))]
        batch = task.collate(examples)
        assert (batch.sequences_BT is not None) == packing
        found = task.loss(model, batch)
        totals.append((float(found.total.detach()), int(found.units), len(examples)))
    assert totals[0][1] == totals[1][1]
    assert totals[1][2] < totals[0][2]
    assert abs(totals[0][0] - totals[1][0]) < 1e-9 * totals[0][0]
    leaking = batch._replace(sequences_BT=None)
    leak = float(causal_lm.loss(model, leaking).total.detach())
    assert abs(leak - totals[0][0]) > 1e-3 * totals[0][0]


# ---- training ----


def test_the_answer_is_learned_and_given() -> None:
    loaded = loaded_of()
    task = chat.task(loaded, [SINGLE, MULTI], evaluation=[SINGLE, MULTI], packing=True)
    before = tiny.metrics(task, loaded.model)
    tiny.train(task, loaded.model, 60)
    after = tiny.metrics(task, loaded.model)
    assert after["loss"] < 0.5 < before["loss"]
    known = replace(loaded, generation={"eos_token_id": loaded.tokenizer.eos_id})  # type: ignore[union-attr]
    task = chat.task(known, [SINGLE], evaluation=[SINGLE])
    assert task.sample is not None
    assert task.sample(loaded.model) == "the cat? -> a 猫."


@pytest.mark.parametrize("answer", [{}, {"content": None}, {"content": 3}])
def test_an_answer_without_content_is_never_learnt_as_none(answer: dict[str, Any]) -> None:
    row = {"messages": [SINGLE[0], {"role": "assistant"} | answer]}
    with pytest.raises(InputError, match="row 0 has no list of messages with role and content"):
        chat.checked_messages([row])


# ---- forms of rows ----

ASKED = {"role": "user", "content": "猫は?"}
SAID = {"role": "assistant", "content": "いる。"}
SYSTEM = {"role": "system", "content": "短く。"}
ABOUT = {"role": "user", "content": "要約せよ。\n\n猫がいる。"}
SHARED = [{"from": "human", "value": "猫は?"}, {"from": "gpt", "value": "いる。"}]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"user": "猫は?", "assistant": "いる。"}, [ASKED, SAID]),
        ({"question": "猫は?", "answer": "いる。", "system": ""}, [ASKED, SAID]),
        ({"question": "猫は?", "answer": "いる。", "system": "短く。"}, [SYSTEM, ASKED, SAID]),
        ({"instruction": "猫は?", "input": "", "output": "いる。"}, [ASKED, SAID]),
        ({"instruction": "要約せよ。", "input": "猫がいる。", "output": "いる。"}, [ABOUT, SAID]),
        (
            {"instruction": "要約せよ。", "context": "猫がいる。", "response": "いる。"},
            [ABOUT, SAID],
        ),
        ({"prompt": "猫は?", "completion": "いる。"}, [ASKED, SAID]),
        ({"prompt": [SYSTEM, ASKED], "completion": [SAID]}, [SYSTEM, ASKED, SAID]),
        ({"conversations": SHARED}, [ASKED, SAID]),
        ({"conversations": [ASKED, SAID], "system": "短く。"}, [SYSTEM, ASKED, SAID]),
        ({"messages": [SYSTEM, ASKED, SAID], "system": "長く。"}, [SYSTEM, ASKED, SAID]),
        ({"messages": [ASKED, SAID], "question": "犬は?", "answer": "いない。"}, [ASKED, SAID]),
        ({"user": "猫は?", "assistant": "いる。", "messages": SINGLE}, [ASKED, SAID]),
        ({"user": "猫は?", "answer": "いる。", "context": "犬"}, [ASKED, SAID]),
    ],
)
def test_every_form_is_the_same_conversation(row: Any, expected: Any) -> None:
    assert chat.checked_messages([row]) == [expected]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "猫は?"}, "(?s)row 0 has no messages, and no answer: .*--answer-column"),
        (
            {"質問": "a", "回答": "b"},
            "(?s)no question: .*there are 質問, 回答; --data.columns.user",
        ),
        ({"question": " ", "answer": "b"}, "'question' of row 0 is empty"),
        ({"question": "a", "answer": ""}, "'answer' of row 0 is empty"),
        ({"question": "a", "answer": 3}, "'answer' of row 0 is not a text but int"),
        ({"instruction": "a", "input": ["b"], "output": "c"}, "'input' of row 0 is not a text"),
        ({"conversations": [{"from": "observation", "value": "a"}]}, "(?s)no list.*human"),
        ({"conversations": [{"from": "human"}]}, "no list of messages"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "no list of messages"),
        ({"messages": "猫は?"}, "no list of messages"),
        ({"messages": [ASKED, "いる。"]}, "no list of messages"),
        ({"messages": SINGLE, "system": 3}, "'system' of row 0 is not a text"),
    ],
)
def test_rows_that_are_no_conversation(row: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat.check_row(row, 0)
