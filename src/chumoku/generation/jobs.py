"""What is to be generated, checked before any work: starts, sources, and how long each may become.

A decoder-only model starts from the prompt. An encoder-decoder reads the prompt as its source, and
starts from decoder_start_token_id or from a prefix that the caller gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from chumoku.errors import InputError
from chumoku.generation.runner import DecoderOnly, EncoderDecoder, Model
from chumoku.generation.settings import DEFAULT_NEW_TOKENS, Settings

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Job:
    """One entry a prompt. starts: what the decoder is given. sources: what the encoder reads; None
    without one. budgets: how many tokens each may generate. dropped: tokens of the prompt that the
    overflow policy left out. context: positions that the decoder has; None: no limit.
    """

    starts: tuple[Ids, ...]
    sources: tuple[Ids, ...] | None
    budgets: tuple[int, ...]
    dropped: tuple[int, ...]
    context: int | None

    @property
    def prompt_tokens(self) -> tuple[int, ...]:
        """How many tokens of each prompt are read."""
        return tuple(map(len, self.starts if self.sources is None else self.sources))


def plan(
    model: Model,
    prompts: Sequence[Sequence[int]],
    settings: Settings,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> Job:
    """Raises InputError: nothing to read, ids outside the vocabulary, too long, still training."""
    if model.training:
        raise InputError("the model is in training mode", advice="call model.eval() first")
    if not prompts:
        raise InputError("there is no prompt to generate from")
    context = getattr(model.config, "max_positions", None)
    starts = [tuple(prompt) for prompt in prompts]
    sources: list[Ids] | None = None
    dropped = [0] * len(starts)
    if isinstance(model, EncoderDecoder):
        sources = [_source(ids, context, settings) for ids in starts]
        dropped = [len(ids) - len(kept) for ids, kept in zip(starts, sources, strict=True)]
        starts = _decoder_starts(len(starts), settings, prefixes)
    elif not isinstance(model, DecoderOnly):
        raise InputError("this model has no vocabulary to generate from")
    elif prefixes is not None:
        raise InputError("prefixes are for encoder-decoders", advice="put them into the prompt")
    budgets = []
    for n, ids in enumerate(starts):
        ids = ids or _bos(settings)
        starts[n], budget = _fitted(ids, context, settings)
        dropped[n] += len(ids) - len(starts[n])
        budgets.append(budget)
    vocab_size = model.config.vocab_size
    for row in sources or ():
        _check_ids(row, vocab_size)
    for row in starts:
        _check_ids(row, getattr(model.config, "target_vocab_size", None) or vocab_size)
    return Job(
        tuple(starts),
        None if sources is None else tuple(sources),
        tuple(budgets),
        tuple(dropped),
        context,
    )


def _bos(settings: Settings) -> Ids:
    if settings.bos_token_id is None:
        raise InputError("the prompt is empty", advice="give at least one token, or bos_token_id")
    return (settings.bos_token_id,)


def _decoder_starts(
    count: int, settings: Settings, prefixes: Sequence[Sequence[int]] | None
) -> list[Ids]:
    if prefixes is not None:
        if len(prefixes) != count:
            raise InputError(f"{len(prefixes)} prefixes do not fit {count} prompts")
        return [tuple(prefix) for prefix in prefixes]
    start = settings.decoder_start_token_id
    start = settings.bos_token_id if start is None else start
    if start is None:
        raise InputError(
            "an encoder-decoder needs a first token for its decoder",
            advice="set decoder_start_token_id",
        )
    return [(start,)] * count


def _source(ids: Ids, context: int | None, settings: Settings) -> Ids:
    """The source, fitted: truncation keeps its beginning and its last token (the end mark)."""
    if not ids:
        raise InputError("the source is empty")
    if context is None or len(ids) <= context:
        return ids
    if settings.overflow == "error":
        raise InputError(
            f"the source has {len(ids)} tokens, the model reads at most {context}",
            advice="shorten it, or choose overflow='truncate'",
        )
    return (*ids[: context - 1], ids[-1])


def _fitted(ids: Ids, context: int | None, settings: Settings) -> tuple[Ids, int]:
    """The start that fits the context by the overflow policy, and the tokens it may generate."""
    wanted = settings.max_new_tokens
    if wanted is None and settings.max_length is not None:
        wanted = settings.max_length - len(ids)
        if wanted < 1:
            raise InputError(
                f"the prompt has {len(ids)} tokens, max_length is {settings.max_length}",
                advice="max_length counts the prompt; max_new_tokens does not",
            )
    wanted = DEFAULT_NEW_TOKENS if wanted is None else wanted
    if context is None:
        return ids, wanted
    if settings.overflow == "error" and len(ids) >= context:
        raise InputError(
            f"the prompt has {len(ids)} tokens, the context holds {context}, answer included",
            advice="shorten it, or choose overflow='truncate' or 'shift'",
        )
    if len(ids) + wanted > context and settings.overflow != "error":
        room = context - min(wanted, context // 2)
        ids = ids[-room:]
    return ids, wanted if settings.overflow == "shift" else min(wanted, context - len(ids))


def _check_ids(ids: Ids, vocab_size: int) -> None:
    for wrong in (i for i in (min(ids), max(ids)) if not 0 <= i < vocab_size):
        raise InputError(
            f"token {wrong} is outside the model's vocabulary of {vocab_size}",
            advice="the tokenizer may belong to another model",
        )
