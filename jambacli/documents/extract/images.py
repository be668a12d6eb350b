"""Pictures named as documents (.png, .jpg, .tif, .webp, .gif): their text is recognized. Runs in the worker process."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jambacli.documents.extract.formats import Extraction, Opening
from jambacli.documents.extract.ocr import DPI, MOST_PIXELS, Picture, with_scans
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.documents.extract.plain import foreign
from jambacli.errors import BadFileError, JambaError
from jambacli.units import counted

_FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "GIF")
# Pictures of more pixels are not opened, nor more pages of one file.
_LARGEST, _PAGES = 200_000_000, 10_000
# A smaller picture, of a screen say, is enlarged: letters of less than 20 pixels are recognized badly.
_SMALL = 2000


def image_pages(opening: Opening) -> Extraction:
    """The pages of a picture, one but for a TIFF of several. Raises BadFileError or JambaError naming the file."""
    name, ocr = opening.name, opening.ocr
    if not ocr.ready:
        with Path(opening.path).open("rb") as file:
            what = foreign(file.read(16)) or "an image; read its text with an OCR program first"
        raise BadFileError(name, f"is {what}, or {ocr.advice}")
    try:
        from PIL import Image
    except ImportError as error:
        raise JambaError(f"{name}: reading images needs: pip install 'jambacli[docs]'") from error
    Image.MAX_IMAGE_PIXELS = None  # checked below
    try:
        image = Image.open(opening.path, formats=_FORMATS)
        frames = min(int(getattr(image, "n_frames", 1)), _PAGES)
    except Exception as error:  # the library fails in many ways on damaged files
        raise BadFileError(name, "is a damaged image; save it again") from error
    remarks: list[str] = []
    several = image.format == "TIFF"
    if frames > 1 and not several:
        remarks.append(f"only the first of {counted(frames, 'picture')} was read")
    count = frames if several else 1
    if image.width * image.height > _LARGEST:
        raise BadFileError(name, f"has {image.width:,} x {image.height:,} pixels; make it smaller")

    def picture(number: int) -> Picture | None:
        try:
            image.seek(number - 1)
            return grey_picture(image) if image.width * image.height <= _LARGEST else None
        except Exception:  # as above
            return None

    def pages() -> Iterator[DocumentPart]:
        blank = (DocumentPart("", number, number) for number in range(1, count + 1))
        empty = True
        for part in with_scans(ocr, opening.path, blank, lambda _: True, picture, remarks):
            empty = False
            yield part
        if empty:
            raise BadFileError(name, f"contains no text, {ocr.outcome}")

    return "page" if count > 1 else "image", pages(), remarks


def grey_picture(image: Any) -> Picture:
    """The picture upright, on white, in grey, in a size in which its letters can be recognized."""
    from PIL import Image, ImageOps

    shown = ImageOps.exif_transpose(image)
    if shown.mode.startswith("I"):  # of 16 bits
        shown = shown.convert("I").point(lambda value: value * (1 / 257) + 0)
    if "A" in shown.getbands() or "transparency" in shown.info:
        shown = shown.convert("RGBA")
        white = Image.new("RGBA", shown.size, "white")
        shown = Image.alpha_composite(white, shown)
    grey = shown.convert("L")
    dots = image.info.get("dpi", (0, 0))[0]
    dots = int(dots) if 70 <= dots <= 2400 else 0
    size = grey.width * grey.height
    scale = 1.0
    if size > MOST_PIXELS:
        scale = math.sqrt(MOST_PIXELS / size)
    elif max(grey.size) < _SMALL and dots < 200:
        scale = min(3.0, max(2.0, DPI / dots if dots else 2.0))
    if scale != 1.0:
        wanted = (max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))
        grey = grey.resize(wanted, Image.Resampling.LANCZOS)
    return Picture(grey.width, grey.height, grey.tobytes(), round(dots * scale) if dots else DPI)
