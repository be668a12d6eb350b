"""The words that may come next on a command line, for the shells: ``jamba __complete SHELL ...``.

A Tab must take a fraction of a second, so nothing slow is imported, not even the command line's own library: commands and
options come from a table that `make docs` writes. Names are data: none of them is ever executed, and one with a control
character is left out.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TABLE = Path(__file__).parents[1] / "data" / "completion.json"
# What a name may not have in it: it would be two names, or move the cursor.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# What bash would not take as it is.
_SPECIAL = re.compile(r"""[\s!"#$&'()*,;<>?\[\\\]^`{|}~]""")


@dataclass
class Words:
    """The words that may come next, with what each is for. ``files``: names of files may come too; ``head``: what of the
    word stands before them (``--schema=``, ``@``)."""

    words: list[tuple[str, str]] = field(default_factory=list)
    files: bool = False
    head: str = ""


def complete(before: Sequence[str], current: str) -> Words:
    """What may come after the words ``before`` (the program's name left out) in place of ``current``, its beginning."""
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    node: dict[str, Any] = table
    words = iter(before)
    given: list[str] = []
    path: list[str] = []
    kind: str | None = None
    only_arguments = False
    for word in words:
        if only_arguments or not word.startswith("-") or word == "-":
            inner = node.get("commands", {}).get(word)
            if inner is None:
                given.append(word)
            else:
                node, given, path = inner, [], [*path, word]
        elif word == "--":
            only_arguments = True
        elif "=" not in word:
            kind = _value_kind(node, word)
            if kind is not None and next(words, None) is not None:
                kind = None
    if kind is not None:
        return _of_kind(kind, current, path, given, "")
    if not only_arguments and current.startswith("-"):
        name, equals, value = current.partition("=")
        if equals:
            kind = _value_kind(node, name)
            return _of_kind(kind, value, path, given, f"{name}=") if kind is not None else Words()
        options = [(name, about) for name, (_, about) in node["options"].items()]
        return _matching(options, current)
    if "commands" in node:
        if given:
            return Words()
        return _matching([(name, inner["about"]) for name, inner in node["commands"].items()], current)
    kinds = node["arguments"]
    if not kinds:
        return Words()
    place = min(len(given), len(kinds) - 1) if node["repeats"] else len(given)
    return _of_kind(kinds[place], current, path, given, "") if place < len(kinds) else Words()


def _value_kind(node: dict[str, Any], name: str) -> str | None:
    """What the value of an option is; None for a switch, and for one that there is not."""
    found = node["options"].get(name)
    if found is None and len(name) > 2 and not name.startswith("--"):
        return None  # a short option with its value: -n20
    return found[0] if found is not None else None


def _of_kind(kind: str, current: str, path: list[str], given: list[str], head: str) -> Words:
    if kind.startswith("one of "):
        return _matching([(word, "") for word in kind.removeprefix("one of ").split()], current, head)
    if kind == "text or file":
        return Words(files=True, head=f"{head}@") if current.startswith("@") else Words()
    if kind == "file":
        return Words(files=True, head=head)
    if kind == "value of setting":
        kind = _kind_of_setting(given[0] if given else "")
        return _of_kind(kind, current, path, given, head)
    source = _SOURCES.get(kind)
    found = _matching(_names(source), current, head) if source is not None else Words()
    if kind in ("model", "pull", "preset") and not found.words:
        found.files, found.head = True, head
    return found


def _matching(words: Iterable[tuple[str, str]], current: str, head: str = "") -> Words:
    """Those that begin with what has been written."""
    return Words([(head + word, about) for word, about in words if word.startswith(current)], head=head)


def _names(source: Callable[[], Iterable[tuple[str, str]]]) -> list[tuple[str, str]]:
    """The names of a source without those that no shell could show; none where they cannot be read."""
    found: list[tuple[str, str]] = []
    with contextlib.suppress(Exception):  # a damaged file ends no Tab
        found = [(name, _CONTROL.sub(" ", about)) for name, about in source() if name and not _CONTROL.search(name)]
    return found


def _models() -> Iterable[tuple[str, str]]:
    from jambacli.hub.store import Store

    names = [(entry.name, entry.quant) for entry in Store().entries()]
    return [*names, ("jamba:tiny", "the demo model")]


def _known_models() -> Iterable[tuple[str, str]]:
    from jambacli.hub.aliases import load_table

    table = load_table()
    return [(name, table.models[name].about if name in table.models else "") for name in table.names()]


def _sessions() -> Iterable[tuple[str, str]]:
    from jambacli.session.session_folder import names

    return [(name, "") for name in names()]


def _presets() -> Iterable[tuple[str, str]]:
    from jambacli import presets

    return [(p.name, p.description) for p in presets.readable() if isinstance(p, presets.Preset)]


def _settings() -> Iterable[tuple[str, str]]:
    from jambacli.settings import SETTINGS

    return [(s.name, s.about) for s in SETTINGS.values()]


def _kind_of_setting(name: str) -> str:
    from jambacli.settings import SETTINGS

    setting = SETTINGS.get(name.replace("_", "-"))
    if setting is None:
        return "text"
    if setting.name == "model":
        return "model"
    choices = ("on", "off") if setting.kind == "switch" else setting.choices
    return f"one of {' '.join(choices)}" if choices else "text"


_SOURCES: dict[str, Callable[[], Iterable[tuple[str, str]]]] = {
    "model": _models,
    "pull": _known_models,
    "session": _sessions,
    "preset": _presets,
    "setting": _settings,
}


def main(arguments: Sequence[str]) -> None:
    """Print the words for a shell.

    ``bash LINE WORD``: the line up to the cursor, and the part of its last word that bash replaces. One word a line follows,
    as bash must have it. ``zsh WORD... -- CURRENT`` and ``fish WORD... -- CURRENT``: the first line is "files" and the head of
    the word, or "words"; then a word a line, a tab, and what it is for.
    """
    shell, rest = arguments[0], list(arguments[1:])
    if shell == "bash":
        line, replaced = rest
        lines = _for_bash(line, replaced)
    else:
        cut = len(rest) - 1 - rest[::-1].index("--")
        found = complete(rest[:cut], rest[cut + 1] if cut + 1 < len(rest) else "")
        lines = [f"files\t{found.head}" if found.files else "words\t"]
        lines += [f"{word}\t{about}" for word, about in found.words]
    sys.stdout.buffer.write("".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))


def _for_bash(line: str, replaced: str) -> list[str]:
    words, raw, quote = split_line(line)
    current = words.pop() if words else ""
    found = complete(words[1:], current)
    # bash splits words at colons and equals signs, and replaces what is behind the last one.
    head = current
    if replaced:
        plain = split_line(replaced)[0]
        tail = plain[-1] if plain else ""
        head = current[: len(current) - len(tail)] if current.endswith(tail) else ""
    elif raw and not raw.endswith((":", "=", "@", '"', "'")):
        head = ""
    quoted = [quoted_for_bash(word.removeprefix(head), quote) for word, _ in found.words if word.startswith(head)]
    # An option that takes a value with = gets no space of its own; all others get bash's.
    return [word for word in quoted if word is not None]


def split_line(line: str) -> tuple[list[str], str, str]:
    """The words of a line as bash reads them, the last perhaps empty; the last as it is written, and its open quote or "".

    Nothing is expanded.
    """
    words: list[str] = []
    word, raw, quote, began = "", "", "", False
    i = 0
    while i < len(line):
        c = line[i]
        step = 1
        if quote == "'":
            quote, word = ("", word) if c == "'" else (quote, word + c)
        elif c == "\\" and i + 1 < len(line) and (not quote or line[i + 1] in '"\\$`'):
            word, began, step = word + line[i + 1], True, 2
        elif quote:
            quote, word = ("", word) if c == '"' else (quote, word + c)
        elif c in "'\"":
            quote, began = c, True
        elif c.isspace():
            if began:
                words.append(word)
            word, raw, began = "", "", False
            i += 1
            continue
        else:
            word, began = word + c, True
        raw += line[i : i + step]
        i += step
    return [*words, word], raw, quote


def quoted_for_bash(word: str, quote: str) -> str | None:
    """A word as it is written behind an open quote, or without one; None where it cannot be."""
    if quote == "'":
        return None if "'" in word else word
    if quote == '"':
        return None if "!" in word else re.sub(r'(["\\$`])', r"\\\1", word)
    return _SPECIAL.sub(lambda m: "\\" + m[0], word)
