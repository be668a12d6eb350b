"""Files as the messages of each API carry them. Reading them is up to ``documents``."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jambacli.server.errors import bad_request
from jambacli.server.files import clean_name

# The ending of a file whose name has none, by the type that the client says it has; the content decides where it can.
_ENDINGS = {
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.oasis.opendocument.spreadsheet": ".ods",
    "application/vnd.oasis.opendocument.presentation": ".odp",
    "application/vnd.ms-excel": ".xls",
    "text/html": ".html",
    "text/csv": ".csv",
    "text/markdown": ".md",
    "text/plain": ".txt",
}


@dataclass(frozen=True)
class FilePart:
    """A file in a message: its ``data``, or the id of one that was uploaded. ``name``: what it is called in the prompt, "" for
    the name of the upload."""

    name: str
    data: bytes = b""
    file_id: str | None = None


def openai_file(where: str, part: Mapping[str, Any], field: str) -> FilePart | None:
    """The file in a part of a message of OpenAI's chats ("file") or responses ("input_file"); None if it is none of them.

    Raises ApiError.
    """
    kind = part.get("type")
    if kind not in ("file", "input_file"):
        return None
    value = part.get("file") if kind == "file" else part
    if not isinstance(value, Mapping):
        raise bad_request(f"{where} has a part of the type 'file' without a file", field)
    name, file_id, data = value.get("filename"), value.get("file_id"), value.get("file_data")
    if not all(one is None or isinstance(one, str) for one in (name, file_id, data)):
        raise bad_request(f"{where} has a file whose fields are not texts", field)
    if data:
        return decoded_file(where, data, name, None, field)
    if file_id:
        return FilePart(clean_name(name, ""), file_id=file_id)
    if value.get("file_url"):
        raise bad_request(f"{where} has a file at an address; addresses are not opened: send its data", field)
    problem = "an empty file" if data == "" else "a file without file_data or file_id"
    raise bad_request(f"{where} has {problem}", field)


def anthropic_file(where: str, block: Mapping[str, Any], field: str) -> FilePart:
    """The file in a block of the type "document" of Anthropic's messages. Raises ApiError."""
    source, title = block.get("source"), block.get("title")
    if not isinstance(source, Mapping) or not (title is None or isinstance(title, str)):
        raise bad_request(f"{where} has a document without a source", field)
    kind, data = source.get("type"), source.get("data")
    if kind == "text" and isinstance(data, str):
        return FilePart(clean_name(title), data.encode("utf-8", "replace"))
    if kind == "base64" and isinstance(data, str):
        return decoded_file(where, data, title, source.get("media_type"), field)
    if kind == "file" and isinstance(source.get("file_id"), str):
        return FilePart(clean_name(title, ""), file_id=source["file_id"])
    raise bad_request(f"{where} has a document whose source is of the type {kind!r}, which is not supported", field)


def bedrock_file(where: str, document: Any, field: str) -> FilePart:
    """The file in a block "document" of Bedrock's converse. Raises ApiError."""
    source = document.get("source") if isinstance(document, Mapping) else None
    if not isinstance(source, Mapping):
        raise bad_request(f"{where} has a document without a source", field)
    name, ending = document.get("name"), document.get("format")
    name = clean_name(name if isinstance(name, str) else None)
    if isinstance(ending, str) and ending.isalnum() and not name.lower().endswith(f".{ending.lower()}"):
        name = f"{name}.{ending.lower()}"
    if isinstance(source.get("text"), str):
        return FilePart(name, source["text"].encode("utf-8", "replace"))
    if isinstance(source.get("bytes"), str):
        return decoded_file(where, source["bytes"], name, None, field)
    raise bad_request(f"{where} has a document whose source is neither bytes nor text", field)


def decoded_file(where: str, data: str, name: str | None, kind: Any, field: str) -> FilePart:
    """A file in base64, perhaps as a data: address. Raises ApiError."""
    if data[:5].lower() == "data:":
        head, comma, data = data.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise bad_request(f"{where} has a file that is not in base64", field)
        kind = kind or head[5:].split(";")[0].strip().lower()
    try:
        content = base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError):
        raise bad_request(f"{where} has a file that is not in base64", field) from None
    chosen = clean_name(name)
    if "." not in chosen and isinstance(kind, str):
        chosen += _ENDINGS.get(kind, "")
    return FilePart(chosen, content)
