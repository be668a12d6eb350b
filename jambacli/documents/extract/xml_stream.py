"""Reads XML as a stream of events, fast and in bounded memory: for parts of millions of elements, such as a sheet's cells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol
from xml.parsers import expat

_CHUNK = 256 << 10


class Readable(Protocol):
    """A file of bytes."""

    def read(self, n: int = -1, /) -> bytes: ...


class Handler(Protocol):
    """What is called for each element, by the name that ``short_name`` gives it, and for text within elements."""

    def start(self, tag: str, attributes: dict[str, str]) -> None: ...
    def end(self, tag: str) -> None: ...
    def text(self, data: str) -> None: ...


def stream(file: Readable, handler: Handler, short_name: Callable[[str], str], alive: Callable[[], None]) -> None:
    """Parse a file. ``short_name``: of a name such as ``{uri}local``, of elements and of attributes with a namespace.

    Raises expat.ExpatError for what is no XML, defusedxml's EntitiesForbidden for declared entities.
    """
    from defusedxml.common import EntitiesForbidden

    names: dict[str, str] = {}

    def short(tag: str) -> str:
        known = names.get(tag)
        if known is None:
            known = short_name("{" + tag) if "}" in tag else short_name(tag)
            if len(names) < 10_000:
                names[tag] = known
        return known

    def start(tag: str, attributes: dict[str, str]) -> None:
        if "}" in "".join(attributes):
            attributes = {short(key) if "}" in key else key: value for key, value in attributes.items()}
        handler.start(names.get(tag) or short(tag), attributes)

    def end(tag: str) -> None:
        handler.end(names.get(tag) or short(tag))

    def entity(*declaration: str | int | None) -> None:
        raise EntitiesForbidden(*(declaration[i] for i in (0, 2, 3, 4, 5, 6)))

    parser = expat.ParserCreate(namespace_separator="}")
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = handler.text
    parser.EntityDeclHandler = entity
    while data := file.read(_CHUNK):
        parser.Parse(data, False)
        alive()
    parser.Parse(b"", True)
