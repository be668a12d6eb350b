"""Text of mail: messages (.eml, Outlook's .msg), mailboxes (.mbox) and web archives (.mht), with their attachments.

A message is its main fields, its body as text, and each attachment by name, read where it is of a known kind.
"""

from __future__ import annotations

import email
import email.message
import email.policy
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from itertools import chain
from pathlib import Path
from typing import Any

from jambacli.documents.extract.kinds import is_outlook
from jambacli.documents.extract.mail_text import body_text, field_text, file_name
from jambacli.documents.extract.outlook import left_out, outlook_message
from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.errors import BadFileError, JambaError
from jambacli.units import counted, format_bytes

#: Reads an attachment: its content and file name -> unit, pieces, and remarks that are complete after the last piece.
ReadAttachment = Callable[[bytes, str], tuple[str, Iterator[DocumentPart], list[str]]]

_FIELDS = ("From", "To", "Cc", "Bcc", "Reply-To", "Date", "Subject")
# Messages within messages, and parts of one message.
_DEPTH, _PARTS = 8, 2000
# A text beside an HTML page that is so much longer is only a hint that there is a page.
_HINT = 4
_MESSAGE_START = re.compile(rb"From \S+.*\d\d:\d\d")
_PACKED = (
    *("application/pgp-encrypted", "application/pkcs7-mime", "application/x-pkcs7-mime"),
    *("application/x-ole-storage", "application/x-linked-file"),
)
_SIGNATURES = ("application/pgp-signature", "application/pkcs7-signature", "application/x-pkcs7-signature")


def mail_pieces(
    path: str, name: str, mailbox: bool, read: ReadAttachment
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit, the pieces, and remarks on what was left out, complete after the last piece: the messages of a mailbox, or the
    lines of one message as it is read. Raises BadFileError naming ``name``."""
    remarks: list[str] = []
    if mailbox:
        return "message", _mailbox(path, name, remarks, read), remarks
    data = Path(path).read_bytes()
    data = data.removeprefix(b"\xef\xbb\xbf").lstrip(b"\r\n")
    if counted_bytes := re.match(
        rb"(\d{1,10}) *\r?\n", data
    ):  # .emlx: the message's length, the message, Apple's notes
        data = data[counted_bytes.end() :][: int(counted_bytes[1])]
    return "line", _message(data, name, remarks, read), remarks


def _message(data: bytes, name: str, remarks: list[str], read: ReadAttachment) -> Iterator[DocumentPart]:
    reader = _Reader(read)
    yield from parts_of_lines(enumerate(reader.message(_parsed(data, name)), 1))
    remarks += reader.remarks()


def outlook_pieces(path: str, name: str, read: ReadAttachment) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The same of one of Outlook's messages."""
    remarks: list[str] = []

    def pieces() -> Iterator[DocumentPart]:
        reader = _Reader(read)
        yield from parts_of_lines(enumerate(reader.outlook(path, name, 0), 1))
        remarks.extend(reader.remarks())

    return "line", pieces(), remarks


def _mailbox(path: str, name: str, remarks: list[str], read: ReadAttachment) -> Iterator[DocumentPart]:
    reader = _Reader(read)
    for number, data in enumerate(_messages(path), 1):
        for part in parts_of_lines(enumerate(reader.message(_parsed(data, name)), 1)):
            yield DocumentPart(part.text, number, number)
    remarks += reader.remarks()


def _messages(path: str) -> Iterator[bytes]:
    """The messages of an mbox file. A line of a message that began with "From " was written as ">From "."""
    lines: list[bytes] = []
    blank = True
    with Path(path).open("rb") as file:
        for line in file:
            if blank and line.startswith(b"From ") and _MESSAGE_START.match(line):
                if any(each.strip() for each in lines):
                    yield b"".join(lines)
                lines = []
            else:
                lines.append(line[1:] if re.match(rb">+From ", line) else line)
            blank = not line.strip()
    if any(each.strip() for each in lines):
        yield b"".join(lines)


def _parsed(data: bytes, name: str) -> Message:
    try:
        return email.message_from_bytes(data, policy=email.policy.compat32)
    except RecursionError as error:
        raise BadFileError(name, "has parts within parts without end; it is damaged, and was not read") from error


@dataclass
class _Reader:
    """Messages -> lines, and what was left out on the way."""

    read: ReadAttachment
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    images: int = 0

    def remarks(self) -> list[str]:
        """A remark on every attachment that was not read, and those of the attachments that were."""
        said = self.notes[:10]
        if self.images:
            said.append(f"{counted(self.images, 'image')} left out")
        if self.unread:
            names = ", ".join(self.unread[:5]) + (", ..." if len(self.unread) > 5 else "")
            said.append(f"{counted(len(self.unread), 'attachment')} not read: {names}")
        return said

    def message(self, message: Message, depth: int = 0) -> Iterator[str]:
        """The lines of a message: its fields, its body, its attachments."""
        archive = message.get_content_type() == "multipart/related" and message.get("Snapshot-Content-Location")
        for key in _FIELDS:
            if (text := field_text(message, key)) and not (archive and key == "From"):
                yield f"{key}: {text}"
        yield ""
        body, attached = _parts(message)
        for part in body:
            yield from self._body(part, depth)
        for part in attached:
            yield from self._attachment(part, depth)

    def outlook(self, source: str | bytes, name: str, depth: int) -> Iterator[str]:
        """The lines of one of Outlook's messages, given as its path or content."""
        message, file = outlook_message(source, name)
        try:
            yield from self.message(message, depth)
            self.notes += left_out(file)
        finally:
            file.close()

    def _body(self, part: Message, depth: int) -> Iterator[str]:
        if part.get_content_type() == "text/html":
            yield from self._page(part)
        elif part.get_content_type() == "message/delivery-status":
            fields: list[Any] = part.get_payload() if part.is_multipart() else []  # type: ignore[assignment]
            for status in fields:
                yield from (f"{key}: {field_text(status, key)}" for key in status)
        else:
            yield from body_text(part).split("\n")
        yield ""

    def _page(self, part: Message) -> Iterator[str]:
        text = body_text(part)
        if not text.strip():
            return
        try:
            # The charset of the mail, not one that the page states, is right; a byte order mark says so.
            _, pieces, remarks = self.read(b"\xef\xbb\xbf" + text.encode("utf-8", "replace"), "text.html")
            for piece in pieces:
                yield from piece.text.split("\n")
            self.notes += remarks
        except JambaError as error:
            self.notes.append(f"an HTML text was not read ({str(error).removeprefix('text.html: ')})")

    def _attachment(self, part: Message, depth: int) -> Iterator[str]:
        name, kind = file_name(part), part.get_content_type()
        if kind == "message/rfc822" and part.is_multipart():
            inner: Any = part.get_payload(0)
            yield f"Attached message{f' {name}' if name else ''}:"
            if depth >= _DEPTH:
                self.unread.append("messages within messages")
                return
            yield from self.message(inner, depth + 1)
            return
        data: Any = part.get_payload(decode=True)
        size = len(data) if isinstance(data, bytes) else 0
        shown = name or f"without a name ({kind})"
        if part.get_content_maintype() == "image":
            if not name or part.get_content_disposition() != "attachment":
                self.images += 1
            else:
                self.unread.append(shown)
                yield f"Attachment: {shown} ({kind}, {format_bytes(size)}), not read"
            return
        if kind in _SIGNATURES or (kind in ("text/css", "text/javascript", "application/javascript") and not name):
            return
        lines = self._content(data, name or f"part.{_SUFFIXES.get(kind, 'bin')}", kind, depth) if size else None
        first = next(lines, None) if lines is not None else None
        if lines is None or first is None:
            why = "empty" if not size else "not read"
            if size and not any(each.startswith(shown) for each in self.unread[-1:]):
                self.unread.append(shown)
            yield f"Attachment: {shown} ({kind}, {format_bytes(size)}), {why}"
            return
        yield f"Attachment: {shown} ({kind}, {format_bytes(size)})"
        yield from chain([first], lines)
        yield ""

    def _content(self, data: bytes, name: str, kind: str, depth: int) -> Iterator[str]:
        """The lines of an attachment, with its pages named; none when it cannot be read."""
        if kind in _PACKED or kind.startswith(("audio/", "video/", "font/")):
            return
        try:
            if name.lower().endswith((".eml", ".mht", ".mhtml")):
                if depth < _DEPTH:
                    yield from self.message(_parsed(data, name), depth + 1)
                return
            if is_outlook(None, data):
                if depth < _DEPTH:
                    yield from self.outlook(data, name, depth + 1)
                return
            unit, pieces, remarks = self.read(data, name)
            for piece in pieces:
                if unit in ("page", "sheet", "slide") and piece.text.strip():
                    label = f" ({piece.label})" if piece.label else ""
                    yield f"[{name}, {unit} {piece.first}{label}]"
                yield from piece.text.split("\n") if piece.text else ()
            self.notes += [f"{name}: {remark}" for remark in remarks]
        except JambaError as error:
            self.unread.append(f"{name} ({str(error).removeprefix(name).removeprefix(': ')})")


_SUFFIXES = {
    "text/html": "html",
    "text/csv": "csv",
    "text/plain": "txt",
    "application/pdf": "pdf",
    "text/calendar": "ics",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": "pptx",
}


def _parts(message: Message) -> tuple[list[Message], list[Message]]:
    """The parts that are the body, in order, and the attachments."""
    body: list[Message] = []
    attached: list[Message] = []
    waiting = [message]
    count = 0
    while waiting and count < _PARTS:
        part = waiting.pop(0)
        count += 1
        kind = part.get_content_type()
        inner: list[Any] = part.get_payload() if part.is_multipart() else []  # type: ignore[assignment]
        if kind == "multipart/alternative" and inner:
            waiting[:0] = _alternative(inner)
        elif kind == "multipart/related" and inner:
            start = part.get_param("start")
            root = next((p for p in inner if start and p.get("Content-ID", "").strip() == start), inner[0])
            waiting[:0] = [root, *(p for p in inner if p is not root)]
        elif part.get_content_maintype() == "multipart":
            waiting[:0] = inner
        elif _is_body(part, kind) and not (body and file_name(part)):
            body.append(part)
        else:
            attached.append(part)
    return body, attached


def _is_body(part: Message, kind: str) -> bool:
    if part.get_content_disposition() == "attachment":
        return False
    return kind in ("text/plain", "text/html", "text/enriched", "text/markdown", "message/delivery-status")


def _alternative(choices: list[Message]) -> list[Message]:
    """Of texts that say the same, the plain one, unless it is empty or a hint; and what else is among them."""
    plain = next((p for p in choices if p.get_content_type() == "text/plain"), None)
    rest = [p for p in choices if p.get_content_type() not in ("text/plain", "text/html", "multipart/related")]
    rich = next((p for p in choices if p.get_content_type() in ("text/html", "multipart/related")), None)
    if plain is None or rich is None:
        return choices
    page = next((p for p in rich.walk() if p.get_content_type() == "text/html"), None)
    words = (
        re.sub(r"(?s)<(style|script|head)\b.*?</\1>|<[^>]*>|&\w+;", " ", body_text(page)) if page is not None else ""
    )
    said = len(body_text(plain).split())
    if said == 0 or (said < 30 and len(words.split()) > _HINT * said + 20):
        return [rich, *rest]
    # The plain text stands for the page; files beside the page stay attachments.
    beside = [p for p in rich.walk() if p is not page and not p.is_multipart()] if rich is not page else []
    return [plain, *beside, *rest]
