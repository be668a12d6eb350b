"""Visible text of an HTML page, in lines with the line numbers of the source."""

from __future__ import annotations

import codecs
import re
from typing import Any

from jambacli.documents.extract.plain import decode
from jambacli.errors import BadFileError, JambaError

_BLOCKS = """p div section article header footer main aside nav ul ol li table tr h1 h2 h3 h4 h5 h6 pre blockquote br hr
    dl dt dd figure figcaption form fieldset address details summary title textarea select option button legend dialog"""
_BLOCK = frozenset(_BLOCKS.split())
_DROPPED = frozenset(("script", "style", "template", "noscript", "svg"))
_LEADS = {"li": "- ", **{f"h{n}": "#" * n + " " for n in range(1, 7)}}


def html_lines(data: bytes, name: str) -> tuple[list[tuple[int, str]], str | None]:
    """The visible text as (line in the source, text) for each block, with the cells of a row joined by bars, and a remark
    on its encoding or None. Raises BadFileError when the page is empty or binary."""
    try:
        from lxml import etree
    except ImportError as error:
        raise JambaError(f"{name}: reading web pages needs: pip install 'jambacli[docs]'") from error
    source, remark = _declared(data) or decode(data, name)
    parser: Any = etree.HTMLParser(
        recover=True, no_network=True, remove_comments=True, remove_pis=True, encoding="utf-8"
    )
    try:
        root = etree.fromstring(source.encode("utf-8", "replace"), parser)
    except (etree.XMLSyntaxError, TypeError) as error:
        raise BadFileError(name, "contains no readable HTML; save the page again") from error
    if root is None:
        raise BadFileError(name, "contains no text")
    walk = _Walk()
    for event, element in etree.iterwalk(root, events=("start", "end")):
        if isinstance(element.tag, str):
            (walk.start if event == "start" else walk.end)(element)
    walk.end_line()
    return walk.lines, remark


def _declared(data: bytes) -> tuple[str, None] | None:
    """The text, decoded by the encoding that the page declares; None when it declares none or that does not fit."""
    match = re.search(rb"charset\s*=\s*[\"']?([A-Za-z0-9_:.-]{2,40})", data[:4096])
    if match is None:
        return None
    try:
        return data.decode(codecs.lookup(match[1].decode("ascii")).name), None
    except (LookupError, UnicodeError):
        return None


class _Walk:
    """Collects lines: the text between block tags."""

    def __init__(self) -> None:
        self.lines: list[tuple[int, str]] = []
        self._cells: list[str] = [""]
        self._at = 0
        self._dropped = self._kept = 0

    def start(self, element: Any) -> None:
        tag = element.tag
        if tag in _DROPPED:
            self._dropped += 1
            return
        if tag in ("td", "th"):
            self._cells.append("")
        elif tag in _BLOCK:
            self.end_line()
            self._kept += tag == "pre"
            self._cells = [_LEADS.get(tag, "")]
        self._say(element.text, element.sourceline or 1)

    def end(self, element: Any) -> None:
        tag = element.tag
        if tag in _DROPPED:
            self._dropped -= 1
        elif tag in _BLOCK:
            self.end_line()
            self._kept -= tag == "pre"
        self._say(element.tail, element.sourceline or 1)

    def end_line(self) -> None:
        cells, self._cells = self._cells, [""]
        at, self._at = self._at, 0
        words = [" ".join(cell.split()) for cell in cells]
        if len(words) > 1 and not words[0]:  # the empty text before a row's first cell; other empty cells are kept
            del words[0]
        text = "".join(cells).rstrip() if self._kept else " | ".join(words)
        if at and text.strip(" -#|"):
            self.lines.append((at, text))

    def _say(self, text: str | None, line: int) -> None:
        if not text or self._dropped:
            return
        if self._kept:
            first, *rest = text.split("\n")
            self._add(first, line)
            for i, more in enumerate(rest, 1):
                self.end_line()
                self._add(more, line + i)
        else:
            self._add(text, line)

    def _add(self, text: str, line: int) -> None:
        if not self._at and text.strip():
            self._at = line
        self._cells[-1] += text
