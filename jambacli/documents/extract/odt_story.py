"""Reads a part of an OpenDocument text as a stream: paragraphs, tables, notes, frames, and what is left out."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from jambacli.documents.extract import formula
from jambacli.documents.extract.odt_forms import FieldMark, Forms
from jambacli.documents.extract.odt_state import Context, Drawing, Master
from jambacli.documents.extract.odt_styles import Styles
from jambacli.documents.extract.odt_tables import Tables
from jambacli.documents.extract.rows import Line
from jambacli.documents.extract.xml_tokens import Token

_TOKENS = 100_000
# Objects within objects.
_MOST_DEPTH = 3
_Values = dict[str, str]

#: Elements whose text is not part of the document's: definitions, sources of indices, scripts, data.
_SKIPPED_NAMES = """office:meta office:settings office:scripts office:font-face-decls office:binary-data office:event-listeners
    office:change-info office:dde-source text:script text:sequence-decls text:variable-decls text:user-field-decls
    text:dde-connection-decls text:note-citation text:linenumbering-configuration text:notes-configuration
    text:bibliography-configuration text:insertion text:format-change text:table-of-content-source
    text:illustration-index-source text:table-index-source text:object-index-source text:user-index-source
    text:alphabetical-index-source text:bibliography-source text:alphabetical-index-auto-mark-file table:content-validations
    table:named-expressions table:calculation-settings table:database-ranges table:tracked-changes form:properties dc:date
    meta:date-string meta:creator-initials math:annotation math:annotation-xml style:font-face draw:glue-point
    draw:floating-frame svg:font-face-src"""
_SKIPPED = frozenset(_SKIPPED_NAMES.split())
#: What a frame may hold: the first that can be read is shown, the others are for programs that cannot.
_SHOWN = frozenset(("draw:text-box", "draw:image", "draw:object", "draw:object-ole", "draw:plugin", "draw:applet"))
_SHAPE_NAMES = """custom-shape rect ellipse circle line polyline polygon regular-polygon path connector measure caption
    page-thumbnail"""
_SHAPES = frozenset(f"draw:{name}" for name in _SHAPE_NAMES.split())
_HEADERS = {f"style:{side}{kind}": side for side in ("header", "footer") for kind in ("", "-left", "-first")}
_CAPTURED = frozenset(("svg:title", "svg:desc", "dc:creator", "text:number"))


class Story(Tables):
    """Reads one part."""

    def __init__(self, context: Context, part: str = "", depth: int = 0) -> None:
        super().__init__(context)
        self._part, self._depth, self._embedded = part, depth, depth > 0
        self._skipped = 0
        self._definitions = ""
        self._master = Master()
        self._captured: list[str] | None = None
        self._drawings: list[Drawing] = []
        self._formula: list[tuple[str, list[str]]] = []
        self._marks: list[tuple[FieldMark, int]] = []
        self._outer_styles: list[Styles] = []
        self._forms = Forms(context.controls)

    def read(self, tokens: Iterable[Token]) -> list[Line]:
        """The lines of a part."""
        for count, (kind, value, attributes) in enumerate(tokens):
            if count % _TOKENS == 0:
                self.context.alive()
            if kind == "text":
                self._said_text(value)
            elif kind == "start":
                self._path.append(value)
                if self._skipped or self._skips(value, attributes):
                    self._skipped += 1
                else:
                    self._start(value, attributes)
            else:
                self._path.pop()
                if self._skipped:
                    self._skipped -= 1
                else:
                    self._end(value)
        self._finish_frame()
        return self._frame.lines

    @property
    def formula(self) -> str:
        """The formula that the part is; "" if it is none."""
        return self._frame.formula

    def _said_text(self, text: str) -> None:
        if self._skipped or self._definitions:
            return
        if self._captured is not None:
            self._captured.append(text)
        elif self._formula:
            self._formula[-1][1].append(text)
        else:
            self._raw(text)

    def _start(self, tag: str, values: _Values) -> None:
        if self._definitions:
            self._styles.start(tag, values, self._definitions == "office:automatic-styles")
        elif tag in ("office:styles", "office:automatic-styles"):
            self._definitions = tag
        elif tag in _CAPTURED:
            self._captured = []
        elif tag.startswith("math:"):
            self._formula.append((tag[5:], []))
        elif tag.startswith("form:"):
            self._forms.start(tag, values)
        elif (handler := _STARTS.get(tag)) is not None:
            handler(self, tag, values)
        elif tag.startswith("text:"):
            self._start_field(tag, values)

    def _end(self, tag: str) -> None:
        if self._definitions:
            if tag == self._definitions:
                self._definitions = ""
            else:
                self._styles.end(tag)
        elif tag in _CAPTURED:
            self._end_captured(tag)
        elif tag.startswith("math:"):
            self._end_formula()
        elif tag.startswith("form:"):
            self._forms.end(tag)
        elif (handler := _ENDS.get(tag)) is not None:
            handler(self, tag)
        elif tag.startswith("text:") and tag not in _STARTS:
            self._end_field(tag)

    # What is left out

    def _skips(self, tag: str, values: _Values) -> bool:
        if tag in _SKIPPED:
            return True
        if tag == "text:deletion":
            self.context.left.deletions += 1
            return True
        if tag in _SHOWN and self._path[-2:-1] == ["draw:frame"] and self._drawings:
            return self._drawings[-1].said != self._said
        if tag in _HEADERS:
            return values.get("style:display") == "false"
        if tag == "text:hidden-text":
            if hidden := values.get("text:is-hidden", "true") == "true":
                self.context.left.hidden_words += len(values.get("text:string-value", "").split())
                if self._frame.paragraph is not None:
                    self._frame.paragraph.lost = True
            return hidden
        if tag == "text:hidden-paragraph":
            if values.get("text:is-hidden", "true") == "true" and self._frame.paragraph is not None:
                self._frame.paragraph.hidden = True
            return True
        return False

    # Frames: text boxes, notes, headers

    def _end_box(self, tag: str) -> None:
        self._box([line.text for line in self._leave_frame().lines if line.text.strip()])

    def _end_note(self, tag: str) -> None:
        done = self._leave_frame()
        text = " ".join(" ".join(line.text.split()) for line in done.lines if line.text.strip())
        if tag == "office:annotation" and text:
            text = f"Comment by {done.author}: {text}" if done.author else f"Comment: {text}"
        if text:
            self.say(f" [{text}]")

    def _start_master(self, tag: str, values: _Values) -> None:
        self._master = Master(values.get("style:next-style-name", ""))
        if len(self.context.masters) < 10_000:
            self.context.masters.setdefault(values.get("style:name", ""), self._master)

    def _end_header(self, tag: str) -> None:
        lines = [" ".join(line.text.split()) for line in self._leave_frame().lines if line.text.strip()]
        (self._master.headers if _HEADERS[tag] == "header" else self._master.footers).append(lines)

    def _end_captured(self, tag: str) -> None:
        text, self._captured = " ".join("".join(self._captured or []).split()), None
        if tag == "dc:creator":
            self._frame.author = text
        elif tag == "text:number":
            if self._frame.paragraph is not None and text:
                self._frame.paragraph.number = f"{text} "
        elif self._drawings and tag == "svg:title":
            self._drawings[-1].title = text
        elif self._drawings:
            self._drawings[-1].description = text

    # Formulas and fields of forms

    def _end_formula(self) -> None:
        if not self._formula:
            return
        tag, parts = self._formula.pop()
        if tag == "mfenced":
            text = f"({', '.join(parts)})"
        elif tag == "semantics":
            text = parts[0] if parts else ""
        else:
            text = formula.mathml(tag, [part for part in parts if part.strip()])
        if self._formula:
            self._formula[-1][1].append(text)
        elif self._frame.paragraph is not None:
            self.say(text)
        else:
            self._frame.formula = text

    def _start_mark(self, tag: str, values: _Values) -> None:
        kind = values.get("field:type", "")
        self._marks.append((FieldMark(kind), self._said))

    def _mark_param(self, tag: str, values: _Values) -> None:
        if self._marks:
            self._marks[-1][0].add(values.get("field:name", ""), values.get("field:value", ""))

    def _end_mark(self, tag: str) -> None:
        if self._marks:
            mark, said = self._marks.pop()
            if said == self._said and (text := mark.shown()):
                self.say(text)

    def _control(self, tag: str, values: _Values) -> None:
        text = self.context.controls.get(values.get("draw:control", ""), "")
        if text and self._frame.paragraph is not None:
            self.say(f" {text} ")
        elif text:
            self._box([text])

    def _ruby(self, tag: str, values: _Values) -> None:
        self._frame.spans.append((len(self._frame.words), self._styles.look("text", "")))

    def _end_ruby(self, tag: str) -> None:
        if self._frame.spans:
            start, _ = self._frame.spans.pop()
            if text := "".join(self._frame.words[start:]).strip():
                self._frame.words[start:] = [f"({text})"]

    # Drawings

    def _start_drawing(self, tag: str, values: _Values) -> None:
        self._drawings.append(Drawing(self._said))

    def _start_shape(self, tag: str, values: _Values) -> None:
        self._drawings.append(Drawing(self._said, alone=True))
        self._start_frame(tag, values)

    def _end_shape(self, tag: str) -> None:
        self._end_box(tag)
        drawing = self._drawings.pop() if self._drawings else Drawing(0)
        if drawing.said == self._said:
            self._alternative(drawing)

    def _end_drawing(self, tag: str) -> None:
        drawing = self._drawings.pop() if self._drawings else Drawing(0)
        if drawing.alone:
            self._alternative(drawing)

    def _alternative(self, drawing: Drawing) -> None:
        if words := drawing.description or drawing.title:
            if self._frame.paragraph is not None:
                self.say(f" [{words}] ")
            else:
                self._box([f"[{words}]"])

    def _image(self, tag: str, values: _Values) -> None:
        self._said += 1
        self.context.left.pictures += 1
        if self._drawings:
            self._drawings[-1].alone = True

    def _unread(self) -> None:
        self._said += 1
        self.context.left.objects += 1
        if self._drawings:
            self._drawings[-1].alone = True

    def _ole(self, tag: str, values: _Values) -> None:
        self._unread()

    def _start_object(self, tag: str, values: _Values) -> None:
        """A formula, a chart, or another document: a part of its own, or within this element."""
        self._start_frame(tag, values)
        self._outer_styles.append(self._styles)
        self._styles = Styles()
        part = self.context.package.target(self._part, values.get("xlink:href", ""))
        if part and part not in self.context.read_objects and self._depth < _MOST_DEPTH:
            self.context.read_objects.add(part)
            inner_context, story = self.context, Story(self.context, part, self._depth + 1)
            story._styles = Styles()
            self._frame.lines = story.read(inner_context.package.tokens(part))
            self._frame.formula = story.formula

    def _end_object(self, tag: str) -> None:
        if self._outer_styles:
            self._styles = self._outer_styles.pop()
        done = self._leave_frame()
        lines = [line.text for line in done.lines if line.text.strip()]
        if done.formula and self._frame.paragraph is not None:
            self.say(done.formula)
        elif done.formula or lines:
            self._box([done.formula] if done.formula else lines)
        else:
            self._unread()

    def _chart(self, tag: str, values: _Values) -> None:
        self._box(["[Chart]"])


_Start = Callable[[Story, str, _Values], None]
_End = Callable[[Story, str], None]
_STARTS: dict[str, _Start] = {
    tag: handler
    for handler, tags in {
        Story._start_paragraph: "text:p text:h",
        Story._start_span: "text:span",
        Story._start_list: "text:list",
        Story._start_item: "text:list-item text:list-header",
        Story._soft_break: "text:soft-page-break",
        Story._spaces: "text:s",
        Story._tab: "text:tab",
        Story._line_break: "text:line-break",
        Story._start_section: "text:section",
        Story._start_frame: f"text:note-body office:annotation draw:text-box {' '.join(_HEADERS)}",
        Story._start_master: "style:master-page",
        Story._start_table: "table:table",
        Story._start_row: "table:table-row",
        Story._start_cell: "table:table-cell table:covered-table-cell",
        Story._start_mark: "field:fieldmark field:fieldmark-start",
        Story._mark_param: "field:param",
        Story._control: "draw:control",
        Story._ruby: "text:ruby-text",
        Story._start_drawing: "draw:frame",
        Story._start_shape: " ".join(_SHAPES),
        Story._image: "draw:image",
        Story._ole: "draw:object-ole draw:plugin draw:applet",
        Story._start_object: "draw:object",
        Story._chart: "chart:chart",
    }.items()
    for tag in tags.split()
}
_ENDS: dict[str, _End] = {
    tag: handler
    for handler, tags in {
        Story._end_paragraph: "text:p text:h",
        Story._end_span: "text:span",
        Story._end_list: "text:list",
        Story._end_item: "text:list-item text:list-header",
        Story._end_field: "text:section",
        Story._end_box: "draw:text-box",
        Story._end_note: "text:note-body office:annotation",
        Story._end_header: " ".join(_HEADERS),
        Story._end_table: "table:table",
        Story._end_row: "table:table-row",
        Story._end_cell: "table:table-cell table:covered-table-cell",
        Story._end_mark: "field:fieldmark field:fieldmark-end",
        Story._end_ruby: "text:ruby-text",
        Story._end_drawing: "draw:frame",
        Story._end_shape: " ".join(_SHAPES),
        Story._end_object: "draw:object",
    }.items()
    for tag in tags.split()
}
