"""Dates and times of spreadsheet cells, which are numbers of days, in the format of a cell."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal

#: The last day that a serial number can name: 9999-12-31.
_LAST = 2_958_466
_ENGLISH = (
    "January February March April May June July August September October November December",
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
)
#: Months and days by the primary language of a format's locale (the low ten bits of its number), with the length of short
#: names.
_NAMES: dict[int, tuple[str, str]] = {
    0x07: ("Januar Februar März April Mai Juni Juli August September Oktober November Dezember",
           "Montag Dienstag Mittwoch Donnerstag Freitag Samstag Sonntag"),
    0x0A: ("enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
           "lunes martes miércoles jueves viernes sábado domingo"),
    0x0C: ("janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
           "lundi mardi mercredi jeudi vendredi samedi dimanche"),
    0x10: ("gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
           "lunedì martedì mercoledì giovedì venerdì sabato domenica"),
    0x13: ("januari februari maart april mei juni juli augustus september oktober november december",
           "maandag dinsdag woensdag donderdag vrijdag zaterdag zondag"),
    0x16: ("janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
           "segunda-feira terça-feira quarta-feira quinta-feira sexta-feira sábado domingo"),
}  # fmt: skip
_TWO_LETTER_DAYS = (0x07, 0x13)


@dataclass(frozen=True)
class DatePart:
    """A piece of a date's format. ``kind``: a letter of y, m, d, h, s; "min", "noon", "say", "fraction"; "[h]", "[min]",
    "[s]" for time that has passed. ``text``: what it says, or its letters."""

    kind: str
    text: str


def date_parts(tokens: list[tuple[str, str]]) -> list[DatePart]:
    """The pieces of a section of a number format that is a date, from its tokens."""
    parts: list[DatePart] = []
    for i, (kind, text) in enumerate(tokens):
        if kind == "date" and parts and parts[-1].kind == text and tokens[i - 1][0] == "date":
            parts[-1] = DatePart(text, parts[-1].text + text)
        elif kind == "date":
            parts.append(DatePart(text, text))
        elif kind == "exponent":
            parts += [DatePart("e", "e"), DatePart("say", text[1:])]
        elif kind == "elapsed":
            parts.append(DatePart(f"[{'min' if text[0] == 'm' else text[0]}]", text))
        elif kind == "digit" and parts and parts[-1].kind in (".", "fraction"):
            parts[-1] = DatePart("fraction", parts[-1].text + text)
        elif kind == "." and i + 1 < len(tokens) and tokens[i + 1] == ("digit", "0"):
            parts.append(DatePart(".", "."))
        else:
            parts.append(DatePart("noon" if kind == "noon" else "say", text))
    return _with_minutes(parts)


def _with_minutes(parts: list[DatePart]) -> list[DatePart]:
    """``m`` is a minute after hours and before seconds, else a month."""
    units = [i for i, part in enumerate(parts) if part.kind not in ("say", "noon", ".", "fraction")]
    for n, i in enumerate(units):
        if parts[i].kind != "m" or len(parts[i].text) > 2:
            continue
        before = parts[units[n - 1]].kind if n else ""
        after = parts[units[n + 1]].kind if n + 1 < len(units) else ""
        if before in ("h", "[h]") or after in ("s", "[s]"):
            parts[i] = DatePart("min", parts[i].text)
    return parts


def shown_date(parts: list[DatePart], serial: float, language: int, from_1904: bool) -> str | None:
    """A serial number as a date; None if it is none: it is negative, or after the year 9999."""
    if not 0 <= serial < _LAST:
        return None
    decimals = max((len(p.text) - 1 for p in parts if p.kind == "fraction"), default=0)
    step = Decimal(1).scaleb(-min(decimals, 6))
    seconds = (Decimal(repr(serial)) * 86400).quantize(step, rounding=ROUND_HALF_UP)
    days, rest = divmod(seconds, 86400)
    return _Moment(int(days), rest, seconds, language, from_1904).shown(parts)


class _Moment:
    """``day``: whole days; ``rest``: seconds of the day; ``seconds``: all of them."""

    def __init__(self, day: int, rest: Decimal, seconds: Decimal, language: int, from_1904: bool) -> None:
        self.rest, self.seconds, self.language = rest, seconds, language & 0x3FF
        self.year, self.month, self.day, self.weekday = _calendar(day, from_1904)

    def shown(self, parts: list[DatePart]) -> str:
        noon = any(p.kind == "noon" for p in parts)
        return "".join(self._part(p, noon) for p in parts)

    def _part(self, part: DatePart, noon: bool) -> str:
        size = len(part.text)
        hour, minute, second = int(self.rest // 3600), int(self.rest // 60 % 60), int(self.rest % 60)
        match part.kind:
            case "y":
                return f"{self.year % 100:02d}" if size < 3 else f"{self.year:04d}"
            case "e":
                return f"{self.year:04d}"
            case "b":
                return f"{(self.year + 543) % 100:02d}" if size < 3 else f"{self.year + 543}"
            case "m":
                return self._name(0, self.month - 1, size) if size > 2 else f"{self.month:0{size}d}"
            case "d":
                return self._name(1, self.weekday, size) if size > 2 else f"{self.day:0{size}d}"
            case "h":
                return f"{(hour % 12 or 12) if noon else hour:0{min(size, 2)}d}"
            case "min":
                return f"{minute:0{min(size, 2)}d}"
            case "s":
                return f"{second:0{min(size, 2)}d}"
            case "[h]" | "[min]" | "[s]":
                unit = {"[h]": 3600, "[min]": 60, "[s]": 1}[part.kind]
                return f"{int(self.seconds // unit):0{size}d}"
            case "fraction":
                digits = f"{self.rest % 1:.{size - 1}f}"
                return digits[1:]
            case "noon":
                morning, evening = part.text.split("/")
                return evening if hour >= 12 else morning
            case "g":
                return ""
        return part.text

    def _name(self, which: int, index: int, size: int) -> str:
        names = _NAMES.get(self.language, _ENGLISH)[which].split()
        name = names[index]
        if size == 5:
            return name[:1]
        if size > 3:
            return name
        return name[:2] if which and self.language in _TWO_LETTER_DAYS else name[:3]


def _calendar(day: int, from_1904: bool) -> tuple[int, int, int, int]:
    """Year, month, day and weekday (0: Monday). From 1900 on, day 60 is a 29 February that never was."""
    if from_1904:
        found = date(1904, 1, 1) + timedelta(days=min(day, _LAST - 1463))
    elif day == 0:
        return 1900, 1, 0, 5
    elif day == 60:
        return 1900, 2, 29, 2
    else:
        found = date(1899, 12, 31 if day < 60 else 30) + timedelta(days=day)
    return found.year, found.month, found.day, found.weekday()
