"""The commands of a chat, without a terminal: what they set, show, drop and bring back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from jambacli.chat.commands import HELP, Chat
from jambacli.chat.completion import completions
from jambacli.engine.options import GenerationOptions
from jambacli.errors import JambaError, UsageError
from jambacli.session.options import SessionOptions
from jambacli.session.session_folder import sessions_folder
from tests.support.small_models import small_model


@pytest.fixture
def chat(own_home: Path) -> Iterator[Chat]:
    talk = Chat(
        small_model(), options=SessionOptions(store=False), generation=GenerationOptions(max_tokens=2, temperature=0)
    )
    yield talk
    talk.close()


def say(chat: Chat, *texts: str) -> list[str]:
    """The lines after the last of these inputs."""
    lines: list[str] = []
    for text in texts:
        outcome = chat.handle(text)
        list(outcome.reply or ())
        lines = outcome.lines
    return lines


def asked(chat: Chat) -> list[str]:
    return [t.content for t in chat.session.conversation.turns if t.role == "user"]


def test_what_clear_and_edit_drop_comes_back(chat: Chat) -> None:
    say(chat, "One.", "Two.", "Three.")
    before = list(chat.session.conversation.turns)
    assert "/undo brings 3 messages back" in say(chat, "/clear")[0] and asked(chat) == []
    assert "undone: /clear; 3 messages" in say(chat, "/undo")[0]
    assert chat.session.conversation.turns == before
    say(chat, "/edit 1 Uno.")
    assert asked(chat) == ["Uno."]
    say(chat, "Dos.")
    say(chat, "/undo")  # the message that came after the edit
    assert asked(chat) == ["Uno."]
    assert "undone: /edit of message 1" in say(chat, "/undo")[0]
    assert chat.session.conversation.turns == before
    say(chat, "/undo")
    assert asked(chat) == ["One.", "Two."]
    say(chat, "/clear", "Anew.", "/undo", "/undo")
    assert asked(chat) == ["One.", "Two."]


def test_options_are_set_listed_and_taken_back(chat: Chat) -> None:
    assert say(chat, "/set temp 0.2") == ["temp               0.2 (set here)"]
    assert chat._generation.temperature == 0.2
    say(chat, "/set top-k=7", "/set stop END", "/set max-tokens 3", "/set logit-bias 5=-inf", "/set lookup off")
    listed = say(chat, "/set")
    assert len(listed) == 14 and sum("(set here)" in line for line in listed) == 6
    say(chat, "/set temp default", "/set stop none")
    assert chat._generation.temperature is None and chat._generation.stop == ()
    for wrong in (
        "/set temp warm",
        "/set temp 300",
        "/set tmp 1",
        "/set seed",
        "/set max-tokens 0",
        "/set logit-bias 99999=1",
    ):
        with pytest.raises(UsageError):
            chat.handle(wrong)
    with pytest.raises(UsageError, match="did you mean temp"):
        chat.handle("/set tempp 1")


def test_the_system_message_is_shown_set_and_removed(chat: Chat) -> None:
    assert say(chat, "/system") == ["there is no system message"]
    assert "now: Be brief." in say(chat, "/system Be brief.")[0]
    assert say(chat, "/system") == ["system: Be brief."] and chat.session.system == "Be brief."
    say(chat, "Hello.", "/system Be long.")
    assert [t.role for t in chat.session.conversation.turns] == ["system", "user", "assistant"]
    assert say(chat, "/system none") == ["the system message is removed"] and chat.session.system is None


def test_a_text_that_is_to_be_read_again_has_no_tokens_yet(chat: Chat) -> None:
    assert chat.continuing.startswith("continuing ") and "token" not in chat.continuing


def test_show_history_and_saving_as_a_file(chat: Chat, tmp_path: Path) -> None:
    say(chat, "One.", "Two.")
    assert [line.split()[0] for line in say(chat, "/show")] == [
        "model",
        "session",
        "system",
        "sampling",
        "context",
        "files",
    ]
    history = say(chat, "/history")
    assert [line for line in history if line.strip()[:1].isdigit()] == ["  1  One.", "  2  Two."]
    assert say(chat, "/history 1")[0] == "  2  Two."
    assert "2 messages" in say(chat, "/stats")[0]
    say(chat, "/undo")
    assert "1 message" in say(chat, "/stats")[0] and "messages" not in say(chat, "/stats")[0]
    path = tmp_path / "a chat.md"
    say(chat, f'/save-as "{path}"')
    assert "One." in path.read_text(encoding="utf-8")
    with pytest.raises(UsageError, match="exists already"):
        chat.handle(f"/save-as '{path}'")
    assert chat.handle("/copy").copied == chat.session.conversation.turns[-1].content


def test_files_are_named_as_terminals_paste_them(chat: Chat, tmp_path: Path) -> None:
    for name in ("a b.txt", "c.txt"):
        (tmp_path / name).write_text("Mira counted 42 herons.", encoding="utf-8")
    for typed in (f"'{tmp_path}/a b.txt' {tmp_path}/c.txt", f"{tmp_path}/a\\ b.txt {(tmp_path / 'c.txt').as_uri()}"):
        assert "2 files" in say(chat, f"/file {typed}")[-1] and "go with" in say(chat, f"/file {typed}")[-1]
    assert "c.txt" in say(chat, "/show")[-1]


def test_files_that_do_not_fit_are_taken_back(own_home: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("Mira counted 42 herons. " * 50, encoding="utf-8")
    chat = Chat(small_model(), options=SessionOptions(store=False, ctx=256), generation=GenerationOptions(max_tokens=2))
    say(chat, "One.", "/undo", f"/file {tmp_path}/long.txt")
    used = chat.used
    with pytest.raises(JambaError) as caught:
        say(chat, "Who?")
    assert "/file none" in caught.value.worded()
    assert chat.used == used and "long.txt" in say(chat, "/show")[-1]
    assert say(chat, "/file none", "/show")[-1] == "files     none for the next message; sent with 0 messages"
    say(chat, "Who?")
    assert asked(chat) == ["Who?"]
    chat.close()


def test_a_chat_goes_on_with_another_model(own_home: Path) -> None:
    talk = Chat(
        small_model(),
        options=SessionOptions(store=False),
        generation=GenerationOptions(max_tokens=2),
        load=lambda _: small_model(),
    )
    with pytest.raises(UsageError):
        Chat(small_model(), options=SessionOptions(store=False)).handle("/model x")
    turns = []
    try:
        say(talk, "One.")
        turns = asked(talk)
        assert "continuing with small" in say(talk, "/model other")[0]
        assert asked(talk) == turns
        say(talk, "Two.")
        assert asked(talk) == ["One.", "Two."]
    finally:
        talk.close()


def test_completion_knows_commands_paths_sessions_and_options(chat: Chat, tmp_path: Path) -> None:
    def found(text: str) -> list[str]:
        return [text[: len(text) - replaced] + new for new, replaced in completions(chat, text)]

    assert found("/se") == ["/set"] and len(found("/")) == len(HELP) and found("se") == []
    (tmp_path / "my file.txt").touch()
    (tmp_path / "folder").mkdir()
    assert found(f"/file {tmp_path}/my") == [f"/file {tmp_path}/my\\ file.txt"]
    assert found(f'/file x.txt "{tmp_path}/my f') == [f'/file x.txt "{tmp_path}/my file.txt']
    assert found(f"/file {tmp_path}/fo") == [f"/file {tmp_path}/folder/"]
    assert found("/set top") == ["/set top-p", "/set top-k"]
    (sessions_folder() / "notes.json").touch()
    assert found("/load n") == ["/load notes"] and found("/branch no") == ["/branch notes"]
