"""Which paths of a directory tree its ``.gitignore`` files exclude.

Patterns are those of gitignore(5): later ones win, "!" includes again, a slash anchors a pattern to its directory, "**"
crosses directories, a trailing slash matches directories only. Matching takes at most the product of the lengths of pattern and
path, whatever the pattern: it is untrusted input.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jambacli.errors import BadFileError

_NAME = ".gitignore"
# Only this much of a .gitignore file is read. A longer line than a path can be is no pattern, and more patterns than this for
# one directory are an attack: every path is compared with each.
_MAX_BYTES, _MAX_LINE, _MAX_RULES = 1 << 20, 4096, 5000


# After so many "[" without an end, the others in a pattern are not looked for either.
_OPEN_SETS = 8

#: What one character of a name must be: that character, any (ANY), any number of any (MANY), or one that a test accepts.
_Token = str | Callable[[str], bool]
_Name = tuple[_Token, ...]
_ANY, _MANY = "any", "many"
_CLASSES: dict[str, Callable[[str], bool]] = {
    "alpha": str.isalpha,
    "digit": str.isdigit,
    "alnum": str.isalnum,
    "upper": str.isupper,
    "lower": str.islower,
    "space": str.isspace,
    "punct": lambda c: c.isprintable() and not c.isalnum() and not c.isspace(),
    "xdigit": lambda c: c in "0123456789abcdefABCDEF",
}


@dataclass(frozen=True)
class _Rule:
    folder: str  # the directory of the .gitignore file, as POSIX with a trailing slash
    pattern: tuple[_Name | None, ...]  # a pattern of each name of the path; None is any number of names
    folders_only: bool
    negated: bool


class Ignored:
    """The rules of the ``.gitignore`` files read so far. ``enter`` a directory before asking about its content."""

    def __init__(self, top: Path) -> None:
        """``top``: the directory where a walk starts. The rules of its parents up to the project's ``.git`` apply too."""
        self._rules: list[_Rule] = []
        above = []
        for folder in [top.absolute(), *top.absolute().parents]:
            above.append(folder)
            if (folder / ".git").exists():
                for outer in reversed(above[1:]):
                    self.enter(outer)
                break

    def enter(self, folder: Path) -> None:
        """Read the directory's own ``.gitignore``, if it has one. Raises BadFileError for thousands of patterns."""
        try:
            with (folder / _NAME).open("rb") as file:
                text = file.read(_MAX_BYTES).decode("utf-8", "replace")
        except OSError:
            return
        base = folder.absolute().as_posix().rstrip("/") + "/"
        # A walk that comes here has left the directories beside this one.
        above = [rule for rule in self._rules if base.startswith(rule.folder)]
        self._rules = above + [rule for line in text.splitlines() if (rule := _rule(line, base)) is not None]
        if len(self._rules) > _MAX_RULES:
            raise BadFileError(
                folder / _NAME, f"more than {_MAX_RULES:,} patterns apply here", remedy="remove some of them"
            )

    def __call__(self, path: Path, is_folder: bool) -> bool:
        """Whether ``path``, in a directory that was entered, is excluded."""
        if not self._rules:
            return False
        full = path.absolute().as_posix()
        for rule in reversed(self._rules):
            if is_folder or not rule.folders_only:
                inside = full[len(rule.folder) :] if full.startswith(rule.folder) else None
                if inside is not None and _matches(rule.pattern, inside.split("/")):
                    return not rule.negated
        return False


def _rule(line: str, folder: str) -> _Rule | None:
    if len(line) > _MAX_LINE:
        return None
    kept = line.rstrip()
    # A space after a backslash belongs to the pattern.
    line = kept + line[len(kept) : len(kept) + 1] if kept.endswith("\\") else kept
    if not line or line.startswith("#"):
        return None
    negated = line.startswith("!")
    line = line.removeprefix("!")
    folders_only = line.endswith("/")
    line = line.rstrip("/")
    anchored = "/" in line
    line = line.removeprefix("/")
    if not line:
        return None
    names = [None if name == "**" else _tokens(name) for name in line.split("/")]
    if not anchored:
        names = [None, _tokens(line)]
    elif names[-1] is None:  # what is in a directory, not the directory itself
        names.append((_MANY,))
    names = [name for i, name in enumerate(names) if name is not None or names[i - 1 : i] != [None]]
    return _Rule(folder, tuple(names), folders_only, negated)


def _matches(pattern: Sequence[_Name | None], names: Sequence[str]) -> bool:
    """Whether the names of a path match; as ``_name_matches``, a level higher."""
    at = i = 0
    last, last_at = -1, 0
    while at < len(names):
        if i < len(pattern) and (expected := pattern[i]) is not None and _name_matches(expected, names[at]):
            i, at = i + 1, at + 1
        elif i < len(pattern) and pattern[i] is None:
            last, last_at = i, at
            i += 1
        elif last >= 0:
            last_at += 1
            i, at = last + 1, last_at
        else:
            return False
    return all(name is None for name in pattern[i:])


def _name_matches(tokens: _Name, name: str) -> bool:
    """Whether a name matches. Only the last "*" is ever tried again: what the earlier ones took can stay as it is."""
    at = i = 0
    last, last_at = -1, 0
    while at < len(name):
        token = tokens[i] if i < len(tokens) else ""
        if token == _MANY:
            last, last_at = i, at
            i += 1
        elif token == _ANY or token == name[at] or (callable(token) and token(name[at])):
            i, at = i + 1, at + 1
        elif last >= 0:
            last_at += 1
            i, at = last + 1, last_at
        else:
            return False
    return all(token == _MANY for token in tokens[i:])


def _tokens(glob: str) -> _Name:
    out: list[_Token] = []
    at = open_sets = 0
    while at < len(glob):
        c = glob[at]
        if c == "*":
            if out[-1:] != [_MANY]:  # several stars mean the same as one
                out.append(_MANY)
        elif c == "?":
            out.append(_ANY)
        elif c == "[" and open_sets < _OPEN_SETS and (end := _end_of_set(glob, at)) > 0:
            out.append(_set(glob[at + 1 : end]))
            at = end
        elif c == "\\" and at + 1 < len(glob):
            at += 1
            out.append(glob[at])
        else:
            open_sets += c == "["
            out.append(c)
        at += 1
    return tuple(out)


def _end_of_set(glob: str, start: int) -> int:
    at = start + 1
    at += glob[at : at + 1] in ("!", "^")
    at += glob[at : at + 1] == "]"
    while at < len(glob) and glob[at] != "]":
        if glob.startswith("[:", at) and (end := glob.find(":]", at)) > 0:
            at = end + 1
        at += 2 if glob[at] == "\\" else 1
    return at if at < len(glob) else -1


def _set(inside: str) -> Callable[[str], bool]:
    negated = inside[0] in "!^"
    at = int(negated)
    ranges: list[tuple[str, str]] = []
    classes: list[Callable[[str], bool]] = []
    while at < len(inside):
        if (named := re.match(r"\[:(\w+):\]", inside[at:])) is not None:
            classes += [_CLASSES[named[1]]] if named[1] in _CLASSES else []
            at += named.end()
            continue
        at += inside[at] == "\\" and at + 1 < len(inside)
        first = last = inside[at]
        if inside[at + 1 : at + 2] == "-" and at + 2 < len(inside):
            at += 2
            at += inside[at] == "\\" and at + 1 < len(inside)
            last = inside[at]
        ranges.append((first, last))
        at += 1
    return lambda c: (any(a <= c <= b for a, b in ranges) or any(test(c) for test in classes)) != negated


class Globs:
    """Patterns as in a .gitignore file, of paths relative to a directory."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self._rules = [rule for pattern in patterns if (rule := _rule(pattern, "")) is not None]

    def __call__(self, relative: str, is_folder: bool = False) -> bool:
        """Whether a path, or a folder that it is in, matches one of them."""
        names = relative.split("/")
        folders = [names[:i] for i in range(1, len(names) + is_folder)]
        whole = [] if is_folder else [names]
        return any(
            _matches(rule.pattern, each)
            for rule in self._rules
            for each in (folders if rule.folders_only else folders + whole)
        )
