"""llama.cpp reads what chumoku writes, and says the same of the published SmolLM2 file.

llama.cpp rounds activations to the storage of the weights (to eight bits for Q4 and Q8), so its
logits are close, not equal; the bound is a multiple of what that rounding does.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from parity.harness import difference
from test_gguf_export import hub, write_bpe

import chumoku
from chumoku.checkpoints.sources import resolve
from chumoku.errors import SourceError
from chumoku.generation.generate import generate
from chumoku.generation.settings import Settings
from chumoku.gguf_export import FILE_TYPES, save_gguf

pytestmark = pytest.mark.peers
llama_cpp: Any = pytest.importorskip("llama_cpp")

LIMITS = {"F32": 5e-4, "F16": 2e-3, "Q8_0": 3e-2, "Q4_0": 3e-2, "Q4_1": 3e-2}
TEXT = "The quick brown fox; it's 1234 naïve cafés, 日本 and so on."
PROMPTS = ("The Transformer was published in 2017. It", "Once upon a time there was")
NEW = 32


default_params = llama_cpp.llama_cpp.llama_model_default_params


def not_repacked() -> Any:
    params = default_params()
    params.use_extra_bufts = False
    return params


def opened(path: Path, context: int = 512) -> Any:
    """Keys and values in float32, as ours are; weights as they lie in the file.

    Not repacked: the kernels for AMX of llama-cpp-python 0.3.36 crash on some machines.
    """
    kinds = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}
    more = {"n_threads": 1, "n_threads_batch": 1, "flash_attn": False, "verbose": False}
    with mock.patch.object(llama_cpp.llama_cpp, "llama_model_default_params", not_repacked):
        return llama_cpp.Llama(str(path), n_ctx=context, logits_all=True, **kinds, **more)


def their_logits(theirs: Any, ids: list[int]) -> torch.Tensor:
    theirs.reset()
    theirs.eval(ids)
    return torch.from_numpy(np.array(theirs.scores[: len(ids)]))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("storage", list(FILE_TYPES))
def test_exported_files(kind: str, storage: str, tmp_path: Path) -> None:
    hub(tmp_path, kind)
    write_bpe(tmp_path, "gpt-2")
    path = tmp_path / "m.gguf"
    save_gguf(chumoku.load(tmp_path), path, storage)
    ours = chumoku.load(path)
    theirs = opened(path, 64)
    assert ours.tokenizer is not None
    ids = list(ours.tokenizer.encode(TEXT).ids)[:40]
    assert theirs.tokenize(TEXT.encode(), add_bos=False)[:40] == ids
    with torch.inference_mode():
        logits = ours.model(torch.tensor([ids]))[0]
    found = their_logits(theirs, ids)
    assert difference(found, logits) < LIMITS[storage]
    assert difference(found.roll(1, 0), logits) > 5 * LIMITS[storage]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    try:
        return resolve("smollm2-135m-instruct").path
    except SourceError as error:
        pytest.skip(f"the published file cannot be had here: {error}")


@pytest.mark.real
@pytest.mark.parametrize("prompt", PROMPTS)
def test_the_published_file(smollm2: Path, prompt: str) -> None:
    """Greedy text is the same up to the first step where two tokens are nearly as likely."""
    ours, theirs = chumoku.load(smollm2), opened(smollm2)
    assert ours.tokenizer is not None
    ids = list(ours.tokenizer.encode(prompt).ids)
    assert theirs.tokenize(prompt.encode(), add_bos=False) == ids
    model: Any = ours.model
    settings = Settings(max_new_tokens=NEW, eos_token_id=())
    made = list(generate(model, [ids], settings)[0].ids)
    with torch.inference_mode():
        logits = ours.model(torch.tensor([ids + made]))[0]
    found = their_logits(theirs, ids + made)
    assert (found - logits).abs().mean() < 0.3  # logits spread over tens
    assert (found.roll(1, 0) - logits).abs().mean() > 1.0
    steps = range(len(ids) - 1, len(ids) + NEW - 1)
    gaps = [float(logits[t].topk(2).values.diff().abs()) for t in steps]
    said = [int(found[t].argmax()) for t in steps]
    clear = [gap > 1.0 for gap in gaps]
    assert sum(clear) > NEW // 3
    assert [t for t, sure in zip(said, clear, strict=True) if sure] == [
        t for t, sure in zip(made, clear, strict=True) if sure
    ]
