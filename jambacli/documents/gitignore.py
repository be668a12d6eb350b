"""``.gitignore`` files -> which paths of a tree a project leaves out; knows nothing of git itself or of what files hold.

Patterns mean what gitignore(5) says: later ones win, "!" takes back, a slash ties a pattern to its folder, "**" crosses
folders, a trailing slash means folders alone.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = ".gitignore"
# Nobody writes more; a file that holds more is none.
_MAX_BYTES = 1 << 20


@dataclass(frozen=True)
class _Rule:
    folder: str  # the folder the pattern is told in, as posix with a slash at its end
    pattern: re.Pattern[str]
    folders_only: bool
    take_back: bool


class Ignored:
    """The rules of the ``.gitignore`` files met so far; ``enter`` every folder before asking about what is in it."""

    def __init__(self, top: Path) -> None:
        """``top``: the folder a walk begins in. The rules of the project around it count too, up to its ``.git``."""
        self._rules: list[_Rule] = []
        above = []
        for folder in [top.absolute(), *top.absolute().parents]:
            above.append(folder)
            if (folder / ".git").exists():
                for outer in reversed(above[1:]):
                    self.enter(outer)
                break

    def enter(self, folder: Path) -> None:
        """Read the folder's own ``.gitignore``, if it has one."""
        try:
            with (folder / _NAME).open("rb") as file:
                text = file.read(_MAX_BYTES).decode("utf-8", "replace")
        except OSError:
            return
        base = folder.absolute().as_posix().rstrip("/") + "/"
        self._rules += [rule for line in text.splitlines() if (rule := _rule(line, base)) is not None]

    def __call__(self, path: Path, is_folder: bool) -> bool:
        """Whether ``path``, in a folder that was entered, is left out."""
        if not self._rules:
            return False
        full = path.absolute().as_posix()
        for rule in reversed(self._rules):
            if is_folder or not rule.folders_only:
                inside = full[len(rule.folder) :] if full.startswith(rule.folder) else None
                if inside is not None and rule.pattern.fullmatch(inside):
                    return not rule.take_back
        return False


def _rule(line: str, folder: str) -> _Rule | None:
    line = re.sub(r"(?<!\\)\s+$", "", line)
    if not line or line.startswith("#"):
        return None
    take_back = line.startswith("!")
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
    return _Rule(folder, pattern, folders_only, take_back)


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
            while glob[at + 1 : at + 2] == "*":  # one star or three: within a name they mean the same
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
