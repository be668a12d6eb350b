"""Which model, system message and session a chat goes on with."""

from __future__ import annotations

import json

import pytest

from tests.support.cli_runner import jamba
from tests.support.small_models import small_file


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return str(small_file(folder, "f32")), str(small_file(folder, "q8_0"))


def chat(*arguments: str, lines: str = "Hello.\n") -> tuple[int, str]:
    done = jamba("chat", *arguments, "-n", "2", "--temp", "0", stdin=lines.encode())
    return done.returncode, done.stderr.decode()


def shown(name: str) -> dict:
    return json.loads(jamba("sessions", "show", name, "--json").stdout)


def test_a_session_goes_on_with_its_own_model_and_with_another_one_if_told_to(models: tuple[str, str]) -> None:
    one, other = models
    assert chat(one, "--session", "s")[0] == 0
    assert chat(other, "--session", "t")[0] == 0  # the last used
    code, err = chat("--session", "s")
    assert code == 0 and "session s goes on with small f32" in err
    code, err = chat(other, "--session", "s")
    assert code == 1 and "was made with small f32" in err and "--yes" in err
    assert len(shown("s")["turns"]) == 4
    code, err = chat(other, "--session", "s", "--yes")
    assert code == 0 and "reads its text again" in err
    code, err = chat("--session", "s", lines="")
    assert code == 0 and "goes on with small q8_0" in err
    assert [t["role"] for t in shown("s")["turns"]] == ["user", "assistant"] * 3


def test_the_system_message_of_a_saved_session_is_replaced_and_said(models: tuple[str, str]) -> None:
    chat(models[0], "--session", "s", "--system", "Be brief.")
    code, err = chat("--session", "s", "--system", "Be long.", lines="/system\nAnd?\n")
    assert code == 0 and "the system message is now: Be long." in err and "system: Be long." in err
    assert [t["content"] for t in shown("s")["turns"] if t["role"] == "system"] == ["Be long."]
    assert "system: Be long." in chat("--session", "s", lines="/system\n")[1]


def test_continue_resumes_the_last_session(models: tuple[str, str]) -> None:
    code, err = chat("--continue")
    assert code == 2 and "no session to continue" in err
    chat(models[0], "--session", "first")
    chat(models[0], "--session", "last")
    assert chat("--continue", lines="/history\n")[1].count("Hello.") == 1
    assert "--continue" in chat("--continue", "--session", "first")[1]
