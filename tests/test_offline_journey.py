"""A whole day's work with CHUMOKU_OFFLINE=1 opens no socket and asks no name server (A9)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tasks import models as tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"

JOURNEY = """
import json, sys
from pathlib import Path
sys.path[:] = json.loads(sys.argv[1])
online, root = sys.argv[2] == "online", Path(sys.argv[3])
events, here = [], "start"
def watch(event, arguments):
    if event.startswith("socket.") or event in ("subprocess.Popen", "os.exec", "os.system"):
        events.append(f"{here}: {event}")
sys.addaudithook(watch)
import time
time.sleep = lambda seconds: None  # between attempts
import io
import chumoku
from chumoku.cli import main

done = []
def step(name, action):
    global here
    here = name
    try:
        result = action()
        done.append([name, result if isinstance(result, int | str) else "ok"])
    except chumoku.ChumokuError as error:
        done.append([name, type(error).__name__])

def command(*words):
    def run():
        held, sys.stdout, sys.stderr = (sys.stdout, sys.stderr), io.StringIO(), io.StringIO()
        try:
            return main([str(word) for word in words])
        finally:
            sys.stdout, sys.stderr = held
    return run

chat, bert, name = root / "chat", root / "bert", "someone/tiny"
if online:
    step("absent", lambda: chumoku.load("someone/absent"))
else:
    short = {"max_new_tokens": 3}
    step("load", lambda: chumoku.load(chat) and "ok")
    step("load by name", lambda: chumoku.load(name).source.origin)
    step("chat", lambda: chumoku.chat("hello", str(chat), **short))
    step("chat by name", lambda: chumoku.chat("hello", name, **short))
    step("generate", lambda: chumoku.generate("hello", str(chat), **short))
    step("fill mask", lambda: chumoku.fill_mask("a [MASK] .", str(bert)))
    step("embed", lambda: chumoku.embed(["a cat", "a dog"], str(bert)))
    step("save", lambda: chumoku.save(chumoku.load(bert), root / "saved"))
    step("gguf", lambda: __import__("chumoku.gguf_export", fromlist=["x"]).save_gguf(
        chumoku.load(chat), root / "m.gguf", "Q8_0"))
    step("default", lambda: chumoku.load("smollm2-135m-instruct"))
    step("absent", lambda: chumoku.load("someone/absent"))
    step("package", lambda: chumoku.load("pypi:rxnfp==0.1.0"))
    step("cli cache", command("cache"))
    step("cli defaults", command("models", "defaults"))
    step("cli show", command("models", "show", chat))
    step("cli chat", command("chat", "--model", chat, "--max-new-tokens", "2", "hello"))
    step("cli fill-mask", command("fill-mask", "--model", bert, "a [MASK] ."))
    step("cli embed", command("embed", "--model", bert, "a cat"))
    step("cli absent", command("chat", "--model", "someone/absent", "hello"))
    step("cli default", command("chat", "hello"))
    step("cli help", command("--help"))
print(json.dumps([done, events]))
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model and a BERT in folders, and the chat model in the hub's cache too."""
    place = tmp_path_factory.mktemp("journey")
    tiny.save(place / "chat", "LlamaForCausalLM", "gpt2", num_hidden_layers=1)
    settings = place / "chat" / "tokenizer_config.json"
    raw = json.loads(settings.read_text("utf-8"))
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    tiny.write_json(settings, raw | {"chat_template": template})
    tiny.save(place / "bert", "BertForMaskedLM", "english", num_hidden_layers=1)
    repository = place / "hf" / "hub" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT, "utf-8")
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted((place / "chat").iterdir())):
        (blobs / str(number)).write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return place


def journey(root: Path, way: str, switch: str | None) -> tuple[dict[str, Any], list[str]]:
    nowhere = "http://127.0.0.1:9"
    names = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "TRANSFORMERS_CACHE", "HF_HUB_OFFLINE")
    names += ("TRANSFORMERS_OFFLINE", "CHUMOKU_OFFLINE", "HF_TOKEN", "http_proxy", "HTTP_PROXY")
    env = {k: v for k, v in os.environ.items() if k not in names}
    env |= {"HF_HOME": str(root / "hf"), "CHUMOKU_CACHE": str(root / "own")}
    env |= {"HF_ENDPOINT": nowhere, "PIP_INDEX_URL": nowhere, "PIP_CONFIG_FILE": os.devnull}
    if switch:
        env[switch] = "1"
    path = [entry for entry in sys.path if os.path.isabs(entry)]
    child = subprocess.run(
        [sys.executable, "-c", JOURNEY, json.dumps(path), way, str(root)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert child.returncode == 0, child.stderr[-2000:]
    done, events = json.loads(child.stdout.splitlines()[-1])
    return dict(done), events


REFUSED = {"default", "absent", "package"}


def test_offline_opens_no_socket(root: Path) -> None:
    done, events = journey(root, "offline", "CHUMOKU_OFFLINE")
    assert events == []
    assert {name for name, result in done.items() if result == "UnreachableError"} == REFUSED
    codes = {name: result for name, result in done.items() if name.startswith("cli")}
    assert {name for name, code in codes.items() if code == 2} == {"cli absent", "cli default"}
    assert set(codes.values()) == {0, 2}
    rest = done.keys() - REFUSED - codes.keys()
    assert {done[name] for name in rest} == {"ok", "someone/tiny"}
    assert len(done) == 21


def test_the_control_online_is_heard(root: Path) -> None:
    done, events = journey(root, "online", None)
    assert done == {"absent": "UnreachableError"}
    assert any("socket.connect" in event for event in events)
