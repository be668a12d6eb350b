"""OpenAI's chat and text completions, and AI21's, which differ in where a stream's usage is."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from jambacli.batch.openai_format import read_options
from jambacli.engine.options import GenerationOptions
from jambacli.server.errors import as_api_error, bad_request
from jambacli.server.events import Answer, Piece, Running, Waiting
from jambacli.server.found_calls import CallDelta
from jambacli.server.http import compact, openai_error
from jambacli.server.logprobs import (
    TextLogprobs,
    content_logprobs,
    mean_logprob,
    read_chat_logprobs,
    read_text_logprobs,
)
from jambacli.server.lora import read_lora
from jambacli.server.request import (
    MAX_CHOICES,
    Call,
    model_name,
    read_count,
    read_documents,
    read_flag,
    read_messages,
    read_variables,
    unsupported,
    without_nulls,
)
from jambacli.server.thinking import read_effort
from jambacli.server.tools import call_object, read_tools

if TYPE_CHECKING:
    from jambacli.text.tokenizer import Tokenizer

# Fields that an option's reader would refuse, or that are read here.
_READ_HERE = ("n", "stream", "best_of", "echo", "logprobs", "top_logprobs", "suffix", "tools", "tool_choice", "lora")
_NOT_DONE = ("functions", "function_call", "audio", "web_search_options", "suffix")
_DONE_MARK = b"data: [DONE]\n\n"
# Replies to one request, at most.
_MOST_REPLIES = 128
# Reply tokens of a text completion that names no limit, as in OpenAI's API.
_COMPLETION_TOKENS = 16


@dataclass(frozen=True)
class Reply:
    """How a call is to be answered.

    ``chat``: as a chat's message or as text. ``usage``: a stream's usage: "none", "chunk" (one without choices) or "last" (in
    the last chunk with a choice, where AI21's clients look for it). ``logprobs``: whether log-probabilities are shown.
    ``kept``: how many of the replies to each prompt, the most probable ones; None for all.
    """

    chat: bool
    stream: bool
    usage: str
    model: str
    id: str
    created: int
    logprobs: bool = False
    kept: int | None = None


def read_chat(body: Mapping[str, Any], defaults: GenerationOptions) -> Call:
    """A body of /v1/chat/completions. Raises ApiError for what is wrong or not supported."""
    body = without_nulls(body)
    unsupported(body, *_NOT_DONE)
    if body.get("modalities") not in (None, ["text"]):
        raise bad_request("only text can be answered", "modalities")
    unsupported(body, "echo")
    messages = read_messages(body.get("messages"))
    return Call(
        messages=messages,
        documents=read_documents(body.get("documents")),
        options=chat_options(body, defaults),
        choices=read_count(body, "n", 1, MAX_CHOICES, 1),
        variables=read_variables(body.get("chat_template_kwargs")),
        model=model_name(body),
        tools=read_tools(body),
        logprobs=read_chat_logprobs(body),
        thinking=read_effort(body),
        lora=read_lora(body),
    )


def read_completion(body: Mapping[str, Any], defaults: GenerationOptions) -> Call:
    """A body of /v1/completions. Raises ApiError."""
    body = without_nulls(body)
    unsupported(body, *_NOT_DONE, "tools")
    if not any(name in body for name in ("max_tokens", "max_completion_tokens")):
        body = {**body, "max_tokens": _COMPLETION_TOKENS}
    prompts, choices = _prompts(body.get("prompt")), read_count(body, "n", 1, MAX_CHOICES, 1)
    logprobs, echo = read_text_logprobs(body), read_flag(body, "echo")
    prompt_logprobs = echo and logprobs is not None
    best_of = read_count(body, "best_of", choices, MAX_CHOICES, choices)
    if best_of > choices:
        if read_flag(body, "stream"):
            raise bad_request(
                "the best of several replies are known at their end: 'best_of' needs 'stream': false", "best_of"
            )
        logprobs = logprobs or 0
    if len(prompts) * best_of > _MOST_REPLIES:
        raise bad_request(f"the request asks for more than {_MOST_REPLIES} replies", "n")
    if body.get("max_tokens") == 0 and type(body["max_tokens"]) is int:  # the prompt is only read
        del body["max_tokens"]
        options = replace(chat_options(body, defaults), max_tokens=0)
    else:
        options = chat_options(body, defaults)
    return Call(
        prompts=prompts,
        options=options,
        choices=best_of,
        model=model_name(body),
        logprobs=logprobs,
        prompt_logprobs=prompt_logprobs,
        echo=echo,
        lora=read_lora(body),
    )


def chat_options(body: Mapping[str, Any], defaults: GenerationOptions) -> GenerationOptions:
    """The options in a body; -1 stands for a limit, seed or top_k that is not set, as in other servers. Raises ApiError."""
    given = {k: v for k, v in body.items() if k not in _READ_HERE}
    for name in ("max_tokens", "max_completion_tokens", "seed", "top_k"):
        if type(given.get(name)) is int and given[name] == -1:
            del given[name]
    if type(given.get("seed")) is int and -(1 << 63) <= given["seed"] < 0:
        given["seed"] %= 1 << 64  # OpenAI's are signed
    stop = given.get("stop")
    if isinstance(stop, list) and len(stop) > 64:
        raise bad_request("the field 'stop' has more than 64 texts", "stop")
    try:
        return read_options(given, defaults)
    except Exception as error:
        raise as_api_error(error, 400) from error


def _prompts(value: Any) -> list[str | list[int]]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(_is_token(v) for v in value):
            return [value]
        if len(value) <= _MOST_REPLIES and all(isinstance(v, str) for v in value):
            return value
        if len(value) <= _MOST_REPLIES and all(
            isinstance(v, list) and v and all(_is_token(t) for t in v) for v in value
        ):
            return value
    raise bad_request("the field 'prompt' must be a text, a list of tokens, or a list of up to 128 of those", "prompt")


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def reply_of(body: Mapping[str, Any], model: str, *, chat: bool, ai21: bool = False) -> Reply:
    """How a body wants to be answered. Raises ApiError."""
    options = body.get("stream_options")
    if options is not None and not isinstance(options, dict):
        raise bad_request("the field 'stream_options' must be an object", "stream_options")
    usage = "last" if ai21 else "chunk" if options and options.get("include_usage") else "none"
    head = "chatcmpl" if chat else "cmpl"
    n, best_of = (read_count(body, name, 1, MAX_CHOICES, 1) for name in ("n", "best_of"))
    return Reply(
        chat,
        read_flag(body, "stream"),
        usage,
        model,
        f"{head}-{uuid.uuid4().hex}",
        int(time.time()),
        logprobs=(read_chat_logprobs(body) if chat else read_text_logprobs(body)) is not None,
        kept=n if not chat and best_of > n else None,
    )


def usage_of(answers: Sequence[Answer], choices: int) -> dict[str, Any]:
    """The tokens that a call cost. A prompt with several replies counts once."""
    prompts = [a for a in answers if a.index % choices == 0]
    prompt, generated = sum(a.prompt_tokens for a in prompts), sum(a.generated_tokens for a in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": generated,
        "total_tokens": prompt + generated,
        "prompt_tokens_details": {"cached_tokens": sum(a.cached_tokens for a in prompts)},
        "completion_tokens_details": {"reasoning_tokens": sum(a.thought_tokens for a in answers)},
    }


def whole(answers: Sequence[Answer], reply: Reply, choices: int, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """The answer in one piece. ``tokenizer``: for log-probabilities, if the reply has some."""
    parts = []
    for answer in _kept(answers, reply, choices):
        choice: dict[str, Any] = {"index": answer.index, "finish_reason": answer.finish, "logprobs": None}
        if reply.chat:
            message: dict[str, Any] = {"role": "assistant", "content": answer.text}
            if answer.calls:
                message |= {"content": answer.text or None, "tool_calls": [call_object(c) for c in answer.calls]}
            if answer.thoughts:
                message["reasoning_content"] = answer.thoughts
            choice["message"] = message
        else:
            choice["text"] = answer.text
        if reply.logprobs and tokenizer is not None:
            choice["logprobs"] = _answer_logprobs(answer, reply, tokenizer)
        parts.append(choice)
    kind = "chat.completion" if reply.chat else "text_completion"
    head = {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}
    return {**head, "choices": parts, "usage": usage_of(answers, choices), "timings": timings(answers)}


def _answer_logprobs(answer: Answer, reply: Reply, tokenizer: Tokenizer) -> dict[str, Any]:
    if reply.chat:
        return {"content": content_logprobs(answer.logprobs, tokenizer), "refusal": None}
    texts = TextLogprobs(tokenizer, answer.unseen)
    echoed = texts.add(answer.prompt_logprobs, prompt=True)
    said = texts.add(answer.logprobs)
    return {name: [*echoed[name], *said[name]] for name in echoed}


def _kept(answers: Sequence[Answer], reply: Reply, choices: int) -> list[Answer]:
    """The replies that are shown, in order: all of them, or of each prompt's the ``kept`` most probable ones."""
    if reply.kept is None:
        return list(answers)
    kept: list[Answer] = []
    for at in range(0, len(answers), choices):
        best = sorted(answers[at : at + choices], key=lambda a: -mean_logprob(a.logprobs))[: reply.kept]
        kept += [replace(answer, index=len(kept) + i) for i, answer in enumerate(best)]
    return kept


async def whole_parts(running: Running, reply: Reply, choices: int) -> AsyncIterator[bytes]:
    """The answer in one piece, after a space for every silence: clients give up on connections that stay silent."""
    answers = []
    async for event in running.events():
        if isinstance(event, Waiting):
            yield b" "
        elif isinstance(event, Answer):
            answers.append(event)
    ordered = sorted(answers, key=lambda a: a.index)
    # Many log-probabilities are turned into JSON beside the loop, which must go on answering others.
    yield await asyncio.to_thread(lambda: compact(whole(ordered, reply, choices, running.tokenizer)))


async def stream_parts(running: Running, reply: Reply, choices: int) -> AsyncIterator[bytes]:
    """The answer as server-sent events. Every line begins with ``data:``: AI21's clients take no others."""

    def chunk(index: int, delta: dict[str, Any], finish: str | None = None, logprobs: Any = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta} if reply.chat else {"index": index, "text": delta.get("content", "")}
        choice |= {"finish_reason": finish, "logprobs": logprobs}
        return _event({**head, "choices": [choice], **more})

    def scored(piece: Piece) -> dict[str, Any] | None:
        if not reply.logprobs:
            return None
        if reply.chat:
            content = content_logprobs(piece.logprobs, running.tokenizer)
            return {"content": content, "refusal": None} if content else None
        if piece.index not in texts:
            texts[piece.index] = TextLogprobs(running.tokenizer, running.unseen[piece.index])
        return texts[piece.index].add(piece.logprobs, prompt=piece.prompt)

    texts: dict[int, TextLogprobs] = {}

    kind = "chat.completion.chunk" if reply.chat else "text_completion"
    head = {"id": reply.id, "object": kind, "created": reply.created, "model": reply.model}
    if reply.chat:
        for index in range(running.replies):
            yield chunk(index, {"role": "assistant", "content": ""})
    answers: list[Answer] = []
    try:
        async for event in running.events():
            if isinstance(event, Waiting):
                # A chunk, not a comment: some clients count only parsed chunks as a sign of life.
                yield chunk(0, {}, prompt_progress=progress_of(event))
            elif isinstance(event, Piece):
                if not event.thought or reply.chat:
                    delta = {"reasoning_content" if event.thought else "content": event.text}
                    yield chunk(event.index, delta, logprobs=scored(event))
            elif isinstance(event, CallDelta):
                yield chunk(event.index, {"tool_calls": [call_delta(event)]})
            else:
                answers.append(event)
                last = len(answers) == running.replies
                more: dict[str, Any] = {"timings": timings(answers)} if last else {}
                if last and reply.usage == "last":
                    more["usage"] = usage_of(answers, choices)
                yield chunk(event.index, {}, event.finish, **more)
    except Exception as error:
        yield _event(openai_error(as_api_error(error)))
        return
    if reply.usage == "chunk":
        yield _event({**head, "choices": [], "usage": usage_of(answers, choices)})
    yield _DONE_MARK


def call_delta(event: CallDelta) -> dict[str, Any]:
    """A piece of a call in a chunk: id and name once, then more of the arguments."""
    if event.name is None:
        return {"index": event.call, "function": {"arguments": event.arguments}}
    function = {"name": event.name, "arguments": event.arguments}
    return {"index": event.call, "id": event.id, "type": "function", "function": function}


def progress_of(event: Waiting) -> dict[str, Any]:
    """How far a prompt is, as llama-server says it, and its position in the queue."""
    fields = {"total": event.total, "cache": event.known, "processed": event.read, "time_ms": int(event.seconds * 1000)}
    return fields if event.position is None else {**fields, "queue_position": event.position}


def timings(answers: Sequence[Answer]) -> dict[str, Any]:
    """Speeds, as llama-server's page reads them."""
    read, said = sum(a.prefilled_tokens for a in answers), sum(a.generated_tokens for a in answers)
    reading, saying = sum(a.prefill_seconds for a in answers), sum(a.decode_seconds for a in answers)
    return {
        "cache_n": sum(a.cached_tokens for a in answers),
        "prompt_n": read,
        "prompt_ms": reading * 1000,
        "prompt_per_second": read / reading if reading else 0.0,
        "predicted_n": said,
        "predicted_ms": saying * 1000,
        "predicted_per_second": said / saying if saying else 0.0,
    }


def _event(value: Any) -> bytes:
    return b"data: " + compact(value) + b"\n\n"
