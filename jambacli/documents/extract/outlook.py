"""Outlook's messages (.msg) and templates (.oft) as messages of the internet, which ``mail`` reads like an .eml file."""

from __future__ import annotations

import email
import email.policy
import mimetypes
import re
from datetime import datetime
from email.message import Message
from email.utils import format_datetime
from typing import Any

from jambacli.documents.extract.outlook_rtf import decompressed, enclosed, joined_surrogates
from jambacli.documents.extract.outlook_storage import MessageFile, Properties
from jambacli.units import counted

# Messages within messages, and parts of one message; ``mail`` reads no more of them.
_DEPTH, _ATTACHMENTS, _RECIPIENTS = 10, 2000, 1000
_EMBEDDED = 0x3701
_STORAGE = 0x000D
_FIELDS = ("From", "To", "Cc", "Bcc", "Reply-To", "Date", "Subject")
_ROLES = {1: "To", 2: "Cc", 3: "Bcc"}
#: By the first words of a message's class: what it is besides its text. Numbers below 0x8000 and above 0x8FFF are properties,
#: others names of properties (MS-OXPROPS).
_APPOINTMENT = [("Start", 0x820D), ("End", 0x820E), ("Location", 0x8208)]
_FACTS: dict[str, list[tuple[str, int]]] = {
    "ipm.appointment": _APPOINTMENT,
    "ipm.schedule.meeting": _APPOINTMENT,
    "ipm.task": [("Start", 0x8104), ("Due", 0x8105)],
    "ipm.contact": [
        ("Name", 0x3001),
        ("Company", 0x3A16),
        ("Job title", 0x3A17),
        ("Mail", 0x8083),
        ("Phone (work)", 0x3A08),
        ("Phone (home)", 0x3A09),
        ("Phone (mobile)", 0x3A1C),
        ("Address", 0x3A15),
    ],
}


def outlook_message(source: str | bytes, name: str) -> tuple[Message, MessageFile]:
    """The message of a file, given as its path or content, and the file: the content of attachments is read when it is asked
    for, so close it afterwards. Raises BadFileError naming ``name``."""
    file = MessageFile(source, name)
    try:
        return _Builder(file).message((), 0), file
    except BaseException:
        file.close()
        raise


def left_out(file: MessageFile) -> list[str]:
    """A remark on parts that are damaged."""
    return [f"{counted(file.damaged, 'damaged part')} not read"] if file.damaged else []


class _Stored(Message):
    """An attachment whose content stays in its file."""

    def __init__(self, properties: Properties, storage: tuple[str, ...] | None) -> None:
        super().__init__(email.policy.compat32)
        self._properties, self._storage = properties, storage

    def get_payload(self, i: int | None = None, decode: bool = False) -> Any:
        if self._storage is None:
            return self._properties.binary(_EMBEDDED)
        return b"".join(_streams(self._properties.file, self._storage, 0))


def _streams(file: MessageFile, path: tuple[str, ...], depth: int) -> list[bytes]:
    found = []
    for name in list(file.children(path).values())[:200]:
        inner = (*path, name)
        if not file.children(inner):
            found.append(file.stream(inner))
        elif depth < _DEPTH:
            found += _streams(file, inner, depth + 1)
    return found


class _Builder:
    def __init__(self, file: MessageFile) -> None:
        self._file = file
        self._names: dict[int, int] | None = None

    def message(self, path: tuple[str, ...], depth: int) -> Message:
        properties = Properties(self._file, path, 24 if path else 32)
        kind = properties.line(0x001A).lower()
        message = Message(email.policy.compat32)
        for key, value in _fields(properties):
            message[key] = value
        message["Content-Type"] = "multipart/mixed"
        page, body = self._body(properties)
        parts: list[Message | str] = [*self._facts(properties, kind), *body]
        for at in properties.within("__attach_version1.0_", _ATTACHMENTS):
            parts.append(self._attachment(Properties(self._file, at, 8), page, depth))
        message.set_payload(parts)
        return message

    def _body(self, properties: Properties) -> tuple[str, list[Message]]:
        """The HTML text, and the parts that are the body."""
        plain, page = properties.text(0x1000), ""
        html: bytes | str = properties.binary(0x1013) or properties.text(0x1013)
        if not html and (packed := properties.binary(0x1009)):
            try:
                kind, text = enclosed(decompressed(packed))
            except ValueError:
                kind, text = "plain", ""
                self._file.damaged += not plain
            text = joined_surrogates(text)
            if kind == "html":
                html = text
            elif not plain.strip():
                plain = text
        made: list[Message] = []
        if plain.strip():
            made.append(_text("plain", plain.encode("utf-8", "replace"), "utf-8"))
        if html:
            charset = "utf-8" if isinstance(html, str) else properties.code_page
            page = html if isinstance(html, str) else html.decode("latin-1")
            made.append(_text("html", html.encode("utf-8", "replace") if isinstance(html, str) else html, charset))
        if len(made) < 2:
            return page, made
        both = Message(email.policy.compat32)
        both["Content-Type"] = "multipart/alternative"
        both.set_payload([*made])
        return page, [both]

    def _attachment(self, properties: Properties, page: str, depth: int) -> Message:
        method = properties.number(0x3705)
        name = properties.line(0x3707) or properties.line(0x3704) or properties.line(0x3001)
        storage = (*properties.path, f"__substg1.0_{_EMBEDDED:04X}{_STORAGE:04X}")
        within = properties.has(_EMBEDDED, _STORAGE)
        if within and "__properties_version1.0" in self._file.children(storage):
            part = Message(email.policy.compat32)
            part["Content-Type"] = "message/rfc822"
            part.set_payload([self.message(storage, depth + 1) if depth < _DEPTH else Message()])
            return part
        kind = properties.line(0x370E).lower()
        if kind == "multipart/signed":
            return email.message_from_bytes(properties.binary(_EMBEDDED), policy=email.policy.compat32)
        if not re.fullmatch(r"[\w.+-]+/[\w.+-]+", kind):
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        link = properties.line(0x370D) or properties.line(0x3708)
        if within:
            kind = "application/x-ole-storage"
        elif method in (2, 3, 4, 7) and link:
            part = _text("plain", link.encode("utf-8", "replace"), "utf-8")
            part.replace_header("Content-Type", "application/x-linked-file")
            part.add_header("Content-Disposition", "attachment", filename=name or link)
            return part
        part = _Stored(properties, storage if within else None)
        part["Content-Type"] = kind
        identifier = properties.line(0x3712).strip("<>")
        shown = bool(identifier) and f"cid:{identifier}" in page
        inline = shown or bool(properties.number(0x7FFE)) or bool((properties.number(0x3714) or 0) & 4)
        where = {"filename": name} if name else {}
        part.add_header("Content-Disposition", "inline" if inline else "attachment", **where)
        return part

    def _facts(self, properties: Properties, kind: str) -> list[Message]:
        """What an appointment, a task or a contact is besides its text, as a text of its own."""
        wanted = next((facts for start, facts in _FACTS.items() if kind.startswith(start)), [])
        said = []
        for title, number in wanted:
            identifier: int | None = number
            if 0x8000 <= number < 0x9000:
                self._names = self._file.names() if self._names is None else self._names
                identifier = self._names.get(number)
            if identifier is None:
                continue
            time = properties.time(identifier)
            if value := _date(time) if time is not None else properties.line(identifier):
                said.append(f"{title}: {value}")
        return [_text("plain", "\n".join(said).encode("utf-8", "replace"), "utf-8")] if said else []


def _text(kind: str, data: bytes, charset: str | None) -> Message:
    part = Message(email.policy.compat32)
    part["Content-Type"] = f"text/{kind}" + (f'; charset="{charset}"' if charset else "")
    part.set_payload(data)
    return part


def _fields(properties: Properties) -> list[tuple[str, str]]:
    """The fields of the header: as they were sent, else as Outlook's properties tell them."""
    sent = properties.text(0x007D).lstrip("\n")
    if sent and ":" not in sent.split("\n", 1)[0]:
        sent = sent.partition("\n")[2]
    header = email.message_from_bytes(sent.encode("utf-8", "replace"), policy=email.policy.compat32)
    found: list[tuple[str, str]] = []
    known = _known(properties)
    for key in _FIELDS:
        values = [str(value) for name, value in header.raw_items() if name.lower() == key.lower()]
        if any(value.strip() for value in values):
            found += [(key, value) for value in values]
        elif known.get(key):
            found.append((key, known[key]))
    return found


def _known(properties: Properties) -> dict[str, str]:
    people: dict[str, list[str]] = {}
    for at in properties.within("__recip_version1.0_", _RECIPIENTS):
        person = Properties(properties.file, at, 8)
        role = _ROLES.get((person.number(0x0C15) or 1) & 3)
        if role is not None and (text := _person(person, 0x3001, (0x39FE, 0x3003))):
            people.setdefault(role, []).append(text)
    if (count := properties.count("__recip_version1.0_")) > _RECIPIENTS:
        people.setdefault("To", []).append(f"... ({count - _RECIPIENTS:,} more)")
    shown = {"To": 0x0E04, "Cc": 0x0E03, "Bcc": 0x0E02}
    found = {role: ", ".join(people[role]) if role in people else properties.line(at) for role, at in shown.items()}
    sender = _person(properties, 0x0C1A, (0x5D01, 0x0C1F))
    found["From"] = _person(properties, 0x0042, (0x5D02, 0x0065)) or sender
    found["Reply-To"] = properties.line(0x0050)
    found["Subject"] = properties.line(0x0037)
    time = properties.time(0x0039) or properties.time(0x0E06)
    found["Date"] = _date(time) if time is not None else ""
    return found


def _person(properties: Properties, name: int, addresses: tuple[int, ...]) -> str:
    """A person as mail writes them: Ada Byron <ada@example.org>. Addresses within an organization's Exchange are left out."""
    said = properties.line(name).strip("'")
    address = next((found for each in addresses if "@" in (found := properties.line(each))), "")
    if not address or not said or said.lower() == address.lower():
        return address or said
    if re.search(r'[,;:<>@"()\[\]]', said):
        said = '"' + said.replace('"', "'") + '"'
    return f"{said} <{address}>"


def _date(time: datetime) -> str:
    return format_datetime(time.replace(microsecond=0))
