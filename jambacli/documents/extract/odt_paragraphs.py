"""Paragraphs of an OpenDocument text: stretches of text, their styles, lists, breaks, and the lines that come of them."""

from __future__ import annotations

import re

from jambacli.documents.extract.docx_symbols import PRIVATE, UNKNOWN, is_symbol_font, symbol
from jambacli.documents.extract.inline import struck, subscript, superscript
from jambacli.documents.extract.odt_lists import number_of
from jambacli.documents.extract.odt_state import Context, Frame, List, Paragraph, style_of_list
from jambacli.documents.extract.odt_styles import Style
from jambacli.documents.extract.paragraph_lines import lines_of
from jambacli.documents.extract.pieces import MAX_TEXT
from jambacli.documents.extract.rows import Line
from jambacli.errors import BadFileError

_SPACE = re.compile(r"[ \t\r\n]+")
_MOST_SPACES = 1000
_Values = dict[str, str]


class Paragraphs:
    """Collects text. ``places``: (page, number of the paragraph, from 1); lines hold indices into it. ``masters``: where page
    styles begin, as (index of a line, name). ``paged``: the file says where its pages end."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.places: list[tuple[int, int]] = []
        self.masters: list[tuple[int, str]] = []
        self.paged = False
        self._styles = context.styles
        self._page, self._break_due = 1, False
        self._number, self._place = 1, -1
        self._frame = Frame()
        self._frames: list[Frame] = []
        self._path: list[str] = []
        self._said = self._hidden = self._new_lists = 0
        self._list_keys: dict[str, str] = {}

    # Text

    def say(self, text: str) -> None:
        """Add text to the paragraph, where it is not hidden."""
        self._said += 1
        frame = self._frame
        if self._hidden:
            self.context.left.hidden_words += len(text.split())
            if frame.paragraph is not None:
                frame.paragraph.lost = True
            return
        if self._place < 0 and text.strip():
            self._new_place()
        self.context.chars += len(text)
        if self.context.chars > MAX_TEXT:
            raise BadFileError(self.context.name, f"contains more than {MAX_TEXT >> 20} MB of text; split it")
        frame.words.append(text)
        frame.space = text.endswith(" ")

    def _raw(self, text: str) -> None:
        """Text as it stands in the file, where white space counts once."""
        frame = self._frame
        if frame.paragraph is None:
            return
        text = _SPACE.sub(" ", text).replace("\xad", "")
        if frame.space:
            text = text.removeprefix(" ")
        if not text:
            return
        font = self._font()
        if is_symbol_font(font):
            text = "".join(symbol(font, ord(c)) for c in text)
        elif PRIVATE.search(text):
            text = PRIVATE.sub(lambda c: symbol(font, ord(c[0])), text)
        self.context.left.symbols += text.count(UNKNOWN)
        self.say(text)

    def _font(self) -> str:
        frame = self._frame
        for _, style in reversed(frame.spans):
            if style.font is not None:
                return style.font
        return (frame.paragraph.style.font or "") if frame.paragraph is not None else ""

    def _box(self, lines: list[str]) -> None:
        """Lines of their own, at this place of the paragraph."""
        if not lines:
            return
        self._said += 1
        if self._place < 0:
            self._new_place()
        frame = self._frame
        if frame.paragraph is not None:
            frame.boxes.append((len(frame.words), lines))
            return
        self._sink().extend(Line(self._place, line) for line in lines)
        if not self._frames:
            self._place = -1

    def _sink(self) -> list[Line]:
        table = self._frame.tables[-1] if self._frame.tables else None
        return table.cell.lines if table and table.cell else self._frame.lines

    def _new_place(self) -> int:
        self.places.append((self._page, self._number))
        self._place = len(self.places) - 1
        return self._place

    # Paragraphs and spans

    def _start_paragraph(self, tag: str, values: _Values) -> None:
        frame = self._frame
        if frame.paragraph is not None:  # one within another
            self._end_paragraph(tag)
        style = self._styles.look("paragraph", values.get("text:style-name", ""))
        heading = tag == "text:h"
        frame.paragraph = Paragraph(
            style,
            outline=number_of(values.get("text:outline-level"), 1) if heading else 0,
            unnumbered=values.get("text:is-list-header") == "true",
        )
        if heading and values.get("text:restart-numbering") == "true":
            frame.paragraph.start = number_of(values.get("text:start-value"), 1)
        frame.words, frame.boxes, frame.spans, frame.space = [], [], [], True
        self._hidden += bool(style.hidden)
        self._begin_page(style)

    def _begin_page(self, style: Style) -> None:
        if self._frames:
            return
        if style.before or style.master or self._break_due:
            self._page += bool(self.places)
            self._break_due = False
        if style.master:
            self.masters.append((len(self._frame.lines), style.master))

    def _end_paragraph(self, tag: str) -> None:
        frame, paragraph = self._frame, self._frame.paragraph
        if paragraph is None:
            return
        while frame.spans:
            self._end_span(tag)
        if paragraph.hidden:  # a field said so, in the middle of it
            self.context.left.hidden_words += len("".join(frame.words).split())
            frame.words, paragraph.lost = [], True
        self._hidden -= bool(paragraph.style.hidden)
        text = "".join(frame.words).strip()
        if text or not (paragraph.lost or self._hidden or paragraph.style.hidden):
            label = self._label(paragraph)
            self._emit(label if text or any(c.isalnum() for c in label) else "")
        elif frame.boxes:
            self._emit("")
        frame.words, frame.boxes, frame.paragraph = [], [], None
        if not self._frames:
            self._break_due = self._break_due or bool(paragraph.style.after)
            if not frame.tables:
                self._place, self._number = -1, self._number + 1

    def _emit(self, label: str) -> None:
        """Add the lines of a paragraph."""
        frame = self._frame
        at = self._place if self._place >= 0 else self._new_place()
        in_table = bool(frame.tables)
        found, late = lines_of(frame.words, frame.boxes, label, in_table=in_table)
        sink = self._sink()
        sink.extend(Line(at, text) for text in found if text or not in_table)
        (frame.after if in_table else sink).extend(Line(at, text) for text in late)

    def _start_span(self, tag: str, values: _Values) -> None:
        style = self._styles.look("text", values.get("text:style-name", ""))
        self._frame.spans.append((len(self._frame.words), style))
        self._hidden += bool(style.hidden)

    def _end_span(self, tag: str) -> None:
        frame = self._frame
        if not frame.spans:
            return
        start, style = frame.spans.pop()
        self._hidden -= bool(style.hidden)
        if start >= len(frame.words) or not (style.shift or style.struck):
            return
        text = "".join(frame.words[start:])
        if style.shift:
            text = superscript(text) if style.shift == "superscript" else subscript(text)
        if style.struck:
            text = struck(text)
            if start and text.startswith("~~") and frame.words[start - 1].endswith("~~"):  # one stretch in two spans
                frame.words[start - 1], text = frame.words[start - 1][:-2], text[2:]
        frame.words[start:] = [text]

    # Lists

    def _start_list(self, tag: str, values: _Values) -> None:
        lists, style = self._frame.lists, values.get("text:style-name", "")
        goes_on = values.get("text:continue-numbering") == "true"
        if lists:
            outer = lists[-1]
            outer.inner += 1
            if outer.inner > 1 and not goes_on:
                self.context.counters.restart(outer.key, outer.level + 1)
            lists.append(List(outer.key, outer.level + 1, style))
            return
        key = ""
        if style == "Outline":
            key = style
        elif (before := values.get("text:continue-list")) is not None:
            key = self._list_keys.get(f"id {before}", "")
        elif goes_on:
            key = self._list_keys.get(f"style {style}", "")
        if not key:
            self._new_lists += 1
            key = f"{id(self)} {self._new_lists}"
        identifier = values.get("xml:id") or values.get("text:id")
        if len(self._list_keys) < 1_000_000:
            self._list_keys[f"style {style}"] = key
            if identifier:
                self._list_keys[f"id {identifier}"] = key
        lists.append(List(key, 1, style))

    def _end_list(self, tag: str) -> None:
        if self._frame.lists:
            self._frame.lists.pop()

    def _start_item(self, tag: str, values: _Values) -> None:
        if self._frame.lists:
            item = self._frame.lists[-1]
            item.pending, item.inner = tag == "text:list-item", 0
            item.start = number_of(values["text:start-value"], 1) if "text:start-value" in values else None

    def _end_item(self, tag: str) -> None:
        if self._frame.lists:
            self._frame.lists[-1].pending = False

    def _label(self, paragraph: Paragraph) -> str:
        """What stands before a paragraph."""
        frame, counters = self._frame, self.context.counters
        if frame.lists:
            item = frame.lists[-1]
            pending, item.pending = item.pending, False
            if not pending or paragraph.unnumbered:
                return ""
            style = style_of_list(frame, self._styles, paragraph.style)
            return counters.label(item.key, style, item.level, item.start) or paragraph.number
        if not paragraph.outline or paragraph.unnumbered:
            return paragraph.number
        styled, level = self._styles.outline, paragraph.outline
        own = paragraph.style.lists
        if own is not None and own != "Outline":  # a heading that its style numbers otherwise, or not at all
            styled = self._styles.list_style(own)
        if styled is None or level not in styled.levels:
            return paragraph.number
        return counters.label(styled.name, styled, level, paragraph.start) or paragraph.number

    # Breaks and single characters

    def _soft_break(self, tag: str, values: _Values) -> None:
        if not self._frames:
            self._page += 1
            self.paged = True

    def _spaces(self, tag: str, values: _Values) -> None:
        if self._frame.paragraph is not None:
            self.say(" " * max(1, min(number_of(values.get("text:c"), 1), _MOST_SPACES)))
            self._frame.space = False

    def _tab(self, tag: str, values: _Values) -> None:
        if self._frame.paragraph is not None:
            self.say("\t")

    def _line_break(self, tag: str, values: _Values) -> None:
        if self._frame.paragraph is not None:
            self.say("\n")
