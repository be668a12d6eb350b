"""Formulas as a line of text: ``f = 0.05x + 12``, ``(a + b)/2``, ``x^2``, ``∑_(i = 1)^n i``.

The elements are those of Office's mathematical markup (OMML, ECMA-376 part 1, 22.1); MathML's map to the same functions.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

#: A hyphen of a word in a formula, which is no minus.
HYPHEN = "\ue000"
#: A space that the layout of a page does not change.
_GAP = "\ue001"
_RELATIONS = "=≠<>≤≥≪≫≈≡≅∼≃∝±∓×÷⋅·∗*→←↔⇒⇐⇔↦∈∉⊂⊆⊃∪∩∧∨≔"
_SPACED = re.compile(rf"\s*([{re.escape(_RELATIONS)}]+)\s*")
_BINARY = re.compile(r"(?<=[\w)\]}!′'²³°%∞])\s*([+\-−])\s*(?=\S)")
_ATOM = re.compile(r"[\w.′∞α-ωΑ-Ω]+|√?\([^()]*\)")

#: Operators without a shape (application of a function, a product), and signs over a letter.
_INVISIBLE = dict.fromkeys((8289, 8290, 8291, 8292))
_LARGE = frozenset("∑∏∫∮⋃⋂∐")
_ACCENTS = {"^": "\u0302", "ˆ": "\u0302", "¯": "\u0305", "‾": "\u0305", "~": "\u0303", "→": "\u20d7", "˙": "\u0307"}

#: A child of an element of a formula: its name and its text, or its value.
Child = tuple[str, str]


def spaced(text: str) -> str:
    """A whole formula with spaces around its operators."""
    text = _BINARY.sub(r" \1 ", _SPACED.sub(r" \1 ", text))
    return re.sub(r"(?<=[(\[{^_]) ", "", re.sub(r" +", " ", text)).strip().replace(HYPHEN, "-").replace(_GAP, " ")


def element(tag: str, children: Sequence[Child]) -> str:
    """The text of one OMML element (its local name) from those of its children."""

    def one(name: str, default: str = "") -> str:
        return next((text for child, text in children if child == name), default)

    def all_of(name: str) -> list[str]:
        return [text for child, text in children if child == name]

    match tag:
        case "f":
            return fraction(one("num"), one("den"), bar=one("fPr") != "noBar")
        case "sSup":
            return f"{base(one('e'))}{power(one('sup'))}"
        case "sSub":
            return f"{base(one('e'))}{index(one('sub'))}"
        case "sSubSup":
            return f"{base(one('e'))}{index(one('sub'))}{power(one('sup'))}"
        case "sPre":
            return f"{index(one('sub'))}{power(one('sup'))}{one('e')}"
        case "rad":
            return root(one("e"), one("deg"))
        case "nary":
            return f"{one('naryPr') or '∫'}{index(one('sub'))}{power(one('sup'))} {one('e')}"
        case "d":
            opening, separator, closing = (
                (*one("dPr").split("\0"), "", "")[:3] if "\0" in one("dPr") else ("(", "|", ")")
            )
            return f"{opening}{f' {separator} '.join(all_of('e'))}{closing}"
        case "func":
            argument = one("e")
            return f"{one('fName')}{'' if argument.startswith('(') else ' '}{argument}"
        case "limLow":
            return f"{one('e')}{index(one('lim'))}"
        case "limUpp":
            return f"{one('e')}{power(one('lim'))}"
        case "acc":
            return _accented(one("e"), one("accPr") or "\u0302")
        case "bar":
            return _accented(one("e"), "\u0305")
        case "mr":
            return ", ".join(all_of("e"))
        case "m":
            return "; ".join(all_of("mr"))
        case "eqArr":
            return "; ".join(e.replace("&", "") for e in all_of("e"))
        case "dPr":
            return "\0".join((one("begChr", "("), one("sepChr", "|"), one("endChr", ")")))
        case "naryPr" | "accPr":
            return one("chr")
        case "fPr":
            return one("type")
        case "rPr":
            return "nor" if any(child == "nor" for child, _ in children) else ""
        case "r":
            text = "".join(text for child, text in children if child in ("t", ""))
            return text.replace("-", HYPHEN) if one("rPr") == "nor" else text
        case _ if tag.endswith("Pr"):
            return ""
    return "".join(text for child, text in children if not child.endswith("Pr"))


def mathml(tag: str, parts: Sequence[str]) -> str:
    """The text of one element of MathML from those of its children."""
    parts = [" ".join(part.translate(_INVISIBLE).split()) for part in parts]
    a, b, c = (*parts, "", "", "")[:3]
    match tag:
        case "math":
            return spaced("".join(parts))
        case "mfrac":
            return fraction(a, b)
        case "msup" | "mover":
            return f"{base(a)}{power(b)}" if tag == "msup" or len(b) > 1 else _accented(a, _ACCENTS.get(b, f"^{b}"))
        case "msub" | "munder":
            return f"{base(a)}{index(b)}"
        case "msubsup" | "munderover":
            return f"{base(a)}{index(b)}{power(c)}" + (_GAP if a in _LARGE else "")
        case "msqrt":
            return root("".join(parts))
        case "mroot":
            return root(a, b)
        case "mtable":
            return "; ".join(filter(None, parts))
        case "mtr":
            return ", ".join(filter(None, parts))
    return "".join(parts)


def fraction(numerator: str, denominator: str, *, bar: bool = True) -> str:
    """``a/b``, or ``n choose k`` without a bar."""
    return f"{_wrapped(numerator)}/{_wrapped(denominator)}" if bar else f"{numerator} choose {denominator}"


def base(text: str) -> str:
    """What a power or an index belongs to."""
    return text if len(text.strip()) < 2 or _ATOM.fullmatch(text.strip()) else f"({text.strip()})"


def power(text: str) -> str:
    """``^2``; "" for none."""
    return f"^{_wrapped(text)}" if text.strip() else ""


def index(text: str) -> str:
    """``_1``; "" for none."""
    return f"_{_wrapped(text)}" if text.strip() else ""


def root(text: str, degree: str = "") -> str:
    """``√(x + 1)``, with a degree ``root_3(x)``."""
    return f"root{index(degree)}({text.strip()})" if degree.strip() else f"√({text.strip()})"


def _wrapped(text: str) -> str:
    text = text.strip()
    return text if _ATOM.fullmatch(text) or len(text) == 1 else f"({text})"


def _accented(text: str, mark: str) -> str:
    if len(text) == 1 and ("\u0300" <= mark <= "\u036f" or mark == "\u20d7"):
        return unicodedata.normalize("NFC", text + mark)
    return f"{text}{mark}" if mark in "′″‴" or mark[0] == "^" else f"({text}){mark}" if len(text) > 1 else text
