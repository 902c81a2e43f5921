"""Aligned text: the normal form is Python's, and every character points home."""

from __future__ import annotations

import unicodedata

import pytest
from text_samples import HARD, fuzz

from chumoku.text import alignment

TEXTS = [*HARD, *fuzz(300), "か\u3099は\u309a", "각가" * 3, "\u1100\u1161\u11a8", "ｶﾞ" * 5]


@pytest.mark.parametrize("form", ["NFC", "NFKC", "NFD", "NFKD"])
def test_normal_form_is_exact_and_each_stretch_normalises_to_itself(form: str) -> None:
    for text in TEXTS:
        done = alignment.normalize(alignment.aligned(text), form)
        assert done.text == unicodedata.normalize(form, text)
        assert len(done.starts) == len(done.ends) == len(done.text)
        for char, start, end in zip(done.text, done.starts, done.ends, strict=True):
            assert char in unicodedata.normalize(form, text[start:end])


def test_starts_never_go_back_and_cover_the_text() -> None:
    for text in TEXTS:
        done = alignment.normalize(alignment.aligned(text), "NFKC")
        assert list(done.starts) == sorted(done.starts)
        if text:
            assert (done.starts[0], done.ends[-1]) == (0, len(text))


def test_other_operations_equal_pythons() -> None:
    for text in TEXTS:
        source = alignment.aligned(text, 7)
        assert alignment.lower(source).text == text.lower()
        assert [w.text for w in alignment.words(source)] == text.split()
        assert alignment.strip(source).text == text.strip()
        swapped = alignment.replace(source, "a", "xyz")
        assert swapped.text == text.replace("a", "xyz")
        assert len(swapped.starts) == len(swapped.text)
        for word in alignment.words(source):
            start, end = word.whole
            assert text[start - 7 : end - 7] == word.text


def test_a_wrong_map_would_be_seen() -> None:
    """Negative control: the naive map, one character to one, is wrong for ㈱."""
    text = "㈱か\u3099x"
    done = alignment.normalize(alignment.aligned(text), "NFKC")
    naive = [(n, n + 1) for n in range(len(done.text))]
    assert naive != list(zip(done.starts, done.ends, strict=True))
    assert [text[a:b] for a, b in zip(done.starts, done.ends, strict=True)] == [
        *("㈱", "㈱", "㈱"),
        "か\u3099",
        "x",
    ]


def test_a_million_marks_are_linear() -> None:
    text = "a" + "\u0301" * 200_000 + "é"
    assert alignment.normalize(alignment.aligned(text), "NFKC").text == unicodedata.normalize(
        "NFKC", text
    )
