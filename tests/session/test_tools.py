"""Functions as tools: their schemas, calls with any arguments, and the loop of a session."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from jambacli.chat.commands import Chat
from jambacli.chat.tool_file import read_tools
from jambacli.errors import UsageError
from jambacli.session.functions import Tool, mismatch, tools_of
from jambacli.session.options import SessionOptions
from jambacli.text.tool_calls import Form, ToolCall
from tests.support.small_models import small_model
from tests.support.tool_models import script, tool_model, written

FORMS = pytest.mark.parametrize("form", ["list", "single"])
PARIS = ("weather", '{"place": "Paris"}')


def weather(place: str, days: int = 1, unit: Literal["C", "F"] | None = None) -> dict[str, Any]:
    """The weather at a place.

    Args:
        place: the city's name
        days (int): how many days ahead
    """
    return {"place": place, "sky": "sunny", "days": days}


def broken(text: str) -> str:
    """Fail."""
    raise KeyError(text)


# Schemas and calls


def test_the_schema_comes_from_hints_and_docstring() -> None:
    definition = Tool.of(weather).definition
    assert definition.name == "weather" and definition.description == "The weather at a place."
    assert definition.parameters == {
        "type": "object",
        "properties": {
            "place": {"type": "string", "description": "the city's name"},
            "days": {"type": "integer", "description": "how many days ahead"},
            "unit": {"anyOf": [{"enum": ["C", "F"]}, {"type": "null"}]},
        },
        "additionalProperties": False,
        "required": ["place"],
    }


def test_other_hints_have_schemas_too() -> None:
    def f(a: list[float], b: dict[str, bool], c: Annotated[str, "a name"], d: Any, e, g: list, h: dict) -> None:  # type: ignore
        """F."""

    properties = Tool.of(f).definition.parameters["properties"]
    assert properties["a"] == {"type": "array", "items": {"type": "number"}}
    assert properties["b"] == {"type": "object", "additionalProperties": {"type": "boolean"}}
    assert properties["c"] == {"type": "string", "description": "a name"}
    assert properties["d"] == properties["e"] == {}
    assert (properties["g"], properties["h"]) == ({"type": "array"}, {"type": "object"})


def test_functions_that_json_cannot_call_are_refused() -> None:
    def any_number(*args: int) -> None: ...

    def path(p: Path) -> None: ...

    def numbers(n: dict[int, str]) -> None: ...

    async def later() -> None: ...

    for function in (any_number, path, numbers, later, lambda x: x):
        with pytest.raises(UsageError):
            Tool.of(function)
    with pytest.raises(UsageError, match="two tools"):
        tools_of([weather, weather])


@pytest.mark.parametrize(
    "arguments",
    [
        *["", "x", "[]", "7", "{}", '{"place": 7}', '{"place": null}', '{"place": "x", "days": "2"}', "[" * 100_000],
        *[
            '{"place": "x", "days": true}',
            '{"place": "x", "unit": "K"}',
            '{"place": "x", "__class__": 1}',
            '{"self": 1}',
        ],
    ],
)
def test_hostile_arguments_never_reach_the_function(arguments: str) -> None:
    def weather(place: str, days: int = 1, unit: Literal["C", "F"] | None = None) -> str:
        raise AssertionError("called")

    assert "do not fit" in json.loads(Tool.of(weather).run(arguments))["error"]


def test_results_are_texts_or_json_and_exceptions_are_results() -> None:
    def text(x: str) -> Any:
        return x

    def odd() -> Any:
        return {"p": Path("a")}

    def leave() -> Any:
        raise SystemExit(3)

    assert json.loads(Tool.of(weather).run('{"place": "Rome", "days": 2.0}'))["sky"] == "sunny"
    assert Tool.of(text).run('{"x": "é"}') == "é" and Tool.of(odd).run("{}") == '{"p": "a"}'
    assert "KeyError" in json.loads(Tool.of(broken).run('{"text": "x"}'))["error"]
    assert "SystemExit" in json.loads(Tool.of(leave).run("{}"))["error"]


def test_mismatches_name_their_place() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "object"}}}}
    assert mismatch({"a": [{}, 7]}, schema) == "a[1] is not of type object" and mismatch({"a": [{}]}, schema) == ""


# The loop


@FORMS
@pytest.mark.parametrize("thinks", [False, True])
def test_a_session_calls_and_answers(form: Form, thinks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tool_model(form, thinks=thinks)
    # A grammar would not let it call a function that does not exist.
    monkeypatch.setattr("jambacli.session.session.reply_constraint", lambda *_: None)
    thought = "hm\n</think>\n\n" if thinks and form == "single" else ""
    seen: list[ToolCall] = []

    def approve(call: ToolCall) -> bool:
        seen.append(call)
        return True

    script(
        monkeypatch,
        model,
        thought + written(form, PARIS, ("other", "{}"), before="Let me see. "),
        thought + "It is sunny.",
    )
    with model.session(store=False) as session:
        said = [p for p in session.send("How?", tools=[weather], approve=approve) if type(p) is str]
        assert "".join(said) == "Let me see.It is sunny."
        turns = session.conversation.turns
        assert [t.role for t in turns] == ["user", "assistant", "tool", "tool", "assistant"]
        assert json.loads(turns[2].content)["place"] == "Paris" and "no tool" in turns[3].content
        assert seen == [ToolCall(*PARIS)]
        # Only the results were read, and the next message is read alone.
        assert session.stats.prefilled_tokens <= len(model.tokenizer.encode(turns[2].content + turns[3].content)) + 120
        script(monkeypatch, model, thought + "Yes.")
        list(session.send("Really?"))
        if not thought:  # earlier thoughts are dropped, so everything after them is read again
            assert session.stats.prefilled_tokens <= len(model.tokenizer.encode("Really?")) + 30
        assert "weather" in model.tokenizer.decode(session.conversation.render().ids)


@FORMS
def test_a_refused_call_is_not_run(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tool_model(form)
    script(monkeypatch, model, written(form, ("broken", '{"text": "x"}')), "Well.")
    with model.session(store=False) as session:
        assert "".join(session.send("Do it.", tools=[broken], approve=lambda call: False)) == "Well."
        assert "did not allow" in session.conversation.turns[2].content


@FORMS
def test_rounds_are_bounded(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tool_model(form)
    script(monkeypatch, model, *[written(form, PARIS)] * 2, "Enough.")
    with model.session(store=False) as session:
        assert "".join(session.send("How?", tools=[weather], tool_rounds=2)) == "Enough."


@FORMS
def test_a_choice_of_tools_holds_for_the_first_reply(form: Form) -> None:
    pytest.importorskip("llguidance")
    model = tool_model(form)
    with model.session(store=False) as session:
        list(session.send("How?", tools=[weather, broken], tool_choice="weather", max_tokens=90, tool_rounds=1, seed=1))
        assert [t.role for t in session.conversation.turns] == ["user", "assistant", "tool", "assistant"]
        assert "sunny" in session.conversation.turns[2].content or "do not fit" in session.conversation.turns[2].content
        with pytest.raises(UsageError, match="no tool"):
            session.send("How?", tool_choice="other")
        session.send("How?", tools=[], max_tokens=1)
        assert "tools" not in session.conversation.variables


@FORMS
def test_an_interruption_within_a_function_keeps_the_call(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow() -> None:
        """Wait."""
        raise KeyboardInterrupt

    model = tool_model(form)
    script(monkeypatch, model, written(form, ("slow", "{}")), "Fine.")
    with model.session(store=False) as session:
        with pytest.raises(KeyboardInterrupt):
            list(session.send("Wait.", tools=[slow]))
        assert [t.role for t in session.conversation.turns] == ["user", "assistant"]
        assert "".join(session.send("Go on.")) == "Fine."


@FORMS
def test_a_session_with_calls_is_saved_and_resumed(form: Form, monkeypatch: pytest.MonkeyPatch, own_home: Path) -> None:
    model = tool_model(form)
    script(monkeypatch, model, written(form, PARIS), "Sunny.", "Yes.")
    with model.session(store=False) as session:
        list(session.send("How?", tools=[weather]))
        turns = [t.to_json() for t in session.conversation.turns]
        ids = session.conversation.render().ids
    from jambacli.session.conversation import Conversation, Turn

    assert model.template is not None
    again = Conversation(model.template, model.tokenizer)
    again.turns = [Turn.from_json(t) for t in json.loads(json.dumps(turns))]
    again.variables = {"tools": [Tool.of(weather).definition.as_message()]}
    assert again.render().ids == ids


def test_a_template_without_tools_is_refused() -> None:
    with small_model().session(store=False) as session, pytest.raises(UsageError, match="has no tools"):
        session.send("How?", tools=[weather])


# Chats


@FORMS
def test_a_chat_asks_regenerates_and_undoes_with_tools(
    form: Form, monkeypatch: pytest.MonkeyPatch, own_home: Path
) -> None:
    answers = iter([False, True, True])
    model = tool_model(form)
    call = written(form, PARIS)
    script(monkeypatch, model, call, "No.", call, "Sunny.", "Hello.", call, "Rainy.")
    chat = Chat(
        model,
        options=SessionOptions(store=False),
        tools=[Tool.of(weather)],
        approve=lambda _: next(answers),
    )
    try:
        assert "".join(chat.say("How?").reply or ()) == "No."
        assert "".join(chat.handle("/regenerate").reply or ()) == "Sunny."
        assert [t.role for t in chat.session.conversation.turns] == ["user", "assistant", "tool", "assistant"]
        assert "".join(chat.say("Hi.").reply or ()) == "Hello."
        chat.handle("/undo")
        assert "".join(chat.handle("/edit And now?").reply or ()) == "Rainy."
        assert chat.messages == 1
    finally:
        chat.close()


def test_the_functions_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my tools.py"
    path.write_text(
        "from __future__ import annotations\nfrom json import dumps\n"
        "def second(x: int) -> int:\n    'Two.'\n    return x\ndef first() -> str:\n    return dumps(1)\n"
        "def _hidden() -> None: ...\n"
    )
    assert [t.name for t in read_tools(path)] == ["second", "first"]
    assert read_tools(path)[0].run('{"x": 3}') == "3"
    path.write_text("def a() -> None: ...\ndef b() -> None: ...\nTOOLS = [b]\n")
    assert [t.name for t in read_tools(path)] == ["b"]


@pytest.mark.parametrize("text", ["x = 1", "1 / 0", "def", "raise SystemExit(1)", "def f(*a): ...", "TOOLS = 7"])
def test_a_file_without_usable_functions_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "tools.py"
    path.write_text(text)
    with pytest.raises(UsageError):
        read_tools(path)
    with pytest.raises(UsageError, match="not a Python file"):
        read_tools(tmp_path / "missing.py")
