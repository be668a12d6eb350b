"""A call that another server answers: its stream of chunks becomes the events of a reply."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jambacli.server.errors import bad_request
from jambacli.server.events import Answer, Event, Piece, Running, Waiting
from jambacli.server.found_calls import CallDelta
from jambacli.server.request import Call
from jambacli.server.tools import call_object
from jambacli.server.upstream_client import UpstreamClient, UpstreamStream, sse_chunks
from jambacli.server.upstream_tools import StreamedCalls, tool_fields
from jambacli.session.thinking import SWITCHES

_SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "presence_penalty", "frequency_penalty", "seed", "max_tokens",
)  # fmt: skip


def body_of(call: Call, model: str, *, documents: bool) -> dict[str, Any]:
    """A call as the body of a streamed chat or text completion. ``documents``: the server takes that field.

    Raises ApiError for log-probabilities, which are passed on in OpenAI's own API alone.
    """
    if call.logprobs is not None:
        raise bad_request("log-probabilities of another server are only to be had at /v1/chat/completions", "logprobs")
    options = call.options
    body: dict[str, Any] = {"model": model, "stream": True, "stream_options": {"include_usage": True}}
    body |= {name: value for name in _SAMPLING if (value := getattr(options, name)) is not None}
    if options.repeat_penalty is not None:  # llama-server's name and vLLM's
        body |= {"repeat_penalty": options.repeat_penalty, "repetition_penalty": options.repeat_penalty}
    if options.stop:
        body["stop"] = list(options.stop)
    if options.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in options.logit_bias.items()}
    if options.schema is not None:
        form = {"name": "reply", "schema": dict(options.schema), "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    if call.choices > 1:
        body["n"] = call.choices
    if not call.messages:
        return {**body, "prompt": call.prompts[0] if len(call.prompts) == 1 else list(call.prompts)}
    switches = {} if call.think is None else dict.fromkeys(SWITCHES, call.think)
    if variables := {**switches, **call.variables}:
        body["chat_template_kwargs"] = variables
    if call.tools is not None:
        body |= tool_fields(call.tools)
    if documents and (given := _documents(call)):
        body["documents"] = given
    return {**body, "messages": messages_of(call, with_documents=not documents)}


def messages_of(call: Call, *, with_documents: bool) -> list[dict[str, Any]]:
    """A call's messages in OpenAI's form; ``with_documents``: its documents as text at their beginning."""
    messages: list[dict[str, Any]] = []
    for message in call.messages:
        value: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.thoughts is not None:
            value["reasoning_content"] = message.thoughts
        if message.calls:
            value |= {"content": message.content or None, "tool_calls": [call_object(c) for c in message.calls]}
        if message.role == "tool":
            value |= {"tool_call_id": message.call_id} if message.call_id is not None else {}
            value |= {"name": message.name} if message.name is not None else {}
        messages.append(value)
    return with_document_text(messages, _documents(call)) if with_documents else messages


def _documents(call: Call) -> list[dict[str, Any]]:
    """The documents of a call, those in its messages first."""
    return [dict(d) for d in (*(d for message in call.messages for d in message.documents), *call.documents)]


def with_document_text(
    messages: Sequence[dict[str, Any]], documents: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The messages with documents as a text of the system at their beginning, where they are the same at every turn."""
    if not documents:
        return list(messages)
    parts = []
    for number, document in enumerate(documents, 1):
        named = {k: v for k, v in document.items() if k != "text"}
        head = "".join(f"{name.capitalize()}: {value}\n" for name, value in named.items())
        parts.append(f"Document {number}\n{head}\n{document['text']}")
    text = "\n\n".join(parts)
    first, *rest = messages or [{}]
    if first.get("role") == "system" and isinstance(first.get("content"), str):
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
    return [{"role": "system", "content": text}, *messages]


@dataclass
class _Choice:
    """What has come of one reply."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    finish: str = "stop"
    stop_text: str | None = None
    calls: StreamedCalls = field(default_factory=lambda: StreamedCalls(0))


class UpstreamCall(Running):
    """See ``Running``."""

    def __init__(self, client: UpstreamClient, path: str, body: Mapping[str, Any], model: str, replies: int) -> None:
        super().__init__(model, replies)
        self._stream = UpstreamStream(client, path, body, sse_chunks)
        self._choices: dict[int, _Choice] = {}
        self._usage: Mapping[str, Any] = {}
        self._timings: Mapping[str, Any] = {}
        self._first: float | None = None

    async def open(self) -> None:
        """Send the request, and wait a while for its status. Raises ApiError when it is refused."""
        await self._stream.open()

    def cancel(self) -> None:
        """See ``Running``."""
        self._stream.cancel()

    async def events(self) -> AsyncGenerator[Event, None]:
        """See ``Running``."""
        async with contextlib.aclosing(self._stream.items()) as chunks:
            async for chunk in chunks:
                if chunk is None:
                    yield Waiting(0, 0, 0, None, time.perf_counter() - self.began)
                    continue
                for piece in self._pieces(chunk):
                    yield piece
        for index in range(self.replies):
            self.finished.append(self._answer(index))
            yield self.finished[-1]

    def _pieces(self, chunk: Mapping[str, Any]) -> list[Piece | CallDelta]:
        if isinstance(chunk.get("usage"), dict):
            self._usage = chunk["usage"]
        if isinstance(chunk.get("timings"), dict):
            self._timings = chunk["timings"]
        pieces: list[Piece | CallDelta] = []
        choices = chunk.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if not isinstance(choice, dict):
                continue
            index = choice.get("index")
            index = index if isinstance(index, int) and 0 <= index < self.replies else 0
            known = self._choices.setdefault(index, _Choice(calls=StreamedCalls(index)))
            given = choice.get("delta")
            delta = given if isinstance(given, dict) else {"content": choice.get("text")}
            thought = delta.get("reasoning_content") or delta.get("reasoning")
            for text, texts, is_thought in (
                (thought, known.thoughts, True),
                (delta.get("content"), known.texts, False),
            ):
                if isinstance(text, str) and text:
                    self._first = self._first or time.perf_counter()
                    texts.append(text)
                    pieces.append(Piece(index, text, is_thought))
            pieces += known.calls.push(delta.get("tool_calls"))
            if isinstance(finish := choice.get("finish_reason"), str):
                known.finish = finish
            if isinstance(reason := choice.get("stop_reason"), str):  # vLLM's
                known.stop_text = reason
        return pieces

    def _answer(self, index: int) -> Answer:
        """Reply ``index``. What a prompt or a whole call cost is only known together: its first reply has it."""
        choice = self._choices.get(index, _Choice())
        usage = self._usage if index == 0 else {}
        now, timings = time.perf_counter(), self._timings if index == 0 else {}
        first = (self._first or now) - self.began
        cached = _count(usage.get("prompt_tokens_details"), "cached_tokens")
        prompt = _count(usage, "prompt_tokens")
        calls = choice.calls.calls
        return Answer(
            index=index,
            text="".join(choice.texts),
            thoughts="".join(choice.thoughts).strip("\n"),
            finish="length" if choice.finish == "length" else "tool_calls" if calls else "stop",
            stop_text=choice.stop_text,
            prompt_tokens=prompt,
            cached_tokens=min(cached, prompt),
            generated_tokens=_count(usage, "completion_tokens"),
            thought_tokens=_count(usage.get("completion_tokens_details"), "reasoning_tokens"),
            prefill_seconds=_count(timings, "prompt_ms") / 1000 or first,
            decode_seconds=_count(timings, "predicted_ms") / 1000 or now - self.began - first,
            prefilled_tokens=max(0, prompt - cached),
            first_token=first,
            calls=calls,
        )


def _count(fields: Any, name: str) -> int:
    value = fields.get(name) if isinstance(fields, dict) else None
    return int(value) if isinstance(value, int | float) and 0 <= value < 1 << 62 else 0
