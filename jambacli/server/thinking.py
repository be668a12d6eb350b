"""Thoughts on and off, as far as a model's template and vocabulary have them.

Off: a template's own switch is set; a thought that the prompt opens is closed at once; a reply cannot open one. On: a switch
is set; where there is none the template decides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jambacli.engine.batch_job import Request
from jambacli.server.errors import bad_request
from jambacli.session.conversation import Rendered, ends_in_thought, thought_marks
from jambacli.text.markup import THINK

if TYPE_CHECKING:
    from jambacli.text.template import ChatTemplate
    from jambacli.text.tokenizer import Tokenizer

#: Variables by which templates switch thoughts.
SWITCHES = ("enable_thinking", "thinking")
# Reasoning-3B's template asks for thoughts before the last message, unless this variable has another text for that.
_PREFIX = "thinking_prefix"


class _Nothing(str):
    """An empty text that is not false: templates replace a false variable by their own text."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return True


def read_effort(body: Mapping[str, Any]) -> bool | None:
    """Whether a body of OpenAI's APIs wants thoughts: by ``reasoning_effort``, ``reasoning`` or the template's variables; None
    if it does not say. Raises ApiError."""
    variables = body.get("chat_template_kwargs")
    if isinstance(variables, Mapping):
        for name in SWITCHES:
            if isinstance(variables.get(name), bool):
                return bool(variables[name])
    reasoning = body.get("reasoning")
    if reasoning is not None and not isinstance(reasoning, Mapping):
        raise bad_request("the field 'reasoning' must be an object", "reasoning")
    effort = body.get("reasoning_effort", (reasoning or {}).get("effort"))
    if effort is None:
        return None
    if not isinstance(effort, str):
        raise bad_request("the field 'reasoning_effort' must be a text", "reasoning_effort")
    return effort != "none"


def read_config(value: Any) -> bool | None:
    """The same in Anthropic's form: ``{"type": "enabled" | "disabled" | "adaptive"}``. Raises ApiError."""
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str):
        raise bad_request("the field 'thinking' must be an object with a type", "thinking")
    return kind != "disabled"


def read_think(value: Any) -> bool | None:
    """The same in Ollama's form: true, false, or a text for how much. Raises ApiError."""
    if value is None or isinstance(value, bool):
        return value
    if not isinstance(value, str):
        raise bad_request("the field 'think' must be true, false or a text", "think")
    return value != "none"


def can_think(template: ChatTemplate | None, tokenizer: Tokenizer) -> bool:
    """Whether a model is made for thoughts: its vocabulary has the marks and its template knows them."""
    if template is None or None in thought_marks(tokenizer):
        return False
    return THINK in template.source or SWITCHES[0] in template.source


def template_variables(template: ChatTemplate, thinking: bool | None) -> dict[str, Any]:
    """The variables that switch thoughts on or off in a template that has such."""
    if thinking is None:
        return {}
    chosen: dict[str, Any] = {SWITCHES[0]: thinking} if SWITCHES[0] in template.source else {}
    if not thinking and _PREFIX in template.source:
        chosen[_PREFIX] = _Nothing()
    return chosen


def without_thoughts(tokenizer: Tokenizer, rendered: Rendered) -> Rendered:
    """The prompt with a thought that it opens at its end closed at once, as templates write an empty one."""
    begin, end = thought_marks(tokenizer)
    if begin is None or end is None or not ends_in_thought(tokenizer, rendered.ids):
        return rendered
    at = len(rendered.ids) - 1 - rendered.ids[::-1].index(begin)
    gap = tokenizer.encode("\n\n")
    ids = [*rendered.ids[: at + 1], *gap, end, *gap]
    return replace(rendered, ids=ids, boundaries=[*(b for b in rendered.boundaries if b <= at), len(ids)])


def forbid_thoughts(requests: Sequence[Request]) -> list[Request]:
    """The same requests, whose replies cannot open a thought."""
    changed = []
    for request in requests:
        begin, sampling = request.thought_marks[0], request.sampling
        if begin is not None:
            sampling = replace(sampling, logit_bias={**sampling.logit_bias, begin: -math.inf})
        changed.append(replace(request, sampling=sampling))
    return changed
