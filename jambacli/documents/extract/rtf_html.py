"""RTF that holds a web page, as Outlook and Exchange write mail (MS-OXRTFEX): back to the page."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

from jambacli.documents.extract.rtf_tokens import CHARACTERS, CHARSETS, codec_of_page, tokens

_TOKENS = 100_000
_LEFT_OUT = frozenset(
    (b"fonttbl", b"colortbl", b"stylesheet", b"info", b"pntext", b"listtext", b"pict", b"object", b"mhtmltag")
)
_TAG, _TEXT, _NONE = range(3)


def encapsulates_html(head: bytes) -> bool:
    """Whether RTF that begins with ``head`` holds a web page."""
    return re.search(rb"\\fromhtml1?(?![0-9a-zA-Z])", head) is not None and b"\\htmltag" in head


def html_source(data: object, start: int = 0, alive: Callable[[], None] = lambda: None) -> str:
    """The source of the page."""
    out: list[str] = []
    held = bytearray()
    stack: list[tuple[int, bool, int, int]] = []
    mode, rtf_only, skip, font = _TEXT, False, 1, -1
    fonts: dict[int, str] = {}
    codec, to_skip, star, in_fonts = "cp1252", 0, False, 0

    def flush() -> None:
        if held:
            text = bytes(held).decode(fonts.get(font, "") or codec, "replace")
            out.append(text if mode == _TAG else escape(text, quote=False))
            held.clear()

    def shown() -> bool:
        return mode == _TAG or (mode == _TEXT and not rtf_only)

    for count, (kind, found, number, _) in enumerate(tokens(data, start)):
        value = found
        if count % _TOKENS == 0:
            alive()
        if kind in ("text", "hex"):
            if to_skip:
                value, to_skip = value[to_skip:], max(0, to_skip - len(value))
            if shown():
                held += value
            continue
        if kind == "word" and to_skip and value != b"u":
            to_skip -= 1
            continue
        flush()
        if kind == "open":
            stack.append((mode, rtf_only, skip, font))
            star, to_skip = False, 0
        elif kind == "close":
            to_skip = 0
            if stack:
                mode, rtf_only, skip, font = stack.pop()
            in_fonts = in_fonts if len(stack) >= in_fonts else 0
            if not stack:
                break
        elif kind == "sign":
            star = value == b"*"
            if value == b"~" and shown():
                out.append("&nbsp;")
            elif value == b"_" and shown():
                out.append("&#8209;")
        elif value == b"u":
            to_skip = skip
            if shown():
                out.append(chr((number or 0) & 0xFFFF))
        elif value == b"htmltag":
            mode = _TAG if mode != _NONE else mode
        elif value == b"htmlrtf":
            rtf_only = number != 0
        elif value == b"uc":
            skip = max(0, min(number or 0, 1000))
        elif value == b"ansicpg":
            codec = codec_of_page(number)
        elif value == b"fonttbl":
            mode, in_fonts = _NONE, len(stack)
        elif value == b"f":
            font = number or 0
        elif value == b"fcharset" and in_fonts:
            if len(fonts) < _TOKENS:
                fonts[font] = CHARSETS.get(number or 0, "")
        elif value in (b"par", b"line") and shown():
            out.append("\n")
        elif value in CHARACTERS and shown():
            out.append(CHARACTERS[value])
        elif value in _LEFT_OUT or star:
            mode = _NONE
        if kind == "word":
            star = False
    flush()
    return "".join(out).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
