"""Tells the kinds of written documents other than Word's: OpenDocument texts, e-books, RTF. By content, whatever the name."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Sequence

from jambacli.documents.extract.rtf_tokens import is_rtf
from jambacli.documents.extract.zip_guard import opened_member
from jambacli.errors import BadFileError

_MAX_START = 1 << 16
_TEXTS = ("text", "text-template", "text-master", "text-web", "text-master-template")
_OTHERS = {
    "graphics": "an OpenDocument drawing; export it as .pdf",
    "formula": "an OpenDocument formula; put it into a text document, or export it as .pdf",
    "chart": "an OpenDocument chart; put it into a text document, or export it as .pdf",
    "image": "an OpenDocument picture; read its text with an OCR program first",
    "database": "an OpenDocument database; export its tables as .csv",
    "base": "an OpenDocument database; export its tables as .csv",
}
_OPEN_OFFICE = "an OpenOffice 1 document; open it in LibreOffice and save it as .odt"
_MIME = re.compile(r"application/vnd\.oasis\.opendocument\.([a-z-]+)")


def zip_text_kind(archive: zipfile.ZipFile, members: Sequence[str], name: str) -> str | None:
    """ "odt", "epub", or None for another kind. Raises BadFileError for those that are known but not supported."""
    mime = _start(archive, "mimetype", name) if "mimetype" in members else ""
    if "META-INF/container.xml" in members and (mime.startswith("application/epub") or "content.xml" not in members):
        return "epub"
    if "application/vnd.sun.xml." in mime:
        raise BadFileError(name, f"is {_OPEN_OFFICE}")
    if (found := _MIME.search(mime)) is not None:
        kind = found[1]
        if kind in _TEXTS:
            return "odt"
        if (what := _OTHERS.get(kind.removesuffix("-template"))) is not None:
            raise BadFileError(name, f"is {what}")
    elif "content.xml" in members and "<office:text" in _start(archive, "content.xml", name):
        return "odt"
    return None


def plain_text_kind(head: bytes, name: str) -> str | None:
    """ "rtf", "odt" (as one XML file), or None for another kind. Raises BadFileError for Word's old XML."""
    if is_rtf(head):
        return "rtf"
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith((b"<?xml", b"<office:document", b"<pkg:package", b"<w:wordDocument", b"<!--")):
        if b"<office:document" in head and b"opendocument.text" in head:
            return "odt"
        if b"<office:document" in head and b"opendocument.graphics" in head:
            raise BadFileError(name, f"is {_OTHERS['graphics']}")
        if b'progid="Word.Document"' in head or b"<w:wordDocument" in head or b"<pkg:package" in head:
            raise BadFileError(name, "is a Word document as one XML file; open it in Word and save it as .docx")
    return None


def _start(archive: zipfile.ZipFile, member: str, name: str) -> str:
    with opened_member(archive, archive.getinfo(member), name, 1 << 30) as file:
        return file.read(_MAX_START).decode("utf-8", "replace")
