"""RTF -> control words, groups and bytes of text, in linear time (Rich Text Format Specification 1.9.1)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_TOKEN = re.compile(
    rb"\\([a-zA-Z]+)(-?[0-9]{1,10})?[0-9]*[ ]?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|([^\\{}]+)|\\",
    re.DOTALL,
)
_BYTES = (b"{", b"}", b"\\")

#: Windows charsets of fonts -> Python's codecs (Windows has no code pages for those of the Mac's Asian scripts).
CHARSETS = {
    0: "cp1252", 77: "mac_roman", 78: "cp932", 79: "cp949", 80: "cp936", 81: "cp950", 83: "cp1255", 84: "cp1256",
    85: "mac_greek", 86: "mac_turkish", 87: "cp874", 88: "mac_latin2", 89: "mac_cyrillic", 128: "cp932", 129: "cp949",
    130: "johab", 134: "cp936", 136: "cp950", 161: "cp1253", 162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256",
    186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250", 254: "cp437", 255: "cp850",
}  # fmt: skip
SYMBOL_CHARSET = 2
#: Codecs of code pages that have another name in Python.
_PAGES = {10000: "mac_roman", 10007: "mac_cyrillic", 10006: "mac_greek", 10029: "mac_latin2", 10081: "mac_turkish",
          1361: "johab", 65001: "utf-8", 20866: "koi8_r", 21866: "koi8_u", 54936: "gb18030", 28591: "cp1252",
          0: "cp1252", 1: "cp1252"}  # fmt: skip


class RtfToken(NamedTuple):
    """``kind``: "word" (``value``: its letters, ``number``: its parameter), "sign" (a control symbol), "open", "close", "hex"
    (one byte), or "text". ``end``: the offset after it."""

    kind: str
    value: bytes
    number: int | None
    end: int


def tokens(data: object, at: int = 0) -> Iterator[RtfToken]:
    """The tokens of ``data``, bytes or a memory map, from ``at``. Binary data are left out."""
    match = _TOKEN.match
    while (found := match(data, at)) is not None:  # type: ignore[call-overload]
        at = found.end()
        index = found.lastindex
        if index is None:
            continue
        if index <= 2:
            word = found[1]
            number = int(found[2]) if index == 2 else None
            if word == b"bin":
                at += max(0, number or 0)
            else:
                yield RtfToken("word", word, number, at)
        elif index == 6:
            yield RtfToken("text", found[6].translate(None, b"\r\n\x00"), None, at)
        elif index == 5:
            yield RtfToken("open" if found[5] == b"{" else "close", b"", None, at)
        elif index == 3:
            yield RtfToken("hex", bytes((int(found[3], 16),)), None, at)
        elif found[4] in _BYTES:
            yield RtfToken("hex", found[4], None, at)
        else:
            yield RtfToken("sign", found[4], None, at)


def codec_of_page(page: int | None) -> str:
    """Python's codec for a Windows code page; Windows-1252 if there is none."""
    import codecs

    name = _PAGES.get(page or 0, f"cp{page}")
    try:
        codecs.lookup(name)
        return name
    except LookupError:
        return "cp1252"


def is_rtf(head: bytes) -> bool:
    """Whether a file begins as RTF does."""
    return head.removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n\x00").startswith(b"{\\rtf")


#: Control words that stand for a character.
CHARACTERS = {
    b"tab": "\t", b"line": "\n", b"lbr": "\n", b"page": "\n", b"column": "\n", b"emdash": "—", b"endash": "–", b"bullet": "•",
    b"lquote": "‘", b"rquote": "’", b"ldblquote": "“", b"rdblquote": "”", b"emspace": "\u2003", b"enspace": "\u2002",
    b"qmspace": "\u2005", b"zwj": "\u200d", b"zwnj": "\u200c",
}  # fmt: skip
