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
    ``inner``: reads a file within it, such as an attachment. ``ocr``: recognizes its pages that are pictures.
    """

    path: str
    name: str
    alive: Callable[[], None]
    inner: ReadInner
    ocr: Ocr = field(default_factory=Ocr)


@dataclass(frozen=True)
class Format:
    """``reader``: "module:function" below this package, imported when the first such file is read; the function takes an
    Opening. ``streamed``: read from its file, whatever its size; else its whole content is held in memory."""

    reader: str
    streamed: bool = False


#: By kind, as ``kinds.kind_of`` tells them. "text" is none of them: it is decoded without the worker.
FORMATS: dict[str, Format] = {
    "pdf": Format("formats:_pdf", streamed=True),
    "image": Format("images:image_pages", streamed=True),
    "docx": Format("formats:_docx", streamed=True),
    "xlsx": Format("formats:_xlsx", streamed=True),
    "xlsb": Format("formats:_xlsb", streamed=True),
    "xls": Format("formats:_xls", streamed=True),
    "ods": Format("formats:_ods", streamed=True),
    "pptx": Format("formats:_pptx", streamed=True),
    "odp": Format("formats:_odp", streamed=True),
    "mbox": Format("formats:_mbox", streamed=True),
    "odt": Format("formats:_odt", streamed=True),
    "rtf": Format("formats:_rtf", streamed=True),
    "epub": Format("formats:_epub", streamed=True),
    "outlook": Format("formats:_outlook", streamed=True),
    "subtitles": Format("formats:_subtitles"),
    "html": Format("formats:_html"),
    "mail": Format("formats:_mail"),
    "notebook": Format("formats:_notebook"),
}


def read(kind: str, opening: Opening) -> Extraction:
    """The pieces of a file of ``kind``. Raises JambaError naming the file."""
    module, _, function = FORMATS[kind].reader.partition(":")
    found: Extraction = getattr(import_module(f"{__package__}.{module}"), function)(opening)
    return found


def _pdf(opening: Opening) -> Extraction:
    from jambacli.documents.extract.pdf import pdf_pages

    remarks: list[str] = []
    return "page", pdf_pages(opening.path, opening.name, remarks, opening.ocr), remarks


def _docx(opening: Opening) -> Extraction:
    from jambacli.documents.extract.docx import docx_pieces

    return docx_pieces(opening.path, opening.name, opening.alive)


def _xlsx(opening: Opening) -> Extraction:
    from jambacli.documents.extract.xlsx import xlsx_pieces

    return xlsx_pieces(opening.path, opening.name, opening.alive)


def _xls(opening: Opening) -> Extraction:
    from jambacli.documents.extract.binary_sheets import xls_pieces

    return xls_pieces(opening.path, opening.name, opening.alive)


def _xlsb(opening: Opening) -> Extraction:
    from jambacli.documents.extract.binary_sheets import xlsb_pieces

    return xlsb_pieces(opening.path, opening.name, opening.alive)


def _ods(opening: Opening) -> Extraction:
    from jambacli.documents.extract.ods import ods_pieces

    return ods_pieces(opening.path, opening.name, opening.alive)


def _pptx(opening: Opening) -> Extraction:
    from jambacli.documents.extract.pptx import pptx_pieces

    return pptx_pieces(opening.path, opening.name, opening.alive)


def _odp(opening: Opening) -> Extraction:
    from jambacli.documents.extract.odp import odp_pieces

    return odp_pieces(opening.path, opening.name, opening.alive)


def _odt(opening: Opening) -> Extraction:
    from jambacli.documents.extract.odt import odt_pieces

    return odt_pieces(opening.path, opening.name, opening.alive)


def _rtf(opening: Opening) -> Extraction:
    from jambacli.documents.extract.rtf import rtf_pieces

    return rtf_pieces(opening.path, opening.name, opening.alive)


def _epub(opening: Opening) -> Extraction:
    from jambacli.documents.extract.epub import epub_pieces

    return epub_pieces(opening.path, opening.name, opening.alive)


def _mbox(opening: Opening) -> Extraction:
    from jambacli.documents.extract.mail import mail_pieces

    return mail_pieces(opening.path, opening.name, True, opening.inner)


def _mail(opening: Opening) -> Extraction:
    from jambacli.documents.extract.mail import mail_pieces

    return mail_pieces(opening.path, opening.name, False, opening.inner)


def _outlook(opening: Opening) -> Extraction:
    from jambacli.documents.extract.mail import outlook_pieces

    return outlook_pieces(opening.path, opening.name, opening.inner)


def _subtitles(opening: Opening) -> Extraction:
    from jambacli.documents.extract.subtitles import subtitle_pieces

    return subtitle_pieces(opening.path, opening.name)


def _notebook(opening: Opening) -> Extraction:
    from jambacli.documents.extract.notebook import notebook_pieces

    return notebook_pieces(opening.path, opening.name)


def _html(opening: Opening) -> Extraction:
    from jambacli.documents.extract.html import html_lines

    lines, remarks = html_lines(Path(opening.path).read_bytes(), opening.name)
    return "line", parts_of_lines(lines), remarks
