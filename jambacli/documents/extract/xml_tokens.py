"""XML -> start tags, end tags and texts, as a stream that keeps no tree; entities are refused, nothing is fetched."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from jambacli.errors import BadFileError

_CHUNK = 64 << 10
#: More nested elements than any document has.
MAX_DEPTH = 20_000


class Token(NamedTuple):
    """``kind``: "start", "end" or "text". ``value``: the element's short name, or the text. ``attributes``: of a start tag, by
    their short names."""

    kind: str
    value: str
    attributes: dict[str, str] = {}  # noqa: RUF012 - never changed


class Readable(Protocol):
    """An open file."""

    def read(self, n: int = -1, /) -> bytes:
        """At most ``n`` bytes; none at its end."""


def tokens(file: Readable, prefixes: Mapping[str, str], name: str) -> Iterator[Token]:
    """The tokens of a file. ``prefixes``: a short prefix for each namespace that matters (``text:p``); others have ``?``.

    Raises xml.etree.ElementTree.ParseError, defusedxml's DefusedXmlException, and BadFileError naming ``name`` for elements
    that are nested too deep.
    """
    from defusedxml.ElementTree import XMLParser

    found = _Collector(prefixes, name)
    parser = XMLParser(target=found)
    while chunk := file.read(_CHUNK):
        parser.feed(chunk)
        yield from found.tokens
        found.tokens.clear()
    parser.close()
    yield from found.tokens


class _Collector:
    """What the parser calls."""

    def __init__(self, prefixes: Mapping[str, str], name: str) -> None:
        self.tokens: list[Token] = []
        self._prefixes, self._name = prefixes, name
        self._names: dict[str, str] = {}
        self._depth = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadFileError(self._name, f"has more than {MAX_DEPTH:,} elements within one another; it was not read")
        named = {self._short(key): value for key, value in attributes.items()} if attributes else {}
        self.tokens.append(Token("start", self._short(tag), named))

    def end(self, tag: str) -> None:
        self._depth -= 1
        self.tokens.append(Token("end", self._short(tag)))

    def data(self, text: str) -> None:
        self.tokens.append(Token("text", text))

    def close(self) -> None:
        """The end of the file."""

    def _short(self, tag: str) -> str:
        known = self._names.get(tag)
        if known is None:
            uri, _, local = tag[1:].rpartition("}") if tag.startswith("{") else ("", "", tag)
            known = f"{self._prefixes.get(uri, '?')}:{local}" if uri else local
            if len(self._names) < 10_000:
                self._names[tag] = known
        return known
