"""Raised and lowered text as plain text."""

from __future__ import annotations

import re

_UP = str.maketrans("0123456789+-−=()n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁼⁽⁾ⁿ")
_DOWN = str.maketrans("0123456789+-−=()", "₀₁₂₃₄₅₆₇₈₉₊₋₋₌₍₎")
_SHIFTED_ALREADY = frozenset("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿ₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎")
# Raised for its looks only: endings of ordinals, marks, references to notes.
_LOOKS = re.compile(
    r"(?i)(st|nd|rd|th|er|re|ère|e|ème|o|a|os|as|º|ª|tm|sm|mr?s?|®|™|©|[*†‡§¶]+|\[.*\]|\(.*\)|.*\s.*|.{12,})"
)


def superscript(text: str) -> str:
    """``x²`` for digits and signs, ``^k`` or ``^(2k)`` for other short text, the text itself if it is raised for its looks."""
    return _shifted(text, _UP, "^")


def subscript(text: str) -> str:
    """``H₂`` for digits and signs, ``_i`` or ``_(ij)`` for other short text."""
    return _shifted(text, _DOWN, "_")


def struck(text: str) -> str:
    """``~~900~~`` for text that is struck through."""
    core = text.strip()
    return text.replace(core, f"~~{core}~~") if core else text


def _shifted(text: str, table: dict[int, int], sign: str) -> str:
    core = text.strip()
    if not core or set(core) <= _SHIFTED_ALREADY:
        return text
    if re.search(r"\d", core) and all(ord(c) in table for c in core):
        return core.translate(table)
    if _LOOKS.fullmatch(core) or not core.isprintable():
        return text
    return f"{sign}{core}" if len(core) == 1 else f"{sign}({core})"
