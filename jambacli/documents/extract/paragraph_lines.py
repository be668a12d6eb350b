"""A paragraph with text boxes in it -> lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCE = re.compile(r"[.!?:;…]['\"”’»)]*\s*\Z")
# How much of a text tells whether a sentence ends there.
_TAIL = 400

#: How many of a paragraph's texts stand before a text box, and its lines.
Box = tuple[int, list[str]]


def lines_of(words: Sequence[str], boxes: Sequence[Box], label: str, *, in_table: bool) -> tuple[list[str], list[str]]:
    """The lines of a paragraph, and those of text boxes that come after it.

    A text box divides its paragraph at the end of a sentence, else it comes after it; those of a table come after the row.
    ``label``: stands before the first line of text.
    """
    late: list[str] = []
    found: list[str] = []
    last = next((i for i in range(len(words) - 1, -1, -1) if words[i].strip()), -1) if boxes else -1
    done = at = 0
    blank, tail = True, ""
    for index, lines in boxes:
        new = "".join(words[at:index])
        at, blank, tail = index, blank and not new.strip(), (tail + new)[-_TAIL:]
        if in_table or (not blank and index <= last and not _SENTENCE.search(tail)):
            late += lines
            continue
        if not blank:
            found.append(label + "".join(words[done:index]).strip())
            label = ""
        found += lines
        done, blank, tail = index, True, ""
    text = label + "".join(words[done:]).strip()
    if text or not (found or late or in_table):  # an empty paragraph of the body is an empty line
        found.append(text)
    return found, late
