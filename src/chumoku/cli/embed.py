"""chumoku embed, chumoku similarity, chumoku rerank"""

from __future__ import annotations

from pathlib import Path

from chumoku.cli.common import (
    DEFAULT,
    Options,
    TextFile,
    in_batches,
    open_model,
    print_json,
    print_table,
    ranked_rows,
    read_texts,
)
from chumoku.errors import InputError


def run(
    *text: str,
    file: TextFile = None,
    output: Path | None = None,
    pooling: str | None = None,
    normalize: bool | None = None,
    prompt: str | None = None,
    dimensions: int | None = None,
    options: Options = DEFAULT,
) -> None:
    """Turn texts into vectors.

    Args:
        text: texts; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
        output: write all vectors to this .npy file.
        pooling: mean, cls, max, mean_sqrt_len, weighted_mean or last; default: as published.
        normalize: vectors of length 1; default: as published.
        prompt: a text in front of each, or the name of one of the model's prompts.
        dimensions: keep only the first so many.
    """
    import numpy as np

    from chumoku.tasks import embedding

    items = read_texts(text, file)
    loaded = open_model(options, "embed", items[0])
    kept = []
    pairs = in_batches(
        items,
        options.batch_size,
        lambda some: embedding.embed(
            some,
            loaded,
            pooling=pooling,
            normalize=normalize,
            prompt=prompt,
            dimensions=dimensions,
            batch_size=options.batch_size,
        ),
    )
    for item, vector in pairs:
        if output is not None:
            kept.append(vector)
        elif options.json:
            print_json({"text": item, "embedding": [float(v) for v in vector]})
        else:
            head = " ".join(f"{v:+.4f}" for v in vector[:6])
            print(f"{item}\n  {head} … ({len(vector)} values)")
    if output is not None:
        try:
            np.save(output, np.stack(kept), allow_pickle=False)
        except OSError as error:
            raise InputError(f"cannot write: {error.strerror}", where=output) from error
        print(f"{len(kept)} vectors of {len(kept[0])} values in {output}")


def similarity(
    *text: str,
    file: TextFile = None,
    pooling: str | None = None,
    prompt: str | None = None,
    options: Options = DEFAULT,
) -> None:
    """Compare the meaning of texts: a table of cosine similarities.

    Args:
        text: two texts or more; without any, lines of --file or of stdin.
        file: a text a line, or JSONL with "text"; - is stdin.
        pooling: mean, cls, max, …; default: as published.
        prompt: a text in front of each, or the name of one of the model's prompts.
    """
    from chumoku.tasks import embedding

    items = read_texts(text, file)
    if len(items) < 2:
        raise InputError("similarity needs at least two texts")
    loaded = open_model(options, "similarity", items[0])
    table = embedding.similarity(
        items, None, loaded, pooling=pooling, prompt=prompt, batch_size=options.batch_size
    )
    if options.json:
        print_json({"texts": items, "similarity": [[float(v) for v in row] for row in table]})
        return
    columns = ("", *(str(i + 1) for i in range(len(items))))
    rows = [(f"{i + 1} {item}", *map(float, table[i])) for i, item in enumerate(items)]
    print_table(columns, rows)


def rerank(
    query: str,
    *document: str,
    file: TextFile = None,
    top_k: int | None = None,
    options: Options = DEFAULT,
) -> None:
    """Order documents by relevance to a query, with a cross-encoder.

    Args:
        query: what is looked for.
        document: documents; without any, lines of --file or of stdin.
        file: a document a line, or JSONL with "text"; - is stdin.
        top_k: how many to show.
    """
    from chumoku.tasks import embedding

    items = read_texts(document, file)
    loaded = open_model(options, "rerank", query)
    answers = embedding.rerank(query, items, loaded, top_k=top_k, batch_size=options.batch_size)
    if options.json:
        for answer in answers:
            print_json(answer)
    else:
        print_table(("score", "document"), ranked_rows(answers, "score", "text"))
