"""One part of a Word document (its body, a header, the notes) as lines of text, read as a stream of XML events.

It reads as Word shows it with all changes accepted and without hidden text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jambacli.documents.extract import formula
from jambacli.documents.extract.docx_drawings import chart_lines, diagram_lines
from jambacli.documents.extract.docx_fields import Control, Field
from jambacli.documents.extract.docx_paragraphs import Paragraphs
from jambacli.documents.extract.docx_state import Context, Frame, Paragraph, Table
from jambacli.documents.extract.docx_styles import on
from jambacli.documents.extract.ooxml import attribute
from jambacli.documents.extract.rows import Cell, Line

_EVENTS = 100_000
#: Content that is not there once all changes are accepted, and records of former properties.
_DELETED = frozenset(("w:del", "w:moveFrom"))
_FORMER_NAMES = "pPr rPr sectPr tblPr tblPrEx tblGrid tcPr trPr numbering"
_FORMER = frozenset(f"w:{name}Change" for name in _FORMER_NAMES.split())


class Story(Paragraphs):
    """Reads one part.

    ``sections``: for each section the index of the line after its last, the headers and footers it names by (header or footer,
    kind), and whether its first page has its own. ``notes``: the texts of a part of notes, by kind and number.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.sections: list[tuple[int, dict[tuple[str, str], str], bool]] = []
        self.notes: dict[str, str] = {}
        self._dropped = 0
        self._alternatives: list[list[int]] = []
        self._controls: list[Control] = []
        self._ruby: list[tuple[int, str]] = []
        self._section: tuple[dict[tuple[str, str], str], list[bool]] = ({}, [])

    def read(self, part: str) -> list[Line]:
        """The lines of a part."""
        for count, (event, tag, element) in enumerate(self.context.package.events(part)):
            if count % _EVENTS == 0:
                self.context.alive()
            if event == "start":
                self._path.append(tag)
                if self._dropped or self._drops(tag):
                    self._dropped += 1
                elif (start := _STARTS.get(tag)) is not None:
                    start(self, element)
                elif tag.startswith("m:"):
                    self._formula.append((tag[2:], []))
                continue
            self._path.pop()
            if self._dropped:
                self._dropped -= 1
            elif (end := _ENDS.get(tag)) is not None:
                end(self, element)
            elif tag.startswith("m:"):
                self._end_formula(element)
        self._end_frame()
        return self._frame.lines

    # What is left out

    def _drops(self, tag: str) -> bool:
        if tag in _FORMER:
            return True
        if tag in (
            "mc:Choice",
            "mc:Fallback",
        ):  # the same content for different programs: take the first that says anything
            before = self._alternatives[-1][0] if self._alternatives else self._said
            return before != self._said
        if tag in _DELETED and not self._above("w:rPr", "w:trPr", "w:numPr"):
            self.context.left.deletions += 1
            self._frame.paragraph.lost = True
            return True
        table = self._frame.tables[-1] if self._frame.tables else None
        return bool(table and table.cell_deleted and tag == "w:p")

    def _above(self, *tags: str) -> bool:
        return len(self._path) > 1 and self._path[-2] in tags

    # Frames: text boxes and notes

    def _start_frame(self, element: Any) -> None:
        self._frames.append(self._frame)
        self._frame = Frame()

    def _end_frame(self) -> None:
        frame = self._frame
        if frame.fields and frame.fields[0].lost:  # a field that does not end: better its code than a lost text
            frame.words += frame.fields[0].lost
        frame.fields = []
        if frame.words or frame.boxes:
            frame.paragraph = Paragraph()
            self._end_paragraph(None)
        while frame.tables:  # cells outside of a table
            self._end_cell(None)
            self._end_row(None)
            self._end_table(None)

    def _end_box(self, element: Any) -> None:
        self._end_frame()
        frame, self._frame = self._frame, self._frames.pop()
        hidden = self._frame.runs and self._frame.runs[-1].hidden
        lines = [line.text for line in frame.lines if line.text.strip()]
        if hidden:
            self.context.left.hidden_words += sum(len(line.split()) for line in lines)
        else:
            self._box(lines)

    def _end_note(self, element: Any) -> None:
        self._end_frame()
        frame, self._frame = self._frame, self._frames.pop()
        text = " ".join(" ".join(line.text.split()) for line in frame.lines if line.text.strip())
        kind, author = self._tag(element), attribute(element, "w:author")
        if text and kind == "comment":
            text = f"Comment by {author}: {text}" if author else f"Comment: {text}"
        if text:
            self.notes[f"{kind}{attribute(element, 'w:id')}"] = text

    # Tables

    def _start_table(self, element: Any) -> None:
        if self._frame.words:  # the mark of the paragraph before is deleted
            self._frame.paragraph = Paragraph()
            self._end_paragraph(element)
        self._frame.tables.append(Table())

    def _end_table(self, element: Any) -> None:
        frame = self._frame
        if frame.tables:
            frame.tables.pop()
        if not frame.tables:
            frame.lines += frame.after
            frame.after = []

    def _start_row(self, element: Any) -> None:
        table = self._table()
        table.cells, table.row_deleted = [], False

    def _end_row(self, element: Any) -> None:
        frame, table = self._frame, self._table()
        lines = [] if table.row_deleted else list(table.rows.lines(table.cells))
        table.cells = []
        outer = frame.tables[-2].cell if len(frame.tables) > 1 else None
        (outer.lines if outer else frame.lines).extend(lines)
        if len(frame.tables) == 1:
            frame.lines += frame.after
            frame.after = []
            if not self._frames:
                self._place, self._number = -1, self._number + 1

    def _start_cell(self, element: Any) -> None:
        table = self._table()
        table.cell, table.cell_deleted = Cell(), False

    def _end_cell(self, element: Any) -> None:
        frame, table = self._frame, self._table()
        if frame.words:  # the mark of the last paragraph is deleted
            frame.paragraph = Paragraph()
            self._end_paragraph(element)
        if table.cell is not None:
            if not table.cell_deleted:
                table.cells.append(table.cell)
            table.cell = None

    def _table(self) -> Table:
        if not self._frame.tables:
            self._frame.tables.append(Table())
        return self._frame.tables[-1]

    def _table_property(self, element: Any) -> None:
        tag, value, table = self._tag(element), attribute(element, "w:val"), self._table()
        if tag == "gridSpan" and table.cell is not None and (value or "").isdecimal():
            table.cell.columns = max(1, int(value or "1") if len(value or "") < 5 else 1)
        elif tag == "gridBefore" and (value or "").isdecimal() and len(value or "") < 3:
            table.cells += [Cell() for _ in range(int(value or "0"))]
        elif tag == "cellDel":
            table.cell_deleted = True
            self.context.left.deletions += 1

    def _deleted_mark(self, element: Any) -> None:
        """w:del or w:moveFrom as a property: of a row, or of a paragraph's mark."""
        if self._path[-1] == "w:trPr":
            self._table().row_deleted = True
            self.context.left.deletions += 1
        else:
            self._run_property(element)

    # Fields and content controls

    def _field_char(self, element: Any) -> None:
        kind, fields = attribute(element, "w:fldCharType"), self._frame.fields
        if kind == "begin":
            fields.append(Field(start=len(self._frame.words)))
        elif fields and kind == "separate":
            fields[-1].in_code = False

    def _end_field_char(self, element: Any) -> None:
        frame = self._frame
        if attribute(element, "w:fldCharType") != "end" or not frame.fields:
            return
        done = frame.fields.pop()
        if not "".join(frame.words[done.start :]).strip():
            if text := done.value():
                self.say(text)
            self.context.left.numbers += done.is_number
        if done.lost and done.in_code and not frame.fields and not done.code:
            self.say("".join(done.lost))  # no field at all

    def _field_part(self, element: Any) -> None:
        if self._frame.fields:
            self._frame.fields[-1].add(self._tag(element), attribute(element, "w:val"), element.text)

    def _start_control(self, element: Any) -> None:
        frame = self._frame
        self._controls.append(Control(self._said, len(frame.words), len(frame.lines)))

    def _control_part(self, element: Any) -> None:
        if self._controls and "w:sdtPr" in self._path[-3:]:
            self._controls[-1].add(self._tag(element), element)

    def _end_control(self, element: Any) -> None:
        control = self._controls.pop() if self._controls else None
        if control is not None and control.said == self._said and (text := control.value()):
            self.say(text)
            if self._path[-1:] != ["w:p"] and "w:p" not in self._path:
                self._end_paragraph(element)

    # Formulas

    def _end_formula(self, element: Any) -> None:
        if not self._formula:
            return
        tag, children = self._formula.pop()
        value = attribute(element, "m:val")
        text = value if value is not None else formula.element(tag, children)
        if tag == "nor" and not value:
            text = "1"
        if self._formula:
            self._formula[-1][1].append((tag, text))
        elif text:
            self.say(formula.spaced(text))

    def _formula_text(self, element: Any) -> None:
        self._formula.pop()
        self.say(element.text or "")

    def _formula_break(self, element: Any) -> None:
        self.say(" ")

    # Drawings

    def _alternative(self, element: Any) -> None:
        self._alternatives.append([self._said])

    def _end_alternative(self, element: Any) -> None:
        if self._alternatives:
            self._alternatives.pop()

    def _drawing(self, element: Any) -> None:
        words = " ".join((element.get("descr") or "").split())
        if words:
            self.say(f" [{words}] ")

    def _picture(self, element: Any) -> None:
        self._said += 1
        self.context.left.pictures += 1

    def _shape(self, element: Any) -> None:
        words = " ".join((element.get("alt") or "").split())
        if words:
            self.say(f" [{words}] ")

    def _word_art(self, element: Any) -> None:
        self._box([" ".join((element.get("string") or "").split())] if (element.get("string") or "").strip() else [])

    def _object(self, element: Any) -> None:
        self._said += 1
        self.context.left.objects += 1

    def _file(self, element: Any) -> None:
        self._said += 1
        self.context.left.files += 1

    def _graphic(self, element: Any) -> None:
        """A chart or a SmartArt drawing."""
        is_chart = self._tag(element) == "chart"
        part = self.context.package.target(attribute(element, "r:id" if is_chart else "r:dm"))
        known = self.context.graphics
        if part and part not in known:
            known[part] = (chart_lines if is_chart else diagram_lines)(self.context.package.tree(part))
        lines = known[part] if part else []
        if lines:
            self._box(lines)
        else:
            self._object(element)

    # Sections

    def _section_part(self, element: Any) -> None:
        found, first = self._section
        tag = self._tag(element)
        if tag == "titlePg":
            first.append(on(attribute(element, "w:val")))
        else:
            kind = attribute(element, "w:type") or "default"
            found[(tag.removesuffix("Reference"), kind)] = attribute(element, "r:id") or ""

    def _end_section(self, element: Any) -> None:
        found, first = self._section
        # A paragraph that holds a section's properties is the last of the section.
        last = len(self._frame.lines) + ("w:p" in self._path)
        self.sections.append((last, found, any(first)))
        self._section = ({}, [])

    def _ruby_text(self, element: Any) -> None:
        self._ruby.append((len(self._frame.words), ""))

    def _end_ruby_text(self, element: Any) -> None:
        start = self._ruby.pop()[0] if self._ruby else len(self._frame.words)
        text = "".join(self._frame.words[start:])
        del self._frame.words[start:]
        self._ruby.append((start, text))

    def _end_ruby(self, element: Any) -> None:
        if self._ruby and (text := self._ruby.pop()[1].strip()):
            self._frame.words.append(f"({text})")


_Handler = Callable[[Story, Any], None]


def _handlers(table: dict[_Handler, str]) -> dict[str, _Handler]:
    return {tag: handler for handler, tags in table.items() for tag in tags.split()}


_STARTS = _handlers(
    {
        Story._start_paragraph: "w:p",
        Story._start_run: "w:r",
        Story._start_table: "w:tbl",
        Story._start_row: "w:tr",
        Story._start_cell: "w:tc",
        Story._start_frame: "w:txbxContent w:footnote w:endnote w:comment",
        Story._field_char: "w:fldChar",
        Story._start_control: "w:sdt",
        Story._alternative: "mc:AlternateContent",
        Story._page_break: "w:lastRenderedPageBreak",
        Story._break: "w:br",
        Story._drawing: "wp:docPr",
        Story._word_art: "v:textpath",
        Story._shape: "v:shape",
        Story._ruby_text: "w:rt",
    }
)
_ENDS = _handlers(
    {
        Story._end_paragraph: "w:p",
        Story._end_run: "w:r",
        Story._end_table: "w:tbl",
        Story._end_row: "w:tr",
        Story._end_cell: "w:tc",
        Story._end_box: "w:txbxContent",
        Story._end_note: "w:footnote w:endnote w:comment",
        Story._text: "w:t",
        Story._tab: "w:tab w:ptab",
        Story._symbol: "w:sym",
        Story._note: "w:footnoteReference w:endnoteReference w:commentReference",
        Story._run_property: "w:vanish w:specVanish w:rStyle w:rFonts w:vertAlign w:strike w:dstrike",
        Story._paragraph_property: "w:pStyle w:numId w:ilvl",
        Story._deleted_mark: "w:del w:moveFrom",
        Story._table_property: "w:gridSpan w:gridBefore w:cellDel",
        Story._end_field_char: "w:fldChar",
        Story._field_part: "w:instrText w:checked w:default w:result w:listEntry w:checkBox w:ddList w:textInput",
        Story._end_control: "w:sdt",
        Story._control_part: "w14:checked w14:checkbox w:listItem w:dropDownList w:comboBox w:date",
        Story._end_alternative: "mc:AlternateContent",
        Story._picture: "pic:pic v:imagedata",
        Story._object: "o:OLEObject w:control",
        Story._file: "w:altChunk w:subDoc",
        Story._graphic: "c:chart cx:chart dgm:relIds",
        Story._section_part: "w:headerReference w:footerReference w:titlePg",
        Story._end_section: "w:sectPr",
        Story._end_ruby_text: "w:rt",
        Story._end_ruby: "w:ruby",
        Story._formula_text: "m:t",
    }
)


def _character(text: str) -> _Handler:
    return lambda story, element: story.say(text)


_ENDS |= {"w:cr": _character("\n"), "w:noBreakHyphen": _character("-")}
