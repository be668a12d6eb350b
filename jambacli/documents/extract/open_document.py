"""The parts of an OpenDocument spreadsheet or presentation: a zip of XML (OpenDocument 1.3, part 2), read as a stream."""

from __future__ import annotations

import posixpath
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, TreeBuilder

from jambacli.documents.extract.ooxml import archive_errors
from jambacli.documents.extract.xml_stream import Handler, stream
from jambacli.errors import BadFileError
from jambacli.zip_guard import opened_member, opened_zip

_MAX_XML, _MAX_MANIFEST = 1 << 30, 16 << 20
# A drawing's part is kept whole while it is read.
_MAX_TREE = 64 << 20
_ODF = "urn:oasis:names:tc:opendocument:xmlns:"
_SHORT = {"drawing": "draw", "svg-compatible": "svg", "xsl-fo-compatible": "fo", "datastyle": "number"}
_OTHERS = {
    "http://www.w3.org/1999/xlink": "xlink",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://openoffice.org/2009/office": "officeooo",
    "http://www.w3.org/1998/Math/MathML": "math",
}


def short_name(tag: str) -> str:
    """``table:table-row`` for the tag of a row."""
    uri, _, name = tag[1:].rpartition("}") if tag.startswith("{") else ("", "", tag)
    if uri.startswith(_ODF):
        family = uri.removeprefix(_ODF).rpartition(":")[0]
        return f"{_SHORT.get(family, family)}:{name}"
    return f"{_OTHERS.get(uri, '?')}:{name}"


class Package:
    """An open file."""

    def __init__(self, archive: zipfile.ZipFile, name: str, alive: Callable[[], None]) -> None:
        self._archive, self._name, self._alive = archive, name, alive
        self._members = {info.filename: info for info in archive.infolist()}
        self._refuse_encrypted()

    def has(self, part: str) -> bool:
        """Whether the package holds a part of this name."""
        return part in self._members

    def read(self, part: str, handler: Handler, limit: int = _MAX_XML) -> None:
        """Give the events of a part to a handler."""
        if part not in self._members:
            raise BadFileError(self._name, f"is not a whole OpenDocument file ({part} is missing); save it again")
        with opened_member(self._archive, self._members[part], self._name, limit) as file:
            stream(file, handler, short_name, self._alive)

    def tree(self, link: str) -> Element | None:
        """The root of the content of an embedded object, None if it is none or not in the package."""
        part = posixpath.normpath(posixpath.join(unquote(link), "content.xml"))
        if not link or not self.has(part):
            return None
        builder = Builder()
        self.read(part, builder, _MAX_TREE)
        return builder.root

    def _refuse_encrypted(self) -> None:
        manifest = self._members.get("META-INF/manifest.xml")
        if manifest is not None:
            with opened_member(self._archive, manifest, self._name, _MAX_MANIFEST) as file:
                if b"encryption-data" in file.read():
                    raise BadFileError(self._name, "is protected by a password; save it without one")


class Builder:
    """Builds a tree of elements with short names."""

    def __init__(self) -> None:
        self._builder: Any = TreeBuilder()
        self._depth = 0
        self.root: Element | None = None

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._builder.start(tag, attributes)
        self._depth += 1

    def end(self, tag: str) -> None:
        self._builder.end(tag)
        self._depth -= 1
        if not self._depth:
            self.root = self._builder.close()

    def text(self, data: str) -> None:
        if self._depth:
            self._builder.data(data)


@contextmanager
def opened(path: str, name: str, suffix: str, alive: Callable[[], None]) -> Iterator[Package]:
    """The package at ``path``. Raises BadFileError naming ``name`` for whatever is wrong with it, also while it is read."""
    with archive_errors(name, suffix), opened_zip(path, name) as archive:
        yield Package(archive, name, alive)
