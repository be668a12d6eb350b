"""Tool calls in generated text: any split of the text gives what the whole text gives, and what the call was made of."""

from __future__ import annotations

import codecs
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest

from jambacli.text.tokenizer import Tokenizer
from jambacli.text.tool_calls import CallPiece, Form, ToolCall, ToolCallScanner, ToolMarkup, call_form, tool_markup
from tests.support.repository import SHARED_DATA
from tests.support.vocabularies import byte_level_metadata

PLAIN: dict[Form, ToolMarkup] = {
    "list": ToolMarkup("list", "<tool_calls>", "</tool_calls>"),
    "single": ToolMarkup("single", "<tool_call>", "</tool_call>"),
}
FORMS = pytest.mark.parametrize("form", ["list", "single"])


def scanned(
    markup: ToolMarkup, pieces: Iterable[str], truncated: bool = False, one: bool = False
) -> tuple[str, list[list[str]], list[ToolCall], bool]:
    """The text, the calls as they were passed on (names and arguments), the complete calls, and whether one is broken."""
    scanner = ToolCallScanner(markup, one=one)
    out = [event for piece in pieces for event in scanner.push(piece)] + scanner.end(truncated)
    text, calls = "", list[list[str]]()
    for event in out:
        if isinstance(event, str):
            text += event
            continue
        assert event.index == (len(calls) if event.name is not None else len(calls) - 1)
        if event.name is not None:
            calls.append([event.name, ""])
        calls[-1][1] += event.arguments
    return text, calls, scanner.calls, scanner.broken


def decoded(parts: Iterable[bytes]) -> list[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    return [decoder.decode(part) for part in parts]


def some_value(draw: random.Random, depth: int = 0) -> Any:
    texts = ["", "a b", 'say "hi"', "back\\slash", "</tool_call>", "</tool_calls>", "{[,]}", "é😀", "line\nbreak", "]}"]
    kind = draw.randrange(5 if depth > 1 else 7)
    if kind < 3:
        return draw.choice(texts)
    if kind < 5:
        return draw.choice([0, -1.5, 1e30, True, None, 42])
    if kind == 5:
        return [some_value(draw, depth + 1) for _ in range(draw.randrange(3))]
    return {draw.choice(texts): some_value(draw, depth + 1) for _ in range(draw.randrange(3))}


def some_case(form: Form, seed: int) -> tuple[str, str, list[ToolCall]]:
    """A reply, the text that it is to give, and its calls."""
    draw = random.Random(seed)
    opening, closing = PLAIN[form].opening, PLAIN[form].closing
    said = draw.choice(["", "", "Let me see.", "a <b> c {", "x < y"])
    calls, written = [], []
    for _ in range(draw.randrange(1, 4)):
        name = draw.choice(["f", "get_weather", "a.b-c"])
        arguments: Any = {draw.choice("abc"): some_value(draw) for _ in range(draw.randrange(3))}
        space = draw.choice([None, None, 1])
        raw = json.dumps(arguments, ensure_ascii=draw.random() < 0.5, indent=space)
        expected, shown = raw, raw
        unusual = draw.randrange(12)
        if unusual == 0:
            shown = json.dumps(raw, ensure_ascii=draw.random() < 0.5)
        elif unusual == 1:
            expected, shown = "{}", draw.choice(["null", '""', ""])
        elif unusual == 2 and arguments and space is None:
            shown = raw[:-1] + ",}"
        fields = [f'"name": {json.dumps(name)}', *([f'"arguments": {shown}'] if shown else [])]
        if unusual == 3:
            fields.reverse()
        if unusual == 4:
            fields.insert(draw.randrange(3), '"id": {"x": ["}"]}')
        written.append(draw.choice(["{%s}", "{ %s\n}"]) % draw.choice([", ", ",\n"]).join(fields))
        calls.append(ToolCall(name, expected))
    if form == "list":
        inner = draw.choice(["[%s]", "[\n    %s\n]"]) % ",\n    ".join(written)
        if draw.randrange(6) == 0:
            inner = inner[:-1].rstrip() + draw.choice(["", ",", ",]"])
        block = opening + inner + closing
        if draw.randrange(6) == 0:
            block = block[: -len(closing)]
    else:
        block = "\n".join(f"{opening}\n{one}\n{closing}" for one in written)
        if draw.randrange(6) == 0:
            block = block[: -len(closing)].rstrip()
            if draw.randrange(2) and len(written) > 0 and written[-1].endswith("}"):
                block = block[:-1]
    return said + draw.choice(["", " ", "\n\n"]) * bool(said) + block + draw.choice(["", "\n"]), said, calls


@FORMS
def test_two_thousand_replies_give_their_calls_however_they_are_split(form: Form) -> None:
    for seed in range(2000):
        reply, said, calls = some_case(form, seed)
        whole = scanned(PLAIN[form], [reply])
        assert whole == (said, [[c.name, c.arguments] for c in calls], calls, False), (seed, reply)
        data = reply.encode()
        assert scanned(PLAIN[form], decoded(data[i : i + 1] for i in range(len(data)))) == whole, (seed, reply)
        if len(data) > 110:
            continue
        for at in range(1, len(data)):
            assert scanned(PLAIN[form], decoded((data[:at], data[at:]))) == whole, (seed, at, reply)


@FORMS
@pytest.mark.parametrize("truncated", [False, True])
def test_any_beginning_of_a_reply_is_the_same_in_any_pieces_and_never_a_half_call(form: Form, truncated: bool) -> None:
    for seed in range(40):
        reply, _, calls = some_case(form, seed)
        for end in range(len(reply)):
            text, passed_on, complete, _ = scanned(PLAIN[form], [reply[:end]], truncated)
            assert scanned(PLAIN[form], reply[:end], truncated)[:3] == (text, passed_on, complete)
            assert len(complete) <= len(calls)
            for call in complete:
                json.loads(call.arguments)
            if truncated:
                assert complete == calls[: len(complete)]


@FORMS
@pytest.mark.parametrize(
    "text", ["plain", "a <b> <tool", "<tool_x>{}", "a\n", "", "</tool_call>", "</tool_calls>", " <tool_resp> 1 "]
)
def test_text_without_calls_stays_as_it_is(form: Form, text: str) -> None:
    assert scanned(PLAIN[form], list(text)) == (text, [], [], False)


@FORMS
@pytest.mark.parametrize("inner", ["x", '{"a": 1}', '{"name": 7}', "{'name': 1}", '"f"', '{"name" "f"}'])
def test_a_block_that_is_no_call_stays_text(form: Form, inner: str) -> None:
    text = f"a {PLAIN[form].opening}{inner}{PLAIN[form].closing} b"
    assert scanned(PLAIN[form], [text]) == scanned(PLAIN[form], list(text)) == (text, [], [], False)


@FORMS
def test_an_empty_block_is_nothing(form: Form) -> None:
    text = f"a {PLAIN[form].opening}[]{PLAIN[form].closing}"
    assert scanned(PLAIN[form], [text])[:3] == ("a", [], [])


@FORMS
@pytest.mark.parametrize("arguments", ["{'a': 1}", '{"a": [1}', '{"a" 1}', '{"a": tru}', '"x"y', '"{"', "{<"])
def test_arguments_that_are_not_json_are_no_call(form: Form, arguments: str) -> None:
    block = f'{PLAIN[form].opening}{{"name": "f", "arguments": {arguments}}}{PLAIN[form].closing}'
    text, _, complete, broken = scanned(PLAIN[form], list(block + " more"))
    assert (text, complete, broken) == ("more", [], True)
    assert scanned(PLAIN[form], [block + " more"])[:1] == ("more",)


@FORMS
def test_only_the_first_call_counts_if_one_is_asked_for(form: Form) -> None:
    opening, closing = PLAIN[form].opening, PLAIN[form].closing
    first, second = (json.dumps({"name": name, "arguments": {}}) for name in "fg")
    middle = ", " if form == "list" else closing + opening
    reply = opening + first + middle + second + closing + " end"
    assert scanned(PLAIN[form], list(reply), one=True) == ("", [["f", "{}"]], [ToolCall("f", "{}")], False)


def test_surrogate_pairs_of_arguments_in_a_string_are_joined() -> None:
    value = r'"{\"a\": \"\ud83d\ude00\u00e9\"}"'
    block = f'<tool_call>{{"name": "f", "arguments": {value}}}</tool_call>'
    for pieces in ([block], list(block)):
        assert scanned(PLAIN["single"], pieces)[2] == [ToolCall("f", '{"a": "😀é"}')]


def test_line_breaks_within_strings_become_json() -> None:
    block = '<tool_call>{"name": "f", "arguments": {"code": "a\n\tb"}}</tool_call>'
    (call,) = scanned(PLAIN["single"], list(block))[2]
    assert json.loads(call.arguments) == {"code": "a\n\tb"}


def test_a_call_in_a_thought_of_plain_text_is_no_call() -> None:
    markup = ToolMarkup("single", "<tool_call>", "</tool_call>", thoughts=True)
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    text = f"<think>perhaps {call}</think>"
    for pieces in ([text + call], list(text + call)):
        assert scanned(markup, pieces) == (text, [["f", "{}"]], [ToolCall("f", "{}")], False)


def test_deep_nesting_is_refused_not_followed() -> None:
    block = '<tool_call>{"name": "f", "arguments": ' + "[" * 100_000 + "</tool_call>"
    assert scanned(PLAIN["single"], [block])[2:] == ([], True)


# Marks


def test_the_form_is_found_in_the_templates_text() -> None:
    assert call_form("{% if tools %}<tool_definitions>{% endif %}<tool_calls>") == "list"
    assert call_form("{{ tools }} <tools> <tool_call>") == "single"
    assert call_form("{{ messages }}") is None and call_form("{{ tools }} <tool_call>") is None


@pytest.mark.parametrize(
    ("name", "form"),
    [("jamba-mini-1.7-chat-template.jinja", "list"), ("jamba-reasoning-3b-chat-template.jinja", "single")],
)
def test_the_forms_of_the_real_templates(name: str, form: Form) -> None:
    path = SHARED_DATA / name
    if not path.is_file():
        pytest.skip("../shared/data (the models' own templates) is missing")
    assert call_form(path.read_text()) == form


def test_where_marks_are_tokens_the_same_characters_are_text() -> None:
    metadata, _ = byte_level_metadata(["plain text"], vocab_size=300)
    source = "{{ tools }}<tool_calls>"
    plain = tool_markup(source, Tokenizer(metadata))
    assert plain is not None and plain.opening == "<tool_calls>" and not plain.shown
    names, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    marked = {
        **metadata,
        "tokenizer.ggml.tokens": [*names, "<tool_calls>", "</tool_calls>"],
        "tokenizer.ggml.token_type": [*types, 4, 4],
    }
    markup = tool_markup(source, Tokenizer(marked))
    assert markup is not None and markup.ids == (len(names), len(names) + 1)
    opening, closing = (markup.shown[token] for token in markup.ids if token is not None)
    call = '[{"name": "f", "arguments": {}}]'
    assert scanned(markup, f"<tool_calls>{call}</tool_calls>")[:3] == (f"<tool_calls>{call}</tool_calls>", [], [])
    assert scanned(markup, opening + call + closing)[2] == [ToolCall("f", "{}")]
    assert CallPiece(0, "f") in ToolCallScanner(markup).push(opening + call + closing)
