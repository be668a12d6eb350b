"""The JSON schemas of bodies, answers and errors in the description of the server's routes."""

from __future__ import annotations

from typing import Any

from jambacli.server.request import MAX_CHOICES

Schema = dict[str, Any]

_ANY: Schema = {}
_OBJECT: Schema = {"type": "object"}


def _nullable(kind: str, **more: Any) -> Schema:
    """A value that may be null, which clients send for what they do not set."""
    return {"type": [kind, "null"], **more}


def _list(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _object(required: dict[str, Schema] | None = None, **more: Schema) -> Schema:
    needed = required or {}
    return {"type": "object", "properties": {**needed, **more}, "required": list(needed)}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _one_of(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}


_STRING: Schema = {"type": "string"}
_NAME = _nullable("string", description="Of several models, the one that answers; the only one answers to all.")
_COUNT = _nullable("integer", minimum=-1)
_FLAG = _nullable("boolean")
_TEXTS = _one_of(_STRING, _list(_STRING, maxItems=64), {"type": "null"})
_SCHEMA_FORM = _object({"type": {"enum": ["text", "json_object", "json_schema"]}}, json_schema=_OBJECT, schema=_OBJECT)

_SAMPLING: dict[str, Schema] = {
    "temperature": _nullable("number", minimum=0),
    "top_p": _nullable("number", exclusiveMinimum=0, maximum=1),
    "top_k": _nullable("integer", minimum=-1),
    "min_p": _nullable("number", minimum=0, maximum=1),
    "typical_p": _nullable("number", exclusiveMinimum=0, maximum=1),
    "repeat_penalty": _nullable("number", exclusiveMinimum=0),
    "presence_penalty": _nullable("number"),
    "frequency_penalty": _nullable("number"),
    "seed": _nullable("integer", minimum=-1),
}
_LORA = _list(
    _object(
        id={"type": "integer", "minimum": 0},
        name=_STRING,
        scale={"type": "number", "minimum": -1000, "maximum": 1000},
    )
)
_OPENAI_OPTIONS: dict[str, Schema] = {
    **_SAMPLING,
    "lora": _one_of(_LORA, {"type": "null"}),
    "model": _NAME,
    "max_tokens": _COUNT,
    "max_completion_tokens": _COUNT,
    "penalty_last_n": _nullable("integer", minimum=-1),
    "logit_bias": _one_of({"type": "object", "additionalProperties": {"type": "number"}}, {"type": "null"}),
    "stop": _TEXTS,
    "n": _nullable("integer", minimum=1, maximum=MAX_CHOICES),
    "stream": _FLAG,
    "stream_options": _one_of(_object(include_usage=_FLAG), {"type": "null"}),
    "response_format": _one_of(_SCHEMA_FORM, {"type": "null"}),
}
_TEXT_PART = _object({"type": {"enum": ["text", "input_text", "output_text"]}, "text": _STRING})
_CONTENT = _one_of(_STRING, _list(_TEXT_PART))
_CALL = _object(
    {"function": _object({"name": _STRING}, arguments=_one_of(_STRING, _OBJECT))},
    id=_STRING,
    type={"const": "function"},
)
_CHAT_MESSAGE = _one_of(
    _object(
        {"role": {"enum": ["system", "developer", "user", "assistant"]}, "content": _CONTENT},
        reasoning_content=_nullable("string"),
    ),
    _object(
        {"role": {"const": "assistant"}, "tool_calls": _list(_CALL)},
        content=_one_of(_CONTENT, {"type": "null"}),
        reasoning_content=_nullable("string"),
    ),
    _object({"role": {"const": "tool"}, "content": _CONTENT}, tool_call_id=_STRING, name=_STRING),
)
_FUNCTION: dict[str, Schema] = {
    "description": _nullable("string"),
    "parameters": _nullable("object", description="The JSON schema of its arguments."),
    "strict": _FLAG,
}
_TOOL_NAME: Schema = {"type": "string", "minLength": 1, "maxLength": 256}
_TOOLS = _list(
    _object({"type": {"const": "function"}, "function": _object({"name": _TOOL_NAME}, **_FUNCTION)}),
    description="For models whose template has tools.",
)
_CHOICES: Schema = {"enum": ["auto", "none", "required"]}
_NAMED = _object({"type": {"const": "function"}, "function": _object({"name": _TOOL_NAME})})
_ALLOWED = _object(
    {"type": {"const": "allowed_tools"}, "allowed_tools": _object({"mode": _CHOICES, "tools": _list(_OBJECT)})}
)
# Those of responses have the mode and the tools one level higher.
_NAMED_FLAT = _object({"type": {"const": "function"}, "name": _TOOL_NAME})
_ALLOWED_FLAT = _object({"type": {"const": "allowed_tools"}, "mode": _CHOICES, "tools": _list(_OBJECT)})
_OPENAI_TOOLS: dict[str, Schema] = {
    "tools": _TOOLS,
    "tool_choice": _one_of(_CHOICES, _NAMED, _ALLOWED),
    "parallel_tool_calls": _FLAG,
}
_MESSAGES = _list(_CHAT_MESSAGE, minItems=1)
_DOCUMENT = _one_of(
    _object({"text": _STRING}, title=_STRING),
    _object({"content": _STRING}, metadata={"type": "object", "additionalProperties": _STRING}),
)
_BLOCK = _object({"type": {"const": "text"}, "text": _STRING})
_TOOL_BLOCKS = (
    _object({"type": {"const": "tool_use"}, "id": _STRING, "name": _STRING, "input": _OBJECT}),
    _object({"type": {"const": "tool_result"}, "tool_use_id": _STRING}, content=_one_of(_STRING, _list(_BLOCK))),
)
_BLOCKS = _list(_one_of(_BLOCK, *_TOOL_BLOCKS))
_ANTHROPIC_MESSAGES = _list(
    _object({"role": {"enum": ["user", "assistant"]}, "content": _one_of(_STRING, _BLOCKS)}), minItems=1
)
_ANTHROPIC: dict[str, Schema] = {
    "model": _NAME,
    "system": _one_of(_STRING, _list(_BLOCK)),
    "temperature": _nullable("number", minimum=0),
    "top_p": _nullable("number", exclusiveMinimum=0, maximum=1),
    "top_k": _nullable("integer", minimum=-1),
    "stop_sequences": _list(_STRING, maxItems=64),
    "stream": _FLAG,
    "tools": _list(_object({"name": _TOOL_NAME, "input_schema": _OBJECT}, description=_STRING, strict=_FLAG)),
    "tool_choice": _object(
        {"type": {"enum": ["auto", "any", "tool", "none"]}}, name=_TOOL_NAME, disable_parallel_tool_use=_FLAG
    ),
}
_OLLAMA: dict[str, Schema] = {
    "model": _NAME,
    "stream": _FLAG,
    "format": _one_of({"enum": ["", "json"]}, _OBJECT, {"type": "null"}),
    "keep_alive": _one_of(_STRING, {"type": "number"}, {"type": "null"}),
    "options": _one_of(
        _object(num_predict={"type": "integer"}, num_ctx={"type": "integer"}, stop=_TEXTS, **_SAMPLING),
        {"type": "null"},
    ),
}
_BEDROCK_TEXT = _object({"text": _STRING})
_BEDROCK_TEXTS = _list(_BEDROCK_TEXT, minItems=1)
_BEDROCK_BLOCKS = _list(
    _one_of(
        _BEDROCK_TEXT,
        _object({"toolUse": _object({"toolUseId": _STRING, "name": _STRING, "input": _OBJECT})}),
        _object(
            {
                "toolResult": _object(
                    {"toolUseId": _STRING, "content": _list(_one_of(_BEDROCK_TEXT, _object({"json": _ANY})))}
                )
            }
        ),
    ),
    minItems=1,
)
_TOOL_SPEC = _object({"name": _TOOL_NAME, "inputSchema": _object({"json": _OBJECT})}, description=_STRING)
_TOOL_CONFIG = _object(
    {"tools": _list(_object({"toolSpec": _TOOL_SPEC}), minItems=1)},
    toolChoice=_one_of(
        _object({"auto": _OBJECT}), _object({"any": _OBJECT}), _object({"tool": _object({"name": _TOOL_NAME})})
    ),
)
_RESPONSES_ITEM = _one_of(
    _CHAT_MESSAGE,
    _object({"type": {"const": "function_call"}, "call_id": _STRING, "name": _STRING, "arguments": _STRING}),
    _object({"type": {"const": "function_call_output"}, "call_id": _STRING, "output": _CONTENT}),
)

#: Bodies of requests.
BODIES: dict[str, Schema] = {
    "Chat": _object(
        {"messages": _MESSAGES},
        documents=_list(_DOCUMENT),
        chat_template_kwargs=_nullable("object"),
        **_OPENAI_TOOLS,
        **_OPENAI_OPTIONS,
    ),
    "Completion": _object(
        {"prompt": _one_of(_STRING, _list(_STRING, minItems=1), _list({"type": "integer", "minimum": 0}, minItems=1))},
        **_OPENAI_OPTIONS,
    ),
    "Responses": _object(
        {"input": _one_of(_STRING, _list(_RESPONSES_ITEM))},
        model=_NAME,
        instructions=_STRING,
        max_output_tokens=_COUNT,
        temperature=_nullable("number", minimum=0),
        top_p=_nullable("number", exclusiveMinimum=0, maximum=1),
        stream=_FLAG,
        tools=_list(_one_of(_object({"type": {"const": "function"}, "name": _TOOL_NAME}, **_FUNCTION), _OBJECT)),
        tool_choice=_one_of(_CHOICES, _NAMED_FLAT, _ALLOWED_FLAT),
        parallel_tool_calls=_FLAG,
    ),
    "Messages": _object(
        {"messages": _ANTHROPIC_MESSAGES, "max_tokens": {"type": "integer", "minimum": 1}}, **_ANTHROPIC
    ),
    "CountTokens": _object({"messages": _ANTHROPIC_MESSAGES}, **_ANTHROPIC),
    "Show": _object({"model": _STRING}),
    "OllamaChat": _object({"messages": _list(_CHAT_MESSAGE)}, tools=_TOOLS, **_OLLAMA),
    "OllamaGenerate": _object(prompt=_STRING, system=_STRING, raw=_FLAG, **_OLLAMA),
    "Invoke": _one_of(
        _object({"messages": _MESSAGES}, **_OPENAI_TOOLS, **_OPENAI_OPTIONS),
        _object({"inputText": _STRING}, parameters=_OBJECT, textGenerationConfig=_OBJECT),
        _object({"prompt": _STRING}, maxTokens=_COUNT, temperature=_nullable("number", minimum=0)),
    ),
    "Converse": _object(
        {"messages": _list(_object({"role": {"enum": ["user", "assistant"]}, "content": _BEDROCK_BLOCKS}), minItems=1)},
        system=_BEDROCK_TEXTS,
        toolConfig=_TOOL_CONFIG,
        inferenceConfig=_object(
            maxTokens={"type": "integer", "minimum": 1},
            temperature={"type": "number", "minimum": 0},
            stopSequences=_TEXTS,
        ),
    ),
    "Tokenize": _object(
        content=_STRING,
        messages=_MESSAGES,
        tools=_TOOLS,
        model=_NAME,
        parse_special=_FLAG,
        add_special=_FLAG,
        with_pieces=_FLAG,
    ),
    "Detokenize": _object({"tokens": _list({"type": "integer", "minimum": 0})}, model=_NAME),
    "ModelName": _object({"model": {"type": "string", "minLength": 1}}),
}

_USAGE = _object({name: {"type": "integer"} for name in ("prompt_tokens", "completion_tokens", "total_tokens")})
_COMPLETION: dict[str, Schema] = {
    "id": _STRING,
    "created": {"type": "integer"},
    "model": _STRING,
    "choices": _list(_object({"index": {"type": "integer"}, "finish_reason": _STRING})),
    "usage": _USAGE,
}
_MODEL: dict[str, Schema] = {"id": _STRING, "object": {"const": "model"}, "created": {"type": "integer"}}

#: Answers.
SCHEMAS: dict[str, Schema] = {
    "Object": _OBJECT,
    "Model": _object({**_MODEL, "owned_by": _STRING}),
    "Models": _object({"object": {"const": "list"}, "data": _list(_ref("Model"))}),
    "ChatCompletion": _object({**_COMPLETION, "object": {"const": "chat.completion"}}),
    "TextCompletion": _object({**_COMPLETION, "object": {"const": "text_completion"}}),
    "Response": _object({"id": _STRING, "object": {"const": "response"}, "status": _STRING, "output": _list(_OBJECT)}),
    "Message": _object({"id": _STRING, "type": {"const": "message"}, "content": _list(_OBJECT), "usage": _OBJECT}),
    "InputTokens": _object({"input_tokens": {"type": "integer"}}),
    "Version": _object({"version": _STRING}),
    "Tags": _object({"models": _list(_object({"name": _STRING, "model": _STRING, "size": {"type": "integer"}}))}),
    "Shown": _object({"details": _OBJECT, "model_info": _OBJECT, "capabilities": _list(_STRING)}),
    "OllamaLine": _object({"model": _STRING, "created_at": _STRING, "done": {"type": "boolean"}}),
    "Conversed": _object({"output": _OBJECT, "stopReason": _STRING, "usage": _OBJECT, "metrics": _OBJECT}),
    "Health": _object({"status": {"const": "ok"}}, active={"type": "integer"}, waiting={"type": "integer"}),
    "Adapters": _list(
        _object({"id": {"type": "integer"}, "name": _STRING, "path": _STRING, "scale": {"type": "number"}})
    ),
    "Tokens": _object({"tokens": _list(_ANY)}),
    "Content": _object({"content": _STRING}),
    "Success": _object({"success": {"const": True}}),
}

#: Errors by API.
ERRORS: dict[str, Schema] = {
    "OpenAI": _object({"error": _object({"message": _STRING, "type": _STRING, "param": _ANY, "code": _ANY})}),
    "Anthropic": _object({"type": {"const": "error"}, "error": _object({"type": _STRING, "message": _STRING})}),
    "Ollama": _object({"error": _STRING}),
    "Bedrock": _object({"message": _STRING}),
}
