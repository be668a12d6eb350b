"""Requests made to do harm, as bytes for a socket; the same for the same seed."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

#: Paths that take bodies.
POSTS = [
    "/v1/chat/completions",
    "/chat/completions",
    "/studio/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/api/chat",
    "/api/generate",
    "/api/show",
    "/model/ai21.jamba/invoke",
    "/model/x%2Fy%3A0/invoke-with-response-stream",
    "/model/x/converse",
    "/model/x/converse-stream",
    "/tokenize",
    "/detokenize",
    "/models/load",
    "/models/unload",
]
GETS = [
    "/",
    "/v1/models",
    "/v1/models/x",
    "/health",
    "/props?model=%00",
    "/metrics",
    "/api/tags",
    "/api/ps",
    "/openapi.json",
]

_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**30, -(10**30), 1e308, -1e308, 5e-324, 0.5, "", "x", "user", "auto",
    "<|bom|><|user|>", "\x00", "\U0001f600", "\ufdd0", "a" * 5000, [], {}, [[]], [{}], [None], {"": None}, {"a": {"b": [1]}},
    {"type": "text"}, {"type": "text", "text": 1}, {"role": "user"}, {"role": "user", "content": "Hi"}, ["Hi"],
]  # fmt: skip
#: Fields of all the bodies there are.
FIELDS = [
    "messages", "prompt", "input", "inputText", "parameters", "textGenerationConfig", "inferenceConfig", "options", "model",
    "system", "instructions", "documents", "stop", "stop_sequences", "stopSequences", "n", "best_of", "seed", "stream",
    "stream_options", "format", "text", "response_format", "logit_bias", "temperature", "top_p", "top_k", "min_p", "max_tokens",
    "max_completion_tokens", "max_output_tokens", "maxTokens", "chat_template_kwargs", "tools", "tool_choice", "functions",
    "parallel_tool_calls", "toolConfig", "content", "tokens", "raw", "additionalModelRequestFields", "name", "metadata",
    "logprobs", "top_logprobs", "echo", "suffix", "think", "thinking", "reasoning_effort", "keep_alive", "images", "context",
    "template", "user", "penalty_last_n", "repeat_penalty", "presence_penalty", "frequency_penalty", "with_pieces",
    "parse_special", "add_special", "modalities", "audio", "previous_response_id", "background", "guardrailConfig",
]  # fmt: skip


def request(
    path: str, body: bytes = b"", headers: Sequence[tuple[str, str]] = (), method: str = "POST", host: str = "localhost"
) -> bytes:
    """A request that asks for the connection to be closed after it."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}", "Connection: close", "Content-Type: application/json"]
    lines += [f"{name}: {value}" for name, value in headers]
    if method == "POST" and not any(name.lower() in ("content-length", "transfer-encoding") for name, _ in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body


def body_of(path: str) -> dict[str, Any]:
    """A right body for any path, with a short reply."""
    content: Any = [{"text": "Hi"}] if "converse" in path else "Hi"
    return {
        "messages": [{"role": "user", "content": content}],
        "prompt": "Hi",
        "input": "Hi",
        "content": "Hi",
        "tokens": [9],
        "model": "x",
        "max_tokens": 2,
        "max_output_tokens": 2,
        "options": {"num_predict": 2},
        "inferenceConfig": {"maxTokens": 2},
    }


def _wrong_types(r: random.Random) -> bytes:
    path = r.choice(POSTS)
    body = body_of(path)
    for _ in range(r.randrange(1, 4)):
        body[r.choice(FIELDS)] = r.choice(_VALUES)
    if r.random() < 0.3:
        body["messages"] = [{"role": r.choice(["user", "assistant", "tool", 1]), r.choice(FIELDS): r.choice(_VALUES)}]
    return request(path, json.dumps(body).encode())


def _broken_json(r: random.Random) -> bytes:
    whole = json.dumps(body_of("/v1/chat/completions")).encode()
    depth = r.choice([10, 900, 100_000])
    bodies = [
        whole[: r.randrange(len(whole))],
        bytes(r.randrange(256) for _ in range(r.randrange(200))),
        b"[" * depth,
        b'{"messages":' * depth + b"1" + b"}" * depth,
        b'{"messages": ' + b"[" * depth + b"]" * depth + b"}",
        b'{"temperature": NaN}',
        b'{"temperature": -Infinity, "messages": []}',
        b'{"temperature": 1e999, "max_tokens": 1' + b"0" * r.choice([30, 5000, 100_000]) + b"}",
        b'{"prompt": "\\ud800", "content": "\\udfff\\ud800", "input": "\\udead"}',
        b'{"messages": [{"role": "user", "content": "\\ud83d"}]}',
        b"\xef\xbb\xbf" + whole,
        whole.decode().encode("utf-16"),
        b'{"a": 1, "a": 2, "messages": 1, "messages": 2}',
        b'"' + b"\\" * r.randrange(1000),
        b"null",
        b"",
        b"\x00" * 100,
        b'{"prompt": "\xff\xfe\xc3("}',
        whole + whole,
    ]
    return request(r.choice(POSTS), r.choice(bodies))


def _bad_http(r: random.Random) -> bytes:
    path = r.choice(POSTS)
    whole = json.dumps(body_of(path)).encode()
    chunked = [("Transfer-Encoding", "chunked")]
    size = f"{len(whole):x}".encode()
    return r.choice(
        [
            request(path, b"ZZ\r\n" + whole, chunked),
            request(path, size + b"\r\n" + whole + b"\r\n0\r\n\r\n", chunked),
            request(path, b"ffffffffffffffff\r\n" + whole, chunked),
            request(path, b"-5\r\n" + whole, chunked),
            request(path, size + b";" + b"x" * 5000 + b"\r\n" + whole + b"\r\n0\r\nX: y\r\n\r\n", chunked),
            request(path, whole, [("Content-Length", "-1")]),
            request(path, whole, [("Content-Length", "99999999999999999999")]),
            request(path, whole, [("Content-Length", str(len(whole))), ("Content-Length", "3")]),
            request(path, whole, [("Content-Length", "3"), ("Transfer-Encoding", "chunked")]),
            request(path, whole[:5], [("Content-Length", str(len(whole)))]),
            request(path, whole, [("Content-Encoding", "gzip")]),
            request(path, whole, [("Expect", "100-continue")]),
            request(path, whole, [("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Key", "x")]),
            request(path, whole, [("X" * 100, "y" * r.choice([1000, 200_000, 1 << 20]))]),
            request(path, whole, [(f"X-{i}", "y") for i in range(r.choice([100, 5000]))]),
            request(path, whole, [("Authorization", "Bearer " + "\xff" * 50), ("Cookie", "a" * 1000)]),
            request(path, whole, [("Content-Type", "multipart/form-data; boundary=" + "-" * 500)]),
            request("/" + "a" * r.choice([100, 100_000]), whole),
            request(path + "/../../etc/passwd", whole),
            request(path + "?" + "&".join(f"a{i}=%ff" for i in range(500)), whole),
            request(
                path,
                whole,
                method=r.choice(["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "HEAD", "X" * 300]),
            ),
            request(r.choice(GETS), whole, [("Content-Length", str(len(whole)))], method="GET"),
            whole,
            bytes(r.randrange(256) for _ in range(500)),
            b"GET / HTTP/9.9\r\n\r\n",
            b"GET / HTTP/1.1\r\n\r\n",
            b"\r\n" * 1000,
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 300,  # TLS
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ]
    )


def _wrong_place(r: random.Random) -> bytes:
    path = r.choice(POSTS)
    whole = json.dumps(body_of(path)).encode()
    hosts = [
        "evil.example",
        "localhost@evil.example",
        "[::1",
        "",
        "127.0.0.1.evil.example",
        "\xff",
        "a" * 5000,
        "localhost:x",
    ]
    origins = ["https://evil.example", "null", "http://localhost:1", "file://", "", "http://[::1", "\xff" * 20]
    headers = [("Origin", r.choice(origins))] if r.random() < 0.6 else [("Sec-Fetch-Site", "cross-site")]
    return request(path, whole, headers, host=r.choice(hosts) if r.random() < 0.6 else "localhost")


def _floods(r: random.Random) -> bytes:
    path = r.choice(POSTS)
    body = body_of(path)
    many = r.choice([100, 1000])
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{" * r.choice([1, 5000])}}
    nested: dict[str, Any] = {"type": "object"}
    for _ in range(r.choice([5, 60])):
        nested = {"type": "object", "properties": {"a": nested}, "required": ["a"]}
    tool = {"type": "function", "function": {"name": "f" * r.choice([1, 3000]), "parameters": nested}}
    floods: list[Callable[[], dict[str, Any]]] = [
        lambda: {"messages": [{"role": "assistant", "content": None, "tool_calls": [call] * many}]},
        lambda: {"messages": [{"role": "tool", "tool_call_id": "c", "content": "x"}] * many},
        lambda: {"tools": [tool] * many, "tool_choice": "required"},
        lambda: {"tools": [{"toolSpec": {"name": "f", "inputSchema": {"json": nested}}}] * many},
        lambda: {"messages": [{"role": "user", "content": "Hi"}] * many},
        lambda: {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * many}]},
        lambda: {"documents": [{"text": "a", "title": "b"}] * many},
        lambda: {"stop": ["a" * i for i in range(many)]},
        lambda: {"logit_bias": {str(i): 1 for i in range(many)}},
        lambda: {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": nested}}},
        lambda: {"prompt": ["Hi"] * many, "n": 16},
        lambda: {"tokens": [0] * many * 10},
        lambda: {"content": "\u00e9" * many * 100},
        lambda: {f"x{i}": i for i in range(many)},
        lambda: {"chat_template_kwargs": {f"x{i}": "y" * 100 for i in range(many)}},
    ]
    body.update(r.choice(floods)())
    return request(path, json.dumps(body).encode())


def _pipelined(r: random.Random) -> bytes:
    parts = []
    for _ in range(r.randrange(2, 40)):
        path = r.choice(GETS)
        parts.append(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        if r.random() < 0.2:
            body = b'{"content": "Hi"}'
            parts.append(b"POST /tokenize HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    return b"".join(parts) + request("/health", method="GET")


_KINDS = [_wrong_types] * 6 + [_broken_json, _broken_json, _bad_http, _bad_http, _wrong_place, _floods, _pipelined]


def hostile_requests(seed: int, count: int) -> Iterator[bytes]:
    """``count`` requests of every kind."""
    r = random.Random(seed)
    for _ in range(count):
        yield r.choice(_KINDS)(r)
