"""Constrain the calls of tools in a reply: their form, the names of the functions, and the schemas of their arguments.

A reply that must call is a grammar from its beginning. One that may call is free until its opening mark.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from jambacli.engine.constraints.grammar import GrammarConstraint, vocabulary_of
from jambacli.engine.constraints.json_schema import closed_rule, json_rule
from jambacli.engine.constraints.relaxed import ANY_OBJECT, relaxed
from jambacli.engine.constraints.schema_checks import check_ends
from jambacli.errors import JambaError, UsageError

if TYPE_CHECKING:
    from jambacli.engine.constraints.grammar import Vocabulary
    from jambacli.text.tokenizer import Tokenizer
    from jambacli.text.tool_calls import ToolMarkup
    from jambacli.text.tools import ToolDefinition, ToolUse

logger = logging.getLogger(__name__)

# Calls in one reply, at most.
_MOST_CALLS = 64

Marks = tuple[int | None, int | None]


def tool_constraint(
    tokenizer: Tokenizer,
    markup: ToolMarkup,
    tools: ToolUse,
    n_vocab: int,
    marks: Marks,
    schema: Mapping[str, Any] | None = None,
) -> GrammarConstraint | FreeUntilCall | None:
    """The constraint of a reply with ``tools``, None where none is possible: calls are then found in the text alone.

    ``schema``: of a reply without calls. The other arguments are those of ``GrammarConstraint``. What a tool's schema has
    that cannot be enforced is left out and logged. Raises UsageError for such a schema if it is ``strict``, JambaError
    without llguidance for a reply that must call.
    """
    needed = tools.choice == "required" or schema is not None or any(d.strict for d in tools.callable)
    try:
        calls = _Calls(tokenizer, markup, tools, vocabulary_of(tokenizer, n_vocab))
        if tools.choice == "required" or schema is not None:
            return GrammarConstraint(tokenizer, calls.whole(schema), n_vocab, marks)
        inner = GrammarConstraint(tokenizer, calls.after_opening(), n_vocab, (None, None))
    except JambaError as error:
        if needed:
            raise
        logger.info("calls of tools are not constrained: %s", error)
        return None
    return FreeUntilCall(inner, tokenizer, markup, marks)


class _Calls:
    """The grammar of calls."""

    def __init__(self, tokenizer: Tokenizer, markup: ToolMarkup, tools: ToolUse, vocabulary: Vocabulary) -> None:
        self._tools, self._list = tools, markup.form == "list"
        plain = zip(markup.ids, markup.plain, strict=True)
        self._opening, self._closing = (f"<[{i}]>" if i is not None else json.dumps(mark) for i, mark in plain)
        rules = ["gap: /[ \\n]{0,6}/"]
        names = []
        for i, tool in enumerate(tools.callable):
            # A text of JSON within a grammar's text, so it is escaped twice.
            head = json.dumps(
                f'{{"name": {json.dumps(tool.name, ensure_ascii=False)}, "arguments": ', ensure_ascii=False
            )
            rules += [f'call_{i}: {head} arguments_{i} "}}"', f"arguments_{i}: {json_rule(_schema(tool, vocabulary))}"]
            names.append(f"call_{i}")
        self._rules = "\n".join([f"call: {' | '.join(names)}", *rules])

    def whole(self, schema: Mapping[str, Any] | None) -> str:
        """A reply that is calls, or if there is a ``schema``, JSON of it."""
        required = self._tools.choice == "required"
        kinds = "calls" if schema is None or required else "(calls | json)"
        rules = f"start: /[ \\n]{{0,2}}/ {kinds}\ncalls: {self._opening} {self._rest()}\n{self._rules}"
        return rules if schema is None or required else f"{rules}\njson: {closed_rule(schema)}"

    def after_opening(self) -> str:
        """What follows the first opening mark."""
        return f"start: {self._rest()}\n{self._rules}"

    def _rest(self) -> str:
        more = _MOST_CALLS - 1
        if self._list:
            others = "" if self._tools.one else f' (gap "," gap call){{0,{more}}}'
            return f'gap "[" gap call{others} gap "]" {self._closing}'
        others = "" if self._tools.one else f" (gap {self._opening} gap call gap {self._closing}){{0,{more}}}"
        return f"gap call gap {self._closing}{others}"


def _schema(tool: ToolDefinition, vocabulary: Vocabulary) -> Mapping[str, Any]:
    """The schema of a tool's arguments as it can be enforced. Raises UsageError for a strict one that cannot."""
    given = tool.parameters or ANY_OBJECT
    if tool.strict:
        try:
            check_ends(given)
            vocabulary.matcher(f"start: {json_rule(given)}")
        except UsageError as error:
            raise UsageError(f"the strict tool {tool.name!r}: {error.problem}") from error
        return given
    schema, gone = relaxed(given, vocabulary)
    if gone:
        left_out = ", ".join(dict.fromkeys(gone))
        logger.info("the tool %s: left out of its schema, as it cannot be enforced: %s", tool.name, left_out)
    return schema


class FreeUntilCall:
    """No constraint until the opening mark of calls, then that of a grammar, to the end of the reply."""

    #: Stop strings apply, and the reply may end at any place.
    whole = False

    def __init__(self, inner: GrammarConstraint, tokenizer: Tokenizer, markup: ToolMarkup, marks: Marks) -> None:
        self._inner: GrammarConstraint | None = inner
        self._tokenizer, self._marks = tokenizer, marks
        self._token, self._mark = markup.ids[0], markup.plain[0].encode()
        self._thinking = self._within = False
        self._left = 0
        self._tail = b""  # the last bytes of the text, for a mark that is no token

    def begin(self, budget: int, thinking: bool = False, said: Sequence[int] = ()) -> None:
        """Start a reply; see ``GrammarConstraint.begin``. Calls that do not fit are not constrained."""
        self._thinking, self._left = thinking, budget + len(said)
        try:
            assert self._inner is not None
            self._inner.begin(budget)
        except JambaError:
            self._inner = None
        for token in said:
            self.accept(token)

    def check_finished(self, tokens: int, *, at_context: bool = False) -> None:
        """Nothing: the reply is free to end."""

    def allowed(self) -> np.ndarray | None:
        """Bool [n_vocab]: the tokens that may come next; None where every token may."""
        return self._inner.allowed() if self._within and self._inner is not None else None

    def accept(self, token: int) -> int:
        """Record ``token``; returns it, or another one when no call could be finished in time after it."""
        self._left -= 1
        if self._within:
            return self._inner.accept(token) if self._inner is not None else token
        if token in self._marks:
            self._thinking = token == self._marks[0]
        elif not self._thinking and self._opens(token):
            self._within = True
            if self._inner is not None and not self._inner.join(self._left):
                self._inner = None  # too few tokens are left
        return token

    def forced(self) -> list[int]:
        """The tokens that come next whatever the logits are."""
        return self._inner.forced() if self._within and self._inner is not None else []

    def _opens(self, token: int) -> bool:
        """Whether the opening mark ends with ``token``. A mark of plain text that ends within a token is not seen."""
        if self._token is not None:
            return token == self._token
        self._tail = (self._tail + self._tokenizer.token_bytes(token))[-len(self._mark) :]
        return self._tail == self._mark
