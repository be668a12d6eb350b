"""Bedrock's runtime API: invoke and converse, whole and as event streams. Signatures are not checked.

/invoke takes three forms of body: Jamba's messages, a text ({"inputText", "parameters"} or Titan's), and J2's prompt.
"""

from __future__ import annotations

import base64
import binascii
import struct
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jambacli.server import openai
from jambacli.server.bedrock_tools import converse_call, converse_messages, converse_tools
from jambacli.server.context import Server
from jambacli.server.errors import ApiError, as_api_error, bad_request
from jambacli.server.events import Answer, Piece, Running, Waiting
from jambacli.server.file_parts import FilePart, bedrock_file
from jambacli.server.found_calls import CallDelta
from jambacli.server.http import Streaming, compact, error_response, handler
from jambacli.server.openai import chat_options
from jambacli.server.request import Call, Message, in_call_order, joined_systems, unsupported, without_nulls
from jambacli.server.thinking import read_config

_ERRORS = {
    400: "ValidationException",
    401: "AccessDeniedException",
    403: "AccessDeniedException",
    404: "ResourceNotFoundException",
    408: "ModelTimeoutException",
    413: "ValidationException",
    503: "ServiceUnavailableException",
}
# The options of other bodies by the names that OpenAI's has for them.
_OPTIONS = {
    "maxTokens": "max_tokens",
    "maxTokenCount": "max_tokens",
    "max_tokens": "max_tokens",
    "temperature": "temperature",
    "topP": "top_p",
    "top_p": "top_p",
    "stopSequences": "stop",
    "stop": "stop",
}


def bedrock_error(error: ApiError) -> dict[str, Any]:
    """An error as Bedrock has it; its class is in a header."""
    return {"message": error.message}


def bedrock_refusal(error: ApiError) -> Response:
    kind = _ERRORS.get(error.status, "ValidationException" if error.status < 500 else "InternalServerException")
    return error_response(error, bedrock_error, {"x-amzn-errortype": kind})


def _options(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"the field '{name}' must be an object", name)
    given = without_nulls(value)
    return {new: given[old] for old, new in _OPTIONS.items() if old in given}


#: A reply in the form in which its body asked.
Shape = Callable[[Answer, str], dict[str, Any]]


def read_invoke(body: Mapping[str, Any], server: Server, model: str) -> tuple[Call, Shape]:
    """A body of /invoke and how it is answered. Raises ApiError."""
    if "messages" in body:
        return openai.read_chat({**body, "model": model}, server.defaults), _as_jamba
    text = body.get("inputText", body.get("prompt"))
    if not isinstance(text, str):
        raise bad_request("the body has neither 'messages' nor 'inputText' nor 'prompt'")
    given = _options(body, "body")
    for name in ("parameters", "textGenerationConfig"):
        given |= _options(body.get(name) or {}, name)
    messages = [Message("user", text)]
    shape = _as_titan if "inputText" in body else _as_j2
    return Call(messages=messages, options=chat_options(given, server.defaults), model=model), shape


def _as_jamba(answer: Answer, model: str) -> dict[str, Any]:
    reply = openai.Reply(True, False, "none", model, f"chatcmpl-{uuid.uuid4().hex}", int(time.time()))
    return openai.whole([answer], reply, 1)


def _as_titan(answer: Answer, model: str) -> dict[str, Any]:
    """Titan's answer, and its text under "outputText" too, where older programs look for it."""
    reason = "LENGTH" if answer.finish == "length" else "FINISH"
    result = {"tokenCount": answer.generated_tokens, "outputText": answer.text, "completionReason": reason}
    return {"inputTextTokenCount": answer.prompt_tokens, "results": [result], "outputText": answer.text}


def _as_j2(answer: Answer, model: str) -> dict[str, Any]:
    reason = {"reason": "endoftext" if answer.finish == "stop" else "length"}
    return {"id": 1, "completions": [{"data": {"text": answer.text}, "finishReason": reason}]}


def read_converse(body: Mapping[str, Any], server: Server, model: str) -> Call:
    """A body of /converse. Raises ApiError."""
    body = without_nulls(body)
    unsupported(body, "guardrailConfig")
    items = body.get("messages")
    if not isinstance(items, list) or not items:
        raise bad_request("the field 'messages' must be a list of messages", "messages")
    messages = [Message("system", t) for t in _texts("system", body.get("system", []))]
    for i, item in enumerate(items):
        role = item.get("role") if isinstance(item, dict) else None
        if role not in ("user", "assistant"):
            raise bad_request(f"messages[{i}] must have the role user or assistant", "messages")
        messages += converse_messages(f"messages[{i}]", role, item.get("content"), _texts)
    more = body.get("additionalModelRequestFields") or {}
    given = {**_options(body.get("inferenceConfig") or {}, "inferenceConfig")}
    if not isinstance(more, dict):
        raise bad_request("additionalModelRequestFields must be an object", "additionalModelRequestFields")
    given |= {k: v for k, v in without_nulls(more).items() if k in ("top_k", "seed", "min_p")}
    messages = joined_systems(in_call_order(messages))
    options, thinking = chat_options(given, server.defaults), read_config(more.get("thinking"))
    tools = converse_tools(body.get("toolConfig"))
    return Call(messages=messages, options=options, model=model, thinking=thinking, tools=tools)


def _texts(where: str, blocks: Any, files: list[FilePart] | None = None) -> list[str]:
    """The texts of blocks; blocks with documents go to ``files``."""
    if not isinstance(blocks, list):
        raise bad_request(f"{where} has no list of blocks as its content", where)
    texts: list[str] = []
    for block in blocks:
        if not isinstance(block, dict):
            raise bad_request(f"{where} has a block that is no object", where)
        if "cachePoint" in block:  # every position is one here
            continue
        text = block.get("text")
        if "document" in block and files is not None:
            files.append(bedrock_file(where, block["document"], where))
            continue
        if "reasoningContent" in block:
            continue
        if not isinstance(text, str):
            kind = next(iter(block), "nothing")
            raise bad_request(f"{where} has content of the type {kind!r}; only text and documents are supported", where)
        texts.append(text)
    return texts


class BedrockRoutes:
    """The handlers."""

    def __init__(self, server: Server) -> None:
        self.server = server

    async def handle(self, request: Request) -> Response:
        """POST /model/ID/ACTION; an id may hold slashes."""
        name = request.path_params["id"].replace("%3A", ":")
        action = request.url.path.rpartition("/")[2]
        await self.server.models.named(name, bedrock=True)
        body = await self.server.body(request)
        stream = action.endswith("stream")
        if action.startswith("invoke"):
            call, shape = read_invoke(body, self.server, name)
        else:
            call, shape = read_converse(body, self.server, name), _as_jamba
        if stream and call.choices > 1:
            raise bad_request("the field 'n' must be 1 in a stream", "n")
        running = await self.server.start(request, call, bedrock=True)
        if action == "invoke":
            parts = self._invoked(running, shape, call.choices)
        elif action == "converse":
            parts = self._conversed(running)
        elif action == "converse-stream":
            parts = self._converse_stream(running)
        else:
            parts = self._invoke_stream(running, shape)
        if not stream:
            return Streaming(parts, "application/json", error=bedrock_refusal)
        kind = {"x-amzn-bedrock-content-type": "application/json"}
        return Streaming(parts, "application/vnd.amazon.eventstream", error=bedrock_refusal, headers=kind)

    async def _invoked(self, running: Running, shape: Shape, choices: int) -> AsyncIterator[bytes]:
        if shape is _as_jamba:
            reply = openai.reply_of({}, running.model, chat=True)
            async for part in openai.whole_parts(running, reply, choices):
                yield part
            return
        async for event in running.events():
            if isinstance(event, Waiting):
                yield b" "
            elif isinstance(event, Answer):
                yield compact(shape(event, running.model))

    async def _invoke_stream(self, running: Running, shape: Shape) -> AsyncIterator[bytes]:
        # One message in each part: AI21's client decodes one of every piece that it receives.
        if shape is _as_jamba:
            reply = openai.reply_of({"stream": True}, running.model, chat=True, ai21=True)
            async for part in openai.stream_parts(running, reply, 1):
                data = part.removeprefix(b"data: ").strip()
                if data.startswith(b'{"error"'):
                    yield exception_message("the reply failed")
                    return
                if data != b"[DONE]":
                    yield chunk_message(data)
            yield chunk_message(compact({"amazon-bedrock-invocationMetrics": _metrics(running.finished[0])}))
            return
        try:
            async for event in running.events():
                if isinstance(event, Waiting):
                    yield chunk_message(compact({"outputText": "", "index": 0}))
                elif isinstance(event, Piece) and not event.thought:
                    yield chunk_message(compact({"outputText": event.text, "index": 0}))
                elif isinstance(event, Answer):
                    end = {"outputText": "", "index": 0, "completionReason": "FINISH"}
                    if event.finish == "length":
                        end["completionReason"] = "LENGTH"
                    metrics = {"amazon-bedrock-invocationMetrics": _metrics(event)}
                    yield chunk_message(compact({**end, **metrics}))
        except Exception as error:
            yield exception_message(as_api_error(error).message)

    async def _conversed(self, running: Running) -> AsyncIterator[bytes]:
        async for event in running.events():
            if isinstance(event, Waiting):
                yield b" "
            elif isinstance(event, Answer):
                thoughts = {"reasoningContent": {"reasoningText": {"text": event.thoughts}}}
                texts = [{"text": event.text}] if event.text or not event.calls else []
                calls = [converse_call(call) for call in event.calls]
                content = [*([thoughts] if event.thoughts else []), *texts, *calls]
                output = {"message": {"role": "assistant", "content": content}}
                metrics = {"latencyMs": int((time.perf_counter() - running.began) * 1000)}
                more = {"usage": _usage(event), "metrics": metrics}
                yield compact({"output": output, "stopReason": _stop_reason(event), **more})

    async def _converse_stream(self, running: Running) -> AsyncIterator[bytes]:
        yield event_message("messageStart", {"role": "assistant"})
        block, thinking = 0, False
        open_block = False
        try:
            async for event in running.events():
                if isinstance(event, Waiting):
                    yield event_message("contentBlockDelta", {"contentBlockIndex": block, "delta": {"text": ""}})
                elif isinstance(event, Piece):
                    if open_block and event.thought != thinking:
                        yield event_message("contentBlockStop", {"contentBlockIndex": block})
                        block += 1
                    open_block, thinking = True, event.thought
                    delta = {"reasoningContent": {"text": event.text}} if thinking else {"text": event.text}
                    yield event_message("contentBlockDelta", {"contentBlockIndex": block, "delta": delta})
                elif isinstance(event, CallDelta):
                    if event.name is not None:
                        if open_block:
                            yield event_message("contentBlockStop", {"contentBlockIndex": block})
                            block += 1
                        # Text after a call is a block of its own, as it is after a thought.
                        open_block, thinking = True, True
                        begun = {"toolUse": {"toolUseId": event.id, "name": event.name}}
                        yield event_message("contentBlockStart", {"contentBlockIndex": block, "start": begun})
                    delta = {"toolUse": {"input": event.arguments}}
                    yield event_message("contentBlockDelta", {"contentBlockIndex": block, "delta": delta})
                else:
                    yield event_message("contentBlockStop", {"contentBlockIndex": block})
                    yield event_message("messageStop", {"stopReason": _stop_reason(event)})
                    latency = {"latencyMs": int((time.perf_counter() - running.began) * 1000)}
                    yield event_message("metadata", {"usage": _usage(event), "metrics": latency})
        except Exception as error:
            yield exception_message(as_api_error(error).message)


def _metrics(answer: Answer) -> dict[str, Any]:
    return {
        "inputTokenCount": answer.prompt_tokens,
        "outputTokenCount": answer.generated_tokens,
        "invocationLatency": int((answer.first_token + answer.decode_seconds) * 1000),
        "firstByteLatency": int(answer.first_token * 1000),
    }


def _usage(answer: Answer) -> dict[str, int]:
    return {
        "inputTokens": answer.prompt_tokens,
        "outputTokens": answer.generated_tokens,
        "totalTokens": answer.prompt_tokens + answer.generated_tokens,
        "cacheReadInputTokens": answer.cached_tokens,
        "cacheWriteInputTokens": 0,
    }


def _stop_reason(answer: Answer) -> str:
    reasons = {"length": "max_tokens", "tool_calls": "tool_use"}
    return reasons.get(answer.finish, "stop_sequence" if answer.stop_text else "end_turn")


def chunk_message(data: bytes) -> bytes:
    """A piece of an invocation's stream."""
    return event_message("chunk", {"bytes": base64.b64encode(data).decode()})


def exception_message(text: str) -> bytes:
    """The end of a stream that failed."""
    headers = {":exception-type": "modelStreamErrorException", ":message-type": "exception"}
    return _message({**headers, ":content-type": "application/json"}, compact({"message": text}))


def event_message(kind: str, value: Any) -> bytes:
    """An event of a stream."""
    headers = {":event-type": kind, ":content-type": "application/json", ":message-type": "event"}
    return _message(headers, compact(value))


def _message(headers: Mapping[str, str], payload: bytes) -> bytes:
    """A message of application/vnd.amazon.eventstream: lengths and a CRC, headers of type 7 (text), payload, a CRC."""
    packed = b"".join(
        struct.pack(">B", len(k)) + k.encode() + struct.pack(">BH", 7, len(v)) + v.encode() for k, v in headers.items()
    )
    prelude = struct.pack(">II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack(">I", binascii.crc32(prelude)) + packed + payload
    return message + struct.pack(">I", binascii.crc32(message))


def bedrock_routes(context: Server) -> list[Route]:
    """Bedrock's routes."""
    work = handler(BedrockRoutes(context).handle, bedrock_refusal)
    actions = ("invoke", "invoke-with-response-stream", "converse", "converse-stream")
    return [Route(f"/model/{{id:path}}/{action}", work, methods=["POST"]) for action in actions]
