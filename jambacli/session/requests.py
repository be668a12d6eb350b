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

if TYPE_CHECKING:
    from jambacli.engine.loaded_model import LoadedModel
    from jambacli.engine.sampling import Sampling

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
    conversation.turns = [Turn(m["role"], m["content"]) for m in before]
    if last["role"] == "user":
        conversation.add_user(last["content"], documents, knobs)
    elif documents or knobs:
        raise UsageError("documents come before a message of the user, which must be the last one")
    else:
        conversation.turns.append(Turn(last["role"], last["content"]))
    return request_of(model, conversation.render(), options, chat=True, documents=documents)


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
) -> Request:
    """The reply to a rendered prompt. ``sampling``: the defaults of the options, None for the model's."""
    options = options or GenerationOptions()
    tokenizer = model.tokenizer
    marks = thought_marks(tokenizer)
    constraint = None
    if options.schema is not None:
        from jambacli.engine.constraints.json_schema import SchemaConstraint

        n_vocab = model.config.vocab_size
        constraint = SchemaConstraint(tokenizer, options.schema, n_vocab, marks, citable=options.cite or 0)
    return Request(
        ids=rendered.ids,
        boundaries=rendered.boundaries,
        sampling=options.sampling(sampling or model.sampling),
        max_tokens=options.max_tokens,
        stops=tuple(options.stop),
        thought_marks=marks,
        thinking=chat and ends_in_thought(tokenizer, rendered.ids),
        constraint=constraint,
        reserve=reserve,
        drop_space=chat,
        documents=[text_hash(str(d.get("text", ""))) for d in documents or ()],
        lookup=options.lookup,
    )
