"""Tool calls in the text that a model generates, found by one scanner that only goes forward.

Jamba's templates have two forms. Mini and Large write a list, the 3B models one element for each call:

    <tool_calls>[{"name": "f", "arguments": {...}}, ...]</tool_calls>
    <tool_call>{"name": "f", "arguments": {...}}</tool_call>

``ToolCallScanner`` knows strings and nesting, so that marks within strings mean nothing, and takes text in any pieces: the
result depends on the whole text alone. It passes on the characters of the arguments as they come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from jambacli.text.call_parser import CallParser
from jambacli.text.markup import THINK, THINK_END
from jambacli.text.tokenizer import Tokenizer

#: How a template writes calls: "list", all of them as one JSON list, or "single", one JSON object each.
Form = Literal["list", "single"]

_MARKS: dict[Form, tuple[str, str]] = {
    "list": ("<tool_calls>", "</tool_calls>"),
    "single": ("<tool_call>", "</tool_call>"),
}
# A Unicode noncharacter before a mark that is a token of its own: the same characters as text are no mark then.
_TOKEN = "\ufdd0"
_SPACE = " \t\r\n"
_Place = Literal["text", "thought", "block", "lost"]


@dataclass(frozen=True)
class ToolMarkup:
    """How one model marks its calls.

    ``opening``, ``closing``: the marks in the text that the scanner reads. ``ids``: their tokens, None for marks that are not
    tokens. ``shown``: the text of each of these tokens, for ``engine.generate.Reply``. ``thoughts``: whether thoughts are
    marked by plain text, which the scanner then has to know.
    """

    form: Form
    opening: str
    closing: str
    ids: tuple[int | None, int | None] = (None, None)
    shown: Mapping[int, str] = field(default_factory=dict)
    thoughts: bool = False

    @property
    def plain(self) -> tuple[str, str]:
        """The marks as a template writes them."""
        return _MARKS[self.form]


def call_form(source: str) -> Form | None:
    """The form of tool calls in a chat template's text, None for a template without tools."""
    if "tools" not in source:
        return None
    if "<tool_calls>" in source:
        return "list"
    return "single" if "<tool_call>" in source and ("<tools>" in source or "<tool_response>" in source) else None


def tool_markup(source: str, tokenizer: Tokenizer) -> ToolMarkup | None:
    """The marks of a model with the chat template ``source``, None for a template without tools."""
    form = call_form(source)
    if form is None:
        return None
    marks = _MARKS[form]
    ids = (tokenizer.marker_id(marks[0]), tokenizer.marker_id(marks[1]))
    texts = [mark if token is None else _TOKEN + mark for token, mark in zip(ids, marks, strict=True)]
    shown = {token: text for token, text in zip(ids, texts, strict=True) if token is not None}
    return ToolMarkup(form, texts[0], texts[1], ids, shown, tokenizer.marker_id(THINK_END) is None)


@dataclass(frozen=True)
class ToolCall:
    """A call: the function's name, its arguments as JSON text, and the id that a client knows it by, "" for none."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class CallPiece:
    """A piece of call ``index``, counted from 0: its ``name``, once and before anything else, or more of its arguments."""

    index: int
    name: str | None = None
    arguments: str = ""


class ToolCallScanner:
    """Separates the text of a reply from its calls: ``push`` every piece of text, then ``end``.

    ``calls``: the complete calls so far, ``places``: their ``CallPiece.index``. ``broken``: whether a call began whose text is
    not complete or not JSON. ``enough``: with ``one``, whether the first call is complete; everything after it is ignored.
    """

    def __init__(self, markup: ToolMarkup, *, one: bool = False, thinking: bool = False) -> None:
        """``one``: only the first call counts. ``thinking``: the prompt has opened thoughts, which plain text ends."""
        self.calls: list[ToolCall] = []
        self.places: list[int] = []
        self.broken = self.enough = False
        self._markup, self._one = markup, one
        self._out: list[str | CallPiece] = []
        self._where: _Place = "thought" if thinking and markup.thoughts else "text"
        self._held = ""  # text that may be the beginning of a mark, or space before one
        self._after_call = False  # space after a call is left out
        self._raw: list[str] | None = None  # the block so far, shown as text unless a call begins in it
        self._call: CallParser | None = None
        self._named = False  # whether the name of the current call was passed on
        self._mark = ""  # the beginning of a closing mark
        self._begun = 0  # calls whose names were passed on

    def push(self, text: str) -> list[str | CallPiece]:
        """What ``text`` adds: texts to show and pieces of calls, in order."""
        while text and not self.enough:
            text = self._search(text) if self._where in ("text", "thought") else self._block(text)
        self._pass_on()
        return self._take()

    def end(self, truncated: bool = False) -> list[str | CallPiece]:
        """What is left at the end of the reply. Missing brackets at the end of a call are added, unless the reply was
        ``truncated``: what it would have been is not known."""
        if self.enough:
            return self._take()
        if self._where in ("text", "thought"):
            self._say(self._held)
        elif self._where == "block":
            if truncated:
                self.broken = self.broken or self._call is not None
            else:
                self._close_call()
        self._held = ""
        return self._take()

    def _take(self) -> list[str | CallPiece]:
        out, self._out = self._out, []
        return out

    def _say(self, text: str) -> None:
        text = text.replace(_TOKEN, "")
        if text and self._out and isinstance(self._out[-1], str):
            self._out[-1] += text
        elif text:
            self._out.append(text)

    # Text

    def _search(self, text: str) -> str:
        """Pass text on up to the next mark; returns what follows the mark."""
        text, self._held = self._held + text, ""
        if self._after_call:
            text = text.lstrip(_SPACE)
        thinking = self._where == "thought"
        marks = [THINK_END] if thinking else [self._markup.opening, *([THINK] if self._markup.thoughts else [])]
        hits = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
        if not hits:
            kept = len(text) - max(_overlap(text, mark) for mark in marks)
            # Space before a call is left out.
            end = kept if thinking else len(text[:kept].rstrip(_SPACE))
            self._say(text[:end])
            self._held, self._after_call = text[end:], self._after_call and end == 0
            return ""
        at, mark = min(hits)
        before, rest = text[:at], text[at + len(mark) :]
        self._after_call = False
        if mark != self._markup.opening:
            self._say(before + mark)
            self._where = "text" if thinking else "thought"
            return rest
        said = before.rstrip(_SPACE)
        self._say(said)
        self._where, self._raw = "block", [before[len(said) :], mark]
        return rest

    # Calls

    def _block(self, text: str) -> str:
        """Read calls up to the closing mark; returns what follows it, or what follows a block without calls."""
        at = 0
        while at < len(text) and self._where in ("block", "lost") and not self.enough:
            at = self._step(text, at)
        return text[at:]

    def _step(self, text: str, at: int) -> int:
        """Read the character at ``at``, or several of a string; returns where to go on."""
        call = self._call
        if call is not None and (end := call.run(text, at)) > at:
            return self._recorded(text, at, end)
        c = text[at]
        if (call is None or not call.in_string) and (self._mark or c == self._markup.closing[0]):
            self._mark += c
            if self._markup.closing.startswith(self._mark):
                self._recorded(text, at, at + 1)
                if self._mark == self._markup.closing:
                    self._mark = ""
                    self._close_call()
                    self._raw, self._where, self._after_call = None, "text", self._begun > 0
                return at + 1
            self._mark = ""
            if self._where == "block":
                self._fail()
            return at
        self._recorded(text, at, at + 1)
        if self._where == "block":
            self._read(c)
        return at + 1

    def _recorded(self, text: str, at: int, end: int) -> int:
        if self._raw is not None:
            self._raw.append(text[at:end])
        return end

    def _read(self, c: str) -> None:
        call = self._call
        if call is None:
            if c == "{":
                self._call, self._named = CallParser(), False
            elif c not in _SPACE and c not in "[],":
                self._fail()
            return
        call.push(c)
        if call.name is not None and not self._named and not call.failed:
            self._named, self._raw = True, None
            self._out.append(CallPiece(self._begun, call.name))
            self._begun += 1
        if call.done:
            self._complete(call)
        elif call.failed:
            self._fail()

    def _complete(self, call: CallParser) -> None:
        self._pass_on()
        assert call.name is not None
        self.calls.append(ToolCall(call.name, call.arguments))
        self.places.append(self._begun - 1)
        self._call, self._named = None, False
        self.enough = self._one

    def _pass_on(self) -> None:
        """Pass on what was added to the arguments of the current call."""
        if self._call is not None and self._named and (new := self._call.take()):
            self._out.append(CallPiece(self._begun - 1, arguments=new))

    def _close_call(self) -> None:
        """End a call at the closing mark or at the end of the reply."""
        call = self._call
        if call is None:
            return
        call.close()
        if call.done:
            self._complete(call)
        else:
            self._fail()

    def _fail(self) -> None:
        """What was read is no call: it becomes text, or is left out if calls were passed on."""
        self._pass_on()
        self.broken = self.broken or self._named
        self._call, self._named = None, False
        if self._raw is None:
            self._where = "lost"
            return
        self._say("".join(self._raw))
        self._raw, self._where = None, "text"


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of ``text`` that is a beginning of ``mark``."""
    return next((n for n in range(min(len(mark) - 1, len(text)), 0, -1) if text.endswith(mark[:n])), 0)
