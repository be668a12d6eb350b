"""The lines of one page of a PDF: its characters by pdfium as runs with boxes, with values of forms and notes in place."""

from __future__ import annotations

import ctypes
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from jambacli.documents.extract.pdf_layout import HYPHEN, Line, Run, lines_of

# A page with more characters keeps the order of the file, which needs no boxes.
_MAX_CHARS = 200_000
# Larger distances between characters, in heights of a line, end a run.
_JUMP = 1.4

#: Corners of a box on the page.
Box = tuple[float, float, float, float]


@dataclass
class PageRuns:
    """The runs of a page by their direction, multiples of 90 degrees, with boxes turned so that text goes to the right. None
    if the order of the file is kept: on a page of too many characters, or whose boxes say nothing."""

    by_turn: dict[int, list[Run]] | None

    @property
    def main(self) -> int:
        """The direction of most of the text."""
        found = self.by_turn or {}
        return max(found, key=lambda turn: sum(len(run.text) for run in found[turn]), default=0)

    @property
    def upright(self) -> list[Run]:
        """The runs of the main direction."""
        return (self.by_turn or {}).get(self.main, [])

    def turned(self, run: Run) -> Run:
        """A run with a box on the page, in the main direction."""
        return Run(run.text, *_turned((run.left, run.bottom, run.right, run.top), self.main))

    def extent(self, page_box: Box) -> tuple[float, float]:
        """The lowest and the highest place on a page, in the main direction."""
        box = _turned(page_box, self.main)
        return box[1], box[3]


def page_runs(text_page: Any) -> PageRuns:
    """The runs of a page of pdfium's text."""
    count = text_page.count_chars()
    found = _runs(text_page, count) if count <= _MAX_CHARS else None
    return PageRuns(None if found is None or _scattered(found) else found)


def page_lines(runs: PageRuns, text_page: Any, extra: Sequence[Run]) -> list[Line]:
    """The lines of a page in reading order. ``extra``: what stands on the page besides its text, in the main direction.

    Text in the main direction comes first, then text turned against it. Without boxes the lines have no place (0, 0).
    """
    if runs.by_turn is None:
        return [Line(text, 0, 0) for text in _in_file_order(text_page)] + lines_of(extra)
    lines = lines_of([*runs.upright, *extra])
    for turn, some in runs.by_turn.items():
        if turn != runs.main:
            lines += [Line(line.text, 0, 0) for line in lines_of(some)]
    return lines


def _runs(text_page: Any, count: int) -> dict[int, list[Run]]:
    """The runs of a page by their direction: multiples of 90 degrees. Boxes are turned so that text goes to the right."""
    from pypdfium2 import raw

    page = text_page.raw
    char, char_box, angle = raw.FPDFText_GetUnicode, raw.FPDFText_GetLooseCharBox, raw.FPDFText_GetCharAngle
    rect = raw.FS_RECTF()
    at = ctypes.byref(rect)
    found: dict[int, list[Run]] = {}
    text, turn = "", 0
    left = bottom = right = top = 0.0
    last_left = last_right = middle = 0.0
    new_word = True

    def end(mark: str = "") -> None:
        nonlocal text
        if text.strip():
            found.setdefault(turn, []).append(Run(text.strip() + mark, left, bottom, right, top, i))
        text = ""

    i = 0
    for i in range(count):
        code = char(page, i)
        if code in (10, 13):
            end()
            new_word = True
        elif code in (2, 0xFFFE) and raw.FPDFText_IsHyphen(page, i):
            end(HYPHEN)
            new_word = True
        elif code in (9, 32, 160):
            if text:
                text += " "
            new_word = True
        elif code > 31 and code not in (0xFFFE, 0xFFFF) and char_box(page, i, at):
            if new_word:
                direction = round(angle(page, i) / (math.pi / 2)) % 4
                if direction != turn:
                    end()
                    turn = direction
                new_word = False
            box: Box = (rect.left, min(rect.bottom, rect.top), rect.right, max(rect.bottom, rect.top))
            if turn:
                box = _turned(box, turn)
            height = box[3] - box[1]
            if text:
                gap = max(box[0] - last_right, last_left - box[2])
                if gap > _JUMP * height or abs((box[1] + box[3]) / 2 - middle) > 0.6 * max(height, top - bottom):
                    end()
            if text:
                left, right = min(left, box[0]), max(right, box[2])
                bottom, top = min(bottom, box[1]), max(top, box[3])
            else:
                left, bottom, right, top = box
                middle = (bottom + top) / 2
            last_left, last_right = box[0], box[2]
            text += chr(code)
    end()
    return found


def _turned(box: Box, turn: int) -> Box:
    """The box on the page turned by ``turn`` times 90 degrees, so that text of that direction goes to the right."""
    left, bottom, right, top = box
    if turn == 1:
        return -top, left, -bottom, right
    if turn == 2:
        return -right, -top, -left, -bottom
    if turn == 3:
        return bottom, -right, top, -left
    return box


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
