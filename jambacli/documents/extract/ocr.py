"""Recognizes pages that are pictures, by ``tesseract``, and remembers what was recognized. It runs in the worker process."""

from __future__ import annotations

import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from jambacli.cache.ocr_cache import OcrCache, Recognized, file_digest
from jambacli.documents.extract.pieces import DocumentPart, ranges
from jambacli.documents.extract.tesseract import (
    HOW_TO_INSTALL,
    PAGE_SECONDS,
    OcrFailure,
    Recognition,
    Tesseract,
    tesseract,
)
from jambacli.units import counted

#: Dots per inch of a page that is recognized, and the pixels of the largest picture of one.
DPI, MOST_PIXELS = 300, 40_000_000
# Below this mean certainty, of 100, the words come from a picture without text; below the other the text is worth a remark.
_NO_TEXT, _POOR = 30.0, 65.0
# After so many pages in a row that failed no more are tried.
_FAILURES = 3
_AT_ONCE = 4


@dataclass(frozen=True)
class Picture:
    """A page as grey pixels, row by row from the top; ``dpi``: dots per inch."""

    width: int
    height: int
    pixels: bytes
    dpi: int = DPI

    @property
    def blank(self) -> bool:
        """Whether nothing is on it."""
        return not self.pixels.strip(_WHITE)


_WHITE = bytes(range(240, 256))


@dataclass
class Ocr:
    """What a document needs to have its pages recognized.

    ``choice``: "auto", "off" or languages. ``store``: where recognized pages are kept, None for nowhere. ``stored``: take only
    what is stored of the variant of this name, and ``forget`` it then. ``seconds``: the most for one page. ``say``: sends the
    progress to the other process. ``outcome``: of the last document, for one without any text.
    """

    choice: str = "off"
    store: Path | None = None
    stored: str = ""
    forget: bool = False
    seconds: float = PAGE_SECONDS
    say: Callable[..., None] = lambda **_: None
    outcome: str = field(default="", init=False)
    _found: Tesseract | None = field(default=None, init=False)
    _searched: bool = field(default=False, init=False)

    @property
    def ready(self) -> bool:
        """Whether pages can be recognized, or taken from the store."""
        if self.stored:
            return True
        if not self._searched and self.choice != "off":
            self._found = tesseract()
        self._searched = True
        return self._found is not None

    @property
    def advice(self) -> str:
        """What to do so that pages are recognized, for a message; "" when they are."""
        if self.ready:
            return ""
        return HOW_TO_INSTALL if self.choice != "off" else "read it with OCR"

    def document(self, path: str, remarks: list[str]) -> OcrDocument:
        """The recognition of one file's pages; ``remarks`` get what is to be said about it."""
        return OcrDocument(self, path, remarks, self._found)


class OcrDocument:
    """The recognition of the pages of one file."""

    def __init__(self, ocr: Ocr, path: str, remarks: list[str], found: Tesseract | None) -> None:
        self._ocr, self._path, self._remarks, self._found = ocr, path, remarks, found
        variant = found.variant(ocr.choice) if found is not None and not ocr.stored else None
        self._languages = variant.languages if variant is not None else ""
        self._variant = variant.name if variant is not None else ocr.stored
        self.failure = ""
        self.by = f"tesseract {variant.version}, {variant.languages}" if variant is not None else "stored"

    def pages(self, numbers: Sequence[int], picture: Callable[[int], Picture | None]) -> dict[int, str]:
        """The text of the pages with these numbers: "" where there is none, missing where it failed. ``picture``: a page as
        pixels; None if it is damaged."""
        digest = file_digest(self._path) if self._ocr.store is not None else ""
        cache = OcrCache(self._ocr.store) if self._ocr.store is not None else None
        known = cache.pages(digest, self._variant) if cache is not None else {}
        if cache is not None and self._ocr.forget:
            cache.forget(digest, self._variant)
        found = {number: known[number] for number in numbers if number in known}
        missing = [] if self._ocr.stored else [number for number in numbers if number not in found]
        for number, result in self._recognize(missing, picture):
            found[number] = result
            if cache is not None:
                cache.add(digest, self._variant, number, result)
        texts = {number: one.text if one.sure >= _NO_TEXT else "" for number, one in found.items()}
        self._remark(numbers, texts, [n for n in numbers if texts.get(n) and found[n].sure < _POOR])
        return texts

    def _recognize(
        self, numbers: Sequence[int], picture: Callable[[int], Picture | None]
    ) -> Iterator[tuple[int, Recognized]]:
        """Pages in order, several at once."""
        if not numbers or self._found is None:
            return
        self._ocr.say(recognizing=len(numbers))
        running: deque[tuple[int, Recognition | Recognized]] = deque()
        failures = 0

        def finish() -> Iterator[tuple[int, Recognized]]:
            nonlocal failures
            number, one = running.popleft()
            try:
                result = one if isinstance(one, Recognized) else one.finish(self._alive, self._ocr.seconds)
            except OcrFailure as error:
                self.failure = str(error)
                failures += 1
            else:
                failures = 0
                yield number, result
            self._ocr.say(recognized=1)

        try:
            for number in numbers:
                while len(running) >= min(_AT_ONCE, _processors()):
                    yield from finish()
                if failures >= _FAILURES:
                    break
                try:
                    running.append((number, self._begin(picture(number))))
                except OcrFailure as error:
                    self.failure = str(error)
                    failures += 1
            while running:
                yield from finish()
        finally:
            for _, one in running:
                if isinstance(one, Recognition):
                    one.stop()

    def _alive(self) -> None:
        self._ocr.say(recognized=0)

    def _begin(self, picture: Picture | None) -> Recognition | Recognized:
        if picture is None:
            raise OcrFailure("it is damaged")
        if picture.blank:
            return Recognized("", 100.0)
        assert self._found is not None
        handle, name = tempfile.mkstemp(suffix=".pgm", prefix="page-")
        with os.fdopen(handle, "wb") as file:
            file.write(b"P5\n%d %d\n255\n" % (picture.width, picture.height))
            file.write(picture.pixels)
        return Recognition(self._found, self._languages, Path(name), picture.dpi)

    def _remark(self, numbers: Sequence[int], texts: dict[int, str], poor: Sequence[int]) -> None:
        read = [n for n in numbers if texts.get(n)]
        empty = [n for n in numbers if n in texts and not texts[n]]
        failed = [] if self._ocr.stored else [n for n in numbers if n not in texts]
        which = f": {ranges(read)}" if len(numbers) > 1 or numbers[0] > 1 else ""
        if read:
            self._remarks.append(f"{counted(len(read), 'page')} recognized by OCR ({self.by}){which}")
        if poor:
            self._remarks.append(f"{counted(len(poor), 'page')} recognized poorly, check the text: {ranges(poor)}")
        if empty and read:
            self._remarks.append(f"no text found by OCR on {counted(len(empty), 'page')}: {ranges(empty)}")
        if failed and (read or empty):
            self._remarks.append(f"{counted(len(failed), 'page')} not recognized ({self.failure}): {ranges(failed)}")


def with_scans(
    ocr: Ocr,
    path: str,
    parts: Iterator[DocumentPart],
    scanned: Callable[[DocumentPart], bool],
    picture: Callable[[int], Picture | None],
    remarks: list[str],
) -> Iterator[DocumentPart]:
    """The pages of a document, with the text of those that are ``scanned`` recognized. A page on which nothing was found is
    left out, and ``ocr.outcome`` says why."""
    held: list[DocumentPart] = []
    numbers: list[int] = []
    ocr.outcome = ""
    for part in parts:
        if scanned(part):
            if not ocr.ready:
                if ocr.choice != "off":
                    remarks.append(f"to have pages without text recognized, {ocr.advice}")
                yield part
                yield from parts
                return
            numbers.append(part.first)
        if numbers:
            held.append(part)
            ocr.say(recognized=0)
        else:
            yield part
    if not numbers:
        return
    document = ocr.document(path, remarks)
    texts = document.pages(numbers, picture)
    ocr.outcome = (
        f"and recognizing them failed: {document.failure}"
        if document.failure
        else f"and none was found by OCR ({document.by})"
    )
    for part in held:
        text = texts.get(part.first, "")
        text = text if len(text) > len(part.text) else part.text
        if text or part.first not in numbers:
            yield DocumentPart(text, part.first, part.last, part.label)


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
