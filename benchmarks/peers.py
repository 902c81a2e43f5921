"""One process for one library: reads a JSON command a line, answers with a JSON line.

    python benchmarks/peers.py chumoku | transformers | sentence-transformers | llama.cpp

A library of its own process brings its own threads and its own import time, and one that is not
installed is an answer, not an end. Commands: {"do": name, ...arguments of the method}; each method
below answers with seconds, and with what it computed, so that results can be compared too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = action()
    return time.perf_counter() - start, result


class Chumoku:
    package = "chumoku"

    def start(self, threads: int) -> None:
        import torch

        import chumoku.loading
        import chumoku.tasks.embedding
        import chumoku.tasks.generation
        import chumoku.tasks.masks  # noqa: F401

        torch.set_num_threads(threads)

    def load(self, path: str, dtype: str, kind: str) -> None:
        from chumoku.loading import load

        self.loaded = load(path, dtype=dtype, head="masked-lm" if kind == "fill" else None)

    def ids(self, text: str) -> list[int]:
        return list(self.loaded.tokenizer.encode(text).ids)

    def generate(self, ids: Sequence[int], new: int) -> list[int]:
        from chumoku.generation.generate import generate
        from chumoku.generation.settings import Settings

        settings = Settings(max_new_tokens=new, eos_token_id=())
        return list(generate(self.loaded.model, [ids], settings)[0].ids)

    def encode(self, texts: Sequence[str]) -> Any:
        from chumoku.tasks.embedding import embed

        return embed(list(texts), self.loaded)

    def fill(self, text: str) -> str:
        from chumoku.tasks.masks import fill_mask

        return str(fill_mask(text, self.loaded)[0]["token_str"])  # type: ignore[call-overload]


class Transformers:
    package = "transformers"

    def start(self, threads: int) -> None:
        import torch
        from transformers import (
            AutoModelForCausalLM,
            AutoTokenizer,
            BertForMaskedLM,
            BertTokenizer,
            pipeline,
        )

        # The old BERT folder says neither what model nor what tokenizer it holds.
        self.auto = {"text": AutoModelForCausalLM, "fill": BertForMaskedLM}
        self.tokenizers = {"text": AutoTokenizer, "fill": BertTokenizer}
        self.pipeline = pipeline
        torch.set_num_threads(threads)

    def load(self, path: str, dtype: str, kind: str) -> None:
        import torch

        place, more = Path(path), {}
        if place.is_file():
            place, more = place.parent, {"gguf_file": place.name}
        self.tokenizer = self.tokenizers[kind].from_pretrained(place, **more)
        self.model = self.auto[kind].from_pretrained(place, dtype=getattr(torch, dtype), **more)
        self.model.eval()
        if kind == "fill":
            self.filler = self.pipeline("fill-mask", self.model, tokenizer=self.tokenizer)

    def generate(self, ids: Sequence[int], new: int) -> list[int]:
        import torch

        self.model.generation_config.eos_token_id = None
        ids_BT = torch.tensor([list(ids)])
        made = self.model.generate(
            ids_BT, attention_mask=torch.ones_like(ids_BT), max_new_tokens=new, do_sample=False
        )
        return list(made[0, len(ids) :].tolist())

    def fill(self, text: str) -> str:
        return str(self.filler(text)[0]["token_str"])


class SentenceTransformers:
    package = "sentence-transformers"

    def start(self, threads: int) -> None:
        import sentence_transformers
        import torch

        torch.set_num_threads(threads)
        self.kind = sentence_transformers.SentenceTransformer

    def load(self, path: str, dtype: str, kind: str) -> None:
        import torch

        more = {"dtype": getattr(torch, dtype)}
        self.model = self.kind(path, device="cpu", model_kwargs=more)

    def encode(self, texts: Sequence[str]) -> Any:
        vectors = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        return vectors.float().numpy()


class LlamaCpp:
    package = "llama-cpp-python"

    def start(self, threads: int) -> None:
        import llama_cpp

        self.module, self.threads = llama_cpp, threads

    def load(self, path: str, dtype: str, kind: str) -> None:
        defaults = self.module.llama_cpp.llama_model_default_params

        def params() -> Any:
            made = defaults()
            made.use_extra_bufts = dtype != "stored, not repacked"
            return made

        self.module.llama_cpp.llama_model_default_params = params
        count = self.threads
        more = {"n_threads": count, "n_threads_batch": count, "n_batch": 2048, "n_ubatch": 2048}
        self.model = self.module.Llama(path, n_ctx=2048, verbose=False, **more)

    def generate(self, ids: Sequence[int], new: int) -> list[int]:
        self.model.reset()
        stream = self.model.generate(list(ids), temp=0.0, reset=True, repeat_penalty=1.0)
        return [token for token, _ in zip(stream, range(new), strict=False)]


PEERS = {"chumoku": Chumoku, "transformers": Transformers} | {
    "sentence-transformers": SentenceTransformers,
    "llama.cpp": LlamaCpp,
}


def answer(peer: Any, command: Answer) -> Answer:
    """Do one command. "load" does the imports too and answers with both times."""
    what = command.pop("do")
    if what == "load":
        threads = command.pop("threads")
        try:
            imports, _ = timed(lambda: peer.start(threads))
        except ImportError as error:
            return {"missing": str(error)}
        seconds, _ = timed(lambda: peer.load(**command))
        version = importlib.metadata.version(peer.package) if peer.package != "chumoku" else ""
        return {"imports": imports, "seconds": seconds, "version": version}
    seconds, result = timed(lambda: getattr(peer, what)(**command))
    if what == "encode":
        result = result[:8].tolist()
    return {"seconds": seconds, "result": result}


def serve(name: str) -> None:
    peer = PEERS[name]()
    # What a library prints must not mix with the answers.
    with os.fdopen(os.dup(1), "w") as out, contextlib.redirect_stdout(sys.stderr):
        os.dup2(2, 1)
        for line in sys.stdin:
            try:
                reply = answer(peer, json.loads(line))
            except Exception as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps(reply), file=out, flush=True)


if __name__ == "__main__":
    serve(sys.argv[1])
