"""The parts of an e-book (EPUB 2 and 3): its package document, the order of its files, and the titles of its chapters."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from jambacli.documents.extract.pieces import MAX_TEXT
from jambacli.documents.extract.xml_tokens import Token, tokens
from jambacli.documents.extract.zip_guard import opened_member, opened_zip
from jambacli.errors import BadFileError, JambaError

CONTAINER = "META-INF/container.xml"
_ENCRYPTION = "META-INF/encryption.xml"
# All files that are read, and each of them.
_MAX_BOOK, _MAX_FILE = 4 * MAX_TEXT, MAX_TEXT
#: Fonts are often garbled by one of these methods, which is no protection of the text.
_FONT_METHODS = ("http://www.idpf.org/2008/embedding", "http://ns.adobe.com/pdf/enc#RC")
_PREFIXES = {
    "urn:oasis:names:tc:opendocument:xmlns:container": "ocf",
    "http://www.idpf.org/2007/opf": "opf",
    "http://openebook.org/namespaces/oeb-package/1.0/": "opf",
    "http://purl.org/dc/elements/1.1/": "dc",
    "http://www.daisy.org/z3986/2005/ncx/": "ncx",
    "http://www.w3.org/1999/xhtml": "h",
    "http://www.idpf.org/2007/ops": "epub",
    "http://www.w3.org/2001/04/xmlenc#": "enc",
}
_MOST_TITLES, _LONGEST_TITLE = 100_000, 120
_TOKENS = 10_000


@dataclass
class Item:
    """A file of the book. ``path``: in the archive, "" if it lies outside of it. ``link``: as the book names it."""

    path: str
    link: str
    kind: str
    properties: tuple[str, ...] = ()


@dataclass
class Spine:
    """The order of the files. ``aside``: those that are no part of it, such as notes."""

    items: list[Item] = field(default_factory=list)
    aside: list[Item] = field(default_factory=list)
    unknown: int = 0
    repeated: int = 0


class Book:
    """An open e-book."""

    def __init__(self, archive: zipfile.ZipFile, name: str, alive: Callable[[], None]) -> None:
        self._archive, self._name, self._alive = archive, name, alive
        self._members = {info.filename: info for info in archive.infolist()}
        self._folded = {path.casefold(): path for path in self._members}
        self._left = _MAX_BOOK
        self._items: dict[str, Item] = {}
        self._toc = ""
        self.spine = Spine()
        self._package = self._root()
        self._read_package()

    def read(self, path: str) -> bytes | None:
        """A file; None if there is none of this path."""
        info = self._members.get(path) or self._members.get(self._folded.get(path.casefold(), ""))
        if info is None:
            return None
        with opened_member(self._archive, info, self._name, _MAX_FILE) as member:
            data = member.read()
        self._left -= len(data)
        if self._left < 0:
            raise BadFileError(
                self._name, f"unpacks to more than {_MAX_BOOK >> 20} MB: a zip bomb, or too long to read"
            )
        return data

    def refuse_protected(self) -> None:
        """Raise BadFileError if a file with text is encrypted."""
        if _ENCRYPTION not in self._members:
            return
        texts = {item.path for item in (*self.spine.items, *self.spine.aside)}
        method = ""
        for kind, tag, values in self._tokens(_ENCRYPTION):
            if kind != "start":
                continue
            if tag == "enc:EncryptionMethod":
                method = values.get("Algorithm", "")
            elif tag == "enc:CipherReference" and method not in _FONT_METHODS:
                path = posixpath.normpath(unquote(values.get("URI", "")).lstrip("/"))
                if path in texts:
                    raise BadFileError(
                        self._name, "is protected against copying (DRM); it can be read only by its shop's program"
                    )

    def titles(self) -> dict[str, str]:
        """The first title that the table of contents has for each file."""
        found: dict[str, str] = {}
        nav = next((item for item in self._items.values() if "nav" in item.properties), None)
        if nav is not None:
            found = self._nav_titles(nav.path)
        ncx = self._items.get(self._toc) or next(
            (i for i in self._items.values() if i.kind == "application/x-dtbncx+xml"), None
        )
        if not found and ncx is not None:
            found = self._ncx_titles(ncx.path)
        return found

    def _nav_titles(self, path: str) -> dict[str, str]:
        found: dict[str, str] = {}
        in_toc, depth, link = 0, 0, ""
        words: list[str] = []
        for kind, value, values in self._quietly(path):
            if kind == "text":
                if link:
                    words.append(value)
                continue
            depth += 1 if kind == "start" else -1
            if value == "h:nav" and kind == "start" and values.get("epub:type", "toc") == "toc":
                in_toc = in_toc or depth
            elif value == "h:nav" and kind == "end" and depth < in_toc:
                in_toc = 0
            elif value == "h:a" and in_toc:
                if kind == "end":
                    _add(found, link, words)
                link, words = self._beside(path, values.get("href", "")) if kind == "start" else "", []
        return found

    def _ncx_titles(self, path: str) -> dict[str, str]:
        found: dict[str, str] = {}
        in_text = False
        words: list[str] = []
        for kind, value, values in self._quietly(path):
            if kind == "text" and in_text:
                words.append(value)
            elif value == "ncx:text":
                in_text = kind == "start"
            elif value == "ncx:navPoint" and kind == "start":
                words = []
            elif value == "ncx:content" and kind == "start":
                _add(found, self._beside(path, values.get("src", "")), words)
                words = []
        return found

    def _root(self) -> str:
        """The path of the package document."""
        for kind, tag, values in self._tokens(CONTAINER):
            if kind == "start" and tag == "ocf:rootfile":
                media = values.get("media-type", "application/oebps-package+xml")
                path = self._beside("", values.get("full-path", ""))
                if media == "application/oebps-package+xml" and path:
                    return path
        raise BadFileError(
            self._name, f"is a damaged e-book ({CONTAINER} names no package document); download it again"
        )

    def _read_package(self) -> None:
        seen: set[str] = set()
        for kind, tag, values in self._tokens(self._package):
            if kind != "start":
                continue
            if tag == "opf:item" and len(self._items) < 1_000_000:
                link = values.get("href", "")
                item = Item(
                    self._beside(self._package, link),
                    link,
                    values.get("media-type", ""),
                    tuple(values.get("properties", "").split()),
                )
                self._items.setdefault(values.get("id", ""), item)
            elif tag == "opf:spine":
                self._toc = values.get("toc", "")
            elif tag == "opf:itemref":
                found = self._items.get(values.get("idref", ""))
                if found is None:
                    self.spine.unknown += 1
                elif (key := found.path or found.link) in seen:
                    self.spine.repeated += 1
                else:
                    seen.add(key)
                    (self.spine.aside if values.get("linear") == "no" else self.spine.items).append(found)

    def _beside(self, base: str, link: str) -> str:
        """The path in the archive of what ``base`` links to; "" if it is outside of it."""
        link = unquote(link.partition("#")[0]).strip()
        if not link or ":" in link.partition("/")[0] or link.startswith(("/", "\\")):
            return ""
        path = posixpath.normpath(posixpath.join(posixpath.dirname(base), link))
        return "" if path.startswith("..") else path

    def _tokens(self, path: str) -> Iterator[Token]:
        data = self.read(path)
        if data is None:
            raise BadFileError(self._name, f"is a damaged e-book ({path} is missing); download it again")
        for count, token in enumerate(tokens(_Bytes(data), _PREFIXES, self._name)):
            if count % _TOKENS == 0:
                self._alive()
            yield token

    def _quietly(self, path: str) -> Iterator[Token]:
        """The tokens of a file that a book can be read without, as far as they go."""
        from xml.etree.ElementTree import ParseError

        from defusedxml.common import DefusedXmlException

        try:
            if path and self.read(path) is not None:
                yield from self._tokens(path)
        except (ParseError, DefusedXmlException):
            return


class _Bytes:
    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def read(self, n: int = -1) -> bytes:
        begin, self._at = self._at, len(self._data) if n < 0 else self._at + n
        return self._data[begin : self._at]


def _add(found: dict[str, str], path: str, words: list[str]) -> None:
    title = " ".join("".join(words).split())
    if len(title) > _LONGEST_TITLE:
        title = title[: _LONGEST_TITLE - 3].rstrip() + "..."
    if path and title and len(found) < _MOST_TITLES:
        found.setdefault(path, title)


@contextmanager
def opened(path: str, name: str, alive: Callable[[], None] = lambda: None) -> Iterator[Book]:
    """The book at ``path``. ``alive`` is called now and then while its contents are read.

    Raises BadFileError naming ``name`` for whatever is wrong with it, also while it is read.
    """
    try:
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise JambaError(f"{name}: reading e-books needs: pip install 'jambacli[docs]'") from error
    from xml.etree.ElementTree import ParseError

    faults: tuple[Any, ...] = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ParseError, OSError)
    try:
        with opened_zip(path, name) as archive:
            yield Book(archive, name, alive)
    except faults as error:
        raise BadFileError(name, f"is a damaged e-book ({error}); download it again") from error
    except DefusedXmlException as error:
        raise BadFileError(name, "defines XML entities, which a regular e-book never does; it was not read") from error
