"""Replies by a JSON schema: valid whatever the model says, finished within the tokens there are, errors in one line."""

from __future__ import annotations

import datetime
import json
from typing import Any

import jsonschema
import pytest

from jambacli.api import Jamba
from jambacli.engine.constraints import schema_objects
from jambacli.engine.constraints.json_schema import SchemaConstraint
from jambacli.engine.constraints.schema_dates import with_calendar
from jambacli.engine.constraints.schema_objects import closed
from jambacli.errors import JambaError, UsageError
from tests.support.schemas import random_schema
from tests.support.small_models import small_model


def reply(model: Jamba, schema: dict[str, Any], seed: int, max_tokens: int | None = 1500, **options: Any) -> str:
    with model.session(ctx=4096, store=False) as session:
        return "".join(
            session.send("Go.", schema=schema, seed=seed, temperature=1.5, top_p=1.0, max_tokens=max_tokens, **options)
        )


def check(count: int, first: int = 0) -> None:
    model = small_model()
    for seed in range(first, first + count):
        schema = random_schema(seed)
        text = reply(model, schema, seed)
        try:
            jsonschema.validate(json.loads(text), schema)
        except (ValueError, jsonschema.ValidationError) as error:
            pytest.fail(f"schema {seed} {json.dumps(schema)}: {text!r}: {error}")


def test_random_schemas_are_followed_by_a_random_model() -> None:
    check(25)


@pytest.mark.slow
def test_two_hundred_random_schemas_are_followed_by_a_random_model() -> None:
    check(200, first=1000)


@pytest.mark.parametrize("max_tokens", [8, 12, 20, 40, 80])
def test_a_document_ends_validly_within_the_tokens_there_are(max_tokens: int) -> None:
    """Strings and arrays without bounds: a random model would never end them."""
    schema = {
        "type": "object",
        "properties": {
            "a": {
                "type": "array",
                "items": {"type": "object", "properties": {"s": {"type": "string"}}, "required": ["s"]},
            },
            "b": {"type": "string"},
        },
        "additionalProperties": False,
    }
    model = small_model()
    for seed in range(6):
        text = reply(model, schema, seed, max_tokens)
        jsonschema.validate(json.loads(text), schema)
        assert len(model.tokenizer.encode(text)) <= 2 * max_tokens + 8


@pytest.mark.parametrize("max_tokens", [300, 1000])
def test_a_string_without_bounds_ends_however_many_tokens_there_are(max_tokens: int) -> None:
    schema = {
        "type": "object",
        "properties": {"who": {"type": "string"}, "n": {"type": "integer"}},
        "required": ["who"],
        "additionalProperties": False,
    }
    jsonschema.validate(json.loads(reply(small_model(), schema, 1, max_tokens)), schema)


@pytest.mark.parametrize("asked", [True, False])
def test_json_that_fills_the_context_is_an_error_unless_so_few_tokens_were_asked_for(asked: bool) -> None:
    """A quote is never drawn, so the string ends only where it must."""
    schema = {"type": "object", "properties": {"who": {"type": "string"}}, "required": ["who"]}
    model = small_model()
    quotes = {t: -1e6 for t in range(model.tokenizer.vocab_size) if b'"' in model.tokenizer.token_bytes(t)}
    with model.session(ctx=512, store=False) as session:
        pieces = session.send("Go.", schema=schema, logit_bias=quotes, max_tokens=200 if asked else None)
        if asked:
            jsonschema.validate(json.loads("".join(pieces)), schema)
        else:
            with pytest.raises(JambaError, match=r"the JSON was cut short after .* at the end of the context"):
                "".join(pieces)
    request: dict[str, Any] = {"schema": schema, "logit_bias": quotes, "max_tokens": 200 if asked else None}
    (answer,) = model.generate_batch(["Go."], ctx=512, **request)
    assert (answer.error is None) == asked
    assert asked or "cut short" in str(answer.error)


_NAMED = {"type": "object", "properties": {"a": {"type": "integer"}}}
_OTHERS = {"type": "object", "properties": {"b": {"type": "integer"}}}


def _shut(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "additionalProperties": False}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (_NAMED, _shut(_NAMED)),
        ({"type": "object"}, {"type": "object"}),
        ({**_NAMED, "additionalProperties": True}, {**_NAMED, "additionalProperties": True}),
        ({**_NAMED, "patternProperties": {"x": {}}}, {**_NAMED, "patternProperties": {"x": {}}}),
        ({"type": "array", "items": _NAMED}, {"type": "array", "items": _shut(_NAMED)}),
        ({"anyOf": [_NAMED, _OTHERS]}, {"anyOf": [_shut(_NAMED), _shut(_OTHERS)]}),
        ({"allOf": [_NAMED, _OTHERS]}, {"allOf": [_NAMED, _OTHERS]}),
        ({**_NAMED, "anyOf": [_OTHERS]}, {**_NAMED, "anyOf": [_OTHERS]}),
        ({**_NAMED, "anyOf": [{"required": ["a"]}]}, _shut({**_NAMED, "anyOf": [{"required": ["a"]}]})),
        ({"$ref": "#/$defs/n", "$defs": {"n": _NAMED}}, {"$ref": "#/$defs/n", "$defs": {"n": _shut(_NAMED)}}),
        (
            {"allOf": [{"$ref": "#/$defs/n"}, _OTHERS], "$defs": {"n": _NAMED, "o": _OTHERS}},
            {"allOf": [{"$ref": "#/$defs/n"}, _OTHERS], "$defs": {"n": _NAMED, "o": _shut(_OTHERS)}},
        ),
        (
            {"type": "object", "properties": {"properties": {"const": _NAMED}}},
            {"type": "object", "properties": {"properties": {"const": _NAMED}}, "additionalProperties": False},
        ),
    ],
)
def test_objects_that_name_their_properties_take_no_others(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    assert closed(schema) == expected


def test_other_properties_are_written_only_where_the_schema_allows_them(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(schema_objects, "_said", False)
    model = small_model()
    with caplog.at_level("INFO", "jambacli"):
        for _ in range(2):
            constraint = SchemaConstraint(model.tokenizer, _NAMED, model.config.vocab_size, (None, None))
    assert sum("additionalProperties" in record.message for record in caplog.records) == 1
    more = SchemaConstraint(
        model.tokenizer, {**_NAMED, "additionalProperties": True}, model.config.vocab_size, (None, None)
    )
    for made, allowed in ((constraint, False), (more, True)):
        made.begin(200)
        for token in model.tokenizer.encode('{"a": 1, "'):
            valid = made.allowed()
            fits = valid is not None and bool(valid[token])
            if not fits:
                break
            made.accept(token)
        assert fits == allowed


def test_too_few_tokens_for_any_document_is_one_clear_line() -> None:
    schema = {
        "type": "object",
        "properties": {"a_rather_long_name": {"type": "integer"}},
        "required": ["a_rather_long_name"],
    }
    with pytest.raises(JambaError, match=r"too few for any document.*max_tokens") as failure:
        reply(small_model(), schema, 0, 5)
    assert "\n" not in str(failure.value)


def test_numbers_end() -> None:
    model = small_model()
    for seed in range(10):
        schema = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
        values = json.loads(reply(model, schema, seed))
        assert len(values) == 3 and all(abs(v) < 1e120 for v in values)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"type": "string", "pattern": "("},
        {"allOf": [{"const": 1}, {"const": 2}]},
        {"$ref": "#/nowhere"},
        {"enum": []},
    ],
)
def test_schemas_nothing_follows_are_refused_in_one_line(schema: dict[str, Any]) -> None:
    with pytest.raises((UsageError, JambaError)) as failure:
        reply(small_model(), schema, 0)
    assert "\n" not in str(failure.value) and len(str(failure.value)) < 500


NODE = {
    "type": "object",
    "properties": {"v": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}},
    "required": ["v", "next"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"n": NODE}, "$ref": "#/$defs/n"},
        {
            "definitions": {"a/b": {"type": "array", "items": {"$ref": "#"}, "maxItems": 2}},
            "$ref": "#/definitions/a~1b",
        },
        {"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
        {"anyOf": [{"const": {"a": [1, None, "x"]}}, {"enum": ["a", None, 2.5]}]},
        {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1, "maxProperties": 2},
        {
            "type": "object",
            "patternProperties": {"^x_[a-z]{1,2}$": {"type": "boolean"}},
            "additionalProperties": False,
            "maxProperties": 3,
        },
        {"type": "array", "prefixItems": [{"const": 1}, {"type": "boolean"}], "items": False, "minItems": 2},
        {"type": "integer", "minimum": -5, "exclusiveMaximum": 3},
        {"type": "number", "minimum": 0.5, "maximum": 0.75},
        {"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 100},
        {"type": "string", "format": "date"},
        {"type": "string", "format": "uuid"},
        {"type": ["integer", "null"]},
        {
            "type": "object",
            "properties": {f"p{i}": {"type": "boolean"} for i in range(60)},
            "additionalProperties": False,
        },
        {"enum": [f"value {i}" for i in range(2000)]},
    ],
)
def test_what_schemas_seldom_use_is_followed_too(schema: dict[str, Any]) -> None:
    model = small_model()
    for seed in range(3):
        text = reply(model, schema, seed, 400)
        jsonschema.Draft202012Validator(schema, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER).validate(
            json.loads(text)
        )


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ({"not": {"type": "string"}}, "it uses not"),
        ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "it uses uniqueItems"),
        ({"if": {"const": 1}, "then": {"const": 1}}, "it uses if, then"),
        ({"$ref": "https://example.com/x.json"}, "nothing is fetched"),
        ({"$ref": "file:///etc/passwd"}, "nothing is fetched"),
        ({"type": "string", "format": "credit-card"}, "use a pattern"),
        ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "use anyOf"),
        ({"enum": []}, "nothing satisfies it"),
        ({"type": {}}, "type must be a string"),
        ({"type": [["object"]]}, "type must be a string"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "nothing satisfies it: minimum (5)"),
        ({"type": "object", "required": ["a"], "properties": {"a": False}}, "nothing satisfies it"),
        ({"$ref": "#"}, "ever ends"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "ever ends"),
        ({"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}, "ever ends"),
        ({"type": "array", "items": {"$ref": "#"}, "minItems": 1}, "ever ends"),
        ({"type": "array", "items": {"type": "integer"}, "minItems": 1_000_000}, "max_tokens"),
    ],
)
def test_what_cannot_be_followed_is_said_in_one_line(schema: dict[str, Any], says: str) -> None:
    with pytest.raises((UsageError, JambaError)) as failure:
        reply(small_model(), schema, 0, None)
    text = str(failure.value)
    assert says in text and "\n" not in text and len(text) < 300 and "compile" not in text


def test_a_schema_nested_too_deeply_is_refused() -> None:
    schema: dict[str, Any] = {"type": "integer"}
    for _ in range(90):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"], "additionalProperties": False}
    with pytest.raises(UsageError, match="nested too deeply"):
        reply(small_model(), schema, 0)


def test_a_cut_off_reply_goes_on_within_its_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"s": {"type": "string", "minLength": 40, "maxLength": 60}},
        "required": ["s"],
    }
    model = small_model()
    with model.session(ctx=2048, store=False) as session:
        options: dict[str, Any] = {"schema": schema, "seed": 3, "temperature": 1.5, "top_p": 1.0}
        pieces = session.send("Go.", max_tokens=300, **options)
        first = next(pieces)
        pieces.close()  # type: ignore[attr-defined]
        rest = "".join(session.extend(max_tokens=300, **options))
        turn = session.conversation.turns[-1]
        assert turn.content.startswith(first) and turn.content.endswith(rest)
        jsonschema.validate(json.loads(turn.content), schema)


@pytest.mark.parametrize(
    ("kind", "valid", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29", "0004-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "0000-01-01"]),
        ("time", ["23:59:59Z", "10:00:00.25+02:00"], ["23:59:60Z", "24:00:00Z"]),
        ("date-time", ["2024-02-29t10:00:00Z"], ["2023-02-29T10:00:00Z", "2024-02-29T10:00:60Z"]),
    ],
)
@pytest.mark.parametrize(
    ("name", "around"),
    [
        ("x", {}),
        ("format", {"allOf": [{"maxLength": 40}]}),
        ("x", {"pattern": "^[0-2]"}),
        ("default", {}),
        ("enum", {}),
    ],
)
def test_dates_are_in_the_calendar(
    kind: str, valid: list[str], wrong: list[str], name: str, around: dict[str, Any]
) -> None:
    import llguidance

    schema = {"properties": {name: {"type": ["string", "null"], "format": kind, **around}}, "required": [name]}
    grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(with_calendar(schema)))
    tokens = llguidance.LLTokenizer("byte")

    def fits(value: str) -> bool:
        matcher, text = llguidance.LLMatcher(tokens, grammar), tokens.tokenize_str(json.dumps({name: value}))
        return matcher.try_consume_tokens(text) == len(text) and matcher.is_accepting()

    assert [v for v in valid if not fits(v)] == [] and [v for v in wrong if fits(v)] == []


def test_a_date_as_data_is_left_alone() -> None:
    schema = {"const": {"format": "date"}, "enum": [{"format": "time"}], "properties": {"format": {"type": "null"}}}
    assert with_calendar(schema) == schema


@pytest.mark.parametrize("kind", ["date", "time", "date-time"])
def test_a_date_ends_within_the_tokens_there_are(kind: str) -> None:
    model = small_model()
    for seed in range(4):
        text = json.loads(reply(model, {"type": "string", "format": kind}, seed, 40))
        value = text if kind == "date-time" else f"{text}T00:00:00Z" if kind == "date" else f"2000-01-01T{text}"
        assert datetime.datetime.fromisoformat(value.upper()[:19])


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "email"},
        {"type": "string", "pattern": r"^\S+@\S+\.\S+$"},
        {
            "type": "object",
            "properties": {k: {"type": "string", "format": "email"} for k in "ab"},
            "required": ["a", "b"],
        },
        {"type": "string", "pattern": "^[A-Z]+(-[a-z]+){2}#$"},
    ],
)
def test_strings_without_a_bound_that_wait_for_a_sign_end(schema: dict[str, Any]) -> None:
    model = small_model()
    for tokens in (120, None):
        for seed in range(2):
            jsonschema.validate(json.loads(reply(model, schema, seed, tokens)), schema)


def test_a_way_to_the_end_is_looked_for_again_only_where_the_one_known_leads_there_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, look = [], SchemaConstraint._way_out

    def counted(self: SchemaConstraint, *state: Any) -> list[int] | None:
        found.append(look(self, *state))
        return found[-1]

    monkeypatch.setattr(SchemaConstraint, "_way_out", counted)
    properties = {"to": {"type": "string", "format": "email"}, "text": {"type": "string"}}
    schema = {"type": "object", "properties": properties, "required": ["to", "text"], "additionalProperties": False}
    model = small_model()
    constraint = SchemaConstraint(model.tokenizer, schema, model.config.vocab_size, (None, None))
    begun = model.tokenizer.encode('{"to": "anna@lake.org", "text": "')
    word, said = model.tokenizer.encode(" fox")[-1], []
    constraint.begin(200)
    while not constraint.finished:
        wish, allowed = (begun[len(said)] if len(said) < len(begun) else word), constraint.allowed()
        assert allowed is not None
        said.append(constraint.accept(wish if allowed[wish] else int(allowed.argmax())))
    assert said[: len(begun) + 9] == begun + 9 * [word] and 190 < len(said) <= 200
    jsonschema.validate(json.loads(model.tokenizer.decode(said)), schema)
    assert len(found) <= len(begun)  # nothing is looked for in the string itself
