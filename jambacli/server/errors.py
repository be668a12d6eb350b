"""What a request is answered with when it cannot be answered: a status, a message, and where the fault is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jambacli.batch.openai_format import BadRequestError
from jambacli.errors import JambaError

#: The least seconds of a Retry-After.
SOONEST = 1


class ApiError(Exception):
    """An answer with a status of 400 or more.

    ``kind`` and ``code`` are OpenAI's "type" and "code", ``parameter`` the field of the body at fault; ``more`` is added to
    the error's object. ``retry_after``: seconds after which the same request may succeed; ``final``: it never will.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        parameter: str | None = None,
        retry_after: int | None = None,
        more: Mapping[str, Any] | None = None,
        final: bool = False,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.code, self.parameter = status, message, kind, code, parameter
        self.retry_after, self.more, self.final = retry_after, dict(more or {}), final

    def headers(self) -> dict[str, str]:
        """The headers of its answer."""
        if self.retry_after is None:
            return {"x-should-retry": "false"} if self.final else {}
        return {"retry-after": str(self.retry_after), "x-should-retry": "true"}


def bad_request(message: str, parameter: str | None = None) -> ApiError:
    """The error of a request with a wrong field."""
    return ApiError(400, message, parameter=parameter)


def not_found(message: str, parameter: str | None = None) -> ApiError:
    """The error of a request for what there is not."""
    return ApiError(404, message, kind="not_found_error", code="not_found", parameter=parameter)


def stopping() -> ApiError:
    """The error of a request that the server has no time left for."""
    return ApiError(503, "the server is stopping", kind="unavailable_error", retry_after=1)


def context_full(needed: int, ctx: int) -> ApiError:
    """The error of a prompt that does not fit. Clients look for these words: openai's and langchain's for the code,
    litellm's for the sentence."""
    message = f"This model's maximum context length is {ctx} tokens; the request has {needed} (context_length_exceeded)"
    code = "context_length_exceeded"
    return ApiError(400, message, code=code, parameter="messages", more={"n_prompt_tokens": needed, "n_ctx": ctx})


def as_api_error(error: BaseException, status: int = 500) -> ApiError:
    """``error`` as an answer; ``status`` is that of an error of the program's own."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, BadRequestError):
        return bad_request(error.worded(_field), error.parameter)
    if isinstance(error, JambaError):
        kind = "invalid_request_error" if status < 500 else "server_error"
        return ApiError(status, error.worded(_field), kind=kind, parameter=error.field)
    return ApiError(500, f"internal error: {type(error).__name__}", kind="server_error")


def _field(option: str) -> str:
    """The field of a request that sets an option."""
    return {
        "ctx": "context length of the server",
        "schema": "response_format",
        "chat_template": "chat template of the server",
    }.get(option, option)
