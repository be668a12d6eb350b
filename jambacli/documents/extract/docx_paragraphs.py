"""Paragraphs of a Word document: runs of text, their properties, breaks, and the lines that come of them."""

from __future__ import annotations

from typing import Any

from jambacli.documents.extract import formula
from jambacli.documents.extract.docx_state import Context, Frame, Paragraph, Run
from jambacli.documents.extract.docx_styles import on
from jambacli.documents.extract.docx_symbols import PRIVATE, UNKNOWN, is_symbol_font, symbol
from jambacli.documents.extract.inline import struck, subscript, superscript
from jambacli.documents.extract.ooxml import attribute
from jambacli.documents.extract.paragraph_lines import lines_of
from jambacli.documents.extract.pieces import MAX_TEXT
from jambacli.documents.extract.rows import Line
from jambacli.errors import BadFileError


class Paragraphs:
    """Collects text. ``places``: (page, number of the paragraph, from 1); lines hold indices into it."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.places: list[tuple[int, int]] = []
        self._page, self._hard_break = 1, False
        self._number, self._place = 1, -1
        self._frame = Frame()
        self._frames: list[Frame] = []
        self._path: list[str] = []
        self._said = 0
        self._formula: list[tuple[str, list[formula.Child]]] = []

    # Text

    def say(self, text: str) -> None:
        """Add text to the paragraph, where it is not hidden."""
        self._said += 1
        frame = self._frame
        if frame.runs and frame.runs[-1].hidden:
            self.context.left.hidden_words += len(text.split())
            frame.paragraph.lost = True
            return
        if frame.fields and any(f.in_code for f in frame.fields):
            frame.fields[0].lost.append(text)
            return
        if self._formula:
            self._formula[-1][1].append(("t", text))
            return
        if self._place < 0 and text.strip():
            self._new_place()
        self._hard_break = self._hard_break and not text.strip()
        self.context.chars += len(text)
        if self.context.chars > MAX_TEXT:
            raise BadFileError(self.context.name, f"contains more than {MAX_TEXT >> 20} MB of text; split it")
        frame.words.append(text)

    def _text(self, element: Any) -> None:
        text = (element.text or "").replace("\xad", "")
        font = self._frame.runs[-1].font if self._frame.runs else ""
        if is_symbol_font(font):
            text = "".join(symbol(font, ord(c)) for c in text)
        elif PRIVATE.search(text):
            text = PRIVATE.sub(lambda c: symbol(font, ord(c[0])), text)
        self.context.left.symbols += text.count(UNKNOWN)
        if self._formula and self._path and self._path[-1].startswith("m:"):
            text = text.replace("-", formula.HYPHEN)
        self.say(text)

    def _box(self, lines: list[str]) -> None:
        """Lines of their own, at this place of the paragraph."""
        if lines:
            self._said += 1
            if self._place < 0:
                self._new_place()
            self._frame.boxes.append((len(self._frame.words), lines))

    def _new_place(self) -> int:
        self.places.append((self._page, self._number))
        self._place = len(self.places) - 1
        return self._place

    # Paragraphs and runs

    def _start_paragraph(self, element: Any) -> None:
        merged = self._frame.paragraph if self._frame.paragraph.merged else None
        self._frame.paragraph = Paragraph(lost=bool(merged))

    def _end_paragraph(self, element: Any) -> None:
        frame, paragraph = self._frame, self._frame.paragraph
        if paragraph.merged:  # its mark is deleted: the next paragraph continues it
            return
        text = "".join(frame.words).strip()
        if text or not (paragraph.lost or paragraph.mark_hidden):
            label = self._label(paragraph)
            if paragraph.mark_hidden:  # a style separator: the next paragraph stands in the same line
                frame.words = [f"{label}{text} "]
                paragraph.merged = True
                return
            self._emit(frame, label if text or any(c.isalnum() for c in label) else "")
        elif frame.boxes:
            self._emit(frame, "")
        frame.words, frame.boxes = [], []
        if not self._frames and not frame.tables:
            self._place, self._number = -1, self._number + 1

    def _emit(self, frame: Frame, label: str) -> None:
        """Add the lines of a paragraph."""
        at = self._place if self._place >= 0 else self._new_place()
        table = frame.tables[-1] if frame.tables else None
        sink = table.cell.lines if table and table.cell else frame.lines
        found, late = lines_of(frame.words, frame.boxes, label, in_table=bool(table))
        sink.extend(Line(at, text) for text in found)
        (frame.after if table else sink).extend(Line(at, text) for text in late)

    def _label(self, paragraph: Paragraph) -> str:
        styled = self.context.styles.numbering(paragraph.style)
        number, level = paragraph.number, paragraph.level
        if number is None and styled is not None:
            number, style, own = styled
            if level is None:
                level = self.context.numbering.level_of_style(number, paragraph.style or "")
                level = own if level is None else level
                level = self.context.numbering.level_of_style(number, style) if level is None else level
        if number is None or number == "0":
            return ""
        return self.context.numbering.label(number, level or 0)

    def _start_run(self, element: Any) -> None:
        hidden = self.context.styles.hidden(self._frame.paragraph.style)
        self._frame.runs.append(Run(hidden=hidden, start=len(self._frame.words)))

    def _end_run(self, element: Any) -> None:
        frame = self._frame
        run = frame.runs.pop() if frame.runs else Run()
        if run.shift in ("superscript", "subscript") and run.start < len(frame.words):
            text = "".join(frame.words[run.start :])
            frame.words[run.start :] = [superscript(text) if run.shift == "superscript" else subscript(text)]
        if run.struck and run.start < len(frame.words):
            text = struck("".join(frame.words[run.start :]))
            if (
                run.start and text.startswith("~~") and frame.words[run.start - 1].endswith("~~")
            ):  # one stretch in two runs
                frame.words[run.start - 1], text = frame.words[run.start - 1][:-2], text[2:]
            frame.words[run.start :] = [text]

    def _run_property(self, element: Any) -> None:
        """A property of a run, or of a paragraph's mark."""
        frame, tag = self._frame, self._tag(element)
        value = attribute(element, "w:val")
        if self._path[-1] != "w:rPr" or len(self._path) < 2:
            return
        if self._path[-2] == "w:pPr":
            if tag in ("del", "moveFrom"):
                frame.paragraph.merged = True
            elif tag in ("vanish", "specVanish"):
                frame.paragraph.mark_hidden = on(value)
        elif self._path[-2] == "w:r" and frame.runs:
            run = frame.runs[-1]
            if tag == "vanish":
                run.hidden = on(value)
            elif tag == "rStyle":
                run.hidden = self.context.styles.hidden(value) or run.hidden
            elif tag == "rFonts":
                run.font = attribute(element, "w:ascii") or attribute(element, "w:hAnsi") or ""
            elif tag == "vertAlign":
                run.shift = value or ""
            elif tag in ("strike", "dstrike"):
                run.struck = on(value)

    @staticmethod
    def _tag(element: Any) -> str:
        return str(element.tag).rpartition("}")[2]

    def _paragraph_property(self, element: Any) -> None:
        value, paragraph = attribute(element, "w:val"), self._frame.paragraph
        tag = self._tag(element)
        if tag == "pStyle" and self._path[-1] == "w:pPr":
            paragraph.style = value
        elif self._path[-1] == "w:numPr":
            if tag == "numId":
                paragraph.number = value
            elif value and value.isdecimal():
                paragraph.level = int(value)

    # Breaks and single characters

    def _page_break(self, element: Any) -> None:
        if self._frames:
            return
        if self._hard_break:  # Word also writes where it last broke the page: the same break
            self._hard_break = False
            return
        self._page += 1

    def _break(self, element: Any) -> None:
        if attribute(element, "w:type") == "page":
            self._hard_break = False
            self._page_break(element)
            self._hard_break = not self._frames
        self.say("\n")

    def _tab(self, element: Any) -> None:
        if self._path[-1] != "w:tabs":
            self.say("\t")

    def _symbol(self, element: Any) -> None:
        try:
            text = symbol(attribute(element, "w:font") or "", int(attribute(element, "w:char") or "", 16))
        except ValueError:
            text = UNKNOWN
        self.context.left.symbols += text == UNKNOWN
        self.say(text)

    def _note(self, element: Any) -> None:
        kind = self._tag(element).removesuffix("Reference")
        key = f"{kind}{attribute(element, 'w:id')}"
        note = self.context.notes.get(key)
        if note:
            self.context.notes[key] = "" if len(note) > 1000 or kind == "comment" else note
            self.say(f" [{note}]")
