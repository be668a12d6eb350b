"""The parts of a file of Office Open XML (.docx, .xlsx, .pptx): a zip of XML whose parts are found by relationships, not
by fixed names (ECMA-376 part 2)."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from jambacli.documents.extract.pieces import MAX_TEXT
from jambacli.documents.extract.xml_stream import Growing
from jambacli.errors import BadFileError, JambaError
from jambacli.zip_guard import Bounded, opened_member, opened_zip

# The XML of a document of MAX_TEXT characters is a few times as long as its text; a zip bomb is longer.
MAX_XML = 4 * MAX_TEXT
_CHUNK = 16 << 10
_OOXML, _STRICT = "http://schemas.openxmlformats.org/", "http://purl.oclc.org/ooxml/"
#: Both forms of every namespace -> a short prefix.
_PREFIXES = {
    f"{_OOXML}wordprocessingml/2006/main": "w",
    f"{_STRICT}wordprocessingml/main": "w",
    f"{_OOXML}spreadsheetml/2006/main": "x",
    f"{_STRICT}spreadsheetml/main": "x",
    f"{_OOXML}presentationml/2006/main": "p",
    f"{_STRICT}presentationml/main": "p",
    f"{_OOXML}officeDocument/2006/math": "m",
    f"{_STRICT}officeDocument/math": "m",
    f"{_OOXML}officeDocument/2006/relationships": "r",
    f"{_STRICT}officeDocument/relationships": "r",
    f"{_OOXML}drawingml/2006/main": "a",
    f"{_STRICT}drawingml/main": "a",
    f"{_OOXML}drawingml/2006/wordprocessingDrawing": "wp",
    f"{_STRICT}drawingml/wordprocessingDrawing": "wp",
    f"{_OOXML}drawingml/2006/spreadsheetDrawing": "xdr",
    f"{_STRICT}drawingml/spreadsheetDrawing": "xdr",
    f"{_OOXML}drawingml/2006/chartDrawing": "cdr",
    f"{_STRICT}drawingml/chartDrawing": "cdr",
    f"{_OOXML}drawingml/2006/picture": "pic",
    f"{_STRICT}drawingml/picture": "pic",
    f"{_OOXML}drawingml/2006/chart": "c",
    f"{_STRICT}drawingml/chart": "c",
    "http://schemas.microsoft.com/office/drawing/2014/chartex": "cx",
    f"{_OOXML}drawingml/2006/diagram": "dgm",
    f"{_STRICT}drawingml/diagram": "dgm",
    f"{_OOXML}markup-compatibility/2006": "mc",
    "http://schemas.microsoft.com/office/word/2010/wordml": "w14",
    "http://schemas.microsoft.com/office/drawing/2010/main": "a14",
    "http://schemas.microsoft.com/office/spreadsheetml/2018/threadedcomments": "tc",
    "http://schemas.microsoft.com/office/powerpoint/2018/8/main": "p188",
    "urn:schemas-microsoft-com:vml": "v",
    "urn:schemas-microsoft-com:office:office": "o",
}
_URIS = {prefix: [uri for uri, p in _PREFIXES.items() if p == prefix] for prefix in set(_PREFIXES.values())}
_KEYS: dict[str, tuple[str, ...]] = {}
_NAMES: dict[str, str] = {}


def short_name(tag: str) -> str:
    """``w:p`` for the tag of a paragraph, in a strict document as in any other."""
    known = _NAMES.get(tag)
    if known is None:
        uri, _, local = tag[1:].rpartition("}") if tag.startswith("{") else ("", "", tag)
        known = f"{_PREFIXES.get(uri, '?')}:{local}"
        if len(_NAMES) < 10_000:
            _NAMES[tag] = known
    return known


def attribute(element: Any, name: str, default: str | None = None) -> str | None:
    """The attribute ``w:val`` of an element, in either form of its namespace; without a prefix, one of no namespace."""
    keys = _KEYS.get(name)
    if keys is None:
        prefix, _, local = name.rpartition(":")
        keys = _KEYS[name] = tuple(f"{{{uri}}}{local}" for uri in _URIS[prefix]) if prefix else (name,)
    for key in keys:
        value: str | None = element.get(key)
        if value is not None:
            return value
    return default


@dataclass(frozen=True)
class Flavor:
    """A program's files. ``what`` and ``suffix``: what errors call them. ``word``: occurs in the content type of the main
    part, whose usual name is ``usual``."""

    what: str
    suffix: str
    word: str
    usual: str


WORD = Flavor("a Word document", ".docx", "word", "word/document.xml")
EXCEL = Flavor("a workbook", ".xlsx", "sheet", "xl/workbook.xml")
EXCEL_BINARY = Flavor("a workbook", ".xlsb", "sheet", "xl/workbook.bin")
POWERPOINT = Flavor("a presentation", ".pptx", "present", "ppt/presentation.xml")


@dataclass(frozen=True)
class Relation:
    """What a part refers to: ``kind`` is the last word of its type, ``target`` a part's name, or an address outside."""

    kind: str
    target: str
    external: bool


class Package:
    """An open file. ``main``: the name of the part with the document. ``relations``: those of the main part."""

    def __init__(self, archive: zipfile.ZipFile, name: str, flavor: Flavor = WORD) -> None:
        self._archive, self._name, self._flavor = archive, name, flavor
        self._members = {_plain(info.filename): info for info in archive.infolist()}
        self.main = self._find_main()
        self.relations = self.relations_of(self.main)

    def has(self, part: str) -> bool:
        """Whether the package holds a part of this name."""
        return _plain(part) in self._members

    def events(self, part: str) -> Iterator[tuple[str, str, Any]]:
        """("start" or "end", short name, element) of a part; elements are forgotten after their end."""
        from defusedxml import ElementTree

        with self.opened(part) as file:
            stack: list[Any] = []
            source = Growing(file, _CHUNK)
            for event, element in ElementTree.iterparse(source, events=("start", "end")):
                source.moved()
                tag = short_name(element.tag)
                if event == "start":
                    stack.append(element)
                    yield event, tag, element
                    continue
                stack.pop()
                yield event, tag, element
                element.clear()
                if stack:  # remove finished elements, so that memory does not grow with the document
                    stack[-1].remove(element)

    def tree(self, part: str) -> Any:
        """The root element of a part that is kept whole (styles, numbering, a chart)."""
        from defusedxml import ElementTree

        with self.opened(part) as file:
            return ElementTree.parse(Growing(file)).getroot()

    def related(self, kind: str, usual: str = "") -> str | None:
        """The part of a kind that the document refers to, else one of the ``usual`` name beside it; None if there is none."""
        for relation in self.relations.values():
            if relation.kind == kind and not relation.external and self.has(relation.target):
                return relation.target
        beside = posixpath.join(posixpath.dirname(self.main), usual)
        return beside if usual and self.has(beside) else None

    def target(self, identifier: str | None) -> str | None:
        """The part that a relationship of the document leads to; None if it is missing or outside."""
        relation = self.relations.get(identifier or "")
        return relation.target if relation and not relation.external and self.has(relation.target) else None

    @contextmanager
    def opened(self, part: str, limit: int = MAX_XML) -> Iterator[Bounded]:
        """The bytes of a part, at most ``limit`` of them."""
        info = self._members.get(_plain(part))
        if info is None:
            raise BadFileError(
                self._name, f"is not {self._flavor.what} ({part} is missing); save it as {self._flavor.suffix} again"
            )
        with opened_member(self._archive, info, self._name, limit) as file:
            yield file

    def _find_main(self) -> str:
        for relation in self.relations_of("").values():
            if relation.kind == "officeDocument" and self.has(relation.target):
                return relation.target
        if self.has("[Content_Types].xml"):
            for _, tag, element in self.events("[Content_Types].xml"):
                kind = element.get("ContentType", "").lower()
                if tag.endswith(":Override") and kind.endswith(".main+xml") and self._flavor.word in kind:
                    return str(element.get("PartName", "")).lstrip("/")
        return self._flavor.usual

    def relations_of(self, part: str) -> dict[str, Relation]:
        """What a part refers to, by the ids of the relationships."""
        folder, file = posixpath.split(part)
        part = posixpath.join(folder, "_rels", f"{file}.rels")
        found: dict[str, Relation] = {}
        if not self.has(part):
            return found
        for event, tag, element in self.events(part):
            if event == "start" and tag.endswith(":Relationship"):
                target = element.get("Target", "")
                external = element.get("TargetMode", "") == "External"
                if not external:
                    target = posixpath.normpath(posixpath.join("/" + folder, unquote(target.partition("#")[0]))).lstrip(
                        "/"
                    )
                kind = element.get("Type", "").rpartition("/")[2]
                found[element.get("Id", "")] = Relation(kind, target, external)
        return found


def _plain(name: str) -> str:
    return name.replace("\\", "/").lstrip("/").lower()


@contextmanager
def opened(path: str, name: str, flavor: Flavor = WORD) -> Iterator[Package]:
    """The package at ``path``. Raises BadFileError naming ``name`` for whatever is wrong with it, also while it is read."""
    with archive_errors(name, flavor.suffix), opened_zip(path, name) as archive:
        yield Package(archive, name, flavor)


@contextmanager
def archive_errors(name: str, suffix: str) -> Iterator[None]:
    """Within it, what is wrong with a zip of XML is a BadFileError that says so. ``suffix``: of such files."""
    try:
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise JambaError(f"{name}: reading {suffix} files needs: pip install 'jambacli[docs]'") from error
    from xml.etree.ElementTree import ParseError
    from xml.parsers.expat import ExpatError

    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ParseError, ExpatError, OSError) as error:
        raise BadFileError(name, f"is a damaged {suffix} ({error}); save it again or convert it to .pdf") from error
    except DefusedXmlException as error:
        raise BadFileError(
            name, f"defines XML entities, which a regular {suffix} never does; it was not read"
        ) from error
