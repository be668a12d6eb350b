"""Reads an RTF document as a stream of control words and bytes."""

from __future__ import annotations

import mmap
import re
from collections.abc import Callable

from jambacli.documents.extract.rows import Line
from jambacli.documents.extract.rtf_asides import RtfAsides
from jambacli.documents.extract.rtf_state import FONTS, KEPT, MATH, PAIR, SHAPE, SHOWN, SKIPPED, RtfFont, State
from jambacli.documents.extract.rtf_tokens import CHARACTERS, RtfToken, codec_of_page, tokens

_TOKENS = 100_000
_MOST_FONTS = 100_000
#: Control words that no character is written with.
_ENDS = frozenset((b"par", b"sect", b"cell", b"row", b"nestcell", b"nestrow"))


class Story(RtfAsides):
    """Reads a document: what each control word does, and what becomes of each group."""

    def __init__(self, name: str, alive: Callable[[], None]) -> None:
        super().__init__(name, alive)
        self._current_font = RtfFont()

    def read(self, data: mmap.mmap, start: int) -> list[Line]:
        """The lines of a document."""
        to_skip = 0  # bytes that stand for a character that was already read
        star = False
        end = start
        for count, token in enumerate(tokens(data, start)):
            kind, value, number, end = token
            if count % _TOKENS == 0:
                self._alive()
            if kind in ("text", "hex"):
                if to_skip:
                    value, to_skip = value[to_skip:], max(0, to_skip - len(value))
                if value:
                    self._add(value)
                star = False
                continue
            if kind == "word" and to_skip:
                if value in CHARACTERS:
                    to_skip -= 1
                    continue
                to_skip = 0 if value in _ENDS else to_skip
            self.flush()
            if kind == "word":
                if value == b"u":
                    self.unicode(number or 0)
                    to_skip = self._state.skip
                else:
                    self._word(value, number, star)
                star = False
            elif kind == "sign":
                star = self._sign(token)
            else:
                to_skip, star = 0, False
                if kind == "open":
                    self._open()
                elif self._stack:
                    self._close()
                    if not self._stack:
                        break
        self.flush()
        self.left.unfinished = bool(self._stack)
        inner = self._state
        while self._stack:
            self._close()
        self.left.rest = _words_after(data, end)
        self._finish(inner)
        self._end_section()
        lines = self._frame.lines
        for index, added in sorted(self._inserted, key=lambda i: i[0])[::-1]:
            lines[index:index] = added
        return lines

    # Characters

    def _add(self, value: bytes) -> None:
        mode = self._state.mode
        if mode == FONTS:
            self._font_name(value)
        elif mode in (SHOWN, KEPT, MATH):
            self._bytes += value

    def _sign(self, token: RtfToken) -> bool:
        """A control symbol; True for the one that marks destinations which older programs leave out."""
        value = token.value
        if value == b"*":
            return True
        if value == b"~":
            self.say("\xa0")
        elif value == b"_":
            self.say("-")
        elif value in (b"\n", b"\r"):
            self._word(b"par", None, False)
        elif value == b"\t":
            self.say("\t")
        return False

    # Control words

    def _word(self, word: bytes, number: int | None, star: bool) -> None:
        mode = self._state.mode
        if mode == SKIPPED:
            return
        if mode == PAIR:
            if word == b"ud":
                self._mode(SHOWN)
            return
        if mode == MATH and word.startswith(b"m") and self._math_word(word):
            return
        if (text := CHARACTERS.get(word)) is not None:
            self.say(text)
            return
        if mode != FONTS and (change := _PROPERTIES.get(word)) is not None:
            self._state = change(self._state, number)
            return
        table = _BY_MODE[mode]
        if (handler := table.get(word)) is not None:
            handler(self, number)
        elif star or word in _LEFT_OUT:
            self._mode(SKIPPED)

    def _par(self, number: int | None) -> None:
        if not self._state.deleted:  # else the next paragraph continues this one
            self.end_paragraph()

    def _cell_end(self, number: int | None) -> None:
        self.end_cell(1)

    def _row_end(self, number: int | None) -> None:
        self.end_row(1)

    def _nested_cell_end(self, number: int | None) -> None:
        self.end_cell(max(2, self._state.depth))

    def _nested_row_end(self, number: int | None) -> None:
        self.end_row(max(2, self._state.depth))

    def _row_definition(self, number: int | None) -> None:
        self._merged, self._merging = [], False

    def _merge(self, number: int | None) -> None:
        self._merging = True

    def _cell_definition(self, number: int | None) -> None:
        if len(self._merged) < 1000:
            self._merged.append(self._merging)
        self._merging = False

    def _go_on(self, number: int | None) -> None:
        """A group that is read as the one around it."""

    def _skip(self, number: int | None) -> None:
        self._mode(SKIPPED)

    # The document

    def _page(self, number: int | None) -> None:
        self._codec = codec_of_page(number)

    def _mac(self, number: int | None) -> None:
        self._codec = "mac_roman"

    def _pc(self, number: int | None) -> None:
        self._codec = "cp437"

    def _pca(self, number: int | None) -> None:
        self._codec = "cp850"

    def _set_default_font(self, number: int | None) -> None:
        self._default_font = number or 0

    def _font_table(self, number: int | None) -> None:
        self._mode(FONTS)
        self._at_end(lambda inner: self.fonts_are_read())

    def _font_number(self, number: int | None) -> None:
        self._current_font = RtfFont()
        if len(self._fonts) < _MOST_FONTS:
            self._fonts[number or 0] = self._current_font

    def _font_charset(self, number: int | None) -> None:
        self._current_font.charset = number if number is not None else 1

    def _font_page(self, number: int | None) -> None:
        self._current_font.codec = codec_of_page(number)

    def _font_name(self, value: bytes) -> None:
        name = self._current_font.name
        if not name.endswith(";") and len(name) < 100:
            self._current_font.name = name + value.decode("latin-1").strip()
        if ";" in self._current_font.name:
            self._current_font.name = self._current_font.name.partition(";")[0]
            self._current_font = RtfFont(name=";")


def _words_after(data: mmap.mmap, end: int) -> int:
    """How many words follow the end of the document."""
    return len(re.findall(rb"[^\s{}\x00]+", data[end : end + (1 << 20)]))


def _on(number: int | None) -> bool:
    return number != 0


#: Control words that change a property of text or paragraph.
_PROPERTIES: dict[bytes, Callable[[State, int | None], State]] = {
    b"uc": lambda s, n: s._replace(skip=max(0, min(n if n is not None else 1, 1000))),
    b"f": lambda s, n: s._replace(font=n or 0),
    b"af": lambda s, n: s._replace(complex_font=n or 0),
    b"ltrch": lambda s, n: s._replace(complex=False),
    b"rtlch": lambda s, n: s._replace(complex=True),
    b"v": lambda s, n: s._replace(hidden=_on(n)),
    b"deleted": lambda s, n: s._replace(deleted=_on(n)),
    b"super": lambda s, n: s._replace(shift="superscript" if _on(n) else ""),
    b"sub": lambda s, n: s._replace(shift="subscript" if _on(n) else ""),
    b"nosupersub": lambda s, n: s._replace(shift=""),
    b"up": lambda s, n: s._replace(shift="superscript" if n is None or n > 0 else ""),
    b"dn": lambda s, n: s._replace(shift="subscript" if n is None or n > 0 else ""),
    b"strike": lambda s, n: s._replace(struck=_on(n)),
    b"striked": lambda s, n: s._replace(struck=_on(n)),
    b"plain": lambda s, n: State(mode=s.mode, skip=s.skip, depth=s.depth, level=s.level),
    b"pard": lambda s, n: s._replace(depth=0, level=0),
    b"intbl": lambda s, n: s._replace(depth=max(1, s.depth)),
    b"itap": lambda s, n: s._replace(depth=max(0, min(n or 0, 1000))),
    b"ilvl": lambda s, n: s._replace(level=max(0, n or 0)),
}

_Handler = Callable[[Story, int | None], None]


def _header_handler(word: str) -> _Handler:
    return lambda story, number: story._header(word)


def _form_handler(word: str) -> _Handler:
    return lambda story, number: story._form_number(word, number)


#: Destinations whose content is left out: tables of the document, data, and what another group says again.
_LEFT_OUT_NAMES = """colortbl stylesheet info listtable listoverridetable revtbl rsidtbl generator xe tc txe rxe template
    fontemb fontfile themedata colorschememapping latentstyles datastore xmlnstbl filetbl private userprops nonesttables shprslt
    nonshppict mmathPict objdata objclass objname bkmkstart bkmkend atnid atnref atndate atntime atnparent atnicn atrfstart
    atrfend ftnsep ftnsepc ftncn aftnsep aftnsepc aftncn pnseclvl pn pntxta pntxtb datafield docvar keywords falt panose
    background pgptbl mailmerge wgrffmtfilter protusertbl htmltag mhtmltag"""
_LEFT_OUT = frozenset(_LEFT_OUT_NAMES.encode().split())
_PICTURES: dict[bytes, _Handler] = {b"pict": Story._picture, b"object": Story._object}
_SHOWN: dict[bytes, _Handler] = {
    b"par": Story._par,
    b"sect": Story._section_ends,
    b"cell": Story._cell_end,
    b"row": Story._row_end,
    b"nestcell": Story._nested_cell_end,
    b"nestrow": Story._nested_row_end,
    b"nesttableprops": Story._go_on,
    b"trowd": Story._row_definition,
    b"clvmrg": Story._merge,
    b"clmrg": Story._merge,
    b"cellx": Story._cell_definition,
    b"ansicpg": Story._page,
    b"mac": Story._mac,
    b"pc": Story._pc,
    b"pca": Story._pca,
    b"deff": Story._set_default_font,
    b"fonttbl": Story._font_table,
    b"listtext": Story._list_text,
    b"pntext": Story._list_text,
    b"footnote": Story._note,
    b"annotation": Story._comment,
    b"atnauthor": Story._comment_author,
    b"titlepg": Story._first_page,
    b"facingp": Story._facing_pages,
    b"field": Story._field,
    b"fldinst": Story._field_code,
    b"shpinst": Story._shape,
    b"do": Story._shape,
    b"shptxt": Story._shape_text,
    b"dptxbxtext": Story._shape_text,
    b"shppict": Story._go_on,
    b"moMathPara": Story._go_on,
    b"upr": Story._pair,
    b"moMath": Story._formula,
    **_PICTURES,
    **{
        word.encode(): _header_handler(word)
        for side in ("header", "footer")
        for word in (side, *(side + s for s in "lrf"))
    },
}
_FORM: dict[bytes, _Handler] = {
    b"fftype": _form_handler("kind"),
    b"ffres": _form_handler("result"),
    b"ffdefres": _form_handler("default"),
    b"ffl": Story._form_entry,
    **dict.fromkeys((b"ffname", b"ffdeftext", b"ffformat", b"ffhelptext", b"ffstattext", b"fldrslt"), Story._skip),
    b"formfield": Story._go_on,
    **_PICTURES,
}
_IN_SHAPE: dict[bytes, _Handler] = {
    **dict.fromkeys((b"shp", b"shpinst", b"do", b"picprop", b"shppict"), Story._go_on),
    b"shptxt": Story._shape_text,
    b"dptxbxtext": Story._shape_text,
    b"sn": Story._property_name,
    b"sv": Story._property_value,
    b"result": Story._result,
    b"pict": Story._picture,
}
_IN_FONTS: dict[bytes, _Handler] = {
    b"f": Story._font_number,
    b"fcharset": Story._font_charset,
    b"cpg": Story._font_page,
}
_BY_MODE: dict[int, dict[bytes, _Handler]] = {SHOWN: _SHOWN, KEPT: _FORM, SHAPE: _IN_SHAPE, FONTS: _IN_FONTS, MATH: {}}
