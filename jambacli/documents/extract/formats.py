"""The kinds of documents that are opened in the worker process, and the function that reads each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

from jambacli.documents.extract.ocr import Ocr
from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines

#: The unit, the pieces, and remarks, which are complete after the last piece.
Extraction = tuple[str, Iterator[DocumentPart], list[str]]
#: Reads a file within a file: its content and its name.
ReadInner = Callable[[bytes, str], Extraction]


@dataclass(frozen=True)
class Opening:
    """A file to read.

    ``path``: where it lies. ``name``: what errors call it. ``alive``: call it now and then while nothing is yielded.
    ``inner``: reads a file within it, such as an attachment. ``ocr``: recognizes its pages that are pictures. ``counted``: call
    it with the number of pages, where that is known before they are read.
    """

    path: str
    name: str
    alive: Callable[[], None]
    inner: ReadInner
    ocr: Ocr = field(default_factory=Ocr)
    counted: Callable[[int], None] = lambda count: None


@dataclass(frozen=True)
class Format:
    """``reader``: "module:function" below this package, imported when the first such file is read. ``takes``: the
    fields of the Opening that the function is called with; without any it takes the Opening. ``streamed``: read from its file,
    whatever its size; else its whole content is held in memory."""

    reader: str
    takes: tuple[str, ...] = ()
    streamed: bool = False


_USUAL = ("path", "name", "alive")


#: By kind, as ``kinds.kind_of`` tells them. "text" is none of them: it is decoded without the worker.
FORMATS: dict[str, Format] = {
    "pdf": Format("formats:_pdf", streamed=True),
    "image": Format("images:image_pages", streamed=True),
    "docx": Format("docx:docx_pieces", _USUAL, streamed=True),
    "xlsx": Format("xlsx:xlsx_pieces", _USUAL, streamed=True),
    "xlsb": Format("binary_sheets:xlsb_pieces", _USUAL, streamed=True),
    "xls": Format("binary_sheets:xls_pieces", _USUAL, streamed=True),
    "ods": Format("ods:ods_pieces", _USUAL, streamed=True),
    "pptx": Format("pptx:pptx_pieces", _USUAL, streamed=True),
    "odp": Format("odp:odp_pieces", _USUAL, streamed=True),
    "odt": Format("odt:odt_pieces", _USUAL, streamed=True),
    "rtf": Format("rtf:rtf_pieces", _USUAL, streamed=True),
    "epub": Format("epub:epub_pieces", _USUAL, streamed=True),
    "mbox": Format("formats:_mbox", streamed=True),
    "outlook": Format("mail:outlook_pieces", ("path", "name", "inner"), streamed=True),
    "subtitles": Format("subtitles:subtitle_pieces", ("path", "name")),
    "html": Format("formats:_html"),
    "mail": Format("formats:_mail"),
    "notebook": Format("notebook:notebook_pieces", ("path", "name")),
}


def read(kind: str, opening: Opening) -> Extraction:
    """The pieces of a file of ``kind``. Raises JambaError naming the file."""
    module, _, function = FORMATS[kind].reader.partition(":")
    takes = FORMATS[kind].takes
    arguments = [getattr(opening, name) for name in takes] if takes else [opening]
    found: Extraction = getattr(import_module(f"{__package__}.{module}"), function)(*arguments)
    return found


def _pdf(opening: Opening) -> Extraction:
    from jambacli.documents.extract.pdf import pdf_pages

    remarks: list[str] = []
    return "page", pdf_pages(opening.path, opening.name, remarks, opening.ocr, opening.counted), remarks


def _mbox(opening: Opening) -> Extraction:
    from jambacli.documents.extract.mail import mail_pieces

    return mail_pieces(opening.path, opening.name, True, opening.inner, opening.alive)


def _mail(opening: Opening) -> Extraction:
    from jambacli.documents.extract.mail import mail_pieces

    return mail_pieces(opening.path, opening.name, False, opening.inner)


def _html(opening: Opening) -> Extraction:
    from jambacli.documents.extract.html import html_lines

    lines, remarks = html_lines(Path(opening.path).read_bytes(), opening.name)
    return "line", parts_of_lines(lines), remarks
