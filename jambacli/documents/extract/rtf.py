"""Text of an RTF document by paragraph, as Word shows it with all changes accepted (Rich Text Format Specification 1.9.1).

Headers and footers are read once, notes and comments where they are referred to. Remarks say what was left out. RTF that holds
a web page, as Outlook writes it, is read as that page.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.documents.extract.rtf_html import encapsulates_html, html_source
from jambacli.documents.extract.rtf_state import RtfLeft
from jambacli.documents.extract.rtf_story import Story
from jambacli.units import counted


def rtf_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit ("paragraph", or "line" of a web page), the pieces and remarks, complete after the last piece.

    ``alive`` is called now and then, since nothing is returned before the whole document is read. Raises BadFileError naming
    ``name`` when there is no text in it.
    """
    with Path(path).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = max(0, data.find(b"{\\rtf", 0, 4096))
        if encapsulates_html(data[start : start + 65536]):
            from jambacli.documents.extract.html import html_lines

            source = html_source(data, start, alive)
            lines, remarks = html_lines(b"\xef\xbb\xbf" + source.encode("utf-8", "replace"), name)
            return "line", parts_of_lines(lines), remarks
        story = Story(name, alive)
        found = story.read(data, start)
    return "paragraph", parts_of_lines((line.at, line.text) for line in found), _remarks(story.left)


def _remarks(left: RtfLeft) -> list[str]:
    def said(number: int, noun: str, what: str) -> str:
        return f"{counted(number, noun)} {'was' if number == 1 else 'were'} {what}"

    remarks = []
    if left.unfinished:
        remarks.append("it ends in the middle (a truncated file?)")
    if left.rest:
        remarks.append(said(left.rest, "word", "left out after the end of the document"))
    if left.deletions:
        remarks.append(said(left.deletions, "tracked deletion", "left out: it is read with all changes accepted"))
    if left.hidden_words:
        remarks.append(said(left.hidden_words, "hidden word", "left out"))
    if left.pictures:
        remarks.append(said(left.pictures, "picture", "left out; text in them is not read"))
    if left.objects:
        remarks.append(said(left.objects, "embedded object", "left out, but for the text shown for it"))
    if left.symbols:
        remarks.append(said(left.symbols, "character", "read as U+FFFD (an unknown font or encoding)"))
    return remarks
