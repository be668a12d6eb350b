"""Which paths of a directory tree its ``.gitignore`` files exclude.

Patterns are those of gitignore(5): later ones win, "!" includes again, a slash anchors a pattern to its directory, "**"
crosses directories, a trailing slash matches directories only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = ".gitignore"
# Only this much of a .gitignore file is read.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class _Rule:
    folder: str  # the directory of the .gitignore file, as POSIX with a trailing slash
    pattern: re.Pattern[str]
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
        """Read the directory's own ``.gitignore``, if it has one."""
        try:
            with (folder / _NAME).open("rb") as file:
                text = file.read(_MAX_BYTES).decode("utf-8", "replace")
        except OSError:
            return
        base = folder.absolute().as_posix().rstrip("/") + "/"
        self._rules += [rule for line in text.splitlines() if (rule := _rule(line, base)) is not None]

    def __call__(self, path: Path, is_folder: bool) -> bool:
        """Whether ``path``, in a directory that was entered, is excluded."""
        if not self._rules:
            return False
        full = path.absolute().as_posix()
        for rule in reversed(self._rules):
            if is_folder or not rule.folders_only:
                inside = full[len(rule.folder) :] if full.startswith(rule.folder) else None
                if inside is not None and rule.pattern.fullmatch(inside):
                    return not rule.negated
        return False


def _rule(line: str, folder: str) -> _Rule | None:
    line = re.sub(r"(?<!\\)\s+$", "", line)
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
    try:
        pattern = re.compile(("" if anchored else "(?:.*/)?") + _expression(line), re.DOTALL)
    except re.error:
        return None
    return _Rule(folder, pattern, folders_only, negated)


def _expression(glob: str) -> str:
    out, at = "", 0
    while at < len(glob):
        c = glob[at]
        if glob.startswith("**/", at) and (at == 0 or glob[at - 1] == "/"):
            out, at = out + "(?:.*/)?", at + 3
            continue
        if glob[at:] == "**" and at and glob[at - 1] == "/":
            return out + ".+"
        if c == "*":
            while glob[at + 1 : at + 2] == "*":  # within a name, several stars mean the same as one
                at += 1
            out += "[^/]*"
        elif c == "?":
            out += "[^/]"
        elif c == "[" and (end := glob.find("]", at + 2)) > 0:
            inside = glob[at + 1 : end].replace("\\", "\\\\").replace("[", "\\[")
            out += f"(?!/)[{'^' + inside[1:] if inside[0] in '!^' else inside}]"
            at = end
        elif c == "\\" and at + 1 < len(glob):
            at += 1
            out += re.escape(glob[at])
        else:
            out += re.escape(c)
        at += 1
    return out
