"""What is loaded when: the package and the help are quick because they leave the heavy part out."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys

import pytest

import chumoku
from chumoku.cli import COMMANDS

HEAVY = {"torch", "transformers", "tokenizers", "numpy", "safetensors", "huggingface_hub", "PIL"}
PEERS = {"transformers", "gguf", "timm", "sentence_transformers", "tiktoken", "sklearn"}


def modules_after(code: str) -> set[str]:
    """Top-level modules in a fresh interpreter after the code has run."""
    script = f"""
import contextlib, io, json, sys
with contextlib.redirect_stdout(io.StringIO()) as shown:
    {code}
print(json.dumps([shown.getvalue(), sorted({{name.split(".")[0] for name in sys.modules}})]))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    shown, names = json.loads(done.stdout)
    assert "Traceback" not in shown
    return set(names)


@pytest.mark.parametrize(
    "code",
    [
        "import chumoku; dir(chumoku); chumoku.__version__",
        "from chumoku.cli import main; main([])",
        "from chumoku.cli import main; main(['--help'])",
        "from chumoku.cli import main; main(['--version'])",
        "from chumoku.cli import main; main(['models', 'defaults'])",
        *(f"from chumoku.cli import main; main([{verb!r}, '--help'])" for verb in sorted(COMMANDS)),
    ],
)
def test_light(code: str) -> None:
    assert not modules_after(code) & HEAVY


def test_the_measure_sees_a_heavy_module() -> None:
    assert "torch" in modules_after("import chumoku; chumoku.load")


def test_every_public_name_exists_and_peers_stay_out() -> None:
    names = ", ".join(f"chumoku.{name}" for name in chumoku.__all__)
    assert not modules_after(f"import chumoku; {names}") & PEERS
    assert set(chumoku.__all__) <= set(dir(chumoku))
    with pytest.raises(AttributeError, match="nothing_such"):
        _ = chumoku.nothing_such


def test_every_module_can_be_imported() -> None:
    names = [m.name for m in pkgutil.walk_packages(chumoku.__path__, "chumoku.")]
    assert len(names) > 60
    for name in names:
        if not name.endswith(("__main__", "torch_worker", "_native")):
            importlib.import_module(name)
