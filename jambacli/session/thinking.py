"""Thoughts on and off, as far as a model's template and vocabulary have them.

Off: a template's own switch is set; a thought that the prompt opens is closed at once; a reply cannot open one. On: a switch
is set; where there is none the template decides.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jambacli.session.conversation import Conversation, Rendered, ends_in_thought, thought_marks
from jambacli.text.markup import THINK
from jambacli.text.template import SENTINEL

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.sampling import Sampling
    from jambacli.text.template import ChatTemplate
    from jambacli.text.tokenizer import Tokenizer

#: Variables by which templates switch thoughts.
SWITCHES = ("enable_thinking", "thinking")
# Reasoning-3B's template asks for thoughts before the last message, unless this variable has another text for that.
_PREFIX = "thinking_prefix"


def can_think(template: ChatTemplate | None, tokenizer: Tokenizer) -> bool:
    """Whether a model is made for thoughts: its vocabulary has the marks and its template knows them."""
    if template is None or None in thought_marks(tokenizer):
        return False
    return THINK in template.source or SWITCHES[0] in template.source


def template_variables(template: ChatTemplate, think: bool | None) -> dict[str, Any]:
    """The variables that switch thoughts on or off in a template that has such."""
    if think is None:
        return {}
    chosen: dict[str, Any] = {SWITCHES[0]: think} if SWITCHES[0] in template.source else {}
    if not think and _PREFIX in template.source:
        chosen[_PREFIX] = SENTINEL  # not false, which the template would replace; encoding removes it
    return chosen


def switch_thoughts(conversation: Conversation, think: bool | None) -> None:
    """Set the template's variables for the next reply of a conversation, and remove those of the reply before."""
    variables = conversation.variables
    kept = {name: value for name, value in variables.items() if name not in (SWITCHES[0], _PREFIX)}
    conversation.variables = {**kept, **template_variables(conversation.template, think)}


def render_reply(conversation: Conversation, think: bool | None) -> Rendered:
    """The prompt of the next reply, with thoughts or without; None: as the template has it."""
    switch_thoughts(conversation, think)
    rendered = conversation.render()
    return without_thoughts(conversation.tokenizer, rendered) if think is False else rendered


def without_thoughts(tokenizer: Tokenizer, rendered: Rendered) -> Rendered:
    """The prompt with a thought that it opens at its end closed at once, as templates write an empty one."""
    begin, end = thought_marks(tokenizer)
    if begin is None or end is None or not ends_in_thought(tokenizer, rendered.ids):
        return rendered
    at = len(rendered.ids) - 1 - rendered.ids[::-1].index(begin)
    gap = tokenizer.encode("\n\n")
    ids = [*rendered.ids[: at + 1], *gap, end, *gap]
    return replace(rendered, ids=ids, boundaries=[*(b for b in rendered.boundaries if b <= at), len(ids)])


def forbid_thoughts(model: LoadedModel, sampling: Sampling, think: bool | None) -> Sampling:
    """``sampling``, by which a reply cannot open a thought if ``think`` is False."""
    begin = thought_marks(model.tokenizer)[0]
    if think is not False or begin is None:
        return sampling
    return replace(sampling, logit_bias={**sampling.logit_bias, begin: -math.inf})
