"""Model folders that try to run code, and a child process that loads them under an audit hook.

Every planted piece of code would create the file CANARY names. The child reports each event that
could run code and has to do with a folder, what came of loading, and what was saved from it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Draw = random.Random
Plant = Callable[[Path, Draw], None]

CODE = "open(__CANARY__, 'w').close()"
REFERENCES = {
    "AutoConfig": "modeling_evil.EvilConfig",
    "AutoModel": "modeling_evil.EvilModel",
    "AutoModelForMaskedLM": "someone/else--modeling_evil.EvilModel",
    "AutoTokenizer": ["modeling_evil.EvilTokenizer", "modeling_evil.EvilTokenizer"],
    "AutoProcessor": "modeling_evil.EvilProcessor",
}
EVIL_VALUES: dict[str, list[object]] = {
    "auto_map": [REFERENCES],
    "custom_code": [True, REFERENCES],
    "trust_remote_code": [True, "true", 1],
    "_attn_implementation": ["someone/kernel", "modeling_evil:attend"],
    "_attn_implementation_internal": ["someone/kernel@main:evil", "os.system"],
    "attn_implementation": ["someone/kernel"],
    "_experts_implementation": ["someone/kernel"],
    "architectures": [["modeling_evil.EvilModel"], ["os.system"], ["../evil"]],
    "model_type": ["modeling_evil", "../modeling_evil", "os", "chumoku.models.evil"],
    "tokenizer_class": ["modeling_evil.EvilTokenizer", "os.system"],
    "processor_class": ["modeling_evil.EvilProcessor"],
    "image_processor_type": ["modeling_evil.EvilProcessor"],
    "hidden_act": ["modeling_evil.act", "__import__('os').system('touch CANARY')"],
    "torch_dtype": ["modeling_evil.dtype", "__import__('os')"],
    "quantization_config": [{"quant_method": "modeling_evil", "auto_map": REFERENCES}],
    "custom_generate": ["someone/else", "."],
    "custom_pipelines": [{"evil": {"impl": "modeling_evil.Evil", "pt": ["AutoModel"]}}],
    "adapter_path": ["/tmp", "../.."],
    "base_model_name_or_path": ["someone/else"],
    "_name_or_path": ["someone/else"],
    "__class__": ["os.system"],
    "chat_template": [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    ],
    "vocab_file": ["/etc/passwd", "../../etc/passwd"],
    "tokenizer_file": ["/etc/passwd", "../../../etc/passwd"],
}
NESTS = ("text_config", "rope_scaling", "task_specific_params", "generation", "id2label", "new")
JSON_FILES = (
    *("config.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json"),
    *("preprocessor_config.json", "config_sentence_transformers.json", "1_Pooling/config.json"),
    *("2_Dense/config.json", "sentence_bert_config.json", "processor_config.json"),
)


def code(canary: Path) -> str:
    return CODE.replace("__CANARY__", repr(str(canary)))


# ---- what is planted ----


def plant_value(folder: Path, draw: Draw) -> None:
    """A dangerous key at some depth of one of the JSON files."""
    path = folder / draw.choice(JSON_FILES)
    raw: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    key = draw.choice(sorted(EVIL_VALUES))
    place = raw
    for _ in range(draw.choice((0, 0, 1, 2, 4))):
        nest = draw.choice((*NESTS, *(k for k, v in place.items() if isinstance(v, dict))))
        if not isinstance(place.get(nest), dict):
            place[nest] = {}
        place = place[nest]
    place[key] = draw.choice(EVIL_VALUES[key])
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(raw), "utf-8")


def plant_step(folder: Path, draw: Draw) -> None:
    """A step of modules.json whose type is a class of the folder, or whose path leads out."""
    path = folder / "modules.json"
    default = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}
    ]
    steps = json.loads(path.read_text("utf-8")) if path.is_file() else default
    step = {
        "idx": len(steps),
        "name": str(len(steps)),
        "path": draw.choice(["evil", "../..", "/etc", "1_Pooling/..", "", "."]),
        "type": draw.choice(["modeling_evil.Pooling", "os.system", "evil.Dense", "evil.Normalize"]),
        "kwargs": ["trust_remote_code"],
    }
    (folder / "evil").mkdir(exist_ok=True)
    plant_files(folder / "evil", draw)
    path.write_text(json.dumps([*steps, step]), "utf-8")


def plant_files(folder: Path, draw: Draw) -> None:
    """Files that Python, PyTorch or a loader might run; all of them hold the same code."""
    text = CODE  # completed in `plant`
    names = [
        *("modeling_evil.py", "__init__.py", "evil.py", "torch.py", "numpy.py", "json.py"),
        *("tokenizers.py", "sitecustomize.py", "usercustomize.py", "conftest.py", "setup.py"),
        *("evil.pth", "python312._pth", "custom_generate/generate.py", "chumoku.py", "re.py"),
        *("__main__.py", "fugashi.py", "unidic_lite.py", "sentencepiece.py", "hubconf.py"),
    ]
    for name in draw.sample(names, 8):
        (folder / name).parent.mkdir(exist_ok=True)
        line = f"import os; {text}" if name.endswith("pth") else f"{text}\n"
        (folder / name).write_text(line, "utf-8")
    info = folder / "evil-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Name: evil\nVersion: 1.0\n", "utf-8")
    points = "[transformers.models]\nevil = modeling_evil\n[chumoku]\nevil = modeling_evil\n"
    (info / "entry_points.txt").write_text(points, "utf-8")


class Gadget:
    """Pickled, it calls os.system."""

    def __init__(self, canary: str) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


def plant_pickles(folder: Path, draw: Draw) -> None:
    """Pickles beside the weights that nobody asked for."""
    import pickle

    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "pytorch_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Gadget("__CANARY__")))


PLANTS: tuple[Plant, ...] = (plant_value, plant_value, plant_files, plant_step, plant_pickles)


def plant(good: Path, folder: Path, canary: Path, seed: int) -> None:
    """A copy of a good folder with one to four hostile things in it."""
    draw = Draw(seed)
    shutil.copytree(good, folder)
    for _ in range(draw.randint(1, 4)):
        draw.choice(PLANTS)(folder, draw)
    plant_files(folder, draw)
    for path in folder.rglob("*"):
        if path.is_file() and path.suffix in (".py", ".pth", "._pth", ".json"):
            text = path.read_text("utf-8").replace("__CANARY__", repr(str(canary)))
            path.write_text(text.replace("CANARY", str(canary)), "utf-8")
        elif path.is_file() and path.suffix in (".bin", ".pt"):
            name = str(canary).encode()
            raw = path.read_bytes()
            if b"__CANARY__" in raw:  # the string's length byte stands in front of it
                text = b"touch __CANARY__"
                size = bytes([len(text)]) + text
                other = b"touch " + name
                path.write_bytes(raw.replace(size, bytes([len(other)]) + other))


# ---- the child ----

ALWAYS = (
    *(
        "os.system",
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
    ),
    *("subprocess.Popen", "pty.spawn", "webbrowser.open", "socket.connect", "socket.getaddrinfo"),
    *("socket.bind", "socket.sendto", "pickle.find_class"),
)
"""Events that have no place in loading, whatever they are about."""
ABOUT_A_FOLDER = ("import", "exec", "compile", "ctypes.dlopen", "os.putenv")
MARKS = ("modeling_evil", "CANARY", "canary")


def watch(events: list[str], root: str) -> Callable[[str, tuple[Any, ...]], None]:
    from chumoku.checkpoints.torch_bin import WORKER

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ALWAYS:
            ours = event == "subprocess.Popen" and str(WORKER) in map(str, arguments[1])
            if not ours:
                events.append(f"{event} {arguments!r:.200}")
        elif event in ABOUT_A_FOLDER:
            text = repr(arguments[:2])
            if event == "exec" and hasattr(arguments[0], "co_filename"):
                text = repr((arguments[0].co_filename, arguments[0].co_consts))
            if root in text or any(mark in text for mark in MARKS):
                events.append(f"{event} {text:.200}")
        elif event == "open" and str(arguments[0]).startswith(root):
            mode, flags = arguments[1], arguments[2] or 0
            writes = flags & (os.O_WRONLY | os.O_RDWR) or (mode and set("wax+") & set(str(mode)))
            if writes and "/saved/" not in str(arguments[0]):
                events.append(f"open for writing {arguments!r:.200}")

    return hook


def use(folder: Path, saved: Path) -> str:
    """Load a folder, run the model, save it. "ok", or the name of the error."""
    import torch

    import chumoku

    try:
        loaded = chumoku.load(folder, device="cpu", ignore_config=[*EVIL_VALUES, *NESTS])
        if loaded.images is None:
            ids = torch.tensor([[2, 5, 7]])
            if loaded.tokenizer is not None:
                ids = torch.tensor([loaded.tokenizer.encode("the cat sat").ids])
            with torch.no_grad():
                loaded.model(ids)
        if loaded.tokenizer is not None and loaded.tokenizer.chat_template:
            talk = [{"role": "user", "content": "hello"}]
            chumoku.chat(talk, loaded, max_new_tokens=2)
        chumoku.save(loaded, saved)
    except chumoku.ChumokuError as error:
        return type(error).__name__
    return "ok"


def imported_by_name(folder: Path) -> str:
    """The control: what a loader that trusts the folder does."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("modeling_evil", folder / "modeling_evil.py")
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return "ok"


def main() -> None:
    job = json.load(sys.stdin)
    import chumoku

    os.chdir(job["folders"][0])
    events: list[str] = []
    sys.addaudithook(watch(events, job["root"]))
    for number, folder in enumerate(job["folders"]):
        events.clear()
        os.chdir(folder)
        saved = Path(job["root"]) / "saved" / str(number)
        try:
            if job["control"]:
                outcome = imported_by_name(Path(folder))
            else:
                outcome = use(Path(folder), saved)
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"[:200]
        heard = list(events)
        print(json.dumps({"folder": folder, "outcome": outcome, "events": heard}), flush=True)
    assert chumoku.__name__ == "chumoku"


if __name__ == "__main__":
    main()
