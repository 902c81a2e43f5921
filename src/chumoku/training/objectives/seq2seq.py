"""Sequence to sequence: -sum over t of log P(y[t] | y[..t-1], x) (2207.09238, algorithm 11).

The decoder reads the target shifted by one behind its start token ("teacher forcing"). With label
smoothing eps (Szegedy et al., 1512.00567, section 7; 1706.03762, section 5.4) the target
distribution is (1 - eps) on the true token plus eps / V on *every* one of the V tokens, the true
one and padding included: the form of PyTorch's cross_entropy(label_smoothing=eps). (Another form in
use spreads eps over the V - 2 others.) Padding is never a target.

Shape letters: B batch, S source position, T target position, M positions with a target,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from chumoku.checkpoints.defaults import written_in
from chumoku.errors import ConfigError, InputError
from chumoku.generation.generate import generate
from chumoku.generation.settings import Settings
from chumoku.layers.ops import wide
from chumoku.loading import Loaded
from chumoku.models.t5 import shift_right
from chumoku.tasks import common
from chumoku.tasks.generation import effective, task_parameters
from chumoku.text.encoding import Tokenizer
from chumoku.text.marian import MarianTokenizer
from chumoku.training.data.tables import naming, where_of
from chumoku.training.objectives import encoded
from chumoku.training.objectives.encoded import Progress
from chumoku.training.objectives.masked_lm import check_head
from chumoku.training.objectives.vocabulary import (
    Judged,
    Picked,
    cross_entropy,
    evaluation_batches,
    judge,
    picked,
    places_of,
    stacked,
)
from chumoku.training.task import IGNORED, Examples, Kind, Loss, Task

# ---- the loss ----


class Smoothed(NamedTuple):
    """total: the smoothed loss, summed. nll: -sum log P of the true tokens."""

    total: Tensor
    nll: Tensor


def smoothed_cross_entropy(logits_MV: Tensor, targets_M: Tensor, smoothing: float) -> Smoothed:
    """(1 - eps) * -log P(true) + eps * (mean over V of -log P), summed, in float32 or wider."""
    if smoothing == 0.0:
        nll = cross_entropy(logits_MV, targets_M)
        return Smoothed(nll, nll)
    log_p_MV = torch.log_softmax(logits_MV, dim=-1, dtype=wide(logits_MV.dtype))
    nll = -log_p_MV.gather(1, targets_M[:, None]).sum()
    uniform = -log_p_MV.mean(dim=-1).sum()
    return Smoothed((1.0 - smoothing) * nll + smoothing * uniform, nll)


# ---- examples and batches ----


class Example(NamedTuple):
    """source_S as the encoder reads it; target_T closed by the end token."""

    source_S: Tensor
    target_T: Tensor


class Seq2SeqBatch(NamedTuple):
    """ids_BS, mask_BS: the source; mask None: nothing is padded. inputs_BT: what the decoder reads.

    The decoder needs no mask: padding stands on the right, where no token looks.
    """

    ids_BS: Tensor
    mask_BS: Tensor | None
    inputs_BT: Tensor
    places_M: Tensor | None
    targets_M: Tensor


def collate(examples: Sequence[Example], *, pad: int, start: int) -> Seq2SeqBatch:
    """Padded on the right. start: the decoder's first token."""
    sources = [e.source_S for e in examples]
    ids_BS = stacked(sources, pad)
    lengths_B = torch.tensor([len(s) for s in sources])
    mask_BS = torch.arange(ids_BS.shape[1]) < lengths_B[:, None]
    targets = [e.target_T for e in examples]
    places_M, targets_M = places_of(stacked(targets, IGNORED))
    return Seq2SeqBatch(
        ids_BS,
        None if bool(mask_BS.all()) else mask_BS,
        shift_right(stacked(targets, pad), start),
        places_M,
        targets_M,
    )


def tokens(batch: Seq2SeqBatch) -> int:
    """Of source and target, padding included."""
    return batch.ids_BS.numel() + batch.inputs_BT.numel()


def predictions(model: Any, batch: Seq2SeqBatch) -> Picked:
    """Logits where there is a target, and the targets."""
    memory = model.encode(batch.ids_BS, batch.mask_BS)
    hidden_BTD = model.decode_hidden(batch.inputs_BT, memory)
    return Picked(model.unembed(picked(hidden_BTD, batch.places_M)), batch.targets_M)


def loss(model: nn.Module, batch: Seq2SeqBatch, *, smoothing: float = 0.0) -> Loss:
    """Summed over the target's tokens; part nll: without smoothing."""
    logits_MV, targets_M = predictions(model, batch)
    found = smoothed_cross_entropy(logits_MV, targets_M, smoothing)
    parts = {"nll": found.nll} if smoothing else {}
    return Loss(found.total, targets_M.new_tensor(targets_M.numel()), parts)


# ---- rows ----


@dataclass(frozen=True)
class Texts:
    """A row: the prefix is in the source already."""

    source: str
    target: str


def check_row(row: Mapping[str, Any], number: int) -> None:
    """Raises InputError for a row that cannot be learnt from."""
    where = where_of(row, number)
    for name in ("source", "target"):
        if not isinstance(row.get(name), str):
            raise InputError(
                f"{where} has no text {name!r}, but {row.get(name)!r:.60}",
                where=name,
                advice=naming(name, row),
            )
        if not row[name].strip():
            raise InputError(f"the {name} of {where} is empty")


def checked_rows(rows: Sequence[Mapping[str, Any]], prefix: str) -> list[Texts]:
    """Rows with "source", "target" and, where they differ by row, "prefix". Raises InputError."""
    found = []
    for number, row in enumerate(rows):
        check_row(row, number)
        front = row.get("prefix")
        found.append(Texts((prefix if front is None else front) + row["source"], row["target"]))
    if not found:
        raise InputError("there are no rows to learn from")
    return found


class Pairs:
    """Encoded rows. notes: what was cut, for the user."""

    def __init__(self, examples: Sequence[Example], notes: Sequence[str] = ()) -> None:
        self.examples, self.notes = examples, tuple(notes)

    def __len__(self) -> int:
        return len(self.examples)

    def length(self, index: int) -> int:
        source_S, target_T = self.examples[index]
        return max(len(source_S), len(target_T))

    def example(self, index: int, epoch: int) -> Example:
        source_S, target_T = self.examples[index]
        return Example(source_S.long(), target_T.long())


@dataclass(frozen=True)
class Encoder:
    """Texts -> ids. The source is encoded as the verbs do it, the target closed by `end`."""

    tokenizer: Tokenizer
    source_length: int
    target_length: int
    end: int

    def source(self, text: str) -> tuple[list[int], bool]:
        """ids, and whether they were cut; the special tokens at the end stay."""
        encoding = self.tokenizer.encode(text)
        fitted = common.fit(encoding, self.source_length, truncate=True)
        return fitted.ids, len(fitted) < len(encoding)

    def target(self, text: str) -> tuple[list[int], bool]:
        if isinstance(self.tokenizer, MarianTokenizer):
            ids = self.tokenizer.encode_target(text, special=False, parse_special=False).ids
        else:
            ids = self.tokenizer.encode_plain(text)
        room = self.target_length - 1
        return [*ids[:room], self.end], len(ids) > room

    def pairs(self, rows: Sequence[Texts], progress: Progress | None) -> Pairs:
        examples = []
        cut = {"sources": 0, "targets": 0}
        for row in encoded.reported(rows, progress, "tokenising"):
            (source, shorter), (target, less) = self.source(row.source), self.target(row.target)
            examples.append(Example(_packed(source), _packed(target)))
            cut["sources"] += shorter
            cut["targets"] += less
        limits = {"sources": self.source_length, "targets": self.target_length}
        notes = [f"{n} of {len(rows)} {k} cut to {limits[k]} tokens" for k, n in cut.items() if n]
        return Pairs(examples, notes)


def _packed(ids: Sequence[int]) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)


# ---- the task ----

NUM_BEAMS: Final = 4
SCORES: Final = {"bleu": "bleu", "rouge": "rougeL"}
"""A score -> the metric that chooses the best checkpoint."""


def prefix_of(loaded: Loaded, prefix: str | None, published: str | None) -> str:
    """As given, else as the model publishes it under that name."""
    if prefix is not None:
        return prefix
    own = task_parameters(loaded).get(published or "") or {}
    return str(own.get("prefix", ""))


def described(
    loaded: Loaded,
    prefix: str | None = None,
    published: str | None = None,
    num_beams: int = NUM_BEAMS,
    length_penalty: float = 1.0,
    target_length: int | None = None,
    max_new_tokens: int | None = None,
) -> Loaded:
    """The model whose config states under `task_specific_params` how it is trained and judged.

    published: a name there, as "summarization", which the verb of that task reads; None: nothing is
    stated. Without it a verb would go on with the base's prefix and settings.
    """
    source = loaded.source.published
    if published is None or source is None:
        return loaded
    own = {
        "prefix": prefix_of(loaded, prefix, published),
        "num_beams": num_beams,
        "length_penalty": length_penalty,
        "max_new_tokens": max_new_tokens or encoded.checked_length(loaded, target_length, 2),
    }
    config = {**source.raw_config, "task_specific_params": {published: own}}
    source = replace(source, raw_config=config)
    return replace(loaded, source=replace(loaded.source, published=source))


def task(
    loaded: Loaded,
    rows: Sequence[Mapping[str, Any]],
    *,
    evaluation: Sequence[Mapping[str, Any]] | None = None,
    prefix: str | None = None,
    published: str | None = None,
    source_length: int | None = None,
    target_length: int | None = None,
    smoothing: float = 0.1,
    score: str | None = None,
    metric: str | None = None,
    tokenize: str = "auto",
    language: str = "auto",
    score_limit: int | None = None,
    num_beams: int = NUM_BEAMS,
    length_penalty: float = 1.0,
    max_new_tokens: int | None = None,
    evaluation_batch_size: int = 32,
    seed: int = 0,
    progress: Progress | None = None,
) -> Task:
    """Learn to turn sources into targets. rows: see checked_rows().

    prefix: put before each source that has none of its own ("translate English to Japanese: ").
    published: see described(); the prefix of that name, where none is given.
    source_length, target_length: most tokens, special ones included (default: what the model
    takes); longer ones are cut, and `examples.notes` says how many. smoothing: eps. Evaluation
    gives loss (without smoothing), perplexity and accuracy of a token; with score "bleu" or "rouge"
    also sacrebleu's BLEU (with `tokenize`) or ROUGE (words of `language`) of what beam search makes
    of the first `score_limit` sources; "auto": as most targets are written, Japanese ("ja-mecab")
    or not ("13a", "en"). metric: chooses the best checkpoint (default: the score; else the
    loss). max_new_tokens: default: target_length. seed: not used, nothing is drawn. Raises
    InputError, ConfigError.
    """
    check_head(loaded, ("conditional-generation",))
    if not 0.0 <= smoothing < 1.0:
        raise ConfigError(f"must be at least 0 and below 1, it is {smoothing}", where="smoothing")
    if score is not None and score not in SCORES:
        raise ConfigError(f"{score!r} is not one of {', '.join(SCORES)}", where="score")
    front = prefix_of(loaded, prefix, published)
    tokenizer = encoded.checked_tokenizer(loaded)
    config = loaded.config
    encoder = Encoder(
        tokenizer,
        encoded.checked_length(loaded, source_length, 2),
        encoded.checked_length(loaded, target_length, 2),
        config.eos_ids[0],
    )
    pad = tokenizer.pad_id if config.pad_id is None else config.pad_id
    gather = partial(collate, pad=pad or 0, start=config.start_id)
    evaluate = sample = None
    if evaluation is not None:
        held_out = checked_rows(evaluation, front)
        chosen = {
            "num_beams": num_beams,
            "length_penalty": length_penalty,
            "max_new_tokens": max_new_tokens or encoder.target_length,
            "decoder_start_token_id": config.start_id,
            "eos_token_id": tuple(config.eos_ids),
            "do_sample": False,
        }
        decoder = Decoder(encoder, effective(loaded, chosen), evaluation_batch_size)
        judged = held_out[:score_limit]
        scorer = None
        if score is not None:
            scorer = scorer_of(decoder, judged, score, tokenize, language)
        pairs = encoder.pairs(held_out, progress)
        evaluate = evaluator(pairs, gather, evaluation_batch_size, scorer)
        sample = partial(_sample, decoder=decoder, source=held_out[0].source)
    if metric is None:
        metric = "loss" if score is None or evaluation is None else SCORES[score]
    return Task(
        examples=encoder.pairs(checked_rows(rows, front), progress),
        collate=gather,
        loss=partial(loss, smoothing=smoothing),
        evaluate=evaluate,
        metric=metric,
        lower=metric in ("loss", "perplexity"),
        sample=sample,
        tokens=tokens,
    )


KIND: Final = Kind("conditional-generation", task, check_row, described=described)


@dataclass(frozen=True)
class Decoder:
    """Sources -> texts, by the settings given."""

    encoder: Encoder
    settings: Settings
    batch_size: int

    def __call__(self, model: Any, sources: Sequence[str]) -> list[str]:
        """In the order of the sources; like lengths are decoded together."""
        ids = [self.encoder.source(source)[0] for source in sources]
        order = sorted(range(len(ids)), key=lambda n: -len(ids[n]))
        texts = [""] * len(ids)
        for start in range(0, len(order), self.batch_size):
            some = order[start : start + self.batch_size]
            made = generate(
                model, [ids[n] for n in some], self.settings, tokenizer=self.encoder.tokenizer
            )
            for n, one in zip(some, made, strict=True):
                texts[n] = one.text or ""
        return texts


def _sample(model: nn.Module, *, decoder: Decoder, source: str) -> str:
    return f"{source} -> {decoder(model, [source])[0]}"


@dataclass(frozen=True)
class Scorer:
    """BLEU or ROUGE of decoded sources against their targets."""

    decoder: Decoder
    rows: Sequence[Texts]
    kind: str
    tokenize: str
    language: str

    def __call__(self, model: nn.Module) -> dict[str, float]:
        from chumoku.training import metrics  # needs the training extra

        hypotheses = self.decoder(model, [row.source for row in self.rows])
        references = [row.target for row in self.rows]
        if self.kind == "bleu":
            return {"bleu": metrics.bleu(hypotheses, references, self.tokenize)}
        return metrics.rouge(hypotheses, references, self.language)


def scorer_of(
    decoder: Decoder, rows: Sequence[Texts], kind: str, tokenize: str, language: str
) -> Scorer:
    """What is "auto" is as most targets are written, Japanese or not."""
    if language == "auto":
        language = written_in([row.target for row in rows])
    if tokenize == "auto":
        tokenize = "ja-mecab" if language == "ja" else "13a"
    return Scorer(decoder, rows, kind, tokenize, language)


def judge_targets(
    model: nn.Module,
    examples: Examples,
    gather: Callable[[Sequence[Any]], Seq2SeqBatch],
    batch_size: int,
) -> Judged:
    """Loss and accuracy of the targets' tokens under teacher forcing."""
    batches = evaluation_batches(examples, gather, batch_size, model)
    return judge(predictions(model, batch) for batch in batches)


def evaluator(
    examples: Examples,
    gather: Callable[[Sequence[Any]], Seq2SeqBatch],
    batch_size: int,
    scored: Callable[[nn.Module], dict[str, float]] | None = None,
) -> Callable[[nn.Module], dict[str, float]]:
    """Metrics of the targets' tokens, and of whole decoded texts where asked for."""

    def evaluate(model: nn.Module) -> dict[str, float]:
        judged = judge_targets(model, examples, gather, batch_size)
        metrics = {
            "loss": judged.nll,
            "perplexity": judged.perplexity,
            "accuracy": judged.accuracy,
        }
        return metrics | ({} if scored is None else scored(model))

    return evaluate
