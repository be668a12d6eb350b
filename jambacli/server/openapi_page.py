"""The JSON schemas of the page's bodies and answers in the description of the server's routes. docs/page-api.md says more."""

from __future__ import annotations

from typing import Any

from jambacli.server.page.tables import MOST_COLUMNS, TYPES

Schema = dict[str, Any]

_OBJECT: Schema = {"type": "object"}
_TEXT: Schema = {"type": "string", "minLength": 1}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_FLAG: Schema = {"type": "boolean"}
_IDS: Schema = {"type": "array", "items": {"type": "string"}}


def _maybe(kind: str) -> Schema:
    return {"type": [kind, "null"]}


def _object(required: dict[str, Schema] | None = None, **more: Schema) -> Schema:
    needed = required or {}
    return {"type": "object", "properties": {**needed, **more}, "required": list(needed)}


_OPTIONS = _object(
    temperature={"type": ["number", "null"], "minimum": 0},
    top_p={"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
    top_k=_maybe("integer"),
    min_p={"type": ["number", "null"], "minimum": 0, "maximum": 1},
    seed=_maybe("integer"),
    max_tokens=_maybe("integer"),
    think=_maybe("boolean"),
    citations=_maybe("boolean"),
)
_COLUMN = _object(
    {"name": {"type": "string", "minLength": 1, "maxLength": 60}}, type={"enum": list(TYPES)}, description=_TEXT
)
_COLUMNS: Schema = {"type": "array", "items": _COLUMN, "minItems": 1, "maxItems": MOST_COLUMNS}
_SHORT = {"type": ["string", "null"], "maxLength": 400}

#: Bodies of requests.
PAGE_BODIES: dict[str, Schema] = {
    "Empty": _OBJECT,
    "PageLogin": _object({"key": {"type": "string"}}),
    "PastedText": _object({"text": _TEXT}, name=_maybe("string")),
    "NewName": _object({"name": _TEXT}),
    "ToRead": _object(
        {"documents": {**_IDS, "minItems": 1}},
        session=_maybe("string"),
        system=_maybe("string"),
        model=_maybe("string"),
        options=_OPTIONS,
    ),
    "NewSession": _object(
        name=_maybe("string"),
        title=_maybe("string"),
        documents=_IDS,
        system=_maybe("string"),
        options=_OPTIONS,
        model=_maybe("string"),
    ),
    "Question": _object({"text": _TEXT}, documents=_IDS, options=_OPTIONS),
    "Again": _object(options=_OPTIONS),
    "Edit": _object({"index": _COUNT, "text": _TEXT}, options=_OPTIONS),
    "Summary": _object(
        documents=_IDS,
        length={"anyOf": [{"enum": ["short", "medium", "long"]}, {"type": "integer", "minimum": 1}]},
        style={"enum": ["prose", "bullets"]},
        focus=_SHORT,
        language=_SHORT,
        options=_OPTIONS,
    ),
    "Comparison": _object({"documents": {**_IDS, "minItems": 2, "maxItems": 2}}, focus=_SHORT, language=_SHORT),
    "Table": {
        "anyOf": [
            _object({"columns": _COLUMNS}, documents=_IDS, instruction={"type": "string", "maxLength": 4000}),
            _object({"preset": _TEXT}, documents=_IDS),
        ]
    },
    "Branch": _object(index=_COUNT, name=_maybe("string")),
    "Select": _object({"index": _COUNT, "sibling": _COUNT}),
}

#: Answers.
PAGE_SCHEMAS: dict[str, Schema] = {
    "Document": _object(
        {
            "id": _TEXT,
            "name": _TEXT,
            "bytes": _COUNT,
            "state": {"enum": ["extracting", "ready", "refused"]},
            "pages": _COUNT,
            "tokens": _maybe("integer"),
            "read": _object({"tokens_stored": _COUNT}),
        },
        fits=_maybe("boolean"),
        estimate_s=_maybe("number"),
    ),
    "Session": _object(
        {
            "name": _TEXT,
            "title": {"type": "string"},
            "messages": {
                "type": "array",
                "items": _object({"index": _COUNT, "role": _TEXT, "text": {"type": "string"}}),
            },
            "documents": _IDS,
            "running": {"type": ["object", "null"]},
        }
    ),
    "Reading": _object(
        {
            "id": _TEXT,
            "state": {"enum": ["waiting", "reading", "done", "cancelled", "too_large", "failed"]},
            "documents": {"type": "array", "items": _object({"id": _TEXT, "done": _COUNT, "total": _COUNT})},
            "done": _COUNT,
            "total": _COUNT,
        },
        left_s=_maybe("number"),
    ),
    "Begun": _object({"generation": _TEXT, "from": _COUNT}),
    "Deleted": _object({"deleted": _FLAG, "freed": _COUNT}),
}
