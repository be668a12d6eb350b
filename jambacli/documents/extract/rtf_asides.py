"""What stands beside the text of an RTF document: notes, comments, headers, labels of lists, fields, pictures, formulas."""

from __future__ import annotations

from collections.abc import Callable

from jambacli.documents.extract import formula
from jambacli.documents.extract.docx_fields import CHECKED, UNCHECKED
from jambacli.documents.extract.docx_symbols import symbol
from jambacli.documents.extract.rows import Line
from jambacli.documents.extract.rtf_groups import RtfGroups
from jambacli.documents.extract.rtf_state import (
    KEPT,
    MATH,
    PAIR,
    SHAPE,
    SHOWN,
    SKIPPED,
    RtfField,
    RtfFrame,
    RtfSection,
    State,
)

_MATH_NAMES = """f num den sSup sSub sSubSup sPre e sup sub rad deg nary d func fName limLow limUpp lim acc bar m mr eqArr box
    borderBox groupChr phant r chr begChr endChr sepChr type degHide oMath"""
_MATH_ELEMENTS = frozenset(_MATH_NAMES.split())


class RtfAsides(RtfGroups):
    """Reads them where their groups stand."""

    def __init__(self, name: str, alive: Callable[[], None]) -> None:
        super().__init__(name, alive)
        self._fields: list[RtfField] = []
        self._section = RtfSection()
        self._facing = False
        self._inserted: list[tuple[int, list[Line]]] = []
        self._headers_seen: set[tuple[str, str]] = set()
        self._author, self._property = "", ""
        self._objects = 0

    # Labels of lists, notes, comments, headers

    def _list_text(self, number: int | None) -> None:
        self._enter_frame(self._end_list_text)

    def _end_list_text(self, done: RtfFrame) -> None:
        text = "".join(line.text for line in done.lines)
        if self._state.mode == SHOWN and not self._state.deleted:
            self._frame.label = text or self._frame.label

    def _note(self, number: int | None) -> None:
        self._enter_frame(self._end_note)

    def _end_note(self, done: RtfFrame) -> None:
        if text := _one_line(done):
            self._say_aside(f" [{text}]")

    def _comment(self, number: int | None) -> None:
        self._enter_frame(self._end_comment)

    def _end_comment(self, done: RtfFrame) -> None:
        author, self._author = self._author, ""
        if text := _one_line(done):
            self._say_aside(f" [Comment by {author}: {text}]" if author else f" [Comment: {text}]")

    def _say_aside(self, text: str) -> None:
        """Text that is not raised with the mark that refers to it."""
        state, self._state = self._state, self._state._replace(shift="", struck=False)
        self.say(text)
        self._state = state

    def _comment_author(self, number: int | None) -> None:
        def found(text: str) -> None:
            self._author = " ".join(text.split())

        self._keep(found)

    def _header(self, word: str) -> None:
        def leave(done: RtfFrame) -> None:
            self._section.parts.append(
                (word, [" ".join(line.text.split()) for line in done.lines if line.text.strip()])
            )

        self._enter_frame(leave)

    def _section_ends(self, number: int | None) -> None:
        if self._frame.words or self._frame.boxes:
            self.end_paragraph(always=False)
        if not self._frames:
            self._end_section()

    def _end_section(self) -> None:
        """Insert its headers at its begin and its footers at its end, each text once."""
        section, lines = self._section, self._frame.lines
        for word, texts in section.parts:
            what = "Header" if word.startswith("header") else "Footer"
            if (word.endswith("f") and not section.first_page) or (word.endswith("l") and not self._facing):
                continue
            index = section.begin if what == "Header" else len(lines)
            near = lines[min(index, len(lines) - 1)].at if lines else 1
            new = [text for text in dict.fromkeys(texts) if (what, text) not in self._headers_seen]
            self._headers_seen |= {(what, text) for text in new}
            self._inserted.append((index, [Line(near, f"{what}: {text}") for text in new]))
        self._section = RtfSection(len(lines), parts=[])

    def _first_page(self, number: int | None) -> None:
        self._section.first_page = True

    def _facing_pages(self, number: int | None) -> None:
        self._facing = True

    # Fields

    def _field(self, number: int | None) -> None:
        field = RtfField(self._said)
        self._fields.append(field)

        def end(inner: State) -> None:
            self._fields.pop()
            if field.said == self._said and (text := _shown(field)):
                self.say(text)

        self._at_end(end)

    def _field_code(self, number: int | None) -> None:
        field = self._fields[-1] if self._fields else RtfField(0)
        self._keep(field.code.append)

    def _form_number(self, word: str, number: int | None) -> None:
        if self._fields and number is not None:
            setattr(self._fields[-1], word, number)

    def _form_entry(self, number: int | None) -> None:
        entries = self._fields[-1].entries if self._fields else []
        self._keep(lambda text: entries.append(text) if len(entries) < 1000 else None)

    # Pictures, objects, shapes

    def _picture(self, number: int | None) -> None:
        self._said += 1
        self.left.pictures += not self._objects
        self._mode(SHAPE if self._state.mode != KEPT else SKIPPED)

    def _object(self, number: int | None) -> None:
        self._said += 1
        self.left.objects += 1
        self._objects += 1

        def end(inner: State) -> None:
            self._objects -= 1

        self._at_end(end)
        self._mode(SHAPE)

    def _result(self, number: int | None) -> None:
        if self._objects:
            self._mode(SHOWN)

    def _shape(self, number: int | None) -> None:
        self._mode(SHAPE)

    def _shape_text(self, number: int | None) -> None:
        self._enter_frame(self._end_shape_text)

    def _end_shape_text(self, done: RtfFrame) -> None:
        self.box([line.text for line in done.lines if line.text.strip()])

    def _property_name(self, number: int | None) -> None:
        def found(text: str) -> None:
            self._property = text.strip()

        self._keep(found)

    def _property_value(self, number: int | None) -> None:
        def found(text: str) -> None:
            words = " ".join(text.split())
            if words and self._property in ("wzDescription", "gtextUNICODE"):
                state, self._state = self._state, self._state._replace(mode=SHOWN)
                if self._property == "gtextUNICODE":
                    self.box([words])
                else:
                    self.say(f" [{words}] ")
                self._state = state

        self._keep(found)

    def _pair(self, number: int | None) -> None:
        self._mode(PAIR)

    # Formulas

    def _formula(self, number: int | None) -> None:
        self._math.append(("oMath", []))

        def end(inner: State) -> None:
            tag, children = self._math.pop()
            if text := formula.spaced(formula.element(tag, children)):
                self.say(text)

        self._at_end(end)
        self._mode(MATH)

    def _math_word(self, word: bytes) -> bool:
        """An element of a formula: the control word is ``m`` and its name in Office's markup."""
        tag = word[1:].decode("ascii")
        if tag == "nor":
            self._math[-1][1].append(("rPr", "nor"))
        elif tag not in _MATH_ELEMENTS and not tag.endswith("Pr"):
            return False
        else:
            children: list[tuple[str, str]] = []
            self._math.append((tag, children))

            def end(inner: State) -> None:
                self._math.pop()
                text = formula.element(tag, children)
                if self._math:
                    self._math[-1][1].append((tag, text))

            self._at_end(end)
        return True


def _one_line(done: RtfFrame) -> str:
    return " ".join(" ".join(line.text.split()) for line in done.lines if line.text.strip())


def _shown(field: RtfField) -> str:
    """What a field shows that has no text as its result."""
    code = "".join(field.code).split()
    name = code[0].upper() if code else ""
    chosen = field.result if field.result is not None and field.result != 25 else field.default
    if name == "FORMCHECKBOX" or field.kind == 1:
        return CHECKED if chosen else UNCHECKED
    if name == "FORMDROPDOWN" or field.kind == 2:
        index = chosen or 0
        return field.entries[index] if 0 <= index < len(field.entries) else ""
    if name == "SYMBOL" and len(code) > 1:
        number = int(code[1], 0) if code[1].isdecimal() or code[1].lower().startswith("0x") else 0
        font = " ".join(code).partition('\\f "')[2].partition('"')[0]
        return symbol(font, number) if 0 < number < 0x110000 else ""
    return ""
