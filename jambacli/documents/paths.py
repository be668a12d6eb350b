"""Files, directories, globs and ``-`` (standard input) -> paths in a stable order.

URLs are refused with advice; nothing is downloaded.
"""

from __future__ import annotations

import glob
import itertools
import os
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.request import url2pathname

from jambacli.documents.gitignore import Ignored
from jambacli.errors import JambaError, UsageError
from jambacli.files import path_of

STDIN = "standard input"
#: Maximum number of files that directories and globs may expand to.
MAX_FILES = 10_000

# The suffixes that a directory is searched for; a file that is named individually may have any.
_TEXTS = """.pdf .docx .docm .dotx .dotm .txt .text .md .markdown .rst .adoc .org .tex .log .csv .tsv .json .jsonl .ndjson .yaml
    .yml .toml .ini .cfg .conf .xml .sql .srt .vtt .eml .html .htm .xhtml"""
_CODE = """.py .pyi .js .mjs .jsx .ts .tsx .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .kts .scala .rb .php .pl
    .lua .r .jl .swift .m .mm .cs .fs .vb .sh .bash .zsh .fish .ps1 .bat .cmake .gradle .proto .graphql .css .scss .vue
    .svelte .dart .ex .exs .erl .hs .ml .clj .lisp .el .f90 .zig .nim .tf .jinja"""
_SUFFIXES = frozenset(f"{_TEXTS} {_CODE}".split())
_NAMES = frozenset(("readme", "license", "licence", "changelog", "notice", "authors", "makefile", "dockerfile"))
_SKIPPED_FOLDERS = frozenset(("node_modules", "__pycache__", "venv"))


@dataclass
class Sources:
    """The files that arguments expand to.

    ``paths``: in a stable order; None is standard input. ``named``: paths that the user named individually, where a file that
    cannot be read is an error. ``passed_over``: how many files of directories were left out because of their kind.
    """

    paths: list[Path | None]
    named: frozenset[Path]
    passed_over: int = 0


def expand(arguments: Sequence[str]) -> Sources:
    """Expand files, directories (searched for files of known kinds), globs and ``-`` to paths in natural order, each once.

    The order does not depend on that of the arguments, so the same files always make the same prompt. Raises UsageError for
    a URL, JambaError for a file that does not exist.
    """
    found: dict[Path, Path] = {}
    named: set[Path] = set()
    stdin, passed_over = False, 0
    for argument in arguments:
        if not argument.strip():
            raise UsageError("a file name is empty (an unset shell variable?)")
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", argument):
            raise UsageError(f"{shown(argument)} is a URL; download it first (curl -o FILE URL)")
        if argument == "-":
            stdin = True
            continue
        path = path_of(argument)
        if _is_folder(path):
            inside, others = _walk(path)
            passed_over += others
        elif _exists(path):
            inside = [path]
            named.add(path)
        elif any(c in argument for c in "*?["):
            matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
            inside = [
                p for p in map(Path, itertools.islice(matches, 10 * MAX_FILES)) if not (_is_folder(p) or _is_special(p))
            ]
            if not inside:
                raise JambaError(f"no file matches {shown(argument)}")
        else:
            raise JambaError(f"there is no file {shown(argument)}; name files, directories, globs, or - for {STDIN}")
        for each in inside:
            found.setdefault(_real(each), each)
        if len(found) > MAX_FILES:
            raise JambaError(f"{shown(argument)} contains more than {MAX_FILES:,} files; name a part of them")
    if not found and not stdin:
        raise JambaError(f"{', '.join(map(shown, arguments))}: contains no files of a supported kind")
    paths: list[Path | None] = [None] if stdin else []
    return Sources([*paths, *sorted(found.values(), key=natural)], frozenset(named), passed_over)


def names_files(argument: str) -> bool:
    """Whether an argument is an existing file or directory, a glob with matches, or a URL, rather than a question."""
    if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]+://\S+", argument):
        return True
    path = Path(argument)
    if _exists(path):
        return bool(argument)
    if not any(c in argument for c in "*?[") or any(c.isspace() for c in argument):
        return False
    matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    return next(matches, None) is not None


def typed_paths(text: str) -> list[str]:
    """The paths in a line as people type it, or as a terminal pastes a dropped file: quoted, with escaped spaces, several, or
    file:// URLs. A line that is one existing path as it stands is that path."""
    if _exists(path_of(text)):
        return [text]
    try:
        parts = shlex.split(text, posix=os.name != "nt") or [text]
    except ValueError:  # a quote that does not end
        parts = [text]
    parts = [_from_url(part.strip("\"'") if os.name == "nt" else part) for part in parts]
    if len(parts) > 1 and not any(_exists(path_of(part)) or any(c in part for c in "*?[") for part in parts):
        return [_from_url(text)]  # a name with spaces, mistyped
    return parts


def _from_url(text: str) -> str:
    if not text.lower().startswith("file://"):
        return text
    host, slash, rest = text[7:].partition("/")
    if host.lower() not in ("", "localhost"):
        return text
    return url2pathname(slash + rest)


def natural(path: Path) -> tuple[object, ...]:
    """A sort key in which ``page 10`` follows ``page 9``; it does not depend on the locale."""
    pieces = re.split(r"(\d+)", str(path).casefold())
    return tuple((int(p) if p.isascii() and p.isdigit() else -1, p) for p in pieces), str(path)


def _walk(folder: Path) -> tuple[list[Path], int]:
    """The files of known kinds below ``folder``, and the number of other files. Links to directories are not followed.

    Hidden files, directories of generated files and what a project's .gitignore excludes are left out.
    """
    found: list[Path] = []
    others = 0
    ignored = Ignored(folder)
    for top, folders, files in os.walk(folder):
        ignored.enter(Path(top))
        folders[:] = sorted(
            f
            for f in folders
            if not f.startswith(".") and f.lower() not in _SKIPPED_FOLDERS and not ignored(Path(top) / f, True)
        )
        for file in files:
            path = Path(top) / file
            if file.startswith("."):
                continue
            if ignored(path, False):
                others += 1
            elif (path.suffix.lower() in _SUFFIXES or path.stem.lower() in _NAMES) and not _is_special(path):
                found.append(path)
            else:
                others += 1
        if len(found) > MAX_FILES:
            raise JambaError(f"{shown(folder)} contains more than {MAX_FILES:,} files; name a part of them")
    return found, others


def shown(path: object) -> str:
    """A path as one line of printable text; file names are untrusted input."""
    text = str(path).encode("utf-8", "replace").decode("utf-8")
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]", "?", text)
    return text if len(text) <= 300 else text[:297] + "..."


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):
        return path.absolute()


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _is_special(path: Path) -> bool:
    """Whether it is a pipe, a socket or a device: opening one that was not named individually could wait forever."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False
