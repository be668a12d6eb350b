"""Controls of the forms in an OpenDocument text: what they show."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

CHECKED, UNCHECKED = "☒", "☐"
_MOST_OPTIONS = 1000


@dataclass
class Forms:
    """Reads ``form:form`` elements. ``shown``: by the control's name, complete after its end."""

    shown: dict[str, str] = field(default_factory=dict)
    _open: list[tuple[str, dict[str, str], list[str]]] = field(default_factory=list)

    def start(self, tag: str, values: dict[str, str]) -> None:
        """A control, or one of its options."""
        if tag == "form:option" and self._open:
            chosen = values.get("form:current-selected") or values.get("form:selected")
            options = self._open[-1][2]
            if chosen == "true" and len(options) < _MOST_OPTIONS:
                options.append(values.get("form:label") or values.get("form:value") or "")
        elif tag in _SHOWN:
            self._open.append((tag, values, []))

    def end(self, tag: str) -> None:
        """The end of a control."""
        if tag in _SHOWN and self._open:
            tag, values, options = self._open.pop()
            name = values.get("xml:id") or values.get("form:id") or ""
            self.shown[name] = " ".join(_SHOWN[tag](values, options).split())


def _value(values: dict[str, str], options: list[str]) -> str:
    return values.get("form:current-value") or values.get("form:value") or ""


def _mark(values: dict[str, str], options: list[str]) -> str:
    state = values.get("form:current-state") or values.get("form:state") or ""
    state = state or values.get("form:current-selected") or values.get("form:selected") or ""
    return f"{CHECKED if state in ('checked', 'true') else UNCHECKED} {values.get('form:label', '')}"


def _label(values: dict[str, str], options: list[str]) -> str:
    return values.get("form:label", "")


def _chosen(values: dict[str, str], options: list[str]) -> str:
    return ", ".join(options) or _value(values, options)


_SHOWN: dict[str, Callable[[dict[str, str], list[str]], str]] = {
    **dict.fromkeys(
        (
            f"form:{kind}"
            for kind in ("text", "textarea", "formatted-text", "number", "date", "time", "generic-control")
        ),
        _value,
    ),
    **dict.fromkeys(("form:checkbox", "form:radio"), _mark),
    **dict.fromkeys(("form:listbox", "form:combobox"), _chosen),
    **dict.fromkeys(("form:button", "form:fixed-text", "form:frame"), _label),
}


@dataclass
class FieldMark:
    """A field of a form as Word has them, which LibreOffice keeps."""

    kind: str = ""
    params: dict[str, str] = field(default_factory=dict)
    entries: list[str] = field(default_factory=list)

    def add(self, name: str, value: str) -> None:
        """One of its parameters."""
        key = re.split("[:.]", name)[-1].lower()
        if "listentry" in key:
            if len(self.entries) < _MOST_OPTIONS:
                self.entries.append(value)
        else:
            self.params[key] = value

    def shown(self) -> str:
        """What a check box or a list shows; "" for other fields."""
        if self.kind.endswith("FORMCHECKBOX"):
            checked = next((v for k, v in self.params.items() if k.startswith("checkbox_checked")), "")
            return CHECKED if checked.lower() in ("true", "1") else UNCHECKED
        if self.kind.endswith("FORMDROPDOWN"):
            chosen = next((v for k, v in self.params.items() if k.startswith("dropdown_selected")), "")
            index = int(chosen) if chosen.isdecimal() and len(chosen) < 6 else -1
            return self.entries[index] if 0 <= index < len(self.entries) else ""
        return ""
