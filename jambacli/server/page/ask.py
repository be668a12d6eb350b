"""A message to a conversation -> the request to the engine, and what was generated -> the session's file.

The same turns, tokens and prefixes as a session of the terminal makes, so that either goes on where the other ended.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from jambacli.cache.prefix_store import Prefix, PrefixStore, text_hash
from jambacli.documents.modes import Modes, Task
from jambacli.documents.pages import DocumentEntry
from jambacli.engine.batch_job import Request
from jambacli.engine.options import GenerationOptions
from jambacli.engine.prefix_cache import spaces_of
from jambacli.errors import JambaError, UsageError
from jambacli.server.errors import ApiError
from jambacli.session.conversation import Conversation, Turn, ends_in_thought
from jambacli.session.requests import request_of
from jambacli.session.session_file import SavedSession
from jambacli.session.thinking import render_reply, switch_thoughts

if TYPE_CHECKING:
    from jambacli.engine.batch_job import Job
    from jambacli.engine.loaded_model import LoadedModel


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What a person asks.

    ``kind``: "message", "edit", "regenerate", "summarize", "compare" or "table". ``text``: for the model, without what its
    template has modes for; ``shown``: for people. ``documents``: ids of those that come before it, with their ``entries``.
    ``at``: the index of the turn that is replaced, of all turns. ``schema``: of the reply. ``citations``: whether the reply is
    to cite. ``task``: what was asked for, for the page. ``each``: the instruction for part i of n of documents larger than the
    context; ``parts``: in how many they were read, and ``originals``: the hashes of their texts; ``entries`` are then what the
    parts said. ``left_out``: names of documents that could not be read.
    """

    kind: str
    text: str = ""
    shown: str = ""
    documents: Sequence[str] = ()
    entries: Sequence[DocumentEntry] = ()
    at: int | None = None
    options: GenerationOptions = field(default_factory=GenerationOptions)
    schema: Mapping[str, Any] | None = None
    citations: bool = True
    task: Mapping[str, Any] | None = None
    each: Callable[[int, int], str] | None = None
    parts: int = 0
    originals: Sequence[str] = ()
    left_out: Sequence[str] = ()


@dataclass
class Prepared:
    """A conversation that waits for a reply. ``documents_end``: tokens up to the end of the documents."""

    conversation: Conversation
    request: Request
    documents: list[str]
    documents_end: int


def conversation_of(model: LoadedModel, saved: SavedSession) -> Conversation:
    """The conversation in a session's file. Raises ApiError for a plain text and for a model without a chat template."""
    if model.template is None:
        raise ApiError(400, f"{model.name} has no chat template: the page cannot talk with it")
    if not saved.chat:
        raise ApiError(409, f"session {saved.name!r} is a plain text that was continued, not a chat", code="no_chat")
    conversation = Conversation(model.template, model.tokenizer)
    conversation.turns = [Turn.from_json(turn) for turn in saved.turns]
    return conversation


def prepare(model: LoadedModel, saved: SavedSession, ask: Ask) -> Prepared:
    """The request that answers ``ask`` in a session. For the thread that prepares prompts. Raises JambaError or ApiError."""
    conversation, options = conversation_of(model, saved), ask.options
    turns = conversation.turns
    switch_thoughts(conversation, options.think)
    modes = Modes(conversation)
    has_documents = bool(ask.entries) or any(t.pinned or t.plain for t in turns)
    task = Task(ask.text, ask.citations and has_documents, ask.schema)
    if ask.kind == "regenerate":
        while turns and turns[-1].role in ("assistant", "tool"):
            turns.pop()
        if not turns or turns[-1].role != "user":
            raise UsageError("there is nothing to answer yet")
    elif ask.kind == "edit" and not ask.entries:
        assert ask.at is not None
        turns[ask.at :] = [replace(turns[ask.at], content=modes.instruction(task))]
    else:
        if ask.at is not None:
            del turns[ask.at :]
        documents = [entry.as_document() for entry in ask.entries]
        knobs = modes.knobs(task) if documents or ask.schema is not None else None
        conversation.add_user(modes.instruction(task), documents or None, knobs)
    if ask.schema is not None:
        cite = _numbered(conversation) if task.citations else None
        options = replace(options, schema=ask.schema, cite=cite)
    rendered = render_reply(conversation, options.think)
    request = request_of(model, rendered, options, chat=True)
    hashes = list(dict.fromkeys([*saved.documents, *ask.originals, *(text_hash(entry.text) for entry in ask.entries)]))
    return Prepared(conversation, replace(request, documents=hashes), hashes, rendered.documents_end)


def document_request(model: LoadedModel, saved: SavedSession | None, ask: Ask) -> Request:
    """What reads the documents of ``ask``, and writes nothing: the tokens from the beginning of a session, or of a new one
    whose system message is ``ask.text``, to the end of its documents. Raises JambaError or ApiError."""
    if saved is not None:
        conversation = conversation_of(model, saved)
        known = list(saved.documents)
    else:
        assert model.template is not None
        conversation, known = Conversation(model.template, model.tokenizer, ask.text or None), []
    switch_thoughts(conversation, ask.options.think)
    modes = Modes(conversation)
    knobs = modes.knobs(Task("?", ask.citations))
    conversation.add_user("?", [entry.as_document() for entry in ask.entries], knobs)
    rendered = render_reply(conversation, ask.options.think)
    end = rendered.documents_end or len(rendered.ids)
    return Request(
        ids=rendered.ids[:end],
        boundaries=[b for b in rendered.boundaries if b <= end],
        max_tokens=0,
        documents=[*known, *(text_hash(entry.text) for entry in ask.entries)],
    )


def _numbered(conversation: Conversation) -> int | None:
    """How many documents the reply may cite: those that came last."""
    for turn in reversed(conversation.turns):
        block = turn.plain or (turn.pinned[1] if turn.pinned else "")
        if block:
            return max(1, block.count("## Document ID: "))
    return None


def with_reply(model: LoadedModel, saved: SavedSession, prepared: Prepared, job: Job, stored: bool) -> SavedSession:
    """The session with what a job has generated. ``stored``: whether there is a prefix store."""
    conversation, ids = prepared.conversation, list(job.result.ids)
    prompt = list(job.request.ids)
    conversation.add_assistant(ids, ends_in_thought(model.tokenizer, prompt))
    assert model.template is not None
    ended = replace(
        saved,
        updated=time.time(),
        chat=True,
        turns=[turn.to_json() for turn in conversation.turns],
        prompt=prompt,
        reply=ids,
        finish=job.result.finish,
        random_state=job.sampler.random_state,
        documents=prepared.documents,
        template_hash=text_hash(model.template.source),
        chat_template=model.chat_template,
        fingerprint=fingerprint_of(model),
        model=model.name,
        model_path=str(model.path),
    )
    ended.prefixes = stored_prefixes(model, ended) if stored else []
    return ended


def stored_prefixes(model: LoadedModel, saved: SavedSession) -> list[Prefix]:
    """The stored prefixes of a session's tokens, the shortest first."""
    try:
        store = PrefixStore()
    except JambaError:
        return []
    space = spaces_of(saved.fingerprint, saved.kv_type, saved.precise)[0]
    return list(store.find(space, saved.tokens))[::-1]


def fingerprint_of(model: LoadedModel) -> str:
    """The name of the weights, "" for a model without a file."""
    return model.fingerprint if model.path is not None else ""
