"""Completion at the chat's prompt: commands, and what may follow them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.chat.commands import HELP
from jambacli.chat.settings import SETTINGS
from jambacli.errors import JambaError
from jambacli.session import session_file

if TYPE_CHECKING:
    from jambacli.chat.commands import Chat

_PATHS = ("/file", "/save-as")
_SPECIAL = set(" \t\"'\\$`*?[]()<>|&;!#~")


def completions(chat: Chat, text: str) -> Iterator[tuple[str, int]]:
    """What the input ``text`` may go on with: (a text, how many of the last characters it replaces)."""
    word, space, rest = text.partition(" ")
    if not space:
        if word.startswith("/"):
            yield from ((name, len(word)) for name in _commands() if name.startswith(word))
        return
    if word in _PATHS or (word == "/system" and rest.startswith("@")):
        yield from _paths(rest.removeprefix("@") if word == "/system" else rest)
        return
    known: dict[str, Callable[[], Iterable[str]]] = {
        "/load": _sessions,
        "/branch": _sessions,
        "/save": _sessions,
        "/set": lambda: SETTINGS,
        "/system": lambda: ("none",),
        "/think": lambda: ("on", "off"),
        "/edit": lambda: map(str, range(1, chat.messages + 1)),
    }
    if word in known and " " not in rest:
        yield from ((name, len(rest)) for name in known[word]() if name.startswith(rest))


def _commands() -> list[str]:
    return [name.split()[0] for name in HELP]


def _sessions() -> list[str]:
    try:
        return session_file.names()
    except JambaError:
        return []


def _paths(text: str) -> Iterator[tuple[str, int]]:
    """The paths that the last word of ``text`` may become, escaped as it is."""
    typed, quote = _last_word(text)
    begun = os.path.expanduser(_bare(typed))  # noqa: PTH111 - a path may end with a separator
    folder, name = os.path.split(begun)
    try:
        found = sorted(os.scandir(folder or "."), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in found:
        if entry.name.startswith(name) and (name or not entry.name.startswith(".")):
            path = str(Path(folder) / entry.name) + ("/" if entry.is_dir() else "")
            shown = (
                quote + path if quote else "".join(f"\\{c}" if c in _SPECIAL and os.name != "nt" else c for c in path)
            )
            yield shown, len(typed)


def _last_word(text: str) -> tuple[str, str]:
    """The last word of a line as it was typed, and the quote that it begins with."""
    start, quote, escaped = 0, "", False
    for i, c in enumerate(text):
        if escaped:
            escaped = False
        elif c == "\\" and quote != "'" and os.name != "nt":
            escaped = True
        elif quote:
            quote = "" if c == quote else quote
        elif c in "\"'":
            start, quote = (i, c) if i == start else (start, c)
        elif c.isspace():
            start = i + 1
    return text[start:], text[start] if quote and text[start : start + 1] == quote else ""


def _bare(word: str) -> str:
    """A word without its quotes and escapes."""
    if word[:1] in ("'", '"'):
        return word[1:]
    out, escaped = "", False
    for c in word:
        if c == "\\" and not escaped and os.name != "nt":
            escaped = True
        else:
            out, escaped = out + c, False
    return out


def completer(chat: Chat) -> Any:
    """``completions`` for prompt_toolkit."""
    from prompt_toolkit.completion import Completer, Completion

    class ChatCompleter(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Any:
            for text, replaced in completions(chat, document.text_before_cursor):
                yield Completion(text, start_position=-replaced)

    return ChatCompleter()
