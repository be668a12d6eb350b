"""Text of an RTF document: bytes in the encodings of its fonts, paragraphs, and rows of tables."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby

from jambacli.documents.extract.docx_symbols import PRIVATE, UNKNOWN, is_symbol_font, symbol
from jambacli.documents.extract.inline import struck, subscript, superscript
from jambacli.documents.extract.paragraph_lines import lines_of
from jambacli.documents.extract.pieces import MAX_TEXT
from jambacli.documents.extract.rows import Cell, Line, Rows
from jambacli.documents.extract.rtf_state import KEPT, MATH, SHOWN, RtfFont, RtfFrame, RtfLeft, State
from jambacli.documents.extract.rtf_tokens import CHARSETS, SYMBOL_CHARSET
from jambacli.errors import BadFileError

_MOST_DEPTH, _MOST_CELLS = 20, 1000
_MARKS = frozenset("☐☑☒✓✗→")


class RtfText:
    """Collects text. Lines hold the number of their paragraph, from 1."""

    def __init__(self, name: str, alive: Callable[[], None]) -> None:
        self.left = RtfLeft()
        self._name, self._alive = name, alive
        self._state = State()
        self._fonts: dict[int, RtfFont] = {}
        self._codec, self._default_font = "cp1252", 0
        self._bytes = bytearray()
        self._high = 0
        self._frame = RtfFrame()
        self._frames: list[RtfFrame] = []
        self._kept: list[str] = []
        self._math: list[tuple[str, list[tuple[str, str]]]] = []
        self._merged: list[bool] = []
        self._merging = False
        self._number, self._chars, self._said = 1, 0, 0
        self._deleting = False

    # Characters

    def flush(self) -> None:
        """Decode the bytes that are held back: those of one character may come one by one."""
        if not self._bytes:
            return
        data = bytes(self._bytes)
        self._bytes.clear()
        font = self._font()
        if font is not None and (font.charset == SYMBOL_CHARSET or is_symbol_font(font.name)):
            self.say("".join(_symbol(font.name, byte) for byte in data))
            return
        codec = (font.codec if font is not None else "") or self._codec
        text = data.decode(codec, "replace")
        self.left.symbols += text.count(UNKNOWN)
        self.say(text)

    def unicode(self, number: int) -> None:
        """A character by its number in UTF-16; negative ones are those above 32,767."""
        code = number & 0xFFFF
        if 0xD800 <= code < 0xDC00:
            self._high = code
            return
        if 0xDC00 <= code < 0xE000:
            code = 0x10000 + ((self._high - 0xD800) << 10) + (code - 0xDC00) if self._high else 0xFFFD
        self._high = 0
        text = chr(code)
        if PRIVATE.match(text):
            font = self._font()
            text = symbol(font.name if font is not None else "", code)
            self.left.symbols += text == UNKNOWN
        if text == "\xad" or code < 32:
            return
        self.say(text)

    def say(self, text: str) -> None:
        """Add text where the state says."""
        state = self._state
        if state.mode == SHOWN:
            self._show(text)
        elif state.mode == KEPT:
            self._kept.append(text)
        elif state.mode == MATH and self._math:
            self._math[-1][1].append(("t", text))

    def _show(self, text: str) -> None:
        state, frame = self._state, self._frame
        if state.deleted:
            if not self._deleting:
                self.left.deletions += 1
            self._deleting = frame.lost = True
            return
        self._deleting = False
        self._said += 1
        if state.hidden:
            self.left.hidden_words += len(text.split())
            frame.lost = True
            return
        self._chars += len(text)
        if self._chars > MAX_TEXT:
            raise BadFileError(self._name, f"contains more than {MAX_TEXT >> 20} MB of text; split it")
        frame.words.append((text, state.shift, state.struck))

    def _font(self) -> RtfFont | None:
        state = self._state
        number = state.complex_font if state.complex and state.complex_font >= 0 else state.font
        return self._fonts.get(number if number >= 0 else self._default_font)

    def fonts_are_read(self) -> None:
        """Find each font's encoding. A charset 0 means Windows-1252, unless a document of another code page has no other."""
        own = {charset for charset, codec in CHARSETS.items() if codec == self._codec}
        whole = any(font.charset in own for font in self._fonts.values())
        for font in self._fonts.values():
            if font.charset == 0 and not whole:
                continue
            font.codec = font.codec or CHARSETS.get(font.charset, "")

    # Paragraphs

    def end_paragraph(self, *, always: bool = True) -> None:
        """Add the paragraph's lines. ``always``: also where it is empty."""
        frame = self._frame
        words = _composed(frame.words)
        text = "".join(words).strip()
        if text or frame.boxes or (always and not frame.lost):
            label = self._label(frame.label) if text else ""
            depth = self._state.depth
            self._close_rows(depth)
            found, late = lines_of(words, frame.boxes, label, in_table=bool(depth))
            sink = self._cell(depth).lines if depth else frame.lines
            sink.extend(Line(self._number, line) for line in found if line or not depth)
            (frame.after if depth else sink).extend(Line(self._number, line) for line in late)
        frame.words, frame.boxes, frame.label, frame.lost = [], [], "", False
        if not self._frames:
            self._number += 1

    def _label(self, label: str) -> str:
        text = " ".join(label.split())
        if not text:
            return ""
        if any(c.isalnum() for c in text) or text in _MARKS:
            return text + " "
        return "  " * min(self._state.level, 8) + "- "

    def box(self, lines: list[str]) -> None:
        """Lines of their own, at this place of the paragraph."""
        if lines:
            self._said += 1
            self._frame.boxes.append((len(self._frame.words), lines))

    # Tables

    def _cell(self, depth: int) -> Cell:
        tables = self._frame.tables
        while len(tables) < min(depth, _MOST_DEPTH):
            tables.append(([], Cell()))
        return tables[-1][1]

    def end_cell(self, depth: int) -> None:
        """The end of a cell of a table within ``depth`` - 1 others."""
        self._state = self._state._replace(depth=depth)
        self.end_paragraph(always=False)
        self._close_rows(depth)
        cell = self._cell(depth)
        cells = self._frame.tables[-1][0]
        if len(cells) < _MOST_CELLS:
            cells.append(cell)
        else:
            cells[-1].lines += cell.lines
        self._frame.tables[-1] = (cells, Cell())

    def end_row(self, depth: int) -> None:
        """The end of a row."""
        self._close_rows(depth)
        if len(self._frame.tables) >= min(depth, _MOST_DEPTH):
            self._pop_row(self._merged)

    def _close_rows(self, depth: int) -> None:
        """End rows of deeper tables whose end is missing."""
        while len(self._frame.tables) > min(depth, _MOST_DEPTH):
            self._pop_row([])

    def _pop_row(self, merged: list[bool]) -> None:
        frame = self._frame
        cells, rest = frame.tables.pop()
        if rest.lines:
            cells.append(rest)
        for i, gone in enumerate(merged[: len(cells)]):
            if gone:
                cells[i] = Cell()
        lines = list(Rows().lines(cells))
        if frame.tables:
            frame.tables[-1][1].lines.extend(lines)
        else:
            frame.lines += lines + frame.after
            frame.after = []


def _symbol(font: str, byte: int) -> str:
    return symbol(font, 0xF000 + byte) if byte >= 0x20 else ""


def _composed(words: list[tuple[str, str, bool]]) -> list[str]:
    """The texts of a paragraph; each stretch that is raised or struck through is one of them, at its first place."""
    found: list[str] = []
    for (shift, crossed), group in groupby(words, key=lambda word: word[1:]):
        texts = [text for text, _, _ in group]
        if not shift and not crossed:
            found += texts
            continue
        text = "".join(texts)
        if shift:
            text = superscript(text) if shift == "superscript" else subscript(text)
        found += [struck(text) if crossed else text, *[""] * (len(texts) - 1)]
    return found
