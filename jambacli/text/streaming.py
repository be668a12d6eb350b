"""Token bytes -> text as it streams: never half a character, stop strings held back; knows nothing of vocabularies."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence


class StreamDecoder:
    """Incremental UTF-8 over token bytes: what has been pushed so far, minus an unfinished character."""

    def __init__(self, token_bytes: Callable[[int, bool], bytes], markers: bool = False) -> None:
        self._token_bytes = token_bytes
        self._markers = markers
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """The text that ``token`` completes; "" while a character is unfinished."""
        return self._decoder.decode(self._token_bytes(token, self._markers))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that never finished, else ""."""
        return self._decoder.decode(b"", final=True)


class StopMatcher:
    """Cuts streamed text at the first stop string, also when it spans pieces.

    Text that may still turn out to be the beginning of a stop string is held back until it is decided.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped: str | None = None

    def push(self, text: str) -> str:
        """Text that is safe to show now; after ``stopped`` is set nothing more comes."""
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
        """The held text, once no more will come."""
        out, self._held = self._held, ""
        return out

    def _overlap(self, stop: str) -> int:
        """Length of the longest tail of the held text that begins ``stop``."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0
