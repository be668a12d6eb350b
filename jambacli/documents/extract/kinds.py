"""What kind of document a file is, by its content first and then by its name. ``formats`` says how each is read."""

from __future__ import annotations

import json
import re
import zipfile
import zlib
from pathlib import Path, PurePath

from jambacli.documents.extract.kinds_of_text import plain_text_kind, zip_text_kind
from jambacli.documents.extract.ole import stream_names
from jambacli.documents.extract.plain import EmptyFileError
from jambacli.documents.extract.zip_guard import opened_member, opened_zip
from jambacli.errors import BadFileError

#: So many bytes of a file decide.
HEAD = 4096

_HTML = frozenset((".html", ".htm", ".xhtml"))
_MAIL = frozenset((".eml", ".emlx", ".mht", ".mhtml"))
_IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
SUBTITLES = frozenset((".srt", ".vtt", ".sbv", ".ass", ".ssa"))
_OFFICE = {
    "content.xml": "an OpenDocument file of an unknown kind; save it as .odt, .docx or .pdf",
    "Index/": "a file of Numbers, Pages or Keynote; export it as .xlsx, .docx, .pptx or .pdf",
}
#: The first bytes of a compound file: of old Office files, and of Outlook's messages.
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
# Content types of the main parts of Office files, and the kinds they are.
_CONTENT = {
    "excel.sheet.binary": "xlsb", "spreadsheetml": "xlsx", "ms-excel": "xlsx", "presentationml": "pptx",
    "ms-powerpoint": "pptx", "wordprocessingml": "docx", "ms-word": "docx",
}  # fmt: skip
_MAIN_PARTS = {
    "word/document.xml": "docx",
    "xl/workbook.xml": "xlsx",
    "xl/workbook.bin": "xlsb",
    "ppt/presentation.xml": "pptx",
}
_OPEN_DOCUMENT = {"spreadsheet": "ods", "presentation": "odp"}
_ZIP_NAMES = frozenset((".docx", ".xlsx", ".xlsm", ".xlsb", ".pptx", ".ods", ".odp"))
_OLD_WORD = "an old Word file (.doc); open it in Word or LibreOffice and save it as .docx or .odt"
# The separator line of an mbox file, and the fields of a message's header; the second group is enough with one more of them.
_MBOX = re.compile(rb"From \S+ .*\d\d:\d\d.*\d{4}[^\n]*\n[!-9;-~]+:[ \t]")
_FIELD = re.compile(rb"([!-9;-~]+):[ \t]?[^\n]*(?:\n[ \t][^\n]*)*(?:\n|\Z)")
_MAIL_FIELDS = frozenset(
    b"from to cc subject date message-id mime-version received return-path delivered-to content-type reply-to sender "
    b"content-transfer-encoding dkim-signature x-mailer user-agent x-priority thread-index list-id bcc "
    b"authentication-results arc-seal x-received".split()
)
_SURE_FIELDS = frozenset(b"message-id mime-version received return-path delivered-to x-received".split())


def kind_of(head: bytes, name: str, *, path: Path | None = None, data: bytes | None = None) -> str:
    """One of ``formats.FORMATS``, or "text".

    ``head``: the first ``HEAD`` bytes. ``path`` or ``data``: the whole file. Raises EmptyFileError, or BadFileError for formats
    that are known but not supported.
    """
    if not head:
        raise EmptyFileError(name)
    suffix = (PurePath(name).suffix or (path.suffix if path is not None else "")).lower()
    if b"%PDF-" in head[:1024] and not is_mail(head):
        return "pdf"
    if is_image(head):
        return "image"
    if head.startswith(OLE):
        if suffix in (".msg", ".oft") or is_outlook(path, data):
            return "outlook"
        return _ole_kind(path, name, data)
    if head.startswith(b"PK\x03\x04") or suffix in _ZIP_NAMES:
        return _zip_kind(path, name, data, head)
    if suffix == ".pdf":
        if not head.strip():
            raise EmptyFileError(name)
        raise BadFileError(name, "is not a PDF, despite its name; export it again")
    if (kind := plain_text_kind(head, name)) is not None:
        return kind
    start = head[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if _MBOX.match(_unix(head).lstrip(b"\n")):
        return "mbox"
    if is_mail(head, likely=suffix in _MAIL or (suffix == ".doc" and b"MIME-Version:" in head[:64])):
        return "mail"
    if suffix in _HTML or start.startswith((b"<!doctype html", b"<html")):
        return "html"
    if suffix in SUBTITLES or start.startswith(b"webvtt"):
        return "subtitles"
    if suffix == ".ipynb" or (start.startswith(b"{") and not suffix and _is_notebook(data)):
        return "notebook"
    return "text"


def is_image(head: bytes) -> bool:
    """Whether a file is a picture of a format that may hold a scan."""
    return head.startswith(_IMAGES) or (head.startswith(b"RIFF") and head[8:12] == b"WEBP")


def is_mail(head: bytes, *, likely: bool = False) -> bool:
    """Whether a file begins with a message's header. ``likely``: its name says so, and one field is enough."""
    text = _unix(head).removeprefix(b"\xef\xbb\xbf").lstrip(b"\n")
    text = re.sub(rb"\A(?:\d+ *\n|>?From [^\n]*\n)", b"", text)
    names = []
    at = 0
    while (match := _FIELD.match(text, at)) is not None:
        names.append(match[1].lower())
        at = match.end()
    known = _MAIL_FIELDS.intersection(names)
    if likely:
        return bool(known)
    if names and names[0] not in known and not names[0].startswith(b"x-"):
        return False
    return len(known) >= 3 and (bool(known & _SURE_FIELDS) or {b"from", b"subject", b"date"} <= known)


def _unix(head: bytes) -> bytes:
    return head.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def is_outlook(path: Path | None, data: bytes | None = None) -> bool:
    """Whether a file is one of Outlook's messages: a compound file with streams of their names."""
    if data is not None and not data.startswith(OLE):
        return False
    names = stream_names(path if path is not None else data or b"")
    return "__properties_version1.0" in names and not names & {
        "worddocument",
        "workbook",
        "book",
        "powerpoint document",
    }


def _is_notebook(data: bytes | None) -> bool:
    if data is None or b'"nbformat"' not in data or b'"cells"' not in data:
        return False
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("cells"), list) and "nbformat" in found


def _ole_kind(path: Path | None, name: str, data: bytes | None) -> str:
    """The kind of an Office file of the form that was used until 2003. Newer ones have it too if they are protected."""
    names = stream_names(path if path is not None else data or b"")
    newer = re.search(r"\.(do[ct]|xl[st]|pp[ts])[xm]$", name.lower()) is not None
    if names & {"encryptedpackage", "encryptioninfo"} or (newer and not names & {"workbook", "book"}):
        raise BadFileError(name, "is protected by a password; open it, remove the password and save it again")
    if names & {"workbook", "book"}:
        return "xls"
    if "powerpoint document" in names:
        raise BadFileError(name, "is an old PowerPoint file (.ppt); save it as .pptx or .pdf")
    if "worddocument" in names:
        raise BadFileError(name, f"is {_OLD_WORD}")
    raise BadFileError(name, "is an old Office file, or a damaged one; save it as .docx, .xlsx, .pptx or .pdf")


def _zip_kind(path: Path | None, name: str, data: bytes | None, head: bytes) -> str:
    if not head.strip():
        raise EmptyFileError(name)
    try:
        with opened_zip(path if path is not None else data or b"", name) as archive:
            members = [member.replace("\\", "/") for member in archive.namelist()]
            kind = _office_kind(archive, members, name) or zip_text_kind(archive, members, name)
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, NotImplementedError) as error:
        raise BadFileError(name, f"is a damaged Office file or archive ({error}); save it again") from error
    if kind is not None:
        return kind
    what = next((w for start, w in _OFFICE.items() if any(m.startswith(start) for m in members)), None)
    raise BadFileError(name, f"is {what or 'a zip archive; unpack it first and name the directory'}")


def _office_kind(archive: zipfile.ZipFile, members: list[str], name: str) -> str | None:
    """The kind of an Office file, by its usual main part, else by its content types, since that part may have any name."""

    def start(member: str) -> str:
        with opened_member(archive, archive.getinfo(member), name, 1 << 30) as file:
            return file.read(1 << 20).decode("utf-8", "replace").lower()

    for part, kind in _MAIN_PARTS.items():
        if part in members:
            return kind
    if "[Content_Types].xml" in members:
        types = start("[Content_Types].xml")
        found = next((c for c in re.findall(r'contenttype\s*=\s*["\']([^"\']*main(?:\+xml)?)["\']', types)), types)
        return next((kind for word, kind in _CONTENT.items() if word in found), None)
    if "mimetype" in members:
        found = start("mimetype")
        return next((kind for word, kind in _OPEN_DOCUMENT.items() if f"opendocument.{word}" in found), None)
    if "content.xml" in members:  # a mimetype is expected, not required
        begin = start("content.xml")
        return next((kind for word, kind in _OPEN_DOCUMENT.items() if f"<office:{word}" in begin), None)
    return None
