"""Text of a PDF's pages, by pdfium. Runs in the worker process, since a PDF is untrusted input."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jambacli.documents.extract.pieces import DocumentPart
from jambacli.errors import BadFileError, JambaError

MAX_PAGES = 100_000


def pdf_pages(path: str, name: str) -> Iterator[DocumentPart]:
    """All pages; those without text are empty pieces. Raises BadFileError naming ``name`` when the file is encrypted,
    damaged or has no text at all."""
    try:
        import pypdfium2
    except ImportError as error:
        raise JambaError(f"{name}: reading PDFs needs: pip install 'jambacli[docs]'") from error
    try:
        document: Any = pypdfium2.PdfDocument(path)
    except pypdfium2.PdfiumError as error:
        if "assword" in str(error) or "ecurity" in str(error):
            raise BadFileError(name, "is encrypted; remove the password first, for example with qpdf") from error
        raise BadFileError(
            name, f"is damaged or not a PDF ({_reason(error)}); repair it (qpdf IN OUT) or print it to a PDF again"
        ) from error
    count = len(document)
    if not 0 < count <= MAX_PAGES:
        raise BadFileError(name, f"has {count:,} pages; split it" if count else "has no pages")
    empty = 0
    for i in range(count):
        text = _page_text(document, i, pypdfium2.PdfiumError)
        if text:
            yield DocumentPart(text, i + 1, i + 1)
        else:
            empty += 1
            yield DocumentPart("", i + 1, i + 1)
    if empty == count:
        pages = "page has" if count == 1 else f"{count:,} pages have"
        raise BadFileError(name, f"its {pages} no text (a scan?); make it searchable first: ocrmypdf IN OUT")


def _page_text(document: Any, index: int, failed: type[Exception]) -> str:
    """A page's text; "" when the page is damaged."""
    try:
        page = document[index]
        text_page = page.get_textpage()
        text = text_page.get_text_range()
        text_page.close()
        page.close()
    except failed:
        return ""
    # pdfium writes U+FFFE for a hyphen at the end of a line that only divides a word.
    text = re.sub("[\ufffe\u00ad]\r?\n?", "", text).replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "")
    return text.strip()


def _reason(error: Exception) -> str:
    return str(error).split("(")[-1].strip(").").strip().lower() or "unreadable"
