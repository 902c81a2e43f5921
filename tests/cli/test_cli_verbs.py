"""Every verb on a tiny model: the table, the JSON, and the four ways of giving the input."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes.zoo import Zoo
from PIL import Image

import chumoku
from chumoku.cli import COMMANDS

Run = Callable[..., Any]
TEXTS = ("the cat sat in paris", "john smith works at google in london !")
MASKED = ("the [MASK] sat in paris", "john smith works at [MASK] .")


@dataclass(frozen=True)
class Case:
    """A verb that takes texts. call: the same question asked of the Python function."""

    model: str
    call: Callable[[str, str], Any]
    options: tuple[str, ...] = ()
    texts: tuple[str, ...] = TEXTS
    table: tuple[str, ...] = ()


def _generated(text: str, model: str) -> Any:
    answer = chumoku.generate(text, model, max_new_tokens=6)
    assert isinstance(answer.ids, list | tuple)  # type: ignore[union-attr]
    return {
        "text": answer.text,  # type: ignore[union-attr]
        "ids": list(answer.ids),  # type: ignore[union-attr]
        "finish_reason": answer.finish_reason,  # type: ignore[union-attr]
        "timings": {},
    }


SHORT = ("--max-new-tokens", "6")
CASES = {
    "generate": Case("chat", _generated, SHORT),
    "translate": Case(
        "t5",
        lambda text, model: chumoku.translate(text, model, source="en", target="de")[0],
        ("--source", "en", "--target", "de"),
    ),
    "summarize": Case("t5", lambda text, model: chumoku.summarize(text, model)[0]),
    "text2text": Case(
        "t5", lambda text, model: chumoku.text2text(text, model, max_new_tokens=6)[0], SHORT
    ),
    "fill-mask": Case(
        "masked",
        lambda text, model: {"text": text, "fills": chumoku.fill_mask(text, model)},
        texts=MASKED,
        table=("score", "token", "text"),
    ),
    "classify": Case(
        "entailment",
        lambda text, model: {"text": text, "labels": chumoku.classify(text, model, top_k=None)},
        table=("label", "score", "entailment", "neutral", "contradiction"),
    ),
    "zero-shot": Case(
        "entailment",
        lambda text, model: chumoku.zero_shot(text, ["sport", "politics"], model),
        ("--label", "sport", "--label", "politics"),
        table=("label", "score", "sport", "politics"),
    ),
    "ner": Case(
        "names",
        lambda text, model: {
            "text": text,
            "entities": chumoku.ner(text, model, aggregation="simple"),
        },
        table=("entity", "word", "score", "start", "end"),
    ),
    "embed": Case(
        "sentence",
        lambda text, model: {"text": text, "embedding": chumoku.embed(text, model).tolist()},
        table=("(24 values)",),
    ),
    "perplexity": Case(
        "gpt2",
        lambda text, model: chumoku.perplexity(text, model),
        ("--lines",),
        table=("perplexity", "nats a token", "tokens", "kind"),
    ),
}
OTHERS = {
    *("chat", "qa", "next-sentence", "multiple-choice", "similarity", "rerank", "search"),
    *("classify-image", "demo", "models", "cache", "train", "finetune", "tokenizer"),
}


def same(ours: Any, expected: Any) -> None:
    """Equal but for the sixth digit of a number; times are left out."""
    if isinstance(expected, dict):
        assert set(ours) == set(expected)
        for key in expected:
            if key != "timings":
                same(ours[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert len(ours) == len(expected)
        for a, b in zip(ours, expected, strict=True):
            same(a, b)
    elif isinstance(expected, float):
        assert ours == pytest.approx(expected, abs=2e-6, rel=1e-5)
    else:
        assert ours == expected


def words(verb: str, model: Path) -> list[str]:
    return [verb, "--model", str(model), *CASES[verb].options]


def test_no_command_is_forgotten() -> None:
    assert CASES.keys() | OTHERS == COMMANDS.keys()


@pytest.mark.parametrize("verb", CASES)
def test_json_is_what_the_function_gives(verb: str, run: Run, models: Zoo) -> None:
    case, folder = CASES[verb], models(CASES[verb].model)
    ran = run(*words(verb, folder), "--json", *case.texts)
    assert ran.code == 0, ran.err
    same(ran.rows, [case.call(text, str(folder)) for text in case.texts])
    with pytest.raises(AssertionError):  # the texts swapped: the comparison can fail
        same(ran.rows, [case.call(text, str(folder)) for text in case.texts[::-1]])


@pytest.mark.parametrize("verb", CASES)
def test_the_ways_of_giving_the_input(verb: str, run: Run, models: Zoo, tmp_path: Path) -> None:
    case = CASES[verb]
    start = [*words(verb, models(case.model)), "--json"]
    plain, objects = tmp_path / "items.txt", tmp_path / "items.jsonl"
    plain.write_text("\n".join(case.texts) + "\n\n", "utf-8")
    objects.write_text("".join(json.dumps({"text": t}) + "\r\n" for t in case.texts), "utf-8")
    expected = run(*start, *case.texts).rows
    same(run(*start, "--file", plain).rows, expected)
    same(run(*start, "--file", objects).rows, expected)
    same(run(*start, stdin=plain.read_text("utf-8")).rows, expected)
    same(run(*start, "--file", "-", stdin=objects.read_text("utf-8")).rows, expected)
    same(
        run(*start, "--batch-size", "1", stdin=b"\xef\xbb\xbf" + plain.read_bytes()).rows, expected
    )


@pytest.mark.parametrize("verb", CASES)
def test_the_table(verb: str, run: Run, models: Zoo) -> None:
    case = CASES[verb]
    ran = run(*words(verb, models(case.model)), case.texts[0])
    assert ran.code == 0
    assert ran.err == ""
    for part in case.table:
        assert part in ran.out
    answer = case.call(case.texts[0], str(models(case.model)))
    value = next((v for v in answer.values() if isinstance(v, str) and v != case.texts[0]), "")
    assert value in ran.out
    assert not ran.out.startswith(("{", "["))
    assert all(line == line.rstrip() for line in ran.out.splitlines() if case.table)


def test_generate_json_has_exactly_the_promised_fields(run: Run, models: Zoo) -> None:
    for verb in ("generate", "chat"):
        ran = run(verb, "--model", models("chat"), "--json", *SHORT, "the cat")
        (row,) = ran.rows
        assert list(row) == ["text", "ids", "finish_reason", "timings"]
        assert list(row["timings"]) == [
            *("prompt_tokens", "prompt_seconds", "generated_tokens", "generated_seconds")
        ]
        assert row["timings"]["generated_tokens"] == len(row["ids"]) == 6
        assert row["finish_reason"] == "length"
        assert row["timings"]["prompt_seconds"] > 0 < row["timings"]["generated_seconds"]


def test_sampling_is_reproducible(run: Run, models: Zoo) -> None:
    start = ("generate", "--model", models("chat"), "--json", "--do-sample", *SHORT, "the cat")

    def ids(*more: str) -> Any:
        return [row["ids"] for row in run(*start, *more).rows]

    assert ids("--seed", "7") == ids("--seed", "7")
    assert len({tuple(ids("--seed", str(n))[0]) for n in range(5)}) > 1
    three = ids("--seed", "7", "--num-return-sequences", "3")
    assert len(three) == 3
    assert len({tuple(row) for row in three}) > 1


def test_several_prompts_and_beams_as_a_text(run: Run, models: Zoo) -> None:
    start = ("generate", "--model", models("chat"), "--num-beams", "3", *SHORT)
    shown = run(*start, *TEXTS).out
    answers = [chumoku.generate(t, models("chat"), num_beams=3, max_new_tokens=6) for t in TEXTS]
    for text, answer in zip(TEXTS, answers, strict=True):
        assert f"{text}{answer.text}\n" in shown  # type: ignore[union-attr]


def test_threads_device_and_dtype(run: Run, models: Zoo) -> None:
    start = ("embed", "--model", models("sentence"), "--json", TEXTS[0])

    def vector(*more: str) -> Any:
        ran = run(*start, *more)
        assert ran.code == 0, ran.err
        return np.array(ran.rows[0]["embedding"])

    wide = vector("--device", "cpu", "--dtype", "float64")
    assert 0 < np.abs(vector("--dtype", "float32") - wide).max() < 1e-5
    assert 1e-4 < np.abs(vector("--dtype", "bfloat16") - wide).max() < 0.1
    vector("--threads", "1")
    assert torch.get_num_threads() == 1


def test_chat_answers_a_message_from_anywhere(run: Run, models: Zoo, tmp_path: Path) -> None:
    start = ("chat", "--model", models("chat"), *SHORT)
    expected = chumoku.chat("the cat sat", models("chat"), max_new_tokens=6).text
    (tmp_path / "message.txt").write_text("the cat sat\n", "utf-8")
    assert run(*start, "the", "cat", "sat").out == f"{expected}\n"
    assert run(*start, stdin="the cat sat").out == f"{expected}\n"
    assert run(*start, "--file", tmp_path / "message.txt").out == f"{expected}\n"
    with_system = run(*start, "--system", "be brief", "the cat sat").out
    talk = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "the cat sat"}]
    assert with_system == f"{chumoku.chat(talk, models('chat'), max_new_tokens=6).text}\n"


def test_pairs_for_classify(run: Run, models: Zoo, tmp_path: Path) -> None:
    start = ("classify", "--model", models("entailment"), "--json")
    pairs = [("the cat sat", "a dog sat"), ("john works", "mary works")]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"text": a, "pair": b}) + "\n" for a, b in pairs), "utf-8")
    rows = run(*start, "--file", file).rows
    for row, (a, b) in zip(rows, pairs, strict=True):
        labels = chumoku.classify(a, models("entailment"), pair=b, top_k=None)
        same(row, {"text": a, "pair": b, "labels": labels})
    same(run(*start, "the cat sat", "--pair", "a dog sat").rows, rows[:1])
    mixed = run(*start, stdin='{"text": "a", "pair": "b"}\nplain\n')
    assert mixed.code == 2
    assert "pair" in mixed.err


def test_qa(run: Run, models: Zoo, tmp_path: Path) -> None:
    context = "the tower bridge in london was born in the year of the queen ."
    start = ("qa", "--model", models("answers"), "--top-k", "2")
    expected = chumoku.qa("where ?", context, models("answers"), top_k=2)
    (tmp_path / "context.txt").write_text(context, "utf-8")
    same(run(*start, "--json", "where ?", context).rows, expected)
    same(run(*start, "--json", "where ?", "--file", tmp_path / "context.txt").rows, expected)
    same(run(*start, "--json", "where ?", stdin=context).rows, expected)
    item = json.dumps({"question": "where ?", "context": context})
    rows = run(*start, "--json", stdin=f"{item}\n{item}\n").rows
    same(rows, [{"question": "where ?", "answers": expected}] * 2)
    assert expected[0]["answer"] in run(*start, "where ?", context).out


def test_next_sentence(run: Run, models: Zoo) -> None:
    start = ("next-sentence", "--model", models("next"))
    expected = chumoku.next_sentence("the cat sat", "it sat", models("next"))
    same(run(*start, "--json", "the cat sat", "it sat").rows, [expected])
    item = json.dumps({"first": "the cat sat", "second": "it sat"})
    same(run(*start, "--json", stdin=f"{item}\n{item}\n").rows, [expected] * 2)
    table = run(*start, "the cat sat", "it sat").out
    assert f"{expected['is_next']:.4f}" in table
    assert f"{expected['not_next']:.4f}" in table
    assert run(*start, "the cat sat").code == 2


@pytest.mark.parametrize(
    ("model", "prompt"),
    [("choice", "the cat"), ("masked", "the [MASK] sat"), ("masked", "the cat")],
)
def test_multiple_choice(run: Run, models: Zoo, model: str, prompt: str) -> None:
    start = ("multiple-choice", "--model", models(model))
    choices = ["cat", "dog", "queen"]
    expected = chumoku.multiple_choice(prompt, choices, chumoku.load(models(model)))
    same(run(*start, "--json", prompt, *choices).rows, expected)
    item = json.dumps({"prompt": prompt, "choices": choices})
    same(run(*start, "--json", stdin=item).rows, [{"prompt": prompt, "choices": expected}])
    table = run(*start, prompt, *choices).out.splitlines()
    assert table[1].split()[0] == expected[0]["choice"]
    assert run(*start, prompt, "cat").code == 2


def test_similarity(run: Run, models: Zoo) -> None:
    start = ("similarity", "--model", models("sentence"))
    expected = chumoku.similarity(list(TEXTS), None, models("sentence")).tolist()
    (row,) = run(*start, "--json", *TEXTS).rows
    same(row, {"texts": list(TEXTS), "similarity": expected})
    same(run(*start, "--json", stdin="\n".join(TEXTS)).rows, [row])
    assert f"{expected[0][1]:.4f}" in run(*start, *TEXTS).out
    assert run(*start, "one alone").code == 2


def test_rerank(run: Run, models: Zoo) -> None:
    start = ("rerank", "--model", models("rerank"), "the cat")
    expected = chumoku.rerank("the cat", list(TEXTS), models("rerank"))
    same(run(*start, "--json", *TEXTS).rows, expected)
    same(run(*start, "--json", stdin="\n".join(TEXTS)).rows, expected)
    same(run(*start, "--json", "--top-k", "1", *TEXTS).rows, expected[:1])
    assert run(*start, *TEXTS).out.index(expected[0]["text"]) < run(*start, *TEXTS).out.index(
        expected[1]["text"]
    )


def test_search(run: Run, models: Zoo, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join((*TEXTS, *MASKED)), "utf-8")
    start = ("search", "--model", models("sentence"), "--top-k", "2")
    expected = [chumoku.search(q, corpus, models("sentence"), top_k=2) for q in ("cat", "john")]
    same(run(*start, "--json", "cat", corpus).rows, expected[0])
    rows = [{"query": q, "results": e} for q, e in zip(("cat", "john"), expected, strict=True)]
    same(run(*start, "--json", corpus, stdin="cat\njohn\n").rows, rows)
    kept = (*start, "--json", "cat", corpus, "--index", tmp_path / "index")
    same(run(*kept).rows, expected[0])
    same(run(*kept).rows, expected[0])
    assert (tmp_path / "index" / "vectors.npy").is_file()
    assert expected[0][0]["text"] in run(*start, "cat", corpus).out


def test_embed_writes_an_array(run: Run, models: Zoo, tmp_path: Path) -> None:
    output = tmp_path / "vectors.npy"
    ran = run("embed", "--model", models("sentence"), "--output", output, *TEXTS)
    assert ran.code == 0
    expected = chumoku.embed(list(TEXTS), models("sentence"))
    np.testing.assert_allclose(np.load(output, allow_pickle=False), expected, atol=2e-6)


def test_classify_image(run: Run, models: Zoo, tmp_path: Path) -> None:
    pictures = []
    for n in range(2):
        pixels = np.random.default_rng(n).integers(0, 255, (30, 24, 3), dtype=np.uint8)
        pictures.append(str(tmp_path / f"{n}.png"))
        Image.fromarray(pixels).save(pictures[-1])
    start = ("classify-image", "--model", models("vit"))
    expected = [{"image": p, "labels": chumoku.classify_image(p, models("vit"))} for p in pictures]
    same(run(*start, "--json", *pictures).rows, expected)
    same(run(*start, "--json", stdin="\n".join(pictures)).rows, expected)
    table = run(*start, pictures[0]).out.splitlines()
    assert table[1].split()[0] == expected[0]["labels"][0]["label"]


def test_japanese(run: Run, models: Zoo) -> None:
    pytest.importorskip("fugashi")
    text = "私の今日の昼ご飯は[MASK]です。"
    (row,) = run("fill-mask", "--model", models("japanese"), "--json", text).rows
    same(row, {"text": text, "fills": chumoku.fill_mask(text, models("japanese"))})
    assert len(row["fills"]) == 5


@pytest.mark.parametrize(
    ("alias", "verb"),
    [
        ("text-classification", "classify"),
        ("summarization", "summarize"),
        ("translation_en_to_de", "translate"),
        ("token-classification", "ner"),
    ],
)
def test_published_task_names(alias: str, verb: str, run: Run, models: Zoo) -> None:
    model = ("--model", models(CASES[verb].model), "--json", TEXTS[0])
    same(run(alias, *model).rows, run(verb, *CASES[verb].options, *model).rows)
