"""What chumoku demo shows: two real models, one conversation, one table, one attention map.

Where they cannot be had, the toys of this package show what they can.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from rich.console import Console
from rich.text import Text

from chumoku.checkpoints.defaults import default_model
from chumoku.checkpoints.sources import resolve
from chumoku.cli import language
from chumoku.cli.chat import answer_aloud
from chumoku.cli.common import Options, download_progress, print_table, say
from chumoku.cli.generate import write_aloud
from chumoku.errors import UnreachableError
from chumoku.layers.taps import trace
from chumoku.loading import Loaded, load
from chumoku.tasks import common, generation
from chumoku.tasks.embedding import similarity

QUESTION = "What is a neural network? Answer in two sentences."
SENTENCES = (
    "A cat sits on the mat.",
    "The kitten rests on a rug.",
    "The stock market fell today.",
    "Share prices dropped sharply.",
)
PLAY = "KING RICHARD:"
TRANSLATED = "My brother lives in Tokyo."
NEXT = (
    'chumoku chat "Tell me a joke."',
    'chumoku similarity "A man is eating." "Somebody has lunch." "The market fell."',
    "chumoku models defaults",
)
NEXT_TOYS = (
    'chumoku generate "ROMEO:" --model tiny:bard --max-new-tokens 60 --temperature 0.8',
    'chumoku translate "The cat sleeps." --model tiny:translator',
    "chumoku models defaults",
)
SHADES = " ░▒▓█"

WORDS = {
    "en": {
        "chat": "1. Chat: a language model answers, token by token",
        "similarity": "2. Similarity: which sentences mean the same?",
        "attention": "3. Attention: where one head of the model looks (rows sum to 1)",
        "next": "Next:",
        "files": "Files:",
        "expect": "expect",
        "activate": "to use chumoku in this terminal",
        "toys": "The real models are out of reach now, so toys that come with chumoku are shown.",
        "writing": "1. Writing: a toy LLaMA goes on in the manner of Shakespeare's plays",
        "translation": "2. Translation: a toy of the 2017 model, English to Japanese",
    },
    "ja": {
        "chat": "1. チャット: 言語モデルがトークンごとに答えます",
        "similarity": "2. 類似度: どの文が同じ意味でしょうか",
        "attention": "3. 注意: モデルのあるヘッドがどこを見ているか (各行の和は1)",
        "next": "次に試すもの:",
        "files": "ファイル:",
        "expect": "できること",
        "activate": "このターミナルで chumoku を使えるようにする",
        "toys": "いまは実際のモデルを取得できないため、同梱のおもちゃのモデルをお見せします。",
        "writing": "1. 執筆: 小さな LLaMA がシェイクスピアの戯曲風に続きを書きます",
        "translation": "2. 翻訳: 2017 年のモデルの小型版、英語から日本語へ",
    },
}


def tour(options: Options) -> None:
    """Chat, similarity and attention with the default models, or with toys."""
    words = WORDS[language()]
    console = Console(highlight=False, markup=False, emoji=False)
    try:
        chat, encoder = (_default(verb, options) for verb in ("chat", "similarity"))
    except UnreachableError as error:
        console.print(str(error), style="dim")
        console.print(words["toys"])
        _toys(console, words, options)
        return
    _heading(console, words["chat"], chat, "chat", words["expect"])
    print(f"> {QUESTION}")
    settings = generation.effective(chat, {"max_new_tokens": 80, "do_sample": False})
    result = answer_aloud(chat, settings, [{"role": "user", "content": QUESTION}])
    timings = result.timings
    if timings.generated_seconds > 0:
        rate = timings.generated_tokens / timings.generated_seconds
        console.print(f"({timings.generated_tokens} tokens, {rate:.0f} a second)", style="dim")
    _heading(console, words["similarity"], encoder, "similarity", words["expect"])
    table = similarity(SENTENCES, None, encoder)
    columns = ("", *(str(i + 1) for i in range(len(SENTENCES))))
    print_table(columns, [(f"{i + 1} {s}", *map(float, table[i])) for i, s in enumerate(SENTENCES)])
    _heading(console, words["attention"])
    attention_map(console, encoder, SENTENCES[0])
    _ending(console, words, (chat, encoder), NEXT)


def _toys(console: Console, words: dict[str, str], options: Options) -> None:
    """Writing, translation and attention with models of this package."""
    bard, translator = (_load(name, options) for name in ("tiny:bard", "tiny:translator"))
    _heading(console, words["writing"])
    say(PLAY)
    how = {"max_new_tokens": 60, "do_sample": True, "temperature": 0.8, "seed": 1}
    write_aloud(PLAY, bard, generation.effective(bard, how))
    _heading(console, words["translation"])
    answer = generation.translate(TRANSLATED, translator)[0]
    print(f"{TRANSLATED}\n{answer['translation_text']}")
    _heading(console, words["attention"])
    attention_map(console, bard, TRANSLATED)
    _ending(console, words, (bard, translator), NEXT_TOYS)


def _default(verb: str, options: Options) -> Loaded:
    return _load(default_model(verb, "en").source, options)


def _load(source: str, options: Options) -> Loaded:
    return load(
        source,
        device=options.device,
        dtype=options.dtype,
        offline=True if options.offline else None,
        progress=download_progress(),
    )


def _heading(
    console: Console, title: str, loaded: Loaded | None = None, verb: str = "", expect: str = ""
) -> None:
    console.print()
    console.print(title, style="bold")
    if loaded is not None:
        line = default_model(verb, "en").expect
        console.print(f"{loaded.source.origin} - {expect}: {line}", style="dim")


def attention_map(console: Console, loaded: Loaded, text: str) -> None:
    """Print one head's attention weights as shades: rows are tokens that look, columns seen ones.

    Many heads rest on the special tokens; the one shown looks at most different words.
    """
    tokenizer = common.tokenizer_of(loaded)
    encoding = tokenizer.encode(text)
    with trace(loaded.model, "blocks.*.attention.weights") as seen:
        common.run(loaded, common.collate([encoding], loaded))
    content = ~torch.tensor(encoding.special)
    name, head = max(
        ((name, head) for name, weights in seen.items() for head in range(weights.shape[1])),
        key=lambda place: _spread(seen[place[0]][0, place[1]].cpu(), content),
    )
    weights_TS = seen[name][0, head].tolist()
    width = max(len(token) for token in encoding.tokens)
    console.print(f"{name}, head {head}", style="dim")
    console.print(" " * (width + 5) + "".join(f"{n:^3}" for n in range(len(encoding))), style="dim")
    for number, (token, row) in enumerate(zip(encoding.tokens, weights_TS, strict=True)):
        line = Text(f"{number:>3} {token:<{width}} ")
        for value in row:
            line.append(SHADES[min(int(value * len(SHADES) * 1.25), len(SHADES) - 1)] * 3)
        place = max(range(len(row)), key=row.__getitem__)
        line.append(f"  {row[place]:.2f} on {encoding.tokens[place]}", style="dim")
        console.print(line)


def _spread(weights_TS: torch.Tensor, content_T: torch.Tensor) -> float:
    """How many different words the words look at, and how much of their weight goes to words."""
    among = weights_TS[content_T][:, content_T]
    away = among.masked_fill(torch.eye(len(among), dtype=torch.bool), 0.0)
    return len(set(away.argmax(-1).tolist())) / len(among) + float(away.sum(-1).mean())


def _ending(
    console: Console, words: dict[str, str], models: tuple[Loaded, ...], commands: tuple[str, ...]
) -> None:
    console.print()
    console.print(words["files"], style="bold")
    for loaded in models:
        print(f"  {resolve(loaded.source.origin, offline=True).path}")
    console.print()
    console.print(words["next"], style="bold")
    folder = Path(sys.prefix)
    if sys.prefix != sys.base_prefix and "VIRTUAL_ENV" not in os.environ:
        script = folder / ("Scripts/activate" if os.name == "nt" else "bin/activate")
        place = os.path.relpath(script)
        command = place if os.name == "nt" else f"source {place}"
        print(f"  {command}    # {words['activate']}")
    for command in commands:
        print(f"  {command}")
