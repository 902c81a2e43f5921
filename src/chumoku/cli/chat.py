"""chumoku chat: a conversation in the terminal, or one answer."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from chumoku.cli.common import DEFAULT, Options, TextFile, open_model, print_json, read_text, say
from chumoku.cli.generate import PLAIN, Sampling, arguments, as_json, interruptible
from chumoku.errors import ChumokuError, InputError

if TYPE_CHECKING:
    from chumoku.generation.results import Generated
    from chumoku.generation.settings import Settings
    from chumoku.loading import Loaded

HELP = """\
/system TEXT  set the system message and start anew
/reset        forget the conversation
/save FILE    write the conversation as JSON
/help         this list
/quit         leave (also Ctrl-D)
Ctrl-C stops only the answer."""


def run(
    *message: str,
    file: TextFile = None,
    system: str | None = None,
    sampling: Sampling = PLAIN,
    options: Options = DEFAULT,
) -> None:
    """Talk with a model. With a message, one answer; without, a conversation.

    Args:
        message: what to say (several words need no quotes); piped text is a message too.
        file: the message as a file; - is stdin.
        system: the system message.
    """
    from chumoku.tasks import generation

    first = " ".join(message) if message else None
    talking = first is None and file is None and sys.stdin.isatty()
    if not talking:
        first = read_text(first, file).strip()
        if not first:
            raise InputError("the message is empty")
    loaded = open_model(options, "chat", first or "")
    settings = generation.effective(loaded, arguments(sampling, options))
    talk = _opening(system)
    if talking or first is None:
        _converse(loaded, settings, talk)
        return
    talk.append({"role": "user", "content": first})
    answer = answer_aloud(loaded, settings, talk, quiet=options.json)
    if options.json:
        print_json(as_json(answer))


def _opening(system: str | None) -> list[dict[str, str]]:
    return [] if system is None else [{"role": "system", "content": system}]


def answer_aloud(
    loaded: Loaded, settings: Settings, talk: Sequence[dict[str, str]], *, quiet: bool = False
) -> Generated:
    """Stream the answer to stdout; Ctrl-C ends it with what was said so far."""
    from chumoku.tasks import generation

    result: Generated | None = None
    with interruptible() as should_stop:
        for piece in generation.stream_chat(talk, loaded, settings, should_stop):
            if not quiet:
                say(piece.text)
            result = piece.result or result
    if not quiet:
        print()
    if result is None:
        raise InputError("the model gave no answer")
    return result


def _converse(loaded: Loaded, settings: Settings, talk: list[dict[str, str]]) -> None:
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  line editing and history for input()
    print(f"{loaded.source.origin}  (/help lists the commands)")
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n/quit or Ctrl-D leaves.")
            continue
        if not line:
            continue
        if line.startswith("/"):
            if not _command(line, talk):
                return
            continue
        talk.append({"role": "user", "content": line})
        try:
            answer = answer_aloud(loaded, settings, talk)
        except (ChumokuError, KeyboardInterrupt) as error:
            talk.pop()  # the question that could not be answered is not part of the talk
            print(f"error: {error}" if str(error) else "stopped", file=sys.stderr)
            continue
        talk.append({"role": "assistant", "content": answer.text or ""})


def _command(line: str, talk: list[dict[str, str]]) -> bool:
    """Run a /command on the conversation; False ends it."""
    word, _, rest = line.partition(" ")
    rest = rest.strip()
    if word in ("/quit", "/exit", "/bye"):
        return False
    if word == "/reset":
        talk[:] = [m for m in talk if m["role"] == "system"]
        print("The conversation is forgotten.")
    elif word == "/system":
        talk[:] = _opening(rest or None)
        done = "set" if rest else "taken away"
        print(f"The system message is {done}; the conversation starts anew.")
    elif word == "/save":
        _save(Path(rest or "conversation.json").expanduser(), talk)
    elif word == "/help":
        print(HELP)
    else:
        print(f"There is no command {word}.\n{HELP}")
    return True


def _save(path: Path, talk: Sequence[dict[str, str]]) -> None:
    try:
        path.write_text(json.dumps(talk, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
        print(f"{len(talk)} messages in {path}")
    except OSError as error:
        print(f"error: cannot write {path}: {error.strerror}", file=sys.stderr)
