"""One call of a tool, ``{"name": "f", "arguments": {...}}``, read character by character as a model writes it."""

from __future__ import annotations

import json
import re
from typing import Literal

_SPACE = " \t\r\n"
_CLOSING = {"{": "}", "[": "]"}
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SCALAR = re.compile(r"[\w.+-]")
_VALUE = re.compile(r"[\w.+,:\s-]")

_State = Literal["before key", "key", "colon", "before value", "string", "nested", "scalar"]


class CallParser:
    """Reads the characters after the opening brace.

    ``name``: of the function, None until it is known. ``done``: the call is complete, with arguments that are JSON.
    ``failed``: the text is no call. Arguments may be an object, a text that holds one, null or missing; a comma before a
    closing bracket is left out, everything else is passed on as it was written.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self.done = self.failed = False
        self._state: _State = "before key"
        self._kind = ""  # which value is read: "name", "arguments" or ""
        self._text: list[str] = []  # of the key, the name or a number
        self._escape = ""  # an escape sequence in a string that is not complete
        self._half = ""  # the first half of a surrogate pair
        self._stack: list[str] = []
        self._quoted = False  # within a string of a nested value
        self._comma = ""  # a comma in the arguments and the space after it, until it is clear that a value follows
        self._arguments: list[str] = []
        self._taken = 0
        self._has_arguments = False

    @property
    def in_string(self) -> bool:
        """Whether the next character belongs to a string, where marks mean nothing."""
        return self._quoted or self._state in ("key", "string")

    @property
    def arguments(self) -> str:
        """The arguments so far."""
        return "".join(self._arguments)

    def take(self) -> str:
        """What was added to the arguments since the last time."""
        new = "".join(self._arguments[self._taken :])
        self._taken = len(self._arguments)
        return new

    def run(self, text: str, at: int) -> int:
        """Read the plain characters of a string in the arguments from ``at`` on at once; returns where they end."""
        if self._kind != "arguments" or self._escape or not (self._quoted or self._state == "string"):
            return at
        found = _PLAIN.match(text, at)
        if found is None or self._half:
            return at
        self._arguments.append(found[0])
        return found.end()

    def push(self, c: str) -> None:
        """Read one character."""
        if self._state == "before key":
            if c == '"':
                self._state, self._text = "key", []
            elif c == "}":
                self._finish()
            elif c not in _SPACE and c != ",":
                self.failed = True
        elif self._state == "key":
            if self._string(c):
                self._kind, self._state = self._value_kind("".join(self._text)), "colon"
        elif self._state == "colon":
            if c == ":":
                self._state = "before value"
            elif c not in _SPACE:
                self.failed = True
        elif self._state == "before value":
            self._begin_value(c)
        elif self._state == "string":
            if self._string(c):
                self._end_value()
        elif self._state == "nested":
            self._nested(c)
        elif _SCALAR.match(c):
            self._text.append(c)
        else:
            self._end_value()
            self.push(c)

    def close(self) -> None:
        """End a call whose last brackets are missing: ``done`` if they make it complete, else ``failed``."""
        if self.done or self.failed:
            return
        if self._state == "nested" and not self._quoted:
            if self._kind == "arguments":
                self._arguments.append("".join(_CLOSING[b] for b in reversed(self._stack)))
            self._end_value()
        elif self._state == "scalar":
            self._end_value()
        if self._state == "before key":
            self._finish()
        else:
            self.failed = True

    def _value_kind(self, key: str) -> str:
        """The first name and the first arguments count."""
        if key == "name" and self.name is None:
            return "name"
        return "arguments" if key == "arguments" and not self._has_arguments else ""

    def _begin_value(self, c: str) -> None:
        if c in _SPACE:
            return
        self._text, self._stack, self._quoted = [], [], False
        if self._kind == "name" and c != '"':
            self.failed = True
        elif c == '"':
            self._state = "string"
        elif c in _CLOSING:
            self._state, self._stack = "nested", [c]
            self._add(c)
        elif _SCALAR.match(c):
            self._state = "scalar"
            self._text.append(c)
        else:
            self.failed = True

    def _end_value(self) -> None:
        if self._kind == "name":
            self.name = "".join(self._text)
        elif self._kind == "arguments":
            self._has_arguments, self._comma = True, ""
            if self._state == "scalar" and self._text != list("null"):
                self._arguments.append("".join(self._text))
        self._state, self._kind = "before key", ""

    def _string(self, c: str) -> bool:
        """Read a character of a string; returns whether it was the quote at its end."""
        if self._escape:
            self._escape += c
            if self._escape[1] != "u" or len(self._escape) == 6:
                self._unescape()
        elif c == "\\":
            self._escape = c
        elif c == '"':
            self._keep("")
            return True
        else:
            self._keep(c)
        return False

    def _unescape(self) -> None:
        text, self._escape = self._escape, ""
        try:
            self._keep(json.loads(f'"{text}"'))
        except ValueError:
            self.failed = True

    def _keep(self, text: str) -> None:
        """Keep decoded text of a string, if it is of use. The halves of a surrogate pair come one after another."""
        if self._half:
            pair = (self._half + text).encode("utf-16", "surrogatepass")
            text, self._half = pair.decode("utf-16", "replace"), ""
        elif len(text) == 1 and "\ud800" <= text < "\udc00":
            self._half = text
            return
        text = text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        if self._state == "string" and self._kind == "arguments":
            self._arguments.append(text)
        elif self._state == "key" or self._kind == "name":
            self._text.append(text)

    def _nested(self, c: str) -> None:
        if self._quoted:
            # Models write line breaks in strings as they are, which JSON does not allow.
            self._add(json.dumps(c)[1:-1] if c < " " else c)
            if self._escape:
                self._escape = ""
            elif c == "\\":
                self._escape = c
            elif c == '"':
                self._quoted = False
            return
        if c == '"':
            self._quoted = True
        elif c in _CLOSING:
            self._stack.append(c)
        elif c in "}]":
            if _CLOSING[self._stack[-1]] != c:
                self.failed = True
                return
            self._stack.pop()
        elif not _VALUE.match(c):
            self.failed = True
            return
        self._add(c)
        if not self._stack:
            self._end_value()

    def _add(self, c: str) -> None:
        """Pass on a character of nested arguments."""
        if self._kind != "arguments":
            return
        if not self._quoted and (c == "," or (self._comma and c in _SPACE)):
            self._comma += c
            return
        if self._comma:
            self._arguments.append(self._comma[1:] if c in "}]" else self._comma)
            self._comma = ""
        self._arguments.append(c)

    def _finish(self) -> None:
        if not self.arguments.strip(_SPACE):
            self._arguments.append("{}")
        try:
            json.loads(self.arguments)
        except (ValueError, RecursionError):
            self.failed = True
            return
        self.failed = self.name is None
        self.done = not self.failed
