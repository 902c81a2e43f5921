# ruff: noqa: E501 - a case a line
"""Files made by hand: each format, each encoding, and each way in which a row can be broken."""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest

from chumoku.errors import InputError
from chumoku.training.data import decoding, formats
from chumoku.training.data.rows import FORMATS, Table, read_rows

ALL = 1.0


def read(tmp_path: Path, content: str | bytes, name: str, **options: Any) -> Table:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_rows(path, **options)


def rejects(table: Table) -> list[tuple[int, str]]:
    return [(reject.line, reject.reason) for reject in table.rejects]


# ---- what each format gives ----

GOOD: list[tuple[str, str | None, str, list[dict[str, Any]]]] = [
    ("a.txt", None, "one\n\n  two \n", [{"text": "one"}, {"text": "  two "}]),
    ("a", "text", "no end", [{"text": "no end"}]),
    ("a.txt", None, "one\rtwo\r", [{"text": "one"}, {"text": "two"}]),
    ("a.txt", None, "one\r\ntwo\r\n", [{"text": "one"}, {"text": "two"}]),
    ("a.txt", None, "a\x0cb\x85c\u2028d\n", [{"text": "a\x0cb\x85c\u2028d"}]),
    ("a.txt", "whole", "one\r\n\ntwo", [{"text": "one\r\n\ntwo"}]),
    ("a", "documents", "A.\nB.\n\n\nC.", [{"sentences": ["A.", "B."]}, {"sentences": ["C."]}]),
    ("a", "paragraphs", " = Head =\n猫。犬。\n", [{"text": "猫。犬。", "sentences": ["猫。", "犬。"]}]),
    ("a", "sentences", "猫 は いる 。\n\na cat .\n", [{"text": "猫はいる。", "sentences": ["猫はいる。"]}, {"text": "a cat .", "sentences": ["a cat ."]}]),
    ("a", "wikitext", " = <unk> = \n A @-@ b . C <unk> d .\n = = Head = = \n E .\n = F = \n G .\n", [{"text": "A-b .\nC d .\nE .", "sentences": ["A-b .", "C d .", "E ."]}, {"text": "G .", "sentences": ["G ."]}]),
    ("a", "contexts", '{"data": [{"paragraphs": [{"context": "猫 [SEP] A。B。"}, {"context": "C。"}]}]}', [{"text": "A。B。\nC。", "sentences": ["A。", "B。", "C。"]}]),
    ("a", "label-text", "3 a  b\nLOC:x c\n", [{"label": "3", "text": "a  b"}, {"label": "LOC:x", "text": "c"}]),
    ("a.conll", None, "en:a\tB-X\nen:b\tO\n", [{"words": ["a", "b"], "tags": ["B-X", "O"]}]),
    ("a.conll", None, "-DOCSTART- O\n\na NN B-X\n\nb:c O\n", [{"words": ["a"], "tags": ["B-X"]}, {"words": ["b:c"], "tags": ["O"]}]),
    ("a.conll", None, "東京\u3000都\tB-X\n", [{"words": ["東京\u3000都"], "tags": ["B-X"]}]),
    ("a.csv", None, "t,l\na,1\n", [{"t": "a", "l": "1"}]),
    ("a.csv", None, "t,l\ra,1\r", [{"t": "a", "l": "1"}]),
    ("a.csv", None, 't,l\r\n"a\r\nb, ""c""",1\r\n', [{"t": 'a\r\nb, "c"', "l": "1"}]),
    ("a.csv", None, 't,l\n"a\n\nb",\n"",2', [{"t": "a\n\nb", "l": ""}, {"t": "", "l": "2"}]),
    ("a.csv", None, 't,l\n5" pipe,1\n', [{"t": '5" pipe', "l": "1"}]),
    ("a.csv", None, "t;l\na,b;1\n", [{"t": "a,b", "l": "1"}]),
    ("a.csv", None, "t\tl\na,b\t1\n", [{"t": "a,b", "l": "1"}]),
    ("a.csv", None, "t\na; b\n\nc\n", [{"t": "a; b"}, {"t": "c"}]),
    ("a.csv", None, "本文,ラベル\n猫,良い\n", [{"本文": "猫", "ラベル": "良い"}]),
    ("a.tsv", None, 't\tl\n"a\tb"\t1\n', [{"t": "a\tb", "l": "1"}]),
    ("a.tsv", None, 't\tl\n"a ""b"""\t"1"\r\n', [{"t": 'a "b"', "l": "1"}]),
    ("a.tsv", None, 't\tl\n"a" b\t1\nc\t"2\n', [{"t": '"a" b', "l": "1"}, {"t": "c", "l": '"2'}]),
    ("a.tsv", None, 't\tl\n"a\t1\nb"\t2\n', [{"t": '"a', "l": "1"}, {"t": 'b"', "l": "2"}]),
    ("a.tsv", None, 't\tl\n"a\tb"\n', [{"t": '"a', "l": 'b"'}]),
    ("a.tsv", None, 't\tl\n"\t"\n""\t1\n', [{"t": '"', "l": '"'}, {"t": "", "l": "1"}]),
    ("a.tsv", None, 't\tl\n"a\n\nb"\t1\nc\t2\n', [{"t": "a\n\nb", "l": "1"}, {"t": "c", "l": "2"}]),
    ("a.tsv", None, 'l\tt\n1\t"a ""x""\nb"\n2\tc\n', [{"l": "1", "t": 'a "x"\nb'}, {"l": "2", "t": "c"}]),
    ("a.csv", None, " t , l,,\na,1,,x\n", [{"t": "a", "l": "1", "column 3": "", "column 4": "x"}]),
    ("a.csv", None, "sep=;\r\nt;l\r\na,b;1\r\n", [{"t": "a,b", "l": "1"}]),
    ("a.json", None, '{"data": [{"a": 1}, {"a": 2}]}', [{"a": 1}, {"a": 2}]),
    ("a.tsv", "tsv-no-header", '"a\t1\n"b"\t2\n', [{"0": '"a', "1": "1"}, {"0": "b", "1": "2"}]),
    ("a.csv", "csv-no-header", "a,1\nb,2\n", [{"0": "a", "1": "1"}, {"0": "b", "1": "2"}]),
    ("a.tsv", "tsv-no-header", "a,x\t1\n", [{"0": "a,x", "1": "1"}]),
    ("a.jsonl", None, '{"a": 1}\n\n{"a": 2.5}\r\n', [{"a": 1}, {"a": 2.5}]),
    ("a.jsonl", None, '{"a": "\\ud83d\\ude00"}', [{"a": "😀"}]),
    ("a.json", None, '[{"a": [1, {"b": null}]},\n {"a": []}]', [{"a": [1, {"b": None}]}, {"a": []}]),
    ("a.json", None, '{"a": 1}\n{"a": 2}\n', [{"a": 1}, {"a": 2}]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "format", "text", "expected"), GOOD)
def test_formats(
    name: str, format: str | None, text: str, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    table = read(tmp_path, text, name, format=format)
    assert list(table.rows) == expected
    assert table.rejects == ()
    assert table.source == str(tmp_path / name)
    packed = read(tmp_path, gzip.compress(text.encode(), mtime=0), name + ".gz", format=format)
    assert list(packed.rows) == expected


def test_squad(tmp_path: Path) -> None:
    asked = {"id": "x", "question": "Q?", "answers": [{"text": "C", "answer_start": 0}]}
    empty = {"id": "y", "question": "R?", "answers": [], "is_impossible": True}
    paragraphs = [{"context": "C.", "qas": [asked, empty, {"id": "z"}]}]
    data = {"version": "1", "data": [{"title": "T", "paragraphs": paragraphs}]}
    table = read(tmp_path, json.dumps(data, indent=2), "a.json", max_rejects=ALL)
    answered = {"text": ["C"], "answer_start": [0]}
    first = {"id": "x", "question": "Q?", "context": "C.", "answers": answered}
    assert table.rows[0] == first
    assert table.rows[1]["answers"] == {"text": [], "answer_start": []}
    assert rejects(table) == [(3, "not of SQuAD's form: KeyError('question')")]
    with pytest.raises(InputError, match="'paragraphs' is no list"):
        read(tmp_path, '{"data": [{"paragraphs": 1}]}', "a.json")
    articles = {"data": [{"paragraphs": [{}]}, {"paragraphs": [{"context": "C."}]}]}
    table = read(tmp_path, json.dumps(articles), "b", format="contexts", max_rejects=ALL)
    assert rejects(table) == [(1, "a context is no text")]


def test_aozora(tmp_path: Path) -> None:
    rule = "-" * 55
    text = (
        f"題\r\n著者\r\n\r\n{rule}\r\n【記号について】\r\n{rule}\r\n\r\n"
        "［＃８字下げ］一［＃「一」は中見出し］\r\n\r\n"
        "　吾輩《わがはい》は猫である。名前は｜未だ《まだ》無い。\r\n\r\n底本：「全集」\r\n入力：某\r\n"
    )
    table = read(tmp_path, text, "a.txt", format="aozora")
    sentences = ["吾輩は猫である。", "名前は未だ無い。"]
    assert list(table.rows) == [{"text": "".join(sentences), "sentences": sentences}]


def test_chapters_of_aozora(tmp_path: Path) -> None:
    heading = "［＃８字下げ］一［＃「一」は中見出し］\r\n"
    text = f"{heading}　猫《ねこ》である。\r\n　名はない。\r\n{heading}　犬。\r\n\r\n底本：「全集」\r\n"
    table = read(tmp_path, text, "a.txt", format="aozora-chapters")
    assert [row["sentences"] for row in table.rows] == [["猫である。", "名はない。"], ["犬。"]]


def test_a_file_names_its_own_format(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A. B.\nC.\n")
    table = read_rows([f"paragraphs:{tmp_path}/a.txt", f"sentences:{tmp_path}/[b].txt"])
    found = [row["sentences"] for row in table.rows]
    assert found == [["A.", "B."], ["C."], ["A. B."], ["C."]]
    with pytest.raises(InputError, match="no such file"):
        read_rows(f"paragraphs:{tmp_path}/none.txt")


# ---- rows that are rejected ----

BROKEN: list[tuple[str, str | bytes, int, list[tuple[int, str]]]] = [
    # name, content, how many rows are good, what is said of the others
    ("a.csv", 't,l\n"a,1\nb,2\nc,3\n', 2, [(2, "a quote that is not closed")]),
    ("a.csv", 't,l\n"a" x,1\nb,2\n', 1, [(2, "text behind a closing quote")]),
    ("a.csv", "t,l\na\nb,2\nc,3,4\n", 1, [(2, "1 columns where there are 2"), (4, "3 columns where there are 2")]),
    ("a.csv", "t,l\na\0,1\nb,2\n", 1, [(2, "a NUL character")]),
    ("a.csv", "t,l\na\rb,1\nb,2\n", 1, [(2, "a CR in the open")]),
    ("a.csv", 't,l\n"x",a\rb\nb,2\n', 1, [(2, "a CR in the open")]),
    ("a.csv", b"t,l\na\xff,1\n" + b"b,2\n" * 20, 20, [(2, "byte 0xFF is not utf-8")]),
    ("a.tsv", "t\tl\na,1\nb\t2\n", 1, [(2, "1 columns where there are 2")]),
    ("a.jsonl", '{"a": 1, "a": 2}\n{"a": 3}\n', 1, [(1, "key 'a' comes twice")]),
    ("a.jsonl", '{"b": {"a": 1, "a": 2}}\n{"a": 3}\n', 1, [(1, "key 'a' comes twice")]),
    ("a.jsonl", '{"a": [{"a": 1, "a": 2}]}\n{"a": []}\n', 1, [(1, "key 'a' comes twice")]),
    ("a.jsonl", '{"a": NaN}\n{"a": -Infinity}\n{"a": 3}\n', 1, [(1, "NaN is no JSON"), (2, "-Infinity is no JSON")]),
    ("a.jsonl", '{"a": [[1e999]]}\n{"a": []}\n', 1, [(1, "1e999 is too large")]),
    ("a.jsonl", '[1]\n3\n"x"\nnull\n{"a": 3}\n', 1, [(n, "not a JSON object") for n in (1, 2, 3, 4)]),
    ("a.jsonl", '{"a": 1\n{"a": 3}\n', 1, [(1, "no JSON: Expecting ',' delimiter: line 1 column 8 (char 7)")]),
    ("a.jsonl", '{"a": 1} {"a": 2}\n{"a": 3}\n', 1, [(1, "no JSON: Extra data: line 1 column 10 (char 9)")]),
    ("a.jsonl", '{"a": "\\ud800"}\n{"a": "x"}\n', 1, [(1, "half a surrogate pair, U+D800")]),
    ("a.jsonl", '{"a": {"b": ["\\u0000"]}}\n{"a": {}}\n', 1, [(1, "a NUL character")]),
    ("a.jsonl", "[" * 100_000 + '\n{"a": 3}\n', 1, [(1, "nested too deeply")]),
    ("a.json", '[{"a": 1},\n{"a": NaN},\n3,\n{"a": 1, "a": 1}]', 1, [(2, "NaN is no JSON"), (3, "not a JSON object"), (4, "key 'a' comes twice")]),
    ("a.conll", "a\tO\nb\n\nc\tO\n", 1, [(1, "line 2 has a word without a tag")]),
    ("a.conll", b"a\tO\n\xe3\tO\n\n" + b"c\tO\n\n" * 9, 9, [(1, "byte 0xE3 is not utf-8")]),
    ("a.txt", "a\0b\nc\n", 1, [(1, "a NUL character")]),
    ("a.txt", "é\n".encode("latin-1") + b"ascii\n" * 20, 20, [(1, "byte 0xE9 is not utf-8")]),
    ("a.txt", "猫\n".encode() * 20 + "猫です\n".encode("cp932"), 20, [(21, "byte 0x94 is not utf-8")]),
    ("a.txt", "ねこです\n".encode("cp932") * 20 + b"\x81\n", 20, [(21, "byte 0x81 is not cp932")]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "good", "expected"), BROKEN)
def test_a_broken_row_is_named_and_the_others_stay(
    name: str, content: str | bytes, good: int, expected: list[tuple[int, str]], tmp_path: Path
) -> None:
    table = read(tmp_path, content, name, max_rejects=ALL)
    assert len(table.rows) == good
    assert rejects(table) == expected
    assert {reject.file for reject in table.rejects} == {str(tmp_path / name)}
    with pytest.raises(InputError, match="rows are bad") as caught:
        read_rows(tmp_path / name)
    line, reason = expected[0]
    assert f"{tmp_path / name}:{line}: {reason}" in str(caught.value)


def test_label_text_without_a_text(tmp_path: Path) -> None:
    table = read(tmp_path, "1 good\n2\n0 \n", "a", format="label-text", max_rejects=ALL)
    assert rejects(table) == [(2, "no text after a label"), (3, "no text after a label")]


def test_more_than_a_hundredth_stops(tmp_path: Path) -> None:
    rows = '{"a": 1}\n' * 99
    assert len(read(tmp_path, rows + "{\n", "a.jsonl").rows) == 99
    with pytest.raises(InputError, match="2 of 101 rows are bad") as caught:
        read(tmp_path, rows + "{\n}\n", "a.jsonl")
    assert "--data.max_rejects=0.020" in caught.value.advice
    table = read_rows(tmp_path / "a.jsonl", max_rejects=0.020)
    assert len(table.rejects) == 2
    with pytest.raises(InputError, match="and 3 more"):
        read(tmp_path, rows + "{\n" * 8, "a.jsonl")


def test_a_very_long_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "MAX_LINE", 1000)
    long = "a" * 1001
    for name, row in (("a.txt", long), ("a.jsonl", '{"a": "' + long + '"}')):
        good = "b" if name == "a.txt" else '{"a": "b"}'
        table = read(tmp_path, f"{row}\n{good}\n", name, max_rejects=ALL)
        assert len(table.rows) == 1
        assert "characters in a line" in table.rejects[0].reason


@pytest.mark.slow
def test_a_hundred_megabytes_in_a_line(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv", "a.jsonl"):
        head = {"a.csv": "t\n", "a.txt": "", "a.jsonl": ""}[name]
        good = '{"t": "b"}' if name == "a.jsonl" else "b"
        table = read(tmp_path, f"{head}{'a' * 100_000_000}\n{good}\n", name, max_rejects=ALL)
        assert len(table.rows) == 1
        assert len(table.rejects) == 1


def test_a_quote_is_not_looked_for_without_end(tmp_path: Path) -> None:
    table = read(tmp_path, "a,b\n" + 'x,"y\n' * 300 + "c,d\n", "a.csv", max_rejects=ALL)
    assert (len(table.rejects), [dict(row) for row in table.rows]) == (300, [{"a": "c", "b": "d"}])
    far = 'a,b\nx,"y\n' + "c,d\n" * 1500 + 'e"f,g\n'
    table = read(tmp_path, far, "a.csv", max_rejects=ALL)
    assert rejects(table) == [(2, "a quote that is not closed")]
    assert len(table.rows) == 1501
    near = 'a,b\nx,"y\n' + "c,d\n" * 900 + '"\n'
    assert len(read(tmp_path, near, "a.csv").rows) == 1


# ---- files that are refused ----


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.csv", "t,t\na,1\n", "its header names 't' twice"),
        ("a.csv", 't,"l\na,1\n', "its header has a quote that is not closed"),
        ("a.csv", "t,l\n", "there are no rows"),
        ("a.txt", "", "there are no rows"),
        ("a.json", '[{"a": 1}, {"a"', "no JSON from the item of line 1 on"),
        ("a.json", '[{"a": 1} {"a": 2}]', "no list behind the item of line 1"),
        ("a.json", "[]", "there are no rows"),
        ("a.json", '[{"a": 1}] x', "no list behind"),
        ("a.json", "{\n'a': 1\n}\n", "3 of 3 rows are bad"),
        ("a.txt", "é\n".encode("latin-1") * 9, "the text is not in utf-8 nor cp932"),
        ("a.txt", "吾輩は猫である\n".encode("euc-jp") * 9, "the text is not in utf-8 nor cp932"),
        ("a.txt", "a\n".encode("utf-16-le") * 9, "a NUL character"),
        ("a.bin", "a", "the format of this file is not known"),
        ("a.txt.gz", "no gzip", "damaged or cut short"),
        ("a.txt.gz", gzip.compress(b"a\n" * 9999, mtime=0)[:-12], "damaged or cut short"),
        (
            "a.txt.gz",
            gzip.compress(b"a\n" * 99, mtime=0)[:-8] + b"12345678",
            "damaged or cut short",
        ),
    ],
)
def test_files_that_are_refused(name: str, content: str | bytes, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what) as caught:
        read(tmp_path, content, name)
    assert str(tmp_path / name) in str(caught.value)


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        read_rows(tmp_path / "a.csv")
    with pytest.raises(InputError, match="no file fits this pattern"):
        read_rows(str(tmp_path / "*.csv"))
    with pytest.raises(InputError, match="no file is named"):
        read_rows([])
    (tmp_path / "a.csv").write_text("t\na\n")
    with pytest.raises(InputError, match="'xml' is no format") as caught:
        read_rows(tmp_path / "a.csv", format="xml")
    assert all(name in caught.value.advice for name in FORMATS)


def test_a_bomb_is_refused_before_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "LEAST_BOUND", 1 << 16)
    bomb = gzip.compress(b"a\n" * 2_000_000)
    assert len(bomb) * 100 < 4_000_000
    with pytest.raises(InputError, match="grows to more than"):
        read(tmp_path, bomb, "a.txt.gz")
    real = "".join(f"{i} {i * i}\n" for i in range(20_000))
    assert len(read(tmp_path, gzip.compress(real.encode(), mtime=0), "b.txt.gz").rows) == 20_000


# ---- encodings ----

TEXT = "本文,ラベル\n吾輩は猫である,良い\n名前はまだ無い,悪い\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "cp932", "utf-16", "utf-32", "ascii", "utf-16-be"]
)
def test_an_encoding_is_found_out_and_named(encoding: str, tmp_path: Path) -> None:
    text = "text,label\na,1\n" if encoding == "ascii" else TEXT
    raw = text.encode(encoding)
    raw = b"\xfe\xff" + raw if encoding == "utf-16-be" else raw
    table = read(tmp_path, raw, "a.csv")
    named = {"ascii": "utf-8", "utf-16-be": "utf-16"}.get(encoding, encoding)
    assert table.encoding == named
    assert list(table.rows[0]) == text.split("\n")[0].split(",")
    again = read_rows(tmp_path / "a.csv", encoding=named)
    assert (list(again.rows), again.encoding) == (list(table.rows), named)


def test_a_byte_order_mark_is_no_part_of_a_header(tmp_path: Path) -> None:
    table = read(tmp_path, "\ufefft,l\na,1\n", "a.csv", encoding="utf-8")
    assert list(table.rows) == [{"t": "a", "l": "1"}]
    table = read(tmp_path, '\ufeff{"a": 1}', "a.jsonl")
    assert (list(table.rows), table.encoding) == ([{"a": 1}], "utf-8-sig")


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("東京都千代田区\n大阪府大阪市\n日本国憲法\n", "cp932"),
        ("ﾄｳｷｮｳ,1\nｵｵｻｶ,2\nﾃｽﾄﾃﾞｰﾀ,3\n", "cp932"),
        ("name,都市\n1,東京\n2,大阪\n", "cp932"),
        ("吾輩は猫である。\r\nABC\r\n", "iso2022_jp"),
    ],
)
def test_japanese_without_kana_and_in_seven_bits(text: str, encoding: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    assert decoding.decoded(tmp_path / "a.txt") == (text, encoding)


WESTERN = [
    "Café crème: déjà vu, l'été où elle est née.\n",
    "« Où êtes-vous ? » À bientôt, GARÇON.\n",
    "Größe, Straße, Übung, ÄRGER, schön und müde.\n",
    "STRASSE heißt Straße.\n",
    "¿Qué pasó mañana? ¡Adiós, niño! ESPAÑA\n",
    "¡¿Cómo?! Señor.\n",
    "AÇÃO, INFORMAÇÃO: não há opções.\n",
    "don’t “stop” – l’été\n",
    "the cat’s whiskers\n",
    "25 °C, Nº 5\n",
]


@pytest.mark.parametrize("text", WESTERN)
def test_western_text_is_not_taken_for_cp932(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode("cp1252") * 9)
    with pytest.raises(InputError, match="not in utf-8 nor cp932") as caught:
        decoding.decoded(tmp_path / "a.txt")
    assert "latin-1, cp932, euc_jp" in caught.value.advice


@pytest.mark.parametrize("encoding", ["big5", "gbk", "euc_kr"])
def test_other_scripts_are_not_taken_for_cp932(encoding: str, tmp_path: Path) -> None:
    text = {
        "big5": "這個週末我們去看電影，天氣很好。品質不錯，下次還會再買。\n",
        "gbk": "这个周末我们去看电影，天气很好。质量不错，下次还会再买。\n",
        "euc_kr": "이번 주말에 우리는 영화를 보러 갑니다. 날씨가 아주 좋습니다.\n",
    }[encoding]
    (tmp_path / "a.txt").write_bytes(text.encode(encoding) * 50)
    with pytest.raises(InputError, match="not in utf-8 nor cp932"):
        decoding.decoded(tmp_path / "a.txt")


def test_broken_iso_2022_jp_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\x1b$B\x7f\x7f\x1b(B\n")
    with pytest.raises(InputError, match="the text is not in iso2022_jp"):
        decoding.decoded(tmp_path / "a.txt")


def test_an_encoding_that_is_given(tmp_path: Path) -> None:
    table = read(tmp_path, "é\n".encode("latin-1"), "a.txt", encoding="latin-1")
    assert list(table.rows) == [{"text": "é"}]
    for wrong in ("rot13", "zlib", "x-unknown", "a\0b"):
        with pytest.raises(InputError, match="is no encoding of text"):
            read_rows(tmp_path / "a.txt", encoding=wrong)
    with pytest.raises(InputError, match=r"the text is not in utf-16: truncated data"):
        read(tmp_path, "a猫".encode("utf-16")[:-1], "a.txt")


# ---- columns, several files, the first rows ----


def test_columns_get_our_names(tmp_path: Path) -> None:
    columns = {"text": "本文", "label": "ラベル"}
    table = read(tmp_path, TEXT, "a.csv", columns=columns)
    assert dict(table.rows[0]) == {"text": "吾輩は猫である", "label": "良い"}
    assert table.columns == columns
    clash = read(tmp_path, "text,body,x\na,b,c\n", "a.csv", columns={"text": "body"})
    assert dict(clash.rows[0]) == {"text": "b", "x": "c"}
    with pytest.raises(InputError, match="no column '本分'") as caught:
        read(tmp_path, TEXT, "a.csv", columns={"text": "本分"})
    assert "ラベル, 本文" in caught.value.advice
    lines = '{"a": 1}\n{"b": 1}\n{"a": null}\n'
    table = read(tmp_path, lines, "a.jsonl", columns={"x": "a"}, max_rejects=ALL)
    assert rejects(table) == [(2, "no value in column 'a'"), (3, "no value in column 'a'")]


def test_several_files(tmp_path: Path) -> None:
    for number, encoding in enumerate(("utf-8", "cp932", "utf-8")):
        (tmp_path / f"part-{number}.txt").write_bytes(f"ねこ{number}\n".encode(encoding))
    table = read_rows(str(tmp_path / "part-*.txt"))
    assert [row["text"] for row in table.rows] == ["ねこ0", "ねこ1", "ねこ2"]
    assert table.encoding == "cp932/utf-8"
    chosen = read_rows([str(tmp_path / f"part-{n}.txt") for n in (2, 0)])
    assert [row["text"] for row in chosen.rows] == ["ねこ2", "ねこ0"]
    assert len(read_rows(str(tmp_path / "part-*.txt"), limit=2).rows) == 2
    (tmp_path / "odd[1].txt").write_text("x\n")
    assert len(read_rows(tmp_path / "odd[1].txt").rows) == 1


def test_parallel_text(tmp_path: Path) -> None:
    names = [str(tmp_path / name) for name in ("a.en", "a.ja")]

    def both(left: str, right: bytes, **options: Any) -> Table:
        Path(names[0]).write_text(left, encoding="utf-8")
        Path(names[1]).write_bytes(right)
        return read_rows(names, format="parallel", **options)

    # U+2028 and a form feed do not end a line: that would shift all that follows.
    table = both("a\u2028b\x0c\nc\n", "え\nし\n".encode())
    assert [dict(row) for row in table.rows] == [
        {"source": "a\u2028b", "target": "え"},
        {"source": "c", "target": "し"},
    ]
    right = "え\n\n".encode() + b"\xff\n" + "し\n".encode() * 20
    table = both("a\n" * 23, right, max_rejects=ALL)
    assert [row.line for row in table.rows] == [1, *range(4, 24)]
    assert {row.file for row in table.rows} == {names[0]}
    assert [str(reject) for reject in table.rejects] == [
        f"{names[1]}:2: one side is empty",
        f"{names[1]}:3: byte 0xFF is not utf-8",
    ]
    table = both("i can 't .\n", "猫 です 。\n".encode(), detokenise=["en", "ja"])
    assert dict(table.rows[0]) == {"source": "i can't.", "target": "猫です。"}
    with pytest.raises(InputError, match=r"2 lines in .* 1 in"):
        both("a\nb\n", b"c\n")
    with pytest.raises(InputError, match="pairs of files"):
        read_rows(names[:1], format="parallel")
    both("a\n", b"b\n")
    assert len(read_rows(names * 2, format="parallel").rows) == 2


# ---- the data that the recipes use, where it is ----

HERE = Path(__file__).parents[4] / "shared/data"
DATA = Path(os.environ.get("CHUMOKU_SHARED_DATA", HERE))
REAL: list[tuple[list[str], dict[str, Any], int, int, set[str]]] = [
    (["sst/stsa.fine.dev"], {"format": "label-text"}, 1101, 0, {"label", "text"}),
    (["trec/TREC.train.all"], {"format": "label-text"}, 5451, 1, {"label", "text"}),
    (["trec/TREC.train.all"], {"format": "label-text", "encoding": "latin-1"}, 5452, 0, {"label", "text"}),
    (["stsb/stsb-ja-dev.csv"], {"format": "csv-no-header", "columns": {"first": "0", "second": "1", "label": "2"}}, 1500, 0, {"first", "second", "label"}),
    (["jglue/jcommonsenseqa-v1.3/valid-v1.3.json"], {}, 1119, 0, {"q_id", "question", "label", *(f"choice{i}" for i in range(5))}),
    (["jglue/jsquad-v1.3/valid-v1.3.json"], {}, 4442, 0, {"id", "question", "context", "answers"}),
    (["ner_ja/ner.json"], {}, 5343, 0, {"curid", "text", "entities"}),
    (["ner_en/dev"], {"format": "conll"}, 10_000, 0, {"words", "tags"}),
    (["small_parallel_enja/dev.en", "small_parallel_enja/dev.ja"], {"format": "parallel"}, 500, 0, {"source", "target"}),
    (["multi30k/val.en.gz", "multi30k/val.de.gz"], {"format": "parallel"}, 1014, 0, {"source", "target"}),
    (["mnist/t10k-images-idx3-ubyte.gz", "mnist/t10k-labels-idx1-ubyte.gz"], {"format": "idx"}, 10_000, 0, {"image", "label"}),
    (["aozora/wagahaiwa_nekodearu.txt"], {"format": "aozora"}, 2245, 0, {"text", "sentences"}),
    (["shakespeare/input.txt"], {"format": "whole"}, 1, 0, {"text"}),
    (["aozora/wagahaiwa_nekodearu.txt"], {"format": "aozora-chapters"}, 11, 0, {"text", "sentences"}),
    (["jglue/jsquad-v1.3/valid-v1.3.json"], {"format": "contexts"}, 59, 0, {"text", "sentences"}),
    (["wikitext2/valid.txt"], {"format": "wikitext"}, 60, 0, {"text", "sentences"}),
    (["wikitext2/valid.txt"], {"format": "paragraphs"}, 1841, 0, {"text", "sentences"}),
]  # fmt: skip


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data is not on this machine")
@pytest.mark.parametrize(("names", "options", "good", "bad", "columns"), REAL)
def test_shared_data(
    names: list[str], options: dict[str, Any], good: int, bad: int, columns: set[str]
) -> None:
    table = read_rows([str(DATA / name) for name in names], **options)
    assert (len(table.rows), len(table.rejects)) == (good, bad)
    assert {name for row in table.rows for name in row} == columns
