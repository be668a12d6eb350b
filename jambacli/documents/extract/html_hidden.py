"""Which elements of a web page a browser does not show: by their kind, their attributes, and the page's own style sheets.

Style sheets are read as far as that is certain: rules of tags, classes and ids hide an element; any other rule that could
show it again does.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

#: Not shown, and not text: nothing is said about them.
CODE = frozenset(("script", "style", "rp"))
#: Text that browsers do not show.
_HIDDEN = frozenset(
    ("template", "noscript", "datalist", "noembed", "noframes", "iframe", "audio", "video", "canvas", "applet")
)
#: A page's rules beyond this many are not read.
_MAX_RULES = 20_000
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_BLOCK = re.compile(r"[{}]")
_COMPOUND = re.compile(r"(\*|[a-zA-Z][\w-]*)?((?:[.#][\w-]+)*)")
_ZERO = re.compile(r"[+-]?0*\.?0*(px|pt|em|rem|%|ex|ch)?")
#: Moved far out of the window, or into a box without height or width.
_OUTSIDE = re.compile(r"(?i)(?:^|[;\s])(?:left|right|top|bottom|text-indent)\s*:\s*-\d{3,}")
_FLAT = re.compile(r"(?i)(?:^|[;\s])(?:max-)?(?:height|width)\s*:\s*0(?:px|pt|em|rem|%)?\s*(?:;|!|$)")
_CLIPPED = re.compile(r"(?i)overflow[-xy]*\s*:\s*hidden")
_RELATIVE = re.compile(r"[\d.]+(em|%|ex|ch)|smaller|larger|inherit")


class Look(NamedTuple):
    """What a style says: each None where it says nothing. ``gone``: not displayed, with all in it."""

    gone: bool | None = None
    invisible: bool | None = None
    no_size: bool | None = None


NOTHING = Look()


def look_of(style: str) -> Look:
    """What the declarations of a style say."""
    gone = clear = invisible = no_size = None
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        key, value = key.strip().lower(), value.replace("!important", "").strip().lower()
        if key == "display" and value:
            gone = value == "none"
        elif key == "opacity" and value:
            clear = bool(_ZERO.fullmatch(value))
        elif key == "visibility" and value != "inherit":
            invisible = value in ("hidden", "collapse")
        elif key == "font-size" and not _RELATIVE.fullmatch(value):
            no_size = bool(_ZERO.fullmatch(value))
    if _OUTSIDE.search(style) or (_FLAT.search(style) and _CLIPPED.search(style)):
        clear = True
    return Look(gone or clear if gone or clear is not None else gone, invisible, no_size)


@dataclass(frozen=True)
class _Rule:
    order: tuple[int, int, int, int]
    tag: str
    ids: frozenset[str]
    classes: frozenset[str]
    look: Look


class Styles:
    """The rules of a page's style elements, and whether an element is hidden."""

    def __init__(self) -> None:
        self._rules: dict[str, list[_Rule]] = {}
        self._count = 0

    def add(self, sheet: str) -> None:
        """Read one style sheet. Rules for some media only, other than screens, are left out."""
        sheet, at, outer = _COMMENT.sub(" ", sheet), 0, 0
        selector = ""
        ignored: list[bool] = []
        for sign in _BLOCK.finditer(sheet):
            text = sheet[at : sign.start()]
            at = sign.end()
            if sign[0] == "{":
                selector = text.rpartition(";")[2].strip()
                if selector.startswith("@"):
                    screen = re.match(r"@(media\s+(only\s+)?(screen|all)\s*|layer\b[^(]*)\Z", selector)
                    ignored.append(screen is None)
                    outer, selector = outer + 1, ""
            elif selector:
                if not any(ignored):
                    self._add_rule(selector, text)
                selector = ""
            elif outer:
                outer -= 1
                ignored.pop()

    def look(self, tag: str, attributes: dict[str, str]) -> Look:
        """What rules and attributes say about an element."""
        if not attributes and not self._rules and tag not in _HIDDEN and tag != "dialog":
            return NOTHING
        own = look_of(attributes["style"]) if "style" in attributes else NOTHING
        gone = own.gone
        if gone is None and "hidden" in attributes:
            gone = True
        if tag in _HIDDEN or (tag == "dialog" and "open" not in attributes) or "popover" in attributes:
            gone = True
        if not self._rules:
            return Look(gone, own.invisible, own.no_size)
        rules = self._matching(tag, attributes)

        def last(mine: bool | None, field: int) -> bool | None:
            return mine if mine is not None else next((r.look[field] for r in rules if r.look[field] is not None), None)

        return Look(last(gone, 0), last(own.invisible, 1), last(own.no_size, 2))

    def _add_rule(self, selectors: str, declarations: str) -> None:
        look = look_of(declarations)
        if look == NOTHING:
            return
        for selector in selectors.split(","):
            parts = re.split(r"[\s>+~]+", re.sub(r"::?[\w-]+(\([^)]*\))?|\[[^\]]*\]", " * ", selector).strip())
            certain = len(parts) == 1 and not re.search(r"[:\[]", selector)
            compound = _COMPOUND.fullmatch(next((p for p in reversed(parts) if p not in ("*", "")), "*"))
            if compound is None or self._count >= _MAX_RULES:
                continue
            shown = look if certain else Look(*(False if said is False else None for said in look))
            if shown == NOTHING:
                continue
            names = re.findall(r"[.#][\w-]+", compound[2])
            ids = frozenset(n[1:] for n in names if n[0] == "#")
            classes = frozenset(n[1:] for n in names if n[0] == ".")
            tag = "" if compound[1] in (None, "*") else compound[1].lower()
            order = (int("!important" in declarations), len(ids), len(classes) + len(parts) - 1, self._count)
            key = next(("#" + i for i in ids), None) or next(("." + c for c in classes), None) or tag
            self._rules.setdefault(key, []).append(_Rule(order, tag, ids, classes, shown))
            self._count += 1

    def _matching(self, tag: str, attributes: dict[str, str]) -> list[_Rule]:
        """The rules for an element, the one that wins first."""
        classes = frozenset(attributes.get("class", "").split())
        ids = frozenset((attributes["id"].strip(),)) if "id" in attributes else frozenset()
        keys = ["", tag, *("." + c for c in classes), *("#" + i for i in ids)]
        found = [
            rule
            for key in keys
            for rule in self._rules.get(key, ())
            if rule.tag in ("", tag) and rule.ids <= ids and rule.classes <= classes
        ]
        return sorted(found, key=lambda r: r.order, reverse=True)
