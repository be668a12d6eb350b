"""Styles of an OpenDocument text, as far as its text depends on them: hidden, raised and crossed out text, lists, breaks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jambacli.documents.extract.odt_lists import ListStyle, read_level

_PARENTS = 32


@dataclass
class Style:
    """What a style sets itself; None where it is inherited. ``shift``: "superscript" or "subscript", "" for neither.
    ``master``: the page style that begins with the paragraph."""

    parent: str = ""
    hidden: bool | None = None
    shift: str | None = None
    struck: bool | None = None
    font: str | None = None
    lists: str | None = None
    master: str | None = None
    before: bool | None = None
    after: bool | None = None


_FIELDS = ("hidden", "shift", "struck", "font", "lists", "before", "after")
_Key = tuple[str, str]


@dataclass
class Styles:
    """By family and name. Automatic styles belong to one part, common ones to all of them."""

    common: dict[_Key, Style] = field(default_factory=dict)
    automatic: dict[_Key, Style] = field(default_factory=dict)
    common_lists: dict[str, ListStyle] = field(default_factory=dict)
    automatic_lists: dict[str, ListStyle] = field(default_factory=dict)
    outline: ListStyle | None = None
    _known: dict[_Key, Style] = field(default_factory=dict)
    _current: Style | None = None
    _list: ListStyle | None = None
    _level: int = 0

    def for_part(self) -> Styles:
        """The styles that another part shares with this one."""
        return Styles(self.common, {}, self.common_lists, {}, self.outline)

    def look(self, family: str, name: str) -> Style:
        """A style with all that it inherits."""
        key = (family, name)
        if key not in self._known:
            found = Style(master=self._own(key).master)
            for _ in range(_PARENTS):
                own = self._own(key)
                values = {each: getattr(own, each) for each in _FIELDS}
                found = replace(found, **{k: v for k, v in values.items() if getattr(found, k) is None})
                if not own.parent:
                    break
                key = (family, own.parent)
            self._known[family, name] = found
        return self._known[family, name]

    def list_style(self, name: str) -> ListStyle | None:
        """The list style of a name."""
        if self.outline is not None and name == "Outline":
            return self.outline
        return self.automatic_lists.get(name) or self.common_lists.get(name)

    def start(self, tag: str, values: dict[str, str], automatic: bool) -> None:
        """A start tag among the definitions of styles."""
        if tag == "style:style":
            key = (values.get("style:family", ""), values.get("style:name", ""))
            self._current = Style(
                parent=values.get("style:parent-style-name", ""),
                lists=values.get("style:list-style-name"),
                master=values.get("style:master-page-name"),
            )
            self._known.clear()
            (self.automatic if automatic else self.common)[key] = self._current
        elif tag == "text:list-style":
            self._list = ListStyle(values.get("style:name", ""))
            (self.automatic_lists if automatic else self.common_lists)[self._list.name] = self._list
        elif tag == "text:outline-style":
            self._list = self.outline = ListStyle("Outline")
        elif self._list is not None and tag.startswith(("text:list-level-style-", "text:outline-level-style")):
            self._level = read_level(self._list, tag, values)
        elif self._list is not None and tag == "style:list-level-label-alignment":
            self._list.set_suffix(self._level, values.get("text:label-followed-by", ""))
        elif self._list is not None and tag == "style:text-properties" and self._level:
            self._list.set_font(self._level, values.get("style:font-name") or values.get("fo:font-family") or "")
        elif self._current is not None and tag == "style:text-properties":
            _text_properties(self._current, values)
        elif self._current is not None and tag in ("style:paragraph-properties", "style:table-properties"):
            _breaks(self._current, values)

    def end(self, tag: str) -> None:
        """An end tag among the definitions of styles."""
        if tag == "style:style":
            self._current = None
        elif tag in ("text:list-style", "text:outline-style"):
            self._list, self._level = None, 0

    def _own(self, key: _Key) -> Style:
        return self.automatic.get(key) or self.common.get(key) or Style()


def _text_properties(style: Style, values: dict[str, str]) -> None:
    if (display := values.get("text:display")) is not None:
        style.hidden = display == "none"
    if (position := values.get("style:text-position")) is not None:
        first = position.split()[0] if position.split() else "0%"
        if first in ("super", "sub"):
            style.shift = f"{first}script"
        else:
            style.shift = "" if first.strip("-0%.") == "" else "subscript" if first.startswith("-") else "superscript"
    line = values.get("style:text-line-through-style") or values.get("style:text-line-through-type")
    if line is not None:
        style.struck = line != "none"
    if (font := values.get("style:font-name") or values.get("fo:font-family")) is not None:
        style.font = font.strip("'\"")


def _breaks(style: Style, values: dict[str, str]) -> None:
    if (before := values.get("fo:break-before")) is not None:
        style.before = before == "page"
    if (after := values.get("fo:break-after")) is not None:
        style.after = after == "page"
