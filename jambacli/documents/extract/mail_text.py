"""Fields and bodies of mail as text, whatever a mail program wrote: encoded words, character sets, transfer encodings."""

from __future__ import annotations

import codecs
import re
from email.errors import HeaderParseError
from email.header import decode_header
from email.message import Message
from email.utils import collapse_rfc2231_value
from typing import Any

from jambacli.documents.extract.plain import decode
from jambacli.errors import JambaError

# Names of character sets in mail that Python knows as less than they are, or not at all.
_CHARSETS = {
    "iso-8859-1": "cp1252",
    "latin1": "cp1252",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "x-gbk": "gb18030",
    "shift_jis": "cp932",
    "x-sjis": "cp932",
    "windows-31j": "cp932",
    "euc-kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "unicode-1-1-utf-7": "utf-7",
    "iso-8859-8-i": "iso8859_8",
    "windows-874": "cp874",
    "x-mac-roman": "mac_roman",
    "cp-850": "cp850",
}


# A longer field, of thousands of recipients, is cut.
_MAX_FIELD = 20_000


def field_text(message: Message, key: str) -> str:
    """A field of the header as one line of text, "" if there is none."""
    values = [value for name, value in message.raw_items() if name.lower() == key.lower()]
    return ", ".join(text for value in values if (text := _words(str(value))))


def file_name(part: Message) -> str:
    """The name of an attachment, without folders; "" if it has none."""
    for parameter, key in (("filename", "content-disposition"), ("name", "content-type")):
        try:
            value = part.get_param(parameter, None, key)
            text = collapse_rfc2231_value(value).strip() if value else ""
        except (LookupError, ValueError, TypeError):
            continue
        if text:
            text = re.split(r"[/\\]", _words(text))[-1]
            return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", "?", text)[:200]
    location = str(part.get("Content-Location", "")).split("?")[0]
    return re.sub(r"[^\w. -]", "", location.rsplit("/", 1)[-1])[:200]


def body_text(part: Message) -> str:
    """The decoded text of a part, with ``\\n`` line ends."""
    data: Any = part.get_payload(decode=True)
    if not isinstance(data, bytes) or not data.strip():
        return ""
    text = decoded(data, part.get_content_charset())
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    if part.get_param("format") == "flowed":
        text = _flowed(text, part.get_param("delsp") == "yes")
    return text.strip("\n")


def _words(value: str) -> str:
    """A field's text: encoded words (RFC 2047) decoded, bytes beyond ASCII as UTF-8 or as they are guessed, on one line."""
    raw = value.encode("utf-8", "surrogateescape")
    if not raw.isascii():
        value = decoded(raw, "utf-8")
    value = re.sub(r"\r?\n[ \t]*", " ", value)
    if len(value) > _MAX_FIELD:
        value = value[:_MAX_FIELD].rsplit(" ", 1)[0] + " ... (longer)"
    try:
        found = decode_header(value)
    except (HeaderParseError, ValueError):
        return " ".join(value.split())
    text = ""
    # Parts of one charset are joined before they are decoded: a letter may be cut in two.
    held, charset = b"", None
    for content, name in [*found, ("", "")]:
        if isinstance(content, bytes) and name is not None and name == charset:
            held += content
            continue
        text += decoded(held, charset) if held else ""
        held, charset = b"", None
        if isinstance(content, str):
            text += content
        elif name is None:
            text += content.decode("ascii", "replace")
        else:
            held, charset = content, name
    return re.sub(r"[\x00-\x1f\x7f]", "", " ".join(text.split()))


def decoded(data: bytes, charset: str | None) -> str:
    """Bytes as text: in the charset that a mail names, else as UTF-8 or as it is guessed."""
    name = _CHARSETS.get((charset or "").lower().strip("\"' "), (charset or "utf-8").strip("\"' "))
    if name.lower() not in ("us-ascii", "ascii", "unknown-8bit", "8bit", "binary"):
        try:
            codec = codecs.lookup(name)
            if codec._is_text_encoding:
                return data.decode(codec.name)
        except (LookupError, ValueError):
            pass
    try:
        return decode(data, "text")[0]
    except JambaError:
        return data.decode("utf-8", "replace")


def _flowed(text: str, joined: bool) -> str:
    """Lines that end in a space go on in the next one of the same depth of quotation (RFC 3676)."""
    out: list[str] = []
    depth, goes_on = 0, False
    for line in text.split("\n"):
        quotes = len(line) - len(line.lstrip(">"))
        content = line[quotes:].removeprefix(" ")
        signature = content == "-- "
        if goes_on and quotes == depth and not signature:
            out[-1] = (out[-1].removesuffix(" ") if joined else out[-1]) + content
        else:
            out.append((">" * quotes + " " if quotes else "") + content)
        depth, goes_on = quotes, content.endswith(" ") and not signature
    return "\n".join(line.rstrip() for line in out)
