"""Writes pipelines_457.json: the answers of the pipelines that transformers 5 no longer has.

Question answering, translation, summarization and text2text, on tiny models whose weights are
made anew, the same here and in the test, from seeds (tests/tasks/models.py). Run it with that
release:

    pip install transformers==4.57.1 && python tests/golden/make_pipelines_457.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tasks import models

SENTENCES = (
    "John Smith lives in Paris, the capital of France.",
    "Mary works at Google in New York; she was born in 1999 in berlin!",
    "Zürich (猫☃) is not big: e\u0301clair, paris PARIS.",
    "The queen is at the tower bridge in london, and the cat sat on 3 mats?",
)
LONG = " ".join(f"{SENTENCES[n % 4]} {n}" for n in range(9))
PARIS = ["where is the capital of france?", SENTENCES[0]]
QA: list[tuple[str, str, dict[str, Any]]] = [
    (*PARIS, {}),
    (*PARIS, {"top_k": 4}),
    (*PARIS, {"top_k": 4, "align_to_words": False}),
    (*PARIS, {"top_k": 3, "handle_impossible_answer": True}),
    (*PARIS, {"top_k": 3, "max_answer_len": 2}),
    ("who lives?", SENTENCES[2], {"top_k": 5}),
    ("who lives?", SENTENCES[2], {"top_k": 5, "align_to_words": False, "max_answer_len": 3}),
    ("when?", LONG, {}),
    ("when?", LONG, {"top_k": 8}),
    ("when?", LONG, {"top_k": 8, "max_seq_len": 30}),
    ("when?", LONG, {"top_k": 6, "max_seq_len": 40, "doc_stride": 10, "align_to_words": False}),
    ("when?", LONG, {"top_k": 30, "doc_stride": 5, "handle_impossible_answer": True}),
    ("where?", " ".join(SENTENCES), {"top_k": 3}),
]
SPANS = [
    ("BertForQuestionAnswering", "english", 0),
    ("BertForQuestionAnswering", "english", 1),
    ("RobertaForQuestionAnswering", "roberta", 2),
]

TEXTS = ["the cat sat at the big river .", "Mary works, in london", "hello world"]
PARAMETERS = {
    "summarization": {
        **{"prefix": "this is science: ", "max_length": 16, "min_length": 4, "num_beams": 3},
        **{"early_stopping": True, "length_penalty": 2.0, "no_repeat_ngram_size": 3},
    },
    "translation_en_to_de": {
        **{"prefix": "translate English to German: ", "max_length": 12, "num_beams": 2},
        "early_stopping": True,
    },
}
# Limits and beams are always said: the pipelines of 4.57 have four beams and 256 tokens of their
# own accord, where chumoku is greedy unless the checkpoint or the caller asks for more.
GENERATED: list[tuple[str, dict[str, Any]]] = [
    ("translation_en_to_de", {"max_new_tokens": 11}),
    ("translation_en_to_de", {"max_new_tokens": 8, "num_beams": 1}),
    ("summarization", {"max_new_tokens": 15}),
    ("summarization", {"max_new_tokens": 12, "num_beams": 1, "min_length": 6}),
    ("text2text-generation", {"max_new_tokens": 9, "num_beams": 1}),
    ("text2text-generation", {"max_new_tokens": 9, "num_beams": 4, "no_repeat_ngram_size": 2}),
    ("text2text-generation", {"max_new_tokens": 7, "num_beams": 1, "repetition_penalty": 1.7}),
]
T5 = {"task_specific_params": PARAMETERS, "decoder_start_token_id": 0, "pad_token_id": 0}


def main() -> None:
    from transformers import pipeline

    warnings.simplefilter("ignore")
    golden: dict[str, Any] = {"spans": [], "generated": []}
    with tempfile.TemporaryDirectory() as name:
        for number, (kind, tokenizer, seed) in enumerate(SPANS):
            folder = Path(name) / str(number)
            model = models.save(folder, kind, tokenizer, seed)
            pipe = pipeline("question-answering", model=str(folder), device="cpu")
            answers = [pipe(question=q, context=c, **settings) for q, c, settings in QA]
            golden["spans"].append({"weights": models.checksum(model), "answers": answers})
        folder = Path(name) / "t5"
        model = models.save(folder, "T5ForConditionalGeneration", "t5", 7, **T5)
        golden["weights"] = models.checksum(model)
        for task, settings in GENERATED:
            pipe = pipeline(task, model=str(folder), device="cpu")
            golden["generated"].append(pipe(TEXTS, **settings))
    path = Path(__file__).with_name("pipelines_457.json")
    path.write_text(json.dumps(golden, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
