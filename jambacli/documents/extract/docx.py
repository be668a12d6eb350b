"""Text of a Word document by page or paragraph, as Word shows it with all changes accepted, read as a stream in bounded memory.

Its pages are those of the last time Word saved it (``lastRenderedPageBreak``) and hard page breaks; a file without either is
numbered by paragraphs. Headers and footers are read once, notes and comments where they are referred to. Remarks say what was
left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from jambacli.documents.extract.docx_numbering import Numbering
from jambacli.documents.extract.docx_state import Context, Left
from jambacli.documents.extract.docx_story import Story
from jambacli.documents.extract.docx_styles import Styles, on
from jambacli.documents.extract.ooxml import Package, attribute, opened, short_name
from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.documents.extract.rows import Line
from jambacli.units import counted

_NOTES = {"footnotes": "footnotes.xml", "endnotes": "endnotes.xml", "comments": "comments.xml"}


def docx_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit ("page" or "paragraph"), the pieces and remarks.

    ``alive`` is called now and then, since nothing is returned before the whole document is read. Raises BadFileError naming
    ``name`` when it is not a valid .docx.
    """
    with opened(path, name) as package:
        context = _context(package, name, alive)
        story = Story(context)
        lines = story.read(package.main)
        _add_headers(lines, story, context)
        lines += [
            Line(len(story.places) - 1, f"[{note}]") for key, note in context.notes.items() if note and key[0] == "c"
        ]
    places = [(*story.places[line.at], line.text) if story.places else (1, 1, line.text) for line in lines]
    remarks = _remarks(context.left)
    if any(page > 1 for page, _, _ in places):
        return "page", _pages((page, text) for page, _, text in places), remarks
    return "paragraph", parts_of_lines((number, text) for _, number, text in places), remarks


def _context(package: Package, name: str, alive: Callable[[], None]) -> Context:
    context = Context(package, name, alive=alive)
    if (part := package.related("styles", "styles.xml")) is not None:
        context.styles = Styles(package.tree(part))
    if (part := package.related("numbering", "numbering.xml")) is not None:
        context.numbering = Numbering(package.tree(part))
    for kind, usual in _NOTES.items():
        if (part := package.related(kind, usual)) is not None:
            notes = Story(context)
            notes.read(part)
            context.notes |= notes.notes
    return context


def _add_headers(lines: list[Line], story: Story, context: Context) -> None:
    """Insert every header at the beginning of the first section that shows it, and every footer at its end."""
    even = False
    if (part := context.package.related("settings", "settings.xml")) is not None:
        found = (e for e in context.package.tree(part) if short_name(e.tag) == "w:evenAndOddHeaders")
        even = any(on(attribute(e, "w:val")) for e in found)
    inserted: list[tuple[int, list[Line]]] = []
    seen: set[tuple[str, str]] = set()
    known: set[tuple[str, str]] = set()
    begin = 0
    for last, references, first in story.sections:
        end = min(last, len(lines))
        for (what, kind), identifier in sorted(references.items(), key=lambda r: r[0][1] != "first"):
            if (kind == "first" and not first) or (kind == "even" and not even):
                continue
            if (target := context.package.target(identifier)) is None or (what, target) in known:
                continue
            known.add((what, target))
            texts = [" ".join(line.text.split()) for line in Story(context).read(target) if line.text.strip()]
            index = begin if what == "header" else end
            near = (
                lines[min(index, len(lines) - 1)].at if lines and what == "header" else lines[end - 1].at if end else 0
            )
            new = [t for t in texts if (what, t) not in seen]
            seen |= {(what, t) for t in texts}
            inserted.append((index, [Line(near, f"{what.capitalize()}: {text}") for text in new]))
        begin = end
    if not story.places:
        story.places.append((1, 1))
    inserted.sort(key=lambda i: i[0])
    for index, added in inserted[::-1]:
        lines[index:index] = added


def _pages(lines: Iterable[tuple[int, str]]) -> Iterator[DocumentPart]:
    pages: dict[int, list[str]] = {}
    for page, text in lines:
        pages.setdefault(page, []).append(text)
    for page, texts in pages.items():
        if text := "\n".join(texts).strip():
            yield DocumentPart(text, page, page)


def _remarks(left: Left) -> list[str]:
    def said(number: int, noun: str, what: str) -> str:
        return f"{counted(number, noun)} {'was' if number == 1 else 'were'} {what}"

    remarks = []
    if left.deletions:
        remarks.append(said(left.deletions, "tracked deletion", "left out: it is read with all changes accepted"))
    if left.hidden_words:
        remarks.append(said(left.hidden_words, "hidden word", "left out"))
    if left.pictures:
        remarks.append(said(left.pictures, "picture", "left out; text in pictures is not read"))
    if left.objects:
        remarks.append(said(left.objects, "embedded object", "left out"))
    if left.files:
        remarks.append(
            said(left.files, "embedded document", "left out; open and save the file in Word to include them")
        )
    if left.numbers:
        remarks.append(said(left.numbers, "automatic number", "left out (fields such as LISTNUM)"))
    if left.symbols:
        remarks.append(said(left.symbols, "symbol", "read as U+FFFD (an unknown font)"))
    return remarks
