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
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.request import url2pathname

from jambacli.documents.gitignore import Globs, Ignored
from jambacli.errors import JambaError, UsageError
from jambacli.files import path_of

STDIN = "standard input"
#: Maximum number of files that directories and globs may expand to.
MAX_FILES = 10_000

# The suffixes that a directory is searched for; a file that is named individually may have any.
_TEXTS = """.pdf .docx .docm .dotx .dotm .xlsx .xlsm .xltx .xltm .xlsb .xls .ods .ots .pptx .pptm .ppsx .ppsm .potx .odp .otp
    .txt .text .md .markdown .rst .adoc .org .tex .log .csv .tsv .json .jsonl .ndjson .yaml .yml .toml .ini .cfg .conf .xml .sql
    .srt .vtt .ass .ssa .sbv .eml .emlx .msg .oft .mbox .mht .mhtml .ipynb .html .htm .xhtml
    .doc .odt .ott .fodt .rtf .epub .fb2"""
_CODE = """.py .pyi .js .mjs .jsx .ts .tsx .c .h .cc .cpp .cxx .hpp .hh .cu .cuh .rs .go .java .kt .kts .scala .rb .php .pl
    .lua .r .jl .swift .m .mm .cs .fs .vb .sh .bash .zsh .fish .ps1 .bat .cmake .gradle .proto .graphql .css .scss .vue
    .svelte .dart .ex .exs .erl .hs .ml .clj .lisp .el .f90 .zig .nim .tf .jinja"""
_SUFFIXES = frozenset(f"{_TEXTS} {_CODE}".split())
_NAMES = frozenset(("readme", "license", "licence", "changelog", "notice", "authors", "makefile", "dockerfile"))
_SKIPPED_FOLDERS = frozenset(("node_modules", "__pycache__", "venv"))


# Reasons why a file of a directory is left out.
OTHER_KIND, IGNORED, HIDDEN, GENERATED = "of other kinds", "in .gitignore", "hidden", "in folders of generated files"
LINKED, SPECIAL, NOT_CHOSEN = "in linked folders", "no regular files", "not chosen"


@dataclass
class Sources:
    """The files that arguments expand to.

    ``paths``: in a stable order; None is standard input. ``named``: paths that the user named individually, where a file that
    cannot be read is an error. ``walked``: whether there was a directory or a glob. ``left_out``: how many entries of
    directories were left out for each reason; a folder that is left out counts as one. ``suffixes``: those of other kinds.
    ``problems``: a line for each folder that cannot be read.
    """

    paths: list[Path | None]
    named: frozenset[Path]
    walked: bool = False
    left_out: Counter[str] = field(default_factory=Counter)
    suffixes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)

    @property
    def passed_over(self) -> int:
        """How many files of directories were left out because of their kind, or by a .gitignore."""
        return self.left_out[OTHER_KIND] + self.left_out[IGNORED] + self.left_out[SPECIAL]

    def left_out_text(self) -> str:
        """What was left out, by reason: "3 of other kinds (.png, .zip), 1 hidden"; "" if nothing was."""
        said = []
        for reason, count in self.left_out.most_common():
            kinds = [suffix or "without a suffix" for suffix, _ in self.suffixes.most_common(6)]
            more = ", ..." if len(self.suffixes) > 6 else ""
            said.append(f"{count:,} {reason}" + (f" ({', '.join(kinds)}{more})" if reason == OTHER_KIND else ""))
        return ", ".join(said)


def expand(
    arguments: Sequence[str], *, include: Sequence[str] = (), exclude: Sequence[str] = (), stdin: bool = True
) -> Sources:
    """Expand files, directories (searched for files of known kinds), globs and ``-`` to paths in natural order, each once.

    ``include``, ``exclude``: patterns as in .gitignore for the files of directories and globs: only those that match one of
    ``include``, of whatever kind, without those that match one of ``exclude``. A file named individually is always read.
    ``stdin``: whether ``-`` stands for standard input.

    The order does not depend on that of the arguments, so the same files always make the same prompt. Raises UsageError for
    a URL, JambaError for a file that does not exist.
    """
    found: dict[Path, Path] = {}
    named: set[Path] = set()
    sources = Sources([], frozenset())
    chosen = _Choice(Globs(include) if include else None, Globs(exclude))
    allowed, stdin = stdin, False
    for argument in map(_from_url, arguments):
        if not argument.strip():
            raise UsageError("a file name is empty (an unset shell variable?)")
        if argument.lower().startswith("file://"):
            raise UsageError(f"{shown(argument)} is a file of another computer; copy it here first")
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", argument):
            raise UsageError(f"{shown(argument)} is a URL; download it first (curl -o FILE URL)")
        if argument == "-" and allowed:
            stdin = True
            continue
        path = path_of(argument)
        if _is_folder(path):
            inside = _walk(path, chosen, sources)
        elif _exists(path):
            inside = [path]
            named.add(path)
        elif any(c in argument for c in "*?["):
            inside = _matching(path, argument, chosen, sources)
        else:
            kinds = f"directories, globs, or - for {STDIN}" if allowed else "directories or globs"
            raise JambaError(f"there is no file {shown(argument)}; name files, {kinds}")
        for each in inside:
            found.setdefault(_real(each), each)
        if len(found) > MAX_FILES:
            raise JambaError(f"{shown(argument)} contains more than {MAX_FILES:,} files; name a part of them")
    if not found and not stdin:
        why = f" (left out: {text})" if (text := sources.left_out_text()) else ""
        why = f" ({sources.problems[0]})" if sources.problems else why
        raise JambaError(f"{', '.join(map(shown, arguments))}: contains no files of a supported kind{why}")
    paths: list[Path | None] = [None] if stdin else []
    sources.paths = [*paths, *sorted(found.values(), key=natural)]
    sources.named = frozenset(named)
    return sources


@dataclass(frozen=True)
class _Choice:
    """What ``include`` and ``exclude`` choose. ``include``: None chooses every file of a known kind."""

    include: Globs | None
    exclude: Globs

    def __call__(self, relative: str) -> bool | None:
        """Whether a file is wanted; None if its kind decides."""
        if self.exclude(relative):
            return False
        return None if self.include is None else self.include(relative)


def _matching(path: Path, argument: str, chosen: _Choice, sources: Sources) -> list[Path]:
    """The files that match a glob."""
    matches = glob.iglob(str(path), recursive=True)  # noqa: PTH207 - Path.glob takes no absolute pattern
    files = [p for p in map(Path, itertools.islice(matches, 10 * MAX_FILES)) if not (_is_folder(p) or _is_special(p))]
    if not files:
        raise JambaError(f"no file matches {shown(argument)}")
    sources.walked = True
    inside = [p for p in files if chosen(p.as_posix().lstrip("/")) is not False]
    sources.left_out[NOT_CHOSEN] += len(files) - len(inside)
    sources.left_out += Counter()  # without zeros
    return inside


def names_files(argument: str) -> bool:
    """Whether an argument is an existing file or directory, a glob with matches, or a URL, rather than a question."""
    if re.fullmatch(r"[a-zA-Z][a-zA-Z0-9+.-]+://\S+", argument):
        return True
    path = Path(_from_url(argument))
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
    if os.name != "nt" and re.match(r"""["']?[A-Za-z]:\\""", text):  # its backslashes are no escapes
        return [text.strip("\"'")]
    try:
        parts = shlex.split(text, posix=os.name != "nt") or [text]
    except ValueError:  # a quote that does not end
        parts = [text]
    parts = [_from_url(part.strip("\"'") if os.name == "nt" else part) for part in parts]
    parts = [_expanded(part) for part in parts]
    if len(parts) > 1 and not any(_exists(path_of(part)) or any(c in part for c in "*?[") for part in parts):
        return [_from_url(text)]  # a name with spaces, mistyped
    return parts


def _expanded(text: str) -> str:
    """A path with the environment's variables in it replaced, as a shell does, if that makes it one that exists."""
    path = os.path.expandvars(text)
    return path if "$" in text and not _exists(path_of(text)) and _exists(path_of(path)) else text


def _from_url(text: str) -> str:
    """The path of a file:// URL of this computer; any other text unchanged."""
    if re.match(r"(?i)file:/(?!/)", text):  # as Java and older programs write it
        return url2pathname(text[5:])
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


def _walk(folder: Path, chosen: _Choice, sources: Sources) -> list[Path]:
    """The files of known kinds, or of those that were chosen, below ``folder``; what is left out is counted in ``sources``.

    Links to directories are not followed. Hidden files, directories of generated files and what a project's .gitignore
    excludes are left out.
    """
    found: list[Path] = []
    ignored = Ignored(folder)
    sources.walked = True

    def unreadable(error: OSError) -> None:
        name = shown(error.filename or folder)
        sources.problems.append(f"cannot read the folder {name}: {error.strerror or error}; skipped")

    for top, folders, files in os.walk(folder, onerror=unreadable):
        ignored.enter(Path(top))
        entered = []
        for name in sorted(folders):
            path = Path(top) / name
            if (reason := _folder_left_out(path, folder, ignored, chosen)) is None:
                entered.append(name)
            else:
                sources.left_out[reason] += 1
        folders[:] = entered
        for name in files:
            path = Path(top) / name
            if (reason := _file_left_out(path, folder, ignored, chosen)) is None:
                found.append(path)
                continue
            sources.left_out[reason] += 1
            if reason == OTHER_KIND:
                sources.suffixes[path.suffix.lower()[:12]] += 1
        if len(found) > MAX_FILES:
            raise JambaError(f"{shown(folder)} contains more than {MAX_FILES:,} files; name a part of them")
    return found


def _folder_left_out(path: Path, top: Path, ignored: Ignored, chosen: _Choice) -> str | None:
    if path.name.startswith("."):
        return HIDDEN
    if path.name.lower() in _SKIPPED_FOLDERS:
        return GENERATED
    if ignored(path, True):
        return IGNORED
    if chosen.exclude(path.relative_to(top).as_posix(), True):
        return NOT_CHOSEN
    return LINKED if path.is_symlink() else None


def _file_left_out(path: Path, top: Path, ignored: Ignored, chosen: _Choice) -> str | None:
    if path.name.startswith("."):
        return HIDDEN
    if ignored(path, False):
        return IGNORED
    wanted = chosen(path.relative_to(top).as_posix())
    if wanted is False:
        return NOT_CHOSEN
    if wanted is None and not (path.suffix.lower() in _SUFFIXES or path.stem.lower() in _NAMES):
        return OTHER_KIND
    return SPECIAL if _is_special(path) else None


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
