"""Text from token bytes as they stream: whole characters only, and cut at stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class StreamDecoder:
    """Incremental UTF-8 decoding of token bytes; the bytes of an incomplete character are kept until it is complete."""

    def __init__(self, token_bytes: Callable[[int, bool], bytes], markers: bool = False) -> None:
        self._token_bytes = token_bytes
        self._markers = markers
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is incomplete."""
        return self._decoder.decode(self._token_bytes(token, self._markers))

    def flush(self) -> str:
        """The end of the text: U+FFFD for a character that stayed incomplete, else ""."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Cuts streamed text at the first stop string, including one that spans several pieces.

    Text that may be the beginning of a stop string is held back until the next pieces complete it or rule it out.
    ``stopped``: the stop string that was found.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """The text that can be shown now; "" once ``stopped`` is set."""
        if self.stopped is not None:
            return ""
        self._held += text
        hits = [(at, s) for s in self._stops if (at := self._held.find(s)) >= 0]
        if hits:
            at, self.stopped = min(hits, key=lambda hit: (hit[0], -len(hit[1])))
            out, self._held = self._held[:at], ""
            return out
        keep = max((self._overlap(s) for s in self._stops), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """The held-back text, at the end of the stream."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """The length of the longest suffix of the held-back text that is a prefix of ``stop``."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0
