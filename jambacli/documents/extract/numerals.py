"""Numbers as lists show them: letters, Roman numerals, words."""

from __future__ import annotations

_ROMAN = list(zip((1000, 900, 500, 400, 100, 90, 50, 40, 10, 9, 5, 4, 1),
                  ("M", "CM", "D", "CD", "C", "XC", "L", "XL", "X", "IX", "V", "IV", "I"), strict=True))  # fmt: skip


def letters(number: int, alphabet: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ") -> str:
    """A, B, ... Z, AA, AB: as browsers count."""
    out = ""
    while number > 0:
        number, rest = divmod(number - 1, len(alphabet))
        out = alphabet[rest] + out
    return out


def roman(number: int) -> str:
    """A Roman numeral in capitals; the number itself where there is none."""
    if not 0 < number < 4000:
        return str(number)
    out = ""
    for value, sign in _ROMAN:
        count, number = divmod(number, value)
        out += sign * count
    return out


_UNITS_NAMES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
    seventeen eighteen nineteen"""
_UNITS = _UNITS_NAMES.split()
_TENS_NAMES = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = _TENS_NAMES.split()
_ORDINALS = {"one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
             "twelve": "twelfth"}  # fmt: skip
_RUSSIAN = "АБВГДЕЖЗИКЛМНОПРСТУФХЦЧШЩЫЭЮЯ"
_HEBREW = "אבגדהוזחטיכלמנסעפצקרשת"
_ARABIC = "أبتثجحخدذرزسشصضطظعغفقكلمنهوي"
_ABJAD = "أبجدهوزحطيكلمنسعفصقرشتثخذضظغ"
_THAI = "กขคงจฉชซฌญฎฏฐฑฒณดตถทธนบปผฝพฟภมยรลวศษสหฬอฮ"
_KANA = "アイウエオカキクケコサシスセソタチツテトナニヌネノハヒフヘホマミムメモヤユヨラリルレロワヲン"
_CHINESE = "〇一二三四五六七八九"
_REPEATED = {
    "lowerLetter": "abcdefghijklmnopqrstuvwxyz",
    "upperLetter": "ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "russianLower": _RUSSIAN.lower(),
    "russianUpper": _RUSSIAN,
    "hebrew2": _HEBREW,
    "arabicAlpha": _ARABIC,
    "arabicAbjad": _ABJAD,
    "thaiLetters": _THAI,
    "aiueoFullWidth": _KANA,
    "chicago": "*†‡§",
}
_COUNTING_NAMES = """chineseCounting chineseCountingThousand ideographDigital japaneseCounting japaneseDigitalTenThousand
    taiwaneseCounting taiwaneseCountingThousand taiwaneseDigital koreanDigital2"""
_COUNTING = frozenset(_COUNTING_NAMES.split())
_ENCLOSED = {"decimalEnclosedCircle": 0x2460, "decimalEnclosedCircleChinese": 0x2460, "decimalEnclosedParen": 0x2474,
             "decimalEnclosedFullstop": 0x2488}  # fmt: skip


def shown(number: int, kind: str) -> str:
    """A number in a format of WordprocessingML (ST_NumberFormat), words in English; decimal if it is unknown."""
    if kind in ("none", "bullet"):
        return ""
    if kind == "decimalZero":
        return f"{number:02}"
    if kind in ("lowerRoman", "upperRoman"):
        return roman(number).lower() if kind == "lowerRoman" else roman(number)
    if kind in _REPEATED and 0 < number < 1000:
        times, place = divmod(number - 1, len(_REPEATED[kind]))
        return _REPEATED[kind][place] * (times + 1)
    if kind == "ordinal":
        return f"{number}{_ending(number)}"
    if kind == "cardinalText":
        return _words(number).capitalize()
    if kind == "ordinalText":
        return _ordinal_words(number).capitalize()
    if kind == "hex":
        return f"{number:X}"
    if kind == "numberInDash":
        return f"- {number} -"
    if kind == "decimalFullWidth":
        return str(number).translate({ord("0") + i: 0xFF10 + i for i in range(10)})
    if kind in _ENCLOSED and 0 < number <= 20:
        return chr(_ENCLOSED[kind] + number - 1)
    if kind in _COUNTING and 0 < number < 100:
        return _chinese(number, digits=kind in ("ideographDigital", "taiwaneseDigital", "koreanDigital2"))
    return str(number)


def _ending(number: int) -> str:
    return "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


def _words(number: int) -> str:
    if not 0 <= number < 1000:
        return str(number)
    if number < 20:
        return _UNITS[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_UNITS[rest]}" if rest else "")
    hundreds, rest = divmod(number, 100)
    return f"{_UNITS[hundreds]} hundred" + (f" {_words(rest)}" if rest else "")


def _ordinal_words(number: int) -> str:
    words = _words(number)
    if words.isdecimal():
        return f"{number}{_ending(number)}"
    start, sign, last = words.rpartition("-") if "-" in words else words.rpartition(" ")
    return start + sign + (_ORDINALS.get(last) or (last[:-1] + "ieth" if last.endswith("y") else last + "th"))


def _chinese(number: int, *, digits: bool) -> str:
    tens, rest = divmod(number, 10)
    if digits:
        return "".join(_CHINESE[int(d)] for d in str(number))
    return (_CHINESE[tens] if tens > 1 else "") + ("十" if tens else "") + (_CHINESE[rest] if rest else "")
