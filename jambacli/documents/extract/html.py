"""Text of an HTML page as a browser shows it, in lines with the line numbers of the source.

Text that a browser does not show is left out, and a remark says how much. Scripts do not run: a page is read as it was saved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from jambacli.documents.extract import formula
from jambacli.documents.extract.html_encoding import page_text
from jambacli.documents.extract.html_hidden import CODE, NOTHING, Styles
from jambacli.documents.extract.html_lists import List
from jambacli.documents.extract.html_tokens import Token, tokens
from jambacli.documents.extract.html_tree import VOID, Element, Tree
from jambacli.documents.extract.inline import struck, subscript, superscript
from jambacli.documents.extract.rows import Cell, Line, Rows
from jambacli.errors import BadFileError
from jambacli.units import counted

_BLOCK_NAMES = """address article aside blockquote body br caption center dd details dialog dir div dl dt fieldset figcaption
    figure footer form frameset h1 h2 h3 h4 h5 h6 header hgroup hr html legend li listing main menu nav ol optgroup option p
    plaintext pre search section select summary table tbody textarea text tfoot thead title tr ul xmp foreignobject"""
_BLOCK = frozenset(_BLOCK_NAMES.split())
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_PRE = frozenset(("pre", "textarea", "listing", "plaintext", "xmp"))
# Of a drawing or a formula, these contain the text that is shown.
_SVG_TEXT, _MATH_NOTES = frozenset(("text", "foreignobject")), frozenset(("annotation", "annotation-xml"))
_SHIFTED: dict[str, Callable[[str], str]] = {
    "sup": superscript,
    "sub": subscript,
    "rt": lambda text: f"({text.strip()})",
    "q": lambda text: f"“{text}”",
    **dict.fromkeys(("s", "strike", "del"), struck),
}


_SOFT_HYPHEN = "\xad"
_LAYOUT_NAMES = "math mrow mfrac msup msub msubsup msqrt mroot mover munder munderover mtable mtr mtd"
_LAYOUTS = frozenset(_LAYOUT_NAMES.split())
_CONTAINERS = frozenset(("table", "tr", "td", "th", "ul", "ol", "menu", "dir"))
_SPOKEN = frozenset(("img", "input", "optgroup", "button", "option", "tspan"))
#: Types and roles of links to notes, which style sheets raise: "a heron¹", not "a heron1".
_NOTE_LINKS = frozenset(("noteref", "doc-noteref"))
#: Elements that are more than a stretch of text.
_NOTABLE = _BLOCK | CODE | _SPOKEN | _CONTAINERS | _PRE | _SVG_TEXT | _MATH_NOTES | frozenset(("svg", "math"))


def html_lines(data: bytes, name: str) -> tuple[Iterator[tuple[int, str]], list[str]]:
    """The text as (line in the source, text) for each block, with the cells of a row joined by bars; and a list, complete after
    the last line, of what was left out or guessed. Raises BadFileError when the page is empty or binary, or shows no text."""
    source, remark = page_text(data, name)
    remarks = [remark] if remark else []
    return _lines(_Walk(source), remarks, name), remarks


def _lines(walk: _Walk, remarks: list[str], name: str) -> Iterator[tuple[int, str]]:
    empty = True
    for line in walk.run():
        empty = False
        yield line.at, line.text
    hidden = counted(walk.hidden_words, "word") + " that a browser does not show"
    if empty and walk.hidden_words:
        raise BadFileError(name, f"contains no text that a browser shows (only {hidden})")
    if walk.hidden_words:
        remarks.append(f"{hidden} {'was' if walk.hidden_words == 1 else 'were'} left out (hidden text)")
    if walk.frames:
        verb = "was" if walk.frames == 1 else "were"
        remarks.append(f"{counted(walk.frames, 'embedded page')} (iframe) {verb} left out")
    if walk.lost:
        remarks.append(
            f"its last tag, in line {walk.lost[0]:,}, does not end; {counted(walk.lost[1], 'word')} in it left out"
        )


class _Walk:
    """Tokens -> lines. ``hidden_words``, ``frames``: what was left out; ``lost``: line and words of a tag that does not end."""

    def __init__(self, source: str) -> None:
        self.hidden_words = self.frames = 0
        self.lost: tuple[int, int] | None = None
        self._source = source
        self._styles = Styles()
        self._tree = Tree(self._ended)
        self._out: list[Line] = []
        self._sinks: list[list[Line]] = [self._out]
        self._tables: list[tuple[Rows, list[Cell]]] = []
        self._lists: list[List] = []
        self._formulas: list[tuple[Element, list[int]]] = []
        self._note_links: list[Element] = []
        self._text: list[str] = []
        self._lead = ""
        self._at = 0
        self._gone = self._code = self._pre = self._foreign = 0
        self._invisible = self._no_size = self._fresh_pre = self._sheet = self._chosen = False
        self._newlines = (0, 1)  # an offset and its line

    def run(self) -> Iterator[Line]:
        """The lines of the page."""
        for token in tokens(self._source):
            if token.kind == "text":
                self._say(token.value, token.at)
            elif token.kind == "start":
                self._start(token)
            elif token.kind == "end":
                self._end(token)
            elif words := _count(token.value):
                self.lost = self._line(token.at), words
            if self._out and len(self._sinks) == 1:
                yield from self._out
                self._out.clear()
        self._tree.end_all()
        self._end_line()
        yield from self._out

    # Tags

    def _start(self, token: Token) -> None:
        tag = token.value
        if tag in ("td", "th", "tr", "tbody", "thead", "tfoot"):
            while (missing := self._tree.needs_table(tag)) is not None:
                self._open(missing, {}, token.at)
        if tag == "image":
            tag = "img"
        element = self._open(tag, token.attributes, token.at)
        if tag in VOID or (token.closed and self._foreign):
            self._tree.close(element)

    def _open(self, tag: str, attributes: dict[str, str], at: int) -> Element:
        """Start an element: what it hides, its line, its marker."""
        element = self._tree.start(tag)
        if self._foreign or tag == "math":
            self._start_formula(tag, element)
        if tag == "a" and not _NOTE_LINKS.isdisjoint(f"{attributes.get('epub:type')} {attributes.get('role')}".split()):
            self._note_links.append(element)
        look = self._styles.look(tag, attributes)
        if look is NOTHING and tag not in _NOTABLE:
            element.restore = (False, self._code, self._invisible, self._no_size, len(self._text))
            return element
        gone = bool(look.gone)
        code = tag in CODE or tag == "svg" or tag in _MATH_NOTES
        self._foreign += tag in ("svg", "math")
        self._sheet = (
            tag == "style" and not self._gone and attributes.get("media", "all").lower() in ("all", "screen", "")
        )
        element.restore = (gone, self._code, self._invisible, self._no_size, len(self._text))
        if gone and tag == "iframe":
            self.frames += not self._gone
            code = True
        self._gone += gone
        self._code += code
        if tag in _SVG_TEXT:
            self._code = 0
        if look.invisible is not None:
            self._invisible = look.invisible
        if look.no_size is not None:
            self._no_size = look.no_size
        if tag in _BLOCK and not self._gone:
            self._end_line()
        if tag in _CONTAINERS:
            self._open_container(tag, attributes, at)
        elif tag in _PRE:
            self._pre += 1
            self._fresh_pre = True
        elif not self._hidden:
            self._mark(tag, attributes, at)
        return element

    def _open_container(self, tag: str, attributes: dict[str, str], at: int) -> None:
        if tag == "table":
            self._tables.append((Rows(layout=attributes.get("role", "") in ("presentation", "none")), []))
        elif tag == "tr":
            self._tables[-1][1].clear()
        elif tag in ("td", "th"):
            self._end_line()
            cell = Cell(_number(attributes, "colspan"), _number(attributes, "rowspan"))
            if not self._gone:
                self._tables[-1][1].append(cell)
            self._sinks.append(cell.lines)
        else:
            self._lists.append(List(tag, attributes, self._source, at))

    def _mark(self, tag: str, attributes: dict[str, str], at: int) -> None:
        """The text that a tag itself stands for."""
        if tag == "li":
            self._lead = self._lists[-1].marker(attributes, len(self._lists)) if self._lists else "- "
        elif tag in _HEADINGS:
            self._lead = "#" * int(tag[1]) + " "
        elif tag in _SPOKEN:
            self._say_control(tag, attributes, at)

    def _say_control(self, tag: str, attributes: dict[str, str], at: int) -> None:
        kind = attributes.get("type", "text").lower()
        if tag == "img" and attributes.get("alt", "").strip():
            self._say(f"[{attributes['alt'].strip()}]", at, mark=True)
        elif tag == "optgroup":
            self._say(attributes.get("label", ""), at, mark=True)
        elif tag == "button" or (tag == "tspan" and "x" in attributes):
            self._say(" ", at)
        elif tag == "option" and "label" in attributes and attributes["label"].strip():
            self._say(attributes["label"] + " ", at, mark=True)
        elif tag == "input" and kind in ("checkbox", "radio"):
            self._say(" ☒ " if "checked" in attributes else " ☐ ", at, mark=True)
        elif tag == "input" and kind not in ("hidden", "password", "file", "image", "color", "range"):
            self._say(f" {attributes.get('value', '')} ", at, mark=True)
        if tag == "option" and "selected" in attributes:
            self._chosen = True

    def _end(self, token: Token) -> None:
        tag = token.value
        if tag in ("br", "p") and not self._tree.end(tag):
            if not self._gone:
                self._end_line()
        elif tag not in ("body", "html", "br", "p"):
            self._tree.end(tag)

    def _ended(self, element: Element) -> None:
        """An element ends: its text is complete."""
        tag = element.tag
        gone, outer_code, invisible, no_size, start = element.restore
        if self._formulas and self._formulas[-1][0] is element:
            self._end_formula(tag)
        if self._note_links and self._note_links[-1] is element:
            self._note_links.pop()
            if not self._hidden and start <= len(self._text):
                self._text[start:] = [superscript("".join(self._text[start:]))]
        if element.tag not in _NOTABLE and tag not in _SHIFTED:
            self._gone -= gone
            self._code, self._invisible, self._no_size = outer_code, invisible, no_size
            return
        if tag in _SHIFTED and not self._hidden and start <= len(self._text):
            self._text[start:] = [_SHIFTED[tag]("".join(self._text[start:]))]
        if self._chosen and tag == "option":
            self._chosen = False
            if "".join(self._text).strip():
                self._text.append(" (selected)")
        if tag == "button" and not self._hidden:
            self._text.append(" ")
        if tag in ("td", "th") or (tag in _BLOCK and not self._gone):
            self._end_line()
        if tag in _PRE:
            self._pre -= 1
        elif tag == "li" or tag in _HEADINGS:
            self._lead = ""  # an empty item
        self._foreign -= tag in ("svg", "math")
        if tag in _CONTAINERS:
            self._close_container(tag)
        self._gone -= gone
        self._code = outer_code
        self._invisible, self._no_size = invisible, no_size

    def _start_formula(self, tag: str, element: Element) -> None:
        """Note where the children of an element of a formula begin."""
        if self._formulas and element.index == self._formulas[-1][0].index + 1:
            self._formulas[-1][1].append(len(self._text))
        if tag in _LAYOUTS:
            self._formulas.append((element, [len(self._text)] if tag in ("math", "mrow", "msqrt", "mtd") else []))

    def _end_formula(self, tag: str) -> None:
        _, starts = self._formulas.pop()
        if self._hidden or not starts or starts[-1] > len(self._text):
            return
        stops = [*starts[1:], len(self._text)]
        parts = ["".join(self._text[a:b]) for a, b in zip(starts, stops, strict=True)]
        self._text[starts[0] :] = [formula.mathml(tag, parts)]

    def _close_container(self, tag: str) -> None:
        if tag == "table":
            self._tables.pop()
        elif tag == "tr":
            rows, cells = self._tables[-1]
            self._sinks[-1].extend(rows.lines(cells))
            cells.clear()
        elif tag in ("td", "th"):
            self._sinks.pop()
        else:
            self._lists.pop()

    # Text

    @property
    def _hidden(self) -> bool:
        return bool(self._gone or self._code or self._invisible or self._no_size)

    def _say(self, text: str, at: int, *, mark: bool = False) -> None:
        """Add a text; ``mark``: one that does not stand in the source as it is."""
        if self._hidden:
            if not self._code:
                self.hidden_words += _count(text)
            elif self._sheet:
                self._styles.add(text)
            return
        fresh, self._fresh_pre = self._fresh_pre, False
        if not self._pre or mark:
            self._add(text, at, mark)
            return
        if fresh and text.startswith("\n"):
            text, at = text[1:], at + 1
        first, *rest = text.split("\n")
        self._add(first, at, mark)
        at += len(first) + 1
        for line in rest:
            self._end_line()
            self._add(line, at, mark)
            at += len(line) + 1

    def _add(self, text: str, at: int, mark: bool) -> None:
        if not self._at and text.strip():
            self._at = self._line(at) + (0 if mark else text[: len(text) - len(text.lstrip())].count("\n"))
        self._text.append(text)

    def _end_line(self) -> None:
        text, self._text = "".join(self._text).replace(_SOFT_HYPHEN, ""), []
        at, self._at = self._at, 0
        if not at:
            return
        lead, self._lead = self._lead, ""
        self._sinks[-1].append(Line(at, lead + (text.rstrip() if self._pre else " ".join(text.split()))))

    def _line(self, at: int) -> int:
        """The line of an offset; offsets come in order, but for a few that lie close behind."""
        before, line = self._newlines
        if at >= before:
            self._newlines = at, line + self._source.count("\n", before, at)
            return self._newlines[1]
        return line - self._source.count("\n", at, before)


def _count(text: str) -> int:
    return len(text.split())


def _number(attributes: dict[str, str], key: str) -> int:
    value = attributes.get(key, "").strip()
    return max(1, min(int(value), 1000)) if value.isdecimal() and len(value) < 6 else 1
