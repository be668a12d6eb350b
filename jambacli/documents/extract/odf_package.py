"""The parts of an OpenDocument file: a zip of XML, or one XML file with all of them (OpenDocument 1.3, part 2)."""

from __future__ import annotations

import posixpath
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

from jambacli.documents.extract.pieces import MAX_TEXT
from jambacli.documents.extract.xml_tokens import Readable, Token, tokens
from jambacli.documents.extract.zip_guard import Bounded, opened_member, opened_zip
from jambacli.errors import BadFileError, JambaError

# The XML of a document of MAX_TEXT characters is a few times as long as its text; a zip bomb is longer.
_MAX_XML = 4 * MAX_TEXT
_MAX_MANIFEST = 16 << 20
_ODF = "urn:oasis:names:tc:opendocument:xmlns:"
_PREFIXES = {
    f"{_ODF}office:1.0": "office",
    f"{_ODF}text:1.0": "text",
    f"{_ODF}table:1.0": "table",
    f"{_ODF}style:1.0": "style",
    f"{_ODF}drawing:1.0": "draw",
    f"{_ODF}xsl-fo-compatible:1.0": "fo",
    f"{_ODF}svg-compatible:1.0": "svg",
    f"{_ODF}form:1.0": "form",
    f"{_ODF}chart:1.0": "chart",
    f"{_ODF}datastyle:1.0": "number",
    f"{_ODF}meta:1.0": "meta",
    f"{_ODF}dr3d:1.0": "dr3d",
    "urn:openoffice:names:experimental:ooo-ms-interop:xmlns:field:1.0": "field",
    "urn:org:documentfoundation:names:experimental:office:xmlns:loext:1.0": "loext",
    "http://www.w3.org/1999/xlink": "xlink",
    "http://www.w3.org/1998/Math/MathML": "math",
    "http://www.w3.org/XML/1998/namespace": "xml",
    "http://purl.org/dc/elements/1.1/": "dc",
}


class Package:
    """An open file. ``flat``: it is one XML file."""

    def __init__(self, name: str, archive: zipfile.ZipFile | None, path: str) -> None:
        self.flat = archive is None
        self._name, self._archive, self._path = name, archive, path
        self._left = _MAX_XML
        self._members = {} if archive is None else {info.filename: info for info in archive.infolist()}
        if archive is not None:
            self._refuse_encrypted(archive)

    def has(self, part: str) -> bool:
        """Whether the package holds a part of this name."""
        return part in self._members

    def tokens(self, part: str = "") -> Iterator[Token]:
        """The tokens of a part, or of the whole flat file."""
        with self._open(part) as file:
            yield from tokens(file, _PREFIXES, self._name)

    def target(self, base: str, link: str) -> str:
        """The part with the content of an embedded object; "" if it is none, or not in the package."""
        folder = posixpath.normpath(posixpath.join(posixpath.dirname(base), unquote(link)))
        part = posixpath.join(folder, "content.xml")
        return part if link and self.has(part) else ""

    @contextmanager
    def _open(self, part: str) -> Iterator[Readable]:
        if self._archive is None:
            with Path(self._path).open("rb") as file:
                yield Bounded(file, self._name, _MAX_XML)
            return
        if part not in self._members:
            raise BadFileError(self._name, f"is not an OpenDocument text ({part} is missing); save it again")
        with opened_member(self._archive, self._members[part], self._name, _MAX_XML) as member:
            yield _Counted(self, member)

    def _refuse_encrypted(self, archive: zipfile.ZipFile) -> None:
        info = self._members.get("META-INF/manifest.xml")
        encrypted = "encrypted-package" in self._members
        if info is not None and not encrypted:
            with opened_member(archive, info, self._name, _MAX_MANIFEST) as member:
                encrypted = b"encryption-data" in member.read()
        if encrypted:
            raise BadFileError(self._name, "is encrypted; save it without a password")


class _Counted:
    """A part; all parts together are bounded too."""

    def __init__(self, package: Package, file: Bounded) -> None:
        self._package, self._file = package, file

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(n)
        self._package._left -= len(data)
        if self._package._left < 0:
            raise BadFileError(
                self._package._name, f"unpacks to more than {_MAX_XML >> 20} MB: a zip bomb, or too long to read"
            )
        return data


@contextmanager
def opened(path: str, name: str) -> Iterator[Package]:
    """The package at ``path``. Raises BadFileError naming ``name`` for whatever is wrong with it, also while it is read."""
    try:
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise JambaError(f"{name}: reading OpenDocument files needs: pip install 'jambacli[docs]'") from error
    from xml.etree.ElementTree import ParseError

    try:
        if not zipfile.is_zipfile(path):
            yield Package(name, None, path)
            return
        with opened_zip(path, name) as archive:
            yield Package(name, archive, path)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ParseError, OSError) as error:
        raise BadFileError(
            name, f"is a damaged OpenDocument file ({error}); save it again or export it to .pdf"
        ) from error
    except DefusedXmlException as error:
        raise BadFileError(
            name, "defines XML entities, which a regular document never does; it was not read"
        ) from error
