"""A text longer than the model, read through overlapping windows."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.errors import InputError
from chumoku.tasks.common import take
from chumoku.text.encoding import Encoding


def windows(encoding: Encoding, limit: int, stride: int, sequence: int = 0) -> list[list[int]]:
    """Token indices of each window: all tokens but those of `sequence`, and a stretch of it.

    Windows hold at most `limit` tokens; neighbours share `stride` tokens of the stretch.
    """
    if len(encoding) <= limit:
        return [list(range(len(encoding)))]
    inside = [i for i, s in enumerate(encoding.sequences) if s == sequence]
    outside = {i for i, s in enumerate(encoding.sequences) if s != sequence}
    room = limit - len(outside)
    if room <= stride:
        raise InputError(
            f"{limit} tokens leave {room} for the text, not more than the stride of {stride}",
            advice="choose a smaller stride, or a larger max_length",
        )
    found = []
    for start in range(0, len(inside), room - stride):
        stretch = inside[start : start + room]
        found.append(sorted(outside | set(stretch)))
        if start + room >= len(inside):
            break
    return found


def cut(encoding: Encoding, places: Sequence[Sequence[int]]) -> list[Encoding]:
    """The encodings of the windows."""
    return [take(encoding, indices) for indices in places]
