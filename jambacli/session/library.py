"""The saved sessions as a library: listed, searched, renamed, copied, removed. Loads no model and imports no torch."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import time
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jambacli.errors import JambaError
from jambacli.files import file_identity, sync_directory
from jambacli.session import session_file

logger = logging.getLogger(__name__)

#: Maximum number of characters of a title and of an excerpt, and of sessions that a search finds if not said otherwise.
TITLE, EXCERPT, MOST_FOUND = 80, 160, 50


@dataclass(frozen=True, kw_only=True)
class SessionSummary:
    """What a list shows of a session.

    ``title``: the first line of the first user message, "" without one. ``size``: of its file, in bytes. ``created``, and
    ``modified`` (when the file was last written), in seconds since 1970. ``messages``: of the user and the model; ``turns``:
    of the user alone. ``documents``: how many different ones came with its messages. ``chat``: whether it is one, not a
    continued plain text. ``parent``: the session that it was branched or copied from.
    """

    name: str
    title: str
    model: str
    model_path: str
    size: int
    created: float
    modified: float
    messages: int
    turns: int
    tokens: int
    documents: int
    kv_type: str
    ctx: int
    chat: bool
    parent: str | None


@dataclass(frozen=True, kw_only=True)
class FoundSession:
    """A session that a search has found. ``role``: whose message the excerpt is from, "" where the name alone matches;
    ``matches``: how many of its messages match."""

    summary: SessionSummary
    role: str
    excerpt: str
    matches: int


def summary(name: str) -> SessionSummary:
    """The summary of one session. Raises JambaError when there is none, BadFileError when its file is damaged."""
    path = session_file.session_path(name)
    try:
        info = path.stat()
    except OSError:
        raise session_file.not_there(name) from None
    return _summary(path, file_identity(info))


def summaries() -> Iterator[SessionSummary]:
    """The summary of every session, most recently used first; damaged ones are left out with a warning."""
    for name in session_file.names():
        found = _unless_damaged(name)
        if found is not None:
            yield found


def search(text: str, limit: int = MOST_FOUND) -> Iterator[FoundSession]:
    """The sessions whose name, or one of whose messages, holds every word of ``text``, in any case; the most recently used
    first, at most ``limit``. Damaged ones are left out with a warning."""
    words = [re.compile(re.escape(word), re.IGNORECASE) for word in unicodedata.normalize("NFC", text).split()]
    if not words:
        return
    found = 0
    for name in session_file.names():
        if found >= limit:
            return
        match = _search_one(name, words)
        if match is not None:
            found += 1
            yield match


def rename(name: str, new: str) -> None:
    """Give a session another name; the sessions branched from it name it as their origin by the new one.

    Raises JambaError when there is none of that name, when it or the new name is open in another process, or when the new
    name is taken.
    """
    name, new = session_file.check_name(name), session_file.check_name(new)
    path, target = session_file.session_path(name), session_file.session_path(new)
    if not path.exists():
        raise session_file.not_there(name)
    if name == new:
        return
    with session_file.opened(name), contextlib.ExitStack() as stack:
        if not _same_file(path, target):  # a name in other case, where the file system makes no difference
            stack.enter_context(session_file.opened(new))
            _refuse_taken(new)
        try:
            path.replace(target)
        except OSError as error:
            raise JambaError(f"cannot rename {path}: {error.strerror or error}") from error
        sync_directory(path.parent)
    for other, saved in session_file.readable():
        if saved.parent == name:
            with contextlib.suppress(JambaError), session_file.opened(other):  # one that is open keeps the old name
                latest, used = session_file.read(other), _modified(other)
                latest.parent = new
                session_file.write(latest)
                os.utime(session_file.session_path(other), (used, used))


def copy(name: str, new: str) -> None:
    """Copy a session as it was last saved, also while it is open elsewhere; the copy shares its stored state, and counts as
    branched from it. Raises JambaError when there is none of that name, or when the new name is taken or open elsewhere."""
    saved = session_file.read(name)
    with session_file.opened(session_file.check_name(new)):
        _refuse_taken(new)
        saved.name, saved.parent, saved.created = session_file.check_name(new), saved.name, time.time()
        session_file.write(saved)


def remove(name: str) -> None:
    """Delete a session; its prefixes stay in the store until evicted. Raises JambaError when it is missing or open."""
    session_file.remove(name)


def older_than(seconds: float) -> list[str]:
    """The names of the sessions last saved over so many seconds ago, the most recently used first."""
    return [name for name in session_file.names() if time.time() - _modified(name) > seconds]


def title_of(turns: Sequence[Mapping[str, Any]]) -> str:
    """The first line of the first user message, in one line of at most ``TITLE`` characters."""
    for turn in turns:
        if turn.get("role") == "user":
            text = str(turn.get("content", "")).lstrip()
            line = " ".join(text[: 8 * TITLE].partition("\n")[0].split())
            return line if len(line) <= TITLE else line[: TITLE - 1].rstrip() + "…"
    return ""


def _modified(name: str) -> float:
    """When a session was last saved; now for one that has just been removed."""
    try:
        return session_file.session_path(name).stat().st_mtime
    except OSError:
        return time.time()


def _unless_damaged(name: str) -> SessionSummary | None:
    try:
        return summary(name)
    except JambaError as error:
        if session_file.exists(name):
            logger.warning("%s", error)
        return None


# A server lists the same sessions again and again. ``identity`` changes with the file.
@functools.lru_cache(maxsize=4096)
def _summary(path: Path, identity: str) -> SessionSummary:
    saved = session_file.read(path.stem)
    info = path.stat()
    roles = [turn["role"] for turn in saved.turns]
    return SessionSummary(
        name=saved.name,
        title=title_of(saved.turns),
        model=saved.model,
        model_path=saved.model_path,
        size=info.st_size,
        created=saved.created,
        modified=info.st_mtime,
        messages=sum(role in ("user", "assistant") for role in roles),
        turns=roles.count("user"),
        tokens=len(saved.prompt) + len(saved.reply),
        documents=len(set(saved.documents)),
        kv_type=saved.kv_type,
        ctx=saved.ctx,
        chat=saved.chat,
        parent=saved.parent,
    )


def _search_one(name: str, words: Sequence[re.Pattern[str]]) -> FoundSession | None:
    try:
        saved = session_file.read(name)
    except JambaError as error:
        if session_file.exists(name):
            logger.warning("%s", error)
        return None
    matches = 0
    role = excerpt = ""
    for turn in saved.turns:
        content = unicodedata.normalize("NFC", str(turn["content"]))
        if all(word.search(content) for word in words):
            matches += 1
            if matches == 1:
                role, excerpt = str(turn["role"]), _excerpt(content, words[0])
    if not matches and not all(word.search(name) for word in words):
        return None
    found = _unless_damaged(name)
    return None if found is None else FoundSession(summary=found, role=role, excerpt=excerpt, matches=matches)


def _excerpt(content: str, word: re.Pattern[str]) -> str:
    """The text around the first place of a word, in one line of about ``EXCERPT`` characters."""
    match = word.search(content)
    start, end = match.span() if match is not None else (0, 0)
    before, after = max(0, start - EXCERPT // 3), min(len(content), end + EXCERPT - EXCERPT // 3)
    line = " ".join(content[before:after].split())
    return f"{'…' if before else ''}{line}{'…' if after < len(content) else ''}"


def _refuse_taken(name: str) -> None:
    if session_file.exists(name):
        raise JambaError(f"a session named {name!r} already exists", remedy="choose another name")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return os.path.samefile(path, other)  # noqa: PTH121 - either may be missing
    except OSError:
        return False
