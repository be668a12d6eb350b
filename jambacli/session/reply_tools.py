"""What the tools of a prompt mean for the reply: its marks, its constraint, and how its calls are found."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from jambacli.errors import UsageError
from jambacli.session.conversation import thought_marks
from jambacli.text.tool_calls import ToolCallScanner, ToolMarkup, tool_markup

if TYPE_CHECKING:
    from jambacli.engine.batch_job import ReplyConstraint
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.options import GenerationOptions
    from jambacli.engine.sampling import Sampling
    from jambacli.text.tools import ToolUse


@dataclass(frozen=True)
class ReplyTools:
    """The tools that a reply may call, and the marks of its calls."""

    tools: ToolUse
    markup: ToolMarkup

    def scanner(self, thinking: bool = False) -> ToolCallScanner:
        """A scanner of one reply. ``thinking``: the prompt has opened thoughts."""
        return ToolCallScanner(self.markup, one=self.tools.one, thinking=thinking)


def model_markup(model: LoadedModel) -> ToolMarkup:
    """The marks of calls. Raises UsageError for a model whose template has no tools."""
    markup = tool_markup(model.template.source, model.tokenizer) if model.template is not None else None
    if markup is None:
        raise UsageError(f"the chat template of {model.name} has no tools")
    return markup


def reply_tools(model: LoadedModel, tools: ToolUse | None) -> ReplyTools | None:
    """The tools that a reply may call, None if it may call none. Raises UsageError for a template without tools."""
    if tools is None:
        return None
    markup = model_markup(model)
    return ReplyTools(tools, markup) if tools.choice != "none" else None


def without_calls(model: LoadedModel, sampling: Sampling, tools: ToolUse | None) -> Sampling:
    """``sampling``, without the opening mark of calls if the reply is to have none and the mark is a token."""
    if tools is None or tools.choice != "none":
        return sampling
    opening = model_markup(model).ids[0]
    return sampling if opening is None else replace(sampling, logit_bias={**sampling.logit_bias, opening: -math.inf})


def reply_constraint(
    model: LoadedModel, options: GenerationOptions, calls: ReplyTools | None
) -> ReplyConstraint | None:
    """What holds a reply to its schema and its calls to theirs, None without either. Raises JambaError."""
    tokenizer, n_vocab = model.tokenizer, model.config.vocab_size
    marks = thought_marks(tokenizer)
    if calls is not None:
        from jambacli.engine.constraints.tool_calls import tool_constraint

        return tool_constraint(tokenizer, calls.markup, calls.tools, n_vocab, marks, options.schema)
    if options.schema is None:
        return None
    from jambacli.engine.constraints.json_schema import SchemaConstraint

    return SchemaConstraint(tokenizer, options.schema, n_vocab, marks, citable=options.cite or 0)
