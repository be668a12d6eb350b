"""Pages of a PDF that are pictures: which they are, and the page as pixels."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

from jambacli.documents.extract.ocr import DPI, MOST_PIXELS, Ocr, Picture
from jambacli.documents.extract.pieces import DocumentPart

# A page with more letters than these is read as its text says; with fewer it is a scan if pictures cover so much of it.
_STRAY_LETTERS, _COVERED = 40, 0.6
_OBJECTS = 500


def is_scan(document: Any, part: DocumentPart) -> bool:
    """Whether a page shows something but has no text, or only a few stray letters over a picture of the whole page."""
    from pypdfium2 import PdfiumError, raw

    letters = sum(not c.isspace() for c in part.text)
    if letters > _STRAY_LETTERS:
        return False
    try:
        page = document[part.first - 1]
        if not letters:
            return bool(raw.FPDFPage_CountObjects(page.raw) > 0)
        left, bottom, right, top = page.get_mediabox()
        covered = 0.0
        for picture in islice(page.get_objects(filter=(raw.FPDF_PAGEOBJ_IMAGE,), max_depth=3), _OBJECTS):
            box = picture.get_bounds()
            width, height = min(box[2], right) - max(box[0], left), min(box[3], top) - max(box[1], bottom)
            covered += max(0.0, width) * max(0.0, height)
        return covered >= _COVERED * max(1.0, (right - left) * (top - bottom))
    except (PdfiumError, OSError, ValueError):
        return False


def picture_of(document: Any, number: int) -> Picture | None:
    """A page, counted from 1, as it is shown; None if it is damaged."""
    from pypdfium2 import PdfiumError

    try:
        page = document[number - 1]
        width, height = page.get_size()
        scale = min(DPI / 72, math.sqrt(MOST_PIXELS / max(1.0, width * height)))
        bitmap = page.render(scale=scale, grayscale=True)
        stride, rows, across = bitmap.stride, bitmap.height, bitmap.width
        pixels = bytes(bitmap.buffer)
        if stride != across:
            pixels = b"".join(pixels[row * stride : row * stride + across] for row in range(rows))
        bitmap.close()
        page.close()
    except (PdfiumError, OSError, ValueError):
        return None
    return Picture(across, rows, pixels, max(70, round(scale * 72)))


def without_text(ocr: Ocr) -> str:
    """What is said of a document without any text: why there is none, and what to do."""
    if ocr.outcome:
        return f", {ocr.outcome}"
    otherwise = f", or {ocr.advice}" if ocr.advice else ""
    return f" (a scan?); make it searchable first: ocrmypdf IN OUT{otherwise}"
