"""The one internal request that every API is translated to: messages or prompts, documents, options of the reply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jambacli.engine.options import GenerationOptions
from jambacli.server.errors import ApiError, bad_request
from jambacli.server.file_parts import FilePart, openai_file
from jambacli.server.lora import AskedLora
from jambacli.server.tools import read_calls
from jambacli.text.tool_calls import ToolCall
from jambacli.text.tools import ToolUse

#: The most replies to one request.
MAX_CHOICES = 16
_ROLES = ("system", "developer", "user", "assistant", "tool")
_TEXT_PARTS = ("text", "input_text", "output_text")
# Variables of a chat template that are not a client's to set.
_OWN_VARIABLES = frozenset(
    ("messages", "documents", "tools", "add_generation_prompt", "bos_token", "eos_token", "knobs")
)


@dataclass(frozen=True)
class Message:
    """A message with a role that templates know. ``thoughts``: an assistant's, before its ``content``; ``calls``: its calls of
    tools, after it. A result of a call has the role "tool", the call's id and perhaps the function's ``name``.

    ``files``: of a user's message, not read yet; ``documents``: read ones, as for Call.
    """

    role: str
    content: str
    thoughts: str | None = None
    calls: Sequence[ToolCall] = ()
    call_id: str | None = None
    name: str | None = None
    files: Sequence[FilePart] = ()
    documents: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, kw_only=True)
class Call:
    """What to generate: a reply to ``messages``, or without them what follows each of ``prompts`` (texts or token ids).

    ``documents``: mappings with "text" and perhaps "title". ``choices``: replies to each prompt. ``variables``: of the chat
    template. ``model``: the name that the client gave, None for none. ``tools``: those that the reply may call.
    ``ctx``: tokens that the client wants to fit. ``logprobs``: how many alternatives to give beside each token of the reply,
    None for no log-probabilities; ``prompt_logprobs``: also beside those of the prompt. ``echo``: the prompt comes before its
    continuation. ``thinking``: with thoughts or without; None: as the options say (see ``think``). ``lora``: the
    adapters to apply; None: those of the server.
    """

    messages: Sequence[Message] = ()
    prompts: Sequence[str | Sequence[int]] = ()
    documents: Sequence[Mapping[str, Any]] = ()
    options: GenerationOptions = field(default_factory=GenerationOptions)
    choices: int = 1
    variables: Mapping[str, Any] = field(default_factory=dict)
    model: str | None = None
    tools: ToolUse | None = None
    ctx: int | None = None
    logprobs: int | None = None
    prompt_logprobs: bool = False
    echo: bool = False
    thinking: bool | None = None
    lora: Sequence[AskedLora] | None = None

    @property
    def think(self) -> bool | None:
        """With thoughts or without, by the request or else by the server's options; None: as the template has it."""
        return self.options.think if self.thinking is None else self.thinking


def without_nulls(body: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that are set: clients send null for those that are not."""
    return {name: value for name, value in body.items() if value is not None}


def read_messages(value: Any, field_name: str = "messages") -> list[Message]:
    """Messages in OpenAI's form, as any template takes them: text alone, "developer" as system, several leading system
    messages joined. Raises ApiError."""
    if not isinstance(value, list) or not value:
        raise bad_request(f"the field '{field_name}' must be a list of messages", field_name)
    messages: list[Message] = []
    for i, item in enumerate(value):
        messages.append(_message(f"{field_name}[{i}]", item, field_name))
    return joined_systems(in_call_order(messages))


def joined_systems(messages: Sequence[Message]) -> list[Message]:
    """The messages with those of the system at the beginning as one: templates look at the first alone."""
    count = next((i for i, m in enumerate(messages) if m.role != "system"), len(messages))
    if count < 2:
        return list(messages)
    return [Message("system", "\n\n".join(m.content for m in messages[:count])), *messages[count:]]


def in_call_order(messages: Sequence[Message]) -> list[Message]:
    """The messages with the results of each message's calls in the order of the calls: templates write no ids."""
    ordered: list[Message] = []
    calls: Sequence[ToolCall] = ()
    results: list[Message] = []

    def place(message: Message) -> int:
        return next((i for i, call in enumerate(calls) if call.id and call.id == message.call_id), len(calls))

    for message in messages:
        if message.role == "tool":
            results.append(message)
            continue
        ordered += sorted(results, key=place)
        results, calls = [], message.calls
        ordered.append(message)
    return ordered + sorted(results, key=place)


def _message(where: str, value: Any, name: str) -> Message:
    if not isinstance(value, dict):
        raise bad_request(f"{where} is not an object", name)
    role = value.get("role")
    if role == "function" or value.get("function_call"):
        raise bad_request(f"{where} is of the old form of function calls; use tool_calls and the role tool", name)
    if role not in _ROLES:
        raise bad_request(f"{where} has the role {role!r}, which is not supported", name)
    thoughts = None
    if role == "assistant":
        thoughts = next(
            (t for k in ("reasoning_content", "reasoning") if isinstance(t := value.get(k), str) and t), None
        )
    files: list[FilePart] = []
    content = read_content(where, value.get("content"), name, files if role == "user" else None)
    if role == "tool":
        call_id, called = value.get("tool_call_id"), value.get("name")
        return Message(
            "tool",
            content,
            call_id=call_id if isinstance(call_id, str) else None,
            name=called if isinstance(called, str) and called else None,
        )
    calls = read_calls(where, value.get("tool_calls") or [], name) if role == "assistant" else ()
    return Message("system" if role == "developer" else role, content, thoughts, calls=calls, files=files)


def read_content(where: str, content: Any, name: str, files: list[FilePart] | None = None) -> str:
    """The text of a message's content: a text, parts with texts, or null; parts with files go to ``files``. Raises ApiError."""
    if content is None:
        return ""
    if isinstance(content, list):
        texts = []
        for part in content:
            file = openai_file(where, part, name) if isinstance(part, dict) else None
            if file is not None:
                if files is None:
                    raise bad_request(f"{where} has a file; files are only supported in messages of the user", name)
                files.append(file)
                continue
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if kind in _TEXT_PARTS else part.get("refusal") if kind == "refusal" else None
            if not isinstance(text, str):
                raise bad_request(f"{where} has content of the type {kind!r}; only text and files are supported", name)
            texts.append(text)
        content = "\n".join(texts)
    if not isinstance(content, str):
        raise bad_request(f"{where} has no text as its content", name)
    return content


def read_documents(value: Any) -> list[dict[str, Any]]:
    """Documents as Jamba's templates take them ({"text", "title", ...}) or as AI21's API does ({"content", "metadata"}).

    Raises ApiError.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad_request("the field 'documents' must be a list", "documents")
    documents = []
    for i, item in enumerate(value):
        text = item.get("text", item.get("content")) if isinstance(item, dict) else None
        if not isinstance(text, str):
            raise bad_request(f"documents[{i}] has no text", "documents")
        metadata = item.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise bad_request(f"documents[{i}].metadata is not an object", "documents")
        more = {k: v for k, v in {**metadata, **item}.items() if k not in ("text", "content", "metadata", "id")}
        if not all(isinstance(v, str | int | float) or v is None for v in more.values()):
            raise bad_request(f"documents[{i}] has a field that is neither text nor a number", "documents")
        title = next((more.pop(k) for k in ("title", "name") if more.get(k)), None)
        head = {"title": str(title)} if title is not None else {}
        documents.append({**head, **{k: str(v) for k, v in more.items() if v is not None}, "text": text})
    return documents


def read_variables(value: Any, name: str = "chat_template_kwargs") -> dict[str, Any]:
    """Variables for the chat template. Raises ApiError."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad_request(f"the field '{name}' must be an object", name)
    if taken := sorted(_OWN_VARIABLES & value.keys()):
        raise bad_request(f"the field '{name}' cannot set {taken[0]!r}", name)
    return value


def read_count(body: Mapping[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A whole number in a range. Raises ApiError."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise bad_request(f"the field '{name}' must be a whole number from {low} to {high}", name)
    return value


def read_flag(body: Mapping[str, Any], name: str, default: bool = False) -> bool:
    """True or false. Raises ApiError for another value."""
    value = body.get(name)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise bad_request(f"the field '{name}' must be true or false", name)
    return value


def model_name(body: Mapping[str, Any]) -> str | None:
    """The model that a body names. Raises ApiError for something that is no name."""
    value = body.get("model")
    if value is not None and not isinstance(value, str):
        raise bad_request("the field 'model' must be a name", "model")
    return value


def unsupported(body: Mapping[str, Any], *names: str) -> None:
    """Raise ApiError for a field that asks for something this server does not do: never accepted and left undone."""
    for name in names:
        if body.get(name) not in (None, False, 0, "", [], {}):
            raise ApiError(400, f"the field '{name}' is not supported", code="unsupported_parameter", parameter=name)
