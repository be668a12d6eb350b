"""A page of a PDF as a picture, and where words stand on it. Runs in the worker process, since a PDF is untrusted input."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

from jambacli.documents.extract.pdf import opened
from jambacli.documents.extract.words_match import matching
from jambacli.errors import BadFileError

#: The most pixels of a picture: 4 million are a page at about 200 dots an inch.
MAX_PIXELS = 4_000_000
# Characters of a page that are looked through, and boxes of one quote.
_MAX_CHARS, _MAX_BOXES = 400_000, 200
# The page is measured in so many steps each way.
_STEPS = 100_000


def page_picture(path: str, name: str, number: int, scale: float, out: str) -> tuple[int, int]:
    """Write page ``number`` (from 1) as a PNG to ``out``; returns its width and height in pixels.

    ``scale``: pixels for each 72nd of an inch, less where the picture would have more than ``MAX_PIXELS``. Raises
    BadFileError for a page that there is not or that cannot be drawn.
    """
    page = _page(opened(path, name, []), name, number)
    width, height = page.get_size()
    if not (width > 0 and height > 0 and math.isfinite(width * height)):
        raise BadFileError(name, f"page {number} has no size")
    scale = min(scale, math.sqrt(MAX_PIXELS / (width * height)), 20_000 / max(width, height))
    # Neither scripts nor forms of the file run: only its drawing is painted.
    picture = page.render(scale=scale, may_draw_forms=False).to_pil()
    picture.save(Path(out), "PNG", compress_level=4)
    return picture.size


def page_boxes(path: str, name: str, number: int, quote: str) -> list[tuple[float, float, float, float]]:
    """The boxes (left, top, right, bottom) of a quote on page ``number``, one for each line, as fractions of its size from its
    upper left corner; none if its words are not on it."""
    from pypdfium2 import raw

    page = _page(opened(path, name, []), name, number)
    text_page = page.get_textpage()
    count = text_page.count_chars()
    if not 0 < count <= _MAX_CHARS:
        return []
    chars = [chr(raw.FPDFText_GetUnicode(text_page.raw, i)) for i in range(count)]
    boxes: list[tuple[float, float, float, float]] = []
    for start, end in matching(chars, quote):
        for i in range(raw.FPDFText_CountRects(text_page.raw, start, end - start)):
            edges = [ctypes.c_double() for _ in range(4)]
            if raw.FPDFText_GetRect(text_page.raw, i, *map(ctypes.byref, edges)) and len(boxes) < _MAX_BOXES:
                left, top, right, bottom = (edge.value for edge in edges)
                boxes.append(_fractions(page, left, top, right, bottom))
    return [box for box in boxes if box[2] > box[0] and box[3] > box[1]]


def _page(document: Any, name: str, number: int) -> Any:
    import pypdfium2

    if not 1 <= number <= len(document):
        raise BadFileError(name, f"has no page {number}")
    try:
        return document[number - 1]
    except pypdfium2.PdfiumError as error:
        raise BadFileError(name, f"page {number} is damaged") from error


def _fractions(page: Any, left: float, top: float, right: float, bottom: float) -> tuple[float, float, float, float]:
    """A box of the page's own coordinates as fractions, whatever the page's turn and crop."""
    from pypdfium2 import raw

    corners = []
    for x, y in ((left, top), (right, bottom)):
        at_x, at_y = ctypes.c_int(), ctypes.c_int()
        raw.FPDF_PageToDevice(page.raw, 0, 0, _STEPS, _STEPS, 0, x, y, ctypes.byref(at_x), ctypes.byref(at_y))
        corners.append((at_x.value / _STEPS, at_y.value / _STEPS))
    (a, b), (c, d) = corners
    bounded = [min(1.0, max(0.0, v)) for v in (min(a, c), min(b, d), max(a, c), max(b, d))]
    return bounded[0], bounded[1], bounded[2], bounded[3]
