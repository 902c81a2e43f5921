"""One tiny model for each verb, as transformers saves it, for the tests of the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.models import save, write_json

Maker = Callable[[Path], None]
Zoo = Callable[[str], Path]

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def change_json(path: Path, **values: Any) -> None:
    """Set keys of a JSON file."""
    write_json(path, {**json.loads(path.read_text("utf-8")), **values})


def _chat(folder: Path) -> None:
    save(folder, "LlamaForCausalLM", "gpt2", max_position_embeddings=8192)
    change_json(folder / "tokenizer_config.json", chat_template=TEMPLATE, model_max_length=8192)


def _t5(folder: Path) -> None:
    save(folder, "T5ForConditionalGeneration", "t5", seed=2, decoder_start_token_id=0)
    tasks = {
        "summarization": {"prefix": "summarize: ", "max_length": 12, "num_beams": 2},
        "translation_en_to_de": {"prefix": "translate English to German: ", "max_length": 12},
    }
    change_json(folder / "config.json", task_specific_params=tasks)


def _labels(*labels: str) -> dict[str, Any]:
    return {"id2label": dict(enumerate(labels)), "label2id": {n: i for i, n in enumerate(labels)}}


def _classes(class_name: str, *labels: str, **config: Any) -> Maker:
    return lambda folder: save(folder, class_name, "english", **_labels(*labels), **config)


def _sentence(folder: Path) -> None:
    save(folder, "BertModel", "english")
    steps = [("0", "", "Transformer"), ("1", "1_Pooling", "Pooling"), ("2", "2_Normalize", "")]
    kinds = ("Transformer", "Pooling", "Normalize")
    write_json(
        folder / "modules.json",
        [
            {"idx": n, "name": name, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for n, ((name, path, _), kind) in enumerate(zip(steps, kinds, strict=True))
        ],
    )
    pooling = {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)


def _vit(folder: Path) -> None:
    labels = {
        "id2label": {0: "cat", 1: "dog", 2: "sky"},
        "label2id": {"cat": 0, "dog": 1, "sky": 2},
    }
    save(folder, "ViTForImageClassification", **labels)
    size = {"height": 20, "width": 20}
    prepared = {"image_processor_type": "ViTImageProcessor", "do_resize": True, "size": size}
    prepared |= {"do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
    prepared |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2}
    write_json(folder / "preprocessor_config.json", prepared)


MAKERS: dict[str, Maker] = {
    "chat": _chat,
    "gpt2": lambda folder: save(folder, "GPT2LMHeadModel", "gpt2"),
    "t5": _t5,
    "masked": lambda folder: save(folder, "BertForMaskedLM", "english"),
    "japanese": lambda folder: save(folder, "BertForMaskedLM", "japanese"),
    "next": lambda folder: save(folder, "BertForNextSentencePrediction", "english"),
    "entailment": _classes(
        "BertForSequenceClassification", "contradiction", "neutral", "entailment", num_labels=3
    ),
    "rerank": _classes("BertForSequenceClassification", "relevance", num_labels=1),
    "names": _classes("BertForTokenClassification", "O", "B-PER", "I-PER", "B-LOC"),
    "answers": lambda folder: save(folder, "BertForQuestionAnswering", "english"),
    "choice": lambda folder: save(folder, "BertForMultipleChoice", "english"),
    "sentence": _sentence,
    "vit": _vit,
}


def zoo(root: Path) -> Zoo:
    """A function from a name of MAKERS to the folder of that model, made when first asked for."""
    made: set[str] = set()

    def folder(name: str) -> Path:
        if name not in made:
            MAKERS[name](root / name)
            made.add(name)
        return root / name

    return folder
