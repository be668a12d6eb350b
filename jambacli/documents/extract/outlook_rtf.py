"""Compressed RTF, as Outlook stores the text of a message: decompressed (MS-OXRTFCP), and as the HTML or the plain text that it
encloses (MS-OXRTFEX)."""

from __future__ import annotations

import codecs
import re
import struct
from dataclasses import dataclass, replace

#: The largest text that is decompressed, in bytes.
MAX_RTF = 64 << 20
_START = (
    rb"{\rtf1\ansi\mac\deff0\deftab720{\fonttbl;}{\f0\fnil \froman \fswiss \fmodern \fscript \fdecor MS Sans SerifSymbol"
    rb"ArialTimes New RomanCourier{\colortbl\red0\green0\blue0" + b"\r\n" + rb"\par \pard\plain\f0\fs20\b\i\u\tab\tx"
)
_WINDOW = 4096

_TOKEN = re.compile(
    rb"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z])|([{}])|[\r\n]+|([^\\{}\r\n]+)|\\"
)
# Groups whose content is not text.
_SKIPPED = frozenset(
    b"fonttbl colortbl stylesheet info pict object objdata filetbl listtable listoverridetable revtbl rsidtbl generator "
    b"themedata colorschememapping datastore latentstyles xmlnstbl header headerl headerr headerf footer footerl footerr "
    b"footerf fldinst mmathPr pgptbl".split()
)
_SIGNS = {
    b"par": "\n", b"line": "\n", b"row": "\n", b"sect": "\n", b"page": "\n", b"tab": "\t", b"cell": "\t", b"emdash": "—",
    b"endash": "–", b"bullet": "•", b"lquote": "‘", b"rquote": "’", b"ldblquote": "“", b"rdblquote": "”", b"emspace": " ",
    b"enspace": " ", b"qmspace": " ",
}  # fmt: skip
_SYMBOLS = {b"~": "\xa0", b"_": "‑", b"-": "", b"\\": "\\", b"{": "{", b"}": "}", b"\n": "\n", b"\r": "\n"}
_CHARSETS = {
    0: "cp1252", 77: "mac_roman", 128: "cp932", 129: "cp949", 130: "johab", 134: "gb18030", 136: "big5", 161: "cp1253",
    162: "cp1254", 163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
    254: "cp437", 255: "cp850",
}  # fmt: skip
_CODE_PAGES = {
    932: "cp932", 936: "gb18030", 10000: "mac_roman", 20127: "ascii", 20866: "koi8_r", 21866: "koi8_u", 20932: "euc_jp",
    50220: "iso2022_jp", 50221: "iso2022_jp", 50222: "iso2022_jp", 51932: "euc_jp", 51949: "euc_kr", 52936: "hz",
    54936: "gb18030", 65000: "utf-7", 65001: "utf-8", 28591: "cp1252", 1200: "utf-16-le", 1201: "utf-16-be",
}  # fmt: skip


def code_page(number: int) -> str | None:
    """Python's name of a code page of Windows; None if there is no such."""
    if number in _CODE_PAGES:
        return _CODE_PAGES[number]
    name = f"iso8859_{number - 28590}" if 28592 <= number <= 28606 else f"cp{number}"
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


def decompressed(data: bytes) -> bytes:
    """The RTF of a compressed text. Raises ValueError when it is none or is damaged."""
    if len(data) < 16:
        raise ValueError("a compressed text is cut")
    size, mark = struct.unpack_from("<4xI4s", data)
    if mark == b"MELA":
        return data[16 : 16 + size]
    if mark != b"LZFu" or size > MAX_RTF:
        raise ValueError("a compressed text is damaged")
    window = bytearray(_START.ljust(_WINDOW, b"\x00"))
    write = len(_START)
    out = bytearray()
    at, end = 16, len(data)
    while at < end:
        flags = data[at]
        at += 1
        for bit in range(8):
            if not flags >> bit & 1:
                if at >= end:
                    return bytes(out)
                out.append(data[at])
                window[write] = data[at]
                write = (write + 1) % _WINDOW
                at += 1
                continue
            if at + 1 >= end:
                return bytes(out)
            offset, length = data[at] << 4 | data[at + 1] >> 4, (data[at + 1] & 15) + 2
            at += 2
            if offset == write:  # the mark of the end
                return bytes(out)
            for i in range(length):
                byte = window[(offset + i) % _WINDOW]
                out.append(byte)
                window[write] = byte
                write = (write + 1) % _WINDOW
        if len(out) > MAX_RTF:
            raise ValueError("a compressed text is damaged")
    return bytes(out)


def enclosed(rtf: bytes) -> tuple[str, str]:
    """What an RTF text encloses: "html" or "plain", and the text."""
    head = rtf[:4096]
    kind = "html" if re.search(rb"\\fromhtml1?(?![0-9])", head) else "plain"
    return kind, _Reader(rtf, kind == "html").run()


@dataclass
class _Group:
    """What holds within a pair of braces. ``skip``: no text. ``tag``: HTML that is enclosed; ``hidden``: RTF beside it."""

    skip: bool = False
    tag: bool = False
    hidden: bool = False
    unicode_skip: int = 1
    font: int = -1


class _Reader:
    def __init__(self, rtf: bytes, html: bool) -> None:
        self._rtf, self._html = rtf, html
        self._group, self._outer = _Group(), list[_Group]()
        self._out: list[str] = []
        self._held = bytearray()  # bytes of a code page, which may cut a letter in two
        self._code_page = "cp1252"
        self._fonts: dict[int, str] = {}
        self._in_fonts, self._font = -1, 0
        self._to_skip = 0

    def run(self) -> str:
        rtf, at, starred = self._rtf, 0, False
        while (match := _TOKEN.match(rtf, at)) is not None:
            at = match.end()
            word, number, code, symbol, brace, text = match.groups()
            if brace == b"{":
                self._outer.append(replace(self._group))
                self._to_skip = 0
            elif brace == b"}":
                self._flush()
                if not self._outer:
                    break
                if len(self._outer) == self._in_fonts:
                    self._in_fonts = -1
                self._group = self._outer.pop()
                self._to_skip = 0
            elif word is not None:
                value = int(number) if number else None
                if word == b"bin":
                    at += max(0, value or 0)
                else:
                    self._word(word, value, starred)
            elif symbol == b"*":
                starred = True
                continue
            elif code is not None:
                self._bytes(bytes((int(code, 16),)))
            elif symbol is not None:
                self._say(_SYMBOLS.get(symbol, ""))
            elif text is not None:
                self._bytes(text)
            starred = False
        self._flush()
        return "".join(self._out)

    def _word(self, word: bytes, value: int | None, starred: bool) -> None:
        self._flush()
        group = self._group
        if word == b"htmltag" and starred:
            group.tag = self._html
            group.skip = group.skip or not self._html
        elif word in _SKIPPED or (starred and word != b"shppict"):
            group.skip = True
            if word == b"fonttbl":
                self._in_fonts = len(self._outer)
        elif word == b"htmlrtf":
            group.hidden = self._html and value != 0
        elif word == b"uc":
            group.unicode_skip = min(max(0, value or 0), 100)
        elif word == b"u" and value is not None:
            self._say(chr(value % 0x10000))
            self._to_skip = group.unicode_skip
        elif word == b"ansicpg" and value is not None:
            self._code_page = code_page(value) or self._code_page
        elif word == b"f" and value is not None:
            group.font = self._font = value
        elif word == b"fcharset" and self._in_fonts >= 0:
            if (value or 0) > 1 or value == 0:
                self._fonts[self._font] = _CHARSETS.get(value or 0, self._code_page)
        elif word in _SIGNS:
            self._say(_SIGNS[word])

    def _shown(self) -> bool:
        return not self._group.skip and (self._group.tag or not self._group.hidden)

    def _bytes(self, data: bytes) -> None:
        if self._to_skip:  # what stands for a character in programs without Unicode
            cut = min(self._to_skip, len(data))
            self._to_skip -= cut
            data = data[cut:]
        if self._shown():
            self._held += data

    def _say(self, text: str) -> None:
        self._flush()
        self._to_skip = 0
        if self._shown():
            self._out.append(text)

    def _flush(self) -> None:
        if self._held:
            page = self._code_page if self._group.tag else self._fonts.get(self._group.font, self._code_page)
            self._out.append(bytes(self._held).decode(page, "replace"))
            self._held.clear()


def joined_surrogates(text: str) -> str:
    """Text whose characters beyond the 16 bits are pairs, as RTF writes them, with whole characters."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
