"""The form of an error, by the API that a path belongs to: for errors that no route answers itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from starlette.responses import Response

from jambacli.server.anthropic import anthropic_refusal
from jambacli.server.bedrock import bedrock_refusal
from jambacli.server.errors import ApiError
from jambacli.server.http import error_response
from jambacli.server.ollama import ollama_refusal


def refusal_for(path: str, headers: Mapping[str, str]) -> Callable[[ApiError], Response]:
    """How a client of the API at ``path`` expects an error. ``headers``: the request's, by lower-case names."""
    if path.startswith("/v1/messages") or "anthropic-version" in headers:
        return anthropic_refusal
    if path.startswith("/model/"):
        return bedrock_refusal
    if path == "/" or path.startswith("/api/"):
        return ollama_refusal
    return error_response
