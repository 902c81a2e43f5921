"""SmolLM2-135M-Instruct's published GGUF beside transformers' reading of the same file.

transformers takes half a minute to read the file, so it is read once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from parity.harness import difference

from chumoku.checkpoints.sources import resolve
from chumoku.errors import SourceError
from chumoku.generation.generate import generate
from chumoku.generation.settings import Settings
from chumoku.loading import Loaded, load
from chumoku.text.chat import encode_chat

pytestmark = pytest.mark.real
NEW = 32
PROMPTS = (
    "The Transformer was published in 2017. It",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
)
TALK = [
    {"role": "system", "content": "You answer in one line."},
    {"role": "user", "content": "What is the capital of Japan?\n\nBe brief."},
    {"role": "assistant", "content": "Tokyo."},
    {"role": "user", "content": "And of France? "},
]
TEXT = (
    "In the beginning the translation of one sentence took several seconds, and people said that "
    "it would always be so. Then came a model without recurrence: every word looked at every "
    "other word, all at once. (It had 65 million parameters; the big one had 213 million.)\n"
)


@pytest.fixture(scope="module")
def path() -> Path:
    try:
        return resolve("smollm2-135m-instruct").path
    except SourceError as error:
        pytest.skip(f"the published file cannot be had here: {error}")


@pytest.fixture(scope="module")
def theirs(path: Path) -> Any:
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    model.generation_config.eos_token_id = None
    return model.eval()


@pytest.fixture(scope="module")
def their_tokenizer(path: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)


@pytest.fixture(scope="module", params=["float32", "auto"])
def ours(path: Path, request: pytest.FixtureRequest) -> Loaded:
    """Dequantised when loaded, and kept in blocks: the same numbers."""
    return load(path, dtype=request.param, device="cpu")


def ids_of(loaded: Loaded, text: str) -> list[int]:
    assert loaded.tokenizer is not None
    return list(loaded.tokenizer.encode(text).ids)


def test_logits(ours: Loaded, theirs: Any) -> None:
    ids_BT = torch.tensor([ids_of(ours, TEXT * 2)])
    with torch.inference_mode():
        got, expected = ours.model(ids_BT), theirs(ids_BT).logits
        wrong = ours.model(ids_BT[:, 1:])
    assert ids_BT.shape[1] > 64  # long enough for the path of many tokens
    assert difference(got, expected) < 1e-3
    assert torch.equal(got.argmax(-1), expected.argmax(-1))
    assert difference(wrong, expected[:, 1:]) > 1e-2  # the first token is seen by all others


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_text(ours: Loaded, theirs: Any, their_tokenizer: Any, prompt: str) -> None:
    ids = ids_of(ours, prompt)
    settings = Settings(max_new_tokens=NEW, eos_token_id=())
    model: Any = ours.model
    found = generate(model, [ids], settings, tokenizer=ours.tokenizer)[0]
    ids_BT = torch.tensor([ids])
    made_BT = theirs.generate(
        ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=NEW, do_sample=False
    )
    expected = made_BT[0, len(ids) :].tolist()
    assert list(found.ids) == expected
    assert found.text == their_tokenizer.decode(expected)


def test_chat_prompt(ours: Loaded, their_tokenizer: Any) -> None:
    assert ours.tokenizer is not None
    for talk in (TALK, TALK[1:2], TALK[1:]):
        expected = their_tokenizer.apply_chat_template(
            talk, add_generation_prompt=True, tokenize=True, return_dict=False
        )
        got = list(encode_chat(ours.tokenizer, talk))
        assert got == list(expected)
        without = their_tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
        assert got != list(without)
