"""Text of an e-book (EPUB 2 and 3) by chapter: the files of its spine in order, as a browser shows them, those that are no part
of the order (notes, say) at the end. A chapter is called by its title in the table of contents."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from jambacli.documents.extract.epub_package import Book, Item, opened
from jambacli.documents.extract.html import html_lines
from jambacli.documents.extract.html_encoding import page_text
from jambacli.documents.extract.html_tree import VOID
from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.errors import BadFileError
from jambacli.units import counted

_PAGES = (
    "application/xhtml+xml",
    "text/html",
    "text/x-oeb1-document",
    "application/x-dtbook+xml",
    "application/xml",
    "image/svg+xml",
    "",
)
_TITLE = re.compile(r"(<title(?:\s[^>]*)?>)[^<]*(?=</title)", re.IGNORECASE)
_CLOSED = re.compile(r"<([a-zA-Z][^\s/<>]*)((?:[^<>\"'/]++|/(?!>)|\"[^\"]*+\"|'[^']*+')*+)/>")
_CDATA = re.compile(r"<!\[CDATA\[(.*?)\]\]>", re.DOTALL)


def epub_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit "chapter", the pieces, and remarks, complete after the last piece. ``alive`` is called now and then while there
    is no piece. Raises BadFileError naming ``name`` when it is not a valid e-book, or protected."""
    remarks: list[str] = []
    return "chapter", _pieces(path, name, remarks, alive), remarks


def _pieces(path: str, name: str, remarks: list[str], alive: Callable[[], None]) -> Iterator[DocumentPart]:
    with opened(path, name, alive) as book:
        book.refuse_protected()
        titles = book.titles()
        left = _Left()
        items = [*book.spine.items, *book.spine.aside]
        label = ""
        found = False
        for number, item in enumerate(items, 1):
            alive()
            label = titles.get(item.path, label if number <= len(book.spine.items) else "")
            for part in parts_of_lines(_lines(book, item, left)):
                found = True
                yield DocumentPart(part.text, number, number, label)
        if not found:
            raise BadFileError(name, "contains no text" + (" (an e-book of pictures)" if left.pictures else ""))
        remarks += left.remarks(book)


class _Left:
    """What was left out."""

    def __init__(self) -> None:
        self.pictures = 0
        self.missing: list[str] = []
        self.outside = 0
        self.others: list[str] = []
        self.damaged: list[str] = []
        self.notes: dict[str, int] = {}

    def remarks(self, book: Book) -> list[str]:
        """In words."""
        said = []
        if self.missing:
            said.append(f"{counted(len(self.missing), 'chapter')} missing from the file: {_names(self.missing)}")
        if self.outside:
            said.append(f"{counted(self.outside, 'chapter')} outside of the file left out: nothing is fetched")
        if self.others:
            said.append(f"{counted(len(self.others), 'file')} of other kinds left out: {_names(self.others)}")
        if self.damaged:
            said.append(f"{counted(len(self.damaged), 'chapter')} not read: {_names(self.damaged)}")
        if book.spine.unknown:
            said.append(f"{counted(book.spine.unknown, 'chapter')} without a file left out")
        if book.spine.repeated:
            said.append(f"{counted(book.spine.repeated, 'repeated chapter')} left out")
        if self.pictures:
            said.append(f"{counted(self.pictures, 'picture')} left out; text in them is not read")
        said += [note if times == 1 else f"{note} ({times:,} times)" for note, times in list(self.notes.items())[:10]]
        return said


def _lines(book: Book, item: Item, left: _Left) -> Iterator[tuple[int, str]]:
    """The lines of a file of the book."""
    if not item.path:
        left.outside += 1
        return
    if item.kind.startswith("image/") and item.kind != "image/svg+xml":
        left.pictures += 1
        return
    if item.kind not in _PAGES:
        left.others.append(item.link)
        return
    data = book.read(item.path)
    if data is None:
        left.missing.append(item.link)
        return
    try:
        source, remark = page_text(data, item.link)
        left.pictures += len(re.findall(r"<(?:img|image|svg:image)[\s/>]", source))
        lines, remarks = html_lines(b"\xef\xbb\xbf" + _as_html(source).encode("utf-8", "replace"), item.link)
        yield from lines
    except BadFileError as error:
        if "no text" not in str(error) and "empty" not in str(error):
            left.damaged.append(f"{item.link} ({str(error).removeprefix(item.link).removeprefix(': ')})")
        return
    for note in [*([remark] if remark else []), *remarks]:
        left.notes[note] = left.notes.get(note, 0) + 1


def _as_html(source: str) -> str:
    """XHTML as HTML: elements that end where they begin, sections of plain text; without the title, which repeats another."""

    def opened_and_closed(found: re.Match[str]) -> str:
        tag = found[1]
        return found[0] if tag.lower() in VOID else f"<{tag}{found[2]}></{tag}>"

    source = _TITLE.sub(lambda found: found[1], source)
    if "<![CDATA[" in source:
        source = _CDATA.sub(lambda found: found[1].replace("&", "&amp;").replace("<", "&lt;"), source)
    return _CLOSED.sub(opened_and_closed, source)


def _names(names: list[str]) -> str:
    shown = ", ".join("".join(c if c.isprintable() else "?" for c in name[:100]) for name in names[:5])
    return shown + (", ..." if len(names) > 5 else "")
