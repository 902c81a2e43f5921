"""TREC's questions as conversations, and how many answers of a chat model are right.

    python recipes/question_chat.py write --data FOLDER --output runs/question-chat
    python recipes/question_chat.py judge MODEL --data FOLDER [--adapter FOLDER] [--limit 500]

The user asks what kind of thing a question wants, the assistant says it in a few words. A model
that only chats well does not know these words; the recipe `chat-lora` teaches them.
"""

from __future__ import annotations

from pathlib import Path

from data_script import parser_of, write_rows

import chumoku
from chumoku.training.recipe import find_recipe, read_recipe
from chumoku.training.recipe_data import read_data

ASKED = "What does this question ask for? {}"
KINDS = {
    "0": "a description",
    "1": "a thing",
    "2": "an abbreviation",
    "3": "a person",
    "4": "a place",
    "5": "a number",
}
"""TREC's coarse labels as the files number them, in words."""
NAMES = {"DESC": "0", "ENTY": "1", "ABBR": "2", "HUM": "3", "LOC": "4", "NUM": "5"}
"""The same as the hub names them."""
PARTS = ("train", "test")


def conversations(data: Path, part: str) -> list[list[dict[str, str]]]:
    """The user's turn and the right answer, of each question of the recipe `trec`."""
    rows = read_data(read_recipe(find_recipe("trec")).data, [data])[part].rows
    return [
        [
            {"role": "user", "content": ASKED.format(row["text"])},
            {"role": "assistant", "content": KINDS[NAMES.get(row["label"], row["label"])]},
        ]
        for row in rows
    ]


def write(data: Path, output: Path) -> None:
    for part in PARTS:
        rows = [{"messages": talk} for talk in conversations(data, part)]
        write_rows(output / f"{part}.jsonl", rows)


def judge(model: str, data: Path, adapter: Path | None, limit: int) -> None:
    """Prints the first answers, and how many of all are right to the letter."""
    loaded = chumoku.load(model, head="causal-lm", dtype="float32", adapter=adapter)
    right = 0
    talks = conversations(data, "test")[:limit]
    for number, (question, answer) in enumerate(talks):
        said = chumoku.chat([question], loaded, max_new_tokens=12, do_sample=False).text.strip()
        right += said == answer["content"]
        if number < 5:
            print(f"{question['content']}\n  -> {said!r}, right: {answer['content']!r}")
    print(f"{right} of {len(talks)} are right: {right / len(talks):.1%}")


def main() -> None:
    parser, verb = parser_of(__doc__)
    verb.add_argument("--adapter", type=Path)
    verb.add_argument("--limit", type=int, default=500)
    options = parser.parse_args()
    if options.verb == "write":
        write(options.data, options.output)
    else:
        judge(options.model, options.data, options.adapter, options.limit)


if __name__ == "__main__":
    main()
