"""Text of an OpenDocument text (.odt, .ott, .fodt) by page or paragraph, as LibreOffice shows it with all changes accepted,
read as a stream in bounded memory.

Its pages are those of the last time it was saved (``text:soft-page-break``); a file without them is numbered by paragraphs.
Headers and footers are read once, notes and comments where they are referred to. Remarks say what was left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from jambacli.documents.extract.odf_package import opened
from jambacli.documents.extract.odt_state import Context, Left
from jambacli.documents.extract.odt_story import Story
from jambacli.documents.extract.pieces import DocumentPart, parts_of_lines
from jambacli.documents.extract.rows import Line
from jambacli.units import counted

_MOST_FOLLOWING = 5


def odt_pieces(
    path: str, name: str, alive: Callable[[], None] = lambda: None
) -> tuple[str, Iterator[DocumentPart], list[str]]:
    """The unit ("page" or "paragraph"), the pieces and remarks.

    ``alive`` is called now and then, since nothing is returned before the whole document is read. Raises BadFileError naming
    ``name`` when it is not a valid OpenDocument text.
    """
    with opened(path, name) as package:
        context = Context(package, name, alive=alive)
        if package.flat:
            story = Story(context)
            lines = story.read(package.tokens())
        else:
            if package.has("styles.xml"):
                Story(context, "styles.xml").read(package.tokens("styles.xml"))
                context.styles = context.styles.for_part()
            story = Story(context, "content.xml")
            lines = story.read(package.tokens("content.xml"))
    _add_headers(lines, story, context)
    remarks = said_remarks(context.left)
    places = [(*story.places[line.at], line.text) if story.places else (1, 1, line.text) for line in lines]
    if story.paged:
        return "page", pages((page, text) for page, _, text in places), remarks
    return "paragraph", parts_of_lines((number, text) for _, number, text in places), remarks


def _add_headers(lines: list[Line], story: Story, context: Context) -> None:
    """Insert every header where the page style that has it begins, and every footer where that page style ends."""
    begun = story.masters
    if not begun or begun[0][0] > 0:
        first = next(
            (name for name in ("Standard", "Default") if name in context.masters), next(iter(context.masters), "")
        )
        begun = [(0, first), *begun]
    inserted: list[tuple[int, list[Line]]] = []
    seen: set[tuple[str, str]] = set()
    if not story.places:
        story.places.append((1, 1))
    for i, (begin, first) in enumerate(begun):
        name = first
        end = begun[i + 1][0] if i + 1 < len(begun) else len(lines)
        for _ in range(_MOST_FOLLOWING):
            master = context.masters.get(name)
            if master is None:
                break
            for what, index, groups in (("Header", begin, master.headers), ("Footer", end, master.footers)):
                near = lines[min(max(0, index - (what == "Footer")), len(lines) - 1)].at if lines else 0
                texts = [text for group in groups for text in group if (what, text) not in seen]
                seen |= {(what, text) for text in texts}
                inserted.append((index, [Line(near, f"{what}: {text}") for text in dict.fromkeys(texts)]))
            name = master.then if master.then != name else ""
    inserted.sort(key=lambda i: i[0])
    for index, added in inserted[::-1]:
        lines[index:index] = added


def pages(lines: Iterable[tuple[int, str]]) -> Iterator[DocumentPart]:
    """Lines by page."""
    held: dict[int, list[str]] = {}
    for page, text in lines:
        held.setdefault(page, []).append(text)
    for page, texts in held.items():
        if text := "\n".join(texts).strip():
            yield DocumentPart(text, page, page)


def said_remarks(left: Left) -> list[str]:
    """What was left out, in words."""

    def said(number: int, noun: str, what: str) -> str:
        return f"{counted(number, noun)} {'was' if number == 1 else 'were'} {what}"

    remarks = []
    if left.deletions:
        remarks.append(said(left.deletions, "tracked deletion", "left out: it is read with all changes accepted"))
    if left.hidden_words:
        remarks.append(said(left.hidden_words, "hidden word", "left out"))
    if left.pictures:
        remarks.append(said(left.pictures, "picture", "left out; text in them is not read"))
    if left.objects:
        remarks.append(said(left.objects, "embedded object", "left out"))
    if left.rows:
        remarks.append(said(left.rows, "repeated row", "left out"))
    if left.symbols:
        remarks.append(said(left.symbols, "symbol", "read as U+FFFD (an unknown font)"))
    return remarks
