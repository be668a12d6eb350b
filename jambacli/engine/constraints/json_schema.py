"""Constrain a reply to a JSON schema."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jambacli.engine.constraints.grammar import JSON_FORM, GrammarConstraint
from jambacli.engine.constraints.schema_checks import check_ends
from jambacli.engine.constraints.schema_dates import with_calendar
from jambacli.engine.constraints.schema_objects import closed, say_closed
from jambacli.errors import JambaError, UsageError
from jambacli.text.markup import CITATIONS, CITATIONS_END

if TYPE_CHECKING:
    from jambacli.text.tokenizer import Tokenizer

MAX_SCHEMA = 1 << 20
# Maximum number of documents that a reply may cite after its JSON.
_CITED = 32


def read_schema(path: Path) -> dict[str, Any]:
    """Read a JSON schema. Raises JambaError naming the file when it cannot be read or is not a schema."""
    try:
        with path.open("rb") as file:  # the size of a device or a pipe is not known before
            data = file.read(MAX_SCHEMA + 1)
        if len(data) > MAX_SCHEMA:
            raise JambaError(f"{path} is larger than {MAX_SCHEMA >> 10} kB; a schema is smaller")
        value = json.loads(data.decode("utf-8-sig"))
    except OSError as error:
        raise JambaError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise JambaError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise JambaError(f'{path} is not a JSON schema: it must be an object such as {{"type": "object", ...}}')
    return value


class SchemaConstraint(GrammarConstraint):
    """The constraint of a JSON schema."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        schema: Mapping[str, Any],
        n_vocab: int,
        marks: tuple[int | None, int | None],
        *,
        citable: int = 0,
    ):
        """``n_vocab``: the number of logits. ``marks``: the tokens that begin and end thoughts. ``citable``: with N > 0, a
        section of citations follows the JSON, of some or none of N documents.

        Raises UsageError for a schema that is invalid, unsupported by llguidance or satisfied by nothing; JambaError
        without llguidance, or for a model without a stop token.
        """
        rule = closed_rule(schema)
        # Models begin a reply with a space after the header, or with line breaks after their thoughts.
        lark = f"start: /[ \\n]{{0,2}}/ json{' cited' if citable else ''}\njson: {rule}\n"
        lark += _citations(tokenizer, citable) if citable else ""
        super().__init__(tokenizer, lark, n_vocab, marks)


def closed_rule(schema: Mapping[str, Any]) -> str:
    """``json_rule`` of the schema with its objects closed (see ``schema_objects``), which is logged once.

    Raises UsageError also for a schema whose documents have no end.
    """
    check_ends(schema)
    try:
        chosen = closed(schema)
        say_closed(schema, chosen)
    except (RecursionError, ValueError) as error:
        raise UsageError(f"the schema is not JSON: {error}") from error
    return json_rule(chosen)


def json_rule(schema: Mapping[str, Any]) -> str:
    """The right side of a grammar's rule for JSON of a schema. Raises UsageError for a schema that is not JSON."""
    try:
        return "%json " + json.dumps({**with_calendar(schema), "x-guidance": JSON_FORM})
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(f"the schema is not JSON: {error}") from error


def _citations(tokenizer: Tokenizer, citable: int) -> str:
    """Grammar rules of the section of citations; its marks are single tokens if the model has them."""
    marks = [(tokenizer.marker_id(mark), mark) for mark in (CITATIONS, CITATIONS_END)]
    first, last = (f"<[{i}]>" if i is not None else json.dumps(mark) for i, mark in marks)
    number = {"type": "integer", "minimum": 0, "maximum": citable - 1}
    schema = {"type": "array", "items": number, "maxItems": min(citable, _CITED), "x-guidance": JSON_FORM}
    return f"cited: {first} numbers {last}\nnumbers: %json {json.dumps(schema)}\n"
