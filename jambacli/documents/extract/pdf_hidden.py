"""Text of a PDF's page that no reader sees: outside of the page, or white on nothing. It is left out, and counted.

The invisible text of a scan, its OCR layer, is none of that: it has a colour and lies on the page.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

from jambacli.documents.extract.pdf_layout import Run

# From this on a colour's parts are white.
_WHITE = 248
# Objects of a page that are looked at as backgrounds.
_MAX_OBJECTS = 20_000
# Points around a page in which text still counts as on it.
_EDGE = 3.0

Box = tuple[float, float, float, float]


def turned(box: Box, turn: int) -> Box:
    """The box on the page turned by ``turn`` times 90 degrees, so that text of that direction goes to the right."""
    left, bottom, right, top = box
    if turn == 1:
        return -top, left, -bottom, right
    if turn == 2:
        return -right, -top, -left, -bottom
    if turn == 3:
        return bottom, -right, top, -left
    return box


class Hidden:
    """Tells which runs of a page are hidden."""

    def __init__(self, page: Any, text_page: Any) -> None:
        self._page, self._text_page = page, text_page
        box = page.get_cropbox()
        self._box = min(box[0], box[2]), min(box[1], box[3]), max(box[0], box[2]), max(box[1], box[3])
        self._backgrounds: list[Box] | None = None
        self.words = 0

    def without(self, runs: Sequence[Run], turn: int) -> list[Run]:
        """The visible runs of one direction; the words of the others are counted."""
        left, bottom, right, top = turned(self._box, turn)
        visible = []
        for run in runs:
            x, y = (run.left + run.right) / 2, (run.bottom + run.top) / 2
            on_page = left - _EDGE < run.right and run.left < right + _EDGE and bottom - _EDGE < y < top + _EDGE
            if on_page and not (self._white(run.order) and self._bare(x, y, turn)):
                visible.append(run)
            else:
                self.words += len(run.text.split())
        return visible

    def _white(self, index: int) -> bool:
        from pypdfium2 import raw

        parts = [ctypes.c_uint() for _ in range(4)]
        if not raw.FPDFText_GetFillColor(self._text_page.raw, index, *map(ctypes.byref, parts)):
            return False
        return min(part.value for part in parts[:3]) >= _WHITE and not self._unpainted(index)

    def _unpainted(self, index: int) -> bool:
        from pypdfium2 import raw

        text = raw.FPDFText_GetTextObject(self._text_page.raw, index)
        return bool(text) and raw.FPDFTextObj_GetTextRenderMode(text) == raw.FPDF_TEXTRENDERMODE_INVISIBLE

    def _bare(self, x: float, y: float, turn: int) -> bool:
        if self._backgrounds is None:
            self._backgrounds = self._painted()
        for box in self._backgrounds:
            left, bottom, right, top = turned(box, turn)
            if left <= x <= right and bottom <= y <= top:
                return False
        return True

    def _painted(self) -> list[Box]:
        """The boxes of everything but text and white areas."""
        from pypdfium2 import raw

        count = raw.FPDFPage_CountObjects(self._page.raw)
        if count > _MAX_OBJECTS:
            return [self._box]
        found: list[Box] = []
        edges = [ctypes.c_float() for _ in range(4)]
        colour = [ctypes.c_uint() for _ in range(4)]
        for i in range(count):
            item = raw.FPDFPage_GetObject(self._page.raw, i)
            kind = raw.FPDFPageObj_GetType(item)
            if kind == raw.FPDF_PAGEOBJ_TEXT or not raw.FPDFPageObj_GetBounds(item, *map(ctypes.byref, edges)):
                continue
            filled = kind == raw.FPDF_PAGEOBJ_PATH and raw.FPDFPageObj_GetFillColor(item, *map(ctypes.byref, colour))
            if filled and min(part.value for part in colour[:3]) >= _WHITE:
                continue
            left, bottom, right, top = (edge.value for edge in edges)
            found.append((left, bottom, right, top))
        return found
