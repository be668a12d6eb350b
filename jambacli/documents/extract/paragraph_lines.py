"""A paragraph with text boxes in it -> lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

_SENTENCE = re.compile(r"[.!?:;…]['\"”’»)]*\s*\Z")

#: How many of a paragraph's texts stand before a text box, and its lines.
Box = tuple[int, list[str]]


def lines_of(words: Sequence[str], boxes: Sequence[Box], label: str, *, in_table: bool) -> tuple[list[str], list[str]]:
    """The lines of a paragraph, and those of text boxes that come after it.

    A text box divides its paragraph at the end of a sentence, else it comes after it; those of a table come after the row.
    ``label``: stands before the first line of text.
    """
    late: list[str] = []
    found: list[str] = []
    done = 0
    for index, lines in boxes:
        before, rest = "".join(words[done:index]), "".join(words[index:])
        if in_table or (before.strip() and rest.strip() and not _SENTENCE.search(before)):
            late += lines
            continue
        if before.strip():
            found.append(label + before.strip())
            label = ""
        found += lines
        done = index
    text = label + "".join(words[done:]).strip()
    if text or not (found or late or in_table):  # an empty paragraph of the body is an empty line
        found.append(text)
    return found, late
