"""What stands on a PDF's page besides its text: values of form fields, notes and comments."""

from __future__ import annotations

import ctypes
import html
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jambacli.documents.extract.pdf_layout import Run
from jambacli.documents.extract.pdf_page import string_of

# Annotations read on one page.
_MAX_ANNOTATIONS = 5_000
# Bytes of text fields drawn on one page.
_MAX_DRAWN = 1_000_000
# Annotation flags: not shown on a screen. Field flags: a password, a radio button.
_HIDDEN, _NO_VIEW, _PASSWORD, _RADIO = 1 << 1, 1 << 5, 1 << 13, 1 << 15
# A line of a value that fills a larger box.
_LINE_HEIGHT = 12.0


@dataclass
class Besides:
    """``placed``: text at its place on the page. ``comments``: text for the page's end. ``fields``: how many form fields the
    page has. ``hidden``, ``files``: annotations not read since they are hidden, and names of attached files."""

    placed: list[Run] = field(default_factory=list)
    comments: list[str] = field(default_factory=list)
    fields: int = 0
    hidden: int = 0
    passwords: int = 0
    files: list[str] = field(default_factory=list)


class Forms:
    """The form environment of a document, for the values of its fields."""

    def __init__(self, document: Any) -> None:
        from pypdfium2 import raw

        kind = raw.FPDF_GetFormType(document.raw)
        self.xfa = kind in (raw.FORMTYPE_XFA_FULL, raw.FORMTYPE_XFA_FOREGROUND)
        self._handle = None
        if kind != raw.FORMTYPE_NONE:
            self._config = raw.FPDF_FORMFILLINFO(version=2)  # without scripts, and kept while the handle lives
            self._handle = raw.FPDFDOC_InitFormFillEnvironment(document.raw, self._config)

    def close(self) -> None:
        """Release the environment, before the document."""
        from pypdfium2 import raw

        if self._handle:
            raw.FPDFDOC_ExitFormFillEnvironment(self._handle)
            self._handle = None

    def besides(self, page: Any, words: str) -> Besides:
        """What stands on a page besides its text ``words``."""
        from pypdfium2 import raw

        found = Besides()
        count = min(raw.FPDFPage_GetAnnotCount(page.raw), _MAX_ANNOTATIONS)
        loaded = self._needs_state(page, count)
        if loaded:
            raw.FORM_OnAfterLoadPage(page.raw, self._handle)
        for i in range(count):
            if annotation := raw.FPDFPage_GetAnnot(page.raw, i):
                self._read(annotation, found, words)
                raw.FPDFPage_CloseAnnot(annotation)
        if loaded:
            raw.FORM_OnBeforeClosePage(page.raw, self._handle)
        return found

    def _needs_state(self, page: Any, count: int) -> bool:
        """Whether the page must be loaded into the form: check boxes have no state before. It also draws every text field,
        which takes long for long texts; with too many of them the fields' values tell the state."""
        from pypdfium2 import raw

        buttons = drawn = 0
        for i in range(count if self._handle else 0):
            if annotation := raw.FPDFPage_GetAnnot(page.raw, i):
                if raw.FPDFAnnot_GetSubtype(annotation) == raw.FPDF_ANNOT_WIDGET:
                    kind = raw.FPDFAnnot_GetFormFieldType(self._handle, annotation)
                    buttons += kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON)
                    drawn += 100 + raw.FPDFAnnot_GetFormFieldValue(self._handle, annotation, None, 0)
                raw.FPDFPage_CloseAnnot(annotation)
        return bool(buttons) and drawn < _MAX_DRAWN

    def _read(self, annotation: Any, found: Besides, words: str) -> None:
        from pypdfium2 import raw

        kind = raw.FPDFAnnot_GetSubtype(annotation)
        if kind in (raw.FPDF_ANNOT_LINK, raw.FPDF_ANNOT_POPUP):
            return
        shown = not raw.FPDFAnnot_GetFlags(annotation) & (_HIDDEN | _NO_VIEW)
        rect = raw.FS_RECTF()
        raw.FPDFAnnot_GetRect(annotation, ctypes.byref(rect))
        box = rect.left, min(rect.bottom, rect.top), rect.right, max(rect.bottom, rect.top)
        if kind == raw.FPDF_ANNOT_WIDGET:
            if self._handle or _string(annotation, "V"):
                found.fields += 1
                value = self._value(annotation, found, words) if self._handle else _string(annotation, "V").strip()
                found.hidden += bool(value) and not shown
                if value and shown:
                    found.placed += _stacked(value, box)
            return
        text = _string(annotation, "Contents").strip() or _plain(_string(annotation, "RC"))
        if kind == raw.FPDF_ANNOT_FILEATTACHMENT:
            found.files.append(text or "without a name")
        elif not text or _string(annotation, "StateModel"):
            if kind == raw.FPDF_ANNOT_STAMP and shown and (name := _name(annotation)):
                found.placed += _stacked(f"[stamp: {name}]", box)
        elif not shown:
            found.hidden += 1
        elif kind == raw.FPDF_ANNOT_FREETEXT:
            found.placed += _stacked(text, box)
        else:
            found.comments.append(f"[{_KINDS.get(kind, 'comment')}: {' '.join(text.split())}]")

    def _value(self, annotation: Any, found: Besides, words: str) -> str:
        """The value of a field as shown; with its name where the page's text says nothing beside it."""
        from pypdfium2 import raw

        handle = self._handle
        kind = raw.FPDFAnnot_GetFormFieldType(handle, annotation)
        flags = raw.FPDFAnnot_GetFormFieldFlags(handle, annotation)
        name = string_of(raw.FPDFAnnot_GetFormFieldAlternateName, handle, annotation).strip()
        name = name or string_of(raw.FPDFAnnot_GetFormFieldName, handle, annotation).strip()
        if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
            on = raw.FPDFAnnot_IsChecked(handle, annotation)
            export = string_of(raw.FPDFAnnot_GetFormFieldExportValue, handle, annotation).strip()
            value = string_of(raw.FPDFAnnot_GetFormFieldValue, handle, annotation).strip()
            on = on or value == export != "Off"
            box = ("(x)" if on else "( )") if kind == raw.FPDF_FORMFIELD_RADIOBUTTON else "[x]" if on else "[ ]"
            told = export.lower() in ("", "yes", "on", "off", "true", "ja", "x") or export.isdigit()
            box += f" {export}" if on and not told and export.lower() not in words.lower() else ""
            return f"{_NAME}{name}{_NAME}{box}"
        if kind in (raw.FPDF_FORMFIELD_COMBOBOX, raw.FPDF_FORMFIELD_LISTBOX):
            count = min(raw.FPDFAnnot_GetOptionCount(handle, annotation), 10_000)
            chosen = [
                string_of(raw.FPDFAnnot_GetOptionLabel, handle, annotation, i)
                for i in range(count)
                if raw.FPDFAnnot_IsOptionSelected(handle, annotation, i)
            ]
            value = ", ".join(chosen) or string_of(raw.FPDFAnnot_GetFormFieldValue, handle, annotation)
        elif kind == raw.FPDF_FORMFIELD_TEXTFIELD:
            value = string_of(raw.FPDFAnnot_GetFormFieldValue, handle, annotation)
            if value and flags & _PASSWORD:
                found.passwords += 1
                return ""
        else:
            return ""
        return f"{_NAME}{name}{_NAME}{value.strip()}" if value.strip() else ""


# Between these marks stands a field's name, until ``labelled`` decides whether it is shown.
_NAME = "\ue0f5"
_KINDS: dict[int, str] = {1: "note", 9: "comment on marked text", 12: "comment on struck-out text", 13: "stamp"}


def labelled(placed: Sequence[Run], text: Sequence[Run]) -> list[Run]:
    """The runs with a field's name only where no text of the page stands on its line or right above it."""
    named = []
    for run in placed:
        match = re.match(f"{_NAME}(.*?){_NAME}(.*)", run.text, re.DOTALL)
        if match is None:
            named.append(run)
            continue
        name, value = match.groups()
        beside = any(_beside(run, other) for other in text)
        shown = value if beside or not name else f"{name}: {value}"
        named.append(Run(shown, run.left, run.bottom, run.right, run.top))
    return named


def _beside(run: Run, other: Run) -> bool:
    middle = (run.bottom + run.top) / 2
    if other.bottom - 2 <= middle <= other.top + 2:
        return -5 < run.left - other.right < 250 or -5 < other.left - run.right < 60
    return 0 <= other.bottom - run.top + 4 < 14 and other.left < run.right and run.left < other.right


def _stacked(text: str, box: tuple[float, float, float, float]) -> list[Run]:
    """The lines of a text from the top of a box down. A line that is shorter than its box ends where its letters do."""
    lines = [line for line in re.split(r"\r\n|\r|\n", text) if line.strip()]
    left, bottom, right, top = box
    height = min(_LINE_HEIGHT, max(top - bottom, 4.0) / max(len(lines), 1))
    if len(lines) == 1 and top - bottom < 2.2 * _LINE_HEIGHT:  # in the middle of its box, as it is drawn
        top = (top + bottom + height) / 2
    return [
        Run(
            " ".join(line.split()),
            left,
            top - (i + 1) * height,
            max(left + 1, min(right, left + 0.5 * height * len(line))),
            top - i * height,
        )
        for i, line in enumerate(lines)
    ]


def _string(annotation: Any, key: str) -> str:
    from pypdfium2 import raw

    return string_of(raw.FPDFAnnot_GetStringValue, annotation, key.encode())


def _name(annotation: Any) -> str:
    """A stamp's name, "NotApproved", as words; "" for one that was made up by a program, as "#23rbAeZMw6i5Gjx"."""
    name = re.sub(r"^[#/]*(SB)?", "", _string(annotation, "Name"))
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return words if re.fullmatch(r"[A-Z]?[a-z]{2,}( [A-Z][a-z]*){0,5}|[A-Z ]{3,30}", words) else ""


def _plain(rich: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", rich)).split())
