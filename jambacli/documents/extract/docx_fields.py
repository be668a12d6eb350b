"""Fields and content controls: what they show where the document holds no text for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jambacli.documents.extract.docx_styles import on
from jambacli.documents.extract.ooxml import attribute

CHECKED, UNCHECKED = "☒", "☐"


@dataclass
class Field:
    """A complex field that is being read. ``start``: how many words its paragraph had before; ``lost``: text in its code."""

    start: int
    in_code: bool = True
    code: str = ""
    lost: list[str] = field(default_factory=list)
    _kind: str = ""
    _checked: bool | None = None
    _default: str | None = None
    _result: int | None = None
    _entries: list[str] = field(default_factory=list)

    @property
    def is_number(self) -> bool:
        """Whether it shows a number of a list that is stored nowhere."""
        return self.code.split()[:1] in (["LISTNUM"], ["AUTONUM"], ["AUTONUMLGL"], ["AUTONUMOUT"])

    def add(self, tag: str, value: str | None, text: str | None) -> None:
        """A part of its code or of its form data."""
        if tag == "instrText":
            self.code += text or ""
        elif tag == "checked":
            self._checked = on(value)
        elif tag == "default":
            self._default = value or ""
        elif tag == "result" and value and value.isdecimal():
            self._result = int(value)
        elif tag == "listEntry":
            self._entries.append(value or "")
        elif tag in ("checkBox", "ddList"):
            self._kind = tag

    def value(self) -> str:
        """What a check box or a list of a form shows; "" for other fields."""
        if self._kind == "checkBox" or (not self._kind and "FORMCHECKBOX" in self.code):
            checked = self._checked if self._checked is not None else self._default is not None and on(self._default)
            return CHECKED if checked else UNCHECKED
        if self._kind == "ddList":
            chosen = self._result
            if chosen is None:
                chosen = int(self._default) if self._default and self._default.isdecimal() else 0
            return self._entries[chosen] if chosen < len(self._entries) else ""
        return ""


@dataclass
class Control:
    """A content control. ``said``: how much had been said when it began."""

    said: int
    words: int
    lines: int
    _value: str = ""
    _items: dict[str, str] = field(default_factory=dict)
    _last: str | None = None

    def add(self, tag: str, element: Any) -> None:
        """One of its properties."""
        if tag == "checked":
            self._value = CHECKED if on(attribute(element, "w14:val")) else UNCHECKED
        elif tag == "checkbox" and not self._value:
            self._value = UNCHECKED
        elif tag == "listItem":
            value = attribute(element, "w:value") or ""
            self._items[value] = attribute(element, "w:displayText") or value
        elif tag in ("dropDownList", "comboBox"):
            self._last = attribute(element, "w:lastValue")
        elif tag == "date":
            self._value = (attribute(element, "w:fullDate") or "").partition("T")[0]

    def value(self) -> str:
        """What it shows if its content is empty."""
        return self._value or self._items.get(self._last or "", self._last or "")
