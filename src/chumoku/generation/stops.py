"""Text out of tokens as they come, held back where a stop string may have begun."""

from __future__ import annotations

from collections.abc import Sequence

from chumoku.text.encoding import TokenStream


class TextBuffer:
    """The text of one sequence. What may be the beginning of a stop string waits; the stop string
    itself, and what its last token brings after it, is never part of the text."""

    def __init__(self, stream: TokenStream, stops: Sequence[str]) -> None:
        self._stream, self._stops = stream, tuple(stops)
        self._pending = ""
        self._fresh: list[str] = []
        self._parts: list[str] = []
        self.stopped = False

    @property
    def text(self) -> str:
        """All that is certain so far."""
        return "".join(self._parts)

    def push(self, index: int) -> bool:
        """One more token; True where a stop string is now complete."""
        return self._add(self._stream.push(index))

    def close(self) -> None:
        """No more tokens: what was held back becomes text, up to a stop string in it."""
        if not self.stopped and not self._add(self._stream.flush()):
            self._release(len(self._pending))

    def take(self) -> str:
        """The text that became certain since the last call."""
        fresh = "".join(self._fresh)
        self._fresh.clear()
        return fresh

    def _add(self, piece: str) -> bool:
        self._pending += piece
        places = [p for p in map(self._pending.find, self._stops) if p >= 0]
        if places:
            self._release(min(places))
            self._pending, self.stopped = "", True
        else:
            self._release(len(self._pending) - held_back(self._pending, self._stops))
        return self.stopped

    def _release(self, count: int) -> None:
        if count:
            self._fresh.append(self._pending[:count])
            self._parts.append(self._pending[:count])
            self._pending = self._pending[count:]


def held_back(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` with which a stop string begins."""
    longest = max(map(len, stops), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[len(text) - length :]) for stop in stops):
            return length
    return 0
