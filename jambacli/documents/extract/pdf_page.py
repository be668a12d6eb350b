"""The lines of one page of a PDF: its characters by pdfium as runs with boxes, with values of forms and notes in place."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jambacli.documents.extract.pdf_hidden import Box, Hidden, turned
from jambacli.documents.extract.pdf_layout import HYPHEN, Line, Run, lines_of
from jambacli.documents.extract.pdf_words import ACCENTS, NOTED, Gaps, accented, raised, raised_mark

# A page with more characters keeps the order of the file, which needs no boxes.
_MAX_CHARS = 200_000
# Larger distances between characters, in heights of a line, end a run.
_JUMP = 0.9
# A character of the same height so far above or below belongs to another line.
_OFF_LINE = 0.35

#: Text at an angle, such as a watermark, and letters below each other.
_ASLANT, _STACKED = 4, 5
_LEAST_STACKED = 4
# So much may the angle of text differ from a multiple of 90 degrees.
_SKEW = 0.2


@dataclass
class PageRuns:
    """The runs of a page by their direction, multiples of 90 degrees, with boxes turned so that text goes to the right. None
    if the order of the file is kept: on a page of too many characters, or whose boxes say nothing. ``hidden``: how many words
    were left out since nobody sees them."""

    by_turn: dict[int, list[Run]] | None
    hidden: int = 0

    @property
    def main(self) -> int:
        """The direction of most of the text."""
        found = {turn: runs for turn, runs in (self.by_turn or {}).items() if turn < _ASLANT}
        return max(found, key=lambda turn: sum(len(run.text) for run in found[turn]), default=0)

    @property
    def upright(self) -> list[Run]:
        """The runs of the main direction."""
        return (self.by_turn or {}).get(self.main, [])

    def turned(self, run: Run) -> Run:
        """A run with a box on the page, in the main direction."""
        return Run(run.text, *turned((run.left, run.bottom, run.right, run.top), self.main))

    def extent(self, page_box: Box) -> tuple[float, float]:
        """The lowest and the highest place on a page, in the main direction."""
        box = turned(page_box, self.main)
        return box[1], box[3]


def page_runs(page: Any, text_page: Any) -> PageRuns:
    """The runs of a page of pdfium's text."""
    count = text_page.count_chars()
    found = _runs(text_page, count) if count <= _MAX_CHARS else None
    if found is None or _scattered(found):
        return PageRuns(None)
    hidden = Hidden(page, text_page)
    visible = {turn: runs if turn == _ASLANT else hidden.without(runs, turn) for turn, runs in found.items()}
    letters = [run for run in visible.get(0, ()) if len(run.text) == 1 and run.text.isalpha()]
    if len(letters) >= _LEAST_STACKED and (stacks := _stacks(letters)):
        stacked = {run for stack in stacks for run in stack}
        visible[0] = [run for run in visible[0] if run not in stacked]
        visible[_STACKED] = [Run("".join(run.text for run in stack), 0, 0, 0, 0) for stack in stacks]
    return PageRuns(visible, hidden.words)


def _stacks(letters: Sequence[Run]) -> list[list[Run]]:
    """Letters that stand below each other, as in a word along the margin."""
    stacks: list[list[Run]] = []
    for run in sorted(letters, key=lambda r: r.order):
        if stacks and _beneath(stacks[-1][-1], run):
            stacks[-1].append(run)
        else:
            stacks.append([run])
    return [stack for stack in stacks if len(stack) >= _LEAST_STACKED]


def _beneath(above: Run, run: Run) -> bool:
    centred = abs(above.left + above.right - run.left - run.right) < above.height
    return centred and 0 < above.top - run.top < 2 * above.height


def page_lines(runs: PageRuns, text_page: Any, extra: Sequence[Run]) -> list[Line]:
    """The lines of a page in reading order. ``extra``: what stands on the page besides its text, in the main direction.

    Text in the main direction comes first, then text turned against it. Without boxes the lines have no place (0, 0).
    """
    if runs.by_turn is None:
        return [Line(text, 0, 0) for text in _in_file_order(text_page)] + lines_of(extra)
    lines = lines_of([*runs.upright, *extra])
    for turn, some in runs.by_turn.items():
        if turn in (_ASLANT, _STACKED):
            lines += [Line(run.text, 0, 0) for run in some]
        elif turn != runs.main:
            lines += [Line(line.text, 0, 0) for line in lines_of(some)]
    return lines


def _runs(text_page: Any, count: int) -> dict[int, list[Run]]:
    """The runs of a page by their direction: multiples of 90 degrees. Boxes are turned so that text goes to the right."""
    from pypdfium2 import raw

    page = text_page.raw
    char_box, angle = raw.FPDFText_GetLooseCharBox, raw.FPDFText_GetCharAngle
    rect = raw.FS_RECTF()
    at = ctypes.byref(rect)
    found: dict[int, list[Run]] = {}
    text, turn = "", 0
    left = bottom = right = top = 0.0
    last_left = last_right = last_height = middle = 0.0
    last = -1
    new_word, made_space, is_raised = True, False, False
    gaps = Gaps()

    def end(mark: str = "") -> None:
        nonlocal text, gaps, made_space, is_raised
        if gaps.found:
            text = gaps.spaced(text)
            gaps = Gaps()
        if text.strip():
            found.setdefault(turn, []).append(Run(text.strip() + mark, left, bottom, right, top, last))
        text, made_space, is_raised = "", False, False

    i = 0
    for i, code in enumerate(_codes(text_page, count)):
        if code in (32, 9, 160):
            if text:
                if raw.FPDFText_IsGenerated(page, i) == 1:
                    made_space = True
                elif text[-1] != " ":
                    text += " "
            new_word = True
        elif code in (10, 13):
            if turn != _ASLANT:
                end()
            new_word = True
        elif code in (2, 0xFFFE) and raw.FPDFText_IsHyphen(page, i):
            end(HYPHEN)
            new_word = True
        elif code > 31 and code not in (0xFFFE, 0xFFFF) and char_box(page, i, at):
            if new_word:
                quarters = angle(page, i) / (math.pi / 2)
                direction = round(quarters) % 4 if abs(quarters - round(quarters)) < _SKEW else _ASLANT
                if direction != turn:
                    end()
                    turn = direction
                new_word = False
            box_left, box_bottom, box_right, box_top = rect.left, rect.bottom, rect.right, rect.top
            if box_bottom > box_top:
                box_bottom, box_top = box_top, box_bottom
            if turn:
                box_left, box_bottom, box_right, box_top = turned((box_left, box_bottom, box_right, box_top), turn)
            height = box_top - box_bottom
            char = chr(code)
            if text:
                gap = max(box_left - last_right, last_left - box_right)
                unit = (
                    top - bottom if top - bottom > height else height
                )  # some fonts give a hyphen a box of its own height
                off = abs((box_bottom + box_top) / 2 - middle)
                if turn == _ASLANT:  # only the distance says whether it goes on
                    unit = max(height, box_right - box_left)
                    off = 0.0 if max(abs(box_left - last_left), off) < 1.6 * unit else 10 * unit
                    gap = 0.0
                if gap > _JUMP * unit or off > (_OFF_LINE if height > 0.8 * unit else 0.6) * unit:
                    end()
                elif gap < -0.3 * (box_right - box_left) and (both := _combined(text, char)):
                    text, char = text[:-1], both
                elif text[-1] != " ":
                    if made_space or gap > NOTED * unit:
                        gaps.note(len(text), gap / unit if unit else 0.0, made_space)
                    if abs(height - last_height) > 0.08 * height:
                        rise = _rise(page, last, i, turn)
                        is_raised = rise > 0.15 * last_height and height < last_height
                        if rise < -0.15 * height and height > last_height and (mark := raised_mark(text.lstrip())):
                            text = mark
                            gaps = Gaps()
                    if is_raised:
                        char = raised(char)
                made_space = False
            if text:
                left, right = min(left, box_left), max(right, box_right)
                bottom, top = min(bottom, box_bottom), max(top, box_top)
            else:
                left, bottom, right, top = box_left, box_bottom, box_right, box_top
                middle = (bottom + top) / 2
            if height > 0.8 * (top - bottom):
                middle = (box_bottom + box_top) / 2  # the line may rise
            last, last_left, last_right, last_height = i, box_left, box_right, height
            text += char
    end()
    return found


def _codes(text_page: Any, count: int) -> Sequence[int]:
    """The code of every character of a page."""
    from pypdfium2 import raw

    units = (ctypes.c_ushort * (count + 1))()
    if raw.FPDFText_GetText(text_page.raw, 0, count, units) == count + 1:  # else some character is none or two units
        return units[:count]
    return [raw.FPDFText_GetUnicode(text_page.raw, i) for i in range(count)]


def _combined(text: str, char: str) -> str | None:
    """The letter that the last character of a run and the next one are together, drawn over each other."""
    if text[-1] in ACCENTS:
        return accented(char, text[-1])
    return accented(text[-1], char) if char in ACCENTS else None


def _rise(page: Any, before: int, after: int, turn: int) -> float:
    """How much higher the baseline of a character is than another's."""
    from pypdfium2 import raw

    x, y = ctypes.c_double(), ctypes.c_double()
    heights = []
    for i in (before, after):
        raw.FPDFText_GetCharOrigin(page, i, ctypes.byref(x), ctypes.byref(y))
        heights.append(turned((x.value, y.value, x.value, y.value), turn)[1])
    return heights[1] - heights[0]


def _scattered(found: dict[int, list[Run]]) -> bool:
    """Whether most runs are single characters, as in vertical writing, where boxes say nothing about the order."""
    runs = [run for some in found.values() for run in some]
    return len(runs) > 20 and sum(len(run.text) == 1 and run.text.isalpha() for run in runs) > len(runs) / 2


def _in_file_order(text_page: Any) -> list[str]:
    # pdfium writes U+FFFE for a hyphen at the end of a line that only divides a word.
    text = re.sub("[\ufffe\u00ad]\r?\n?", "", text_page.get_text_range())
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\x00", "").strip().split("\n")


def string_of(call: Callable[..., int], *arguments: Any) -> str:
    """The UTF-16 string that one of pdfium's functions writes to a buffer; "" if there is none."""
    length = call(*arguments, None, 0)
    if not 2 < length <= 1 << 22:
        return ""
    buffer = ctypes.create_string_buffer(length)
    call(*arguments, ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), length)
    return buffer.raw[:length].decode("utf-16-le", "replace").split("\x00")[0]
