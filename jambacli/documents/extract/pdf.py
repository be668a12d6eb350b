"""Text of a PDF's pages, by pdfium. Runs in the worker process, since a PDF is untrusted input."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from jambacli.documents.extract.ocr import Ocr, with_scans
from jambacli.documents.extract.pdf_forms import Besides, Forms, labelled
from jambacli.documents.extract.pdf_layout import Line, joined
from jambacli.documents.extract.pdf_margins import without_repeats
from jambacli.documents.extract.pdf_page import page_lines, page_runs
from jambacli.documents.extract.pdf_repair import with_an_end
from jambacli.documents.extract.pdf_scan import is_scan, picture_of, without_text
from jambacli.documents.extract.pieces import DocumentPart
from jambacli.errors import BadFileError, JambaError
from jambacli.units import counted

MAX_PAGES = 100_000
# A form without fields on these pages is drawn by Adobe Reader alone.
_FORM_PAGES = 20


def pdf_pages(
    path: str,
    name: str,
    remarks: list[str],
    ocr: Ocr | None = None,
    counted_pages: Callable[[int], None] = lambda count: None,
) -> Iterator[DocumentPart]:
    """All pages; those without text are empty pieces, or recognized by ``ocr``. What was left out is added to ``remarks``.
    ``counted_pages`` is called with their number before they are read.

    Raises BadFileError naming ``name`` when the file is encrypted, damaged, has no text at all, or is an XFA form.
    """
    document, damaged = _opened(path, name, remarks)
    import pypdfium2

    count = len(document)
    if not 0 < count <= MAX_PAGES:
        raise BadFileError(name, f"has {count:,} pages; split it" if count else "has no pages")
    counted_pages(count)
    reader = _Pages(document, pypdfium2.PdfiumError)
    if reader.forms.xfa and not any(reader.fields(i) for i in range(min(count, _FORM_PAGES))):
        raise BadFileError(
            name, "is an XFA form, which only Adobe Reader shows; open it there and print it to a PDF, then read that"
        )
    ocr = Ocr() if ocr is None else ocr
    texts = (
        DocumentPart(joined(lines).strip(), i, i)
        for i, lines in enumerate(without_repeats(map(reader.lines, range(count)), remarks), 1)
    )
    empty = True
    for part in with_scans(ocr, path, texts, partial(is_scan, document), partial(picture_of, document), remarks):
        empty = empty and not part.text
        yield part
    if empty:
        if damaged:
            raise damaged
        if names := reader.attached():
            raise BadFileError(name, f"holds only attached files; save and name them: {', '.join(names[:5])}")
        pages = "page has" if count == 1 else f"{count:,} pages have"
        raise BadFileError(name, f"its {pages} no text{without_text(ocr)}")
    remarks += reader.left_out()


def opened(path: str, name: str, remarks: list[str]) -> Any:
    """The document of pdfium, of a damaged file as far as it goes. Raises BadFileError."""
    return _opened(path, name, remarks)[0]


def _opened(path: str, name: str, remarks: list[str]) -> tuple[Any, BadFileError | None]:
    try:
        import pypdfium2
    except ImportError as error:
        raise JambaError(f"{name}: reading PDFs needs: pip install 'jambacli[docs]'") from error
    damaged: BadFileError | None = None
    try:
        document: Any = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error) or "ecurity" in str(error):
            raise BadFileError(name, "is encrypted; remove the password first, for example with qpdf") from error
        damaged = BadFileError(
            name, f"is damaged or not a PDF ({_reason(error)}); repair it (qpdf IN OUT) or print it to a PDF again"
        )
        document = _repaired(path)
        if document is None:
            raise damaged from error
        remarks.append("the end of the file is missing; what is left of it was read")
    return document, damaged


def _repaired(path: str) -> Any | None:
    """A document whose end is cut off; None if too little is left."""
    import pypdfium2

    data = with_an_end(path)
    try:
        return pypdfium2.PdfDocument(data) if data else None
    except pypdfium2.PdfiumError:
        return None


class _Pages:
    """Reads pages, and remembers what it left out."""

    def __init__(self, document: Any, failed: type[Exception]) -> None:
        self.document, self.failed = document, failed
        self.forms = Forms(document)
        self._besides = Besides()
        self._unseen = 0

    def fields(self, index: int) -> int:
        """How many form fields a page has."""
        try:
            page = self.document[index]
            found = self.forms.besides(page, "")
            page.close()
        except self.failed:
            return 0
        return found.fields

    def lines(self, index: int) -> tuple[list[Line], tuple[float, float]]:
        """A page's lines, none when it is damaged, and its lowest and highest place."""
        try:
            page = self.document[index]
            text_page = page.get_textpage()
            runs = page_runs(page, text_page)
            found = self.forms.besides(page, "\n".join(run.text for run in runs.upright))
            placed = [runs.turned(run) for run in found.placed]
            lines = page_lines(runs, text_page, labelled(placed, runs.upright))
            lines += [Line(text, 0, 0) for text in found.comments]
            extent = runs.extent(page.get_mediabox())
            text_page.close()
            page.close()
        except self.failed:
            return [], (0, 0)
        self._besides.hidden += found.hidden
        self._unseen += runs.hidden
        self._besides.passwords += found.passwords
        self._besides.files += found.files
        return lines, extent

    def left_out(self) -> list[str]:
        """A remark on everything that was not read."""
        found, said = self._besides, []
        names = found.files + self.attached()
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            said.append(f"{counted(len(names), 'attached file')} not read; save and name them: {shown}")
        if found.hidden:
            said.append(f"{found.hidden:,} hidden notes or form values left out")
        if self._unseen:
            said.append(
                f"{counted(self._unseen, 'word')} left out that no reader sees: outside of the page or white on white"
            )
        if found.passwords:
            said.append(f"{counted(found.passwords, 'password')} in form fields left out")
        return said

    def attached(self) -> list[str]:
        """The names of the files within the document."""
        try:
            count = min(self.document.count_attachments(), 1000)
            return [" ".join(self.document.get_attachment(i).get_name().split()) for i in range(count)]
        except self.failed:
            return []


def _reason(error: Exception) -> str:
    return str(error).split("(")[-1].strip(").").strip().lower() or "unreadable"
