"""Values of spreadsheet cells as their number format shows them (ECMA-376 part 1, 18.8.30 and 18.8.31).

Two choices of its own, since nothing should be lost or ambiguous: a number without a format has up to 15 digits, as in Excel's
formula bar, and a date in the format "short date", which every computer shows in its own way, is ISO 8601.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Context, Decimal
from fractions import Fraction
from functools import lru_cache

from jambacli.documents.extract.date_format import DatePart, date_parts, shown_date

_ACCOUNTING = (
    "_(* #,##0_);_(* (#,##0);_(* \"-\"_);_(@_)",
    "_($* #,##0_);_($* (#,##0);_($* \"-\"_);_(@_)",
    "_(* #,##0.00_);_(* (#,##0.00);_(* \"-\"??_);_(@_)",
    "_($* #,##0.00_);_($* (#,##0.00);_($* \"-\"??_);_(@_)",
)  # fmt: skip
#: The formats that files name by number alone. 14 and 22 are the "short date" of the computer.
BUILT_IN: dict[int, str] = {
    0: "General", 1: "0", 2: "0.00", 3: "#,##0", 4: "#,##0.00",
    5: "$#,##0_);($#,##0)", 6: "$#,##0_);[Red]($#,##0)", 7: "$#,##0.00_);($#,##0.00)", 8: "$#,##0.00_);[Red]($#,##0.00)",
    9: "0%", 10: "0.00%", 11: "0.00E+00", 12: "# ?/?", 13: "# ??/??",
    14: "yyyy-mm-dd", 15: "d-mmm-yy", 16: "d-mmm", 17: "mmm-yy", 18: "h:mm AM/PM", 19: "h:mm:ss AM/PM", 20: "h:mm",
    21: "h:mm:ss", 22: "yyyy-mm-dd h:mm", 37: "#,##0_);(#,##0)", 38: "#,##0_);[Red](#,##0)", 39: "#,##0.00_);(#,##0.00)",
    40: "#,##0.00_);[Red](#,##0.00)", **dict(zip((41, 42, 43, 44), _ACCOUNTING, strict=True)),
    45: "mm:ss", 46: "[h]:mm:ss", 47: "mm:ss.0", 48: "##0.0E+0", 49: "@",
    # Of East Asian versions: dates.
    **dict.fromkeys((27, 28, 29, 30, 31, 36, 50, 51, 52, 53, 54, 57, 58), "yyyy-mm-dd"),
    **dict.fromkeys((32, 33, 34, 35, 55, 56), "h:mm:ss"),
}  # fmt: skip

_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"?|\\(?P<escaped>.)|_(?P<space>.)|\*(?P<fill>.)|\[(?P<bracket>[^\]]*)\]|(?P<general>general|standard)'
    r"|(?P<noon>am/pm|a/p)|(?P<exponent>e[+-])|(?P<digit>[0#?])|(?P<other>.)",
    re.IGNORECASE | re.DOTALL,
)
_CONDITION = re.compile(r"(<=|>=|<>|<|>|=)\s*(-?\d+(?:\.\d+)?)")
_CURRENCY = re.compile(r"\$([^-]*)(?:-([0-9A-Fa-f]+))?")
_LONGEST_CODE = 1000
# Values of a format that are kept as text: dates repeat.
_MOST_KNOWN = 5000
_DIGITS = Context(prec=400, rounding=ROUND_HALF_UP)


def general(value: float) -> str:
    """A number without a format: up to 15 digits."""
    if value == int(value) and abs(value) < 1e15:
        return str(int(value))
    if 1e-9 <= abs(value) < 1e21:
        text = format(Decimal(f"{value:.15g}"), "f")
        return text.rstrip("0").rstrip(".") if "." in text else text
    mantissa, _, exponent = f"{value:.14e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}E{exponent}"


@dataclass(frozen=True)
class _Simple:
    """What most formats are: ``#,##0.00`` with something before and after it. ``template``: for Decimal, as in ``,.2f``."""

    before: str
    after: str
    template: str
    step: Decimal
    percents: int

    def shown(self, value: float, minus: str) -> str:
        exact = Decimal(f"{value:.15g}").scaleb(2 * self.percents)
        if exact.adjusted() > 300:
            return f"{minus}{value:.14e}"
        return f"{minus}{self.before}{exact.quantize(self.step, context=_DIGITS):{self.template}}{self.after}".strip()


@dataclass
class _Section:
    """One of a format's four. ``tokens``: kind and text. ``condition``: an operator and a number."""

    tokens: list[tuple[str, str]] = field(default_factory=list)
    condition: tuple[str, float] | None = None
    language: int = 0
    dates: list[DatePart] | None = None
    has_text: bool = False
    simple: _Simple | None = None

    def holds(self, value: float) -> bool:
        if self.condition is None:
            return False
        operator, limit = self.condition
        match operator:
            case "<":
                return value < limit
            case "<=":
                return value <= limit
            case ">":
                return value > limit
            case ">=":
                return value >= limit
            case "<>":
                return value != limit
        return value == limit


class NumberFormat:
    """A format code, such as ``#,##0.00;[Red](#,##0.00)``."""

    def __init__(self, code: str) -> None:
        self.sections = [_section(part) for part in _split(code[:_LONGEST_CODE])][:4]
        self.texts = next((s for s in self.sections if s.has_text), None)
        if self.texts is None and len(self.sections) == 4:
            self.texts = self.sections[3]
        numbers = [s for s in self.sections if s is not self.texts or len(self.sections) == 1]
        self.numbers = numbers[:3]
        self.is_date = any(s.dates is not None for s in self.numbers)
        self._known: dict[tuple[float, bool], str] = {}

    def number(self, value: float, *, from_1904: bool = False) -> str:
        """A number or a date's serial number as shown; "" if the format hides it."""
        known = self._known.get((value, from_1904))
        if known is None:
            known = self._number(value, from_1904)
            if len(self._known) < _MOST_KNOWN:
                self._known[value, from_1904] = known
        return known

    def _number(self, value: float, from_1904: bool) -> str:
        if not math.isfinite(value):
            return str(value)
        if not self.numbers:
            return general(value)
        section, negative = self._chosen(value)
        if section.dates is not None:
            date = shown_date(section.dates, value, section.language, from_1904)
            return " ".join(date.split()) if date is not None else general(value)
        minus = "-" if value < 0 and not negative and section.tokens else ""
        if section.simple is not None:
            return section.simple.shown(abs(value), minus)
        return " ".join((minus + _number(section.tokens, abs(value))).split())

    def text(self, value: str) -> str:
        """A text as shown."""
        if self.texts is None:
            return value
        return "".join(value if kind == "text" else text for kind, text in self.texts.tokens if kind in ("text", "say"))

    def _chosen(self, value: float) -> tuple[_Section, bool]:
        """The section for a value, and whether it is one for negative numbers alone, which are shown without a minus."""
        sections = self.numbers
        if not any(s.condition for s in sections):
            if value < 0 and len(sections) > 1:
                return sections[1], True
            return sections[2] if value == 0 and len(sections) > 2 else sections[0], False
        for i, section in enumerate(sections):
            if section.holds(value):
                return section, bool(section.condition and section.condition[0][0] == "<" and section.condition[1] <= 0)
            if section.condition is None and (i > 1 or (i == 0 and value > 0) or (i == 1 and value < 0)):
                return section, i == 1 and sections[0].condition is None
        rest = [s for s in sections if s.condition is None]
        return (rest[-1] if rest else sections[-1]), False


@lru_cache(maxsize=1000)
def number_format(code: str) -> NumberFormat:
    """The format of a code; "" is General."""
    return NumberFormat(code or "General")


def _split(code: str) -> list[str]:
    """The sections of a code: divided by semicolons that are no text."""
    parts, start = [], 0
    for match in _TOKEN.finditer(code):
        if match["other"] == ";":
            parts.append(code[start : match.start()])
            start = match.end()
    return [*parts, code[start:]]


def _section(code: str) -> _Section:
    section = _Section()
    for match in _TOKEN.finditer(code):
        kind, text = str(match.lastgroup), match[str(match.lastgroup)]
        match kind:
            case "quoted" | "escaped":
                section.tokens.append(("say", text))
            case "space":
                section.tokens.append(("say", " "))
            case "fill":
                section.tokens.append(("say", " " if text == " " else ""))
            case "bracket":
                _bracket(section, text)
            case "other" if text == "@":
                section.has_text = True
                section.tokens.append(("text", text))
            case "other" if text in "ymdhsYMDHSbBgGeE":
                section.tokens.append(("date", text.lower()))
            case "other" if text in ".,%/":
                section.tokens.append((text, text))
            case "other":
                section.tokens.append(("say", text))
            case _:
                section.tokens.append((kind, text))
    kinds = [kind for kind, _ in section.tokens]
    if "date" in kinds or "elapsed" in kinds or "noon" in kinds:
        section.dates = date_parts(section.tokens)
    else:
        section.simple = _simple(section.tokens)
    return section


def _simple(tokens: list[tuple[str, str]]) -> _Simple | None:
    marks = "".join(text if kind in ("digit", ".", ",") else "%" if kind == "%" else "x" for kind, text in tokens)
    found = re.fullmatch(r"([x%]*)(#,##0|0)(?:\.(0+))?([x%]*)", marks)
    if found is None or any(kind in ("text", "general", "exponent", "/") for kind, _ in tokens):
        return None
    before, after = ("".join(text for _, text in part) for part in (tokens[: found.end(1)], tokens[found.start(4) :]))
    if " " in before + after and ("  " in before + after or before.startswith(" ")):
        before, after = " ".join(before.split()) + " " * before.endswith(" "), after.rstrip()
    decimals = len(found[3] or "")
    template = f"{',' if ',' in found[2] else ''}.{decimals}f"
    return _Simple(before, after, template, Decimal(1).scaleb(-decimals), marks.count("%"))


def _bracket(section: _Section, text: str) -> None:
    if found := _CONDITION.fullmatch(text):
        section.condition = found[1], float(found[2])
    elif found := _CURRENCY.match(text):
        section.language = int(found[2], 16) & 0xFFFF if found[2] else 0
        if found[1]:
            section.tokens.append(("say", found[1]))
    elif re.fullmatch(r"h+|m+|s+", text, re.IGNORECASE):
        section.tokens.append(("elapsed", text.lower()))


def _number(tokens: list[tuple[str, str]], value: float) -> str:
    """A number that is not negative, in the format of a section."""
    kinds = [kind for kind, _ in tokens]
    if "general" in kinds or "text" in kinds:
        return "".join(general(value) if kind in ("general", "text") else text for kind, text in tokens)
    if "digit" not in kinds:
        return "".join(text for _, text in tokens)
    exact = Decimal(f"{value:.15g}") if abs(value) >= 1e-290 else Decimal(0)
    exact *= Decimal(100) ** kinds.count("%")
    if "/" in kinds and "exponent" not in kinds:
        return _fraction(tokens, exact)
    if "exponent" in kinds:
        return _scientific(tokens, exact)
    return _plain(tokens, exact)


def _plain(tokens: list[tuple[str, str]], value: Decimal) -> str:
    kinds = [kind for kind, _ in tokens]
    point = kinds.index(".") if "." in kinds else len(tokens)
    places = [i for i, kind in enumerate(kinds) if kind == "digit"]
    whole = [i for i in places if i < point]
    decimals = [i for i in places if i > point]
    last = whole[-1] if whole else point
    commas = [i for i, kind in enumerate(kinds) if kind == ","]
    ends = {i for i in (last, places[-1]) if i < len(tokens)}
    scaling = [i for i in commas if any(i > end and set(kinds[end + 1 : i]) <= {","} for end in ends)]
    grouped = any(whole and whole[0] < i < last for i in commas)
    value = value.scaleb(-3 * len(scaling))
    digits = f"{value.quantize(Decimal(1).scaleb(-len(decimals)), context=_DIGITS):f}"
    before, _, after = digits.partition(".")
    shown = _whole_digits(before.lstrip("0"), [tokens[i][1] for i in whole], grouped)
    out, d = [], 0
    fraction = _decimal_digits(after, [tokens[i][1] for i in decimals])
    for i, (kind, text) in enumerate(tokens):
        if kind == "digit":
            out.append(shown.pop(0) if i < point else fraction[d])
            d += i > point
        elif kind == ".":
            # Without digits before it, a point follows whatever there is of the number.
            out.append((before.lstrip("0") if not whole else "") + ".")
        elif kind != ",":
            out.append(text)
    return "".join(out)


def _whole_digits(digits: str, places: list[str], grouped: bool) -> list[str]:
    """What each of the places before the point shows: the first one takes all digits that are left."""
    out: list[str] = []
    for i in range(len(places)):
        place = places[-1 - i]
        rest = i == len(places) - 1
        taken = (digits if rest else digits[-1:]) if digits else {"0": "0", "?": " "}.get(place, "")
        digits = "" if rest else digits[:-1]
        if grouped:
            marked = ""
            for j, char in enumerate(reversed(taken)):
                marked = char + ("," if char.isdigit() and i + j and (i + j) % 3 == 0 else "") + marked
            taken = marked
        out.insert(0, taken)
    return out


def _decimal_digits(digits: str, places: list[str]) -> list[str]:
    """What each of the places after the point shows: zeros at the end only where the format asks for them."""
    out = list(digits.ljust(len(places), "0"))
    for i in range(len(places) - 1, -1, -1):
        if out[i] != "0" or places[i] == "0":
            break
        out[i] = " " if places[i] == "?" else ""
    return out


def _scientific(tokens: list[tuple[str, str]], value: Decimal) -> str:
    kinds = [kind for kind, _ in tokens]
    at = kinds.index("exponent")
    mantissa = tokens[:at]
    point = kinds.index(".") if "." in kinds[:at] else at
    whole = max(1, sum(kind == "digit" for kind in kinds[:point]))
    decimals = sum(kind == "digit" for kind in kinds[point:at])
    exponent = 0
    if value:
        exponent = (value.adjusted() // whole) * whole if whole > 1 else value.adjusted()
        step = Decimal(1).scaleb(-decimals)
        if value.scaleb(-exponent).quantize(step, context=_DIGITS) >= Decimal(10) ** whole:
            exponent += whole
    width = sum(kind == "digit" for kind in kinds[at:])
    sign = "-" if exponent < 0 else "+" if tokens[at][1][1] == "+" else ""
    rest = "".join(text for kind, text in tokens[at + 1 :] if kind not in ("digit", ","))
    return f"{_plain(mantissa, value.scaleb(-exponent))}E{sign}{abs(exponent):0{width}d}{rest}"


def _fraction(tokens: list[tuple[str, str]], value: Decimal) -> str:
    kinds = [kind for kind, _ in tokens]
    slash = kinds.index("/")
    above = slash
    while above > 0 and kinds[above - 1] == "digit":
        above -= 1
    below = slash + 1
    while below < len(tokens) and (kinds[below] == "digit" or tokens[below][1].isdigit()):
        below += 1
    stated = "".join(text for _, text in tokens[slash + 1 : below])
    mixed = "digit" in kinds[:above]
    whole = int(value) if mixed else 0
    part = value - whole
    if stated.isdigit() and int(stated):
        bottom = int(stated)
        top = int((part * bottom).quantize(Decimal(1), context=_DIGITS))
    else:
        near = Fraction(part).limit_denominator(10 ** min(max(1, len(stated)), 7) - 1)
        top, bottom = near.numerator, near.denominator
    if mixed and top == bottom:
        whole, top = whole + 1, 0
    text = f"{top}/{bottom}" if top or not mixed else ""
    if mixed:
        text = f"{whole} {text}".rstrip() if whole or not text else text
    say = ["".join(t for kind, t in part if kind == "say") for part in (_edge(tokens), tokens[below:])]
    return f"{say[0]}{text}{say[1]}"


def _edge(tokens: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The tokens before the first digit."""
    return next((tokens[:i] for i, (kind, _) in enumerate(tokens) if kind == "digit"), [])
