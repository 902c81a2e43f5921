"""Stop strings across token borders: what comes out, piece by piece."""

from __future__ import annotations

import random

import pytest

from chumoku.generation.stops import TextBuffer, held_back


class Pieces:
    """A token stream whose tokens are given strings; `tail` is what flush brings."""

    def __init__(self, pieces: list[str], tail: str = "") -> None:
        self._pieces, self._tail = pieces, tail

    def push(self, index: int) -> str:
        return self._pieces[index]

    def flush(self) -> str:
        return self._tail


def run(pieces: list[str], stops: list[str], tail: str = "") -> tuple[list[str], bool]:
    buffer = TextBuffer(Pieces(pieces, tail), stops)
    out = []
    for index in range(len(pieces)):
        if buffer.push(index):
            break
        out.append(buffer.take())
    buffer.close()
    out.append(buffer.take())
    assert "".join(out) == buffer.text
    return out, buffer.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["ab", "cd"], [], ["ab", "cd", ""]),
        (["ab", "cd", "ef"], ["cd"], ["ab", ""]),
        (["aS", "T", "OP", "x"], ["STOP"], ["a", "", ""]),
        (["aS", "T", "x"], ["STOP"], ["a", "", "STx", ""]),
        (["aST"], ["STOP"], ["a", "ST"]),
        (["x\n", "\n", "User:"], ["\n\nUser:", "zz"], ["x", "", ""]),
        (["ここで", "終", "わり"], ["終わり"], ["ここで", "", ""]),
        (["aab", "aabc"], ["aabaabc"], ["", ""]),
        (["xaba", "bac"], ["abac"], ["x", "ab"]),
    ],
)
def test_pieces(pieces: list[str], stops: list[str], expected: list[str]) -> None:
    assert run(pieces, stops)[0] == expected


def test_what_flush_brings_may_complete_a_stop_string() -> None:
    assert run(["abS", "T"], ["STOP"], tail="OPq") == (["ab", "", ""], True)
    assert run(["abS", "T"], ["STOP"], tail="q") == (["ab", "", "STq"], False)


def test_random_texts_are_cut_at_the_first_stop_string() -> None:
    draw = random.Random(3)
    hits = 0
    for _ in range(3000):
        pieces = ["".join(draw.choices("ab", k=draw.randint(0, 4))) for _ in range(8)]
        stops = ["".join(draw.choices("ab", k=draw.randint(3, 6))) for _ in range(2)]
        text = "".join(pieces)
        out, stopped = run(pieces, stops)
        places = [text.find(s) for s in stops if s in text]
        kept = "".join(out)
        assert stopped == bool(places)
        assert text.startswith(kept)
        assert not any(s in kept for s in stops)
        if len(set(places)) == 1:  # of two, the one that is complete first ends the text
            assert kept == text[: places[0]]
        if not places:
            assert kept == text
        hits += stopped
    assert hits > 300


def test_held_back() -> None:
    assert held_back("abcab", ["abd"]) == 2
    assert held_back("abc", ["x"]) == 0
    assert held_back("", ["xy"]) == 0
