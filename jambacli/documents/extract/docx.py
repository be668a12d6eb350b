"""Text of a Word document by page or paragraph, read as a stream in bounded memory.

A .docx is a zip of XML (ECMA-376). Its pages are those of the last time Word saved it (``lastRenderedPageBreak``) and hard page
breaks; a file without either is numbered by paragraphs.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, Any

from jambacli.documents.extract.pieces import MAX_TEXT, DocumentPart, parts_of_lines
from jambacli.errors import BadFileError, JambaError

_W = "{http://schemas.openxmlformats.org/wordprocessingml/2006/main}"
# The XML of a document of MAX_TEXT characters is a few times as long as its text; a zip bomb is longer.
_MAX_XML = 4 * MAX_TEXT
_MAIN = "word/document.xml"
# The files of footnotes and endnotes, and the name of a note's element in each.
_NOTES = {"word/footnotes.xml": "footnote", "word/endnotes.xml": "endnote"}
# A second copy of a drawing's text, for older programs.
_FALLBACK = "{http://schemas.openxmlformats.org/markup-compatibility/2006}Fallback"


class _Bounded:
    """A file that fails once more than a limit has been read; the sizes that a zip states need not be true."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name, self._left = file, name, _MAX_XML

    def read(self, n: int = -1) -> bytes:
        data = self._file.read(min(n, self._left + 1) if n >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise BadFileError(self._name, f"unpacks to more than {_MAX_XML >> 20} MB: a zip bomb, or too long to read")
        return data


def docx_pieces(path: str, name: str) -> tuple[str, Iterator[DocumentPart]]:
    """The unit ("page" or "paragraph") and the pieces. Raises BadFileError naming ``name`` when it is not a valid .docx."""
    paragraphs = list(_paragraphs(path, name))
    if any(page > 1 for page, _ in paragraphs):
        return "page", _pages(paragraphs)
    return "paragraph", parts_of_lines((i + 1, text) for i, (_, text) in enumerate(paragraphs))


def _pages(paragraphs: list[tuple[int, str]]) -> Iterator[DocumentPart]:
    pages: dict[int, list[str]] = {}
    for page, text in paragraphs:
        pages.setdefault(page, []).append(text)
    for page, lines in pages.items():
        if text := "\n".join(lines).strip():
            yield DocumentPart(text, page, page)


def _paragraphs(path: str, name: str) -> Iterator[tuple[int, str]]:
    """(page, text) of every paragraph in reading order. A table row is one paragraph, with its cells joined by bars."""
    try:
        from defusedxml import ElementTree
        from defusedxml.common import DefusedXmlException
    except ImportError as error:
        raise JambaError(f"{name}: reading .docx files needs: pip install 'jambacli[docs]'") from error
    from xml.etree.ElementTree import ParseError

    try:
        with zipfile.ZipFile(path) as archive:
            info = archive.getinfo(_MAIN)
            if info.flag_bits & 1:
                raise BadFileError(name, "is encrypted; save it without a password")
            if info.file_size > _MAX_XML:
                raise BadFileError(name, f"unpacks to {info.file_size >> 20:,} MB: a zip bomb, or too long to read")
            notes: dict[str, str] = {}
            for member in set(_NOTES) & set(archive.namelist()):
                with archive.open(member) as packed:
                    notes |= _notes(ElementTree.iterparse(_Bounded(packed, name), events=("end",)), _NOTES[member])
            with archive.open(info) as packed:
                events = ElementTree.iterparse(_Bounded(packed, name), events=("start", "end"))
                yield from _walk(events, notes)
    except KeyError as error:
        raise BadFileError(
            name, "is not a Word document (word/document.xml is missing); save it as .docx again"
        ) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ParseError, OSError) as error:
        raise BadFileError(name, f"is a damaged .docx ({error}); save it again or convert it to .pdf") from error
    except DefusedXmlException as error:
        raise BadFileError(name, "defines XML entities, which a regular .docx never does; it was not read") from error


def _notes(events: Iterator[tuple[str, Any]], kind: str) -> dict[str, str]:
    """The text of every footnote (or endnote), by its kind and number."""
    found: dict[str, str] = {}
    for _, element in events:
        if element.tag == f"{_W}{kind}":
            text = " ".join("".join(t.text or "" for t in element.iter(f"{_W}t")).split())
            if text:
                found[f"{kind}{element.get(f'{_W}id')}"] = text
            element.clear()
    return found


def _walk(events: Iterator[tuple[str, Any]], notes: dict[str, str]) -> Iterator[tuple[int, str]]:
    page, started = 1, 1
    words: list[str] = []
    cells: list[str] = []
    cell: list[str] = []
    row = dropped = 0
    stack: list[Any] = []
    for event, element in events:
        tag = element.tag
        if event == "start":
            stack.append(element)
            if tag == f"{_W}lastRenderedPageBreak" or (tag == f"{_W}br" and element.get(f"{_W}type") == "page"):
                page += 1
                if not "".join(words).strip():
                    started = page
            elif tag == f"{_W}tr":
                row += 1
            dropped += tag == _FALLBACK
            continue
        stack.pop()
        dropped -= tag == _FALLBACK
        if dropped:
            pass
        elif tag == f"{_W}t":
            words.append(element.text or "")
        elif tag in (f"{_W}tab", f"{_W}br", f"{_W}cr"):
            words.append("\t" if tag == f"{_W}tab" else "\n")
        elif tag == f"{_W}noBreakHyphen":
            words.append("-")
        elif tag in (f"{_W}footnoteReference", f"{_W}endnoteReference"):
            note = notes.get(f"{tag[len(_W) :].removesuffix('Reference')}{element.get(f'{_W}id')}")
            words.append(f" [{note}]" if note else "")
        elif tag == f"{_W}p":
            text = "".join(words).strip()
            words = []
            if row:
                cell += [text] if text else []
            else:
                yield started, text
                started = page
        elif tag == f"{_W}tc":
            if row == 1:  # empty cells are kept, so that columns line up; a nested table is part of its cell
                cells.append(" ".join(cell))
                cell = []
        elif tag == f"{_W}tr":
            row -= 1
            if not row:
                yield started, " | ".join([*cells, *cell]) if any(cells) or cell else ""
                cells, cell, started = [], [], page
        element.clear()
        if stack:  # remove finished elements, so that memory does not grow with the document
            stack[-1].remove(element)
