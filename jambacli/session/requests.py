"""Messages or plain text and the options of a reply -> a request to a BatchEngine. It gives what a new session would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import text_hash
from jambacli.engine.batch_job import Request
from jambacli.engine.options import GenerationOptions
from jambacli.errors import UsageError
from jambacli.session.conversation import (
    Conversation,
    Rendered,
    Turn,
    ends_in_thought,
    render_plain,
    thought_marks,
)
from jambacli.session.reply_tools import reply_constraint, reply_tools, without_calls
from jambacli.session.thinking import forbid_thoughts, render_reply, switch_thoughts

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.sampling import Sampling
    from jambacli.text.tools import ToolUse

_ROLES = ("system", "user", "assistant")


def chat_request(
    model: LoadedModel,
    messages: Sequence[Mapping[str, Any]],
    options: GenerationOptions | None = None,
    *,
    documents: Sequence[Mapping[str, Any]] | None = None,
    knobs: Mapping[str, Any] | None = None,
) -> Request:
    """The reply to ``messages``, mappings with "role" (system, user, assistant) and "content"; ``documents`` and ``knobs``
    as for ``Session.send``, before the last message.

    Raises UsageError for a model without a chat template, no messages, another role, or a last message that is not the
    user's if there are documents.
    """
    if model.template is None:
        raise UsageError(f"{model.name} has no chat template; it can only continue plain text")
    if not messages:
        raise UsageError("there are no messages")
    for message in messages:
        if message.get("role") not in _ROLES or not isinstance(message.get("content"), str):
            raise UsageError(f"a message needs a role ({', '.join(_ROLES)}) and a text as its content")
    *before, last = messages
    conversation = Conversation(model.template, model.tokenizer)
    think = options.think if options is not None else None
    switch_thoughts(conversation, think)  # documents are rendered as they will be in the prompt
    conversation.turns = [Turn(m["role"], m["content"]) for m in before]
    if last["role"] == "user":
        conversation.add_user(last["content"], documents, knobs)
    elif documents or knobs:
        raise UsageError("documents come before a message of the user, which must be the last one")
    else:
        conversation.turns.append(Turn(last["role"], last["content"]))
    return request_of(model, render_reply(conversation, think), options, chat=True, documents=documents)


def text_request(
    model: LoadedModel,
    text: str,
    options: GenerationOptions | None = None,
    *,
    documents: Sequence[Mapping[str, Any]] | None = None,
) -> Request:
    """What follows ``text``, without a chat template, after ``documents`` as plain text."""
    rendered = render_plain(model.tokenizer, text, documents)
    return request_of(model, rendered, options, chat=False, documents=documents)


def request_of(
    model: LoadedModel,
    rendered: Rendered,
    options: GenerationOptions | None = None,
    *,
    chat: bool,
    sampling: Sampling | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    reserve: int = 0,
    tools: ToolUse | None = None,
) -> Request:
    """The reply to a rendered prompt. ``sampling``: the defaults of the options, None for the model's. ``tools``: those of the
    prompt; their marks are then in the reply's text."""
    options = options or GenerationOptions()
    tokenizer = model.tokenizer
    marks = thought_marks(tokenizer)
    calls = reply_tools(model, tools)
    chosen = forbid_thoughts(model, options.sampling(sampling or model.sampling), options.think)
    return Request(
        ids=rendered.ids,
        boundaries=rendered.boundaries,
        sampling=without_calls(model, chosen, tools),
        max_tokens=options.max_tokens,
        stops=tuple(options.stop),
        thought_marks=marks,
        thinking=chat and ends_in_thought(tokenizer, rendered.ids),
        constraint=reply_constraint(model, options, calls),
        reserve=reserve,
        drop_space=chat,
        documents=[text_hash(str(d.get("text", ""))) for d in documents or ()],
        lookup=options.lookup,
        markup=calls.markup.shown if calls is not None else {},
    )
